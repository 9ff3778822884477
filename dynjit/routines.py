"""Routines: functions compiled when first called, which all other compiled code calls through a slot in memory."""

import _thread
import ctypes
import functools
import os
import traceback

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from dynjit.jit import add_symbol, entry
from dynjit.threads import MOST, needed, share, thread_count
from dynjit.vectors import I64

OPTIONS = {"error_model": "numpy"}
PER_NANOSECOND = 40  # multiplications


class Routine:
    """A product as a compiled function, which other compiled code calls through a slot of memory known by name.

    Its arguments are the address of `count` int64 numbers, since more than six would not fit in registers, and -1; or
    the address of many such blocks, and which one it is to take.  The last numbers are m, n, k and beta.
    The slot first holds a Python function, which compiles the routine (or loads it from the cache) into the slot.
    """

    prototype = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)

    def __init__(self, make, divide, real, count):
        self.make, self.divide, self.real, self.count = make, divide, real, count
        self.name = f"dynjit_{make.__name__}_{real}"
        self.resolver = self.prototype(self.first_call)
        self.slot = ctypes.c_int64(ctypes.cast(self.resolver, ctypes.c_void_p).value or 0)
        add_symbol(self.name, ctypes.addressof(self.slot))
        if real == types.float32:  # parts of a graph are of float32
            needed.append(self.prepare)

    @functools.cached_property
    def compiled(self):
        run, unpack = register_jitable(**OPTIONS)(self.make(self.real)), unpack_numbers(self.count)
        divide, own_address = register_jitable(**OPTIONS)(self.divide(self.real)), address_in(self.name)
        space, count = scratch(I64, MOST * self.count), self.count

        def routine(address, part):
            if part >= 0:
                run(*unpack(address + 8 * count * part))
                return
            numbers = unpack(address)
            parts, blocks = 1, space()
            if thread_count() > 1:
                parts = divide(blocks, thread_count(), *numbers)
            if parts == 1:
                run(*numbers)
            else:
                m, n, k = numbers[-4:-1]
                share(own_address(), blocks, 0, parts, m * n * k // PER_NANOSECOND)

        routine.__module__, routine.__qualname__ = self.make.__module__, self.name  # keys of the cache
        return entry("void(int64, int64)")(routine)

    def prepare(self):
        self.slot.value = self.compiled.address

    def first_call(self, address, part):
        try:
            self.prepare()
        except KeyboardInterrupt:  # the caller is no Python code: it can be interrupted, but not raise
            _thread.interrupt_main()
            self.prepare()
        except BaseException:
            traceback.print_exc()
            os.abort()  # to return would leave the product undefined, with no error
        self.prototype(self.slot.value)(address, part)


def address_in(name):
    """An intrinsic that gives the address of the routine in a slot."""

    @intrinsic
    def address(typingctx):
        def codegen(context, builder, signature, args):
            return builder.load(slot_of(builder, name))

        return types.int64(), codegen

    return address


@intrinsic
def write_block(typingctx, address, numbers):
    """Writes int64 numbers to an address."""

    def codegen(context, builder, signature, args):
        first = builder.inttoptr(args[0], I64.as_pointer())
        for i, number in enumerate(cgutils.unpack_tuple(builder, args[1])):
            builder.store(number, builder.gep(first, [I64(i)]))
        return context.get_dummy_value()

    return types.void(address, numbers), codegen


def unpack_numbers(count):
    """An intrinsic that reads int64 numbers from an address."""

    @intrinsic
    def unpack(typingctx, address):
        kind = types.UniTuple(types.int64, count)

        def codegen(context, builder, signature, args):
            first = builder.inttoptr(args[0], I64.as_pointer())
            numbers = [builder.load(builder.gep(first, [I64(i)])) for i in range(count)]
            return context.make_tuple(builder, kind, numbers)

        return kind(types.int64), codegen

    return unpack


def stack(builder, kind):
    """The address of memory on the stack, not set to 0 as that of cgutils.alloca_once."""
    with builder.goto_entry_block():
        block = builder.alloca(kind)
    block.align = 64
    return block


def slot_of(builder, name):
    """The slot of a routine as an LLVM value."""
    return builder.module.globals.get(name) or ir.GlobalVariable(builder.module, I64, name)


def write_call(builder, slot, numbers):
    """Writes the call of the routine in a slot."""
    block = stack(builder, ir.ArrayType(I64, len(numbers)))
    for i, number in enumerate(numbers):
        builder.store(number, builder.gep(block, [I64(0), I64(i)]))
    kind = ir.FunctionType(ir.VoidType(), [I64, I64])
    builder.call(builder.inttoptr(builder.load(slot), kind.as_pointer()), [builder.ptrtoint(block, I64), I64(-1)])


def scratch(element, count):
    """An intrinsic that gives the address of `count` numbers on the stack."""

    @intrinsic
    def space(typingctx):
        def codegen(context, builder, signature, args):
            return builder.ptrtoint(stack(builder, ir.ArrayType(element, count)), I64)

        return types.int64(), codegen

    return space
