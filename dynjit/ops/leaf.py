"""Nodes without operands, whose values lie in place: parameters, inputs, constants; and rows of lookup tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dynjit import dlpack, errors, op
from dynjit.errors import ShapeError
from dynjit.jit import kernel
from dynjit.legacy import check_device
from dynjit.op import SHARED, Case, define, moving, native
from dynjit.scalars import ONE
from dynjit.shape import MAX_RANK, Result, Shape, as_batch, as_integer, as_integers, as_number, dims_of, kind_of


def given_shape(dims: tuple[int, ...], batch: int) -> Shape:
    """Shape rule of all leaves."""
    return Shape(dims, batch)


PARAMETER = define("parameter", shape=given_shape, params="Ii", leaf=True)
LOOKUP_TABLE = define("lookup_table", shape=given_shape, params="Ii", leaf=True)
INPUT = define("input", shape=given_shape, params="Ii", leaf=True)


def add_leaf(operator: op.Operator, shape: Shape, values: np.ndarray | float) -> Any:
    """A node with its values in place."""
    return leaf_maker[0](operator, shape, values)


leaf_maker: list[Callable[[op.Operator, Shape, np.ndarray | float], Any]] = []  # filled by graph.py


def leaf_signature(operator: op.Operator, shape: Shape) -> int:
    """The signature of a leaf with a shape."""
    return op.signature_of(operator, (), (shape.dims, shape.batch), -1)


# ---- lookup ----------------------------------------------------------------------------------------------------------


def lookup_shape(table: Shape, count: int = 1) -> Result:
    if count < 1:
        raise ValueError(errors.located("lookup_batch: needs one index or more, got none"))
    return Result(Shape(table.dims[:-1], count), ints=(), bound=table.dims[-1])


@kernel
def lookup_forward(v, x0, y, item, batch, ids):
    for b in range(batch):
        row, out = v[x0 + ids[b] * item : x0 + (ids[b] + 1) * item], v[y + b * item : y + (b + 1) * item]
        for i in range(item):
            out[i] = row[i]


# behind a table's gradients lies a mark for each row, and behind those one for each so many rows: trainers touch marked
# rows only, and look for them only where there are some
TOGETHER = 64


@kernel
def lookup_d0(g, x0, y, item, item0, batch, ids):
    rows = item0 // max(item, 1)
    for b in range(batch):
        row, dy = g[x0 + ids[b] * item : x0 + (ids[b] + 1) * item], g[y + b * item : y + (b + 1) * item]
        for i in range(item):
            row[i] += dy[i]
        g[x0 + item0 + ids[b]] = ONE
        g[x0 + item0 + rows + ids[b] // TOGETHER] = ONE


@kernel
def lookup_forward_cuda(v, x0, y, item, batch, ids, thread, threads):
    for e in range(thread, item * batch, threads):
        v[y + e] = v[x0 + ids[e // item] * item + e % item]


@kernel
def lookup_d0_cuda(g, x0, y, item, item0, batch, ids, thread, threads):
    rows = item0 // max(item, 1)
    for i in range(thread, item, threads):  # a thread has its place in all rows: a row may occur several times
        for b in range(batch):
            g[x0 + ids[b] * item + i] += g[y + b * item + i]
            if i == 0:
                g[x0 + item0 + ids[b]] = ONE
                g[x0 + item0 + rows + ids[b] // TOGETHER] = ONE


def lookup_reference(table: np.ndarray, index: int) -> np.ndarray:
    return table[..., index]


# the cases' tables leave room behind them, where the gradients of a real table have the rows' marks
LOOKUP = define(
    "lookup", shape=lookup_shape, params="xd", forward=lookup_forward, backward=(lookup_d0,), group=(SHARED,),
    flops=moving, forward_cuda=lookup_forward_cuda, backward_cuda=(lookup_d0_cuda,),
    reference=lookup_reference,
    cases=(Case(((3, 3),), arguments=(2,)), Case(((1, 1),), arguments=(0,)), Case(((2, 2, 3),), arguments=(1,))),
)  # fmt: skip
LOOKUP_BATCH = define(
    "lookup_batch", shape=lookup_shape, params="xD", forward=lookup_forward, backward=(lookup_d0,), group=(SHARED,),
    flops=moving, forward_cuda=lookup_forward_cuda, backward_cuda=(lookup_d0_cuda,),
    reference=lookup_reference,
    cases=(Case(((3, 3),), arguments=([2, 0, 2],)), Case(((1, 1),), arguments=([0, 0],))),
)  # fmt: skip


# ---- inputs ----------------------------------------------------------------------------------------------------------


def as_numbers(operator: str, values: Any) -> np.ndarray:
    """An array of numbers; TypeError for what is none: words, None, complex numbers, lists of unequal length,
    arrays in the memory of a GPU."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        array = None
    if array is None or array.dtype.kind not in "biuf":
        raise not_numbers(operator, "numbers", values)
    return array


