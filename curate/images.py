"""Bytes of an image file -> pixels, or the reason why not.

Pixels are uint8 sRGB, axes HWC, upright. The policy, in one place:

    accepted   8-bit RGB; grey and 1-bit (stacked to RGB); palette; alpha that is opaque everywhere (dropped);
               EXIF orientation (applied); trailing bytes after the end of the image (ignored)
    refused    more than 8 bits a sample, CMYK, YCCK, LAB, transparency, animations and pages, truncated and damaged
               files, more than MAX_PIXELS pixels, and what no photograph has but a file made to do harm: a million
               chunks or segments, hundreds of scans, tiles far larger than the picture

ICC profiles are ignored, as the field does: the numbers in the file are taken for sRGB.

No other format is ever tried: none of Pillow's readers that run other programs (EPS) or unpack containers is reached.
Metadata is never decompressed. A picture's memory is bounded by its pixels, and pictures of more than 2^26 pixels are
decoded one at a time: at most 10 bytes a pixel while Pillow decodes, 3 when it is done.

Pillow decodes, but does not notice a 16-bit PNG or TIFF, a missing end or a wrong checksum, and it warns about odd
metadata and large images through process-wide state, which a thread pool cannot redirect. So each format has an opener
that walks the file's segments, refuses what Pillow would let pass, and gives Pillow the segments that make pixels only.

Nearly all training images are 8-bit PNG files, and decoding them is what score and training wait for: `curate.codecs`
has faster ways than Pillow's. What they do not take goes to Pillow, whose word is final. Ingest need not see pixels to
know that they are there: `size` inflates such files and undoes no filter. Cells of a packed store may be lossless WebP
files: libwebp without Pillow, which takes them for animations, is a sixth faster.
"""

import io
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from curate import codecs
from curate.errors import DataError, one_line

__all__ = ["MAX_BYTES", "MAX_PIXELS", "SUFFIXES", "ImageRefused", "decode", "encode_png", "size"]

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)  # lower-case file endings regarded as images in folders

MAX_PIXELS = 2**29  # height x width: 1.5 GiB of RGB
MAX_BYTES = 4 * MAX_PIXELS + 2**20  # of a file: uncompressed, with four samples a pixel

_MAX_GIF_PIXELS = 2**26  # Pillow may warn about a GIF of more than 89 Mpx before we could ask
_MAX_PARTS = 2**20  # chunks, segments or blocks of one file: real ones have thousands
_MAX_SCANS = 256  # of a progressive JPEG, each of which may take a few bytes and a pass over all pixels; usual are ten
_MAX_FILL = bytes([0xFF]) * 4096  # fill bytes between JPEG segments, which Pillow skips one by one; usual are none
_MAX_TILE = 2**24  # pixels of a TIFF's tile, where the picture has fewer
_LARGE = 2**26  # pixels from which on pictures are decoded one at a time
_BAND = 2**22  # pixels that are turned into RGB at a time
_MODES = frozenset(("1", "L", "P", "RGB", "LA", "PA", "RGBA"))  # Pillow modes that become RGB without loss
_WIDE_MODES = {"I": "16-bit samples", "F": "float samples"}

# What Pillow's readers raise for bad input, found by mutating files of all formats.
_BAD_INPUT = (OSError, OverflowError, SyntaxError, ValueError)

_one_large = threading.Lock()

_Answer = TypeVar("_Answer")

# EXIF orientation -> (transpose, then flip rows, then flip columns) for an upright image; 1 and unknown values: nothing
_UPRIGHT = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class ImageRefused(DataError):  # noqa: N818 - it is an answer, and reads as one: "except ImageRefused as reason"
    """The bytes are no image that curate takes; `str()` is the reason, one short line fit for a table."""


class _Opened(NamedTuple):
    image: ImageFile  # header read, pixels not yet
    orientation: int  # EXIF, 1..8; anything else counts as upright
    faster: Callable[[], npt.NDArray[np.uint8] | None] | None = None  # the pixels as Pillow has them, or None: ask it
    is_whole: Callable[[], bool] | None = None  # whether there certainly is each of its pixels, opaque; else ask them


def decode(data: bytes, *, whole: bool = False) -> npt.NDArray[np.uint8]:
    """The pixels of an image file: (height, width, 3) uint8 RGB, C-contiguous, writable, upright.

    Of a `whole` file it is known that this function takes it, and by a hash that not a byte has changed since: its
    checksums are not looked at again, and it is decoded faster.

    Raises ImageRefused with the reason if the file is not one that the policy above accepts. May be called from
    several threads at once.
    """
    pixels = _of_whole(data) if whole else None
    return _taken(data, lambda opened: _upright(_pixels(opened), opened.orientation)) if pixels is None else pixels


