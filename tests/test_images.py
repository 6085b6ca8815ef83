"""`images.decode` gives the right pixels or the right reason, for every format, and never anything else."""

import io
import random
import re
import struct
import subprocess
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from curate import codecs, images
from curate.errors import DataError
from curate.images import SUFFIXES, ImageRefused, decode, encode_png

Pixels = npt.NDArray[np.uint8]
LOSSLESS = {"PNG": {}, "TIFF": {}, "BMP": {}, "PPM": {}, "WEBP": {"lossless": True}}
OTHER_TIFF = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "tiff_deflate")


@pytest.fixture
def photo(make_photo: Callable[[int, int, int], Pixels]) -> Pixels:
    return make_photo(24, 36, 1)


def saved(image: Image.Image | Pixels, kind: str, **options: object) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pillow(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def refusal(data: bytes) -> str:
    with pytest.raises(ImageRefused) as caught:
        decode(data)
    return str(caught.value)


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x10F] = "maker"  # another tag first, of a value that lies elsewhere
    tags[0x112] = orientation
    return tags.tobytes()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *before: bytes) -> bytes:
    """A PNG file made by hand: `rows` with their filter bytes; chunks `before` the pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + pixels + png_chunk(b"IEND", b"")


def tiff(order: str, bits: tuple[int, ...], photometric: int, sample_format: int, strip: bytes) -> bytes:
    """A TIFF file of 4 x 2 pixels made by hand, uncompressed, in one strip."""
    num = len(bits)
    lists = struct.pack(f"{order}{2 * num}H", *bits, *[sample_format] * num)
    short = {256: 4, 257: 2, 259: 1, 262: photometric, 277: num, 278: 2}
    entries = {tag: (3, 1, struct.pack(f"{order}Hxx", value)) for tag, value in short.items()}
    entries[273] = (4, 1, struct.pack(f"{order}I", 8 + len(lists)))
    entries[279] = (4, 1, struct.pack(f"{order}I", len(strip)))
    for tag, at in ((258, 0), (339, 2 * num)):
        here = lists[at : at + 2 * num].ljust(4, b"\0") if num < 3 else struct.pack(f"{order}I", 8 + at)
        entries[tag] = (3, num, here)
    directory = struct.pack(f"{order}H", len(entries))
    directory += b"".join(struct.pack(f"{order}HHI", t, k, n) + v for t, (k, n, v) in sorted(entries.items()))
    magic = b"II\x2a\0" if order == "<" else b"MM\0\x2a"
    return magic + struct.pack(f"{order}I", 8 + len(lists) + len(strip)) + lists + strip + directory + bytes(4)


# --- what is accepted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_the_pixels(photo: Pixels, kind: str) -> None:
    pixels = decode(saved(photo, kind, **LOSSLESS[kind]))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, photo)


@pytest.mark.parametrize("compression", OTHER_TIFF)
def test_compressed_tiff(photo: Pixels, compression: str) -> None:
    np.testing.assert_array_equal(decode(saved(photo, "TIFF", compression=compression)), photo)


@pytest.mark.parametrize("order", "<>")
def test_tiff_of_either_byte_order(order: str) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    np.testing.assert_array_equal(decode(tiff(order, (8, 8, 8), 2, 1, pixels.tobytes())), pixels)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"quality": 100}])
def test_jpeg_as_pillow_decodes_it(photo: Pixels, options: dict[str, object]) -> None:
    data = saved(photo, "JPEG", **options, comment=b"\xff\xd9 in a comment", exif=exif(1))
    np.testing.assert_array_equal(decode(data), pillow(data))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "PPM", "GIF"])
def test_grey_is_stacked(photo: Pixels, kind: str) -> None:
    data = saved(photo[..., 0], kind)
    np.testing.assert_array_equal(decode(data), pillow(data))
    if kind != "JPEG":
        np.testing.assert_array_equal(decode(data), np.repeat(photo[..., :1], 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "GIF"])
def test_one_bit_is_black_and_white(photo: Pixels, kind: str) -> None:
    bits = photo[..., 0] > 128
    expected = np.repeat(np.where(bits, np.uint8(255), np.uint8(0))[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode(saved(Image.fromarray(bits), kind)), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF"])
def test_palette_becomes_its_colours(photo: Pixels, kind: str) -> None:
    palette = Image.fromarray(photo).quantize(20)
    np.testing.assert_array_equal(decode(saved(palette, kind)), np.array(palette.convert("RGB")))


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opaque_alpha_is_dropped(photo: Pixels, kind: str, options: dict[str, object], mode: str) -> None:
    image = Image.fromarray(photo).convert(mode)
    np.testing.assert_array_equal(decode(saved(image, kind, **options)), np.array(image.convert("RGB")))


def test_transparent_colour_that_no_pixel_has(photo: Pixels) -> None:
    spared = photo.copy()
    spared[..., 0] |= 1
    np.testing.assert_array_equal(decode(saved(spared, "PNG", transparency=(0, 0, 0))), spared)


UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {  # as EXIF 2.3 defines where row 0 and column 0 are
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
    9: lambda stored: stored,  # not defined
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_orientation_is_applied(photo: Pixels, kind: str, orientation: int) -> None:
    pixels = decode(saved(photo, kind, exif=exif(orientation), **LOSSLESS[kind]))
    np.testing.assert_array_equal(pixels, UPRIGHT[orientation](photo))
    assert pixels.flags.c_contiguous


def test_orientation_of_jpeg(photo: Pixels) -> None:
    assert decode(saved(photo, "JPEG", exif=exif(6))).shape == (36, 24, 3)
    stored, turned = decode(saved(photo, "JPEG")), decode(saved(photo, "JPEG", exif=exif(8)))
    np.testing.assert_array_equal(turned, np.rot90(stored))


def test_jpeg_of_rgb_that_only_adobes_segment_tells(photo: Pixels) -> None:
    data = saved(photo, "JPEG", keep_rgb=True)
    numbered = bytearray(data)
    for marker, step in ((b"\xff\xc0", 3), (b"\xff\xda", 2)):  # components R, G, B are renamed to 1, 2, 3, as YCbCr has
        first = data.index(b"R", data.index(marker))
        numbered[first : first + 3 * step : step] = bytes((1, 2, 3))
    np.testing.assert_array_equal(decode(bytes(numbered)), decode(data))
    assert np.abs(decode(data).astype(int) - photo).mean() < 10


def test_orientation_of_compressed_tiff(photo: Pixels) -> None:
    data = saved(photo, "TIFF", compression="tiff_lzw", exif=exif(6))
    np.testing.assert_array_equal(decode(data), np.rot90(photo, -1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "damage", [b"Exif\0\0", b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff", b"Exif\0\0II\x2a\0\xff\xff\xff\xff"]
)
def test_damaged_exif_is_upright(photo: Pixels, kind: str, damage: bytes) -> None:
    np.testing.assert_array_equal(decode(saved(photo, kind, exif=damage)), decode(saved(photo, kind)))


def test_exif_that_ends_after_its_last_entry(photo: Pixels) -> None:
    block = b"Exif\0\0II\x2a\0" + struct.pack("<IHHHIHxx", 8, 1, 0x112, 3, 1, 3)
    np.testing.assert_array_equal(decode(saved(photo, "PNG", exif=block)), photo[::-1, ::-1])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_icc_profile_is_ignored(photo: Pixels, kind: str) -> None:
    options = LOSSLESS.get(kind, {})
    data = saved(photo, kind, icc_profile=b"no profile at all" * 9000, **options)
    np.testing.assert_array_equal(decode(data), decode(saved(photo, kind, **options)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM", "GIF"])
def test_bytes_after_the_end_are_ignored(photo: Pixels, kind: str) -> None:
    data = saved(photo, kind)
    np.testing.assert_array_equal(decode(data + bytes(range(256)) + b"\xff\xd8"), decode(data))


def test_photograph_with_a_preview_is_no_animation(photo: Pixels) -> None:
    data = saved(photo, "MPO", save_all=True, append_images=[Image.fromarray(photo[:8, :8])])
    np.testing.assert_array_equal(decode(data), decode(saved(photo, "JPEG")))


def test_apng_of_one_frame(photo: Pixels) -> None:
    data = saved(photo, "PNG")
    control = png_chunk(b"acTL", struct.pack(">II", 1, 0))
    np.testing.assert_array_equal(decode(data[:33] + control + data[33:]), photo)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"\x89PNG", "not an image"),
        (b"%PDF-1.7 and so on", "not an image"),
        (b"\0" * 4096, "not an image"),
        (b"BMagic is no bitmap, though it starts like one", "not an image"),
        (b"GIF89a", "truncated"),
        (b"II\x2a\0", "truncated"),
        (b"RIFF\xff\xff\0\0WEBPVP8 ", "truncated"),
        (b"P6\n2 2\n65535\n" + bytes(24), "16-bit samples"),
        (b"P6\n2 2\n1023\n" + bytes(24), "10-bit samples"),
        (b"P3\n1 1\n65535\n1 2 3\n", "16-bit samples"),
        (b"P5\n2 2\n65535\n" + bytes(8), "16-bit samples"),
        (b"P5\n2 2\n511\n" + bytes(8), "9-bit samples"),
        (b"Pf\n2 2\n-1.0\n" + bytes(16), "float samples"),
        (png(2, 1, 16, 2, bytes(13)), "16-bit samples"),
        (png(2, 1, 16, 6, bytes(17)), "16-bit samples"),
        (png(2, 1, 16, 0, bytes(5)), "16-bit samples"),
        (png(2, 1, 16, 4, bytes(9)), "16-bit samples"),
        (png(2, 1, 8, 3, bytes(3)), "damaged: no palette"),
        (png(30_000, 30_000, 8, 2, b""), f"too many pixels: 30000 x 30000; the limit is {2**29}"),
        (tiff("<", (16, 16, 16), 2, 1, bytes(48)), "16-bit samples"),
        (tiff(">", (16, 16, 16), 2, 1, bytes(48)), "16-bit samples"),
        (tiff("<", (16,), 1, 1, bytes(16)), "16-bit samples"),
        (tiff("<", (32,), 1, 1, bytes(32)), "32-bit samples"),
        (tiff("<", (32,), 1, 3, bytes(32)), "32-bit float or signed samples"),
        (tiff(">", (8,), 1, 2, bytes(8)), "8-bit float or signed samples"),
        (tiff(">", (8, 8, 8, 8), 5, 1, bytes(32)), "CMYK"),
        (tiff("<", (8, 8, 8), 8, 1, bytes(24)), "LAB"),
        (tiff("<", (8, 8, 8), 6, 1, bytes(24)), "YCbCr"),
    ],
)
def test_reason(data: bytes, reason: str) -> None:
    assert refusal(data).startswith(reason)


def test_a_refusal_is_a_data_error_of_one_line() -> None:
    assert issubclass(ImageRefused, DataError)
    assert refusal(b"P6\n\x1b[31m 2\n255\n").isprintable()


def test_jpeg_of_other_colours_and_depths(photo: Pixels) -> None:
    assert refusal(saved(Image.fromarray(photo).convert("CMYK"), "JPEG")) == "CMYK"
    data = saved(photo, "JPEG")
    depth = data.index(b"\xff\xc0") + 4
    assert refusal(data[:depth] + b"\x0c" + data[depth + 1 :]) == "12-bit samples"


def test_tiff_compression_that_no_photograph_has(photo: Pixels) -> None:
    data = saved(Image.fromarray(photo).convert("1"), "TIFF", compression="group4")
    assert refusal(data) == "TIFF compression 4"


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_one_transparent_pixel(photo: Pixels, kind: str, options: dict[str, object], mode: str) -> None:
    image = Image.fromarray(photo).convert(mode)
    alpha = np.full(photo.shape[:2], 255, np.uint8)
    alpha[3, 4] = 254
    image.putalpha(Image.fromarray(alpha))
    assert refusal(saved(image, kind, **options)) == "transparent"


@pytest.mark.parametrize("transparency", [3, bytes(range(20))])
def test_transparent_palette(photo: Pixels, transparency: int | bytes) -> None:
    palette = Image.fromarray(photo).quantize(20)
    assert refusal(saved(palette, "PNG", transparency=transparency)) == "transparent"


def test_transparent_colour(photo: Pixels) -> None:
    assert refusal(saved(photo, "PNG", transparency=tuple(photo[5, 5].tolist()))) == "transparent"
    assert refusal(saved(Image.fromarray(photo).quantize(20), "GIF", transparency=3)) == "transparent"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("GIF", "animated: 3 frames"),
        ("PNG", "animated: 3 frames"),
        ("WEBP", "animated: 3 frames"),
        ("TIFF", "several pages"),
    ],
)
def test_several_frames(photo: Pixels, kind: str, reason: str) -> None:
    frames = [Image.fromarray(np.roll(photo, shift, axis=1)) for shift in (5, 10)]
    assert refusal(saved(photo, kind, save_all=True, append_images=frames)) == reason


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "PPM", "GIF", "WEBP"])
def test_pixel_limit(photo: Pixels, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_MAX_GIF_PIXELS" if kind == "GIF" else "MAX_PIXELS", 24 * 36)
    assert decode(saved(photo, kind)).shape == (24, 36, 3)
    large = np.concatenate([photo, photo[:1]])
    assert refusal(saved(large, kind)) == "too many pixels: 36 x 25; the limit is 864"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "PPM", "GIF"])
def test_pillows_own_limit_does_not_count(photo: Pixels, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(photo, kind)
    expected = decode(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    np.testing.assert_array_equal(decode(data), expected)


def test_gif_whose_frame_is_larger_than_it_says(photo: Pixels) -> None:
    data = bytearray(saved(photo[..., 0], "GIF"))
    data[6:8] = struct.pack("<H", 35)
    assert refusal(bytes(data)) == "damaged: a frame reaches beyond the picture"


def test_pillows_own_limit_counts_for_webp(photo: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert refusal(saved(photo, "WEBP")).startswith("too many pixels")


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("GIF", {}),
    ],
)
def test_a_file_cut_anywhere_is_refused(photo: Pixels, kind: str, options: dict[str, object]) -> None:
    data = saved(photo[:12, :12], kind, **options)
    decode(data)
    for length in range(len(data)):
        refusal(data[:length])
    assert refusal(data[:-1]).startswith("truncated")


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg_whose_tail_was_lost_to_zeros(photo: Pixels, options: dict[str, object]) -> None:
    data = saved(photo, "JPEG", quality=100, **options)
    half = len(data) // 2
    assert refusal(data[:half] + bytes(len(data) - half)) == "truncated: no end marker"


def test_one_wrong_bit_anywhere_in_a_png_is_refused(photo: Pixels) -> None:
    data = saved(photo[:6, :6], "PNG", exif=exif(6), icc_profile=b"profile")
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 4
        refusal(bytes(damaged))


def with_count(data: bytes, tag: int, kind: int, num: int, new: int) -> bytes:
    entry = struct.pack("<HHI", tag, kind, num)
    assert data.count(entry) == 1
    return data.replace(entry, struct.pack("<HHI", tag, kind, new))


def test_tiff_directory_of_which_pillow_would_warn() -> None:
    data = tiff("<", (8, 8, 8), 2, 1, bytes(24))
    assert refusal(with_count(data, 278, 3, 1, 2)) == "damaged: TIFF tag 278 has 2 values of type 3"
    assert refusal(with_count(data, 273, 4, 1, 999)) == f"truncated: {len(data)} bytes, the TIFF directory needs 4002"
    most = len(data) // 2 - 8  # each list fits the file, both together do not
    overlapping = with_count(with_count(data, 258, 3, 3, most), 339, 3, 3, most)
    assert refusal(overlapping).endswith(f"the TIFF directory needs {4 * most}")


def test_png_that_names_the_damaged_chunk(photo: Pixels) -> None:
    data = bytearray(saved(photo, "PNG"))
    data[-13] ^= 1  # in the checksum of the last IDAT, which Pillow does not look at
    assert refusal(bytes(data)) == "damaged: wrong checksum in the IDAT chunk"


def test_png_whose_pixels_end_early(photo: Pixels) -> None:
    data = saved(photo, "PNG")
    start = data.index(b"IDAT") + 4
    cut = png_chunk(b"IDAT", data[start:-30]) + png_chunk(b"IEND", b"")
    assert refusal(data[: start - 8] + cut).startswith("truncated")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` with up to four accidents: bytes changed, lost or added, more often in the header; the end cut off."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(content), rng.choice((40, 400, 10**6))))
        match rng.randrange(4):
            case 0:
                content[at] = rng.choice((0, 1, 127, 128, 255))
            case 1:
                content[at] ^= 1 << rng.randrange(8)
            case 2:
                del content[at : at + rng.randint(1, 9)]
            case 3:
                content[at:at] = rng.randbytes(rng.randint(1, 9))
    if rng.random() < 0.1:
        del content[rng.randrange(len(content)) :]
    return bytes(content)


def with_true_checksums(data: bytes) -> bytes:
    """A mutated PNG whose checksums are right again, so that what lies behind that check is reached."""
    content, at = bytearray(data), 8
    while at + 12 <= len(content):
        end = at + 12 + struct.unpack_from(">I", content, at)[0]
        if end <= len(content):
            struct.pack_into(">I", content, end - 4, zlib.crc32(content[at + 4 : end - 4]))
        at = end
    return bytes(content)


def test_mutated_files_give_pixels_or_a_reason(photo: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 2**16)  # sizes are mutated too: keep the arrays small
    monkeypatch.setattr(images, "_MAX_GIF_PIXELS", 2**16)
    rng = random.Random(7)
    palette = Image.fromarray(photo).quantize(20)
    files = [
        saved(photo, "PNG", exif=exif(6)),
        saved(palette, "PNG", transparency=3),
        saved(photo, "JPEG", exif=exif(6)),
        saved(photo, "JPEG", progressive=True),
        saved(photo, "TIFF", exif=exif(6)),
        saved(palette, "TIFF"),
        saved(photo, "WEBP", exif=exif(6)),
        saved(palette, "BMP"),
        saved(photo, "PPM"),
        saved(palette, "GIF", transparency=3),
    ]
    outcomes = {"pixels": 0, "refused": 0}
    for i in range(400):
        data = mutated(files[i % len(files)], rng)
        try:
            pixels = decode(with_true_checksums(data) if data.startswith(b"\x89PNG") else data)
        except ImageRefused as refused:
            outcomes["refused"] += 1
            assert str(refused).isprintable()
            assert 0 < len(str(refused)) < 150
        else:
            outcomes["pixels"] += 1
            assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
    assert min(outcomes.values()) > 40, outcomes  # mutations neither too weak nor too strong


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 9, 17])
def test_interlaced_png_is_decoded(width: int, make_photo: Callable[[int, int, int], Pixels]) -> None:
    """Adam7: seven passes, each a small image; Pillow's own, for libspng's is not asked."""
    pixels = make_photo(11, width, 3)
    rows = b""
    for top, left, down, across in ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)):
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[top::down, left::across] if row.size)
    rows += b"".join(b"\0" + row.tobytes() for row in pixels[1::2])
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, 11, 8, 2, 0, 0, 1))
    data = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode(data), pixels)


# --- state, threads, encoding -----------------------------------------------------------------------------------------


def test_decoding_leaves_the_process_as_it_was(photo: Pixels) -> None:
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    decode(saved(photo, "TIFF"))
    refusal(saved(photo, "TIFF")[:-9])
    assert before == (Image.MAX_IMAGE_PIXELS, list(warnings.filters))


def test_threads_give_what_one_thread_gives(photo: Pixels) -> None:
    kinds = ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM", "GIF"]
    files = [saved(np.roll(photo, i, axis=0), kind) for i in range(4) for kind in kinds]
    expected = [decode(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        for alone, together in zip(expected * 3, pool.map(decode, files * 3), strict=True):
            np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("grey", [False, True])
def test_encode_png_round_trip(photo: Pixels, grey: bool) -> None:
    pixels = photo[..., 0] if grey else photo
    data = encode_png(pixels)
    assert data == encode_png(pixels.copy())
    assert decode(data).shape == photo.shape
    np.testing.assert_array_equal(decode(data)[..., 0], photo[..., 0])


def test_encode_png_of_a_view(photo: Pixels) -> None:
    np.testing.assert_array_equal(decode(encode_png(photo[::2, ::-1])), photo[::2, ::-1])


# --- made to do harm --------------------------------------------------------------------------------------------------


def tiff_of(width: int, height: int, **more: int) -> bytes:
    """A TIFF file that claims to be so large, in one strip of 1000 bytes; `t259=8` sets a tag."""
    tags = {256: width, 257: height, 259: 1, 262: 2, 277: 3, 278: height, 273: 300, 279: 1000}
    tags |= {int(name[1:]): value for name, value in more.items()}
    directory = struct.pack("<H", len(tags) + 1) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) if tag != 258 else struct.pack("<HHII", 258, 3, 3, 8 + 2 + 14 * 12)
        for tag, value in sorted({**tags, 258: 0}.items())
    )
    return (
        (b"II\x2a\0" + struct.pack("<I", 8) + directory + bytes(4)).ljust(178)
        + struct.pack("<3H", 8, 8, 8)
        + bytes(2000)
    )


def bmp_of(width: int, height: int, bits: int = 24, compression: int = 0, colours: int = 0) -> bytes:
    sizes = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHI", 3054, 0, 0, 1078) + sizes + bytes(3000)


def jpeg_of(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG whose every scan is 10 bytes and a pass over all pixels."""
    tables = b"\xff\xdb\0\x43\0" + bytes([1] * 64)
    for kind, symbols in ((0x00, b"\0"), (0x10, b"\xe0\0")):
        body = bytes([kind, *[1] * len(symbols), *[0] * (16 - len(symbols))]) + symbols
        tables += b"\xff\xc4" + struct.pack(">H", 2 + len(body)) + body
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\1\x11\0"
    scan = b"\xff\xda\0\x08\1\1\0"
    return b"\xff\xd8" + tables + frame + scan + bytes(11) + (scan + b"\1\x3f\0" + bytes(8)) * scans + b"\xff\xd9"


