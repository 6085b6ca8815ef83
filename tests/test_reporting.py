"""The report: what it says is what the store and the manifests say, it asks nothing of anybody, names stay text."""

import base64
import hashlib
import io
import json
import re
import shlex
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.compute as pc
import pytest
from conftest import put
from PIL import Image

from curate import cli, comparison, schema
from curate.duplication import duplicates
from curate.errors import DataError, UsageError
from curate.ingestion import ingest
from curate.manifest import Manifest
from curate.packing import pack
from curate.reporting import contents, report
from curate.scoring import score
from curate.selection import select
from curate.store import Store

HOSTILE = ("<script>alert(1)<&sol;script>.png", "\"'><img src=x onerror=alert(1)>.png", "$x_1$\x1b[31m\u202egnp.png")


class Page(HTMLParser):
    """What a browser would make of a page: its tags with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, *names: str) -> list[str]:
        return [value for _, attrs in self.tags for name, value in attrs.items() if name in names and value is not None]


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Path:
    """A folder with a store of hostile names, refused files and a near-duplicate, and three manifests."""
    folder = tmp_path_factory.mktemp("made")
    photos = write_photos(folder / "photos", [(150, 200), (120, 150), (97, 130), (144, 144)])
    for file, name in zip(sorted(photos.iterdir()), HOSTILE, strict=False):
        file.rename(photos / name.replace("/", "_"))
    shutil.copy(photos / "003.jpg", photos / "copy.jpg")
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.open(photos / "003.jpg").save(photos / "again.png")
    ingest([photos], folder / "store", patch=48, step=24)
    score(folder / "store", ["sobel", "laplacian"])
    duplicates(folder / "store")
    select(folder / "store", "refined", by="sobel").save(folder / "refined.parquet")
    select(folder / "store", "asc", by="laplacian", keep=0.3, where="x > 0").save(folder / "asc.parquet")
    select(folder / "store", "random", with_flagged=True).save(folder / "random.parquet")
    return folder


@pytest.fixture
def made(_made: Path, tmp_path: Path) -> Path:
    """The same in a folder of the test's own."""
    for path in ("store", "refined.parquet", "asc.parquet", "random.parquet"):
        (shutil.copytree if (_made / path).is_dir() else shutil.copy)(_made / path, tmp_path / path)
    return tmp_path


def manifests(folder: Path) -> list[Path]:
    return [folder / f"{name}.parquet" for name in ("refined", "asc", "random")]


def test_one_file_asks_nothing_of_anybody(made: Path) -> None:
    report(manifests(made), made / "report.html")
    text = (made / "report.html").read_text("utf-8")
    page = Page(text)
    assert all(re.match(r"data:|#", value) for value in page.values("src", "href", "xlink:href", "action", "srcset"))
    targets = {value[1:] for value in page.values("href") if value.startswith("#")}
    assert targets <= set(page.values("id"))
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|WebSocket|sendBeacon", text)
    (policy,) = (attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert policy is not None and "default-src 'none'" in policy
    assert re.findall(r"sha256-([^']+)", policy) == hashes
    assert len(text.encode()) < contents.MAX_BYTES


def test_names_stay_text(made: Path) -> None:
    (made / "refined.parquet").rename(made / "<img src=x onerror=alert(2)>.parquet")
    names = [made / "<img src=x onerror=alert(2)>.parquet", made / "asc.parquet"]
    report(names, made / "report.html", png=made / "png")
    text = (made / "report.html").read_text("utf-8")
    page = Page(text)
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{"type": "application/json", "id": "photos"}, {}]
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    assert {value for value in page.values("src") if not value.startswith("data:")} == set()
    assert "<script>alert(1)<&sol;script>.png" in page.text
    assert "\"'><img src=x onerror=alert(1)>.png" in page.text
    assert "$x_1$\\x1b[31m\\u202egnp.png" in page.text
    assert "<img src=x onerror=alert(2)>" in page.text
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    assert all(re.fullmatch(r"[\w.-]+\.png", path.name) for path in (made / "png").iterdir())


