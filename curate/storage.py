"""Where files lie: on a local disk, or in an object store (`s3://`, `gs://`, any fsspec URL).

A place is a `Path`, or for a URL a `RemotePath`, which has as much of a Path as is needed: `place / "name"`, `name`,
`parent`, `is_file`, `read_bytes`. What the two do differently are the functions here: publishing whole files, listing
with sizes, one member of a shard, a local copy. Local places cost nothing more than before: fsspec is imported when the
first URL is met.

A request that fails for a passing reason is tried again, with longer and longer waits. Credentials are found by the
usual environment of each object store; a URL that carries some is refused, so that they are never written anywhere.
"""

import contextlib
import errno
import os
import posixpath
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar, cast

import xxhash

from curate import cache, files
from curate.errors import AccessError, CurateError, DataError, UsageError, one_line

if TYPE_CHECKING:
    from fsspec.spec import AbstractFileSystem

__all__ = [
    "Entry",
    "Place",
    "RemotePath",
    "all_local",
    "create_bytes",
    "entries",
    "file_system",
    "folders",
    "is_url",
    "kind",
    "local",
    "local_copy",
    "local_file",
    "lock",
    "member",
    "place",
    "place_for",
    "publish",
    "publish_bytes",
    "read_all",
    "read_small",
    "refuse_credentials",
    "relative",
    "relative_name",
    "remove",
    "remove_leftovers",
    "remove_leftovers_of",
    "resolve",
    "retried",
    "tree",
]

_SMALL = 1 << 20  # bytes of a document that a user names: a genotype, a config

# One letter before the colon is a drive.
_URL = re.compile(r"((?:[A-Za-z0-9+.-]+::)*[A-Za-z][A-Za-z0-9+.-]+):/(/?)(.*)", re.DOTALL)
_SECRET = re.compile(
    r"[?&](x-amz-|x-goog-|sig=|signature=|token=|access_token=|awsaccesskeyid=|key=|password=)", re.IGNORECASE
)
_STORES = ("abfs", "abfss", "az", "gcs", "gs", "hf", "memory", "oci", "oss", "r2", "s3", "s3a")
_NAMED = ("ftp", "hdfs", "sftp", "smb", "ssh")  # schemes where a user's name alone is an address, not a secret
_WAITS = (0.2, 0.4, 0.8, 1.6)  # seconds before the second, third, ... try, times 0.5 to 1.5
_PERMANENT = (  # errors that another try does not mend
    errno.EINVAL,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOSYS,
    errno.EPERM,
)
_BLOCK = 16 << 20  # bytes fetched at a time
_REQUESTS = 32  # small objects that are read at the same time

_jitter = random.Random()  # of its own: the seeds of a run stay as they are

_T = TypeVar("_T")


class Entry(NamedTuple):
    """A file in a listing."""

    size: int
    version: str  # another one when its content has changed


