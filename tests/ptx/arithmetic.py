"""Instructions that compute: each becomes one C statement that assigns its result."""

from __future__ import annotations

from collections.abc import Callable

from ptx.operands import Operands, c_type, parts, unsigned
from ptx.parse import Instruction, UnknownPtxError, size_of

ROUNDINGS = {"rz": "TO_ZERO", "rm": "TO_MINUS", "rp": "TO_PLUS"}
TO_INTEGER = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
COMPARISONS |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
LOGIC = {"and": "&", "or": "|", "xor": "^"}
FLOATS = {  # in the arguments' values; {s} is the suffix of C's float functions
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "abs": "__builtin_fabs{s}({0})",
    "sqrt": "__builtin_sqrt{s}({0})",
    "rcp": "1 / {0}",
    "rsqrt": "1 / __builtin_sqrt{s}({0})",
    "fma": "__builtin_fma{s}({0}, {1}, {2})",
    "mad": "__builtin_fma{s}({0}, {1}, {2})",
    "min": "MIN({0}, {1})",
    "max": "MAX({0}, {1})",
    "ex2": "__builtin_exp2{s}({0})",
    "lg2": "__builtin_log2{s}({0})",
    "sin": "__builtin_sin{s}({0})",
    "cos": "__builtin_cos{s}({0})",
    "tanh": "__builtin_tanh{s}({0})",
    "copysign": "__builtin_copysign{s}({1}, {0})",
}
DIRECTED = {  # operation and arguments of ptx_round_f32
    "add": "'+', {mode}, {0}, {1}, 0",
    "sub": "'+', {mode}, {0}, -{1}, 0",
    "mul": "'*', {mode}, {0}, {1}, 0",
    "div": "'/', {mode}, {0}, {1}, 0",
    "rcp": "'/', {mode}, 1, {0}, 0",
    "sqrt": "'s', {mode}, {0}, 0, 0",
    "fma": "'f', {mode}, {0}, {1}, {2}",
}
TESTS = {"finite": "isfinite", "infinite": "isinf_sign", "notanumber": "isnan", "normal": "isnormal"}


def floats(ops: Operands, i: Instruction) -> str:
    """Arithmetic of f32 and f64."""
    name, kind = i.opcode[0], i.type
    suffix = "f" if kind == "f32" else ""
    flush = ("FTZ({})" if suffix else "FTZD({})") if "ftz" in i.opcode else "{}"
    values = [flush.format(ops.value(operand, kind)) for operand in i.operands[1:]]
    if name == "testp" and i.opcode[1] in TESTS:
        return f"{ops.raw(i.operands[0])} = __builtin_{TESTS[i.opcode[1]]}({values[0]}) != 0;"
    mode = next((ROUNDINGS[part] for part in i.opcode if part in ROUNDINGS), None)
    if mode and name in DIRECTED:
        result = f"ptx_round_{kind}({DIRECTED[name].format(*values, mode=mode)})"
    elif name in FLOATS and not mode:
        result = FLOATS[name].format(*values, s=suffix)
        if "NaN" in i.opcode:
            result = f'UNORDERED({values[0]}, {values[1]}) ? __builtin_nan{suffix}("") : {result}'
    else:
        raise UnknownPtxError(".".join(i.opcode))
    if "sat" in i.opcode:
        result = f"SATURATE({result})"
    return ops.set(i.operands[0], kind, flush.format(result))


def add_or_subtract(ops: Operands, i: Instruction) -> str:
    """Integer add and sub, which wrap around; saturating for s32 only."""
    sign = "+" if i.opcode[0] == "add" else "-"
    if "sat" in i.opcode:
        a, b = (ops.value(operand, i.type) for operand in i.operands[1:])
        return ops.set(i.operands[0], i.type, f"CLAMP((i64){a} {sign} {b}, -0x80000000ll, 0x7fffffffll)")
    a, b = (f"({unsigned(i.type)}){ops.raw(operand)}" for operand in i.operands[1:])
    return ops.set(i.operands[0], i.type, f"{a} {sign} {b}")


