"""Matrix products for kernels, on windows: one-dimensional contiguous arrays that hold column-major matrices.

In a compiled function, with `beta` 0 (C is only written) or 1 (the product is added to C):

    gemm_nn(a, b, c, m, n, k, beta)    C (m, n) = beta C + A (m, k) B (k, n)       Y = W X
    gemm_tn(a, b, c, m, n, k, beta)    C (m, n) = beta C + A' B,  A (k, m)         dX += W' dY
    gemm_nt(a, b, c, m, n, k, beta)    C (m, n) = beta C + A B',  B (n, k)         dW += dY X'

Windows are all float32 or all float64; they must not overlap.  The work is done by routines that are compiled once per
type and shared by all callers: `columns` adds up columns of A times numbers of B, `dots` makes dot products.  They
divide a large product among threads.  A tile of C stays in vector registers throughout; its loop is written here in
LLVM's language, since compilers share out registers less well.  Dynamic networks multiply by few columns, for which a
BLAS that first copies its matrices is slow.
"""

import _thread
import ctypes
import functools
import os
import traceback

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, register_jitable

from dynjit.jit import add_symbol, entry
from dynjit.threads import MOST, share, thread_count

I32, I64 = ir.IntType(32), ir.IntType(64)
OPTIONS = {"error_model": "numpy"}
# bytes of A, in whole rows, that meet all columns of B before the next: a part of the level 2 cache
CHUNK = 256 * 1024
# A with more than 64 columns, if B has 128 or more, is copied a few rows by 128 columns at a time: columns that are a
# multiple of 4 KiB apart would evict each other from the level 1 cache
PACKED_DEEP, PACKED_WIDE, PACKED_DEPTH = 64, 128, 128
# rows that a dot product adds up at a time: ten columns of them fit in the level 1 cache
DEPTH = 512
# A' B for many columns is made of A transposed, so many of its rows at a time.  Costs, in tenths of a multiplication of
# vectors: to turn a vector of A; to add up the lanes of a dot product
TURNED_DEPTH, TURNING, SUMMING = 64, 65, 16
# a product of so many multiplications (a few microseconds) is divided among threads, into so many columns or rows each
LARGE, COLUMNS, ROWS = 400_000, 6, 16


# ---- vector instructions ---------------------------------------------------------------------------------------------


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
        self.suffix, self.nbytes = f"v{lanes}{'f32' if is_single else 'f64'}", 4 if is_single else 8
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

    def load(self, address):
        vector = self.builder.bitcast(address, self.kind.as_pointer())
        if self.count is None:
            return self.builder.load(vector, align=self.nbytes)
        if target()[2]:
            arguments = [vector, I32(self.nbytes), self.mask, self.zero]
            return self.intrinsic(f"llvm.masked.load.{self.suffix}.p0", self.kind, arguments)
        value, last = self.zero, self.builder.sub(self.count, I64(1))
        for i in range(self.lanes):
            here = self.builder.select(self.builder.icmp_signed("<", I64(i), self.count), I64(i), last)
            value = self.builder.insert_element(value, self.builder.load(self.builder.gep(address, [here])), I32(i))
        return self.builder.select(self.mask, value, self.zero)

    def store(self, value, address):
        vector = self.builder.bitcast(address, self.kind.as_pointer())
        if self.count is None:
            self.builder.store(value, vector, align=self.nbytes)
        else:
            arguments = [value, vector, I32(self.nbytes), self.mask]
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


def write_tile(builder, beta, tile):
    """Stores, or with beta adds, the sums of a tile: a list of (vectors, address, sum)."""
    with builder.if_else(builder.icmp_signed("==", beta, I64(0))) as (write, add):
        with write:
            for vectors, address, total in tile:
                vectors.store(total, address)
        with add:
            before = [vectors.load(address) for vectors, address, _ in tile]
            for (vectors, address, total), x in zip(tile, before, strict=True):
                vectors.store(builder.fadd(total, x), address)


