"""Checks: every image of a store looked at once, shard by shard, and what was found committed like scores are.

A unit whose record carries the same fingerprint (the check, what it compares with, code version, and the shards up to
this one) is skipped, so that a check that was killed goes on, and one of a store that has grown sees only what is new.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curate import pool, reuse
from curate.progress import Progress
from curate.schema import STATUS_OK, CheckRecord, CommitRecord
from curate.store import CheckSet, Store

__all__ = ["Check", "Checked", "digest", "run"]


class Check(Protocol):
    """What looks at images, one after the other in the order of the store."""

    columns: ClassVar[pa.Schema]  # of its findings

    @property
    def record(self) -> CheckRecord:
        """What it is, and what its findings depend on."""
        ...

    def describe(self, pixels_HW3: npt.NDArray[np.uint8]) -> Any:
        """All that is to be known of an image (RGB, uint8). Several threads ask at the same time."""
        ...

    def judge(self, image_id: str, description: Any) -> list[dict[str, Any]]:
        """The rows of findings about an image."""
        ...

    def recall(self, findings: pa.Table) -> None:
        """Take the findings of a unit that was done before."""
        ...


def digest(content: object) -> str:
    """16 hex of the SHA-256 of a JSON-able content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Checked:
    """What one run did."""

    found: CheckSet  # where the findings are
    images: int  # that were looked at
    why: list[str]  # why findings that were there were not taken


def run(store: Store, check: Check, progress: Progress) -> Checked:
    """Look at every image that was not looked at.

    Raises UsageError for a packed store, which has parts of images only.
    """
    store.require_whole("checked")
    with store.writing():
        why = [line] if (line := _new_set(store, check.record)) else []
        found = store.add_check_set(check.record)
        units, done, parts = store.commits(), store.commits(found.kind), list[str]()
        todo, marks = list[CommitRecord](), dict[int, str]()
        for number, unit in units.items():
            parts += [part.xxh3 for part in unit.parts]
            marks[number] = digest([check.record.fingerprint, *parts])
            if number not in done or done[number].fingerprint != marks[number]:
                todo.append(unit)
        if stale := sum(unit.unit in done for unit in todo):
            shards = f"{stale} shard{'s' * (stale > 1)}"
            why.append(f"{found.folder}: looked at again, {shards} or those before are not those that were looked at")
        total, seen = sum(len(_ids(store, unit)) for unit in todo), 0
        for number, unit in units.items():
            if unit not in todo:
                check.recall(store.check_table(found, number))
                continue
            rows = []
            for image_id, description in _descriptions(store, check, _ids(store, unit)):
                rows += check.judge(image_id, description)
                seen += 1
                progress(seen, total)
            part = store.write_table(found.kind, number, pa.Table.from_pylist(rows, check.columns))
            store.commit(found.kind, number, marks[number], [part])
    return Checked(found, seen, why)


def _new_set(store: Store, record: CheckRecord) -> str:
    """Why the findings that are there about the same are not taken; '' if they are, or there are none."""
    here = (found for found in store.check_sets() if found.record.check == record.check)
    same = [found for found in here if found.record.label == record.label]
    return reuse.anew(record.label, {found.folder: _entries(found.record) for found in same}, _entries(record))


def _entries(record: CheckRecord) -> dict[str, object]:
    tests = {f"test image {name}": sha256 for name, sha256 in record.identity.get("tests", [])}
    return {"code version": record.version, **tests}


def _ids(store: Store, unit: CommitRecord) -> list[str]:
    table = store.unit_table("images", unit.unit)
    taken: list[str] = table.filter(pc.equal(table["status"], STATUS_OK))["image_id"].to_pylist()
    return taken


def _descriptions(store: Store, check: Check, ids: list[str]) -> Iterator[tuple[str, Any]]:
    store.cell("")  # builds the index here, before several threads ask for it
    described = pool.ahead(lambda image_id: check.describe(store.pixels(image_id)), ids)
    yield from zip(ids, described, strict=True)
