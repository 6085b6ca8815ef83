"""What a stranger may send: a manifest, a store, names, a recipe. Each verb answers, or says in one line why not.

Photographs, tar files, checkpoints and SQL that were made to do harm are with the tests of their own modules.
"""

import json
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import synthetic_photo
from PIL import Image

import curate
from curate import layout, schema, tables
from curate.config import plan
from curate.errors import CurateError, DataError, UsageError
from curate.manifest import Manifest
from curate.pipeline import Pipeline

ESCAPES = "\x1b[31m\x07\r\b\x9b2J\u202e\u2066"  # colours, bell, return, backspace, C1's CSI, bidirectional overrides


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of two photographs scored by sobel, and `half.parquet` of it."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "photos").mkdir()
    for i, size in enumerate(((96, 120), (72, 96))):
        Image.fromarray(synthetic_photo(*size, i)).save(folder / "photos" / f"{i}.png")
    curate.ingest([folder / "photos"], folder / "store", patch=48, step=24)
    curate.score(folder / "store", ["sobel"])
    curate.select(folder / "store", "des").save(folder / "half.parquet")
    return folder


# --- manifests --------------------------------------------------------------------------------------------------------


def forged(work: Path, name: str, **columns: Any) -> Path:
    """`half.parquet` with other values in some columns of its first row, and with those of `recipe` in its recipe."""
    table, recipe = pq.read_table(work / "half.parquet"), columns.pop("recipe", {})
    for column, value in columns.items():
        values = [value, *table[column].to_pylist()[1:]]
        field = table.schema.field(column)
        table = table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))
    document = json.loads(table.schema.metadata[schema.METADATA_KEY.encode()])
    document["store"] |= recipe.pop("store", {})
    del document["checksum"]  # a stranger would make it anew
    table = table.replace_schema_metadata({schema.METADATA_KEY: json.dumps(document | recipe)})
    pq.write_table(table, work / name)
    return work / name


