"""Views: memory at an address, in compiled code, as an array without end.

`view_of(dtype)` makes a function address -> view.  `view[i]` is an entry (of records, by reference), `view[a:b]` an
array of entries, which stays where it is.  Unlike those of Numba's arrays, indices are never counted from the end: that
costs some instructions each time, and planning is little else than indices.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

I64 = ir.IntType(64)


class View(types.Type):
    """The type of a view of entries of a type."""

    def __init__(self, entry: types.Type) -> None:
        self.entry = entry
        super().__init__(f"View({entry})")

    @property
    def window(self) -> types.Array:
        """The type of some entries."""
        return types.Array(self.entry, 1, "C")


@register_model(View)
class ViewModel(models.PrimitiveModel):  # type: ignore[misc]
    """A view is an address."""

    def __init__(self, manager: Any, kind: View) -> None:
        super().__init__(manager, kind, I64)


@infer_global(operator.getitem)
class GetEntry(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        if isinstance(args[0], View) and isinstance(args[1], types.Integer):
            return signature(args[0].entry, args[0], types.int64)
        if isinstance(args[0], View) and args[1] == types.slice2_type:
            return signature(args[0].window, *args)
        return None


@infer_global(operator.setitem)
class SetEntry(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        if isinstance(args[0], View) and isinstance(args[1], types.Integer):
            return signature(types.void, args[0], types.int64, args[0].entry)
        return None


def pointer(context: Any, builder: ir.IRBuilder, kind: View, address: ir.Value, index: ir.Value) -> ir.Value:
    """Where an entry lies."""
    return builder.gep(builder.inttoptr(address, context.get_data_type(kind.entry).as_pointer()), [index])


@lower_builtin(operator.getitem, View, types.int64)
def get_entry(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
    return context.unpack_value(builder, sig.args[0].entry, pointer(context, builder, sig.args[0], *args))


@lower_builtin(operator.setitem, View, types.int64, types.Any)
def set_entry(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
    address, index, value = args
    context.pack_value(builder, sig.args[0].entry, value, pointer(context, builder, sig.args[0], address, index))
    return context.get_dummy_value()


@lower_builtin(operator.getitem, View, types.SliceType)
def get_window(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
    kind, bounds = sig.args[0], context.make_helper(builder, sig.args[1], args[1])
    made = context.make_array(kind.window)(context, builder)
    size = I64(context.get_abi_sizeof(context.get_data_type(kind.entry)))
    count = builder.sub(bounds.stop, bounds.start)
    context.populate_array(
        made,
        data=pointer(context, builder, kind, args[0], bounds.start),
        shape=cgutils.pack_array(builder, [count]),
        strides=cgutils.pack_array(builder, [size]),
        itemsize=size,
        meminfo=None,
    )
    return made._getvalue()


def view_of(dtype: Any) -> Any:
    """A function of compiled code: address -> view of entries of a NumPy type."""
    kind = View(from_dtype(np.dtype(dtype)))

    @intrinsic
    def view(typing, address):  # type: ignore[no-untyped-def]
        return kind(types.int64), lambda context, builder, signature, args: args[0]

    return view
