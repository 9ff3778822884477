"""Long short-term memories over trees: the state of a node is made from its input and the states of its children.

A tree of n nodes is a list of n lists: `children[i]` are the numbers of node i's children, in order.  So
[[1, 2], [], []] is a root, 0, with two leaves; the tree may be any graph without cycles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynjit.errors import located
from dynjit.expressions import Expression
from dynjit.models import ParameterCollection
from dynjit.ops import layout, select, unary
from dynjit.ops.binary import cmult
from dynjit.ops.linear import add_product, affine_transform
from dynjit.ops.nary import esum
from dynjit.ops.recurrent import lstm_activation, vanilla_lstm_c, vanilla_lstm_h
from dynjit.ops.unary import logistic
from dynjit.rnn_base import Builder, Run, Vectors, checked_sizes, masked
from dynjit.rnn_lstm import VanillaLSTMBuilder
from dynjit.shape import as_finite, as_integer, as_list, as_number, kind_of

__all__ = ["BidirectionalTreeLSTMBuilder", "ChildSumTreeLSTMBuilder", "NaryTreeLSTMBuilder", "TreeBuilder", "TreeState",
           "UnidirectionalTreeLSTMBuilder", "bottom_up", "children_of"]  # fmt: skip

Tree = Sequence[Sequence["int | None"]]


def children_of(parents: Sequence[int | None]) -> list[list[int]]:
    """The tree of a list of each node's parent; None or -1 for a root.  Raises ValueError for nodes not there."""
    parents = as_list("children_of", "parents", parents)
    tree: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents):
        if parent is None or parent == -1:
            continue
        parent = as_integer("children_of", parent)
        if not 0 <= parent < len(tree):
            raise ValueError(located(f"children_of: needs parents from -1 to {len(tree) - 1}, got {parent}"))
        tree[parent].append(node)
    return tree


def bottom_up(children: Tree) -> list[int]:
    """All nodes in an order in which children come before their parents; raises ValueError for what is no tree."""
    children = [as_list("bottom_up", "children", of_node) for of_node in as_list("bottom_up", "nodes", children)]
    count = len(children)
    order: list[int] = []
    is_open: list[bool | None] = [None] * count  # None: not seen; True: its children are being visited; False: done
    for root in range(count):
        stack = [root]
        while stack:
            node = stack[-1]
            if is_open[node] is None:
                is_open[node] = True
                for child in children[node]:
                    if child is None:
                        continue
                    child = as_integer("bottom_up", child)
                    if not 0 <= child < count or is_open[child]:
                        what = "a tree without cycles" if 0 <= child < count else f"children from 0 to {count - 1}"
                        raise ValueError(located(f"bottom_up: needs {what}, got {child} as a child of {node}"))
                    if is_open[child] is None:
                        stack.append(child)
            else:
                stack.pop()
                if is_open[node]:
                    is_open[node] = False
                    order.append(node)
    return order


class TreeState:
    """What a tree's node has: its output, and the vectors c and h of each layer."""

    __slots__ = ("_c", "_h")

    def __init__(self, c: Vectors, h: Vectors) -> None:
        self._c, self._h = c, h

    def output(self) -> Expression:
        """The top layer's h."""
        return self._h[-1]

    def h(self) -> Vectors:
        """Each layer's h."""
        return self._h

    def c(self) -> Vectors:
        """Each layer's c; () of builders that have none."""
        return self._c


Children = Sequence["TreeState | None"]


def present_of(operator: str, children: Children) -> list[TreeState]:
    """The children that are there; raises TypeError for what is no state of a node."""
    present = [child for child in as_list(operator, "states of children", children) if child is not None]
    for child in present:
        if not isinstance(child, TreeState):
            raise TypeError(located(f"{operator}: needs states of children, got {kind_of(child)}"))
    return present


