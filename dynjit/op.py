"""The operator record and the tables that compiled code reads of it.

`define` is called once per operator, at import.  A *signature* is an operator with the shapes of its operands and its
integer parameters: what a node's shape, its kernels' numbers and its group depend on.  Signatures are found in a hash
table by compiled code; an unknown one is made here, by the operator's shape rule, which also is where errors come from.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dynjit import errors
from dynjit.memory import reserve
from dynjit.shape import Result, Shape, number_of, shapes

SHARED, STACKED = "shared", "stacked"
NEVER = ()  # group=NEVER: each node runs alone
DERIVED = None  # a CUDA form that is generated from the CPU kernel, see cudakernels.py
MOST_COUNTED = (1 << 31) - 1  # where a field has 32 bits, more counts as this
NODE_TIME, PER_NANOSECOND = 100, 13  # a node's share of planning; elements of a weight times columns, there and back
FLAGGED = 14  # operands whose flags fit into a node's; nodes of one group agree in them
SLOTS = 8  # addresses per operator in the kernel table: forward, one per differentiated argument, in_place
IN_PLACE = SLOTS - 1

OPERATOR = np.dtype([("shared", "i8"), ("stepped", "i8"), ("flags", "i8"), ("floats", "i8")])
# flags
NO_GRADIENT, VIEW, LEAF, LIST, RANDOM, KEEPS_RESULT, WHOLE_BATCH, STOPS = (1 << bit for bit in range(8))

SIGNATURE = np.dtype(
    [
        ("op", "i4"), ("arity", "i4"), ("shape", "i4"), ("length", "i4"),  # length of the key
        ("key", "i8"), ("ints", "i8"),  # where they start in POOL
        ("item", "i8"), ("batch", "i8"), ("size", "i8"), ("rows", "i8"), ("cols", "i8"),
        ("ids", "i4"), ("largest", "i4"),  # indices; size of the result or the largest operand
        ("bound", "i8"), ("scratch", "i8"), ("hash", "i8"),
        ("alone", "i4"), ("count", "i4"),  # whether no node groups with others; number of integer parameters
        ("takes", "i4"), ("kept", "i4"),  # operands whose place fits the result; whether the result keeps its own
        ("time", "i4"), ("room", "i4"),  # of a node: nanoseconds, roughly; 64-byte lines that planning needs at most
    ]
)  # fmt: skip

TABLE = reserve(1 << 16, OPERATOR)
SIGNATURES = reserve(1 << 26, SIGNATURE)
SHAPE_OF, CODE_OF = SIGNATURES["shape"], SIGNATURES["op"]  # arrays of their own are quicker than a record's fields
POOL = reserve(1 << 32, np.int64)  # keys and integer parameters of signatures, end to end


class Range(NamedTuple):
    """What a float parameter may be: from `low` to `high`, both included; anything if `low` is NaN."""

    needs: str
    low: float
    high: float


ANY = Range("a number", math.nan, math.nan)
NOT_NEGATIVE = Range("a number of 0 or more", 0.0, math.inf)
MARGIN = Range("a margin of 0 or more", 0.0, math.inf)
SHARE = Range("a probability 0 <= p <= 1", 0.0, 1.0)
PROBABILITY = Range("a probability 0 <= p < 1", 0.0, math.nextafter(1.0, 0.0))


class NO_CUDA(NamedTuple):
    """In place of a CUDA form: there is none, and why; asking for it on a GPU is an error that says so."""

    reason: str


@dataclass(frozen=True)
class Case:
    """Operands for the table tests: shapes (dims, or (dims, batch)), a domain, and the other arguments of the call."""

    shapes: tuple[Any, ...]
    low: float = -1.0
    high: float = 1.0
    arguments: tuple[Any, ...] = ()
    tolerance: float = 1e-6
    step: float = 1e-5  # of the central differences
    no_difference: bool = False  # the gradient is by intent not that of the function
    reason: str = ""  # why the tolerance is loosened, or the gradient another


@dataclass(eq=False)
class Operator:
    """All that is known of an operator; made by `define`."""

    name: str
    shape: Callable[..., Shape | Result]
    params: str
    forward: Callable | None
    backward: tuple[Callable | None, ...]
    forward_cuda: Callable | NO_CUDA | None
    backward_cuda: tuple[Callable | NO_CUDA | None, ...]
    group: tuple[str, ...]
    keeps_result: bool
    overwrites: tuple[int, ...]
    in_place: Callable | None
    whole_batch: bool
    reference: Callable | None
    cases: tuple[Case, ...]
    view: bool
    leaf: bool
    flops: Callable[..., tuple[int, ...]]
    module: str
    floats: tuple[Range, ...] = ()
    code: int = 0

    def cuda_kernel(self, slot: int) -> Callable | NO_CUDA | None:
        """The CUDA form of a slot (0 forward, k + 1 the gradient of operand k), if it is explicit; else DERIVED."""
        kernels = (self.forward_cuda, *self.backward_cuda)
        return kernels[slot] if slot < len(kernels) else DERIVED

    @property
    def is_list(self) -> bool:
        return "X" in self.params

    def kind(self, position: int) -> str:
        """SHARED or STACKED, of an operand; behind the first, the entries of a list operator repeat."""
        if position < len(self.group):
            return self.group[position]
        rest = self.group[1:] or self.group
        return rest[(position - 1) % len(rest)] if rest else STACKED

    def __post_init__(self) -> None:
        self.call: Callable[..., Any] = self.record

    def record(self, *arguments: Any) -> Any:
        """A new node, made in Python; `arguments` in the order of `params`, already of the right types."""
        return recorder(self, arguments)  # noqa: F821  set by expressions.py

    def __call__(self, *arguments: Any) -> Any:
        """A new node; compiled code serves the plain case."""
        return self.call(*arguments)


operators: list[Operator] = []
recorder: Callable[[Operator, Sequence[Any]], Any]  # set by expressions.py: appends a node to the current graph


class Service(NamedTuple):
    """How compiled code serves a public function; see `native`."""

    operator: Operator | None
    letters: str
    fill: float
    only: dict[str, Any]


fast: dict[Callable, list[Service]] = {}  # of public functions that compiled code serves


def elementwise(y: Shape, *operands: Shape) -> tuple[int, ...]:
    """One operation per element: of the result for each operand behind the first, of operands larger than it."""
    gradients = [max(y.size, x.size) for x in operands]
    return max(0, y.size * (len(operands) - 1), *gradients), *gradients


def moving(y: Shape, *operands: Shape) -> tuple[int, ...]:
    """None: the operator moves numbers."""
    return (0,) * (1 + len(operands))


def names_of(function: Callable | None) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters) if function else ()


def define(
    name: str,
    *,
    shape: Callable[..., Shape | Result],
    params: str = "x",
    forward: Callable | None = None,
    backward: tuple[Callable | None, ...] = (),
    forward_cuda: Callable | NO_CUDA | None = DERIVED,
    backward_cuda: tuple[Callable | NO_CUDA | None, ...] = (),
    group: tuple[str, ...] = (STACKED,),
    keeps_result: bool = True,
    overwrites: tuple[int, ...] = (),
    in_place: Callable | None = None,
    whole_batch: bool = False,
    reference: Callable | None = None,
    cases: tuple[Case, ...] = (),
    view: bool = False,
    leaf: bool = False,
    floats: tuple[Range, ...] = (),
    flops: Callable[..., tuple[int, ...]] = elementwise,
) -> Operator:
    """Adds an operator to the table.

    params: one letter per argument of a call: x expression, X list of expressions; i int, I ints (a tuple or list, or
        one int) and e end of the range that starts at the index before (its length), which are part of the signature;
        f float; d index or D list of indices (one per mini-batch item), A list of indices that all mini-batch items
        share; r number of a random stream (drawn, not passed).
    shape: rule (operands' shapes ..., ints and tuples of ints ..., number of indices of D or A) -> Shape or Result;
        raises ShapeError.
    floats: the ranges of the float parameters, where not any number will do.
    backward: one kernel per operand, None where no gradient flows; a list operator has one kernel with parameter `j`.
    forward_cuda, backward_cuda: the forms for CUDA, of the same parameters and `thread, threads`; DERIVED: generated;
        NO_CUDA(reason): none.
    keeps_result: whether a backward kernel reads the result.
    overwrites: operands whose place the result may take: element i depends on their element i only, and no backward
        kernel reads them.
    in_place: the backward kernel for that: it turns dy into the operand's gradient where it lies; None: they are equal.
    whole_batch: the kernels must see all items of a mini-batch, for these do not go each to an item of the result.
    view: the result is the operand's memory under another shape; no kernels.
    leaf: made by dynjit itself, with a value in place.
    flops: (shape of the result, those of the operands ...) -> floating-point operations of one node: forward, then of
        each operand's gradient; for profiles.
    """
    module = getattr(inspect.getmodule(shape), "__name__", __name__)
    made = Operator(name, shape, params, forward, backward, forward_cuda, backward_cuda, group, keeps_result,
                    overwrites, in_place, whole_batch, reference, cases, view, leaf, flops, module, floats)  # fmt: skip
    made.code = len(operators)
    operators.append(made)
    takes = names_of(forward)
    shared = sum(1 << k for k in range(62) if (made.is_list or k < params.count("x")) and made.kind(k) == SHARED)
    stepped = sum(1 << k for k in range(62) if f"step{k}" in takes or "arg" in takes)
    flags = (
        (0 if any(backward) or view else NO_GRADIENT)
        | (VIEW if view else 0)
        | (LEAF if leaf else 0)
        | (LIST if made.is_list else 0)
        | (RANDOM if "r" in params else 0)
        | (KEEPS_RESULT if keeps_result and any(backward) else 0)
        | (WHOLE_BATCH if whole_batch else 0)
        | (STOPS if None in backward else 0)
    )
    TABLE[made.code] = shared, stepped, flags, params.count("f")
    return made


def native(
    operator: Operator | None, letters: str = "", fill: float = 0.0, **only: Any
) -> Callable[[Callable], Callable]:
    """Marks a public function that stands for an operator: compiled code serves its plain calls.

    A function with several of these marks stands for several operators; a call is the first one's that it is plain for.
    operator: None for a function that is composed of others, or hands its operand back; its operands are all it has.
    letters: what its arguments are, where it is not the operator's `params`; those behind have no effect.  Of a leaf
        also v, a list of its values; a, an array of them; h, where the ones are, an index or one per mini-batch item;
        p, a list per axis of where the values are; b, whether the last axis is the mini-batch; f, a number that fills
        it, else `fill`.  t is an operand that must be a lookup table.
    only: of arguments without a letter those that must be something else than their default.
    """

    def mark(function: Callable) -> Callable:
        given = letters or (operator.params.replace("r", "") if operator else "")
        fast.setdefault(function, []).insert(0, Service(operator, given, fill, only))
        return function

    return mark


def native_modes(modes: dict[str, Operator]) -> Callable[[Callable], Callable]:
    """`native` for a function whose argument `gradient_mode` chooses the operator."""

    def mark(function: Callable) -> Callable:
        for mode, operator in modes.items():
            native(operator, gradient_mode=mode)(function)
        return function

    return mark


def mode_of(name: str, gradient_mode: str, modes: dict[str, Operator]) -> Operator:
    """The operator of a gradient mode; raises ValueError for an unknown one."""
    if gradient_mode not in list(modes):  # a list: what is not hashable is unknown, too
        needs = " or ".join(modes)
        raise ValueError(errors.located(f"{name}: Unknown gradient mode: needs {needs}, got {gradient_mode!r}"))
    return modes[gradient_mode]


# ---- signatures ------------------------------------------------------------------------------------------------------

used = {"signatures": 1, "pool": 0}  # signature 0 is nobody's
by_key: dict[tuple[int, ...], int] = {}


def signature_of(operator: Operator, operands: Sequence[Shape], ints: Sequence[int | tuple[int, ...]], ids: int) -> int:
    """The number of a signature; its shape rule runs when it is met for the first time.

    ids: how many indices a call with a list of indices has, -1 for calls without one.
    """
    counted = (ids,) if ids >= 0 else ()
    flat: list[int] = []
    for given in ints:
        flat += (len(given), *given) if isinstance(given, tuple) else (given,)
    key = (operator.code, len(operands), *(number_of(shape) for shape in operands), *flat, *counted)
    number = by_key.get(key)
    if number is None:
        rule_operands = (list(operands),) if operator.is_list else tuple(operands)
        result = operator.shape(*rule_operands, *ints, *counted)
        number = add_signature(operator, key, operands, result if isinstance(result, Result) else Result(result))
    return number


def stands_alone(operator: Operator, operands: Sequence[Shape], result: Shape) -> bool:
    """Whether nodes do not run together with others of their signature."""
    if operator.group == NEVER or len(operands) > FLAGGED:
        return True
    shared = [operator.kind(k) == SHARED for k in range(len(operands))]
    return any(shared) and any(x.batch != (1 if s else result.batch) for x, s in zip(operands, shared, strict=True))


def time_and_room(operator: Operator, operands: Sequence[Shape], result: Shape, scratch: int) -> tuple[int, int]:
    """How many nanoseconds a node takes, roughly, and how many lines of 16 numbers planning needs for it at most.

    The room is for the result, scratch numbers and copies of operands that are not shared, each of whole lines.
    """
    shared = [x for k, x in enumerate(operands) if operator.kind(k) == SHARED]
    stacked = [x for k, x in enumerate(operands) if operator.kind(k) != SHARED] if shared else []
    columns = result.batch if stacked else 0
    time = NODE_TIME + result.size + sum(x.item for x in shared) * columns // PER_NANOSECOND
    room = result.size + scratch + sum(x.size for x in stacked)
    return min(time, MOST_COUNTED), min(room // 16 + 4, MOST_COUNTED)


def add_signature(operator: Operator, key: tuple[int, ...], operands: Sequence[Shape], result: Result) -> int:
    shape, arity = result.shape, len(operands)
    ints = key[2 + arity :] if result.ints is None else result.ints
    number, start = used["signatures"], used["pool"]
    end = start + len(key) + len(ints)
    if number == SIGNATURES.size or end > POOL.size:
        raise MemoryError(f"more than {number} different calls of operators")
    if shape.batch > MOST_COUNTED:
        raise MemoryError(errors.located(f"{operator.name}: needs room for a mini-batch of {shape.batch}"))
    POOL[start:end] = key + tuple(ints)
    per_item = key[-1] if "A" in operator.params else int(not set("dDr").isdisjoint(operator.params))
    SIGNATURES[number] = (
        operator.code, arity, number_of(shape), len(key), start, start + len(key),
        shape.item, shape.batch, shape.size, shape.rows, shape.cols,
        shape.batch * per_item, min(max(x.size for x in (shape, *operands)), MOST_COUNTED),
        result.bound, result.scratch * shape.batch, 0, stands_alone(operator, operands, shape), len(ints),
        sum(1 << k for k in operator.overwrites if operands[k].size == shape.size),
        bool(TABLE["flags"][operator.code] & (KEEPS_RESULT | VIEW)),
        *time_and_room(operator, operands, shape, result.scratch * shape.batch),
    )  # fmt: skip
    used["signatures"], used["pool"] = number + 1, end
    by_key[key] = number
    on_new_signature(number)
    return number


def on_new_signature(number: int) -> None:
    """Replaced by the arena: enters a new signature into the hash table of compiled code."""


def result_shape(signature: int) -> Shape:
    return shapes[SHAPE_OF[signature]]


def check_bound(operator: Operator, signature: int, ids: Sequence[int]) -> None:
    """Raises IndexError if an index is not below the signature's bound."""
    bound = int(SIGNATURES[signature]["bound"])
    for index in ids:
        if not 0 <= index < bound:
            raise IndexError(errors.located(f"{operator.name}: needs indices from 0 to {bound - 1}, got {index}"))
