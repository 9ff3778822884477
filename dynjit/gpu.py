"""Runs plans on a GPU: where values lie, what is newer on which side, and launches.

The host's buffers stay what they are: windows of them are filled when somebody asks for a value.  On the device lie two
buffers of the same layout, parameters in front, behind them one graph, the *resident* one.  When another graph
computes, the values of the first are saved in the host's buffers and come back with it.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from dynjit import cudakernels as ck
from dynjit.lowering import lower_backward, lower_forward
from dynjit.program import LEAST_PRODUCT, NEVER, NN, NT, TN, Lowering
from dynjit.space import space
from dynjit.tiles import THREADS

LEAST = 1 << 18  # elements that are made room for at once
MOST_BLOCKS = 1 << 16
ONE = np.ones(1, np.float32)


class Buffer:
    """A buffer of the device; its front part mirrors that of a buffer of the host, which holds parameters."""

    def __init__(self, device: Any, host: np.ndarray) -> None:
        self.device, self.host = device, host
        self.address = self.count = 0
        self.is_host_new, self.is_device_new = True, False

    def allocate(self, count: int) -> None:
        """Gets room for so many elements; what was there is lost."""
        if self.count:
            self.device.free(self.address)
        self.count = 0
        self.address = self.device.allocate(4 * count)
        self.count, self.is_host_new = count, True

    def to_device(self) -> None:
        """Brings the parameters to the device, if they may have changed on the host."""
        if self.is_host_new:
            self.upload(0, self.host[: space.parameter_top])
            self.is_host_new = False

    def changed(self) -> None:
        """The device has changed the parameters.

        A collection that the garbage collector meets in the meantime may have zeroed its memory on the host: nobody's.
        """
        self.is_host_new, self.is_device_new = False, True

    def to_host(self) -> None:
        """Brings the parameters to the host, if they have changed on the device."""
        if self.is_device_new:
            self.host[: space.parameter_top] = self.download(0, space.parameter_top)
            self.is_device_new = False

    def upload(self, offset: int, values: np.ndarray) -> None:
        if values.size:
            self.device.upload(self.address + 4 * offset, values)

    def download(self, offset: int, count: int) -> np.ndarray:
        return self.device.download(self.address + 4 * offset, count, np.float32)  # type: ignore[no-any-return]

    def argument(self) -> tuple[int, ...]:
        """Itself as a kernel's array."""
        return array_argument(self.address, self.count, 4)


class Lent(NamedTuple):
    """Memory of the device that is given back soon."""

    device: Any
    address: int
    size: int
    itemsize: int

    def argument(self) -> tuple[int, ...]:
        return array_argument(self.address, self.size, self.itemsize)

    def download(self, offset: int, count: int) -> np.ndarray:
        return self.device.download(self.address + 4 * offset, count, np.float32)  # type: ignore[no-any-return]


def array_argument(address: int, count: int, itemsize: int) -> tuple[int, ...]:
    """An array as Numba's kernels take it."""
    return 0, 0, count, itemsize, address, count, itemsize


def doubled(needed: int, present: int) -> int:
    return needed if needed <= present else max(needed, 2 * present, LEAST)


