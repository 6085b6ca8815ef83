"""Several runs that ingest together leave the store that one leaves, in whatever order, killed or not."""

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from conftest import put

from curate import survey
from curate.engine import Engine, Part
from curate.errors import DataError, UsageError
from curate.ingestion import IngestReport, ingest
from curate.sources import Source
from curate.storage import place
from curate.store import Store

SIZES = ((50, 61), (36, 48), (48, 36), (60, 60), (26, 72), (37, 40), (20, 20))  # the last is smaller than a patch


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small chunks, and no waiting for the disk."""
    monkeypatch.setattr(survey, "CHUNK", 2)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def corpus(tmp_path: Path, write_photos: Callable[..., Path]) -> Path:
    """`photos`, with a copy and a damaged file, and `X2` with LR images; one has none."""
    folder = write_photos(tmp_path / "photos", SIZES)
    write_photos(tmp_path / "X2", [((h + 1) // 2, (w + 1) // 2) for h, w in SIZES], 50)
    (tmp_path / "X2" / "003.jpg").unlink()
    (folder / "copy of 000.png").write_bytes((folder / "000.png").read_bytes())
    (tmp_path / "X2" / "copy of 000.png").write_bytes((tmp_path / "X2" / "000.png").read_bytes())
    (folder / "bad.png").write_bytes(b"bad")
    return tmp_path


def take(corpus: Path, store: str = "store", part: str = "1/1") -> IngestReport:
    lr = {2: str(corpus / "X2")}
    options = {"patch": 24, "step": 12, "shard_size": 6_000, "lr": lr}
    return ingest([corpus / "photos"], corpus / store, part=Part.parse(part), **options)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("order", [("1/3", "2/3", "3/3"), ("3/3", "1/3", "2/3"), ("2/2", "1/2")])
def test_parts_in_any_order_leave_the_store_of_one_run(corpus: Path, order: tuple[str, ...]) -> None:
    whole = take(corpus, "whole")
    assert whole.shards >= 3 and len(whole.refused) == 4
    reports = [take(corpus, part=part) for part in order]
    assert all(report.missing and not report.added for report in reports[:-1])
    assert reports[-1] == whole
    assert tree(corpus / "store") == tree(corpus / "whole")
    assert not list((corpus / "store").rglob("examined"))


def test_a_whole_run_waits_for_no_part(corpus: Path) -> None:
    take(corpus, part="2/2")
    take(corpus)
    take(corpus, "whole")
    assert tree(corpus / "store") == tree(corpus / "whole")
    for part in ("1/2", "2/2", "1/2"):  # again, though all is there
        report = take(corpus, part=part)
        assert report.missing == report.added == 0 < report.known
        assert tree(corpus / "store") == tree(corpus / "whole")
    assert take(corpus).added == 0
    assert tree(corpus / "store") == tree(corpus / "whole")


@pytest.mark.parametrize("order", [("1/2", "2/2"), ("2/2", "1/2")])
def test_what_has_changed_since_it_was_ingested_is_added_once_whoever_sees_it(
    corpus: Path, order: tuple[str, ...]
) -> None:
    for name in ("store", "whole"):
        take(corpus, name)
    (corpus / "photos" / "001.jpg").write_bytes((corpus / "photos" / "003.jpg").read_bytes() + b"changed")
    take(corpus, "whole")
    for part in order:
        assert take(corpus, part=part).missing == 0
    assert tree(corpus / "store") == tree(corpus / "whole")
    assert not list((corpus / "store").rglob("examined"))


class StoppedError(Exception):
    """Raised in the middle of a run."""


def test_a_part_that_is_killed_anywhere_does_what_is_missing_when_it_is_run_again(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(corpus, "whole")
    commit, at, stopped = Store.commit, 0, True
    while stopped:
        stopped = False
        calls = iter(range(10**6))

        def stop(self: Store, *arguments: object, calls: object = calls, at: int = at) -> None:
            if next(calls) == at:  # type: ignore[call-overload]
                raise StoppedError
            commit(self, *arguments)  # type: ignore[arg-type]

        name = f"store {at}"
        take(corpus, name, "1/2")
        with monkeypatch.context() as patch:
            patch.setattr(Store, "commit", stop)
            try:
                take(corpus, name, "2/2")
            except StoppedError:
                stopped = True
        if stopped:
            assert take(corpus, name, "2/2").missing == 0
        assert tree(corpus / name) == tree(corpus / "whole"), at
        at += 1
    assert at > 5


def test_what_changed_in_between_is_noticed_and_examined_anew(corpus: Path) -> None:
    take(corpus, part="1/2")
    take(corpus, "other", "1/2")
    changed = corpus / "photos" / "001.jpg"
    changed.write_bytes((corpus / "photos" / "005.jpg").read_bytes())
    with pytest.raises(
        DataError, match=r"'001\.jpg' has changed since it was examined: ingest again, every part of it"
    ):
        take(corpus, part="2/2")
    assert take(corpus, part="2/2").missing > 0
    take(corpus, part="1/2")
    take(corpus, "whole")
    found = [Store.open(corpus / name).images() for name in ("store", "whole")]
    assert found[0].equals(found[1])  # in other shards, perhaps: the first may have been written before
    changed.unlink()
    assert take(corpus, "other", "2/2").missing > 0  # another listing: the first half does not count for it


def test_a_source_that_went_in_between_is_an_error(corpus: Path) -> None:
    take(corpus, part="1/2")
    (corpus / "photos" / "000.png").rename(corpus / "000.png")
    (corpus / "photos" / "000.png").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"'000\.png' cannot be read any more: .*No such file"):
        take(corpus, part="2/2")
    (corpus / "photos" / "000.png").unlink()
    (corpus / "000.png").rename(corpus / "photos" / "000.png")
    take(corpus, part="2/2")
    take(corpus, "whole")
    assert tree(corpus / "store") == tree(corpus / "whole")


def test_parts_add_to_a_store_that_has_some(corpus: Path) -> None:
    for store in ("store", "whole"):
        ingest([corpus / "photos" / "002.png"], corpus / store, patch=24, step=12)
    whole = take(corpus, "whole")
    assert [take(corpus, part=part).missing > 0 for part in ("1/3", "3/3", "2/3")] == [True, True, False]
    assert whole.shards >= 3
    assert tree(corpus / "store") == tree(corpus / "whole")


def test_a_run_and_a_part_do_not_write_at_once_but_parts_do(corpus: Path) -> None:
    take(corpus, part="1/2")
    with Store.open(corpus / "store").writing(shared=True):
        take(corpus, part="1/2")
        with pytest.raises(Exception, match="another curate is writing"):
            take(corpus)


def test_very_many_sources_make_no_more_than_so_many_chunks(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_MOST", 2)
    assert take(corpus, part="1/2").missing == 1
    assert take(corpus, part="2/2").added > 0


PROGRAM = """
import sys
from curate import survey
from curate.engine import Part
from curate.ingestion import ingest

