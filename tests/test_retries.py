"""What a retry of refused sources does to a store: what is whole now is added, what was refused becomes history."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import encoded_png

import curate
from curate import Store, examination, files, inspection, survey
from curate.engine import Engine, Part
from curate.errors import UsageError
from curate.ingestion import IngestReport, ingest
from curate.storage import place

BAD = encoded_png(50)[:-40]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small chunks, and no waiting for the disk."""
    monkeypatch.setattr(survey, "CHUNK", 2)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with three whole photographs, and of each way to fail one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(encoded_png(seed))
    (folder / "cut.png").write_bytes(BAD)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_bytes(b"text")
    (folder / "copy of 1.png").write_bytes(encoded_png(1))
    (folder / "late.png").symlink_to(tmp_path / "late.png")
    return folder


def take(photos: Path | list[Path], store: Path | str, part: str = "1/1", **options: object) -> IngestReport:
    named = photos if isinstance(photos, list) else [photos]
    return ingest(named, store, **{"patch": 24, "step": 12, "shard_size": 8000, "part": Part.parse(part)} | options)


def retry(photos: Path | list[Path], store: Path | str, **options: object) -> IngestReport:
    return take(photos, store, retry_failed=True, **options)


def mend(folder: Path) -> None:
    """Three of the five are whole now, and one is bad in another way."""
    (folder / "cut.png").write_bytes(encoded_png(50))
    (folder / "empty.png").write_bytes(encoded_png(51))
    (folder.parent / "late.png").write_bytes(encoded_png(52))
    (folder / "text.png").write_bytes(b"")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def statuses(store: Path | str) -> dict[str, str]:
    """Name -> status; a name that is there twice is an error."""
    rows = [(row["name"], row["status"]) for row in Store.open(store).images().to_pylist()]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def check_views(store: Path | str) -> None:
    """SQL, Python and `info` tell the same; what was taken is joined once."""
    opened = Store.open(store)
    table = opened.images()
    assert opened.query("from images").to_pylist() == table.to_pylist()
    assert opened.query("from images").schema.names == table.schema.names
    ok = table["status"].to_pylist().count("ok")
    facts = inspection.info(store)
    assert (facts["images"], facts["refused"]) == (ok, table.num_rows - ok)
    joined = opened.query("select count(*) n, count(distinct patch_id) d from patches join images using (image_id)")
    assert joined.to_pylist() == [{"n": opened.patches().num_rows, "d": opened.patches().num_rows}]


def test_what_is_whole_now_is_added_and_its_refusal_is_history(corpus: Path, tmp_path: Path) -> None:
    first = take(corpus, tmp_path / "store")
    assert (first.added, len(first.refused)) == (3, 5)
    before, digest = tree(tmp_path / "store"), Store.open(tmp_path / "store").digest()
    manifest = curate.select(tmp_path / "store", "random", keep=1.0).save(tmp_path / "all.parquet")
    mend(corpus)
    report = retry(corpus, tmp_path / "store")
    copy = next(reason for name, reason in first.refused if "copy" in name)
    assert (report.added, report.known) == (3, 0)
    assert report.refused == [("photos/copy of 1.png", copy), ("photos/text.png", "empty file")]
    whole = ["0.png", "1.png", "2.png", "cut.png", "empty.png", "late.png"]
    expected = dict.fromkeys(whole, "ok") | {"copy of 1.png": copy, "text.png": "empty file"}
    assert statuses(tmp_path / "store") == expected
    check_views(tmp_path / "store")
    after = tree(tmp_path / "store")
    assert before.items() <= after.items()  # nothing was changed
    store = Store.open(tmp_path / "store")
    assert store.digest(first.shards) == digest != store.digest()
    assert manifest.store().digest() == store.digest()  # a grown store still matches
    history = store.images(history=True)
    assert history.num_rows == 8 + 4 and history["status"].to_pylist().count("ok") == 6
    curate.score(store, ["sobel"])
    assert len(curate.select(store, "des", by="sobel", keep=1.0)) == store.patches().num_rows


def test_a_retry_is_done_once(corpus: Path, tmp_path: Path) -> None:
    take(corpus, tmp_path / "store")
    mend(corpus)
    first = retry(corpus, tmp_path / "store")
    before = tree(tmp_path / "store")
    again = retry(corpus, tmp_path / "store")
    assert (again.added, again.known, again.shards, again.refused) == (0, 0, 0, first.refused)
    assert take(corpus, tmp_path / "store").known == 8
    (corpus / "cut.png").write_bytes(BAD)
    assert take(corpus, tmp_path / "store").known == 8  # history is known too
    assert tree(tmp_path / "store") == before


