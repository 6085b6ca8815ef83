"""What is read of a dataclass from its source is what Python makes of it."""

import dataclasses
import importlib
import types
import typing
from typing import Any, Literal

import pytest

from curate import plugins
from curate.fields import dataclasses_in, fields_of

KINDS: tuple[plugins.Kind, ...] = ("scorers", "strategies", "archs")
MODULES = [f"{kind}.{name}" for kind in KINDS for name in plugins.names(kind)]
SHARED = ["scorers._network", "strategies._vectors"]


def listed(kind: Any) -> tuple[str, ...]:
    """All values of a type that lists them."""
    if kind is bool:
        return ("true", "false")
    if typing.get_origin(kind) is Literal:
        return tuple(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return tuple(value for part in typing.get_args(kind) for value in listed(part))
    return ()


def said(default: Any) -> str:
    """A default as a spec says it."""
    if isinstance(default, tuple):
        return ":".join(f"{number:g}" for number in default)
    return "" if default is None else str(default)


@pytest.mark.parametrize("module", [*MODULES, *SHARED])
def test_fields_are_those_of_the_real_dataclasses(module: str) -> None:
    loaded = importlib.import_module(f"curate.{module}")
    own = {
        name: cls
        for name, cls in vars(loaded).items()
        if isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == loaded.__name__
    }
    assert list(dataclasses_in(module)) == list(own)
    for name, cls in own.items():
        hints = typing.get_type_hints(cls, {**vars(typing), **_types_of(loaded)})
        real = [field for field in dataclasses.fields(cls) if field.init]
        found = fields_of(module, name)
        assert [field.name for field in found] == [field.name for field in real], name
        for read, field in zip(found, real, strict=True):
            assert read.values == listed(hints[field.name]), field.name
            assert read.default in ("", said(field.default)), field.name


def _types_of(module: types.ModuleType) -> dict[str, Any]:
    """Names that annotations use and that only type checkers import."""
    return (
        {} if hasattr(module, "torch") else {"torch": types.SimpleNamespace(device=object, dtype=object), "Tensor": Any}
    )


@pytest.mark.parametrize("module", MODULES)
def test_defaults_of_plugins_are_all_read(module: str) -> None:
    """Every default of a plugin's option is a literal, so that its line of help can tell it."""
    kind, _, name = module.partition(".")
    cls = type(plugins.parse(kind, name))  # type: ignore[arg-type]
    for read, field in zip(fields_of(module, cls.__name__), dataclasses.fields(cls), strict=True):
        assert read.default == said(field.default)


def test_options_that_a_base_has_come_with_their_help() -> None:
    by, *_ = fields_of("strategies.kcenter", "Kcenter")
    assert (by.name, by.default) == ("by", "embedding")
    assert by.help.startswith("the column of vectors")
    assert "scale" in [field.name for field in fields_of("strategies.kcenter", "Kcenter")]
    assert [field.name for field in fields_of("scorers.loss", "Loss")] == ["checkpoint", "arch", "tile", "metric"]


def test_a_named_type_lists_its_values() -> None:
    scale = next(field for field in fields_of("strategies.cluster", "Cluster") if field.name == "scale")
    assert scale.values == ("columns", "length", "none")


def test_what_is_no_dataclass_has_no_fields() -> None:
    assert fields_of("archs", "Arch") == ()  # a protocol, which annotates `scale`
    assert fields_of("scorers.srcnn", "Nobody") == ()
