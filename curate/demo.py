"""The demo: every verb, in order, on the sample photographs that come with the package."""

import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from curate.checkpoint import Checkpoint
from curate.config import TrainConfig
from curate.errors import UsageError, one_line
from curate.evaluation import averages, evaluate
from curate.ingestion import ingest
from curate.leakage import leaks
from curate.manifest import Manifest
from curate.progress import Progress
from curate.reporting import report
from curate.scoring import score
from curate.selection import select
from curate.store import Store
from curate.training import train

__all__ = ["demo"]

_SAMPLES = Path(__file__).parent / "samples"
_PATCH, _STEP = 96, 48  # px: small windows, so that four photographs give a few hundred
_ARCH = "fsrcnn:scale=2"
_CROP = 48  # HR px: a quarter of the default's pixels, for a demo that does not keep you waiting
_TRAINED_ON = ("refined", "random")  # of the same size: what is it worth to choose?
_CHOICES = {"asc": "srcnn", "des": "srcnn", "refined": "srcnn", "random": None}
_QUESTION = """\
SELECT images.name, round(avg(srcnn) * 1e4, 2) AS loss_e4, count(refined.patch_id) AS selected, count(*) AS patches
FROM scores JOIN images USING (image_id) LEFT JOIN refined USING (patch_id)
GROUP BY images.name ORDER BY loss_e4 DESC"""


def demo(
    folder: Path,
    *,
    steps: int,
    say: Callable[[str], None],
    progress: Callable[[str, str], AbstractContextManager[Progress]],
) -> dict[str, float]:
    """Make a store, scores, manifests and checkpoints under `folder`; run again, it skips what is there.

    `say` gets the story line by line, each step with the command that does the same. Returns the PSNR in dB after
    training on each core-set. UsageError if `folder` holds something else.
    """
    store_path = folder / "store"
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and not Store.is_store(store_path):
        raise UsageError(f"'{one_line(folder)}' holds something else; name a new or empty folder")

    say(
        f"The whole job on four photographs, with two trainings of {steps} steps (1500: two minutes on two idle cores)."
    )
    say("Where other jobs run beside it, OMP_NUM_THREADS=1 makes it faster, and --steps 200 shorter.")
    say(f"$ curate ingest {_SAMPLES / 'photos'} {store_path} --patch {_PATCH} --step {_STEP}")
    with progress("ingest", "files") as bar:
        added = ingest([_SAMPLES / "photos"], store_path, patch=_PATCH, step=_STEP, progress=bar)
    say(f"  {added.added} photographs, {added.patches} patches; {added.known} were there already")

    say(f"$ curate leaks {store_path} {_SAMPLES / 'test'}")
    with progress("leaks", "images") as bar:
        overlaps = leaks(store_path, _SAMPLES / "test", progress=bar).leaks.num_rows
    say(f"  {overlaps} photographs overlap the one that is held out")

    say(f"$ curate score {store_path} srcnn sobel")
    with progress("score", "patches") as bar:
        scored = score(store_path, ["srcnn", "sobel"], progress=bar)
    say(f"  {scored.in_words()}")

    manifests = {name: _choose(store_path, name, folder, say) for name in _CHOICES}
    _ask(store_path, manifests["refined"], say)
    results = {name: _train(manifests[name], folder / f"{name}-run", steps, say, progress) for name in _TRAINED_ON}

    page = folder / "report.html"
    shown = [manifests[name] for name in _TRAINED_ON]
    say(f"$ curate report {' '.join(str(manifest.path) for manifest in shown)} -o {page}")
    with progress("report", "photographs") as bar:
        report(shown, page, progress=bar)
    say(f"  what the {' and the '.join(_TRAINED_ON)} core-set chose, on one page")

    say("")
    say(f"One network, {steps} steps, on a chosen and on a random half of the patches (held-out photograph, x2):")
    for name, decibel in results.items():
        say(f"  {name:8} {decibel:.2f} dB")
    say("")
    say("Where to look:")
    if shutil.which("curate") is None:
        say(f"  . {Path(sys.executable).parent / 'activate'}   first: makes `curate` a command of this shell")
    say(f"  {page}   in any browser: the scores, the patches, what was chosen and why")
    say(f"  {folder / 'refined.parquet'}   the core-set; any Parquet reader opens it")
    say(f"  curate info {folder / 'refined.parquet'}   the recipe that made it")
    say(f'  curate sql {store_path} "select * from scores order by srcnn desc limit 10"   the hardest patches')
    say(f"  tensorboard --logdir {folder}   the two training runs")
    return results


def _choose(store: Path, name: str, folder: Path, say: Callable[[str], None]) -> Manifest:
    path, by = folder / f"{name}.parquet", _CHOICES[name]
    say(f"$ curate select {store} {name}{f' --by {by}' if by else ''} -o {path}")
    manifest = select(store, name, by=by).save(path)
    say(f"  {len(manifest)} of {manifest.recipe.counts['candidates']} patches")
    return manifest


def _ask(store: Path, manifest: Manifest, say: Callable[[str], None]) -> None:
    assert isinstance(manifest.path, Path)
    say(f'$ curate sql {store} -m {manifest.path} "{" ".join(_QUESTION.split())}"')
    for row in Store.open(store).query(_QUESTION, {"refined": manifest.path}).to_pylist():
        say(f"  {row['name']:24} loss {row['loss_e4']:6.2f}e-4   {row['selected']:4} of {row['patches']:4} selected")


def _train(
    manifest: Manifest,
    run: Path,
    steps: int,
    say: Callable[[str], None],
    progress: Callable[[str, str], AbstractContextManager[Progress]],
) -> float:
    """PSNR on the held-out photograph after training on `manifest`."""
    say(f"$ curate train {manifest.path} --arch {_ARCH} --steps {steps} --crop {_CROP} -o {run}")
    if (run / "model.safetensors").exists():
        say("  trained already")
    else:
        with progress("train", "steps") as bar:
            train(_ARCH, manifest, TrainConfig(steps=steps, crop=_CROP), run, progress=bar)
    say(f"$ curate eval {run} {_SAMPLES / 'test'}")
    measured = averages(evaluate(Checkpoint.load(run), _SAMPLES / "test"))
    say(f"  PSNR {measured['psnr']:.2f} dB, SSIM {measured['ssim']:.4f} on Y")
    return measured["psnr"]
