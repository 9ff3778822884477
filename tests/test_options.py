"""Start-up options: flags in all spellings, dynet_config, DynetParams; and devices and boxes."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import dynjit as dy
from dynjit import config, graph, models, options, profiling
from dynjit.errors import NoCudaError


@pytest.fixture(autouse=True)
def fresh(monkeypatch) -> None:
    """Nothing configured, nothing initialised."""
    monkeypatch.setattr(options, "is_initialised", [False])
    monkeypatch.setattr(config, "stored", {})


def parsed(*arguments: str) -> options.DynetParams:
    params = options.DynetParams()
    params.from_flags(["program", *arguments])
    return params


# ---- flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [("--dynet-seed", "7"), ("--dynet_seed", "7"), ("--dynet-seed=7",), ("--dynet_seed=7",), ("--dynet-seeds", "7"),
     ("x", "--dynet-seed", "7", "y"), ("--seed", "3", "--dynet-seed", "7", "--", "--other=1")],
)  # fmt: skip
def test_spellings(arguments) -> None:
    assert parsed(*arguments).random_seed == 7


def test_all_flags() -> None:
    found = parsed(
        "--dynet-mem", "512", "--dynet-memory=1,2,3,4", "--dynet_autobatch=0", "--dynet-profiling", "0",
        "--dynet-weight-decay=0.25", "--dynet_weight_decay", "1e-3", "--dynet-devices", "CPU", "--dynet-gpus", "0",
        "--dynet-gpu-ids", "1", "--dynet-viz",
    )  # fmt: skip
    assert (found.mem, found.autobatch, found.weight_decay) == ("1,2,3,4", 0, 1e-3)
    assert parsed().autobatch is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dynet-mem"], "--dynet-mem: needs a value behind it"),
        (["--dynet-mem", "lots"], "mem: needs an integer of 1 or more, got 'lots'"),
        (["--dynet-mem=0"], "mem: needs an integer of 1 or more, got '0'"),
        (["--dynet-mem=1,2"], "mem: needs MiB as a number, or four separated by commas, got '1,2'"),
        (["--dynet-seed=-1"], "seed: needs an integer of 0 or more, got '-1'"),
        (["--dynet-seed="], "seed: needs an integer of 0 or more, got ''"),
        (["--dynet-autobatch", "4"], "autobatch: needs an integer from 0 to 3, got '4'"),
        (["--dynet-autobatch=-1"], "autobatch: needs an integer from 0 to 3, got '-1'"),
        (["--dynet-profiling=3"], "profiling: needs an integer from 0 to 2, got '3'"),
        (["--dynet-weight-decay=1"], "weight_decay: needs a number from 0 to below 1, got '1'"),
        (["--dynet-weight-decay=-0.1"], "weight_decay: needs a number from 0 to below 1, got '-0.1'"),
        (["--dynet-weight-decay=nan"], "weight_decay: needs a number from 0 to below 1, got 'nan'"),
        (["--dynet-devices", "CPU:0"], "devices: needs CPU or GPU:0, got 'CPU:0'"),
    ],
)
def test_bad_values(arguments, message) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        parsed(*arguments)


@pytest.mark.parametrize("arguments", [["--dynet-gpu"], ["--dynet_gpu"], ["--dynet-gpus", "1"], ["--dynet-gpus=2"],
                                       ["--dynet-devices", "CPU,GPU:0"], ["--dynet-devices=GPU:0"]])  # fmt: skip
def test_gpus_are_refused(arguments) -> None:
    with pytest.raises(NoCudaError, match="computes on the CPU"):
        parsed(*arguments)


def test_unknown_flags_are_named(capsys) -> None:
    parsed("--dynet-l2", "0.1", "--dynet-seed", "3")
    assert "--dynet-l2 is not known" in capsys.readouterr().err


# ---- making them count -----------------------------------------------------------------------------------------------


def test_from_args_leaves_the_arguments_alone(monkeypatch) -> None:
    arguments = ["program", "--dynet-seed", "5", "--dynet-autobatch=0", "--dynet-weight-decay", "0.1", "rest"]
    monkeypatch.setattr(sys, "argv", list(arguments))
    options.start()
    assert sys.argv == arguments
    assert graph.settings["autobatch"] == dy.cg().header.autobatch == 0
    assert dy.ParameterCollection().get_weight_decay() == 0.1
    first = dy.random_normal(3).npvalue()
    dy.reset_random_seed(5)
    np.testing.assert_array_equal(dy.random_normal(3).npvalue(), first)


def test_no_flags_change_nothing(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--seed", "5"])
    models.default_weight_decay[0] = 0.5
    options.start()
    assert models.default_weight_decay[0] == 0.5


def test_the_second_initialisation_warns(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--dynet-weight-decay", "0.1"])
    dy.init()
    assert capsys.readouterr().err == ""
    assert models.default_weight_decay[0] == 0.1
    params = dy.DynetParams()
    params.set_weight_decay(0.2)
    for again in (dy.init, params.init, lambda: dy.init_from_params(params)):
        again()
        assert capsys.readouterr().err == (
            "WARNING: Attempting to initialize dynet twice. Ignoring duplicate initialization.\n"
        )
    assert models.default_weight_decay[0] == 0.1


def test_params_one_by_one() -> None:
    params = dy.DynetParams()
    params.set_mem(2048)
    params.set_random_seed(5)
    params.set_autobatch(False)
    params.set_profiling(1)
    params.set_weight_decay(0.2)
    params.set_shared_parameters(False)
    params.set_requested_gpus(0)
    params.set_gpu_mask([0, 0])
    params.set_cpu_mode()
    dy.init_from_params(params)
    assert graph.settings["autobatch"] == 0
    assert models.default_weight_decay[0] == 0.2
    assert len(profiling.of_process) == 1
    profiling.profile_process(0)
    params.from_config({"mem": "1,1,1,1", "seed": 1, "autobatch": 3, "profiling": 0, "weight_decay": 0,
                        "shared_params": 0, "requested_gpus": 0, "gpu_mask": []})  # fmt: skip
    assert params.autobatch == 3
    with pytest.raises(ValueError, match="gpu_mask: should only contain 0 and 1s"):
        params.set_gpu_mask([2])
    for call in (lambda: params.set_gpu_mask([0, 1]), lambda: params.set_requested_gpus(1)):
        with pytest.raises(NoCudaError, match="computes on the CPU"):
            call()


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (1, 1), (2, 2), (3, 3), (True, 1), (False, 0)])
def test_values_do_not_depend_on_grouping(value, expected) -> None:
    params = dy.DynetParams()
    params.set_autobatch(value)
    params.apply()
    assert graph.settings["autobatch"] == expected
    dy.renew_cg()
    xs = [dy.inputVector([i, 1]) for i in range(5)]
    assert dy.esum([dy.square(x) for x in xs]).value() == [30, 5]


# ---- dynet_config ----------------------------------------------------------------------------------------------------


def test_config() -> None:
    assert config.get() is None
    assert config.gpu() is None
    dy.dynet_config.set(mem=100, random_seed=5, autobatch=0, weight_decay=0.1)
    assert config.get() == {"mem": 100, "seed": 5, "autobatch": 0, "profiling": 0, "weight_decay": 0.1,
                            "shared_params": False, "requested_gpus": 0, "gpu_mask": []}  # fmt: skip
    assert graph.settings["autobatch"] == 0
    config.set()  # what is not given again returns to its default
    assert graph.settings["autobatch"] == 1
    assert models.default_weight_decay[0] == 0


def test_config_refuses_gpus() -> None:
    config.set_gpu(False)
    assert config.gpu() is False
    for call in (config.set_gpu, lambda: config.set(requested_gpus=1), lambda: config.set(gpu_mask=[1])):
        with pytest.raises(NoCudaError, match="computes on the CPU"):
            call()
    assert config.get() is None
    with pytest.raises(ValueError, match="autobatch: needs an integer from 0 to 3, got 4"):
        config.set(autobatch=4)


# ---- in processes of their own ---------------------------------------------------------------------------------------


def test_import_reads_the_flags(python) -> None:
    program = "import sys, dynjit as dy; print(dy.random_normal(2).value(), sys.argv[1:])"
    first, second = (python(program, "--dynet-seed", 7, "--mine").stdout for _ in range(2))
    assert first == second
    assert first.endswith("['--dynet-seed', '7', '--mine']\n")
    failed = python("import dynjit", "--dynet-autobatch", "7", check=False)
    assert "ValueError: autobatch: needs an integer from 0 to 3, got '7'" in failed.stderr


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="processes are not forked here")
def test_shared_parameters(python) -> None:
    program = """
