"""`curate sql STORE` without a query: a prompt at the terminal, with completion, history and highlighting.

    photos> select count(*) from images;

A query may have many lines and ends with `;`. Ctrl-C ends a query, not the prompt; a mistake is one line. What begins
with a dot is for the prompt itself: see `.help`.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session, get_app
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, completion_is_selected, has_focus
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.lexers import PygmentsLexer
from prompt_toolkit.output import create_output
from prompt_toolkit.output.plain_text import PlainTextOutput
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import is_dumb_terminal
from pygments.lexers.sql import SqlLexer

from curate import display, sql, stopping
from curate.errors import CurateError, UsageError, listed, one_line
from curate.suggestions import Names, Suggestion, finished, names, suggestions

if TYPE_CHECKING:
    import duckdb
    from prompt_toolkit.formatted_text import StyleAndTextTuples
    from prompt_toolkit.input import Input
    from prompt_toolkit.output import Output

    from curate.history import History

__all__ = ["prompt"]

_ROWS = 100  # of an answer, unless `.rows` says otherwise
_NAME = 24  # characters of the store's name before the `>`
_SAME_ROWS = {"scores": "patches"}  # row by row; to count the former may take a join over all ids
_COMMANDS = {
    ".columns": ".columns TABLE  its columns and their types",
    ".help": ".help           this",
    ".quit": ".quit           leave; so does Ctrl-D",
    ".rows": f".rows N         how many rows of an answer are shown ({_ROWS})",
    ".tables": ".tables         what can be asked: rows and columns",
}
_ALIASES = {"exit": ".quit", "quit": ".quit", ".exit": ".quit", "\\q": ".quit", "help": ".help", ".schema": ".columns"}
_HELP = """\
A query is one SELECT (or FROM, WITH, DESCRIBE, SUMMARIZE) and ends with ; on as many lines as it likes.
Alt-Enter asks without ;  Tab completes  Right takes what is suggested  Up and Ctrl-R look in the history
Ctrl-C ends a query, or clears what is typed
"""
_STYLE = Style.from_dict(
    {
        "name": "bold",
        "more": "ansibrightblack",
        "auto-suggestion": "ansibrightblack",
        "pygments.keyword": "ansiblue",
        "pygments.literal.string": "ansigreen",
        "pygments.literal.number": "ansicyan",
        "pygments.comment": "ansibrightblack",
    }
)


def prompt(
    connection: duckdb.DuckDBPyConnection,
    answer: Callable[[str, int], tuple[int, bool]],
    history: History,
    *,
    name: str,
    input: Input | None = None,
    output: Output | None = None,
) -> None:
    """Ask at the terminal for queries of `connection`, and have them answered, until their user leaves.

    `answer` prints the answer to one query, at most so many rows of it, and returns how many, and whether there are
    more. It may raise any CurateError, or MemoryError: that is said, and the prompt stays. `name` is what stands before
    the `>`. Without `input` and `output` both are the terminal's.
    """
    with create_app_session(input, _terminal() if output is None else output):
        _Prompt(connection, answer, history, name).run()


def _terminal() -> Output:
    """Where the prompt is drawn: `> file` is for answers, and a terminal that knows no codes gets none."""
    return PlainTextOutput(sys.stdout) if is_dumb_terminal() else create_output(always_prefer_tty=True)


class _Prompt:
    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        answer: Callable[[str, int], tuple[int, bool]],
        history: History,
        name: str,
    ) -> None:
        self._connection = connection
        self._answer = answer
        self._history = history
        self._names = names(connection)
        self._rows = _ROWS
        self._name = one_line(name)[:_NAME]
        self._session: PromptSession[str] = PromptSession(
            [("class:name", f"{self._name}> ")],
            multiline=True,
            prompt_continuation=_continuation,
            completer=_Completer(self._names),
            auto_suggest=AutoSuggestFromHistory(),
            history=InMemoryHistory(history.entries),
            key_bindings=_keys(),
            lexer=PygmentsLexer(SqlLexer),
            style=_STYLE,
            include_default_pygments_style=False,
            reserve_space_for_menu=6,
            enable_suspend=True,
        )

    def run(self) -> None:
        counts = ", ".join(f"{one_line(table)} {rows}" for table, rows in self._counts().items())
        _say(f"{self._name}: {counts}\nread-only SQL; end a query with ;  .help  .quit")
        told = None
        while True:
            if self._history.trouble != told:
                told = self._history.trouble
                _say(str(told), "dim")
            try:
                with stopping.after(_leave):
                    text = self._session.prompt()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if not text.strip():
                continue
            self._history.add(text)
            try:
                if not self._do(text):
                    return
            except CurateError as error:
                _say(str(error), "red")
            except MemoryError:
                _say("there is not enough memory for this", "red")

    def _do(self, text: str) -> bool:
        """What a text asks for; whether the prompt stays."""
        command, _, argument = _bare(text).partition(" ")
        command = _ALIASES.get(command.lower(), command)
        if command.startswith((".", "\\")):
            return self._command(command, argument.strip())
        for query in sql.statements(self._connection, text):
            began = time.monotonic()
            with self._interruptible():
                rows, more = self._answer(query, self._rows)
            seconds = time.monotonic() - began
            left = " of more (.rows N shows them)" * more
            _say(f"{rows} row{'s' * (rows != 1)}{left}, {seconds:.2f} s", "dim")
        return True

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C ends the query that is asked in it."""
        pressed = False

        def press() -> None:
            nonlocal pressed
            pressed = True
            self._connection.interrupt()

        try:
            with stopping.after(self._connection.interrupt), stopping.instead(press):
                yield
        except CurateError:
            if pressed:
                raise UsageError("stopped by Ctrl-C") from None
            raise

    def _command(self, command: str, argument: str) -> bool:
        """What begins with a dot; whether the prompt stays. UsageError for one that there is not."""
        if command == ".quit":
            return False
        if command == ".help":
            _say(_HELP + "\n".join(_COMMANDS.values()))
        elif command == ".tables":
            with self._interruptible():
                rows = self._counts()
            fields = self._names.tables
            display.table(("name", "rows", "columns"), [(name, rows[name], len(fields[name])) for name in rows])
        elif command == ".columns":
            display.table(*self._columns(argument))
        elif command == ".rows":
            if not re.fullmatch("[1-9][0-9]{0,8}", argument):
                raise UsageError(f".rows should be followed by a number of rows, found '{one_line(argument)}'")
            self._rows = int(argument)
        else:
            raise UsageError(f"no '{one_line(command)}'; there are: {listed(_COMMANDS)}")
        return True

    def _counts(self) -> dict[str, int]:
        """The rows of each table."""
        counts: dict[str, int] = {}
        for table in self._names.tables:
            query = f"SELECT count(*) FROM {sql.identifier(_SAME_ROWS.get(table, table))}"
            ((_, ((rows,),), _),) = [sql.head(self._connection, query, 1)]
            counts[table] = int(str(rows))
        return counts

    def _columns(self, argument: str) -> tuple[list[str], list[tuple[object, ...]]]:
        wanted = argument[1:-1].replace('""', '"') if argument.startswith('"') else argument
        for table in self._names.tables:
            if table.lower() == wanted.lower():
                query = f"SELECT column_name AS name, column_type AS type FROM (DESCRIBE {sql.identifier(table)})"
                columns, rows, _ = sql.head(self._connection, query, len(self._names.tables[table]))
                return columns, rows
        raise UsageError(f"no table '{one_line(argument)}'; there are: {listed(self._names.tables)}")