def size(data: bytes) -> tuple[int, int]:
    """Height and width (px, upright) of an image file that `decode` takes, every pixel of it; raises as it does."""
    return _taken(data, _proven_size)


def _taken(data: bytes, look: Callable[[_Opened], _Answer]) -> _Answer:
    """What `look` says of a file that is accepted so far; whatever else is wrong with it, as ImageRefused."""
    opener = _opener(data)
    try:
        opened = opener(data)
        _refuse_large(opened.image.size, MAX_PIXELS)
        _refuse_mode(opened.image.mode)
        width, height = opened.image.size
        with _one_large if width * height > _LARGE else nullcontext():
            return look(opened)
    except Image.DecompressionBombError:
        raise ImageRefused("too many pixels: more than Pillow's own limit for this format") from None
    except MemoryError:
        raise ImageRefused("too many pixels: there is not enough memory for them") from None
    except _BAD_INPUT as error:
        raise ImageRefused(_reason(error)) from None


def _of_whole(data: bytes) -> npt.NDArray[np.uint8] | None:
    """The pixels, upright, of a file that is known to be whole, where that makes it faster; else None."""
    opener = _opener(data)
    try:
        if opener is _open_png:
            return _of_whole_png(data)
        if opener is _open_jpeg:
            return _of_whole_jpeg(data)
    except (ImageRefused, *_BAD_INPUT):
        pass  # it is not whole after all: who looks at everything says what is wrong
    return None


def _proven_size(opened: _Opened) -> tuple[int, int]:
    width, height = opened.image.size
    if opened.is_whole is None or not opened.is_whole():
        height, width, _ = _pixels(opened).shape
    return (width, height) if _UPRIGHT.get(opened.orientation, (False,))[0] else (height, width)


def _pixels(opened: _Opened) -> npt.NDArray[np.uint8]:
    image = opened.image
    if opened.faster is not None and (pixels := opened.faster()) is not None:
        return pixels
    if isinstance(image, TiffImageFile):
        # This reader checks Pillow's own, lower pixel limit when it allocates; it does not, if that is done.
        image.im = Image.new(image.mode, image.size).im
    image.load()
    return _opaque_rgb(image)


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """`pixels` as a PNG file: (H, W, 3) RGB or (H, W) grey, uint8.

    The same pixels give the same bytes, as long as Pillow and its zlib are the same.
    """
    assert pixels.dtype == np.uint8, pixels.dtype
    assert pixels.ndim == 2 or pixels.shape[2:] == (3,), pixels.shape
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=6)
    return file.getvalue()


# --- what all formats share -------------------------------------------------------------------------------------------


def _opener(data: bytes) -> Callable[[bytes], _Opened]:
    if not data:
        raise ImageRefused("empty file")
    for magic, opener in _OPENERS:
        if magic.match(data):
            return opener
    raise ImageRefused("not an image that curate reads: PNG, JPEG, WEBP, TIFF, BMP, PPM, GIF")


def _refuse_large(size: tuple[int, int], limit: int) -> None:
    width, height = size
    if width * height > limit:
        raise ImageRefused(f"too many pixels: {width} x {height}; the limit is {limit}")


def _refuse_mode(mode: str) -> None:
    if mode not in _MODES:
        raise ImageRefused(_WIDE_MODES.get(mode, mode))


def _opaque_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The pixels as RGB, a band after the other: Pillow takes 4 bytes a pixel for each step of a conversion."""
    if image.mode in ("P", "PA") and image.palette is None:
        raise ImageRefused("damaged: no palette")
    width, height = image.size
    rgb, rows = np.empty((height, width, 3), np.uint8), max(1, _BAND // max(1, width))
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        if band.has_transparency_data:
            band = band.convert("RGBA")
            if band.getchannel("A").getextrema() != (255, 255):
                raise ImageRefused("transparent")
        rgb[top : top + rows] = np.asarray(band.convert("RGB"))
    return rgb


def _upright(pixels_HW3: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Turned and mirrored as EXIF says; C-contiguous."""
    if orientation not in _UPRIGHT:
        return pixels_HW3
    transposed, rows, columns = _UPRIGHT[orientation]
    turned = pixels_HW3.transpose(1, 0, 2) if transposed else pixels_HW3
    return np.ascontiguousarray(turned[:: -1 if rows else 1, :: -1 if columns else 1])


