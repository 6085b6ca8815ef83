"""The pages of `docs/`: what they show runs, and what they answer is true."""

import csv
import hashlib
import io
import json
import math
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pages
import pyarrow.parquet as pq
import pytest
from conftest import scene, synthetic_photo
from pages import ROOT, all_blocks, blocks, commands, run_page
from PIL import Image
from scipy.stats import rankdata

import curate
from curate import layout
from curate.genotype import Genotype
from curate.store import Store

COOKBOOK = "docs/cookbook.md"
_SHOWN = [block for block in all_blocks(COOKBOOK) if block.heading[0].isdigit()]
AUDITS = {int(block.heading.partition(".")[0]): block for block in _SHOWN if block.language in ("sql", "sh")}
QUERIES = {number: block.text for number, block in AUDITS.items() if block.language == "sql"}
Row = dict[str, Any]
Answer = list[tuple[Any, ...]]


# --- what the audits are asked of -------------------------------------------------------------------------------------


class Known(NamedTuple):
    """A store with two manifests, and its rows read without SQL."""

    folder: Path
    store: Store
    images: list[Row]  # with the status that flags give
    patches: list[Row]  # with the image's name and what each scorer says
    refined: dict[str, Row]  # by patch_id
    textured: dict[str, Row]

    @property
    def by_image(self) -> dict[str, list[Row]]:
        found = defaultdict(list)
        for patch in self.patches:
            found[patch["image_id"]].append(patch)
        return found

    @property
    def hardest(self) -> list[Row]:
        return sorted(self.patches, key=lambda patch: (-patch["srcnn"], patch["patch_id"]))

    @property
    def candidates(self) -> list[Row]:
        flagged = {image["image_id"] for image in self.images if image["status"] != "ok"}
        return [patch for patch in self.hardest if patch["image_id"] not in flagged]

    def rank(self, patch: Row) -> int | None:
        chosen = self.refined.get(patch["patch_id"])
        return None if chosen is None else chosen["rank"]

    def chosen(self, patches: Iterable[Row]) -> int:
        return sum(patch["patch_id"] in self.refined for patch in patches)

    def in_window(self, patches: Iterable[Row]) -> int:
        scores = [row["score"] for row in self.refined.values()]
        return sum(min(scores) <= patch["srcnn"] <= max(scores) for patch in patches)

    def answer(self, query: str) -> Answer:
        manifests = {name: self.folder / f"{name}.parquet" for name in ("refined", "textured")}
        return [tuple(row.values()) for row in self.store.query(query, manifests).to_pylist()]


def known(folder: Path) -> Known:
    store = Store.open(folder / "store")
    reasons = dict(zip(*store.findings().flags.to_pydict().values(), strict=True))
    images = [row | {"status": reasons.get(row["image_id"], row["status"])} for row in store.images().to_pylist()]
    patches: dict[str, Row] = {}
    for unit in store.commits():
        patches |= {row["patch_id"]: row | {"shard": unit} for row in store.unit_table("patches", unit).to_pylist()}
    of_id = {image["image_id"]: image for image in images}
    for patch in patches.values():
        patch["image"] = of_id[patch["image_id"]]
    for found in store.score_sets():
        for unit in store.commits():
            for row in store.score_table(found, unit).to_pylist():
                patches[row["patch_id"]][found.record.label] = row[found.record.columns[0]]
    refined, textured = (
        {row["patch_id"]: row for row in pq.read_table(folder / f"{name}.parquet").to_pylist()}
        for name in ("refined", "textured")
    )
    return Known(folder, store, images, list(patches.values()), refined, textured)


