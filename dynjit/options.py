"""Start-up options: DyNet's command line flags, its `dynet_config` (see config.py), and DynetParams.

`import dynjit` reads the flags of sys.argv, wherever they stand and in all of DyNet's spellings (`--dynet-seed 1`,
`--dynet_seed=1`, `--dynet-seeds 1`), and leaves sys.argv as it is.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dynjit import graph, initializers, legacy, memory, models, profiling, settings
from dynjit.errors import NoCudaError
from dynjit.space import space

FLAGS = {  # any spelling that starts with it counts, as in DyNet; whether a value follows
    "mem": True, "seed": True, "autobatch": True, "profiling": True, "weight-decay": True, "devices": True,
    "gpu-ids": True, "gpus": True, "gpu": False, "viz": False,
}  # fmt: skip
NO_GPU = "{}: {}. Without a GPU dynjit computes on the CPU: leave the request out."
TWICE = "WARNING: Attempting to initialize dynet twice. Ignoring duplicate initialization."
BELOW_ONE = math.nextafter(1, 0)
is_initialised = [False]


def flags(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(flag, value) of all --dynet-* arguments; raises ValueError for a flag without its value."""
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith(("--dynet-", "--dynet_")):
            continue
        name, equals, value = argument[8:].partition("=")
        flag = next((flag for flag in FLAGS if name.replace("_", "-").startswith(flag)), None)
        if flag is None:
            print(f"dynjit: {argument} is not known and does nothing; known are {', '.join(FLAGS)}", file=sys.stderr)
            continue
        if FLAGS[flag] and not equals:
            value = next(rest, "")
            if not value:
                raise ValueError(f"{argument}: needs a value behind it")
        yield flag, value


def number(name: str, value: Any, low: float, high: float, kind: type = int) -> Any:
    """A number within low to high; raises ValueError for anything else."""
    try:
        found = kind(value)
    except (TypeError, ValueError, OverflowError):
        found = None
    if found is None or not low <= found <= high:
        limits = f"from {low} to {'below 1' if high == BELOW_ONE else high}" if high < 1 << 60 else f"of {low} or more"
        raise ValueError(f"{name}: needs {'an integer' if kind is int else 'a number'} {limits}, got {value!r}")
    return found


def request_gpus(source: str, number: int = 0) -> None:
    """Lets a GPU compute from now on; raises NoCudaError, with what is missing, if that cannot be."""
    from dynjit import cublas, device, gpu  # of no use without a GPU

    try:
        chosen = device.Device(number)
    except NoCudaError as error:
        raise NoCudaError(NO_GPU.format(source, error)) from None
    present = space.executor
    if present is None or present.device.number != number:
        graph.use_executor(gpu.Executor(chosen, cublas.library()))
    legacy.DEVICES[1:] = [legacy.DeviceInfo(f"GPU:{number}", number, 0)]


def use_device(name: str, source: str = "device") -> None:
    """Computes from now on by "CPU", or by "GPU" or "GPU:" and a number, in capitals or not; "": as before.

    Values, parameters and gradients stay what they are.
    Raises NoCudaError if there is no such GPU, ValueError for other names.
    """
    kind, _, number = name.upper().partition(":")
    if kind == "CPU" and not number:
        graph.use_executor(None)
        del legacy.DEVICES[1:]
    elif kind in ("GPU", "CUDA") and (number.isdigit() or not number):
        request_gpus(f"{source} {name}", int(number or 0))
    elif name:
        raise ValueError(f"{source}: needs CPU, GPU or GPU:0, got {name!r}")


