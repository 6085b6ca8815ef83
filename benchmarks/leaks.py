"""How much of a test set does `curate leaks` find, by how it was hidden? python benchmarks/leaks.py PHOTOS...

Each photograph is a test image. A corpus is made of it: whole or a random crop (seed 0), at its size or another,
encoded again as JPEG. Found is a copy that is reported as an overlap with its own photograph; any other report is
wrong, and so is one about the folders given by --others, which hold other photographs.
"""

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import curate

CROPS = (None, 256, 160, 96, 64)  # px; None is the whole photograph
WAYS = ((1.0, 90), (2.0, 75), (0.5, 75), (0.7, 40))  # size, JPEG quality


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--others", nargs="*", default=[], type=Path)
    options = parser.parse_args()
    files = [path for folder in options.photos for path in sorted(folder.iterdir()) if path.suffix in (".png", ".jpg")]
    with tempfile.TemporaryDirectory() as place:
        tests, corpus = Path(place) / "tests", Path(place) / "corpus"
        tests.mkdir()
        for number, path in enumerate(files):
            Image.open(path).convert("RGB").save(tests / f"{number}.png")
        hidden = hide(tests, corpus)
        # A row of any length: no window needs to fit, so the smallest patch does.
        curate.ingest([corpus], Path(place) / "store", patch=24, step=24)
        started = time.perf_counter()
        report = curate.leaks(Path(place) / "store", tests)
        seconds = time.perf_counter() - started
        rows = report.leaks.to_pylist()
        own = {row["name"] for row in rows if row["test"].removesuffix(".png") == row["name"].split("_")[0]}
        wrong = sum(row["test"].removesuffix(".png") != row["name"].split("_")[0] for row in rows)
        print(f"{len(files)} test images, {report.images} copies, {seconds:.0f} s; reported for another image: {wrong}")
        if options.others:
            curate.ingest([str(folder) for folder in options.others], Path(place) / "others", patch=24, step=24)
            found = curate.leaks(Path(place) / "others", tests)
            names = [
                f"{row['name']} = {files[int(row['test'].removesuffix('.png'))].name}"
                for row in found.leaks.to_pylist()
            ]
            print(f"reported of {found.images} other photographs: {', '.join(names) or 'none'}")
    print("| copy | " + " | ".join(f"size x{scale:g}, JPEG {quality}" for scale, quality in WAYS) + " |")
    print("|---|" + "---|" * len(WAYS))
    for crop in CROPS:
        cells = []
        for way in range(len(WAYS)):
            names = hidden[crop, way]
            cells.append(f"{sum(name in own for name in names)} of {len(names)}")
        print(f"| {f'crop of {crop} px' if crop else 'whole'} | {' | '.join(cells)} |")


def hide(tests: Path, corpus: Path) -> dict[tuple[int | None, int], list[str]]:
    """Write the copies; returns their names by crop and way."""
    corpus.mkdir()
    rng = np.random.default_rng(0)
    hidden: dict[tuple[int | None, int], list[str]] = {}
    for crop in CROPS:
        for way, (scale, quality) in enumerate(WAYS):
            names = hidden.setdefault((crop, way), [])
            for path in sorted(tests.iterdir()):
                image = Image.open(path)
                if crop is not None:
                    if min(image.size) <= crop:
                        continue
                    left, top = (int(rng.integers(side - crop + 1)) for side in image.size)
                    image = image.crop((left, top, left + crop, top + crop))
                size = (round(image.width * scale), round(image.height * scale))
                name = f"{path.stem}_{crop}_{way}.jpg"
                data = io.BytesIO()
                image.resize(size, Image.Resampling.BICUBIC).save(data, "JPEG", quality=quality)
                (corpus / name).write_bytes(data.getvalue())
                names.append(name)
    return hidden


if __name__ == "__main__":
    main()
