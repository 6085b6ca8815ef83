"""`sources.find` lists the same photographs in the same order from folders, files, tar files and URLs alike."""

import gzip
import io
import os
import pickle
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from conftest import put
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from curate import sources
from curate.errors import DataError, UsageError
from curate.images import MAX_BYTES, SUFFIXES
from curate.sources import Found, PairedFolder, find

NAMES = ["a.png", "B.JPG", "sub/0001.png", "sub/0002.png", "sub.x/c d.é.png", "z.webp"]
IN_ORDER = sorted(NAMES)
OTHERS = ["notes.txt", "sub/Thumbs.db", ".hidden.png", ".cache/x.png", "png"]


def content(name: str) -> bytes:
    return f"the bytes of {name}".encode() * 50


def filled(folder: Path, names: list[str]) -> Path:
    """`folder` with files of those names; their content is no image, which is not this module's affair."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(name))
    return folder


def tar_bytes(names: list[str], kind: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(content(name))
            tar.addfile(member, io.BytesIO(content(name)))
    return file.getvalue()


def names(found: Found) -> list[str]:
    return [source.name for source in found.sources]


def refusal(error: type[Exception], path: str | Path) -> str:
    with pytest.raises(error) as caught:
        find([path])
    assert str(caught.value).isprintable()
    return str(caught.value)


# --- folders and files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder_name", ["photos", "été 2.0 (copy)"])
def test_folder(tmp_path: Path, folder_name: str) -> None:
    found = find([filled(tmp_path / folder_name, NAMES + OTHERS)])
    assert names(found) == IN_ORDER
    assert found.ignored == len(OTHERS)
    assert {source.source for source in found.sources} == {folder_name}
    assert [source.read() for source in found.sources] == [content(name) for name in IN_ORDER]


def test_suffix_is_the_true_ending(tmp_path: Path) -> None:
    filled(tmp_path, ["a.JPG", "b.tar.x", "c"])
    assert [find([tmp_path / name]).sources[0].suffix for name in ("a.JPG", "b.tar.x", "c")] == [".jpg", ".x", ""]


def test_a_named_file_is_taken_whatever_its_ending(tmp_path: Path) -> None:
    filled(tmp_path / "given", ["scan", ".hidden.txt", "photo.png"])
    found = find([tmp_path / "given" / name for name in ("scan", ".hidden.txt", "photo.png")])
    assert names(found) == ["scan", ".hidden.txt", "photo.png"]
    assert {source.source for source in found.sources} == {"given"}
    assert found.sources[0].read() == content("scan")


def test_order_is_of_the_paths_and_then_of_the_names(tmp_path: Path) -> None:
    second, first = filled(tmp_path / "2", NAMES), filled(tmp_path / "1", NAMES)
    found = find([second, str(first)])
    assert names(found) == IN_ORDER * 2
    assert [source.source for source in found.sources] == ["2"] * len(NAMES) + ["1"] * len(NAMES)


def test_the_same_file_is_listed_once_and_first(tmp_path: Path) -> None:
    folder = filled(tmp_path / "photos", NAMES)
    (tmp_path / "link").symlink_to(folder / "z.webp")
    (tmp_path / "folder link").symlink_to(folder)
    other_ways = [tmp_path / "link", folder / ".." / "photos", f"file://{folder}", f"file://{tmp_path}/folder link"]
    found = find([folder / "z.webp", folder / "sub", folder, *other_ways])
    assert names(found) == ["z.webp", "0001.png", "0002.png", "B.JPG", "a.png", "sub.x/c d.é.png"]


@pytest.mark.parametrize("given", [".", "", "../photos", "sub/.."])
def test_label_of_a_folder_given_relatively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.chdir(filled(tmp_path / "photos", NAMES))
    found = find([given])
    assert names(found) == IN_ORDER
    assert {source.source for source in found.sources} == {"photos"}


def test_label_of_a_file_given_relatively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(filled(tmp_path / "photos", NAMES))
    assert find(["a.png"]).sources[0].source == "photos"


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    folder, elsewhere = (
        filled(tmp_path / "photos", ["a.png", "sub/b.png"]),
        filled(tmp_path / "far", ["c.png", "d.png"]),
    )
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")
    (folder / "far").symlink_to(elsewhere)
    (folder / "near").symlink_to(elsewhere)
    (folder / "e.png").symlink_to(elsewhere / "d.png")
    found = find([folder])
    assert names(found) == ["a.png", "e.png", "far/c.png", "sub/b.png"]  # far/d.png is e.png
    assert found.ignored == 1  # self


def test_a_hidden_folder_counts_as_one(tmp_path: Path) -> None:
    assert find([filled(tmp_path, ["a.png", ".git/1.png", ".git/2.png", "sub/.git/3.png"])]).ignored == 2


def test_dead_link_is_listed_and_cannot_be_read(tmp_path: Path) -> None:
    (filled(tmp_path, ["a.png"]) / "b.png").symlink_to(tmp_path / "moved away")
    found = find([tmp_path])
    assert names(found) == ["a.png", "b.png"]
    with pytest.raises(FileNotFoundError):
        found.sources[1].read()


def test_a_pipe_is_passed_over(tmp_path: Path) -> None:
    os.mkfifo(filled(tmp_path, ["a.png"]) / "b.png")
    found = find([tmp_path])
    assert names(found) == ["a.png"]
    assert found.ignored == 1
    assert "neither a folder nor a file" in refusal(UsageError, tmp_path / "b.png")


def test_names_are_one_printable_line(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/a\n\x1b[31m\xff.png"
    Path(os.fsdecode(raw)).write_bytes(b"data")
    source = find([tmp_path]).sources[0]
    assert source.name == r"a\n\x1b[31m\udcff.png"
    assert source.read() == b"data"


def test_folder_without_images(tmp_path: Path) -> None:
    message = refusal(UsageError, filled(tmp_path / "a\nb", ["a.txt", "b.txt", "sub/c"]))
    assert "no images in" in message
    assert r"a\nb': 3 other files were found; endings looked for: .bmp, .gif" in message
    assert all(suffix in message for suffix in SUFFIXES)


def test_no_paths() -> None:
    with pytest.raises(UsageError, match="no photographs were named"):
        find([])


@pytest.mark.parametrize(
    "path", ["nowhere", "no\0where", "x" * 5000, "nowhere.tar", "file:///nowhere", "memory://nowhere"]
)
def test_path_that_does_not_exist(path: str) -> None:
    message = refusal(UsageError, path)
    assert "does not exist" in message or "File name too long" in message


# --- tar files --------------------------------------------------------------------------------------------------------

PACKED: dict[str, Callable[[bytes], bytes]] = {
    "photos.tar": lambda data: data,
    "photos.TAR.gz": gzip.compress,
    "my photos.tgz": gzip.compress,
}


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("file_name", PACKED)
def test_tar(tmp_path: Path, file_name: str, kind: int) -> None:
    long = "long/" + "x" * 150 + "/0.png"
    (tmp_path / file_name).write_bytes(PACKED[file_name](tar_bytes([*reversed(NAMES), long, *OTHERS], kind)))
    found = find([tmp_path / file_name])
    assert names(found) == sorted([*NAMES, long])
    assert found.ignored == len(OTHERS)
    assert {source.source for source in found.sources} == {file_name}
    for source in reversed(found.sources):
        assert source.read() == content(source.name)


@pytest.mark.parametrize("file_name", PACKED)
def test_members_that_are_not_regular_files(tmp_path: Path, file_name: str) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("/etc/abs.png", "../../up.png", "./a/../dot\n.png"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"data"))
        for name, kind in (("s.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("d.png", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(secret)
            tar.addfile(member)
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    (tmp_path / file_name).write_bytes(PACKED[file_name](file.getvalue()))
    before = sorted(tmp_path.rglob("*"))
    found = find([tmp_path / file_name])
    assert names(found) == [r"a/dot\n.png", "etc/abs.png", "up.png"]
    assert {source.read() for source in found.sources} == {b"data"}
    assert found.ignored == 3
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("file_name", PACKED)
def test_the_same_tar_twice(tmp_path: Path, file_name: str) -> None:
    (tmp_path / file_name).write_bytes(PACKED[file_name](tar_bytes(NAMES)))
    (tmp_path / f"link to {file_name}").symlink_to(tmp_path / file_name)
    assert names(find([tmp_path / file_name, tmp_path / f"link to {file_name}"])) == IN_ORDER


@pytest.mark.parametrize("file_name", PACKED)
def test_tar_without_images(tmp_path: Path, file_name: str) -> None:
    (tmp_path / file_name).write_bytes(PACKED[file_name](tar_bytes(["a.txt"])))
    assert f"{file_name}': 1 other files were found" in refusal(UsageError, tmp_path / file_name)


@pytest.mark.parametrize("file_name", PACKED)
def test_tar_cut_or_damaged_anywhere(tmp_path: Path, file_name: str) -> None:
    path = tmp_path / file_name
    whole = tar_bytes(["a.png", "b.png"], tarfile.GNU_FORMAT)
    second_header = whole.index(b"b.png")
    end = whole.index(bytes(1024), second_header + 512)
    cuts = [whole[:length] for length in range(0, end, 256)]
    flips = [whole[:at] + b"\x7f" + whole[at + 1 :] for at in (0, 130, second_header, second_header + 130)]
    for data in [*cuts, *flips]:
        path.write_bytes(PACKED[file_name](data))
        assert "damaged" in refusal(DataError, path)


def test_compressed_file_cut_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "photos.tgz"
    whole = gzip.compress(tar_bytes(NAMES))
    cuts = [whole[:-1], whole[: len(whole) // 2], whole[:5]]
    changes = [whole[:at] + b"\xff" * 9 + whole[at + 9 :] for at in range(10, len(whole) - 9, 7)]
    for data in [*cuts, *changes, b"no gzip", tar_bytes(NAMES)]:
        path.write_bytes(data)
        assert "cannot decompress" in refusal(DataError, path)


def test_tar_that_changes_after_it_was_listed(tmp_path: Path) -> None:
    path = tmp_path / "photos.tar"
    path.write_bytes(tar_bytes(NAMES))
    last = max(find([path]).sources, key=lambda source: source.start)
    path.write_bytes(path.read_bytes()[: last.start + 3])
    with pytest.raises(OSError, match="changed"):
        last.read()


def test_temporary_file_is_closed_with_its_sources(tmp_path: Path) -> None:
    (tmp_path / "photos.tgz").write_bytes(gzip.compress(tar_bytes(NAMES)))
    found = find([tmp_path / "photos.tgz"])
    file = found.sources[0].file.file
    assert not file.closed
    del found
    assert file.closed


def test_a_compressed_tar_that_grows_out_of_all_proportion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_MAX_PACKED", 2**20)
    path, photographs = tmp_path / "photos.tgz", tar_bytes(NAMES)
    for data in (photographs + bytes(2**19), random.Random(1).randbytes(2**21)):  # flat but small; large but not flat
        path.write_bytes(gzip.compress(photographs[:-1024] + tar_bytes(NAMES) + data))
        find([path])
    path.write_bytes(gzip.compress(photographs + bytes(2**26)))
    assert "grows to more than 200 times its size" in refusal(DataError, path)


def test_a_file_of_more_bytes_than_any_image_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, ["a.png"])
    for name in ("large.png", "larger.png"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, MAX_BYTES + 1 if name == "large.png" else 2**40)  # sparse: it takes no room
    monkeypatch.setattr(sources, "MAX_BYTES", len(content("a.png")))
    (tmp_path / "photos.tar").write_bytes(tar_bytes(["a.png", "longer.png"]))
    first, *others = find([tmp_path, tmp_path / "photos.tar"]).sources
    assert first.read() == content("a.png") and others.pop(2).read() == content("a.png")
    assert len(others) == 3
    for other in others:
        with pytest.raises(OSError, match="more than an image may have; the limit is"):
            other.read()


# --- URLs -------------------------------------------------------------------------------------------------------------


def test_url_of_a_folder(memory: str) -> None:
    for name in NAMES + OTHERS:
        put(f"{memory}/my photos/{name}", content(name))
    for url in (f"{memory}/my photos", f"{memory}/my photos/"):
        found = find([url])
        assert names(found) == IN_ORDER
        assert found.ignored == len(OTHERS)
        assert {source.source for source in found.sources} == {"my photos"}
        assert [source.read() for source in found.sources] == [content(name) for name in IN_ORDER]
    assert names(find([f"{memory}/my photos/a.png", f"{memory}/my photos"])) == ["a.png", *sorted({*NAMES} - {"a.png"})]


def test_url_of_a_file(memory: str) -> None:
    put(f"{memory}/given/a.PNG", b"1")
    put(f"{memory}/given/scan", b"2")
    found = find([f"{memory}/given/a.PNG", f"{memory}/given/scan"])
    assert [(source.source, source.name, source.read()) for source in found.sources] == [
        ("given", "a.PNG", b"1"),
        ("given", "scan", b"2"),
    ]


@pytest.mark.parametrize("file_name", PACKED)
def test_url_of_a_tar(memory: str, file_name: str) -> None:
    found = find([put(f"{memory}/{file_name}", PACKED[file_name](tar_bytes(NAMES + OTHERS)))])
    assert names(found) == IN_ORDER
    assert found.ignored == len(OTHERS)
    assert [source.read() for source in found.sources] == [content(name) for name in IN_ORDER]
    put(f"{memory}/{file_name}", PACKED[file_name](tar_bytes(NAMES)[:700]))
    assert "damaged" in refusal(DataError, f"{memory}/{file_name}")


def test_url_of_a_file_where_everything_may_be_a_folder(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFileSystem, "isdir", lambda *_: True)  # as on a web server
    assert find([put(f"{memory}/a.png", b"data")]).sources[0].read() == b"data"
    assert names(find([put(f"{memory}/photos.tar", tar_bytes(NAMES))])) == IN_ORDER


def test_url_of_a_local_folder(tmp_path: Path) -> None:
    found = find([f"file://{filled(tmp_path / 'my photos', NAMES + OTHERS)}"])
    assert (names(found), found.ignored) == (IN_ORDER, len(OTHERS))


def test_url_without_images(memory: str) -> None:
    put(f"{memory}/notes/a.txt", b"")
    assert "1 other files were found" in refusal(UsageError, f"{memory}/notes")


def test_url_of_an_unknown_protocol() -> None:
    assert "foo" in refusal(UsageError, "foo://bucket/photos")


def test_url_whose_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"class": "no_such_package.Missing", "err": "Install no_such_package to read this"}
    monkeypatch.setitem(known_implementations, "missing", missing)
    message = refusal(UsageError, "missing://bucket/photos")
    assert (
        message
        == "'missing://bucket/photos' needs a package that is not installed: Install no_such_package to read this"
    )


def test_sources_travel_between_processes(tmp_path: Path, memory: str) -> None:
    (tmp_path / "photos.tar").write_bytes(tar_bytes(NAMES))
    url = put(f"{memory}/a.png", b"data")
    sources = find([tmp_path / "photos.tar", url]).sources
    copies = pickle.loads(pickle.dumps(sources))
    assert copies == sources
    assert [copy.read() for copy in copies] == [source.read() for source in sources]


def test_credentials_of_fsspec_s_own_settings_stay_in_their_process(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fsspec.config.conf, "memory", {"key": "AKIATEST", "secret": "hunter2"})
    sources = find([put(f"{memory}/a.png", b"data")]).sources
    assert "hunter2" in repr(sources[0].file.fs.storage_options)  # type: ignore[attr-defined]
    pickled = pickle.dumps(sources)
    assert b"hunter2" not in pickled and b"AKIA" not in pickled
    (copy,) = pickle.loads(pickled)
    assert copy == sources[0] and copy.read() == b"data"


# --- pairs ------------------------------------------------------------------------------------------------------------


def paired(folder: Path, lr_names: list[str], hr_name: str, scale: int = 2) -> str | None:
    lr = PairedFolder.open(str(filled(folder / "lr", lr_names)), scale).lookup(hr_name)
    return None if lr is None else lr.name


@pytest.mark.parametrize(
    ("lr_names", "hr_name", "expected"),
    [
        (["0001x2.png"], "0001.png", "0001x2.png"),
        (["0001x2.jpg"], "0001.png", "0001x2.jpg"),  # any image ending
        (["0001x2.png", "0001x3.png", "0001.png"], "0001.png", "0001x2.png"),
        (["sub/0001x2.png", "0001x2.png"], "sub/0001.png", "sub/0001x2.png"),  # the same folder first
        (["sub/0001x2.png", "0001x2.png"], "0001.png", "0001x2.png"),
        (["X2/0001x2.png", "X3/0001x3.png"], "train/0001.png", "X2/0001x2.png"),  # then any folder
        (["0001.png"], "0001.png", "0001.png"),  # then without the mark
        (["deep/0001.png"], "sub/0001.jpg", "deep/0001.png"),
        (["sub/0001.png", "0001x2.png"], "sub/0001.png", "0001x2.png"),  # the mark counts more than the folder
        (["sub/0001.png", "0001.png"], "sub/0001.png", "sub/0001.png"),
        (["0001x3.png", "0002x2.png"], "0001.png", None),
        (["0001x2x2.png", "0001.png"], "0001x2.png", "0001x2x2.png"),  # no mark is ever taken off the HR name
        (["x2_0001.png", "0001x2b.png", "00x201.png"], "0001.png", None),
        (["a.bx2.png"], "a.b.png", "a.bx2.png"),
        (["a.bx2.png"], "a.b", "a.bx2.png"),  # only an image's ending is taken off
        (["x2.png"], "0001.png", None),
        (["0001X2.png"], "0001.png", None),
    ],
)
def test_lookup(tmp_path: Path, lr_names: list[str], hr_name: str, expected: str | None) -> None:
    assert paired(tmp_path, lr_names, hr_name) == expected


def test_lookup_of_other_scales(tmp_path: Path) -> None:
    lr_names = ["0001x2.png", "0001x3.png", "0001x12.png"]
    assert [paired(tmp_path, lr_names, "0001.png", scale) for scale in (2, 3, 4, 12)] == [
        *lr_names[:2],
        None,
        lr_names[2],
    ]


@pytest.mark.parametrize(
    ("lr_names", "hr_name"),
    [
        (["sub/0001x2.png", "sub/0001x2.jpg"], "sub/0001.png"),
        (["a/0001x2.png", "b/0001x2.png"], "0001.png"),
        (["0001.png", "0001.bmp"], "0001.png"),
        (["a/0001.png", "b/0001.png"], "c/0001.png"),
    ],
)
def test_several_that_fit_are_an_error(tmp_path: Path, lr_names: list[str], hr_name: str) -> None:
    with pytest.raises(UsageError) as caught:
        paired(tmp_path, lr_names, hr_name)
    assert all(name in str(caught.value) for name in [*lr_names, hr_name])


def test_pairs_in_a_tar(tmp_path: Path) -> None:
    (tmp_path / "lr.tar").write_bytes(tar_bytes(["0001x4.png"]))
    lr = PairedFolder.open(str(tmp_path / "lr.tar"), 4).lookup("sub/0001.png")
    assert lr is not None
    assert lr.read() == content("0001x4.png")


def test_paired_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        PairedFolder.open(str(tmp_path / "nowhere"), 2)