class DynetParams:
    """Start-up options; `init` makes them count."""

    def __init__(self) -> None:
        self.mem = "512"
        self.random_seed = self.profiling = 0
        self.autobatch: int | None = None
        self.weight_decay = 0.0
        self.shared_parameters = False

    # ---- where they come from ----

    def from_args(self, shared_parameters: bool | None = None) -> None:
        """Reads the --dynet-* flags of sys.argv.

        Raises ValueError for bad values, NoCudaError if a GPU is asked for.
        """
        self.from_flags(getattr(sys, "argv", []))
        if shared_parameters is not None:
            self.set_shared_parameters(shared_parameters)

    def from_flags(self, arguments: Sequence[str]) -> None:
        """Reads the --dynet-* flags of a list of arguments; see `from_args`."""
        setters: dict[str, Callable[[Any], None]] = {
            "mem": self.set_mem, "seed": self.set_random_seed, "autobatch": self.set_autobatch,
            "profiling": self.set_profiling, "weight-decay": self.set_weight_decay, "devices": self._set_devices,
            "gpus": self.set_requested_gpus, "gpu": lambda value: self.set_requested_gpus(1),
        }  # fmt: skip
        for flag, value in flags(arguments):
            if flag in setters:  # gpu-ids never did anything, and pictures need no flag here
                setters[flag](value)

    def from_config(self, conf: dict[str, Any]) -> None:
        """Takes the values of a dict like that of `dynet_config.get()`."""
        setters: dict[str, Callable[[Any], None]] = {
            "mem": self.set_mem, "seed": self.set_random_seed, "autobatch": self.set_autobatch,
            "profiling": self.set_profiling, "weight_decay": self.set_weight_decay,
            "shared_params": self.set_shared_parameters, "requested_gpus": self.set_requested_gpus,
            "gpu_mask": self.set_gpu_mask,
        }  # fmt: skip
        if not isinstance(conf, Mapping) or not setters.keys() >= conf.keys():
            raise ValueError(f"from_config: needs a dict of {', '.join(setters)}, got {conf!r}")
        for name, value in conf.items():
            if value is not None:
                setters[name](value)

    # ---- one by one ----

    def set_mem(self, mem: int | str) -> None:
        """Memory in MiB, or that of four pools; checked, but not needed: memory grows with use."""
        pools = str(mem).split(",")
        if len(pools) not in (1, 4):
            raise ValueError(f"mem: needs MiB as a number, or four separated by commas, got {mem!r}")
        for size in pools:
            number("mem", size, 1, 1 << 62)
        self.mem = str(mem)

    def set_random_seed(self, random_seed: int) -> None:
        """Seed of all random numbers; 0: one from the system."""
        self.random_seed = number("seed", random_seed, 0, (1 << 63) - 1)

    def set_autobatch(self, autobatch: int | bool) -> None:
        """0 (or False) computes nodes one by one, 1 to 3 (or True) compute equal nodes together."""
        self.autobatch = number("autobatch", autobatch, 0, 3)

    def set_profiling(self, profiling: int) -> None:
        """0: none, 1: print a profile to stderr at the end of the process, 2: also each group that is computed."""
        self.profiling = number("profiling", profiling, 0, 2)

    def set_weight_decay(self, weight_decay: float) -> None:
        """Weight decay of collections made from now on, from 0 to below 1."""
        self.weight_decay = number("weight_decay", weight_decay, 0, BELOW_ONE, float)

    def set_shared_parameters(self, shared_parameters: bool) -> None:
        """Whether processes that are forked later see each other's updates of parameters."""
        self.shared_parameters = bool(shared_parameters)

    def set_requested_gpus(self, requested_gpus: int) -> None:
        """Whether a GPU computes (1); raises NoCudaError if there is none."""
        if number("requested_gpus", requested_gpus, 0, 1 << 62) > 0:
            request_gpus(f"requested_gpus={requested_gpus}")

    def set_gpu_mask(self, gpu_mask: Sequence[int]) -> None:
        """A 1 at the number of the GPU that computes; raises ValueError for others than 0 and 1, NoCudaError if it is
        not there."""
        if np.ndim(gpu_mask) != 1 or any(entry not in (0, 1) for entry in gpu_mask):
            raise ValueError(f"gpu_mask: should only contain 0 and 1s, got {gpu_mask!r}")
        if any(gpu_mask):
            request_gpus(f"gpu_mask={gpu_mask!r}", list(gpu_mask).index(1))

    def set_cpu_mode(self) -> None:
        """Computes on the CPU."""
        use_device("CPU")

    def _set_devices(self, names: str) -> None:
        for name in names.split(","):
            if name.upper().startswith("GPU"):
                use_device(name, "--dynet-devices")
            elif name != "CPU":
                raise ValueError(f"devices: needs CPU or GPU:0, got {name!r}")

    # ---- making them count ----

    def init(self) -> None:
        """Makes the options count; the second time prints DyNet's warning and does nothing."""
        if is_initialised[0]:
            print(TWICE, file=sys.stderr)
            return
        is_initialised[0] = True
        self.apply()

    def apply(self) -> None:
        """Makes the options count, at any time; a seed of 0 leaves the random numbers as they are."""
        if self.random_seed:
            initializers.reset_random_seed(self.random_seed)
        graph.set_autobatch(1 if self.autobatch is None else self.autobatch)
        models.default_weight_decay[0] = self.weight_decay
        if self.shared_parameters:
            space.settle()
            memory.share(space.single.v, space.parameter_end, space.parameter_top)
            space.is_shared = True
        profiling.profile_process(self.profiling)


def init(shared_parameters: bool | None = None, device: str = "") -> None:
    """Reads the --dynet-* flags of sys.argv and makes them count; the second time only prints a warning.

    device: "cpu", "gpu" or "gpu:0"; see `use_device`.
    """
    use_device(device)
    if is_initialised[0]:
        print(TWICE, file=sys.stderr)
        return
    params = DynetParams()
    params.from_args(shared_parameters)
    params.init()


def init_from_params(params: DynetParams) -> None:
    """Makes options count; see `DynetParams.init`."""
    if not isinstance(params, DynetParams):
        raise TypeError(f"init_from_params: needs DynetParams, got {type(params).__name__}")
    params.init()


def start() -> None:
    """What an import does: the flags of sys.argv count if there are any; `init` may still follow."""
    use_device(settings.DEVICE, "DYNJIT_DEVICE")
    if any(argument.startswith("--dynet") for argument in getattr(sys, "argv", [])):
        params = DynetParams()
        params.from_args()
        params.apply()
