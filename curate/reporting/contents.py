"""The contents of a report, in the order of the page: figures, sheets, maps and tables as the template shows them."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from curate import plugins
from curate.progress import Progress
from curate.reporting import coverage, figures, maps, pictures, ranks, sheets
from curate.reporting.facts import Choice, Facts
from curate.reporting.figures import Figure
from curate.reporting.page import render
from curate.reporting.pictures import Pictures
from curate.reporting.sheets import Sheet
from curate.reporting.words import NONE, TIMES, number, percent, plural, slug
from curate.schema import ReportedManifest, ReportedWindow, ReportRecord

__all__ = ["Contents"]

MAX_BYTES = 5_000_000  # of a page
_QUALITIES = 6  # steps in which its pictures get smaller until it is no larger
_SHEET = 16  # patches on a sheet of few manifests
_FEW = 2  # manifests; of more, sheets have half as many patches
_MAPS = 6
_SCATTERS = 5
_FINDINGS = 6  # pairs of duplicates, and leaks, that are shown
_IMAGES = 1000  # rows of the table of images
_REFUSED = 200
_HEAT = 0.55  # how far a map covers its photograph in a PNG file


class Contents:
    """What is shown of some facts. Photographs are decoded when they are first needed."""

    def __init__(self, facts: Facts, record: ReportRecord, progress: Progress) -> None:
        self.facts = facts
        self.record = record
        self._progress = progress
        self._score = facts.main_score
        self._masks = {choice.name: choice.chosen for choice in facts.choices}
        self._main = next((c for c in facts.choices if c.by == self._score), facts.choices[0])

    # ---- what is drawn

    @cached_property
    def curves(self) -> list[tuple[str, Figure, Figure]]:
        """A curve and a histogram of each score, the main one first."""
        drawn = []
        for label in sorted(self.facts.scores, key=lambda name: name != self._score):
            score, candidates = self.facts.scores[label], self._main.candidates
            if not np.isfinite(score[candidates]).any():
                continue
            curve = figures.curve(label, score, candidates, self._masks)
            drawn.append((label, curve, figures.histogram(label, score, candidates, self._masks)))
        return drawn

    @cached_property
    def matrix(self) -> Figure | None:
        """How far scores agree, where there are three or more: of two a line tells as much."""
        labels = list(self.record.agreement)
        if len(labels) < 3:
            return None
        return figures.agreement(labels, [[self.record.agreement[a][b] for b in labels] for a in labels])

    @cached_property
    def scatters(self) -> list[Figure]:
        """The other scores against the main one."""
        scores = self.facts.scores
        others = [label for label in scores if label != self._score][:_SCATTERS]
        return [
            figures.scatter(self._score, other, scores[self._score], scores[other], self._masks)
            for other in others
            if self._score is not None and (np.isfinite(scores[self._score]) & np.isfinite(scores[other])).any()
        ]

    @cached_property
    def drawn_coverage(self) -> tuple[Figure, Figure]:
        """How evenly images are drawn on."""
        patches = coverage.of_images(self.facts)
        there = patches > 0
        counts = {choice.name: coverage.of_images(self.facts, choice)[there] for choice in self.facts.choices}
        return figures.concentration(patches[there], counts), figures.shares(patches[there], counts)

    # ---- what is looked at

    @cached_property
    def extremes(self) -> list[Sheet]:
        """The hardest and the easiest of all candidates."""
        return sheets.extremes(self.facts, self._main, self._score, self._count) if self._score else []

    @cached_property
    def sheets(self) -> dict[str, list[Sheet]]:
        """The edges of each manifest, and some of it at random."""
        found = {}
        for choice in self.facts.choices:
            found[choice.name] = [*sheets.edges(self.facts, choice, self._count), sheets.sample(choice, self._count)]
        return found

    @cached_property
    def changes(self) -> dict[str, list[Sheet]]:
        """What entered and left from the first manifest to each other one."""
        first, *others = self.facts.choices
        return {other.name: sheets.changes(first, other, self._count) for other in others}

    @property
    def _count(self) -> int:
        return _SHEET if len(self.facts.choices) <= _FEW else _SHEET // 2

    def _all_sheets(self) -> list[Sheet]:
        groups = [self.extremes, *self.sheets.values(), *self.changes.values()]
        return [sheet for group in groups for sheet in group]

    @cached_property
    def mapped(self) -> list[int]:
        """Rows of the photographs that are shown with a map."""
        return (
            [] if self._score is None else maps.photographs(self.facts, self.facts.scores[self._score], _MAPS).tolist()
        )

    @cached_property
    def pictures(self) -> Pictures:
        """All of them, decoded now."""
        table, ids = self.facts.patches, self.facts.images["image_id"]
        rows = list(sheets.wanted(self._all_sheets()))
        places = table.take(rows).to_pylist() if rows else []
        windows = {
            row: (place["image_id"], (place["y"], place["x"], place["size"]))
            for row, place in zip(rows, places, strict=True)
        }
        pairs = self._duplicates()
        found = [row[name] for row in pairs for name in ("image_id", "twin")] + [
            row["image_id"] for row in self._leaks()
        ]
        return pictures.take(
            self.facts.store, windows, [ids[row].as_py() for row in self.mapped], found, self._progress
        )

    def _duplicates(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.facts.findings.duplicates.slice(0, _FINDINGS).to_pylist()
        return rows

    def _leaks(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.facts.findings.leaks.slice(0, _FINDINGS).to_pylist()
        return rows

    # ---- the page

    def page(self) -> str:
        """The whole page, its pictures as good as 5 MB allow."""
        content = self._content()
        for step in range(_QUALITIES):
            patches, photos, large = self.pictures.encoded(step)
            shown = {"pictures": patches, "photos": photos, "maps": self._maps(large)}
            page = render({**content, **shown})
            if len(page.encode()) <= MAX_BYTES:
                break
        return page

    def _content(self) -> dict[str, Any]:
        facts, record = self.facts, self.record
        concentration, shares = self.drawn_coverage
        images = self._images()
        return {
            "title": ", ".join(choice.name for choice in facts.choices),
            "choices": [self._choice(*pair) for pair in zip(facts.choices, record.manifests, strict=True)],
            "notes": self._notes(),
            "main_score": self._score,
            "curves": [
                {
                    "label": label,
                    "about": self._about(label),
                    "windows": [f"{m.name}: {_window(m.windows.get(label), m.patches)}" for m in record.manifests],
                    "curve": _shown(curve),
                    "histogram": _shown(histogram),
                }
                for label, curve, histogram in self.curves
            ],
            "sheets": self.extremes,
            "patches": self._patches(),
            "legend": self._legend(),
            "concentration": _shown(concentration),
            "shares": _shown(shares),
            "sources": coverage.by_source(facts),
            "sizes": coverage.by_size(facts),
            "images": images,
            "images_left": facts.images.num_rows - len(images),
            "refused": facts.refused.slice(0, _REFUSED).to_pylist(),
            "refused_left": max(0, facts.refused.num_rows - _REFUSED),
            "refusals": record.refused,
            "checked": {
                kind: [found.record.label for found in facts.store.check_sets() if found.record.check == kind]
                for kind in ("duplicates", "leaks")
            },
            "duplicates": self._duplicates(),
            "num_duplicates": record.duplicates,
            "leaks": self._leaks(),
            "num_leaks": record.leaks,
            "scores": list(facts.scores),
            "agreement": record.agreement,
            "matrix": None if self.matrix is None else _shown(self.matrix),
            "scatters": [_shown(figure) for figure in self.scatters],
            "overlaps": record.overlaps,
            "changes": [
                {"title": f"From {facts.choices[0].name} to {name}", "sheets": group}
                for name, group in self.changes.items()
            ],
            "commands": record.commands,
            "commands_exact": not any("=LR" in line for line in record.commands),
            "store_facts": _store_terms(record.store),
            "scorers": [
                {
                    "name": name,
                    "fingerprint": found["fingerprint"],
                    "identity": [f"{key}: {value}" for key, value in found.items() if key != "fingerprint"],
                }
                for name, found in record.store["scorers"].items()
            ],
        }

    def _choice(self, choice: Choice, record: ReportedManifest) -> dict[str, Any]:
        facts, recipe = self.facts, choice.manifest.recipe
        pixels = coverage.pixels(facts)
        images = facts.images.num_rows
        return {
            "name": choice.name,
            "words": self._words(choice, record),
            "coverage": (
                f"{choice.name} takes patches from {number(record.images)} of {plural(images, 'image')}, "
                f"and {percent(record.pixels, pixels)} of the pixels under all windows "
                f"({number(record.pixels / 1e6)} of {number(pixels / 1e6)} Mpx, each counted once). "
                f"The tenth of the images that give most give {percent(record.top_tenth, 1)} of its patches."
            ),
            "sheets": self.sheets[choice.name],
            "facts": _terms({"digest": record.digest, "command": record.command, **recipe.model_dump(mode="json")}),
        }

    def _words(self, choice: Choice, record: ReportedManifest) -> str:
        """Which score and which window chose, in a sentence or two."""
        recipe = choice.manifest.recipe
        counts = recipe.counts
        kept = f"{number(record.patches)} of {number(counts.get('candidates'))} candidate patches"
        by = f"ranked by {choice.by}" if choice.by is not None else "without a score of its own"
        words = [f"{recipe.strategy}, {by}, keeps {kept} ({percent(record.patches, counts.get('candidates', 0))})."]
        if choice.by is not None:
            words.append(f"{_window(record.windows.get(choice.by), record.patches).capitalize()}.")
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

    def _notes(self) -> list[str]:
        if self.facts.store.header.packed is not None:
            return ["This store is packed and holds the chosen patches alone: ranks are told among these."]
        notes = []
        for choice in self.facts.choices:
            counts = choice.manifest.recipe.counts
            then = counts.get("candidates", 0) - counts.get("without_finite_score", 0)
            now = int(choice.candidates.sum())
            if then != now:
                notes.append(
                    f"{choice.name} was chosen from {number(then)} candidates with a score; by the checks and scores "
                    f"of now there are {number(now)}. Ranks are told among these."
                )
        return notes

    def _about(self, label: str) -> str:
        found = self.facts.sets.get(label)
        if found is None:
            return "As the manifest has it; this store has no scores of its own."
        return plugins.describe("scorers").get(found.record.scorer, "A scorer of your own.")

    def _patches(self) -> dict[int, dict[str, Any]]:
        """Row -> what is told of a patch that is shown."""
        facts = self.facts
        rows = list(sheets.wanted(self._all_sheets()))
        ordered = [self._places(choice) for choice in facts.choices]
        shown = {}
        for row in rows:
            patch = {name: facts.patches[name][row].as_py() for name in facts.patches.column_names}
            image = {name: facts.images[name][int(facts.image[row])].as_py() for name in facts.images.column_names}
            values = {label: score[row] for label, score in facts.scores.items()}
            ranked = [
                (f"rank in {choice.name}", f"{number(int(choice.rank[row]))} of {number(int(choice.chosen.sum()))}")
                if choice.rank[row] >= 0
                else (f"in {choice.name}", "no")
                for choice in facts.choices
            ]
            shown[row] = {
                "image_id": patch["image_id"],
                "name": image["name"],
                "y": patch["y"],
                "x": patch["x"],
                "box": f"{patch['y']} {patch['x']} {patch['size']} {image['height']} {image['width']}",
                "chosen": [bool(choice.rank[row] >= 0) for choice in facts.choices],
                "told": [
                    {
                        "place": number(int(places[row])) if places[row] >= 0 else "",
                        "score": number(float(values[label])) if label is not None else "",
                    }
                    for label, places in ordered
                ],
                "details": [
                    *((label, number(float(value))) for label, value in values.items()),
                    *ranked,
                    ("window", f"y {patch['y']}, x {patch['x']}, {patch['size']} {TIMES} {patch['size']} px"),
                    ("photograph", f"{image['name']}, {image['width']} {TIMES} {image['height']} px"),
                    ("source", image["source"]),
                    ("patch_id", patch["patch_id"]),
                ],
            }
        return shown

    def _places(self, choice: Choice) -> tuple[str | None, npt.NDArray[np.int64]]:
        """The score to tell a choice's patches by, and the rank of each candidate by it, -1 of other patches."""
        label = choice.by or self._score
        places = np.full(self.facts.patches.num_rows, -1, np.int64)
        if label is not None:
            order = ranks.descending(self.facts.scores[label], choice.candidates)
            places[order] = np.arange(len(order))
        return label, places

    def _images(self) -> list[dict[str, Any]]:
        """What each image gives, those first that give most to the first manifest."""
        facts = self.facts
        patches = coverage.of_images(facts)
        counts = [coverage.of_images(facts, choice) for choice in facts.choices]
        means = self._means(patches)
        order = np.lexsort((np.arange(len(patches)), -counts[0]))
        rows = [int(row) for row in islice(order, _IMAGES)]
        images = facts.images.take(rows).to_pylist()
        return [
            {
                "name": image["name"],
                "height": image["height"],
                "width": image["width"],
                "pixels": image["height"] * image["width"],
                "patches": int(patches[row]),
                "mean": float(means[row]),
                "chosen": [int(count[row]) for count in counts],
            }
            for row, image in zip(rows, images, strict=True)
        ]

    def _means(self, patches: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        if self._score is None:
            return np.full(len(patches), np.nan)
        score = self.facts.scores[self._score]
        there = np.isfinite(score)
        sums = np.bincount(self.facts.image[there], score[there], minlength=len(patches))
        counts = np.bincount(self.facts.image[there], minlength=len(patches))
        means: npt.NDArray[np.float64] = np.divide(sums, counts, out=np.full(len(patches), np.nan), where=counts > 0)
        return means

    # ---- maps

    @cached_property
    def _scale(self) -> maps.Scale:
        assert self._score is not None
        return maps.scale(self.facts.scores[self._score])

    def _legend(self) -> dict[str, Any] | None:
        if self._score is None:
            return None
        scale = self._scale
        ends = {"low": number(scale.low), "high": number(scale.high)}
        return {**ends, "log": scale.log, "stops": ", ".join(scale.stops())}

    def _colours(self, row: int, shown: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """The map of one image, uint8 RGBA of `shown` rows and columns."""
        assert self._score is not None
        image = self._image(row)
        rows = np.flatnonzero(self.facts.image == row)
        windows = maps.windows_of(self.facts, rows)
        score = self.facts.scores[self._score][rows]
        return self._scale.colours(maps.means(windows, score, (image["height"], image["width"]), shown))

    def _image(self, row: int) -> dict[str, Any]:
        return {name: self.facts.images[name][row].as_py() for name in self.facts.images.column_names}

    def _maps(self, photos: Mapping[str, str]) -> list[dict[str, Any]]:
        shown = []
        for row in self.mapped:
            image = self._image(row)
            mine = self.facts.image == row
            borders = []
            for choice in islice(self.facts.choices, 6):
                windows = maps.windows_of(self.facts, np.flatnonzero(mine & choice.chosen))
                borders.append(maps.outline(windows, (image["height"], image["width"])))
            taken = [f"{c.name} takes {number(int((mine & c.chosen).sum()))}" for c in self.facts.choices]
            photo = self.pictures.maps[image["image_id"]]
            shown.append(
                {
                    "name": image["name"],
                    "height": image["height"],
                    "width": image["width"],
                    "photo": photos[image["image_id"]],
                    "heat": pictures.heat(self._colours(row, (photo.height, photo.width))),
                    "borders": borders,
                    "words": f"{plural(int(mine.sum()), 'patch', 'patches')}: {', '.join(taken)}",
                }
            )
        return shown

    # ---- PNG files

    def pngs(self) -> Iterator[tuple[str, bytes]]:
        """Name -> PNG file of every figure, contact sheet and map."""
        drawn = [figure for _, curve, histogram in self.curves for figure in (curve, histogram)]
        drawn += [*self.drawn_coverage, *([] if self.matrix is None else [self.matrix]), *self.scatters]
        for figure in drawn:
            yield figure.name, figure.png()
        for sheet in self._all_sheets():
            if sheet.rows:
                yield f"patches-{slug(sheet.name)}", pictures.mosaic(self.pictures.patches[row] for row in sheet.rows)
        for row in self.mapped:
            image = self._image(row)
            photo = self.pictures.maps[image["image_id"]]
            mine = np.flatnonzero((self.facts.image == row) & self.facts.choices[0].chosen)
            lines = maps.borders(maps.windows_of(self.facts, mine), (image["height"], image["width"]))
            grey = np.asarray(photo.convert("L").convert("RGB"))
            painted = maps.painted(grey, self._colours(row, grey.shape[:2]), _HEAT)
            yield f"map-{image['image_id']}", pictures.outlined(painted, lines, photo.width / image["width"])


def _shown(figure: Figure) -> dict[str, Any]:
    return {"caption": figure.caption, "markup": Markup(figure.svg())}


def _window(window: ReportedWindow | None, patches: int) -> str:
    """Where a choice lies in the order of one score, in words."""
    if window is None:
        return "none of its patches has this score"
    ends = f"from {number(window.high)} down to {number(window.low)}"
    if window.gaps:
        first, last = number(window.first), number(window.last)
        return f"spread over ranks {first} to {last} of {number(window.candidates)}, {ends}"
    above = window.first
    if window.chosen == window.candidates:
        return f"all {number(window.candidates)}, {ends}"
    below = window.candidates - window.first - window.chosen
    parts = f"ranks {number(above)} to {number(window.last)} of {number(window.candidates)}, highest first, {ends}"
    passed = f"passes over the {percent(above, window.candidates)} above" if above else "nothing is passed over above"
    rest = f"leaves the {percent(below, window.candidates)} below" if below > 0 else "nothing is left below"
    return f"{parts}: {passed}, {rest}"


def _store_terms(store: Mapping[str, Any]) -> list[tuple[str, str]]:
    counts = [(name, number(store[name])) for name in ("images", "refused", "patches", "shards")]
    patch, step = store["patch_px"], store["step_px"]
    rest = {name: store[name] for name in ("packed", "checks", "created_by")}
    return [
        ("digest", store["digest"]),
        *counts,
        ("size", f"{store['bytes'] / 1e6:,.1f} MB"),
        ("windows", f"{patch} {TIMES} {patch} px, every {step} px"),
        *_terms(rest),
    ]


def _terms(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Nested facts as (term, words)."""
    terms = []
    for key, value in content.items():
        if isinstance(value, dict):
            terms.append((key, ", ".join(f"{name}: {item}" for name, item in sorted(value.items())) or "none"))
        else:
            terms.append((key, NONE if value is None else str(value)))
    return terms
