"""PTX text as data: a module's variables and functions, a function's declarations and instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

NAME = r"[\w$%]+"
COMMENT = re.compile(r"//[^\n]*")
FUNCTION = re.compile(r"^\s*(?:\.(?:visible|weak|extern)\s+)*\.(entry|func)\b([^{;]*)([{;])", re.M)
HEAD = re.compile(rf"\s*(?:\((?P<results>[^)]*)\)\s*)?(?P<name>{NAME})\s*(?:\((?P<parameters>[^)]*)\))?")
VARIABLE = re.compile(
    r"(?:\.(?:visible|common|extern|weak)\s+)*\.(?P<space>global|shared|const|local|param)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?:\.ptr\s+(?:\.(?!align)\w+\s+)?(?:\.align\s+\d+\s+)?)?"
    rf"(?P<name>{NAME})(?P<array>\[(?P<count>\d*)\])?\s*(?:=\s*\{{?(?P<values>[^}}]*)\}}?)?\s*$"
)
STATEMENT = re.compile(
    rf"\s*(?:(?P<scope>[{{}}])|\.loc\s+(?P<file>\d+)\s+(?P<line>\d+)[^\n]*|(?P<label>{NAME}):|(?P<text>[^;]+);)"
)
OPERAND = re.compile(r"\{[^}]*\}|\([^)]*\)|\[[^\]]*\]|[^,\s]+")


class UnknownPtxError(NotImplementedError):
    """PTX that the emulator does not know; never silently passed over."""


@dataclass(frozen=True)
class Variable:
    """A declared piece of memory: a parameter, or a variable in global, constant, shared or local memory."""

    space: str
    name: str
    type: str
    count: int
    align: int
    values: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return self.count * size_of(self.type)


@dataclass(frozen=True)
class Instruction:
    """One instruction: `@%p1 add.s32 %r1, %r2, 3` has predicate %p1, opcode (add, s32) and three operands."""

    line: int
    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    predicate: str | None = None

    @property
    def type(self) -> str:
        """The last part of the opcode, which is the type of most instructions."""
        return self.opcode[-1]


@dataclass(frozen=True)
class Label:
    """A place that branches go to."""

    name: str


@dataclass
class Function:
    """A kernel (`is_entry`) or a device function."""

    name: str
    is_entry: bool
    line: int
    parameters: list[Variable]
    results: list[Variable]
    body: list[Instruction | Label] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)  # name -> type
    variables: list[Variable] = field(default_factory=list)  # local, shared and call parameters
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of brx.idx: name -> labels
    sources: dict[int, str] = field(default_factory=dict)  # line of the PTX -> place in the Python source


@dataclass
class Module:
    """A PTX file with its only kernel."""

    entry: Function
    functions: list[Function]
    variables: list[Variable]


def size_of(kind: str) -> int:
    """Bytes of a PTX type: 4 for f32, b32, s32, u32."""
    return 1 if kind == "pred" else int(kind[1:]) // 8


def operands_of(text: str) -> tuple[str, ...]:
    """The operands of an instruction; {…}, (…) and […] are one each."""
    return tuple(OPERAND.findall(text))


def variable(text: str) -> Variable:
    """The declaration of a variable or parameter."""
    found = VARIABLE.fullmatch(text.strip())
    if not found:
        raise UnknownPtxError(f"declaration: {text.strip()}")
    count = int(found["count"] or 0) if found["array"] else 1
    values = tuple(value.strip() for value in found["values"].split(",")) if found["values"] else ()
    align = int(found["align"] or size_of(found["type"]))
    return Variable(found["space"], found["name"], found["type"], count, align, values)


def variables(text: str | None) -> list[Variable]:
    """The declarations of a parameter list."""
    return [variable(part) for part in (text or "").split(",") if part.strip()]


def head(text: str, kind: str, line: int) -> Function:
    """A function's name, parameters and results."""
    found = HEAD.match(text)
    if not found:
        raise UnknownPtxError(f"line {line}: head of a function: {text.strip()}")
    return Function(found["name"], kind == "entry", line, variables(found["parameters"]), variables(found["results"]))


