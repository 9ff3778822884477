"""The native front end: the types and builtins through which Python meets the compiled code of `slots` and `calling`.

Where the interpreter's objects do not look as expected, the twins in Python serve alone.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import itertools
import platform
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import MethodDescriptorType, ModuleType
from typing import Any, TypeVar

import numpy as np

from dynjit import calling, op, recording, slots
from dynjit.arena import Storage
from dynjit.jit import Compiled, read_sources
from dynjit.recording import (
    BYTES,
    HANDLE,
    KINDS,
    MAX_FIELDS,
    MAX_MADE,
    NUMBER,
    PLAIN,
    SLOTS,
    fields,
    forms,
    nothing,
    programmed,
    state,
)

Class = TypeVar("Class")


class Slot(ctypes.Structure):
    _fields_ = [("slot", ctypes.c_int), ("function", ctypes.c_void_p)]


class Spec(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("basicsize", ctypes.c_int), ("itemsize", ctypes.c_int),
        ("flags", ctypes.c_uint), ("slots", ctypes.POINTER(Slot)),
    ]  # fmt: skip


class Member(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("type", ctypes.c_int), ("offset", ctypes.c_ssize_t),
        ("flags", ctypes.c_int), ("doc", ctypes.c_char_p),
    ]  # fmt: skip


class Method(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p),
    ]  # fmt: skip


SUBCLASSABLE, LONGLONG = 1 << 10, 17  # Py_TPFLAGS_BASETYPE, T_LONGLONG
FASTCALL_KEYWORDS, NO_ARGUMENTS = 0x82, 4
MEMBERS = 72  # Py_tp_members
TYPE_SLOTS = {5: slots.native_subscript, 7: slots.native_add, 29: slots.native_multiply,
              30: slots.native_negative, 33: slots.native_power, 36: slots.native_subtract, 37: slots.native_divide,
              52: recording.native_dealloc, 75: slots.native_matmul}  # fmt: skip

is_native = (
    platform.python_implementation() == "CPython"
    and object.__basicsize__ == HANDLE
    and slice.__basicsize__ == HANDLE + 24
    and bytes.__basicsize__ == BYTES + 1
    and getattr(sys, "_is_gil_enabled", lambda: True)()
)
kept: list[Any] = []  # what the interpreter holds only the address of


def make_type(name: str, size: int, member: str, functions: dict[int, int], bases: tuple[type, ...]) -> type:
    """A type with one more 64-bit integer field, and C functions in its slots."""
    members = (Member * 2)(Member(member.encode(), LONGLONG, size - 8, 0, None), Member())
    entries = [Slot(*slot) for slot in functions.items()]
    table = (Slot * (len(functions) + 2))(*entries, Slot(MEMBERS, ctypes.addressof(members)))
    spec = Spec(name.encode(), size, 0, SUBCLASSABLE, table)
    make = ctypes.pythonapi.PyType_FromSpecWithBases
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.py_object]
    kept.extend((members, table, spec))
    return make(ctypes.addressof(spec), bases)  # type: ignore[no-any-return]


def twin_type(slow: dict[str, Callable]) -> type:
    """The same type in Python, for interpreters that the compiled functions do not know."""

    class Native:
        __slots__ = ("handle",)

        def __add__(self, other: Any) -> Any:
            return slow["add"](self, other)

        def __radd__(self, other: Any) -> Any:
            return slow["add"](other, self)

        def __sub__(self, other: Any) -> Any:
            return slow["subtract"](self, other)

        def __rsub__(self, other: Any) -> Any:
            return slow["subtract"](other, self)

        def __mul__(self, other: Any) -> Any:
            return slow["multiply"](self, other)

        def __rmul__(self, other: Any) -> Any:
            return slow["multiply"](other, self)

        def __truediv__(self, other: Any) -> Any:
            return slow["divide"](self, other)

        def __rtruediv__(self, other: Any) -> Any:
            return slow["divide"](other, self)

        def __matmul__(self, other: Any) -> Any:
            return slow["matmul"](self, other)

        def __neg__(self) -> Any:
            return slow["negative"](self, self)

        def __pow__(self, other: Any, modulus: Any = None) -> Any:
            return slow["power"](self, other, modulus)

        def __rpow__(self, other: Any, modulus: Any = None) -> Any:
            return slow["power"](other, self, modulus)

        def __getitem__(self, index: Any) -> Any:
            return slow["subscript"](self, index)

    return Native


def expression_type(slow: dict[str, Callable]) -> Callable[[type[Class]], type[Class]]:
    """Decorator that gives a class a handle and the operators.

    Its attributes move to a type that is made in C: the interpreter collects the objects of every class written in
    Python, which costs a third of their life, and an expression refers to nothing.
    slow: the twins in Python, by the names of SLOTS.
    """

    def decorate(written: type[Class]) -> type[Class]:
        attributes = {name: value for name, value in vars(written).items() if name not in ("__dict__", "__weakref__")}
        if not is_native:
            return type(written.__name__, (twin_type(slow),), attributes)
        functions = {number: function.address for number, function in TYPE_SLOTS.items()}
        made = make_type(f"{written.__module__}.{written.__name__}", HANDLE + 8, "handle", functions, (object,))
        for name, value in attributes.items():
            if name not in ("__slots__", "__module__"):
                setattr(made, name, value)
        return made

    return decorate


def parameter_base(expression: type) -> type:
    """The type that Parameters and LookupParameters inherit their number from."""
    if not is_native:
        return type("NativeParameter", (expression,), {"__slots__": ("number",)})
    return make_type("dynjit.NativeParameter", NUMBER + 8, "number", {}, (expression,))


# ---- functions -------------------------------------------------------------------------------------------------------

NO_DEFAULT = inspect.Parameter.empty


def new_form(service: op.Service, slow: Callable, names: Iterable[tuple[str, Any]], program: int = 0) -> int:
    """Tells compiled code how a function is called; returns the form's number.

    names: of the arguments, with their defaults;  program: the address of what a composed function does.
    """
    number = state_of_forms["count"]
    state_of_forms["count"] += 1
    operator, letters, given = service.operator, service.letters, list(names)
    has_operands_alone = letters in ("x", "xx") and operator is not None and not service.only
    ranges = iter(operator.floats if operator else ())
    for i, (name, default) in enumerate(given):
        letter = letters[i : i + 1]
        limits = next(ranges, op.ANY) if letter == "f" else op.ANY
        only = service.only.get(name, default)
        kept.extend((default, only))
        fields[number * MAX_FIELDS + i] = (
            ord(letter) if letter else calling.NOTHING, id(sys.intern(name)),
            0 if default is NO_DEFAULT else id(default), id(only), limits.low, limits.high,
        )  # fmt: skip
    forms[number] = (
        operator.code if operator else 0, len(given), len(letters) if has_operands_alone else -1, id(slow), 0, program,
        service.fill,
    )  # fmt: skip
    return number


state_of_forms = {"count": 0}


class Place:
    """What stands for an operand, or for those of a list, while the nodes of a composed function are found out."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __iter__(self) -> Iterator[Place]:
        return iter((self,))

    def dim(self) -> None:
        """Operands of all shapes will do."""