def multiply(ops: Operands, i: Instruction) -> str:
    """mul and mad: the low half, the high half, or the whole product in twice the width."""
    name, part, kind = i.opcode[0], i.opcode[1], i.type
    a, b = (ops.value(operand, kind) for operand in i.operands[1:3])
    bits = 8 * size_of(kind)
    if part == "wide":
        wide = f"{kind[0]}{2 * bits}"
        sum_ = f" + ({unsigned(wide)}){ops.raw(i.operands[3])}" if name == "mad" else ""
        return ops.set(i.operands[0], wide, f"({unsigned(wide)})(({c_type(wide)}){a} * {b}){sum_}")
    sum_ = f" + ({unsigned(kind)}){ops.raw(i.operands[3])}" if name == "mad" else ""
    if part == "lo":
        return ops.set(i.operands[0], kind, f"({unsigned(kind)})((u64){a} * (u64){b}){sum_}")
    if part == "hi":
        double = "i128" if kind[0] == "s" else "u128"
        return ops.set(i.operands[0], kind, f"({unsigned(kind)})(({double}){a} * {b} >> {bits}){sum_}")
    raise UnknownPtxError(".".join(i.opcode))


def carry_chain(ops: Operands, i: Instruction) -> str:
    """add, sub and mad that write (.cc) or read (addc, subc, madc) the carry."""
    name, kind = i.opcode[0], i.type
    bits = 8 * size_of(kind)
    values = [f"({unsigned(kind)}){ops.raw(operand)}" for operand in i.operands[1:]]
    carry = "R->carry" if name.endswith("c") else "0"
    if name.startswith("mad"):
        half = f" >> {bits}" if "hi" in i.opcode else ""
        total = f"(u128)({unsigned(kind)})((u128)({values[0]}) * ({values[1]}){half}) + {values[2]} + {carry}"
    else:
        sign = "+" if name.startswith("add") else "-"
        total = f"(u128)({values[0]}) {sign} ({values[1]}) {sign} {carry}"
    keep = f" R->carry = (u64)(total >> {bits}) & 1;" if "cc" in i.opcode else ""
    return f"{{ u128 total = {total}; {ops.raw(i.operands[0])} = ({unsigned(kind)})total;{keep} }}"


def divide(ops: Operands, i: Instruction) -> str:
    """Integer div and rem."""
    a, b = (ops.value(operand, i.type) for operand in i.operands[1:])
    macro = "DIVIDE" if i.opcode[0] == "div" else "REMAINDER"
    return ops.set(i.operands[0], i.type, f"{macro}({c_type(i.type)}, {a}, {b})")


def shift(ops: Operands, i: Instruction) -> str:
    """shl and shr; a shift by the width or more leaves zeros, or the sign."""
    bits, kind = 8 * size_of(i.type), i.type if i.type[0] == "s" else "u" + i.type[1:]
    by = f"(u32){ops.raw(i.operands[2])}"
    x = ops.value(i.operands[1], kind)
    if i.opcode[0] == "shl":
        return ops.set(i.operands[0], kind, f"{by} >= {bits} ? 0 : (u64){x} << ({by} & 63)")
    beyond = f"({x} < 0 ? -1 : 0)" if kind[0] == "s" else "0"
    return ops.set(i.operands[0], kind, f"{by} >= {bits} ? {beyond} : {x} >> ({by} & 63)")


def funnel_shift(ops: Operands, i: Instruction) -> str:
    """shf: 32 bits of a 64-bit number, shifted."""
    both = f"((u64)(u32){ops.raw(i.operands[2])} << 32 | (u32){ops.raw(i.operands[1])})"
    by = f"(u32){ops.raw(i.operands[3])}"
    by = f"({by} & 31)" if "wrap" in i.opcode else f"CLAMP({by}, 0u, 32u)"
    result = f"{both} << {by} >> 32" if "l" in i.opcode else f"{both} >> {by}"
    return ops.set(i.operands[0], "u32", result)


def bitwise(ops: Operands, i: Instruction) -> str:
    """and, or, xor, not; also of predicates."""
    values = [ops.raw(operand) for operand in i.operands]
    if i.opcode[0] == "not":
        return f"{values[0]} = {'!' if i.type == 'pred' else '~'}{values[1]};"
    return ops.set(i.operands[0], i.type, f"{values[1]} {LOGIC[i.opcode[0]]} {values[2]}")


def lookup_logic(ops: Operands, i: Instruction) -> str:
    """lop3: any function of three bits, given as a table of eight."""
    a, b, c = (f"(u32){ops.raw(operand)}" for operand in i.operands[1:4])
    table = int(i.operands[4], 0)
    terms = [
        " & ".join(f"{'' if row >> bit & 1 else '~'}{x}" for bit, x in zip((2, 1, 0), (a, b, c)))
        for row in range(8)
        if table >> row & 1
    ]
    return ops.set(i.operands[0], "u32", " | ".join(f"({term})" for term in terms) or "0")


