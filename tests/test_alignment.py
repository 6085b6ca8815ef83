"""One picture in another: found where it is, not found where it is not; the pixels decide."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pytest
from conftest import scene
from PIL import Image

from curate.alignment import Index, Placement, agreement, correlation, features, grey, shrink

Grey = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def scenes(make_photo: Callable[..., npt.NDArray[np.uint8]]) -> list[Grey]:
    """Four pictures with much to recognise: photographs strewn with rectangles."""
    return [scene(240, 300, seed) for seed in range(4)]


def encoded(picture: Grey, quality: int) -> Grey:
    file = BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def resized(picture: Grey, scale: float) -> Grey:
    height, width = (round(side * scale) for side in picture.shape)
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("scale", [0.5, 0.72, 1.0, 1.39, 2.0])
@pytest.mark.parametrize("crop", [(0, 0, 240, 300), (37, 51, 160, 170)])
def test_a_crop_that_was_resized_and_encoded_is_found_where_it_was(
    scenes: list[Grey], scale: float, crop: tuple[int, int, int, int]
) -> None:
    top, left, height, width = crop
    for number, picture in enumerate(scenes):
        copy = encoded(resized(picture[top : top + height, left : left + width], scale), 60)
        found = Index([features(other) for other in scenes]).find(features(copy))
        assert found[0][0] == number
        placement = found[0][1]
        assert placement.scale == pytest.approx(scale, rel=0.02) and abs(placement.degrees) < 1
        assert placement.matrix_23[:, 2] == pytest.approx([-left * scale, -top * scale], abs=2.5)
        result = agreement(picture, copy, placement)
        assert result.correlation > 0.9
        assert result.share_a == pytest.approx(height * width / picture.size, abs=0.05)
        assert result.share_b > 0.9


def test_a_turned_picture_is_found_and_says_how_far(scenes: list[Grey]) -> None:
    turned = np.ascontiguousarray(np.rot90(scenes[2], -1))  # clockwise
    ((number, placement), *_) = Index([features(other) for other in scenes]).find(features(turned))
    assert number == 2 and placement.degrees == pytest.approx(90, abs=1)
    assert agreement(scenes[2], turned, placement).correlation > 0.99


def test_other_pictures_do_not_agree(scenes: list[Grey]) -> None:
    index = Index([features(other) for other in scenes])
    for seed in range(10, 16):
        other = scene(240, 300, seed)
        for number, placement in index.find(features(other)):
            assert agreement(scenes[number], other, placement).correlation < 0.9


def test_a_placement_s_inverse_leads_back_and_the_order_of_the_pictures_is_no_matter(scenes: list[Grey]) -> None:
    there = Placement(np.array([[0.4, 0.3, 7.0], [-0.3, 0.4, -5.0]]), 9)
    back = there.inverse()
    assert there.scale == pytest.approx(0.5) and back.scale == pytest.approx(2)
    point = np.array([13.0, 21.0, 1.0])
    assert back.matrix_23 @ [*(there.matrix_23 @ point), 1.0] == pytest.approx(point[:2])
    small = resized(scenes[0], 0.5)
    placement = Placement(np.array([[0.5, 0, -0.25], [0, 0.5, -0.25]]), 9)
    one, other = agreement(scenes[0], small, placement), agreement(small, scenes[0], placement.inverse())
    assert one.correlation == other.correlation > 0.98
    assert (one.share_a, one.share_b) == (other.share_b, other.share_a)


def test_many_features_that_meet_one_place_are_no_placement(scenes: list[Grey]) -> None:
    """A flat field with one dot, a hundred times: all of them look alike, and lie wherever one likes."""
    dots = np.full((200, 200), 90, np.uint8)
    dots[10::20, 10::20] = 200
    dot = np.full((60, 60), 90, np.uint8)
    dot[30, 30] = 200
    for pictures in ([features(dots)], [features(dot)], [features(dots), features(scenes[0])]):
        for picture in (dot, dots):
            for _, placement in Index(pictures).find(features(picture)):
                assert 1 / 16 <= placement.scale <= 16 and placement.inliers >= 6


def test_too_small_an_overlap_is_none(scenes: list[Grey]) -> None:
    aside = Placement(np.array([[1.0, 0, 295.0], [0, 1.0, 0]]), 9)  # 5 px in common
    assert agreement(scenes[0], scenes[0], aside).correlation == 0


@pytest.mark.parametrize("value", [0, 255])
def test_a_flat_picture_has_no_features_and_finds_nothing(scenes: list[Grey], value: int) -> None:
    flat = features(np.full((80, 90), value, np.uint8))
    assert len(flat.points_N2) == len(flat.descriptors_ND) == 0
    assert Index([features(scenes[0])]).find(flat) == []
    assert Index([flat]).find(features(scenes[0])) == []


def test_in_a_large_picture_features_are_looked_for_at_a_smaller_size(
    scenes: list[Grey], monkeypatch: pytest.MonkeyPatch
) -> None:
    large = np.pad(resized(scenes[3], 2), ((100, 20), (30, 60)), mode="reflect")
    index = Index([features(other) for other in scenes])
    for area in (2**21, large.size // 3):
        monkeypatch.setattr("curate.alignment._AREA", area)
        found = features(large)
        ((number, placement), *_) = index.find(found)
        assert number == 3 and placement.scale == pytest.approx(2, rel=0.02)
        assert placement.matrix_23[:, 2] == pytest.approx([30.5, 100.5], abs=3)
        assert agreement(scenes[3], large, placement).correlation > 0.95
        assert found.points_N2.max() > 400  # in px of the picture itself


def test_the_same_pictures_give_the_same_placements(scenes: list[Grey]) -> None:
    def placements() -> list[tuple[int, list[float]]]:
        found = Index([features(other) for other in scenes]).find(features(encoded(scenes[1], 50)))
        return [(number, placement.matrix_23.ravel().tolist()) for number, placement in found]

    assert placements() == placements() != []


def test_correlation_is_pearson_s() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0, 255, (2, 7, 9)).astype(np.float32)
    assert correlation(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert correlation(a, 255 - a) == pytest.approx(-1)
    assert correlation(a, np.full_like(a, 3)) == 0


def test_shrink_is_the_mean_of_the_pixels_and_grey_is_luma() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (12, 18), np.uint8)
    means = picture.reshape(4, 3, 6, 3).mean((1, 3))
    assert np.allclose(shrink(picture, 4, 6), means, atol=1e-3)
    assert grey(np.full((2, 3, 3), (255, 0, 0), np.uint8)).tolist() == [[76] * 3] * 2
