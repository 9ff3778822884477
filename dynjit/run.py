"""Runs a DyNet program with dynjit in DyNet's place: `python -m dynjit.run script.py arguments`, `dynjit run ...`.

In that process `import dynet`, `import _dynet`, `import dynet_config` and `import dynet_viz` find dynjit.
"""

from __future__ import annotations
import __future__

import importlib.machinery
import io
import os
import pickle
import sys
import types
from collections.abc import Callable, Sequence
from multiprocessing import spawn
from typing import Any

import numpy as np

import dynjit
from dynjit import config, dynet, legacy, options
from dynjit.expressions import Expression

SCRIPT = "DYNJIT_SCRIPT"  # the environment variable with the path of the program that runs
HIDDEN = ("_inputExpression", "_tensorInputExpression", "_vecInputExpression", "_sparseInputExpression",
          "_lookupExpression", "_lookupBatchExpression", "_pickerExpression", "_pickerBatchExpression")  # fmt: skip


def fill_core(module: types.ModuleType) -> None:
    """Makes a module `_dynet`; its import reads no options."""
    vars(module).update({name: getattr(dynjit, name) for name in dynjit.__all__}, __all__=list(dynet.__all__))
    vars(module).update(dict.fromkeys(HIDDEN, Expression), _RNNBuilder=dynjit.RNNBuilder)


def fill_dynet(module: types.ModuleType) -> None:
    """Makes a module `dynet`; its import reads the options in sys.argv, unless `dynet_config.set` was called before."""
    fill_core(module)
    # what else a program gets by `from dynet import *`
    besides = {"np": np, "os": os, "sys": sys, "pickle": pickle, "print_function": __future__.print_function,
               "ERRMSG": legacy.ERRMSG}  # fmt: skip
    vars(module).update(besides, __all__=[*dynet.__all__, *besides], _CONF=config.get())
    vars(module).update(__version__="2.1", __gitversion__="")
    if config.get() is None:
        options.start()


def fill_config(module: types.ModuleType) -> None:
    """Makes a module `dynet_config`."""
    vars(module).update({name: getattr(config, name) for name in ("set", "set_gpu", "gpu", "get")})


MODULES: dict[str, Callable[[types.ModuleType], None]] = {
    "dynet": fill_dynet, "_dynet": fill_core, "dynet_config": fill_config, "dynet_viz": fill_dynet,
}  # fmt: skip


class Finder:
    """Finds the modules of MODULES, and makes them when they are imported."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in MODULES:
            return None
        return importlib.machinery.ModuleSpec(name, Finder, origin="dynjit")  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: importlib.machinery.ModuleSpec) -> None:
        """The usual module."""

    @staticmethod
    def exec_module(module: types.ModuleType) -> None:
        MODULES[module.__name__](module)


def install() -> None:
    """Lets this process's imports of DyNet find dynjit, even where DyNet is installed."""
    if Finder not in sys.meta_path:
        sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]
    for name in MODULES:
        sys.modules.pop(name, None)


def follow_spawned(path: str) -> None:
    """Lets processes that this one spawns (multiprocessing) find dynjit, too: they begin with spawned.py."""
    os.environ[SCRIPT] = path
    prepare = spawn.get_preparation_data

    def prepared(name: str) -> dict[str, object]:
        data = prepare(name)
        if data.get("init_main_from_path") == path:
            data["init_main_from_path"] = os.path.join(os.path.dirname(os.path.abspath(__file__)), "spawned.py")
        return data

    spawn.get_preparation_data = prepared


def run(script: str, arguments: Sequence[str] = ()) -> int:
    """Runs a program as `python script arguments` would; returns 1 after an exception, whose traceback is printed.

    Raises SystemExit as the program does, OSError if it cannot be read.
    """
    install()
    path = os.path.abspath(script)
    with io.open_code(path) as file:
        source = file.read()
    main = types.ModuleType("__main__")
    vars(main).update(__file__=path, __builtins__=__builtins__, __cached__=None)
    sys.modules["__main__"] = main
    sys.argv[:] = [script, *arguments]
    follow_spawned(path)
    sys.path[0:1] = [os.path.dirname(path)]
    try:
        exec(compile(source, path, "exec", dont_inherit=True), vars(main))
    except SystemExit:
        raise
    except BaseException as error:
        own = error.__traceback__  # this function's frame, which `python script` does not show
        error.__traceback__ = own.tb_next if own else None
        sys.excepthook(type(error), error, error.__traceback__)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def main(arguments: Sequence[str]) -> int:
    """Entry point of `python -m dynjit.run`, with the program's path in front of its arguments."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m dynjit.run script.py [arguments]\n\nRuns a DyNet program with dynjit in DyNet's place.")
        return 0 if arguments else 2
    try:
        return run(arguments[0], arguments[1:])
    except OSError as error:
        print(f"dynjit run: cannot read {arguments[0]}: {error.strerror or error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