@dataclass(frozen=True, slots=True)
class RemotePath:
    """A file or a folder at a URL."""

    url: str  # scheme://bucket/name, without a slash at its end

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.url}/{name}")

    def joinpath(self, *names: str) -> "RemotePath":
        return RemotePath("/".join((self.url, *names)))

    def resolve(self) -> "RemotePath":
        """Itself: a URL has no links to follow."""
        return self

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def parent(self) -> "RemotePath":
        return RemotePath(self.url.rpartition("/")[0])

    def is_file(self) -> bool:
        return self.size() is not None

    def is_dir(self) -> bool:
        """Whether there is anything below."""
        return kind(self.url) == "directory"

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def size(self) -> int | None:
        """Bytes of the file, None if there is none."""
        info = _info(self.url)
        return int(info["size"]) if info and info["type"] == "file" else None

    def read_bytes(self) -> bytes:
        fs, path = file_system(self.url)
        return bytes(retried(lambda: fs.cat_file(path), self.url))

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from byte `start`, or as many as there are, by a ranged request."""
        if size == 0:
            return b""
        fs, path = file_system(self.url)
        return bytes(retried(lambda: fs.cat_file(path, start=start, end=start + size), self.url))

    def unlink(self, missing_ok: bool = False) -> None:
        fs, path = file_system(self.url)
        try:
            retried(lambda: fs.rm_file(path), self.url)
        except FileNotFoundError:
            if not missing_ok:
                raise


Place = Path | RemotePath


# --- names ------------------------------------------------------------------------------------------------------------


def is_url(path: str | Place) -> bool:
    """Whether this names something that is not on the local disk."""
    return isinstance(place(path, "a place"), RemotePath)


def place(path: str | Place, what: str) -> Place:
    """Where `path` is; `what` ("a store", ...) is named in errors.

    A URL that a Path has made one slash of two of is taken too. UsageError for one that carries credentials, or that is
    several URLs in one.
    """
    match = None if isinstance(path, RemotePath) else _URL.match(str(path))
    if match is None:
        return path if isinstance(path, RemotePath) else Path(path)
    scheme, _, rest = match.groups()
    if scheme in ("file", "local"):
        return Path("/" + rest.lstrip("/"))
    url = f"{scheme}://{rest}".rstrip("/")
    refuse_credentials(url, what)
    if "::" in url or not rest.strip("/"):
        raise UsageError(f"{what} should be a path or a URL such as s3://bucket/name, found '{one_line(path)}'")
    return RemotePath(url)


def place_for(path: str | Place, what: str, like: str) -> Place:
    """The `place` of a file that will be written, a name `like` refined.parquet.

    UsageError for a folder, and for another ending: a file that is called what it is not would be read as that.
    """
    where, ending = place(path, what), Path(like).suffix
    if where.is_dir():
        raise UsageError(f"{what} is a file, '{one_line(path)}' is a folder; name it like {like}")
    if where.suffix.lower() != ending:
        raise UsageError(f"{what} is a {ending} file: name it {one_line(where.stem)}{ending}, found '{one_line(path)}'")
    return where


def refuse_credentials(url: str, what: str) -> None:
    """UsageError for a URL with a user's name, a password or a signature in it; the message does not repeat it."""
    scheme = url.partition(":")[0]
    for part in url.split("::"):
        kind, _, rest = part.partition("://")
        user, at, _ = rest.partition("/")[0].rpartition("@")
        named = bool(at) and (":" in user or kind not in _NAMED) and kind != "github"  # github://org:repo@branch/
        if named or _SECRET.search(part):
            raise UsageError(
                f"{what} should be a URL without credentials, found some in a {one_line(scheme)}:// URL; give them by "
                "the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, ...)"
            )


def relative(target: Place, folder: Place) -> str:
    """How `target` is named from `folder`: relative where both are on one disk or in one bucket, or in full."""
    if isinstance(target, RemotePath) and isinstance(folder, RemotePath):
        ours, theirs = _split(target), _split(folder)
        if ours[:2] == theirs[:2]:
            return posixpath.relpath(f"/{ours[2]}", f"/{theirs[2]}")
    if isinstance(target, Path) and isinstance(folder, Path):
        return os.path.relpath(target, folder)
    return str(target.resolve())


def relative_name(path: Place, folder: Place) -> str:
    """The name of a file below a folder, with '/'."""
    if isinstance(path, Path) and isinstance(folder, Path):
        return path.relative_to(folder).as_posix()
    return str(path).removeprefix(f"{folder}/")


def resolve(name: str, folder: Place) -> Place:
    """The way back from `relative`. A name that leads out of a bucket leads to its root, as `/..` does on a disk.

    UsageError for a scheme that is no object store's: a file must not make curate run a file system of its choice. And
    for a web server that the file is not from itself: it must not make curate knock at doors that only you can reach.
    """
    if match := _URL.match(name):
        ours = isinstance(folder, RemotePath) and _split(folder)[:2] == (match[1], match[3].partition("/")[0])
        if match[1] not in _STORES and not ours:
            raise UsageError(
                f"a file names its store at a {one_line(match[1])}:// URL; if you trust it, say --store URL"
            )
        return place(name, "a store")
    if isinstance(folder, RemotePath) and name.startswith("/"):
        return Path(name)
    if isinstance(folder, Path):
        return Path(os.path.normpath(folder.resolve() / name))
    scheme, bucket, inside = _split(folder)
    return RemotePath(f"{scheme}://{bucket}{posixpath.normpath(posixpath.join('/', inside, name))}".rstrip("/"))


def _split(path: RemotePath) -> tuple[str, str, str]:
    """Scheme, bucket, name in it."""
    scheme, _, rest = path.url.partition("://")
    bucket, _, inside = rest.partition("/")
    return scheme, bucket, inside


# --- requests ---------------------------------------------------------------------------------------------------------


def file_system(url: str) -> "tuple[AbstractFileSystem, str]":
    """The fsspec file system of a URL, and the path in it. UsageError if there is none, or its package is missing."""
    from fsspec.core import url_to_fs

    try:
        # Listings are not cached: another machine may be writing.
        fs, path = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = "; pip install 'curate[s3]'" if url.startswith(("s3:", "s3a:")) else ""
        raise UsageError(f"'{one_line(url)}' needs a package that is not installed: {one_line(error)}{extra}") from None
    except ValueError as error:
        raise UsageError(f"cannot open '{one_line(url)}': {one_line(error)}") from None
    return fs, path


