"""Models: named trees of parameters, which own them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from dynjit import textformat
from dynjit.errors import ModelFileError, located
from dynjit.initializers import NumpyInitializer, PyInitializer, initializer_of
from dynjit.legacy import check_device
from dynjit.ops import leaf
from dynjit.parameters import LookupParameters, Parameters, Stored, parameter_changes
from dynjit.shape import as_number, as_text, dims_of


class ParameterCollection:
    """A named tree of parameters.

    parent: makes this a sub-collection of another, as `add_subcollection` does.
    """

    def __init__(self, parent: ParameterCollection | None = None, name: str = "") -> None:
        self.parent = parent
        self.full_name = "/"
        self.names: dict[str, int] = {}
        self.room = math.inf  # of the root: how many values may be added
        self.stored: list[Stored] = []
        self.root: ParameterCollection = parent.root if parent else self
        self.weight_decay = default_weight_decay[0] if parent is None else 0.0
        if parent is not None:
            self.full_name = parent._new_name(name, "add_subcollection") + "/"

    # ---- names ----

    def name(self) -> str:
        """Full name; "/" for the root."""
        return self.full_name

    def _new_name(self, name: str, operator: str) -> str:
        """A full name that nothing in this collection has yet: name, name_1, ..., or _0, _1, ... for the empty name."""
        if not isinstance(name, str):
            raise TypeError(located(f"{operator}: needs a name as a string, got {type(name).__name__}"))
        if "/" in name or "_" in name or any(c.isspace() or c == "#" for c in name):
            raise RuntimeError(located(f"{operator}: needs a name without / _ # and white space, got {name!r}"))
        count = self.names.get(name, 0)
        self.names[name] = count + 1
        return self.full_name + (f"{name}_{count}" if count or not name else name)

    # ---- making ----

    def add_parameters(
        self, dim: Any, init: Any = None, name: str = "", device: str = "", scale: float = 1.0, mean: float = 0.0,
        std: float = 1.0,
    ) -> Parameters:  # fmt: skip
        """New parameters.

        dim: int or tuple;  init: an initialiser, a number, an array (whose shape then counts), or "uniform" (scale),
        "normal" (mean, std), "glorot", "he", "identity", "saxe"; None is Glorot.
        Raises TypeError, ValueError or RuntimeError for what is none of these.
        """
        check_device("add_parameters", device)
        dims = init.shape if isinstance(init, np.ndarray) else dims_of("add_parameters", dim)
        return self._add(Parameters, name, dims, initializer_of(init, dims, scale, mean, std))

    def add_lookup_parameters(
        self, dim: Any, init: Any = None, name: str = "", device: str = "", scale: float = 1.0, mean: float = 0.0,
        std: float = 1.0,
    ) -> LookupParameters:  # fmt: skip
        """A new lookup table; dim: (rows, sizes of a row's axes), or the number of rows of one number each."""
        check_device("add_lookup_parameters", device)
        given = init.shape if isinstance(init, np.ndarray) else dims_of("add_lookup_parameters", dim)
        if not given:
            raise ValueError(located("add_lookup_parameters: needs a number of rows, got none"))
        dims = (*given[1:], given[0]) if len(given) > 1 else (1, given[0])
        if isinstance(init, np.ndarray):
            init = NumpyInitializer(np.moveaxis(init.reshape(given if len(given) > 1 else (*given, 1)), 0, -1))
        return self._add(LookupParameters, name, dims, initializer_of(init, dims, scale, mean, std))

    def _add(self, kind: type[Stored], name: str, dims: tuple[int, ...], initializer: PyInitializer) -> Any:
        if math.prod(dims) > self.root.room:
            raise MemoryError(located(f"add_parameters: needs {dims}, there is room for {self.root.room} more values"))
        self.root.room -= math.prod(dims)
        made = kind("", dims)  # before the values are made, which may not fit the memory
        made.values()[:] = np.asarray(initializer.values(dims, made.is_table), np.float32).ravel(order="F")
        made._name = self._new_name(name, "add_parameters")
        self.stored.append(made)
        for owner in self._ancestors():
            owner.stored.append(made)
        return made

    def _ancestors(self) -> Iterator[ParameterCollection]:
        owner = self.parent
        while owner is not None:
            yield owner
            owner = owner.parent

    def parameters_from_numpy(self, array: Any, name: str = "", device: str = "") -> Parameters:
        """New parameters with the values and shape of an array."""
        return self.add_parameters(None, leaf.as_numbers("parameters_from_numpy", array), name, device)

    def lookup_parameters_from_numpy(self, array: Any, name: str = "", device: str = "") -> LookupParameters:
        """A new lookup table with the values of an array, rows first."""
        return self.add_lookup_parameters(None, leaf.as_numbers("lookup_parameters_from_numpy", array), name, device)

    def add_subcollection(self, name: str | None = None) -> ParameterCollection:
        """A collection inside this one; raises RuntimeError for a name with / or _."""
        return ParameterCollection(self, name or "")

    def contents(self) -> list[tuple[ParameterCollection, int, dict[str, int]]]:
        """What `restore` needs to drop all that is added from now on."""
        return [(owner, len(owner.stored), dict(owner.names)) for owner in (self, *self._ancestors())]

    def restore(self, contents: list[tuple[ParameterCollection, int, dict[str, int]]]) -> None:
        """Drops what was added since `contents`."""
        for owner, count, names in contents:
            del owner.stored[count:]
            owner.names = names
        parameter_changes[0] += 1

    # ---- asking ----

    def parameters_list(self) -> list[Parameters]:
        """All dense parameters in the order in which they were made, sub-collections included."""
        return [stored for stored in self.stored if isinstance(stored, Parameters)]

    def lookup_parameters_list(self) -> list[LookupParameters]:
        """All lookup tables in the order in which they were made, sub-collections included."""
        return [stored for stored in self.stored if isinstance(stored, LookupParameters)]

    def in_file_order(self) -> list[Stored]:
        """All dense parameters, then all lookup tables, as model files hold them."""
        return [*self.parameters_list(), *self.lookup_parameters_list()]

    def parameter_count(self) -> int:
        """Total number of values."""
        return sum(stored.count for stored in self.stored)

    # ---- weight decay ----

    def get_weight_decay(self) -> float:
        """Share by which each update shrinks all values."""
        return self.root.weight_decay

    def set_weight_decay(self, lam: float) -> None:
        """Lets each update multiply all values by 1 - lam; raises ValueError unless 0 <= lam < 1."""
        if not 0 <= as_number("set_weight_decay", lam) < 1:
            raise ValueError(located(f"set_weight_decay: needs a number from 0 to below 1, got {lam}"))
        self.root.weight_decay = float(lam)

    set_weight_decay_lambda = set_weight_decay

    # ---- files ----

    def save(self, fname: str, name: str = "", append: bool = False) -> None:
        """Writes all parameters, then all lookup tables, to a model file; the old file stays if that fails.

        name: replaces the collection's own full name in front of the names; starts with "/".
        """
        textformat.write_blocks(fname, self.blocks(name), append=append)

    def blocks(self, name: str = "") -> Iterator[textformat.Block]:
        """The blocks of a model file."""
        if as_text("save", "a name", name) and (not name.startswith("/") or name == "/"):
            raise ValueError(located(f"save: needs a name that starts with / and is longer, got {name!r}"))
        prefix = (name.rstrip("/") + "/") if name else self.full_name
        for stored in self.in_file_order():
            yield stored.block(prefix + stored.name()[len(self.full_name) :])

    def populate(self, fname: str, key: str = "") -> None:
        """Reads a model file: its k-th parameter into the k-th of the collection, and the k-th table likewise.

        key: only blocks whose names start with it.  Raises ModelFileError, and changes nothing, if the file cannot be
        read or does not fit.
        """
        targets = {"Parameter": list(self.parameters_list()), "LookupParameter": list(self.lookup_parameters_list())}
        prefix = as_text("populate", "a key", key).rstrip("/") + "/" if key != "" else ""
        pairs: list[tuple[Stored, textformat.Block]] = []
        taken = {"Parameter": 0, "LookupParameter": 0}
        found = {"Parameter": 0, "LookupParameter": 0}
        for block in textformat.read_blocks(fname):
            if not block.name.startswith(prefix):
                continue
            found[block.kind] += 1
            if found[block.kind] > len(targets[block.kind]):
                raise ModelFileError(f"{fname}: Too many parameters to load in populated model at {block.name}")
            target = targets[block.kind][taken[block.kind]]
            taken[block.kind] += 1
            target.check_fits(block, fname)
            pairs.append((target, block))
        if not pairs and key:
            raise ModelFileError(f"Could not find key {key} in the model file {fname}")
        wanted = {kind: len(stored) for kind, stored in targets.items()}
        if found != wanted:
            raise ModelFileError(
                f"{fname}: number of parameter/lookup parameter objects loaded from file "
                f"({found['Parameter']}/{found['LookupParameter']}) did not match number to be populated "
                f"({wanted['Parameter']}/{wanted['LookupParameter']})"
            )
        for target, block in pairs:
            target.fill(block)

    def write_to_textfile(self, fname: str, key: str = "", append: bool = False) -> None:
        """As `save`."""
        self.save(fname, key, append)

    populate_from_textfile = populate

    def load_param(self, fname: str, key: str) -> Parameters:
        """New parameters from a block of a model file."""
        return self._load(Parameters, fname, key)  # type: ignore[no-any-return]

    def load_lookup_param(self, fname: str, key: str) -> LookupParameters:
        """A new lookup table from a block of a model file."""
        return self._load(LookupParameters, fname, key)  # type: ignore[no-any-return]

    def _load(self, kind: type[Stored], fname: str, key: str) -> Any:
        block = textformat.find_block(fname, as_text("load_param", "a key", key))
        if block.kind != kind.kind:
            raise ModelFileError(f"{fname}: {key} is a {block.kind}, not a {kind.kind}")
        made = kind(block.name, tuple(block.dims))
        made.fill(block)
        self.stored.append(made)
        for owner in self._ancestors():
            owner.stored.append(made)
        return made

    def __repr__(self) -> str:
        return f"ParameterCollection {self.full_name} ({len(self.stored)} parameters, {self.parameter_count()} values)"


Model = ParameterCollection
default_weight_decay = [0.0]
