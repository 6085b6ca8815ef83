"""Coverage-guided fuzzing of every target, by atheris: `make fuzz SECONDS=60`, or

    python fuzz/run.py --seconds 60 --crashers fuzz/crashers TARGET...

Each target runs in a process of its own, so that one that crashes the interpreter, hangs or eats the memory is a
finding like any other. Only curate is instrumented: the libraries that it calls are tried, but not searched. An input
that brought a finding stays in the folder of crashers, and `--again FILE TARGET` tries it once more. The exit code is 1
if there was any finding.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

ROOT = Path(__file__).parent.parent
RSS_MB = 4096  # of one process; torch, Arrow and DuckDB alone take 700
TIMEOUT = 120  # seconds for one input: the largest image that is taken is 1.5 GB in memory
MAX_BYTES = 2**17  # of one input
ANSWER = re.compile(r"Done (\d+) runs|#(\d+)\s")


def main() -> int:
    """Fuzz each target for a while; a line each, then what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all of them, if none is named")
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--crashers", type=Path, default=ROOT / "fuzz" / "crashers")
    parser.add_argument("--again", type=Path, metavar="FILE", help="try one input on one target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # the process of one target
    options = parser.parse_args()
    if options.inside:
        _fuzz(options.targets[0], options.seconds, options.crashers, options.seed)
    sys.path[:0] = [str(ROOT / "fuzz"), str(ROOT)]
    from targets import TARGETS
    from workshop import Workshop

    if unknown := set(options.targets) - TARGETS.keys():
        sys.exit(f"no target {', '.join(sorted(unknown))}; there are: {', '.join(TARGETS)}")
    names = options.targets or list(TARGETS)
    if options.again:
        with tempfile.TemporaryDirectory() as folder:
            TARGETS[names[0]](Workshop(Path(folder))).act(options.again.read_bytes())
        return 0
    failed = [name for name in names if not _run(name, options)]
    print(f"{len(names) - len(failed)} of {len(names)} targets without a finding")
    if failed:
        print(f"findings in {', '.join(failed)}: inputs and logs in {options.crashers}")
    return 1 if failed else 0


def _run(name: str, options: argparse.Namespace) -> bool:
    """Fuzz one target in a process of its own; whether nothing was found."""
    crashers: Path = options.crashers / name
    crashers.mkdir(parents=True, exist_ok=True)
    log = crashers / "log"
    command = [sys.executable, __file__, "--inside", "--seconds", str(options.seconds), "--seed", str(options.seed)]
    command += ["--crashers", str(crashers), name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    began = time.monotonic()
    with log.open("wb") as output, tempfile.TemporaryDirectory(dir=_memory()) as folder:
        limit = options.seconds + 4 * TIMEOUT
        try:
            ended = subprocess.run(
                command, stdout=output, stderr=output, env={**environment, "TMPDIR": folder}, timeout=limit
            ).returncode
        except subprocess.TimeoutExpired:
            ended = -1
    numbers = [int(one or other) for one, other in ANSWER.findall(log.read_text("utf-8", "replace"))]
    found = "" if ended == 0 else f", A FINDING (exit code {ended})"
    print(f"{name}: {max(numbers, default=0)} executions in {time.monotonic() - began:.0f} s{found}", flush=True)
    if ended == 0:
        log.unlink()
        if not any(crashers.iterdir()):
            crashers.rmdir()
    return ended == 0


def _memory() -> str | None:
    """A folder in memory, where there is one: targets write every input to a file."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _fuzz(name: str, seconds: float, crashers: Path, seed: int) -> None:
    """libFuzzer's loop; it ends the process."""
    import atheris

    sys.path[:0] = [str(ROOT / "fuzz"), str(ROOT)]
    # To the end of the process: curate imports much of itself when it is used.
    atheris.instrument_imports(include=["curate"], enable_loader_override=False).__enter__()
    import torch
    from targets import TARGETS
    from workshop import Workshop

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (RSS_MB << 21, RSS_MB << 21))  # what is claimed at once is refused at once
    folder = Path(tempfile.mkdtemp())
    target = TARGETS[name](Workshop(folder))
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(target.seeds):
        (corpus / f"{number}").write_bytes(data)

    def mutate(data: bytes, most: int, number: int) -> bytes:
        rng = Random(number)
        made = target.mutate(data, rng) if rng.randrange(3) else atheris.Mutate(data, most)
        return made[:most]

    arguments = [
        f"-max_total_time={int(seconds)}",
        f"-timeout={TIMEOUT}",
        f"-rss_limit_mb={RSS_MB}",
        f"-seed={seed + 1}",
    ]
    arguments += [f"-artifact_prefix={crashers}/", f"-max_len={MAX_BYTES}", "-print_final_stats=1", "-verbosity=1"]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], target.act, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