def test_the_same_manifests_give_the_same_bytes_wherever_they_lie(made: Path, tmp_path: Path) -> None:
    report(manifests(made), made / "report.html")
    first = (made / "report.html").read_bytes()
    report(manifests(made), made / "report.html")
    assert (made / "report.html").read_bytes() == first
    report([Manifest.load(path) for path in manifests(made)], made / "report.html")
    assert (made / "report.html").read_bytes() == first
    fresh = select(made / "store", "refined", by="sobel").save(made / "refined.parquet")  # its recipe in another order
    report([fresh, *manifests(made)[1:]], made / "report.html")
    assert (made / "report.html").read_bytes() == first
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("store", "refined.parquet", "asc.parquet", "random.parquet"):
        shutil.move(made / name, moved / name)
    report(manifests(moved), moved / "report.html")
    assert (moved / "report.html").read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_the_numbers_are_those_of_the_manifests(made: Path) -> None:
    record = report(manifests(made), made / "report.html")
    refined, asc, random = record.manifests
    for found, path in zip(record.manifests, manifests(made), strict=True):
        manifest = Manifest.load(path)
        assert (found.name, found.by, found.patches) == (path.stem, manifest.recipe.by, len(manifest))
        assert found.digest == manifest.digest()
        assert found.images == pc.count_distinct(manifest.table["image_id"]).as_py()
        assert found.pixels == manifest.recipe.counts["pixels"]
        assert sum(found.sources.values()) == sum(found.sizes.values()) == len(manifest)
        assert found.recipe == manifest.recipe.model_dump(mode="json")
    candidates = Manifest.load(made / "refined.parquet").recipe.counts["candidates"]
    window = refined.windows["sobel"]
    assert (window.candidates, window.gaps) == (candidates, 0)
    assert (window.first, window.chosen) == (int(0.05 * candidates + 0.5), int(0.5 * candidates + 0.5))
    table = Manifest.load(made / "refined.parquet").table
    assert (window.high, window.low) == (table["score"][0].as_py(), table["score"][-1].as_py())
    scored = asc.windows["laplacian"]
    assert scored.gaps == 0 and scored.first + scored.chosen == scored.candidates < candidates
    assert random.windows["sobel"].gaps > 0
    store = Store.open(made / "store")
    ranks = "SELECT rank() OVER (ORDER BY sobel) AS a, rank() OVER (ORDER BY laplacian) AS b FROM scores"
    expected = store.query(f"SELECT corr(a, b) AS r FROM ({ranks})")["r"][0].as_py()
    assert record.agreement["sobel"]["laplacian"] == pytest.approx(expected, abs=1e-3)
    assert record.agreement["sobel"]["sobel"] == pytest.approx(1)


def test_manifests_are_compared_as_diff_does(made: Path) -> None:
    record = report(manifests(made), made / "report.html")
    assert [(o.a, o.b) for o in record.overlaps] == [("refined", "asc"), ("refined", "random"), ("asc", "random")]
    for overlap in record.overlaps:
        counts = comparison.diff(made / f"{overlap.a}.parquet", made / f"{overlap.b}.parquet").counts
        assert overlap.model_dump(exclude={"a", "b"}) == {
            key: counts[key] for key in overlap.model_dump(exclude={"a", "b"})
        }
    page = Page((made / "report.html").read_text("utf-8"))
    assert "From refined to asc" in page.text and "In asc alone" in page.text


def test_what_never_came_in_is_told(made: Path) -> None:
    record = report(manifests(made), made / "report.html")
    assert record.refused == {"copy of another": 1, "truncated": 1}
    assert (record.duplicates, record.leaks, record.flagged) == (1, 0, 1)
    page = Page((made / "report.html").read_text("utf-8"))
    assert "copy.jpg" in page.text and "broken.png" in page.text
    assert re.search(r"(again\.png and 003\.jpg|003\.jpg and again\.png): correlation", page.text)
    assert "Not looked for: curate leaks STORE FOLDER does." in page.text


