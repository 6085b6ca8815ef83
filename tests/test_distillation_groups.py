"""Groups of patches: what is in one is alike, and nobody is left out."""

import pytest
import torch
from conftest import synthetic_photo
from torch import Tensor

from curate.distillation import groups
from curate.distillation.groups import by_image, clusters, looks, matched
from curate.errors import UsageError
from curate.tensors import to_float


def kinds(each: int = 12, side: int = 24) -> Tensor:
    """uint8 patches of four kinds, one after the other: flat, noise, rows of stripes, columns of stripes."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.full((4, each, 3, side, side), 90.0)
    pool += torch.randint(0, 60, (4, each, 1, 1, 1), generator=generator)
    pool[1] += torch.randint(-60, 60, pool[1].shape, generator=generator)
    pool[2] += 50 * (torch.arange(side) // 2 % 2)[:, None]
    pool[3] += 50 * (torch.arange(side) // 2 % 2)
    return pool.flatten(0, 1).to(torch.uint8)


def photos(number: int = 20, side: int = 24) -> Tensor:
    image = torch.from_numpy(synthetic_photo(240, 240, 1)).permute(2, 0, 1)
    windows = image.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4).flatten(0, 1)
    return windows[:number].contiguous()


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two groupings are one, whatever their numbers."""
    return len({*zip(a.tolist(), b.tolist(), strict=True)}) == len({*a.tolist()}) == len({*b.tolist()})


def test_clusters_are_the_kinds() -> None:
    found = clusters(kinds(), 4, seed=0)
    assert found.dtype == torch.int64
    assert same(found, torch.arange(4).repeat_interleave(12))


def test_clusters_are_the_seeds_and_do_not_move_a_generator() -> None:
    pool, before = photos(60), torch.get_rng_state()
    first = clusters(pool, 5, seed=3)
    assert torch.equal(first, clusters(pool, 5, seed=3)) and torch.equal(torch.get_rng_state(), before)
    assert sorted(set(first.tolist())) == list(range(5))
    assert same(first, clusters(to_float(pool), 5, seed=3))


def test_there_are_fewer_clusters_where_fewer_differ() -> None:
    pool = photos(3).repeat(4, 1, 1, 1)
    assert same(clusters(pool, 7, seed=0), torch.arange(3).repeat(4))
    assert clusters(pool[:1], 7, seed=0).tolist() == [0]


def test_looks_tell_directions_texture_brightness_and_colour() -> None:
    features_PK = looks(kinds(1))
    flat, noise, rows, columns = features_PK
    assert features_PK.dtype == torch.float32 and features_PK.isfinite().all()
    assert columns[0] > rows[0] + 3 and rows[1] > columns[1] + 3  # steps along a row, along a column
    assert noise[4] > flat[4] + 3
    red = torch.full((1, 3, 6, 6), 0.2)
    red[:, 0] = 0.9
    grey = torch.full((1, 3, 6, 6), 0.2)
    assert (looks(red) - looks(grey))[0, 5] > 0.1 and (looks(red) - looks(grey))[0, -2] > 0.1
    diagonal = torch.eye(12).repeat(1, 3, 1, 1)
    assert looks(diagonal)[0, 3] - looks(diagonal)[0, 2] > 1  # across it more than along it


def test_looks_do_not_depend_on_the_other_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = photos(7)
    whole = looks(pool)
    monkeypatch.setattr(groups, "_CHUNK", 3)
    torch.testing.assert_close(looks(pool), whole)
    torch.testing.assert_close(looks(pool.flip(0)), whole.flip(0))
    torch.testing.assert_close(looks(pool.float() / 255), whole)


def test_groups_by_image_are_the_images() -> None:
    ids = ["b", "a", "b", "ä", "a"]
    assert by_image(ids).tolist() == [1, 0, 1, 2, 0]
    assert by_image(ids).dtype == torch.int64


def test_matched_rows_are_those_of_the_group() -> None:
    mine_N, its_N = torch.tensor([3, 1, 3]), torch.tensor([1, 3, 0, 1])
    found = [(mine.tolist(), its.tolist()) for mine, its in matched((mine_N, its_N), 3, 4)]
    assert found == [([1], [0, 3]), ([0, 2], [1])]
    assert [(mine.tolist(), its.tolist()) for mine, its in matched(None, 2, 3)] == [([0, 1], [0, 1, 2])]


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (lambda: clusters(photos()[:0], 3, 0), "found 0 and 3"),
        (lambda: clusters(photos(), 0, 0), "found 20 and 0"),
        (lambda: clusters(photos()[:, :1], 3, 0), "found (20, 1, 24, 24)"),
        (lambda: looks(photos()[..., :2]), "H and W at least 3, found (20, 3, 24, 2)"),
        (lambda: matched(None, 0, 3), "found 0 synthetic and 3 real"),
        (lambda: matched((torch.tensor([7]), torch.tensor([0])), 1, 1), "found none of: 7"),
        (
            lambda: matched((torch.tensor([0]), torch.tensor([0])), 2, 1),
            "found 1 and 1 for 2 synthetic patches and 1 real",
        ),
    ],
)
def test_what_cannot_be_grouped_is_one_line(question, reason: str) -> None:
    with pytest.raises(UsageError) as error:
        question()
    assert reason in str(error.value) and str(error.value).isprintable()