class TreeBuilder:
    """Base of all builders of networks over trees."""

    def add_input(self, x: Expression | None, children: Children = (), update: bool = True) -> TreeState:
        """The state of a node.

        x: (input_dim,) x batch, or None for a node without input;  children: their states;  update: whether the
        parameters get gradients.  Raises ValueError for a node with neither input nor children.
        """
        raise NotImplementedError

    def add_inputs(self, xs: Sequence[Expression | None], children: Tree, update: bool = True) -> list[TreeState]:
        """The states of all nodes of a tree, or of several; xs: a node's input, or None.

        Raises ValueError for what is no tree, and for another number of inputs than of nodes.
        """
        xs, children = as_list("add_inputs", "expressions", xs), as_list("add_inputs", "lists of children", children)
        if len(xs) != len(children):
            raise ValueError(located(f"add_inputs: needs an input for each of {len(children)} nodes, got {len(xs)}"))
        states: list[Any] = [None] * len(xs)
        for node in bottom_up(children):
            below = [None if child is None else states[child] for child in children[node]]
            states[node] = self.add_input(xs[node], below, update)
        return states

    def transduce(self, xs: Sequence[Expression | None], children: Tree, update: bool = True) -> list[Expression]:
        """The outputs of all nodes of a tree, or of several; see `add_inputs`."""
        return [state.output() for state in self.add_inputs(xs, children, update)]


class GatedTreeBuilder(Builder, TreeBuilder):
    """Base of the tree LSTMs whose gates see the children themselves."""

    def __init__(
        self, layers: float, input_dim: float, hidden_dim: float, model: ParameterCollection, forget_bias: float = 1.0
    ) -> None:
        super().__init__(layers, input_dim, hidden_dim, model)
        self.forget_bias = as_finite(self.whoami(), forget_bias)

    @property
    def spec(self) -> tuple[Any, ...]:
        return self.layers, self.input_dim, self.hidden_dim, self.forget_bias

    def set_dropouts(self, d: float, d_h: float) -> None:
        """Sets the dropout rates of inputs and of what the gates see of children; ValueError unless 0 to below 1."""
        self._set_rates(d, d_h)

    def _forget_rows(self, weights: Any) -> Expression:
        """The rows of the forget gate."""
        return select.pick_range(weights, self.hidden_dim, 2 * self.hidden_dim)  # type: ignore[no-any-return]

    def _forget_bias(self, b: Any) -> Expression:
        """b of the forget gate, with the forget bias added: once for each graph, not at each node."""
        return unary.add_number(self._forget_rows(b), self.forget_bias)  # type: ignore[no-any-return]

    def add_input(self, x: Expression | None, children: Children = (), update: bool = True) -> TreeState:
        present = present_of(self.whoami(), children)
        if x is None and not present:
            raise ValueError(located(f"{self.whoami()}: needs an input or children, got neither"))
        run = self._run(bool(update))
        masks = self._masks(run, present[0].output() if x is None else x)
        new_c, new_h = [], []
        for layer in range(self.layers):
            mask_x, mask_h = masks[layer] if masks else (None, None)
            given = [] if x is None else [masked(x, mask_x)]
            h = [None if child is None else masked(child.h()[layer], mask_h) for child in children]
            c = [None if child is None else child.c()[layer] for child in children]
            c_new, x = self._join(run, layer, given, c, h)
            new_c.append(c_new)
            new_h.append(x)
        return TreeState(tuple(new_c), tuple(new_h))

    def _join(self, run: Run, layer: int, x: list[Any], c: list[Any], h: list[Any]) -> tuple[Expression, Expression]:
        """c and h of one layer; x: its input, or nothing; c and h: of the children, None for one that is missing."""
        raise NotImplementedError


