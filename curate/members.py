"""What lies where in a tar file that anybody may have made: its headers, read without trust.

Python's tarfile follows extension headers by recursion, reads as many bytes of one as it claims to have, goes backwards
where a size is negative, and takes any header that it cannot read for the end. Here a header is what its checksum says,
an extension has at most 1 MB, members follow one another inside the file, and the end is a block of zeros.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

__all__ = ["Member", "members"]

_BLOCK = 512  # a tar file is made of blocks of that many bytes; one of zeros is its end
_END = bytes(_BLOCK)
_MAX_EXTENSION = 1 << 20  # bytes of a long name, or of the records of a pax header
_MAX_NAME = 4096  # bytes, Linux's own limit of a path

_FILES = b"0\x007"  # types: regular, regular as of old, contiguous
_NO_DATA = b"123456"  # links, devices, folders and pipes: what their size says does not follow
_PAX, _GLOBAL_PAX, _LONG_NAME, _LONG_LINK, _SPARSE = b"xX", b"g", b"L", b"K", b"S"

_WANTED, _SPARSE_KEY = (b"path", b"size"), b"GNU.sparse."  # what a pax header may say that is of use here

_OCTAL = re.compile(rb" *([0-7]*)[ \0]*(?:\0.*)?", re.DOTALL)
_PAX_LENGTH = re.compile(rb"([0-9]{1,7}) ")
_PAX_NUMBER = re.compile(rb"[0-9]{1,18}")


class Member(NamedTuple):
    """One entry of a tar file."""

    name: str  # as it is written there: perhaps absolute, with `..`, or no UTF-8 (surrogates)
    start: int  # byte at which its content begins
    size: int  # bytes
    is_file: bool  # it has bytes of its own: no folder, link, device or pipe, and not sparse
    is_folder: bool


def members(stream: BinaryIO) -> Iterator[Member]:
    """The entries in their order, read as they are asked for. Raises ValueError, with the reason, where one cannot be.

    `stream` is uncompressed, can seek, and is not moved by others meanwhile.
    """
    length = stream.seek(0, 2)
    at, always, once = 0, dict[bytes, bytes](), dict[bytes, bytes]()
    while (header := _block(stream, at)) != _END:
        kind, start = header[156:157], at + _BLOCK
        name, size = _name(header), _number(header[124:136], at)
        if kind in _NO_DATA:
            size = 0
        if kind in _PAX or kind in (_GLOBAL_PAX, _LONG_NAME, _LONG_LINK):
            body, at = _extension(stream, start, size), _after(start, size, length)
            if kind == _LONG_NAME:
                once[b"path"] = body.partition(b"\0")[0]
            elif kind != _LONG_LINK:
                (always if kind == _GLOBAL_PAX else once).update(_records(body, start))
            continue
        if kind == _SPARSE:
            start = _after_sparse_headers(stream, header, start)
        said, once = always | once, {}
        if b"path" in said:
            name = said[b"path"]
        if b"size" in said and kind not in _NO_DATA:
            size = _pax_number(said[b"size"], at)
        if len(name) > _MAX_NAME:
            raise ValueError(f"a name of {len(name)} bytes at byte {at}")
        sparse = kind == _SPARSE or _SPARSE_KEY in said
        is_folder = kind == b"5" or (kind == b"\0" and name.endswith(b"/"))
        is_file = kind in _FILES and not sparse and not is_folder
        at = _after(start, size, length)
        yield Member(name.decode("utf-8", "surrogateescape"), start, size, is_file, is_folder)


def _block(stream: BinaryIO, at: int) -> bytes:
    """The header at byte `at`, whose checksum is right, or the zeros of the end."""
    stream.seek(at)
    header = stream.read(_BLOCK)
    if len(header) < _BLOCK:
        raise ValueError(f"cut at byte {at}")
    if header != _END and not _is_sum(_number(header[148:156], at), header):
        raise ValueError(f"no header at byte {at}")
    return header


def _is_sum(checksum: int, header: bytes) -> bool:
    """Whether it is the sum of all bytes but its own, which count as spaces; some writers take bytes with a sign."""
    rest = header[:148] + b" " * 8 + header[156:]
    return checksum == sum(rest) or checksum == sum(rest) - 256 * sum(byte >> 7 for byte in rest)


def _number(field: bytes, at: int) -> int:
    """Octal digits, or after a byte 0x80 a big-endian integer."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = _OCTAL.fullmatch(field)
    if digits is None:
        raise ValueError(f"no number in the header at byte {at}")
    return int(digits[1] or b"0", 8)


def _name(header: bytes) -> bytes:
    name, prefix = (field.partition(b"\0")[0] for field in (header[:100], header[345:500]))
    is_gnu = header[257:265] == b"ustar  \0"  # it has other things there
    return (
        name if is_gnu or not prefix or header[156:157] in (_LONG_NAME, _LONG_LINK, _SPARSE) else prefix + b"/" + name
    )


def _extension(stream: BinaryIO, start: int, size: int) -> bytes:
    if size > _MAX_EXTENSION:
        raise ValueError(f"an extension header of {size} bytes at byte {start}")
    stream.seek(start)
    return stream.read(size)


def _records(body: bytes, at: int) -> dict[bytes, bytes]:
    """What matters here of a pax header: `LENGTH KEY=VALUE` and a line's end, where the length counts all of it."""
    found, begin = {}, 0
    while begin < len(body) and body[begin]:
        length = _PAX_LENGTH.match(body, begin)
        end = begin + int(length[1]) if length else 0
        if length is None or not length.end() < end <= len(body) or body[end - 1 : end] != b"\n":
            raise ValueError(f"no record in the pax header at byte {at + begin}")
        key, _, value = body[length.end() : end - 1].partition(b"=")
        if key in _WANTED or key.startswith(_SPARSE_KEY):
            found[_SPARSE_KEY if key.startswith(_SPARSE_KEY) else key] = value
        begin = end
    return found


def _pax_number(value: bytes, at: int) -> int:
    if not _PAX_NUMBER.fullmatch(value):
        raise ValueError(f"no number in the pax header before byte {at}")
    return int(value)


def _after(start: int, size: int, length: int) -> int:
    """The byte after a content and its padding; the file, of `length` bytes, must reach as far."""
    end = start + size + -size % _BLOCK
    if end > length:
        raise ValueError(f"cut: {length} bytes, a member needs {end}")
    return end


def _after_sparse_headers(stream: BinaryIO, header: bytes, at: int) -> int:
    """Where the content of an old sparse member begins: its map may go on in blocks of its own."""
    goes_on = header[482]
    while goes_on:
        stream.seek(at)
        block = stream.read(_BLOCK)
        if len(block) < _BLOCK:
            raise ValueError(f"cut at byte {at}")
        goes_on, at = block[504], at + _BLOCK
    return at
