"""Coverage: what a choice takes from each image, each source and each size of image, and what never came in."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curate import coverage
from curate.reporting.facts import Choice, Facts

__all__ = ["Group", "by_size", "by_source", "of_images", "pixels", "refusals", "tenth", "top_tenth"]

Ints = npt.NDArray[np.int64]

_MEGAPIXELS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32)  # where one size class ends and the next begins


@dataclass(frozen=True, slots=True)
class Group:
    """Some images together."""

    name: str
    images: int
    patches: int
    chosen: dict[str, int]  # manifest -> how many of the patches


def of_images(facts: Facts, choice: Choice | None = None) -> Ints:
    """How many patches each image has, or how many of them a choice took."""
    rows = facts.image if choice is None else facts.image[choice.chosen]
    return np.bincount(rows, minlength=facts.images.num_rows)


def top_tenth(patches: Ints, chosen: Ints) -> float:
    """The share of a choice that comes from the tenth of the images that give it most; 0.1 if all give alike."""
    there = np.sort(chosen[patches > 0])[::-1]
    return float(there[: tenth(len(there))].sum() / max(1, there.sum()))


def tenth(images: int) -> int:
    """How many images a tenth of them is, one at least."""
    return max(1, round(images / 10))


def pixels(facts: Facts, choice: Choice | None = None) -> int:
    """Pixels under all windows, or under those that were chosen, each counted once."""
    windows = facts.patches.select(["image_id", "y", "x", "size"])
    return coverage.pixels(windows if choice is None else windows.filter(pa.array(choice.chosen)))


def by_source(facts: Facts) -> list[Group]:
    """The images by the folder or archive that they came from, by name."""
    names = np.array(facts.images["source"].to_pylist(), object)
    return [_group(facts, name, names == name) for name in sorted(set(names))]


def by_size(facts: Facts) -> list[Group]:
    """The images by their number of pixels, small ones first."""
    height, width = (facts.images[name].to_numpy().astype(np.int64) for name in ("height", "width"))
    classes = np.searchsorted(np.array(_MEGAPIXELS) * 1e6, height * width, side="right")
    return [_group(facts, _class_name(number), classes == number) for number in np.unique(classes)]


def refusals(facts: Facts) -> Mapping[str, int]:
    """Why images were refused at ingest -> how many; reasons that differ in a number or a name alone are one."""
    counts: dict[str, int] = {}
    for status in facts.refused["status"].to_pylist():
        reason = re.sub(r"^copy of .*", "copy of another", status.partition(":")[0])
        reason = re.sub(r"\d+", "N", reason)
        counts[reason] = counts.get(reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _group(facts: Facts, name: str, images: npt.NDArray[np.bool_]) -> Group:
    chosen = {choice.name: int(of_images(facts, choice)[images].sum()) for choice in facts.choices}
    return Group(name, int(images.sum()), int(of_images(facts)[images].sum()), chosen)


def _class_name(number: int) -> str:
    if number == 0:
        return f"below {_MEGAPIXELS[0]:g} Mpx"
    if number == len(_MEGAPIXELS):
        return f"{_MEGAPIXELS[-1]:g} Mpx and more"
    return f"{_MEGAPIXELS[number - 1]:g} to {_MEGAPIXELS[number]:g} Mpx"
