"""Does pruning the data change which channels go? The compressions of a study, compared.

    OUT/drc/NAME/trained                     the network that is compressed, trained once
    OUT/drc/NAME/METHOD_MANIFEST_SEED        compressed by a method (`drc`): before its finetuning in `pruned`; what was
                                             measured of both: BENCHMARK.json
    OUT/drc/NAME/unpruned_MANIFEST_SEED      the same with all maps left: the trained network, finetuned alike
    OUT/drc/latency.json                     what all of these networks take here, measured in one go

Two compressions with the same manifest do not keep the same maps either, so each is compared with the reference's of
the same method and seed, and with those of its other seeds, beside what chance would give.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from statistics import mean
from textwrap import wrap
from typing import Any, NamedTuple

import pyarrow as pa

from curate import compressions, drc, markdown, plot, plugins, units
from curate.agreement import OTHERS, beside, overlap
from curate.blocks import Drc
from curate.checkpoint import Checkpoint
from curate.errors import counted, one_line
from curate.manifest import Manifest
from curate.markdown import Column
from curate.measurement import measured, timed
from curate.plan import UNPRUNED, Compression, Made, Pipeline
from curate.progress import Progress, part
from curate.training import train

__all__ = ["Kept", "agreement", "compressed", "page", "picture"]

_AGREEMENT = ("numbers_agreement", "numbers_by_chance", "maps_agreement", "maps_by_chance")
_CHANCES = ("numbers_by_chance", "maps_by_chance")
_BEFORE = "_before"  # after the names of what was measured before the finetuning
_FIGURES = ("psnr", "ssim")
_WIDTH = 120  # of a page's lines
_COLUMNS = [
    ("name", pa.string()),
    ("method", pa.string()),
    ("manifest", pa.string()),
    ("patches", pa.int64()),
    ("seed", pa.int64()),
    ("numbers", pa.string()),  # maps of each unit that stay
    ("parameters", pa.int64()),
    ("multiply_adds", pa.int64()),  # for 1280x720
    ("milliseconds", pa.float64()),  # for 1280x720 on a GPU, for 320x180 on a CPU
    ("seconds", pa.float64()),  # of search and selection
    *((name, pa.float64()) for name in _AGREEMENT),
    *((name + OTHERS, pa.float64()) for name in _AGREEMENT),
]


class Kept(NamedTuple):
    """Which maps a compression has left."""

    widths: tuple[int, ...]  # of each unit, before
    maps: tuple[tuple[int, ...], ...]  # of each unit, those that stayed: one at least


def agreement(one: Kept, other: Kept) -> dict[str, float | None]:
    """How far two compressions of a network kept the same, by the names of the table's columns.

    The share of the units with the same number of maps, beside that of these numbers shuffled among the units of the
    same width; the mean overlap (Jaccard) of the maps themselves, beside that of random maps, as many of each unit.
    """
    pairs = [(len(mine), len(theirs)) for mine, theirs in zip(one.maps, other.maps, strict=True)]
    chance = [_random(width, *pair) for width, pair in zip(one.widths, pairs, strict=True)]
    same = mean(overlap(mine, theirs) for mine, theirs in zip(one.maps, other.maps, strict=True))
    found = (mean(mine == theirs for mine, theirs in pairs), _shuffled(one.widths, pairs), same, mean(chance))
    return dict(zip(_AGREEMENT, found, strict=True))


def _random(width: int, one: int, other: int) -> float:
    """The expected overlap of two random sets of so many of `width`, each set as likely."""
    shared = range(max(0, one + other - width), min(one, other) + 1)
    ways = [comb(one, both) * comb(width - one, other - both) for both in shared]
    return sum(way * both / (one + other - both) for way, both in zip(ways, shared, strict=True)) / sum(ways)


def _shuffled(widths: Sequence[int], pairs: Sequence[tuple[int, int]]) -> float:
    """The expected share of units with the same number, where each one's numbers are shuffled within a width."""
    alike = 0.0
    for width in set(widths):
        mine, theirs = (
            Counter(pair[side] for of, pair in zip(widths, pairs, strict=True) if of == width) for side in (0, 1)
        )
        alike += sum(mine[number] * theirs[number] for number in mine) / mine.total()
    return alike / len(widths)


