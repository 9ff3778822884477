"""Threads that share the parts of a large piece of work.

`share(function, context, first, parts, work)` runs the compiled function(context, first + part) for each part: the
calling thread takes parts one after the other, and so do the workers that are awake.  A worker that the system does not
run takes none, so that nothing waits for it.  Workers look for work for a fraction of a millisecond, then sleep in
`read` of a pipe.  To wake them costs as much as some work, and they come later than a short piece takes: they are left
asleep until that much work has been done without them.  One piece of work is shared at a time: other callers, and parts
that share something themselves, run theirs alone.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import platform
import sys
import threading
from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from dynjit import settings
from dynjit.errors import located
from dynjit.jit import add_symbol, call_kernel, entry, external, flush_denormals, helper

I64 = ir.IntType(64)
# places in the pool, by cache lines: what is written often lies apart
TICKET, DONE, FUNCTION, CONTEXT, FIRST, ASLEEP, BUSY, MISSED, STOP = 0, 8, 16, 17, 18, 24, 32, 33, 40
COUNT, SLEEP, WAKE, LARGE, WAKING, WIDE, READ_TO = 41, 42, 43, 44, 45, 46, 48
MOST = 64  # threads, and parts of a piece of work
SPINS = 1 << 13  # looks for work before a worker sleeps: a few tenths of a millisecond
PATIENCE = 1 << 10  # looks for the end of others' parts before the processor is offered to other threads

pool = np.zeros(64, np.int64)
pool[COUNT], pool[LARGE], pool[WAKING], pool[WIDE] = 1, 1 << 14, 50_000, 12
add_symbol("dynjit_pool", pool.ctypes.data)
workers: list[threading.Thread] = []
wanted = 0  # threads that set_threads asked for; 0: as DYNJIT_THREADS says
is_started = False  # whether there is something to compute
needed: list[Callable[[], None]] = []  # they prepare what parts call; a worker cannot run Python while its caller waits

LIBRARY = ctypes.CDLL(None) if sys.platform != "win32" else ctypes.CDLL("ucrtbase")
READ, WRITE = ("_read", "_write") if sys.platform == "win32" else ("read", "write")
for symbol, function in (("dynjit_read", READ), ("dynjit_write", WRITE)):
    add_symbol(symbol, ctypes.cast(getattr(LIBRARY, function), ctypes.c_void_p).value or 0)
YIELD = LIBRARY.sched_yield if sys.platform != "win32" else ctypes.WinDLL("kernel32").SwitchToThread  # type: ignore[attr-defined,unused-ignore]
add_symbol("dynjit_yield", ctypes.cast(YIELD, ctypes.c_void_p).value or 0)


# ---- what compiled code needs of the machine -------------------------------------------------------------------------


@intrinsic
def place(typing, number):  # type: ignore[no-untyped-def]
    """The address of a place in the pool."""

    def codegen(target, builder, signature, args):  # type: ignore[no-untyped-def]
        known = builder.module.globals.get("dynjit_pool") or ir.GlobalVariable(builder.module, I64, "dynjit_pool")
        return builder.ptrtoint(builder.gep(known, [args[0]]), I64)

    return types.int64(types.int64), codegen


@intrinsic
def load(typing, address):  # type: ignore[no-untyped-def]
    """The number at an address, as all threads see it."""

    def codegen(target, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.load_atomic(builder.inttoptr(args[0], I64.as_pointer()), "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def store(typing, address, number):  # type: ignore[no-untyped-def]
    """Writes a number for all threads to see."""

    def codegen(target, builder, signature, args):  # type: ignore[no-untyped-def]
        builder.store_atomic(args[1], builder.inttoptr(args[0], I64.as_pointer()), "seq_cst", 8)
        return target.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def add(typing, address, number):  # type: ignore[no-untyped-def]
    """Adds to the number at an address; returns what it was."""

    def codegen(target, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.atomic_rmw("add", builder.inttoptr(args[0], I64.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def swap(typing, address, expected, number):  # type: ignore[no-untyped-def]
    """Writes a number if the one at the address is as expected; says whether it was."""

    def codegen(target, builder, signature, args):  # type: ignore[no-untyped-def]
        where = builder.inttoptr(args[0], I64.as_pointer())
        return builder.extract_value(builder.cmpxchg(where, args[1], args[2], "seq_cst", "seq_cst"), 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def pause(typing):  # type: ignore[no-untyped-def]
    """Tells the processor that the thread waits in a loop."""

    def codegen(target, builder, signature, args):  # type: ignore[no-untyped-def]
        machine = platform.machine().lower()
        known = {"x86_64": "pause", "amd64": "pause", "aarch64": "yield", "arm64": "yield"}
        if machine in known:
            builder.asm(ir.FunctionType(ir.VoidType(), []), known[machine], "~{memory}", [], side_effect=True)
        return target.get_dummy_value()

    return types.void(), codegen


def system_call(name: str, count: int):  # type: ignore[no-untyped-def]
    """An intrinsic that calls a C function of `count` int64 numbers."""

    def call(typing, numbers):  # type: ignore[no-untyped-def]
        def codegen(target, builder, signature, args):  # type: ignore[no-untyped-def]
            kind = ir.FunctionType(I64, [I64] * count)
            function = cgutils.get_or_insert_function(builder.module, kind, name)
            return builder.call(function, cgutils.unpack_tuple(builder, args[0], count))

        return types.int64(types.UniTuple(types.int64, count)), codegen

    return intrinsic(call)


read, write = system_call("dynjit_read", 3), system_call("dynjit_write", 3)


@intrinsic
def offer(typing):  # type: ignore[no-untyped-def]
    """Offers the processor to other threads."""

    def codegen(target, builder, signature, args):  # type: ignore[no-untyped-def]
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.IntType(32), []), "dynjit_yield")
        builder.call(function, [])
        return target.get_dummy_value()

    return types.void(), codegen


# ---- sharing ---------------------------------------------------------------------------------------------------------
# The ticket holds the number of the piece of work, of its parts (16 bits) and of the next part that nobody has taken
# (16 bits), so that one exchange takes a part of just that work.


@helper
def take_part():  # type: ignore[no-untyped-def]
    """Runs a part, if one is left; says whether it may be worth to look for another."""
    ticket = load(place(TICKET))
    if ticket & 0xFFFF >= (ticket >> 16) & 0xFFFF:
        return False
    if swap(place(TICKET), ticket, ticket + 1):  # the work cannot end before this part has
        call_kernel(load(place(FUNCTION)), load(place(CONTEXT)), load(place(FIRST)) + (ticket & 0xFFFF))
        add(place(DONE), 1)
    return True


@helper
def thread_count():  # type: ignore[no-untyped-def]
    """How many threads share work."""
    return load(place(COUNT))


@helper
def large():  # type: ignore[no-untyped-def]
    """How many numbers a kernel makes or reads before its call is shared: a few microseconds' worth."""
    return load(place(LARGE))


