"""How kernels are compiled, cached on disk and called by address.

A compiled function lies in one file of the cache folder.  Its name holds a digest of all that the code is made from
(sources, types, CPU, versions), so that a file is never stale; it appears by an atomic rename, so that processes never
meet half a file.  Numba's own cache has an index with a race and does not see edits in other files.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import inspect
import os
import pickle
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llvmlite
import numba
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, compiler, sigutils
from numba.core.caching import _Cache
from numba.core.ccallback import CFunc
from numba.core.serialize import dumps
from numba.extending import intrinsic, register_jitable

from dynjit import settings

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",  # the default's check for a zero divisor blocks vectorisation
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},  # sums vectorise; isnan stays right
    "no_cpython_wrapper": True,
}
PACKAGE = Path(__file__).parent
IMPORT = re.compile(r"^\s*(?:from (dynjit[\w.]*) import (\([^)]*\)|[\w, ]+)|import (dynjit[\w.]*))", re.MULTILINE)


def kernel(function: Callable) -> Callable:
    """Marks a function over buffers and numbers as an operator's kernel; it is compiled when first needed."""
    return function


def helper(function: Callable) -> Callable:
    """A compiled function that kernels call; it becomes a part of their code."""
    return numba.njit(**OPTIONS)(function)


def inline(function: Callable) -> Callable:
    """A helper that becomes a part of its callers' code however long it is: it is called for every node."""
    return numba.njit(forceinline=True, **OPTIONS)(function)


# ---- the disk cache --------------------------------------------------------------------------------------------------


