"""One job, and then the most memory that it took, in MB: python benchmarks/peak.py ingest FOLDER STORE PATCH STEP,
score STORE SCORER, select STORE STRATEGY OUT or sql STORE QUERY.

The peak is the kernel's VmHWM of this process alone (`ru_maxrss` may begin with what its parent had).
"""

import re
import sys
from pathlib import Path

import curate
from curate import selection


def main(verb: str, *arguments: str) -> None:
    """Do it, and print the peak."""
    if verb == "ingest":
        folder, store, patch, step = arguments
        curate.ingest([folder], store, patch=int(patch), step=int(step))
    elif verb == "select":
        store, strategy, out = arguments
        selection.write(store, out, strategy, by="srcnn")
    elif verb == "sql":
        store, query = arguments
        for _ in curate.Store.open(store).stream(query):
            pass
    else:
        store, scorer = arguments
        curate.score(store, [scorer], device="cpu")
    status = Path("/proc/self/status").read_text("utf-8")
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    print(int(kilobytes) / 1000)


if __name__ == "__main__":
    main(*sys.argv[1:])
