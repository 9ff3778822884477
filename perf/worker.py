"""A contestant: a child process that reads commands from its standard input and answers on its standard output.

A command and its answer are a line of JSON each.  It is run as `python -m perf.worker KIND`; KIND is `dynjit`, `torch`,
or `dynet-0`, `dynet-1`, `dynet-2`, where the number is DyNet's autobatch; `dynjit-0` is dynjit without grouping.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, TextIO

import numpy as np

from perf.cases import Case
from perf.data import Corpus, load_corpus
from perf.runners import PARTS, DynetRunner, Runner, TorchRunner, run_pass

SEED = 1


def start_toolkit(kind: str, threads: int, memory_mib: int) -> Any:
    """Imports the toolkit with its options."""
    toolkit, _, autobatch = kind.partition("-")
    if toolkit == "dynet":
        import dynet_config

        dynet_config.set(mem=memory_mib, random_seed=SEED, autobatch=int(autobatch or 0))
    elif autobatch:
        sys.argv += ["--dynet-autobatch", autobatch]
    module = importlib.import_module(toolkit)
    if toolkit == "torch":
        module.set_num_threads(threads)
        module.manual_seed(SEED)
        if os.environ.get("DYNJIT_DEVICE") == "gpu":
            module.set_default_device("cuda")
    elif hasattr(module, "set_threads"):
        module.set_threads(threads)
    return module


class Worker:
    """The commands: each public method is one, its arguments are the command's."""

    def __init__(self, kind: str, threads: int, data: str | None, memory_mib: int) -> None:
        start = perf_counter()
        self.kind = kind
        self.module = start_toolkit(kind, threads, memory_mib)
        self.import_seconds = perf_counter() - start
        self.corpus: Corpus = load_corpus(data)
        self.styles: dict[str, Runner] = {}
        self.case = Case("")
        self.steps: list[list[Any]] = []

    def describe(self) -> dict[str, Any]:
        """Versions, data, and the libraries that compute."""
        name = self.kind.partition("-")[0]
        answer = {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "toolkit": version_of({"dynet": "dynet38"}.get(name, name)),
            "import_seconds": self.import_seconds,
            "data": self.corpus.source,
            "sentences": len(self.corpus.sentences),
            "trees": len(self.corpus.trees),
        }
        try:
            from threadpoolctl import threadpool_info
        except ImportError:
            return answer
        keys = ("user_api", "internal_api", "version", "architecture", "num_threads")
        return answer | {"libraries": [{key: pool.get(key) for key in keys} for pool in threadpool_info()]}

    def sgemm_peak(self, size: int = 1024, rounds: int = 10) -> float:
        """GFLOP/s of the best of some square float32 products through NumPy."""
        left = np.ones((size, size), np.float32)
        out = np.empty_like(left)
        seconds = []
        for _ in range(rounds):
            start = perf_counter()
            np.matmul(left, left, out=out)
            seconds.append(perf_counter() - start)
        return 2 * size**3 / min(seconds) / 1e9

    def prepare(self, case: dict[str, Any], styles: list[str]) -> dict[str, Any]:
        """Makes the case's model in each style and goes through one pass of each, untimed.

        Returns by style the loss per example of the first pass, or what went wrong.
        """
        self.case = Case(**case)
        self.steps = self.case.steps(self.corpus)
        self.styles = {}
        answer: dict[str, Any] = {}
        for style in styles:
            try:
                self.styles[style] = self.runner(style)
                start = perf_counter()
                loss, _ = run_pass(self.step(style), self.steps)
                answer[style] = {"loss": loss / self.items, "seconds": perf_counter() - start}
                if self.kind == "dynjit":
                    answer[style]["mflop"] = self.mflop(style)
            except Exception as error:  # one style may lack an operator, the others still count
                self.styles.pop(style, None)
                answer[style] = {"error": f"{type(error).__name__}: {error}"}
        return answer

    def mflop(self, style: str) -> float:
        """Millions of floating-point operations per tree or sentence, updates left out, as dynjit's profile counts."""
        with self.module.profile(trace=False) as found:
            run_pass(self.step(style), self.steps)
        return sum(row.flops for row in found.rows) / self.items / 1e6  # type: ignore[no-any-return]

    @property
    def items(self) -> int:
        """Trees or sentences in one pass."""
        return sum(len(examples) for examples in self.steps) * (self.case.minibatch or 1)

    def runner(self, style: str) -> Runner:
        """Model in this style: the name of a builder, or PyTorch's eager or fused."""
        if self.kind == "torch":
            return TorchRunner(self.case, self.corpus, style == "fused")
        return DynetRunner(self.module, self.case, self.corpus, style)

    def step(self, style: str) -> Any:
        """Function that takes one step."""
        runner = self.styles[style]
        return runner.train if self.case.is_training else runner.infer

    def measure(self, style: str, seconds: float) -> dict[str, float]:
        """Whole passes for at least so many seconds; milliseconds per tree or sentence, in parts and in total.

        `share` is the processor time that this process got in a second: much less than 1 if others used the machine.
        `peak`, of dynjit alone, is what `sgemm_peak` finds right afterwards.
        """
        spent = np.zeros(len(PARTS))
        passes = 0
        start, start_processor = perf_counter(), process_time()
        while passes == 0 or perf_counter() - start < seconds:
            spent += run_pass(self.step(style), self.steps)[1]
            passes += 1
        share = (process_time() - start_processor) / (perf_counter() - start)
        milliseconds = spent / (passes * self.items) * 1e3
        answer = {**dict(zip(PARTS, milliseconds.tolist())), "total": float(milliseconds.sum()), "share": share}
        return answer | ({"peak": self.sgemm_peak(rounds=3)} if self.kind == "dynjit" else {})

    def construction(self, rounds: int) -> dict[str, float | str]:
        """Nanoseconds per node by operator."""
        from perf.construction import nanoseconds_per_node

        return nanoseconds_per_node(self.module, rounds)

    def memory(self, case: dict[str, Any], style: str, graphs: int, first: int) -> dict[str, float]:
        """Trains on so many graphs in a row; MiB before, after the first few, after all, and at the peak."""
        self.case = Case(**case)
        self.steps = self.case.steps(self.corpus)
        start = resident_mib("VmRSS")
        runner = self.runner(style)
        early = 0.0
        for index in range(graphs):
            runner.train(self.steps[index % len(self.steps)])
            if index + 1 == first:
                early = resident_mib("VmRSS")
        return {"start": start, "early": early, "late": resident_mib("VmRSS"), "peak": resident_mib("VmHWM")}

    def save_parameters(self, style: str, path: str) -> None:
        """Writes the parameters' values to an npz file, in the order in which they were made."""
        np.savez(path, *[parameter.as_array() for parameter in self.parameters(style)])

    def load_parameters(self, style: str, path: str) -> None:
        """Reads what save_parameters wrote."""
        with np.load(path) as arrays:
            for parameter, name in zip(self.parameters(style), arrays.files, strict=True):
                setter = parameter.init_from_array if hasattr(parameter, "init_from_array") else parameter.set_value
                setter(arrays[name])

    def parameters(self, style: str) -> list[Any]:
        """Parameters and lookup parameters of the model."""
        model = self.styles[style].workload.model
        return [*model.parameters_list(), *model.lookup_parameters_list()]

    def losses(self, style: str, trainer: str, updates: int) -> list[float]:
        """Losses of so many training steps with a new trainer, SimpleSGDTrainer or AdamTrainer."""
        runner = self.styles[style]
        runner.trainer = getattr(self.module, trainer)(runner.workload.model)
        return [runner.train(self.steps[index % len(self.steps)])[0] for index in range(updates)]


def version_of(package: str) -> str:
    """Version of an installed package; "source" if it is used from a folder."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "source"


def resident_mib(field: str) -> float:
    """Memory of this process in MiB: VmRSS now, VmHWM at its peak (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"no {field} in /proc/self/status")


def serve(worker: Worker, answers: TextIO) -> None:
    """Answers the commands until the input ends."""
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = {"answer": getattr(worker, command.pop("command"))(**command)}
        except Exception as error:  # reported where the command came from
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    """Starts the toolkit and serves; what a library prints goes to standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data")
    parser.add_argument("--memory-mib", type=int, default=512, help="DyNet's own first memory")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.argv = sys.argv[:1]
    worker = Worker(options.kind, options.threads, options.data, options.memory_mib)
    serve(worker, answers)


if __name__ == "__main__":
    main()
