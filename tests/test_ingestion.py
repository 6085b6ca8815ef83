"""Ingest copies verbatim, refuses with a reason, writes nothing twice, and always ends with the same bytes."""

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from conftest import put, synthetic_photo
from PIL import Image

from curate import examination, files, images, ingestion, pool, windows
from curate.errors import CurateError, DataError, UsageError
from curate.ingestion import IngestReport, ingest
from curate.store import Store

PATCH, STEP = 24, 12
SHAPES = ((50, 61), (36, 48), (48, 36), (60, 60), (26, 72), (37, 40))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of files are written here that need not outlive a power cut; test_files.py checks that they would."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(seed: int, height: int = 36, width: int = 48) -> Image.Image:
    return Image.fromarray(synthetic_photo(height, width, seed))


def png(seed: int, height: int = 36, width: int = 48) -> bytes:
    return encoded(photo(seed, height, width))


def fill(folder: Path, content: Mapping[str, bytes]) -> Path:
    """`folder` with those files, relative name -> bytes."""
    for name, data in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def take(photos: object, store: Path, **options: object) -> IngestReport:
    """`ingest` with small windows and small shards."""
    paths = photos if isinstance(photos, list) else [photos]
    return ingest(paths, store, **({"patch": PATCH, "step": STEP, "shard_size": 8000} | options))


def rows(store: Path) -> dict[str, dict[str, object]]:
    """Name -> row of `images`."""
    return {row["name"]: row for row in Store.open(store).images().to_pylist()}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_consistent(path: Path) -> None:
    """What holds for every store, worked out from its files and tables anew."""
    store = Store.open(path)
    units = store.commits()
    table = store.images().to_pylist()
    ids = [row["image_id"] for row in table if row["image_id"] is not None]
    taken = [row for row in table if row["status"] == "ok"]
    assert len(ids) == len(set(ids)) == len(taken)
    assert all(row["image_id"] == row["sha256"][:16] for row in taken)
    cells = [cell for unit in units for cell in store.unit_table("cells", unit).to_pylist()]
    assert {cell["image_id"] for cell in cells if cell["role"] == "hr"} == set(ids)
    for row in taken:
        assert sha256(store.read_bytes(row["image_id"])) == row["sha256"]
        assert store.read(row["image_id"], 0, 0, row["height"], row["width"]).any()
    for unit in units:
        shard = store.shard_path(unit).read_bytes()
        here = store.unit_table("cells", unit).to_pylist()
        with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
            members = {member.name: (member.offset_data, member.size) for member in tar.getmembers()}
        assert list(members.values()) == [(cell["offset"], cell["size"]) for cell in here]
        images_here = store.unit_table("images", unit)["image_id"].drop_null().to_pylist()
        assert list(dict.fromkeys(name.partition(".")[0] for name in members)) == images_here
        for cell in here:
            data = shard[cell["offset"] : cell["offset"] + cell["size"]]
            assert cell["xxh3"] == xxhash.xxh3_64_intdigest(data)
            assert (cell["y"], cell["x"]) == (0, 0)
            assert (cell["height"], cell["width"]) == images.decode(data).shape[:2]
    size, step = store.header.patch, store.header.step
    expected = Counter(
        (f"{row['image_id']}_{y}_{x}_{size}", row["image_id"], y, x, size)
        for row in taken
        for y in windows.offsets(windows.cropped(row["height"]), size, step)
        for x in windows.offsets(windows.cropped(row["width"]), size, step)
    )
    assert Counter(tuple(row.values()) for row in store.patches().to_pylist()) == expected
    named = {part.path for unit in units.values() for part in unit.parts}
    assert tree(path).keys() == named | {f"commits/ingest/{unit:06}.json" for unit in units} | {"store.json"}


# --- photographs, verbatim --------------------------------------------------------------------------------------------

TAKEN: dict[str, tuple[str, bytes]] = {
    "RGB": ("a.png", png(1)),
    "JPEG": ("a.jpg", encoded(photo(1), "JPEG")),
    "an ending in capitals": ("A.JPEG", encoded(photo(1), "JPEG")),
    "WEBP": ("a.webp", encoded(photo(1), "WEBP")),
    "TIFF": ("a.tif", encoded(photo(1), "TIFF")),
    "BMP": ("a.bmp", encoded(photo(1), "BMP")),
    "grey": ("grey.png", encoded(photo(1).convert("L"))),
    "palette": ("palette.png", encoded(photo(1).quantize(16))),
    "opaque RGBA": ("opaque.png", encoded(photo(1).convert("RGBA"))),
    "a still GIF": ("still.gif", encoded(photo(1).quantize(16), "GIF")),
    "a JPEG that is called PNG": ("b.png", encoded(photo(1), "JPEG")),
    "a name with spaces": ("my photo 1 .png", png(1)),
    "a name with letters of other languages": ("été Ünïcødé 写真.png", png(1)),
    "a name with dots": ("v1.0.final..png", png(1)),
    "a name in a folder": ("sub.x/dir y/a.png", png(1)),
    "a name with a quote and a percent": ("it's 100%.png", png(1)),
    "as small as a patch": ("small.png", png(1, 24, 24)),
}


@pytest.mark.parametrize("case", TAKEN)
def test_taken_as_it_is(tmp_path: Path, case: str) -> None:
    name, data = TAKEN[case]
    report = take(fill(tmp_path / "photos", {name: data}), tmp_path / "store")
    assert (report.added, report.refused, report.bytes) == (1, [], len(data))
    row = rows(tmp_path / "store")[name]
    height, width, _ = images.decode(data).shape
    assert row == {
        "image_id": sha256(data)[:16],
        "name": name,
        "sha256": sha256(data),
        "height": height,
        "width": width,
        "status": "ok",
        "source": "photos",
        "split": "train",
    }
    store = Store.open(tmp_path / "store")
    assert store.read_bytes(row["image_id"]) == data
    with tarfile.open(store.shard_path(0)) as tar:
        assert tar.getnames() == [row["image_id"] + Path(name).suffix.lower()]
    check_consistent(tmp_path / "store")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photograph_is_measured_and_read_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    data = encoded(photo(1, 36, 60), exif=exif)
    take(fill(tmp_path / "photos", {"a.png": data}), tmp_path / "store")
    row = rows(tmp_path / "store")["a.png"]
    assert (row["height"], row["width"]) == ((36, 60) if orientation < 5 else (60, 36))
    store = Store.open(tmp_path / "store")
    assert store.read_bytes(row["image_id"]) == data
    upright = images.decode(data)
    for patch in store.patches().to_pylist():
        y, x = patch["y"], patch["x"]
        window = store.read(row["image_id"], y, x, PATCH, PATCH)
        np.testing.assert_array_equal(window, upright[y : y + PATCH, x : x + PATCH])
    check_consistent(tmp_path / "store")


