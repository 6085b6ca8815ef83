"""Real patches are the pixels of the manifest's windows, each window once where there are enough, drawn by the seed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from curate.config import DistillConfig
from curate.distillation import pool as pools
from curate.distillation.pool import Pool
from curate.errors import UsageError
from curate.ingestion import ingest
from curate.manifest import Manifest
from curate.selection import select
from curate.store import Store


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Store:
    folder = tmp_path_factory.mktemp("pool")
    ingest([write_photos(folder / "photos", [(72, 96), (60, 84)])], folder / "store", patch=36, step=12)
    return Store.open(folder / "store")


@pytest.fixture(scope="module")
def manifest(source: Store) -> Manifest:
    return select(source, "random", keep=1.0)


def config(**options: object) -> DistillConfig:
    return DistillConfig(**{"patches": 4, "size": 36, "clusters": 3, **options})  # type: ignore[arg-type]


def test_the_pool_is_the_windows(source: Store, manifest: Manifest) -> None:
    pool = pools.read(manifest, source, config())
    assert pool.rank_P.tolist() == list(range(len(manifest)))
    for row, pixels in zip(manifest.table.to_pylist(), pool.patches_P3HW, strict=True):
        expected = source.read(row["image_id"], row["y"], row["x"], 36, 36)
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


def test_a_smaller_pool_has_windows_once_each(source: Store, manifest: Manifest) -> None:
    pool = pools.read(manifest, source, config(pool=10))
    assert len(pool.rank_P) == len(set(pool.rank_P.tolist())) == pool.windows == 10
    other = pools.read(manifest, source, config(pool=10, seed=1))
    assert pool.rank_P.tolist() != other.rank_P.tolist()


def test_smaller_crops_lie_inside_and_fill_the_pool(source: Store, manifest: Manifest) -> None:
    pool = pools.read(manifest, source, config(size=12, pool=3 * len(manifest)))
    assert len(pool.rank_P) == 3 * len(manifest)
    assert set(pool.rank_P.tolist()) == set(range(len(manifest)))
    rows = manifest.table.to_pylist()
    for rank, pixels in zip(pool.rank_P.tolist(), pool.patches_P3HW.permute(0, 2, 3, 1).numpy(), strict=True):
        row = rows[rank]
        window = source.read(row["image_id"], row["y"], row["x"], 36, 36)
        places = np.lib.stride_tricks.sliding_window_view(window, (12, 12), (0, 1)).transpose(0, 1, 3, 4, 2)
        assert (places == pixels).all((2, 3, 4)).any()


def test_starts_are_of_different_windows_and_each_group_has_its_share(source: Store, manifest: Manifest) -> None:
    pool = pools.read(manifest, source, config(size=12, pool=3 * len(manifest)))
    number = len(manifest) // 2
    first = pool.starts(number, config(size=12))
    assert len(set(pool.rank_P[first].tolist())) == number
    once = torch.from_numpy(np.unique(pool.rank_P.numpy(), return_index=True)[1])
    for group in pool.group_P.unique().tolist():
        share = number * int((pool.group_P[once] == group).sum()) / len(once)
        assert abs(int((pool.group_P[first] == group).sum()) - share) < 1


def test_the_first_of_the_manifest_start_where_that_is_asked(source: Store, manifest: Manifest) -> None:
    asked = config(start="rank", groups="none")
    pool = pools.read(manifest, source, asked)
    assert pool.rank_P[pool.starts(5, asked)].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("start", ["random", "rank"])
def test_fewer_starts_are_the_first_of_more(source: Store, manifest: Manifest, start: str) -> None:
    """So that a budget in bytes is what the patches take that it was counted for."""
    asked = config(start=start)
    pool = pools.read(manifest, source, asked)
    assert torch.equal(pool.starts(5, asked), pool.starts(11, asked)[:5])


def test_patches_like_others_are_of_their_groups_in_their_parts(source: Store, manifest: Manifest) -> None:
    pool = pools.read(manifest, source, config())
    asked = torch.tensor([0, 0, 0, 1])
    found = pool.group_P[pool.like(asked, 8, np.random.default_rng(0))]
    assert sorted(found.tolist()) == [0] * 6 + [1] * 2
    few = pool.group_P[pool.like(torch.tensor([0, 1, 2]), 1, np.random.default_rng(0))]
    assert sorted(few.tolist()) == [0, 1, 2]


def test_more_of_a_group_than_there_are_come_twice() -> None:
    pool = Pool(torch.zeros(3, 3, 12, 12, dtype=torch.uint8), torch.tensor([0, 1, 1]), torch.arange(3))
    assert pool.like(torch.tensor([0]), 5, np.random.default_rng(0)).tolist() == [0] * 5


def test_images_are_groups_if_asked(source: Store, manifest: Manifest) -> None:
    pool = pools.read(manifest, source, config(groups="image"))
    ids = manifest.table["image_id"].to_pylist()
    assert [sorted(set(ids)).index(image_id) for image_id in ids] == pool.group_P.tolist()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 48}, "48 px do not fit into the manifest's windows of 36 px"),
        ({"patches": 1000}, "1000 patches should be distilled from as many or more"),
        ({"patches": 9, "pool": 8}, "found 8 windows in a pool of 8"),
    ],
)
def test_what_does_not_fit_is_told(manifest: Manifest, options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        pools.check(manifest, config(**options))
