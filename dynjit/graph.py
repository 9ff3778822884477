"""Computation graphs: nodes, when their values and gradients are computed, and which graph is current.

Values are computed when they are asked for, for the nodes that are needed and have none; gradients by `backward`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dynjit import backprop, bundles, cpu, frontend, kernels, op, plan, threads
from dynjit.arena import (
    FROZEN,
    GATHER,
    Header,
    Storage,
    append_leaf_node,
    append_node,
    drop_nodes,
    drop_results,
)
from dynjit.errors import NoCudaError, ShapeError, located
from dynjit.nodes import NodesByNumber
from dynjit.ops import leaf
from dynjit.shape import Shape, as_integer, as_integers
from dynjit.space import space

adding_gradients = threading.Lock()
MARKED = ("arg_count", "data_count", "order_count", "call_count", "calls_done", "deferred_count", "argument_count",
          "value_top")  # fmt: skip


def values_at(start: int, count: int) -> np.ndarray:
    """A window of the values of nodes or parameters."""
    if start < space.parameter_end:
        space.settle()
    return space.single.v[start : start + count]


class ComputationGraph(NodesByNumber):
    """The nodes made since the last `renew`, their values and gradients.

    Several can live at once; `with graph:` makes one current, and nodes are made in the current one.  Each thread has a
    current graph of its own; gradients of parameters are added by one thread at a time.
    """

    versions = itertools.count(1)
    living: weakref.WeakSet[ComputationGraph] = weakref.WeakSet()

    def __init__(self) -> None:
        self.checkpoints: list[tuple[int, tuple[int, ...]]] = []
        self.outer: list[ComputationGraph] = []  # what was current before each `with` of this graph
        self.constants_from = -1  # inside `no_grad` the first node that gets no gradient
        self.peak = 0
        self._new_version()
        ComputationGraph.living.add(self)

    @functools.cached_property
    def storage(self) -> Storage:
        """The arrays, made for the first node (a jitclass costs half a second per process)."""
        made = Storage()
        threads.start()
        drop_nodes.call(made.address, self._version, id(self.era))
        made.header.autobatch = settings["autobatch"]
        if self is mine.graph:
            frontend.use(made)
        return made

    @functools.cached_property
    def address(self) -> int:
        return self.storage.address

    @functools.cached_property
    def header(self) -> Header:
        return self.storage.header

    @functools.cached_property
    def nodes(self) -> np.ndarray:
        return self.storage.nodes

    @functools.cached_property
    def signatures(self) -> np.ndarray:
        """The nodes' signatures: a field's own array takes an eighth of the time of a record's field."""
        return self.storage.nodes["signature"]

    @functools.cached_property
    def places(self) -> np.ndarray:
        """Where the nodes' values lie in the buffers; -1: they have none."""
        return self.storage.nodes["value"]

    def _new_version(self) -> None:
        self._version = next(ComputationGraph.versions)
        self.era = object()  # another one when nodes are gone

    @classmethod
    def of_version(cls, version: int) -> ComputationGraph | None:
        """The living graph whose present nodes are of a version."""
        return next((graph for graph in cls.living if graph._version == version), None)

    def version(self) -> int:
        """Number that identifies the graph's present generation of nodes."""
        return self._version

    # ---- life cycle ----

    def __enter__(self) -> ComputationGraph:
        self.outer.append(here())
        use(self)
        return self

    def __exit__(self, *error: object) -> None:
        use(self.outer.pop())

    def renew(
        self, immediate_compute: bool = False, check_validity: bool = False, autobatching: bool | None = None
    ) -> ComputationGraph:
        """Drops all nodes; their expressions are stale from here on.

        immediate_compute: compute each node when it is made;  check_validity: raise RuntimeError for NaN and infinite
        values when computing;  autobatching: group equal nodes (None: as the process is set).
        """
        header = self.header
        used = header.value_top - header.value_base
        self.peak = max(self.peak, used)
        if self.peak > 1 << 22 and used < self.peak // 8:
            self.storage.shrink(used, header.node_count)
            self.peak = used
        self._new_version()
        drop_nodes.call(self.address, self._version, id(self.era))
        header.autobatch = settings["autobatch"] if autobatching is None else bool(autobatching)
        header.check_validity = bool(check_validity)
        if self.immediate != bool(immediate_compute):
            self.immediate = bool(immediate_compute)
            if self is here():
                use(self)
        self.constants_from = min(self.constants_from, 0)
        self.checkpoints.clear()
        return self

    immediate = False

    def checkpoint(self) -> None:
        """Pushes a mark to which `revert` returns."""
        self._run()
        self.checkpoints.append((self.header.node_count, self._mark()))

    def revert(self) -> None:
        """Drops the nodes made since the last mark; without a mark does nothing.

        Their numbers are not given again, so that expressions of them are known to be stale.
        """
        if not self.checkpoints:
            return
        count, mark = self.checkpoints.pop()
        self._return_to(mark)
        bundles.cut_at.call(self.address, count)
        dropped = self.nodes[count : self.header.node_count]
        for name, value in (("signature", 0), ("shape", -1), ("arity", 0), ("flags", 0), ("value", -1)):
            dropped[name] = value
        self.header.backward_top = min(self.header.backward_top, mark[-1])
        self.era = object()
        self.header.era = id(self.era)

    def _mark(self) -> tuple[int, ...]:
        return tuple(getattr(self.header, name) for name in MARKED)

    def _return_to(self, mark: tuple[int, ...]) -> None:
        """Takes plan and memory back to a mark; nodes that got their value since have none again."""
        for name, value in zip(MARKED, mark, strict=True):
            setattr(self.header, name, value)
        if self.header.parts and self.header.call_count <= self.storage.arrays["part_table"][0]["call"]:
            self.header.parts = 0
        twins = self._twins()
        kept = twins[twins[:, 0] < self.header.arg_count]
        twins[: len(kept)], self.header.merged = kept, len(kept)
        if space.executor is not None:
            space.executor.cut(self)
        values = self.places[: self.header.node_count]
        values[values >= mark[-1]] = -1

    # ---- nodes ----

    def add(self, signature: int, operands: Sequence[int], data: Sequence[int]) -> int:
        """Appends a node; returns its number."""
        sources, numbers = np.array(operands, np.int64), np.array(data, np.int64)
        number = append_node.call(
            self.address, signature, sources.ctypes.data, len(operands), numbers.ctypes.data, len(data)
        )
        return self._checked(number)

    def add_leaf(self, signature: int, value: int, flags: int) -> int:
        """Appends a node whose value lies at an offset of the buffers."""
        return self._checked(append_leaf_node.call(self.address, signature, value, flags))

    def _checked(self, number: int) -> int:
        if number < 0:
            raise MemoryError(located(f"the graph has reached its limit of {self.header.node_capacity} nodes"))
        return number

    def take(self, count: int) -> int:
        """Offset of room for `count` elements of a leaf."""
        start = (self.header.value_top + 15) & ~15
        if start + count > self.header.value_end:
            raise MemoryError(located(f"the graph has no room for {count} more numbers"))
        self.header.value_top = start + count
        return start

    def has(self, number: int) -> bool:
        """Whether there is such a node."""
        return bool(number < self.header.node_count and self.signatures[number])

    def shape(self, number: int) -> Shape:
        return op.result_shape(self.signatures[number])

    def operator(self, number: int) -> op.Operator:
        return op.operators[op.CODE_OF[self.signatures[number]]]

    # ---- running ----

    @property
    def is_pending(self) -> bool:
        """Whether calls wait to run, so that values in place may be old."""
        return bool(self.header.calls_done < self.header.call_count)

    def evaluate(self, numbers: Sequence[int], recalculate: bool = False) -> None:
        """Computes the values of nodes, and of those that they need, where they are missing.

        Raises MemoryError if they do not fit the graph's memory; nothing is then computed.
        """
        if recalculate:
            cpu.rerun.call(self.address)
        wanted = [number for number in numbers if self.places[number] < 0]
        mark: tuple[int, ...] = ()
        if space.executor is not None:
            mark, self.header.overwriting = self._mark(), 0  # a level may hold a result's reader and its successor
        if wanted:
            targets = np.array(wanted, np.int64)
            if engine.plan.call(self.address, targets.ctypes.data, len(wanted)) == plan.OUT_OF_MEMORY:
                raise MemoryError(located("the graph has no room for its values"))
        self._run(mark)

    def _run(self, mark: tuple[int, ...] = ()) -> None:
        """Runs the calls that have not run yet; `mark`: how things were before they were planned."""
        first = self.header.calls_done
        if space.executor is not None:
            self._run_on_device(mark or self._mark())
        else:
            while (code := engine.forward.call(self.address)) >= 0:
                kernels.load_forward(code, kernels.NARROW)
        if self.header.check_validity:
            self._check_values(first)

    def _run_on_device(self, mark: tuple[int, ...]) -> None:
        try:
            space.executor.forward(self, mark[-1])
        except (MemoryError, NoCudaError):
            self._return_to(mark)
            raise

    def _check_values(self, first: int) -> None:
        """Raises RuntimeError if a call from the `first` on has computed NaN or infinity."""
        for call in self.storage.arrays["calls"][first : self.header.call_count]:
            if call["signature"] != GATHER:
                signature = op.SIGNATURES[call["signature"]]
                start = int(call["y"])
                self._fetch(0, start, int(signature["item"] * call["batch"]))
                if not np.isfinite(space.single.v[start : start + int(signature["item"] * call["batch"])]).all():
                    name = op.operators[int(signature["op"])].name
                    raise RuntimeError(located(f"{name}: needs a finite result (check_validity), got NaN or infinity"))

    def set_data(self, number: int, value: Any) -> None:
        """Replaces an input's numbers, or the indices of rows of a lookup table; what depends on them is computed anew.

        Raises TypeError for other nodes, ShapeError for another number of values, IndexError for rows out of range.
        """
        operator, shape = self.operator(number), self.shape(number)
        if operator is leaf.INPUT:
            array = leaf.as_numbers("set", value)
            whole = shape.dims if shape.batch == 1 else (*shape.dims, shape.batch)
            if array.size != shape.size or (array.ndim > 1 and array.shape != whole):
                raise ShapeError("set", f"numbers of shape {shape}", array.shape)
            self.value(number)[:] = array.ravel(order="F")
            if space.executor is not None:
                space.executor.send(self, int(self.places[number]), shape.size)
        elif operator in (leaf.LOOKUP, leaf.LOOKUP_BATCH):
            one = operator is leaf.LOOKUP
            indices = [as_integer(operator.name, value)] if one else as_integers(operator.name, value)
            if len(indices) != shape.batch:
                raise ValueError(located(f"set: needs {shape.batch} indices, got {len(indices)}"))
            op.check_bound(operator, int(self.nodes[number]["signature"]), indices)
            if self.header.merged:  # equal rows may be so no more
                self._forget_overwritten()
            start = int(self.nodes[number]["data"])
            self.storage.data[start : start + len(indices)] = indices
        else:
            raise TypeError(located(f"set: needs an input or a row of a lookup table, got {operator.name}"))
        cpu.rerun.call(self.address)

    def freeze(self) -> None:
        """Makes constants of the nodes that `no_grad` has seen so far; parameters stay what they are."""
        first, self.constants_from = self.constants_from, self.header.node_count
        made = self.nodes[first : self.constants_from]
        codes = op.CODE_OF[made["signature"]]
        self.header.stops = 1
        made["flags"][~np.isin(codes, (leaf.PARAMETER.code, leaf.LOOKUP_TABLE.code))] = FROZEN
        bundles.cut_at.call(self.address, first)
        self.header.formed = min(first, self.header.formed)

    def backward(self, index: int, full: bool = False) -> None:
        """Adds the gradients of a node's value to those of parameters; `full`: find those of inputs, too.

        Raises ValueError unless the node has one element, mini-batch included; RuntimeError if it is of `no_grad`.
        """
        number = self._number("backward", index)
        shape = self.shape(number)
        if shape.size != 1:
            raise ValueError(located(f"backward: needs a scalar (one element, batch 1), got {shape}"))
        if self.constants_from >= 0:
            self.freeze()
        if self.nodes[number]["flags"] & FROZEN and self.nodes[number]["arity"]:
            raise RuntimeError(located("backward: needs an expression with gradients, got one made inside no_grad()"))
        self.evaluate([number])
        if space.executor is None:
            engine.start_backward.call(self.address, number, bool(full))
            self.run_backward()
        else:
            self.header.backward_from, self.header.backward_top = number, self.header.value_top
            space.executor.backward(self, number, full)

    def run_backward(self) -> None:
        """Runs the backward pass that `start_backward` has prepared; threads in turn, for parameters are shared."""
        with adding_gradients:
            self._run_backward()

    def _run_backward(self) -> None:
        while (code := engine.backward.call(self.address)) >= 0:
            kernels.load_backward(code, kernels.NARROW)

    def _fetch(self, gradient: int, start: int, size: int) -> None:
        """Brings values (or gradients) from the device, if there is one."""
        executor = space.executor
        if executor is not None:
            executor.fetch(self, executor.gradients if gradient else executor.values, start, size)

    def _twins(self) -> np.ndarray:
        """A row for each operand that names another node than it was recorded with: its place, and that node."""
        return self.storage.arrays["twins"][: 2 * self.header.merged].reshape(-1, 2)

    def recorded_args(self) -> np.ndarray:
        """The operands of all nodes, as they were recorded."""
        args, twins = self.storage.args[: self.header.arg_count].copy(), self._twins()
        args[twins[:, 0]] = twins[:, 1]
        return args

    def _forget_overwritten(self) -> bool:
        """Drops all results if some have been overwritten or serve several nodes; from now on each node has its own.

        Says whether it did.
        """
        header = self.header
        header.overwriting = 0
        if not header.overwritten:
            return False
        self.storage.args[: header.arg_count] = self.recorded_args()
        drop_results.call(self.address)
        return True

    def keep_results(self) -> None:
        """Computes all again, from now on with a place for each result: gradients of all nodes are then at hand.

        The gradients of parameters stay as they are.
        """
        header = self.header
        if not self._forget_overwritten():
            return
        self.evaluate([header.backward_from])
        kept = space.single.g[: space.parameter_top].copy()
        engine.start_backward.call(self.address, header.backward_from, header.full)
        self.run_backward()
        space.single.g[: space.parameter_top] = kept
        self.checkpoints = [(count, self._mark()) for count, _ in self.checkpoints]

    def value(self, number: int) -> np.ndarray:
        """A node's value, a window of the buffer in memory order."""
        start, size = int(self.places[number]), self.shape(number).size
        self._fetch(0, start, size)
        return values_at(start, size)

    def gradient(self, number: int) -> np.ndarray:
        """A node's gradient after `backward`, a window of the buffer in memory order."""
        start, size = int(self.places[number]), self.shape(number).size
        self._fetch(1, start, size)
        return space.single.g[start : start + size]


