"""Matrix products: the operators whose weights a group shares."""

from __future__ import annotations

from typing import Any

from dynjit.blas import gemm_nn, gemm_nn_plus, gemm_nt, gemm_tn
from dynjit.errors import ShapeError
from dynjit.jit import kernel
from dynjit.op import SHARED, STACKED, Case, define, native
from dynjit.scalars import ZERO
from dynjit.shape import Result, Shape
from dynjit.tiles import multiply, spread, tiles_nn, tiles_nt, tiles_tn

# ---- product ---------------------------------------------------------------------------------------------------------


def product_shape(w: Shape, x: Shape) -> Shape:
    fits = max(len(w.dims), len(x.dims)) <= 2 and w.cols == x.rows
    if not fits or (w.batch != x.batch and 1 not in (w.batch, x.batch)):
        raise ShapeError("*", "W (rows, k) and x (k, cols), with mini-batches that are equal or 1", w, x)
    dims = (w.rows, x.cols) if len(x.dims) == 2 else (w.rows,)
    return Shape(dims, max(w.batch, x.batch))


@kernel
def product_forward(v, x0, x1, y, n, rows, cols, item, batch, n0, n1, item0, item1, rows1, batch0, step0, step1):
    if batch0 == 1 and step1 > 0:  # one matrix for all columns
        gemm_nn(v[x0 : x0 + n0], v[x1 : x1 + n1], v[y : y + n], rows, cols * batch, rows1, 0)
        return
    for b in range(batch):
        w, x = v[x0 + b * step0 : x0 + b * step0 + item0], v[x1 + b * step1 : x1 + b * step1 + item1]
        gemm_nn(w, x, v[y + b * item : y + (b + 1) * item], rows, cols, rows1, 0)


@kernel
def product_d0(v, g, x0, x1, y, n, rows, cols, item, batch, n0, n1, item0, item1, rows1, batch0, step0, step1):
    if batch0 == 1 and step1 > 0:
        gemm_nt(g[y : y + n], v[x1 : x1 + n1], g[x0 : x0 + n0], rows, rows1, cols * batch, 1)
        return
    for b in range(batch):
        dw, x = g[x0 + b * step0 : x0 + b * step0 + item0], v[x1 + b * step1 : x1 + b * step1 + item1]
        gemm_nt(g[y + b * item : y + (b + 1) * item], x, dw, rows, rows1, cols, 1)


@kernel
def product_d1(v, g, x0, x1, y, n, rows, cols, item, batch, n0, n1, item0, item1, rows1, batch0, step0, step1):
    if batch0 == 1 and step1 > 0:
        gemm_tn(v[x0 : x0 + n0], g[y : y + n], g[x1 : x1 + n1], rows1, cols * batch, rows, 1)
        return
    for b in range(batch):
        w, dx = v[x0 + b * step0 : x0 + b * step0 + item0], g[x1 + b * step1 : x1 + b * step1 + item1]
        gemm_tn(w, g[y + b * item : y + (b + 1) * item], dx, rows1, cols, rows, 1)


def product_flops(y: Shape, w: Shape, x: Shape) -> tuple[int, ...]:
    return (2 * y.size * w.cols,) * 3


@kernel
def product_forward_cuda(v, x0, x1, y, rows, cols, item, batch, rows1, batch0, step0, step1, left, right, part, parts):
    columns, repeats = (cols * batch, 1) if batch0 == 1 and step1 > 0 else (cols, batch)
    for b in range(repeats):
        tiles_nn(
            v, x0 + b * step0, v, x1 + b * step1, v, y + b * item, rows, columns, rows1, False,
            left, right, part + b, parts,
        )  # fmt: skip


@kernel
def product_d0_cuda(v, g, x0, x1, y, rows, cols, item, batch, rows1, batch0, step0, step1, left, right, part, parts):
    columns, repeats = (cols * batch, 1) if batch0 == 1 and step1 > 0 else (cols, batch)
    for b in range(repeats):  # a matrix of its own: another block; a shared one: the same block adds all items
        turn = b if step0 > 0 else 0
        tiles_nt(
            g, y + b * item, v, x1 + b * step1, g, x0 + b * step0, rows, rows1, columns, left, right, part + turn, parts
        )


