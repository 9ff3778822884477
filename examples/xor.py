"""Learn the exclusive or of two bits: the smallest network that needs a hidden layer.

    python examples/xor.py
    python examples/xor.py --hidden 4 --epochs 500 --save xor.model
    python examples/xor.py --dynet                  # the same under DyNet

For every step a graph is built anew: `renew_cg`, expressions, `value`, `backward`, `update`.  All examples in this
folder have this rhythm; here the graph is always the same, in the others it follows the data.
"""

import argparse
import sys
import time

from tqdm import tqdm

if "--dynet" in sys.argv:
    import dynet as dy
else:
    import dynjit as dy

EXAMPLES = [((0, 0), 0), ((0, 1), 1), ((1, 0), 1), ((1, 1), 0)]


class Network:
    """Probability that the answer is one: logistic(v . tanh(W x + b) + a)."""

    def __init__(self, hidden):
        self.parameters = dy.ParameterCollection()
        self.W = self.parameters.add_parameters((hidden, 2))
        self.b = self.parameters.add_parameters(hidden, init=0)
        self.v = self.parameters.add_parameters((1, hidden))
        self.a = self.parameters.add_parameters(1, init=0)

    def probability(self, bits):
        x = dy.inputVector(bits)
        hidden = dy.tanh(dy.affine_transform([self.b, self.W, x]))
        return dy.logistic(dy.affine_transform([self.a, self.v, hidden]))

    def loss(self, bits, answer):
        return dy.binary_log_loss(self.probability(bits), dy.scalarInput(answer))


def train(network, options):
    trainer = dy.SimpleSGDTrainer(network.parameters, learning_rate=options.learning_rate)
    progress = tqdm(range(options.epochs), unit="epoch", disable=options.quiet)
    for _ in progress:
        total = 0.0
        for start in range(0, len(EXAMPLES), options.batch):
            dy.renew_cg()
            loss = dy.esum([network.loss(bits, answer) for bits, answer in EXAMPLES[start : start + options.batch]])
            total += loss.value()
            loss.backward()
            trainer.update()
        progress.set_postfix(loss=f"{total / len(EXAMPLES):.4f}", refresh=False)


def test(network):
    """Print the four answers and return how many are right, 0 to 1."""
    right = 0
    for bits, answer in EXAMPLES:
        dy.renew_cg()
        probability = network.probability(bits).value()
        right += (probability > 0.5) == answer
        print(f"{bits[0]} xor {bits[1]} = {answer}, the network says {probability:.3f}")
    print(f"accuracy {right / len(EXAMPLES):.1%}")
    return right / len(EXAMPLES)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hidden", type=int, default=8, help="units of the hidden layer (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=500, help="passes over the four examples (default %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="examples summed into one step (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=0.5, help="of SGD (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default %(default)s)")
    parser.add_argument("--load", metavar="FILE", help="start from a saved model")
    parser.add_argument("--save", metavar="FILE", help="save the model after training")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--dynet", action="store_true", help="use DyNet instead of dynjit")
    options = parser.parse_args(arguments)

    dy.reset_random_seed(options.seed)
    network = Network(options.hidden)
    if options.load:
        network.parameters.populate(options.load)
    start = time.perf_counter()
    train(network, options)
    seconds = time.perf_counter() - start
    n_examples = options.epochs * len(EXAMPLES)
    print(f"{options.epochs} epochs in {seconds:.2f} s, {n_examples / seconds:.0f} examples per second")
    if options.save:
        network.parameters.save(options.save)
    return test(network)


if __name__ == "__main__":
    main()
