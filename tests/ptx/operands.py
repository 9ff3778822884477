"""Operands of PTX as C expressions. Registers hold raw bits; a type says how an instruction reads them."""

from __future__ import annotations

import re

from ptx.parse import UnknownPtxError, size_of

C_TYPES = {
    "f32": "float",
    "f64": "double",
    "pred": "u8",
    **{f"{kind}{bits}": f"{'i' if kind == 's' else 'u'}{bits}" for kind in "bus" for bits in (8, 16, 32, 64)},
}
SPECIAL = {
    **{f"%tid.{axis}": f"t->tid[{i}]" for i, axis in enumerate("xyz")},
    **{f"%ntid.{axis}": f"t->launch->ntid[{i}]" for i, axis in enumerate("xyz")},
    **{f"%ctaid.{axis}": f"t->block->ctaid[{i}]" for i, axis in enumerate("xyz")},
    **{f"%nctaid.{axis}": f"t->launch->nctaid[{i}]" for i, axis in enumerate("xyz")},
    "%laneid": "t->lane",
    "%warpid": "t->warp",
    "WARP_SZ": "32u",
    "%lanemask_eq": "(1u << t->lane)",
    "%lanemask_lt": "((1u << t->lane) - 1)",
    "%lanemask_le": "((2u << t->lane) - 1)",
    "%lanemask_gt": "~((2u << t->lane) - 1)",
    "%lanemask_ge": "~((1u << t->lane) - 1)",
    "%dynamic_smem_size": "t->launch->dynamic_shared",
}
FLOAT = re.compile(r"0[fFdD]([0-9a-fA-F]{8}|[0-9a-fA-F]{16})")
INTEGER = re.compile(r"-?(0[xX][0-9a-fA-F]+|\d+)U?")
ADDRESS = re.compile(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\d+))?\s*\]")


def c_type(kind: str) -> str:
    """The C type of a PTX type."""
    if kind not in C_TYPES:
        raise UnknownPtxError(f"type {kind}")
    return C_TYPES[kind]


def unsigned(kind: str) -> str:
    """The C type of the bits of a PTX type."""
    return f"u{8 * size_of(kind)}"


def constant(number: str) -> str:
    """The bits of a number written in PTX: -7, 0x1F or 0f3F800000."""
    if found := FLOAT.fullmatch(number):
        return f"0x{found[1]}{'u' if len(found[1]) == 8 else 'ull'}"
    if INTEGER.fullmatch(number):
        return f"{int(number.rstrip('U'), 0) & (2**64 - 1):#x}ull"
    raise UnknownPtxError(f"operand {number}")


def identifier(prefix: str, name: str) -> str:
    """A C name for a name of PTX."""
    return prefix + re.sub(r"\W", "_", name)


def register(name: str) -> str:
    """The C name of a register, as a field of the structure `R`."""
    return identifier("r", name)


def parts(operand: str) -> list[str]:
    """The registers of a vector operand {…}; of another operand, itself."""
    return [part.strip() for part in operand.strip("{}").split(",")]


class Operands:
    """Turns operands into C, for one function."""

    def __init__(self, registers: dict[str, str], symbols: dict[str, str]) -> None:
        self.registers = registers
        self.symbols = symbols  # variables: the C expression of their address

    def raw(self, operand: str) -> str:
        """The bits, as an unsigned number."""
        if operand.startswith("!"):
            return f"(!{self.raw(operand[1:])})"
        if operand in self.registers:
            return f"R->{register(operand)}"
        if operand in SPECIAL:
            return SPECIAL[operand]
        if operand in self.symbols:
            return self.symbols[operand]
        return constant(operand)

    def value(self, operand: str, kind: str) -> str:
        """The number that an instruction of this type sees."""
        raw = self.raw(operand)
        if kind in ("f32", "f64"):
            return f"{'F' if kind == 'f32' else 'D'}({raw})"
        return f"(({c_type(kind)}){raw})"

    def set(self, target: str, kind: str, expression: str) -> str:
        """Assigns a number of the type; narrower signed numbers are extended by their sign."""
        if target == "_":
            return ""
        if kind in ("f32", "f64"):
            return f"{self.raw(target)} = {'UF' if kind == 'f32' else 'UD'}({expression});"
        return f"{self.raw(target)} = ({c_type(kind)})({expression});"

    def address(self, operand: str) -> str:
        """The address of [register + 4], [variable] or [number]."""
        found = ADDRESS.fullmatch(operand)
        if not found:
            raise UnknownPtxError(f"address {operand}")
        offset = f" + {int(found[2])}ll" if found[2] and int(found[2]) else ""
        return f"((u64){self.raw(found[1])}{offset})"
