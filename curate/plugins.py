"""Plugins by file name: `srcnn:scale=3` is `curate/scorers/srcnn.py`, its frozen dataclass, built with scale=3.

    kind        folder              what the dataclass does
    scorers     curate/scorers/     draws score maps of images, or scores patches
    strategies  curate/strategies/  picks rows from a table of candidates
    archs       curate/archs/       builds a super-resolution network

The file's name is the plugin's name; nothing is registered. A name with a dot is a module of the
user's own (`my_lab.edges:size=3`), imported only because the user wrote it in a command or in Python, never
because a file says so: a pipeline or a recipe that names one is refused until the command names it too (`--plugin`,
`--arch`). A plugin module holds one frozen dataclass named as the file in CamelCase (or the only one).
Options are its fields: pydantic parses them strictly by type, unknown ones are refused.
"""

import ast
import dataclasses
import importlib
import importlib.util
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pydantic

from curate.errors import UsageError, listed, meant, one_line, short

__all__ = [
    "Kind",
    "describe",
    "full_spec",
    "given_in",
    "names",
    "options_of",
    "outside",
    "parse",
    "require_named",
    "shown",
    "spec_of",
    "within",
]

Kind = Literal["scorers", "strategies", "archs"]

_ONE = {"scorers": "scorer", "strategies": "strategy", "archs": "arch"}
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_ITEM = re.compile(r'(?:"[^"]*"|[^,])+')  # up to a comma that is not between double quotes
_VALUE = re.compile(r'=((?:"[^"]*"|[^,])+)')
_SHOWN = 40  # characters of a value in a message
_SPEC_SHOWN = 200  # of a whole spec
_DEPTH = 3  # specs, one in the other: `loss:arch=slim:arch=my_lab.net`


def names(kind: Kind) -> list[str]:
    """The names of curate's own plugins of one kind, sorted: the files in its folder."""
    folder = Path(__file__).parent / kind
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def describe(kind: Kind) -> dict[str, str]:
    """Name -> first line of the module's docstring, read without importing (and so without torch)."""
    folder = Path(__file__).parent / kind
    lines = {}
    for name in names(kind):
        docstring = ast.get_docstring(ast.parse((folder / f"{name}.py").read_text("utf-8"))) or ""
        lines[name] = docstring.partition("\n")[0]
    return lines


def parse(kind: Kind, spec: str, **more: Any) -> Any:
    """Build the plugin that `spec` names: `name` or `name:option=value,option=value`.

    `more` are options given beside the spec (the command line's own flags). Values are the text after `=`; a comma in
    one stands between double quotes, which stay: `ensemble:by="srcnn:scale=3,kernel=9-1-5"+sobel`.
    Raises UsageError for an unknown name or option, and for a value that does not fit the field's type.
    """
    name = spec.partition(":")[0]
    written = given_in(spec)
    if twice := written.keys() & more.keys():
        raise UsageError(f"'{one_line(spec)}': option '{one_line(listed(twice))}' is given twice")
    given: dict[str, Any] = {**written, **more}
    cls = _dataclass(kind, name)
    valid = {field.name for field in dataclasses.fields(cls) if field.init}
    unknown = given.keys() - valid
    if unknown:
        hint = meant(min(unknown), valid)
        raise UsageError(
            f"{_ONE[kind]} '{name}' has no option '{one_line(listed(unknown))}'; it has: {listed(valid)}{hint}"
        )
    try:
        return pydantic.TypeAdapter(cls).validate_python(given)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        found = f", not '{one_line(given[where])}'" if where in given else ""
        reason = str(problem["ctx"]["error"]) if "error" in problem.get("ctx", {}) else _in_words(problem)
        prefix = f"option '{where}' " if where else ""
        raise UsageError(f"{_ONE[kind]} '{name}': {prefix}{one_line(reason)}{found}") from None


def require_named(spec: str, named: Collection[str], option: str) -> None:
    """UsageError for a spec in a file that is code outside curate, where the command does not name its module too.

    `option` is how it would: `--plugin`. The option `arch` of a spec names a module as well (`loss:arch=my_lab.net`).
    """
    for module in outside(spec):
        if module not in named:
            how = f"name it in the command: {option} {one_line(module)}"
            raise UsageError(f"'{one_line(spec)}' is code outside curate; if you trust it, {how}")


def outside(spec: str) -> list[str]:
    """The modules outside curate that building a spec imports. Raises as `within` does."""
    return [name for name in (one.partition(":")[0] for one in within(spec)) if "." in name]


def within(spec: str) -> list[str]:
    """The spec, the one that its option `arch` is, and so on. UsageError as of `given_in`, and for more than three."""
    specs = [spec]
    while (inner := given_in(specs[-1]).get("arch", "").strip('"')) and len(specs) <= _DEPTH:
        specs.append(inner)
    if len(specs) > _DEPTH:
        raise UsageError(f"'{short(spec, _SPEC_SHOWN)}' is not a spec: it has more than {_DEPTH}, one in the other")
    return specs