def module_path(name: str) -> Path | None:
    """The source file of a module of this package."""
    base = PACKAGE.joinpath(*name.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path
    return None


@functools.cache
def imports_of(module: str) -> tuple[str, tuple[str, ...]]:
    """(digest of a module's source, the modules of this package that it imports)."""
    path = module_path(module)
    if path is None or module == "dynjit":
        return "", ()
    source = path.read_text(encoding="utf-8")
    names: list[str] = []
    for parent, parts, whole in IMPORT.findall(source):
        names += [whole] if whole else [parent, *(f"{parent}.{part}" for part in re.findall(r"\w+", parts))]
    return hashlib.sha256(source.encode()).hexdigest(), tuple(names)


def read_sources() -> None:
    """Takes the digests of all loaded modules, so that a source edited later does not pass for what is running."""
    for name in list(sys.modules):
        if name.startswith("dynjit."):
            imports_of(name)


@functools.cache
def closure_of(module: str) -> tuple[str, ...]:
    """A module and all modules of this package that it imports, directly or not."""
    found, todo = {module}, [module]
    while todo:
        for name in imports_of(todo.pop())[1]:
            if name not in found and imports_of(name)[0]:
                found.add(name)
                todo.append(name)
    return tuple(sorted(found))


@functools.cache
def source_stamp(module: str) -> str:
    """Digest of a module's source and of the sources of all modules of this package that it imports."""
    digest = hashlib.sha256(f"{numba.__version__}/{llvmlite.__version__}".encode())
    for name in closure_of(module):
        digest.update(f"{name} {imports_of(name)[0]}".encode())
    return digest.hexdigest()


@functools.cache
def cache_folder() -> Path | None:
    """The first candidate in which files can be made; None: compile without a cache, and say so."""
    for folder in settings.cache_candidates():
        if settings.usable(folder):
            return folder
    say("no cache folder can be written: kernels are compiled anew in every process (set DYNJIT_CACHE_DIR)")
    return None


@functools.cache
def say(message: str) -> None:
    """Writes a message to stderr, once a process."""
    if not settings.QUIET:
        print(f"dynjit: {message}", file=sys.stderr)


DIGEST = hashlib.sha256().digest_size  # bytes in front of a cached function, by which damage is seen


class KernelCache(_Cache):
    """Numba's cache interface over one file per key."""

    def __init__(self, function: Callable, modules: tuple[str, ...]) -> None:
        self.function, self.modules = function, modules
        self.was_hit = False

    @property
    def cache_path(self) -> str:
        return str(cache_folder())

    def enable(self) -> None:
        pass

    def disable(self) -> None:
        pass

    def flush(self) -> None:
        pass

    def path(self, signature: object, codegen: Any) -> Path | None:
        """The file of a signature."""
        folder = cache_folder()
        if folder is None:
            return None
        code = self.function.__code__
        name = f"{self.modules[0]}.{self.function.__qualname__}"
        stamps = [source_stamp(module) for module in self.modules]
        key = hashlib.sha256(repr((name, str(signature), codegen.magic_tuple(), stamps)).encode())
        constants = [constant for constant in code.co_consts if not hasattr(constant, "co_code")]
        key.update(repr((code.co_code, code.co_names, constants)).encode())
        return folder / key.hexdigest()[:2] / f"{self.function.__name__}-{key.hexdigest()[:32]}"

    def load_overload(self, signature: object, target_context: Any) -> Any:
        target_context.refresh()
        path = self.path(signature, target_context.codegen())
        if path is None:
            return None
        try:
            data = path.read_bytes()
        except OSError:
            data = b""
        if hashlib.sha256(data[DIGEST:]).digest() != data[:DIGEST]:  # not there, or damaged
            say("compiling kernels that the cache does not hold; `dynjit warmup` compiles them ahead")
            return None
        self.was_hit = True
        return compiler.CompileResult._rebuild(target_context, *pickle.loads(data[DIGEST:]))

    def save_overload(self, signature: object, result: Any) -> None:
        path = self.path(signature, result.library.codegen)
        if path is None or result.library.has_dynamic_globals:
            return
        payload = dumps(result._reduce())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                try:
                    file.write(hashlib.sha256(payload).digest() + payload)
                    file.close()
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError:
            say("the cache folder cannot be written: compiled kernels are lost at exit")


@contextmanager
def no_collection() -> Iterator[None]:
    """While code is compiled: that makes many objects, hardly any of them garbage, and to look for it takes a tenth."""
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_on:
            gc.enable()


class Compiled:
    """A C function compiled from Python when its address is first asked for."""

    def __init__(self, function: Callable, signature: Any, *modules: str) -> None:
        """modules: whose sources (with all that they import) the code is made from."""
        self.function, self.signature, self.modules = function, signature, modules
        self.cache = KernelCache(function, modules)
        self.cfunc: CFunc | None = None

    @property
    def address(self) -> int:
        for module in self.modules if self.cfunc is None else ():
            link_externals(module)
        return self.compiled().address  # type: ignore[return-value]

    def compiled(self) -> CFunc:
        """The function, for callers that have linked what it calls."""
        if self.cfunc is None:
            options = {key: value for key, value in OPTIONS.items() if key not in ("nogil", "no_cpython_wrapper")}
            cfunc = CFunc(self.function, sigutils.normalize_signature(self.signature), {}, options)
            cfunc._cache = self.cache  # type: ignore[attr-defined]
            with no_collection():
                cfunc.compile()
            self.cfunc = cfunc
        return self.cfunc

    def prepare(self) -> None:
        """Compiles it, if the cache does not hold it."""
        assert self.address

    @functools.cached_property
    def call(self) -> Callable:
        """The function for callers in Python; numbers only."""
        assert self.address
        return self.compiled().ctypes

    def run(self, *numbers: Any) -> Any:
        """Calls the function."""
        return self.call(*numbers)

    def is_cached(self) -> bool:
        """Whether the cache folder holds the code; compiles nothing."""
        from numba.core.registry import cpu_target

        arguments, result = sigutils.normalize_signature(self.signature)
        path = self.cache.path(result(*arguments), cpu_target.target_context.codegen())
        return path is not None and path.exists()


entries: list[Compiled] = []  # all compiled functions that are no operator's kernel; for warm-up


def entry(signature: str) -> Callable[[Callable], Compiled]:
    """A function compiled to C and called from Python by `.call`, or by its `.address`."""
    return lambda function: add_entry(function, signature)


def add_entry(function: Callable, signature: str) -> Compiled:
    """As `entry`, for a function made by another."""
    made = Compiled(function, signature, function.__module__)
    entries.append(made)
    return made


externals: dict[str, list[Compiled]] = {}  # by module, in the order in which they call each other
linked: set[str] = set()  # modules whose externals compiled code can find


def external(signature: str) -> Callable[[Callable], Any]:
    """A function compiled once, by itself, which other compiled code calls through its symbol.

    Unlike a helper it is not made a part of its callers; callers find it through the modules that they import.
    """

    def decorate(function: Callable) -> Any:
        unit = add_entry(function, signature)
        externals.setdefault(function.__module__, []).append(unit)
        arguments, result = sigutils.normalize_signature(signature)
        made = types.ExternalFunction(symbol_of(function), result(*arguments))
        made.call = unit.run  # for callers in Python
        return made

    return decorate


def symbol_of(function: Callable) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def address_of(function: Any) -> Any:
    """A function of compiled code that gives the address of an external function."""

    @intrinsic
    def address(typing):  # type: ignore[no-untyped-def]
        def codegen(target, builder, signature, args):  # type: ignore[no-untyped-def]
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * len(function.sig.args))
            made = cgutils.get_or_insert_function(builder.module, kind, function.symbol)
            return builder.ptrtoint(made, ir.IntType(64))

        return types.int64(), codegen

    return address