def program_of(function: Callable, service: op.Service, names: Sequence[str]) -> np.ndarray:
    """What a composed function does: how many nodes there are, the place of the result; then the nodes.

    Operands come from places: the arguments', then those of the nodes so far.
    """
    numbers: list[int] = []
    made: list[Place] = []

    def record(operator: op.Operator, arguments: Sequence[Any]) -> Place:
        operands: list[int] = []
        ints: list[int] = []
        floats: list[int] = []
        for letter, argument in zip(operator.params, arguments, strict=True):
            if letter in "xX":
                operands += [place.number for place in argument]
            elif letter == "f":
                floats.append(int(np.float64(argument).view(np.int64)))
            else:
                assert letter == "i", f"{function.__name__}: what compiled code composes has no {letter}"
                ints.append(argument)
        numbers.extend(programmed(operator.code, operands, ints, floats))
        made.append(Place(len(names) + len(made)))
        return made[-1]

    recorder, op.recorder = op.recorder, record
    try:
        result = function(*(Place(i) for i in range(len(service.letters))), **service.only)
    finally:
        op.recorder = recorder
    assert len(made) <= MAX_MADE
    return np.array([len(made), result.number, *numbers], np.int64)


@functools.cache
def builtin(function: Callable) -> Callable:
    """The compiled form of a public operator function; the function itself where there is none."""
    names = [(name, parameter.default) for name, parameter in inspect.signature(function).parameters.items()]
    if not is_native or len(names) > MAX_FIELDS:
        return function
    numbers = []
    for service in op.fast[function]:
        program = 0
        if service.operator is None:
            kept.append(program_of(function, service, [name for name, _ in names]))
            program = kept[-1].ctypes.data
        numbers.append(new_form(service, function, names, program))
    for number, following in itertools.pairwise(numbers):
        forms[number]["next"] = following
    return c_function(function.__name__, text_of(function), calling.native_call, numbers[0], function)


