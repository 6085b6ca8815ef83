"""Decoders that are faster than Pillow, for the files that curate reads most; None where one does not take a file.

Nearly all training images are 8-bit PNG files, and decoding them is what most commands wait for. Inflating takes half
of that, undoing the filters the other half. On one core, Mpx/s of photographs: Pillow 40, libspng 77, Rust's png crate
(through kornia_rs) 121; inflating alone, by zlib-ng, 250. Of JPEG files Pillow takes 1.4 to 1.7 times as long as
libjpeg-turbo, which it asks.

Rust's png crate does not look at the checksum of what it inflates, and what libjpeg warns of is not heard here: they
are for files that are known to be whole. imagecodecs' binding of libpng is as fast as libspng, but a damaged file can
bring the process down in it.
"""

from collections.abc import Sequence

import imagecodecs
import numpy as np
import numpy.typing as npt
from kornia_rs import io as kornia

__all__ = ["GREY", "RGB", "RGBA", "is_whole", "libjpeg", "libspng", "libwebp", "png_crate"]

GREY, RGB, RGBA = 0, 2, 6  # PNG's colour types
_SAMPLES = {GREY: 1, RGB: 3}  # a pixel
_FILTERS = 5  # a row's filter is 0 to 4

_Pixels = npt.NDArray[np.uint8]


def libspng(png: bytes) -> _Pixels | None:
    """The pixels of a grey, RGB or RGBA file as RGB; None if libspng does not take it, or it has transparent pixels.

    It refuses more than Pillow does, such as data that ends in the last row, and nothing that Pillow refuses gets
    through.
    """
    try:
        pixels: _Pixels = imagecodecs.spng_decode(png)
    except imagecodecs.SpngError:
        return None
    return _stacked(pixels) if pixels.ndim == 2 else _opaque(pixels)


def png_crate(png: bytes, height: int, width: int) -> _Pixels | None:
    """The pixels of an RGB file that is known to be whole; None if it is not after all."""
    try:
        pixels: _Pixels = kornia.decode_image_png_u8(png, (height, width), "rgb")
    except Exception:  # its errors have no class of their own; who is asked next says what is wrong
        return None
    return pixels


def is_whole(compressed: Sequence[memoryview], height: int, width: int, colours: int) -> bool:
    """Whether the data of an 8-bit PNG file, not interlaced, GREY or RGB, give each of its pixels.

    That is: they inflate to as many rows as there are, their checksum is right, each row's filter is one that there
    is. What is not whole by this may still be decoded: data that go on behind the last row, say.
    """
    row = 1 + width * _SAMPLES[colours]
    try:
        inflated = imagecodecs.zlibng_decode(b"".join(compressed), out=height * row)
    except imagecodecs.ZlibngError:
        return False
    return len(inflated) == height * row and bool((np.frombuffer(inflated, np.uint8)[::row] < _FILTERS).all())


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
