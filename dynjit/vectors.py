"""Instructions on vector registers, written in LLVM's language: compilers share out registers less well."""

import functools

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
LINE = 64  # bytes of a cache line


@functools.cache
def target():
    """(bytes of a vector register, number of them, whether loads and stores take masks) of the machine compiled for."""
    triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    if "+avx512f" in features or name == "x86-64-v4":
        return 64, 32, True
    if "+avx2" in features or name == "x86-64-v3":
        return 32, 16, True
    return 16, 32 if triple.startswith(("aarch64", "arm64")) else 16, False


def element_of(real):
    """LLVM's type of a real number, and its bytes."""
    return (ir.FloatType(), 4) if real == types.float32 else (ir.DoubleType(), 8)


class Vectors:
    """Writes LLVM instructions on vectors of `lanes` numbers, of which memory holds the first `count` (None: all)."""

    def __init__(self, builder, element, lanes, count=None):
        self.builder, self.lanes, self.count = builder, lanes, count
        self.kind = ir.VectorType(element, lanes)
        self.zero = ir.Constant(self.kind, [0.0] * lanes)
        is_single = isinstance(element, ir.FloatType)
        self.suffix, self.element_bytes = f"v{lanes}{'f32' if is_single else 'f64'}", 4 if is_single else 8
        self.nbytes = lanes * self.element_bytes
        if count is not None:
            self.mask = builder.icmp_signed("<", self.constant(I64, range(lanes)), self.splat(count))

    def constant(self, element, numbers):
        numbers = list(numbers)
        return ir.Constant(ir.VectorType(element, len(numbers)), numbers)

    def intrinsic(self, name, result, arguments):
        kind = ir.FunctionType(result, [x.type for x in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def shuffle(self, x, y, lanes):
        return self.builder.shuffle_vector(x, y, self.constant(I32, lanes))

    def splat(self, number):
        undefined = ir.Constant(ir.VectorType(number.type, self.lanes), ir.Undefined)
        return self.shuffle(self.builder.insert_element(undefined, number, I32(0)), undefined, [0] * self.lanes)

    def multiply_add(self, x, y, z):
        return self.intrinsic(f"llvm.fmuladd.{self.suffix}", self.kind, [x, y, z])

    def prefetch(self, address, count=1):
        """Asks for the cache lines of `count` vectors at an address, which may lie outside of what can be read."""
        for offset in range(0, count * self.nbytes, LINE):
            line = self.builder.gep(address, [I64(offset // self.element_bytes)])
            line = self.builder.bitcast(line, I8.as_pointer())
            self.intrinsic("llvm.prefetch.p0", ir.VoidType(), [line, I32(0), I32(3), I32(1)])

    def load(self, address):
        vector = self.builder.bitcast(address, self.kind.as_pointer())
        if self.count is None:
            return self.builder.load(vector, align=self.element_bytes)
        if target()[2]:
            arguments = [vector, I32(self.element_bytes), self.mask, self.zero]
            return self.intrinsic(f"llvm.masked.load.{self.suffix}.p0", self.kind, arguments)
        value, last = self.zero, self.builder.sub(self.count, I64(1))
        for i in range(self.lanes):
            here = self.builder.select(self.builder.icmp_signed("<", I64(i), self.count), I64(i), last)
            value = self.builder.insert_element(value, self.builder.load(self.builder.gep(address, [here])), I32(i))
        return self.builder.select(self.mask, value, self.zero)

    def store(self, value, address):
        vector = self.builder.bitcast(address, self.kind.as_pointer())
        if self.count is None:
            self.builder.store(value, vector, align=self.element_bytes)
        else:
            arguments = [value, vector, I32(self.element_bytes), self.mask]
            self.intrinsic(f"llvm.masked.store.{self.suffix}.p0", ir.VoidType(), arguments)

    def interleave(self, x, y, width):
        """Of blocks of `width` lanes: x0 y0 x2 y2 ... and x1 y1 x3 y3 ..."""
        is_even = [i // width % 2 == 0 for i in range(self.lanes)]
        even = [i if is_even[i] else self.lanes + i - width for i in range(self.lanes)]
        odd = [i + width if is_even[i] else self.lanes + i for i in range(self.lanes)]
        return self.shuffle(x, y, even), self.shuffle(x, y, odd)


def loop(builder, count, state, body):
    """for i in range(count): state = body(i, state).  Returns the last state."""
    entry, head, inside, done = builder.block, *(builder.append_basic_block() for _ in range(3))
    builder.branch(head)
    builder.position_at_end(head)
    i, *now = (builder.phi(x.type) for x in (I64(0), *state))
    for phi, x in zip((i, *now), (I64(0), *state), strict=True):
        phi.add_incoming(x, entry)
    builder.cbranch(builder.icmp_signed("<", i, count), inside, done)
    builder.position_at_end(inside)
    after = builder.add(i, I64(1)), *body(i, now)
    for phi, x in zip((i, *now), after, strict=True):
        phi.add_incoming(x, builder.block)
    builder.branch(head)
    builder.position_at_end(done)
    return now


def opaque(builder, number):
    """The number, hidden from the optimizer, which would turn several addresses into a slow chain of additions."""
    return builder.asm(ir.FunctionType(number.type, [number.type]), "", "=r,0", [number], side_effect=False)


def by_shape(label, shapes, count, write):
    """An intrinsic f(rows, columns, numbers) that runs the code that `write` makes for one of some shapes of tiles."""

    def function_of(module, rows, columns):
        name = f"{label}.{rows}x{columns}"
        if name in module.globals:
            return module.globals[name]
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * count), name)
        function.linkage = "internal"
        # inlined, the constants of all shapes would be computed ahead; unrolled further, nothing would be faster
        function.attributes.update(("noinline", "optsize"))
        builder = ir.IRBuilder(function.append_basic_block())
        write(builder, rows, columns, *function.args)
        builder.ret_void()
        return function

    @intrinsic
    def tile(typingctx, rows, columns, numbers):
        signature = types.void(types.int64, types.int64, types.UniTuple(types.int64, count))

        def codegen(context, builder, signature, args):
            numbers = cgutils.unpack_tuple(builder, args[2], count)
            done = builder.append_basic_block()
            switch = builder.switch(builder.add(builder.shl(args[0], I64(8)), args[1]), done)
            for shape in shapes:
                with builder.goto_block(builder.append_basic_block()):
                    switch.add_case(I64(256 * shape[0] + shape[1]), builder.block)
                    builder.call(function_of(builder.module, *shape), numbers)
                    builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return signature, codegen

    return tile