class ChildSumTreeLSTMBuilder(GatedTreeBuilder):
    """Tree LSTM of any number of children, whose order does not count: with the sum s of their h,

    [i o u] = W x + U s + b,  f_k = Wf x + Uf h_k + bf + forget_bias of each child k,
    c' = logistic(i) tanh(u) + sum over k of logistic(f_k) c_k,  h' = logistic(o) tanh(c').
    Per layer W (4 hidden, inputs), U (4 hidden, hidden), b (4 hidden,) with the rows i f o u: those of a
    `VanillaLSTMBuilder`, whose results it gives where no node has more than one child.
    Source: Tai, Socher and Manning 2015, equations 2 to 8.
    """

    collection_name = "child-sum-tree-lstm-builder"

    def __init__(
        self, layers: float, input_dim: float, hidden_dim: float, model: ParameterCollection, forget_bias: float = 1.0
    ) -> None:
        super().__init__(layers, input_dim, hidden_dim, model, forget_bias)
        hidden = self.hidden_dim
        for layer in range(self.layers):
            inputs = hidden if layer else self.input_dim
            self._parameters.append(self._add((4 * hidden, inputs), (4 * hidden, hidden), (4 * hidden,)))

    def _in_graph(self, update: bool) -> list[list[Any]]:
        return [
            [w, u, b, self._forget_rows(w), self._forget_rows(u), self._forget_bias(b)]
            for w, u, b in super()._in_graph(update)
        ]

    def _join(self, run: Run, layer: int, x: list[Any], c: list[Any], h: list[Any]) -> tuple[Expression, Expression]:
        w, u, b, w_f, u_f, b_f = run.parameters[layer]
        c, h = [given for given in c if given is not None], [given for given in h if given is not None]
        terms = [b, w, *x] if x else [b]
        if h:
            terms += u, h[0] if len(h) == 1 else esum(h)
        gates = lstm_activation(affine_transform(terms), self.forget_bias)
        if len(h) < 2:
            cell = vanilla_lstm_c(c[0] if c else run.zero, gates)
        else:  # the gate f of the sum of all h is nobody's: it meets a c of 0
            forget = affine_transform([b_f, w_f, *x]) if x else None
            cell = esum([vanilla_lstm_c(run.zero, gates)] + [
                cmult(logistic(add_product(forget, u_f, h_k) if x else affine_transform([b_f, u_f, h_k])), c_k)
                for c_k, h_k in zip(c, h)
            ])  # fmt: skip
        return cell, vanilla_lstm_h(cell, gates)


class NaryTreeLSTMBuilder(GatedTreeBuilder):
    """Tree LSTM of up to N children, each with weights of its own: with sums over the children l,

    [i o u] = W x + sum of U_l h_l + b,  f_k = Wf x + sum of Uf_kl h_l + bf + forget_bias of each child k,
    c' = logistic(i) tanh(u) + sum over k of logistic(f_k) c_k,  h' = logistic(o) tanh(c').
    A child that is missing, at the end or None, takes part in no sum.
    Per layer W (4 hidden, inputs) and b (4 hidden,) with the rows i f o u, then of each child l U_l (4 hidden, hidden),
    whose rows f are those of the first child's gate, then of the other children's gates k the Uf_kl (hidden, hidden).
    Raises ValueError for N below 1.  Source: Tai, Socher and Manning 2015, equations 9 to 14.
    """

    collection_name = "nary-tree-lstm-builder"

    def __init__(
        self, N: int, layers: float, input_dim: float, hidden_dim: float, model: ParameterCollection,
        forget_bias: float = 1.0,
    ) -> None:  # fmt: skip
        if not 1 <= as_number(self.whoami(), N) < 1000:
            raise ValueError(located(f"{self.whoami()}: needs 1 child or more, and less than 1000, got N = {N}"))
        super().__init__(layers, input_dim, hidden_dim, model, forget_bias)
        self.N, hidden = int(N), self.hidden_dim
        for layer in range(self.layers):
            inputs = hidden if layer else self.input_dim
            others = [(hidden, hidden)] * (self.N * (self.N - 1))
            self._parameters.append(
                self._add((4 * hidden, inputs), (4 * hidden,), *[(4 * hidden, hidden)] * self.N, *others)
            )

    @property
    def spec(self) -> tuple[Any, ...]:
        return self.N, self.layers, self.input_dim, self.hidden_dim, self.forget_bias

    @classmethod
    def from_spec(cls, spec: tuple[Any, ...], model: ParameterCollection) -> NaryTreeLSTMBuilder:
        """A builder of the same sizes with parameters of its own."""
        return cls(*spec[:4], model, *spec[4:])  # type: ignore[call-arg]

    def _in_graph(self, update: bool) -> list[list[Any]]:
        layers = super()._in_graph(update)
        return [[*layer, self._forget_rows(layer[0]), self._forget_bias(layer[1])] for layer in layers]

    def _join(self, run: Run, layer: int, x: list[Any], c: list[Any], h: list[Any]) -> tuple[Expression, Expression]:
        if len(h) > self.N:
            raise ValueError(located(f"{self.whoami()}: needs up to {self.N} children, got {len(h)}"))
        w, b, *of_children, w_f, b_f = run.parameters[layer]
        N, present = self.N, [k for k, given in enumerate(h) if given is not None]

        def preactivation(bias: Any, inputs: Any, recurrence: list[Any]) -> Any:
            terms = [bias, inputs, *x] if x else [bias]
            for k in present:
                terms += recurrence[k], h[k]
            return affine_transform(terms)

        gates = lstm_activation(preactivation(b, w, of_children[:N]), self.forget_bias)
        first = c[0] if 0 in present else run.zero
        cells = [vanilla_lstm_c(first, gates)] + [
            cmult(logistic(preactivation(b_f, w_f, of_children[k * N : (k + 1) * N])), c[k]) for k in present if k
        ]
        cell = esum(cells) if len(cells) > 1 else cells[0]
        return cell, vanilla_lstm_h(cell, gates)


