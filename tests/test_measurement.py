"""What was measured is measured once: of the same weights, on the same images, from a record that is whole."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curate import measurement as module
from curate.archs.fsrcnn import Fsrcnn
from curate.checkpoint import Checkpoint
from curate.evaluation import averages, evaluate
from curate.measurement import measured


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


@pytest.mark.parametrize(
    "record",
    [b"", b"\xff", b"[]", b"1", b"[" * 100_000, b'{"weights": "w"}', b'{"weights": "w", "psnr": "1", "ssim": 1.0}'],
)
def test_a_damaged_measurement_is_made_again(record: bytes) -> None:
    assert module._kept(record, {"weights": "w"}) is None
    assert module._kept(b'{"weights": "w", "psnr": 1.0, "ssim": 1.0}', {"weights": "w"}) == {"psnr": 1.0, "ssim": 1.0}
    assert module._kept(b'{"weights": "v", "psnr": 1.0, "ssim": 1.0}', {"weights": "w"}) is None
