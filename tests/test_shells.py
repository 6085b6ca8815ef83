"""What shells ask on TAB and what they make of the answer: by their protocol, and in real shells."""

import os
import re
import select
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from terminals import in_terminal

from curate import shells
from curate.store import Store

ROOT = Path(__file__).parents[1]

Serve = Callable[..., str]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Serve:
    """`serve(shell, candidates, **environment)`: the answer, of an app that says these candidates."""

    def ask(shell: str, candidates: dict[str, str], code: int = 0, **environment: str) -> str:
        def app(**_: object) -> None:
            asked.append(os.environ["_TYPER_COMPLETE_ARGS"])
            for value, line in candidates.items():
                sys.stdout.write(f"{value}\t{line}\n")
            raise SystemExit(0)

        given = {"_CURATE_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "", "_TYPER_COMPLETE_FISH_ACTION": ""}
        for name, value in {**given, **environment}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setitem(sys.modules, "rich", sys.modules.get("rich"))
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as end:
            shells.serve(app)
        assert end.value.code == code
        return capfdbinary.readouterr().out.decode()

    return ask


asked: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_asked() -> None:
    asked.clear()


def test_without_a_shell_that_asks_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "source_bash", "complete_powershell"):
        monkeypatch.setenv("_CURATE_COMPLETE", value)
        shells.serve(lambda: pytest.fail("asked"))
    monkeypatch.delenv("_CURATE_COMPLETE")
    shells.serve(lambda: pytest.fail("asked"))


BASH = [  # COMP_WORDS as bash 5 has them; the words that they are of; what is put in place of the last for `{}more`
    (["curate", "sco"], ["curate", "sco"], "scomore"),
    (["curate", "score", "s", "srcnn", ":"], ["curate", "score", "s", "srcnn:"], "more"),
    (["curate", "score", "s", "srcnn", ":", "pre"], ["curate", "score", "s", "srcnn:pre"], "premore"),
    (["curate", "score", "s", "srcnn", ":", "a", "=", "3,p"], ["curate", "score", "s", "srcnn:a=3,p"], "3,pmore"),
    (["curate", "score", "s", "srcnn", ":", "a", "=", ""], ["curate", "score", "s", "srcnn:a=", ""], "more"),
    (["curate", "select", "s", "des", "--by", "=", "s"], ["curate", "select", "s", "des", "--by", "s"], "smore"),
    (["curate", "select", "s", "des", "--by", "a", "@", "0"], ["curate", "select", "s", "des", "--by", "a@0"], "0more"),
    (["curate", "sql", "s", '"select "'], ["curate", "sql", "s", "select "], r"select\ more"),
    (["curate", "sql", "s", '"select \\"a:b'], ["curate", "sql", "s", 'select "a:b'], r"select \"a:bmore"),
    (["curate", "sql", "s", "'select \"a:b"], ["curate", "sql", "s", 'select "a:b'], 'select "a:bmore'),
    (["curate", "sql", "s", "'select\n1'", "--for"], ["curate", "sql", "s", "select\n1", "--for"], "--formore"),
    (["curate", "score", "my\\ store", "sr"], ["curate", "score", "my store", "sr"], "srmore"),
]


@pytest.mark.parametrize(("pieces", "words", "put"), BASH)
def test_bash_breaks_words_and_gets_the_last_piece(serve: Serve, pieces: list[str], words: list[str], put: str) -> None:
    environment = {"COMP_WORDS": "\n".join([*pieces, "after"]), "COMP_CWORD": str(len(pieces) - 1)}
    if pieces[-1].startswith(("'", '"')) and not pieces[-1].endswith('"'):  # an open quote takes the rest of the line
        environment["COMP_WORDS"] = "\n".join(pieces)
    answer = serve("bash", {f"{words[-1]}more": "help", f"{words[-1]}else": ""}, **environment)
    assert shlex.split(asked[0]) + [""] * asked[0].endswith(" ") == words
    assert answer == f"{put}\n{put.removesuffix('more')}else\n"


def test_what_has_a_line_break_is_completed_by_zsh_alone(serve: Serve) -> None:
    """The others would put the last of its lines in place of all."""
    line, found = "curate sql s 'select\n a", {"select  a1": "", "select  a2": ""}
    assert serve("bash", found, COMP_WORDS=line.replace(" ", "\n", 3), COMP_CWORD="3").strip() == ""
    assert shlex.split(asked[0])[-1] == "select  a"
    asked.clear()
    environment = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "is-args"}
    assert serve("fish", found, code=1, **environment) == ""
    assert r"$'select\x0a\x20a1' $'select\x0a\x20a2'" in serve("zsh", found, **environment)


@pytest.mark.parametrize(
    ("candidate", "answer"),
    [("srcnn", "srcnn\n"), ("srcnn:scale=", "srcnn:scale=\nsrcnn:scale= \n"), ("srcnn:", "srcnn:\nsrcnn: \n")],
)
def test_bash_adds_no_space_to_a_word_that_goes_on(serve: Serve, candidate: str, answer: str) -> None:
    """It does where there is one answer; so there are two, with one beginning."""
    assert serve("bash", {candidate: ""}, COMP_WORDS="curate\nscore\ns\nsr", COMP_CWORD="3") == answer