def _leave() -> None:
    """From a signal: end the prompt that is being shown."""
    app = get_app()
    if app.loop is not None and app.is_running:
        app.loop.call_soon_threadsafe(lambda: app.is_done or app.exit(exception=EOFError()))


def _say(text: str, style: str = "") -> None:
    """To the person, beside the answers."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    console.print(Text(text, style=style), soft_wrap=not console.is_terminal)


def _bare(text: str) -> str:
    """A command's text without what somebody may put at its end by habit."""
    return text.strip().rstrip(";").rstrip()


def _whole(text: str) -> bool:
    """Whether Enter ends it."""
    bare = _bare(text)
    return not text.strip() or bare.startswith((".", "\\")) or bare.lower() in _ALIASES or finished(text)


def _continuation(width: int, line: int, wrapped: int) -> StyleAndTextTuples:
    return [("class:more", " " * width if wrapped else "-> ".rjust(width))]


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter", filter=has_focus(DEFAULT_BUFFER) & completion_is_selected)
    def choose(event: KeyPressEvent) -> None:
        event.current_buffer.complete_state = None

    @keys.add(Keys.Vt100MouseEvent)
    def ignore(event: KeyPressEvent) -> None:
        """What is pasted may look like a mouse, which is not asked for; prompt_toolkit would fail to read it."""

    @Condition
    def is_whole() -> bool:
        return _whole(get_app().current_buffer.text)

    @keys.add("enter", filter=has_focus(DEFAULT_BUFFER) & ~completion_is_selected & is_whole)
    def ask(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    return keys


class _Completer(Completer):
    def __init__(self, known: Names) -> None:
        self._known = known

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        asked = complete_event.completion_requested
        for found in self._found(document):
            # While somebody types: not all that SQL has after each space, and no word that is there already.
            typed = document.text_before_cursor[len(document.text_before_cursor) - found.replaces :]
            if asked or (found.text != typed and (typed or found.kind in ("table", "column"))):
                yield Completion(found.text, -found.replaces, display=one_line(found.name), display_meta=found.kind)

    def _found(self, document: Document) -> list[Suggestion]:
        before = document.text_before_cursor
        if not before.startswith("."):
            return suggestions(before, self._known, document.text_after_cursor)
        command, space, argument = before.partition(" ")
        if not space:
            return [Suggestion(name, len(command), name, "keyword") for name in _COMMANDS if name.startswith(command)]
        if _ALIASES.get(command, command) != ".columns":
            return []
        return [found for found in suggestions(f"describe {argument}", self._known) if found.kind == "table"]
