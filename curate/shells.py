"""Completion as bash, zsh and fish ask for it: what they mean by a word, and how they want an answer.

`curate --install-completion` is Typer's, and so is the function that it puts into a shell: on TAB it starts curate with
the command line in the environment. What Typer makes of that line falls short where words of curate's have a colon, an
equals sign or a space, and `serve` stands between:

    bash   breaks words at `:`, `=` and `@` before it asks, and puts an answer after the last of these alone; and it
           ends a word with a space where there is one answer
    zsh    runs the answer as code: here it is made of quoted texts alone, whatever is in them
    zsh, fish   a word in quotes that are still open may end with a space
"""

import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Callable

__all__ = ["serve"]

_BREAKS = re.compile(r"[:=@]+")  # of bash's COMP_WORDBREAKS, what words of curate's have in them
_GOES_ON = re.compile(r"[:=,]\Z|\s")  # a candidate that is not a whole word yet
_VARIABLE = "_CURATE_COMPLETE"


def serve(app: Callable[..., object]) -> None:
    """If it was a shell that started curate, to complete a command line: answer it and leave."""
    shell = os.environ.get(_VARIABLE, "").removeprefix("complete_")
    if shell == "bash":
        words, end = _bash_words(os.environ.get("COMP_WORDS", ""), int(os.environ.get("COMP_CWORD", "0")))
        answer = _bash_answer(_of_one_line(_candidates(app, words)), words[-1].removesuffix(_unquoted(end)), end)
    elif shell == "zsh":
        answer = _zsh_answer(_candidates(app, _words(os.environ.get("_TYPER_COMPLETE_ARGS", ""))))
    elif shell == "fish":
        action = os.environ.get("_TYPER_COMPLETE_FISH_ACTION")
        found = _of_one_line(_candidates(app, _words(os.environ.get("_TYPER_COMPLETE_ARGS", ""))))
        if action == "is-args":  # the first of its two questions: is there an answer, or should it be a file?
            sys.exit(0 if found else 1)
        answer = "\n".join(f"{value}\t{line}" for value, line in found)
    else:
        return
    sys.stdout.buffer.write(os.fsencode(f"{answer}\n"))
    sys.stdout.flush()
    sys.exit(0)


def _candidates(app: Callable[..., object], words: list[str]) -> list[tuple[str, str]]:
    """What Typer says of a command line whose last word is incomplete: candidates, and a line of help each.

    Asked as fish asks, where an answer is a line with both.
    """
    *before, asked = words
    prefix = ""
    if asked.startswith("-") and "=" in asked and "--" not in before:
        option, _, asked = asked.partition("=")
        before, prefix = [*before, option], f"{option}="
    flat = asked.replace("\n", " ")  # as long
    os.environ |= {
        _VARIABLE: "complete_fish",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_ARGS": shlex.join([*before, flat]) if flat else f"{shlex.join(before)} ",
    }
    sys.modules["rich"] = None  # type: ignore[assignment] # Typer would import it to take markup out of lines of help
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        app(prog_name="curate", complete_var=_VARIABLE)
    rows = [row.partition("\t") for row in said.getvalue().split("\n") if row]
    return [(f"{prefix}{asked}{value[len(flat) :]}", line) for value, _, line in rows if value.startswith(flat)]


def _of_one_line(candidates: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those that bash and fish can take, whose answers are lines: one with a line break would be two."""
    return [(value, line) for value, line in candidates if "\n" not in value]


def _words(line: str) -> list[str]:
    """A command line up to the cursor as words; the last is the one to complete, empty after a space."""
    words: list[str] = []
    rest = line
    while True:
        match = re.match(r"\s*((?:[^\s\"'\\]|\\.|\"(?:[^\"\\]|\\.)*\"|'[^']*')+)\s", rest, re.DOTALL)
        if not match:
            return [*words, _unquoted(rest.lstrip())]
        words.append(_unquoted(match[1]))
        rest = rest[match.end() :]


def _bash_words(text: str, current: int) -> tuple[list[str], str]:
    """What bash has in COMP_WORDS, a line each, up to the word with number `current`: the words before it was broken.

    Beside them the piece of the last word, as it is written, that bash wants to replace.
    """
    pieces = _lines(text)[: current + 1]
    pieces += [""] * (current + 1 - len(pieces))
    words: list[str] = []
    for i, piece in enumerate(pieces):
        breaks = _BREAKS.fullmatch(piece) or (i and piece and _BREAKS.fullmatch(pieces[i - 1]))
        if breaks and len(words) > 1:
            words[-1] += piece
        else:
            words.append(piece)
    end = "" if _BREAKS.fullmatch(pieces[-1]) else pieces[-1]
    return [_unquoted(word) for word in words], end


def _lines(text: str) -> list[str]:
    """Lines, those within quotes as one."""
    found: list[str] = []
    for line in text.split("\n"):
        if found and _is_open(found[-1]):
            found[-1] += f"\n{line}"
        else:
            found.append(line)
    return found


def _is_open(text: str) -> bool:
    """Whether a quote in this is not closed."""
    return re.fullmatch(r"(?:[^\"'\\]|\\.|\"(?:[^\"\\]|\\.)*\"|'[^']*')*\\?", text, re.DOTALL) is None


def _unquoted(word: str) -> str:
    """A word without the shell's quotes; the last of them may be open."""
    for close in ("", "'", '"'):
        with contextlib.suppress(ValueError):
            return "".join(shlex.split(word + close))
    return word.rstrip("\\")


def _bash_answer(candidates: list[tuple[str, str]], before: str, end: str) -> str:
    """The parts of candidates that are to stand in place of `end`, `before` being the rest of the word before it."""
    values = [_quoted_as(end, value[len(before) :]) for value, _ in candidates]
    if len(values) == 1 and _GOES_ON.search(candidates[0][0]):
        values.append(f"{values[0]} ")  # bash ends the word if there is one
    return "\n".join(values)


def _quoted_as(typed: str, text: str) -> str:
    """A text as it is to be written where `typed` stands now: after its open quote, if it has one."""
    quote = typed[:1] if _is_open(typed) else ""
    if quote == "'":
        return text.replace("'", "'\\''")
    special = r'["\\$`]' if quote == '"' else r"[^\w:=,.@+/%-]"
    return re.sub(special, lambda match: f"\\{match[0]}", text)


def _zsh_answer(candidates: list[tuple[str, str]]) -> str:
    """Code for zsh's `eval`: candidates with their lines; those that go on are not followed by a space."""
    if not candidates:
        return "_files"
    width = max(len(value) for value, _ in candidates)
    parts = []
    for option, goes_on in (("-S ''", True), ("", False)):
        group = [(value, line) for value, line in candidates if bool(_GOES_ON.search(value)) == goes_on]
        if group:
            values = " ".join(_zsh_text(value) for value, _ in group)
            lines = " ".join(_zsh_text(f"{value:{width}}  {line}".rstrip()) for value, line in group)
            parts.append(f"local -a _values=({values}) _lines=({lines}); compadd {option} -l -d _lines -a _values")
    return "; ".join(parts)


def _zsh_text(text: str) -> str:
    """A text in quotes and without a space: the code is split at spaces, and put together again with one each."""
    return "$'" + "".join(c if c.isalnum() or not c.isascii() else f"\\x{ord(c):02x}" for c in text) + "'"