def not_numbers(operator: str, needs: str, values: Any) -> TypeError:
    """The error for what is no array that we can read."""
    if found := dlpack.foreign(values):
        return TypeError(
            errors.located(f"{operator}: needs numbers in the host's memory, got {found}: copy it there first")
        )
    return TypeError(errors.located(f"{operator}: needs {needs}, got {kind_of(values)}"))


@native(INPUT, "ab")
@native(INPUT, "v")
def inputTensor(arr: Any, batched: bool = False, device: str = "", reusable_expr: bool = False) -> Any:
    """A constant with the values and shape of an array or of nested lists of numbers.

    batched: the last axis is the mini-batch.  A list of arrays is a mini-batch of them.
    Raises TypeError for what is no array, ValueError for an empty one, and for more than 7 axes.
    """
    check_device("inputTensor", device)
    if isinstance(arr, list) and arr and all(isinstance(item, np.ndarray) for item in arr):
        arr, batched = np.stack(arr, axis=-1), True
    if not isinstance(arr, (list, np.ndarray)):
        raise not_numbers("inputTensor", "an array or a list of numbers", arr)
    array = as_numbers("inputTensor", arr)
    if array.ndim == 0 or array.size == 0 or array.ndim - bool(batched) > MAX_RANK:
        raise ValueError(
            errors.located(f"inputTensor: needs 1 to {MAX_RANK} axes and one element or more, got shape {array.shape}")
        )
    shape = Shape(array.shape[:-1] or (1,), array.shape[-1]) if batched else Shape(array.shape)
    made = constant(shape.dims, 0.0, shape.batch)
    made.window()[:] = array.ravel(order="F")
    return made


@native(INPUT, "v")
def inputVector(v: Sequence[float], device: str = "") -> Any:
    """A constant vector with the values of a list of numbers.  Raises ValueError for an empty list."""
    check_device("inputVector", device)
    array = as_numbers("inputVector", v)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(errors.located(f"inputVector: needs a list of one number or more, got shape {array.shape}"))
    return add_leaf(INPUT, Shape(array.shape), array)


def vecInput(dim: int, device: str = "") -> Any:
    """A vector of zeros; `.set(values)` fills it."""
    check_device("vecInput", device)
    return zeros(dim)


@native(INPUT, "f")
def scalarInput(s: float, device: str = "") -> Any:
    """A constant number, shape (1,); `.set(number)` changes it."""
    check_device("scalarInput", device)
    return add_leaf(INPUT, Shape((1,)), as_number("scalarInput", s))


def inputMatrix(v: Sequence[float], d: tuple[int, ...]) -> Any:
    """A constant with dims `d` from a flat list of its elements, first axis fastest."""
    return inputTensorTranspose(v, d)


@native(INPUT, "vIi")
def inputTensorTranspose(val: Sequence[float], dim: Any = None, batch_size: int = 1, device: str = "") -> Any:
    """A constant with dims `dim` from a flat list of its elements, first axis fastest, mini-batch slowest."""
    check_device("inputTensorTranspose", device)
    array, batch = as_numbers("inputTensorTranspose", val), as_batch("inputTensorTranspose", batch_size)
    shape = Shape(dims_of("inputTensorTranspose", array.size if dim is None else dim), batch)
    if array.ndim != 1:
        raise TypeError(errors.located(f"inputTensorTranspose: needs a flat list, got shape {array.shape}"))
    if array.size != shape.size:
        raise ShapeError("inputTensorTranspose", f"{shape.size} elements for {shape}", array.size)
    return add_leaf(INPUT, shape, array)


@native(INPUT, "Ifi")
def constant(dim: Any, val: float, batch_size: int = 1) -> Any:
    """A tensor that is filled with a number.

    dim: int or tuple.  Raises TypeError or ValueError for other dims, ValueError for a mini-batch below 1.
    """
    shape = Shape(dims_of("constant", dim), as_batch("constant", batch_size))
    return add_leaf(INPUT, shape, as_number("constant", val))


@native(INPUT, "Ii")
def zeros(dim: Any, batch_size: int = 1) -> Any:
    """A tensor of zeros; see `constant`."""
    return constant(dim, 0.0, batch_size)


