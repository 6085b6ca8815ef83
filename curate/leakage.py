"""Leaks: training images that overlap a test set, also where they were cropped, resized, turned or encoded again.

A network that has seen a test image measures too well on it. Local features propose where a test image may lie in a
training image (`curate.alignment`), and a correlation of their pixels decides. Whatever overlaps becomes a row of the
view `leaks`, and the image's status says so; a selection leaves it out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from shlex import quote
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curate import alignment, checks, flags, images, layout, pool
from curate.alignment import Features, Index
from curate.errors import DataError, UsageError, counted, one_line
from curate.images import ImageRefused
from curate.progress import Progress, silent
from curate.schema import CheckRecord
from curate.sources import Source, benchmark_name, find, hr_folder
from curate.store import Store

__all__ = ["Forgotten", "LeakReport", "forget", "leaks"]

_VERSION = 1  # raise it when the same images begin to give other findings
_AGREE = 0.9  # correlation of pixels; of 65 photographs crops of 96 px, at half the size as JPEG 40, have 0.96 and more
_FEWEST = 50  # features that a test image should have; a smaller number is reported


@dataclass(frozen=True, slots=True)
class LeakReport:
    """What one check found."""

    images: int  # that this run looked at
    tests: int  # images of the test set
    featureless: list[str]  # those of them with little to be recognised by: a copy may not be found
    leaks: pa.Table  # every overlap with this test set, earlier runs' too: `layout.LEAKS` with the image's name
    why: list[str]  # why findings that were there were not taken
    warning: str = ""  # that this may not be the test set that was meant

    def summary(self) -> pa.Table:
        """The overlaps as people look at them, numbers rounded."""
        numbers = [pc.round(self.leaks[name].cast(pa.float64()), 3) for name in ("scale", "share", "correlation")]
        names = ["image", "test image", "scale", "share of image", "correlation"]
        return pa.table([self.leaks["name"], self.leaks["test"], *numbers], names)


def leaks(
    store: Store | str | Path, folder: str | Path, *, name: str | None = None, progress: Progress = silent
) -> LeakReport:
    """Look for the images of a test set in a store; what was looked at before is not looked at again.

    `folder` is a folder of HR images, or a benchmark's with `HR` in it; `name` is what to call it (its own name by
    default). Raises UsageError for a folder without images and for a packed store, DataError for a test image that
    cannot be read.
    """
    store = store if isinstance(store, Store) else Store.open(store)
    store.require_whole("checked")
    label = benchmark_name(folder) if name is None else name
    if not label or label != one_line(label):
        raise UsageError(f"a test set's name should be one line of text, found '{one_line(label)}'")
    sources = find([str(hr_folder(folder))]).sources
    images_there = sum(store.rows(unit, "images") for unit in store.commits().values())
    tests = []
    for test in pool.ahead(_examine, sources):
        tests.append(test)
        progress(len(tests), len(sources) + images_there, "of the test set")

    def after_the_tests(done: int, total: int, note: str = "") -> None:
        progress(len(tests) + done, len(tests) + total, note)

    checked = checks.run(store, _Leaks(label, tests), after_the_tests)
    rows = [store.check_table(checked.found, unit) for unit in store.commits(checked.found.kind)]
    ours = pa.concat_tables([layout.LEAKS.empty_table(), *rows])
    featureless = [test.name for test in tests if len(test.features.points_N2) < _FEWEST]
    known = set(store.images()["sha256"].to_pylist())
    warning = ""
    if all(test.sha256 in known for test in tests):
        every = f"every one of the {counted(len(tests), 'image')} of {label} is itself in the store"
        how = f"if this is not a test set: curate leaks {quote(one_line(store.path))} --forget {quote(label)}"
        warning = f"{every}, and is left out as a leak; {how}"
    return LeakReport(checked.images, len(tests), featureless, flags.named(ours, store.images()), checked.why, warning)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What `forget` did."""

    name: str  # of the test set
    findings: int  # that were removed
    left: list[str]  # the test sets whose findings are still there


def forget(store: Store | str | Path, name: str) -> Forgotten:
    """Remove what `leaks` has found of the test set called `name`; those of others stay.

    A selection takes these images again. Manifests of before say still what was checked for them. A name of which
    there is nothing is no error, since a run that was killed is given again: the answer says what there is.
    """
    store = store if isinstance(store, Store) else Store.open(store)
    with store.writing():
        findings = store.remove_checks("leaks", name)
    left = [found.record.label for found in store.check_sets() if found.record.check == "leaks"]
    return Forgotten(name, findings, sorted(set(left)))


@dataclass(frozen=True, slots=True)
class _Picture:
    """An image as it is compared."""

    grey_HW: npt.NDArray[np.uint8]
    features: Features

    @classmethod
    def of(cls, pixels_HW3: npt.NDArray[np.uint8]) -> "_Picture":
        grey_HW = alignment.grey(pixels_HW3)
        return cls(grey_HW, alignment.features(grey_HW))


@dataclass(frozen=True, slots=True)
class _Test:
    """One image of the test set."""

    name: str
    sha256: str
    picture: _Picture

    @property
    def features(self) -> Features:
        return self.picture.features


def _examine(source: Source) -> _Test:
    try:
        data = source.read()
        return _Test(source.name, sha256(data).hexdigest(), _Picture.of(images.decode(data)))
    except (OSError, ImageRefused) as error:
        raise DataError(f"the test image '{one_line(source.name)}' cannot be read: {one_line(error)}") from None


@dataclass(frozen=True)
class _Leaks:
    """The check of one store against one test set."""

    columns: ClassVar[pa.Schema] = layout.LEAKS

    benchmark: str
    tests: Sequence[_Test]
    index: Index = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", Index([test.features for test in self.tests]))

    @property
    def record(self) -> CheckRecord:
        identity = {"tests": sorted([test.name, test.sha256] for test in self.tests)}
        fingerprint = checks.digest(["leaks", self.benchmark, _VERSION, identity])
        return CheckRecord(
            check="leaks", label=self.benchmark, version=_VERSION, identity=identity, fingerprint=fingerprint
        )

    def describe(self, pixels_HW3: npt.NDArray[np.uint8]) -> _Picture:
        return _Picture.of(pixels_HW3)

    def judge(self, image_id: str, description: _Picture) -> list[dict[str, Any]]:
        rows = []
        for number, placement in self.index.find(description.features):
            test = self.tests[number]
            found = alignment.agreement(test.picture.grey_HW, description.grey_HW, placement)
            if found.correlation >= _AGREE:
                x, y = placement.matrix_23[:, 2]
                rows.append(
                    {
                        "image_id": image_id,
                        "benchmark": self.benchmark,
                        "test": test.name,
                        "correlation": found.correlation,
                        "share": found.share_b,
                        "test_share": found.share_a,
                        "scale": placement.scale,
                        "degrees": placement.degrees,
                        "y": y,
                        "x": x,
                    }
                )
        return sorted(rows, key=lambda row: row["test"])

    def recall(self, findings: pa.Table) -> None:
        pass  # an image is judged by the test set alone
