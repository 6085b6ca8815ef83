"""What a config is: fields with help and bounds, read from TOML, JSON or the command line."""

import dataclasses
import tomllib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar, get_args, get_origin, get_type_hints

import pydantic

from curate.errors import UsageError, listed, meant, one_line
from curate.files import local_path

__all__ = ["Config", "Option", "of_file", "options_of", "settle"]


@dataclass(frozen=True)
class Config:
    """What the options of a long verb have in common."""

    _least: ClassVar[Mapping[str, float]] = {}  # the smallest value of options that have one

    def __post_init__(self) -> None:
        for option in options_of(type(self)):
            found = getattr(self, option.name)
            if get_origin(option.type) is Literal and found not in get_args(option.type):
                raise UsageError(f"{option.name} should be one of {listed(get_args(option.type))}, found {found}")
        for name, value in self._least.items():
            found = getattr(self, name)
            if found is not None and not value <= found < float("inf"):
                raise UsageError(f"{name} should be {value} or more, found {found}")

    def recipe(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def of(cls, options: Mapping[str, Any], source: str) -> Self:
        """From options by name, checked by type (text is no number); `source` says in errors where they come from."""
        kinds = {option.name: option.type for option in options_of(cls)}
        try:
            if unknown := options.keys() - kinds.keys():
                there = f"there are: {', '.join(kinds)}{meant(min(unknown), kinds)}"
                raise UsageError(f"no option '{one_line(listed(unknown))}'; {there}")
            return cls(**{name: _checked(name, kinds[name], value) for name, value in options.items()})
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from None


_ConfigT = TypeVar("_ConfigT", bound=Config)


def _checked(name: str, kind: Any, value: Any) -> Any:
    """`value` as its option has it: a list, as TOML and JSON say it, is a tuple. UsageError for another type."""
    plain = tuple(value) if isinstance(value, list) else value
    try:
        return pydantic.TypeAdapter(kind).validate_python(plain, strict=True)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        expected = problem["msg"].removeprefix("Input ")
        raise UsageError(f"{name} {one_line(expected)}, found {one_line(repr(problem['input']))}") from None


class Option(NamedTuple):
    """A field of a config, for those who make a command line of it."""

    name: str
    type: Any
    help: str
    default: Any


def options_of(config: type[Config]) -> list[Option]:
    """The fields in their order."""
    hints = get_type_hints(config, include_extras=True)
    made = []
    for field in dataclasses.fields(config):
        kind, text = get_args(hints[field.name])
        made.append(Option(field.name, kind, text, field.default))
    return made


def settle(
    config: type[_ConfigT], recipe: str | Path | None, given: Mapping[str, Any], ends: Set[str] = frozenset()
) -> _ConfigT:
    """The options of a recipe's TOML file; what is `given` wins, and one of `ends` for all of these.

    Raises as `plan` does.
    """
    options, source = of_file(recipe)
    if given.keys() & ends:
        options = {name: value for name, value in options.items() if name not in ends}
    if recipe is not None and given:
        source += f" with {', '.join(given)}"
    return config.of({**options, **given}, source)


def of_file(recipe: str | Path | None) -> tuple[dict[str, Any], str]:
    """The options in a recipe, and what to call it in errors."""
    return ({}, "options") if recipe is None else (_read(recipe), f"'{one_line(recipe)}'")


def _read(recipe: str | Path) -> dict[str, Any]:
    file = local_path(recipe, "a recipe")
    if not file.is_file():
        raise UsageError(f"no recipe '{one_line(file)}': there is no such file")
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"'{one_line(file)}' is not a TOML file: {one_line(error)}") from None
