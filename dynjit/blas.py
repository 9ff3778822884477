"""Matrix products for kernels, on windows: one-dimensional contiguous arrays that hold column-major matrices.

In a compiled function, with `beta` 0 (C is only written) or 1 (the product is added to C):

    gemm_nn(a, b, c, m, n, k, beta)    C (m, n) = beta C + A (m, k) B (k, n)       Y = W X
    gemm_nn_plus(a, b, c, m, n, k, d)  C (m, n) = d + A B, d (m,) for each column  Y = d + W X
    gemm_tn(a, b, c, m, n, k, beta)    C (m, n) = beta C + A' B,  A (k, m)         dX += W' dY
    gemm_nt(a, b, c, m, n, k, beta)    C (m, n) = beta C + A B',  B (n, k)         dW += dY X'

Windows are all float32 or all float64; they must not overlap.  The work is done by routines that are compiled once per
type and shared by all callers: `columns` adds up columns of A times numbers of B, `dots` makes dot products.  They
divide a large product among threads.  A tile of C stays in vector registers throughout.  Dynamic networks multiply by
few columns, for which a BLAS that first copies its matrices is slow; here a block of A is copied only where it pays.
"""

from numba import types
from numba.extending import intrinsic, register_jitable

from dynjit.routines import OPTIONS, Routine, scratch, slot_of, write_block, write_call
from dynjit.vectors import I64, LINE, Vectors, by_shape, element_of, loop, opaque, target

# A lies badly if it has more bytes than this, a part of the level 2 cache, or if its columns are a multiple of so many
# bytes apart, and so meet in few places of the level 1 cache
NEAR, ALIASED = 256 * 1024, 2048
# blocks of so many bytes and columns are copied of an A with more than so many columns, if B has many columns, or if A
# lies badly and B has some
BLOCK, BLOCK_DEPTH, LEAST_DEPTH, MANY_COLUMNS, SOME_COLUMNS = 128 * 1024, 256, 64, 256, 24
# columns of a large A that are read at a time, from all its rows: so the processor reads ahead
STRIP = 32
# what is asked for of A before it is needed: so many columns ahead, or so many panels of rows where it is copied; the
# next panel where it is turned; the next columns where dot products are made of it
COLUMNS_AHEAD, PANELS_AHEAD, PAGE = 8, 3, 4096
# rows that a dot product adds up at a time: ten columns of them fit in the level 1 cache
DEPTH = 512
# A' B for many columns is made of A turned.  In tenths of a multiplication of vectors, turning a vector of A costs
TURNING = 76
# a product of so many multiplications (45 microseconds) is divided among threads, into so many columns or rows each;
# the result of a smaller one had better stay in the cache of the core that needs it next
LARGE, COLUMNS, ROWS = 2_000_000, 6, 16


# ---- tiles -----------------------------------------------------------------------------------------------------------


def write_tile(builder, beta, tile):
    """Stores the sums of a tile, with beta plus what lies elsewhere: a list of (vectors, address, sum, elsewhere)."""
    with builder.if_else(builder.icmp_signed("==", beta, I64(0))) as (write, add):
        with write:
            for vectors, address, total, _ in tile:
                vectors.store(total, address)
        with add:
            before = [vectors.load(elsewhere) for vectors, _, _, elsewhere in tile]
            for (vectors, address, total, _), x in zip(tile, before, strict=True):
                vectors.store(builder.fadd(total, x), address)


def write_multiply(totals, rows, columns, row, column, multiply_add):
    """The totals of a tile after one more step: `row(i)` times `column(j)` is added to totals[j * rows + i].

    All vectors of the shorter side stay in registers, those of the other are read one after the other.
    """
    after = list(totals)
    if rows > columns:
        all_columns = [column(j) for j in range(columns)]
        for i in range(rows):
            x = row(i)
            for j in range(columns):
                after[j * rows + i] = multiply_add(x, all_columns[j], totals[j * rows + i])
    else:
        all_rows = [row(i) for i in range(rows)]
        for j in range(columns):
            w = column(j)
            for i in range(rows):
                after[j * rows + i] = multiply_add(all_rows[i], w, totals[j * rows + i])
    return after


