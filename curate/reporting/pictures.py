"""Pictures of patches and photographs: each photograph decoded once, in threads, and shown small."""

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from curate.pool import ahead
from curate.progress import Progress, silent
from curate.store import Store

__all__ = ["PATCH_PX", "Box", "Pictures", "data_uri", "heat", "png", "take"]

PATCH_PX = 144  # longest side of a patch's picture
_PHOTO_PX = 360  # of a photograph's, in which a patch's place is shown
_MAP_PX = 720  # of one that a map is drawn over
_QUALITIES = ((80, 1.0), (70, 1.0), (60, 0.8), (50, 0.65), (40, 0.5), (30, 0.4))  # of WebP, and a factor of the sides

Box = tuple[int, int, int]  # y, x, size: a window, px


@dataclass(frozen=True)
class Pictures:
    """Small RGB images."""

    patches: Mapping[int, Image.Image]  # by the caller's number
    photos: Mapping[str, Image.Image]  # by image_id
    maps: Mapping[str, Image.Image]  # the same, larger

    def encoded(self, step: int) -> tuple[dict[int, str], dict[str, str], dict[str, str]]:
        """All as data URIs: patches, photos, maps; the higher the step, the fewer bytes."""
        quality, factor = _QUALITIES[min(step, len(_QUALITIES) - 1)]

        def uris(images: Mapping[Any, Image.Image]) -> dict[Any, str]:
            encoded = ahead(lambda image: data_uri(_webp(_scaled(image, factor), quality)), images.values())
            return dict(zip(images, encoded, strict=True))

        return uris(self.patches), uris(self.photos), uris(self.maps)


@dataclass(frozen=True)
class _Job:
    image_id: str
    windows: tuple[tuple[int, Box], ...]
    shown: bool  # the photograph too
    mapped: bool


def take(
    store: Store,
    windows: Mapping[int, tuple[str, Box]],
    maps: Iterable[str] = (),
    photos: Iterable[str] = (),
    progress: Progress = silent,
) -> Pictures:
    """Pictures of `windows` (number -> image_id and window), of their photographs, of `photos`, and of `maps` larger.

    DataError if a photograph is gone or damaged.
    """
    grouped: dict[str, list[tuple[int, Box]]] = {}
    for key, (image_id, box) in windows.items():
        grouped.setdefault(image_id, []).append((key, box))
    shown, mapped = {*grouped, *photos}, set(maps)
    ids = dict.fromkeys([*grouped, *photos, *maps])
    jobs = [_Job(i, tuple(grouped.get(i, ())), i in shown, i in mapped) for i in ids]
    store.cells("")  # the index is made here, once, and not in every thread

    def look(job: _Job) -> tuple[_Job, dict[int, Image.Image], Image.Image | None, Image.Image | None]:
        pixels = store.pixels(job.image_id)
        patches = {
            key: _scaled_to(Image.fromarray(np.ascontiguousarray(pixels[y : y + size, x : x + size])), PATCH_PX)
            for key, (y, x, size) in job.windows
        }
        whole = Image.fromarray(pixels)
        large = _scaled_to(whole, _MAP_PX) if job.mapped else None
        return job, patches, _scaled_to(whole, _PHOTO_PX) if job.shown else None, large

    found_patches: dict[int, Image.Image] = {}
    found_photos: dict[str, Image.Image] = {}
    found_maps: dict[str, Image.Image] = {}
    progress(0, len(jobs))
    for done, (job, patches, photo, large) in enumerate(ahead(look, jobs), 1):
        found_patches |= patches
        if photo is not None:
            found_photos[job.image_id] = photo
        if large is not None:
            found_maps[job.image_id] = large
        progress(done, len(jobs))
    return Pictures(found_patches, found_photos, found_maps)


def data_uri(data: bytes, kind: str = "image/webp") -> str:
    """A file as a URI that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(image: Image.Image) -> bytes:
    """An image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def heat(colours: npt.NDArray[np.uint8]) -> str:
    """A map of few colours, uint8 RGBA, as a data URI of a PNG file."""
    return data_uri(png(Image.fromarray(colours)), "image/png")


def _webp(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=4)
    return file.getvalue()


def _scaled_to(image: Image.Image, longest: int) -> Image.Image:
    return _scaled(image, min(1.0, longest / max(image.size)))


def _scaled(image: Image.Image, factor: float) -> Image.Image:
    if factor == 1.0:
        return image
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