def unrolled(chains):
    """How many steps of depth to sum apart: an addition takes 4 cycles, and two can start in each."""
    return 8 if chains == 1 else 4 if chains < 4 else 2 if chains < 8 else 1


def added(builder, totals, chains):
    """The sums of the unrolled steps' totals."""
    while len(totals) > chains:
        half = len(totals) // 2
        totals = [builder.fadd(x, y) for x, y in zip(totals[:half], totals[half:], strict=True)]
    return totals


def tiles(label, shapes, count, write):
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


# ---- routines: compiled when first called ----------------------------------------------------------------------------


class Routine:
    """A compiled function, which other compiled code calls through a slot of memory known by name.

    Its arguments are the address of `count` int64 numbers, since more than six would not fit in registers, and -1; or
    the address of many such blocks, and which one it is to take.
    The slot first holds a Python function, which compiles the routine (or loads it from the cache) into the slot.
    """

    prototype = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)

    def __init__(self, make, divide, real, count):
        self.make, self.divide, self.real, self.count = make, divide, real, count
        self.name = f"dynjit_{make.__name__}_{real}"
        self.resolver = self.prototype(self.first_call)
        self.slot = ctypes.c_int64(ctypes.cast(self.resolver, ctypes.c_void_p).value or 0)
        add_symbol(self.name, ctypes.addressof(self.slot))

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
                share(own_address(), blocks, 0, parts)

        routine.__qualname__ = self.name  # a key of the cache; the closure is none
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


def copy_vector(element, lanes):
    """An intrinsic that copies the first `count` of some numbers from one address to another."""

    @intrinsic
    def copy(typingctx, to, source, count):
        def codegen(context, builder, signature, args):
            to, source = (builder.inttoptr(x, element.as_pointer()) for x in args[:2])
            vectors = Vectors(builder, element, lanes, args[2] if lanes > 1 else None)
            vectors.store(vectors.load(source), to)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return copy


@register_jitable(**OPTIONS)
def portion(count, parts):
    """The next of some about equal parts; 1 part is the usual case, and a division costs more than a small product."""
    return count if parts == 1 else (count + parts - 1) // parts


# ---- dividing a product among threads --------------------------------------------------------------------------------