def given_in(spec: str) -> dict[str, str]:
    """The options that a spec sets itself, as text. UsageError for one that is not option=value, or comes twice."""
    try:
        spec.encode()
    except UnicodeEncodeError:  # bytes of the command line that are not UTF-8
        raise UsageError(f"'{one_line(spec)}' is not a spec: it should be UTF-8") from None
    given: dict[str, str] = {}
    for item in _ITEM.findall(spec.partition(":")[2]):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not key:
            raise UsageError(f"'{one_line(spec)}' is not a spec: '{one_line(item)}' should be option=value")
        if key in given:
            raise UsageError(f"'{one_line(spec)}': option '{one_line(key)}' is given twice")
        given[key] = value
    return given


def options_of(plugin: Any) -> dict[str, Any]:
    """All options of a plugin instance, JSON-able, in field order."""
    values = {field.name: getattr(plugin, field.name) for field in dataclasses.fields(plugin) if field.init}
    plain = bool | int | float | str | None
    return {name: value if isinstance(value, plain) else str(value) for name, value in values.items()}


def full_spec(plugin: Any, without: str = "") -> str:
    """All options, also those at their defaults: a default may change, what a file was made with may not.

    `without` is an option that is left out.
    """
    options = {key: value for key, value in options_of(plugin).items() if value is not None and key != without}
    return f"{_name_of(plugin)}:" + ",".join(f"{key}={value}" for key, value in options.items())


def spec_of(plugin: Any) -> str:
    """The shortest spec that builds this instance again: its name and the options that differ from their defaults."""
    name = _name_of(plugin)
    defaults = {field.name: field.default for field in dataclasses.fields(plugin)}
    changed = [f"{key}={value}" for key, value in options_of(plugin).items() if value != defaults[key]]
    return f"{name}:{','.join(changed)}" if changed else name


def shown(plugin: Any) -> str:
    """A plugin's spec, or a text that should be one, as one line for a message: values of any length are cut."""
    spec = plugin if isinstance(plugin, str) else spec_of(plugin)
    return one_line(_VALUE.sub(lambda match: f"={short(match[1], _SHOWN)}", spec))


def _name_of(plugin: Any) -> str:
    name = type(plugin).__module__
    for kind in ("scorers", "strategies", "archs"):
        name = name.removeprefix(f"curate.{kind}.")
    return name


def _in_words(problem: Mapping[str, Any]) -> str:
    """What a value should be, and where a percentage was given how that is written."""
    expected: str = problem["msg"].removeprefix("Input ").partition(", unable to parse")[0]
    share = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?) *%", str(problem["input"]))
    return f"{expected} ({share[0]} is {float(share[1]) / 100:g})" if share else expected


def _dataclass(kind: Kind, name: str) -> type[Any]:
    """The frozen dataclass of the plugin module called `name`."""
    if not _NAME.fullmatch(name) or ("." not in name and name not in names(kind)):
        raise UsageError(f"no '{one_line(name)}' in curate.{kind}; there are: {listed(names(kind))}{_hint(kind, name)}")
    module_name = name if "." in name else f"curate.{kind}.{name}"
    if "." in name:
        _check_findable(kind, module_name)
    module = importlib.import_module(module_name)
    own = [value for value in vars(module).values() if _is_own_dataclass(value, module)]
    named = [cls for cls in own if cls.__name__.lower() == name.rpartition(".")[2].replace("_", "").lower()]
    for found in (named, own):
        if len(found) == 1:
            cls: type[Any] = found[0]
            return cls
    there = listed(cls.__name__ for cls in own)
    raise UsageError(f"{module_name} should define one frozen dataclass of options; it defines: {there}")


def _hint(kind: Kind, name: str) -> str:
    """What was meant by a name that is none: several of them with commas, or one spelt otherwise."""
    several = name.split(",")
    if kind == "scorers" and len(several) > 1 and set(several) <= set(names(kind)):
        return f"; separate scorers by spaces: {' '.join(several)}"
    return meant(name, names(kind))


def _check_findable(kind: Kind, module_name: str) -> None:
    """See that a user's own module is there: on the Python path, or, searched last, in the current folder."""
    here = str(Path.cwd())
    if not _findable(module_name) and here not in sys.path:
        sys.path.append(here)
    if not _findable(module_name):
        where = "on the Python path or in this folder"
        raise UsageError(f"no module '{module_name}' {where}; curate's own {kind} are: {listed(names(kind))}")


def _findable(module_name: str) -> bool:
    try:
        return importlib.util.find_spec(module_name) is not None
    except ModuleNotFoundError:
        return False


def _is_own_dataclass(value: object, module: ModuleType) -> bool:
    return isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.__name__
