"""How fast curate is beside the field's usual way, all in one go: make bench [PHOTOS=folder] [ROWS="ingest score ..."]

The corpus is mosaics of DIV2K's size (2040 x 1356) made of the sample photographs, or of those in a folder. Figures are
medians of several runs, ours and yardstick by turns; on a shared machine read the ratios, not the seconds. The table
goes to the terminal, row by row, and to benchmarks/latest.md.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import timing
from corpus import FULL, QUICK, SAMPLES, Size
from rows import SUBJECTS, Bench
from table import HEADER

LATEST = Path(__file__).parent / "latest.md"


def main(subjects: list[str], photos: str | Path = SAMPLES, size: Size = FULL, output: Path = LATEST) -> list[str]:
    """Measure the rows of these subjects, print them and write them; returns the lines."""
    lines = [
        f"{timing.machine()}; {size.images} PNGs of {size.width}x{size.height}; medians of {size.repeats}\n",
        *HEADER.splitlines(),
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), photos, size)
        for subject in subjects:
            for row in SUBJECTS[subject](bench):
                lines.append(row.markdown())
                print(lines[-1], flush=True)
    output.write_text("\n".join(lines) + "\n", "utf-8")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="ROWS", help=f"of {', '.join(SUBJECTS)}; all by default")
    parser.add_argument("--photos", default=SAMPLES, help="a folder of photographs")
    parser.add_argument("--output", type=Path, default=LATEST, help="where the table goes too")
    parser.add_argument("--quick", action="store_true", help="tiny: only to see that it works")
    parser.add_argument("--patches", default="5000000:50", help="PATCHES:SHARDS of the store to select from")
    options = parser.parse_args()
    if unknown := set(options.subjects) - set(SUBJECTS):
        parser.error(f"no rows {', '.join(sorted(unknown))}; there are: {', '.join(SUBJECTS)}")
    patches, shards = map(int, options.patches.split(":"))
    chosen = QUICK if options.quick else replace(FULL, patches=(patches, shards))
    main(options.subjects or list(SUBJECTS), options.photos, chosen, options.output)