@register_jitable(**OPTIONS)
def parts_of(threads, m, n, k, along, unit):
    """Into how many parts a product is divided `along` rows or columns, by whole units of them; 1: not at all."""
    if m * n * k < LARGE:
        return 1
    return max(1, min(threads, along // unit))


@register_jitable(**OPTIONS)
def start_of(part, parts, along, unit):
    """Where a part begins."""
    return along if part == parts else (along // unit * part // parts) * unit


def divide_columns(real):
    """Parts of a product for `columns`: columns of C, or rows if it has few columns."""
    size = element_of(real)[1]
    panel = 4 * target()[0] // size

    def divide(blocks, threads, a, lda, b, b_row, b_column, c, ldc, m, n, k, beta):
        by_columns = parts_of(threads, m, n, k, n, COLUMNS)
        parts = max(by_columns, parts_of(threads, m, n, k, m, panel))
        for part in range(parts if parts > 1 else 0):
            if parts == by_columns:
                first, stop = start_of(part, parts, n, COLUMNS), start_of(part + 1, parts, n, COLUMNS)
                from_b, from_c = b + size * first * b_column, c + size * first * ldc
                own = (a, lda, from_b, b_row, b_column, from_c, ldc, m, stop - first, k, beta)
            else:
                first, stop = start_of(part, parts, m, panel), start_of(part + 1, parts, m, panel)
                own = (a + size * first, lda, b, b_row, b_column, c + size * first, ldc, stop - first, n, k, beta)
            write_block(blocks + 8 * 11 * part, own)
        return parts

    return divide


def divide_dots(real):
    """Parts of a product for `dots`: columns of C, or rows if it has one column (more would lie apart)."""
    size = element_of(real)[1]

    def divide(blocks, threads, a, b, c, m, n, k, beta):
        parts = parts_of(threads, m, n, k, n, COLUMNS)
        rows = parts == 1 and n == 1
        if rows:
            parts = parts_of(threads, m, n, k, m, ROWS)
        for part in range(parts if parts > 1 else 0):
            if rows:
                first, stop = start_of(part, parts, m, ROWS), start_of(part + 1, parts, m, ROWS)
                own = (a + size * first * k, b, c + size * first, stop - first, n, k, beta)
            else:
                first, stop = start_of(part, parts, n, COLUMNS), start_of(part + 1, parts, n, COLUMNS)
                own = (a, b + size * first * k, c + size * first * m, m, stop - first, k, beta)
            write_block(blocks + 8 * 7 * part, own)
        return parts

    return divide


# ---- columns: sums of columns of A -----------------------------------------------------------------------------------


def column_tile(element, lanes, is_ragged):
    """Writes the code for a tile of C, rows * lanes x columns; its last vectors hold only the first `last` rows."""

    def write(builder, rows, columns, c, ldc, a, lda, b, b_row, b_column, depth, last, beta):
        def at(base, offset):
            return builder.gep(base, [offset])

        full = Vectors(builder, element, lanes)
        parts = [full] * (rows - 1) + [Vectors(builder, element, lanes, last) if is_ragged else full]
        a, b, c = (builder.inttoptr(x, element.as_pointer()) for x in (a, b, c))
        chains = rows * columns
        steps = unrolled(chains)

        b = [at(b, builder.mul(b_column, I64(j))) for j in range(columns)]
        b = [b[0]] + [opaque(builder, address) for address in b[1:]]

        def step(a, row, totals):
            x = [parts[i].load(at(a, I64(i * lanes))) for i in range(rows)]
            w = [full.splat(builder.load(at(column, row))) for column in b]
            products = [full.multiply_add(x[t % rows], w[t // rows], total) for t, total in enumerate(totals)]
            return [at(a, lda), builder.add(row, b_row), *products]

        def body(i, state):
            a, row, *totals = state
            after = []
            for s in range(steps):
                a, row, *now = step(a, row, totals[s * chains : (s + 1) * chains])
                after += now
            return [a, row, *after]

        state = loop(builder, builder.sdiv(depth, I64(steps)), [a, I64(0)] + [full.zero] * (chains * steps), body)
        if steps > 1:
            first, others = state[: 2 + chains], state[2 + chains :]
            rest = builder.srem(depth, I64(steps))
            state = loop(builder, rest, first, lambda i, now: step(now[0], now[1], now[2:])) + others
        totals = added(builder, state[2:], chains)
        where = [at(c, builder.add(builder.mul(ldc, I64(t // rows)), I64(t % rows * lanes))) for t in range(chains)]
        write_tile(builder, beta, [(parts[t % rows], where[t], totals[t]) for t in range(chains)])

    return write


def columns(real):
    """C (m, n) = beta C + A B, A (m, k) with columns lda apart, C's ldc, B's rows b_row and columns b_column apart."""
    register_bytes, registers, has_masks = target()
    element, size = element_of(real)
    lanes = register_bytes // size
    high, wide = (
        (4, 6) if registers == 32 else (2, 6)
    )  # with a vector of each row and one of B, they fill the registers
    shapes = [(i, j) for i in range(1, high + 1) for j in range(1, wide + 1)]
    tile = tiles("tile", shapes, 10, column_tile(element, lanes, has_masks))
    edge = tile if has_masks else tiles("edge", shapes, 10, column_tile(element, lanes, True))
    panel = high * lanes
    space, copy = scratch(element, panel * PACKED_DEPTH), copy_vector(element, lanes)

    def run(a, lda, b, b_row, b_column, c, ldc, m, n, k, beta):
        vectors = (m + lanes - 1) // lanes
        in_tiles = portion(n, wide) if n > wide else 1
        is_packed = has_masks and n >= PACKED_WIDE and k > PACKED_DEEP
        at_a_time = PACKED_DEPTH if is_packed else max(k, 1)
        chunk = high  # vectors of rows that meet all columns of B before the next
        if vectors > high and not is_packed:
            chunk = max(high, CHUNK // (size * lanes * max(k, 1)))
        packed = space()
        first = 0
        while True:
            depth = min(at_a_time, k - first)
            start = 0
            while start < vectors:
                stop = min(vectors, start + chunk)
                from_a, step_a = a + size * (start * lanes + first * lda), lda
                if is_packed:
                    rows = min(panel, m - start * lanes)
                    for d in range(depth):
                        for r in range(0, rows, lanes):
                            copy(packed + size * (d * panel + r), from_a + size * (d * lda + r), rows - r)
                    from_a, step_a = packed, panel
                panels = portion(stop - start, high) if stop - start > high else 1
                j = 0
                for t in range(in_tiles):
                    across = portion(n - j, in_tiles - t)
                    i = start
                    for p in range(panels):
                        down = portion(stop - i, panels - p)
                        last = min(lanes, m - (i + down - 1) * lanes)
                        numbers = (
                            c + size * (i * lanes + j * ldc), ldc, from_a + size * (i - start) * lanes, step_a,
                            b + size * (j * b_column + first * b_row), b_row, b_column, depth, last, beta,
                        )  # fmt: skip
                        if has_masks or last == lanes:
                            tile(down, across, numbers)
                        else:
                            edge(down, across, numbers)
                        i += down
                    j += across
                start = stop
            first += depth
            beta = 1
            if first >= k:
                break

    return run


# ---- dots: dot products of columns of A and B ------------------------------------------------------------------------


def dot_tile(element, lanes):
    """Writes the code for a tile of C, rows (1, 2 or 4) x columns; lda, ldb, ldc are the distances of columns."""

    def write(builder, rows, columns, c, ldc, a, lda, b, ldb, depth, beta):
        def at(base, offset):
            return builder.gep(base, [offset])

        full = Vectors(builder, element, lanes)
        a, b, c = (builder.inttoptr(x, element.as_pointer()) for x in (a, b, c))
        a = [at(a, builder.mul(lda, I64(i))) for i in range(rows)]
        b = [at(b, builder.mul(ldb, I64(j))) for j in range(columns)]
        chains = rows * columns
        steps = unrolled(chains)

        def step(offset, totals, vectors=full):
            x = [vectors.load(at(address, offset)) for address in a]
            w = [vectors.load(at(address, offset)) for address in b]
            return [full.multiply_add(x[t % rows], w[t // rows], total) for t, total in enumerate(totals)]

        def body(i, totals):
            first = builder.mul(i, I64(steps * lanes))
            parts = [totals[s * chains : (s + 1) * chains] for s in range(steps)]
            return [x for s, part in enumerate(parts) for x in step(builder.add(first, I64(s * lanes)), part)]

        whole = builder.sdiv(depth, I64(steps * lanes))
        totals = loop(builder, whole, [full.zero] * (chains * steps), body)
        done = builder.mul(whole, I64(steps * lanes))
        rest = builder.sub(depth, done)

        def ragged(i, totals):
            i = builder.mul(i, I64(lanes))
            return step(builder.add(done, i), totals, Vectors(builder, element, lanes, builder.sub(rest, i)))

        count = builder.sdiv(builder.add(rest, I64(lanes - 1)), I64(lanes))
        totals = loop(builder, count, totals[:chains], ragged) + totals[chains:]
        totals = added(builder, totals, chains)

        def over_lanes(sums):
            """The sum of each vector's lanes, side by side."""
            width = 1
            while len(sums) > 1:
                pairs = zip(sums[::2], sums[1::2], strict=True)
                sums = [builder.fadd(*full.interleave(x, y, width)) for x, y in pairs]
                width *= 2
            total, count = sums[0], lanes
            while count > rows:
                count //= 2
                total = builder.fadd(*(full.shuffle(total, total, range(i, i + count)) for i in (0, count)))
            return total

        out = Vectors(builder, element, rows)
        sums = [over_lanes(totals[j * rows : (j + 1) * rows]) for j in range(columns)]
        write_tile(builder, beta, [(out, at(c, builder.mul(ldc, I64(j))), sums[j]) for j in range(columns)])

    return write


def dots(real):
    """C (m, n) = beta C + A' B, A (k, m) and B (k, n)."""
    register_bytes, registers, _ = target()
    element, size = element_of(real)
    lanes = register_bytes // size
    high, wide = min(4, lanes), 6 if registers == 32 else 2
    shapes = [(i, j) for i in (1, high) for j in range(1, wide + 1)]
    tile = tiles("tile", shapes, 8, dot_tile(element, lanes))

    def run(a, b, c, m, n, k, beta):
        in_tiles = portion(n, wide) if n > wide else 1
        for first in range(0, max(k, 1), DEPTH):
            depth = min(DEPTH, k - first)
            add = beta if first == 0 else 1
            start, done = 0, 0
            while done < in_tiles:  # two tiles of columns of B at a time stay in the level 1 cache
                stop = min(done + 2, in_tiles)
                i = 0
                while i < m:
                    down = high if m - i >= high else 1
                    j = start
                    for t in range(done, stop):
                        across = portion(n - j, in_tiles - t)
                        part_a, part_b = a + size * (i * k + first), b + size * (j * k + first)
                        tile(down, across, (c + size * (i + j * m), m, part_a, k, part_b, k, depth, add))
                        j += across
                    i += down
                start = j
                done = stop

    return run


def turning(element, lanes):
    """An intrinsic that writes A' to an address: of `rows` columns of A, `count` numbers of each, both up to `lanes`.

    What is written has `lanes` rows and columns, `panel` apart; beyond A's numbers it is undefined.
    """

    @intrinsic
    def turn(typingctx, to, panel, a, lda, rows, count):
        def codegen(context, builder, signature, args):
            to, a = (builder.inttoptr(x, element.as_pointer()) for x in (args[0], args[2]))
            panel, lda, rows, count = args[1], args[3], args[4], args[5]
            full = Vectors(builder, element, lanes)

            def write(source):
                last = builder.sub(rows, I64(1))
                lines = []
                for i in range(lanes):
                    line = builder.select(builder.icmp_signed("<", I64(i), rows), I64(i), last)
                    lines.append(source.load(builder.gep(a, [builder.mul(lda, line)])))
                width = 1
                while width < lanes:  # after each round, blocks of twice the width are turned
                    for i in range(lanes):
                        if i & width == 0:
                            lines[i], lines[i + width] = full.interleave(lines[i], lines[i + width], width)
                    width *= 2
                for i, line in enumerate(lines):
                    full.store(line, builder.gep(to, [builder.mul(panel, I64(i))]))

            with builder.if_else(builder.icmp_signed("==", count, I64(lanes))) as (whole, ragged):
                with whole:
                    write(full)
                with ragged:
                    write(Vectors(builder, element, lanes, count))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), codegen

    return turn


def transposing(real):
    """The same with a part of A at a time transposed for `columns`, which pays for many columns of B."""
    element, size = element_of(real)
    lanes = target()[0] // size
    panel = 4 * lanes
    space, turn = scratch(element, panel * TURNED_DEPTH), turning(element, lanes)

    @intrinsic
    def multiply(typingctx, numbers):
        def codegen(context, builder, signature, args):
            write_call(builder, slot_of(builder, f"dynjit_columns_{real}"), cgutils.unpack_tuple(builder, args[0], 11))
            return context.get_dummy_value()

        return types.void(types.UniTuple(types.int64, 11)), codegen

    def run(a, b, c, m, n, k, beta):
        turned = space()
        for i in range(0, m, panel):
            rows = min(panel, m - i)
            for first in range(0, max(k, 1), TURNED_DEPTH):
                depth = min(TURNED_DEPTH, k - first)
                for d in range(0, depth, lanes):
                    for r in range(0, rows, lanes):
                        to, source = turned + size * (d * panel + r), a + size * ((i + r) * k + first + d)
                        turn(to, panel, source, k, min(lanes, rows - r), min(lanes, depth - d))
                add = beta if first == 0 else 1
                multiply((turned, panel, b + size * first, 1, k, c + size * i, m, rows, n, depth, add))  # type: ignore[call-arg]

    return run


# ---- products --------------------------------------------------------------------------------------------------------

ROUTINES = {
    routine.name: routine
    for real in (types.float32, types.float64)
    for routine in (
        Routine(columns, divide_columns, real, 11),
        Routine(dots, divide_dots, real, 7),
        Routine(transposing, divide_dots, real, 7),
    )
}


def product(write):
    """An intrinsic gemm(a, b, c, m, n, k, beta); `write(builder, real, a, b, c, m, n, k, beta)` gets addresses."""

    def gemm(typingctx, a, b, c, m, n, k, beta):
        is_window = all(isinstance(x, types.Array) and x.ndim == 1 and x.layout == "C" for x in (a, b, c))
        if not is_window or not a.dtype == b.dtype == c.dtype or a.dtype not in (types.float32, types.float64):
            return None

        def codegen(context, builder, signature, args):
            windows = [
                context.make_array(kind)(context, builder, x) for kind, x in zip((a, b, c), args[:3], strict=True)
            ]
            write(builder, a.dtype, *(builder.ptrtoint(window.data, I64) for window in windows), *args[3:])
            return context.get_dummy_value()

        return types.void(a, b, c, *[types.int64] * 4), codegen

    gemm.__name__, gemm.__qualname__, gemm.__doc__ = write.__name__, write.__qualname__, write.__doc__
    return intrinsic(gemm)


@product
def gemm_nn(builder, real, a, b, c, m, n, k, beta):
    """C (m, n) = beta C + A (m, k) B (k, n); beta 0 or 1."""
    write_call(builder, slot_of(builder, f"dynjit_columns_{real}"), [a, m, b, I64(1), k, c, m, m, n, k, beta])


@product
def gemm_nt(builder, real, a, b, c, m, n, k, beta):
    """C (m, n) = beta C + A (m, k) B' with B (n, k); beta 0 or 1."""
    write_call(builder, slot_of(builder, f"dynjit_columns_{real}"), [a, m, b, n, I64(1), c, m, m, n, k, beta])


@product
def gemm_tn(builder, real, a, b, c, m, n, k, beta):
    """C (m, n) = beta C + A' B with A (k, m) and B (k, n); beta 0 or 1."""
    lanes = target()[0] // element_of(real)[1]

    def vectors(count, most):
        """How many vectors (or other pieces) of `most` numbers hold so many."""
        return builder.sdiv(builder.add(count, I64(most - 1)), I64(most))

    in_dots = builder.add(
        builder.mul(I64(10), vectors(k, lanes)), builder.mul(I64(SUMMING), vectors(k, DEPTH))
    )  # for each number of C; in the other form 10 k vectors(m) / m
    spared = builder.sub(builder.mul(in_dots, m), builder.mul(builder.mul(I64(10), k), vectors(m, lanes)))
    turning = builder.sdiv(builder.mul(builder.mul(I64(TURNING), k), m), I64(lanes))
    pays = builder.icmp_signed(">", builder.mul(n, spared), turning)
    slots = [slot_of(builder, f"dynjit_{name}_{real}") for name in ("transposing", "dots")]
    write_call(builder, builder.select(pays, *slots), [a, b, c, m, n, k, beta])
