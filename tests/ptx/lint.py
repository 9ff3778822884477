"""Turns PTX into the machine code of real GPUs, and says what breaks the rules for kernels."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ptx.parse import Instruction, parse
from ptx.translate import Memory

ARCHITECTURES = ("sm_80", "sm_90")
MOST_REGISTERS = 128
TRIGONOMETRIC_STACK = 32  # bytes
GRID_SYNC = "cudaCGSynchronize"
FRAME = re.compile(
    r"Function properties for (?P<name>\S+)\s.*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads(?:\s+ptxas info\s+: Used (?P<registers>\d+) registers)?",
    re.S,
)


@dataclass(frozen=True)
class Report:
    """What a kernel uses on a GPU: registers of a thread; bytes of stack and spills of a thread; shared bytes of a block."""

    kernel: str
    architecture: str
    registers: int
    stack: int
    spills: int
    shared: int


class LinkError(RuntimeError):
    """The linker refuses a kernel."""


def missing() -> str | None:
    """Why PTX cannot be linked here; None if it can."""
    try:
        from cuda.core import Linker  # noqa: F401
        from cuda.pathfinder import load_nvidia_dynamic_lib

        load_nvidia_dynamic_lib("nvJitLink")
        device_library()
    except Exception as error:  # each of the packages has exceptions of its own
        return f"linking CUDA kernels needs the extra cuda-test: {type(error).__name__}: {error}"
    return None


@functools.cache
def device_library() -> Path:
    """The library of the CUDA toolkit with the synchronisation of the grid."""
    from cuda.pathfinder import find_static_lib

    return Path(find_static_lib("cudadevrt"))


def report(ptx: str, architecture: str) -> Report:
    """Links the PTX for an architecture (`sm_90`), and reads what the linker says of the kernel."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    module = parse(ptx)
    codes = [ObjectCode.from_ptx(ptx.encode())]
    if GRID_SYNC in ptx:
        codes.append(ObjectCode.from_library(str(device_library())))
    linker = Linker(*codes, options=LinkerOptions(arch=architecture, ptxas_options=["-v"]))
    try:
        linker.link("cubin")
    except Exception as error:
        raise LinkError(" ".join(str(error).replace("\0", "").split())) from error
    said = linker.get_info_log()
    frames = {frame["name"]: frame for frame in FRAME.finditer(said)}
    own = [frames[function.name] for function in module.functions if function.name in frames]
    if module.entry.name not in frames:
        raise RuntimeError(f"the linker says nothing of {module.entry.name}: {said}")
    return Report(
        module.entry.name,
        architecture,
        int(frames[module.entry.name]["registers"]),
        max(int(frame["stack"]) for frame in own),
        sum(int(frame["stores"]) + int(frame["loads"]) for frame in own),
        Memory(module, "").shared_size,
    )


def float64_lines(ptx: str) -> list[int]:
    """The lines of all instructions that touch float64."""
    items = (item for function in parse(ptx).functions for item in function.body)
    return [item.line for item in items if isinstance(item, Instruction) and "f64" in item.opcode]


def findings(ptx: str, architectures: Sequence[str] = ARCHITECTURES, trigonometric: bool = False) -> list[str]:
    """What breaks the rules for a float32 kernel, a sentence each; empty if nothing does.

    trigonometric: whether it uses sin, cos or tan, whose reduction of large arguments takes float64 and some stack.
    """
    found = []
    lines = [] if trigonometric else float64_lines(ptx)
    if lines:
        texts = ptx.splitlines()
        found.append(f"{len(lines)} float64 instructions, the first: {' '.join(texts[lines[0] - 1].split())}")
    for architecture in architectures:
        try:
            used = report(ptx, architecture)
        except LinkError as error:  # more than 48 KiB of shared memory, among others
            found.append(f"{architecture}: {error}")
            continue
        limits = {
            "registers": (used.registers, MOST_REGISTERS),
            "bytes of stack": (used.stack, TRIGONOMETRIC_STACK if trigonometric else 0),
            "bytes of spills": (used.spills, 0),
        }
        found += [
            f"{architecture}: {number} {what}, more than {most}"
            for what, (number, most) in limits.items()
            if number > most
        ]
    return found
