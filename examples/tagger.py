"""Tag every word of a sentence with a bidirectional LSTM; with --char, read rare words letter by letter.

    python examples/tagger.py                               # learns to tell the tokens of Python apart
    python examples/tagger.py --char                        # and sees the letters of rare words
    python examples/tagger.py --data tags.txt --train 1000  # lines such as:  The|DET dog|NOUN barks|VERB .|PUNCT
    python examples/tagger.py --save model; python examples/tagger.py --load model --epochs 0

Sentences differ in length, and words in being rare or not, so that no two graphs are alike.  The code does not care:
it loops over the words of one sentence, and sums the losses of a few sentences before it asks for a value.
"""

import argparse
import importlib
import inspect
import io
import json
import random
import re
import sys
import time
import tokenize
from collections import Counter
from pathlib import Path

from tqdm import tqdm

if "--dynet" in sys.argv:
    import dynet as dy
else:
    import dynjit as dy

UNKNOWN = "<unknown>"
SOURCES = ["argparse", "ast", "configparser", "dataclasses", "difflib", "inspect", "pickle", "subprocess", "typing"]


# ---- data: a sentence is a list of (word, tag) pairs -----------------------------------


def read_sentences(path):
    """Sentences of a file with `word|TAG word|TAG ...` on each line."""
    sentences = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            tokens = re.findall(r"[^ \t\r\n]+", line)  # a word may hold a no-break space, where split() would cut it
            sentence = [tuple(token.rpartition("|")[::2]) for token in tokens]
            if not all(word and tag for word, tag in sentence):
                raise SystemExit(f"{path}, line {number}: needs word|TAG with blanks between, got {line[:60]!r}")
            if sentence:
                sentences.append(sentence)
    return sentences


def python_sentences(seed):
    """Lines of Python's own library as sentences: tokens are the words, their types the tags."""
    layout = (tokenize.INDENT, tokenize.DEDENT, tokenize.NEWLINE, tokenize.NL, tokenize.COMMENT, tokenize.ENDMARKER)
    sentences, sentence = [], []
    for module in SOURCES:
        source = inspect.getsource(importlib.import_module(module))
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.NEWLINE:
                if 3 <= len(sentence) <= 40:
                    sentences.append(sentence)
                sentence = []
            elif token.type not in layout:
                sentence.append((token.string[:20], tokenize.tok_name[token.exact_type]))
    random.Random(seed).shuffle(sentences)
    return sentences[:2000]


class Vocabulary:
    """Words seen often, letters and tags, and their numbers."""

    def __init__(self, words, letters, tags):
        self.words, self.letters, self.tags = words, letters, tags
        self.word_index = {word: i for i, word in enumerate(words)}
        self.letter_index = {letter: i for i, letter in enumerate(letters)}
        self.tag_index = {tag: i for i, tag in enumerate(tags)}

    @classmethod
    def of(cls, sentences, min_count):
        counts = Counter(word for sentence in sentences for word, _ in sentence)
        words = sorted(word for word in counts if counts[word] >= min_count)
        letters = sorted({letter for word in counts for letter in word})
        tags = sorted({tag for sentence in sentences for _, tag in sentence})
        return cls([UNKNOWN, *words], [UNKNOWN, *letters], tags)


# ---- model -------------------------------------------------------------------------------


SIZES = ("char", "embedding", "char_embedding", "hidden", "mlp")  # the options that a saved model brings along


class Tagger:
    def __init__(self, vocabulary, options):
        self.vocabulary = vocabulary
        self.parameters = dy.ParameterCollection()
        self.word_vectors = self.parameters.add_lookup_parameters((len(vocabulary.words), options.embedding))
        self.sentence_lstm = dy.BiRNNBuilder(
            1, options.embedding, 2 * options.hidden, self.parameters, dy.VanillaLSTMBuilder
        )
        self.W_hidden = self.parameters.add_parameters((options.mlp, 2 * options.hidden))
        self.b_hidden = self.parameters.add_parameters(options.mlp, init=0)
        self.W_tag = self.parameters.add_parameters((len(vocabulary.tags), options.mlp))
        self.b_tag = self.parameters.add_parameters(len(vocabulary.tags), init=0)
        self.reads_letters = options.char
        if self.reads_letters:
            size, half = options.char_embedding, options.embedding // 2
            self.letter_vectors = self.parameters.add_lookup_parameters((len(vocabulary.letters), size))
            self.letters_forward = dy.VanillaLSTMBuilder(1, size, half, self.parameters)
            self.letters_backward = dy.VanillaLSTMBuilder(1, size, half, self.parameters)

    def word_vector(self, word):
        """A word seen often has a vector of its own; a rare one is spelled, or it is just unknown."""
        index = self.vocabulary.word_index.get(word)
        if index is not None:
            return self.word_vectors[index]
        if not self.reads_letters:
            return self.word_vectors[0]
        letters = [self.letter_vectors[self.vocabulary.letter_index.get(letter, 0)] for letter in word]
        forward = self.letters_forward.initial_state().transduce(letters)[-1]
        backward = self.letters_backward.initial_state().transduce(letters[::-1])[-1]
        return dy.concatenate([forward, backward])

    def scores(self, sentence):
        """An expression for each word, with one score for each tag."""
        words = [self.word_vector(word) for word, _ in sentence]
        scores = []
        for context in self.sentence_lstm.transduce(words):
            hidden = dy.tanh(dy.affine_transform([self.b_hidden, self.W_hidden, context]))
            scores.append(dy.affine_transform([self.b_tag, self.W_tag, hidden]))
        return scores

    def loss(self, sentence):
        """Sum over the words of -log P(tag), in nats."""
        tag_index = self.vocabulary.tag_index
        losses = [
            dy.pickneglogsoftmax(scores, tag_index[tag])
            for scores, (_, tag) in zip(self.scores(sentence), sentence, strict=True)
        ]
        return dy.esum(losses)


