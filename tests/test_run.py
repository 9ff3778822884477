"""DyNet programs with dynjit in DyNet's place: running them, and telling which names they use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dynjit import check, cli

PROGRAM = """
import sys
import dynet_config
dynet_config.set(random_seed=5, mem=100)
import dynet as dy
from dynet import *
import _dynet
import helper

class Model:
    def __init__(self, pc):
        self.W = pc.add_parameters((8, 2))
        self.V = pc.add_parameters((1, 8))
        self.b = pc.add_parameters(8)

    def __call__(self, x):
        return self.V * dy.tanh(affine_transform([self.b, self.W, x]))

print(__name__, sys.argv, dy.__version__, np.__name__, helper.dy is dy, dynet_config.get()["seed"])
print(isinstance(LSTMBuilder(1, 2, 2, dy.ParameterCollection()), _dynet._RNNBuilder))
pickle.dumps(Model)  # found in __main__
pc = dy.ParameterCollection()
model, trainer = Model(pc), dy.SimpleSGDTrainer(pc)
for epoch in range(200):
    for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        renew_cg()
        loss = dy.binary_log_loss(dy.logistic(model(inputVector([a, b]))), scalarInput(a ^ b))
        loss.backward()
        trainer.update()
print(round(dy.scalarInput(0.2), "zero_gradient").value(), loss.value() < 0.3)
"""


def run(*arguments: object, cwd: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


def test_a_program(tmp_path) -> None:
    (tmp_path / "xor.py").write_text(PROGRAM)
    (tmp_path / "helper.py").write_text("import dynet as dy\n")
    found = run("dynjit.run", "xor.py", "--dynet-mem", "5", "--mine", cwd=tmp_path)
    assert found.stdout.splitlines() == [
        "__main__ ['xor.py', '--dynet-mem', '5', '--mine'] 2.1 numpy True 5", "True", "0.0 True",
    ]  # fmt: skip
    assert found.returncode == 0


SPAWNS = """
import multiprocessing
import pickle
import dynet as dy

def double(queue, number):
    queue.put((dy.scalarInput(number) * 2).value())
    if number < 3:
        start(queue, number + 1)

def start(queue, number):
    process = multiprocessing.get_context("spawn").Process(target=double, args=(queue, number))
    process.start()
    process.join()

if __name__ == "__main__":
    queue = multiprocessing.get_context("spawn").Queue()
    start(queue, 2)
    print(queue.get(timeout=100), queue.get(timeout=100))
"""


def test_processes_that_a_program_spawns(tmp_path) -> None:
    (tmp_path / "program.py").write_text(SPAWNS)
    done = run("dynjit.run", "program.py", cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("4.0 6.0\n", "", 0)


def test_tracebacks_and_exit_codes(tmp_path) -> None:
    (tmp_path / "bad.py").write_text("import sys, _dynet as dy\n\ndef f():\n    dy.scalarInput('x')\n\n"
                                     "if len(sys.argv) > 1: sys.exit(7)\nf()\n")  # fmt: skip
    found = run("dynjit.cli", "run", "bad.py", cwd=tmp_path)
    lines = found.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1] == f'  File "{tmp_path}/bad.py", line 7, in <module>'
    assert found.returncode == 1
    assert run("dynjit.run", "bad.py", "x", cwd=tmp_path).returncode == 7
    missing = run("dynjit.run", "missing.py", cwd=tmp_path)
    assert "cannot read missing.py: No such file" in missing.stderr
    assert missing.returncode == 2


# ---- check -----------------------------------------------------------------------------------------------------------


def verdicts(source: str) -> dict[str, tuple[str, list[int]]]:
    return {use.name: (use.verdict, use.lines) for use in check.check(source, "program.py")}


def test_uses_of_the_module() -> None:
    found = verdicts("import dynet as dy\nx = dy.silu(dy.zeros(2))\ny = dy.silu(x) + dy.nonsense\ndy.__version__\n")
    assert found == {"nonsense": ("missing", [3]), "silu": ("better", [2, 3]), "zeros": ("better", [2])}
    assert verdicts("import _dynet\n_dynet.tanh(1)") == {"tanh": ("same", [2])}
    assert verdicts("import dynet\ndynet.dynet_config") == {"dynet_config": ("same", [2])}
    assert verdicts("import numpy as dy\ndy.tanh(1)") == {}


def test_a_variable_of_several_meanings_is_of_no_class() -> None:
    source = "import dynet as dy\np = dy.DynetParams()\nwith Pool(2) as p:\n    p.map(f, [1])\n"
    assert [use.name for use in check.check(source, "")] == ["DynetParams"]
    source = (
        "import dynet as dy\ndef f():\n    p = dy.DynetParams()\ndef g():\n    p = dy.DynetParams()\n    p.map(1)\n"
    )
    assert [use.verdict for use in check.check(source, "")] == ["missing", "same"]


def test_imported_names() -> None:
    found = verdicts("from dynet import tanh as f, foo\nf(2)\n")
    assert found == {"foo": ("missing", [1]), "tanh": ("same", [1])}
    found = verdicts("from dynet import *\nexp = 2\ndef pow(x): return x\nprint(tanh(exp), pow(3), other, abs(2))\n")
    assert found == {"tanh": ("same", [4]), "abs": ("same", [4])}


def test_methods() -> None:
    found = verdicts("""
import dynet as dy
class Tagger:
    def __init__(self, model):
        self.trainer = dy.AdamTrainer(model)
        self.lstm = dy.LSTMBuilder(1, 2, 2, model)
    def own_method(self, x):
        self.trainer.update_subset([], [])
        self.trainer.set_rates(1)
        return self.lstm.initial_state().add_inputs(x), x.strip(), x.own_method()
""")
    assert found == {
        "AdamTrainer.set_rates": ("missing", [9]), "AdamTrainer.update_subset": ("better", [8]),
        "AdamTrainer": ("same", [5]), "LSTMBuilder": ("better", [6]),
        "LSTMBuilder.initial_state": ("same", [10]), ".add_inputs": ("same", [10]),
    }  # fmt: skip


def test_the_command(tmp_path, capsys) -> None:
    good, bad, broken = (tmp_path / name for name in ("good.py", "bad.py", "broken.py"))
    good.write_text("import dynet as dy\ndy.silu(1)\ndy.tanh(2)\n")
    bad.write_text("import dynet as dy\ndy.frobnicate(1)\n")
    broken.write_text("import (\n")
    assert cli.main(["check", str(good)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{good}: 2 names of DyNet, 1 same, 1 better, 0 missing"
    assert lines[1].split()[:4] == ["better", "silu", "line", "2:"]
    assert "gradient knows beta" in lines[1]
    assert lines[2].split() == ["same", "tanh", "line", "3"]
    assert cli.main(["check", str(good), str(bad)]) == 1
    assert "missing" in capsys.readouterr().out
    assert cli.main(["check", str(broken), str(bad)]) == 2
    assert f"cannot read {broken}" in capsys.readouterr().err
    assert cli.main(["check", str(tmp_path / "none.py")]) == 2


def test_long_lists_of_lines_are_cut() -> None:
    source = "import dynet as dy\n" + "dy.tanh(1)\n" * 20
    (use,) = check.check(source, "program.py")
    assert str(use).endswith("2, 3, 4, 5, 6, 7, 8, 9 ...")


@pytest.mark.parametrize("name", ["value", "update", "__init__", "no_such_name"])
def test_names_that_are_not_clear(name: str) -> None:
    assert not check.is_clear(name)
