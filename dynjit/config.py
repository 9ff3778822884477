"""Start-up options given in the program: DyNet's module `dynet_config`.

    from dynjit import config
    config.set(random_seed=1, autobatch=1)

They take effect at once, before or after the first graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynjit import options

stored: dict[str, Any] = {}


def set(
    mem: int | str = "512", random_seed: int = 0, autobatch: int | None = None, profiling: int = 0,
    weight_decay: float = 0, shared_parameters: bool = False, requested_gpus: int = 0,
    gpu_mask: Sequence[int] | None = None,
) -> None:  # fmt: skip
    """Sets all start-up options; what is not given returns to its default.

    autobatch: 0 computes nodes one by one, 1 to 3 in groups; None: as dynjit does by itself, in groups.
    Raises ValueError for values out of range, NoCudaError if a GPU is asked for.
    """
    conf = {
        "mem": mem, "seed": random_seed, "autobatch": autobatch, "profiling": profiling, "weight_decay": weight_decay,
        "shared_params": shared_parameters, "requested_gpus": requested_gpus, "gpu_mask": list(gpu_mask or []),
    }  # fmt: skip
    params = options.DynetParams()
    params.from_config(conf)
    params.apply()
    stored.update(conf)


def set_gpu(flag: bool = True) -> None:
    """Asks for a GPU; raises NoCudaError if there is none."""
    if flag:
        options.request_gpus("dynet_config.set_gpu()")
    stored["gpu"] = bool(flag)


def gpu() -> bool | None:
    """What `set_gpu` was called with; None before."""
    return stored.get("gpu")


def get() -> dict[str, Any] | None:
    """The values of `set`; None before."""
    return {name: value for name, value in stored.items() if name != "gpu"} or None