class ChainTreeBuilder(TreeBuilder):
    """Base of the builders that read a node's input, and then its children's outputs, as a sequence."""

    collection_name = ""
    directions = 1

    def __init__(self, layers: float, input_dim: float, hidden_dim: float, model: ParameterCollection) -> None:
        layers, input_dim, hidden_dim = checked_sizes(self.whoami(), layers, input_dim, hidden_dim, model)
        if input_dim != hidden_dim or hidden_dim % self.directions:
            even = " that is even" if self.directions == 2 else ""
            raise ValueError(located(
                f"{self.whoami()}: needs an input_dim equal to hidden_dim{even}: outputs are inputs, too, "
                f"got {input_dim} and {hidden_dim}"
            ))  # fmt: skip
        self.local_model = model.add_subcollection(self.collection_name)
        self.spec = layers, input_dim, hidden_dim
        self.builders = [
            VanillaLSTMBuilder(layers, input_dim, hidden_dim // self.directions, self.local_model)
            for _ in range(self.directions)
        ]

    @classmethod
    def from_spec(cls, spec: tuple[Any, ...], model: ParameterCollection) -> Any:
        """A builder of the same sizes with parameters of its own."""
        return cls(*spec, model)  # type: ignore[call-arg]

    def whoami(self) -> str:
        """The class's name."""
        return type(self).__name__

    def param_collection(self) -> ParameterCollection:
        """The builder's own sub-collection."""
        return self.local_model

    def set_dropout(self, f: float) -> None:
        """Sets all dropout rates; see `VanillaLSTMBuilder.set_dropout`."""
        for builder in self.builders:
            builder.set_dropout(f)

    def disable_dropout(self) -> None:
        """Sets all dropout rates to 0."""
        self.set_dropout(0.0)

    def add_input(self, x: Expression | None, children: Children = (), update: bool = True) -> TreeState:
        below = [child.output() for child in present_of(self.whoami(), children)]
        if x is None and not below:
            raise ValueError(located(f"{self.whoami()}: needs an input or children, got neither"))
        outputs = []
        for k, builder in enumerate(self.builders):
            first = [] if x is None else [x]
            outputs.append(builder.initial_state(update=update).transduce(first + (below[::-1] if k else below))[-1])
        return TreeState((), (outputs[0] if len(outputs) == 1 else layout.concatenate(outputs),))


class UnidirectionalTreeLSTMBuilder(ChainTreeBuilder):
    """A node's output is that of an LSTM which reads the node's input, then the outputs of its children in order.

    input_dim must be hidden_dim.  Raises ValueError for other sizes.
    """

    collection_name = "unidirectional-tree-lstm-builder"


class BidirectionalTreeLSTMBuilder(ChainTreeBuilder):
    """A node's output joins those of two LSTMs, which read its input, then its children, one from the right.

    input_dim must be hidden_dim, which is even.  Raises ValueError for other sizes.
    """

    collection_name = "bidirectional-tree-lstm-builder"
    directions = 2