def test_the_commands_make_the_manifests_again(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (made / "pages").mkdir()
    record = report(manifests(made), made / "pages" / "report.html")
    before = {path: path.read_bytes() for path in manifests(made)}
    monkeypatch.chdir(made / "pages")
    verbs = []
    for line in record.commands:
        words = shlex.split(line)
        verbs.append(words[1])
        if words[1] == "ingest":
            assert words[2:] == ["photos", "../store", "--patch", "48", "--step", "24"]
            continue
        for path in before if words[1] == "select" else ():
            if words[words.index("-o") + 1] == f"../{path.name}":
                path.unlink()
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code, capsys.readouterr().err
    assert verbs == ["ingest", "duplicates", "score", "select", "select", "select"]
    assert {path: path.read_bytes() for path in manifests(made)} == before


def test_patches_are_shown_with_their_ranks_and_places(made: Path) -> None:
    report([made / "refined.parquet"], made / "report.html")
    page = Page((made / "report.html").read_text("utf-8"))
    best = Store.open(made / "store").query(
        "SELECT patch_id, y, x FROM scores JOIN images USING (image_id) WHERE status = 'ok' "
        "ORDER BY sobel DESC, patch_id LIMIT 1"
    )
    boxes = [attrs["data-box"] for tag, attrs in page.tags if tag == "button" and "data-box" in attrs]
    first = next(box for box in boxes if box is not None)
    assert first.split()[:3] == [str(best["y"][0]), str(best["x"][0]), "48"]
    photos = json.loads(re.findall(r'id="photos">(.*?)</script>', (made / "report.html").read_text("utf-8"))[0])
    keys = {attrs["data-photo"] for tag, attrs in page.tags if tag == "button" and "data-photo" in attrs}
    assert keys <= photos.keys()
    image = Image.open(io.BytesIO(base64.b64decode(next(iter(photos.values())).partition(",")[2])))
    assert image.format == "WEBP" and max(image.size) <= 400


def test_pictures_get_smaller_until_the_page_fits(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report([made / "refined.parquet"], made / "report.html")
    size = (made / "report.html").stat().st_size
    monkeypatch.setattr(contents, "MAX_BYTES", size - 1)
    report([made / "refined.parquet"], made / "report.html")
    assert (made / "report.html").stat().st_size < size


def test_papers_get_png_files(made: Path) -> None:
    report(manifests(made)[:2], made / "report.html", png=made / "png")
    names = {path.stem for path in (made / "png").iterdir()}
    figures = {f"{kind}-{label}" for kind in ("curve", "histogram") for label in ("sobel", "laplacian")}
    assert figures | {"agreement", "concentration", "shares", "scatter-sobel-laplacian"} <= names
    assert {"patches-hardest", "patches-easiest", "patches-upper-edge-refined", "patches-entered-asc"} <= names
    assert any(name.startswith("map-") for name in names)
    for path in (made / "png").iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG"


def test_a_store_that_has_grown_is_shown_as_it_was(
    made: Path, tmp_path: Path, write_photos: Callable[..., Path]
) -> None:
    before = report([made / "refined.parquet"], made / "report.html")
    ingest([write_photos(tmp_path / "more", [(150, 200)], seed=9)], made / "store")
    score(made / "store", ["sobel"])
    duplicates(made / "store")
    after = report([made / "refined.parquet"], made / "report.html")
    assert after.manifests[0].windows["sobel"] == before.manifests[0].windows["sobel"]
    assert after.store["images"] == before.store["images"] + 1
    assert "candidates with a score; by the checks" not in (made / "report.html").read_text("utf-8")


def test_checks_that_came_later_are_noted(made: Path) -> None:
    shutil.rmtree(made / "store" / "tables" / "checks")
    shutil.rmtree(made / "store" / "commits" / "checks")
    select(made / "store", "des", by="sobel").save(made / "unchecked.parquet")
    report([made / "unchecked.parquet"], made / "report.html")
    assert "Note." not in Page((made / "report.html").read_text("utf-8")).text
    report([made / "refined.parquet"], made / "report.html")
    assert "by the checks and scores of now" in Page((made / "report.html").read_text("utf-8")).text


def test_a_store_without_scores_has_pictures_still(made: Path, tmp_path: Path, photo_folder: Path) -> None:
    ingest([photo_folder], tmp_path / "bare", patch=96, step=48)
    select(tmp_path / "bare", "random").save(tmp_path / "bare.parquet")
    record = report([tmp_path / "bare.parquet"], tmp_path / "report.html", png=tmp_path / "png")
    assert (record.agreement, record.manifests[0].windows, record.overlaps) == ({}, {}, [])
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert "This store has no scores" in page.text and "A map needs a score" in page.text
    assert len([attrs for tag, attrs in page.tags if tag == "img"]) == 16 < record.manifests[0].patches
    assert {path.stem for path in (tmp_path / "png").iterdir()} == {"concentration", "shares", "patches-random-bare"}


def test_a_packed_core_set_can_be_looked_at(made: Path) -> None:
    pack(made / "refined.parquet", made / "packed")
    record = report([made / "packed" / "manifest.parquet"], made / "report.html")
    window = record.manifests[0].windows["sobel"]
    assert window.chosen == window.candidates == record.store["patches"] == record.manifests[0].patches
    page = Page((made / "report.html").read_text("utf-8"))
    assert "This store is packed" in page.text
    assert record.commands[0].startswith("curate score") and "curate ingest" not in page.text


def test_a_score_is_found_by_its_fingerprint(tmp_path: Path, write_store: Callable[..., Store]) -> None:
    """Where the same scorer was run with other weights since, each of its columns has another name."""
    values = list(np.linspace(0, 1, 12))
    store = write_store(tmp_path / "store", scores={"sobel": values})
    manifest = select(store, "des", by="sobel")
    record = schema.ScorerRecord(
        scorer="sobel", label="sobel", columns=["sobel"], identity={"version": 9}, fingerprint="f" * 16
    )
    store.add_score_set(record)
    from curate.reporting.facts import gather

    facts = gather(Store.open(tmp_path / "store"), {"m": manifest})
    assert len(facts.scores) == 2
    by = facts.choices[0].by
    assert by is not None and by != "sobel@ffffffff" and by.startswith("sobel@")
    assert facts.choices[0].candidates.all()
    assert np.isnan(facts.scores["sobel@ffffffff"]).all()


def test_what_cannot_be_reported_on_is_refused(
    made: Path, tmp_path: Path, photo_folder: Path, write_photos: Callable[..., Path]
) -> None:
    with pytest.raises(UsageError, match="one manifest or more, found none"):
        report([], tmp_path / "report.html")
    with pytest.raises(UsageError, match="two manifests are called 'refined'"):
        report([made / "refined.parquet"] * 2, tmp_path / "report.html")
    with pytest.raises(UsageError, match=r"is a folder; name it like report\.html"):
        report([made / "refined.parquet"], made / "store")
    ingest([photo_folder], tmp_path / "other", patch=48, step=24)
    select(tmp_path / "other", "random").save(tmp_path / "stranger.parquet")
    with pytest.raises(DataError, match="is not the store that the manifest was made from"):
        report([made / "refined.parquet", tmp_path / "stranger.parquet"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_core_set_in_an_object_store_is_reported_on(made: Path, memory: str) -> None:
    for path in (made / "store").rglob("*"):
        if path.is_file():
            put(f"{memory}/{path.relative_to(made).as_posix()}", path.read_bytes())
    put(f"{memory}/refined.parquet", (made / "refined.parquet").read_bytes())
    far = report([f"{memory}/refined.parquet"], f"{memory}/report.html")
    near = report([made / "refined.parquet"], made / "report.html")
    assert far == near
    with fsspec.open(f"{memory}/report.html") as file:
        assert file.read() == (made / "report.html").read_bytes()


def test_the_command_line_writes_it_and_prints_numbers(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    printed = []
    for more in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["curate", "report", "refined.parquet", "asc.parquet", "-o", "r.html", *more])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        printed.append(capsys.readouterr().out)
    assert re.fullmatch(r"refined, asc: r\.html; open it in any browser\n", printed[0])
    record = schema.parse(schema.ReportRecord, printed[1], "output")
    assert record == report([made / "refined.parquet", made / "asc.parquet"], made / "r.html")
