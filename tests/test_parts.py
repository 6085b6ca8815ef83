"""A manifest is split by photographs: nothing is in both parts, nothing is lost, the seed decides and nothing else."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from curate.errors import UsageError
from curate.manifest import Manifest
from curate.parts import parts
from curate.selection import select
from curate.store import Store

UNITS = (5, 4, 3, 1, 7, 2, 2, 6, 1, 3)  # patches of each photograph


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, write_store: Callable[..., Store]) -> Manifest:
    return select(write_store(tmp_path_factory.mktemp("parts") / "store", UNITS), "random", keep=1)


def photographs(manifest: Manifest) -> Counter[str]:
    return Counter(manifest.table["image_id"].to_pylist())


def of(manifest: Manifest, number: int) -> Manifest:
    """The patches of so many photographs."""
    ids = sorted(photographs(manifest))[:number]
    rows = [image_id in ids for image_id in manifest.table["image_id"].to_pylist()]
    return replace(manifest, table=manifest.table.filter(rows))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("share", [0.01, 0.13, 0.3, 0.5, 0.87, 0.99])
def test_nothing_in_both_and_nothing_lost(manifest: Manifest, share: float, seed: int) -> None:
    training, architecture = parts(manifest, share, seed)
    assert len(training) and len(architecture)
    assert not photographs(training).keys() & photographs(architecture).keys()
    assert photographs(training) + photographs(architecture) == photographs(manifest)
    rows = manifest.table.to_pylist()
    for part in (training, architecture):  # in the manifest's order, all columns as they were
        kept = photographs(part)
        assert part.table.to_pylist() == [row for row in rows if row["image_id"] in kept]
        assert part.recipe == manifest.recipe


@pytest.mark.parametrize("share", [0.13, 0.3, 0.5, 0.7])
def test_share(manifest: Manifest, share: float) -> None:
    """The photographs that are drawn reach it, and all but the last one of them do not."""
    for seed in range(20):
        held = photographs(parts(manifest, share, seed).architecture)
        asked = share * len(manifest)
        assert asked <= held.total() < asked + max(UNITS)


def test_at_least_one_photograph_each(manifest: Manifest) -> None:
    for seed in range(5):
        assert len(photographs(parts(manifest, 0.01, seed).architecture)) == 1
        assert len(photographs(parts(manifest, 0.99, seed).training)) == 1
        assert [len(photographs(part)) for part in parts(of(manifest, 2), 0.99, seed)] == [1, 1]


def test_the_seed_decides(manifest: Manifest) -> None:
    held = [frozenset(photographs(parts(manifest, 0.3, seed).architecture)) for seed in (0, 0, *range(1, 8))]
    assert held[0] == held[1]
    assert len(set(held)) > 4
    drawn = set().union(*(photographs(parts(manifest, 0.13, seed).architecture) for seed in range(60)))
    assert drawn == set(photographs(manifest))  # each may be


def test_order_of_rows_does_not_matter(manifest: Manifest) -> None:
    order = np.random.default_rng(0).permutation(len(manifest))
    shuffled = replace(manifest, table=manifest.table.take(order))
    for one, other in zip(parts(manifest, 0.3, 4), parts(shuffled, 0.3, 4), strict=True):
        assert photographs(one) == photographs(other)
        assert one.table.equals(other.table.sort_by("rank"))


def test_a_saved_manifest_is_split_alike(manifest: Manifest, tmp_path: Path) -> None:
    loaded = Manifest.load(manifest.save(tmp_path / "all.parquet").path or "")
    for one, other in zip(parts(manifest, 0.3, 4), parts(loaded, 0.3, 4), strict=True):
        assert one.digest() == other.digest()


@pytest.mark.parametrize(("number", "found"), [(0, "0 patches of 0 photographs"), (1, " of 1 photograph")])
def test_too_few_photographs(manifest: Manifest, number: int, found: str) -> None:
    with pytest.raises(UsageError) as refused:
        parts(of(manifest, number), 0.5, 0)
    line = str(refused.value)
    assert line.isprintable()
    assert line.startswith("a search should have patches of two photographs or more, to split them; found ")
    assert line.endswith(found)
