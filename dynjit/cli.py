"""The command `dynjit`: demo, warmup, info, run, check."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dynjit import cublas, cudakernels, demo, device, jit, kernels
from dynjit.errors import NoCudaError

MODULES = ("arena", "cpu", "dynet", "frontend", "plan", "sequence", "trainers")  # whose entries are compiled


def units(target: str = "cpu", capabilities: tuple[tuple[int, int], ...] = ()) -> dict[str, Any]:
    """All that can be compiled, by name: the entries of the core, then the operators' kernels; or those for CUDA."""
    if target == "cuda":
        importlib.import_module("dynjit.dynet")
        return dict(cudakernels.units(capabilities))
    for module in MODULES:
        importlib.import_module(f"dynjit.{module}")
    found = {unit.function.__name__: unit for unit in jit.entries}
    found.update(kernels.all_units())
    return found


def compile_unit(task: tuple[str, str, tuple[tuple[int, int], ...]]) -> tuple[str, bool]:
    """Compiles one unit (name, and what `units` takes) in a worker process; says whether it was cached already."""
    name, target, capabilities = task
    unit = units(target, capabilities)[name]
    cached = unit.is_cached()
    if not cached:
        unit.prepare()
    return name, cached


def capability(text: str) -> tuple[int, int]:
    """A compute capability such as 8.0."""
    found = re.fullmatch(r"(\d+)\.(\d)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"needs compute capabilities such as 8.0,9.0, got {text!r}")
    return int(found[1]), int(found[2])


def capabilities_of(text: str) -> tuple[tuple[int, int], ...]:
    """Compute capabilities separated by commas."""
    return tuple(map(capability, text.split(",")))


def size_of(folder: Path) -> tuple[int, int]:
    """(files, bytes) below a folder."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def clear(folder: Path) -> int:
    """Removes compiled functions, and what unfinished writing has left, but nothing else; returns how many files."""
    count = 0
    for part in folder.glob("[0-9a-f][0-9a-f]"):
        for path in part.iterdir():
            if re.fullmatch(r".*-[0-9a-f]{32}|tmp\w+", path.name):
                path.unlink(missing_ok=True)
                count += 1
        with contextlib.suppress(OSError):  # not empty, or filled again by another process
            part.rmdir()
    return count


def warmup(options: argparse.Namespace) -> int:
    """Fills the compile cache.  Returns 0; with --check 1 if something would compile; 2 if the cache is unusable."""
    folder = jit.cache_folder()
    if folder is None:
        return 2
    if options.clear:
        print(f"removed {clear(folder)} files from {folder}")
        return 0
    try:
        found = units(options.target, options.cc)
        missing = [name for name, unit in found.items() if not unit.is_cached()]
    except NoCudaError as error:  # without the package nothing can be compiled for CUDA
        print(error, file=sys.stderr)
        return 2
    total = len(found)
    if options.list:
        for name in found:
            print(f"{'missing' if name in missing else 'cached '} {name}")
    if options.list or options.check:
        report(options, {"kernels": total, "missing": len(missing), "folder": str(folder)})
        return 1 if missing else 0
    started = time.perf_counter()
    jobs = min(options.jobs, len(missing))
    if jobs > 0:
        compile_all([(name, options.target, options.cc) for name in missing], jobs, hide=options.json)
    files, nbytes = size_of(folder)
    report(options, {
        "kernels": total, "compiled": len(missing), "seconds": round(time.perf_counter() - started, 1),
        "files": files, "size_mib": round(nbytes / 2**20, 1), "folder": str(folder),
    })  # fmt: skip
    return 0


def compile_all(tasks: list[tuple[Any, ...]], jobs: int, hide: bool) -> None:
    """Compiles units in processes of their own; Ctrl-C ends them, and what is finished stays in the cache."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs) as pool, tqdm(total=len(tasks), unit="kernel", disable=hide) as bar:
        for name, _ in pool.imap_unordered(compile_unit, tasks):
            bar.set_postfix_str(name[:30])
            bar.update()


def report(options: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Prints facts as a line of JSON, or as a sentence."""
    if options.json:
        print(json.dumps(facts))
    else:
        print(", ".join(f"{name} {value}" for name, value in facts.items()))


def devices() -> list[str]:
    """The GPUs that can be used, by number and name."""
    return [f"GPU:{number} {device.Device(number).name}" for number in range(device.count())]


def info(options: argparse.Namespace) -> int:
    """Prints versions, processor, BLAS, cache folder and devices."""
    import llvmlite
    import llvmlite.binding
    import numba
    import numpy

    import dynjit

    folder = jit.cache_folder()
    files, nbytes = size_of(folder) if folder else (0, 0)
    facts = {
        "dynjit": dynjit.__version__, "python": platform.python_version(), "numpy": numpy.__version__,
        "numba": numba.__version__, "llvmlite": llvmlite.__version__,
        "system": platform.platform(), "cpu": llvmlite.binding.get_host_cpu_name(), "cores": os.cpu_count(),
        "products": "own kernels", "GPU products": "cuBLAS, through CuPy" if cublas.modules() else "own kernels",
        "cache": str(folder), "cached files": files, "cache MiB": round(nbytes / 2**20, 1),
        "devices": ", ".join(["CPU", *devices()]),
    }  # fmt: skip
    if options.json:
        print(json.dumps(facts))
    else:
        for name, value in facts.items():
            print(f"{name:13} {value}")
    return 0


def run_script(options: argparse.Namespace) -> int:
    """Runs a DyNet program; see run.py."""
    from dynjit import run  # replaces modules of DyNet: of no use to the other commands

    return run.main([options.script, *options.arguments])


def check_scripts(options: argparse.Namespace) -> int:
    """Reports on the names that programs use; see check.py."""
    from dynjit import check

    return check.main(options.scripts)


COMMANDS = {"demo": demo.run, "warmup": warmup, "info": info, "run": run_script, "check": check_scripts}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command."""
    parser = argparse.ArgumentParser("dynjit", description="Dynamic neural networks, JIT-compiled.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo_parser = commands.add_parser("demo", help="train a Tree-LSTM on list expressions that it makes itself")
    demo.add_arguments(demo_parser)
    warmup_parser = commands.add_parser("warmup", help="fill the compile cache ahead of time")
    warmup_parser.add_argument("--target", choices=("cpu", "cuda"), default="cpu", help="what to compile for")
    warmup_parser.add_argument("--cc", type=capabilities_of, default=((8, 0),), metavar="8.0,9.0",
                               help="compute capabilities of the GPUs; none needs to be there")  # fmt: skip
    warmup_parser.add_argument("--check", action="store_true", help="compile nothing; exit 1 if something is missing")
    warmup_parser.add_argument("--list", action="store_true", help="list the kernels; compile nothing")
    warmup_parser.add_argument("--clear", action="store_true", help="remove what the cache holds")
    warmup_parser.add_argument("--json", action="store_true", help="print the result as JSON")
    warmup_parser.add_argument("--jobs", type=demo.positive, default=os.cpu_count() or 1, help="processes (all cores)")
    info_parser = commands.add_parser("info", help="versions, processor, cache, devices")
    info_parser.add_argument("--json", action="store_true")
    run_parser = commands.add_parser("run", help="run a DyNet program with dynjit in DyNet's place")
    run_parser.add_argument("script")
    run_parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the program's own")
    check_parser = commands.add_parser("check", help="tell which of DyNet's names a program uses")
    check_parser.add_argument("scripts", nargs="+", metavar="script")
    options = parser.parse_args(arguments)
    try:
        return COMMANDS[options.command](options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # nobody reads on, as in `dynjit check ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