def entry_head(ptx: str) -> Function:
    """The kernel's name and parameters alone, which is quick."""
    for found in FUNCTION.finditer(ptx):
        if found[1] == "entry":
            return head(COMMENT.sub("", found[2]), "entry", 0)
    raise UnknownPtxError("no kernel (.entry) in the PTX")


def parse(ptx: str) -> Module:
    """The module with all its functions."""
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', ptx, re.M))
    text = COMMENT.sub("", ptx)
    functions, outside, end = [], [], 0
    for found in FUNCTION.finditer(text):
        if found.start() < end:
            continue
        outside.append(text[end : found.start()])
        end = found.end()
        if found[3] == "{":
            function = head(found[2], found[1], text.count("\n", 0, found.end()) + 1)
            end += Body(function, files).read(text[found.end() :])
            functions.append(function)
    outside.append(text[end:])
    declarations = re.findall(r"^\s*((?:\.\w+\s+)*\.(?:global|shared|const)\s[^;]*);", "".join(outside), re.M)
    (entry,) = (function for function in functions if function.is_entry)
    return Module(entry, functions, [variable(text) for text in declarations])


class Body:
    """Reads the body of one function; names declared in an inner scope get that scope's number."""

    def __init__(self, function: Function, files: dict[str, str]) -> None:
        self.function = function
        self.files = files
        self.scopes: list[dict[str, str]] = [{}]
        self.opened = 0
        self.source = ""

    def read(self, text: str) -> int:
        """Fills the function from the text behind its opening brace; returns where its closing brace ends."""
        place, line = 0, self.function.line
        while found := STATEMENT.match(text, place):
            start = found.start(found.lastgroup or 0)
            line += text.count("\n", place, start)
            if found["scope"] == "{":
                self.opened += 1
                self.scopes.append({})
            elif found["scope"]:
                self.scopes.pop()
                if not self.scopes:
                    return found.end()
            elif found["file"]:
                self.source = f"{self.files.get(found['file'], '?')}:{found['line']}"
            elif found["label"]:
                self.function.body.append(Label(found["label"]))
            else:
                self.statement(" ".join(found["text"].split()), line)
            line += text.count("\n", start, found.end())
            place = found.end()
        raise UnknownPtxError(f"line {line}: {text[place : place + 80]}")

    def statement(self, text: str, line: int) -> None:
        """A declaration or an instruction."""
        first = text.split(" ")[0]
        if first == ".reg":
            self.declare_registers(text)
        elif first in (".local", ".shared", ".param"):
            declared = variable(text)
            name = self.declare(declared.name)
            self.function.variables.append(
                Variable(declared.space, name, declared.type, declared.count, declared.align)
            )
        elif first == ".branchtargets":
            label = self.function.body.pop()
            assert isinstance(label, Label)
            self.function.tables[label.name] = operands_of(text.partition(" ")[2])
        elif first != ".pragma":
            self.function.body.append(self.instruction(text, line))
            if self.source:
                self.function.sources[line] = self.source

    def declare(self, name: str) -> str:
        """The name that is unique in the function."""
        unique = name if len(self.scopes) == 1 else f"{name}.{self.opened}"
        self.scopes[-1][name] = unique
        return unique

    def declare_registers(self, text: str) -> None:
        """`.reg .b32 %r<4>, %x` declares %r0 … %r3 and %x."""
        _, kind, names = text.split(" ", 2)
        for name in names.replace(" ", "").split(","):
            family = re.fullmatch(rf"({NAME})<(\d+)>", name)
            for each in [f"{family[1]}{i}" for i in range(int(family[2]))] if family else [name]:
                self.function.registers[self.declare(each)] = kind[1:]

    def instruction(self, text: str, line: int) -> Instruction:
        """An instruction with the unique names of what it uses."""
        if len(self.scopes) > 1:
            text = re.sub(rf"(?<![\w$%.]){NAME}", lambda name: self.unique(name[0]), text)
        predicate = None
        if text.startswith("@"):
            guard, text = text[1:].split(" ", 1)
            predicate = guard
        opcode, _, rest = text.strip().partition(" ")
        return Instruction(line, tuple(opcode.split(".")), operands_of(rest), predicate)

    def unique(self, name: str) -> str:
        """The unique name of what a name means here."""
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), name)
