"""CUDA kernels that run programs: many calls of many operators in one launch.

A *program* is a plan's calls as a flat array of int64 numbers (lowering.py): a record of each call, and the *work
items* (a call, and which part of it) in the order of *levels*, between which all threads wait for each other.  The
kernel of a set of operators takes work items and switches on the call's operator.

What an operator does is one of these, by the parameters of its CPU kernel:
  ELEMENTS  the same kernel, on one element per thread;
  ITEMS     the same kernel, on one mini-batch item per thread, or, where items meet in one place, by one thread;
  SERIAL    the same kernel, by one thread: lists of operands without an explicit form;
  THREADS   the explicit form of the operator's block, with `thread, threads` behind the CPU kernel's parameters;
  TILES     the explicit form with `part, parts`: blocks that work on tiles of a matrix product;
  LINES     the explicit form with `strip, part, parts`: blocks whose threads share long lines (lines.py).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import inspect
import os
import re
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dynjit import jit, lines, op, tiles
from dynjit.errors import NoCudaError, located

ELEMENTS, ITEMS, SERIAL, THREADS, TILES, LINES, NONE = range(7)
GATHER, SCATTER = op.TABLE.size * op.SLOTS, op.TABLE.size * op.SLOTS + 1  # pairs that belong to no operator
PAIRS = SCATTER + 1

# a call's record; behind it lie its operands' offsets and mini-batches, their shapes, ints, floats and indices
FIELDS = ("PAIR", "Y", "S", "J", "K", "BATCH", "ITEM", "ROWS", "COLS", "UNITS", "SCRATCH", "ARGS", "SHAPES", "INTS",
          "FLOATS", "IDS", "EACH")  # fmt: skip
RECORD = len(FIELDS)
PER_SHAPE = 3  # item, rows, cols
PLACE = {name: place for place, name in enumerate(FIELDS)}

# of a kernel's parameters over call c and unit u; a unit has `size` mini-batch items
PARAMETERS = {
    "v": "v", "g": "g", "arg": "p", "a": "{ARGS}", "j": "{J}", "k": "{K}",
    "y": "{Y} + u * {ITEM}", "s": "{S} + u * {SCRATCH}",
    "item": "{ITEM}", "rows": "{ROWS}", "cols": "{COLS}", "batch": "size", "n": "{ITEM} * size",
    "x#": "p[{ARGS} + #] + u * step(p, c, #)", "step#": "step(p, c, #)", "batch#": "items(p, c, #, size)",
    "n#": "p[{SHAPES} + 3 * #] * items(p, c, #, size)", "item#": "p[{SHAPES} + 3 * #]",
    "rows#": "p[{SHAPES} + 3 * # + 1]", "cols#": "p[{SHAPES} + 3 * # + 2]",
    "i#": "p[{INTS} + #]", "ints": "p[{INTS} :]", "f#": "f[2 * ({FLOATS} + #)]", "ids": "p[{IDS} + u * {EACH} :]",
    "left": "left", "right": "right", "strip": "left",
    "thread": "thread", "threads": "threads", "part": "part", "parts": "parts",
}  # fmt: skip
OF_ELEMENTS = {**PARAMETERS, "y": "{Y} + u", "x#": "p[{ARGS} + #] + u", "n": "1"}

PAIR = """
def {name}(v, g, p, f, c, left, right, part, parts, thread, threads):
    for u in range({first}, {units}, {stride}):
        size = {batch} // {units}
        run({arguments})
"""
KERNEL = """
def program(v, g, p, f, table, items, first, stop):
    left = cuda.shared.array({strip}, float32)
    right = cuda.shared.array({strip}, float32)
    lane, blocks = cuda.threadIdx.x, cuda.gridDim.x
    for level in range(first, stop):
        for w in range(p[table + level] + cuda.blockIdx.x, p[table + level + 1], blocks):
            c, part, parts = p[items + 3 * w], p[items + 3 * w + 1], p[items + 3 * w + 2]
            thread, threads = part * {threads} + lane, parts * {threads}
            pair = p[c]
{switch}
        if level + 1 < stop:  # all threads wait: p[0] counts the blocks that have arrived
            cuda.syncthreads()
            if lane == 0:
                cuda.threadfence()
                cuda.atomic.add(p, 0, 1)
                while cuda.atomic.add(p, 0, 0) < (level - first + 1) * blocks:
                    pass
                cuda.threadfence()
            cuda.syncthreads()
