"""The options of a dataclass of curate's own, read from its source: nothing is imported, and so not torch either.

An option is a field; its help is the comment behind it, as people who read the file see it. Fields of bases are found
where the bases are: in the same file, or in the module of curate that the file imports them from.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Field", "dataclasses_in", "fields_of"]

_PACKAGE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Field:
    """One option."""

    name: str
    help: str  # the comment behind it; empty if there is none
    default: str  # as a spec would say it; empty for None, for a text that is empty and for what is computed
    values: tuple[str, ...]  # all that it can be, where its type lists them
    type: str  # as it is written


def dataclasses_in(module: str) -> dict[str, str]:
    """Name -> first line of the docstring of every dataclass that a module of curate (`degrade`) defines, in order."""
    return {
        name: (ast.get_docstring(node) or "").partition("\n")[0] for name, node in _classes(module).items() if _is(node)
    }


def fields_of(module: str, name: str) -> tuple[Field, ...]:
    """The fields of the class `name` in a module of curate (`scorers.srcnn`), those of its bases first.

    What is no dataclass has none of its own; a base outside curate counts as such.
    """
    node = _classes(module).get(name)
    if node is None:
        origin = _imports(module).get(name)
        return fields_of(origin, name) if origin else ()
    found: dict[str, Field] = {}
    for base in reversed(node.bases):
        if isinstance(base, ast.Name):
            found |= {field.name: field for field in fields_of(module, base.id)}
    if _is(node):
        found |= {field.name: field for statement in node.body if (field := _field(module, statement))}
    return tuple(found.values())


@cache
def _source(module: str) -> str:
    path = _PACKAGE.joinpath(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8")


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_source(module))


def _classes(module: str) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in _tree(module).body if isinstance(node, ast.ClassDef)}


def _imports(module: str) -> dict[str, str]:
    """Name -> the module of curate that it comes from."""
    return {
        alias.asname or alias.name: node.module.removeprefix("curate.")
        for node in _tree(module).body
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("curate.")
        for alias in node.names
    }


def _is(node: ast.ClassDef) -> bool:
    """Whether this is a dataclass."""
    return any(ast.unparse(decorator).partition("(")[0] == "dataclass" for decorator in node.decorator_list)


def _field(module: str, statement: ast.stmt) -> Field | None:
    if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
        return None
    kind = ast.unparse(statement.annotation)
    if kind.startswith("ClassVar"):
        return None
    line = _source(module).splitlines()[(statement.end_lineno or statement.lineno) - 1]
    comment = line.encode()[statement.end_col_offset :].decode().partition("#")[2].strip()
    return Field(statement.target.id, comment, _default(statement.value), _values(module, statement.annotation), kind)


def _default(value: ast.expr | None) -> str:
    try:
        found = None if value is None else ast.literal_eval(value)
    except ValueError:  # a name or a call
        return ""
    if isinstance(found, tuple):
        return ":".join(f"{number:g}" for number in found)
    return "" if found is None else str(found)


def _values(module: str, kind: ast.expr) -> tuple[str, ...]:
    """What a type lists: `Literal["a", "b"] | None`, `bool`, or a name that the module gives to such a type."""
    if isinstance(kind, ast.BinOp):
        return _values(module, kind.left) + _values(module, kind.right)
    if isinstance(kind, ast.Subscript) and ast.unparse(kind.value) == "Literal":
        listed = ast.literal_eval(kind.slice)
        return tuple(map(str, listed if isinstance(listed, tuple) else (listed,)))
    if isinstance(kind, ast.Name):
        named = [
            node.value
            for node in _tree(module).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == kind.id
        ]
        return _values(module, named[0]) if named else ("true", "false") if kind.id == "bool" else ()
    return ()
