"""Translate with attention: an LSTM reads, another writes and looks back at every word; beam search finds the best.

    python examples/attention.py                     # learns to spell words backwards, each letter moved by one
    python examples/attention.py --beam 1            # takes the best letter at each step, and never a second look
    python examples/attention.py --save model; python examples/attention.py --load model --epochs 0
    python examples/attention.py --dynet             # the same under DyNet

A beam holds the best few unfinished outputs.  Each step asks for the probabilities of all of them, so that values and
new nodes take turns within one graph.
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

LETTERS = "abcdefgh"
END = len(LETTERS)  # the number of the sign that starts and ends every output
N_SIGNS = len(LETTERS) + 1


def make_pairs(count, longest, seed):
    """Words and their translations as lists of letter numbers."""
    randomness = random.Random(seed)
    words = [randomness.choices(range(END), k=randomness.randint(3, longest)) for _ in range(count)]
    return [(word, [(letter + 1) % END for letter in reversed(word)]) for word in words]


# ---- model -------------------------------------------------------------------------------


class Translator:
    def __init__(self, options):
        size, hidden = options.embedding, options.hidden
        self.options, self.parameters = options, dy.ParameterCollection()
        self.input_vectors = self.parameters.add_lookup_parameters((N_SIGNS, size))
        self.output_vectors = self.parameters.add_lookup_parameters((N_SIGNS, size))
        self.reader_forward = dy.LSTMBuilder(1, size, hidden, self.parameters)
        self.reader_backward = dy.LSTMBuilder(1, size, hidden, self.parameters)
        self.writer = dy.LSTMBuilder(1, size + 2 * hidden, hidden, self.parameters)
        self.W_word = self.parameters.add_parameters((hidden, 2 * hidden))
        self.W_state = self.parameters.add_parameters((hidden, 2 * hidden))
        self.v = self.parameters.add_parameters((1, hidden))
        self.W = self.parameters.add_parameters((N_SIGNS, hidden))
        self.b = self.parameters.add_parameters(N_SIGNS, init=0)

    def read(self, word):
        """The words' vectors as columns of a matrix, and the same as attention sees them."""
        vectors = [self.input_vectors[letter] for letter in [*word, END]]
        forward = self.reader_forward.initial_state().transduce(vectors)
        backward = self.reader_backward.initial_state().transduce(vectors[::-1])[::-1]
        columns = dy.concatenate_cols([dy.concatenate(list(pair)) for pair in zip(forward, backward, strict=True)])
        return columns, dy.parameter(self.W_word) * columns

    def attend(self, columns, keys, state):
        """Mean of the columns, weighted by softmax(v tanh(keys + W_state state))."""
        query = dy.parameter(self.W_state) * dy.concatenate(list(state.s()))
        weights = dy.softmax(dy.transpose(dy.parameter(self.v) * dy.tanh(dy.colwise_add(keys, query))))
        return columns * weights

    def start(self):
        return self.writer.initial_state().add_input(dy.vecInput(self.options.embedding + 2 * self.options.hidden))

    def step(self, columns, keys, state, letter):
        """The writer after one more letter, and the scores of what may come next."""
        context = self.attend(columns, keys, state)
        state = state.add_input(dy.concatenate([context, self.output_vectors[letter]]))
        return state, dy.affine_transform([dy.parameter(self.b), dy.parameter(self.W), state.output()])

    def loss(self, pair):
        """Sum over the letters and the end of the output of -log P, in nats."""
        word, translation = pair
        columns, keys = self.read(word)
        state, before, losses = self.start(), END, []
        for letter in [*translation, END]:
            state, scores = self.step(columns, keys, state, before)
            losses.append(dy.pickneglogsoftmax(scores, letter))
            before = letter
        return dy.esum(losses)

    def translate(self, word, beam):
        """The best output that a beam search finds, and its log probability in nats."""
        dy.renew_cg()
        columns, keys = self.read(word)
        unfinished, finished = [(0.0, [], self.start())], []
        for _ in range(2 * len(word)):
            candidates = []
            for total, output, state in unfinished:
                state, scores = self.step(columns, keys, state, output[-1] if output else END)
                log_probabilities = dy.log_softmax(scores).npvalue()
                for letter in np.argsort(-log_probabilities)[:beam]:
                    candidates.append((total + log_probabilities[letter], [*output, int(letter)], state))
            candidates.sort(key=lambda candidate: -candidate[0])
            finished += [candidate for candidate in candidates[:beam] if candidate[1][-1] == END]
            unfinished = [candidate for candidate in candidates[:beam] if candidate[1][-1] != END]
            if not unfinished or len(finished) >= beam:
                break
        total, output, _ = max(finished or unfinished, key=lambda candidate: candidate[0])
        return [letter for letter in output if letter != END], total


# ---- training and testing ------------------------------------------------------------------


def spell(letters):
    return "".join(LETTERS[letter] for letter in letters)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", type=int, default=1000, help="words to learn from (default %(default)s)")
    parser.add_argument("--longest", type=int, default=7, help="letters of the longest word (default %(default)s)")
    parser.add_argument("--embedding", type=int, default=16, help="size of a letter's vector (default %(default)s)")
    parser.add_argument("--hidden", type=int, default=32, help="units of the LSTMs (default %(default)s)")
    parser.add_argument("--beam", type=int, default=3, help="outputs that are kept at each step (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the words (default %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="words summed into one step (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=0.005, help="of Adam (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default %(default)s)")
    parser.add_argument("--load", metavar="FILE", help="start from a saved model of the same sizes")
    parser.add_argument("--save", metavar="FILE", help="save the model after training")
    parser.add_argument("--dynet", action="store_true", help="use DyNet instead of dynjit")
    parser.add_argument("--dynet-autobatch", metavar="N", help="read by the toolkit itself: 0 groups no operations")
    options = parser.parse_args(arguments)

    dy.reset_random_seed(options.seed)
    pairs = make_pairs(options.train + 50, options.longest, options.seed)
    training, testing = pairs[:-50], pairs[-50:]
    translator = Translator(options)
    if options.load:
        translator.parameters.populate(options.load)
    trainer = dy.AdamTrainer(translator.parameters, alpha=options.learning_rate)
    for epoch in range(1, options.epochs + 1):
        start, total = time.perf_counter(), 0.0
        for first in range(0, len(training), options.batch):
            dy.renew_cg()
            loss = dy.esum([translator.loss(pair) for pair in training[first : first + options.batch]])
            total += loss.value()
            loss.backward()
            trainer.update()
        print(f"epoch {epoch}: loss {total / len(training):.4f} per word, {time.perf_counter() - start:.2f} s")
    if options.save:
        translator.parameters.save(options.save)

    start, right = time.perf_counter(), 0
    for word, translation in testing:
        right += translator.translate(word, options.beam)[0] == translation
    word, translation = testing[-1]
    print(f"{spell(word)} is {spell(translation)}: {spell(translator.translate(word, options.beam)[0])}")
    print(f"test: accuracy {right / len(testing):.1%} of words, {time.perf_counter() - start:.2f} s")
    return right / len(testing)


if __name__ == "__main__":
    main()