def save(pixels: Any, file: Path, **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """Folders as the cookbook has them, and what its own commands make of them: refused, doubled, leaked, flat ones."""
    folder = tmp_path_factory.mktemp("cookbook")
    photos = folder / "photos"
    for i in range(3):
        save(synthetic_photo(120 + 12 * i, 156, i), photos / f"kodak/kodim0{i}.png")
    save(synthetic_photo(420, 492, 5), photos / "photos2k/large.png")
    street = np.stack([scene(216, 264, 1)] * 3, -1)
    save(street, folder / "Set5/HR/street.png")
    save(street[12:], photos / "bsds-train/seen.jpg", quality=92)
    for i in range(3):
        save(synthetic_photo(97 + i, 140, 20 + i), photos / f"bsds-train/{i}.jpg", quality=90)
    save(np.full((144, 144, 3), 128, np.uint8), photos / "t91/flat.png")
    save(synthetic_photo(40, 40, 30), photos / "t91/small.png")
    (photos / "t91/again.png").write_bytes((photos / "kodak/kodim01.png").read_bytes())
    save(synthetic_photo(120, 156, 0), photos / "web/resaved.jpg", quality=80)
    save(synthetic_photo(60, 72, 40), photos / "web/new.png")
    noise = np.random.default_rng(0).normal(0, 12, (97, 140, 3))
    noisy = (synthetic_photo(97, 140, 20) + noise).clip(0, 255).astype(np.uint8)
    save(noisy, photos / "web/noisy.png")  # has more bytes than 0.jpg, which therefore is the one that is flagged
    (photos / "web/half.jpg").write_bytes((photos / "bsds-train/1.jpg").read_bytes()[:2000])
    script = blocks(COOKBOOK, "sh")[0].replace("--patch 96 --step 48", "--patch 48 --step 24").replace("8MB", "100KB")
    assert "--patch 48 --step 24 --shard-size 100KB" in script
    commands(script, folder)
    return known(folder)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, write_store: Callable[..., Store]) -> Known:
    """Tables with few different scores, so that there are ties everywhere, at the window's edges too."""
    folder, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(7)
    units = (14, 9, 1, 23, 6, 31, 10, 2, 1)
    scores = {
        name: (rng.integers(0, levels, sum(units)) / 16).tolist()
        for name, levels in (("srcnn", 9), ("sobel", 11), ("noise", 40), ("blockiness", 40))
    }
    scores["srcnn"][-3:] = [0.0, 20.0, 20.0]  # the last image but one is too easy and too hard, the last too hard
    write_store(folder / "store", units, scores)
    for name, by in (("refined", "srcnn"), ("textured", "sobel")):
        curate.select(folder / "store", "refined", by=by).save(folder / f"{name}.parquet")
    return known(folder)


@pytest.fixture(params=["photographs", "tables"])
def asked(request: pytest.FixtureRequest) -> Known:
    found: Known = request.getfixturevalue(request.param)
    return found


# --- the audits, by brute force ---------------------------------------------------------------------------------------


def half_up(value: float, digits: int = 1) -> float:
    return math.copysign(math.floor(abs(value) * 10**digits + 0.5) / 10**digits, value)


def percent(part: float, whole: float) -> float:
    return half_up(100 * part / whole)


def most(k: Known) -> Answer:
    rows = [(p[0]["image"]["name"], len(p), k.chosen(p)) for p in k.by_image.values()]
    rows.sort(key=lambda row: (-row[2], row[0]))
    return [(name, n, chosen, percent(chosen, n), percent(chosen, len(k.refined))) for name, n, chosen in rows[:10]]


def nothing(k: Known) -> Answer:
    scores = [row["score"] for row in k.refined.values()]
    rows = []
    for patches in k.by_image.values():
        if not k.chosen(patches):
            image, losses = patches[0]["image"], [patch["srcnn"] for patch in patches]
            why = "too easy" if max(losses) <= min(scores) else "too hard" if min(losses) >= max(scores) else None
            why = image["status"] if image["status"] != "ok" else why or "too easy and too hard"
            rows.append((image["name"], len(patches), why))
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def evenness(k: Known) -> Answer:
    rows = []
    for what, count in (("store", len), ("refined", k.chosen)):
        numbers = [count(patches) for patches in k.by_image.values()]
        differences = sum(abs(a - b) for a in numbers for b in numbers)
        gini = differences / (2 * len(numbers) * sum(numbers))
        ten = sum(sorted(numbers)[-10:])
        rows.append((what, len(numbers), sum(numbers), half_up(gini, 3), percent(ten, sum(numbers))))
    return rows


