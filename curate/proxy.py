"""Does a search on a core-set find what a search on everything finds? The searches of a study, compared.

    OUT/nas/NAME_MANIFEST_SEED             a search
    OUT/nas/NAME_MANIFEST_SEED/retrained   the network it found, trained; what was measured of it: BENCHMARK.json
    OUT/nas/NAME.svg                       the operations that each search found

"Less is More" (2203.06905) asks this of classifiers. Two searches on the same manifest do not find the same either, so
each is compared with the reference's search of the same seed, and with those of its other seeds. A of the axes is
layers times operations.
"""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from statistics import mean
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load

from curate import files, markdown, plot
from curate.agreement import OTHERS, beside, overlap
from curate.archs.dlsr import Dlsr
from curate.blocks import Nas
from curate.config import NasConfig
from curate.errors import DataError, counted, one_line
from curate.genotype import CHOOSING, LAYERS, OPERATIONS, Genotype
from curate.manifest import Manifest
from curate.markdown import Column
from curate.measurement import measured
from curate.nas import pictures, search
from curate.plan import Made, Pipeline
from curate.progress import Progress, part
from curate.training import train

__all__ = ["Found", "agreement", "page", "picture", "searched"]

_AGREEMENT = ("operations_agreement", "inputs_agreement", "alpha_correlation")
_WIDTH = 120  # of a page's lines
_COLUMNS = [
    ("name", pa.string()),
    ("manifest", pa.string()),
    ("patches", pa.int64()),
    ("seed", pa.int64()),
    ("steps", pa.int64()),
    ("genotype", pa.string()),
    ("parameters", pa.int64()),
    ("multiply_adds", pa.int64()),  # for 1280x720
    ("seconds", pa.float64()),
    *((name, pa.float64()) for name in _AGREEMENT),
    *((name + OTHERS, pa.float64()) for name in _AGREEMENT),
]


class Found(NamedTuple):
    """What a search found."""

    operations: tuple[str, ...]
    inputs: tuple[tuple[int, ...], ...] | None  # None: not searched
    shares_A: npt.NDArray[np.float64] | None  # softmax of alpha; None: the method has none


def agreement(one: Found, other: Found) -> dict[str, float | None]:
    """How far two searches found the same, by the names of the table's columns; None where that cannot be said.

    The share of the layers with the same operation; the mean overlap (Jaccard) of the inputs of cells 3 to 6; Pearson's
    correlation of the shares of all operations in all layers.
    """
    same = [mine == theirs for mine, theirs in zip(one.operations, other.operations, strict=True)]
    inputs = correlation = None
    if one.inputs is not None and other.inputs is not None:
        inputs = mean(overlap(mine, theirs) for mine, theirs in zip(one.inputs, other.inputs, strict=True))
    if one.shares_A is not None and other.shares_A is not None:
        correlation = _correlation(one.shares_A, other.shares_A)
    return dict(zip(_AGREEMENT, (mean(same), inputs, correlation), strict=True))


def searched(
    plan: Pipeline,
    manifests: Mapping[Made, Manifest],
    tests: Mapping[str, str | Path],
    out: Path,
    device: str,
    progress: Progress,
) -> pa.Table:
    """Do what is not done of a study's searches and what follows them, in the folder `out`: a row a search.

    `tests` are folders by their benchmarks' names; where what was found is trained, each has columns psnr_TEST (dB) and
    ssim_TEST. A reference's own row is compared with its other seeds alone.
    """
    searches = plan.searches()
    found: dict[tuple[str, str, int], Found] = {}
    rows: list[dict[str, Any]] = []
    for number, one in enumerate(searches):
        chosen = manifests[plan.manifest(one.manifest, one.seed)]
        where = out / one.folder
        own = part(progress, 2 * number, 2 * len(searches), one.folder)
        report = search(chosen, one.config, where, device=device, progress=own)
        found[one.block.name, one.manifest, one.seed] = _found(report.genotype, one.config, where)
        row = {"name": one.block.name, "manifest": one.manifest, "patches": len(chosen), "seed": one.seed}
        row |= {"steps": report.steps, "genotype": str(report.genotype), "parameters": report.parameters}
        row |= {"multiply_adds": report.multiply_adds, "seconds": report.seconds}
        if one.block.retrain and one.retraining:
            arch = Dlsr(one.config.scale, str(report.genotype), one.config.features)
            everything = manifests[plan.manifest(one.block.retrain.manifest, one.seed)]
            own = part(progress, 2 * number + 1, 2 * len(searches), f"{one.folder} retrained")
            made = train(arch, everything, one.retraining, where / "retrained", device=device, progress=own)
            for place, test in tests.items():
                figures = measured(made, where / "retrained" / f"{place}.json", test, device)
                row |= {f"{name}_{place}": value for name, value in figures.items()}
        rows.append(row)
    for one, row in zip(searches, rows, strict=True):
        of_block = {key[1:]: value for key, value in found.items() if key[0] == one.block.name}
        row |= beside(of_block, one.manifest, one.seed, one.block.manifests[0], agreement)
    for block in plan.nas:
        operations = {
            manifest: [found[block.name, manifest, seed].operations for seed in block.seeds]
            for manifest in block.manifests
        }
        files.publish_bytes(out / f"{block.name}.svg", pictures.agreement(block.manifests, operations).encode())
    figures_of = [place for place in tests if any(block.retrain for block in plan.nas)]
    columns = [(f"{name}_{place}", pa.float64()) for place in figures_of for name in ("psnr", "ssim")]
    return pa.Table.from_pylist(rows, pa.schema([*_COLUMNS, *columns]))


