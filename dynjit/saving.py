"""`save` and `load` of lists of parameters and builders: DyNet's pair of files, basename.data and basename.meta.

The data file holds the values (see textformat.py); the meta file one small pickle per object: ("Parameters", name),
("LookupParameters", name) or (class, spec, prefix of its names).  What a builder has outside of its own collection
(`outer_parameters`; DyNet loses it) is called PREFIX_outer/0, ....  Reading never runs what a pickle asks for: only the
known builders resolve, and classes that the caller allows.
"""

from __future__ import annotations

import io
import math
import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from dynjit import rnn, textformat, tree
from dynjit.errors import ModelFileError, located
from dynjit.models import ParameterCollection
from dynjit.parameters import LookupParameters, Parameters, Stored
from dynjit.softmax_builders import StandardSoftmaxBuilder

# softmax builders that read a file of clusters are not among them: a meta file would choose which file is opened
BUILDERS = {kind.__name__: kind for kind in (
    rnn.SimpleRNNBuilder, rnn.GRUBuilder, rnn.VanillaLSTMBuilder, rnn.CompactVanillaLSTMBuilder,
    rnn.CoupledLSTMBuilder, rnn.FastLSTMBuilder, rnn.SparseLSTMBuilder, rnn.BiRNNBuilder, StandardSoftmaxBuilder,
    tree.ChildSumTreeLSTMBuilder, tree.NaryTreeLSTMBuilder, tree.UnidirectionalTreeLSTMBuilder,
    tree.BidirectionalTreeLSTMBuilder,
)} | {"LSTMBuilder": rnn.VanillaLSTMBuilder}  # fmt: skip
DYNET_BUILDERS = (  # those that DyNet reads
    rnn.SimpleRNNBuilder, rnn.GRUBuilder, rnn.VanillaLSTMBuilder, rnn.CompactVanillaLSTMBuilder,
    rnn.CoupledLSTMBuilder, rnn.SparseLSTMBuilder, rnn.BiRNNBuilder,
)  # fmt: skip
MODULES = ("_dynet", "dynet", "_dynjit", "dynjit.rnn", "dynjit.softmax_builders", "dynjit.tree", "dynjit")


CALLS = (pickle.REDUCE, pickle.BUILD, pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.PERSID,
         pickle.BINPERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4)  # fmt: skip


class KnownClasses(pickle._Unpickler):  # the one in Python: that in C takes memory as a file asks for it
    """Reads pickles of tuples, numbers, strings and the builders' classes; everything else is refused."""

    dispatch: ClassVar = {  # of the operations that call nothing
        code: read for code, read in pickle._Unpickler.dispatch.items() if code not in {call[0] for call in CALLS}
    }

    def __init__(self, file: Any, allowed: tuple[type, ...]) -> None:
        super().__init__(file)
        self.allowed = {(kind.__module__, kind.__qualname__): kind for kind in allowed}

    def find_class(self, module: str, name: str) -> Any:
        if module in MODULES and name in BUILDERS:
            return BUILDERS[name]
        if (module, name) in self.allowed:
            return self.allowed[module, name]
        raise ModelFileError(
            f"the meta file asks for {module}.{name}: only dynjit's builders are loaded, and classes named in `allowed`"
        )