@kernel
def product_d1_cuda(v, g, x0, x1, y, rows, cols, item, batch, rows1, batch0, step0, step1, left, right, part, parts):
    columns, repeats = (cols * batch, 1) if batch0 == 1 and step1 > 0 else (cols, batch)
    for b in range(repeats):
        turn = b if step1 > 0 else 0
        tiles_tn(
            v, x0 + b * step0, g, y + b * item, g, x1 + b * step1, rows1, columns, rows, left, right, part + turn, parts
        )


PRODUCT = define(
    "product",
    shape=product_shape,
    params="xx",
    flops=product_flops,
    forward=product_forward,
    backward=(product_d0, product_d1),
    forward_cuda=product_forward_cuda,
    backward_cuda=(product_d0_cuda, product_d1_cuda),
    group=(SHARED, STACKED),
    keeps_result=False,
    reference=lambda w, x: (w if w.ndim == 2 else w[:, None]) @ x,
    cases=(
        Case(((3, 4), (4,))), Case(((1, 1), (1,))), Case(((3, 4), ((4, 2), 3))), Case((((3, 4), 3), (4, 2))),
        Case((((3, 4), 2), ((4, 5), 2))), Case(((3,), (1, 4))),
    ),
)  # fmt: skip


@native(PRODUCT)
def product(w: Any, x: Any) -> Any:
    """Matrix product y_rc = sum_k W_rk x_kc.

    w: (rows, k) x batch;  x: (k, cols) or (k,) x batch;  the result: (rows, cols) or (rows,) x batch.
    A mini-batch of 1 serves all items of the other.  Raises ShapeError unless the shapes fit.
    """
    return PRODUCT(w, x)


def columns_of(rows: int, cols: int) -> tuple[int, ...]:
    """Dimensions of a sum of products: one column is a vector, as in DyNet."""
    return (rows, cols) if cols > 1 else (rows,)


# ---- affine_transform ------------------------------------------------------------------------------------------------


def affine_transform_shape(operands: list[Shape]) -> Result:
    needs = "b (rows,), then pairs of W (rows, k) and x (k,) or (k, cols), with mini-batches that are equal or 1"
    b, pairs = operands[0], list(zip(operands[1::2], operands[2::2], strict=False))
    batches = {shape.batch for shape in operands} - {1}
    if len(operands) % 2 == 0 or len(batches) > 1:
        raise ShapeError("affine_transform", needs, *operands)
    dims = columns_of(b.rows, pairs[0][1].cols) if pairs else b.dims
    for w, x in pairs:
        fits = max(len(w.dims), len(x.dims)) <= 2 and w.cols == x.rows and w.rows == b.rows
        if not fits or (x.cols != pairs[0][1].cols) or b.cols not in (1, x.cols):
            raise ShapeError("affine_transform", needs, *operands)
    return Result(Shape(dims, max(batches, default=1)), ints=tuple(x.rows for _, x in pairs))


