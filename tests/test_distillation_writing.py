"""A distilled store has the very patches that it was given, once each, and every verb takes it like any other."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distilled import PATCH, Pixels, distil, distilled_pixels, in_batches, made_from, patches

import curate
from curate import pool, resize
from curate.comparison import diff
from curate.config import TrainConfig
from curate.distillation import writing
from curate.errors import CurateError, UsageError
from curate.exporting import export
from curate.ingestion import ingest
from curate.inspection import info
from curate.loader import batches
from curate.manifest import Manifest
from curate.packing import MANIFEST_FILE, lossless, pack
from curate.repairing import repair
from curate.reporting import report
from curate.scoring import score
from curate.selection import select
from curate.store import Store
from curate.training import train
from curate.verification import verify

GROUPS = ["flat", None, "rough", "flat", None, "rough", "flat"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Path:
    """`store` of two photographs, `half.parquet` of it, `made`: five patches that were distilled from that. Not to be
    changed."""
    folder = tmp_path_factory.mktemp("distilled")
    ingest([write_photos(folder / "photos", [(60, 72), (48, 60)])], folder / "store", patch=PATCH, step=12, split="dev")
    score(folder / "store", ["sobel"])
    half = select(folder / "store", "refined:drop_top=0.1", by="sobel", keep=0.5).save(folder / "half.parquet")
    distil(half, folder / "made")
    return folder


@pytest.fixture
def half(source: Path) -> Manifest:
    return Manifest.load(source / "half.parquet")


@pytest.fixture
def made(source: Path, tmp_path: Path) -> Path:
    """A copy of all, to write to."""
    return Path(shutil.copytree(source, tmp_path / "all"))


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(act: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """The line with which something is refused."""
    with pytest.raises(UsageError) as refused:
        act(*arguments, **options)
    assert str(refused.value).isprintable()
    return str(refused.value)


# --- what is written --------------------------------------------------------------------------------------------------


def test_a_store_has_the_patches_that_it_was_given(half: Manifest, tmp_path: Path) -> None:
    hr = patches(7)
    scores = [0.5, None, *range(5)]
    made = distil(half, tmp_path / "made", hr, groups=GROUPS, scores=scores, weights=range(1, 8), batch=3)
    np.testing.assert_array_equal(distilled_pixels(made), hr)
    assert verify(tmp_path / "made", tmp_path / "made" / MANIFEST_FILE, deep=True).whole
    assert made.table["rank"].to_pylist() == list(range(7)) and made.table["score"].to_pylist() == scores
    np.testing.assert_allclose(made.table["weight"].to_numpy(), np.arange(1, 8) / 4)
    store = made.store()
    assert len(store.commits()) == 4 and store.header.step == store.header.patch == PATCH
    rows = store.images().to_pylist()
    assert [row["name"] for row in rows] == [
        f"{'' if group is None else group + '/'}{number:06d}.webp" for number, group in enumerate(GROUPS)
    ]
    assert {(row["source"], row["status"], row["height"], row["width"]) for row in rows} == {
        ("distilled", "ok", PATCH, PATCH)
    }
    for row in rows:  # the id vouches for the file
        digest = hashlib.sha256(store.read_bytes(row["image_id"])).hexdigest()
        assert digest == row["sha256"] and digest.startswith(row["image_id"])
    assert Manifest.load(tmp_path / "made" / MANIFEST_FILE).table.equals(made.table)
    by_group = store.query("SELECT split_part(name, '/', 1) AS g, count(*) AS n FROM images GROUP BY g ORDER BY g")
    assert by_group.to_pylist()[-2:] == [{"g": "flat", "n": 3}, {"g": "rough", "n": 2}]


def test_the_manifest_says_what_its_patches_were_made_from(source: Path, half: Manifest) -> None:
    made = Manifest.load(source / "made" / MANIFEST_FILE)
    recipe = made.recipe
    assert recipe.origin == "distilled" and recipe.options == made.store().header.distilled.options
    assert recipe.counts == {"patches": 5, "candidates": 5, "selected": 5, "copies": 0, "pixels": 5 * PATCH**2}
    origin = recipe.distilled_from
    assert origin is not None and (source / "made" / origin.store.url).resolve() == (source / "store").resolve()
    assert origin.store.digest == half.recipe.store.digest and origin.manifest == half.digest()
    there = half.recipe
    assert (origin.strategy, origin.options, origin.by, origin.keep) == (
        there.strategy,
        there.options,
        there.by,
        there.keep,
    )
    assert (origin.patches, origin.origin) == (len(half), "selected")
    again = distil(made, source.parent / "again")  # from what was distilled itself
    assert again.recipe.distilled_from is not None and again.recipe.distilled_from.origin == "distilled"


def test_the_split_is_that_of_the_source_images(
    source: Path, tmp_path: Path, write_photos: Callable[..., Path]
) -> None:
    assert set(Store.open(source / "made").images()["split"].to_pylist()) == {"dev"}
    store = shutil.copytree(source / "store", tmp_path / "store")
    ingest([write_photos(tmp_path / "more", [(48, 48)], 5)], store, split="val")
    mixed = distil(select(store, "random", keep=1.0), tmp_path / "mixed")
    assert set(mixed.store().images()["split"].to_pylist()) == {"train"}


def test_of_patches_that_are_equal_the_first_is_kept(half: Manifest, tmp_path: Path) -> None:
    """In one shard, over shards, after one that an earlier run has written, and where a shard has none of its own."""
    hr = patches(8)[[0, 0, 1, 0, 1, 2, 2, 1]]
    made = distil(half, tmp_path / "made", hr, weights=range(1, 9))
    np.testing.assert_array_equal(distilled_pixels(made), hr[[0, 2, 5]])
    np.testing.assert_allclose(made.table["weight"].to_numpy(), np.array([1, 3, 6]) / (10 / 3), rtol=1e-6)
    assert made.recipe.counts["copies"] == 5 and made.recipe.counts["selected"] == 3
    assert made.store().unit_table("images", 3).num_rows == 0 and verify(tmp_path / "made", deep=True).whole
    interrupted(half, tmp_path / "other", hr, after=4, weights=range(1, 9))
    distil(half, tmp_path / "other", hr, weights=range(1, 9))
    assert tree(tmp_path / "other") == tree(tmp_path / "made")


def test_a_patch_has_its_own_lr_where_it_is_given_one(half: Manifest, tmp_path: Path) -> None:
    """Trainers take it in place of the bicubic's, which they make at every other scale."""
    hr, lr = patches(5), {scale: 255 - patches(5, PATCH // scale, seed=7) for scale in (2, 3)}
    made = distil(half, tmp_path / "made", hr, lr=lr)
    bicubic = resize.downscale(torch.from_numpy(hr).permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1).numpy()
    for scale, expected in (lr | {4: bicubic}).items():
        batch = next(batches(made, scale=scale, crop=PATCH, batch_size=5, augment=False))
        pairs = zip(pixels_of(batch.lr_BCHW), pixels_of(batch.hr_BCHW), strict=True)
        assert {(small.tobytes(), large.tobytes()) for small, large in pairs} == {
            (small.tobytes(), large.tobytes()) for small, large in zip(expected, hr, strict=True)
        }
    assert verify(tmp_path / "made", deep=True).whole


def pixels_of(images_BCHW: torch.Tensor) -> list[Pixels]:
    """Of a batch, uint8 HWC."""
    return [image.mul(255).round().byte().permute(1, 2, 0).contiguous().numpy() for image in images_BCHW]


# --- again, and otherwise ---------------------------------------------------------------------------------------------


class KilledError(Exception):
    pass


def interrupted(manifest: Manifest, out: Path, hr: Pixels, after: int, **options: Any) -> None:
    """A run that dies when it has drawn so many patches."""

    def dying() -> Iterator[Pixels]:
        yield from in_batches(hr[:after], 1)
        raise KilledError

    store = writing.begin(out, patch=hr.shape[1], made_from=made_from(manifest))
    groups = [["flat", "rough"][number % 2] for number in range(len(hr))]
    with pytest.raises(KilledError), store.writing():
        writing.write(store, dying(), groups=groups, manifest=manifest, shard_bytes=2 * 3 * hr.shape[1] ** 2, **options)


def test_a_run_that_was_killed_ends_with_the_same_bytes(
    source: Path, half: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(source / "store", tmp_path / "store")  # beside it, as the manifest names it
    half = select(tmp_path / "store", half.recipe.strategy, by="sobel", keep=0.5)
    hr = patches(5)
    distil(half, tmp_path / "whole", hr, batch=5)
    encoded: list[int] = []

    def noted(pixels: Pixels) -> bytes:
        encoded.append(1)
        return lossless(pixels)

    monkeypatch.setattr(writing, "lossless", noted)
    for after in range(5):
        out = tmp_path / f"after{after}"
        interrupted(half, out, hr, after)
        assert not writing.is_finished(Store.open(out)) and not (out / MANIFEST_FILE).exists()
        (out / "shards" / ".000009.tar.x.tmp").parent.mkdir(exist_ok=True)
        (out / "shards" / ".000009.tar.x.tmp").write_bytes(b"cut")
        shards = len(Store.open(out).commits())
        assert shards == after // 2 or after == 4  # with two ahead
        encoded.clear()
        made = distil(half, out, hr)
        assert len(encoded) == 5 - 2 * shards and writing.is_finished(made.store())
        assert tree(out) == tree(tmp_path / "whole")
    distil(half, tmp_path / "whole", hr)  # one that has ended
    assert tree(tmp_path / "whole") == tree(out)


def test_the_bytes_do_not_depend_on_batches_and_threads(
    half: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for number, (batch, threads) in enumerate(((1, 1), (2, 4), (5, 2))):
        monkeypatch.setattr(pool, "_limit", threads)
        distil(half, tmp_path / str(number), batch=batch)
        found.append(tree(tmp_path / str(number)))
    assert found[0] == found[1] == found[2]


def test_at_a_url_it_is_the_same(half: Manifest, tmp_path: Path, memory: str) -> None:
    here, there = distil(half, tmp_path / "made"), distil(half, memory)
    assert there.table.equals(here.table) and there.recipe.store.digest == here.recipe.store.digest
    np.testing.assert_array_equal(distilled_pixels(there), patches(5))
    assert there.recipe.distilled_from is not None
    assert there.recipe.distilled_from.store.url == str(half.store_path().resolve())
    assert verify(memory, deep=True).whole and writing.is_finished(Store.open(memory))


def test_another_distillation_is_refused_and_the_difference_named(source: Path, half: Manifest, tmp_path: Path) -> None:
    out = source / "made"
    same = made_from(half)
    assert writing.begin(out, patch=PATCH, made_from=same).header.distilled == same
    for changed, words in (
        ({"options": {"seed": 1}}, "seed 0, not 1"),
        ({"options": {"seed": 0, "space": "vae"}}, "no space, not vae"),
        ({"ldm": "0123456789abcdef" * 4}, "no ldm, not 01234567..."),
        ({"source": "f" * 64}, f"store {same.source[:8]}..., not ffffffff..."),
        ({"manifest": "e" * 32}, f"manifest {same.manifest[:8]}..., not eeeeeeee..."),
        ({"code": 2}, "code 1, not 2"),
    ):
        line = refusal(writing.begin, out, patch=PATCH, made_from=same.model_copy(update=changed))
        assert line == (
            f"'{out}' is there already and is distilled otherwise ({words}); give the same options, or name a new or "
            "empty folder"
        )
    assert "(patch 24, not 36)" in refusal(writing.begin, out, patch=36, made_from=same)
    tuples = made_from(half, rates=(1, 2))  # as options of Python are; a document has lists
    for _ in range(2):
        writing.begin(tmp_path / "new", patch=PATCH, made_from=tuples)


def test_a_run_that_has_written_more_patches_is_not_gone_on_with(half: Manifest, tmp_path: Path) -> None:
    """As where a budget in bytes takes another number of them, on another machine."""
    distil(half, tmp_path / "made")
    with pytest.raises(CurateError, match="was begun with more patches: it has 3 shards, 4 patches take 2; name a new"):
        distil(half, tmp_path / "made", patches(4))


def test_what_is_no_place_for_one_is_refused(source: Path, half: Manifest, tmp_path: Path) -> None:
    pack(half, tmp_path / "packed")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").touch()
    for out, words in (
        (source / "store", "is there already and is a store of photographs; name a new or empty folder"),
        (tmp_path / "packed", "is there already and is a packed store; name a new or empty folder"),
        (tmp_path / "other", "is not a store (it has no store.json); name a new or empty folder"),
    ):
        assert refusal(writing.begin, out, patch=PATCH, made_from=made_from(half)) == f"'{out}' {words}"
    for patch in (0, -12, 25, 100):
        line = refusal(writing.begin, tmp_path / "new", patch=patch, made_from=made_from(half))
        assert line.endswith(f"a multiple of 12 px, so that its x2, x3 and x4 LR are whole; found {patch}")
    assert not (tmp_path / "new").exists()


# --- every verb -------------------------------------------------------------------------------------------------------


def test_photographs_are_not_ingested_into_it(made: Path) -> None:
    before = tree(made / "made")
    for options in ({}, {"retry_failed": True}):
        line = refusal(ingest, [made / "photos"], made / "made", **options)
        assert line.startswith(f"'{made / 'made'}' is distilled, its patches were made for one manifest, and cannot be")
    assert "is there already and is a distilled store" in refusal(pack, made / "half.parquet", made / "made")
    assert tree(made / "made") == before


def scored(made: Path) -> None:
    score(made / "made", ["sobel", "entropy"])
    assert verify(made / "made", deep=True).whole
    assert len(Store.open(made / "made").query("SELECT * FROM scores WHERE sobel > 0")) == 5


def selected(made: Path) -> None:
    score(made / "made", ["sobel"])
    chosen = select(made / "made", "des", by="sobel", keep=0.4).save(made / "best.parquet")
    assert len(chosen) == 2 and chosen.recipe.origin == "selected"
    assert verify(made / "best.parquet", deep=True).whole
    assert len(select(made / "made", "random", keep=1.0, where="name LIKE 'flat/%'")) == 3


def checked(made: Path) -> None:
    curate.duplicates(made / "made")
    curate.leaks(made / "made", made / "photos")
    assert info(made / "made")["checks"].keys() and verify(made / "made", deep=True).whole


def packed(made: Path) -> None:
    found = pack(made / "made" / MANIFEST_FILE, made / "core")
    assert found.kept == found.images == 5  # each as the file that it is
    core = Manifest.load(made / "core" / MANIFEST_FILE)
    np.testing.assert_array_equal(distilled_pixels(core), patches(5))
    assert core.recipe.origin == "distilled" and core.recipe.packed_from is not None
    assert verify(made / "core", deep=True).whole


def exported(made: Path) -> None:
    export(made / "made" / MANIFEST_FILE, made / "out", to="basicsr", scale=2)
    assert len(list((made / "out").rglob("*.png"))) == 10
    assert verify(made / "out", deep=True).whole


def trained(made: Path) -> None:
    options = TrainConfig(steps=2, batch_size=2, crop=PATCH)
    checkpoint = train("fsrcnn:scale=2,d=4,s=2,m=1", made / "made" / MANIFEST_FILE, options, made / "run")
    assert checkpoint.recipe["manifest"]["recipe"]["origin"] == "distilled"


def compared(made: Path) -> None:
    notes = diff(made / "made" / MANIFEST_FILE, made / "half.parquet").notes
    assert notes == [
        f"'{made / 'made' / MANIFEST_FILE}' was distilled from '{made / 'half.parquet'}': its patches are new, "
        "they have none in common"
    ]
    assert diff(made / "half.parquet", made / "made" / MANIFEST_FILE).notes == notes
    other = select(made / "store", "random", keep=0.5).save(made / "other.parquet")
    assert "is one of them another file" in diff(made / "made" / MANIFEST_FILE, other).notes[0]


def told(made: Path) -> None:
    facts = info(made / "made")
    assert facts["distilled"]["options"] == {"seed": 0} and "to_go_on" not in facts and facts["images"] == 5
    assert "distilled" not in info(made / "store")
    recipe = info(made / "made" / MANIFEST_FILE)["recipe"]
    assert recipe["origin"] == "distilled" and recipe["distilled_from"]["strategy"] == "refined:drop_top=0.1"
    assert not {"origin", "distilled_from"} & info(made / "half.parquet")["recipe"].keys()


def reported(made: Path) -> None:
    score(made / "made", ["sobel"])
    before = len(Manifest.load(made / "half.parquet"))
    record = report([made / "made" / MANIFEST_FILE], made / "report.html")
    assert record.commands == ["curate distill MANIFEST -o made --seed 0", "curate score made sobel"]
    page = (made / "report.html").read_text()
    for words in (
        "5 distilled patches of 24 px",
        f"5 patches were distilled from the {before} patches that strategy refined:drop_top=0.1 by sobel had chosen",
        "for <code>MANIFEST</code> put the place of the manifest that it was distilled from",
        "digest of what was made",
    ):
        assert words in page, words
    assert "Distilled patches are images of one window each: a map would be of one colour." in page
    chosen = select(made / "made", "des", by="sobel", keep=0.4).save(made / "best.parquet")
    assert report([chosen], made / "best.html").commands[0] == "curate distill MANIFEST -o made --seed 0"


def asked(made: Path) -> None:
    store = Store.open(made / "made")
    rows = store.query(
        "SELECT source, count(*) AS n FROM manifest JOIN images USING (image_id) GROUP BY source",
        {"manifest": made / "made" / MANIFEST_FILE},
    )
    assert rows.to_pylist() == [{"source": "distilled", "n": 5}]


@pytest.mark.parametrize("act", [scored, selected, checked, packed, exported, trained, compared, told, reported, asked])
def test_every_verb_takes_it_like_any_other(made: Path, act: Callable[[Path], None]) -> None:
    act(made)


# --- fsck, repair -----------------------------------------------------------------------------------------------------


def test_one_that_has_not_ended_is_told(half: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "made"
    writing.begin(out, patch=PATCH, made_from=made_from(half))
    again = "give the same 'curate distill' again"
    assert info(out)["to_go_on"] == f"it has not ended: {again}"
    assert refusal(Store.open(out).query, "SELECT 1") == (f"'{out}' is empty: its distillation has not ended: {again}")
    interrupted(half, out, patches(5), after=5)
    (finding,) = verify(out, deep=True).findings
    assert (finding.kind, finding.path) == ("missing", f"{out}/{MANIFEST_FILE}")
    assert finding.problem == ("it is written last: the distill has not ended, or it is lost; run curate distill again")
    assert repair(out).again == [f"curate distill MANIFEST -o {out}"]
    (out / "commits/ingest/000000.json").unlink()  # its shards come one after the other: none is to come before this
    assert f"{out}/commits/ingest/000000.json" in {finding.path for finding in verify(out).findings}


def test_the_run_s_own_folder_is_not_foreign(made: Path) -> None:
    for store in (made / "made", made / "store"):
        (store / "distill").mkdir()
        for name in ("state.safetensors", "events.out.tfevents.1.host", "experts-00.safetensors"):
            (store / "distill" / name).write_bytes(b"its own")
        (store / "distill" / ".state.safetensors.x.tmp").write_bytes(b"cut")
    found = verify(made / "made", deep=True)
    assert found.whole and [finding.kind for finding in found.findings] == ["leftover"]
    assert sorted(finding.kind for finding in verify(made / "store").findings) == ["foreign"] * 3 + ["leftover"]
    assert repair(made / "made").left.whole and len(list((made / "made" / "distill").iterdir())) == 3


def test_a_shard_of_another_distillation_is_found(made: Path, half: Manifest, tmp_path: Path) -> None:
    distil(half, tmp_path / "other", options={"seed": 1})
    shutil.copy(tmp_path / "other/commits/ingest/000001.json", made / "made/commits/ingest/000001.json")
    kinds = {finding.path: finding.kind for finding in verify(made / "made", deep=True).findings}
    assert kinds[f"{made}/made/commits/ingest/000001.json"] == "damaged"


@pytest.mark.parametrize(
    "lost",
    [
        ["tables/cells/000000.parquet", "tables/patches/000001.parquet"],
        ["commits/ingest/000000.json"],
        ["commits/ingest/000002.json", "tables/cells/000001.parquet"],
    ],
)
def test_what_can_be_made_again_is_made_again(made: Path, lost: list[str]) -> None:
    whole = tree(made / "made")
    for name in lost:
        (made / "made" / name).unlink()
    assert not verify(made / "made").whole
    assert repair(made / "made").left.whole and tree(made / "made") == whole


def test_a_header_of_a_shard_and_the_manifest_are_mended_or_told(made: Path) -> None:
    whole = tree(made / "made")
    shard = made / "made/shards/000000.tar"
    for at in (0, 257, 600):  # the member's name, the header's magic, its first bytes
        data = bytearray(whole["shards/000000.tar"])
        data[at] ^= 1
        shard.write_bytes(data)
        if at < 512:
            assert repair(made / "made").left.whole and tree(made / "made") == whole
    ((finding,), again) = (lambda found: (found.left.findings, found.again))(repair(made / "made"))
    assert finding.images == ["flat/000000.webp"] and finding.manifests and again == []
    shard.write_bytes(whole["shards/000000.tar"])
    (made / "made" / MANIFEST_FILE).write_bytes(whole[MANIFEST_FILE][:-40])
    found = repair(made / "made")
    assert found.again == [f"curate distill MANIFEST -o {made}/made"]
    assert [finding.kind for finding in found.left.findings] == ["damaged"]


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_bytes_are_those_of_the_patches_files(source: Path, half: Manifest) -> None:
    made = Manifest.load(source / "made" / MANIFEST_FILE)
    store = made.store()
    stored = [cell.size for image_id in made.table["image_id"].to_pylist() for cell in store.cells(image_id)]
    assert writing.packed_bytes(made, store) == sum(stored)
    photographs = half.store()
    cuts = [photographs.read(r["image_id"], r["y"], r["x"], r["size"], r["size"]) for r in half.table.to_pylist()]
    assert writing.packed_bytes(half, photographs) == sum(len(lossless(cut)) for cut in cuts)


def test_as_many_patches_fit_as_take_so_many_bytes() -> None:
    hr = patches(5)
    sizes = [len(lossless(pixels)) for pixels in hr]
    for count in range(6):
        total = sum(sizes[:count])
        assert writing.fitting(in_batches(hr, 2), total) == count
        assert writing.fitting(in_batches(hr, 3), total - 1) == max(count - 1, 0)
    assert writing.fitting(in_batches(hr, 2), 10**9) == 5
    assert next(islice(batches_without_end(hr), 1)).shape == hr.shape
    assert writing.fitting(batches_without_end(hr), sum(sizes)) == 5  # no more is drawn than is needed


def batches_without_end(hr: Pixels) -> Iterator[Pixels]:
    while True:
        yield hr