import os, dynjit as dy
early = dy.ParameterCollection().add_parameters(2, init=3.0)
dy.init(shared_parameters=True)
m = dy.ParameterCollection()
p = m.add_parameters(2, init=1.0)
child = os.fork()
if child == 0:
    dy.squared_norm(p).backward()
    dy.SimpleSGDTrainer(m, 0.25).update()
    os._exit(0)
os.waitpid(child, 0)
print(p.as_array().tolist(), early.as_array().tolist())
"""
    assert python(program).stdout == "[0.5, 0.5] [3.0, 3.0]\n"


# ---- devices and boxes -----------------------------------------------------------------------------------------------


def test_devices() -> None:
    assert dy.available_devices() == [b"CPU"]
    found = dy.get_device_info("CPU")
    assert (found.name, found.id, found.type) == (b"CPU", 0, -1)
    assert dy.get_device_info(b"CPU") is found
    assert "CPU" in repr(found)
    with pytest.raises(RuntimeError, match="Invalid device name: 'GPU:0'"):
        dy.get_device_info("GPU:0")
    assert dy.DeviceInfo("GPU:1", 1, 0).name == b"GPU:1"
    assert dy.HAVE_CUDA is False


def test_boxes() -> None:
    assert (dy.UnsignedValue(3).get(), dy.FloatValue().get()) == (3, 0.0)
    box = dy.FloatVectorValue([1])
    box.set([1, 2, 3])
    assert (box.get(), box.size()) == ([1.0, 2.0, 3.0], 3)
    numbers = dy.UnsignedVectorValue([1, 2])
    assert (numbers.size(), repr(numbers)) == (2, "UnsignedVectorValue([1, 2])")
    with pytest.raises(ValueError, match="needs an int of 0 or more, got -1"):
        numbers.set([1, -1])
    with pytest.raises(ValueError, match="needs an int of 0 or more, got -1"):
        dy.UnsignedValue(-1)