def save_tagger(tagger, options):
    """Write the parameters, and beside them as JSON what is needed to make such a tagger again."""
    tagger.parameters.save(options.save)
    vocabulary = [tagger.vocabulary.words, tagger.vocabulary.letters, tagger.vocabulary.tags]
    description = {"sizes": {name: getattr(options, name) for name in SIZES}, "vocabulary": vocabulary}
    Path(f"{options.save}.json").write_text(json.dumps(description), encoding="utf-8")


def load_tagger(options):
    """The saved tagger; its sizes replace those of the command line."""
    description = json.loads(Path(f"{options.load}.json").read_text(encoding="utf-8"))
    vars(options).update(description["sizes"])
    tagger = Tagger(Vocabulary(*description["vocabulary"]), options)
    tagger.parameters.populate(options.load)
    return tagger


# ---- training and testing ------------------------------------------------------------------


def batches(items, size):
    return [items[start : start + size] for start in range(0, len(items), size)]


def train(tagger, trainer, sentences, options):
    """One pass over the sentences; prints loss and speed."""
    start, total, n_words = time.perf_counter(), 0.0, 0
    with tqdm(total=len(sentences), unit="sentence", disable=options.quiet) as progress:
        for batch in batches(sentences, options.batch):
            dy.renew_cg()
            loss = dy.esum([tagger.loss(sentence) for sentence in batch])
            total += loss.value()
            loss.backward()
            trainer.update()
            n_words += sum(map(len, batch))
            progress.set_postfix(loss=f"{total / n_words:.4f}", refresh=False)
            progress.update(len(batch))
    seconds = time.perf_counter() - start
    print(f"  training: loss {total / n_words:.4f} per word, {seconds:.2f} s, {n_words / seconds:.0f} words per second")


def test(tagger, sentences, options):
    """Print the share of right tags, also of rare words alone, and return it, 0 to 1."""
    start = time.perf_counter()
    right, n_words, right_unseen, n_unseen = 0, 0, 0, 0
    for batch in batches(sentences, options.batch):
        dy.renew_cg()
        scores = [expression for sentence in batch for expression in tagger.scores(sentence)]
        dy.forward(scores)
        for expression, (word, tag) in zip(scores, (pair for sentence in batch for pair in sentence), strict=True):
            is_right = tagger.vocabulary.tags[expression.npvalue().argmax()] == tag
            right += is_right
            n_words += 1
            if word not in tagger.vocabulary.word_index:
                right_unseen += is_right
                n_unseen += 1
    seconds = time.perf_counter() - start
    print(
        f"  test: accuracy {right / n_words:.2%} of {n_words} words, {right_unseen / max(n_unseen, 1):.2%} of "
        f"{n_unseen} rare ones, {seconds:.2f} s, {n_words / seconds:.0f} words per second"
    )
    return right / n_words


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", metavar="FILE", help="word|TAG lines (default: source lines of Python's library)")
    parser.add_argument("--train", type=int, help="sentences to train on, the rest tests (default: nine of ten)")
    parser.add_argument("--char", action="store_true", help="read rare words with an LSTM over their letters")
    parser.add_argument("--min-count", type=int, default=5, help="words seen less often are rare (default %(default)s)")
    parser.add_argument("--embedding", type=int, default=64, help="size of a word's vector (default %(default)s)")
    parser.add_argument("--char-embedding", type=int, default=20, help="size of a letter's (default %(default)s)")
    parser.add_argument("--hidden", type=int, default=64, help="units of the LSTM each way (default %(default)s)")
    parser.add_argument("--mlp", type=int, default=32, help="units between LSTM and tags (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the sentences (default %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="sentences summed into one step (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=0.002, help="of Adam (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default %(default)s)")
    parser.add_argument("--load", metavar="FILE", help="start from a saved model, with its sizes and its vocabulary")
    parser.add_argument("--save", metavar="FILE", help="save the model, its sizes and vocabulary as FILE.json")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--dynet", action="store_true", help="use DyNet instead of dynjit")
    parser.add_argument("--dynet-autobatch", metavar="N", help="read by the toolkit itself: 0 groups no operations")
    options = parser.parse_args(arguments)

    sentences = read_sentences(options.data) if options.data else python_sentences(options.seed)
    n_training = options.train or len(sentences) * 9 // 10
    training, testing = sentences[:n_training], sentences[n_training:]
    if not training or not testing:
        raise SystemExit(f"needs sentences to train and to test, got {len(training)} and {len(testing)}")

    dy.reset_random_seed(options.seed)
    if options.load:
        tagger = load_tagger(options)
    else:
        tagger = Tagger(Vocabulary.of(training, options.min_count), options)
    trainer = dy.AdamTrainer(tagger.parameters, alpha=options.learning_rate)
    n_known, n_tags = len(tagger.vocabulary.words), len(tagger.vocabulary.tags)
    print(f"{len(training)} sentences to train, {len(testing)} to test, {n_known} known words, {n_tags} tags")

    shuffler = random.Random(options.seed)
    for epoch in range(1, options.epochs + 1):
        shuffler.shuffle(training)
        print(f"epoch {epoch}")
        train(tagger, trainer, training, options)
        accuracy = test(tagger, testing, options)
    if not options.epochs:
        accuracy = test(tagger, testing, options)
    if options.save:
        save_tagger(tagger, options)
    return accuracy


if __name__ == "__main__":
    main()
