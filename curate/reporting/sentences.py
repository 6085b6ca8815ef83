"""Sentences: what a page says of a choice. Ranks count from 1 here, as people count; those of the tables from 0."""

from collections.abc import Callable

import numpy as np

from curate.reporting import coverage
from curate.reporting.facts import Choice, Facts
from curate.reporting.words import number, percent, plural
from curate.schema import ReportedManifest, ReportedWindow

__all__ = ["Writer", "notes", "of_choice", "of_coverage", "of_store", "of_window"]

Writer = Callable[[float | None], str]  # how the values of one score are written

_FEW_IMAGES = 20  # below these a tenth of the images is one or two


def of_store(facts: Facts) -> str:
    """Where a choice was made, in a line."""
    header = facts.store.header
    if header.distilled is not None:
        return f"{plural(facts.patches.num_rows, 'distilled patch', 'distilled patches')} of {header.patch} px"
    refused = f"; {plural(facts.refused.num_rows, 'file was', 'files were')} refused" if facts.refused.num_rows else ""
    return (
        f"{plural(facts.images.num_rows, 'photograph')}, {plural(facts.patches.num_rows, 'patch', 'patches')} of "
        f"{header.patch} px, every {header.step} px{refused}"
    )


def of_choice(choice: Choice, record: ReportedManifest, write: Writer) -> str:
    """Which score and which window chose, in a sentence or two."""
    recipe = choice.manifest.recipe
    counts = recipe.counts
    if (origin := recipe.distilled_from) is not None:
        made = plural(counts.get("selected", record.patches), "patch was", "patches were")
        chosen = f"strategy {origin.strategy}{'' if origin.by is None else f' by {origin.by}'}"
        return f"{made} distilled from the {plural(origin.patches, 'patch', 'patches')} that {chosen} had chosen."
    by = f" by {choice.by}" if choice.by is not None else ", which looks at no score of its own,"
    kept = f"{number(record.patches)} of {number(counts.get('candidates'))} candidate patches"
    words = [f"Strategy {recipe.strategy}{by} keeps {kept} ({percent(record.patches, counts.get('candidates', 0))})."]
    if choice.by is not None:
        words.append(f"{_capital(of_window(record.windows.get(choice.by), write))}.")
    if recipe.where is not None:
        words.append(f"Candidates met the condition {recipe.where}.")
    left_out = [
        f"{number(counts[name])} {what}"
        for name, what in (
            ("flagged", "patches of images that a check had flagged"),
            ("without_finite_score", "patches without a finite score"),
        )
        if counts.get(name)
    ]
    if left_out:
        words.append(f"Left out beforehand: {' and '.join(left_out)}.")
    return " ".join(words)


def of_window(window: ReportedWindow | None, write: Writer) -> str:
    """Where a choice lies in the order of one score."""
    if window is None:
        return "none of its patches has this score"
    ends = f"from {write(window.high)} down to {write(window.low)}"
    ranks = f"ranks {number(window.first + 1)} to {number(window.last + 1)} of {number(window.candidates)}"
    if window.gaps:
        return f"spread over {ranks}, {ends}"
    if window.chosen == window.candidates:
        return f"all {number(window.candidates)}, {ends}"
    above, below = window.first, window.candidates - window.first - window.chosen
    passed = f"passes over the {percent(above, window.candidates)} above" if above else "nothing is passed over above"
    rest = f"leaves the {percent(below, window.candidates)} below" if below > 0 else "nothing is left below"
    return f"{ranks}, highest first, {ends}: {passed}, {rest}"


def of_coverage(facts: Facts, choice: Choice, record: ReportedManifest) -> str:
    """What a choice takes of the images and their pixels, and how much of it comes from few."""
    pixels, images = coverage.pixels(facts), facts.images.num_rows
    words = (
        f"{choice.name} takes patches from {number(record.images)} of {plural(images, 'image')}, "
        f"and {percent(record.pixels, pixels)} of the pixels under all windows "
        f"({number(record.pixels / 1e6)} of {number(pixels / 1e6)} Mpx, each counted once)."
    )
    if images == 1:
        return words
    if images < _FEW_IMAGES:
        most = int(coverage.of_images(facts, choice).max())
        return f"{words} The image that gives most gives {percent(most, record.patches)} of its patches."
    tenth = percent(record.top_tenth, 1)
    return f"{words} The {number(coverage.tenth(images))} images that give most, a tenth, give {tenth} of its patches."


def notes(facts: Facts, main: Choice) -> list[str]:
    """What a reader should know before: other candidates than those of now, or than those that are drawn."""
    if facts.store.header.packed is not None:
        return ["This store is packed and holds the chosen patches alone: ranks are told among these."]
    found = []
    for choice in facts.choices:
        counts = choice.manifest.recipe.counts
        then = counts.get("candidates", 0) - counts.get("without_finite_score", 0)
        now = int(choice.candidates.sum())
        if then != now:
            found.append(
                f"{choice.name} was chosen from {number(then)} candidates with a score; by the checks and scores "
                f"of now there are {number(now)}. Ranks are told among these."
            )
    scored = np.isfinite(facts.scores[main.by]) if main.by is not None else np.ones(len(facts.image), bool)
    others = [c.name for c in facts.choices if not np.array_equal(c.candidates & scored, main.candidates & scored)]
    if others:
        found.append(
            f"Curves and histograms are drawn of the candidates of {main.name}; {' and '.join(others)} could choose "
            "from others, and its ranks in words are among these."
        )
    return found


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