def text_of(function: Callable) -> str:
    """A function's signature and docstring, as the interpreter wants them of builtins."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    return f"{function.__name__}({', '.join(names)})\n--\n\n{function.__doc__}"


def serve(operator: op.Operator) -> None:
    """Lets compiled code serve the calls of an operator inside of dynjit."""
    letters, slow = operator.params.replace("r", ""), operator.record
    if is_native and len(letters) <= MAX_FIELDS:
        number = new_form(op.Service(operator, letters, 0.0, {}), slow, [("", NO_DEFAULT)] * len(letters))
        operator.call = c_function(operator.name, "", calling.native_call, number, slow)


def install(modules: Iterable[ModuleType]) -> None:
    """Puts the compiled forms of public operator functions in their place."""
    for module in modules:
        for name, value in list(vars(module).items()):
            if inspect.isfunction(value) and value in op.fast:
                setattr(module, name, builtin(value))
    for operator in op.operators:
        serve(operator)


def c_function(name: str, text: str, compiled: Compiled, number: int, twin: Callable) -> Callable:
    """A builtin of the compiled function, which gets `number` as its self, as bytes."""
    method = Method(name.encode(), compiled.address, FASTCALL_KEYWORDS, text.encode())
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.py_object, ctypes.py_object]
    kept.extend((method, twin))
    own = number.to_bytes(8, sys.byteorder)
    return make(ctypes.addressof(method), own, "dynjit")  # type: ignore[no-any-return]


methods: dict[str, Method] = {}


def native_methods(**compiled: Compiled) -> Callable[[type[Class]], type[Class]]:
    """Decorator that puts C functions in the place of a class's methods, which stay as their twins.

    The names are those of METHODS.  A function gets the object, and (if the method takes arguments) where they lie.
    """

    def decorate(written: type[Class]) -> type[Class]:
        for name, function in compiled.items() if is_native else ():
            twin = vars(written)[name]
            text = text_of(twin).replace("(self", "($self", 1)
            takes = NO_ARGUMENTS if len(inspect.signature(twin).parameters) == 1 else FASTCALL_KEYWORDS
            methods[name] = Method(name.encode(), function.address, takes, text.encode())
            kept.append(twin)
            state[0][f"slow_{name}"] = id(twin)
            put_method(written, name)
        return written

    return decorate


def put_method(owner: type, name: str) -> None:
    make = ctypes.pythonapi.PyDescr_NewMethod
    make.restype, make.argtypes = ctypes.py_object, [ctypes.py_object, ctypes.c_void_p]
    setattr(owner, name, make(owner, ctypes.addressof(methods[name])))


def inherit(owner: type, name: str) -> None:
    """Makes a native method that a class inherits its own, for which the interpreter has a way of half the length."""
    if isinstance(getattr(owner, name), MethodDescriptorType):
        put_method(owner, name)


def reader(compiled: Compiled, kind: int = 0) -> Callable[[Any], Any]:
    """A builtin that tells what compiled code knows of an expression; NOT_PLAIN where it hands over."""
    if not is_native:
        return lambda expression: slots.NOT_PLAIN
    return c_function(compiled.function.__name__, "", compiled, kind, reader)


def use(storage: Storage | None) -> None:
    """Makes a graph the one that compiled code appends to in this thread.

    Without one, and in other threads, it hands everything over to the twins.
    """
    state[0]["header"] = nothing.ctypes.data if storage is None else storage.address
    state[0]["thread"] = threading.get_ident()


def let_run(allowed: bool) -> None:
    """Whether compiled code may plan and run graphs by itself; else it only records them."""
    state[0]["may_run"] = allowed


def connect(
    expression: type, dense: type, lookup_table: type, operators: dict[str, op.Operator], slow: dict[str, Callable]
) -> None:
    """Tells compiled code the types and operators that it serves, and the twins that it hands over to."""
    for name in SLOTS:
        state[0][f"slow_{name}"] = id(slow[name])
    kinds = (expression, dense, lookup_table, int, bool, float, list, tuple, slice, bytes, np.ndarray)
    know(**dict(zip(KINDS, kinds, strict=True)))
    for name in PLAIN:
        state[0][f"op_{name}"] = operators[name].code
    state[0]["none"] = id(None)
    kept.append(slow)
    read_sources()


def know(**kinds: type) -> None:
    """Tells compiled code types, by their names in the state."""
    for name, kind in kinds.items():
        state[0][name] = id(kind)
        kept.append(kind)