@kernel
def affine_transform_forward(v, y, arg, a, k, ints, item, rows, cols, batch, n, item0):
    step = item0 if arg[a + k] == batch else 0
    # one bias and one matrix for all columns: they are added up in one pass
    at_once = arg[a + k] == 1 and item0 == rows and k > 1 and arg[a + k + 1] == 1 and arg[a + k + 2] == batch
    for b in range(0 if at_once else batch):
        bias = v[arg[a] + b * step : arg[a] + b * step + item0]
        for c in range(item // item0):  # columns that one bias serves
            out = v[y + b * item + c * item0 : y + b * item + (c + 1) * item0]
            for i in range(item0):
                out[i] = bias[i]
    for p in range(1, k, 2):
        w, x, depth = arg[a + p], arg[a + p + 1], ints[p // 2]
        step_w, step_x = rows * depth * (arg[a + k + p] > 1), depth * cols * (arg[a + k + p + 1] == batch)
        if arg[a + k + p] == 1 and arg[a + k + p + 1] == batch:  # one matrix for all columns
            columns = cols * batch
            matrix, vectors, out = v[w : w + rows * depth], v[x : x + depth * columns], v[y : y + n]
            if at_once and p == 1:
                gemm_nn_plus(matrix, vectors, out, rows, columns, depth, v[arg[a] : arg[a] + rows])
            else:
                gemm_nn(matrix, vectors, out, rows, columns, depth, 1)
        else:
            for b in range(batch):
                at_w, at_x = w + b * step_w, x + b * step_x
                out = v[y + b * item : y + (b + 1) * item]
                gemm_nn(v[at_w : at_w + rows * depth], v[at_x : at_x + depth * cols], out, rows, cols, depth, 1)


@kernel
def affine_transform_d(v, g, y, arg, a, k, j, ints, item, rows, cols, batch, n, item0):
    if j == 0:
        step = item0 if arg[a + k] == batch else 0
        for b in range(batch):
            db = g[arg[a] + b * step : arg[a] + b * step + item0]
            for c in range(item // item0):
                dy = g[y + b * item + c * item0 : y + b * item + (c + 1) * item0]
                for i in range(item0):
                    db[i] += dy[i]
        return
    p = (j - 1) // 2 * 2 + 1
    w, x, depth = arg[a + p], arg[a + p + 1], ints[p // 2]
    step_w, step_x = rows * depth * (arg[a + k + p] > 1), depth * cols * (arg[a + k + p + 1] == batch)
    columns, repeats = (cols * batch, 1) if step_w == 0 and step_x > 0 else (cols, batch)
    for b in range(repeats):
        at_w, at_x = w + b * step_w, x + b * step_x
        dy = g[y + b * item : y + b * item + rows * columns]
        if j == p:
            gemm_nt(dy, v[at_x : at_x + depth * columns], g[at_w : at_w + rows * depth], rows, depth, columns, 1)
        else:
            gemm_tn(v[at_w : at_w + rows * depth], dy, g[at_x : at_x + depth * columns], depth, columns, rows, 1)


def affine_transform_reference(b, *pairs):
    if not pairs:
        return b
    columns = [array if array.ndim == 2 else array[:, None] for array in (b, *pairs)]
    total = columns[0] + sum(w @ x for w, x in zip(columns[1::2], columns[2::2], strict=True))
    return total[:, 0] if total.shape[1] == 1 else total


def affine_transform_flops(y: Shape, b: Shape, *pairs: Shape) -> tuple[int, ...]:
    products = [2 * y.size * w.cols for w in pairs[::2]]
    return sum(products), y.size, *(flops for flops in products for _ in ("w", "x"))


@kernel
def affine_transform_forward_cuda(v, y, arg, a, k, ints, rows, cols, batch, item, item0, left, right, part, parts):
    merged = True  # one matrix for all columns, of each pair
    for p in range(1, k, 2):
        merged = merged and arg[a + k + p] == 1 and arg[a + k + p + 1] == batch
    columns, repeats = (cols * batch, 1) if merged else (cols, batch)
    for b in range(repeats):
        out, step = y + b * item, item0 if arg[a + k] == batch else 0
        # the bias; it may serve each column
        spread(v, out, rows, columns, arg[a] + b * step, cols, rows if item0 == item else 0, step, part + b, parts)
        for p in range(1, k, 2):
            depth = ints[p // 2]
            w = arg[a + p] + b * (rows * depth if arg[a + k + p] > 1 else 0)
            x = arg[a + p + 1] + b * (depth * cols if arg[a + k + p + 1] == batch else 0)
            tiles_nn(v, w, v, x, v, out, rows, columns, depth, True, left, right, part + b, parts)


@kernel
def affine_transform_d_cuda(
    v, g, y, arg, a, k, j, ints, item, rows, cols, batch, item0, left, right, part, parts, thread, threads
):
    if j == 0:
        run = item0 * batch if arg[a + k] == batch else item0
        for i in range(thread, run, threads):
            total = ZERO
            for b in range(i // item0, batch, max(1, run // item0)):
                for e in range(y + b * item + i % item0, y + (b + 1) * item, item0):
                    total += g[e]
            g[arg[a] + i] += total
        return
    p = (j - 1) // 2 * 2 + 1
    w, x, depth = arg[a + p], arg[a + p + 1], ints[p // 2]
    step_w, step_x = rows * depth * (arg[a + k + p] > 1), depth * cols * (arg[a + k + p + 1] == batch)
    columns, repeats = (cols * batch, 1) if step_w == 0 and step_x > 0 else (cols, batch)
    for b in range(repeats):
        at_w, at_x, at = w + b * step_w, x + b * step_x, y + b * item
        is_w = j == p
        first, second = (g, v) if is_w else (v, g)
        a0, ai, ap, b0, bp, bj = (at, 1, rows, at_x, depth, 1) if is_w else (at_w, rows, 1, at, 1, rows)
        c0, m, n, d = (at_w, rows, depth, columns) if is_w else (at_x, depth, columns, rows)
        turn = part + (b if (step_w if is_w else step_x) > 0 else 0)
        multiply(first, a0, ai, ap, second, b0, bp, bj, g, c0, m, n, d, True, left, right, turn, parts)


AFFINE_TRANSFORM = define(
    "affine_transform",
    shape=affine_transform_shape,
    params="X",
    flops=affine_transform_flops,
    forward=affine_transform_forward,
    backward=(affine_transform_d,),
    forward_cuda=affine_transform_forward_cuda,
    backward_cuda=(affine_transform_d_cuda,),
    group=(SHARED, SHARED, STACKED),
    keeps_result=False,
    reference=affine_transform_reference,
    cases=(
        Case(((3,), (3, 4), (4,))), Case(((1,), (1, 1), (1,))), Case(((3,),)),
        Case(((3,), (3, 4), ((4,), 2), (3, 2), ((2,), 2))), Case(((3,), (3, 4), ((4, 5), 2))),
        Case((((3,), 2), (3, 4), ((4,), 2))), Case(((3, 2), (3, 4), (4, 2))),
        Case(((3,), ((3, 4), 2), (4,), (3, 2), ((2,), 2))), Case(((3, 1), (3, 4), ((4, 1), 2), (3, 2), (2,))),
    ),
)  # fmt: skip


@native(AFFINE_TRANSFORM)
def affine_transform(exprs: list[Any]) -> Any:
    """y = b + W1 x1 + W2 x2 + ..., from the list [b, W1, x1, W2, x2, ...]; of [b] alone, b.

    b: (rows,), added to every column, or (rows, cols);  W: (rows, k);  x: (k,) or (k, cols);  mini-batches equal or 1.
    The result: (rows, cols); (rows,) if there is one column.
    Raises ShapeError for an even number of operands, or shapes that do not fit.
    """
    return AFFINE_TRANSFORM(exprs)


# ---- add_product -----------------------------------------------------------------------------------------------------


def add_product_shape(p: Shape, w: Shape, x: Shape) -> Shape:
    batches = {shape.batch for shape in (p, w, x)} - {1}
    fits = max(len(w.dims), len(x.dims)) <= 2 and w.cols == x.rows and (p.rows, p.cols) == (w.rows, x.cols)
    if not fits or len(batches) > 1:
        needs = "p of the shape of W x, W (rows, k) and x (k, cols), with mini-batches that are equal or 1"
        raise ShapeError("add_product", needs, p, w, x)
    return Shape(columns_of(w.rows, x.cols), max(batches, default=1))


@kernel
def add_product_forward(v, x0, x1, x2, y, rows, cols, item, batch, item1, rows2, batch1, step0, step1, step2):
    for b in range(batch if x0 != y else 0):
        p, out = v[x0 + b * step0 : x0 + b * step0 + item], v[y + b * item : y + (b + 1) * item]
        for i in range(item):
            out[i] = p[i]
    columns, repeats = (cols * batch, 1) if batch1 == 1 and step2 > 0 else (cols, batch)
    for b in range(repeats):
        at1, at2, at = x1 + b * step1, x2 + b * step2, y + b * item
        w, x, out = v[at1 : at1 + item1], v[at2 : at2 + rows2 * columns], v[at : at + rows * columns]
        gemm_nn(w, x, out, rows, columns, rows2, 1)


@kernel
def add_product_d0(g, x0, y, item, batch, step0):
    for b in range(batch):
        dp, dy = g[x0 + b * step0 : x0 + b * step0 + item], g[y + b * item : y + (b + 1) * item]
        for i in range(item):
            dp[i] += dy[i]


@kernel
def add_product_d1(v, g, x1, x2, y, rows, cols, item, batch, item1, rows2, batch1, step1, step2):
    columns, repeats = (cols * batch, 1) if batch1 == 1 and step2 > 0 else (cols, batch)
    for b in range(repeats):
        at1, at2, at = x1 + b * step1, x2 + b * step2, y + b * item
        dw, x, dy = g[at1 : at1 + item1], v[at2 : at2 + rows2 * columns], g[at : at + rows * columns]
        gemm_nt(dy, x, dw, rows, rows2, columns, 1)


@kernel
def add_product_d2(v, g, x1, x2, y, rows, cols, item, batch, item1, rows2, batch1, step1, step2):
    columns, repeats = (cols * batch, 1) if batch1 == 1 and step2 > 0 else (cols, batch)
    for b in range(repeats):
        at1, at2, at = x1 + b * step1, x2 + b * step2, y + b * item
        w, dx, dy = v[at1 : at1 + item1], g[at2 : at2 + rows2 * columns], g[at : at + rows * columns]
        gemm_tn(w, dy, dx, rows2, columns, rows, 1)


def add_product_flops(y: Shape, p: Shape, w: Shape, x: Shape) -> tuple[int, ...]:
    product = 2 * y.size * w.cols
    return product, y.size, product, product


@kernel
def add_product_forward_cuda(
    v, x0, x1, x2, y, rows, cols, item, batch, rows2, batch1, step0, step1, step2, left, right, part, parts
):
    columns, repeats = (cols * batch, 1) if batch1 == 1 and step2 > 0 else (cols, batch)
    for b in range(repeats):
        w, x, p, out = x1 + b * step1, x2 + b * step2, x0 + b * step0, y + b * item
        spread(v, out, rows, columns, p, cols, rows, step0, part + b, parts)
        tiles_nn(v, w, v, x, v, out, rows, columns, rows2, True, left, right, part + b, parts)


@kernel
def add_product_d0_cuda(g, x0, y, item, batch, n0, thread, threads):
    for i in range(thread, n0, threads):
        for e in range(y + i, y + item * batch, n0):
            g[x0 + i] += g[e]


@kernel
def add_product_d1_cuda(
    v, g, x1, x2, y, rows, cols, item, batch, rows2, batch1, step1, step2, left, right, part, parts
):
    columns, repeats = (cols * batch, 1) if batch1 == 1 and step2 > 0 else (cols, batch)
    for b in range(repeats):
        turn = b if step1 > 0 else 0
        tiles_nt(
            g, y + b * item, v, x2 + b * step2, g, x1 + b * step1, rows, rows2, columns, left, right, part + turn, parts
        )


@kernel
def add_product_d2_cuda(
    v, g, x1, x2, y, rows, cols, item, batch, rows2, batch1, step1, step2, left, right, part, parts
):
    columns, repeats = (cols * batch, 1) if batch1 == 1 and step2 > 0 else (cols, batch)
    for b in range(repeats):
        turn = b if step2 > 0 else 0
        tiles_tn(
            v, x1 + b * step1, g, y + b * item, g, x2 + b * step2, rows2, columns, rows, left, right, part + turn, parts
        )


ADD_PRODUCT = define(
    "add_product",
    shape=add_product_shape,
    params="xxx",
    flops=add_product_flops,
    forward=add_product_forward,
    backward=(add_product_d0, add_product_d1, add_product_d2),
    forward_cuda=add_product_forward_cuda,
    backward_cuda=(add_product_d0_cuda, add_product_d1_cuda, add_product_d2_cuda),
    group=(STACKED, SHARED, STACKED),
    keeps_result=False,
    overwrites=(0,),
    reference=affine_transform_reference,
    cases=(
        Case(((3,), (3, 4), (4,))), Case(((1,), (1, 1), (1,))), Case((((3, 2), 3), (3, 4), ((4, 2), 3))),
        Case(((3,), (3, 4), ((4,), 2))), Case((((3,), 2), (3, 4), (4,))), Case((((3,), 2), ((3, 4), 2), (4,))),
        Case(((3,), (3, 4), (4, 1))),
    ),
)  # fmt: skip


@native(ADD_PRODUCT)
def add_product(p: Any, w: Any, x: Any) -> Any:
    """p + W x, with a p of each node's own: a recurrent network's step whose inputs have been multiplied ahead.

    p: (rows, cols) or (rows,);  w: (rows, k);  x: (k, cols) or (k,);  mini-batches equal or 1.
    The result: (rows, cols); (rows,) if there is one column.
    Raises ShapeError unless the shapes fit.
    """
    return ADD_PRODUCT(p, w, x)


# what a library may multiply: the operand of the first matrix, behind which matrices and columns alternate; one in
# front of it is added
SUMS_OF_PRODUCTS = {PRODUCT: 0, AFFINE_TRANSFORM: 1, ADD_PRODUCT: 1}
