"""The contents of a report, in the order of the page: figures, sheets, maps and tables as the template shows them."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from curate import plugins
from curate.errors import short
from curate.progress import Progress
from curate.reporting import coverage, figures, lineage, maps, pictures, prints, ranks, sentences, sheets
from curate.reporting.facts import Choice, Facts
from curate.reporting.figures import Figure
from curate.reporting.page import render
from curate.reporting.pictures import Pictures
from curate.reporting.sheets import Sheet
from curate.reporting.words import TIMES, alike, number, plural, slug
from curate.schema import ReportedManifest, ReportRecord

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
_HEAT = 0.6  # how far a map covers its photograph, which is grey and pale below it
_CONTRAST = 0.6  # of that photograph


class Contents:
    """What is shown of some facts. Photographs are decoded when they are first needed."""

    def __init__(self, facts: Facts, record: ReportRecord, progress: Progress) -> None:
        self.facts = facts
        self.record = record
        self._progress = progress
        self._score = facts.main_score
        self._masks = {choice.name: choice.chosen for choice in facts.choices}
        self._main = next((i for i, c in enumerate(facts.choices) if c.by == self._score), 0)
        self._write = {label: alike(score) for label, score in facts.scores.items()}

    # ---- what is drawn

    @cached_property
    def curves(self) -> list[tuple[str, Figure, Figure]]:
        """A curve and a histogram of each score, the main one first."""
        drawn = []
        for label in sorted(self.facts.scores, key=lambda name: name != self._score):
            score, candidates = self.facts.scores[label], self.facts.choices[self._main].candidates
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
        for index, choice in enumerate(self.facts.choices):
            own = sheets.edges(self.facts, index, self._count)
            found[choice.name] = [*own, sheets.sample(self.facts, index, self._count)]
        return found

    @cached_property
    def changes(self) -> dict[str, list[Sheet]]:
        """What entered and left from the first manifest to each other one."""
        others = list(enumerate(self.facts.choices))[1:]
        return {other.name: sheets.changes(self.facts, 0, index, self._count) for index, other in others}

    @property
    def _count(self) -> int:
        return _SHEET if len(self.facts.choices) <= _FEW else _SHEET // 2

    def _all_sheets(self) -> list[Sheet]:
        groups = [self.extremes, *self.sheets.values(), *self.changes.values()]
        return [sheet for group in groups for sheet in group]

    @cached_property
    def mapped(self) -> list[int]:
        """Rows of the photographs that are shown with a map."""
        ordered = self._ordered
        spread = np.linspace(0, len(ordered) - 1, min(_MAPS, len(ordered))).round().astype(np.int64)
        return [ordered[place] for place in spread.tolist()]

    @cached_property
    def _ordered(self) -> list[int]:
        """Rows of the photographs that could be chosen from, that of the highest mean score first."""
        if self._score is None or self.facts.store.header.distilled is not None:
            return []  # a distilled patch is an image of one window: its map would be one colour
        rows: list[int] = maps.ordered(self.facts, self._candidate_scores).tolist()
        return rows

    @property
    def _candidate_scores(self) -> npt.NDArray[np.float64]:
        """The main score where a patch could be chosen, NaN elsewhere."""
        assert self._score is not None
        return np.where(self.facts.choices[self._main].candidates, self.facts.scores[self._score], np.nan)

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
            "store": {"name": facts.store.path.resolve().name, "words": sentences.of_store(facts)},
            "choices": [self._choice(*pair) for pair in zip(facts.choices, record.manifests, strict=True)],
            "notes": sentences.notes(facts, facts.choices[self._main]),
            "main_score": self._score,
            "curves": [
                {
                    "label": label,
                    "about": self._about(label),
                    "windows": [
                        f"{m.name}: {sentences.of_window(m.windows.get(label), self._write[label])}"
                        if m.by != label
                        else None  # told at the head of the page
                        for m in record.manifests
                    ],
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
            "maps_of": len(self._ordered),
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
            "placeholders": lineage.placeholders(facts),
            "store_facts": lineage.terms_of_store(facts, record.store),
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
        return {
            "name": choice.name,
            "words": sentences.of_choice(choice, record, self._write.get(choice.by or "", number)),
            "coverage": sentences.of_coverage(self.facts, choice, record),
            "sheets": self.sheets[choice.name],
            "facts": lineage.terms_of_choice(choice, record.digest, self.record.store["digest"]),
        }

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
                (f"rank in {choice.name}", f"{number(int(choice.rank[row]) + 1)} of {number(int(choice.chosen.sum()))}")
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
                        "place": number(int(places[row]) + 1) if places[row] >= 0 else "",
                        "score": self._write[label](float(values[label])) if label is not None else "",
                    }
                    for label, places in ordered
                ],
                "details": [
                    *((label, self._write[label](float(value))) for label, value in values.items()),
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
                "mean_words": self._write[self._score](float(means[row])) if self._score is not None else "",
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
        write = self._write[self._score]
        ends = {"low": write(scale.low), "high": write(scale.high)}
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

    def _map_words(self, row: int) -> str:
        """The mean of the score over a photograph, and its place among all."""
        assert self._score is not None
        mean = float(np.nanmean(self._candidate_scores[self.facts.image == row]))
        place, of = self._ordered.index(row) + 1, len(self._ordered)
        return f"mean {self._score} {self._write[self._score](mean)}, place {number(place)} of {number(of)}"

    def _maps(self, photos: Mapping[str, str]) -> list[dict[str, Any]]:
        shown = []
        for row in self.mapped:
            image = self._image(row)
            mine = self.facts.image == row
            borders = []
            for choice in islice(self.facts.choices, 6):
                windows = maps.windows_of(self.facts, np.flatnonzero(mine & choice.chosen))
                size = image["height"], image["width"]
                borders.append((maps.outline(windows, size), maps.remainder(windows, size)))
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
                    "place": self._map_words(row),
                    "words": f"{', '.join(taken)} of {plural(int(mine.sum()), 'patch', 'patches')}",
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
        told = self._patches()
        groups = [("", self.extremes), *((f"{name}: ", group) for name, group in self.sheets.items())]
        for head, group in [*groups, *(("", group) for group in self.changes.values())]:
            for sheet in sheets.every(group):
                if sheet.rows:
                    yield f"patches-{slug(sheet.name)}", self._sheet_print(head, sheet, told)
        for row, name in zip(self.mapped, self._map_names(), strict=True):
            yield f"map-{name}", self._map_print(row)

    def _sheet_print(self, head: str, sheet: Sheet, told: Mapping[int, dict[str, Any]]) -> bytes:
        several = len(self.facts.choices) > 1
        tiles = []
        for row in sheet.rows:
            chosen, words = told[row]["chosen"], told[row]["told"][sheet.index]
            marks = [figures.colour(index) for index, taken in enumerate(chosen) if taken]
            tiles.append(
                prints.Tile(
                    self.pictures.patches[row],
                    (f"{words['place']}   {words['score']}".strip(), told[row]["name"]),
                    out=not any(chosen) if sheet.of_all else not chosen[sheet.index],
                    marks=tuple(marks) if sheet.of_all and several else (),
                )
            )
        below = "Below each: its rank from the highest score, which is 1; the score; the photograph."
        keys = ", ".join(f"{figures.name_of(i)} {choice.name}" for i, choice in enumerate(self.facts.choices))
        squares = f" Squares: who chose it, {keys}." if sheet.of_all and several else ""
        return prints.sheet_print(
            f"{head}{sheet.title}", f"{sheet.words} {below if self._score else ''}{squares}".strip(), tiles
        )

    def _map_names(self) -> list[str]:
        """The photographs' names as parts of files' names, with the image's id where two would be one."""
        images = [self._image(row) for row in self.mapped]
        names = [slug(image["name"].removesuffix(Path(image["name"]).suffix))[:80] for image in images]
        folded = [name.casefold() for name in names]
        return [
            f"{name}-{image['image_id']}" if folded.count(name.casefold()) > 1 else name
            for name, image in zip(names, images, strict=True)
        ]

    def _map_print(self, row: int) -> bytes:
        assert self._score is not None
        image, first = self._image(row), self.facts.choices[0]
        photo = self.pictures.maps[image["image_id"]]
        mine = np.flatnonzero((self.facts.image == row) & first.chosen)
        lines = maps.borders(maps.windows_of(self.facts, mine), (image["height"], image["width"]))
        grey = 128 + _CONTRAST * (np.asarray(photo.convert("L").convert("RGB"), np.float64) - 128)
        painted = maps.painted(grey.round().astype(np.uint8), self._colours(row, (photo.height, photo.width)), _HEAT)
        ramp = self._scale.ramp()[None]
        seen = maps.painted(np.full((*ramp.shape[:2], 3), 128, np.uint8), ramp, _HEAT)[0]
        ends = [self._write[self._score](value) for value in (self._scale.low, self._scale.high)]
        bar = prints.Bar(f"{self._score}{' (log)' if self._scale.log else ''}", ends[0], ends[1], seen)
        words = f"{_capital(self._map_words(row))}. Outlined: the area under the patches of {first.name}."
        return prints.map_print(short(image["name"], 80), words, painted, lines, photo.width / image["width"], bar)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _shown(figure: Figure) -> dict[str, Any]:
    return {"caption": figure.caption, "markup": Markup(figure.svg())}
