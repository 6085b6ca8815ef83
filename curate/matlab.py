"""MATLAB's .mat files of versions 5 to 7: their full, real, numeric arrays by name, as float64.

    header    116 bytes of text, 8 of subsystem offset, 2 of version (0x0100), 2 of byte order: `IM` little, `MI` big
    element   type and size (4 bytes each), the content, padding to 8 bytes; of at most 4 bytes: size and type (2 bytes
              each), the content in 4. A variable is an element of type matrix, or a compressed one that holds it alone
    matrix    elements: flags (class, and whether it is complex), dimensions, name, and, of numbers, the values, column
              by column, in whichever number type is the smallest that holds them

Public SRCNN weights are such files. What is no array of real numbers (text, cells, structures, sparse and complex
arrays) is passed over. scipy.io.loadmat reads more, and a damaged file can bring the process down in it; here
no memory is taken for what a file claims to hold, only for what it does hold.
"""

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from curate.errors import DataError

__all__ = ["read"]

_HEADER = 128  # bytes
_TAG = 8  # bytes
_MAX_BYTES = 2**28  # of what a file's compressed elements hold together; as float64 up to 8 times as much
_MAX_DIMENSIONS = 32
_BLOCK = 1 << 20  # bytes decompressed at a time

_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED, _UTF8 = 1, 5, 6, 14, 15, 16  # types of elements
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC = range(6, 16)  # classes of matrices: double, single, and integers of 8 to 64 bits
_COMPLEX = 0x0800  # a bit of the flags, beside the class in the lowest 8


def read(data: bytes) -> dict[str, npt.NDArray[np.float64]]:
    """The arrays of a .mat file by name; of several of one name the last.

    Raises DataError, without the file's name, if it is none, damaged, cut, of another version, or holds more than
    256 MiB compressed.
    """
    if data[:8] == b"\x89HDF\r\n\x1a\n" or data[124:128] in (b"\0\x02IM", b"\x02\0MI"):
        raise DataError("is a MATLAB v7.3 file: save it with -v7")
    if data[124:128] not in (b"\0\x01IM", b"\x01\0MI"):
        raise DataError("is not a MATLAB file of version 5 to 7")
    order = "<" if data[126:128] == b"IM" else ">"
    arrays = {}
    allowance = _MAX_BYTES
    for kind, content in _elements(memoryview(data)[_HEADER:], order):
        if kind == _COMPRESSED:
            content = _decompressed(content, order, allowance)
            allowance -= len(content)
        elif kind != _MATRIX:
            raise DataError(f"is damaged: an element of type {kind} where a variable should be")
        if (found := _array(content, order)) is not None:
            arrays[found[0]] = found[1]
    return arrays


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """(type, content) of the elements that fill `data`, one after the other."""
    at = 0
    while at < len(data):
        kind, size = _tag(data, at, order)
        start = at + _TAG
        if kind >> 16:  # a small element: the content is in the tag
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
            if size > 4:
                raise DataError(f"is damaged: {size} bytes in an element of 4")
        end = start + size
        if end > len(data):
            raise DataError(f"is damaged or cut: an element of {size} bytes, of which {len(data) - start} are there")
        yield kind, data[start:end]
        at = end if kind == _COMPRESSED else at + -(-(end - at) // 8) * 8


def _tag(data: memoryview, at: int, order: str) -> tuple[int, int]:
    if len(data) - at < _TAG:
        raise DataError(f"is damaged or cut: {len(data) - at} bytes where an element should begin")
    kind, size = struct.unpack_from(f"{order}II", data, at)
    return kind, size


def _decompressed(content: memoryview, order: str, allowance: int) -> memoryview:
    """The content of the one matrix in a compressed element."""
    stream, plain = zlib.decompressobj(), bytearray()
    try:
        _inflate(stream, content, plain, _TAG)
        kind, size = _tag(memoryview(bytes(plain)), 0, order)
        if kind != _MATRIX:
            raise DataError(f"is damaged: an element of type {kind} where a variable should be")
        if size > allowance:
            raise DataError(f"holds more than {_MAX_BYTES} bytes compressed")
        _inflate(stream, stream.unconsumed_tail, plain, _TAG + size)
    except zlib.error:
        raise DataError("is damaged: a compressed element cannot be decompressed") from None
    if len(plain) < _TAG + size:
        raise DataError(f"is damaged or cut: a variable of {size} bytes, of which {len(plain) - _TAG} are there")
    return memoryview(plain)[_TAG:]


def _inflate(stream: "zlib._Decompress", data: bytes | memoryview, plain: bytearray, wanted: int) -> None:
    """Decompress into `plain` until it has `wanted` bytes, or the data ends."""
    while len(plain) < wanted:
        block = stream.decompress(data, min(wanted - len(plain), _BLOCK))
        if not block:
            return
        plain += block
        data = stream.unconsumed_tail


def _array(matrix: memoryview, order: str) -> tuple[str, npt.NDArray[np.float64]] | None:
    """Name and values of a matrix; None if it is not one of real numbers."""
    elements = _elements(matrix, order)
    (flags, _), dimensions = (_integers(elements, kind, order) for kind in (_UINT32, _INT32))
    kind, name = _next(elements)
    if kind not in (_INT8, _UTF8):  # the second is what some writers use
        raise DataError(f"is damaged: an element of type {kind} where a variable's name should be")
    if flags & 0xFF not in _NUMERIC or flags & _COMPLEX or not name:
        return None
    kind, content = _next(elements)
    if kind not in _NUMBERS:
        raise DataError(f"is damaged: an element of type {kind} where numbers should be")
    numbers = np.dtype(order + _NUMBERS[kind])
    shown = "x".join(map(str, dimensions))
    if not 2 <= len(dimensions) <= _MAX_DIMENSIONS or min(dimensions) < 0:
        raise DataError(f"is damaged: an array of {shown}")
    if math.prod(dimensions) * numbers.itemsize != len(content) or math.prod(d or 1 for d in dimensions) > _MAX_BYTES:
        raise DataError(f"is damaged: an array of {shown} in {len(content)} bytes")
    with np.errstate(invalid="ignore"):  # a NaN that signals
        values = np.frombuffer(content, numbers).astype(np.float64)
    return bytes(name).decode("latin-1"), values.reshape(dimensions, order="F")


def _integers(elements: Iterator[tuple[int, memoryview]], expected: int, order: str) -> tuple[int, ...]:
    """The 32-bit integers of the next element: two flags, or two dimensions or more."""
    kind, content = _next(elements)
    if kind != expected or len(content) < 8 or len(content) % 4 or (expected == _UINT32 and len(content) != 8):
        raise DataError(f"is damaged: {len(content)} bytes of type {kind} where a variable's header should be")
    letter = "I" if expected == _UINT32 else "i"
    return struct.unpack(f"{order}{len(content) // 4}{letter}", content)


def _next(elements: Iterator[tuple[int, memoryview]]) -> tuple[int, memoryview]:
    found = next(elements, None)
    if found is None:
        raise DataError("is damaged or cut: a variable without its values")
    return found