def smaller_or_larger(ops: Operands, i: Instruction) -> str:
    """Integer min and max."""
    a, b = (ops.value(operand, i.type) for operand in i.operands[1:])
    return ops.set(i.operands[0], i.type, f"{a} {'<' if i.opcode[0] == 'min' else '>'} {b} ? {a} : {b}")


def one_integer(ops: Operands, i: Instruction) -> str:
    """Functions of one integer."""
    bits, x, bare = (
        8 * size_of(i.type),
        ops.value(i.operands[1], i.type),
        f"({unsigned(i.type)}){ops.raw(i.operands[1])}",
    )
    results = {
        "neg": f"0 - {bare}",
        "abs": f"{x} < 0 ? 0 - {bare} : {bare}",
        "popc": f"__builtin_popcountll({bare})",
        "clz": f"{bare} ? __builtin_clzll({bare}) - {64 - bits} : {bits}",
        "brev": f"reverse_bits({bare}, {bits})",
        "bfind": f"find_highest({x if i.type[0] == 'u' else f'({x} < 0 ? ~{x} : {x})'}, {bits}, {int('shiftamt' in i.opcode)})",
    }
    kind = i.type if i.opcode[0] in ("neg", "abs", "brev") else "u32"
    return ops.set(i.operands[0], kind, results[i.opcode[0]])


def bit_field(ops: Operands, i: Instruction) -> str:
    """bfe and bfi: a run of bits taken out of a number, or put into one."""
    bits = 8 * size_of(i.type)
    values = [f"({unsigned(i.type)}){ops.raw(operand)}" for operand in i.operands[1:]]
    if i.opcode[0] == "bfe":
        return ops.set(i.operands[0], i.type, f"extract_bits({', '.join(values)}, {bits}, {int(i.type[0] == 's')})")
    return ops.set(i.operands[0], i.type, f"insert_bits({', '.join(values)}, {bits})")


def permute(ops: Operands, i: Instruction) -> str:
    """prmt: four bytes chosen out of eight."""
    if len(i.opcode) != 2:
        raise UnknownPtxError(".".join(i.opcode))
    return ops.set(i.operands[0], "u32", f"byte_permute({', '.join(ops.raw(operand) for operand in i.operands[1:])})")


def move(ops: Operands, i: Instruction) -> str:
    """mov, also between a register and the parts {low, high} of it."""
    target, source = i.operands
    width = 8 * size_of(i.type)
    if target.startswith("{"):
        names = parts(target)
        each = width // len(names)
        bits = [f"{ops.raw(name)} = (u{each})(whole >> {each * k});" for k, name in enumerate(names) if name != "_"]
        return f"{{ u64 whole = {ops.raw(source)}; {' '.join(bits)} }}"
    if source.startswith("{"):
        names = parts(source)
        each = width // len(names)
        whole = " | ".join(f"(u64)(u{each}){ops.raw(name)} << {each * k}" for k, name in enumerate(names))
        return f"{ops.raw(target)} = {whole};"
    return f"{ops.raw(target)} = {ops.raw(source)};"


def select(ops: Operands, i: Instruction) -> str:
    """selp: one of two, by a predicate."""
    target, a, b, predicate = i.operands
    kind = "b" + i.type[1:]
    return ops.set(target, kind, f"{ops.raw(predicate)} ? {ops.value(a, kind)} : {ops.value(b, kind)}")


