"""Classify sentences by convolution: filters slide over the words, and each keeps the place where it fits best.

    python examples/textcnn.py                       # learns which sentences praise: "not good" does not
    python examples/textcnn.py --narrow              # folded filters, and the best three places of each
    python examples/textcnn.py --save model; python examples/textcnn.py --load model --epochs 0
    python examples/textcnn.py --dynet               # the same under DyNet

Sentences of a mini-batch are padded to one length, so that a mini-batch is one tensor, and the graph has few nodes.
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

FILLER = ["the", "film", "was", "and", "so", "it", "we", "all", "quite"]
WORDS = ["<pad>", *FILLER, "good", "bad", "not"]
N_CLASSES = 3  # blame, nothing, praise
BEST = 3  # places that a narrow filter keeps


def make_sentences(count, seed):
    """Pairs of word numbers and class: good and not bad are praise, bad and not good are blame."""
    randomness = random.Random(seed)
    sentences = []
    for _ in range(count):
        words, answer = randomness.choices(FILLER, k=randomness.randint(4, 10)), randomness.choice([-1, 0, 1])
        if answer == 0:
            judgement = randomness.choice([["not"], ["not", "so"], []])
        else:
            judgement = randomness.choice([["good"], ["not", "bad"]] if answer == 1 else [["bad"], ["not", "good"]])
        place = randomness.randint(0, len(words))
        words[place:place] = judgement
        sentences.append(([WORDS.index(word) for word in words], answer + 1))
    return sentences


# ---- model -------------------------------------------------------------------------------


class Classifier:
    def __init__(self, options):
        size, n_filters = options.embedding, options.filters
        self.options, self.parameters = options, dy.ParameterCollection()
        self.word_vectors = self.parameters.add_lookup_parameters((len(WORDS), size))
        if options.narrow:
            shapes = [(size, window, n_filters) for window in options.windows]
            n_features = len(shapes) * n_filters * BEST // 2
        else:
            shapes = [(size, window, 1, n_filters) for window in options.windows]
            n_features = len(shapes) * n_filters
        self.filters = [self.parameters.add_parameters(shape) for shape in shapes]
        self.biases = [self.parameters.add_parameters(n_filters, init=0) for _ in shapes]
        self.W = self.parameters.add_parameters((N_CLASSES, n_features))
        self.b = self.parameters.add_parameters(N_CLASSES, init=0)

    def features(self, sentence, length, filters, bias):
        """What one group of filters finds in a (size, length) x batch tensor of words."""
        if self.options.narrow:
            found = dy.fold_rows(dy.filter1d_narrow(sentence, dy.parameter(filters)), 2)
            return dy.reshape(dy.tanh(dy.kmax_pooling(found, BEST)), (self.options.filters // 2 * BEST,))
        window = filters.shape()[1]
        image = dy.reshape(sentence, (self.options.embedding, length, 1), batch_size=sentence.dim()[1])
        found = dy.conv2d_bias(image, dy.parameter(filters), dy.parameter(bias), stride=[1, 1], is_valid=True)
        found = dy.maxpooling2d(dy.rectify(found), ksize=[1, length - window + 1], stride=[1, 1], is_valid=True)
        return dy.reshape(found, (self.options.filters,), batch_size=sentence.dim()[1])

    def scores(self, sentences, dropout=0.0):
        """For each sentence the scores of the classes: (3,) x batch."""
        shortest = max(self.options.windows) + BEST - 1
        length = max(shortest, *(len(words) for words in sentences))
        rows = [words + [0] * (length - len(words)) for words in sentences]
        columns = [dy.lookup_batch(self.word_vectors, [words[i] for words in rows]) for i in range(length)]
        sentence = dy.concatenate_cols(columns)
        features = dy.concatenate(
            [self.features(sentence, length, *pair) for pair in zip(self.filters, self.biases, strict=True)]
        )
        if dropout:
            features = dy.dropout(features, dropout)
        return dy.parameter(self.W) * features + dy.parameter(self.b)

    def loss(self, batch):
        """Sum over the sentences of -log P(class), in nats."""
        if self.options.narrow and len(batch) > 1:  # DyNet's filter1d_narrow has no mini-batches
            return dy.esum([self.loss([pair]) for pair in batch])
        scores = self.scores([words for words, _ in batch], self.options.dropout)
        return dy.sum_batches(dy.pickneglogsoftmax_batch(scores, [answer for _, answer in batch]))

    def answers(self, sentences):
        """The most probable class of each sentence."""
        answers = []
        for words in sentences:
            dy.renew_cg()
            answers.append(int(np.argmax(dy.softmax(self.scores([words])).npvalue())))
        return answers


# ---- training and testing ------------------------------------------------------------------


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", type=int, default=600, help="sentences to learn from (default %(default)s)")
    parser.add_argument("--embedding", type=int, default=8, help="size of a word's vector, even (default %(default)s)")
    parser.add_argument("--windows", type=int, nargs="+", default=[2, 3], help="words that a filter sees")
    parser.add_argument("--filters", type=int, default=16, help="filters for each window (default %(default)s)")
    parser.add_argument("--narrow", action="store_true", help="older operators: folded filters and k-max pooling")
    parser.add_argument("--dropout", type=float, default=0.2, help="share of features left out (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=15, help="passes over the sentences (default %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="sentences in one mini-batch (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=0.01, help="of Adam (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default %(default)s)")
    parser.add_argument("--load", metavar="FILE", help="start from a saved model of the same sizes")
    parser.add_argument("--save", metavar="FILE", help="save the model after training")
    parser.add_argument("--dynet", action="store_true", help="use DyNet instead of dynjit")
    parser.add_argument("--dynet-autobatch", metavar="N", help="read by the toolkit itself: 0 groups no operations")
    options = parser.parse_args(arguments)

    dy.reset_random_seed(options.seed)
    sentences = make_sentences(options.train + 200, options.seed)
    training, testing = sentences[:-200], sentences[-200:]
    classifier = Classifier(options)
    if options.load:
        classifier.parameters.populate(options.load)
    trainer = dy.AdamTrainer(classifier.parameters, alpha=options.learning_rate)
    for epoch in range(1, options.epochs + 1):
        start, total = time.perf_counter(), 0.0
        for first in range(0, len(training), options.batch):
            batch = training[first : first + options.batch]
            dy.renew_cg()
            loss = classifier.loss(batch)
            total += loss.value()
            (loss / len(batch)).backward()
            trainer.update()
        print(f"epoch {epoch}: loss {total / len(training):.4f} per sentence, {time.perf_counter() - start:.2f} s")
    if options.save:
        classifier.parameters.save(options.save)

    start = time.perf_counter()
    answers = classifier.answers([words for words, _ in testing])
    right = sum(answer == found for (_, answer), found in zip(testing, answers, strict=True))
    print(f"test: accuracy {right / len(testing):.1%} of sentences, {time.perf_counter() - start:.2f} s")
    return right / len(testing)


if __name__ == "__main__":
    main()
