"""Report: one file in which people look at what was chosen, at what was not, and why.

    facts     what the store and the manifests say, read once by SQL       ranks     windows, shares, correlations
    figures   curves and histograms by matplotlib                          sheets    which patches to look at
    maps      a score over a whole photograph                              pictures  photographs, small
    coverage  what each image, source and size gives                       lineage   hashes, options and commands
    contents  all of it in the order of the page                           page      the template, its style and script

The page is one HTML file that opens offline. It loads nothing, and its own policy forbids it to. The same manifests
give the same bytes.
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations

from curate import comparison, storage
from curate.errors import UsageError, one_line
from curate.manifest import Manifest
from curate.progress import Progress, silent
from curate.reporting import coverage, lineage, ranks
from curate.reporting.contents import Contents
from curate.reporting.facts import Choice, Facts, gather
from curate.schema import ReportedManifest, ReportedOverlap, ReportedWindow, ReportRecord
from curate.storage import Place
from curate.store import Store

__all__ = ["report"]


def report(
    manifests: Sequence[Manifest | str | Place],
    out: str | Place,
    *,
    store: Store | str | Place | None = None,
    png: str | Place | None = None,
    progress: Progress = silent,
) -> ReportRecord:
    """Write what these manifests of one store chose as an HTML file at `out`; returns the same in numbers.

    `store` is where their store is, if it has moved. `png` is a folder for the figures, contact sheets and maps as PNG
    files. The first manifest is the one that others are compared with. UsageError for manifests of one name or none,
    DataError for those of another store; else raises as `Manifest.load` and `Manifest.store` do.
    """
    target = storage.place_for(out, "a report", "report.html")
    named = _named(manifests)
    first, *others = named.values()
    source = store if isinstance(store, Store) else first.store(store)
    for other in others:
        other.store(source.path)  # is it of this store?
    facts = gather(source, named)
    record = _record(facts, target.parent)
    contents = Contents(facts, record, progress)
    page = contents.page().encode()
    storage.remove_leftovers_of(target)
    storage.publish_bytes(target, page)
    if png is not None:
        folder = storage.place(png, "a folder of figures")
        for name, data in contents.pngs():
            storage.remove_leftovers_of(folder / f"{name}.png")
            storage.publish_bytes(folder / f"{name}.png", data)
    return record


def _named(manifests: Sequence[Manifest | str | Place]) -> dict[str, Manifest]:
    """Name -> manifest: files by their names without ending, others by their strategies."""
    named: dict[str, Manifest] = {}
    for item in manifests:
        manifest = item if isinstance(item, Manifest) else Manifest.load(item)
        name = manifest.path.stem if manifest.path is not None else manifest.recipe.strategy
        if name in named:
            raise UsageError(f"two manifests are called '{one_line(name)}' in the report; rename one of the files")
        named[name] = manifest
    if not named:
        raise UsageError("a report should be of one manifest or more, found none; 'curate select' writes one")
    return named


def _record(facts: Facts, here: Place) -> ReportRecord:
    scores = facts.scores
    return ReportRecord(
        store=lineage.facts_of_store(facts),
        manifests=[_manifest(facts, choice, here) for choice in facts.choices],
        agreement={a: {b: ranks.correlation(scores[a], scores[b]) for b in scores} for a in scores},
        overlaps=[_overlap(facts, a, b) for a, b in combinations(facts.choices, 2)],
        refused=dict(coverage.refusals(facts)),
        duplicates=facts.findings.duplicates.num_rows,
        leaks=facts.findings.leaks.num_rows,
        flagged=facts.findings.flags.num_rows,
        commands=lineage.commands(facts, here),
    )


def _manifest(facts: Facts, choice: Choice, here: Place) -> ReportedManifest:
    windows: dict[str, ReportedWindow] = {}
    for label, score in facts.scores.items():
        order = ranks.descending(score, choice.candidates)
        if (found := ranks.window(score, order, choice.chosen)) is not None:
            windows[label] = ReportedWindow(**asdict(found))
    per_image = coverage.of_images(facts, choice)
    return ReportedManifest(
        name=choice.name,
        by=choice.by,
        patches=int(choice.chosen.sum()),
        images=int((per_image > 0).sum()),
        pixels=coverage.pixels(facts, choice),
        top_tenth=coverage.top_tenth(coverage.of_images(facts), per_image),
        windows=windows,
        sources={group.name: group.chosen[choice.name] for group in coverage.by_source(facts)},
        sizes={group.name: group.chosen[choice.name] for group in coverage.by_size(facts)},
        command=lineage.select_command(choice, facts, here),
        **lineage.facts_of_choice(choice),
    )


def _overlap(facts: Facts, a: Choice, b: Choice) -> ReportedOverlap:
    counts = comparison.summary(a.manifest, b.manifest, store=facts.store).counts
    names = ("both", "left", "entered", "jaccard", "rank_correlation")
    return ReportedOverlap(a=a.name, b=b.name, **{name: counts[name] for name in names})
