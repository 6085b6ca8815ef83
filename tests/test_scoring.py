"""Scores are means over windows of one map an image; what is done is skipped; runs that are cut off leave no trace."""

import contextlib
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from test_means import brute_force_means

from curate import images, plugins, pool, scoring, windows
from curate.engine import Part
from curate.errors import CurateError, DataError, UsageError, listed
from curate.ingestion import ingest
from curate.scorers.entropy import Entropy
from curate.scorers.sobel import Sobel
from curate.scoring import label, score
from curate.selection import select
from curate.store import Store
from curate.tensors import to_float, to_tensor

PATCH, STEP = 24, 16
SIZES = ((60, 77), (49, 48), (65, 50))  # height, width: none is a multiple of 12 in both
CORNERS = {(60, 72): 4 * 4, (48, 48): 3 * 3, (60, 48): 4 * 3}  # cropped size -> windows: the last ones are edge-aligned
NUM_PATCHES = sum(CORNERS.values())

LAB = {
    "brightness": '''
        """Mean and doubled mean of the red channel."""
        @dataclass(frozen=True)
        class Brightness(MapScorer):
            gain: float = 1.0
            columns: ClassVar[tuple[str, ...]] = ("plain", "gained")
            version: ClassVar[int] = 1

            def build(self, device):
                return lambda image_BCHW: torch.cat([image_BCHW[:, :1], self.gain * image_BCHW[:, :1]], dim=1)
        ''',
    "contrast": '''
        """Spread of each window; none for those whose top left corner is dark."""
        @dataclass(frozen=True)
        class Contrast(PatchScorer):
            dark: float = 0.0
            columns: ClassVar[tuple[str, ...]] = ("contrast",)
            version: ClassVar[int] = 1

            def build(self, device):
                return self.spread

            def spread(self, patches_BCHW):
                spread_B1 = patches_BCHW.amax((1, 2, 3))[:, None] - patches_BCHW.amin((1, 2, 3))[:, None]
                return spread_B1.where(patches_BCHW[:, 0, :1, 0] >= self.dark, float("nan"))
        ''',
}
IMPORTS = """
from dataclasses import dataclass
from typing import ClassVar

import torch

from curate.scorers import MapScorer, PatchScorer
"""


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Path:
    return write_photos(tmp_path_factory.mktemp("scoring") / "photos", SIZES)


@pytest.fixture(scope="module")
def unscored(photo_folder: Path) -> Path:
    """A store of three photographs, one a shard."""
    ingest([photo_folder], photo_folder.parent / "store", patch=PATCH, step=STEP, shard_size=1)
    return photo_folder.parent / "store"


@pytest.fixture
def store(unscored: Path, tmp_path: Path) -> Path:
    """A copy of it, to score."""
    return Path(shutil.copytree(unscored, tmp_path / "store"))


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package of a user's own scorers."""
    name = f"lab_{tmp_path.name.replace('-', '_')}"
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").touch()
    for scorer, source in LAB.items():
        lines = [line.removeprefix(" " * 8) for line in source.strip("\n").splitlines()]
        docstring, *rest = lines
        (package / f"{scorer}.py").write_text("\n".join([docstring, IMPORTS, *rest]))
    monkeypatch.syspath_prepend(tmp_path)
    return name


def pixels_of(store: Path, image_id: str) -> npt.NDArray[np.uint8]:
    return images.decode(Store.open(store).read_bytes(image_id))


def scores_of(store: Path, *columns: str) -> dict[str, tuple[float, ...]]:
    """patch_id -> its scores."""
    table = Store.open(store).query("SELECT * FROM scores")
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    return dict(zip(table["patch_id"].to_pylist(), rows, strict=True))


