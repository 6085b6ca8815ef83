"""`write_tar` gives the same bytes for the same members, at the offsets it tells, and tar and WebDataset read them."""

import io
import os
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from curate import files, shards
from curate.shards import write_tar

SIZES = (0, 1, 511, 512, 513, 1024, 9000, 10240)  # around a tar's blocks of 512 bytes and records of 10240


def some_members(seed: int = 0) -> dict[str, bytes]:
    rng = random.Random(seed)
    suffixes = (".png", ".jpg", ".lr2.png", ".img")
    return {f"{rng.getrandbits(64):016x}{rng.choice(suffixes)}": rng.randbytes(size) for size in SIZES}


def read_back(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]


@pytest.mark.parametrize("seed", range(5))
def test_members_come_back_in_their_order_and_lie_where_the_offsets_say(tmp_path: Path, seed: int) -> None:
    members = some_members(seed)
    digest, offsets = write_tar(tmp_path / "a.tar", members.items())
    assert read_back(tmp_path / "a.tar") == list(members.items())
    data = (tmp_path / "a.tar").read_bytes()
    assert {name: data[at : at + len(members[name])] for name, at in offsets.items()} == members
    assert digest == files.file_hash(tmp_path / "a.tar")


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot be asked to write a part of a file")
def test_a_large_shard_is_on_its_way_to_the_disk_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    whole, _ = write_tar(tmp_path / "a.tar", some_members().items())
    monkeypatch.setattr(shards, "_FLOW", 5000)
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, length, advice: asked.append((start, length)))
    assert write_tar(tmp_path / "b.tar", some_members().items())[0] == whole
    assert len(asked) > 1 and min(length for _, length in asked) >= 5000
    assert [start for start, _ in asked] == [0, *(start + length for start, length in asked[:-1])]  # each byte once


def test_members_are_taken_one_at_a_time(tmp_path: Path) -> None:
    """Each is written before the next one is asked for: what is held in memory does not grow with the shard."""
    written: list[int] = []

    def members() -> Iterator[tuple[str, bytes]]:
        for i in range(4):
            if i:
                (temporary,) = tmp_path.iterdir()
                written.append(temporary.stat().st_size)
            yield f"{i}.png", bytes(2**20)

    write_tar(tmp_path / "a.tar", members())
    assert all(size >= i * 2**20 for i, size in enumerate(written, 1)) and len(written) == 3


def test_it_is_the_archive_that_tarfile_writes(tmp_path: Path) -> None:
    members = some_members()
    write_tar(tmp_path / "a.tar", members.items())
    with tarfile.open(tmp_path / "b.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_the_day_the_user_and_the_folder_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = write_tar(tmp_path / "a.tar", some_members().items())
    monkeypatch.setattr("time.time", lambda: 4e9)
    monkeypatch.setattr("os.getuid", lambda: 1234)
    monkeypatch.chdir(tmp_path)
    second, _ = write_tar(Path("another folder") / "b.tar", some_members().items())
    assert first == second
    with tarfile.open(tmp_path / "a.tar") as tar:
        headers = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.isreg()) for m in tar.getmembers()}
    assert headers == {(0, 0, 0, "", "", 0o644, True)}


def test_other_members_give_other_bytes(tmp_path: Path) -> None:
    members = some_members()
    name = next(iter(members))
    variants = [members, members | {name: b"x"}, members | {"new.png": b""}, {**members, name: members[name] + b"\0"}]
    variants.append(dict(reversed(members.items())))
    assert len({write_tar(tmp_path / "a.tar", variant.items())[0] for variant in variants}) == len(variants)


def test_a_shard_without_members_is_a_tar_too(tmp_path: Path) -> None:
    _, offsets = write_tar(tmp_path / "a.tar", ())
    assert read_back(tmp_path / "a.tar") == []
    assert offsets == {}


def test_a_shard_that_cannot_be_finished_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name is too long"):
        write_tar(tmp_path / "a.tar", [("a.png", b"bytes"), ("b" * 300 + ".png", b"bytes")])
    assert list(tmp_path.iterdir()) == []


# webdataset leaves the tar file for Python to close
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file:ResourceWarning")
def test_webdataset_reads_it_as_it_is(tmp_path: Path) -> None:
    import webdataset

    members = {"00aa.png": b"hr", "00aa.lr2.png": b"lr2", "00aa.lr3.png": b"lr3", "00bb.jpg": b"other"}
    write_tar(tmp_path / "a.tar", members.items())
    samples = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    named = [{key: value for key, value in sample.items() if not key.startswith("__")} for sample in samples]
    assert [sample["__key__"] for sample in samples] == ["00aa", "00bb"]
    assert named == [{"png": b"hr", "lr2.png": b"lr2", "lr3.png": b"lr3"}, {"jpg": b"other"}]