survey.CHUNK = 2
ingest([sys.argv[1]], sys.argv[2], patch=24, step=12, shard_size=6_000, part=Part.parse(sys.argv[3]))
"""


def test_parts_at_the_same_time_leave_the_store_of_one_run(corpus: Path) -> None:
    """Also if they make the store at the same moment; whoever ends last writes the shards."""
    places = (corpus / "photos", corpus / "store")
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, places), f"{i}/2"], stderr=subprocess.PIPE, text=True
        )
        for i in (1, 2)
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    ingest([corpus / "photos"], corpus / "whole", patch=24, step=12, shard_size=6_000)
    assert tree(corpus / "store") == tree(corpus / "whole")


def test_parts_at_a_url_are_refused_before_anything_is_written(corpus: Path, memory: str) -> None:
    with pytest.raises(UsageError, match="parts of an ingest meet on a disk that they share, found the URL 'memory://"):
        ingest([corpus / "photos"], f"{memory}/store", part=Part.parse("1/2"))
    assert not Store.is_store(place(f"{memory}/store", "a store"))


def test_what_a_worker_alone_cannot_read_is_not_refused(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (corpus / "photos" / "dead.png").symlink_to(corpus / "nothing")  # which nobody can read
    reachable = [False]

    def absent(source: Source) -> bytes:
        raise FileNotFoundError(2, "No such file or directory")

    def run(job: Any, items: Iterable[Any], *_: object) -> Iterator[tuple[Any, Any]]:
        """A worker on a machine that lacks a disk, at first."""
        function = job.open()
        for item in items:
            with monkeypatch.context() as patch:
                if not reachable[0]:
                    patch.setattr(Source, "read", absent)
                result = function(item)
            yield item, result

    monkeypatch.setattr("curate.ingestion.joined", lambda engine: nullcontext())
    monkeypatch.setattr("curate.ingestion.run", run)
    options: dict[str, Any] = {"patch": 24, "step": 12, "shard_size": 6_000, "lr": {2: str(corpus / "X2")}}
    with pytest.raises(
        UsageError, match=r"a worker of Ray says of '000.png': cannot be read: .*; here it can"
    ) as refused:
        ingest([corpus / "photos"], corpus / "store", engine=Engine("ray"), **options)
    assert str(refused.value).isprintable()
    reachable[0] = True
    ingest([corpus / "photos"], corpus / "store", engine=Engine("ray"), **options)
    assert take(corpus, "whole").added == 5
    assert tree(corpus / "store") == tree(corpus / "whole")


@pytest.mark.parametrize("kind", ["tar.gz", "memory"])
def test_what_workers_cannot_read_is_refused_before_anything_is_written(corpus: Path, memory: str, kind: str) -> None:
    if kind == "memory":
        source = put(f"{memory}/0.png", b"png")
    else:
        source = str(corpus / "photos.tar.gz")
        with tarfile.open(source, "w:gz") as tar:
            tar.add(corpus / "photos", "photos")
    with pytest.raises(UsageError, match="workers cannot read"):
        ingest([source], corpus / "store", engine=Engine("ray"))
    assert not (corpus / "store").exists()
    if kind == "tar.gz":  # a part of a run can
        assert ingest([source], corpus / "store", patch=24, part=Part.parse("1/2")).missing
