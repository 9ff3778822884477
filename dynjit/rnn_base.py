"""What all recurrent networks share: builders with their parameters, graphs and dropout masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynjit import frontend, graph
from dynjit.errors import located
from dynjit.expressions import Expression
from dynjit.models import ParameterCollection
from dynjit.ops import binary, layout, leaf, noise
from dynjit.parameters import Parameters
from dynjit.rnn_state import RNNState, StackedRNNState, Vectors
from dynjit.sequence import (
    BUILDER_SLOTS,
    RUN_SLOTS,
    native_initial_state,
    number_in_graph,
    program_from,
)
from dynjit.shape import as_batch, as_list, as_number, kind_of

__all__ = ["Builder", "RNNBuilder", "RNNState", "Run", "StackedRNNState"]

Masks = tuple["Expression | None", ...]

MOST_LAYERS = 1000


def checked_sizes(
    builder: str, layers: float, input_dim: float, hidden_dim: float, model: ParameterCollection
) -> tuple[int, int, int]:
    """Sizes of a builder as ints, fractions cut off as in DyNet; raises TypeError or ValueError for other arguments."""
    if not isinstance(model, ParameterCollection):
        raise TypeError(located(f"{builder}: needs a ParameterCollection, got {kind_of(model)}"))
    sizes = [as_number(builder, size) for size in (layers, input_dim, hidden_dim)]
    if not (all(1 <= size < 1 << 40 for size in sizes) and sizes[0] <= MOST_LAYERS):
        raise ValueError(located(
            f"{builder}: needs layers, input_dim and hidden_dim of 1 or more, and at most {MOST_LAYERS} layers, "
            f"got {layers}, {input_dim}, {hidden_dim}"
        ))  # fmt: skip
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


class Run:
    """What a builder has in one graph: its parameters as expressions, and its dropout masks."""

    __slots__ = RUN_SLOTS

    def __init__(self, builder: Builder, update: bool) -> None:
        self.builder: Any = builder
        self.version, self.era = graph.here().version(), graph.here().era
        self.parameters = builder._in_graph(update)
        self.norms = [in_graph(norms, update) for norms in builder._norms]
        self._zero: Expression | None = None
        self.initial = RNNState(self)
        self.set_masks(None)

    def set_masks(self, masks: list[Masks] | None) -> None:
        """Takes other dropout masks; None: they are drawn at the next input, if at all."""
        self.masks = masks
        self.programs = self.builder._programs  # of the first step, and of later ones; see sequence.py
        self.objects: list[Any] | None = None if self.builder._is_masked and masks is None else [
            thing for things in (*self.parameters, *self.norms, *(masks or ())) for thing in things if thing is not None
        ]  # fmt: skip
        if self.objects is not None and self.builder.starts_at_zero:
            self.objects.append(self.zero)

    def check(self) -> None:
        """Raises ValueError if the graph has been renewed since."""
        if self.version != graph.here().version():
            raise ValueError(located("Using stale builder: call initial_state() after renewing the graph"))

    def is_current(self) -> bool:
        """Whether it is of the current graph, and `cg_revert` has dropped none of its nodes."""
        if self.era is graph.here().era:
            return True
        if self.version != graph.here().version():
            return False
        # of nodes made together the last tells
        last = [p for layer in self.parameters for p in layer if not isinstance(p, Parameters)][-1:]
        last += [by for layer in self.masks or () for by in layer if by is not None][-1:]
        if self._zero is not None:
            last.append(self._zero)
        if not all(graph.here().has(node.handle & 0xFFFFFFFF) for node in last):
            return False
        self.era = graph.here().era
        return True

    @property
    def zero(self) -> Expression:
        """A vector of zeros of the hidden size."""
        if self._zero is None:
            self._zero = leaf.zeros((self.builder.hidden_dim,))
        return self._zero

    def zeros(self, count: int) -> Vectors:
        return (self.zero,) * count if count else ()

    def step(self, vectors: Vectors, x: Expression) -> tuple[Vectors, Expression]:
        """The vectors after an input, and the output; in Python where compiled code does not know how."""
        self.check()
        builder = self.builder
        builder._masks(self, x)
        which, size = int(len(vectors) > 0), builder.layers * builder.vectors_per_layer
        is_new = frontend.is_native and self.programs[which] is None and isinstance(x, Expression)
        if is_new:
            vectors, x = self._apart(vectors, x)
        first = int(graph.here().header.node_count)
        split = size - builder.layers
        others, h, output = builder._step(self, vectors[:split], vectors[split:], x)
        results = (*others, *h)
        if is_new:
            self.programs[which] = program_from(first, size, vectors, x, self.objects or (), (*results, output))
        return results, output

    def _apart(self, vectors: Vectors, x: Expression) -> tuple[Vectors, Expression]:
        """The vectors and the input as nodes that are nothing else, so that it is plain what a step takes."""
        given = [x._node(), *(vector._node() for vector in vectors)]
        others = {number_in_graph(thing) for thing in self.objects or ()}
        if len(set(given)) == len(given) and not others.intersection(given):
            return vectors, x
        return tuple(layout.reshape(vector, *vector.dim()) for vector in vectors), layout.reshape(x, *x.dim())


frontend.know(rnn_state=RNNState, rnn_run=Run)


def in_graph(parameters: Sequence[Parameters], update: bool) -> list[Any]:
    """Parameters as operands: themselves, or constants to which no gradient flows."""
    return [p if update else p.expr(False) for p in parameters]


class Builder:
    """Base of recurrent and of tree networks: `layers` on top of each other, the first with `input_dim` inputs.

    The parameters lie in a sub-collection of `model`.  Raises ValueError for sizes below 1, TypeError for a model that
    is no ParameterCollection.
    """

    __slots__ = (*BUILDER_SLOTS, "__dict__", "__weakref__")
    collection_name = ""
    dropout_kinds = 2  # of inputs, of recurrent outputs
    starts_at_zero = False  # whether the first step takes a vector of zeros

    def __init__(self, layers: float, input_dim: float, hidden_dim: float, model: ParameterCollection) -> None:
        sizes = checked_sizes(self.whoami(), layers, input_dim, hidden_dim, model)
        self.layers, self.input_dim, self.hidden_dim = sizes
        if not self.collection_name:
            raise TypeError(located(f"{self.whoami()}: needs a builder of a network, this is their base"))
        self.local_model = model.add_subcollection(self.collection_name)
        self._parameters: list[list[Parameters]] = []
        self._norms: list[list[Parameters]] = []
        self._runs: list[Run | None] = [None, None]  # without and with gradients of the parameters
        self._programs: list[bytes | None] = [None, None]
        self._rates = (0.0,) * self.dropout_kinds

    @property
    def spec(self) -> tuple[Any, ...]:
        """The constructor's arguments (but for the collection); for saving."""
        return self.layers, self.input_dim, self.hidden_dim

    @classmethod
    def from_spec(cls, spec: tuple[Any, ...], model: ParameterCollection) -> Any:
        """A builder of the same sizes with parameters of its own."""
        return cls(*spec[:3], model, *spec[3:])  # type: ignore[call-arg]

    def whoami(self) -> str:
        """The class's name."""
        return type(self).__name__

    def __repr__(self) -> str:
        sizes = f"{self.layers} x {self.input_dim} to {self.hidden_dim}"
        return f"{self.whoami()} {self.local_model.name()} ({sizes})"

    def __getstate__(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """For copies and pickles, attributes and slots: what belongs to a graph, or to this process, is left out."""
        return vars(self) | {"_programs": [None, None]}, {"_runs": [None, None]}

    # ---- parameters ----

    def _add(self, *shapes: tuple[int, ...]) -> list[Parameters]:
        """A new parameter of each shape: vectors, which are biases, start at 0, matrices at random (Glorot)."""
        add = self.local_model.add_parameters
        return [add(shape, init=0.0 if len(shape) == 1 else None) for shape in shapes]

    def _in_graph(self, update: bool) -> list[list[Any]]:
        """The parameters of each layer as operands."""
        return [in_graph(layer, update) for layer in self._parameters]

    def _run(self, update: bool) -> Run:
        run = self._runs[update]
        if run is None or not run.is_current():
            run = self._runs[update] = Run(self, update)
        return run

    def _current_runs(self, operator: str) -> list[Run]:
        """Those in the current graph, that with gradients first."""
        runs = [run for run in reversed(self._runs) if run is not None and run.is_current()]
        if not runs:
            raise ValueError(located(f"{self.whoami()}.{operator}: needs initial_state() in the current graph first"))
        return runs

    def get_parameters(self) -> list[list[Parameters]]:
        """The parameters of each layer."""
        return self._parameters

    def get_parameter_expressions(self) -> list[list[Expression]]:
        """The parameters of each layer in the current graph; raises ValueError before `initial_state` in this graph."""
        run = self._current_runs("get_parameter_expressions")[0]
        return [
            [p.expr(True) if isinstance(p, Parameters) else p for p in layer[: len(own)]]
            for layer, own in zip(run.parameters, self._parameters)
        ]

    def param_collection(self) -> ParameterCollection:
        """The builder's own sub-collection."""
        return self.local_model

    def outer_parameters(self) -> list[Parameters]:
        """Its parameters outside of its own sub-collection: gains and biases of layer normalisation."""
        return [p for layer in self._norms for p in layer]

    # ---- dropout ----

    def set_dropout(self, f: float) -> None:
        """Sets all dropout rates (0 to below 1); one mask per layer serves all steps and sequences of a graph.

        Raises ValueError for other rates.  Source: Gal and Ghahramani 2016.
        """
        self._set_rates(*[f] * self.dropout_kinds)

    def _set_rates(self, *rates: float) -> None:
        numbers = tuple(as_number(f"{self.whoami()}.set_dropout", rate) for rate in rates)
        if not all(0 <= number < 1 for number in numbers):
            got = ", ".join(map(str, rates))
            raise ValueError(located(f"{self.whoami()}.set_dropout: needs rates from 0 to below 1, got {got}"))
        self._rates, self._programs = numbers, [None, None]
        for run in self._runs:
            if run is not None:
                run.set_masks(None)

    def disable_dropout(self) -> None:
        """Sets all dropout rates to 0."""
        self.set_dropout(0.0)

    def _draw_masks(self, batch: int) -> list[Masks]:
        """Per layer a mask of its inputs and one of each of its recurrent vectors; None where the rate is 0."""
        sizes = [(self.hidden_dim if layer else self.input_dim, self.hidden_dim) for layer in range(self.layers)]
        return [
            tuple(mask(hidden if k else inputs, rate, batch) for k, rate in enumerate(self._rates))
            for inputs, hidden in sizes
        ]

    def _masks(self, run: Run, x: Expression) -> list[Masks] | None:
        """The masks of this graph, drawn at its first input for its mini-batch size; None without dropout."""
        if self._is_masked and run.masks is None:
            run.set_masks(self._draw_masks(x.dim()[1]))
        return run.masks

    @property
    def _is_masked(self) -> bool:
        return any(self._rates)


@frontend.native_methods(initial_state=native_initial_state)
class RNNBuilder(Builder):
    """Base of all recurrent networks; `layers` on top of each other, the first with `input_dim` inputs."""

    vectors_per_layer = 1

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        frontend.inherit(cls, "initial_state")

    def _step(self, run: Run, others: Vectors, h: Vectors, x: Expression) -> tuple[Vectors, Vectors, Expression]:
        """The vectors after an input, and the output; `others` and `h` are () before the first input."""
        raise NotImplementedError

    def initial_state(self, vecs: Sequence[Expression] | None = None, update: bool = True) -> RNNState:
        """The state before any input.

        vecs: initial vectors, as of `RNNState.set_s`;  update: whether the parameters get gradients.
        Without `vecs` the same state is given again in the same graph.
        Raises ValueError for a wrong number of vectors.
        """
        run = self._run(bool(update))
        return run.initial if vecs is None else run.initial.set_s(vecs)

    def initial_state_from_raw_vectors(self, vecs: Sequence[Sequence[float]], update: bool = True) -> RNNState:
        """The state before any input, with initial vectors given as lists of numbers."""
        vectors = as_list(f"{self.whoami()}.initial_state_from_raw_vectors", "lists", vecs)
        return self.initial_state([leaf.inputVector(vector) for vector in vectors], update)


class MaskedRNNBuilder(RNNBuilder):
    """Base of networks with separate dropout rates and masks that can be drawn anew."""

    def set_dropouts(self, d: float, d_h: float) -> None:
        """Sets the dropout rates of inputs and of recurrent outputs; raises ValueError outside of 0 to below 1."""
        self._set_rates(d, d_h)

    def set_dropout_masks(self, batch_size: int = 1) -> None:
        """Draws new masks for a mini-batch size; raises ValueError before `initial_state` in this graph."""
        batch = as_batch(f"{self.whoami()}.set_dropout_masks", batch_size)
        for run in self._current_runs("set_dropout_masks"):
            run.set_masks(self._draw_masks(batch))


def mask(size: int, rate: float, batch: int) -> Expression | None:
    """A dropout mask: 0 with probability `rate`, else 1 / (1 - rate)."""
    return noise.random_bernoulli((size,), 1 - rate, 1 / (1 - rate), batch) if rate > 0 else None  # type: ignore[no-any-return]


def masked(x: Expression, by: Expression | None) -> Expression:
    return x if by is None else binary.cmult(x, by)  # type: ignore[no-any-return]
