"""Every verb that writes, on a small corpus: for tests of machines that fail and of orders to stop."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from conftest import synthetic_photo
from PIL import Image
from warm import Kind, Warm

Argv = tuple[object, ...]

_FSRCNN = "fsrcnn:d=8,s=4,m=1"

# work: photos/, a store scored by sobel and noise, half.parquet, net/, a trained network; out: where the verb writes
VERBS: dict[str, Callable[[Path, Path], Argv]] = {
    "ingest": lambda work, out: ("ingest", work / "photos", out / "store", *GRID),
    "duplicates": lambda work, out: ("duplicates", out / "store"),
    "leaks": lambda work, out: ("leaks", out / "store", work / "photos"),
    "score": lambda work, out: ("score", out / "store", "blur", "entropy"),
    "select": lambda work, out: ("select", work / "store", "des", "--by", "sobel", "-o", out / "a.parquet"),
    "select, all at once": lambda work, out: ("select", work / "store", "random", "-o", out / "a.parquet"),
    "sql, csv": lambda work, out: ("sql", work / "store", _ROWS, "--format", "csv", "-o", out / "a.csv"),
    "sql, parquet": lambda work, out: ("sql", work / "store", _ROWS, "--format", "parquet", "-o", out / "a.parquet"),
    "diff": lambda work, out: ("diff", work / "half.parquet", work / "half.parquet", "-o", out / "a.parquet"),
    "pack": lambda work, out: ("pack", work / "half.parquet", out / "core", "--shard-size", "10KB"),
    "write distilled": lambda work, out: ("write-distilled", work / "half.parquet", out / "made"),
    "export, files": lambda work, out: ("export", work / "few.parquet", out / "a", "--to", "basicsr"),
    "export, lmdb": lambda work, out: ("export", work / "half.parquet", out / "a", "--to", "lmdb"),
    "export, tar": lambda work, out: ("export", work / "half.parquet", out / "a", "--to", "webdataset"),
    "export, parquet": lambda work, out: ("export", work / "half.parquet", out / "a", "--to", "hf"),
    "train": lambda work, out: ("train", work / "half.parquet", *TRAINING, "-o", out / "run"),
    "nas dlsr": lambda work, out: ("nas", "dlsr", work / "half.parquet", *SEARCH, "-o", out / "run"),
    "drc": lambda work, out: ("drc", work / "net", work / "half.parquet", *COMPRESSING, "-o", out / "run"),
    "report": lambda work, out: ("report", work / "few.parquet", "-o", out / "a.html", "--png", out / "png"),
    "run": lambda work, out: ("run", work / "study.toml", out / "study", work / "photos", "--test", work / "photos"),
}
FAST = [
    "ingest",
    "score",
    "select",
    "sql, csv",
    "pack",
    "write distilled",
    "export, files",
    "export, lmdb",
    "train",
]  # one of each kind
GRID = ("--patch", 48, "--step", 24, "--shard-size", "10KB")
TRAINING = ("--arch", _FSRCNN, "--steps", 5, "--crop", 24, "--save-every", 2, "--log-every", 1)
SEARCH = ("--features", 4, "--crop", 30, "--batch-size", 1, "--steps", 3, "--warmup", 1, "--save-every", 1)
COMPRESSING = (
    *("--search-steps", 2, "--batch-size", 2, "--crop", 24, "--patches", 2, "--per-pass", 16, "--save-every", 1),
    *("--finetune-steps", 2, "--finetune-batch-size", 2, "--finetune-crop", 24),
)
_DRN = ("--arch", "drn:scale=4,features=4,blocks=1", "--steps", 1, "--batch-size", 1, "--crop", 24)
_ROWS = "select * from scores, range(30)"
_STUDY = f"""
[ingest]
patch = 48
step = 24
[score]
scorers = ["sobel"]
[[select]]
name = "des"
strategy = "des"
[[train]]
archs = ["{_FSRCNN}"]
options = {{ steps = 2, crop = 24 }}
"""


@dataclass
class Work:
    """The corpus, and what each verb makes of it where nothing fails."""

    warm: Warm
    folder: Path
    good: dict[str, dict[str, bytes]]

    def argv(self, verb: str, out: Path) -> Argv:
        return VERBS[verb](self.folder, out)

    def prepare(self, verb: str, out: Path) -> None:
        """What the verb finds where it writes."""
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        if verb in ("duplicates", "leaks", "score"):
            shutil.copytree(self.folder / "store", out / "store")

    def expected(self, verb: str, out: Path) -> dict[str, bytes]:
        """The files that it should leave in `out`: those of a run without faults."""
        if verb not in self.good:
            self.calls(verb, out)
        return self.good[verb]

    def calls(self, verb: str, out: Path) -> Counter[Kind]:
        """How many calls of each kind a run without faults makes."""
        self.prepare(verb, out)
        ended = self.warm.run(*self.argv(verb, out), below=out)
        assert ended.code == 0, ended
        self.good[verb] = results(self.warm.tree(out))
        return Counter(kind for kind, _ in ended.calls)


def every(verb: str, calls: int) -> range:
    """The calls at which something is to happen: all, or of verbs that take seconds each time some."""
    return range(0, calls, 7 if verb in ("report", "run", "nas dlsr", "drc") else 1)


def results(tree: dict[str, bytes]) -> dict[str, bytes]:
    """All but TensorBoard's files, whose names and contents have the time in them, and how long a search took."""
    timed = ("events.out.tfevents", "seconds.json")
    return {name: data for name, data in tree.items() if not any(part in name for part in timed)}


def make(warm: Warm, folder: Path) -> Work:
    """Make the corpus in a new folder."""
    (folder / "photos").mkdir(parents=True)
    for i, size in enumerate(((96, 120), (72, 96), (60, 60), (100, 100))):
        Image.fromarray(synthetic_photo(*size, i)).save(folder / "photos" / f"{i}.png")
    (folder / "study.toml").write_text(_STUDY)
    store = folder / "store"
    for argv in (
        ("ingest", folder / "photos", store, *GRID),
        ("score", store, "sobel", "noise"),
        ("select", store, "des", "--by", "sobel", "-o", folder / "half.parquet"),
        ("select", store, "des", "--by", "sobel", "--keep", 0.15, "-o", folder / "few.parquet"),
        ("train", folder / "half.parquet", *_DRN, "-o", folder / "net"),
    ):
        ended = warm.run(*argv)
        assert ended.code == 0, ended
    return Work(warm, folder, {})