def parts(k: Known) -> Answer:
    of = defaultdict(list)
    for patch in k.patches:
        image = patch["image"]
        pixels = image["height"] * image["width"]
        size = "small" if pixels < 200_000 else "medium" if pixels < 1_000_000 else "large"
        for part in (f"source {image['source']}", f"split {image['split']}", size):
            of[part].append(patch)
    return [
        (part, len(p), k.chosen(p), percent(len(p), len(k.patches)), percent(k.chosen(p), len(k.refined)))
        for part, p in sorted(of.items())
    ]


def shards(k: Known) -> Answer:
    rows = []
    for shard in sorted({patch["shard"] for patch in k.patches}):
        here = [patch for patch in k.patches if patch["shard"] == shard]
        chosen = [patch for patch in here if k.rank(patch) is not None]
        images = [len({patch["image_id"] for patch in group}) for group in (chosen, here)]
        rows.append((shard, len(here), len(chosen), *images))
    return rows


def covered(k: Known) -> Answer:
    canvases: dict[str, Any] = {}
    for row in k.refined.values():
        image = next(image for image in k.images if image["image_id"] == row["image_id"])
        canvas = canvases.setdefault(row["image_id"], np.zeros((image["height"], image["width"]), bool))
        canvas[row["y"] : row["y"] + row["size"], row["x"] : row["x"] + row["size"]] = True
    photographs = sum(image["height"] * image["width"] for image in k.images if image["status"] == "ok")
    pixels = sum(row["size"] ** 2 for row in k.refined.values())
    return [(pixels, sum(int(canvas.sum()) for canvas in canvases.values()), photographs)]


def hardest(k: Known) -> Answer:
    return [(p["image"]["name"], p["y"], p["x"], p["srcnn"], p["sobel"], p["noise"], k.rank(p)) for p in k.hardest[:10]]


def tenths(rows: list[Row]) -> Iterator[tuple[int, list[Row]]]:
    """As equal as can be, the first ones one larger."""
    size, more = divmod(len(rows), 10)
    first = 0
    for tenth in range(1, 11):
        end = first + size + (tenth <= more)
        yield tenth, rows[first:end]
        first = end


def deciles(k: Known) -> Answer:
    return [
        (t, len(p), p[-1]["srcnn"], p[0]["srcnn"], float(np.mean([q["sobel"] for q in p])), k.chosen(p))
        for t, p in tenths(k.hardest)
    ]


def flat(k: Known) -> Answer:
    edge = float(np.quantile([patch["sobel"] for patch in k.patches], 0.1))
    below = [patch for patch in k.patches if patch["sobel"] < edge]
    if not below:
        return [(None, 0, 0, 0)]
    return [(edge, len(below), k.chosen(below), half_up(100 * k.chosen(below) / len(k.refined), 2))]


def places(values: Iterable[float]) -> Any:
    """The share of the others that are lower."""
    numbers = np.array(list(values), np.float64)
    return (rankdata(numbers, "min") - 1) / max(len(numbers) - 1, 1)


def hard_all_over(k: Known) -> Answer:
    place = dict(zip((p["patch_id"] for p in k.patches), places(-p["srcnn"] for p in k.patches), strict=True))
    rows = []
    for patches in k.by_image.values():
        mine = [place[patch["patch_id"]] for patch in patches]
        noise = half_up(float(np.mean([patch["noise"] for patch in patches])), 2)
        first = percent(sum(p < 0.05 for p in mine), len(mine))
        rows.append((patches[0]["image"]["name"], len(mine), first, half_up(100 * max(mine)), noise))
    return sorted(rows, key=lambda row: (-row[2], row[0]))[:10]


