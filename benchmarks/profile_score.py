"""Where the time of `curate score` goes: python benchmarks/profile_score.py [SCORER ...]

Processor seconds an image, on mosaics of DIV2K's size. Each part is timed where it is called, in the thread that calls
it, so torch is left no more than that one; what a part calls of another's is the other's.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from corpus import SAMPLES, Size, forget_scores, mosaics

import curate
from curate import images, means, scoring, store
from curate.scorers import srcnn

# Name of the part, and the functions that are it: (where they are looked up, name)
PARTS: dict[str, list[tuple[Any, str]]] = {
    "read and check": [(store.Store, "_bytes")],
    "decode": [(images, "decode")],
    "planes and floats": [(scoring, "to_tensor"), (scoring, "to_float")],
    "LR and bicubic": [(srcnn, "downscale"), (srcnn, "upscale")],
    "luma": [(srcnn, "rgb_to_y")],
    "convolutions, bf16": [(torch.nn.Sequential, "forward")],
    "last convolution": [(srcnn.Refiner, "_refine")],
    "window means": [(means.WindowMeans, "add"), (means.WindowMeans, "means")],
    "tables": [(scoring, "_write")],
}


class Clock:
    """Processor seconds of every part; of nested ones each second once."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.running = threading.local()
        self.lock = threading.Lock()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose time counts as the part's, but for what is nested in it."""

        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            outer = getattr(self.running, "inside", 0.0)
            self.running.inside = 0.0
            started = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                taken = time.thread_time() - started
                with self.lock:
                    self.seconds[part] += taken - self.running.inside
                self.running.inside = outer + taken

        return wrapper


def main(scorers: list[str], size: Size) -> dict[str, float]:
    """Score, and print the parts; returns processor seconds an image."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        curate.ingest([mosaics(SAMPLES, folder / "corpus", size)], folder / "store", patch=size.patch, step=size.step)
        curate.score(folder / "store", scorers, device="cpu")
        forget_scores(folder / "store")
        clock = Clock()
        kept = [(owner, attribute, getattr(owner, attribute)) for where in PARTS.values() for owner, attribute in where]
        for part, where in PARTS.items():
            for owner, attribute in where:
                setattr(owner, attribute, clock.timed(part, getattr(owner, attribute)))
        started, began = time.process_time(), time.perf_counter()
        curate.score(folder / "store", scorers, device="cpu")
        total, wall = time.process_time() - started, time.perf_counter() - began
        for owner, attribute, function in kept:
            setattr(owner, attribute, function)
    clock.seconds["everything else"] = total - clock.seconds.total()
    print(f"curate score {' '.join(scorers)}: {size.images} images of {size.width}x{size.height}, {wall:.2f} s\n")
    print("| part | ms of a processor an image | share |\n|---|---|---|")
    for part, seconds in clock.seconds.most_common():
        print(f"| {part} | {1000 * seconds / size.images:.1f} | {100 * seconds / total:.0f} % |")
    print(f"| all | {1000 * total / size.images:.1f} | |")
    return {part: seconds / size.images for part, seconds in clock.seconds.items()}


if __name__ == "__main__":
    main(sys.argv[1:] or ["srcnn", "sobel"], Size(images=4))
