"""Write `docs/commands.md`, the reference of all commands, from the command line itself.

    python docs/commands.py            write it
    python docs/commands.py --check    fail if it is not what the commands say, and write nothing

Of a parameter Typer says its names, help and default; the function's own signature says its type. What every command
takes is said once.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer.main

from curate.cli import app

PAGE = Path(__file__).parent / "commands.md"
START = """# Commands

Every command with its arguments, options and defaults. This page is made from the commands themselves by
`python docs/commands.py`; do not edit it. What they are for is in
[the README](../README.md#from-photographs-to-a-trained-network).

The exit code is 0 where all is done, 1 where the disk, the memory or a file is at fault (of `verify` and `repair`:
where anything is not whole), 2 for a mistake in what was asked, and 128 and the signal's number for a command that was
stopped.
"""
HEAD = "| argument or option | default | |\n|---|---|---|"
VALUES = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def page() -> str:
    """The whole page."""
    group = typer.main.get_command(app)
    commands = dict(verbs(group))
    rows = {name: [row(command, p) for p in command.params if not p.hidden] for name, command in commands.items()}
    shared = [line for line in next(iter(rows.values())) if all(line in lines for lines in rows.values())]
    parts = [START, "`curate --help` lists them, `curate COMMAND --help` says what is here of one. Besides these:\n"]
    parts += [HEAD, *(row(group, p) for p in group.params if not getattr(p, "hidden", False)), ""]
    if shared:
        parts += ["Every command takes:\n", HEAD, *shared, ""]
    links = ", ".join(f"[{name}](#curate-{name.replace(' ', '-')})" for name in commands)
    parts += [f"Commands: {links}.", ""]
    for name, command in commands.items():
        parts += [f"## curate {name}", "", described(command), "", f"`{usage(name, command)}`", ""]
        own = [line for line in rows[name] if line not in shared]
        parts += [HEAD, *own, ""] if own else []
    return "\n".join(parts)


def verbs(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """The commands by name, those of a group (`ldm train`) after its own."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, f"{before}{name} ")
        elif not command.hidden:
            yield before + name, command


def described(command: Any) -> str:
    """What a command does: its help, as lines of a page."""
    return inspect.cleandoc(command.help)


def usage(name: str, command: Any) -> str:
    """`curate select STORE STRATEGY -o TEXT [OPTIONS]`."""
    words = ["curate", name]
    words += [shown(command, p) for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    words += [f"{p.opts[0]} {value(command, p)}" for p in options if p.required]
    return " ".join([*words, "[OPTIONS]"] if any(not p.required for p in options) else words)


def row(command: Any, parameter: Any) -> str:
    """A parameter as a row of its table."""
    names = [f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts)]
    if parameter.param_type_name == "argument":
        names = [f"`{shown(command, parameter)}`"]
    elif text := value(command, parameter):
        names[-1] = f"{names[-1][:-1]} {text}`"
    words, default = parameter.help or "", parameter.default
    if ending := re.fullmatch(r"(.*) \[(.+)\]", words):  # how `train` says a default that a recipe may give too
        words, default = ending[1], ending[2]
    if parameter.multiple and not re.search("several|repeated", words):
        words = f"{words} May be given several times."
    said = "required" if parameter.required else "" if default in (None, False, ()) else f"`{default}`"
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in (", ".join(names), said, words)) + " |"


def shown(command: Any, parameter: Any) -> str:
    """The name of an argument: `STORE`, `[DIR]`."""
    return str(parameter.metavar or parameter.name.upper())


def value(command: Any, parameter: Any) -> str:
    """What stands after an option: its own word, the choices there are, or a word for its type; nothing for a flag."""
    if parameter.metavar:
        return str(parameter.metavar)
    signature = inspect.signature(command.callback, eval_str=True) if command.callback else None
    if signature is None or parameter.name not in signature.parameters:
        return ""  # Typer's own: flags
    kind = plain(signature.parameters[parameter.name].annotation)
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return "" if kind is bool else VALUES[kind]


def plain(kind: Any) -> Any:
    """The type of one value: without Annotated, None and list."""
    if get_origin(kind) is Annotated:
        return plain(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        (kind,) = [part for part in get_args(kind) if part is not type(None)]
        return plain(kind)
    return plain(get_args(kind)[0]) if get_origin(kind) is list else kind


def main(arguments: list[str]) -> int:
    """Write the page, or compare it. Returns the exit code."""
    text = page()
    if arguments == ["--check"]:
        if PAGE.exists() and PAGE.read_text("utf-8") == text:
            return 0
        sys.stderr.write("docs/commands.md differs from the commands; run python docs/commands.py\n")
        return 1
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
