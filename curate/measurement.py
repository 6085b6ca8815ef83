"""What was measured of a checkpoint, kept beside its run: the same weights on the same images are measured once."""

import json
from collections.abc import Mapping
from pathlib import Path

from curate import files
from curate.checkpoint import Checkpoint, weights_hash
from curate.evaluation import averages, evaluate, fingerprint

__all__ = ["measured"]


def measured(made: Checkpoint, record: Path, test: str | Path, device: str) -> dict[str, float]:
    """Mean psnr (dB) and ssim on a test folder, kept in `record` under the hashes of the weights and the test images.

    Raises as `evaluate` does.
    """
    of = {"weights": weights_hash(made.state), "test": fingerprint(test, made.arch.scale)}
    if record.is_file() and (kept := _kept(record.read_bytes(), of)):
        return kept
    found = averages(evaluate(made, test, device=device))
    files.publish_bytes(record, json.dumps({**of, **found}, indent=2).encode())
    return found


def _kept(record: bytes, of: Mapping[str, str]) -> dict[str, float] | None:
    """What was measured of these weights and images; None of others, or of a damaged record: it is made again."""
    try:
        found = json.loads(record)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or {name: found.pop(name, None) for name in of} != of:
        return None
    whole = found.keys() == {"psnr", "ssim"} and all(isinstance(value, float) for value in found.values())
    return found if whole else None
