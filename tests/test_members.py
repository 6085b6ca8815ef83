"""`members` lists what Python's tarfile lists, and says in one line what is wrong with a file made to do harm."""

import io
import random
import struct
import tarfile
import time

import pytest

from curate.members import Member, members

END = bytes(1024)


def header(name: bytes, size: int | bytes = 0, kind: bytes = b"0", *, prefix: bytes = b"", gnu: bool = False) -> bytes:
    """The 512 bytes of a header; a size in bytes is written as it is."""
    field = size if isinstance(size, bytes) else b"%011o" % size
    made = struct.pack(
        "100s8s8s8s12s12s8s1s100s8s80s155s12x",
        *(name, b"0000644", b"0000000", b"0000000", field, b"00000000000", b" " * 8, kind, b"/etc/passwd"),
        *(b"ustar  \0" if gnu else b"ustar\x0000", b"", prefix),
    )
    return made[:148] + b"%06o\0 " % sum(made) + made[156:]


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def member(name: bytes, content: bytes = b"data", kind: bytes = b"0", **more: object) -> bytes:
    return header(name, len(content), kind, **more) + padded(content)  # type: ignore[arg-type]


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    length += len(str(length))
    length += len(str(length)) - len(str(length - 1))
    return b"%d %s=%s\n" % (length, key, value)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    return member(b"pax", b"".join(records), kind)


def listed(data: bytes) -> list[Member]:
    return list(members(io.BytesIO(data)))


def names(data: bytes) -> list[str]:
    return [found.name for found in listed(data) if found.is_file]


OK = member(b"ok.png")
LONG = b"long/" + b"x" * 300 + b".png"


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("seed", range(4))
def test_what_tarfile_wrote_is_listed_as_tarfile_lists_it(form: int, seed: int) -> None:
    draw, file = random.Random(seed), io.BytesIO()
    kinds = [tarfile.REGTYPE] * 6 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, b"7"]
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for number in range(60):
            stem = draw.choice(["a", "é ü", "../up", "/abs", "x" * 90, "d/" * 50 + "y" * 80])
            made = tarfile.TarInfo(f"{stem}{number}.png")
            made.type, made.linkname = draw.choice(kinds), "a"
            made.mtime = draw.choice([0, 1.5, -3]) if form == tarfile.PAX_FORMAT else 0
            content = draw.randbytes(draw.choice([0, 1, 511, 512, 513, 4000])) if made.isreg() else b""
            made.size = len(content)
            tar.addfile(made, io.BytesIO(content))
    with tarfile.open(fileobj=io.BytesIO(file.getvalue())) as tar:
        expected = [Member(i.name, i.offset_data, i.size, i.isreg(), i.isdir()) for i in tar.getmembers()]
    found = [item._replace(name=item.name.rstrip("/")) for item in listed(file.getvalue())]
    assert len(found) == 60 and found == expected


def test_a_stream_is_read_from_its_own_beginning_and_lazily() -> None:
    stream = io.BytesIO(OK + b"no header".ljust(512))
    stream.seek(700)
    first = members(stream)
    assert next(first) == Member("ok.png", 512, 4, True, False)
    with pytest.raises(ValueError, match="header at byte 1024"):
        next(first)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (header(b"a.png", b"\x80" + (4).to_bytes(11, "big")) + padded(b"data") + OK, ["a.png", "ok.png"]),
        (header(b"a.png", b"  4 \0") + padded(b"data") + OK, ["a.png", "ok.png"]),
        (member(b"a.png", prefix=b"deep"), ["deep/a.png"]),
        (member(b"a.png", prefix=b"times", gnu=True), ["a.png"]),
        (pax(record(b"path", b"../../x.png")) + OK, ["../../x.png"]),
        (pax(record(b"path", LONG)) + OK + OK, [LONG.decode(), "ok.png"]),
        (member(b"././@LongLink", LONG + b"\0", b"L") + OK + OK, [LONG.decode(), "ok.png"]),
        (member(b"././@LongLink", b"to", b"K") + OK, ["ok.png"]),
        (pax(record(b"size", b"4")) + header(b"a.png") + padded(b"data") + OK, ["a.png", "ok.png"]),
        (pax(record(b"comment", b"x=y\nz")) + OK, ["ok.png"]),
        (pax(record(b"path", b"all.png"), kind=b"g") + OK + OK, ["all.png", "all.png"]),
        (pax(record(b"hdrcharset", b"BINARY"), record(b"path", b"\xff.png")) + OK, ["\udcff.png"]),
        (member(b"a\x1b[2J\n.png") + OK, ["a\x1b[2J\n.png", "ok.png"]),
        (b"".join(header(b"x.png", 9**9, kind) for kind in (b"1", b"2", b"3", b"4", b"5", b"6")) + OK, ["ok.png"]),
        (b"".join(member(b"x.png", kind=kind) for kind in (b"V", b"M", b"D", b"A", b"Z")) + OK, ["ok.png"]),
        (member(b"old/", b"", b"\0") + OK, ["ok.png"]),
        (pax(record(b"GNU.sparse.major", b"1"), record(b"GNU.sparse.realsize", b"9" * 18)) + OK + OK, ["ok.png"]),
        (member(b"s.png", kind=b"S", gnu=True) + OK, ["ok.png"]),
        (OK * 5, ["ok.png"] * 5),
        (b"", []),
    ],
)
def test_what_is_listed(data: bytes, expected: list[str]) -> None:
    assert names(data + END) == expected