"""


@jit.scalar
def step(p, c, k):  # type: ignore[no-untyped-def]
    """Elements between two mini-batch items of operand k; 0 if it has only one."""
    args = p[c + PLACE_ARGS] + k
    return p[p[c + PLACE_SHAPES] + 3 * k] if p[args + p[c + PLACE_K]] == p[c + PLACE_BATCH] else 0


@jit.scalar
def items(p, c, k, size):  # type: ignore[no-untyped-def]
    """Mini-batch items of operand k that a unit of `size` items has."""
    batch = p[p[c + PLACE_ARGS] + p[c + PLACE_K] + k]
    return batch if size == p[c + PLACE_BATCH] else min(batch, size)


PLACE_ARGS, PLACE_SHAPES, PLACE_K, PLACE_BATCH = (PLACE[name] for name in ("ARGS", "SHAPES", "K", "BATCH"))


@jit.scalar
def copy_together(v, y, arg, a, k, item, thread, threads):  # type: ignore[no-untyped-def]
    for e in range(thread, k * item, threads):
        v[y + e] = v[arg[a + e // item] + e % item]


@jit.scalar
def add_apart(g, y, arg, a, j, k, item, thread, threads):  # type: ignore[no-untyped-def]
    if j:  # no two of the places are the same
        for e in range(thread, k * item, threads):
            g[arg[a + e // item] + e % item] += g[y + e]
    else:
        for i in range(thread, item, threads):
            for p in range(k):
                g[arg[a + p] + i] += g[y + p * item + i]


# ---- the CUDA form of an operator ------------------------------------------------------------------------------------

PRODUCTS = {"gemm_nn": tiles.serial_nn, "gemm_tn": tiles.serial_tn, "gemm_nt": tiles.serial_nt}
ONE_BY_ONE = re.compile(r"[vgyn]|x0|f\d+")


def form(pair: int) -> tuple[Callable, int]:
    """The function of a pair, and how it divides; NoCudaError if it has none."""
    if pair >= GATHER:
        return (copy_together if pair == GATHER else add_apart), THREADS
    operator, slot = op.operators[pair // op.SLOTS], pair % op.SLOTS
    explicit = operator.cuda_kernel(slot)
    if isinstance(explicit, op.NO_CUDA):
        raise NoCudaError(located(f"{operator.name}: has no form for CUDA: {explicit.reason}"))
    if explicit is not op.DERIVED:
        takes = op.names_of(explicit)
        return explicit, LINES if "strip" in takes else TILES if "part" in takes else THREADS
    kernel = (operator.forward, *operator.backward)[slot]
    assert kernel is not None
    names = op.names_of(kernel)
    return kernel, SERIAL if "arg" in names else ELEMENTS if all(map(ONE_BY_ONE.fullmatch, names)) else ITEMS


def all_pairs() -> Iterator[int]:
    """The pairs of all operators' forward and gradient kernels."""
    for operator in op.operators:
        for slot, kernel in enumerate((operator.forward, *operator.backward)):
            if kernel is not None:
                yield operator.code * op.SLOTS + slot