def test_nothing_but_what_was_refused_is_read(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take(corpus, tmp_path / "store")
    (corpus / "new.png").write_bytes(encoded_png(60))
    read, names = examination._read, []
    monkeypatch.setattr(examination, "_read", lambda source: names.append(source.name) or read(source))
    calls: list[tuple[int, int]] = []
    retry(corpus, tmp_path / "store", progress=lambda done, total, note="": calls.append((done, total)))
    assert sorted(names) == ["copy of 1.png", "cut.png", "empty.png", "late.png", "text.png"]
    assert calls == [(done, 5) for done in range(1, 6)]


def test_a_file_that_any_ingest_took_since_is_settled(corpus: Path, tmp_path: Path) -> None:
    take(corpus, tmp_path / "store")
    mend(corpus)
    plain = take(corpus, tmp_path / "store")
    assert (plain.added, plain.refused) == (3, [("photos/text.png", "empty file")])
    shown = Store.open(tmp_path / "store").images()
    assert shown.num_rows == 12  # other bytes are another source file, until a retry says that they are the same one's
    report = retry(corpus, tmp_path / "store")
    assert (report.added, report.known, len(report.refused)) == (0, 3, 2)
    assert list(statuses(tmp_path / "store").values()).count("ok") == 6
    check_views(tmp_path / "store")
    before = tree(tmp_path / "store")
    assert retry(corpus, tmp_path / "store").known == 0
    assert tree(tmp_path / "store") == before


def test_the_same_bytes_are_judged_anew(tmp_path: Path) -> None:
    """An LR image that was missing is there; nothing about the photograph's own bytes has changed."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded_png(1))
    (folder / "b.png").write_bytes(encoded_png(2))
    lrs = tmp_path / "X2"
    lrs.mkdir()
    (lrs / "a.png").write_bytes(encoded_png(101, 18, 24))
    lr = {2: str(lrs)}
    assert take(folder, tmp_path / "store", lr=lr).refused == [("photos/b.png", "no x2 LR image for it")]
    (lrs / "b.png").write_bytes(encoded_png(102, 10, 24))
    assert take(folder, tmp_path / "store", lr=lr).known == 2
    reason = "its x2 LR image is 10x24, which is not 36x48 / 2"
    assert retry(folder, tmp_path / "store", lr=lr).refused == [("photos/b.png", reason)]
    assert statuses(tmp_path / "store") == {"a.png": "ok", "b.png": reason}
    (lrs / "b.png").write_bytes(encoded_png(102, 18, 24))
    assert retry(folder, tmp_path / "store", lr=lr).added == 1
    assert statuses(tmp_path / "store") == {"a.png": "ok", "b.png": "ok"}
    check_views(tmp_path / "store")


def test_a_failure_that_passes(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permission denied, an input/output error: refused with the reason, taken when it is gone."""
    with monkeypatch.context() as patch:
        read = examination._read

        def denied(source: object) -> bytes:
            if source.name in ("0.png", "1.png"):  # type: ignore[attr-defined]
                raise examination.ImageRefused("cannot be read: Permission denied")
            return read(source)  # type: ignore[arg-type]

        patch.setattr(examination, "_read", denied)
        take(corpus, tmp_path / "store")
    found = statuses(tmp_path / "store")
    assert found["0.png"] == found["1.png"] == "cannot be read: Permission denied"
    assert found["copy of 1.png"] == "ok"
    report = retry(corpus, tmp_path / "store")
    image_id = Store.open(tmp_path / "store").images().to_pylist()[-1]["sha256"][:16]
    assert report.added == 1 and ("photos/1.png", f"copy of {image_id}") in report.refused
    assert statuses(tmp_path / "store")["0.png"] == "ok"
    check_views(tmp_path / "store")


def test_what_is_gone_stays_refused(corpus: Path, tmp_path: Path) -> None:
    take(corpus, tmp_path / "store")
    before = statuses(tmp_path / "store")
    (corpus / "cut.png").unlink()
    assert "photos/cut.png" not in dict(retry(corpus, tmp_path / "store").refused)
    assert statuses(tmp_path / "store") == before


def test_a_photograph_that_went_bad_and_came_back(corpus: Path, tmp_path: Path) -> None:
    """What was taken is never hidden, and what was refused in between is settled."""
    take(corpus, tmp_path / "store")
    (corpus / "0.png").write_bytes(BAD + b"2")
    assert take(corpus, tmp_path / "store").refused[0][0] == "photos/0.png"
    (corpus / "0.png").write_bytes(encoded_png(0))
    assert retry(corpus, tmp_path / "store").known == 1
    assert statuses(tmp_path / "store")["0.png"] == "ok"
    check_views(tmp_path / "store")


def test_two_refused_files_of_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    folders = [tmp_path / name / "photos" for name in "ab"]
    for seed, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(BAD + bytes([seed]))
    take(folders, tmp_path / "store")
    assert Store.open(tmp_path / "store").images().num_rows == 2
    with pytest.raises(UsageError) as refused:
        retry(folders, tmp_path / "store")
    assert str(refused.value) == (
        "'1.png', refused before, is in two folders called 'photos': retry them one after the other"
    )
    (folders[0] / "1.png").write_bytes(encoded_png(1))
    assert retry(folders[0], tmp_path / "store").added == 1


def test_there_must_be_a_store(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a store: found nothing"):
        retry(corpus, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    take(corpus, tmp_path / "store")
    with pytest.raises(UsageError, match="a store has one grid"):
        retry(corpus, tmp_path / "store", patch=36)


@pytest.mark.parametrize("order", [("1/3", "2/3", "3/3"), ("2/2", "1/2")])
def test_parts_leave_the_store_of_one_run(corpus: Path, tmp_path: Path, order: tuple[str, ...]) -> None:
    take(corpus, tmp_path / "store")
    mend(corpus)
    shutil.copytree(tmp_path / "store", tmp_path / "whole")
    whole = retry(corpus, tmp_path / "whole")
    reports = [retry(corpus, tmp_path / "store", part=part) for part in order]
    assert all(report.missing for report in reports[:-1])
    assert reports[-1] == whole
    assert tree(tmp_path / "store") == tree(tmp_path / "whole")


def test_what_was_refused_since_a_part_was_run_is_looked_at_too(corpus: Path, tmp_path: Path) -> None:
    take(corpus, tmp_path / "store")
    mend(corpus)
    retry(corpus, tmp_path / "store", part="2/2")
    (corpus / "2.png").write_bytes(b"no picture any more")
    take(corpus / "2.png", tmp_path / "store")
    (corpus / "2.png").write_bytes(encoded_png(70))
    assert retry(corpus, tmp_path / "store", part="1/2").missing == 1  # not 0: it had been passed over
    report = retry(corpus, tmp_path / "store", part="2/2")
    assert (report.added, report.missing) == (4, 0)
    found = Store.open(tmp_path / "store").images()
    assert sum(name == "2.png" for name in found["name"].to_pylist()) == 2  # two photographs, one after the other
    assert found["status"].to_pylist().count("ok") == 7


@pytest.mark.slow
def test_on_ray_it_is_the_same(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    take(corpus, tmp_path / "store")
    mend(corpus)
    shutil.copytree(tmp_path / "store", tmp_path / "whole")
    whole = retry(corpus, tmp_path / "whole")
    assert retry(corpus, tmp_path / "store", engine=Engine("ray", 1)) == whole
    assert tree(tmp_path / "store") == tree(tmp_path / "whole")


class StoppedError(Exception):
    """Raised in the middle of a run."""


@pytest.mark.slow
@pytest.mark.parametrize("part", ["1/1", "1/2"])
def test_killed_anywhere_and_run_again_it_ends_with_the_same_bytes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    take(corpus, tmp_path / "store")
    mend(corpus)
    shutil.copytree(tmp_path / "store", tmp_path / "whole")
    assert retry(corpus, tmp_path / "whole", shard_size=1).shards == 3
    publish, at = files.publish, 0

    def stop(path: Path, write: Callable[..., object], **options: bool) -> str:
        nonlocal left
        left -= 1
        if left < 0:
            raise StoppedError
        return publish(path, write, **options)

    while True:
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        shutil.copytree(tmp_path / "store", tmp_path / "killed")
        left = at
        try:
            with monkeypatch.context() as patch:
                patch.setattr(files, "publish", stop)
                for index in range(1, int(part[-1]) + 1):
                    retry(corpus, tmp_path / "killed", part=f"{index}/{part[-1]}", shard_size=1)
            break
        except StoppedError:
            for index in range(1, int(part[-1]) + 1):
                if retry(corpus, tmp_path / "killed", part=f"{index}/{part[-1]}", shard_size=1).shards:
                    break  # all is done: to begin again would be another retry
            assert tree(tmp_path / "killed") == tree(tmp_path / "whole"), at
            at += 1
    assert at > 15


def test_at_a_url_it_is_the_same(corpus: Path, tmp_path: Path, memory: str) -> None:
    url = f"{memory}/store"
    take(corpus, tmp_path / "store")
    take(corpus, url)
    mend(corpus)
    assert retry(corpus, url) == retry(corpus, tmp_path / "store")
    there = place(url, "a store")
    assert all((there / name).read_bytes() == data for name, data in tree(tmp_path / "store").items())
    check_views(url)