def borders(k: Known) -> Answer:
    of = defaultdict(list)
    for patches in k.by_image.values():
        both = zip(*(places(p[score] for p in patches) for score in ("srcnn", "sobel")), strict=True)
        for p, found in zip(patches, both, strict=True):
            height, width = (p["image"][side] // 12 * 12 for side in ("height", "width"))
            at_border = 0 in (p["y"], p["x"]) or p["y"] + p["size"] == height or p["x"] + p["size"] == width
            of[at_border].append(found)
    return [(at, len(found), *(half_up(100 * x) for x in np.mean(found, 0))) for at, found in sorted(of.items())]


def sample(k: Known) -> Answer:
    rows = []
    for tenth, patches in tenths(k.hardest):
        drawn = sorted(patches, key=lambda patch: hashlib.md5(patch["patch_id"].encode()).hexdigest())[:2]
        rows += [(tenth, p["image"]["name"], p["y"], p["x"], p["srcnn"], k.rank(p)) for p in drawn]
    return sorted(rows, key=lambda row: row[:4])


def around(k: Known) -> Answer:
    it = k.hardest[0]
    near = [
        (p["y"] - it["y"], p["x"] - it["x"], p["srcnn"], k.rank(p))
        for p in k.by_image[it["image_id"]]
        if abs(p["y"] - it["y"]) < p["size"] and abs(p["x"] - it["x"]) < p["size"]
    ]
    return sorted(near, key=lambda row: row[:2])


def agreement(k: Known) -> Answer:
    rows = []
    for patches in k.by_image.values():
        if len(patches) >= 10:
            a, b = (rankdata([patch[score] for patch in patches]) for score in ("srcnn", "sobel"))
            alike = math.nan if min(a.std(), b.std()) == 0 else half_up(float(np.corrcoef(a, b)[0, 1]), 4)
            rows.append((patches[0]["image"]["name"], len(patches), alike))
    return sorted(rows, key=lambda row: (math.isnan(row[2]), row[2], row[0]))


def disagreement(k: Known) -> Answer:
    a, b = (places(patch[score] for patch in k.patches) for score in ("srcnn", "sobel"))
    rows = sorted(zip(k.patches, a, b, strict=True), key=lambda row: (-abs(row[1] - row[2]), row[0]["patch_id"]))
    return [(p["image"]["name"], p["y"], p["x"], half_up(100 * a), half_up(100 * b)) for p, a, b in rows[:10]]


def once_jpeg(k: Known) -> Answer:
    of = defaultdict(list)
    for patch in k.patches:
        of[patch["image"]["source"], Path(patch["image"]["name"]).suffix[1:]].append(patch)
    rows = [
        (
            *kind,
            len(p),
            half_up(float(np.median([q["blockiness"] for q in p]))),
            float(np.median([q["srcnn"] for q in p])),
        )
        for kind, p in of.items()
    ]
    return sorted(rows, key=lambda row: -row[3])


def just_outside(k: Known) -> Answer:
    ordered = k.candidates
    inside = [place for place, patch in enumerate(ordered, 1) if k.rank(patch) is not None]
    first, last = min(inside), max(inside)
    shown = sorted({*range(first - 2, first + 2), *range(last - 1, last + 3)} & {*range(1, len(ordered) + 1)})
    rows = [(place, ordered[place - 1]) for place in shown]
    return [(place, p["image"]["name"], p["y"], p["x"], p["srcnn"], k.rank(p)) for place, p in rows]


def cut_ties(k: Known) -> Answer:
    scores = [row["score"] for row in k.refined.values()]
    equal = {end: [p for p in k.candidates if p["srcnn"] == end] for end in (max(scores), min(scores))}
    return [(end, len(patches), k.chosen(patches)) for end, patches in equal.items()]


def made_again(k: Known) -> Answer:
    count = len(k.candidates)
    first, budget = math.floor(0.05 * count + 0.5), math.floor(0.5 * count + 0.5)
    expected = [patch["patch_id"] for patch in k.candidates[first : first + budget]]
    same = sum(k.refined[patch_id]["rank"] == rank for rank, patch_id in enumerate(expected))
    assert same == len(k.refined)
    return [(budget, len(k.refined), same)]


def sound(k: Known) -> Answer:
    ranks, weights = ([row[name] for row in k.refined.values()] for name in ("rank", "weight"))
    absent = k.refined.keys() - {patch["patch_id"] for patch in k.patches}
    numbers = (len(ranks), len(set(k.refined)), min(ranks), max(ranks))
    return [(*numbers, half_up(float(np.mean(weights)), 6), min(weights), max(weights), len(absent))]


def overlap(k: Known) -> Answer:
    both, either = k.refined.keys() & k.textured.keys(), k.refined.keys() | k.textured.keys()
    ranks = [[manifest[patch]["rank"] for patch in both] for manifest in (k.refined, k.textured)]
    agrees = float(np.corrcoef(ranks)[0, 1])
    return [(len(k.refined), len(k.textured), len(both), half_up(len(both) / len(either), 3), agrees)]


def entered(k: Known) -> Answer:
    rows = []
    for patches in k.by_image.values():
        a, b = ({p["patch_id"] for p in patches} & manifest.keys() for manifest in (k.refined, k.textured))
        if a | b:
            rows.append((patches[0]["image"]["name"], len(a), len(b), len(b - a), len(a - b)))
    return sorted(rows, key=lambda row: (-row[3] - row[4], row[0]))[:10]


def refused(k: Known) -> Answer:
    of = defaultdict(list)
    for image in k.images:
        if image["status"] != "ok":
            of[re.split(":| of ", image["status"])[0]].append(f"{image['source']}/{image['name']}")
    rows = [(why, len(names), min(names)) for why, names in of.items()]
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def doubles(k: Known) -> Answer:
    names = {image["image_id"]: image["name"] for image in k.images}
    pairs = k.store.findings().duplicates.to_pylist()
    copies = {(pair[side], pair["kept"]) for pair in pairs for side in ("image_id", "twin")}
    rows = [
        (names[copy], names[kept], len(k.by_image[copy]), k.in_window(k.by_image[copy]))
        for copy, kept in copies
        if copy != kept
    ]
    return sorted(rows, key=lambda row: (-row[2], row[0]))


def leaked(k: Known) -> Answer:
    rows = []
    for leak in k.store.findings().leaks.to_pylist():
        patches = k.by_image[leak["image_id"]]
        shares = (leak["share"], leak["test_share"])
        rows.append((leak["benchmark"], leak["test"], leak["name"], *shares, len(patches), k.in_window(patches)))
    return sorted(rows, key=lambda row: (-row[6], row[2]))


BRUTE_FORCE: dict[int, Callable[[Known], Answer]] = dict(
    enumerate(
        (
            *(most, nothing, evenness, parts, shards, covered),
            *(hardest, deciles, flat, hard_all_over, borders, sample, around),
            *(agreement, disagreement, once_jpeg),
            *(just_outside, cut_ties, made_again, sound, overlap, entered, refused, doubles, leaked),
        ),
        1,
    )
)


def test_the_cookbook_has_twenty_audits_and_each_is_checked() -> None:
    assert list(AUDITS) == list(range(1, len(AUDITS) + 1)) and len(AUDITS) >= 20
    assert QUERIES.keys() == BRUTE_FORCE.keys() and AUDITS.keys() - QUERIES.keys() == {len(AUDITS)}


@pytest.mark.parametrize("number", BRUTE_FORCE)
def test_an_audit_answers_what_brute_force_does(number: int, asked: Known) -> None:
    found, expected = asked.answer(QUERIES[number]), BRUTE_FORCE[number](asked)
    near = [
        tuple(pytest.approx(x, rel=1e-5, nan_ok=True) if isinstance(x, float) else x for x in row) for row in expected
    ]
    assert found == near


def test_the_photographs_have_something_of_everything(photographs: Known, tables: Known) -> None:
    """Or the audits of it would agree on nothing."""
    reasons = {row[0] for row in photographs.answer(QUERIES[23])}
    assert {"copy", "smaller than a patch", "truncated", "near-duplicate", "overlaps street.png"} <= reasons
    assert {row[0] for row in photographs.answer(QUERIES[24])} == {"resaved.jpg", "0.jpg"}
    assert {"too easy and too hard", "too hard"} <= {row[2] for row in tables.answer(QUERIES[2])}
    assert all(patches > chosen > 0 for _, patches, chosen in tables.answer(QUERIES[18]))
    for number, query in QUERIES.items():
        assert photographs.answer(query), number


def test_a_manifest_that_is_another_one_is_noticed(photographs: Known, tables: Known, tmp_path: Path) -> None:
    drawn = curate.select(photographs.folder / "store", "random").save(tmp_path / "refined.parquet").path
    expected, found, same = photographs.store.query(QUERIES[19], {"refined": drawn}).to_pylist()[0].values()
    assert expected == found and same < found / 10
    foreign = {"refined": tables.folder / "refined.parquet"}
    (sound,) = photographs.store.query(QUERIES[20], foreign).to_pylist()
    assert sound["not_in_store"] == sound["rows"] == len(tables.refined)


@pytest.mark.parametrize("number", QUERIES)
def test_the_answer_on_the_page_has_the_query_s_columns(number: int, photographs: Known) -> None:
    (shown,) = (block.text for block in _SHOWN if block.heading == AUDITS[number].heading and block.language == "text")
    manifests = {name: photographs.folder / f"{name}.parquet" for name in ("refined", "textured")}
    assert shown.splitlines()[0].split() == photographs.store.query(QUERIES[number], manifests).column_names


def test_the_list_for_other_tools_is_the_manifest(photographs: Known) -> None:
    commands(AUDITS[len(AUDITS)].text, photographs.folder)
    rows = list(csv.DictReader(io.StringIO((photographs.folder / "chosen.csv").read_text("utf-8"))))
    assert [int(row["rank"]) for row in rows] == list(range(len(photographs.refined)))
    of_id = {patch["patch_id"]: patch for patch in photographs.patches}
    for row, (patch_id, chosen) in zip(rows, photographs.refined.items(), strict=True):
        image = of_id[patch_id]["image"]
        place = (image["source"], image["name"], str(chosen["y"]), str(chosen["x"]), str(chosen["size"]))
        assert (row["source"], row["name"], row["y"], row["x"], row["size"]) == place
        assert (float(row["score"]), float(row["weight"])) == (chosen["score"], chosen["weight"])


def test_the_views_of_the_cookbook_have_these_columns(photographs: Known) -> None:
    named = table_rows(COOKBOOK, "SQL cookbook")
    assert set(photographs.store.views()) <= {view for view, *_ in named}
    for view, _, columns in named:
        found = photographs.answer(f"SELECT column_name FROM (DESCRIBE {view})")
        names = ", ".join(name for (name,) in found)
        assert names == columns or (view == "scores" and names.startswith("patch_id, image_id, y, x, size, shard, ")), (
            view
        )


# --- the formats ------------------------------------------------------------------------------------------------------

FORMATS = "docs/formats.md"


def table_rows(page: str, heading: str) -> list[list[str]]:
    """The rows of the tables under a heading that begin with a word in backticks: the word, and the other cells."""
    section = re.split(r"^#+ ", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE)
    (text,) = (text for text in section if text.partition("\n")[0] == heading)
    rows = re.findall(r"^\| `([^`]+)`[^|]*\|(.*)\|$", text, re.MULTILINE)
    return [[name, *(cell.strip() for cell in rest.split("|"))] for name, rest in rows]


def test_the_formats_can_be_read_without_curate(photographs: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = run_page(FORMATS, photographs.folder, {"--steps 1000": "--steps 2 --batch-size 2 --crop 48"}, monkeypatch)
    _, tables, hardest, window, record, manifest, grouped, checkpoint, _, duals, genotype, config, report = printed
    assert tables.startswith(f"{len(photographs.images)} files, {len(photographs.patches)} scores, ")
    of = [(p["image"]["name"], p["y"], p["x"], p["size"]) for p in photographs.hardest[:3]]
    assert [row[:4] for row in eval(hardest)] == of
    assert window == "(48, 48, 3)\n" and record.count("True True") == 4 and "False" not in record
    assert manifest.startswith(f"refined {{'drop_top': 0.05}} srcnn {len(photographs.refined)} patches")
    assert grouped.count('"strategy": "refined"') == 1 and checkpoint.startswith("fsrcnn:")
    assert eval(duals) == {"0.dual_module.0.0.weight": (16, 1, 3, 3), "0.dual_module.1.weight": (1, 16, 3, 3)}
    assert genotype == f"{Genotype.parse('genotype.json')}\n" == "conv_1x1+sep_7x7+sep_5x5@12.23.24.45\n"
    assert config == "40.12.12.12.12.12.30\n"
    candidates = photographs.candidates
    places = [place for place, patch in enumerate(candidates) if photographs.rank(patch) is not None]
    every = re.findall(r"\w+ ranks (\d+) to (\d+) of (\d+)", report)
    assert [tuple(map(int, found)) for found in every] == [(min(places), max(places), len(candidates))]


@pytest.mark.parametrize("name", ["images", "cells", "patches", "duplicates", "leaks", "retried", "manifest"])
def test_the_columns_on_the_page_are_those_of_the_tables(name: str) -> None:
    fields = {**layout.OF_SHARD, "duplicates": layout.DUPLICATES, "leaks": layout.LEAKS, "manifest": layout.MANIFEST}[
        name
    ]
    rows = [row[:3] for row in table_rows(FORMATS, name) if len(row) == 4]
    assert rows == [[field.name, str(field.type), "yes" if field.nullable else "no"] for field in fields]


@pytest.mark.parametrize(
    ("heading", "document"),
    [
        ("Commit records", "commit-record"),
        ("manifest", "manifest-recipe"),
        ("A checkpoint", "checkpoint-recipe"),
        ("Dual networks", "dual-record"),
        ("A genotype", "genotype-record"),
        ("A report's numbers", "report-record"),
    ],
)
def test_the_keys_on_the_page_are_those_of_the_documents(heading: str, document: str) -> None:
    properties = json.loads((ROOT / "schemas" / f"{document}.json").read_text("utf-8"))["properties"]
    keys = [row[0] for row in table_rows(FORMATS, heading) if len(row) == 2]
    assert keys == list(properties)


# --- a scorer of your own ---------------------------------------------------------------------------------------------


def test_the_scorers_of_the_page_work_from_the_current_folder(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        monkeypatch.delitem(sys.modules, name)  # of another test in this process
    monkeypatch.setattr(sys, "path", [*sys.path])  # curate adds the current folder
    sh = pages.shell

    def here(script: str, folder: Path) -> str:
        """Commands in this process but for the selection, which a shell runs; so it does what is not of curate."""
        lines = script.splitlines()
        alone = [line for line in lines if line.startswith("curate select") or not line.startswith("curate ")]
        return "".join((sh if line in alone else commands)(line, folder) for line in lines)

    monkeypatch.setattr(pages, "shell", here)
    printed = run_page("docs/scorer.md", tmp_path, {"--patch 96 --step 48": "--patch 48 --step 48"}, monkeypatch)
    rows = eval(printed[-1])
    assert len(rows) == len(list(photo_folder.iterdir()))
    assert [row["gain"] for row in rows] == pytest.approx([2.0] * len(rows))
    assert [row["span"] for row in rows] == sorted((row["span"] for row in rows), reverse=True)
    with pytest.raises(curate.errors.UsageError, match=r"cut should be from 0 to below 0\.5, found 0\.7"):
        curate.plugins.parse("scorers", "my_lab.span:cut=0.7")


# --- the commands -----------------------------------------------------------------------------------------------------


def test_the_reference_of_commands_is_what_they_say() -> None:
    """Otherwise `python docs/commands.py` writes it anew."""
    done = subprocess.run([sys.executable, "docs/commands.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text("utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert [page for page in pages if f"]({page})" not in index] == []