class DynetNames(pickle._Pickler):  # the one in Python: that in C looks a class up where it says it comes from
    """Writes pickles in which DyNet's builders are classes of `_dynet`, so that DyNet reads them, too."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj in DYNET_BUILDERS:
            self.write(pickle.GLOBAL + f"_dynet\n{obj.__name__}\n".encode())  # type: ignore[attr-defined]
            self.memoize(obj)  # type: ignore[attr-defined]
        else:
            super().save_global(obj, name)  # type: ignore[misc]

    dispatch: ClassVar = {**pickle._Pickler.dispatch, type: save_global}  # type: ignore[dict-item]


def save(basename: str | os.PathLike[str], objects: Iterable[Any]) -> None:
    """Writes parameters, lookup tables, builders, or objects with param_collection() and spec, to two files.

    Both files are written beside the old ones and replace them when they are complete.
    Raises TypeError for what cannot be saved, ValueError for two parameters of the same name.
    """
    basename = os.fspath(basename)
    if isinstance(objects, (Parameters, LookupParameters)) or hasattr(objects, "param_collection"):
        objects = [objects]
    descriptions: list[tuple[Any, ...]] = []
    blocks: dict[str, textformat.Block] = {}
    owners: dict[str, Stored] = {}

    def add(stored: Stored, name: str) -> None:
        if owners.setdefault(name, stored) is not stored:
            raise ValueError(located(f"save: needs parameters of different names, got two of the name {name}"))
        if name not in blocks:
            blocks[name] = stored.block(name)

    for item in objects:
        if isinstance(item, (Parameters, LookupParameters)):
            descriptions.append((type(item).__name__, item.name()))
            add(item, item.name())
        elif hasattr(item, "param_collection") and hasattr(item, "spec"):
            collection = item.param_collection()
            descriptions.append((type(item), item.spec, collection.name()))
            for stored in collection.in_file_order():
                add(stored, stored.name())
            for k, stored in enumerate(outer(item)):
                add(stored, f"{outer_prefix(collection.name())}{k}")
        else:
            raise TypeError(located(
                "save: needs parameters, lookup tables or objects with param_collection() and spec, "
                f"got {type(item).__name__}"
            ))  # fmt: skip
    meta = io.BytesIO()
    for description in descriptions:
        DynetNames(meta, 4).dump(description)
    with textformat.atomic_writer(os.path.realpath(basename + ".meta")) as file:  # appears when the data file has
        file.write(meta.getvalue())
        textformat.write_blocks(basename + ".data", blocks.values())


def load_generator(
    basename: str | os.PathLike[str], params: ParameterCollection, allowed: tuple[type, ...] = ()
) -> Iterator[Any]:
    """As `load`, one object at a time."""
    checked_collection(params)
    basename = os.fspath(basename)
    descriptions = read_descriptions(basename + ".meta", allowed)
    blocks = list(textformat.read_blocks(basename + ".data"))
    for kind, *rest in descriptions:
        if kind in LOADERS:
            yield LOADERS[kind](params, basename + ".data", rest[0])
        else:
            is_known = kind in BUILDERS.values()
            item = made(kind, rest[0], params, basename) if is_known else kind.from_spec(rest[0], params)
            collection = item.param_collection()
            fill(
                collection.in_file_order(),
                collection.name(),
                [b for b in blocks if b.name.startswith(rest[1])],
                basename,
            )
            prefix = outer_prefix(rest[1])
            if others := [b for b in blocks if b.name.startswith(prefix)]:  # DyNet's files have none
                fill(outer(item), f"{collection.name()} outside of it", others, basename)
            yield item


def checked_collection(params: Any) -> ParameterCollection:
    """A collection as it is; raises TypeError for what is none."""
    if not isinstance(params, ParameterCollection):
        raise TypeError(located(f"load: needs a collection for the parameters, got {type(params).__name__}"))
    return params


LOADERS = {"Parameters": ParameterCollection.load_param, "LookupParameters": ParameterCollection.load_lookup_param}


def read_descriptions(path: str, allowed: tuple[type, ...]) -> list[tuple[Any, ...]]:
    """What a meta file says of each object."""
    found, size = [], os.path.getsize(path)
    with open(path, "rb") as file:
        while file.tell() < size:
            try:
                found.append(checked(KnownClasses(file, allowed).load()))
            except Exception as error:  # the unpickler has many ways to fail, struct.error among them
                raise ModelFileError(f"{path}: not a list of saved objects ({error})") from None
    return found


def checked(description: Any) -> tuple[Any, ...]:
    """A description as it is; raises ValueError if it is none."""
    match description:
        case ("Parameters" | "LookupParameters", str()):
            return description  # type: ignore[no-any-return]
        case (type(), tuple(), str()) if hasattr(description[0], "from_spec"):
            return description  # type: ignore[no-any-return]
    raise ValueError(f"{description!r:.200}")


def outer(builder: Any) -> list[Parameters]:
    """The parameters of a builder outside of its collection."""
    return builder.outer_parameters() if hasattr(builder, "outer_parameters") else []


def outer_prefix(name: str) -> str:
    """What their names in a file start with; no name that a user can give does, nor any in the collection."""
    return name.rstrip("/") + "_outer/"


def made(kind: Any, spec: tuple[Any, ...], params: ParameterCollection, basename: str) -> Any:
    """A builder as its spec says, no larger than the data file has numbers for."""
    root = params.root
    root.room = os.path.getsize(basename + ".data")  # a number takes more than a byte
    try:
        return kind.from_spec(spec, params)
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError, MemoryError, OverflowError) as error:
        raise ModelFileError(f"{basename}.meta: no {kind.__name__} can be made of {spec!r:.200}: {error}") from None
    finally:
        root.room = math.inf


def fill(stored: Sequence[Stored], name: str, blocks: list[textformat.Block], basename: str) -> None:
    """Gives the parameters of a new builder the values of their blocks, in order."""
    if len(stored) != len(blocks):
        raise ModelFileError(f"{basename}.data: {len(blocks)} blocks for {len(stored)} parameters of {name}")
    for item, block in zip(stored, blocks):
        item.check_fits(block, basename + ".data")
    for item, block in zip(stored, blocks):
        item.fill(block)


def load(basename: str | os.PathLike[str], params: ParameterCollection, allowed: tuple[type, ...] = ()) -> list[Any]:
    """The objects that `save` wrote, in order, their parameters new ones of the collection `params`.

    allowed: classes of the user's own that the file may name (each with from_spec(spec, collection)).
    Raises FileNotFoundError for a missing meta file, ModelFileError for others than `save` writes; the collection is
    then as before.
    """
    before = checked_collection(params).contents()
    try:
        return list(load_generator(basename, params, allowed))
    except BaseException:
        params.restore(before)
        raise
