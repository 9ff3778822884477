"""`save` and `load` of lists of parameters and builders: DyNet's pair of files, basename.data and basename.meta.

The data file holds the values (see textformat.py); the meta file one small pickle per object: ("Parameters", name),
("LookupParameters", name) or (class, spec, prefix of its names).  Reading never runs what a pickle asks for: only the
known builders resolve, and classes that the caller allows.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterable, Iterator
from typing import Any

from dynjit import rnn, textformat
from dynjit.errors import ModelFileError, located
from dynjit.parameters import LookupParameters, ParameterCollection, Parameters

BUILDERS = ("SimpleRNNBuilder", "GRUBuilder", "VanillaLSTMBuilder", "LSTMBuilder", "CompactVanillaLSTMBuilder",
            "CoupledLSTMBuilder", "FastLSTMBuilder", "SparseLSTMBuilder", "BiRNNBuilder")  # fmt: skip
MODULES = ("_dynet", "dynet", "_dynjit", "dynjit.rnn", "dynjit")


class KnownClasses(pickle.Unpickler):
    """Reads pickles of tuples, numbers, strings and the builders' classes; everything else is refused."""

    def __init__(self, file: Any, allowed: tuple[type, ...]) -> None:
        super().__init__(file)
        self.allowed = {(kind.__module__, kind.__qualname__): kind for kind in allowed}

    def find_class(self, module: str, name: str) -> Any:
        if module in MODULES and name in BUILDERS and hasattr(rnn, name):
            return getattr(rnn, name)
        if (module, name) in self.allowed:
            return self.allowed[module, name]
        raise ModelFileError(
            f"the meta file asks for {module}.{name}: only dynjit's builders are loaded, and classes named in `allowed`"
        )


def save(basename: str, objects: Iterable[Any]) -> None:
    """Writes parameters, lookup tables, builders, or objects with param_collection() and spec, to two files.

    Both files are written beside the old ones and replace them when they are complete.
    Raises TypeError for what cannot be saved.
    """
    if isinstance(objects, (Parameters, LookupParameters)) or hasattr(objects, "param_collection"):
        objects = [objects]
    descriptions: list[tuple[Any, ...]] = []
    blocks: list[textformat.Block] = []
    for item in objects:
        if isinstance(item, (Parameters, LookupParameters)):
            descriptions.append((type(item).__name__, item.name()))
            blocks.append(item.block())
        elif hasattr(item, "param_collection") and hasattr(item, "spec"):
            collection = item.param_collection()
            descriptions.append((type(item), item.spec, collection.name()))
            blocks.extend(collection.blocks())
        else:
            raise TypeError(located(
                f"save: needs parameters, lookup tables or objects with param_collection() and spec, got {type(item).__name__}"
            ))  # fmt: skip
    meta = io.BytesIO()
    for description in descriptions:
        pickle.dump(description, meta)
    textformat.write_blocks(basename + ".data", blocks)
    with textformat.atomic_writer(basename + ".meta") as file:
        file.write(meta.getvalue())


def load_generator(
    basename: str, params: ParameterCollection, allowed: tuple[type, ...] = ()
) -> Iterator[Any]:
    """As `load`, one object at a time."""
    blocks = list(textformat.read_blocks(basename + ".data"))
    size = os.path.getsize(basename + ".meta")
    with open(basename + ".meta", "rb") as file:
        while file.tell() < size:
            try:
                description = KnownClasses(file, allowed).load()
                kind, *rest = description
            except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError,
                    ImportError, UnicodeDecodeError, MemoryError, OverflowError) as error:  # fmt: skip
                raise ModelFileError(f"{basename}.meta: not a list of saved objects ({error})") from None
            if kind in ("Parameters", "LookupParameters") and len(rest) == 1:
                load_one = params.load_param if kind == "Parameters" else params.load_lookup_param
                yield load_one(basename + ".data", rest[0])
            elif isinstance(kind, type) and len(rest) == 2:
                item = kind.from_spec(rest[0], params)  # type: ignore[attr-defined]
                fill(item.param_collection(), [b for b in blocks if b.name.startswith(rest[1])], basename)
                yield item
            else:
                raise ModelFileError(f"{basename}.meta: not a list of saved objects ({description!r})")


def fill(collection: ParameterCollection, blocks: list[textformat.Block], basename: str) -> None:
    """Gives the parameters of a new builder the values of their blocks, in order."""
    stored = [*collection.parameters_list(), *collection.lookup_parameters_list()]
    if len(stored) != len(blocks):
        raise ModelFileError(f"{basename}.data: {len(blocks)} blocks for {len(stored)} parameters of {collection.name()}")
    for item, block in zip(stored, blocks):
        item.check_fits(block)
    for item, block in zip(stored, blocks):
        item.fill(block)


def load(basename: str, params: ParameterCollection, allowed: tuple[type, ...] = ()) -> list[Any]:
    """The objects that `save` wrote, in order, their parameters new ones of the collection `params`.

    allowed: classes of the user's own that the file may name (each with from_spec(spec, collection)).
    Raises FileNotFoundError for missing files, ModelFileError for others than `save` writes.
    """
    return list(load_generator(basename, params, allowed))
