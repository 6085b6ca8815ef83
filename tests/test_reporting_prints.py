"""Contact sheets and maps for papers have what a reader needs around the pictures; the same ones are the same bytes."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from curate.reporting.figures import COLOURS
from curate.reporting.pictures import PATCH_PX
from curate.reporting.prints import Bar, Tile, map_print, sheet_print
from curate.reporting.words import TIMES

BAR = Bar("srcnn (log)", f"1.38{TIMES}10⁻⁶", f"3.77{TIMES}10⁻³", np.linspace(0, 255, 27).reshape(9, 3).astype(np.uint8))
PAPER = np.array([254, 254, 254])


def opened(data: bytes) -> npt.NDArray[np.int64]:
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return np.asarray(image, np.int64)


def tiles(count: int, out: bool = False, marks: tuple[str, ...] = ()) -> list[Tile]:
    picture = Image.new("RGB", (PATCH_PX, PATCH_PX), (10, 200, 30))
    return [Tile(picture, (f"{n + 1}   2.22{TIMES}10⁻³", f"photo {n}.png"), out, marks) for n in range(count)]


def test_under_each_picture_of_a_sheet_are_its_lines() -> None:
    sheet = opened(sheet_print("Hardest", "The highest srcnn.", tiles(10)))
    green = (sheet == [10, 200, 30]).all(2)
    assert green.sum() == 10 * PATCH_PX**2
    bottom = np.flatnonzero(green.any(1) & ~np.roll(green.any(1), -1))
    assert len(bottom) == 2  # rows of eight and of two
    for row, columns in zip(bottom, (8, 2), strict=True):
        written = (sheet[row + 4 : row + 36] < 200).all(2)
        assert sum(written[:, 10 + n * 154 : 154 + n * 154].any() for n in range(8)) == columns
    assert (sheet[: np.flatnonzero(green.any(1))[0]] < 120).all(2).any()  # the title


def test_who_chose_a_patch_is_marked_in_its_corner() -> None:
    plain = opened(sheet_print("t", "w", tiles(3)))
    out = opened(sheet_print("t", "w", tiles(3, out=True)))
    marked = opened(sheet_print("t", "w", tiles(3, marks=(COLOURS["c0"], COLOURS["c1"]))))
    assert (plain != out).any() and out.shape == plain.shape
    for colour in ("c0", "c1"):
        red, green, blue = bytes.fromhex(COLOURS[colour][1:])
        assert (marked == [red, green, blue]).all(2).any() and not (plain == [red, green, blue]).all(2).any()


def test_a_map_has_its_scale_whole_and_its_line() -> None:
    for width in (40, 700):
        print_ = map_print("a.png", "Mean srcnn 2.", np.full((60, width, 3), 90, np.uint8), [(0, 0, 20, 0)], 1.0, BAR)
        sheet = opened(print_)
        assert (sheet == 90).all(2).sum() > 0.7 * 60 * width
        assert (sheet[:, -4:] == PAPER).all() and (sheet[-1] == PAPER).all()  # nothing is cut
        assert (sheet == list(bytes.fromhex(COLOURS["c0"][1:]))).all(2).any()


def test_the_same_sheet_is_the_same_bytes_whatever_its_names() -> None:
    name = "very/long " * 30 + "$x_1$\\x1b 名前.png"
    long = [Tile(tiles(1)[0].picture, (name, name), False)]
    assert sheet_print(name, name, long) == sheet_print(name, name, long)
    assert opened(sheet_print(name, "w", long)).shape[1] < 600
    assert opened(sheet_print("empty", "w", [])).shape[2] == 3
