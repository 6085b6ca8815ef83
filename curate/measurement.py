"""What was measured of networks, kept beside their runs: the same weights on the same images are measured once."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from curate import files, latency
from curate.archs import Arch
from curate.checkpoint import Checkpoint, full_spec, weights_hash
from curate.evaluation import averages, evaluate, fingerprint
from curate.tensors import pick_device

__all__ = ["kept", "measured", "timed"]


def measured(made: Checkpoint, record: Path, test: str | Path, device: str) -> dict[str, float]:
    """Mean psnr (dB) and ssim on a test folder, kept in `record` under the hashes of the weights and the test images.

    Raises as `evaluate` does.
    """
    of = {"weights": weights_hash(made.state), "test": fingerprint(test, made.arch.scale)}
    there = kept(record)
    if {name: there.pop(name, None) for name in of} == of and there.keys() == {"psnr", "ssim"}:
        figures = {name: value for name, value in there.items() if isinstance(value, float)}
        if len(figures) == len(there):
            return figures
    found = averages(evaluate(made, test, device=device))
    files.publish_bytes(record, json.dumps({**of, **found}, indent=2).encode())
    return found


def timed(archs: Sequence[Arch], record: Path, device: str) -> list[float]:
    """Milliseconds for an answer of 1280x720 px, 320x180 on a CPU, of fresh networks, all with the same image.

    Measured one after the other, and kept in `record` under the device, its threads and each arch.
    """
    where = pick_device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"cpu, threads: {torch.get_num_threads()}"
    there = kept(record)
    known = there.get("milliseconds") if there.get("device") == name else None
    times = {spec: time for spec, time in known.items() if type(time) is float} if isinstance(known, dict) else {}
    for arch in archs:
        if full_spec(arch) not in times:
            times[full_spec(arch)] = latency.of(arch, where)
            files.publish_bytes(record, json.dumps({"device": name, "milliseconds": times}, indent=2).encode())
    return [times[full_spec(arch)] for arch in archs]


def kept(record: Path) -> dict[str, Any]:
    """What was kept in a JSON file; nothing of a damaged one, or where there is none: it is made again."""
    try:
        found = json.loads(record.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
