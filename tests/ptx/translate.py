"""PTX into C: a kernel becomes a function that runs one thread until it ends or must wait.

Where a thread waits (barriers, shuffles, votes, atomics whose result is read) the function returns why, and the next
call goes on behind that place: the body is one switch over these places, and registers are kept with the thread.
"""

from __future__ import annotations

import re
from collections import Counter

from ptx.arithmetic import LOGIC, arithmetic
from ptx.operands import ADDRESS, Operands, c_type, constant, identifier, parts, register, unsigned
from ptx.parse import Function, Instruction, Label, Module, UnknownPtxError, Variable, size_of

SPACES = {"global": "GLOBAL", "shared": "SHARED", "local": "LOCAL", "const": "GLOBAL"}
SHUFFLES = {"up": "UP", "down": "DOWN", "bfly": "BUTTERFLY", "idx": "INDEX"}
VOTES = {"ballot": "BALLOT", "any": "ANY", "all": "ALL", "uni": "UNIFORM"}
BARRIER_REDUCTIONS = {"popc": "COUNT", "or": "ANY", "and": "ALL"}
IGNORED = {"membar", "fence", "nanosleep", "discard", "prefetch", "prefetchu"}


def aligned(place: int, align: int) -> int:
    """The next multiple of the alignment."""
    return -(-place // align) * align


def parameter_offsets(parameters: list[Variable]) -> tuple[dict[str, int], int]:
    """Where each parameter of a kernel lies, and how long they are together."""
    offsets, place = {}, 0
    for parameter in parameters:
        place = aligned(place, parameter.align)
        offsets[parameter.name] = place
        place += parameter.nbytes
    return offsets, place


class Memory:
    """Gives the variables of a module their places, and C the expressions of their addresses."""

    def __init__(self, module: Module, name: str) -> None:
        self.name = name  # of the kernel: no two kernels of a C file share a name
        self.symbols: dict[str, str] = {}
        self.shared_size = 0
        self.local_size = 0
        self.statics: list[tuple[str, str]] = []  # fields in C, and their values
        used = {name for function in module.functions for name in names_in(function)}
        everywhere = [variable for variable in module.variables if variable.name in used]
        local = [variable for function in module.functions for variable in function.variables]
        everything = everywhere + [variable for variable in local if variable.space != "param"]
        for variable in sorted(everything, key=lambda variable: variable.count == 0):  # the dynamic ones come last
            self.place(variable)

    def place(self, variable: Variable) -> None:
        """Enters a variable."""
        if variable.space == "shared":
            start = aligned(self.shared_size, variable.align)
            self.shared_size = start + variable.nbytes
            self.symbols[variable.name] = f"{start}ull"
        elif variable.space == "local":
            start = aligned(self.local_size, variable.align)
            self.local_size = start + variable.nbytes
            self.symbols[variable.name] = f"{start}ull"
        else:
            name = f"m{len(self.statics)}"
            field = f"{unsigned(variable.type)} {name}[{max(variable.count, 1)}]"
            values = ", ".join(constant(value) for value in variable.values or ("0",))
            self.statics.append((f"{field} __attribute__((aligned({variable.align})));", f"{{{values}}}"))
            self.symbols[variable.name] = f"(u64)statics_{self.name}.{name}"

    def declarations(self) -> str:
        """The module's variables in C, as one object."""
        fields = "".join(f"  {field}\n" for field, _ in self.statics)
        values = ", ".join(["0", *(values for _, values in self.statics)])
        return f"static struct {{\n  u64 first;\n{fields}}} statics_{self.name} = {{{values}}};"


def names_in(function: Function) -> set[str]:
    """All names that a function's instructions contain."""
    operands = (operand for item in function.body if isinstance(item, Instruction) for operand in item.operands)
    return {name for operand in operands for name in re.findall(r"[\w$]+", operand)}


class Body:
    """Translates one function."""

    def __init__(self, function: Function, module: Module, memory: Memory) -> None:
        self.function = function
        self.name = memory.name
        self.functions = {each.name: each for each in module.functions}
        call_parameters = {variable.name for variable in function.variables if variable.space == "param"}
        if function.is_entry:
            offsets, _ = parameter_offsets(function.parameters)
            self.parameters = {name: f"(parameters + {offset})" for name, offset in offsets.items()}
        else:
            own = [variable.name for variable in function.parameters + function.results]
            self.parameters = {name: identifier("A", name) for name in own}
        self.parameters |= {name: identifier("A", name) for name in call_parameters}
        self.ops = Operands(function.registers, memory.symbols)
        self.places = 0
        self.reads = Counter(
            name
            for item in function.body
            if isinstance(item, Instruction)
            for name in re.findall(r"[%\w.]+", " ".join([*item.operands, item.predicate or ""]))
        )
        self.labels_seen: set[str] = set()

    def lines(self) -> list[str]:
        """The body's statements in C."""
        lines = []
        for item in self.function.body:
            if isinstance(item, Label):
                self.labels_seen.add(item.name)
                lines.append(f"{identifier('L', item.name)}:;")
                continue
            try:
                statement = self.instruction(item)
            except (UnknownPtxError, KeyError, ValueError, IndexError) as error:
                text = f"{'.'.join(item.opcode)} {', '.join(item.operands)}"
                raise UnknownPtxError(f"line {item.line}: {text}: {error}") from error
            lines.append(f"if ({self.ops.raw(item.predicate)}) {{ {statement} }}" if item.predicate else statement)
        return lines

    def instruction(self, i: Instruction) -> str:
        """One instruction in C."""
        name = i.opcode[0]
        special = getattr(self, f"do_{name}", None)
        if special:
            return special(i)
        return ";" if name in IGNORED else arithmetic(self.ops, i)

    # ---- control

    def do_bra(self, i: Instruction) -> str:
        return self.jump(i.operands[0], i.line)

    def jump(self, label: str, line: int) -> str:
        """A branch; one that goes back uses fuel, so that an endless loop is found."""
        jump = f"goto {identifier('L', label)};"
        if label not in self.labels_seen:
            return jump
        return f"{{ if (!t->launch->fuel--) ptx_fault(t, ENDLESS, 0, {line}, 0); {jump} }}"

    def do_brx(self, i: Instruction) -> str:
        labels = self.function.tables[i.operands[1]]
        cases = " ".join(f"case {k}: {self.jump(label, i.line)}" for k, label in enumerate(labels))
        return f"switch ((u32){self.ops.raw(i.operands[0])}) {{ {cases} default: ptx_fault(t, TRAP, 0, {i.line}, 0); }}"

    def do_ret(self, i: Instruction) -> str:
        return "return DONE;" if self.function.is_entry else "return;"

    def do_exit(self, i: Instruction) -> str:
        if not self.function.is_entry:
            raise UnknownPtxError("exit inside a device function")
        return "return DONE;"

    def do_trap(self, i: Instruction) -> str:
        return f"ptx_fault(t, TRAP, 0, {i.line}, 0);"

    def do_call(self, i: Instruction) -> str:
        groups = [group.strip("() ") for group in i.operands]
        result = groups.pop(0) if i.operands[0].startswith("(") else ""
        called, arguments = groups[0], [name.strip() for name in (groups[1:] or [""])[0].split(",") if name.strip()]
        if called == "cudaCGGetIntrinsicHandle":
            return f"AT(u64, {self.parameters[result]}) = 1;"
        if called == "cudaCGSynchronize":
            return self.wait("AT_GRID_SYNC", i, then=f"AT(u32, {self.parameters[result]}) = 0;")
        if called in ("__assertfail", "__assert_fail"):
            return f"ptx_fault(t, TRAP, 0, {i.line}, 0);"
        if called not in self.functions:
            raise UnknownPtxError(f"call of {called}, which is not in this module")
        given = ["t", *([self.parameters[result]] if result else []), *(self.parameters[name] for name in arguments)]
        return f"{identifier(self.name, called)}({', '.join(given)});"

    # ---- waiting

    def wait(self, state: str, i: Instruction, before: str = "", then: str = "") -> str:
        """Leaves the function; `then` is done when the thread goes on."""
        if not self.function.is_entry:
            raise UnknownPtxError("synchronisation inside a device function that is called, not inlined")
        self.places += 1
        stop = f"t->line = {i.line}; t->resume = {self.places}; return {state};"
        return f"{{ {before} {stop} }} case {self.places}:; {then}"

    def do_bar(self, i: Instruction) -> str:
        if i.opcode[1] == "warp":
            return self.wait("AT_WARP_SYNC", i, f"t->mask = {self.ops.raw(i.operands[0])};")
        if "red" in i.opcode:
            target, number, predicate = i.operands
            mode = next(mode for part, mode in BARRIER_REDUCTIONS.items() if part in i.opcode)
            before, then = (
                f"t->value = {self.ops.raw(predicate)}; t->mode = {mode};",
                f"{self.ops.raw(target)} = t->result;",
            )
        elif "sync" in i.opcode and len(i.operands) == 1:
            number, before, then = i.operands[0], "", ""
        else:
            raise UnknownPtxError("only barriers of the whole block")
        if number != "0":
            raise UnknownPtxError("only barrier 0")
        return self.wait("AT_BARRIER", i, before, then)

    do_barrier = do_bar

    def do_shfl(self, i: Instruction) -> str:
        targets, value, source, clamp, mask = i.operands
        before = (
            f"t->value = {self.ops.raw(value)}; t->source = {self.ops.raw(source)}; t->clamp = {self.ops.raw(clamp)}; "
            f"t->mask = {self.ops.raw(mask)}; t->mode = {SHUFFLES[i.opcode[2]]};"
        )
        expressions = zip(targets.split("|"), ("t->result", "t->in_range"))
        return self.wait("AT_SHUFFLE", i, before, " ".join(f"{self.ops.raw(to)} = {x};" for to, x in expressions))

    def do_vote(self, i: Instruction) -> str:
        target, predicate, mask = i.operands
        before = (
            f"t->value = {self.ops.raw(predicate)}; t->mask = {self.ops.raw(mask)}; t->mode = {VOTES[i.opcode[2]]};"
        )
        return self.wait("AT_VOTE", i, before, f"{self.ops.raw(target)} = t->result;")

    def do_activemask(self, i: Instruction) -> str:
        raise UnknownPtxError("activemask has no answer that holds for every order of the threads")

    # ---- memory

    def parameter(self, operand: str) -> str | None:
        """The C pointer of an operand in parameter space; None for another."""
        found = ADDRESS.fullmatch(operand)
        if not found or found[1] not in self.parameters:
            return None
        return f"{self.parameters[found[1]]} + {found[2] or 0}"

    def pointer(self, i: Instruction, operand: str, size: int, how: str = "") -> str:
        """A statement that makes `p` point at checked memory."""
        space = next((SPACES[part] for part in i.opcode if part in SPACES), "GENERIC")
        return f"u8 *p = ptx_reach(t, {self.ops.address(operand)}, {size}, {space}{how}, {i.line});"

    def access(self, i: Instruction, operand: str, size: int, how: str = "") -> str:
        """`p` for a load or store, also of parameters."""
        parameter = self.parameter(operand)
        if "param" in i.opcode and not parameter:
            raise UnknownPtxError(f"parameter {operand}")
        return f"u8 *p = (u8 *){parameter};" if parameter else self.pointer(i, operand, size, how)

    def do_ld(self, i: Instruction) -> str:
        names = parts(i.operands[0])
        each, is_volatile = size_of(i.type), bool({"volatile", "acquire", "relaxed"} & set(i.opcode))
        kind = i.type if i.type[0] in "su" else "b" + i.type[1:]
        loads = [
            self.ops.set(name, kind, f"AT({c_type(kind)}, p + {each * k})")
            for k, name in enumerate(names)
            if name != "_"
        ]
        how = " | ATOMIC" if is_volatile else ""
        load = f"{{ {self.access(i, i.operands[1], each * len(names), how)} {' '.join(loads)} }}"
        return self.wait("YIELDED", i, then=load) if is_volatile and self.function.is_entry else load

    def do_st(self, i: Instruction) -> str:
        names = parts(i.operands[1])
        each = size_of(i.type)
        how = " | WRITE" + (" | ATOMIC" if {"volatile", "release", "relaxed"} & set(i.opcode) else "")
        stores = [f"AT({unsigned(i.type)}, p + {each * k}) = {self.ops.raw(name)};" for k, name in enumerate(names)]
        return f"{{ {self.access(i, i.operands[0], each * len(names), how)} {' '.join(stores)} }}"

    def do_atom(self, i: Instruction) -> str:
        target, address, *arguments = i.operands
        update = self.update(i, [self.ops.value(argument, i.type) for argument in arguments])
        bits = unsigned(i.type)
        keep = "" if target == "_" else f"{self.ops.raw(target)} = old;"
        pointer = self.pointer(i, address, size_of(i.type), " | WRITE | ATOMIC")
        statement = f"{{ {pointer} {bits} old = AT({bits}, p); AT({bits}, p) = {update}; {keep} }}"
        is_read = target != "_" and self.reads[target] > 1
        return self.wait("YIELDED", i, then=statement) if is_read and self.function.is_entry else statement

    def do_red(self, i: Instruction) -> str:
        return self.do_atom(Instruction(i.line, i.opcode, ("_", *i.operands), i.predicate))

    def update(self, i: Instruction, values: list[str]) -> str:
        """The bits that an atomic operation leaves, from `old` and its values."""
        kind, x = i.type, values[0]
        name = next(part for part in i.opcode[1:] if part in ("add", "min", "max", "exch", "cas", "inc", "dec", *LOGIC))
        old = {"f32": "F(old)", "f64": "D(old)"}.get(kind, f"({c_type(kind)})old")
        results = {
            "add": f"{old} + {x}",
            "min": f"({old} < {x} ? {old} : {x})",
            "max": f"({old} > {x} ? {old} : {x})",
            "exch": x,
            "cas": f"({old} == {x} ? {values[-1]} : {old})",
            "inc": f"({old} >= {x} ? 0 : {old} + 1)",
            "dec": f"({old} == 0 || {old} > {x} ? {x} : {old} - 1)",
            **{logic: f"({old} {sign} {x})" for logic, sign in LOGIC.items()},
        }
        bits = {"f32": "UF", "f64": "UD"}.get(kind, f"({unsigned(kind)})")
        return f"{bits}({results[name]})"

    def do_cvta(self, i: Instruction) -> str:
        target, source = i.operands
        window = next((f"{space.upper()}_WINDOW" for space in ("shared", "local") if space in i.opcode), "0")
        raw = self.ops.raw(source)
        if source in self.ops.registers and size_of(self.ops.registers[source]) == 4:
            raw = f"(u64){raw}"
        return f"{self.ops.raw(target)} = {raw} {'-' if 'to' in i.opcode else '+'} {window};"


def registers(body: Body) -> str:
    """The C structure of the registers that occur in a function's instructions."""
    names = {name.lstrip("!") for name in body.reads}
    used = {name: kind for name, kind in body.function.registers.items() if name in names}
    return "struct {{ {} u8 carry; }}".format(
        " ".join(f"{unsigned(kind)} {register(name)};" for name, kind in used.items())
    )


def call_parameters(body: Body) -> list[str]:
    """The C arrays in which a function passes parameters to others."""
    return [
        f"  u8 {identifier('A', each.name)}[{aligned(each.nbytes, 8)}] __attribute__((aligned(16))) = {{0}};"
        for each in body.function.variables
        if each.space == "param"
    ]


def device_function(body: Body) -> tuple[str, str]:
    """Declaration and definition of a device function; parameters and results are passed by address."""
    function = body.function
    pointers = [f"u8 *{identifier('A', each.name)}" for each in function.results + function.parameters]
    head = f"static void {identifier(body.name, function.name)}({', '.join(['Thread *t', *pointers])})"
    lines = [f"  {registers(body)} own, *R = &own;", *call_parameters(body), *(f"  {line}" for line in body.lines())]
    return head + ";", "\n".join([head + " {", *lines, "  return;\n}"])


def kernel_function(body: Body) -> str:
    """Definition of the kernel's registers and function."""
    return "\n".join(
        [
            f"typedef {registers(body)} Registers_{body.name};",
            f"static i32 run_{body.name}(Thread *t, const u8 *parameters) {{",
            f"  Registers_{body.name} *restrict R = t->registers;",
            *call_parameters(body),
            "  switch (t->resume) { case 0:;",
            *(f"  {line}" for line in body.lines()),
            "  }\n  return DONE;\n}",
        ]
    )


def translate(module: Module, name: str) -> str:
    """The C source of a module; its only public symbol is `name`, the description of the kernel.

    Raises UnknownPtxError for an instruction that the emulator does not know.
    """
    memory = Memory(module, name)
    functions = [device_function(Body(each, module, memory)) for each in module.functions if not each.is_entry]
    calls = [item for item in module.entry.body if isinstance(item, Instruction) and item.opcode[0] == "call"]
    is_cooperative = any("cudaCGSynchronize" in call.operands for call in calls)
    sizes = f"sizeof(Registers_{name}), {aligned(memory.local_size, 16)}, {memory.shared_size}, {int(is_cooperative)}"
    return "\n".join(
        [
            memory.declarations(),
            *(declaration for declaration, _ in functions),
            *(definition for _, definition in functions),
            kernel_function(Body(module.entry, module, memory)),
            f"const Kernel {name} = {{run_{name}, {sizes}, (u64)&statics_{name}, sizeof statics_{name}}};\n",
        ]
    )
