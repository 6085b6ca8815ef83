"""Running what a page of the documentation shows.

    ```sh               commands, run one block after the other in one folder; they see this environment's `curate`
    ```python           run in the same folder, in this process; names are kept from block to block
    ```python lab/x.py  a file, written into the folder under this name; so in any language
    ```sql              one SELECT, asked of the store `store` there, every manifest `*.parquet` there under its name
    ```text             what is printed, trees of files, pictures in characters: not run

Any other language is for other programs' files, and is what the page's own test looks at.
"""

import contextlib
import io
import os
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

import curate
from curate.cli import app

ROOT = Path(__file__).parent.parent


class Block(NamedTuple):
    language: str
    text: str
    file: str = ""  # which file this is, if it is one
    heading: str = ""  # the last heading before it


def all_blocks(page: str) -> list[Block]:
    """The fenced blocks of a Markdown page, in order. `page` is its path in the repository."""
    found, lines, heading = list[Block](), list[str](), ""
    fence: str | None = None  # what stands behind the opening one, inside a block
    for line in (ROOT / page).read_text("utf-8").splitlines(keepends=True):
        if line.lstrip().startswith("```"):
            if fence is not None:
                language, _, file = fence.partition(" ")
                found.append(Block(language, textwrap.dedent("".join(lines)), file, heading))
            fence, lines = (line.strip()[3:].strip(), []) if fence is None else (None, [])
        elif fence is not None:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("#").strip()
    assert fence is None, f"{page}: a block does not end"
    return found


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language in a Markdown page."""
    return [block.text for block in all_blocks(page) if block.language == language]


def shell(script: str, folder: Path, **environment: str) -> str:
    """Run a shell script with this environment's `curate`; returns what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-e"],
        input=script,
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout


def commands(script: str, folder: Path) -> str:
    """Run lines of `curate` one after the other in this process, which has torch already; returns what they printed.

    For scripts that are nothing else: a line that a shell would treat in a way of its own is none.
    """
    printed = []
    with contextlib.chdir(folder):
        for name, *arguments in (shlex.split(line) for line in script.splitlines()):
            assert name == "curate" and not {">", "|", "&&"} & {*arguments}
            done = CliRunner().invoke(app, arguments)
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                raise done.exception
            assert done.exit_code == 0, done.output
            printed.append(done.output)
    return "".join(printed)


def run_page(page: str, folder: Path, cheaper: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run every sh, python and sql block of a page in order in `folder`; returns what each printed. Files are written.

    `cheaper` says what is replaced in the text first, such as the number of training steps; each of its keys is in the
    page, or the test would go on believing that it still changes something.
    """
    whole = (ROOT / page).read_text("utf-8")
    assert [key for key in cheaper if key not in whole] == []
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "page"}
    printed = []
    for block in all_blocks(page):
        text = block.text
        for key, value in cheaper.items():
            text = text.replace(key, value)
        if block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(text, "utf-8")
        elif block.language == "sh":
            printed.append(shell(text, folder))
        elif block.language == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(text, page, "exec"), names)
            printed.append(output.getvalue())
        elif block.language == "sql":
            manifests = {path.stem: path for path in sorted(folder.glob("*.parquet"))}
            printed.append(str(curate.Store.open(folder / "store").query(text, manifests).to_pylist()))
    return printed