def kind(url: str) -> str | None:
    """`file`, `directory`, or None where there is nothing."""
    if url.startswith(("http:", "https:")):  # every address is a file, and some list what is below
        fs, path = file_system(url)
        return "directory" if fs.isdir(path) else "file" if fs.exists(path) else None
    info = _info(url)
    return None if info is None else str(info["type"])


def _info(url: str) -> dict[str, Any] | None:
    """What there is to know of a file or folder. Not `exists` and `isdir`, which take a passing failure for a no."""
    fs, path = file_system(url)
    try:
        return dict(retried(lambda: fs.info(path), url))
    except FileNotFoundError:
        return None


def retried(act: Callable[[], _T], url: str) -> _T:
    """What `act` returns; tried up to five times where it fails for a reason that may pass.

    Raises OSError (FileNotFoundError, ...) for what another try does not mend, AccessError where access is denied and
    where the last try failed too.
    """
    for wait in (*_WAITS, None):
        try:
            return act()
        except _failures() as error:
            if _is_denied(error):
                raise AccessError(
                    f"no access to '{one_line(url)}': {_reason(error)}; credentials come from the environment"
                ) from None
            if isinstance(error, OSError) and not _may_pass(error):
                raise
            # botocore has tried five times by then: it is a wrong address, or the network is down.
            if wait is None or type(error).__name__ == "EndpointConnectionError":
                tries = f"tried {len(_WAITS) + 1} times"
                raise AccessError(f"'{one_line(url)}' cannot be reached: {_reason(error)} ({tries})") from None
        time.sleep(wait * _jitter.uniform(0.5, 1.5))
    raise AssertionError


def _failures() -> tuple[type[Exception], ...]:
    """What requests raise: OSError, and the errors of whichever client is in use that are none."""
    names = {
        "aiohttp": ("ClientError",),
        "botocore.exceptions": ("BotoCoreError",),
        "gcsfs.retry": ("HttpError",),
        "google.auth.exceptions": ("GoogleAuthError",),
    }
    found = [getattr(sys.modules[module], name) for module in names if module in sys.modules for name in names[module]]
    return (OSError, *found)


def _is_denied(error: Exception) -> bool:
    named = type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
    return named or isinstance(error, PermissionError)


def _may_pass(error: OSError) -> bool:
    final = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError)
    return not isinstance(error, final) and error.errno not in _PERMANENT


def _reason(error: Exception) -> str:
    return one_line((isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__)


# --- reading ----------------------------------------------------------------------------------------------------------


def entries(folder: Place) -> dict[str, Entry]:
    """Name -> size and version of the files directly in a folder; none if it is not there."""
    if isinstance(folder, RemotePath):
        return _remote_entries(folder)
    found = {}
    try:
        with os.scandir(folder) as listed:
            for entry in listed:
                if entry.is_file():
                    status = entry.stat()
                    found[entry.name] = Entry(status.st_size, f"{status.st_ino} {status.st_mtime_ns}")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return found


def _remote_entries(folder: RemotePath) -> dict[str, Entry]:
    return {
        str(info["name"]).rpartition("/")[2]: Entry(int(info["size"]), _version(info))
        for info in _listed(folder)
        if info["type"] == "file"
    }


def _listed(folder: RemotePath) -> list[dict[str, Any]]:
    fs, path = file_system(folder.url)
    try:
        infos = retried(lambda: fs.ls(path, detail=True), folder.url)
    except FileNotFoundError:
        return []
    return sorted(infos, key=lambda info: str(info["name"]))


def _version(info: dict[str, Any]) -> str:
    keys = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "mtime", "created")
    return " ".join(str(info[key]) for key in keys if key in info)


