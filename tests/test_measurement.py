"""What was measured is measured once: of the same weights, on the same images, from a record that is whole."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curate import latency
from curate import measurement as module
from curate.archs.fsrcnn import Fsrcnn
from curate.checkpoint import Checkpoint
from curate.evaluation import averages, evaluate
from curate.measurement import kept, measured, timed


def test_the_same_is_measured_once(
    tmp_path: Path, write_photos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    arch = Fsrcnn(scale=2, d=4, s=2, m=1)
    bench = write_photos(tmp_path / "Bench", [(60, 72)], 9)
    one, other = (Checkpoint(arch, arch.build().state_dict(), {}) for _ in range(2))
    calls: list[Any] = []
    monkeypatch.setattr(module, "evaluate", lambda *given, **how: calls.append(given) or evaluate(*given, **how))
    found = [measured(made, tmp_path / "Bench.json", bench, "cpu") for made in (one, one, other, other)]
    assert found[:2] == [averages(evaluate(one, bench))] * 2 and found[2:] == [averages(evaluate(other, bench))] * 2
    assert len(calls) == 2
    assert json.loads((tmp_path / "Bench.json").read_bytes()).items() > found[-1].items()


DAMAGED = [b"", b"\xff", b"[]", b"1", b"[" * 100_000]
OF_ANOTHER = b'{"weights": "w", "test": "t", "psnr": 1.0, "ssim": 1.0}'


@pytest.mark.parametrize("record", [*DAMAGED, b'{"psnr": 1.0, "ssim": 1.0}', OF_ANOTHER])
def test_a_damaged_measurement_is_made_again(record: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = Fsrcnn(scale=2, d=4, s=2, m=1)
    made, file = Checkpoint(arch, arch.build().state_dict(), {}), tmp_path / "Bench.json"
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: None)
    monkeypatch.setattr(module, "averages", lambda _: {"psnr": 7.0, "ssim": 0.5})
    monkeypatch.setattr(module, "fingerprint", lambda *_: "t")
    file.write_bytes(record)
    assert measured(made, file, "Bench", "cpu") == {"psnr": 7.0, "ssim": 0.5}
    whole = file.read_bytes()
    for wrong in (whole.replace(b"7.0", b'"7.0"'), whole.replace(b"ssim", b"sim")):
        file.write_bytes(wrong)
        assert measured(made, file, "Bench", "cpu") == {"psnr": 7.0, "ssim": 0.5} and file.read_bytes() == whole
    monkeypatch.setattr(module, "averages", lambda _: {"psnr": 8.0, "ssim": 0.5})
    assert measured(made, file, "Bench", "cpu") == {"psnr": 7.0, "ssim": 0.5}  # of a whole one it is not


def test_networks_are_timed_once_and_all_with_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archs, seen, file = [Fsrcnn(scale=3, d=d, s=2, m=1) for d in (4, 6)], list[Any](), tmp_path / "latency.json"
    monkeypatch.setattr(latency, "milliseconds", lambda net, image: seen.append((net, image)) or 10.5 * len(seen))
    assert timed([*archs, archs[0]], file, "cpu") == [10.5, 21.0, 10.5] == timed([*archs, archs[0]], file, "cpu")
    (small, one), (large, other) = seen
    assert one.equal(other) and one.shape == (1, 1, 60, 106) and 0 <= one.min() < one.max() <= 1
    assert len(list(small.parameters())) and not small.training and not large.training
    times = json.loads(file.read_bytes())
    for wrong in ({**times, "device": "of another machine"}, {**times, "milliseconds": [1]}, {"device": 1}):
        file.write_text(json.dumps(wrong))
        assert timed(archs[:1], file, "cpu") == [10.5 * len(seen)] and seen.pop()
    file.write_text(json.dumps({**times, "milliseconds": dict.fromkeys(times["milliseconds"], "fast")}))
    assert timed(archs[:1], file, "cpu") == [10.5 * len(seen)]


@pytest.mark.parametrize("record", DAMAGED)
def test_of_a_damaged_record_nothing_is_kept(record: bytes, tmp_path: Path) -> None:
    assert kept(tmp_path / "record.json") == {}
    (tmp_path / "record.json").write_bytes(record)
    assert kept(tmp_path / "record.json") == {}
    (tmp_path / "record.json").write_bytes(b'{"a": 1}')
    assert kept(tmp_path / "record.json") == {"a": 1}
