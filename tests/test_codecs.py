"""Every faster way gives what Pillow gives, or nothing; what is proven whole without its pixels can be decoded."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from curate import codecs, images
from curate.images import ImageRefused, decode, size

Pixels = npt.NDArray[np.uint8]


@pytest.fixture
def photo(make_photo: Callable[[int, int, int], Pixels]) -> Pixels:
    return make_photo(24, 36, 1)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pillow(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def verdict(data: bytes, whole: bool = False) -> str | tuple[tuple[int, ...], bytes]:
    try:
        pixels = decode(data, whole=whole)
    except ImageRefused as refused:
        return str(refused)
    return pixels.shape, pixels.tobytes()


def size_or_reason(data: bytes) -> str | tuple[int, ...]:
    try:
        return size(data)
    except ImageRefused as refused:
        return str(refused)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, colour: int, data: bytes, *before: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def damaged_png(rng: random.Random) -> bytes:
    """A small grey, RGB or RGBA file of any filters, its pixels or their compressed data often damaged."""
    colour, channels = rng.choice(((0, 1), (2, 3), (2, 3), (6, 4)))
    width, height = rng.randint(1, 20), rng.randint(1, 20)
    rows = b""
    for _ in range(height):
        row, filtering = rng.randbytes(width * channels), rng.choice((0, 1, 2, 3, 4, 4) * 4 + (5,))
        if colour == 6:  # opaque, which it is as long as no filter changes it
            row, filtering = bytes(255 if i % 4 == 3 else value for i, value in enumerate(row)), 0
        rows += bytes([filtering]) + row
    if rng.random() < 0.2:
        rows = rows[: rng.randrange(len(rows))]
    data = bytearray(zlib.compress(rows + rng.randbytes(rng.choice((0, 0, 9)))))
    match rng.randrange(6):
        case 0:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del data[rng.randrange(len(data)) :]
        case 2:
            data += bytes(rng.randrange(20))
        case 3:
            data[-1 - rng.randrange(4)] ^= 1 << rng.randrange(8)  # the checksum
    return png(width, height, colour, bytes(data))


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    rng = random.Random(11)
    return [damaged_png(rng) for _ in range(1500)]


def test_libspng_and_pillow_agree(files: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """On pixels, on what is refused, and on the reason; libspng is the fast way and never the last word."""
    libspng, taken = codecs.libspng, []

    def counted(png: bytes) -> Pixels | None:
        pixels = libspng(png)
        taken.append(pixels is not None)
        return pixels

    monkeypatch.setattr(codecs, "libspng", counted)
    fast = [verdict(data) for data in files]
    monkeypatch.setattr(codecs, "libspng", lambda png: None)
    assert fast == [verdict(data) for data in files]
    assert len(taken) == len(files)
    assert 300 < sum(taken) < 1200


def test_what_is_whole_is_decoded_alike(files: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """By libdeflate and libspng; and nothing that is refused is proven whole, whose size is told without its pixels."""
    is_whole, whole_png, proven, decoded = codecs.is_whole, codecs.whole_png, [], []

    def noted(*given: object) -> bool:
        proven.append(is_whole(*given))  # type: ignore[arg-type]
        return proven[-1]

    def counted(*given: object) -> Pixels | None:
        pixels = whole_png(*given)  # type: ignore[arg-type]
        decoded.append(pixels is not None)
        return pixels

    monkeypatch.setattr(codecs, "is_whole", noted)
    monkeypatch.setattr(codecs, "whole_png", counted)
    for data in files:
        expected = verdict(data)
        assert size_or_reason(data) == (expected if isinstance(expected, str) else expected[0][:2])
        if not isinstance(expected, str):
            assert verdict(data, whole=True) == expected
    assert 100 < sum(proven) < len(proven) - 200
    assert sum(decoded) > 100


@pytest.mark.parametrize("before", [chunk(b"PLTE", bytes(6)), chunk(b"tRNS", bytes(6)), chunk(b"IDAT", b"")])
def test_unusual_chunks(before: bytes, photo: Pixels) -> None:
    """A palette that is only suggested, a transparent colour, an empty chunk of data: as Pillow has it."""
    rows = b"".join(b"\0" + row.tobytes() for row in photo)
    data = png(36, 24, 2, zlib.compress(rows), before)
    np.testing.assert_array_equal(decode(data), photo)
    np.testing.assert_array_equal(decode(data, whole=True), photo)
    assert size(data) == (24, 36)


@pytest.mark.parametrize("order", ["header twice", "header behind", "data apart", "no data", "no pixels"])
def test_chunks_in_no_order(order: str, photo: Pixels) -> None:
    """What is no picture for Pillow is none for who looks at its data alone."""
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in photo))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 36, 24, 8, 2, 0, 0, 0))
    data, end = chunk(b"IDAT", packed), chunk(b"IEND", b"")
    chunks = {
        "header twice": header + header + data,
        "header behind": chunk(b"IDAT", packed[:50]) + header + chunk(b"IDAT", packed[50:]),
        "data apart": header + chunk(b"IDAT", packed[:50]) + chunk(b"PLTE", bytes(6)) + chunk(b"IDAT", packed[50:]),
        "no data": header,
        "no pixels": chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 24, 8, 2, 0, 0, 0)) + data,
    }
    file = b"\x89PNG\r\n\x1a\n" + chunks[order] + end
    expected = verdict(file)
    assert size_or_reason(file) == (expected if isinstance(expected, str) else expected[0][:2])


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_size_is_that_of_the_picture_upright(orientation: int, photo: Pixels) -> None:
    tags = Image.Exif()
    tags[0x112] = orientation
    for kind in ("PNG", "TIFF"):
        data = saved(Image.fromarray(photo), kind, exif=tags.tobytes())
        assert size(data) == decode(data).shape[:2]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("whole", [False, True])
def test_pillow_is_not_asked_about_plain_png(
    mode: str, whole: bool, photo: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = saved(Image.fromarray(photo).convert(mode), "PNG")
    expected = pillow(data)
    monkeypatch.setattr(images, "_opaque_rgb", None)  # Pillow's way ends there
    pixels = decode(data, whole=whole)
    np.testing.assert_array_equal(pixels, expected)
    assert pixels.flags.c_contiguous and pixels.flags.writeable
    assert size(data) == expected.shape[:2]


@pytest.mark.parametrize("height", [21, 145, 146, 291])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_rows_of_several_blocks(
    height: int, mode: str, make_photo: Callable[[int, int, int], Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than a block of deflate's, about one, two; and what is too large for the room that a thread keeps."""
    data = saved(Image.fromarray(make_photo(height, 150, 2)).convert(mode), "PNG")
    asked: list[int] = []
    libspng = codecs.libspng
    monkeypatch.setattr(codecs, "libspng", lambda png: asked.append(len(png)) or libspng(png))
    for room in (codecs._ROOM, 100):
        monkeypatch.setattr(codecs, "_ROOM", room)
        np.testing.assert_array_equal(decode(data, whole=True), pillow(data))
    assert asked[0] > height * 150 * (3 if mode == "RGB" else 1) > asked[1] == len(data)


