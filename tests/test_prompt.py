"""The prompt of `curate sql STORE`: whole sessions, by keys; and without a terminal, queries from standard input."""

import os
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from terminals import in_terminal

from curate import display, prompt, sql, stopping
from curate.errors import CurateError
from curate.history import History
from curate.selection import select as choose
from curate.store import Store
from curate.suggestions import Names

ENDLESS = "select count(*) from range(100000000000);"
CTRL_C, CTRL_D, CTRL_R, UP, ALT_ENTER = "\x03", "\x04", "\x12", "\x1b[A", "\x1b\r"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, write_store: Callable[..., Store]) -> Path:
    """A folder with `store` and `half.parquet`, its manifest."""
    folder = tmp_path_factory.mktemp("place")
    values = [float(i) for i in range(12)]
    store = write_store(folder / "store", scores={"sobel": values, "srcnn:scale=3": values[::-1]})
    choose(store, "des", by="sobel").save(folder / "half.parquet")
    return folder


@dataclass
class Session:
    """A prompt on a store's tables, or on others, and the keys that are pressed at it."""

    connection: object
    capfd: pytest.CaptureFixture[str]
    history: History = field(default_factory=lambda: History(None))
    asked: list[str] = field(default_factory=list)

    def answer(self, query: str, most: int) -> tuple[int, bool]:
        self.asked.append(query)
        columns, rows, more = sql.head(self.connection, query, most)  # type: ignore[arg-type]
        display.table(columns, rows)
        return len(rows), more

    def __call__(self, *lines: str, leave: str = CTRL_D) -> tuple[str, str]:
        """Each line and Enter; what standard output and standard error got, but for the greeting."""
        self.capfd.readouterr()
        with create_pipe_input() as keys:
            keys.send_bytes(("".join(f"{line}\r" for line in lines) + leave).encode(errors="surrogateescape"))
            prompt.prompt(self.connection, self.answer, self.history, name="store", input=keys, output=DummyOutput())  # type: ignore[arg-type]
        out, err = self.capfd.readouterr()
        greeting, _, rest = err.partition(".help  .quit\n")
        assert greeting.startswith("store: ")
        return out, rest


