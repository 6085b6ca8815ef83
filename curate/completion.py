"""What may stand where the cursor is: verbs' names and listed values come from Typer, all else from here.

A function gets the word so far, and what it depends on of the words before it; it returns candidates, each the whole
word and a line of help. It prints nothing, raises nothing for what is wrong in a store, writes nothing, and fetches
nothing: a store at a URL has no columns here. Torch is never imported: a shell waits for the answer.

A candidate that ends with `:`, `=` or `,` is the start of a word that goes on, and so is any part of a query.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import PurePath

import typer

from curate import plugins
from curate.errors import CurateError
from curate.fields import Field, dataclasses_in, fields_of

__all__ = [
    "archs",
    "columns",
    "condition",
    "degradations",
    "devices",
    "query",
    "scorers",
    "scores",
    "strategies",
]

Candidates = list[tuple[str, str]]

_DEVICES = {"auto": "the GPU if there is one", "cpu": "the processors", "cuda": "the first GPU"}
_PLAIN = re.compile(r"[\w:=,.@+/-]+")  # a name that no shell and no terminal takes for anything else
_GIVEN = re.compile(r'(\w+) *=(?:"[^"]*"|[^,"])*,')  # an option that has its value
_NAME = re.compile(r"[A-Za-z_]\w*")  # that SQL takes without quotes
_LAST = re.compile(r"(?:\b[A-Za-z_]\w*)?\Z")  # such a name at the end


def _spec(names: Mapping[str, str], fields: Callable[[str], Iterable[Field]], incomplete: str) -> Candidates:
    """Continue `name:option=value,option=value`; `names` have a line each, `fields` are the options of one of them."""
    name, colon, options = incomplete.partition(":")
    if not colon:
        found = [(known, line) for known, line in names.items() if known.startswith(name)]
        return [*found, (f"{name}:", "its options")] if name in names and any(fields(name)) else found
    if name not in names:
        return []
    commas = (i for i, letter in enumerate(options) if letter == "," and options[:i].count('"') % 2 == 0)
    last = options[max(commas, default=-1) + 1 :]
    head = incomplete.removesuffix(last)
    given = _GIVEN.findall(head[len(name) + 1 :])
    left = [field for field in fields(name) if field.name not in given]
    option, equals, value = last.partition("=")
    if not equals:
        return [(f"{head}{field.name}=", _help(field)) for field in left if field.name.startswith(option)]
    found = [
        (f"{head}{option}={text}", _help(field))
        for field in left
        if field.name == option
        for text in field.values
        if text.startswith(value)
    ]
    whole = any(text == incomplete for text, _ in found)
    return [*found, (f"{incomplete},", "another option")] if whole and len(left) > 1 else found


def _help(field: Field) -> str:
    return f"{field.help} [{field.default}]".strip() if field.default else field.help


def _of_plugins(kind: plugins.Kind, incomplete: str, given: Iterable[str] = ()) -> Candidates:
    names = {name: line for name, line in plugins.describe(kind).items() if name not in given}
    return _spec(names, lambda name: _options(kind, name), incomplete)


def _options(kind: plugins.Kind, name: str) -> tuple[Field, ...]:
    """The fields of the plugin called `name`: its dataclass is called as the file, or the only one."""
    module = f"{kind}.{name}"
    there = list(dataclasses_in(module))
    called = [found for found in there if found.lower() == name.replace("_", "")]
    return fields_of(module, (called or there)[0])


def scorers(ctx: typer.Context, incomplete: str) -> Candidates:
    """Scorers that are not given yet, their options and values."""
    return _of_plugins("scorers", incomplete, ctx.params.get("scorers") or ())


def strategies(incomplete: str) -> Candidates:
    """Strategies, their options and values."""
    return _of_plugins("strategies", incomplete)


def archs(incomplete: str) -> Candidates:
    """Architectures, their options and values."""
    return _of_plugins("archs", incomplete)


def degradations(incomplete: str) -> Candidates:
    """The last step of a chain of degradations such as `blur:sigma=0.2:4+noise`, its options and values."""
    classes = {name: line for name, line in dataclasses_in("degrade").items() if name not in ("Chain", "Resize")}
    called = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower(): name for name in classes}
    start = max((match.end() for match in re.finditer(r"\+(?=[A-Za-z_]|\Z)", incomplete)), default=0)
    names = {name: classes[called[name]] for name in sorted(called)}
    found = _spec(names, lambda name: _parts("degrade", called[name]), incomplete[start:])
    return [(incomplete[:start] + text, line) for text, line in found]


def _parts(module: str, name: str) -> Iterable[Field]:
    """The fields of a degradation but for its scale, `part.option` for those of a field that is itself a dataclass."""
    for field in fields_of(module, name):
        if field.type in dataclasses_in(module):
            yield from (
                replace(part, name=f"{field.name}.{part.name}", default="") for part in _parts(module, field.type)
            )
        elif field.name != "scale":
            yield field


def devices(incomplete: str) -> Candidates:
    """Where networks run."""
    return [(name, line) for name, line in _DEVICES.items() if name.startswith(incomplete)]


def columns(store: str | None) -> dict[str, dict[str, str]]:
    """SQL view -> its columns -> what they are, of a store on this disk; nothing where that cannot be said.

    A name that would have to be quoted in a shell is left out: it may be anything.
    """
    from curate import storage
    from curate.store import Store

    try:
        if store is None or storage.is_url(store):
            return {}
        place = os.path.expanduser(os.path.expandvars(store))  # noqa: PTH111 - no error for a user that is none
        opened = Store.open(place)
        views, found = opened.columns(), opened.score_columns()
    except (CurateError, OSError):
        return {}
    lines = {name: "a vector" if scored.record.vector else "a score" for name, (scored, _) in found.items()}
    return {
        view: {name: lines.get(name, f"of {view}") for name in names if _PLAIN.fullmatch(name)}
        for view, names in views.items()
    }


def _store(ctx: typer.Context) -> str | None:
    """The first argument. Behind an option that still lacks its value Click has not given arguments their names."""
    store: str | None = ctx.params.get("store") or next(iter(ctx.args), None)
    return store


def scores(ctx: typer.Context, incomplete: str) -> Candidates:
    """The scores of the store named before."""
    known = columns(_store(ctx)).get("scores", {})
    return [(name, line) for name, line in known.items() if line == "a score" and name.startswith(incomplete)]


def condition(ctx: typer.Context, incomplete: str) -> Candidates:
    """The columns that a condition of `select` may name."""
    known = columns(_store(ctx))
    return _named(known.get("images", {}) | known.get("scores", {}), incomplete)


def query(ctx: typer.Context, incomplete: str) -> Candidates:
    """Tables and columns that a query may name; tables alone after FROM and JOIN."""
    known = columns(_store(ctx))
    manifests = [PurePath(name).stem for name in ctx.params.get("manifest") or ()]
    tables = dict.fromkeys(known, "a table") | {name: "a manifest" for name in manifests if _PLAIN.fullmatch(name)}
    if re.search(r"\b(from|join)\s+\w*\Z", incomplete, re.IGNORECASE):
        return _named(tables, incomplete)
    everything = {name: line for names in known.values() for name, line in names.items()}
    return _named(tables | everything | known.get("scores", {}), incomplete)


def _named(known: Mapping[str, str], incomplete: str) -> Candidates:
    """Continue the last name of an SQL text."""
    if re.sub(r'"[^"]*("|\Z)', "", incomplete).count("'") % 2:  # within a text
        return []
    start = incomplete.rindex('"') if incomplete.count('"') % 2 else _start_of_name(incomplete)
    head, last = incomplete[:start], incomplete[start:]
    if not last and re.search(r"[^\s(,=<>+*/-]\Z", head):  # after a number, a closing bracket, ...
        return []
    words = {name if _NAME.fullmatch(name) else f'"{name}"': line for name, line in known.items()}
    return [(head + word, line) for word, line in words.items() if word.startswith(last)]


def _start_of_name(text: str) -> int:
    match = _LAST.search(text)
    assert match  # of nothing, if of no name
    return match.start()
