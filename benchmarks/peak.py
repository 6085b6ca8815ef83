"""One job, and then the most memory that it took, in MB: python benchmarks/peak.py ingest FOLDER STORE PATCH STEP
or score STORE SCORER.

The peak is the kernel's VmHWM of this process alone (`ru_maxrss` may begin with what its parent had).
"""

import re
import sys
from pathlib import Path

import curate


def main(verb: str, *arguments: str) -> None:
    """Do it, and print the peak."""
    if verb == "ingest":
        folder, store, patch, step = arguments
        curate.ingest([folder], store, patch=int(patch), step=int(step))
    else:
        store, scorer = arguments
        curate.score(store, [scorer], device="cpu")
    status = Path("/proc/self/status").read_text("utf-8")
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    print(int(kilobytes) / 1000)


if __name__ == "__main__":
    main(*sys.argv[1:])