class Engine(NamedTuple):
    """The compiled functions that plan and run graphs, or what stands in for them while a profile is taken."""

    plan: Any
    forward: Any
    start_backward: Any
    backward: Any


PLAIN = Engine(plan.plan, cpu.forward, backprop.start_backward, backprop.backward)
engine = PLAIN
settings = {"autobatch": 1}


class Mine(threading.local):
    """What each thread has for itself: the graph in which it makes its nodes."""

    def __init__(self) -> None:
        self.graph = ComputationGraph()


mine = Mine()
owner = [threading.get_ident()]  # the thread for which compiled code makes nodes


def here() -> ComputationGraph:
    """The current graph of this thread; compiled code makes its nodes there from now on."""
    graph = mine.graph
    if owner[0] != threading.get_ident():
        use(graph)
    return graph


if TYPE_CHECKING:
    current: ComputationGraph  # that of the thread that asks


def __getattr__(name: str) -> Any:
    if name == "current":
        return here()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def use_engine(wanted: Engine) -> None:
    """Lets an engine plan and run all graphs."""
    global engine
    engine = wanted
    frontend.let_run(engine is PLAIN and space.executor is None)


def use(graph: ComputationGraph) -> None:
    """Makes a graph the current one of this thread."""
    mine.graph = graph
    owner[0] = threading.get_ident()
    frontend.use(None if graph.immediate else graph.storage)  # compiled code records, but does not compute


def use_executor(executor: Any) -> None:
    """Lets an executor of gpu.py compute all graphs; None: the CPU.  Values and parameters move along."""
    space.settle()
    if space.executor is not None:
        space.executor.save()
    space.executor = executor
    frontend.let_run(engine is PLAIN and executor is None)
    for graph in ComputationGraph.living:
        if "storage" in vars(graph):
            graph._forget_overwritten()


def set_autobatch(value: int) -> None:
    """Whether graphs compute equal nodes together (1) or one by one (0): the current one and later ones."""
    settings["autobatch"] = value
    if "storage" in vars(here()):
        here().header.autobatch = value


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Expressions that are made inside, in the graph current at its start, are constants: no gradient reaches them."""
    graph = here()
    if graph.constants_from >= 0:
        yield  # inside another one
        return
    graph.constants_from = graph.header.node_count
    try:
        yield
    finally:
        graph.freeze()
        graph.constants_from = -1
