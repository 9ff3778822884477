"""Views: memory at an address, in compiled code, as an array without end.

`view_of(dtype)` makes a function address -> view.  `view[i]` is an entry, of records a reference with the fields as
attributes; `view[a:b]` is an array of entries, which stays where it is.

Planning and recording are little else than indices and fields, so the code for these is spare: an index is never
counted from the end, and the compiler is told what Numba's arrays and records do not tell it.  Records and int32
numbers are read and written as what they are alone, so that to write one changes no other; and fields that are constant
while compiled code runs need not be read twice.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_getattr, infer_global, signature
from numba.extending import (
    intrinsic,
    lower_builtin,
    lower_getattr_generic,
    lower_setattr_generic,
    models,
    register_model,
)

I64, POINTER = ir.IntType(64), ir.IntType(8).as_pointer()


class Reference(types.Type):
    """The type of a record in memory."""

    def __init__(self, dtype: np.dtype, constant: frozenset[str]) -> None:
        self.dtype, self.constant = dtype, constant
        text = f"{dtype.descr} {sorted(constant)}"
        super().__init__(f"Reference({hashlib.sha256(text.encode()).hexdigest()[:8]})")


class View(types.Type):
    """The type of a view of entries of a type."""

    def __init__(self, entry: types.Type) -> None:
        self.entry = entry
        super().__init__(f"View({entry})")


@register_model(Reference)
@register_model(View)
class AddressModel(models.PrimitiveModel):  # type: ignore[misc]
    """Both are an address."""

    def __init__(self, manager: Any, kind: types.Type) -> None:
        super().__init__(manager, kind, POINTER)


# ---- types -----------------------------------------------------------------------------------------------------------


@infer_global(operator.getitem)
class GetEntry(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        if isinstance(args[0], View) and isinstance(args[1], types.Integer):
            return signature(args[0].entry, args[0], types.int64)
        if isinstance(args[0], View) and args[1] == types.slice2_type:
            return signature(types.Array(args[0].entry, 1, "C"), *args)
        return None


@infer_global(operator.setitem)
class SetEntry(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        if isinstance(args[0], View) and isinstance(args[1], types.Integer):
            return signature(types.void, args[0], types.int64, args[0].entry)
        return None


@infer_getattr
class Fields(AttributeTemplate):  # type: ignore[misc]
    key = Reference

    def generic_resolve(self, record: Reference, name: str) -> Any:
        return from_dtype(record.dtype.fields[name][0]) if name in record.dtype.fields else None  # type: ignore[index,operator]


# ---- code ------------------------------------------------------------------------------------------------------------


def tagged(instruction: ir.Instruction, owner: types.Type) -> ir.Instruction:
    """Tells the compiler whose memory an instruction reads or writes; int64 and float numbers may be anyone's."""
    if isinstance(owner, Reference) or owner == types.int32:
        module = instruction.parent.function.module
        root = module.add_metadata([ir.MetaDataString(module, "dynjit")])
        kind = module.add_metadata([ir.MetaDataString(module, str(owner)), root, I64(0)])
        instruction.set_metadata("tbaa", module.add_metadata([kind, kind, I64(0)]))
    return instruction


def entry_at(context: Any, builder: ir.IRBuilder, kind: View, address: ir.Value, index: ir.Value) -> ir.Value:
    """Pointer to an entry."""
    if isinstance(kind.entry, Reference):
        return builder.gep(address, [builder.mul(index, I64(kind.entry.dtype.itemsize))])
    return builder.gep(builder.bitcast(address, context.get_data_type(kind.entry).as_pointer()), [index])


@lower_builtin(operator.getitem, View, types.int64)
def get_entry(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
    place = entry_at(context, builder, sig.args[0], *args)
    return place if isinstance(sig.return_type, Reference) else tagged(builder.load(place), sig.return_type)


@lower_builtin(operator.setitem, View, types.int64, types.Any)
def set_entry(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
    tagged(builder.store(args[2], entry_at(context, builder, sig.args[0], *args[:2])), sig.args[0].entry)
    return context.get_dummy_value()


@lower_builtin(operator.getitem, View, types.SliceType)
def get_window(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
    bounds = context.make_helper(builder, sig.args[1], args[1])
    made = context.make_array(sig.return_type)(context, builder)
    size = I64(context.get_abi_sizeof(context.get_data_type(sig.args[0].entry)))
    context.populate_array(
        made,
        data=entry_at(context, builder, sig.args[0], args[0], bounds.start),
        shape=cgutils.pack_array(builder, [builder.sub(bounds.stop, bounds.start)]),
        strides=cgutils.pack_array(builder, [size]),
        itemsize=size,
        meminfo=None,
    )
    return made._getvalue()


def field_at(context: Any, builder: ir.IRBuilder, record: Reference, address: ir.Value, name: str) -> ir.Value:
    """Pointer to a field."""
    dtype, offset = record.dtype.fields[name][:2]  # type: ignore[index]
    kind = context.get_data_type(from_dtype(dtype))
    return builder.bitcast(builder.gep(address, [I64(offset)]), kind.as_pointer())


@lower_getattr_generic(Reference)
def get_field(context: Any, builder: ir.IRBuilder, record: Reference, address: ir.Value, name: str) -> ir.Value:
    value = tagged(builder.load(field_at(context, builder, record, address, name)), record)
    if name in record.constant:
        value.set_metadata("invariant.load", builder.module.add_metadata([]))
    return value


@lower_setattr_generic(Reference)
def set_field(context: Any, builder: ir.IRBuilder, sig: Any, args: Any, name: str) -> None:
    tagged(builder.store(args[1], field_at(context, builder, sig.args[0], args[0], name)), sig.args[0])


def view_of(dtype: Any, changing: Iterable[str] | None = None) -> Any:
    """A function of compiled code: address -> view of entries of a NumPy type.

    changing: fields of a record that change while compiled code runs; None: all of them.
    """
    given = np.dtype(dtype)
    constant = frozenset(() if changing is None else set(given.names or ()) - set(changing))
    kind = View(Reference(given, constant) if given.names else from_dtype(given))

    @intrinsic
    def view(typing, address):  # type: ignore[no-untyped-def]
        return kind(types.int64), lambda context, builder, signature, args: builder.inttoptr(args[0], POINTER)

    return view