@pytest.mark.parametrize(
    ("line", "words"), [("curate sco", ["curate", "sco"]), ("curate score ", ["curate", "score", ""])]
)
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_words_up_to_the_cursor(serve: Serve, shell: str, line: str, words: list[str]) -> None:
    serve(shell, {f"{words[-1]}x": ""}, _TYPER_COMPLETE_ARGS=line)
    assert shlex.split(asked[0]) + [""] * asked[0].endswith(" ") == words


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_a_space_within_an_open_quote_ends_no_word(serve: Serve, shell: str) -> None:
    serve(shell, {"select srcnn": ""}, _TYPER_COMPLETE_ARGS='curate sql "a b" "select ')
    assert shlex.split(asked[0]) == ["curate", "sql", "a b", "select "]


def test_fish_asks_first_whether_there_is_an_answer(serve: Serve) -> None:
    environment = {"_TYPER_COMPLETE_ARGS": "curate sco", "_TYPER_COMPLETE_FISH_ACTION": "is-args"}
    assert serve("fish", {"score": "Score."}, **environment) == ""
    assert serve("fish", {}, code=1, **environment) == ""
    environment["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    assert serve("fish", {"score": "Score.", "scorers": "List."}, **environment) == "score\tScore.\nscorers\tList.\n"


def test_zsh_gets_code_in_which_texts_stay_texts(serve: Serve) -> None:
    """Run by zsh's `eval`: nothing of a candidate is read as code, and no text has a space, a quote or a backslash."""
    hostile = "x'; touch pwned; $(touch pwned) `touch pwned` \\$(touch pwned) \"é"
    code = serve("zsh", {hostile: hostile, "x=": "a"}, _TYPER_COMPLETE_ARGS="curate x")
    shape = re.sub(r"\$'(?:[\w]|\\x[0-9a-f]{2})*'", "T", code)
    assert shape == "local -a _values=(T T) _lines=(T T); compadd -S '' -l -d _lines -a _values\n"
    assert serve("zsh", {}, _TYPER_COMPLETE_ARGS="curate x") == "_files\n"


# ---- real shells

SHELLS = {  # how to start one that has read nothing of its user's, and how it then reads what was installed
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source ~/.bashrc"),
    "zsh": (["zsh", "-f", "-i"], "source ~/.zshrc; bindkey -e"),
    "fish": (["fish", "--no-config", "-i"], "source ~/.config/fish/completions/curate.fish"),
}


class Terminal:
    """A shell that believes that somebody types."""

    def __init__(self, shell: str, folder: Path, environment: dict[str, str]) -> None:
        command, read = SHELLS[shell]
        self.process, self.file = in_terminal(command, folder, environment)
        for line in ("curate --install-completion", read, "printf '<%s>' rea''dy"):
            os.write(self.file, f"{line}\n".encode())
        self.until("<ready>")

    def until(self, pattern: str) -> str:
        """What is shown up to a pattern."""
        shown, end = b"", time.monotonic() + 40
        while time.monotonic() < end:
            if select.select([self.file], [], [], 0.2)[0]:
                shown += os.read(self.file, 65536)
            if match := re.search(pattern, shown.decode(errors="replace").replace("\r\n", "")):
                return match[0]
        raise AssertionError(f"no {pattern} in {shown.decode(errors='replace')}")

    def completed(self, line: str, close: str = "") -> list[str]:
        """The arguments that the shell has after TAB, and after `close` where a quote is open."""
        os.write(self.file, f"{line}\t{close}\x01printf '<%s>' \x05 en''d\n".encode())
        return re.findall("<([^<>]*)>", self.until(r"<curate>(<[^<>]*>)*<end>"))[:-1]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.file)


@pytest.mark.parametrize("shell", ["bash", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zsh", "fish"))])
def test_in_a_real_shell(shell: str, tmp_path: Path, write_store: Callable[..., Store]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}, which is not installed")
    write_store(tmp_path / "store", scores={"sobel": [0.5] * 12, "srcnn:scale=3": [0.5] * 12})
    program = tmp_path / "bin" / "curate"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.argv[0] = 'curate'\nfrom curate.cli import entry\nentry()\n", "utf-8"
    )
    program.chmod(0o755)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("COMP_", "_TYPER", "_CURATE"))},
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "TERM": "xterm" if shell == "fish" else "dumb",
        "COLUMNS": "200",
    }
    terminal = Terminal(shell, tmp_path, environment)
    try:
        if shell == "zsh":  # Typer's function only loads itself on the first TAB
            terminal.completed("curate ")
        assert terminal.completed("curate scorer") == ["curate", "scorers"]
        assert terminal.completed("curate score store sr") == ["curate", "score", "store", "srcnn"]
        assert terminal.completed("curate score store srcnn:pre") == ["curate", "score", "store", "srcnn:precision="]
        value = terminal.completed("curate score store srcnn:precision=b")
        assert value == ["curate", "score", "store", "srcnn:precision=bf16"]
        label = terminal.completed("curate select store des --by srcnn:")
        assert label == ["curate", "select", "store", "des", "--by", "srcnn:scale=3"]
        assert terminal.completed("curate select store des --by=so")[-1] == "--by=sobel"
        if shell != "fish":  # which closes the quote itself
            query = terminal.completed("curate sql store 'select \"sr", "'")
            assert query == ["curate", "sql", "store", 'select "srcnn:scale=3"']
        *_, file = terminal.completed("curate info st")  # curate has no answer: the shell's own completion of files
        assert file.rstrip("/") == "store"
    finally:
        terminal.close()