@native(INPUT, "Ii", fill=1.0)
def ones(dim: Any, batch_size: int = 1) -> Any:
    """A tensor of ones; see `constant`."""
    return constant(dim, 1.0, batch_size)


# ---- rows of lookup tables, as DyNet names them ----------------------------------------------------------------------


def table_of(operator: str, p: Any, update: bool) -> Any:
    """A lookup table as an operand; TypeError for all else, whose gradients have no marks of rows behind them."""
    if not getattr(p, "is_table", False):
        raise TypeError(errors.located(f"{operator}: needs a lookup table, got {kind_of(p)}"))
    return p if update else p.constant()


@native(LOOKUP, "td")
def lookup(p: Any, index: int = 0, update: bool = True) -> Any:
    """Row `index` of a lookup table, as a tensor of the row's shape.

    update: whether the row gets a gradient.
    Raises TypeError for what is no table, IndexError for a row that is not there.
    """
    return LOOKUP.call(table_of("lookup", p, update), index)


@native(LOOKUP_BATCH, "tD")
def lookup_batch(p: Any, indices: Sequence[int], update: bool = True) -> Any:
    """Rows of a lookup table as a mini-batch; see `lookup`.  Raises ValueError for an empty list."""
    return LOOKUP_BATCH(table_of("lookup_batch", p, update), indices)


# ---- inputs that are mostly one number -------------------------------------------------------------------------------


@native(INPUT, "ih")
def one_hot(d: int, idx: int | Sequence[int], device: str = "") -> Any:
    """A vector of `d` numbers that is 1 at `idx`, else 0; of a list `idx`, a mini-batch of them.

    Raises IndexError unless 0 <= idx < d, ValueError for an empty list.
    """
    check_device("one_hot", device)
    size = as_integer("one_hot", d)
    is_list = isinstance(idx, (list, tuple)) or (isinstance(idx, np.ndarray) and idx.ndim > 0)
    indices = as_integers("one_hot", idx if is_list else [idx])
    if not indices:
        raise ValueError(errors.located("one_hot: needs one index or more, got none"))
    for index in indices:
        if not 0 <= index < size:
            raise IndexError(errors.located(f"one_hot: needs indices from 0 to {size - 1}, got {index}"))
    values = [0.0] * (size * len(indices))
    for item, index in enumerate(indices):
        values[item * size + index] = 1.0
    return inputTensorTranspose(values, size, len(indices))


@native(INPUT, "pvIbf")
def sparse_inputTensor(
    idxs: Sequence[Sequence[int]], values: Sequence[float], shape: tuple[int, ...], batched: bool = False,
    defval: float = 0.0, device: str = "",
) -> Any:  # fmt: skip
    """A constant that is values[i] at (idxs[0][i], idxs[1][i], ...), else `defval`; of repeated places the last counts.

    batched: the last axis of `shape` is the mini-batch.
    Raises TypeError unless `values` is flat, ValueError unless each axis has a list of as many indices, IndexError for
    an index that is out of range.
    """
    check_device("sparse_inputTensor", device)
    numbers, dims = as_numbers("sparse_inputTensor", values), dims_of("sparse_inputTensor", shape)
    rest = as_number("sparse_inputTensor", defval)
    if not isinstance(idxs, (list, tuple, np.ndarray)):
        raise TypeError(errors.located(f"sparse_inputTensor: needs a list of indices per axis, got {kind_of(idxs)}"))
    idxs = [as_integers("sparse_inputTensor", indices) for indices in idxs]
    if numbers.ndim != 1:
        raise TypeError(errors.located(f"sparse_inputTensor: needs a flat list of values, got shape {numbers.shape}"))
    if len(idxs) != len(dims) or any(len(indices) != numbers.size for indices in idxs):
        got = [len(indices) for indices in idxs]
        needs = f"{len(dims)} lists of {numbers.size} indices"
        raise ValueError(errors.located(f"sparse_inputTensor: needs {needs}, got lists of {got}"))
    places, step = np.zeros(numbers.size, np.int64), 1
    for indices, size in zip(idxs, dims, strict=True):
        for index in indices:
            if not 0 <= index < size:
                raise IndexError(errors.located(f"sparse_inputTensor: needs indices from 0 to {size - 1}, got {index}"))
        places += step * np.asarray(indices, np.int64)
        step *= size
    made = constant(dims[:-1] or (1,), rest, dims[-1]) if batched else constant(dims, rest)
    made.window()[places] = numbers
    return made