def test_threads_have_room_of_their_own(make_photo: Callable[[int, int, int], Pixels]) -> None:
    photos = [make_photo(20 + 30 * (i % 7), 90, i) for i in range(21)]
    files = [saved(Image.fromarray(photo), "PNG") for photo in photos] * 4
    with ThreadPoolExecutor(4) as pool:
        for found, photo in zip(pool.map(lambda data: decode(data, whole=True), files), photos * 4, strict=True):
            np.testing.assert_array_equal(found, photo)


def test_size_makes_no_pixels(photo: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_asked(_: bytes) -> None:
        raise AssertionError

    monkeypatch.setattr(codecs, "libspng", not_asked)
    assert size(saved(Image.fromarray(photo), "PNG")) == (24, 36)


@pytest.mark.parametrize(
    "options",
    [{"quality": 95, "subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"restart_marker_rows": 1}],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_that_is_whole_is_decoded_alike(
    mode: str, options: dict[str, object], photo: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = Image.Exif()
    tags[0x112] = 6
    data = saved(Image.fromarray(photo[:23, :35]).convert(mode), "JPEG", exif=tags.tobytes(), **options)
    expected = decode(data)
    monkeypatch.setattr(images, "_opaque_rgb", None)  # Pillow's way ends there
    np.testing.assert_array_equal(decode(data, whole=True), expected)


def test_large_jpeg_is_left_to_those_who_wait_for_each_other(photo: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    data, asked = saved(Image.fromarray(photo), "JPEG"), []
    libjpeg = codecs.libjpeg
    monkeypatch.setattr(codecs, "libjpeg", lambda jpeg: asked.append(jpeg) or libjpeg(jpeg))
    for limit, times in ((24 * 36, 1), (24 * 36 - 1, 1)):
        monkeypatch.setattr(images, "_LARGE", limit)
        np.testing.assert_array_equal(decode(data, whole=True), decode(data))
        assert len(asked) == times


def test_jpeg_of_other_colours_is_still_refused(photo: Pixels) -> None:
    data = saved(Image.fromarray(photo).convert("CMYK"), "JPEG")
    assert verdict(data, whole=True) == verdict(data) == "CMYK"


def test_a_changed_byte_of_a_whole_file_is_still_no_crash(photo: Pixels) -> None:
    """Its hash is looked at before; if it were not, pixels or a reason would come of it."""
    data, rng = saved(Image.fromarray(photo), "PNG"), random.Random(3)
    for _ in range(300):
        changed = bytearray(data)
        changed[rng.randrange(8, len(data))] ^= 1 << rng.randrange(8)
        assert isinstance(verdict(bytes(changed), whole=True), str | tuple)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_lossless_webp_is_decoded_by_libwebp_alone(photo: Pixels, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(Image.fromarray(photo).convert(mode), "WEBP", lossless=True)
    expected = pillow(data)
    monkeypatch.setattr(images, "_opaque_rgb", None)  # Pillow's way ends there
    pixels = decode(data)
    np.testing.assert_array_equal(pixels, expected)
    assert pixels.flags.c_contiguous and pixels.flags.writeable


def test_libwebp_alone_and_pillow_agree(
    make_photo: Callable[[int, int, int], Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(12)
    whole = saved(Image.fromarray(make_photo(20, 24, 1)), "WEBP", lossless=True)
    files = [whole]
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(12, len(data))] ^= 1 << rng.randrange(8)
        files.append(bytes(data[: rng.choice((len(data), rng.randrange(30, len(data))))]))
    fast = [verdict(data) for data in files]
    taken = sum(codecs.libwebp(data) is not None for data in files)
    monkeypatch.setattr(codecs, "libwebp", lambda data: None)
    assert fast == [verdict(data) for data in files]
    assert 100 < taken < 1400
