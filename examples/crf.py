"""Find names in sentences with a BiLSTM-CRF: tags are chosen together, by the score of the whole sequence.

    python examples/crf.py                           # learns where names start and end
    python examples/crf.py --save model; python examples/crf.py --load model --epochs 0
    python examples/crf.py --dynet                   # the same under DyNet

The loss is log(sum of exp(score) over all sequences) - score of the right one; the sum is made word by word, by the
forward algorithm (Lample et al. 2016, section 2.2).  Viterbi's algorithm finds the best sequence: it asks for the
scores as NumPy arrays and needs no nodes.
"""

import argparse
import random
import sys
import time

import numpy as np

if "--dynet" in sys.argv:
    import dynet as dy
else:
    import dynjit as dy

TAGS = ["B", "I", "O"]  # the first word of a name, its other words, all that is no name
B, I, O = range(3)  # noqa: E741
START, END = 3, 4
N_TAGS = 5
FIRST = ["new", "old", "saint", "mount", "lake"]
OTHER = ["york", "town", "mary", "rose", "hill", "river"]
PLAIN = ["we", "saw", "a", "new", "old", "rose", "hill", "town", "and", "river", "near", "went"]
WORDS = sorted({*FIRST, *OTHER, *PLAIN})


def make_sentences(count, seed):
    """Pairs of word numbers and tags; some words stand in names and elsewhere."""
    randomness = random.Random(seed)
    sentences = []
    for _ in range(count):
        words, tags = [], []
        for _ in range(randomness.randint(1, 4)):
            for _ in range(randomness.randint(1, 3)):
                words.append(randomness.choice(PLAIN))
                tags.append(O)
            if randomness.random() < 0.6:
                words += ["near", randomness.choice(FIRST)]
                tags += [O, B]
                for _ in range(randomness.randint(1, 2)):
                    words.append(randomness.choice(OTHER))
                    tags.append(I)
                words.append("and")
                tags.append(O)
        sentences.append(([WORDS.index(word) for word in words], tags))
    return sentences


# ---- model -------------------------------------------------------------------------------


class Tagger:
    def __init__(self, options):
        self.parameters = dy.ParameterCollection()
        self.word_vectors = self.parameters.add_lookup_parameters((len(WORDS), options.embedding))
        self.lstm = dy.BiRNNBuilder(1, options.embedding, 2 * options.hidden, self.parameters, dy.LSTMBuilder)
        self.W = self.parameters.add_parameters((N_TAGS, 2 * options.hidden))
        self.b = self.parameters.add_parameters(N_TAGS, init=0)
        self.transitions = self.parameters.add_lookup_parameters((N_TAGS, N_TAGS))  # to each tag: from all the tags

    def scores(self, words):
        """For each word a vector with the score of each tag."""
        W, b = dy.parameter(self.W), dy.parameter(self.b)
        return [W * vector + b for vector in self.lstm.transduce([self.word_vectors[word] for word in words])]

    def score(self, scores, tags):
        """The score of one sequence of tags."""
        total, before = dy.scalarInput(0), START
        for vector, tag in zip(scores, tags, strict=True):
            total = total + dy.pick(self.transitions[tag], before) + dy.pick(vector, tag)
            before = tag
        return total + dy.pick(self.transitions[END], before)

    def log_sum(self, scores):
        """log(sum of exp(score) over all sequences of tags)."""
        forward = dy.inputVector([0.0 if tag == START else -1000.0 for tag in range(N_TAGS)])
        for vector in scores:
            sums = []
            for tag in range(N_TAGS):
                ways = forward + self.transitions[tag] + dy.concatenate([dy.pick(vector, tag)] * N_TAGS)
                sums.append(dy.logsumexp_dim(ways, 0))
            forward = dy.concatenate(sums)
        return dy.logsumexp_dim(forward + self.transitions[END], 0)

    def loss(self, sentence):
        """-log P(right sequence of tags), in nats."""
        words, tags = sentence
        scores = self.scores(words)
        return self.log_sum(scores) - self.score(scores, tags)

    def best(self, words):
        """The best sequence of tags, and its score."""
        dy.renew_cg()
        transitions = [self.transitions[tag].npvalue() for tag in range(N_TAGS)]
        best, pointers = np.full(N_TAGS, -1000.0), []
        best[START] = 0.0
        for vector in self.scores(words):
            ways = [best + transitions[tag] for tag in range(N_TAGS)]
            pointers.append([int(np.argmax(way)) for way in ways])
            best = np.array([way.max() for way in ways]) + vector.npvalue()
        best += transitions[END]
        tags = [int(np.argmax(best))]
        for pointer in reversed(pointers):
            tags.append(pointer[tags[-1]])
        return tags[-2::-1], best.max()


# ---- training and testing ------------------------------------------------------------------


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", type=int, default=200, help="sentences to learn from (default %(default)s)")
    parser.add_argument("--embedding", type=int, default=16, help="size of a word's vector (default %(default)s)")
    parser.add_argument("--hidden", type=int, default=16, help="units of the LSTM each way (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="passes over the sentences (default %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="sentences summed into one step (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=0.1, help="of SGD (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default %(default)s)")
    parser.add_argument("--load", metavar="FILE", help="start from a saved model of the same sizes")
    parser.add_argument("--save", metavar="FILE", help="save the model after training")
    parser.add_argument("--dynet", action="store_true", help="use DyNet instead of dynjit")
    parser.add_argument("--dynet-autobatch", metavar="N", help="read by the toolkit itself: 0 groups no operations")
    options = parser.parse_args(arguments)

    dy.reset_random_seed(options.seed)
    sentences = make_sentences(options.train + 100, options.seed)
    training, testing = sentences[:-100], sentences[-100:]
    tagger = Tagger(options)
    if options.load:
        tagger.parameters.populate(options.load)
    trainer = dy.SimpleSGDTrainer(tagger.parameters, options.learning_rate)
    for epoch in range(1, options.epochs + 1):
        start, total = time.perf_counter(), 0.0
        for first in range(0, len(training), options.batch):
            dy.renew_cg()
            loss = dy.average([tagger.loss(sentence) for sentence in training[first : first + options.batch]])
            total += loss.scalar_value() * options.batch
            loss.backward()
            trainer.update()
        print(f"epoch {epoch}: loss {total / len(training):.4f} per sentence, {time.perf_counter() - start:.2f} s")
    if options.save:
        tagger.parameters.save(options.save)

    start, right = time.perf_counter(), 0
    for words, tags in testing:
        right += tagger.best(words)[0] == tags
    words, _ = testing[-1]
    tags, _ = tagger.best(words)
    print(" ".join(f"{WORDS[word]}/{TAGS[tag]}" for word, tag in zip(words, tags, strict=True)))
    print(f"test: accuracy {right / len(testing):.1%} of sentences, {time.perf_counter() - start:.2f} s")
    return right / len(testing)


if __name__ == "__main__":
    main()
