"""Parse sentences with a stack LSTM: shift words onto a stack, join the two on top, as a classifier says.

    python examples/stackparser.py                   # learns who depends on whom in a small grammar
    python examples/stackparser.py --save model; python examples/stackparser.py --load model --epochs 0
    python examples/stackparser.py --dynet           # the same under DyNet

The stack is a list of LSTM states: pushing is `add_input` to the top state, popping is forgetting it and going on from
the one below.  What is pushed after a reduction is composed of head and dependent (Dyer et al. 2015, eq. 1 and 3).
"""

import argparse
import random
import sys
import time

if "--dynet" in sys.argv:
    import dynet as dy
else:
    import dynjit as dy

WORDS = {
    "determiner": ["the", "a", "this"],
    "adjective": ["old", "red", "big", "wise"],
    "noun": ["dog", "tree", "man", "house", "duck"],
    "verb": ["sees", "finds", "saws", "ducks"],
    "of": ["of", "from"],  # belongs to the noun before it
    "with": ["with", "by"],  # belongs to the verb
}
ALL_WORDS = [word for words in WORDS.values() for word in words]
SHIFT, LEFT, RIGHT = range(3)


# ---- data: a sentence is its word numbers, and for each word that of its head, -1 for the root ----


def make_sentence(randomness):
    words, heads = [], []

    def add(kind, head=None):
        words.append(ALL_WORDS.index(randomness.choice(WORDS[kind])))
        heads.append(head)
        return len(words) - 1

    def add_noun_phrase():
        modifiers = [add("determiner")] + [add("adjective") for _ in range(randomness.choice([0, 0, 1, 2]))]
        noun = add("noun")
        for modifier in modifiers:
            heads[modifier] = noun
        if randomness.random() < 0.3:
            preposition = add("of", noun)
            heads[add_noun_phrase()] = preposition
        return noun

    subject = add_noun_phrase()
    verb = add("verb", -1)
    heads[subject] = verb
    heads[add_noun_phrase()] = verb
    if randomness.random() < 0.5:
        preposition = add("with", verb)
        heads[add_noun_phrase()] = preposition
    return words, heads


def make_sentences(count, seed):
    randomness = random.Random(seed)
    return [make_sentence(randomness) for _ in range(count)]


def right_action(stack, n_waiting, heads, n_missing):
    """What leads to the right tree; `n_missing` counts the dependents that each word still waits for."""
    if len(stack) > 1:
        below, top = stack[-2:]
        if heads[below] == top and not n_missing[below]:
            return LEFT
        if heads[top] == below and not n_missing[top]:
            return RIGHT
    assert n_waiting, "a tree whose branches cross"
    return SHIFT


# ---- model -------------------------------------------------------------------------------