def verbs(out: Path) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Everything that opens a manifest, each with a place of its own to write to."""
    yield "batches", lambda path: next(curate.batches(path, scale=2, crop=24, batch_size=200))
    yield "export", lambda path: curate.export(path, out / "export", to="folder")
    yield "pack", lambda path: curate.pack(path, out / "pack")
    yield "report", lambda path: curate.report([path], out / "page.html", png=out / "png")
    yield "diff", lambda path: curate.diff(path, path)


FAR = 2**31 - 1
WINDOWS: dict[str, dict[str, Any]] = {
    "right of the image": {"x": 5000},
    "below it": {"y": 5000},
    "before it": {"y": -24},
    "as far as can be": {"y": FAR, "x": FAR},
    "larger than it": {"size": 4800},
    "as large as can be": {"size": FAR},
    "of no size": {"size": 0},
    "of a negative size": {"size": -48},
    "of another image": {"image_id": "0" * 16},
    "of an image of no name": {"image_id": ""},
    "of a path": {"image_id": "../../../etc/passwd"},
    "with a path for its id": {"patch_id": "../../../evil"},
    "with an absolute path for its id": {"patch_id": "/tmp/evil"},
    "with a line and an escape for its id": {"patch_id": f"a\n{ESCAPES}"},
    "with a page for its id": {"patch_id": "<script>alert(1)</script>"},
    "in shard -1": {"shard": -1},
    "in shard 2^31 - 1": {"shard": FAR},
    "of a negative rank": {"rank": -1},
    "of a rank there is already": {"rank": 1},
    "of rank 2^62": {"rank": 2**62},
    "of a weight that is none": {"weight": float("nan")},
    "of an endless weight": {"weight": float("inf")},
    "of a negative weight": {"weight": -1e30},
    "of an endless score": {"score": float("inf")},
}


def files_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# Of each column those that differ most; the others are of the same kind.
FAST = (
    "right of the image",
    "before it",
    "as far as can be",
    "of a negative size",
    "of another image",
    "of a path",
    "with a line and an escape for its id",
    "with a page for its id",
    "in shard -1",
    "of rank 2^62",
    "of a weight that is none",
    "of an endless score",
)


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[] if what in FAST else pytest.mark.slow) for what in WINDOWS]
)
def test_a_manifest_of_windows_that_cannot_be(work: Path, tmp_path: Path, what: str) -> None:
    path = forged(work, f"window {list(WINDOWS).index(what)}.parquet", **WINDOWS[what])
    before = files_of(work)
    answered = []
    for verb, do in verbs(tmp_path / "a" / "b"):
        try:
            do(path)
            answered.append(verb)
        except CurateError as refused:
            assert str(refused).isprintable(), verb
    if WINDOWS[what].keys() & {"y", "x", "size", "image_id", "weight"}:
        assert not {"batches", "export", "pack"} & set(answered)
    page = tmp_path / "a" / "b" / "page.html"
    assert not page.exists() or "<script>alert" not in page.read_text("utf-8")
    assert files_of(work) == before and not Path("/tmp/evil").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and [p.name for p in (tmp_path / "a").iterdir()] == ["b"]


STORES = {
    "file:///etc": "if you trust it, say --store",
    "http://127.0.0.1:9/store": "if you trust it, say --store",
    "https://169.254.169.254/latest": "if you trust it, say --store",
    "ftp://host/store": "if you trust it, say --store",
    "ssh://host/store": "if you trust it, say --store",
    "sftp://me@host/store": "if you trust it, say --store",
    "github://org:repo@main/store": "if you trust it, say --store",
    "zip://store::http://127.0.0.1:9/a.zip": "if you trust it, say --store",
    "simplecache::http://127.0.0.1:9/store": "if you trust it, say --store",
    "reference::s3://bucket/store": "if you trust it, say --store",
    "dask::xy://y": "if you trust it, say --store",
    "python://os/system": "if you trust it, say --store",
    "jupyter://host/store": "if you trust it, say --store",
    "s3://KEY:hunter2@bucket/store": "without credentials",
    "memory://nowhere/store": "is not at",
    "/etc": "is not at",
    "../../../../../../etc": "is not at",
    "/dev/zero": "is not at",
    "half.parquet": "is not at",
    "a\n\x1b[31m": "is not at",
}


@pytest.mark.parametrize("url", STORES)
def test_a_manifest_that_points_elsewhere(work: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it went to the network"))
    manifest = Manifest.load(forged(work, "elsewhere.parquet", recipe={"store": {"url": url}}))
    with pytest.raises(CurateError, match=STORES[url]) as refused:
        manifest.store()
    assert str(refused.value).isprintable() and "hunter2" not in str(refused.value)


def test_a_manifest_that_points_to_another_store_is_told_so(work: Path, write_store: Callable[..., Any]) -> None:
    write_store(work / "other")
    manifest = Manifest.load(forged(work, "other.parquet", recipe={"store": {"url": "other"}}))
    with pytest.raises(DataError, match="is not the store that the manifest was made from"):
        manifest.store()


# --- Parquet that stands for more than it is --------------------------------------------------------------------------


def bomb(work: Path, path: Path, rows: int, text: str = "0" * 16) -> Path:
    """A manifest of so many equal rows, whose ids are `text`: a few kilobytes, for columns are run-length encoded."""
    metadata = pq.read_schema(work / "half.parquet").metadata
    row = {
        "patch_id": text,
        "image_id": text,
        "rank": 0,
        "y": 0,
        "x": 0,
        "size": 48,
        "score": 0.0,
        "weight": 1.0,
        "shard": 0,
    }
    count = min(rows, 2**20)
    columns, fields = [], []
    for field in layout.MANIFEST:
        is_text = field.type == pa.string()
        value = pa.array([row[field.name]], field.type)
        indices = pa.repeat(pa.scalar(0, pa.int32()), count)
        columns.append(pa.DictionaryArray.from_arrays(indices, value) if is_text else pa.repeat(value[0], count))
        fields.append(pa.field(field.name, columns[-1].type, field.nullable))
    table = pa.table(columns, schema=pa.schema(fields, metadata))
    options = {"compression": "zstd", "dictionary_pagesize_limit": 2**30}
    with pq.ParquetWriter(path, table.schema, store_schema=False, **options) as writer:
        for _ in range(max(1, rows // 2**20)):
            writer.write_table(table)
        writer.add_key_value_metadata(metadata)
    return path


def test_a_manifest_of_many_million_equal_rows_is_refused(work: Path, tmp_path: Path) -> None:
    path = bomb(work, tmp_path / "bomb.parquet", 2**24)
    assert path.stat().st_size < 2**20
    for act in (
        lambda: Manifest.load(path),
        lambda: curate.info(path),
        lambda: curate.diff(path, path),
        lambda: curate.report([path], tmp_path / "x.html"),
    ):
        with pytest.raises(DataError, match=r"rows in .* bytes, more than 4 a byte") as refused:
            act()
        assert str(refused.value).isprintable()


def test_a_manifest_of_long_equal_texts_is_refused(work: Path, tmp_path: Path) -> None:
    path = bomb(work, tmp_path / "bomb.parquet", 2**16, "x" * 2**20)  # 64 GB each of two columns
    assert path.stat().st_size < 100_000
    for act in (Manifest.load, curate.info):
        with pytest.raises(DataError, match=r"text of 1048576 bytes|Out of Memory") as refused:
            act(path)
        assert str(refused.value).isprintable()
    assert len(Manifest.load(bomb(work, path, 2**16, "x" * 64))) == 2**16  # where it is what it seems to be


def test_a_store_s_table_of_many_million_equal_rows_is_refused(work: Path, tmp_path: Path) -> None:
    with pytest.raises(pa.ArrowInvalid, match="more than 4 a byte"):
        tables.read(bomb(work, tmp_path / "bomb.parquet", 2**24))


# --- code -------------------------------------------------------------------------------------------------------------

STUDY = """
[ingest]
patch = 48
step = 24
[score]
scorers = ["{scorer}"]
[[select]]
name = "some"
strategy = "{strategy}"
by = "sobel"
[[train]]
archs = ["{arch}"]
options = {{ steps = 1, crop = 24 }}
"""


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that leaves `tmp_path/ran` when it is imported."""
    package = f"evil_{tmp_path.name}"
    (tmp_path / package).mkdir()
    for file in ("thing.py", "__init__.py"):
        (tmp_path / package / file).write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield f"{package}.thing"
    for name in (package, f"{package}.thing"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "named",
    [
        {"scorer": "{}"},
        {"scorer": "{}:size=3"},
        {"scorer": "loss:checkpoint=x.pth,arch={}"},
        {"scorer": "loss:checkpoint=x.pth,arch=slim:arch={}"},
        {"scorer": "embedding:checkpoint=x.pth,arch={}"},
        {"strategy": "{}"},
        {"strategy": "{}:seed=1"},
        {"arch": "{}"},
        {"arch": "{}:scale=2"},
        {"arch": "slim:arch={}"},
    ],
)
def test_a_study_imports_nothing_that_the_command_does_not_name(
    tmp_path: Path, evil: str, named: dict[str, str]
) -> None:
    specs = {"scorer": "sobel", "strategy": "des", "arch": "fsrcnn"} | {
        key: spec.format(evil) for key, spec in named.items()
    }
    (tmp_path / "study.toml").write_text(STUDY.format(**specs))
    for modules in ((), ("my_lab.edges",), (evil.partition(".")[0],)):
        with pytest.raises(UsageError, match=f"code outside curate; .* --plugin {evil}"):
            Pipeline.load(tmp_path / "study.toml", modules)
    assert not (tmp_path / "ran").exists() and evil not in sys.modules
    with pytest.raises(
        CurateError
    ):  # what it defines is no plugin, or there is no such checkpoint; but it was asked for
        Pipeline.load(tmp_path / "study.toml", [evil])
    assert (tmp_path / "ran").exists() or "checkpoint" in named.get("scorer", "")


