"""All of DyNet's names exist, can be called as in DyNet, and are what `__all__` says."""

from __future__ import annotations

import ast
import inspect
import types

import pytest

import dynjit as dy
from dynjit import config, run
from dynjit.names import Name, methods, names

SPACES = {"dynet": types.ModuleType("dynet"), "_dynet": types.ModuleType("_dynet"), "dynet_config": config}
run.fill_dynet(SPACES["dynet"])
run.fill_core(SPACES["_dynet"])
SPACES["dynet_viz"] = SPACES["dynet"]
NONE = inspect.Parameter.empty
OTHER_DEFAULTS = {("dynet_config.set", "autobatch")}  # None: grouping is on unless it is switched off
OWNERS = {"inputTensorTranspose": dy.Expression}  # a class in DyNet, a function that makes an Expression here


def found(name: str) -> object:
    """What dynjit has under one of DyNet's names."""
    first, *rest = name.split(".")
    if first in SPACES:
        owner: object = SPACES[first]
    else:
        owner, rest = SPACES["dynet"], [first, *rest]
    for part in rest:
        owner = OWNERS[part] if part in OWNERS and len(rest) > 1 else getattr(owner, part)
    return owner


def is_property(name: str) -> bool:
    """Whether the objects of a class have an attribute, given by the class or by its constructor."""
    owner, _, attribute = name.partition(".")
    kind = getattr(dy, owner)
    return hasattr(kind, attribute) or attribute in inspect.getsource(kind.__init__)


def parameters(signature: str) -> list[tuple[str, object]]:
    """(name, default) of the parameters of a signature; NONE where there is no default."""
    function = ast.parse(f"def {signature}: pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    first = len(positional) - len(arguments.defaults)
    defaults = [*[NONE] * first, *map(ast.literal_eval, arguments.defaults)]
    return [(a.arg, default) for a, default in zip(positional, defaults, strict=True) if a.arg not in ("self", "cls")]


def test_the_list_is_whole() -> None:
    kinds = {"function", "class", "method", "property", "data", "module", "hidden"}
    assert len(names()) == 637
    assert {name.kind for name in names().values()} == kinds
    for name in names().values():
        assert len(name) == 4
        assert "." in name.name or name.kind not in ("method", "property")


@pytest.mark.parametrize("name", names().values(), ids=lambda name: name.name)
def test_name(name: Name) -> None:
    if name.kind == "property":
        assert is_property(name.name)
        return
    thing = found(name.name)
    if name.kind == "class":
        assert isinstance(thing, type) or name.name in OWNERS
    elif name.kind in ("function", "method"):
        assert callable(thing)
    if name.signature and not name.signature.startswith("__"):
        ours = list(inspect.signature(thing).parameters.values())  # type: ignore[arg-type]
        ours = [p for p in ours if p.name != "self"]
        for i, (parameter, default) in enumerate(parameters(name.signature)):
            assert ours[i].name == parameter
            if default is not NONE and (name.name, parameter) not in OTHER_DEFAULTS:
                ours_default = ours[i].default
                assert (list(ours_default) if isinstance(default, list) else ours_default) == default
        for p in ours[len(parameters(name.signature)) :]:
            assert p.default is not inspect.Parameter.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)


def test_public_names_equal_all() -> None:
    public = {name for name, thing in vars(dy).items() if name[0] != "_" and not isinstance(thing, types.ModuleType)}
    listed = {name for name in dy.__all__ if not isinstance(getattr(dy, name), types.ModuleType)}
    assert public == listed
    assert len(set(dy.__all__)) == len(dy.__all__)
    space: dict[str, object] = {}
    exec("from dynjit import *", space)
    assert set(dy.__all__) == set(space) - {"__builtins__"}


def test_star_import_brings_nothing_that_dynet_does_not() -> None:
    known = {name.name for name in names().values() if "." not in name.name}
    assert set(SPACES["dynet"].__all__) <= known


def test_all_public_things_are_described() -> None:
    for name in dy.__all__:
        thing = getattr(dy, name)
        assert not callable(thing) or thing.__doc__, name


def test_methods_are_found_by_their_own_name() -> None:
    assert {name.name for name in methods()["neg_log_softmax"]} >= {"StandardSoftmaxBuilder.neg_log_softmax"}