def _reason(error: BaseException) -> str:
    text = one_line(error)
    return f"{'truncated' if 'truncated' in text.lower() else 'damaged'}: {text}"


def _unpack(layout: str, data: bytes, at: int) -> tuple[int, ...]:
    """Integers at byte `at`; ImageRefused if the file ends before."""
    if at + struct.calcsize(layout) > len(data):
        raise ImageRefused(f"truncated: {len(data)} bytes, the header goes on")
    return struct.unpack_from(layout, data, at)


def _inside(end: int, data: bytes, what: str) -> int:
    """`end`, after a check that the file has that many bytes; else ImageRefused says that it ends within `what`."""
    if end > len(data):
        raise ImageRefused(f"truncated: {len(data)} bytes, {what} needs {end}")
    return end


def _counted(parts: int) -> int:
    """One more than `parts`, if a file may have so many."""
    if parts == _MAX_PARTS:
        raise ImageRefused(f"damaged: more than {_MAX_PARTS} chunks, segments or blocks")
    return parts + 1


# --- PNG --------------------------------------------------------------------------------------------------------------

_PNG_PIXELS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
_PNG_PLAIN = frozenset((codecs.GREY, codecs.RGB, codecs.RGBA))


def _open_png(data: bytes) -> _Opened:
    """Pillow reads 16-bit colour as 8-bit, takes a file without its end, and looks at no checksum of pixels."""
    kept, orientation, plain, colours = [memoryview(data)[:8]], 1, False, -1
    for kind, at, end in _png_chunks(data, checked=True):
        if kind == b"IHDR":
            depth, colours, interlaced = _unpack(">8xBBxxB", data, at + 8)
            if depth == 16:
                raise ImageRefused("16-bit samples")
            plain = at == 8 and depth == 8 and colours in _PNG_PLAIN and not interlaced
        if kind in (b"PLTE", b"tRNS"):
            plain = False
        if kind == b"acTL":
            _refuse_frames(_unpack(">I", data, at + 8)[0])
        if kind == b"eXIf":
            orientation = _exif_orientation(data[at + 8 : end - 4])
        if kind in _PNG_PIXELS:
            kept.append(memoryview(data)[at:end])
    png = b"".join(kept)
    image = PngImageFile(io.BytesIO(png))
    if not plain:
        return _Opened(image, orientation)
    (width, height), faster = image.size, partial(codecs.libspng, png)
    if colours == codecs.RGBA:
        return _Opened(image, orientation, faster)
    compressed = [chunk[8:-4] for chunk in kept[2:-1]]  # between the header and the end there are no others
    is_whole = partial(codecs.is_whole, compressed, height, width, colours)
    return _Opened(image, orientation, faster, is_whole)


def _of_whole_png(data: bytes) -> npt.NDArray[np.uint8] | None:
    """Checksums are not looked at, nor what lies between the chunks of pixels, but for its orientation."""
    compressed, orientation = [], 1
    for kind, at, end in _png_chunks(data, checked=False):
        if kind == b"IDAT":
            compressed.append(memoryview(data)[at + 8 : end - 4])
        elif kind == b"eXIf":
            orientation = _exif_orientation(data[at + 8 : end - 4])
        elif kind in (b"PLTE", b"tRNS"):
            return None
    width, height, depth, colours, interlaced = _unpack(">IIBBxxB", data, 16)
    if depth != 8 or colours not in (codecs.GREY, codecs.RGB) or interlaced:
        return None
    pixels = codecs.whole_png(data[:33], compressed, height, width, colours)
    return None if pixels is None else _upright(pixels, orientation)