def compare(ops: Operands, i: Instruction) -> str:
    """setp: a comparison, and'ed, or'ed or xor'ed with a predicate if one is given; also its opposite with |."""
    test, kind = i.opcode[1], i.type
    a, b = (ops.value(operand, kind) for operand in i.operands[1:3])
    if "ftz" in i.opcode:
        a, b = f"FTZ({a})", f"FTZ({b})"
    if test in ("num", "nan"):
        result = f"{'!' if test == 'num' else ''}UNORDERED({a}, {b})"
    elif kind[0] == "f" and test[-1] == "u":  # true as well if one is NaN
        result = f"(UNORDERED({a}, {b}) || {a} {COMPARISONS[test[:-1]]} {b})"
    elif kind[0] == "f" and test == "ne":
        result = f"(!UNORDERED({a}, {b}) && {a} != {b})"
    else:
        result = f"({a} {COMPARISONS[test]} {b})"
    targets = i.operands[0].split("|")
    opposite = f"!{result}"
    if len(i.operands) > 3:
        other = f" {LOGIC[next(part for part in i.opcode if part in LOGIC)]} {ops.raw(i.operands[3])}"
        result, opposite = result + other, opposite + other
    both = [f"u8 first = {result}, second = {opposite};", f"{ops.raw(targets[0])} = first;"]
    if len(targets) > 1:
        both.append(f"{ops.raw(targets[1])} = second;")
    return f"{{ {' '.join(both)} }}" if len(targets) > 1 else f"{ops.raw(targets[0])} = {result};"


def limits(kind: str) -> tuple[int, int]:
    """Least and largest number of an integer type."""
    bits = 8 * size_of(kind)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if kind[0] == "s" else (0, 2**bits - 1)


def literal(number: int) -> str:
    """An integer of up to 64 bits in C."""
    return f"(-{-number - 1}ll - 1)" if number < 0 else f"{number}{'ull' if number >= 2**63 else 'll'}"


def convert(ops: Operands, i: Instruction) -> str:
    """cvt between all types."""
    to, of = i.opcode[-2:]
    x = ops.value(i.operands[1], of)
    rounding = next((part for part in i.opcode if part in ROUNDINGS or part in TO_INTEGER), "rn")
    flush = "ftz" in i.opcode
    if flush and of == "f32":
        x = f"FTZ({x})"
    if of[0] == "f" and to[0] == "f":
        if rounding in TO_INTEGER:
            x = f"__builtin_{TO_INTEGER[rounding]}({x})"
        elif rounding in ROUNDINGS:
            raise UnknownPtxError(".".join(i.opcode))
        x = f"({c_type(to)}){x}"
        if "sat" in i.opcode:
            x = f"SATURATE({x})"
        return ops.set(i.operands[0], to, f"FTZ({x})" if flush and to == "f32" else x)
    if of[0] == "f":
        least, most = limits(to)
        rounded = f"__builtin_{TO_INTEGER[rounding]}((double){x})"
        limited = (
            f"TO_INT({c_type(to)}, {rounded}, {float(least)!r}, {float(most + 1)!r}, {literal(least)}, {literal(most)})"
        )
        return ops.set(i.operands[0], to, limited)
    if to[0] == "f":
        if rounding in ROUNDINGS:
            raise UnknownPtxError(".".join(i.opcode))
        return ops.set(i.operands[0], to, f"({c_type(to)}){x}")
    if "sat" in i.opcode:
        least, most = limits(to)
        x = f"CLAMP((i128){x}, (i128){literal(least)}, (i128){literal(most)})"
    return ops.set(i.operands[0], to, x)


Translator = Callable[[Operands, Instruction], str]
INTEGERS: dict[str, Translator] = {
    **dict.fromkeys(["add", "sub"], add_or_subtract),
    **dict.fromkeys(["mul", "mad"], multiply),
    **dict.fromkeys(["addc", "subc", "madc"], carry_chain),
    **dict.fromkeys(["div", "rem"], divide),
    **dict.fromkeys(["shl", "shr"], shift),
    **dict.fromkeys(["and", "or", "xor", "not"], bitwise),
    **dict.fromkeys(["min", "max"], smaller_or_larger),
    **dict.fromkeys(["neg", "abs", "popc", "clz", "brev", "bfind"], one_integer),
    **dict.fromkeys(["bfe", "bfi"], bit_field),
    "shf": funnel_shift,
    "lop3": lookup_logic,
    "prmt": permute,
}
ANY_TYPE: dict[str, Translator] = {"mov": move, "selp": select, "setp": compare, "cvt": convert}


def arithmetic(ops: Operands, i: Instruction) -> str:
    """The C statement of an instruction that computes."""
    name = i.opcode[0]
    if name in ANY_TYPE:
        return ANY_TYPE[name](ops, i)
    if i.type in ("f32", "f64"):
        return floats(ops, i)
    if "cc" in i.opcode:
        return carry_chain(ops, i)
    if name in INTEGERS:
        return INTEGERS[name](ops, i)
    raise UnknownPtxError(".".join(i.opcode))