def link_externals(module: str) -> None:
    """Makes the external functions of a module, and of those that it imports, known to compiled code."""
    if module in linked:
        return
    linked.add(module)
    for name in imports_of(module)[1]:
        link_externals(name)
    for unit in externals.get(module, ()):
        add_symbol(symbol_of(unit.function), unit.compiled().address)  # type: ignore[arg-type]


# ---- addresses inside compiled code ----------------------------------------------------------------------------------


@intrinsic
def call_kernel(typing, address, context, index):  # type: ignore[no-untyped-def]
    """Calls the kernel `void(int64, int64)` at an address."""

    def codegen(target, builder, signature, args):  # type: ignore[no-untyped-def]
        i64 = ir.IntType(64)
        function = builder.inttoptr(args[0], ir.FunctionType(ir.VoidType(), [i64, i64]).as_pointer())
        builder.call(function, [args[1], args[2]])
        return target.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def prefetch(typing, address):  # type: ignore[no-untyped-def]
    """Asks for the cache line at an address, which is needed soon."""

    def codegen(target, builder, signature, args):  # type: ignore[no-untyped-def]
        i32, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [builder.inttoptr(args[0], pointer), i32(0), i32(3), i32(1)])
        return target.get_dummy_value()

    return types.void(types.int64), codegen


def add_symbol(name: str, address: int) -> None:
    """Makes an address known to compiled code under a name, which (unlike the address) the cache may hold."""
    binding.add_symbol(name, address)


def python_symbol(name: str) -> None:
    """Makes a function of CPython's C interface known to compiled code."""
    add_symbol(name, ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0)


def scalar(function: Callable) -> Callable:
    """A function of numbers that becomes a part of the loops of kernels, on the CPU and on CUDA."""
    return register_jitable(error_model="numpy", fastmath=OPTIONS["fastmath"], forceinline=True)(function)


def scalar_of_all(function: Callable, *names: str) -> Callable:
    """The scalar function of all the names, of one that takes some of them."""
    own = ", ".join(inspect.signature(function).parameters)
    return scalar(eval(f"lambda {', '.join(names)}: function({own})", {"function": scalar(function)}))


# ---- denormal numbers ------------------------------------------------------------------------------------------------

binding.initialize_native_asmparser()
FLUSH_X86 = 0x8040  # MXCSR: flush results to zero, read operands as zero
FLUSH_ARM = 1 << 24  # FPCR: flush to zero


@intrinsic
def floating_point_mode(typing):  # type: ignore[no-untyped-def]
    """The thread's control word of floating-point arithmetic; 0 on processors that we do not know."""

    def codegen(target, builder, signature, args):  # type: ignore[no-untyped-def]
        i32, i64 = ir.IntType(32), ir.IntType(64)
        machine = platform.machine().lower()
        if machine in ("x86_64", "amd64"):
            place = cgutils.alloca_once(builder, i32)
            kind = ir.FunctionType(ir.VoidType(), [place.type])
            builder.asm(kind, "stmxcsr ($0)", "r,~{memory}", [place], side_effect=True)
            return builder.zext(builder.load(place), i64)
        if machine in ("aarch64", "arm64"):
            return builder.asm(ir.FunctionType(i64, []), "mrs $0, fpcr", "=r", [], side_effect=True)
        return i64(0)

    return types.int64(), codegen


@intrinsic
def set_floating_point_mode(typing, mode):  # type: ignore[no-untyped-def]
    """Sets the thread's control word of floating-point arithmetic."""

    def codegen(target, builder, signature, args):  # type: ignore[no-untyped-def]
        i32, i64 = ir.IntType(32), ir.IntType(64)
        machine = platform.machine().lower()
        if machine in ("x86_64", "amd64"):
            place = cgutils.alloca_once(builder, i32)
            builder.store(builder.trunc(args[0], i32), place)
            kind = ir.FunctionType(ir.VoidType(), [place.type])
            builder.asm(kind, "ldmxcsr ($0)", "r,~{memory}", [place], side_effect=True)
        elif machine in ("aarch64", "arm64"):
            builder.asm(ir.FunctionType(ir.VoidType(), [i64]), "msr fpcr, $0", "r", args, side_effect=True)
        return target.get_dummy_value()

    return types.void(types.int64), codegen


@helper
def flush_denormals():  # type: ignore[no-untyped-def]
    """Lets arithmetic treat denormal numbers as zero (they cost a hundred times more); returns the mode before."""
    before = floating_point_mode()
    set_floating_point_mode(before | FLUSH)
    return before


FLUSH = FLUSH_X86 if platform.machine().lower() in ("x86_64", "amd64") else FLUSH_ARM