class Executor:
    """What computes graphs on one device; `library`: what makes large products there (cublas.py), if anything does."""

    def __init__(self, device: Any, library: Any = None, least_product: int = LEAST_PRODUCT) -> None:
        self.device, self.library = device, library
        self.lowering = Lowering(least_product if library else NEVER)
        self.values, self.gradients = Buffer(device, space.single.v), Buffer(device, space.single.g)
        self.moments: list[Buffer] = []
        self.room = [0, 0]  # elements: of parameters, of the resident graph
        self.program_address = self.program_count = 0
        self.pairs: set[int] = {ck.GATHER, ck.SCATTER}
        self.kernel = ""
        self.resident: Any = None  # a weak reference to a graph
        self.version = self.mark = 0  # of the resident graph; up to where its values are on the device
        self.is_persistent = True

    # ---- memory ----

    def buffers(self) -> list[Buffer]:
        return [self.values, self.gradients, *self.moments]

    def reserve(self, graph: Any) -> None:
        """Makes room for the parameters and a graph; if there is none, saves everything and raises MemoryError."""
        parameters, values = space.parameter_top, 0
        if graph is not None:
            values = graph.header.value_top - graph.header.value_base
        elif self.resident is not None:
            values = self.room[1]
        if parameters <= self.room[0] and values <= self.room[1]:
            return
        self.save()
        wanted = [doubled(parameters, self.room[0]), doubled(values, self.room[1])]
        self.room = [0, 0]
        try:
            for buffer in (self.values, self.gradients):
                buffer.allocate(sum(wanted))
            for buffer in self.moments:
                buffer.allocate(wanted[0])
        except MemoryError as error:
            raise MemoryError(f"no room on the GPU for {wanted[0]} numbers of parameters and {wanted[1]} of a graph, "
                              f"with gradients: {error}") from None  # fmt: skip
        self.room = wanted

    def save(self) -> None:
        """Brings everything to the host; no graph is resident then."""
        for buffer in self.buffers():
            buffer.to_host()
            buffer.is_host_new = True
        graph = self.resident() if self.resident is not None else None
        if graph is not None and graph.version() == self.version:
            base = graph.header.value_base
            count = min(self.mark, graph.header.value_top) - base
            for buffer in (self.values, self.gradients) if graph.header.backward_top >= 0 else (self.values,):
                buffer.host[base : base + count] = buffer.download(self.room[0], count)
        self.resident = None

    def is_resident(self, graph: Any) -> bool:
        return self.resident is not None and self.resident() is graph and self.version == graph.version()

    def attach(self, graph: Any, inputs_end: int) -> None:
        """Makes a graph the resident one, and brings what is new on the host: inputs up to an offset, parameters."""
        if not self.is_resident(graph):
            self.save_other(graph)
        self.reserve(graph)
        base = graph.header.value_base
        if self.resident is None:
            self.resident, self.version, self.mark = weakref.ref(graph), graph.version(), base
            if graph.header.backward_top >= 0:
                self.gradients.upload(self.room[0], space.single.g[base : graph.header.backward_top])
        self.values.upload(self.room[0] + self.mark - base, space.single.v[self.mark : inputs_end])
        self.mark = graph.header.value_top
        self.values.to_device()
        self.lowering.record["graph_base"] = self.room[0]

    def save_other(self, graph: Any) -> None:
        """Ends the stay of the resident graph."""
        other = self.resident() if self.resident is not None else None
        if other is not None and other is not graph and other.version() == self.version:
            self.save()
        self.resident = None

    def cut(self, graph: Any) -> None:
        """What a graph has dropped is no longer on the device."""
        if self.is_resident(graph):
            self.mark = min(self.mark, graph.header.value_top)

    def fetch(self, graph: Any, buffer: Buffer, start: int, count: int) -> None:
        """Brings numbers of a graph, or of parameters, to the same place of the host's buffer."""
        if start < space.parameter_end:
            buffer.to_host()
        elif self.is_resident(graph) and start + count <= self.mark:
            at = self.room[0] + start - graph.header.value_base
            buffer.host[start : start + count] = buffer.download(at, count)

    def address(self, graph: Any, start: int) -> int:
        """Where the value at an offset lies on the device; 0 if it is not there."""
        if start < space.parameter_end:
            return self.values.address + 4 * start
        if not self.is_resident(graph) or start >= self.mark:
            return 0
        return self.values.address + 4 * (self.room[0] + start - graph.header.value_base)

    def send(self, graph: Any, start: int, count: int) -> None:
        """Brings changed inputs to the device, if they are there already."""
        if self.is_resident(graph) and start < self.mark:
            at = self.room[0] + start - graph.header.value_base
            self.values.upload(at, space.single.v[start : start + count])

    def to_host(self, buffer: Buffer) -> None:
        """Makes parameters on the host right, and free to be changed there."""
        buffer.to_host()
        buffer.is_host_new = True

    @contextlib.contextmanager
    def lent(self, values: np.ndarray) -> Iterator[Lent]:
        """Memory for a while, with some numbers."""
        address = self.device.allocate(values.nbytes)
        try:
            self.device.upload(address, values)
            yield Lent(self.device, address, values.size, values.itemsize)
        finally:
            self.device.free(address)

    def moment(self, host: np.ndarray) -> Buffer:
        """The device's side of a trainer's moment."""
        found = next((buffer for buffer in self.moments if buffer.host is host), None)
        if found is None:
            found = Buffer(self.device, host)
            self.moments.append(found)
        if found.count < self.room[0]:
            found.allocate(self.room[0])
        return found

    def all_to_host(self) -> None:
        """Makes all that belongs to parameters right on the host, and free to be changed there."""
        for buffer in self.buffers():
            self.to_host(buffer)

    # ---- running ----

    def forward(self, graph: Any, inputs_end: int) -> None:
        """Runs the calls of a graph that have not run yet; NoCudaError if one cannot run on a GPU."""
        self.attach(graph, inputs_end)
        lower_forward.call(graph.address, self.lowering.address)
        self.lowering.check()
        self.run()
        graph.header.calls_done = graph.header.call_count

    def backward(self, graph: Any, number: int, full: bool, dy: np.ndarray = ONE) -> None:
        """Adds the gradients of sum(dy * value) of a node to those of parameters; NoCudaError as in `forward`."""
        self.attach(graph, graph.header.value_top)
        self.gradients.to_device()
        base = graph.header.value_base
        lower_backward.call(graph.address, self.lowering.address, number, int(full))
        self.lowering.check()
        self.device.fill(self.gradients.address + 4 * self.room[0], 4 * (graph.header.value_top - base), 0)
        start = int(graph.nodes[number]["value"])
        self.gradients.upload(start if start < base else self.room[0] + start - base, dy)
        self.run()
        self.gradients.changed()

    def load(self) -> str:
        """The kernel for all operators that were used so far."""
        used = self.lowering.used()
        if not self.kernel or not self.pairs.issuperset(used):
            self.pairs.update(used)
            self.kernel = ck.program_ptx(self.pairs, self.device.capability)
        return self.kernel

    def run(self) -> None:
        """Uploads the program that was made, and runs it, in stretches that end with products of the library."""
        record, program = self.lowering.record, self.lowering.program
        levels, table = int(record["levels"]), int(record["table"])
        if levels == 0:
            return
        if program.size > self.program_count:
            if self.program_count:
                self.device.free(self.program_address)
            self.program_count = 0
            count = doubled(program.size, self.program_count)
            self.program_address, self.program_count = self.device.allocate(8 * count), count
        self.device.upload(self.program_address, program)
        work = np.diff(program[table : table + levels + 1])
        arguments = (
            *self.values.argument(), *self.gradients.argument(), *array_argument(self.program_address, program.size, 8),
            *array_argument(self.program_address, 2 * program.size, 4), table, int(record["items"]),
        )  # fmt: skip
        products, first = self.lowering.products, 0
        for level in np.unique(products["level"]).tolist():
            self.launch(arguments, work, first, level + 1)
            for product in products[products["level"] == level].tolist():
                self.multiply(*product[1:])
            first = level + 1
        self.launch(arguments, work, first, levels)

    def launch(self, arguments: tuple[int, ...], work: np.ndarray, first: int, stop: int) -> None:
        """Launches some levels of the program: together, or one by one.  work: how many work items each level has."""
        busy = np.flatnonzero(work[first:stop]) + first
        if not busy.size:
            return
        kernel = self.load()
        resident = self.device.resident_blocks(kernel) if self.is_persistent and busy.size > 1 else 0
        if resident:
            blocks = int(min(work[busy].max(), resident))
            if first:  # the barrier's count
                self.device.fill(self.program_address, 8, 0)
            self.device.launch(kernel, blocks, THREADS, (*arguments, first, stop), together=True)
            return
        for level in busy.tolist():
            blocks = int(min(work[level], MOST_BLOCKS))
            self.device.launch(kernel, blocks, THREADS, (*arguments, level, level + 1))

    def multiply(self, kind: int, a: int, b: int, c: int, *numbers: int) -> None:
        """Lets the library make a product of matrices at offsets: m, n, k, and whether it adds."""
        v, g = self.values.address, self.gradients.address
        buffers = {NN: (v, v, v), TN: (v, g, g), NT: (g, v, g)}[kind]
        places = (buffer + 4 * offset for buffer, offset in zip(buffers, (a, b, c), strict=True))
        self.library.multiply(kind, *places, *numbers)