class Parser:
    def __init__(self, options):
        size, hidden = options.embedding, options.hidden
        self.parameters = dy.ParameterCollection()
        self.word_vectors = self.parameters.add_lookup_parameters((len(ALL_WORDS), size))
        self.stack_lstm = dy.LSTMBuilder(options.layers, size, hidden, self.parameters)
        self.buffer_lstm = dy.LSTMBuilder(options.layers, size, hidden, self.parameters)
        self.W_compose = self.parameters.add_parameters((size, 2 * size))
        self.b_compose = self.parameters.add_parameters(size, init=0)
        self.W_hidden = self.parameters.add_parameters((hidden, 2 * hidden))
        self.b_hidden = self.parameters.add_parameters(hidden, init=0)
        self.W_action = self.parameters.add_parameters((3, hidden))
        self.b_action = self.parameters.add_parameters(3, init=0)
        self.empty = self.parameters.add_parameters(hidden)

    def parse(self, words, heads=None):
        """Heads of the words as found; the sum of -log P(right action) if the right heads are given, else None."""
        W_compose, b_compose = dy.parameter(self.W_compose), dy.parameter(self.b_compose)
        W_hidden, b_hidden = dy.parameter(self.W_hidden), dy.parameter(self.b_hidden)
        W_action, b_action = dy.parameter(self.W_action), dy.parameter(self.b_action)
        empty = dy.parameter(self.empty)

        waiting = [(self.buffer_lstm.initial_state(), empty)]  # from the last word to the first
        vectors = [self.word_vectors[word] for word in words]
        for vector in reversed(vectors):
            state = waiting[-1][0].add_input(vector)
            waiting.append((state, state.output()))
        stack = []  # of (state, vector, word)
        found, losses = [-1] * len(words), []
        n_missing = [heads.count(word) for word in range(len(words))] if heads else None
        while len(stack) > 1 or len(waiting) > 1:
            allowed = [SHIFT] * (len(waiting) > 1) + [LEFT, RIGHT] * (len(stack) > 1)
            action = allowed[0]
            if len(allowed) > 1:
                summary = dy.concatenate([stack[-1][0].output() if stack else empty, waiting[-1][1]])
                hidden = dy.tanh(dy.affine_transform([b_hidden, W_hidden, summary]))
                scores = W_action * hidden + b_action
                if heads:
                    action = right_action([word for _, _, word in stack], len(waiting) - 1, heads, n_missing)
                    losses.append(dy.pickneglogsoftmax(scores, action))
                else:
                    values = scores.npvalue()
                    action = max(allowed, key=lambda action: values[action])
            if action == SHIFT:
                waiting.pop()
                word = len(words) - len(waiting)
                vector = vectors[word]
            else:
                right, left = stack.pop(), stack.pop()
                (_, head, word), (_, dependent, child) = (right, left) if action == LEFT else (left, right)
                found[child] = word
                if heads:
                    n_missing[word] -= 1
                vector = dy.tanh(W_compose * dy.concatenate([head, dependent]) + b_compose)
            below = stack[-1][0] if stack else self.stack_lstm.initial_state()
            stack.append((below.add_input(vector), vector, word))
        return found, dy.esum(losses) if losses else None

    def loss(self, sentence):
        """Sum over the actions of -log P(right action), in nats."""
        return self.parse(*sentence)[1]


# ---- training and testing ------------------------------------------------------------------


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", type=int, default=300, help="sentences to learn from (default %(default)s)")
    parser.add_argument("--embedding", type=int, default=16, help="size of a word's vector (default %(default)s)")
    parser.add_argument("--hidden", type=int, default=32, help="units of the LSTMs (default %(default)s)")
    parser.add_argument("--layers", type=int, default=1, help="of the LSTMs (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="passes over the sentences (default %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="sentences summed into one step (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=0.005, help="of Adam (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default %(default)s)")
    parser.add_argument("--load", metavar="FILE", help="start from a saved model of the same sizes")
    parser.add_argument("--save", metavar="FILE", help="save the model after training")
    parser.add_argument("--dynet", action="store_true", help="use DyNet instead of dynjit")
    parser.add_argument("--dynet-autobatch", metavar="N", help="read by the toolkit itself: 0 groups no operations")
    options = parser.parse_args(arguments)

    dy.reset_random_seed(options.seed)
    sentences = make_sentences(options.train + 100, options.seed)
    training, testing = sentences[:-100], sentences[-100:]
    model = Parser(options)
    if options.load:
        model.parameters.populate(options.load)
    trainer = dy.AdamTrainer(model.parameters, alpha=options.learning_rate)
    for epoch in range(1, options.epochs + 1):
        start, total = time.perf_counter(), 0.0
        for first in range(0, len(training), options.batch):
            dy.renew_cg()
            loss = dy.esum([model.loss(sentence) for sentence in training[first : first + options.batch]])
            total += loss.value()
            loss.backward()
            trainer.update()
        print(f"epoch {epoch}: loss {total / len(training):.4f} per sentence, {time.perf_counter() - start:.2f} s")
    if options.save:
        model.parameters.save(options.save)

    start, right, n_words = time.perf_counter(), 0, 0
    for words, heads in testing:
        dy.renew_cg()
        found, _ = model.parse(words)
        right += sum(one == other for one, other in zip(found, heads, strict=True))
        n_words += len(words)
    print(f"test: accuracy {right / n_words:.1%} of {n_words} heads, {time.perf_counter() - start:.2f} s")
    return right / n_words


if __name__ == "__main__":
    main()
