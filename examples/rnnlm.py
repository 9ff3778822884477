"""A language model: an LSTM that guesses each word of a sentence from those before it, many sentences at a time.

    python examples/rnnlm.py                        # learns the prose of Python's own manual
    python examples/rnnlm.py --data book.txt        # or yours: plain text, a sentence or paragraph on each line
    python examples/rnnlm.py --save model; python examples/rnnlm.py --load model --epochs 0 --sample 5

A mini-batch is one tensor that holds a vector for each of its sentences: `lookup_batch` makes it, every operation
keeps it, `pickneglogsoftmax_batch` takes one word of each.  Sentences of a batch are padded to the longest; a mask of
ones and zeros takes the padding out of the loss.
"""

import argparse
import json
import math
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

from tqdm import tqdm

if "--dynet" in sys.argv:
    import dynet as dy
else:
    import dynjit as dy

START_OR_END, UNKNOWN = "<s>", "<unknown>"
MAX_WORDS = 40


# ---- data: a sentence is a list of word numbers, and starts and ends with 0 --------------


def words_of(line):
    return re.findall(r"\w+|[^\w\s]", line.lower())[:MAX_WORDS]


def read_sentences(path):
    """The lines of a text file as lists of words."""
    with open(path, encoding="utf-8") as lines:
        sentences = [words_of(line) for line in lines]
    return [sentence for sentence in sentences if sentence]


def manual_sentences(seed):
    """Sentences of the manual that `help()` shows."""
    prose = []
    for topic in topics.values():
        for paragraph in topic.split("\n\n"):
            if re.match(r"[A-Z]", paragraph):  # no headings, lists or code
                prose += re.split(r"(?<=[.?!])\s+", paragraph)
    sentences = [words_of(sentence) for sentence in prose if sentence.endswith(".")]
    sentences = [sentence for sentence in sentences if 4 <= len(sentence) < MAX_WORDS]
    random.Random(seed).shuffle(sentences)
    return sentences[:2000]


def list_words(sentences, min_count):
    counts = Counter(word for sentence in sentences for word in sentence)
    return [START_OR_END, UNKNOWN, *sorted(word for word in counts if counts[word] >= min_count)]


def number_words(sentences, words):
    index = {word: i for i, word in enumerate(words)}
    return [[0, *(index.get(word, 1) for word in sentence), 0] for sentence in sentences]


def make_batches(sentences, size):
    """Groups of sentences of nearly the same length."""
    ordered = sorted(sentences, key=len)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


# ---- model -------------------------------------------------------------------------------


class LanguageModel:
    def __init__(self, words, options):
        self.words = words
        self.parameters = dy.ParameterCollection()
        self.word_vectors = self.parameters.add_lookup_parameters((len(words), options.embedding))
        self.lstm = dy.VanillaLSTMBuilder(options.layers, options.embedding, options.hidden, self.parameters)
        self.W = self.parameters.add_parameters((len(words), options.hidden))
        self.b = self.parameters.add_parameters(len(words), init=0)

    def scores(self, state):
        return dy.affine_transform([self.b, self.W, state.output()])

    def loss(self, batch):
        """Sum over all words of all sentences of -log P(word), in nats."""
        longest = max(map(len, batch))
        columns = [[sentence[i] if i < len(sentence) else 0 for sentence in batch] for i in range(longest)]
        lengths = [len(sentence) for sentence in batch]
        state = self.lstm.initial_state()
        losses = []
        for i in range(longest - 1):
            state = state.add_input(dy.lookup_batch(self.word_vectors, columns[i]))
            loss = dy.pickneglogsoftmax_batch(self.scores(state), columns[i + 1])
            if i + 1 >= min(lengths):
                mask = dy.inputVector([float(i + 1 < length) for length in lengths])
                loss = dy.cmult(loss, dy.reshape(mask, (1,), len(batch)))
            losses.append(loss)
        return dy.sum_batches(dy.esum(losses))

    def sample(self, randomness):
        """A sentence drawn word by word: each word decides what the next graph node is."""
        dy.renew_cg()
        state, word, sentence = self.lstm.initial_state(), 0, []
        while len(sentence) < MAX_WORDS:
            state = state.add_input(self.word_vectors[word])
            probabilities = dy.softmax(self.scores(state)).value()
            (word,) = randomness.choices(range(len(self.words)), probabilities)
            if word == 0:
                break
            sentence.append(self.words[word])
        return " ".join(sentence)


SIZES = ("embedding", "hidden", "layers")  # the options that a saved model brings along