@pytest.fixture
def session(place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setenv("TERM", "xterm")
    store = Store.open(place / "store")
    return Session(store.connect({"half": place / "half.parquet"}), capfd)


def paste(text: str) -> str:
    """The keys that a terminal sends for text that is pasted."""
    return f"\x1b[200~{text}\x1b[201~"


def timeless(text: str) -> list[str]:
    return re.sub(r"\d+\.\d\d s", "T", text).splitlines()


# --- whole sessions ---------------------------------------------------------------------------------------------------


def test_queries_are_answered_in_turn(session: Session) -> None:
    out, err = session("select count(*) as n from scores;", "select name from images order by name;")
    assert out.split() == ["n", "12", "name", "0.png", "1.png", "2.png"]
    assert timeless(err) == ["1 row, T", "3 rows, T"]


def test_the_greeting_says_what_there_is(session: Session) -> None:
    with create_pipe_input() as keys:
        keys.send_text(CTRL_D)
        prompt.prompt(
            session.connection, session.answer, session.history, name="a\x1b[31m", input=keys, output=DummyOutput()
        )  # type: ignore[arg-type]
    assert session.capfd.readouterr().err.splitlines() == [
        "a\\x1b[31m: duplicates 0, flags 0, half 6, images 3, leaks 0, patches 12, scores 12",
        "read-only SQL; end a query with ;  .help  .quit",
    ]


def test_after_a_mistake_the_prompt_stays(session: Session) -> None:
    mistakes = [
        "selekt 1;",
        "select nothing from images;",
        "copy images to 'x';",
        "select * from nothing;",
        paste("select '\x1b[31m'::int;"),
    ]
    out, err = session(*mistakes, "select 5 as five;")
    *said, last = timeless(err)
    assert len(said) == len(mistakes) and last == "1 row, T"
    assert all(line.isprintable() for line in said)
    for line, part in zip(
        said, ["Parser", "Binder", "should be one SELECT; found COPY", "there are: duplicates", "[31m"], strict=True
    ):
        assert part in line
    assert out.split() == ["five", "5"]


def test_a_failure_of_memory_is_said_too(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(query: str, most: int) -> tuple[int, bool]:
        raise MemoryError if "1" in query else CurateError("SQL: no disk")

    monkeypatch.setattr(session, "answer", fail)
    assert session("select 1;", "select 2;", "select 1;") == (
        "",
        "there is not enough memory for this\nSQL: no disk\nthere is not enough memory for this\n",
    )


def test_a_query_has_many_lines_and_ends_with_a_semicolon(session: Session) -> None:
    session(
        "select name", "", "from images -- all;", "where name <> ';'", "limit 1;", "select 1", leave=CTRL_C + CTRL_D
    )
    assert session.asked == ["select name\n\nfrom images -- all;\nwhere name <> ';'\nlimit 1;"]


def test_alt_enter_asks_as_it_is(session: Session) -> None:
    out, _ = session(leave=f"select 7 as seven{ALT_ENTER}{CTRL_D}")
    assert out.split() == ["seven", "7"]


def test_several_queries_on_a_line_end_at_the_first_mistake(session: Session) -> None:
    out, err = session("select 1 as a; select 2 as b; select c; select 4 as d;", "select 5 as e; selekt 6;")
    assert out.split() == ["a", "1", "b", "2"]
    assert [line[:10] for line in timeless(err)] == ["1 row, T", "1 row, T", "SQL: Binde", "SQL: Parse"]


@pytest.mark.parametrize("leave", [CTRL_D, ".quit\r", "quit\r", "EXIT;\r", " .exit \r", "\\q\r"])
def test_ways_out(session: Session, leave: str) -> None:
    assert session("", "  ", leave=leave + "select 1;\r") == ("", "") and session.asked == []


def test_ctrl_c_clears_what_is_typed(session: Session) -> None:
    session(leave=f"select 1\rfrom {CTRL_C}select 2;\r{CTRL_D}")
    assert session.asked == ["select 2;"]


@pytest.mark.parametrize("columns", ["count(*)", "count(*), date '2024-02-29'"])  # without Arrow, and by way of it
def test_ctrl_c_ends_a_query_alone(session: Session, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, asked, left = signal.getsignal(signal.SIGINT), session.answer, threading.Event()

    def press() -> None:
        while not left.wait(0.3):  # a signal that comes before DuckDB has begun is lost
            os.kill(os.getpid(), signal.SIGINT)

    def answer(query: str, most: int) -> tuple[int, bool]:
        thread = threading.Thread(target=press)
        if "range" in query:
            thread.start()
        try:
            return asked(query, most)
        finally:
            left.set()
            if thread.ident is not None:
                thread.join()

    monkeypatch.setattr(session, "answer", answer)
    out, err = session(ENDLESS.replace("count(*)", columns).replace(";", "; select 1;"), "select 5 as five;")
    assert out.split() == ["five", "5"] and timeless(err) == ["stopped by Ctrl-C", "1 row, T"]
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.instead(lambda: pytest.fail("it is ignored")):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# --- what begins with a dot -------------------------------------------------------------------------------------------


def test_tables_and_their_columns(session: Session) -> None:
    out, err = session(".tables", ".columns scores", '.schema "SCORES";')
    lines = [line.split() for line in out.splitlines()]
    assert lines[:4] == [["name", "rows", "columns"], ["duplicates", "0", "7"], ["flags", "0", "2"], ["half", "6", "9"]]
    assert lines[8:10] == [["name", "type"], ["patch_id", "VARCHAR"]] and lines[16] == ["srcnn:scale=3", "FLOAT"]
    assert lines[8:17] == lines[17:] and err == ""


def test_rows_of_an_answer(session: Session) -> None:
    out, err = session("from range(150);", ".rows 3", "from range(150);", "from range(3);")
    assert out.split() == ["range", *map(str, range(100)), "range", "0", "1", "2", "range", "0", "1", "2"]
    assert timeless(err) == [
        "100 rows of more (.rows N shows them), T",
        "3 rows of more (.rows N shows them), T",
        "3 rows, T",
    ]


def test_help_names_every_command(session: Session) -> None:
    for word in (".help", "help", "HELP;"):
        _, err = session(word)
        assert all(command in err for command in prompt._COMMANDS) and "Ctrl-R" in err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (".nothing", "no '.nothing'; there are: .columns, .help, .quit, .rows, .tables"),
        ("\\d", "no '\\\\d'; there are"),
        (".columns", "no table ''; there are: duplicates, flags, half, images, leaks, patches, scores"),
        ("\x1b[200~.columns no\x1b\x1b[201~", "no table 'no\\x1b'; there are"),
        (".rows", ".rows should be followed by a number of rows, found ''"),
        (".rows -1", "found '-1'"),
        (".rows 0", "found '0'"),
        (".rows 9999999999", "found '9999999999'"),
        (".rows ²", "found '²'"),
    ],
)
def test_a_command_that_is_none(session: Session, command: str, said: str) -> None:
    out, err = session(command, "select 1 as a;")
    first, second = err.replace(",\n", ", ").splitlines()
    assert said.replace("\\\\", "\\") in first and second.startswith("1 row") and out.split() == ["a", "1"]


# --- history ----------------------------------------------------------------------------------------------------------


def test_history_is_written_and_read_back(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "state" / "h"
    session.history = History(path)
    session("select 1", "as a;", "selekt;", "select 3 as c;")
    session.history = History(path)
    session(leave=f"{UP}{UP}{UP}\r{CTRL_D}")
    session(leave=f"{CTRL_R}as c\r\r{CTRL_D}")
    assert session.asked == ["select 1\nas a;", "select 3 as c;", "select 1\nas a;", "select 3 as c;"]
    assert History(path).entries == [
        "select 1\nas a;",
        "selekt;",
        "select 3 as c;",
        "select 1\nas a;",
        "select 3 as c;",
    ]


def test_without_a_place_for_it_a_note_is_all(session: Session, tmp_path: Path) -> None:
    session.history = History(tmp_path)
    out, err = session("select 1 as a;", "select 2 as b;")
    assert out.split() == ["a", "1", "b", "2"]
    assert err.count("no history: '") == 1 and err.replace("\n", "").count("Is a directory1 row") == 1


# --- completion and names that mean harm ------------------------------------------------------------------------------

HOSTILE = 'a"\x1b]0;owned\x07\x1b[31m\n'


def completions(known: Names, text: str, asked: bool = True) -> list[tuple[str, int, str]]:
    event = CompleteEvent(completion_requested=asked, text_inserted=not asked)
    found = prompt._Completer(known).get_completions(Document(text), event)
    return [(one.text, one.start_position, one.display_text) for one in found]


def test_commands_and_tables_are_completed() -> None:
    known = Names({"images": ["name"], "my images": ["name"]}, [])
    assert [name for name, *_ in completions(known, ".")] == [".columns", ".help", ".quit", ".rows", ".tables"]
    assert completions(known, ".c") == [(".columns", -2, ".columns")]
    assert [name for name, *_ in completions(known, ".columns ")] == ["images", '"my images"']
    assert completions(known, ".schema my") == [('"my images"', -2, "my images")]
    assert completions(known, ".rows 1") == completions(known, ".help i") == []


def test_while_somebody_types_only_what_helps_is_shown() -> None:
    known = Names({"images": ["name"]}, ["abs"])
    assert completions(known, "select ", asked=True)[0][0] == "name"
    assert not [name for name, *_ in completions(known, "select ", asked=False) if name == "from"]
    assert completions(known, "from ", asked=False) == [("images", 0, "images")]
    assert completions(known, "select na", asked=False) == [("name", -2, "name")]
    assert completions(known, "select name", asked=False) == []


def test_names_that_mean_harm_are_shown_and_quoted(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    session = Session(sql.connect({HOSTILE: pa.table({HOSTILE: [1]}), "images": "SELECT 1 AS a"}, []), capfd)
    shown = 'a"\\x1b]0;owned\\x07\\x1b[31m\\n'
    known = Names({HOSTILE: [HOSTILE]})
    assert completions(known, "select a")[0] == (sql.identifier(HOSTILE), -1, shown)
    out, err = session(".tables", ".columns nothing", "from images;", paste(f"from {sql.identifier(HOSTILE)};"))
    assert all(part.isprintable() for part in (out + err).split("\n"))
    assert out.splitlines()[1].split() == [shown, "1", "1"] and session.asked[-1] == f"from {sql.identifier(HOSTILE)};"
    assert out.splitlines()[-2:] == [shown, " " * (len(shown) - 1) + "1"]


def test_what_is_typed_may_look_like_a_mouse(session: Session) -> None:
    out, err = session("select 'a\x1b[31m' as a;")
    assert "a" in out and "Exception" not in out + err


def test_text_that_is_not_utf8_is_one_line(session: Session) -> None:
    out, err = session(paste("select '\udce9';"), "select 1 as a;")
    assert out.split()[-1] == "1" and "Traceback" not in err


# --- without a terminal -----------------------------------------------------------------------------------------------

Ask = Callable[..., subprocess.CompletedProcess[bytes]]
PROGRAM = "import sys; sys.argv[0] = 'curate'; from curate.cli import entry; entry()"


@pytest.fixture
def ask(place: Path, tmp_path: Path) -> Ask:
    """`curate sql store OPTIONS...` with these queries on standard input."""

    def run(queries: str | bytes, *options: str) -> subprocess.CompletedProcess[bytes]:
        data = queries if isinstance(queries, bytes) else queries.encode()
        command = [sys.executable, "-c", PROGRAM, "sql", str(place / "store"), *options]
        ended = subprocess.run(command, input=data, capture_output=True, cwd=tmp_path, timeout=60, check=False)
        assert ended.returncode == 0 or (ended.stderr.startswith(b"curate: ") and ended.stderr.count(b"\n") == 1)
        return ended

    return run


def test_queries_come_from_standard_input(ask: Ask, place: Path) -> None:
    ended = ask(
        "\ufeffselect count(*) as n from half; -- ;\n\n/* ; */ select ';' as b;\nselect 'é' as c",
        "-m",
        str(place / "half.parquet"),
    )
    assert (ended.returncode, ended.stderr, ended.stdout.decode()) == (0, b"", "n\n6\n\nb\n;\n\nc\né\n")


def test_the_first_mistake_ends_it(ask: Ask) -> None:
    ended = ask("select 1 as a; select b; select 3 as c;")
    assert ended.returncode == 2 and ended.stdout.split() == [b"a", b"1"] and b"Binder Error" in ended.stderr
    ended = ask("select 1 as a; selekt 2;")
    assert ended.returncode == 2 and ended.stdout == b"" and b"Parser Error" in ended.stderr
    ended = ask("select 1 as a; copy images to 'x'; select 2;")
    assert ended.returncode == 2 and ended.stdout.split() == [b"a", b"1"] and b"found COPY" in ended.stderr


def test_other_formats_have_room_for_one(ask: Ask, tmp_path: Path) -> None:
    assert ask("select 1 as a;", "--format", "csv").stdout == b"a\n1\n"
    assert ask("select 1 as a", "--format", "json", "-o", "a.json").stdout == b""
    assert (tmp_path / "a.json").read_text() == '[\n{"a": 1}\n]\n'
    assert ask("select 1 as a", "--format", "parquet", "-o", "a.parquet").returncode == 0
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == [{"a": 1}]
    for form in ("csv", "json", "parquet"):
        ended = ask("select 1; select 2", "--format", form, "-o", f"new.{form}")
        assert ended.returncode == 2 and ended.stdout == b"" and not list(tmp_path.glob("new*"))
        assert ended.stderr.decode() == f"curate: --format {form} is one answer, found 2 queries on standard input\n"


@pytest.mark.parametrize(
    ("queries", "options", "part"),
    [
        (b"", (), b"no query"),
        (b" ;; -- nothing", (), b"no query"),
        (b"select 1", ("-o", "x"), b"-o should be NAME.csv, .json or .parquet"),
        (b"select 1", ("--timeout", "0"), b"--timeout should be"),
        (b"select \xff", (), b"SQL takes UTF-8 alone"),
        (bytes(100_000), (), b"SQL: Parser Error"),
        (bytes((16 << 20) + 1), (), b"found more than 16 MiB"),
        (ENDLESS.encode() + b"select 1;", ("--timeout", "0.3"), b"took longer than 0.3 s"),
    ],
)
def test_standard_input_that_is_no_good(
    ask: Ask, tmp_path: Path, queries: bytes, options: tuple[str, ...], part: bytes
) -> None:
    ended = ask(queries, *options)
    assert ended.returncode == 2 and ended.stdout == b"" and part in ended.stderr and len(ended.stderr) < 5000
    assert list(tmp_path.iterdir()) == []


def test_a_short_answer_does_without_the_prompt(place: Path) -> None:
    code = (
        "import sys; from curate.cli import app\n"
        "app(['sql', sys.argv[1], 'select 1'], standalone_mode=False)\n"
        "assert not {'prompt_toolkit', 'pygments', 'curate.prompt', 'curate.history'} & sys.modules.keys(), 'imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(place / "store")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- in a terminal ----------------------------------------------------------------------------------------------------


class Terminal:
    """A process in a terminal of its own, 80 columns wide."""

    def __init__(self, *argv: str, **environment: str) -> None:
        command = [sys.executable, "-c", PROGRAM, *argv]
        self.process, self._side = in_terminal(command, None, {**os.environ, "TERM": "xterm", **environment})
        self.all = self.seen = ""

    def press(self, keys: str) -> None:
        os.write(self._side, keys.encode())

    def wait(self, pattern: str) -> str:
        """What has come since the last call, up to the pattern; AssertionError if that does not come in 30 s."""
        end = time.monotonic() + 30
        while not (match := re.search(pattern, plain(self.seen))):
            assert time.monotonic() < end, f"no {pattern!r} in {self.seen!r}"
            if select.select([self._side], [], [], 0.1)[0]:
                try:
                    data = os.read(self._side, 65536).decode()
                except OSError:
                    raise AssertionError(f"it has ended without {pattern!r}: {self.all!r}") from None
                self.seen += data
                self.all += data
                if "\x1b[6n" in data:  # where is the cursor?
                    self.press("\x1b[1;1R")
        found, self.seen = plain(self.seen)[: match.end()], plain(self.seen)[match.end() :]
        return found

    def echoes(self) -> bool:
        flags = termios.tcgetattr(self._side)[3]
        return bool(flags & termios.ECHO) and bool(flags & termios.ICANON)

    def end(self, keys: str = "") -> int:
        """The exit code. The keys are pressed until somebody heeds them."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            self.press(keys)
            if (code := self.process.poll()) is not None:
                return code
            if select.select([self._side], [], [], 0.05)[0]:
                try:
                    self.all += os.read(self._side, 65536).decode()
                except OSError:  # it has gone
                    time.sleep(0.05)
        raise AssertionError("it does not end")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._side)


def plain(text: str) -> str:
    """Without the codes that move a cursor or give colours."""
    return re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[=>])|\r", "", text)


@pytest.fixture
def terminal(place: Path, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """A function that begins `curate sql store OPTIONS...` in a terminal."""
    begun: list[Terminal] = []

    def begin(*options: str, **environment: str) -> Terminal:
        argv = ("sql", str(place / "store"), *options)
        begun.append(Terminal(*argv, **{"CURATE_HISTORY": str(tmp_path / "h"), **environment}))
        return begun[-1]

    yield begin
    for one in begun:
        one.close()


def test_in_a_terminal(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    curate = terminal("--timeout", "60")
    assert "images 3" in curate.wait("store>")
    curate.press("select count(*) as n from images;\r")
    assert re.search(r"\nn\n3\n1 row, ", curate.wait(r"1 row, .*\n(?s:.*)store>"))
    curate.press("from scores limit 1;\r")  # wider than the terminal: a cell is a line, whole
    assert re.search(r"\npatch_id +\w{16}_\d+_\d+_24\n", curate.wait(r"1 row, .*\n(?s:.*)store>"))
    curate.press(ENDLESS + "\r")
    time.sleep(0.5)
    curate.press(CTRL_C)
    curate.wait(r"stopped by Ctrl-C\n(?s:.*)store>")
    curate.press("select sob")
    curate.wait("sobel +column")
    curate.press("\t from scores order by 1 desc limit 1;\r")
    assert re.search(r"\nsobel\n +11\n1 row, ", curate.wait(r"1 row, .*\n(?s:.*)store>"))
    assert curate.end(CTRL_D) == 0 and curate.echoes()
    assert "select sobel from scores order by 1 desc limit 1;" in History(tmp_path / "h").entries


@pytest.mark.parametrize(("number", "moment"), [(signal.SIGTERM, 0.0), (signal.SIGHUP, 0.3), (signal.SIGTERM, None)])
def test_a_signal_ends_the_prompt(
    terminal: Callable[..., Terminal], number: signal.Signals, moment: float | None
) -> None:
    """At the prompt, at once and later, and in a query; the terminal is as it was."""
    curate = terminal()
    curate.wait("store>")
    if moment is None:
        curate.press(ENDLESS + "\r")
        curate.wait(re.escape(ENDLESS))
    time.sleep(0.5 if moment is None else moment)
    began = time.monotonic()
    curate.process.send_signal(number)
    said = curate.wait(f"curate: stopped by {number.name}; what is finished is kept")
    assert "SQL: " not in said
    assert curate.end() == 128 + number and curate.echoes()
    assert time.monotonic() - began < 2.9  # it was not cut off


def test_a_signal_within_an_event_loop_is_heeded(tmp_path: Path) -> None:
    """What is raised in one of its callbacks is swallowed: hence `stopping.after`."""
    program = """
import asyncio, os, signal, sys
from curate import stopping
stopping.listen()
async def main():
    loop = asyncio.get_running_loop()
    left = asyncio.Event()
    loop.call_soon(os.kill, os.getpid(), signal.SIGTERM)
    with stopping.after(left.set):
        await asyncio.wait_for(left.wait(), 30)
        print("left", flush=True)
try:
    asyncio.run(main())
except stopping.Stopped:
    print(signal.getsignal(signal.SIGTERM) is stopping._stop, flush=True)
    os._exit(stopping.code())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (ended.returncode, ended.stdout) == (143, "left\nTrue\n"), ended


def test_a_terminal_that_knows_no_codes_gets_none(terminal: Callable[..., Terminal]) -> None:
    curate = terminal(TERM="dumb")
    curate.wait("store>")
    curate.press("select count(*) as n\rfrom images;\r")
    curate.wait(r"\nn\n3\n1 row, .*\nstore>")
    assert "\x1b" not in curate.all
    assert curate.end(CTRL_D) == 0 and "\x1b" not in curate.all


@pytest.mark.parametrize("colourless", [True, False])
def test_no_color(terminal: Callable[..., Terminal], colourless: bool) -> None:
    curate = terminal(NO_COLOR="1" if colourless else "")
    curate.wait("store>")
    curate.press("select 'a' as a, 1;\rselekt;\r")
    curate.wait(r"SQL: Parser Error(?s:.*)store>")
    assert curate.end(CTRL_D) == 0
    codes = {code for found in re.findall(r"\x1b\[([0-9;]*)m", curate.all) for code in found.split(";")}
    assert bool({"31", "32", "34", "38"} & codes) is not colourless


def test_a_prompt_has_no_file(terminal: Callable[..., Terminal]) -> None:
    for options, part in [
        (("-o", "x", "--format", "csv"), "-o should go with a query, found none"),
        (("--format", "parquet"), "--format parquet should go with a query, found none"),
        (("--timeout", "0"), "--timeout should be seconds above 0"),
    ]:
        curate = terminal(*options)
        curate.wait(f"curate: {part}")
        assert curate.end() == 2