def _found(genotype: Genotype, config: NasConfig, run: Path) -> Found:
    return Found(genotype.operations, genotype.inputs if config.connections else None, _shares(run))


def _shares(run: Path) -> npt.NDArray[np.float64] | None:
    """softmax(alpha) of a search that has ended; None of a method without alpha."""
    file = run / "architecture.safetensors"
    if not file.is_file():
        return None
    try:
        alpha_LO = load(file.read_bytes()).get("alpha")
    except SafetensorError:
        alpha_LO = None
    if alpha_LO is None or alpha_LO.shape != (LAYERS, len(OPERATIONS)):
        raise DataError(f"'{one_line(file)}' is not a search's architecture, or is damaged")
    powers_LO = np.exp(alpha_LO.astype(np.float64) - alpha_LO.max(1, keepdims=True))
    shares_A: npt.NDArray[np.float64] = (powers_LO / powers_LO.sum(1, keepdims=True)).ravel()
    return shares_A


def _correlation(one_A: npt.NDArray[np.float64], other_A: npt.NDArray[np.float64]) -> float | None:
    if not one_A.std() or not other_A.std():
        return None  # all shares alike: nothing was learnt
    return float(np.corrcoef(one_A, other_A)[0, 1])


def picture(table: pa.Table) -> str:
    """An SVG page: a dot a search, at the PSNR of the network it found; a panel a block and test."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in table.to_pylist():
        for column, value in row.items():
            if column.startswith("psnr_") and value is not None:
                group = groups.setdefault(f"{row['name']}, {column.removeprefix('psnr_')}", {})
                group.setdefault(row["manifest"], []).append(value)
    return plot.dots(groups, "PSNR, dB")


def page(table: pa.Table, plan: Pipeline) -> str:
    """Markdown: for each block a table, means and standard deviations over the seeds, a row a manifest."""
    rows = table.to_pylist()
    sections = [_section(block, [row for row in rows if row["name"] == block.name]) for block in plan.nas]
    return "\n".join(line for section in sections for line in section)


def _section(block: Nas, rows: list[dict[str, Any]]) -> list[str]:
    columns = [Column(name.replace("_", " "), name) for name in _AGREEMENT]
    columns = [*_SIZES, *columns, *(Column(f"PSNR {test}", f"psnr_{test}") for test in _tests(block, rows))]

    def line(title: str, manifest: str, suffix: str = "") -> list[str]:
        mine = [row for row in rows if row["manifest"] == manifest]
        values = [[row.get(column.name + suffix) for row in mine] for column in columns]
        # Of other seeds each value is a mean already, and two of them may be of the same two searches.
        cells = (column.cell(of, spread=not suffix) for column, of in zip(columns, values, strict=True))
        return [title, *cells]

    lines = [line(manifest, manifest) for manifest in block.manifests]
    if len(block.seeds) > 1:
        lines += [line(f"{manifest}, other seeds", manifest, OTHERS) for manifest in block.manifests]
    chance = _chance(block.config(block.seeds[0]))
    lines.append(["by chance", *(column.cell([chance.get(column.name)], spread=False) for column in columns)])
    head = ["searched on", *(column.title for column in columns)]
    return [f"{block.name}:", "", *markdown.table(head, lines), "", *_note(block), ""]


_SIZES = (
    Column("patches", "patches", form=",.0f", spread=False),
    Column("seconds", "seconds", form=",.0f"),
    Column("parameters", "parameters", form=",.0f"),
    Column("multiply-adds, G", "multiply_adds", 1e9),
)


def _tests(block: Nas, rows: list[dict[str, Any]]) -> list[str]:
    return [name.removeprefix("psnr_") for name in rows[0] if name.startswith("psnr_")] if block.retrain else []


def _chance(config: NasConfig) -> dict[str, float]:
    """How far two genotypes agree that are drawn at random: one of the operations, two inputs, each as likely."""
    pairs = [list(combinations(range(1, cell), 2)) for cell in CHOOSING]
    inputs = mean(mean(overlap(one, other) for one in of for other in of) for of in pairs)
    said = {"operations_agreement": 1 / len(OPERATIONS)}
    return {**said, "inputs_agreement": inputs} if config.connections else said


def _note(block: Nas) -> list[str]:
    config, (reference, *_) = block.config(block.seeds[0]), block.manifests
    said = (
        f"{config.method}, x{config.scale}, {config.features} maps, {config.steps:,} steps; means and standard "
        f"deviations over {counted(len(block.seeds), 'seed')}. Agreement is with what the search on {reference} of the "
        f"same seed found, or, in the mean, those of other seeds: the share of the {LAYERS} layers with the same "
        f"operation, the overlap (Jaccard) of the inputs of cells {CHOOSING[0]} to {CHOOSING[-1]}, the correlation of "
        "the shares of all operations."
    )
    if block.retrain and (trained := block.retraining(block.seeds[0])):
        length = f"{trained.steps:,} steps" if trained.steps else f"{trained.epochs:g} epochs"
        said += f" PSNR on Y, dB, of the network that was found, trained on {block.retrain.manifest} for {length}."
    return wrap(said, _WIDTH)