def save_model(model, options):
    """Write the parameters, and beside them as JSON what is needed to make such a model again."""
    model.parameters.save(options.save)
    description = {"sizes": {name: getattr(options, name) for name in SIZES}, "words": model.words}
    Path(f"{options.save}.json").write_text(json.dumps(description), encoding="utf-8")


def load_model(options):
    """The saved model; its sizes replace those of the command line."""
    description = json.loads(Path(f"{options.load}.json").read_text(encoding="utf-8"))
    vars(options).update(description["sizes"])
    model = LanguageModel(description["words"], options)
    model.parameters.populate(options.load)
    return model


# ---- training and testing ------------------------------------------------------------------


def n_guesses(sentences):
    return sum(len(sentence) - 1 for sentence in sentences)


def train(model, trainer, sentences, options, shuffler):
    """One pass over the sentences; prints perplexity and speed."""
    batches = make_batches(sentences, options.batch)
    shuffler.shuffle(batches)
    start, total, n_words = time.perf_counter(), 0.0, 0
    with tqdm(total=len(sentences), unit="sentence", disable=options.quiet) as progress:
        for batch in batches:
            dy.renew_cg()
            loss = model.loss(batch)
            total += loss.value()
            (loss / len(batch)).backward()
            trainer.update()
            n_words += n_guesses(batch)
            progress.set_postfix(perplexity=f"{math.exp(total / n_words):.1f}", refresh=False)
            progress.update(len(batch))
    seconds = time.perf_counter() - start
    perplexity = math.exp(total / n_words)
    print(f"  training: perplexity {perplexity:.2f}, {seconds:.2f} s, {n_words / seconds:.0f} words per second")


def test(model, sentences, options):
    """Print the perplexity, exp(mean of -log P(word)), and return it; 1 is knowing, the vocabulary's size guessing."""
    start, total, n_words = time.perf_counter(), 0.0, n_guesses(sentences)
    for batch in make_batches(sentences, options.batch):
        dy.renew_cg()
        total += model.loss(batch).value()
    seconds = time.perf_counter() - start
    perplexity, speed = math.exp(total / n_words), n_words / seconds
    print(f"  test: perplexity {perplexity:.2f} of {n_words} words, {seconds:.2f} s, {speed:.0f} words per second")
    return perplexity


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", metavar="FILE", help="plain text (default: the prose of Python's manual)")
    parser.add_argument("--train", type=int, help="sentences to train on, the rest tests (default: nine of ten)")
    parser.add_argument(
        "--min-count", type=int, default=3, help="words seen less often are unknown (default %(default)s)"
    )
    parser.add_argument("--embedding", type=int, default=64, help="size of a word's vector (default %(default)s)")
    parser.add_argument("--hidden", type=int, default=128, help="units of the LSTM (default %(default)s)")
    parser.add_argument("--layers", type=int, default=1, help="of the LSTM (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="passes over the sentences (default %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="sentences in one mini-batch (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=0.005, help="of Adam (default %(default)s)")
    parser.add_argument("--sample", type=int, default=3, help="sentences to draw in the end (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default %(default)s)")
    parser.add_argument("--load", metavar="FILE", help="start from a saved model, with its sizes and its words")
    parser.add_argument("--save", metavar="FILE", help="save the model, its sizes and words as FILE.json")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--dynet", action="store_true", help="use DyNet instead of dynjit")
    parser.add_argument("--dynet-autobatch", metavar="N", help="read by the toolkit itself: 0 groups no operations")
    options = parser.parse_args(arguments)

    sentences = read_sentences(options.data) if options.data else manual_sentences(options.seed)
    n_training = options.train or len(sentences) * 9 // 10
    if not 0 < n_training < len(sentences):
        raise SystemExit(f"needs sentences to train and to test, got {n_training} of {len(sentences)} to train")

    dy.reset_random_seed(options.seed)
    if options.load:
        model = load_model(options)
    else:
        model = LanguageModel(list_words(sentences[:n_training], options.min_count), options)
    trainer = dy.AdamTrainer(model.parameters, alpha=options.learning_rate)
    numbered = number_words(sentences, model.words)
    training, testing = numbered[:n_training], numbered[n_training:]
    print(f"{len(training)} sentences to train, {len(testing)} to test, {len(model.words)} known words")

    shuffler = random.Random(options.seed)
    for epoch in range(1, options.epochs + 1):
        print(f"epoch {epoch}")
        train(model, trainer, training, options, shuffler)
        perplexity = test(model, testing, options)
    if not options.epochs:
        perplexity = test(model, testing, options)
    if options.save:
        save_model(model, options)
    for _ in range(options.sample):
        print(f"  {model.sample(shuffler)}")
    return perplexity


if __name__ == "__main__":
    main()
