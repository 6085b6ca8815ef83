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
from curate.leakage import leaks
from curate.manifest import Manifest
from curate.packing import pack
from curate.reporting import contents, report
from curate.reporting.words import slug
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
    assert re.search(r"rank in refined1 of \d+window", page.text) and "rank in refined0" not in page.text
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
    assert figures | {"concentration", "shares", "scatter-sobel-laplacian"} <= names
    assert {"patches-hardest", "patches-easiest", "patches-upper-edge-refined", "patches-entered-asc"} <= names
    assert "agreement" not in names  # of two scores a line tells as much
    shown = {slug(name.rpartition(".")[0]) for name in Store.open(made / "store").images()["name"].to_pylist()}
    drawn = {name.removeprefix("map-") for name in names if name.startswith("map-")}
    store = Store.open(made / "store")
    flagged = store.query("SELECT name FROM images JOIN flags USING (image_id)")["name"].to_pylist()
    assert drawn <= shown and not drawn & {slug(name.rpartition(".")[0]) for name in flagged}
    assert len(drawn) == 4 and len(flagged) == 1
    for path in (made / "png").iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG"


def test_maps_of_photographs_of_one_name_are_two_files(tmp_path: Path, write_photos: Callable[..., Path]) -> None:
    for seed, name in enumerate(("a.png", "A.PNG", "b.png")):
        file = write_photos(tmp_path / str(seed), [(100, 100)], seed=seed) / "000.png"
        (tmp_path / "photos" / str(seed)).mkdir(parents=True)
        file.rename(tmp_path / "photos" / name if seed == 2 else tmp_path / "photos" / str(seed) / name)
    ingest([tmp_path / "photos" / "0", tmp_path / "photos" / "1", tmp_path / "photos"], tmp_path / "store", patch=48)
    score(tmp_path / "store", ["sobel"])
    select(tmp_path / "store", "des", by="sobel").save(tmp_path / "des.parquet")
    report([tmp_path / "des.parquet"], tmp_path / "report.html", png=tmp_path / "png")
    names = sorted(path.stem for path in (tmp_path / "png").glob("map-*.png"))
    assert len(names) == len({name.casefold() for name in names}) == 3 and "map-b" in names


def words(path: Path) -> str:
    """The text of a page as one line."""
    return " ".join(Page(path.read_text("utf-8")).text.split())


def test_a_page_says_once_what_it_is_of_and_what_was_chosen(made: Path) -> None:
    record = report(manifests(made)[:2], made / "report.html")
    text = words(made / "report.html")
    assert text.startswith("curate report: refined, asc")
    grid = f"{record.store['patches']} patches of 48 px, every 24 px; 2 files were refused."
    assert f"curate report refined, asc From the store store: {record.store['images']} photographs, {grid}" in text
    for manifest in record.manifests:
        assert manifest.by is not None
        window = manifest.windows[manifest.by]
        said = f"anks {window.first + 1} to {window.last + 1} of {window.candidates}, highest first"
        assert text.count(said) == 1
    assert "All images are from photos." in text


def test_scores_are_compared_in_a_line_or_in_a_matrix(made: Path) -> None:
    matrix = 'aria-label="Spearman&#39;s rank correlation between'
    record = report(manifests(made)[:1], made / "report.html")
    there = record.agreement["sobel"]["laplacian"]
    assert there is not None
    assert f"Spearman's rank correlation over all patches is {there:.2f}: 1 is" in words(made / "report.html")
    assert matrix not in (made / "report.html").read_text("utf-8")
    score(made / "store", ["entropy"])
    report(manifests(made)[:1], made / "report.html")
    assert "correlation over all patches: 1 is" in words(made / "report.html")
    assert matrix in (made / "report.html").read_text("utf-8")


class Tiles(HTMLParser):
    """The captions of a page's patches by the heading above them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.under: dict[str, list[str]] = {}
        self._heading = self._part = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("h3", "h4"):
            self._heading = ""
        if tag == "figcaption" and self._part == "tile":
            self.under.setdefault(self._heading, []).append("")
        self._part = "tile" if tag == "figure" and "tile" in (dict(attrs).get("class") or "") else self._part
        self._part = tag if tag in ("h3", "h4", "section") else self._part
        self._caption = tag in ("figcaption", "span") and self._part == "tile"

    def handle_endtag(self, tag: str) -> None:
        self._caption = self._caption and tag != "figcaption"
        self._part = "" if tag in ("h3", "h4") else self._part

    def handle_data(self, data: str) -> None:
        if self._part in ("h3", "h4"):
            self._heading += data
        elif self._part == "tile" and self._caption and self.under.get(self._heading):
            self.under[self._heading][-1] += data


def test_what_one_manifest_has_alone_is_told_by_its_own_score_in_its_order(made: Path) -> None:
    select(made / "store", "des", by="laplacian", keep=0.3).save(made / "des.parquet")
    report([made / "refined.parquet", made / "des.parquet"], made / "report.html")
    captions = Tiles((made / "report.html").read_text("utf-8")).under["In des alone"]
    places = [int(caption.split()[0].replace(",", "")) for caption in captions]
    table = Manifest.load(made / "des.parquet").table
    refined = set(Manifest.load(made / "refined.parquet").table["patch_id"].to_pylist())
    alone = [rank + 1 for rank, patch in enumerate(table["patch_id"].to_pylist()) if patch not in refined]
    assert len(places) > 3 and places == sorted(places) and set(places) <= set(alone)
    assert (places[0], places[-1]) == (alone[0], alone[-1])


def test_the_table_of_images_shows_the_number_that_it_is_sorted_by(made: Path) -> None:
    report([made / "asc.parquet"], made / "report.html")
    text = (made / "report.html").read_text("utf-8")
    table = text[text.index('<table class="sortable"') :]
    table = table[: table.index("</table>")]
    headings = re.findall(r"<th(?: [^>]*)?>", table)
    (sorted_by,) = (index for index, heading in enumerate(headings) if "aria-sort" in heading)
    rows = [re.findall(r"<td[^>]*>(?:<span[^>]*>.*?</span>)?([^<]*)", row) for row in table.split("<tr>")[2:]]
    counts = [int(row[sorted_by]) for row in rows]
    assert all(len(row) == len(headings) for row in rows)
    assert counts == sorted(counts, reverse=True) and sum(counts) == len(Manifest.load(made / "asc.parquet"))


def test_lineage_tells_each_thing_once_and_what_to_put_for_names(
    made: Path, tmp_path: Path, write_photos: Callable[..., Path]
) -> None:
    leaks(made / "store", write_photos(tmp_path / "bench", [(64, 64)], seed=7))
    select(made / "store", "des", by="sobel").save(made / "des.parquet")
    record = report([made / "refined.parquet", made / "des.parquet"], made / "report.html")
    text = words(made / "report.html")
    text = text[text.index("These commands, run in") :]
    assert "for photos put the place of the photographs, and for bench put the place of the test images." in text
    assert text.count(record.store["digest"]) == 1
    for manifest in record.manifests:
        assert text.count(manifest.digest) == 1 and text.count(manifest.command) == 1
    assert "packed" not in text and " none " not in text and "\N{EN DASH}" not in text and "None" not in text
    for value in ("drop_top: 0.05", "0.5 of the candidates' patches", "leaks@", "(bench)", "duckdb: "):
        assert value in text


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
