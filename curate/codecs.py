"""Decoders that are faster than Pillow, for the files that curate reads most; None where one does not take a file.

Nearly all training images are 8-bit PNG files, and decoding them is what most commands wait for. Two thirds of
libspng's time are its zlib's: where a file is known to be whole, libdeflate inflates it in half of that, and libspng
gets the same rows not compressed. On one core, Mpx/s of photographs: libspng 59, both together 76; inflating alone, by
zlib-ng, 126. Of JPEG files Pillow takes 1.4 to 1.7 times as long as libjpeg-turbo, which it asks.

All of these leave Python's lock to other threads. Rust's png crate (through kornia_rs 0.2) takes 30 ms where libspng
takes 46 and both together 36, but keeps the lock: two threads decode no faster than one. imagecodecs' binding of libpng
is as fast as libspng, but a damaged file can bring the process down in it.
"""

import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt

__all__ = ["GREY", "RGB", "RGBA", "is_whole", "libjpeg", "libspng", "libwebp", "whole_png"]

GREY, RGB, RGBA = 0, 2, 6  # PNG's colour types
_SAMPLES = {GREY: 1, RGB: 3}  # a pixel
_FILTERS = 5  # a row's filter is 0 to 4
_BLOCK = 65_535  # bytes of a block that deflate does not compress
_BLOCK_HEADER = 5
_ROOM = 2**25  # bytes of rows for which a thread keeps room: new memory takes as long as a third of the work in it

_Pixels = npt.NDArray[np.uint8]

_kept = threading.local()


def libspng(png: bytes | _Pixels) -> _Pixels | None:
    """The pixels of a grey, RGB or RGBA file as RGB; None if libspng does not take it, or it has transparent pixels.

    It refuses more than Pillow does, such as data that ends in the last row, and nothing that Pillow refuses gets
    through.
    """
    try:
        pixels: _Pixels = imagecodecs.spng_decode(png)  # type: ignore[arg-type] # any buffer
    except imagecodecs.SpngError:
        return None
    return _stacked(pixels) if pixels.ndim == 2 else _opaque(pixels)


def whole_png(header: bytes, compressed: Sequence[memoryview], height: int, width: int, colours: int) -> _Pixels | None:
    """The pixels of an 8-bit PNG file, GREY or RGB and not interlaced, that is known to be whole, as RGB; or None.

    `header` is its first 33 bytes, `compressed` are the data in its chunks. The file is made again around the same
    rows, not compressed: their checksum is there already, in the last four bytes of the data.
    """
    data, length = b"".join(compressed), height * _row(width, colours)
    rows = _inflated(data, length, imagecodecs.deflate_decode) if length <= _ROOM else None
    if rows is None:
        return None
    whole, rest = divmod(length, _BLOCK)
    end = b"\0\0\0\0IEND\xaeB`\x82"
    size = 2 + (whole + 1) * _BLOCK_HEADER + length + 4
    parts = _room("file", len(header) + 8 + size + 4 + len(end))
    start = len(header) + 8
    parts[: start + 2] = np.frombuffer(header + struct.pack(">I", size) + b"IDAT\x78\x01", np.uint8)
    last = start + 2 + whole * (_BLOCK_HEADER + _BLOCK)
    blocks = parts[start + 2 : last].reshape(whole, _BLOCK_HEADER + _BLOCK)
    blocks[:, :_BLOCK_HEADER] = np.frombuffer(struct.pack("<BHH", 0, _BLOCK, 0), np.uint8)
    blocks[:, _BLOCK_HEADER:] = rows[: whole * _BLOCK].reshape(whole, _BLOCK)
    parts[last : last + _BLOCK_HEADER] = np.frombuffer(struct.pack("<BHH", 1, rest, rest ^ 0xFFFF), np.uint8)
    parts[last + _BLOCK_HEADER : start + size - 4] = rows[whole * _BLOCK :]
    parts[start + size - 4 : start + size] = np.frombuffer(data[-4:], np.uint8)
    checksum = zlib.crc32(parts[start - 4 : start + size].data)
    parts[start + size :] = np.frombuffer(struct.pack(">I", checksum) + end, np.uint8)
    return libspng(parts)


def is_whole(compressed: Sequence[memoryview], height: int, width: int, colours: int) -> bool:
    """Whether the data of an 8-bit PNG file, not interlaced, GREY or RGB, give each of its pixels.

    That is: they inflate to as many rows as there are, their checksum is right, each row's filter is one that there
    is. What is not whole by this may still be decoded: data that go on behind the last row, say.
    """
    row = _row(width, colours)
    rows = _inflated(b"".join(compressed), height * row, imagecodecs.zlibng_decode)  # zlib's verdicts, as Pillow's
    return rows is not None and bool((rows[::row] < _FILTERS).all())


def _row(width: int, colours: int) -> int:
    """Bytes of a row, and of its filter."""
    return 1 + width * _SAMPLES[colours]


def _inflated(data: bytes, length: int, inflate: Callable[..., Any]) -> _Pixels | None:
    """What becomes of `data`, until this thread asks again; None for what is damaged or not of that length."""
    try:
        rows: _Pixels = inflate(data, out=_room("rows", length))
    except (imagecodecs.DeflateError, imagecodecs.ZlibngError):
        return None
    return rows if len(rows) == length else None


def _room(name: str, length: int) -> _Pixels:
    """Bytes of this thread's own."""
    if length > _ROOM + _ROOM // 8:
        return np.empty(length, np.uint8)
    kept: _Pixels | None = getattr(_kept, name, None)
    if kept is None or len(kept) < length:
        kept = np.empty(length, np.uint8)
        setattr(_kept, name, kept)
    return kept[:length]


def libjpeg(jpeg: bytes) -> _Pixels | None:
    """The pixels of a grey or coloured file that is known to be whole as RGB; None if it is not after all."""
    try:
        pixels: _Pixels = imagecodecs.jpeg8_decode(jpeg)
    except imagecodecs.Jpeg8Error:
        return None
    return _stacked(pixels) if pixels.ndim == 2 else pixels


def libwebp(webp: bytes) -> _Pixels | None:
    """The pixels of a still, lossless WebP file as RGB; None if it is damaged, or has transparent pixels."""
    try:
        return _opaque(imagecodecs.webp_decode(webp))
    except imagecodecs.WebpError:
        return None


def _stacked(grey: _Pixels) -> _Pixels:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _opaque(pixels: _Pixels) -> _Pixels | None:
    """RGB or RGBA as RGB; None if there are transparent pixels."""
    if pixels.shape[2] == 3:
        return pixels
    return np.ascontiguousarray(pixels[:, :, :3]) if pixels[:, :, 3].min() == 255 else None