def unrolled(chains):
    """How many steps of depth to sum apart: an addition takes 4 cycles, and two can start in each."""
    return 8 if chains == 1 else 4 if chains < 4 else 2 if chains < 8 else 1


def added(builder, totals, chains):
    """The sums of the unrolled steps' totals."""
    while len(totals) > chains:
        half = len(totals) // 2
        totals = [builder.fadd(x, y) for x, y in zip(totals[:half], totals[half:], strict=True)]
    return totals


@register_jitable(**OPTIONS)
def pieces(count, most):
    """Into how many pieces a count is divided; 1 is the usual case, and a division costs more than a small product."""
    return 1 if count <= most else (count + most - 1) // most


@register_jitable(**OPTIONS)
def portion(count, parts):
    """The next of some about equal parts; the last one is the largest."""
    return count if parts == 1 else count // parts


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

    def divide(blocks, threads, a, a_row, a_column, b, b_row, b_column, c, ldc, d, ldd, m, n, k, beta):
        by_columns = parts_of(threads, m, n, k, n, COLUMNS)
        parts = max(by_columns, parts_of(threads, m, n, k, m, panel))
        for part in range(parts if parts > 1 else 0):
            if parts == by_columns:
                first, stop = start_of(part, parts, n, COLUMNS), start_of(part + 1, parts, n, COLUMNS)
                from_b, from_c, from_d = b + size * first * b_column, c + size * first * ldc, d + size * first * ldd
                own = (a, a_row, a_column, from_b, b_row, b_column, from_c, ldc, from_d, ldd, m, stop - first, k, beta)
            else:
                first, stop = start_of(part, parts, m, panel), start_of(part + 1, parts, m, panel)
                from_a, from_c, from_d = a + size * first * a_row, c + size * first, d + size * first
                own = (from_a, a_row, a_column, b, b_row, b_column, from_c, ldc, from_d, ldd, stop - first, n, k, beta)
            write_block(blocks + 8 * 14 * part, own)
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


def column_starts(builder, rows, lanes, is_ragged, last):
    """Where the vectors of a tile start.  If the last has too few rows, it starts earlier: some are in two vectors."""
    starts = [I64(i * lanes) for i in range(rows)]
    if is_ragged and rows > 1:
        starts[-1] = builder.add(last, I64((rows - 2) * lanes))
    return starts


def column_vectors(builder, element, lanes, rows, is_ragged, last):
    """The vectors of a tile; one that has nothing in front of it holds fewer rows."""
    return [Vectors(builder, element, lanes, last if is_ragged and rows == 1 else None)] * rows