def _png_chunks(data: bytes, checked: bool) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of every chunk up to IEND, with its length and checksum; refuses a cut or damaged one.

    Checksums are looked at if it is `checked`.
    """
    at, kind, parts = 8, b"", 0
    while kind != b"IEND":
        parts = _counted(parts)
        length = _unpack(">I4x", data, at)[0]
        kind = data[at + 4 : at + 8]
        name = one_line(kind.decode("latin-1"))
        end = _inside(at + 12 + length, data, f"the {name} chunk")
        if checked and (zlib.crc32(memoryview(data)[at + 4 : end - 4]),) != _unpack(">I", data, end - 4):
            raise ImageRefused(f"damaged: wrong checksum in the {name} chunk")
        yield kind, at, end
        at = end


def _refuse_frames(num_frames: int) -> None:
    if num_frames > 1:
        raise ImageRefused(f"animated: {num_frames} frames")


# --- JPEG -------------------------------------------------------------------------------------------------------------

_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # not a stuffed zero, a restart or a fill byte
_JPEG_EOI, _JPEG_SCAN = 0xD9, 0xDA
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..15
_JPEG_EXIF = 0xE1
_JPEG_METADATA = frozenset((*range(0xE1, 0xF0), 0xFE)) - {0xEE}  # APP1..15, comments; Adobe's APP14 tells the colours


def _open_jpeg(data: bytes) -> _Opened:
    """Pillow takes a file whose tail was lost and filled with zeros, and a photograph with a preview (MPO) for two."""
    kept, orientation, begin, scans = [], 0, 0, 0
    for marker, at, end in _jpeg_segments(data):
        scans += marker == _JPEG_SCAN
        if scans > _MAX_SCANS:
            raise ImageRefused(f"damaged: more than {_MAX_SCANS} scans")
        if marker in _JPEG_FRAMES and (bits := _unpack(">B", data, at + 4)[0]) != 8:
            raise ImageRefused(f"{bits}-bit samples")
        if marker == _JPEG_EXIF and not orientation and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data[at + 4 : end])
        if marker in _JPEG_METADATA:
            if begin < at:
                kept.append(memoryview(data)[begin:at])
            begin = end
        if marker == _JPEG_EOI:
            kept.append(memoryview(data)[begin:end])
    jpeg = b"".join(kept)
    if _MAX_FILL in jpeg:
        raise ImageRefused(f"damaged: {len(_MAX_FILL)} fill bytes")
    return _Opened(JpegImageFile(io.BytesIO(jpeg)), orientation)


def _of_whole_jpeg(data: bytes) -> npt.NDArray[np.uint8] | None:
    """libjpeg-turbo's, without Pillow; CMYK is what Pillow refuses, and large pictures have to wait for each other."""
    opened = _open_jpeg(data)
    width, height = opened.image.size
    if opened.image.mode not in ("L", "RGB") or width * height > _LARGE:
        return None
    assert isinstance(opened.image.fp, io.BytesIO)
    pixels = codecs.libjpeg(opened.image.fp.getvalue())
    return None if pixels is None else _upright(pixels, opened.orientation)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of every segment up to the end marker; what lies between two is a scan's compressed data."""
    marker, end, parts = 0, 2, 0
    while marker != _JPEG_EOI:
        parts = _counted(parts)
        found = _JPEG_MARKER.search(data, end)
        if found is None:
            raise ImageRefused("truncated: no end marker")
        at, marker, end = found.start(), data[found.start() + 1], found.end()
        if marker != _JPEG_EOI:
            end = _inside(end + max(2, _unpack(">H", data, end)[0]), data, "a segment")
        yield marker, at, end