def compressed(
    plan: Pipeline,
    manifests: Mapping[Made, Manifest],
    tests: Mapping[str, str | Path],
    out: Path,
    device: str,
    progress: Progress,
) -> pa.Table:
    """Do what is not done of a study's trainings and compressions, in the folder `out`: a row a compression.

    `tests` are folders by their benchmarks' names; each has columns psnr_TEST (dB) and ssim_TEST, null without a
    finetuning, and the same of before it. A reference's own row is compared with its other seeds alone.
    """
    todo = plan.compressions()
    for number, block in enumerate(plan.drc):
        config, where = block.training(), out / block.name / "trained"
        own = part(progress, number, len(plan.drc), f"{block.name} trained")
        train(block.arch, manifests[plan.manifest(block.base, config.seed)], config, where, device=device, progress=own)
    widths = {block.name: [unit.width for unit in units.left(plugins.parse("archs", block.arch))] for block in plan.drc}
    rows, archs = [], []
    kept: dict[tuple[str, str], dict[tuple[str, int], Kept]] = {}  # of a block's method: by manifest and seed
    for number, one in enumerate(todo):
        chosen = manifests[plan.manifest(one.manifest, one.seed)]
        where = out / one.block.name / one.folder
        own = part(progress, number, len(todo), f"{one.block.name} {one.folder}")
        trained = out / one.block.name / "trained"
        report = drc.compress(trained, chosen, one.config, where, device=device, progress=own)
        mine = _kept(where, widths[one.block.name])
        kept.setdefault((one.block.name, one.method), {})[one.manifest, one.seed] = mine
        archs.append(report.arch)
        row = {"name": one.block.name, "method": one.method, "manifest": one.manifest, "patches": len(chosen)}
        row |= {"seed": one.seed, "numbers": ".".join(str(len(maps)) for maps in mine.maps)}
        row |= {"parameters": report.parameters[1], "multiply_adds": report.multiply_adds[1]}
        row["seconds"] = sum(time for stage, time in report.seconds.items() if stage != "finetune")
        rows.append(row | _measured(one, where, tests, device))
    for one, row, time in zip(todo, rows, timed(archs, out / "latency.json", device), strict=True):
        row["milliseconds"] = time
        if one.method != UNPRUNED:
            of_method = kept[one.block.name, one.method]
            row |= beside(of_method, one.manifest, one.seed, one.block.manifests[0], agreement)
    columns = [(name + when, pa.float64()) for place in tests for name, when in _columns(place)]
    return pa.Table.from_pylist(rows, pa.schema([*_COLUMNS, *columns]))


def _columns(test: str) -> list[tuple[str, str]]:
    return [(f"{name}_{test}", when) for when in (_BEFORE, "") for name in _FIGURES]


def _measured(one: Compression, run: Path, tests: Mapping[str, str | Path], device: str) -> dict[str, float]:
    """What a compressed network is worth on each test folder, before its finetuning and, where there is one, after."""
    row: dict[str, float] = {}
    ends = [(_BEFORE, run / "pruned"), ("", run)] if one.config.finetune_steps else [(_BEFORE, run / "pruned")]
    for when, folder in ends:
        made = Checkpoint.load(folder)
        for place, test in tests.items():
            figures = measured(made, folder / f"{place}.json", test, device)
            row |= {f"{name}_{place}{when}": figures[name] for name in _FIGURES}
    return row


def _kept(run: Path, widths: Sequence[int]) -> Kept:
    """What a compression has left of units of these widths."""
    record = compressions.read(run).kept
    assert record is not None, "a compression has ended without a record"
    return Kept(tuple(widths), tuple(map(tuple, record.kept)))


def picture(table: pa.Table) -> str:
    """An SVG page: a panel a block and test, a row a method, a colour a manifest; a dot is a finetuned network's PSNR.

    Where nothing is finetuned, that of the pruned network. Beside each row are its networks' mean sizes and latency.
    """
    groups: dict[str, dict[str, dict[str, list[float]]]] = {}
    sizes: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in table.to_pylist():
        for test in _tests(row):
            value = row[f"psnr_{test}"] if row[f"psnr_{test}"] is not None else row[f"psnr_{test}{_BEFORE}"]
            title = f"{row['name']}, {test}"
            series = groups.setdefault(title, {}).setdefault(row["method"], {})
            series.setdefault(row["manifest"], []).append(value)
            sizes.setdefault(title, {}).setdefault(row["method"], []).append(row)
    notes = {
        title: {method: ", ".join(_size(column, rows) for column in _SIZES) for method, rows in group.items()}
        for title, group in sizes.items()
    }
    head = ", ".join(column.title.rpartition(", ")[0] for column in _SIZES)
    return plot.rows(groups, "PSNR, dB", notes, head)


