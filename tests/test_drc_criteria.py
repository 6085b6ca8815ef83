"""Maps by other criteria: the largest, those that rebuild a layer's output, any; what is kept is what should be."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from selecting import check_removal, work
from torch import Tensor

from curate.archs.drn import Drn
from curate.archs.edsr import Edsr
from curate.archs.swinir import Swinir
from curate.drc.criteria import by_criterion, rebuilding
from curate.drc.work import Work
from curate.errors import UsageError
from curate.ingestion import ingest
from curate.manifest import Manifest
from curate.selection import select

DRN = Drn(features=4, blocks=1)
SWINIR = Swinir(scale=2, variant="light", embed=8, groups=1, blocks=1, heads=2)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Manifest:
    folder = tmp_path_factory.mktemp("criteria")
    ingest([write_photos(folder / "photos", [(48, 60)])], folder / "store", patch=32, step=12)
    return select(folder / "store", "random", keep=1.0).save(folder / "all.parquet")


def test_l1_keeps_the_largest(manifest: Manifest) -> None:
    made = work(DRN, manifest, criterion="l1")
    chosen = by_criterion(made, [2, 5, 4, 3, 16, 1])
    for unit, kept in zip(made.units, chosen.kept, strict=True):
        (reader,) = unit.readers
        norms = made.checkpoint.state[reader.parameter].abs().sum((0, 2, 3))
        assert set(kept) == set(norms.topk(len(kept)).indices.tolist())
    check_removal(made, chosen)


def test_random_is_drawn_by_the_seed(manifest: Manifest) -> None:
    widths = [2, 5, 4, 3, 16, 1]
    first, again, other = (
        by_criterion(work(DRN, manifest, criterion="random", seed=seed), widths) for seed in (0, 0, 1)
    )
    assert first.kept == again.kept != other.kept
    assert [len(kept) for kept in first.kept] == widths
    assert first.kept[2] != first.kept[5][: len(first.kept[2])]  # units of one width have draws of their own
    check_removal(work(DRN, manifest), first)


def shares(seed: int = 0) -> Tensor:
    """float64 WN: of six maps, map 3 is twice map 1, map 4 nothing, map 5 the sum of maps 0 and 2."""
    share_WN = torch.randn(6, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    share_WN[3], share_WN[4], share_WN[5] = 2 * share_WN[1], 0, share_WN[0] + share_WN[2]
    return share_WN


def test_rebuilding_needs_no_map_that_others_make_up_for() -> None:
    share_WN = shares()
    kept, factor_K = rebuilding(share_WN @ share_WN.T, 3)
    assert 4 not in kept and len({1, 3} & set(kept)) == 1 and len({0, 2, 5} & set(kept)) == 2
    assert torch.allclose((factor_K[:, None] * share_WN[kept]).sum(0), share_WN.sum(0), atol=1e-4)


@pytest.mark.parametrize("width", [1, 2])
def test_rebuilding_is_least_squares(width: int) -> None:
    """Each map in turn is the one that helps most, with the factors of those before it fitted anew."""
    share_WN = torch.randn(5, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    total_N = share_WN.sum(0)

    def fitted(maps: Sequence[int]) -> tuple[float, Tensor]:
        found = torch.linalg.lstsq(share_WN[list(maps)].T, total_N[:, None])
        return float((share_WN[list(maps)].T @ found.solution - total_N[:, None]).square().sum()), found.solution[:, 0]

    best: list[int] = []
    for _ in range(width):
        best.append(min(set(range(5)) - set(best), key=lambda one: fitted([*best, one])[0]))
    kept, factor_K = rebuilding(share_WN @ share_WN.T, width)
    assert kept == sorted(best)
    assert torch.allclose(factor_K, fitted(kept)[1], atol=1e-4)


def test_rebuilding_nothing() -> None:
    kept, factor_K = rebuilding(torch.zeros(3, 3, dtype=torch.float64), 2)
    assert kept == [0, 1] and factor_K.tolist() == [1, 1]


def doubled(made: Work, number: int, twin: int, dead: int) -> Work:
    """The same network, where a map of a unit is made like map 0, and another one is never read."""
    unit, state = made.units[number], {name: tensor.clone() for name, tensor in made.checkpoint.state.items()}
    for span in unit.makers:
        places = zip(*(span.places(unit.width, [one]) for one in (0, twin)), strict=True)
        for first, second in places:
            state[span.parameter].select(span.axis, second).copy_(state[span.parameter].select(span.axis, first))
    for span in unit.readers:
        for place in span.places(unit.width, [dead]):
            state[span.parameter].select(span.axis, place).zero_()
    return work(made.arch, made.manifest, state, criterion="thinet")


@pytest.mark.parametrize(
    ("arch", "number"),
    [(DRN, 2), (DRN, 3), (Edsr(scale=2, features=6, blocks=1), 0), (SWINIR, 1)],
    ids=["block", "shuffle", "edsr", "mlp"],
)
def test_thinet_loses_nothing_where_nothing_is_needed(
    arch: Drn | Edsr | Swinir, number: int, manifest: Manifest
) -> None:
    """Without the twin, whose reader's columns another map takes over, and the dead map, the answer is the same.

    The twin's columns are a multiple of map 0's, or the factor could not make up for it.
    """
    made = work(arch, manifest)
    unit, state = made.units[number], made.checkpoint.state
    twin, dead = 1, unit.width - 1
    for span in unit.readers:
        for first, second in zip(*(span.places(unit.width, [one]) for one in (0, twin)), strict=True):
            columns = state[span.parameter]
            columns.select(span.axis, second).copy_(-3 * columns.select(span.axis, first))
    made = doubled(made, number, twin, dead)
    widths = [one.width for one in made.units]
    widths[number] -= 2
    chosen = by_criterion(made, widths)
    lost = set(range(unit.width)) - set(chosen.kept[number])
    assert dead in lost and lost & {0, twin}
    given = arch.peak * torch.rand(1, 3, 9, 10, generator=torch.Generator().manual_seed(0))
    net = made.checkpoint.module()
    with torch.no_grad():
        wanted = net(given)
        net.load_state_dict(chosen.state)
        assert (net(given) - wanted).abs().max() < 1e-4 * arch.peak
    check_removal(made, chosen)


def test_thinet_of_attention(manifest: Manifest) -> None:
    """A feature of the heads that is never read goes, with its queries."""
    made = work(SWINIR, manifest, criterion="thinet")
    made = doubled(made, 0, twin=0, dead=2)
    said: list[tuple[int, int]] = []
    chosen = by_criterion(made, [3, 16], lambda done, total, note: said.append((done, total)))
    assert chosen.kept[0] == [0, 1, 3] and said == [(0, 19), (3, 19)]
    check_removal(made, chosen)
    assert chosen.kept == by_criterion(made, [3, 16]).kept


def test_thinet_wants_patches(manifest: Manifest) -> None:
    with pytest.raises(UsageError, match=r"^too few patches for the selection set: "):
        by_criterion(work(DRN, manifest, criterion="thinet", patches=400), [1] * 6)
