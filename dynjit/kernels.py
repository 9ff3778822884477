"""The table of kernel addresses.

A kernel's parameter names are its contract: they say what it wants to know of a call.  An adapter is generated from the
names, gives the kernel the uniform form `void(context, index)`, and is compiled when it is first needed.  The index
is that of a call, and in its high bits how many more calls are to be made; or -1 - that of a deferred record.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import numba
import numpy as np

from dynjit import arena, op
from dynjit.jit import OPTIONS, Compiled

KERNEL = "void(int64, int64)"
NARROW, WIDE = 0, 1  # float32, float64

PARAMETERS = {  # parameter name (with # for the number of an operand or attribute): expression over call c, signature q
    "v": "v", "g": "g", "y": "c.y", "s": "c.scratch", "j": "calls[first].j", "k": "c.arity",
    "arg": "arguments", "a": "c.args",
    "n": "q.item * c.batch", "item": "q.item", "rows": "q.rows", "cols": "q.cols", "batch": "c.batch",
    "x#": "arguments[c.args + #]", "batch#": "arguments[c.args + c.arity + #]",
    "n#": "shapes[pool[q.key + 2 + #]].item * arguments[c.args + c.arity + #]",
    "item#": "shapes[pool[q.key + 2 + #]].item",
    "rows#": "shapes[pool[q.key + 2 + #]].rows", "cols#": "shapes[pool[q.key + 2 + #]].cols",
    "step#": "shapes[pool[q.key + 2 + #]].item if arguments[c.args + c.arity + #] == c.batch else 0",
    "i#": "pool[q.ints + #]", "ints": "pool[q.ints : q.ints + 1099511627776]", "f#": "number(doubles[c.floats + #])",
    "ids": "data[c.ids : c.ids + 1099511627776]",
}  # fmt: skip
BODY = """
def {name}(context, index):
    h = headers(context)[0]
    calls = calls_at(h.calls) if index >= 0 else calls_at(h.deferred)
    first = index & (1 << MORE) - 1 if index >= 0 else -1 - index
    signatures, shapes, v, g = signatures_at(h.signatures), shapes_at(h.shapes), floats(h.v), floats(h.g)
    arguments, pool, data, doubles = int64s(h.arguments), int64s(h.pool), int64s(h.data), float64s(h.data)
    for one in range(first, first + 1 + max(index >> MORE, 0)):
        c = calls[one]
        q = signatures[c.signature]
        run({arguments})
"""


def expression(name: str) -> str:
    """How an adapter finds the value of a kernel's parameter; KeyError for a name outside the list."""
    number = re.fullmatch(r"(x|batch|n|item|rows|cols|step|i|f)(\d+)", name)
    return PARAMETERS[name] if number is None else PARAMETERS[number[1] + "#"].replace("#", number[2])


def adapter(operator: op.Operator, kernel: Callable, width: int) -> Compiled:
    """The compiled form of a kernel for float32 or float64."""
    names = list(inspect.signature(kernel).parameters)
    try:
        arguments = ", ".join(map(expression, names))
    except KeyError as error:
        raise TypeError(f"{kernel.__name__}: unknown kernel parameter {error}") from None
    name = f"{kernel.__name__}_{'wide' if width else 'narrow'}"
    # its symbol: two closures of one builder, compiled in different processes, would share theirs
    kernel.__qualname__ = kernel.__name__
    options = {key: value for key, value in OPTIONS.items() if key != "no_cpython_wrapper"}
    number = np.float64 if width else np.float32
    scope: dict[str, Any] = {
        "headers": arena.headers, "calls_at": arena.calls_at, "signatures_at": arena.signatures_at,
        "shapes_at": arena.shapes_at, "int64s": arena.int64s, "float64s": arena.float64s, "number": number,
        "floats": arena.float64s if width else arena.float32s, "run": numba.njit(forceinline=True, **options)(kernel),
        "MORE": arena.MORE, "__name__": operator.module,
    }  # fmt: skip
    exec(compile(BODY.format(name=name, arguments=arguments), f"<dynjit adapter of {name}>", "exec"), scope)
    return Compiled(scope[name], KERNEL, operator.module, __name__)


@functools.cache
def compiled(code: int, slot: int, width: int) -> Compiled | None:
    """The adapter of a slot of the kernel table: 0 forward, k + 1 the gradient of operand k, IN_PLACE."""
    operator = op.operators[code]
    kernels = {op.IN_PLACE: operator.in_place, **dict(enumerate((operator.forward, *operator.backward)))}
    kernel = kernels.get(slot)
    return adapter(operator, kernel, width) if kernel else None


def load(code: int, slots: range, width: int) -> None:
    """Fills slots of the kernel table; compiles what the cache does not hold."""
    for slot in slots:
        unit = compiled(code, slot, width)
        arena.kernels[(width * op.TABLE.size + code) * op.SLOTS + slot] = unit.address if unit else 1


def load_forward(code: int, width: int) -> None:
    load(code, range(1), width)


def load_backward(code: int, width: int) -> None:
    load(code, range(1, op.SLOTS), width)


def all_units() -> Iterator[tuple[str, Compiled]]:
    """Every float32 kernel of every operator, with its name; for warm-up."""
    for operator in op.operators:
        for slot in range(op.SLOTS):
            unit = compiled(operator.code, slot, NARROW)
            if unit is not None:
                yield unit.function.__name__, unit