def test_a_recipe_imports_nothing_that_the_command_does_not_name(tmp_path: Path, evil: str) -> None:
    (tmp_path / "recipe.toml").write_text(f'arch = "{evil}:scale=2"\nsteps = 1\n')
    with pytest.raises(UsageError, match=f"code outside curate; .* --arch {evil}"):
        plan(tmp_path / "recipe.toml", None, {})
    assert plan(tmp_path / "recipe.toml", f"{evil}:scale=2", {})[0] == f"{evil}:scale=2"
    assert not (tmp_path / "ran").exists()


# --- names on a terminal ----------------------------------------------------------------------------------------------


def test_names_that_steer_a_terminal_are_shown_and_not_obeyed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every verb that prints names of files, of images, of columns, of test sets."""
    from curate import cli

    monkeypatch.chdir(tmp_path)
    photos, tests = (tmp_path / f"{name}{ESCAPES}" for name in ("photos", "tests"))
    for folder in (photos, tests):
        folder.mkdir()
    pixels = Image.fromarray(synthetic_photo(240, 264, 0))
    pixels.save(photos / f"a{ESCAPES}.png")
    pixels.resize((200, 180)).save(photos / f"smaller{ESCAPES}.jpg", quality=95)
    pixels.save(tests / f"t{ESCAPES}.png")
    (photos / f"bad{ESCAPES}.png").write_bytes(b"")
    store, chosen, less = (f"{name}{ESCAPES}" for name in ("store", "half.parquet", "less.parquet"))
    lines: list[tuple[str, ...]] = [
        ("ingest", str(photos), store, "--patch", "48", "--step", "24"),
        ("ingest", str(photos), store, "--retry-failed"),
        ("duplicates", store),
        ("leaks", store, str(tests)),
        ("score", store, "sobel"),
        ("select", store, "des", "--with-flagged", "-o", chosen),
        ("select", store, "asc", "--with-flagged", "-o", less),
        ("sql", store, f"select name, status, 'a{ESCAPES}' as \"b{ESCAPES}\" from images"),
        ("sql", store, f'select * from "no{ESCAPES}"'),
        ("info", store),
        ("info", chosen),
        ("diff", chosen, less),
        ("pack", chosen, f"packed{ESCAPES}"),
        ("export", chosen, f"out{ESCAPES}", "--to", "folder"),
        ("report", chosen, "-o", f"page{ESCAPES}.html"),
        ("verify", store, chosen, "--deep"),
        ("repair", store),
        ("info", f"nothing{ESCAPES}"),
        ("score", store, f"nothing{ESCAPES}"),
        ("select", store, "des", "--by", f"nothing{ESCAPES}", "-o", "x.parquet"),
        ("train", chosen, "--arch", f"nothing{ESCAPES}", "--steps", "1", "-o", "run"),
    ]
    shown = 0
    for line in lines:
        monkeypatch.setattr(sys, "argv", ["curate", *line])
        capfd.readouterr()
        with pytest.raises(SystemExit):
            cli.main()
        answer = "".join(capfd.readouterr())
        assert all(part.isprintable() for part in answer.split("\n")), line
        shown += "\\x1b[31m" in answer
    assert shown >= 15  # they were printed, as text