def test_an_old_sparse_member_has_its_map_before_its_content() -> None:
    made = bytearray(header(b"s.png", 4, b"S", gnu=True))
    made[482] = 1
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    goes_on, ends = bytes(504) + b"\1" + bytes(7), bytes(512)
    assert names(bytes(made) + goes_on + ends + padded(b"data") + OK + END) == ["ok.png"]
    with pytest.raises(ValueError, match="cut at byte"):
        listed(bytes(made) + goes_on * 2)


HUGE = b"\x80" + (2**60).to_bytes(11, "big")
REFUSED = {
    "a negative size": OK + header(b"a.png", b"\xff" * 12),
    "a negative size in octal": OK + header(b"a.png", b"-0000001000"),
    "a negative size in pax, which leads back": pax(record(b"size", b"-1536")) + header(b"a.png"),
    "a size beyond the file": OK + header(b"a.png", 2**30),
    "a size beyond any file": OK + header(b"a.png", HUGE),
    "a size in pax beyond any file": pax(record(b"size", b"9" * 18)) + header(b"a.png"),
    "a size of a hundred thousand digits": pax(record(b"size", b"9" * 100_000)) + header(b"a.png"),
    "a size that is none": pax(record(b"size", b"x")) + header(b"a.png"),
    "a size in words": header(b"a.png", b"four"),
    "an extension of a terabyte": header(b"pax", b"\x80" + (2**40).to_bytes(11, "big"), b"x"),
    "an extension beyond any file": header(b"pax", HUGE, b"x"),
    "a global extension beyond any file": header(b"pax", HUGE, b"g"),
    "a long name of a terabyte": header(b"l", b"\x80" + (2**40).to_bytes(11, "big"), b"L"),
    "a long name of 2 MB": member(b"l", b"a" * 2**21, b"L"),
    "a long name of 5 KB": member(b"l", b"a" * 5000, b"L"),
    "a name of 5 KB in pax": pax(record(b"path", b"a" * 5000)),
    "a long name cut": header(b"l", 4000, b"L"),
    "a record of no length": pax(b"0 a=b\n"),
    "a record shorter than itself": pax(b"3 a=b\n"),
    "a record longer than its header": pax(b"99 a=b\n"),
    "a record of an endless length": pax(b"9" * 30 + b" a=b\n"),
    "a record whose length has 100,000 digits": pax(b"9" * 100_000 + b" a=b\n"),
    "a record without its end": pax(b"6 a=bc"),
    "a wrong checksum": OK[:1024] + b"x" + OK[1:],
    "no tar at all": b"%PDF-1.7".ljust(2048),
    "nothing": b"",
    "half a header": OK + b"x" * 100,
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_in_one_line_and_at_once(what: str) -> None:
    data = REFUSED[what] if what in ("nothing", "half a header") else REFUSED[what] + OK + END
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"at byte|before byte|cut:") as refused:
        listed(data)
    assert str(refused.value).isprintable() and time.monotonic() - began < 2


@pytest.mark.parametrize("extension", [member(b"l", b"abc.png", b"L"), pax(record(b"path", b"abc.png"))])
def test_a_chain_of_extensions_is_no_recursion(extension: bytes) -> None:
    assert names(extension * 5000 + OK + END) == ["abc.png"]


def test_what_global_headers_say_is_kept_once() -> None:
    said = pax(*(record(b"k%d" % i, b"v" * 100) for i in range(500)), kind=b"g")
    assert len(listed(said + OK * 500 + END)) == 500


def test_a_file_cut_or_changed_anywhere_is_refused_or_listed() -> None:
    whole = member(b"l", LONG, b"L") + OK + pax(record(b"size", b"4"), record(b"path", b"c.png")) + OK
    draw = random.Random(1)
    for _ in range(1500):
        data = bytearray(whole + END)
        for _ in range(draw.choice([1, 1, 2, 8])):
            data[draw.randrange(len(whole))] = draw.choice([0, 0x20, 0x30, 0x80, 0xFF, draw.randrange(256)])
        try:
            found = listed(bytes(data[: draw.choice([len(data), draw.randrange(len(data))])]))
        except ValueError as refused:
            assert str(refused).isprintable()
        else:
            assert all(512 <= item.start <= item.start + item.size <= len(data) for item in found)