def _size(column: Column, rows: Sequence[Mapping[str, Any]]) -> str:
    return f"{column.cell([row[column.name] for row in rows], spread=False)} {column.title.rpartition(', ')[2]}"


def page(table: pa.Table, plan: Pipeline) -> str:
    """Markdown: for each block two tables, means and deviations over the seeds, a row a method and manifest."""
    rows = table.to_pylist()
    sections = [_section(block, [row for row in rows if row["name"] == block.name]) for block in plan.drc]
    return "\n".join(line for section in sections for line in section)


_SIZES = (
    Column("parameters, k", "parameters", 1e3, ",.1f"),
    Column("multiply-adds, G", "multiply_adds", 1e9),
    Column("latency, ms", "milliseconds", form=",.1f"),
)


def _section(block: Drc, rows: list[dict[str, Any]]) -> list[str]:
    worth = [
        Column(f"PSNR {test}{words}", f"psnr_{test}{when}")
        for test in _tests(rows[0])
        for when, words in ((_BEFORE, " before"), ("", ""))
    ]
    columns = [Column("seconds", "seconds", form=",.0f"), *_SIZES, *worth]
    said = [f"{block.name}:", "", *_table(block, (UNPRUNED, *block.methods), rows, columns), "", *_note(block), ""]
    if len(block.manifests) == len(block.seeds) == 1:
        return said  # nothing to compare with
    alike = [
        Column(f"{what}, {words}", name)
        for what in ("maps", "numbers")
        for words, name in (
            ("same seed", f"{what}_agreement"),
            ("other seeds", f"{what}_agreement{OTHERS}"),
            ("by chance", f"{what}_by_chance"),
        )
    ]
    for row in rows:  # of a reference's own row chance is known for other seeds alone
        row |= {name: row[name + OTHERS] if row[name] is None else row[name] for name in _CHANCES}
    return [*said, *_table(block, tuple(block.methods), rows, alike), "", *_note_of_agreement(block), ""]


def _table(
    block: Drc, methods: Sequence[str], rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]
) -> list[str]:
    lines = []
    for method in methods:
        for manifest in block.manifests:
            mine = [row for row in rows if (row["method"], row["manifest"]) == (method, manifest)]
            # Of other seeds, and by chance, each value is a mean already, and two may be of the same two compressions.
            single = (OTHERS, "_by_chance")
            cells = (
                column.cell([row[column.name] for row in mine], spread=not column.name.endswith(single))
                for column in columns
            )
            lines.append([method, manifest, *cells])
    return markdown.table(["method", "fed with", *(column.title for column in columns)], lines)


def _tests(row: Mapping[str, Any]) -> list[str]:
    return [name.removeprefix("psnr_") for name in row if name.startswith("psnr_") and not name.endswith(_BEFORE)]


def _note(block: Drc) -> list[str]:
    config, trained = block.config(None, block.seeds[0]), block.training()
    length = f"{trained.steps:,} steps" if trained.steps else f"{trained.epochs:g} epochs"
    after = f"{config.finetune_steps:,} steps of finetuning" if config.finetune_steps else "no finetuning"
    said = (
        f"{one_line(block.arch)}, trained once on {block.base} for {length}; then each method, fed with each manifest, "
        f"and {after}; means and standard deviations over {counted(len(block.seeds), 'seed')}. {UNPRUNED}: all maps "
        "left, finetuned alike, so that nobody has trained for longer. Seconds are those of search and selection. "
        "Multiply-adds are for an answer of 1280x720 px; so is latency on a GPU, on a CPU it is for 320x180 px. "
        "PSNR on Y, dB, before the finetuning and after it."
    )
    return wrap(said, _WIDTH)


def _note_of_agreement(block: Drc) -> list[str]:
    reference = block.manifests[0]
    said = (
        f"Which maps stay, beside those that the same method kept of the same network, fed with {reference}, with the "
        "same seed or, in the mean, with others: the mean overlap (Jaccard) of the maps of each unit, and the share of "
        "the units with the same number of maps. By chance: of random maps, as many of each unit; of the same numbers, "
        "shuffled among units of the same width. Other data changes which channels go where its maps overlap less with "
        f"those of {reference} than these do with those of other seeds."
    )
    return wrap(said, _WIDTH)