def test_a_file_without_an_ending_is_kept_under_one_that_promises_nothing(tmp_path: Path) -> None:
    take(fill(tmp_path, {"scan": png(1)}) / "scan", tmp_path / "store")
    with tarfile.open(tmp_path / "store" / "shards" / "000000.tar") as tar:
        assert tar.getnames() == [sha256(png(1))[:16] + ".img"]


def test_the_split_and_the_source_are_kept(tmp_path: Path) -> None:
    take(fill(tmp_path / "a", {"1.png": png(1)}), tmp_path / "store", split="test é")
    take(fill(tmp_path / "b", {"2.png": png(2)}), tmp_path / "store")
    table = rows(tmp_path / "store")
    assert (table["1.png"]["source"], table["1.png"]["split"]) == ("a", "test é")
    assert (table["2.png"]["source"], table["2.png"]["split"]) == ("b", "train")


# --- bad input --------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, bytes, str]] = {
    "truncated PNG": ("a.png", png(1)[:-40], "truncated: "),
    "damaged PNG": ("a.png", png(1)[:300] + b"\0" + png(1)[301:], "damaged: wrong checksum"),
    "truncated JPEG": ("a.jpg", encoded(photo(1), "JPEG")[:-40], "truncated: no end marker"),
    "zero bytes": ("a.png", b"", "empty file"),
    "text renamed .png": ("a.png", b"I am no picture\n", "not an image that curate reads: PNG, JPEG, "),
    "a tar renamed .jpg": ("a.jpg", gzip.compress(b"x"), "not an image that curate reads: PNG, JPEG, "),
    "16-bit": ("a.png", encoded(Image.fromarray(np.full((36, 48), 999, np.uint16))), "16-bit samples"),
    "CMYK": ("a.jpg", encoded(photo(1).convert("CMYK"), "JPEG"), "CMYK"),
    "transparent": ("a.png", encoded(Image.new("RGBA", (48, 36), (1, 2, 3, 4))), "transparent"),
    "animated GIF": (
        "a.gif",
        encoded(photo(1).quantize(8), "GIF", save_all=True, append_images=[photo(2).quantize(8)]),
        "animated: 2 frames",
    ),
    "lower than a patch": ("a.png", png(1, 20, 60), "smaller than a patch: 20x60 px (cropped: 12x60), a patch is 24"),
    "narrower than a patch": (
        "a.png",
        png(1, 60, 23),
        "smaller than a patch: 60x23 px (cropped: 60x12), a patch is 24",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_its_reason(tmp_path: Path, case: str) -> None:
    name, data, reason = REFUSED[case]
    folder = fill(tmp_path / "photos", {"sub dir/" + name: data, "good.png": png(5), "zgood.png": png(6)})
    report = take(folder, tmp_path / "store")
    (refusal,) = report.refused
    assert refusal[0] == f"photos/sub dir/{name}" and refusal[1].startswith(reason) and refusal[1].isprintable()
    assert (report.added, report.known, report.ignored) == (2, 0, 0)
    row = rows(tmp_path / "store")["sub dir/" + name]
    assert (row["status"], row["sha256"], row["image_id"]) == (refusal[1], sha256(data), None)
    assert (row["height"] is None) == (not reason.startswith("smaller"))
    assert [row["status"] for row in rows(tmp_path / "store").values()].count("ok") == 2
    check_consistent(tmp_path / "store")


@pytest.mark.parametrize("case", REFUSED)
def test_refused_alone_is_a_store_with_a_reason_and_no_patches(tmp_path: Path, case: str) -> None:
    name, data, reason = REFUSED[case]
    report = take(fill(tmp_path / "photos", {name: data}), tmp_path / "store")
    assert (report.added, report.patches, report.bytes, len(report.refused)) == (0, 0, 0, 1)
    store = Store.open(tmp_path / "store")
    answer = store.query("select name, status from images where status <> 'ok'").to_pylist()
    assert [row["name"] for row in answer] == [name] and answer[0]["status"].startswith(reason)
    assert store.query("select * from scores").num_rows == 0
    check_consistent(tmp_path / "store")


def test_a_patch_must_fit_into_the_cropped_image(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", {"a.png": png(1, 59, 60), "b.png": png(2, 60, 60)})
    report = take(folder, tmp_path / "store", patch=50, step=25)
    assert report.refused == [("photos/a.png", "smaller than a patch: 59x60 px (cropped: 48x60), a patch is 50")]


def test_what_cannot_be_read_is_refused_and_tells_nothing_of_this_machine(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", {"a.png": png(1)})
    (folder / "dead.png").symlink_to(tmp_path / "nowhere.png")
    report = take(folder, tmp_path / "store")
    assert report.refused == [("photos/dead.png", "cannot be read: No such file or directory")]
    row = rows(tmp_path / "store")["dead.png"]
    assert (row["sha256"], row["image_id"], row["height"]) == (None, None, None)
    check_consistent(tmp_path / "store")


# --- mistakes of the user's: nothing is written -----------------------------------------------------------------------

MISTAKES: dict[str, tuple[dict[str, object], str]] = {
    "a folder without images": ({"photos": "{0}/empty"}, "no images in"),
    "a folder that is not there": ({"photos": "{0}/nowhere"}, "does not exist"),
    "no photographs": ({"photos": []}, "no photographs were named"),
    "one good folder and one of nothing": ({"photos": ["{0}/photos", "{0}/empty"]}, "no images in"),
    "a patch of nothing": ({"patch": 0}, "a patch should be 1 px or more"),
    "a negative patch": ({"patch": -24}, "a patch should be 1 px or more"),
    "a step of nothing": ({"step": 0}, "a step from 1 to the patch"),
    "a step beyond the patch": ({"step": 25}, "a step from 1 to the patch"),
    "a shard of nothing": ({"shard_size": 0}, "a shard should hold 1 byte or more, found 0"),
    "credentials in a URL": ({"store": "s3://key:secret@bucket"}, "a store should be a URL without credentials"),
    "a store that is a file": ({"store": "{0}/photos/1.png"}, "is not a store"),
    "a store below a file": ({"store": "{0}/photos/1.png/store"}, "cannot make a store at"),
    "a store that is a folder of something else": ({"store": "{0}/photos"}, "name a new or empty folder"),
    "an LR folder that is not there": ({"lr": {2: "{0}/nowhere"}}, "does not exist"),
    "an LR folder without images": ({"lr": {2: "{0}/empty"}}, "no images in"),
    "an LR scale of nothing": ({"lr": {0: "{0}/photos"}}, "of scale 2, 3 or 4, found 0"),
    "an LR scale that is none of ours": ({"lr": {8: "{0}/photos", 2: "{0}/photos"}}, "of scale 2, 3 or 4, found 2, 8"),
    "two LR images for one": ({"lr": {2: "{0}/double"}}, "has several x2 images for '1.png': 1x2.jpg, 1x2.png"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_clear_line_and_nothing_is_written(tmp_path: Path, case: str) -> None:
    options, expected = MISTAKES[case]
    fill(tmp_path / "photos", {"0.png": png(0), "1.png": png(1)})
    fill(tmp_path / "empty", {"notes.txt": b"no images"})
    fill(tmp_path / "double", {"0x2.png": png(0, 18, 24), "1x2.png": png(1, 18, 24), "1x2.jpg": png(2, 18, 24)})
    before = tree(tmp_path)

    def placed(value: object) -> object:
        if isinstance(value, dict):
            return {key: placed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [placed(item) for item in value]
        return value.format(tmp_path) if isinstance(value, str) else value

    arguments = {"photos": str(tmp_path / "photos"), "store": str(tmp_path / "store")}
    with pytest.raises(UsageError) as refused:
        take(**arguments | {key: placed(value) for key, value in options.items()})
    assert expected in str(refused.value) and str(refused.value).isprintable()
    assert refused.value.exit_code == 2
    assert tree(tmp_path) == before and not (tmp_path / "store").exists()


@pytest.mark.parametrize("grid", [{"patch": 48}, {"step": 24}, {"patch": 36, "step": 12}, {"patch": 0}, {"step": 0}])
def test_a_store_has_one_grid(tmp_path: Path, grid: dict[str, int]) -> None:
    folder = fill(tmp_path / "photos", {"0.png": png(0)})
    take(folder, tmp_path / "store")
    fill(folder, {"1.png": png(1)})
    before = tree(tmp_path)
    with pytest.raises(UsageError, match="has windows of 24 px every 12 px, asked for") as refused:
        ingest([folder], tmp_path / "store", **grid)
    asked = {"patch": PATCH, "step": STEP} | grid
    assert f"asked for {asked['patch']}/{asked['step']}; " in str(refused.value)
    assert tree(tmp_path) == before
    assert ingest([folder], tmp_path / "store").added == 1  # the store's grid is the default


@pytest.mark.parametrize(("asked", "grid"), [({}, (480, 240)), ({"patch": 25}, (25, 12)), ({"patch": 1}, (1, 1))])
def test_the_default_grid_is_480_and_half_a_patch(tmp_path: Path, asked: dict[str, int], grid: tuple[int, int]) -> None:
    ingest([fill(tmp_path / "photos", {"0.png": png(0, 12, 12)})], tmp_path / "store", **asked)
    header = Store.open(tmp_path / "store").header
    assert (header.patch, header.step) == grid


def test_a_damaged_tar_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    whole = tar_of({"0.png": png(0), "1.png": png(1)})
    (tmp_path / "photos.tar").write_bytes(whole[: len(whole) // 4])
    with pytest.raises(DataError, match="is damaged"):
        take(tmp_path / "photos.tar", tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("part", ["shards", "tables/images", "tables/cells", "tables/patches"])
def test_nothing_is_added_to_a_damaged_store(tmp_path: Path, part: str) -> None:
    take(fill(tmp_path / "photos", {"0.png": png(0)}), tmp_path / "store")
    (path,) = (tmp_path / "store" / part).iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    before = tree(tmp_path / "store")
    with pytest.raises(DataError, match="the store is damaged"):
        take(fill(tmp_path / "more", {"1.png": png(1)}), tmp_path / "store")
    assert tree(tmp_path / "store") == before


HOLDER = """
import sys
from curate.store import Store
with Store.open(sys.argv[1]).writing():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_nothing_is_written_while_another_process_writes(tmp_path: Path) -> None:
    take(fill(tmp_path / "photos", {"0.png": png(0)}), tmp_path / "store")
    before = tree(tmp_path / "store")
    more = fill(tmp_path / "more", {"1.png": png(1)})
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "store")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(CurateError, match="another curate is writing"):
            take(more, tmp_path / "store")
        assert tree(tmp_path / "store") == before
        holder.communicate()
    assert take(more, tmp_path / "store").added == 1


# --- again, more, copies ----------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with `photos`, a second `sub/photos` with some of the same files, LR images, and things to refuse."""
    content = {f"{i}.png": png(i, *shape) for i, shape in enumerate(SHAPES)}
    content |= {"bad/empty.png": b"", "bad/text.png": b"text", "copy of 1.png": content["1.png"]}
    fill(tmp_path / "photos", content)
    (tmp_path / "photos" / "dead.png").symlink_to("nowhere")
    again = {name: content[name] for name in ("0.png", "3.png", "bad/text.png")}  # the same source, name and bytes
    fill(tmp_path / "sub" / "photos", {**again, "4.png": png(44), "7.png": png(7)})
    (tmp_path / "sub" / "photos" / "dead.png").symlink_to("nowhere")
    lrs = {f"{i}x2.png": png(100 + i, height // 2, width // 2) for i, (height, width) in enumerate(SHAPES) if i != 2}
    fill(tmp_path / "X2", {**lrs, "copy of 1x2.png": lrs["1x2.png"], "7x2.png": png(107, 18, 24)})
    return tmp_path


def take_corpus(corpus: Path, store: Path) -> IngestReport:
    return take([corpus / "photos", corpus / "sub" / "photos"], store, lr={2: str(corpus / "X2")})


def test_the_corpus_is_what_the_tests_below_need(corpus: Path) -> None:
    report = take_corpus(corpus, corpus / "store")
    assert sorted(name for name, _ in report.refused) == [
        "photos/2.png",
        "photos/4.png",  # not the other one: its LR is of another size
        "photos/bad/empty.png",
        "photos/bad/text.png",
        "photos/copy of 1.png",
        "photos/dead.png",
    ]
    assert (report.added, report.known) == (6, 4)
    assert report.shards >= 3
    check_consistent(corpus / "store")


NOTHING = {"without_lr": 0, "other_lr": 0, "other_version": 0, "ignored": 0}


def test_the_same_corpus_again_writes_nothing(corpus: Path) -> None:
    first = take_corpus(corpus, corpus / "store")
    before = tree(corpus / "store")
    times = {path: path.stat().st_mtime_ns for path in (corpus / "store").rglob("*")}
    for _ in range(2):
        again = take_corpus(corpus, corpus / "store")
        counts = {"added": 0, "known": 16, "shards": 0, "patches": 0, "bytes": 0, "patch": first.patch}
        expected = IngestReport(**counts, refused=[], small=[], **NOTHING)
        assert again == expected
        assert again.known == first.added + len(first.refused) + first.known
        assert tree(corpus / "store") == before
        assert {path: path.stat().st_mtime_ns for path in (corpus / "store").rglob("*")} == times


def test_only_new_files_are_added(corpus: Path) -> None:
    take_corpus(corpus, corpus / "store")
    before = tree(corpus / "store")
    store = Store.open(corpus / "store")
    digest, count = store.digest(), len(store.commits())
    fill(corpus / "photos", {"00.png": png(20), "bad/16.png": REFUSED["16-bit"][1], "z/9.png": png(21)})
    fill(corpus / "X2", {"00x2.png": png(120, 18, 24), "9x2.png": png(121, 18, 24)})
    report = take_corpus(corpus, corpus / "store")
    assert (report.added, report.known, report.shards) == (2, 16, 1)
    assert report.refused == [("photos/bad/16.png", "16-bit samples")]
    after = tree(corpus / "store")
    assert {path: after[path] for path in before} == before
    assert all(f"{count:06}" in path for path in after.keys() - before.keys())
    grown = Store.open(corpus / "store")
    assert grown.digest(count) == digest != grown.digest()
    check_consistent(corpus / "store")


def test_in_two_runs_or_in_one_the_store_holds_the_same(tmp_path: Path) -> None:
    content = {f"{i}.png": png(i) for i in range(6)}
    first = fill(tmp_path / "a" / "photos", {name: content[name] for name in ("1.png", "4.png")})
    whole = fill(tmp_path / "b" / "photos", content)
    take(first, tmp_path / "two")
    take(whole, tmp_path / "two")
    take(whole, tmp_path / "one")

    def held(path: Path) -> list[list[tuple[object, ...]]]:
        tables = (Store.open(path).images(), Store.open(path).patches())
        return [sorted(tuple(row.values()) for row in table.to_pylist()) for table in tables]

    assert held(tmp_path / "two") == held(tmp_path / "one")


def test_a_file_that_was_replaced_is_another_photograph(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", {"a.png": png(1)})
    take(folder, tmp_path / "store")
    fill(folder, {"a.png": png(2)})
    report = take(folder, tmp_path / "store")
    assert (report.added, report.known) == (1, 0)
    table = Store.open(tmp_path / "store").images()
    assert table["name"].to_pylist() == ["a.png", "a.png"]
    assert table["sha256"].to_pylist() == [sha256(png(1)), sha256(png(2))]


def test_a_source_that_went_stays_in_the_store(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", {"a.png": png(1), "b.png": png(2)})
    take(folder, tmp_path / "store")
    before = tree(tmp_path / "store")
    (folder / "a.png").unlink()
    assert take(folder, tmp_path / "store").known == 1
    assert tree(tmp_path / "store") == before


def test_what_can_be_read_at_last_is_taken(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", {"a.png": png(1)})
    (folder / "late.png").symlink_to(tmp_path / "late.png")
    take(folder, tmp_path / "store")
    fill(tmp_path, {"late.png": png(2)})
    assert take(folder, tmp_path / "store").added == 1


@pytest.mark.parametrize("runs", [1, 2])
def test_a_copy_is_a_row_that_names_the_first_and_no_pixels(tmp_path: Path, runs: int) -> None:
    first = fill(tmp_path / "a", {"1.png": png(1), "2.png": png(2)})
    second = fill(tmp_path / "b", {"other name.png": png(1), "3.png": png(3)})
    for photos in [[first, second]] if runs == 1 else [[first], [second]]:
        report = take(photos, tmp_path / "store")
    image_id = sha256(png(1))[:16]
    assert report.refused == [("b/other name.png", f"copy of {image_id}")]
    row = rows(tmp_path / "store")["other name.png"]
    assert (row["image_id"], row["sha256"], row["height"]) == (None, sha256(png(1)), 36)
    store = Store.open(tmp_path / "store")
    joined = store.query("select count(*) n, count(distinct patch_id) d from patches join images using (image_id)")
    assert joined.to_pylist() == [{"n": store.patches().num_rows, "d": store.patches().num_rows}]
    check_consistent(tmp_path / "store")


def test_two_files_of_one_name_in_two_folders_are_two_photographs(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", {"a/1.png": png(1), "b/1.png": png(2)})
    other = fill(tmp_path / "others", {"1.png": png(3)})
    report = take([folder, other], tmp_path / "store")
    assert (report.added, report.refused) == (3, [])
    table = Store.open(tmp_path / "store").images()
    names = list(zip(table["source"].to_pylist(), table["name"].to_pylist(), strict=True))
    assert names == [("photos", "a/1.png"), ("photos", "b/1.png"), ("others", "1.png")]


def test_two_folders_of_one_name(tmp_path: Path) -> None:
    first = fill(tmp_path / "a" / "photos", {"1.png": png(1), "2.png": png(2)})
    second = fill(tmp_path / "b" / "photos", {"1.png": png(3), "2.png": png(2)})
    report = take([first, second], tmp_path / "store")
    assert (report.added, report.known, report.refused) == (3, 1, [])  # 2.png is one and the same
    assert Store.open(tmp_path / "store").images().num_rows == 3
    before = tree(tmp_path / "store")
    assert take([second, first], tmp_path / "store").known == 4
    assert tree(tmp_path / "store") == before


def test_a_photograph_that_was_refused_for_its_lr_and_taken_elsewhere_is_joined_once(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", {"a.png": png(1), "b.png": png(1), "c.png": png(1)})
    lrs = fill(tmp_path / "X2", {"b.png": png(101, 18, 24), "c.png": png(101, 18, 24)})
    report = take(folder, tmp_path / "store", lr={2: str(lrs)})
    statuses = {name: row["status"] for name, row in rows(tmp_path / "store").items()}
    image_id = sha256(png(1))[:16]
    assert statuses == {"a.png": "no x2 LR image for it", "b.png": "ok", "c.png": f"copy of {image_id}"}
    store = Store.open(tmp_path / "store")
    assert store.query("select * from patches join images using (image_id)").num_rows == report.patches
    check_consistent(tmp_path / "store")


def test_two_photographs_of_one_id_are_an_error_and_not_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Colliding:
        def __init__(self, data: bytes) -> None:
            self.full = sha256(data)

        def hexdigest(self) -> str:
            return "0" * 16 + self.full[16:]

    monkeypatch.setattr(examination, "hashlib", SimpleNamespace(sha256=Colliding))
    with pytest.raises(DataError, match="two photographs share the image id 0000000000000000: SHA-256"):
        take(fill(tmp_path / "photos", {"1.png": png(1), "2.png": png(2)}), tmp_path / "store")
    assert Store.open(tmp_path / "store").commits() == {}


# --- shards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_size", [1, "the first two", "one less", 10_000, 15_000, 10**9])
def test_shards_are_filled_in_order_up_to_their_size(tmp_path: Path, shard_size: int | str) -> None:
    content = {f"{i}.png": png(i, 30 + 3 * i, 60 - 2 * i) for i in range(9)}
    content |= {f"{i} bad.png": b"bad %d" % i for i in range(0, 9, 2)}
    two = len(content["0.png"]) + len(content["1.png"])
    limit = {"the first two": two, "one less": two - 1}.get(shard_size, shard_size)
    assert take(fill(tmp_path / "photos", content), tmp_path / "store", shard_size=limit).added == 9
    store = Store.open(tmp_path / "store")
    shards = [store.unit_table("images", unit)["name"].to_pylist() for unit in store.commits()]
    assert [name for names in shards for name in names] == sorted(content)
    sizes = [[len(content[name]) for name in names if "bad" not in name] for names in shards]
    assert all(sum(held) <= limit or len(held) == 1 for held in sizes)
    assert all(sum(held) + after[0] > limit for held, after in pairwise(sizes))  # the next one did not fit
    assert not any("bad" in names[0] for names in shards[1:])  # what takes no room opens no shard
    check_consistent(tmp_path / "store")


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_shard_has_no_more_rows_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(ingestion, "MAX_ROWS", most)
    folder = fill(tmp_path / "photos", {f"{i}.png": png(i) if i % 3 == 0 else b"bad %d" % i for i in range(11)})
    take(folder, tmp_path / "store", shard_size=10**9)
    store = Store.open(tmp_path / "store")
    counts = [store.unit_table("images", unit).num_rows for unit in store.commits()]
    assert counts == [most] * (11 // most) + [11 % most] * (11 % most > 0)
    check_consistent(tmp_path / "store")


def test_memory_does_not_grow_with_the_corpus_or_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.pool.workers", lambda: 2)  # 16 images ahead, fewer than either corpus has
    content = {f"{i:02}.bmp": encoded(photo(1, 300, 400), "BMP") + b"%d" % i for i in range(72)}  # 360 KB each
    take(fill(tmp_path / "warm", {"a.bmp": content["00.bmp"]}), tmp_path / "warm store")
    peaks = []
    for count in (24, 72):
        folder = fill(tmp_path / f"{count}", dict(list(content.items())[:count]))
        tracemalloc.start()
        assert take(folder, tmp_path / f"{count} store", patch=240, step=240, shard_size=10**9).shards == 1
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 4 * len(content["00.bmp"])  # chance: what the threads hold at the same time


# webdataset leaves the tar file for Python to close
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file:ResourceWarning")
def test_webdataset_reads_the_shards_as_they_are(corpus: Path) -> None:
    import webdataset

    take_corpus(corpus, corpus / "store")
    store = Store.open(corpus / "store")
    paths = [str(store.shard_path(unit)) for unit in store.commits()]
    samples = {sample["__key__"]: sample for sample in webdataset.WebDataset(paths, shardshuffle=False)}
    taken = {row["image_id"]: row for row in store.images().to_pylist() if row["status"] == "ok"}
    assert samples.keys() == taken.keys()
    for image_id, sample in samples.items():
        assert {key for key in sample if not key.startswith("__")} == {"png", "lr2.png"}
        assert sha256(sample["png"]) == taken[image_id]["sha256"]
        assert sample["lr2.png"] == store.read_bytes(image_id, "lr2")
    decoded = webdataset.WebDataset(paths, shardshuffle=False).decode("rgb8")
    for sample in decoded:
        shape = (taken[sample["__key__"]]["height"], taken[sample["__key__"]]["width"])
        np.testing.assert_array_equal(sample["png"], store.read(sample["__key__"], 0, 0, *shape))


# --- tar files and URLs -----------------------------------------------------------------------------------------------


def tar_of(content: Mapping[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["photos.tar", "photos.tar.gz", "memory folder", "memory photos.tar"])
def test_a_tar_or_a_url_gives_the_store_of_the_folder(tmp_path: Path, memory: str, kind: str) -> None:
    content = {f"sub {i % 2}/{i}.png": png(i) for i in range(5)} | {"bad.png": b"", "notes.txt": b"text"}
    folder = fill(tmp_path / "photos", content)
    if kind == "memory folder":
        source = f"{memory}/photos"
        for name, data in content.items():
            put(f"{source}/{name}", data)
    elif kind.startswith("memory"):
        source = put(f"{memory}/photos.tar", tar_of(content))
    else:
        source = str(tmp_path / kind)
        Path(source).write_bytes(tar_of(content, "w:gz" if kind.endswith("gz") else "w"))
    reports = [take(folder, tmp_path / "store"), take(source, tmp_path / "other")]
    label = source.rpartition("/")[2]
    assert reports[1].refused == [(f"{label}/bad.png", "empty file")]
    assert (reports[0].added, reports[0].ignored) == (reports[1].added, reports[1].ignored) == (5, 1)
    first, second = Store.open(tmp_path / "store"), Store.open(tmp_path / "other")
    assert set(second.images()["source"].to_pylist()) == {label}
    assert first.images().drop_columns("source").equals(second.images().drop_columns("source"))
    same = {path: data for path, data in tree(first.path).items() if not path.startswith(("tables/images", "commits"))}
    assert same.items() <= tree(second.path).items()


def test_a_shard_is_a_source_of_the_same_photographs(tmp_path: Path) -> None:
    take(fill(tmp_path / "photos", {f"{i}.png": png(i) for i in range(3)}), tmp_path / "store", shard_size=10**9)
    report = take(tmp_path / "store" / "shards" / "000000.tar", tmp_path / "again", shard_size=10**9)
    assert (report.added, report.refused) == (3, [])
    first, second = (Store.open(tmp_path / name) for name in ("store", "again"))
    ids = first.images()["image_id"].to_pylist()
    assert second.images()["image_id"].to_pylist() == sorted(ids) != ids  # in the order of their names in the shard
    assert [first.read_bytes(image_id) for image_id in ids] == [second.read_bytes(image_id) for image_id in ids]


# --- LR images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["DIV2K_train_LR_bicubic/X2/0001x2.png", "X2/0001.png", "X2/0001x2.jpg", "X2/any/0001x2.png"]
)
def test_an_lr_image_is_kept_beside_its_hr(tmp_path: Path, name: str) -> None:
    hr, lr = png(1, 36, 48), encoded(photo(101, 18, 24), "JPEG" if name.endswith("jpg") else "PNG")
    folder = fill(tmp_path / "DIV2K_train_HR", {"0001.png": hr})
    fill(tmp_path, {name: lr})
    top = Path(name).parent if "any" not in name else Path("X2")
    report = take(folder, tmp_path / "store", lr={2: str(tmp_path / top)})
    assert (report.added, report.refused, report.bytes) == (1, [], len(hr) + len(lr))
    store, image_id = Store.open(tmp_path / "store"), sha256(hr)[:16]
    assert (store.read_bytes(image_id), store.read_bytes(image_id, "lr2")) == (hr, lr)
    assert store.cell(image_id, "lr2")[1:3] == (18, 24) and store.cell(image_id, "lr3") is None
    with tarfile.open(store.shard_path(0)) as tar:
        assert sorted(tar.getnames()) == sorted([f"{image_id}.png", f"{image_id}.lr2{Path(name).suffix}"])
    check_consistent(tmp_path / "store")


def test_several_scales_are_kept_together(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", {"a.b.png": png(1, 48, 60), "c.png": png(2, 49, 61)})
    lrs = {}
    for scale in (4, 2, 3):
        content = {f"a.bx{scale}.png": png(10 + scale, 48 // scale, 60 // scale)}
        content[f"cx{scale}.png"] = png(20 + scale, -(-49 // scale), -(-61 // scale))
        lrs[scale] = str(fill(tmp_path / f"X{scale}", content))
    assert take(folder, tmp_path / "store", lr=lrs).added == 2
    store = Store.open(tmp_path / "store")
    for seed, data in ((10, png(1, 48, 60)), (20, png(2, 49, 61))):
        for scale in (2, 3, 4):
            cell = store.cell(sha256(data)[:16], f"lr{scale}")
            assert store.read_bytes(sha256(data)[:16], f"lr{scale}") == png(seed + scale, cell.height, cell.width)
    check_consistent(tmp_path / "store")
    before = tree(tmp_path / "store")
    assert take(folder, tmp_path / "store", lr=dict(sorted(lrs.items()))).known == 2
    assert tree(tmp_path / "store") == before


LR_SIZES = [  # of 49 x 61: MATLAB rounds up, others down
    *[(2, height, width, True) for height in (24, 25) for width in (30, 31)],
    *[(2, *size, False) for size in ((23, 30), (26, 30), (24, 29), (24, 32), (30, 24), (49, 61))],
    *[(3, *size, True) for size in ((16, 20), (17, 21))],
    *[(3, *size, False) for size in ((15, 20), (16, 22), (24, 30))],
]


@pytest.mark.parametrize(("scale", "height", "width", "fits"), LR_SIZES)
def test_an_lr_image_has_the_size_of_its_hr_by_the_scale(
    tmp_path: Path, scale: int, height: int, width: int, fits: bool
) -> None:
    folder = fill(tmp_path / "photos", {"a.png": png(1, 49, 61)})
    lrs = fill(tmp_path / "LR", {"a.png": png(2, height, width)})
    report = take(folder, tmp_path / "store", lr={scale: str(lrs)})
    reason = f"its x{scale} LR image is {height}x{width}, which is not 49x61 / {scale}"
    assert report.refused == ([] if fits else [("photos/a.png", reason)])


LR_REFUSED: dict[str, tuple[dict[str, bytes], str]] = {
    "none": ({}, "no x2 LR image for it"),
    "of another scale": ({"ax3.png": png(2, 12, 16)}, "no x2 LR image for it"),
    "truncated": ({"ax2.png": png(2, 18, 24)[:-30]}, "its x2 LR image: truncated: "),
    "empty": ({"ax2.png": b""}, "its x2 LR image: empty file"),
    "CMYK": ({"ax2.jpg": encoded(photo(2, 18, 24).convert("CMYK"), "JPEG")}, "its x2 LR image: CMYK"),
}


@pytest.mark.parametrize("case", LR_REFUSED)
def test_an_hr_image_without_a_good_lr_is_refused_and_the_others_are_not(tmp_path: Path, case: str) -> None:
    content, reason = LR_REFUSED[case]
    folder = fill(tmp_path / "photos", {"a.png": png(1), "b.png": png(3)})
    lrs = fill(tmp_path / "X2", {"bx2.png": png(4, 18, 24)} | content)
    report = take(folder, tmp_path / "store", lr={2: str(lrs)})
    ((name, found),) = report.refused
    assert report.added == 1 and name == "photos/a.png" and found.startswith(reason)
    row = rows(tmp_path / "store")["a.png"]
    assert (row["status"], row["image_id"], row["height"], row["width"]) == (found, None, 36, 48)
    check_consistent(tmp_path / "store")


def test_an_lr_image_that_cannot_be_read_tells_nothing_of_this_machine(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", {"a.png": png(1)})
    (fill(tmp_path / "X2", {"b.png": png(2)}) / "a.png").symlink_to(tmp_path / "nowhere")
    report = take(folder, tmp_path / "store", lr={2: str(tmp_path / "X2")})
    assert report.refused == [("photos/a.png", "its x2 LR image: cannot be read: No such file or directory")]


def test_an_ambiguous_lr_image_stops_an_existing_store_from_growing(tmp_path: Path) -> None:
    take(fill(tmp_path / "photos", {"a.png": png(1)}), tmp_path / "store")
    before = tree(tmp_path / "store")
    lrs = fill(tmp_path / "X2", {"0/bx2.png": png(2, 18, 24), "1/bx2.png": png(3, 18, 24)})
    more = fill(tmp_path / "photos", {f"{i}.png": png(i) for i in range(9)} | {"b.png": png(4)})
    with pytest.raises(UsageError, match=r"has several x2 images for 'b\.png': 0/bx2\.png, 1/bx2\.png"):
        take(more, tmp_path / "store", shard_size=1, lr={2: str(lrs)})
    assert tree(tmp_path / "store") == before


# --- the same bytes, always -------------------------------------------------------------------------------------------


def test_two_runs_give_the_same_bytes(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_corpus(corpus, corpus / "store")
    shutil.copytree(corpus / "photos", corpus / "moved" / "photos", symlinks=True)
    shutil.copytree(corpus / "sub", corpus / "moved" / "sub", symlinks=True)
    shutil.copytree(corpus / "X2", corpus / "moved" / "LR")
    monkeypatch.chdir(corpus / "moved")
    take([Path("photos"), Path("sub/photos")], Path("store"), lr={2: "LR"})
    assert tree(corpus / "moved" / "store") == tree(corpus / "store")


@pytest.mark.parametrize("threads", [1, 2, 9])
def test_the_number_of_processors_does_not_matter(corpus: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    take_corpus(corpus, corpus / "store")
    monkeypatch.setattr(pool, "workers", lambda: threads)
    take_corpus(corpus, corpus / "other")
    assert tree(corpus / "other") == tree(corpus / "store")


class StoppedError(Exception):
    """Raised in the middle of a run."""


def stopping(at: int, when: str) -> Callable[..., str]:
    """A `files.publish` that stops the run at its call number `at`.

    `before` and `after` that file is published, or `killed`: in the middle, so that half a file is left behind.
    """
    publish, calls = files.publish, iter(range(10**6))

    def stop(path: Path, write: Callable[[io.BytesIO], object], *, new: bool = False) -> str:
        if next(calls) != at:
            return publish(path, write, new=new)
        if when == "after":
            publish(path, write, new=new)
        if when == "killed":
            path.parent.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO()
            write(content)
            half = content.getvalue()[: content.tell() // 2]
            path.with_name(f".{path.name}.{os.getpid() + 1}.tmp").write_bytes(half)
        raise StoppedError

    return stop


@pytest.fixture
def number_of_files(corpus: Path) -> int:
    take_corpus(corpus, corpus / "whole")
    return len(tree(corpus / "whole"))


@pytest.mark.parametrize("when", ["before", "after", "killed"])
def test_interrupted_anywhere_and_run_again_ends_with_the_same_bytes(
    corpus: Path, number_of_files: int, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    whole = tree(corpus / "whole")
    for at in range(number_of_files):
        store = corpus / f"store {at}"
        with monkeypatch.context() as patch:
            patch.setattr(files, "publish", stopping(at, when))
            with pytest.raises(StoppedError):
                take_corpus(corpus, store)
        if Store.is_store(store):  # what is there is whole, if not all
            partly = Store.open(store)
            assert partly.images().num_rows == sum(partly.rows(unit, "images") for unit in partly.commits().values())
        take_corpus(corpus, store)
        assert tree(store) == whole, (when, at)
    assert len(list(corpus.glob("store *"))) == number_of_files


def test_interrupted_again_and_again_ends_with_the_same_bytes(
    corpus: Path, number_of_files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = 0
    while True:
        runs += 1
        with monkeypatch.context() as patch:  # a run that gets a shard further, and no more
            patch.setattr(files, "publish", stopping(6, "killed"))
            try:
                take_corpus(corpus, corpus / "store")
                break
            except StoppedError:
                continue
    assert runs > 2
    assert tree(corpus / "store") == tree(corpus / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after", "killed"])
def test_an_interrupted_addition_leaves_the_store_as_good_as_it_was(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    take(corpus / "photos", corpus / "store")
    take(corpus / "photos", corpus / "whole")
    more = fill(corpus / "more", {f"{i}.png": png(30 + i) for i in range(4)})
    before = Store.open(corpus / "store")
    known = (before.digest(), before.images(), before.patches())
    report = take(more, corpus / "whole", shard_size=1)
    for at in range(5 * report.shards):
        store = corpus / f"store {at}"
        shutil.copytree(corpus / "store", store)
        with monkeypatch.context() as patch:
            patch.setattr(files, "publish", stopping(at, when))
            with pytest.raises(StoppedError):
                take(more, store, shard_size=1)
        partly = Store.open(store)
        count = len(before.commits())
        assert partly.digest(count) == known[0]
        assert partly.images().slice(0, known[1].num_rows).equals(known[1])
        assert partly.patches().slice(0, known[2].num_rows).equals(known[2])
        take(more, store, shard_size=1)
        assert tree(store) == tree(corpus / "whole"), (when, at)


@pytest.mark.parametrize("at", range(4))
def test_interrupted_while_reading_and_run_again_ends_with_the_same_bytes(
    corpus: Path, number_of_files: int, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    calls = iter(range(10**6))
    size = images.size

    def stop(data: bytes) -> object:
        if next(calls) == 3 * at:
            raise StoppedError
        return size(data)

    with monkeypatch.context() as patch:
        patch.setattr(images, "size", stop)
        with pytest.raises(StoppedError):
            take_corpus(corpus, corpus / "store")
    take_corpus(corpus, corpus / "store")
    assert tree(corpus / "store") == tree(corpus / "whole")


# --- the report and the progress --------------------------------------------------------------------------------------


def test_the_report_adds_up(corpus: Path) -> None:
    fill(corpus / "photos", {"notes.txt": b"text", ".hidden.png": png(1)})
    report = take_corpus(corpus, corpus / "store")
    store = Store.open(corpus / "store")
    table = store.images()
    assert report.added + len(report.refused) == table.num_rows
    assert report.added == table["status"].to_pylist().count("ok")
    named = zip(*(table[name].to_pylist() for name in ("source", "name", "status")), strict=True)
    assert report.refused == [(f"{source}/{name}", status) for source, name, status in named if status != "ok"]
    assert (report.ignored, report.shards) == (2, len(store.commits()))
    assert report.patches == store.patches().num_rows > 0
    cells = pa.concat_tables([store.unit_table("cells", unit) for unit in store.commits()])
    assert report.bytes == sum(cells["size"].to_pylist())


def test_a_patch_that_small_images_have_room_for_is_named(photos: Callable[..., Path], tmp_path: Path) -> None:
    sizes = ((100, 140), *((40 + side, 70) for side in range(19)), (12, 12))
    folder = photos(sizes)
    report = take([folder], tmp_path / "store", patch=96)
    assert report.patch == 96 and sorted(report.small) == sorted(windows.cropped(min(size)) for size in sizes[1:])
    said = "20 images are smaller than a patch of 96 px; a new store made with --patch 36 takes 19 of them"
    assert report.advice() == said
    again = take([folder], tmp_path / "other", patch=36)
    assert again.added == 20 and again.small == [12]


def test_a_report_says_what_there_is_and_no_zeros(tmp_path: Path) -> None:
    folder = fill(tmp_path / "a", {"1.png": png(1), "2.png": png(2), "notes.txt": b"text"})
    report = take(folder, tmp_path / "store")
    size = sum(path.stat().st_size for path in folder.glob("*.png")) / 1e6
    assert (
        report.in_words() == f"2 images added ({report.patches} patches, 1 shard, {size:.1f} MB), 1 other file ignored"
    )
    fill(folder, {"3.png": b"no picture"})
    assert (
        take(folder, tmp_path / "store").in_words()
        == "0 images added, 2 already there, 1 refused, 1 other file ignored"
    )
    again = take(folder, tmp_path / "store", retry_failed=True)
    assert again.in_words(again=True) == "0 images added, 1 refused again"


def test_lr_images_among_photographs_are_told(tmp_path: Path) -> None:
    names = ("HR/0001.png", "LR/X2/0001x2.png", "HR/fox2.png", "HR/a.png", "LR/ax4.png")
    folder = fill(tmp_path / "all", {name: png(seed) for seed, name in enumerate(names)})
    report = take(folder, tmp_path / "store")
    assert report.added == 5 and sorted(report.like_lr) == ["LR/X2/0001x2.png", "LR/ax4.png"]
    assert report.suspicion().startswith("2 files named as LR images of others are ('LR/")
    assert take(folder / "HR", tmp_path / "other").suspicion() == ""


def test_no_advice_where_none_is_small(corpus: Path) -> None:
    report = take_corpus(corpus, corpus / "store")
    assert (report.small, report.advice(), report.is_in_vain) == ([], "", False)


def test_a_run_is_in_vain_where_all_is_refused_and_nothing_was_there(tmp_path: Path) -> None:
    bad, good = fill(tmp_path / "bad", {"a.png": b"no picture"}), fill(tmp_path / "good", {"b.png": png(1)})
    assert take(bad, tmp_path / "store").is_in_vain
    assert not take(good, tmp_path / "store").is_in_vain
    assert not take(good, tmp_path / "store").is_in_vain  # they are there already


def test_progress_counts_every_source_once_and_in_order(corpus: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    options = {"progress": lambda done, total, note="": calls.append((done, total, note))}
    report = take([corpus / "photos"], corpus / "store", **options)
    total = report.added + len(report.refused)
    assert [call[:2] for call in calls] == [(done, total) for done in range(1, total + 1)]
    assert calls[-1][2].split(", ")[0] == f"{len(report.refused)} refused" and "refused" not in calls[0][2]


def test_one_lr_image_for_two_photographs_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    first = fill(tmp_path / "a", {"0001.png": png(1)})
    second = fill(tmp_path / "b", {"0001.png": png(2)})
    lrs = fill(tmp_path / "X2", {"0001x2.png": png(3, 18, 24)})
    fill(tmp_path / "one", {"sub/0001.png": png(1), "0001.png": png(2)})
    with pytest.raises(UsageError, match=r"'0001x2\.png' would be the x2 LR image of both"):
        take(tmp_path / "one", tmp_path / "store", lr={2: str(lrs)})
    assert not (tmp_path / "store").exists()
    assert take(first, tmp_path / "store", lr={2: str(lrs)}).added == 1
    assert take(second, tmp_path / "other", lr={2: str(lrs)}).added == 1


def test_photographs_taken_before_without_lr_are_counted(tmp_path: Path) -> None:
    folder = fill(tmp_path / "a", {"0001.png": png(1), "0002.png": png(2)})
    lrs = fill(tmp_path / "X2", {"0001x2.png": png(3, 18, 24), "0002x2.png": png(4, 18, 24)})
    assert take(folder, tmp_path / "store").without_lr == 0
    assert take(folder, tmp_path / "store", lr={2: str(lrs)}).without_lr == 2
    assert take(folder, tmp_path / "paired", lr={2: str(lrs)}).without_lr == 0
    assert take(folder, tmp_path / "paired", lr={2: str(lrs)}).without_lr == 0