def gif_of(width: int, height: int, before: bytes = b"", frames: int = 1) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x4c\x01\0"
    return b"GIF89a" + struct.pack("<HHB2x6x", width, height, 0x80) + before + frame * frames + b";"


def webp_of(width: int, height: int) -> bytes:
    data = bytearray(saved(Image.new("RGB", (10, 10)), "WEBP", lossless=True))
    data[21:25] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return bytes(data)


HUGE = "too many pixels"
MANY = "chunks, segments or blocks"
HARMFUL: dict[str, tuple[Callable[[], bytes], str]] = {
    "png 30000 x 30000": (lambda: png(30_000, 30_000, 8, 2, b""), HUGE),
    "png 2^31 - 1 wide": (lambda: png(2**31 - 1, 1, 8, 2, b""), HUGE),
    "png 2^31 - 1 high": (lambda: png(1, 2**31 - 1, 1, 0, b""), HUGE),
    "png of all that a size can be": (lambda: png(2**32 - 1, 2**32 - 1, 8, 6, b""), HUGE),
    "png of no size": (lambda: png(0, 0, 8, 2, b""), "damaged"),
    "png 1 px high, wider than Pillow can": (lambda: png(2**29, 1, 8, 0, b""), "not enough memory|truncated|damaged"),
    "png of a million chunks": (lambda: png(9, 9, 8, 2, b"", png_chunk(b"tEXt", b"") * 1001), MANY),
    "jpeg 65535 x 65535": (lambda: jpeg_of(65535, 65535, 1), HUGE),
    "jpeg of 10,000 scans": (lambda: jpeg_of(20_000, 20_000, 10_000), "more than 256 scans"),
    "jpeg of a million segments": (lambda: b"\xff\xd8" + b"\xff\xe1\0\x02" * 1001 + b"\xff\xd9", MANY),
    "jpeg of 20 MB of fill bytes": (lambda: b"\xff\xd8" + b"\xff" * 20_000_000 + b"\xff\xd9", "fill bytes"),
    "webp 16384 x 16384": (lambda: webp_of(16384, 16384), HUGE),
    "tiff 2^16 x 2^16": (lambda: tiff_of(2**16, 2**16), HUGE),
    "tiff 2^32 - 1 x 2^32 - 1": (lambda: tiff_of(2**32 - 1, 2**32 - 1), HUGE),
    "tiff 2^31 wide": (lambda: tiff_of(2**31, 1), HUGE),
    "tiff of no size": (lambda: tiff_of(0, 10), "damaged|truncated"),
    "tiff of a strip of 4 GB": (lambda: tiff_of(10, 10, t279=2**32 - 1, t259=5), "truncated|damaged"),
    "tiff of a strip of 4 GB of rows": (lambda: tiff_of(10, 10, t278=2**32 - 1, t259=8), "truncated|damaged"),
    "tiff whose directory is endless": (lambda: b"II\x2a\0\x08\0\0\0\xff\xff" + bytes(12 * 65535 + 4), "truncated"),
    "tiff of 65535 samples a pixel": (lambda: tiff_of(10, 10, t277=65535), "damaged|truncated"),
    **{
        f"tiff of tiles {side} x {down}, {name}": (
            lambda side=side, down=down, kind=kind: tiff_of(9, 9, t322=side, t323=down, t324=300, t325=99, t259=kind),
            f"tiles of {side} x {down}",
        )
        for side, down in ((2**14, 2**14), (16, 2**24), (2**24, 16), (2**30, 2**30), (2**32 - 1, 2**32 - 1))
        for name, kind in (("plain", 1), ("LZW", 5), ("deflate", 8), ("PackBits", 32773))
    },
    "bmp 30000 x 30000": (lambda: bmp_of(30_000, 30_000), HUGE),
    "bmp 2^31 - 1 wide": (lambda: bmp_of(2**31 - 1, 1), HUGE),
    "bmp upside down, 2^31 high": (lambda: bmp_of(1, -(2**31)), HUGE),
    "bmp of negative width": (lambda: bmp_of(-5, 5), HUGE),
    "bmp of no size": (lambda: bmp_of(0, 0), "damaged|truncated"),
    "bmp of 2^31 - 1 colours": (lambda: bmp_of(9, 9, 8, 0, 2**31 - 1), "damaged"),
    "bmp whose runs end early": (lambda: bmp_of(3000, 3000, 8, 1), "damaged|truncated"),
    "ppm 30000 x 30000": (lambda: b"P6 30000 30000 255 ", HUGE),
    "ppm of 12 digits": (lambda: b"P6 999999999999 1 255 ", "damaged"),
    "ppm of a million digits": (lambda: b"P6 " + b"9" * 1_000_000 + b" 1 255 ", "header"),
    "ppm of negative width": (lambda: b"P6 -5 5 255 " + bytes(75), "damaged"),
    "ppm of a comment of 10 MB": (lambda: b"P6\n#" + b"x" * 10_000_000 + b"\n2 2 255 " + bytes(12), "header"),
    "ppm of a million comments": (lambda: b"P5 " + b"#x\n" * 1_000_000 + b"2 2 255 " + bytes(12), "header"),
    "ppm that is all comments": (lambda: b"P6 " + b"#x\n" * 1_000_000, "header"),
    "plain ppm of a million comments": (lambda: b"P3 90 90 255 " + b"#x\n" * 1_000_000, "comments"),
    "plain ppm of blanks": (lambda: b"P3 9 9 255 " + b" " * 10_000_000, "damaged"),
    "plain ppm of one number": (lambda: b"P3 9 9 255 " + b"1" * 10_000_000, "damaged"),
    "gif 65535 x 65535": (lambda: gif_of(65535, 65535), HUGE),
    "gif of 100,000 frames": (lambda: gif_of(9, 9, frames=100_000), "animated: 100000 frames"),
    "gif of a comment in a million blocks": (
        lambda: gif_of(9, 9, b"!\xfe" + b"\x01x" * 1001 + b"\0"),
        MANY,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HARMFUL)
def test_files_made_to_do_harm_are_refused_at_once(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, reason = HARMFUL[what]
    if reason == MANY:  # a million of them take seconds to make
        monkeypatch.setattr(images, "_MAX_PARTS", 1000)
    data, began = make(), time.thread_time()
    with pytest.raises(ImageRefused, match=reason) as refused:
        decode(data)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 150
    assert time.thread_time() - began < 5


@pytest.mark.parametrize(("width", "height"), [(2**14, 2**12), (2**25, 1), (1, 2**25)])
@pytest.mark.parametrize("claimed", ["png", "tiff", "bmp", "ppm"])
def test_a_size_that_is_only_claimed_costs_little(claimed: str, width: int, height: int) -> None:
    data = {
        "png": png(width, height, 8, 2, b"x"),
        "tiff": tiff_of(width, height, t259=8),
        "bmp": bmp_of(width, height),
        "ppm": b"P6 %d %d 255 " % (width, height),
    }[claimed]
    assert re.match("truncated|damaged", refusal(data))


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_compressed_metadata_is_never_decompressed(
    photo: Pixels, kind: str | bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = {b"iCCP": b"x\0\0", b"zTXt": b"x\0\0", b"iTXt": b"x\0\1\0\0\0"}[kind] + zlib.compress(bytes(50_000_000), 9)
    data = saved(photo, "PNG")
    monkeypatch.setattr(codecs, "libspng", lambda _: None)
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(decode(data[:33] + png_chunk(kind, bomb) + data[33:]), photo)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",  # Pillow would run Ghostscript
        b"\xc5\xd0\xd3\xc6" + bytes(28),  # the same in binary
        b"8BPS\0\1" + bytes(20),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\xd7\xcd\xc6\x9a" + bytes(40),  # WMF
        b"\0\0\1\0" + bytes(40),  # ICO
        b"icns" + bytes(40),
        b"\0\0\0\x1cftypavif" + bytes(40),
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"II\x2b\0\x08\0\0\0",  # BigTIFF
        b"DDS " + bytes(124),
        b"SIMPLE  =                    T",
        b"\x89HDF\r\n\x1a\n",
        b"#!/bin/sh\n",
        b"\x80\x04cos\nsystem\n",
    ],
)  # fmt: skip
def test_other_formats_are_never_tried(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", None)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert refusal(data).startswith("not an image that curate reads")


def test_large_pictures_are_decoded_one_at_a_time(photo: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work, most, data = [0], [0], saved(photo, "BMP")
    real = images._pixels

    def slow(*given: Any) -> Pixels:
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        time.sleep(0.01)
        at_work[0] -= 1
        return real(*given)

    monkeypatch.setattr(images, "_pixels", slow)
    for limit, expected in ((24 * 36, 4), (24 * 36 - 1, 1)):
        monkeypatch.setattr(images, "_LARGE", limit)
        most[0] = 0
        with ThreadPoolExecutor(4) as pool:
            assert all((pixels == photo).all() for pixels in pool.map(decode, [data] * 8))
        assert (most[0] > 1) == (expected > 1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_bands_do_not_show(photo: Pixels, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(photo).convert(mode)
    data = saved(image, "TIFF" if mode != "LA" else "PNG")
    monkeypatch.setattr(codecs, "libspng", lambda _: None)
    monkeypatch.setattr(images, "_BAND", 36 * 5)  # 24 rows: four bands of five, one of four
    np.testing.assert_array_equal(decode(data), np.array(image.convert("RGB")))
    if mode == "RGBA":
        image.putpixel((3, 23), (1, 2, 3, 254))
        assert refusal(saved(image, "TIFF")) == "transparent"


def test_what_memory_does_not_hold_is_a_reason(photo: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(images, "_pixels", too_much)
    assert refusal(saved(photo, "PNG")) == "too many pixels: there is not enough memory for them"


def test_suffixes_are_lower_case_endings() -> None:
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in SUFFIXES)
    assert {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".gif"} <= SUFFIXES


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_that_lacks_strips_is_truncated(photo: Pixels, compression: str | None) -> None:
    """Pillow leaves what no strip holds black."""
    data = bytearray(saved(photo, "TIFF", compression=compression))
    at = struct.unpack_from("<I", data, 4)[0]
    places = range(at + 2, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], 12)
    (height,) = (place for place in places if struct.unpack_from("<H", data, place)[0] == 257)
    (rows,) = (place for place in places if struct.unpack_from("<H", data, place)[0] == 278)
    struct.pack_into("<HII", data, rows + 2, 4, 1, len(photo))
    np.testing.assert_array_equal(decode(bytes(data)), photo)
    struct.pack_into("<HII", data, height + 2, 4, 1, 5 * len(photo))
    assert refusal(bytes(data)) == "truncated: 1 of 5 strips or tiles"