def folders(folder: Place) -> list[str]:
    """The names of the folders directly in a folder, sorted; none if it is not there."""
    if isinstance(folder, RemotePath):
        infos = _listed(folder)
        return [str(info["name"]).rstrip("/").rpartition("/")[2] for info in infos if info["type"] == "directory"]
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def tree(folder: Place) -> dict[str, int]:
    """Name below a folder, with '/' -> bytes of everything in it, at any depth, that is not a folder.

    Links are followed. What is no file, such as a link to nothing, has -1 bytes.
    """
    if isinstance(folder, RemotePath):
        fs, path = file_system(folder.url)
        try:
            found = retried(lambda: fs.find(path, detail=True), folder.url)
        except FileNotFoundError:
            return {}
        top = path.rstrip("/") + "/"
        return {str(info["name"]).removeprefix(top): int(info["size"]) for _, info in sorted(found.items())}
    sizes, entered, waiting = dict[str, int](), set[str](), [("", folder)]
    while waiting:
        prefix, here = waiting.pop()
        if (real := os.path.realpath(here)) in entered:
            continue
        entered.add(real)
        with os.scandir(here) as listed:
            for entry in listed:
                if entry.is_dir():
                    waiting.append((f"{prefix}{entry.name}/", here / entry.name))
                else:
                    sizes[prefix + entry.name] = entry.stat().st_size if entry.is_file() else -1
    return dict(sorted(sizes.items()))


def read_all(folder: Place, listed: Mapping[str, Entry]) -> list[bytes]:
    """The contents of small files of a folder, as they were listed; many at a time where they are far."""
    if isinstance(folder, Path):
        return [(folder / name).read_bytes() for name in listed]
    with ThreadPoolExecutor(_REQUESTS) as pool:  # with the size known, each is one request
        return list(pool.map(lambda item: (folder / item[0]).read(0, item[1].size), listed.items()))


def read_small(file: Place, what: str, shown: str, hint: str = "") -> bytes:
    """The bytes of a small document that the user names, 1 MiB at most; `shown` is its name in messages.

    UsageError where there is none, which `hint` ends, or it may not be read; DataError for one that is larger.
    """
    try:
        if not file.is_file():
            found = "it is a folder" if file.is_dir() else "there is no such file"
            raise UsageError(f"no {what} {shown}: {found}{hint}")
        size = file.size() if isinstance(file, RemotePath) else file.stat().st_size
        if size is not None and size > _SMALL:
            raise DataError(f"{shown} is not a {what}: it has {size} bytes")
        return file.read_bytes()
    except OSError as error:  # of local files: a name that is too long, a folder that may not be looked into
        raise UsageError(f"no {what} {shown}: {one_line(error.strerror or error)}") from None


def member(shard: Place, offset: int, size: int, xxh3: int) -> bytes:
    """A member of a shard, whose xxh3-64 should be `xxh3`: the caller checks. From afar only its bytes are fetched.

    What is not inside the shard is empty.

    Raises OSError if it cannot be read.
    """
    if isinstance(shard, Path):
        with shard.open("rb") as file:
            inside = offset >= 0 and 0 <= size <= os.fstat(file.fileno()).st_size - offset
            return os.pread(file.fileno(), size, offset) if inside else b""
    if min(offset, size) < 0:
        return b""
    name = f"{xxh3:016x}"
    key = f"pixels/{name[:2]}/{name}-{size}"
    if (kept := cache.find(key)) is not None:
        with contextlib.suppress(FileNotFoundError):
            data = kept.read_bytes()
            if xxhash.xxh3_64_intdigest(data) == xxh3:
                return data
            cache.remove(key)
    data = shard.read(offset, size)
    if xxhash.xxh3_64_intdigest(data) == xxh3 and size <= cache.limit():
        with contextlib.suppress(OSError):  # a full disk: it is fetched again when it is wanted again
            cache.add(key, size, lambda file: file.write(data))
    return data


def local(path: Place, xxh3: str, size: int) -> Path:
    """The file itself, or of one that is far a copy in the cache, whose xxh3-128 is found to be `xxh3`.

    The hash of a local file is not looked at. DataError if what is fetched has another one.
    """
    if isinstance(path, Path):
        return path
    key = f"tables/{re.sub('[^0-9a-f]', '', xxh3)}/{path.name}"
    kept = cache.find(key)
    if kept is not None:
        with contextlib.suppress(FileNotFoundError):
            if files.file_hash(kept) == xxh3:
                return kept
            cache.remove(key)
    made = cache.add(key, size, lambda file: _fetch(path, size, file))
    if files.file_hash(made) != xxh3:
        cache.remove(key)
        raise DataError(f"the store is damaged: '{one_line(path)}' has changed: its hash differs")
    return made


def _fetch(path: RemotePath, size: int, file: BinaryIO) -> None:
    for start in range(0, size, _BLOCK):
        file.write(path.read(start, min(_BLOCK, size - start)))


