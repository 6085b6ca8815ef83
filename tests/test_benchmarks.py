"""The benchmarks run, so that they do not rot: tiny, and their figures are not looked at."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_store_of_div2k_s_tables_has_div2k_s_number_of_windows(tmp_path: Path) -> None:
    import corpus

    from curate.store import Store

    assert corpus.div2k_tables(tmp_path / "store") == 32_592
    answer = Store.open(tmp_path / "store").query("select count(*) n, count(srcnn) s, count(sobel) t from scores")
    assert answer.to_pylist() == [{"n": 32_592, "s": 32_592, "t": 32_592}]


def test_renamed_photographs_are_all_taken(tmp_path: Path) -> None:
    import corpus

    import curate

    originals = corpus.mosaics(corpus.SAMPLES, tmp_path / "corpus", corpus.QUICK)
    assert len(list(originals.iterdir())) == corpus.QUICK.images
    renamed = corpus.renamed(originals, tmp_path / "renamed", 9, side=96)
    report = curate.ingest([renamed], tmp_path / "store", patch=96)
    assert (report.added, report.patches) == (9, 9)


def test_by_turns_and_the_median() -> None:
    import timing

    seen = []
    seconds = timing.alternate([lambda: seen.append("a"), lambda: seen.append("b")], 3, lambda: seen.append("-"))
    assert "".join(seen) == "-a-b" * 3
    assert len(seconds) == 2 and min(seconds) > 0


def test_a_target_is_reached_from_its_good_side() -> None:
    from table import Row

    faster, smaller = Row("a", "1", "b", "2", 2.5, 2.5), Row("a", "1", "b", "2", 1.1, 1, "below")
    assert (faster.reached, smaller.reached, Row("a", "1", "b", "2", 1).reached) == ("yes", "no", "")
    assert faster.markdown() == "| a | 1 | b | 2 | 2.50 | ≥ 2.5 | yes |"


# subject -> how a row of its begins
SUBJECTS = {
    "ingest": "ingest, ",
    "score": "score `sobel`",
    "load": "48-px crops, ",
    "tables": "`curate sql`, ",
    "shrink": "LR of one image",
    "search": "search, ",
}


def rows_of(subjects: list[str], folder: Path) -> list[str]:
    """In a process of its own, as `make bench` is: it forks, and the threads of other tests do not survive that."""
    table = folder / "latest.md"
    command = [sys.executable, str(BENCHMARKS / "bench.py"), *subjects, "--quick", "--output", str(table)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) > 3 and all(line.count("|") == 8 for line in lines[2:])
    assert table.read_text("utf-8").splitlines()[-1] == lines[-1]
    return lines


@pytest.mark.slow
def test_every_subject_gives_its_rows(tmp_path: Path) -> None:
    lines = rows_of(list(SUBJECTS), tmp_path)
    assert [
        subject for subject, row in SUBJECTS.items() if not any(line.startswith(f"| {row}") for line in lines)
    ] == []


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["memory", "select"])
def test_the_longer_subjects_give_their_rows(subject: str, tmp_path: Path) -> None:
    rows_of([subject], tmp_path)


def test_the_rows_of_a_gpu_come_on_a_cpu_too(tmp_path: Path) -> None:
    import corpus
    import rows
    import torch

    found = list(rows.on_device(rows.Bench(tmp_path, size=corpus.QUICK), 1.0, torch.device("cpu")))
    assert len(found) == 2 and all(row.ratio > 0 for row in found)


def test_the_profile_counts_every_second_once(capsys: pytest.CaptureFixture[str]) -> None:
    import corpus
    import profile_score

    seconds = profile_score.main(["sobel"], corpus.QUICK)
    assert seconds["decode"] > 0 and seconds["window means"] > 0
    assert min(seconds.values()) >= 0
    assert "| decode |" in capsys.readouterr().out