@helper
def waking():  # type: ignore[no-untyped-def]
    """How many nanoseconds of work it costs to wake workers, all in all."""
    return load(place(WAKING))


@helper
def wide():  # type: ignore[no-untyped-def]
    """How many nodes on each level of a graph a thread needs, lest parts of the graph lose more by smaller groups."""
    return load(place(WIDE))


@helper
def is_alone(work):  # type: ignore[no-untyped-def]
    """Whether a thread is to do a piece of work of some nanoseconds alone, since all others sleep and may go on so."""
    if thread_count() == 1:
        return True
    if load(place(ASLEEP)) < thread_count() - 1:
        return False
    missed = load(place(MISSED)) + work
    is_little = missed < waking()
    store(place(MISSED), missed if is_little else 0)
    return is_little


@helper
def wake():  # type: ignore[no-untyped-def]
    """Wakes the workers that sleep."""
    asleep = load(place(ASLEEP))
    if asleep > 0 and swap(place(ASLEEP), asleep, 0):
        write((load(place(WAKE)), place(0), 8 * asleep))  # what is written does not matter


@external("void(int64, int64, int64, int64, int64)")
def share(function, context, first, parts, work):  # type: ignore[no-untyped-def]
    """Runs function(context, first + part) for each part; returns when all have ended.

    work: how many nanoseconds, roughly, one thread takes.
    """
    if parts == 1 or is_alone(work) or not swap(place(BUSY), 0, 1):
        for part in range(parts):
            call_kernel(function, context, first + part)
        return
    store(place(FUNCTION), function)
    store(place(CONTEXT), context)
    store(place(FIRST), first)
    store(place(DONE), 0)
    store(place(TICKET), (((load(place(TICKET)) >> 32) + 1) << 32) | (parts << 16))
    wake()
    while take_part():
        pass
    looks = 0
    while load(place(DONE)) < parts:
        looks += 1
        if looks > PATIENCE:
            offer()
        else:
            pause()
    store(place(BUSY), 0)


@entry("void(int64, int64, int64, int64)")
def run(function, context, parts, work):  # type: ignore[no-untyped-def]
    """As `share`, for callers in Python."""
    share(function, context, 0, parts, work)


@entry("int64(int64)")
def work(unused):  # type: ignore[no-untyped-def]
    """A worker's life."""
    flush_denormals()
    looks = 0
    while load(place(STOP)) == 0:
        if take_part():
            looks = 0
            continue
        looks += 1
        if looks < SPINS:
            pause()
            continue
        looks = 0
        add(place(ASLEEP), 1)
        read((load(place(SLEEP)), place(READ_TO), 8))
    return 0


# ---- Python's side ---------------------------------------------------------------------------------------------------


def threads() -> int:
    """How many threads compute."""
    return wanted or settings.threads()


def set_threads(count: int) -> None:
    """Sets how many threads compute: 1 for the calling one alone.  DYNJIT_THREADS gives the number at the start, else
    all processors that the process may use.

    Results do not depend on the number but for rounding, and are the same from run to run for one number.
    Raises ValueError unless 1 <= count <= 64.
    """
    global wanted
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or not 1 <= count <= MOST:
        raise ValueError(located(f"set_threads: needs a number from 1 to {MOST}, got {count!r}"))
    wanted = int(count)
    if is_started:
        stop()
        start()


def start() -> None:
    """Starts the workers, if they are wanted and not there yet."""
    global is_started
    is_started = True
    if workers or threads() == 1:
        return
    for prepare in needed:
        prepare()
    life = work.call  # compiled here, not in each of them
    pool[SLEEP], pool[WAKE] = os.pipe()
    pool[STOP] = pool[ASLEEP] = pool[BUSY] = pool[MISSED] = 0
    for _ in range(threads() - 1):
        workers.append(threading.Thread(target=life, args=(0,), name="dynjit", daemon=True))
        workers[-1].start()
    pool[COUNT] = threads()


@atexit.register
def stop() -> None:
    """Ends the workers."""
    pool[COUNT], pool[STOP] = 1, 1
    if workers:
        os.write(int(pool[WAKE]), bytes(8 * len(workers)))
    for worker in workers:
        worker.join()
    if workers:
        os.close(int(pool[SLEEP]))
        os.close(int(pool[WAKE]))
    workers.clear()


def forget() -> None:
    """After a fork: the workers are the parent's."""
    workers.clear()
    pool[COUNT], pool[BUSY] = 1, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)