def all_local(parts: Iterable[tuple[Place, str, int]]) -> list[Path]:
    """`local` of many, several at a time."""
    wanted = list(parts)
    if not any(isinstance(path, RemotePath) for path, _, _ in wanted):
        return [local(*part) for part in wanted]
    few = -(-len(wanted) // (4 * _REQUESTS))  # a task for each of thousands takes longer than what is in the cache
    groups = [wanted[first : first + few] for first in range(0, len(wanted), few)]
    with ThreadPoolExecutor(min(_REQUESTS, len(groups))) as pool:
        return [path for found in pool.map(lambda group: [local(*part) for part in group], groups) for path in found]


def local_file(path: Place) -> Path:
    """The file itself, or of one that is far a copy under its own name that lasts as long as the process does."""
    if isinstance(path, Path):
        return path
    data = path.read_bytes()
    key = f"tables/{xxhash.xxh3_128_hexdigest(data)}/{path.name}"
    return cache.add(key, len(data), lambda file: file.write(data))


@contextlib.contextmanager
def local_copy(path: Place) -> Iterator[Path]:
    """The file itself, or of one that is far a temporary copy."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(path.read_bytes())
        yield copy


# --- writing ----------------------------------------------------------------------------------------------------------


def publish(path: Place, write: Callable[[BinaryIO], object]) -> str:
    """`files.publish`; to an object store, written to a temporary file first and uploaded from there.

    Returns the xxh3-128 (hex). DataError if the object is not as large as what was written.
    """
    if isinstance(path, Path):
        return files.publish(path, write)
    with tempfile.TemporaryFile() as temporary:  # it has no name, so that a process that is killed leaves nothing
        write(cast(BinaryIO, temporary))
        temporary.flush()
        name = f"/proc/self/fd/{temporary.fileno()}"
        digest, size = files.file_hash(Path(name)), os.path.getsize(name)  # noqa: PTH202
        fs, target = file_system(path.url)
        _write(path, lambda: fs.put_file(name, target), size)
    return digest


def publish_bytes(path: Place, data: bytes) -> str:
    """`publish` for content that is already in memory."""
    if isinstance(path, Path):
        return files.publish_bytes(path, data)
    fs, target = file_system(path.url)
    _write(path, lambda: fs.pipe_file(target, data), len(data))
    return xxhash.xxh3_128_hexdigest(data)


def create_bytes(path: Place, data: bytes) -> None:
    """`publish_bytes` of a file that decides between writers: the first one stays.

    CurateError if it is there already with other bytes; with the same ones nothing happens.
    """
    try:
        if isinstance(path, Path):
            files.publish_bytes(path, data, new=True)
            return
        fs, target = file_system(path.url)
        _write(path, lambda: fs.pipe_file(target, data, mode="create"), len(data))
    except OSError as error:
        # From afar also where the answer to an earlier try was lost: what is there says who was first.
        if not (isinstance(path, RemotePath) or isinstance(error, FileExistsError)) or not path.is_file():
            raise
        if path.read_bytes() != data:
            other = f"another run has written '{one_line(path)}' meanwhile"
            raise CurateError(f"{other}, and not the same; run again when it has ended") from None


def _write(path: RemotePath, act: Callable[[], object], size: int) -> None:
    try:
        retried(act, path.url)
    except FileNotFoundError as error:
        raise UsageError(f"cannot write to '{one_line(path)}': {_reason(error)}") from None
    found = path.size()
    if found != size:
        raise DataError(f"wrote {size} bytes of '{one_line(path)}', found {found}")


def remove(places: Iterable[Place]) -> None:
    """Delete files, and on a disk see to it that they stay so; those that are gone already are no error."""
    unwanted = list(places)
    if any(isinstance(path, RemotePath) for path in unwanted):
        with ThreadPoolExecutor(min(_REQUESTS, len(unwanted))) as pool:
            list(pool.map(lambda path: path.unlink(missing_ok=True), unwanted))
        return
    for path in unwanted:
        path.unlink(missing_ok=True)
    for folder in dict.fromkeys(path.parent for path in unwanted if isinstance(path, Path)):
        files.sync_folder(folder)


def remove_leftovers(folder: Place) -> None:
    """`files.remove_leftovers`; an upload that was cut off leaves no object."""
    if isinstance(folder, Path):
        files.remove_leftovers(folder)


def remove_leftovers_of(path: Place) -> None:
    """`files.remove_leftovers_of`."""
    if isinstance(path, Path):
        files.remove_leftovers_of(path)


@contextlib.contextmanager
def lock(folder: Place, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """`files.lock`; an object store has none: its commit records decide between writers."""
    if isinstance(folder, Path):
        with files.lock(folder, shared=shared, wait=wait):
            yield
    else:
        yield
