"""Matrix products for kernels, on windows: one-dimensional contiguous arrays that hold column-major matrices.

In a compiled function, with `beta` 0 (C is only written) or 1 (the product is added to C):

    gemm_nn(a, b, c, m, n, k, beta)    C (m, n) = beta C + A (m, k) B (k, n)       Y = W X
    gemm_tn(a, b, c, m, n, k, beta)    C (m, n) = beta C + A' B,  A (k, m)         dX += W' dY
    gemm_nt(a, b, c, m, n, k, beta)    C (m, n) = beta C + A B',  B (n, k)         dW += dY X'
"""
import ctypes
import importlib.machinery
import importlib.util
import os

import llvmlite.binding
import scipy
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def scipy_blas():
    """scipy.linalg.cython_blas, without the 0.15 s that the rest of scipy.linalg takes to import."""
    folder = os.path.join(os.path.dirname(scipy.__file__), "linalg")
    found = importlib.machinery.PathFinder.find_spec("cython_blas", [folder])
    try:
        spec = importlib.util.spec_from_file_location("scipy.linalg.cython_blas", found.origin)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (AttributeError, ImportError):  # another layout than the one we know
        import scipy.linalg.cython_blas as module
    return module


def register_symbols():
    capi = scipy_blas().__pyx_capi__
    name_of = ctypes.pythonapi.PyCapsule_GetName
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    for name in ("sgemm", "dgemm"):
        llvmlite.binding.add_symbol(f"dynjit_{name}", pointer_of(capi[name], name_of(capi[name])))


register_symbols()


def product(name, transpose_a, transpose_b):
    def gemm(typingctx, a, b, c, m, n, k, beta):
        real = a.dtype
        if real not in (types.float32, types.float64) or not b.dtype == c.dtype == real:
            return None
        size = types.int64
        signature = types.void(a, b, c, size, size, size, size)

        def codegen(context, builder, signature, args):
            element = context.get_value_type(real)
            i8, i32 = ir.IntType(8), ir.IntType(32)

            def slot(value):
                address = cgutils.alloca_once(builder, value.type)
                builder.store(value, address)
                return address

            def letter(flag):
                return slot(i8(ord("T" if flag else "N")))

            def window(i):
                return context.make_array(signature.args[i])(context, builder, args[i]).data

            m, n, k = (builder.trunc(size, i32) for size in args[3:6])
            one = i32(1)
            low = [builder.select(builder.icmp_signed("<", x, one), one, x) for x in (m, n, k)]  # a leading dimension is >= 1
            lda, ldb, ldc = low[2] if transpose_a else low[0], low[1] if transpose_b else low[2], low[0]
            beta = builder.sitofp(args[6], element)
            arguments = [
                letter(transpose_a), letter(transpose_b), slot(m), slot(n), slot(k), slot(element(1.0)),
                window(0), slot(lda), window(1), slot(ldb), slot(beta), window(2), slot(ldc),
            ]  # fmt: skip
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(ir.VoidType(), [x.type for x in arguments]),
                "dynjit_sgemm" if real == types.float32 else "dynjit_dgemm")  # fmt: skip
            builder.call(function, arguments)
            return context.get_dummy_value()

        return signature, codegen

    gemm.__name__ = gemm.__qualname__ = name
    return intrinsic(gemm)


gemm_nn = product("gemm_nn", False, False)
gemm_tn = product("gemm_tn", True, False)
gemm_nt = product("gemm_nt", False, True)
