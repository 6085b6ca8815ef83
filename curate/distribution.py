"""How scores are spread, and what a choice took of them: counts in bins, for `curate info`.

Scores are streamed twice, to find the bins and to count; what is held does not grow with their number.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from curate import selection, sql
from curate.bins import Spread, tally
from curate.errors import CurateError, UsageError, listed, one_line
from curate.histogram import Histogram
from curate.manifest import Scan
from curate.schema import ManifestRecipe
from curate.store import Store

__all__ = ["BINS", "images_of", "of_manifest", "of_store"]

BINS = 60

Floats = npt.NDArray[np.float64]
Numbers = Callable[[], Iterator[Floats]]  # the same pieces of a column each time it is called; null is NaN

_BATCH_ROWS = 2**18
_MEMORY = "256MB"
_FEW = 2  # threads: each takes its share of the memory
_NUMBERS = ("FLOAT", "DOUBLE")  # a vector is FLOAT[512]
_MOST_JOINED = 2**20  # patches of a store that are looked for in a manifest: beyond, that takes longer than is waited


@dataclass(frozen=True, slots=True)
class _Survey:
    """What one look at the numbers tells."""

    spread: Spread | None  # None if none is finite
    median: float  # to a thousandth
    missing: int  # not finite


@dataclass(slots=True)
class _Tally:
    """What the second look tells, of finite numbers."""

    bins: npt.NDArray[np.int64]
    below: int  # the first bin
    above: int  # the window
    at_high: int  # its upper end
    inside: int  # between its ends
    at_low: int


def of_store(store: Store) -> dict[str, dict[str, Any]]:
    """SQL column -> the distribution of its scores, read without the patches that they belong to; vectors have none.

    Nothing of a store at a URL: its tables are not fetched for it. Raises CurateError for a table that is none.
    """
    if not isinstance(store.path, Path):
        return {}
    found = {}
    for name, (scores, column) in store.score_columns().items():
        files = store.score_files(scores)
        if not files:  # the scorer was cut off before its first shard
            found[name] = _alone(lambda: iter(()))
            continue
        try:
            source = sql.parquet(files, f"{sql.identifier(column)} AS score")
            with sql.connect({"scores": source}, files, memory=_MEMORY) as connection:
                rows = connection.sql("FROM scores")
                if str(rows.types[0]) in _NUMBERS:
                    found[name] = _alone(_numbers(rows))
        except duckdb.Error as error:
            raise sql.query_error(error) from None
    return found


def of_manifest(scan: Scan) -> dict[str, Any]:
    """How the scores of a manifest's patches lie among those of all candidates, if its store is on this disk.

    `note` says in one line what is missing: where the candidates are not known, `candidates` and `counts` are null and
    the bins are those of the chosen patches alone; where no score is known, there are no bins.
    """

    def own() -> Iterator[Floats]:
        return (_floats(batch["score"]) for batch in scan.batches("score"))

    chosen = _survey(own)
    try:
        with _candidates(scan) as candidates:
            return candidates.beside(own, chosen)
    except duckdb.Error as error:
        note = str(sql.query_error(error))
    except (CurateError, OSError) as error:
        note = one_line(error)
    if chosen.spread is None:
        return {"score": None, "note": note}
    edges = chosen.spread.edges(BINS)
    counted = _tally(own, edges, chosen.spread)
    return {
        "score": scan.manifest.recipe.by,
        "note": note,
        "candidates": None,
        "chosen": chosen.spread.count,
        "without_finite_score": chosen.missing,
        "log": chosen.spread.wide,
        "edges": edges.tolist(),
        "counts": None,
        "chosen_counts": counted.bins.tolist(),
        "below": counted.below,
        "chosen_below": counted.below,
        "window": None,
    }


def images_of(scan: Scan) -> int:
    """How many images the patches of a manifest are of. Beyond a limit of memory it takes a temporary folder."""
    try:
        with (
            tempfile.TemporaryDirectory(prefix="curate-") as spill,
            sql.connect(
                {"chosen": sql.parquet([scan.path])}, [scan.path], memory=_MEMORY, threads=_FEW, spill=Path(spill)
            ) as connection,
        ):
            ((count,),) = connection.sql("SELECT count(*) FROM (SELECT DISTINCT image_id FROM chosen)").fetchall()
    except duckdb.Error as error:
        raise sql.query_error(error) from None
    return int(count)


@dataclass(frozen=True)
class _Candidates:
    """What a manifest could choose from, by the recipe, and the score that tells how the choice lies in it."""

    connection: duckdb.DuckDBPyConnection  # with the view `chosen`, the manifest
    rows: duckdb.DuckDBPyRelation  # patch_id, score
    recipe: ManifestRecipe
    score: str

    def beside(self, own: Numbers, chosen: _Survey) -> dict[str, Any]:
        """The answer of `of_manifest`. UsageError where these are not the candidates of then."""
        numbers, by = _numbers(self.rows), self.recipe.by
        every = _survey(numbers)
        self._check_number(every)
        if every.spread is None:
            raise UsageError(f"no candidate has a finite score '{one_line(self.score)}'")
        if by is None:
            own = _numbers(self.rows.filter("patch_id IN (SELECT patch_id FROM chosen)"))
        edges = every.spread.edges(BINS)
        ends = chosen.spread if by is not None and chosen.spread is not None else every.spread
        counted, taken = _tally(numbers, edges, ends), _tally(own, edges, ends)
        if (taken.bins > counted.bins).any() or taken.below > counted.below:
            raise UsageError("its scores are not those that its store has")
        return {
            "score": self.score,
            "note": None if by is not None else f"it was not chosen by a score: {one_line(self.score)} is the store's",
            "candidates": every.spread.count,
            "chosen": int(taken.bins.sum()) + taken.below,
            "without_finite_score": every.missing,
            "log": every.spread.wide,
            "edges": edges.tolist(),
            "counts": counted.bins.tolist(),
            "chosen_counts": taken.bins.tolist(),
            "below": counted.below,
            "chosen_below": taken.below,
            "window": None if by is None else self._window(ends, counted, taken),
        }

    def _check_number(self, every: _Survey) -> None:
        count = 0 if every.spread is None else every.spread.count
        then = self.recipe.counts.get("candidates", 0)
        if self.recipe.by is None:
            count += every.missing
        else:
            then -= self.recipe.counts.get("without_finite_score", 0)
        if count != then:
            raise UsageError(f"its store has {count} candidates now, and had {then} when it was chosen")

    def _window(self, ends: Spread, counted: _Tally, taken: _Tally) -> dict[str, Any]:
        """As `reporting.ranks.window`: ranks from the highest score down, equal scores by patch_id."""
        first, last = counted.above, counted.above + counted.at_high + counted.inside + counted.at_low - 1
        if ends.low == ends.high:
            last = counted.above + counted.at_high - 1
        if taken.at_high < counted.at_high:  # only some of these equal scores are chosen: which?
            first = counted.above + self._before(ends.high, "min", "<")
        if taken.at_low < counted.at_low:
            last -= counted.at_low - self._before(ends.low, "max", "<=")
        gaps = counted.inside - taken.inside
        return {"first": first, "last": last, "gaps": gaps, "low": ends.low, "high": ends.high}

    def _before(self, score: float, end: str, operator: str) -> int:
        """How many candidates of this score come before its first chosen patch, or up to its last one."""
        equal = f"score = {sql.number(score)}"
        ((patch_id,),) = self.connection.sql("FROM chosen").filter(equal).aggregate(f"{end}(patch_id)").fetchall()
        before = self.rows.filter(f"{equal} AND patch_id {operator} {sql.text(patch_id)}")
        ((count,),) = before.aggregate("count(*)").fetchall()
        return int(count)


@contextlib.contextmanager
def _candidates(scan: Scan) -> Iterator[_Candidates]:
    """The candidates of a manifest. CurateError, in a line, where they are not at hand."""
    manifest, recipe = scan.manifest, scan.manifest.recipe
    where = manifest.store_path()
    if not isinstance(where, Path):
        raise UsageError(f"its store is not on this disk: '{one_line(where)}'")
    if not Store.is_store(where):
        raise UsageError(f"its store is not at '{one_line(where)}' any more")
    if recipe.packed_from is not None:
        raise UsageError("its store is packed and has the chosen patches alone")
    store = manifest.store()
    units = store.commits()
    patches = sum(store.rows(unit, "patches") for unit in units.values())
    if recipe.by is None and patches > _MOST_JOINED:
        raise UsageError(f"its store has {patches} patches, too many to look each of them up")
    column = _score_of(store, recipe)
    with (
        tempfile.TemporaryDirectory(prefix="curate-") as spill,
        store.connect({"chosen": scan.path}, memory=_MEMORY, spill=Path(spill)) as connection,
    ):
        rows = selection.matching(connection, recipe.where).filter(f"shard <= {list(units)[recipe.store.shards - 1]}")
        if recipe.checks and connection.sql("FROM flags LIMIT 1").fetchall():
            rows = rows.filter("image_id NOT IN (SELECT image_id FROM flags)")
        score = f"CAST({sql.identifier(column)} AS DOUBLE) AS score"
        yield _Candidates(connection, rows.project(f"patch_id, {score}"), recipe, column)


def _score_of(store: Store, recipe: ManifestRecipe) -> str:
    """The column that a manifest was ranked by, whatever its name now; of one without, another of its scores."""
    sets = {name: found for name, (found, _) in store.score_columns().items() if not found.record.vector}
    prints = {name: found.record.fingerprint for name, found in sets.items()}
    if recipe.by is None:
        name = next((name for name in [*recipe.scorers, *sets] if name in sets), None)
        if name is None:
            raise UsageError("it was not chosen by a score, and its store has none")
        return name
    then = recipe.scorers.get(recipe.by)
    same = [name for name, now in prints.items() if now == then]
    if not same:
        there = f"there are: {listed(f'{name} ({now[:8]})' for name, now in prints.items())}"
        raise UsageError(f"its store lacks the score that it was chosen by, {one_line(recipe.by)} ({then}); {there}")
    return recipe.by if recipe.by in same else same[0]


def _alone(numbers: Numbers) -> dict[str, Any]:
    """The distribution of one score; there are no bins of none."""
    found = _survey(numbers)
    spread = found.spread
    if spread is None:
        return {"without_finite_score": found.missing}
    edges = spread.edges(BINS)
    counted = _tally(numbers, edges, spread)
    return {
        "without_finite_score": found.missing,
        "lowest": spread.low,
        "median": found.median,
        "highest": spread.high,
        "log": spread.wide,
        "edges": edges.tolist(),
        "counts": counted.bins.tolist(),
        "below": counted.below,
    }


def _survey(numbers: Numbers) -> _Survey:
    counts, missing, positive = Histogram(), 0, 0
    low = least = np.inf
    high = -np.inf
    for values in numbers():
        finite = values[np.isfinite(values)]
        missing += len(values) - len(finite)
        if len(finite):
            counts.add(finite)
            above = finite[finite > 0]
            positive += len(above)
            low, high = min(low, finite.min()), max(high, finite.max())
            least = min(least, above.min(initial=np.inf))
    if not counts.total:
        return _Survey(None, np.nan, missing)

    def at(share: float, first: int, count: int) -> float:
        rank = first + round(share * (count - 1))
        return float(np.clip(counts.band(rank, rank + 1, descending=False)[0], low, high))

    p1, p99 = (at(share, counts.total - positive, positive) if positive else 0.0 for share in (0.01, 0.99))
    lowest = float(least) if positive else 0.0
    spread = Spread(counts.total, positive, float(low), float(high), lowest, max(p1, lowest), p99)
    return _Survey(spread, at(0.5, 0, counts.total), missing)


def _tally(numbers: Numbers, edges: Floats, ends: Spread) -> _Tally:
    """Counts in bins, and around the window from ends.low to ends.high."""
    counted = _Tally(np.zeros(len(edges) - 1, np.int64), 0, 0, 0, 0, 0)
    low, high = ends.low, ends.high
    for values in numbers():
        finite = values[np.isfinite(values)]
        bins, below = tally(finite, edges)
        counted.bins += bins
        counted.below += below
        counted.above += int((finite > high).sum())
        counted.at_high += int((finite == high).sum())
        counted.inside += int(((finite > low) & (finite < high)).sum())
        counted.at_low += int((finite == low).sum())
    return counted


def _numbers(rows: duckdb.DuckDBPyRelation) -> Numbers:
    """The column `score` of an answer."""

    def pieces() -> Iterator[Floats]:
        waiting, count = [], 0
        for batch in sql.batches(rows.project("score").to_arrow_reader(_BATCH_ROWS)):
            waiting.append(_floats(batch["score"]))
            count += len(waiting[-1])
            if count >= _BATCH_ROWS:  # DuckDB gives a batch a file at least, and each has a price
                yield np.concatenate(waiting)
                waiting, count = [], 0
        if waiting:
            yield np.concatenate(waiting)

    return pieces


def _floats(column: Any) -> Floats:
    values: Floats = column.to_numpy(zero_copy_only=False).astype(np.float64)  # null becomes NaN
    return values