# --- TIFF, and EXIF, which is one -------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _BITS_PER_SAMPLE, _COMPRESSION, _ORIENTATION, _SAMPLE_FORMAT = 256, 257, 258, 259, 274, 339
_STRIP_OFFSETS, _SAMPLES, _STRIP_ROWS, _PLANES = 273, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS = 322, 323, 324
_TILE_SIDES = (_TILE_WIDTH, _TILE_HEIGHT)
_TIFF_SCALARS = frozenset((256, 257, 259, 262, 266, 277, 278, 284, 317, 322, 323, 531))  # size, colours, strips, tiles
_TIFF_LISTS = frozenset((258, 273, 279, 320, 324, 325, 338, 339, 347, 529, 530, 532))  # bits, offsets, palette, tables
_TIFF_PIXELS = _TIFF_SCALARS | _TIFF_LISTS
_TIFF_BYTES = {1: 1, 3: 2, 4: 4, 5: 8, 7: 1}  # BYTE, SHORT, LONG, RATIONAL, UNDEFINED: all that these tags may be
_TIFF_INTEGERS = {3: "H", 4: "I"}  # SHORT, LONG
_TIFF_COMPRESSIONS = frozenset((1, 5, 7, 8, 32773, 32946))  # none, LZW, JPEG, deflate, PackBits, old deflate; no fax


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of a TIFF directory."""

    kind: int  # 3 SHORT, 4 LONG, ...
    num_values: int
    value: bytes  # 4 bytes: the values, or the offset of where they lie
    raw: bytes  # all 12 bytes


def _open_tiff(data: bytes) -> _Opened:
    """Pillow reads 16-bit colour as 8-bit, and warns of every oddity in the directory: hence a shorter directory."""
    order = _byte_order(data)
    at = _unpack(f"{order}I", data, 4)[0]
    entries, end = _tiff_directory(data, at, order)
    if _unpack(f"{order}I", data, end) != (0,):
        raise ImageRefused("several pages")
    if (compression := _tiff_integer(entries, _COMPRESSION, order)) not in _TIFF_COMPRESSIONS:
        raise ImageRefused(f"TIFF compression {compression}")
    _check_tiff_values(data, entries, order)
    _check_tiff_parts(entries, order)
    kept = [entry.raw for tag, entry in sorted(entries.items()) if tag in _TIFF_PIXELS]
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    # Written over the old one: nothing moves, and the file gets no longer, so that missing pixels stay missing.
    image = TiffImageFile(io.BytesIO(data[:at] + directory + data[at + len(directory) :]))
    _refuse_samples(image)
    _refuse_tiles(image)
    return _Opened(image, _tiff_integer(entries, _ORIENTATION, order))


def _byte_order(data: bytes) -> str:
    return "<" if data[:2] == b"II" else ">"


def _tiff_directory(data: bytes, at: int, order: str) -> tuple[dict[int, _Entry], int]:
    """The entries by tag, the first of each, of the directory at byte `at`; and where it ends and names the next."""
    count = _unpack(f"{order}H", data, at)[0]
    end = _inside(at + 2 + 12 * count, data, "the TIFF directory")
    entries: dict[int, _Entry] = {}
    for start in range(at + 2, end, 12):
        tag, kind, num_values = struct.unpack_from(f"{order}HHI", data, start)
        entries.setdefault(tag, _Entry(kind, num_values, data[start + 8 : start + 12], data[start : start + 12]))
    return entries, end


def _check_tiff_values(data: bytes, entries: dict[int, _Entry], order: str) -> None:
    """Refuse values of the wrong type or number, or outside the file, about which Pillow would warn."""
    total = 0
    for tag in sorted(entries.keys() & _TIFF_PIXELS):
        entry = entries[tag]
        size = entry.num_values * _TIFF_BYTES.get(entry.kind, 0)
        if size == 0 or (tag in _TIFF_SCALARS and entry.num_values != 1):
            raise ImageRefused(f"damaged: TIFF tag {tag} has {entry.num_values} values of type {entry.kind}")
        if size > 4:
            total = _inside(total + size, data, "the TIFF directory")
            _inside(_unpack(f"{order}I", entry.value, 0)[0] + size, data, f"TIFF tag {tag}")


def _check_tiff_parts(entries: dict[int, _Entry], order: str) -> None:
    """Refuse fewer strips or tiles than the image is made of: Pillow would leave the rest black."""

    def value(tag: int, default: int = 1) -> int:
        return _tiff_integer(entries, tag, order) if tag in entries else default

    width, height = value(_WIDTH), value(_HEIGHT)
    if _TILE_OFFSETS in entries:
        offsets = entries[_TILE_OFFSETS].num_values
        parts = -(-width // max(1, value(_TILE_WIDTH))) * -(-height // max(1, value(_TILE_HEIGHT)))
    else:
        offsets = entries[_STRIP_OFFSETS].num_values if _STRIP_OFFSETS in entries else 0
        parts = -(-height // max(1, value(_STRIP_ROWS, height)))
    if value(_PLANES) == 2:
        parts *= value(_SAMPLES)
    if offsets < parts:
        raise ImageRefused(f"truncated: {offsets} of {parts} strips or tiles")


def _refuse_samples(image: TiffImageFile) -> None:
    bits = max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
    if set(image.tag_v2.get(_SAMPLE_FORMAT, (1,))) != {1}:
        raise ImageRefused(f"{bits}-bit float or signed samples")
    if bits > 8:
        raise ImageRefused(f"{bits}-bit samples")


def _refuse_tiles(image: TiffImageFile) -> None:
    """libtiff decodes whole tiles, however little of one is in the picture."""
    (width, height), (across, down) = image.size, (image.tag_v2.get(tag, 0) for tag in _TILE_SIDES)
    if across * down > max(_MAX_TILE, width * height):
        raise ImageRefused(f"damaged: tiles of {across} x {down} in a picture of {width} x {height}")


def _tiff_integer(entries: dict[int, _Entry], tag: int, order: str) -> int:
    """The integer of a tag whose default is 1: compression (none), orientation (upright)."""
    entry = entries.get(tag)
    if entry is None or entry.kind not in _TIFF_INTEGERS:
        return 1
    return _unpack(order + _TIFF_INTEGERS[entry.kind], entry.value, 0)[0]


def _exif_orientation(exif: bytes) -> int:
    """The orientation that an EXIF block tells; 1 (upright) if it tells none or is damaged: the pixels are whole."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = _byte_order(tiff)
    try:
        entries, _ = _tiff_directory(tiff, _unpack(f"{order}I", tiff, 4)[0], order)
    except ImageRefused:
        return 1
    return _tiff_integer(entries, _ORIENTATION, order)


