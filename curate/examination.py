"""One source, examined: read, hashed, decoded, paired with its LR images, or refused with the reason.

What ingest does to every photograph, apart from the store: several threads do it at the same time.
"""

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace

import xxhash

from curate import images, windows
from curate.errors import one_line
from curate.images import ImageRefused
from curate.schema import STATUS_OK
from curate.sources import PairedFolder, Source

__all__ = ["TOO_SMALL", "UNREADABLE", "Examined", "Examiner", "Picture"]

TOO_SMALL = "smaller than a patch"  # how the reason begins
UNREADABLE = "cannot be read"  # in the reason, if a file's bytes could not be had


@dataclass(frozen=True, slots=True)
class Picture:
    """What is known of a decoded image's file."""

    suffix: str
    height: int
    width: int
    size: int  # bytes
    xxh3: int  # xxh3-64 of them


@dataclass(frozen=True, slots=True)
class Examined:
    """One source, read and decoded: `ok` with its pictures by role, or the reason why it is refused."""

    source: Source
    sha256: str | None
    status: str
    height: int | None = None
    width: int | None = None
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    known: bool = False  # the store has this very file already
    data: Mapping[str, bytes] = field(default_factory=dict, repr=False)  # the pictures' files, until they are written

    @property
    def file(self) -> tuple[str, str, str | None]:
        """What tells it from every other source."""
        return self.source.source, self.source.name, self.sha256

    @property
    def image_id(self) -> str | None:
        """16 hex of the hash; none if it is refused, so that a join over images meets every photograph once."""
        return self.sha256[:16] if self.sha256 and self.pictures else None

    @property
    def size(self) -> int:
        """Bytes that it takes in a shard."""
        return sum(picture.size for picture in self.pictures.values())

    @property
    def place(self) -> tuple[str, str]:
        """Where it came from, whatever its bytes: source and name."""
        return self.source.source, self.source.name

    def without_data(self) -> "Examined":
        """The same, a few hundred bytes large."""
        return replace(self, data={})


@dataclass(frozen=True, slots=True)
class Examiner:
    """What an examination needs to know."""

    pairs: Mapping[int, PairedFolder]  # by scale
    known: Set[tuple[str, str, str | None]]  # read only: several threads look things up in it
    patch: int  # px, side of a window
    only: Set[tuple[str, str]] | None = None  # the places that are looked at, all others are known; None: every one

    def examine(self, source: Source) -> Examined:
        """Read, hash and decode one source. A bad image is refused with its reason, never raised."""
        if self.only is not None and (source.source, source.name) not in self.only:
            return Examined(source, None, STATUS_OK, known=True)
        try:
            data = _read(source)
        except ImageRefused as refusal:
            return Examined(source, None, str(refusal))
        sha256 = hashlib.sha256(data).hexdigest()
        if (known := Examined(source, sha256, STATUS_OK, known=True)).file in self.known:
            return known
        try:
            hr = _picture(data, source.suffix)
        except ImageRefused as refusal:
            return Examined(source, sha256, str(refusal))
        pictures, contents = {"hr": hr}, {"hr": data}
        try:
            _check_patch(hr, self.patch)
            for scale in self.pairs:
                pictures[f"lr{scale}"], contents[f"lr{scale}"] = self._paired(source, hr, scale)
        except ImageRefused as refusal:
            return Examined(source, sha256, str(refusal), hr.height, hr.width)
        return Examined(source, sha256, STATUS_OK, hr.height, hr.width, pictures, data=contents)

    def _paired(self, source: Source, hr: Picture, scale: int) -> tuple[Picture, bytes]:
        lr = self.pairs[scale].lookup(source.name)
        if lr is None:
            raise ImageRefused(f"no x{scale} LR image for it")
        try:
            data = _read(lr)
            picture = _picture(data, lr.suffix)
        except ImageRefused as refusal:
            raise ImageRefused(f"its x{scale} LR image: {refusal}") from None
        # MATLAB rounds sizes up, other tools down; both keep the pixel grid of the top-left corner.
        sides = ((picture.height, hr.height), (picture.width, hr.width))
        if any(low not in (high // scale, -(-high // scale)) for low, high in sides):
            found = f"{picture.height}x{picture.width}"
            raise ImageRefused(f"its x{scale} LR image is {found}, which is not {hr.height}x{hr.width} / {scale}")
        return picture, data


def _read(source: Source) -> bytes:
    try:
        return source.read()
    except OSError as error:
        raise ImageRefused(f"{UNREADABLE}: {one_line(error.strerror or error)}") from None


def _picture(data: bytes, suffix: str) -> Picture:
    height, width = images.size(data)
    ending = suffix if suffix in images.SUFFIXES else ".img"
    return Picture(ending, height, width, len(data), xxhash.xxh3_64_intdigest(data))


def _check_patch(picture: Picture, patch: int) -> None:
    height, width = windows.cropped(picture.height), windows.cropped(picture.width)
    if min(height, width) < patch:
        found = f"{picture.height}x{picture.width} px (cropped: {height}x{width})"
        raise ImageRefused(f"{TOO_SMALL}: {found}, a patch is {patch}")