def column_tile(element, lanes, is_ragged):
    """Writes the code for a tile of C, of rows * lanes x columns; if ragged, the last vector has `last` rows.

    What lies `ahead` numbers farther than A is asked for.
    """

    def write(builder, rows, columns, c, ldc, d, ldd, a, lda, ahead, b, b_row, b_column, depth, last, beta):
        def at(base, offset):
            return builder.gep(base, [offset])

        parts = column_vectors(builder, element, lanes, rows, is_ragged, last)
        starts = column_starts(builder, rows, lanes, is_ragged, last)
        full = Vectors(builder, element, lanes)
        a, b, c, d = (builder.inttoptr(x, element.as_pointer()) for x in (a, b, c, d))
        chains = rows * columns
        steps = unrolled(chains)

        b = [at(b, builder.mul(b_column, I64(j))) for j in range(columns)]
        b = [b[0]] + [opaque(builder, address) for address in b[1:]]

        def step(a, row, totals):
            full.prefetch(at(a, ahead), rows)
            after = write_multiply(
                totals, rows, columns,
                lambda i: parts[i].load(at(a, starts[i])),
                lambda j: full.splat(builder.load(at(b[j], row))),
                full.multiply_add,
            )  # fmt: skip
            return [at(a, lda), builder.add(row, b_row), *after]

        def body(i, state):
            a, row, *totals = state
            after = []
            for s in range(steps):
                a, row, *now = step(a, row, totals[s * chains : (s + 1) * chains])
                after += now
            return [a, row, *after]

        for j in range(columns):  # C may be far away, and is needed at the end
            full.prefetch(at(c, builder.mul(ldc, I64(j))), rows)
        state = loop(builder, builder.sdiv(depth, I64(steps)), [a, I64(0)] + [full.zero] * (chains * steps), body)
        if steps > 1:
            first, others = state[: 2 + chains], state[2 + chains :]
            rest = builder.srem(depth, I64(steps))
            state = loop(builder, rest, first, lambda i, now: step(now[0], now[1], now[2:])) + others
        totals = added(builder, state[2:], chains)

        def place(base, apart, t):
            return at(base, builder.add(builder.mul(apart, I64(t // rows)), starts[t % rows]))

        tile = [(parts[t % rows], place(c, ldc, t), totals[t], place(d, ldd, t)) for t in range(chains)]
        write_tile(builder, beta, tile)

    return write


def column_copy(element, lanes):
    """Writes the code that copies `depth` columns of rows * lanes numbers, to end up side by side."""

    def write(builder, rows, is_ragged, to, a, lda, ahead, depth, last):
        parts = column_vectors(builder, element, lanes, rows, is_ragged, last)
        starts = column_starts(builder, rows, lanes, is_ragged, last)
        full = Vectors(builder, element, lanes)

        def body(i, state):
            to, a = state
            full.prefetch(builder.gep(a, [ahead]), rows)
            x = [part.load(builder.gep(a, [start])) for part, start in zip(parts, starts, strict=True)]
            for vector, start in zip(x, starts, strict=True):
                full.store(vector, builder.gep(to, [start]))
            return [builder.gep(to, [I64(rows * lanes)]), builder.gep(a, [lda])]

        loop(builder, depth, [builder.inttoptr(x, element.as_pointer()) for x in (to, a)], body)

    return write


def columns(real):
    """C (m, n) = beta D + A B.

    The rows and columns of A (m, k) and B (k, n), and the columns of C and D, are so far apart; D may be C.
    Rows of A that are not 1 apart are turned first, into the block that is copied.
    """
    register_bytes, registers, _ = target()
    element, size = element_of(real)
    lanes = register_bytes // size
    # with a vector of each row and one of B, they fill the registers; tiles of few columns may be as tall
    high, wide, tall = 4 if registers == 32 else 2, 6, 8
    shapes = [(i, j) for j in range(1, wide + 1) for i in range(1, min(tall, high * wide // j) + 1)]
    tile, edge = (by_shape(name, shapes, 13, column_tile(element, lanes, name == "edge")) for name in ("tile", "edge"))
    # B' is copied in strips of whole vectors, of as many columns as fill tiles well
    in_b = (wide + lanes - 1) // lanes
    strip = in_b * lanes if in_b * lanes > 2 * wide else wide
    strip_size = in_b * lanes * BLOCK_DEPTH
    strips = 2 * BLOCK // (size * strip_size)
    copies = [(i, is_ragged) for i in range(1, max(high, in_b) + 1) for is_ragged in (0, 1)]
    copy, turn = by_shape("copy", copies, 6, column_copy(element, lanes)), turning(element, lanes)
    space_a, space_b = scratch(element, BLOCK // size), scratch(element, strips * strip_size)
    block_rows = BLOCK // size // BLOCK_DEPTH // lanes  # in vectors

    @register_jitable(**OPTIONS)
    def copy_block(block, a, a_row, a_column, m, depth, padded):
        """Copies A (m, depth), in panels of rows as tiles take them, each of `padded` columns."""
        vectors = pieces(m, lanes)
        panels = pieces(vectors, high)
        for d in range(0, depth, STRIP):
            some, i = min(STRIP, depth - d), 0
            for p in range(panels):
                down = portion(vectors - i, panels - p)
                last = min(lanes, m - (i + down - 1) * lanes)
                to = block + size * lanes * (i * padded + d * down)
                source = a + size * (i * lanes * a_row + d * a_column)
                if a_row == 1:
                    copy(down, last < lanes, (to, source, a_column, PANELS_AHEAD * high * lanes, some, last))
                else:
                    for e in range(0, some, lanes):
                        for r in range(down):
                            from_a, rows = source + size * (r * lanes * a_row + e), lanes if r < down - 1 else last
                            turned = to + size * lanes * (e * down + r)
                            turn(turned, down * lanes, from_a, a_row, high * lanes * a_row, rows, min(lanes, some - e))
                i += down

    @register_jitable(**OPTIONS)
    def turn_columns(turned, b, b_row, n, depth):
        """Copies B' (n, depth), in strips of columns as tiles take them; b_row: how far its columns are apart."""
        for j in range(0, n, strip):
            some = min(strip, n - j)
            down = pieces(some, lanes)
            last = some - (down - 1) * lanes
            copy(down, last < lanes, (turned + size * (j // strip) * strip_size, b + size * j, b_row, 0, depth, last))

    @register_jitable(**OPTIONS)
    def multiply_block(block, padded, a, lda, ahead, turned, b, b_row, b_column, c, ldc, d, ldd, m, n, depth, beta):
        """Rows of C.

        A (m, depth) was copied to `block`, in panels of `padded` columns, and B to `turned`, in strips; 0: it was not.
        """
        vectors, at_once = pieces(m, lanes), strip if turned else max(n, 1)
        for first in range(0, n, at_once):
            some, j = min(at_once, n - first), first
            in_tiles = pieces(some, wide)
            for t in range(in_tiles):
                across = portion(first + some - j, in_tiles - t)
                from_b, step_b, to_column = b + size * j * b_column, b_row, b_column
                if turned:
                    from_b = turned + size * (first // strip * strip_size + j - first)
                    step_b, to_column = pieces(some, lanes) * lanes, 1
                panels, i = pieces(vectors, high if padded else min(tall, high * wide // max(across, 1))), 0
                for p in range(panels):
                    down = portion(vectors - i, panels - p)
                    last = min(lanes, m - (i + down - 1) * lanes)
                    panel, step_a = a + size * lanes * i, lda
                    if padded:
                        panel, step_a = block + size * lanes * i * padded, down * lanes
                    to, plus = c + size * (i * lanes + j * ldc), d + size * (i * lanes + j * ldd)
                    numbers = (to, ldc, plus, ldd, panel, step_a, ahead, from_b, step_b, to_column, depth, last, beta)
                    if last == lanes:
                        tile(down, across, numbers)
                    else:
                        edge(down, across, numbers)
                    i += down
                j += across

    def run(a, a_row, a_column, b, b_row, b_column, c, ldc, d, ldd, m, n, k, beta):
        is_far, is_aliased = m * k * size > NEAR, a_column * size % ALIASED == 0
        lies_badly = is_far or is_aliased or b_column == 1
        pays = n >= MANY_COLUMNS or (n >= SOME_COLUMNS and lies_badly)
        is_copied = a_row != 1 or (k > LEAST_DEPTH and pays)
        at_a_time = BLOCK_DEPTH if is_copied else STRIP if is_far and k > LEAST_DEPTH else max(k, 1)
        rows = lanes * (block_rows if is_copied else max(high, NEAR // (size * lanes * max(at_a_time, STRIP))))
        # asking for columns pays if they are short and many, and do not evict each other
        asks = not is_copied and not is_aliased and k > LEAST_DEPTH and a_column * size <= PAGE
        ahead = COLUMNS_AHEAD * a_column if asks else 0
        block, turned, first = space_a(), space_b() if is_copied and b_column == 1 else 0, 0
        columns = strips * strip if turned else max(n, 1)
        while True:
            depth = min(at_a_time, k - first)
            padded = (depth + lanes - 1) // lanes * lanes if is_copied else 0  # what is turned comes in whole vectors
            for j in range(0, n, columns):
                across, from_b = min(columns, n - j), b + size * (first * b_row + j * b_column)
                if turned:
                    turn_columns(turned, from_b, b_row, across, depth)
                for start in range(0, m, rows):
                    some = min(rows, m - start)
                    from_a = a + size * (start * a_row + first * a_column)
                    to, plus = c + size * (start + j * ldc), d + size * (start + j * ldd)
                    if is_copied:
                        copy_block(block, from_a, a_row, a_column, some, depth, padded)
                    multiply_block(
                        block, padded, from_a, a_column, ahead, turned, from_b, b_row, b_column, to, ldc, plus, ldd,
                        some, across, depth, beta,
                    )  # fmt: skip
            first += depth
            d, ldd, beta = c, ldc, 1
            if first >= k:
                break

    return run


# ---- dots: dot products of columns of A and B ------------------------------------------------------------------------


def dot_tile(element, lanes):
    """Writes the code for a tile of C, rows (1, 2 or 4) x columns; lda, ldb, ldc are the distances of columns."""

    def write(builder, rows, columns, c, ldc, a, lda, ahead, b, ldb, depth, beta):
        def at(base, offset):
            return builder.gep(base, [offset])

        full = Vectors(builder, element, lanes)
        a, b, c = (builder.inttoptr(x, element.as_pointer()) for x in (a, b, c))
        a = [at(a, builder.mul(lda, I64(i))) for i in range(rows)]
        b = [at(b, builder.mul(ldb, I64(j))) for j in range(columns)]
        chains = rows * columns
        apart = unrolled(chains)
        steps = max(apart, LINE // full.nbytes)  # a line of each row or more, so that it is asked for once

        def step(offset, totals, vectors=full):
            return write_multiply(
                totals, rows, columns,
                lambda i: vectors.load(at(a[i], offset)),
                lambda j: vectors.load(at(b[j], offset)),
                full.multiply_add,
            )  # fmt: skip

        def body(i, totals):
            first = builder.mul(i, I64(steps * lanes))
            for address in a:
                full.prefetch(at(address, builder.add(first, ahead)), steps)
            parts = [totals[s * chains : (s + 1) * chains] for s in range(apart)]
            for s in range(steps):
                parts[s % apart] = step(builder.add(first, I64(s * lanes)), parts[s % apart])
            return [x for part in parts for x in part]

        whole = builder.sdiv(depth, I64(steps * lanes))
        totals = loop(builder, whole, [full.zero] * (chains * apart), body)
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
        where = [at(c, builder.mul(ldc, I64(j))) for j in range(columns)]
        write_tile(builder, beta, [(out, where[j], sums[j], where[j]) for j in range(columns)])

    return write


def dots(real):
    """C (m, n) = beta C + A' B, A (k, m) and B (k, n)."""
    register_bytes, registers, _ = target()
    element, size = element_of(real)
    lanes = register_bytes // size
    high, wide = min(4, lanes), 5 if registers == 32 else 3  # the compiler loads all vectors first: they must fit
    shapes = [(i, j) for i in (1, high) for j in range(1, wide + 1)]
    tile = by_shape("tile", shapes, 9, dot_tile(element, lanes))

    def run(a, b, c, m, n, k, beta):
        in_tiles = pieces(n, wide)
        ahead = 0 if k * size >= ALIASED else high * k
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
                        tile(down, across, (c + size * (i + j * m), m, part_a, k, ahead, part_b, k, depth, add))
                        j += across
                    i += down
                start = j
                done = stop

    return run


# ---- turning ---------------------------------------------------------------------------------------------------------


def turning(element, lanes):
    """An intrinsic that writes A' to an address: of `rows` columns of A, `count` numbers of each, both up to `lanes`.

    What is written has `lanes` rows and columns, `panel` apart; beyond A's numbers it is undefined.  What lies `ahead`
    numbers farther than A is asked for.
    """

    @intrinsic
    def turn(typingctx, to, panel, a, lda, ahead, rows, count):
        def codegen(context, builder, signature, args):
            to, a = (builder.inttoptr(x, element.as_pointer()) for x in (args[0], args[2]))
            panel, lda, ahead, rows, count = args[1], args[3], args[4], args[5], args[6]
            full = Vectors(builder, element, lanes)

            def write(source):
                last = builder.sub(rows, I64(1))
                lines = []
                for i in range(lanes):
                    line = builder.select(builder.icmp_signed("<", I64(i), rows), I64(i), last)
                    start = builder.gep(a, [builder.mul(lda, line)])
                    full.prefetch(builder.gep(start, [ahead]))
                    lines.append(source.load(start))
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

        return types.void(*[types.int64] * 7), codegen

    return turn


# ---- products --------------------------------------------------------------------------------------------------------

ROUTINES = {
    routine.name: routine
    for real in (types.float32, types.float64)
    for routine in (
        Routine(columns, divide_columns, real, 14),
        Routine(dots, divide_dots, real, 7),
    )
}


def product(write):
    """An intrinsic gemm(a, b, c, m, n, k, beta or d); `write(builder, real, a, b, c, m, n, k, ...)` gets addresses."""

    def gemm(typingctx, a, b, c, m, n, k, plus):
        windows = [x for x in (a, b, c, plus) if isinstance(x, types.Array) and x.ndim == 1 and x.layout == "C"]
        kinds = {x.dtype for x in windows}
        if windows[:3] != [a, b, c] or len(kinds) > 1 or a.dtype not in (types.float32, types.float64):
            return None

        def codegen(context, builder, signature, args):
            def number(kind, x):
                is_window = isinstance(kind, types.Array)
                return builder.ptrtoint(context.make_array(kind)(context, builder, x).data, I64) if is_window else x

            write(builder, a.dtype, *map(number, signature.args, args))
            return context.get_dummy_value()

        return types.void(a, b, c, *[types.int64] * 3, plus if plus in windows else types.int64), codegen

    gemm.__name__, gemm.__qualname__, gemm.__doc__ = write.__name__, write.__qualname__, write.__doc__
    return intrinsic(gemm)


def write_columns(builder, real, numbers):
    """Writes the call of the routine that adds up columns."""
    write_call(builder, slot_of(builder, f"dynjit_columns_{real}"), numbers)


@product
def gemm_nn(builder, real, a, b, c, m, n, k, beta):
    """C (m, n) = beta C + A (m, k) B (k, n); beta 0 or 1."""
    write_columns(builder, real, [a, I64(1), m, b, I64(1), k, c, m, c, m, m, n, k, beta])


@product
def gemm_nn_plus(builder, real, a, b, c, m, n, k, d):
    """C (m, n) = d + A (m, k) B (k, n); d (m,) is added to each column."""
    write_columns(builder, real, [a, I64(1), m, b, I64(1), k, c, m, d, I64(0), m, n, k, I64(1)])


@product
def gemm_nt(builder, real, a, b, c, m, n, k, beta):
    """C (m, n) = beta C + A (m, k) B' with B (n, k); beta 0 or 1."""
    write_columns(builder, real, [a, I64(1), m, b, n, I64(1), c, m, c, m, m, n, k, beta])


@product
def gemm_tn(builder, real, a, b, c, m, n, k, beta):
    """C (m, n) = beta C + A' B with A (k, m) and B (k, n); beta 0 or 1."""
    register_bytes, registers, _ = target()
    lanes = register_bytes // element_of(real)[1]
    # in the same unit: a multiplication of a dot product, and adding up its lanes; with few registers it waits for both
    dotting, summing = (11, 18) if registers == 32 else (12, 50)

    def vectors(count, most):
        """How many vectors (or other pieces) of `most` numbers hold so many."""
        return builder.sdiv(builder.add(count, I64(most - 1)), I64(most))

    in_dots = builder.add(
        builder.mul(I64(dotting), vectors(k, lanes)), builder.mul(I64(summing), vectors(k, DEPTH))
    )  # for each number of C; in the other form 10 k vectors(m) / m
    spared = builder.sub(builder.mul(in_dots, m), builder.mul(builder.mul(I64(10), k), vectors(m, lanes)))
    turning = builder.sdiv(builder.mul(builder.mul(I64(TURNING), k), m), I64(lanes))
    pays = builder.icmp_signed(">", builder.mul(n, spared), turning)
    with builder.if_else(pays) as (turned, plain):
        with turned:
            write_columns(builder, real, [a, k, I64(1), b, I64(1), k, c, m, c, m, m, n, k, beta])
        with plain:
            write_call(builder, slot_of(builder, f"dynjit_dots_{real}"), [a, b, c, m, n, k, beta])