def files_of(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", ["sobel", "srcnn"])
def test_scores_are_brute_force_means_of_the_whole_images_map(name: str, store: Path, untrained: Path) -> None:
    report = score(store, [name])
    assert (report.columns, report.images, report.patches) == ([name], 3, NUM_PATCHES)
    assert (report.skipped, report.not_finite) == (0, 0)
    scores = scores_of(store, name)
    function = plugins.parse("scorers", name).build(torch.device("cpu"))
    met = {}
    for row in Store.open(store).query("SELECT image_id, name FROM images").to_pylist():
        pixels = pixels_of(store, row["image_id"])
        height, width = (side // 12 * 12 for side in pixels.shape[:2])
        with torch.inference_mode():
            maps_KHW = function(to_float(to_tensor(pixels[:height, :width]))[None])[0].numpy()
        corners_N2 = windows.grid(*pixels.shape[:2], PATCH, STEP)
        expected = brute_force_means(maps_KHW, corners_N2, PATCH)
        ids = [windows.patch_id(row["image_id"], y, x, PATCH) for y, x in corners_N2.tolist()]
        np.testing.assert_allclose([scores.pop(patch_id) for patch_id in ids], expected, rtol=1e-6)
        assert {(0, 0), (0, width - PATCH), (height - PATCH, 0), (height - PATCH, width - PATCH)} <= {
            (y, x) for y, x in corners_N2.tolist()
        }
        met[height, width] = len(corners_N2)
    assert met == CORNERS
    assert scores == {}


class Later:
    """Stands for a stream or an event of CUDA: what is asked of it is done at once."""

    waits = 0

    def __init__(self, *_: object) -> None:
        pass

    def wait_stream(self, stream: "Later") -> None:
        pass

    def record(self, stream: "Later") -> None:
        pass

    def synchronize(self) -> None:
        Later.waits += 1


def test_the_way_over_a_gpu_gives_the_same_bytes(
    store: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it but the device: pinned memory, streams and events are stand-ins."""
    other = Path(shutil.copytree(store, tmp_path / "other"))
    names = ["srcnn:precision=fp32", "sobel", "entropy", "blockiness"]
    score(store, names)
    monkeypatch.setattr(torch.cuda, "Stream", Later)
    monkeypatch.setattr(torch.cuda, "Event", Later)
    monkeypatch.setattr(torch.cuda, "current_stream", Later)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    on_gpu, Later.waits = scoring._on_gpu, 0
    monkeypatch.setattr(scoring, "_scored", lambda store, tasks, _, *rest: on_gpu(store, tasks, *rest))
    score(other, names)
    assert Later.waits == 3  # one an image
    assert files_of(store) == files_of(other)


@pytest.mark.gpu
def test_scores_of_cpu_and_gpu_agree(store: Path, untrained: Path, tmp_path: Path) -> None:
    """To 1e-3: a GPU may multiply with 10-bit mantissas (TF32)."""
    other = Path(shutil.copytree(store, tmp_path / "other"))
    for path, device in ((store, "cpu"), (other, "cuda")):
        score(path, ["srcnn:precision=fp32", "sobel"], device=device)
    cpu, gpu = (scores_of(path, "srcnn:precision=fp32", "sobel") for path in (store, other))
    assert cpu.keys() == gpu.keys()
    np.testing.assert_allclose(list(cpu.values()), list(gpu.values()), rtol=1e-3)


def test_strips_give_what_the_whole_image_gives(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in plugins.names("scorers") if getattr(plugins.parse("scorers", name), "reach", None)]
    assert "sobel" in names
    other = Path(shutil.copytree(store, tmp_path / "other"))
    score(store, names)
    monkeypatch.setattr(scoring, "_STRIP_PIXELS", 1)  # strips of four times the reach
    score(other, names)
    columns = list(Store.open(store).score_columns())
    whole, strips = scores_of(store, *columns), scores_of(other, *columns)
    np.testing.assert_allclose([strips[patch_id] for patch_id in whole], list(whole.values()), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_processors_changes_no_byte(
    workers: int, store: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(store, tmp_path / "other"))
    names = ["srcnn", "sobel", "entropy", f"loss:checkpoint={untrained / 'srcnn_955_x2.safetensors'}"]
    score(store, names)
    monkeypatch.setattr(pool, "workers", lambda: workers)
    before = torch.get_num_threads()
    score(other, names)
    assert torch.get_num_threads() == before
    assert files_of(store) == files_of(other)


def test_windows_go_in_smaller_batches_where_memory_does_not_suffice(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: what a batch of windows does not fit into, half of it may."""
    other = Path(shutil.copytree(store, tmp_path / "other"))
    score(store, ["entropy"])
    sizes, bits = [], Entropy._bits

    def build(self: Entropy, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(patches_BCHW: torch.Tensor) -> torch.Tensor:
            sizes.append(len(patches_BCHW))
            if len(patches_BCHW) > 3:
                raise torch.OutOfMemoryError
            return torch.stack([bits(self, patch_CHW) for patch_CHW in patches_BCHW])[:, None]

        return run

    monkeypatch.setattr(Entropy, "build", build)
    score(other, ["entropy"])
    assert max(sizes) > 3
    assert files_of(store) == files_of(other)


# What is done is skipped


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Grows by the file of every image that is decoded."""
    seen: list[bytes] = []
    decode = images.decode

    def counting(data: bytes, **how: bool) -> npt.NDArray[np.uint8]:
        seen.append(data)
        return decode(data, **how)

    monkeypatch.setattr(images, "decode", counting)
    return seen


def test_a_second_run_decodes_nothing_and_changes_nothing(store: Path, decoded: list[bytes]) -> None:
    score(store, ["sobel"])
    assert len(decoded) == len(set(decoded)) == 3
    before = files_of(store)
    report = score(store, ["sobel"])
    assert (report.images, report.patches, report.skipped, report.columns) == (0, 0, 3, ["sobel"])
    assert len(decoded) == 3
    assert files_of(store) == before


def test_a_scorer_added_later_is_run_alone(store: Path, untrained: Path, decoded: list[bytes]) -> None:
    score(store, ["sobel"])
    before = files_of(store)
    report = score(store, ["sobel", "srcnn"])
    assert (report.images, report.patches, report.skipped) == (3, NUM_PATCHES, 3)
    assert report.columns == ["sobel", "srcnn"]
    assert before.items() <= files_of(store).items()


def test_two_scorers_in_one_run_are_two_runs(
    store: Path, untrained: Path, tmp_path: Path, decoded: list[bytes]
) -> None:
    other = Path(shutil.copytree(store, tmp_path / "other"))
    score(store, ["srcnn", "sobel", "srcnn:scale=3"])
    assert len(decoded) == 3  # one decode an image, however many scorers
    for name in ("srcnn:scale=3", "sobel", "srcnn"):
        score(other, [name])
    assert files_of(store) == files_of(other)


def test_the_same_scorer_twice_in_one_run_is_once(store: Path) -> None:
    report = score(store, ["sobel", Sobel()])
    assert (report.patches, report.skipped, report.columns) == (NUM_PATCHES, 0, ["sobel"])


def test_a_grown_store_is_scored_where_it_grew(store: Path, write_photos: Callable[..., Path], tmp_path: Path) -> None:
    score(store, ["sobel"])
    before = files_of(store)
    ingest([write_photos(tmp_path / "more", [(24, 40)], seed=9)], store)
    report = score(store, ["sobel"])
    assert (report.images, report.patches, report.skipped) == (1, 2, 3)
    assert before.items() <= files_of(store).items()
    assert None not in [value for (value,) in scores_of(store, "sobel").values()]


def test_a_new_version_of_a_scorer_reuses_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score(store, ["sobel"])
    monkeypatch.setattr(Sobel, "version", Sobel.version + 1)
    report = score(store, ["sobel"])
    assert (report.patches, report.skipped) == (NUM_PATCHES, 0)
    assert len(Store.open(store).score_sets()) == 2


@pytest.mark.parametrize("lost", ["table", "record"])
def test_a_unit_without_its_record_is_done_again(lost: str, store: Path) -> None:
    score(store, ["sobel"])
    before = files_of(store)
    paths = [path for path in store.rglob("000001.*") if "sobel@" in str(path)]
    assert len(paths) == 2
    next(path for path in paths if path.suffix == ".json").unlink()
    if lost == "table":
        next(path for path in paths if path.suffix == ".parquet").write_bytes(b"half of a tab")
    report = score(store, ["sobel"])
    assert (report.images, report.skipped) == (1, 2)
    assert files_of(store) == before


def test_a_unit_whose_record_is_of_other_work_is_done_again(store: Path, lab: str) -> None:
    """A record's fingerprint is of the scorer, its options and the shard: no two records are alike."""
    score(store, ["sobel", f"{lab}.contrast:dark=0.1", f"{lab}.contrast:dark=0.2"])
    before = files_of(store)
    records = {path: json.loads(path.read_bytes()) for path in store.glob("commits/scores/*/*.json")}
    assert len({record["fingerprint"] for record in records.values()}) == len(records) == 9
    path, record = next((path, record) for path, record in records.items() if "sobel@" in str(path))
    del record["checksum"]
    path.write_text(json.dumps(record | {"fingerprint": "0" * 16}))
    assert score(store, ["sobel"]).skipped == 2
    assert files_of(store) == before


class Cut(BaseException):
    """What an interrupted test raises; no `except Exception` may stop it."""


@pytest.mark.parametrize("after", range(6))
def test_a_run_that_was_cut_off_and_run_again_gives_the_same_bytes(
    after: int, store: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut before the commit of a unit whose table is published already: six units, each the last in turn."""
    whole = Path(shutil.copytree(store, tmp_path / "whole"))
    score(whole, ["srcnn", "sobel"])
    commit, commits = Store.commit, itertools.count()

    def cut(*arguments: object) -> None:
        if next(commits) == after:
            raise Cut
        commit(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched, pytest.raises(Cut):
        patched.setattr(Store, "commit", cut)
        score(store, ["srcnn", "sobel"])
    assert files_of(store) != files_of(whole)
    report = score(store, ["srcnn", "sobel"])
    assert report.skipped == after
    assert files_of(store) == files_of(whole)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_run_that_was_cut_off_between_images_keeps_what_it_committed(after: int, store: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(store, tmp_path / "whole"))
    score(whole, ["sobel"])
    calls = []

    def progress(done: int, total: int, note: str = "") -> None:
        calls.append((done, total))
        if len(calls) == after:
            raise Cut

    with pytest.raises(Cut):
        score(store, ["sobel"], progress=progress)
    assert score(store, ["sobel"]).skipped == after - 1
    assert files_of(store) == files_of(whole)


def test_progress_counts_the_windows_that_are_to_do(store: Path) -> None:
    calls: list[tuple[int, int]] = []
    score(store, ["sobel"], progress=lambda done, total, note="": calls.append((done, total)))
    assert [total for _, total in calls] == [NUM_PATCHES] * 3
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1] == (NUM_PATCHES, NUM_PATCHES)


# A user's own scorers


def test_a_map_scorer_of_a_users_own(store: Path, lab: str) -> None:
    report = score(store, [f"{lab}.brightness:gain=4"])
    assert report.columns == [f"{lab}.brightness:gain=4.0.{column}" for column in ("plain", "gained")]
    assert (report.patches, report.not_finite) == (NUM_PATCHES, 0)
    scores = scores_of(store, *report.columns)
    for row in Store.open(store).patches().to_pylist():
        y, x = row["y"], row["x"]
        red = pixels_of(store, row["image_id"])[y : y + PATCH, x : x + PATCH, 0].mean() / 255
        assert scores[row["patch_id"]] == pytest.approx((red, 4 * red), rel=1e-5)


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_a_patch_scorer_of_a_users_own_and_its_nan_scores(
    batch: int, store: Path, lab: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curate.scoring._PATCH_BATCH", batch)
    spec = f"{lab}.contrast:dark=0.5"
    expected = {}
    for row in Store.open(store).patches().to_pylist():
        y, x = row["y"], row["x"]
        window = pixels_of(store, row["image_id"])[y : y + PATCH, x : x + PATCH] / np.float32(255)
        expected[row["patch_id"]] = float(np.ptp(window)) if window[0, 0, 0] >= 0.5 else float("nan")
    dark = [patch_id for patch_id, value in expected.items() if np.isnan(value)]
    assert 0 < len(dark) < len(expected)

    report = score(store, [spec])
    assert (report.columns, report.patches, report.not_finite) == ([spec], NUM_PATCHES, len(dark))
    scores = {patch_id: value for patch_id, (value,) in scores_of(store, spec).items()}
    assert scores == pytest.approx(expected, rel=1e-6, nan_ok=True)
    manifest = select(store, "des", by=spec, keep=1)
    assert manifest.recipe.counts["without_finite_score"] == len(dark)
    assert set(manifest.table["patch_id"].to_pylist()) == expected.keys() - dark


def test_options_make_another_score_set(store: Path, lab: str) -> None:
    for dark, skipped in ((0.1, 0), (0.2, 0), (0.1, 3)):
        assert score(store, [f"{lab}.contrast:dark={dark}"]).skipped == skipped
    assert [found.record.label for found in Store.open(store).score_sets()] == [
        f"{lab}.contrast:dark={dark}" for dark in (0.1, 0.2)
    ]


def test_labels_name_files_without_their_folders(tmp_path: Path, lab: str) -> None:
    source = (tmp_path / lab / "brightness.py").read_text()
    source = source.replace("gain: float = 1.0", "table: Path | None = None")
    source = source.replace("frozen=True", "frozen=True, slots=True")
    (tmp_path / lab / "toned.py").write_text(f"from pathlib import Path\n{source}")
    for name, spec in (("srcnn", "srcnn"), (f"{lab}.toned", f"{lab}.toned")):
        option = "weights" if name == "srcnn" else "table"
        scorer = plugins.parse("scorers", f"{spec}:{option}={tmp_path / 'file.mat'}")
        assert label(scorer) == f"{name}:{option}=file.mat"


# What cannot be done


@pytest.mark.parametrize(
    ("scorers", "device", "reason"),
    [
        ([], "cpu", f"which scorers? There are: {listed(plugins.names('scorers'))}"),
        (["sobel"], "abacus", "no device 'abacus' here; there are: auto, cpu"),
        (["sobel", "laplacien"], "cpu", f"; there are: {listed(plugins.names('scorers'))}"),
        (["nobody.knows"], "cpu", "no module 'nobody.knows' on the Python path"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line_before_any_work(
    scorers: list[str], device: str, reason: str, store: Path, decoded: list[bytes]
) -> None:
    before = files_of(store)
    with pytest.raises(UsageError) as error:
        score(store, scorers, device=device)
    assert reason in str(error.value)
    assert str(error.value).isprintable()
    assert files_of(store) == before
    assert decoded == []


def test_a_damaged_photograph_stops_the_run_and_is_named(store: Path) -> None:
    shard = store / "shards" / "000001.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"image '[0-9a-f]{16}' \(hr\) in '.*000001.tar' is damaged"):
        score(store, ["sobel"])
    assert list(Store.open(store).commits(Store.open(store).score_sets()[0].kind)) == [0]


def test_a_shard_of_refused_images_alone_is_scored_as_empty(write_photos: Callable[..., Path], tmp_path: Path) -> None:
    ingest([write_photos(tmp_path / "photos", [(20, 20)])], tmp_path / "store", patch=PATCH, step=STEP)
    for skipped in (0, 1):
        report = score(tmp_path / "store", ["sobel"])
        assert (report.images, report.patches, report.skipped) == (0, 0, skipped)
    assert scores_of(tmp_path / "store", "sobel") == {}


# Parts


@pytest.mark.parametrize("order", [("1/2", "2/2"), ("3/3", "1/3", "2/3"), ("5/5", "1/1")])
def test_parts_in_any_order_leave_the_bytes_of_one_run(store: Path, tmp_path: Path, order: tuple[str, ...]) -> None:
    shutil.copytree(store, tmp_path / "whole")
    score(tmp_path / "whole", ["sobel", "noise"])
    reports = [score(store, ["sobel", "noise"], part=Part.parse(part)) for part in order]
    assert sum(report.patches for report in reports) == NUM_PATCHES
    assert sum(report.images for report in reports) == 3
    assert files_of(store) == files_of(tmp_path / "whole")


def test_parts_write_at_the_same_time_and_a_whole_run_does_not(store: Path) -> None:
    with Store.open(store).writing(shared=True):
        assert score(store, ["sobel"], part=Part.parse("1/2")).images == 2
        with pytest.raises(CurateError, match="another curate is writing"):
            score(store, ["sobel"])
    assert score(store, ["sobel"], part=Part.parse("2/2")).images == 1