# --- GIF, WEBP, PPM, BMP ----------------------------------------------------------------------------------------------


def _open_gif(data: bytes) -> _Opened:
    width, height, flags = _unpack("<6xHHB", data, 0)
    _refuse_large((width, height), _MAX_GIF_PIXELS)
    at, num_frames, parts = 13 + _gif_palette_bytes(flags), 0, 0
    while (kind := _unpack("B", data, at)[0]) != ord(";"):
        parts = _counted(parts)
        if kind == ord(","):
            num_frames += 1
            left, top, frame_width, frame_height, flags = _unpack("<HHHHB", data, at + 1)
            if left + frame_width > width or top + frame_height > height:
                raise ImageRefused("damaged: a frame reaches beyond the picture")
            at = _after_gif_blocks(data, at + 11 + _gif_palette_bytes(flags))
        elif kind == ord("!"):
            at = _after_gif_blocks(data, at + 2)
        else:
            raise ImageRefused("damaged: no GIF block where one should be")
    _refuse_frames(num_frames)
    return _Opened(GifImageFile(io.BytesIO(data)), 1)


def _gif_palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_gif_blocks(data: bytes, at: int) -> int:
    parts = 0
    while size := _unpack("B", data, at)[0]:
        at, parts = at + 1 + size, _counted(parts)
    return at + 1


def _open_webp(data: bytes) -> _Opened:
    _inside(_unpack("<I", data, 4)[0] + 8, data, "the RIFF container")
    image = WebPImageFile(io.BytesIO(data))
    _refuse_frames(image.n_frames)
    lossless = data[12:16] == b"VP8L"  # and nothing else; of lossy files decoders round differently
    return _Opened(
        image, _exif_orientation(image.info.get("exif", b"")), partial(codecs.libwebp, data) if lossless else None
    )


_PPM_TWO, _PPM_THREE = (re.compile(rb"P.(?:(?:\s|#[^\r\n]*+[\r\n])*+[0-9.+-]++){%d}" % count) for count in (2, 3))
_MAX_PPM_HEADER = 2**16  # bytes, with comments: Pillow reads them one by one
_MAX_PPM_COMMENTS = 1000  # in plain files, which Pillow copies for each


def _open_ppm(data: bytes) -> _Opened:
    """Pillow scales colours of up to 16 bits to 8; the largest value is told only to its decoder."""
    header = (_PPM_TWO if data[1:2] in b"14" else _PPM_THREE).match(data)
    if (header.end() if header else len(data)) > _MAX_PPM_HEADER:
        raise ImageRefused(f"damaged: no header, or one of more than {_MAX_PPM_HEADER} bytes")
    if data[1:2] in b"123" and data.count(b"#") > _MAX_PPM_COMMENTS:
        raise ImageRefused(f"damaged: more than {_MAX_PPM_COMMENTS} comments")
    image = PpmImageFile(io.BytesIO(data))
    args = image.tile[0].args
    max_value = args[1] if isinstance(args, tuple) else 255
    if max_value > 255:
        raise ImageRefused(f"{max_value.bit_length()}-bit samples")
    return _Opened(image, 1)


def _open_bmp(data: bytes) -> _Opened:
    return _Opened(BmpImageFile(io.BytesIO(data)), 1)


_OPENERS = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _open_png),
    (re.compile(rb"\xff\xd8\xff"), _open_jpeg),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _open_webp),
    (re.compile(rb"II\x2a\0|MM\0\x2a"), _open_tiff),
    (re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL), _open_bmp),
    (re.compile(rb"P[1-6f]\s"), _open_ppm),
    (re.compile(rb"GIF8[79]a"), _open_gif),
)