def is_missing(pair: int) -> bool:
    """Whether a pair has no form for CUDA."""
    return pair < GATHER and isinstance(op.operators[pair // op.SLOTS].cuda_kernel(pair % op.SLOTS), op.NO_CUDA)


def representatives() -> dict[int, int]:
    """For each pair that has a form the first one with the same function, which stands for it in programs."""
    first: dict[tuple[Callable, int], int] = {}
    pairs = (pair for pair in (*all_pairs(), GATHER, SCATTER) if not is_missing(pair))
    return {pair: first.setdefault(form(pair), pair) for pair in pairs}


def own_pairs(code: int) -> list[int]:
    """The pairs of an operator that no operator before it has, by its code; the last code: copies."""
    return [pair for pair, first in representatives().items() if pair == first and pair // op.SLOTS == code]


def name_of(pair: int) -> str:
    """The name of a pair's function."""
    return form(pair)[0].__name__


@functools.cache
def for_device(function: Callable) -> Callable:
    """A function as device code, in which products of the CPU are replaced by serial ones."""
    scope = {**function.__globals__, **PRODUCTS}
    made = types.FunctionType(function.__code__, scope, function.__name__, None, function.__closure__)
    made.__qualname__ = function.__qualname__
    return jit.scalar(made)


def expression(name: str, table: dict[str, str]) -> str:
    """How a kernel's parameter is found; KeyError for a name outside the list."""
    number = re.fullmatch(r"(x|batch|n|item|rows|cols|step|i|f)(\d+)", name)
    found = table[name] if number is None else table[number[1] + "#"].replace("#", number[2])
    return found.format(**{field: f"p[c + {place}]" for field, place in PLACE.items()})


def pair_source(pair: int, name: str) -> tuple[str, Callable]:
    """Source of the device function of a pair, and what it calls as `run`."""
    function, kind = form(pair)
    table = OF_ELEMENTS if kind == ELEMENTS else PARAMETERS
    try:
        arguments = ", ".join(expression(parameter, table) for parameter in inspect.signature(function).parameters)
    except KeyError as error:
        raise TypeError(f"{function.__name__}: unknown kernel parameter {error}") from None
    fields = {field: f"p[c + {place}]" for field, place in PLACE.items()}
    is_explicit = kind in (THREADS, TILES, LINES)
    source = PAIR.format(
        name=name, arguments=arguments, batch=fields["BATCH"],
        first="0" if is_explicit else "thread", units="1" if is_explicit else fields["UNITS"],
        stride="1" if is_explicit else "threads",
    )  # fmt: skip
    return source, for_device(function)


def switch(names: list[tuple[int, str]], indent: str) -> list[str]:
    """Lines that call the function of `pair`, found by halving the sorted list."""
    call = "(v, g, p, f, c, left, right, part, parts, thread, threads)"
    if len(names) == 1:
        return [f"{indent}{names[0][1]}{call}"]
    middle = len(names) // 2
    return [
        f"{indent}if pair < {names[middle][0]}:", *switch(names[:middle], indent + "    "),
        f"{indent}else:", *switch(names[middle:], indent + "    "),
    ]  # fmt: skip


def build(pairs: Iterable[int]) -> tuple[str, str, dict[str, Any]]:
    """The kernel of a set of pairs: sources of what it calls, its own source, and its scope."""
    names, scope, sources = [], {}, []
    for pair in sorted(pairs):
        name = f"pair_{pair}_{name_of(pair)}"
        source, run = pair_source(pair, name)
        own: dict[str, Any] = {"run": run, "step": step, "items": items, "__name__": __name__}
        exec(compile(source, f"<dynjit CUDA form of {name}>", "exec"), own)
        scope[name] = jit.scalar(own[name])
        names.append((pair, name))
        sources.append(source)
    kernel = KERNEL.format(switch="\n".join(switch(names, " " * 12)), threads=tiles.THREADS, strip=tiles.STRIP)
    return "".join(sources), kernel, {**scope, "__name__": __name__}


# ---- compiling -------------------------------------------------------------------------------------------------------

PACKAGE = "needs the package numba-cuda: pip install dynjit[cuda]"


@functools.cache
def compiler() -> Any:
    """The module numba.cuda; raises NoCudaError where it is missing."""
    try:
        import numba_cuda
        from numba import cuda
    except ImportError:
        raise NoCudaError(f"GPU: {PACKAGE}") from None
    cuda.package_version = numba_cuda.__version__
    tiles.cuda = lines.cuda = cuda
    return cuda


def same_index(builder: Any, index: Any, size: Any) -> Any:
    """An index as it stands: kernels never count from the end."""
    return index


def same_slice(builder: Any, window: Any, size: Any) -> None:
    """A window as it stands, but for one that is open behind: kernels never leave their buffers."""
    window.stop = builder.select(builder.icmp_signed(">", window.stop, size), size, window.stop)


class Capability(NamedTuple):
    """What the compiler asks of a device when one function calls another; there may be no device."""

    compute_capability: tuple[int, int]


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, which takes a fifth of a compiler's time, and finds little."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def compiled_ptx(function: Callable, signature: tuple[Any, ...], capability: tuple[int, int]) -> str:
    """PTX of a kernel; no GPU is needed."""
    cuda = compiler()
    from unittest import mock

    from numba.cuda import dispatcher
    from numba.cuda.cpython import slicing
    from numba.cuda.descriptor import cuda_target

    cuda_target.target_context.refresh()  # sees the functions that were made since the last time
    with (
        uncollected(),
        # Python's rules for negative indices cost a third of the instructions and registers
        mock.patch.multiple(slicing, fix_index=same_index, fix_slice=same_slice),
        mock.patch.object(dispatcher, "get_current_device", lambda: Capability(capability)),
    ):
        ptx = cuda.compile(function, signature, device=False, abi="numba", cc=capability)[0]
    # at most 128 registers, so that a processor holds two blocks
    return re.sub(r"(\.entry [^()]*\([^()]*\))", rf"\1\n.maxntid {tiles.THREADS}, 1, 1\n.minnctapersm 2", ptx, count=1)


def cache_path(text: str, capability: tuple[int, int], modules: Iterable[str]) -> Path | None:
    """The file of a kernel's PTX: its name holds a digest of all that it is made from."""
    folder = jit.cache_folder()
    if folder is None:
        return None
    stamps = [jit.source_stamp(module) for module in sorted({*modules, __name__})]
    key = hashlib.sha256(repr((text, capability, stamps, compiler().package_version)).encode()).hexdigest()
    return folder / key[:2] / f"ptx-{key[:32]}"


def stored_ptx(path: Path | None, make: Callable[[], str]) -> str:
    """The text of a file of the cache; made and stored where it is missing."""
    if path is not None and path.exists():
        return path.read_text(encoding="utf-8")
    text = make()
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
                file.write(text)
            os.replace(file.name, path)
        except OSError:
            jit.say("the cache folder cannot be written: compiled kernels are lost at exit")
    return text


def modules_of(pairs: Iterable[int]) -> set[str]:
    return {op.operators[pair // op.SLOTS].module for pair in pairs if pair < GATHER}


def program_path(pairs: Iterable[int], capability: tuple[int, int]) -> Path | None:
    """Where the PTX of a set of pairs lies in the cache."""
    pairs = sorted(pairs)
    return cache_path("".join(build(pairs)[:2]), capability, modules_of(pairs))


def program_ptx(pairs: Iterable[int], capability: tuple[int, int]) -> str:
    """PTX of the kernel that runs programs of a set of pairs."""
    pairs = sorted(pairs)

    def make() -> str:
        from numba import float32, int64

        cuda = compiler()
        _, source, scope = build(pairs)
        scope.update(cuda=cuda, float32=float32)
        exec(compile(source, "<dynjit CUDA program>", "exec"), scope)
        signature = (float32[::1], float32[::1], int64[::1], float32[::1], *[int64] * 4)
        return compiled_ptx(scope["program"], signature, capability)

    return stored_ptx(program_path(pairs, capability), make)


class Unit(NamedTuple):
    """The kernel of one operator, forward and gradients, as something to be compiled ahead; see `own_pairs`."""

    operator: op.Operator
    capability: tuple[int, int]

    @property
    def pairs(self) -> list[int]:
        return own_pairs(self.operator.code)

    def is_cached(self) -> bool:
        """Whether the cache folder holds its PTX; compiles nothing."""
        path = program_path(self.pairs, self.capability)
        return path is not None and path.exists()

    def prepare(self) -> None:
        """Compiles it, if the cache does not hold it."""
        program_ptx(self.pairs, self.capability)


def units(capabilities: Iterable[tuple[int, int]]) -> dict[str, Unit]:
    """The kernels of all operators, by name."""
    owners = sorted({first // op.SLOTS for first in representatives().values() if first < GATHER})
    return {
        f"cuda_{major}_{minor}_{op.operators[code].name}": Unit(op.operators[code], (major, minor))
        for major, minor in capabilities for code in owners
    }  # fmt: skip


def entry_name(ptx: str) -> str:
    """The name of the kernel in a PTX text."""
    found = re.search(r"\.entry\s+(\w+)", ptx)
    assert found, "no kernel in the PTX"
    return found[1]
