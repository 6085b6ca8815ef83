"""Distilled stores for tests: synthetic photographs stand for what a distillation would have learnt.

As a verb, `write-distilled MANIFEST OUT`, for tests that run commands and kill them or let them fail: `add_verb`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from conftest import synthetic_photo

from curate.distillation import writing
from curate.manifest import Manifest
from curate.schema import Distilling
from curate.store import Store

Pixels = npt.NDArray[np.uint8]

PATCH = 24  # px


def patches(count: int, side: int = PATCH, seed: int = 100) -> Pixels:
    """Synthetic patches, N x side x side x 3."""
    return np.stack([synthetic_photo(side, side, seed + number) for number in range(count)])


def made_from(manifest: Manifest, **options: Any) -> Distilling:
    """What a distillation of a manifest with these options is."""
    return Distilling(
        source=manifest.recipe.store.digest, manifest=manifest.digest(), options={"seed": 0, **options}, code=1
    )


def distil(
    manifest: Manifest | Path,
    out: Path | str,
    hr: Pixels | None = None,
    *,
    batch: int = 2,
    groups: Sequence[str | None] | None = None,
    lr: Mapping[int, Pixels] | None = None,
    per_shard: int = 2,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> Manifest:
    """Write a distilled store of some patches, by default five in two groups, so many in a shard."""
    chosen = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
    pixels = patches(5) if hr is None else hr
    side = pixels.shape[1]
    names = [["flat", "rough"][number % 2] for number in range(len(pixels))] if groups is None else groups
    store = writing.begin(out, patch=side, made_from=made_from(chosen, **(options or {})))
    with store.writing():
        return writing.write(
            store,
            in_batches(pixels, batch),
            groups=names,
            manifest=chosen,
            lr={scale: in_batches(images, batch) for scale, images in (lr or {}).items()},
            shard_bytes=per_shard * 3 * side * side,
            **more,
        )


def in_batches(pixels: Pixels, size: int) -> Iterator[Pixels]:
    return (pixels[first : first + size] for first in range(0, len(pixels), size))


def distilled_pixels(manifest: Manifest) -> Pixels:
    """The patches of a distilled store, in the manifest's order."""
    store: Store = manifest.store()
    return np.stack([store.pixels(image_id) for image_id in manifest.table["image_id"].to_pylist()])


def add_verb() -> None:
    """Give this process's `curate` the verb."""
    from curate import cli

    @cli.app.command("write-distilled", hidden=True)
    def _write_distilled(manifest: str, out: str) -> None:
        distil(Path(manifest), Path(out))
