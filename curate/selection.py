"""Select: scores -> a Manifest. Which patches are candidates, how many to keep, and what is written down about it."""

import contextlib
import math
import platform
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import starmap
from pathlib import Path
from typing import Literal, get_args

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate import __version__, coverage, flags, layout, limits, plugins, pool, rows, sql
from curate.errors import CurateError, DataError, UsageError, counted, listed, meant, one_line
from curate.histogram import Histogram
from curate.manifest import Manifest
from curate.pieces import Pieces, Rows, even, lengths
from curate.progress import Progress, silent
from curate.schema import ManifestRecipe, StoreReference
from curate.storage import Place
from curate.store import Store
from curate.strategies import Picks, Ranked, Strategy, share

__all__ = ["candidates", "check_names", "matching", "select", "write"]

Unit = Literal["patches", "pixels"]

_SCORING = "; 'curate score STORE srcnn sobel' makes some"
_BATCH_ROWS = 2**18  # in memory at a time while candidates are streamed
_LEAST = 600 * 10**6  # bytes of a process, with Python, Arrow and DuckDB; 530 were measured
_ROOM = 400 * 10**6  # bytes beyond what the process has before: it works with these
_THREAD = 100 * 10**6  # bytes that a thread of DuckDB's takes of which it does not count all
_ROW = 100  # bytes of a row that is held, while it is parted
_MOST_HELD = 2**20
_TOGETHER = 2**20  # rows that a manifest is given at a time: a row group, so that it puts nothing together
_COLUMNS = ("patch_id", "image_id", "y", "x", "size", "shard")


@dataclass(frozen=True, slots=True)
class _Choice:
    """What was asked, checked."""

    store: Store
    strategy: Strategy
    column: str | None  # of the score
    keep: float
    unit: Unit
    where: str | None
    with_flagged: bool


def select(
    store: Store | str | Path,
    strategy: Strategy | str,
    *,
    by: str | None = None,
    keep: float = 0.5,
    unit: Unit = "patches",
    where: str | None = None,
    with_flagged: bool = False,
    **options: object,
) -> Manifest:
    """Choose the core-set: `keep` of the candidates (0 < keep <= 1) by the score `by`, as `strategy` says.

    With N candidates that have a finite score, k = floor(keep * N + 0.5) are kept; order is by score, equal scores by
    patch_id. Patches whose score is NaN, infinite or missing are excluded and counted. `where` is an SQL condition
    over the columns of `scores` and `images`. Images that a check has flagged (near-duplicates, leaks) are left out and
    counted, unless `with_flagged`. With `unit` pixels `keep` is a share of the pixels under the candidates,
    each counted once however many windows cover it: as many patches are kept as stay within it. `options` are more
    options of a strategy given as a spec. `by` may be left out where the store has one score or none is needed.

    All candidates are held in memory: `write` need not. Raises UsageError for a share out of range, a score that does
    not exist, or nothing to choose from.
    """
    return _select(_choice(store, strategy, by, keep, unit, where, with_flagged, options))


def write(
    store: Store | str | Path,
    out: str | Path,
    strategy: Strategy | str,
    *,
    by: str | None = None,
    keep: float = 0.5,
    unit: Unit = "patches",
    where: str | None = None,
    with_flagged: bool = False,
    memory: str = "1GB",
    progress: Progress = silent,
    note: Callable[[str], None] | None = None,
    **options: object,
) -> ManifestRecipe:
    """`select(...).save(out)`, the same bytes, where memory is short; returns the manifest's recipe.

    A strategy that is a stretch of ranks (asc, des, refined, window) is never given all candidates: they are counted by
    their score, those that may be chosen are parted by it into a temporary folder ($TMPDIR), 32 bytes each, and sorted
    and written part by part. This process, with all that it has already, then takes `memory` (`1GB`) at most; where it
    has most of that already, 400 MB more. UsageError for less than 600 MB. Any other strategy, and `unit` pixels, hold
    all candidates. Raises as both do.

    `note` is told, in a line, of another choice that was at `out` and is replaced.
    """
    choice = _choice(store, strategy, by, keep, unit, where, with_flagged, options)
    file = Manifest.place_for(out)
    before = None if note is None else _before(file)
    recipe = _write(choice, out, memory, progress)
    if note is not None and before is not None and (line := _replaced(before, recipe)):
        note(line)
    return recipe


def _before(file: Place) -> ManifestRecipe | str | None:
    """The recipe of the manifest that is there, what there is instead, or None for nothing."""
    if not file.is_file():
        return None
    try:
        return Manifest.recipe_at(file)
    except CurateError:
        return "a file that was no manifest, or a damaged one"


def _replaced(before: ManifestRecipe | str, recipe: ManifestRecipe) -> str:
    """What a manifest takes the place of; '' for the same choice."""
    if isinstance(before, str):
        return f"replaces {before}"
    if before.model_copy(update={"versions": {}}) == recipe.model_copy(update={"versions": {}}):
        return ""
    by = f" of {before.by}" if before.by else ""
    size = counted(before.counts.get("selected", 0), "patch")
    return one_line(f"replaces a manifest by {before.strategy}{by}, {size}")


def _write(choice: _Choice, out: str | Path, memory: str, progress: Progress) -> ManifestRecipe:
    ranked = isinstance(choice.strategy, Ranked) and type(choice.strategy).select is Ranked.select
    if not ranked or choice.column is None or choice.unit != "patches":
        return _select(choice).save(out).recipe
    choice.store.commits()  # read and checked, so that what they take is known
    for_sql, threads, held = _shares(limits.size(memory, "--memory"))
    with tempfile.TemporaryDirectory(prefix="curate-") as spill:
        connection = choice.store.connect(
            memory=f"{for_sql}B", threads=threads, spill=Path(spill), watched=progress is not silent
        )
        try:
            return _stream(choice, connection, out, Path(spill), held, progress)
        except duckdb.Error as error:
            raise sql.query_error(error) from None
        finally:
            connection.close()


def _shares(memory: int) -> tuple[int, int, int]:
    """Of bytes that the whole process may take: DuckDB's limit, its threads, and how many rows are held.

    UsageError for less than it ever takes.
    """
    if memory < _LEAST:
        raise UsageError(f"--memory should be {_LEAST // 10**6}MB or more, found {memory / 10**6:g}MB")
    left = max(memory - limits.resident(), _ROOM)
    threads = min(pool.workers(), 1 + (left - _ROOM) // _THREAD)
    return left // 3, threads, min(_MOST_HELD, left // 4 // _ROW)


def _choice(
    store: Store | str | Path,
    strategy: Strategy | str,
    by: str | None,
    keep: float,
    unit: Unit,
    where: str | None,
    with_flagged: bool,
    options: Mapping[str, object],
) -> _Choice:
    store = store if isinstance(store, Store) else Store.open(store)
    chosen = plugins.parse("strategies", strategy, **options) if isinstance(strategy, str) else strategy
    if not isinstance(chosen, Strategy):
        raise UsageError(f"'{one_line(strategy)}' is not a strategy: it has no `select`, or is no subclass of Strategy")
    if options and not isinstance(strategy, str):
        raise UsageError(f"{listed(options)} should be set in the strategy itself, found {one_line(strategy)}")
    if not (math.isfinite(keep) and 0 < keep <= 1):
        raise UsageError(f"keep should be above 0 and at most 1 (0.5 is half of the patches), found {keep}")
    column = _score_column(store, by, needed=chosen.needs_score)
    if unit not in get_args(Unit):
        raise UsageError(f"no unit '{one_line(unit)}'; there are: {listed(get_args(Unit))}")
    return _Choice(store, chosen, column, keep, unit, where, with_flagged)


def _select(choice: _Choice) -> Manifest:
    """The choice from a table of all candidates."""
    store, chosen, keep = choice.store, choice.strategy, choice.keep
    matching = candidates(store, choice.column, choice.where, chosen.columns)
    everything = matching if choice.with_flagged else _unflagged(store, matching)
    flagged = matching.num_rows - everything.num_rows
    finite = _finite(everything) if choice.column else everything
    if choice.unit == "pixels":
        picks = _within_pixels(chosen, finite, share(keep, coverage.pixels(finite)), share(keep, finite.num_rows))
    else:
        picks = chosen.select(finite, share(keep, finite.num_rows)) if share(keep, finite.num_rows) else None
    if picks is None or not len(picks.rows):
        raise _nothing(choice, finite.num_rows, flagged)
    counts = {
        "flagged": flagged,
        "unchecked": _unchecked(store, everything),
        "candidates": everything.num_rows,
        "without_finite_score": everything.num_rows - finite.num_rows,
        "selected": len(picks.rows),
        "pixels": coverage.pixels(finite.take(pa.array(picks.rows))),
    }
    return Manifest(_manifest_table(finite, picks), _recipe(choice, counts))


def _stream(
    choice: _Choice, connection: duckdb.DuckDBPyConnection, out: str | Path, spill: Path, held: int, progress: Progress
) -> ManifestRecipe:
    """The choice of a stretch of ranks, of which `held` rows are in memory at a time and the others in `spill`.

    Candidates are read twice: to count them by their score, and to part those by it that may be chosen.
    """
    assert isinstance(choice.strategy, Ranked)
    passed = not choice.with_flagged and connection.sql("FROM flags LIMIT 1").fetchall()
    flagged = "image_id IN (SELECT image_id FROM flags)" if passed else "false"
    score = f"CAST({sql.identifier(choice.column or '')} AS DOUBLE)"
    places = ", ".join(name for name in _COLUMNS if name != "patch_id")  # which is made again of the others
    found = matching(connection, choice.where).project(f"{places}, {score} AS score, {flagged} AS flagged")
    sql.narrow(connection, found.sql_query())
    patches = sum(choice.store.rows(unit, "patches") for unit in choice.store.commits().values())
    with _shown(connection, patches, "counted", progress):
        counts, scores = _tally(choice.store, found)
    budget = share(choice.keep, scores.total)
    if not budget:
        raise _nothing(choice, scores.total, counts["flagged"])
    descending, first, end = choice.strategy.ranks(scores.total, budget)
    if first >= end:
        raise _nothing(choice, scores.total, counts["flagged"])
    low, high, before = scores.band(first, end, descending=descending)
    band = found.filter(f"NOT flagged AND score BETWEEN {sql.number(low)} AND {sql.number(high)}")
    cuts = scores.cuts(first, end, -(-held // 2), descending=descending)
    ranked = Pieces(spill / "scores", [rows.by_score(descending=descending), rows.by_image], cuts, held)
    with _shown(connection, end - first, "sorted", progress):
        for batch in sql.batches(band.project(", ".join(rows.COLUMNS)).to_arrow_reader(_BATCH_ROWS)):
            ranked.add(rows.of(batch))
    connection.close()  # its memory is for what follows
    few = held // 2 or 1
    parts = 1 + 5 * (end - first) // (4 * few)  # a quarter more than would do: ids are spread evenly, but for chance
    windows = Pieces(spill / "windows", [rows.by_image], even(0, 2**64 - 1, parts), few)

    def sorted_rows() -> Iterator[Rows]:
        place = before
        for piece in pool.ahead(partial(rows.ordered, descending=descending), ranked, 1):
            yield piece[max(first - place, 0) : max(end - place, 0)]
            place += len(piece)
        if place < end:  # `random() < 0.5`
            raise UsageError(f"a condition should hold for the same patches each time: {one_line(choice.where)}")

    def picks() -> Iterator[pa.Table]:
        done = 0
        for mine in lengths(sorted_rows(), _TOGETHER):
            windows.add(rows.windows(mine))
            table = [rows.manifest(mine, done)]
            done += len(mine)
            del mine
            yield table.pop()  # nobody holds it, or its rows, while the next one is made
            progress(done, end - first, "written")

    def recipe() -> ManifestRecipe:
        counts["selected"] = end - first
        counts["pixels"] = sum(pool.ahead(rows.pixels, windows, 1))
        return _recipe(choice, counts)

    return Manifest.write(out, picks(), recipe)


def _shown(
    connection: duckdb.DuckDBPyConnection, rows: int, what: str, progress: Progress
) -> contextlib.AbstractContextManager[None]:
    """While in it, DuckDB's own estimate of how many of `rows` are counted or sorted is told."""
    if progress is silent:
        return contextlib.nullcontext()
    return sql.watching(connection, lambda share: progress(int(share * rows), rows, what))


def _tally(store: Store, found: duckdb.DuckDBPyRelation) -> tuple[dict[str, int], Histogram]:
    """What there is to choose from: the counts of a recipe, and the finite scores."""
    unseen = pa.array(sorted(store.commits().keys() - _seen(store)), pa.int32())
    counts = dict.fromkeys(("flagged", "unchecked", "candidates", "without_finite_score"), 0)
    scores = Histogram()
    for batch in sql.batches(found.project("score, shard, flagged").to_arrow_reader(_BATCH_ROWS)):
        flagged = np.asarray(batch["flagged"])
        counts["flagged"] += int(flagged.sum())
        counts["candidates"] += int((~flagged).sum())
        if len(unseen):
            counts["unchecked"] += int((np.asarray(pc.is_in(batch["shard"], unseen)) & ~flagged).sum())
        values = batch["score"].to_numpy(zero_copy_only=False).astype(np.float64)  # null is NaN
        finite = np.isfinite(values) & ~flagged
        counts["without_finite_score"] += int((~flagged & ~finite).sum())
        scores.add(values[finite])
    return counts, scores


def _nothing(choice: _Choice, count: int, flagged: int) -> UsageError:
    condition = f" with {one_line(choice.where)}" if choice.where else ""
    what = "the pixels of " if choice.unit == "pixels" else ""
    store = one_line(choice.store.path)
    hint = (
        f"; {flagged} flagged ones left out, which --with-flagged takes; why they are: curate sql {store} "
        f'"select image_id, reason from flags"; a wrong test set: curate leaks {store} --forget NAME'
    )
    found = f"{choice.keep} of {what}{counted(count, 'candidate')}{condition} is 0 patches"
    return UsageError(f"nothing to choose: {found}{hint if flagged else ''}")


def _recipe(choice: _Choice, counts: dict[str, int]) -> ManifestRecipe:
    store, strategy, units = choice.store, choice.strategy, choice.store.commits()
    return ManifestRecipe(
        store=StoreReference(url=str(store.path.resolve()), shards=len(units), digest=store.digest()),
        strategy=plugins.spec_of(strategy),
        options=plugins.options_of(strategy),
        by=choice.column,
        keep=choice.keep,
        unit=choice.unit,
        where=choice.where,
        counts={"patches": sum(store.rows(unit, "patches") for unit in units.values()), **counts},
        scorers=_scorers(store, (choice.column, *strategy.columns), choice.where),
        checks={} if choice.with_flagged else {found.folder: found.record.label for found in store.check_sets()},
        versions={
            "curate": __version__,
            "python": platform.python_version(),
            "arrow": pa.cpp_version,  # which writes the file
            **{package: version(package) for package in ("duckdb", "numpy", "pyarrow")},
        },
    )


def candidates(store: Store, column: str | None, where: str | None = None, more: Sequence[str] = ()) -> pa.Table:
    """The patches that a choice is made from: patch_id, image_id, y, x, size, shard and score, sorted by patch_id.

    The score is float64, null without a column. `where` is one SQL condition; it can name every
    column of `scores` and of `images`. `more` are further ones of these columns to have, as they are.
    """
    return _candidates(store.connect(), column, where, more)


def check_names(scores: Mapping[str, pa.DataType], strategy: Strategy, where: str | None) -> None:
    """UsageError if a strategy asks for a column, or a condition says anything, that a store with such scores lacks."""
    fields = [*layout.PATCHES, pa.field("shard", pa.int32()), *starmap(pa.field, scores.items())]
    views = {"images": layout.IMAGES.empty_table(), "patches": layout.PATCHES.empty_table()}
    views |= {"scores": pa.schema(fields).empty_table()}
    _candidates(sql.connect(views | flags.NO_VIEWS, []), None, where, strategy.columns)


def _candidates(
    connection: duckdb.DuckDBPyConnection, column: str | None, where: str | None, more: Sequence[str]
) -> pa.Table:
    score = f"CAST({sql.identifier(column)} AS DOUBLE)" if column else "CAST(NULL AS DOUBLE)"
    try:
        rows = matching(connection, where, joined=bool(more))
        if missing := set(more) - set(rows.columns):
            raise UsageError(f"the strategy needs '{one_line(listed(missing))}'; the store has: {listed(rows.columns)}")
        wanted = ", ".join([*_COLUMNS, f"{score} AS score", *map(sql.identifier, more)])
        rows = rows.project(wanted).order("patch_id")
        sql.narrow(connection, rows.sql_query())
        table = rows.to_arrow_table()
    except duckdb.Error as error:
        raise sql.query_error(error) from None
    _check_whole(table)
    return table


def _check_whole(rows: pa.Table | pa.RecordBatch) -> None:
    """DataError if a patch lacks what says where it is: the table of patches was not written by curate."""
    missing = [name for name in _COLUMNS if rows[name].null_count]
    if missing:
        raise DataError(f"the store is damaged: it has patches without {listed(missing)}")


def matching(
    connection: duckdb.DuckDBPyConnection, where: str | None, *, joined: bool = False
) -> duckdb.DuckDBPyRelation:
    """The scores that meet a condition; with the columns of their images beside if `joined` or it names one of these.

    Every patch has an image: without that join the rows are the same, and far fewer bytes are read.
    """
    rows = connection.sql("FROM scores")
    if where is not None:
        sql.check(connection, f"SELECT * FROM scores WHERE (\n{where}\n)")
        if not joined:
            try:
                return rows.filter(where)
            except duckdb.BinderException:
                joined = True
    if joined:
        rows = connection.sql("SELECT scores.*, images.* EXCLUDE (image_id) FROM scores JOIN images USING (image_id)")
    return rows if where is None else rows.filter(where)


def _score_column(store: Store, by: str | None, *, needed: bool) -> str | None:
    columns = [name for name, (found, _) in store.score_columns().items() if not found.record.vector]
    if by is None:
        if not needed:
            return None
        if len(columns) == 1:
            return columns[0]
        hint = "; say --by NAME" if columns else _SCORING
        raise UsageError(f"which score to choose by? The store has: {listed(columns)}{hint}")
    if by not in columns:
        there = f"there are: {listed(columns)}{_how_to_have(by, columns)}"
        raise UsageError(f"no score '{one_line(by)}' in the store; {there}")
    return by


def _how_to_have(by: str, columns: Sequence[str]) -> str:
    """How a score that is not there is made, if a scorer makes it, or what was meant by its name."""
    if variants := [column for column in columns if column.startswith(f"{by}@")]:
        return f"; {listed(variants)} are of other weights or versions of it: say which"
    if by.partition(":")[0] in plugins.names("scorers"):
        return f"; 'curate score STORE {one_line(by)}' makes it"
    return meant(by, columns) or ("" if columns else _SCORING)


def _scorers(store: Store, used: Sequence[str | None], where: str | None) -> dict[str, str]:
    """Label -> fingerprint of the scores that the strategy used, and of those that the condition names."""
    condition = (where or "").lower()
    return {
        name: found.record.fingerprint
        for name, (found, _) in store.score_columns().items()
        if name in used or name.lower() in condition
    }


def _within_pixels(strategy: Strategy, candidates: pa.Table, budget: int, likely: int) -> Picks | None:
    """The picks of as many patches as cover `budget` pixels at most; None if one is too many.

    By bisection, with `likely` first. Nearly all strategies give for a smaller number the first of the picks for a
    larger one: where those are too many, as many as fit is tried next. Three selections then, and not fifteen.
    """
    least, most, found, refusal = 0, candidates.num_rows, None, None
    hints = [likely + 1, likely]  # the last is tried first
    while least < most:
        hint = hints.pop() if hints else 0
        number = hint if least < hint <= most else (least + most + 1) // 2
        try:
            picks, refusal = strategy.select(candidates, number), None
        except UsageError as error:  # more than there are, where some are passed over: a smaller number may do
            picks, refusal = None, error
        fits = 0 if picks is None else _fitting(candidates, picks, budget)
        if picks is not None and fits == len(picks.rows):
            least, found = number, picks
        else:
            most = number - 1
            hints = [fits + 1, fits] if hints else []
    if refusal is not None and found is None:
        raise refusal
    return found


def _fitting(candidates: pa.Table, picks: Picks, budget: int) -> int:
    """How many of the first picks cover `budget` pixels at most."""
    numbers = range(len(picks.rows) + 1)
    return bisect_right(numbers, budget, key=lambda n: coverage.pixels(candidates.take(pa.array(picks.rows[:n])))) - 1


def _unflagged(store: Store, table: pa.Table) -> pa.Table:
    """The rows of images that no check has flagged."""
    return table.filter(pc.invert(pc.is_in(table["image_id"], store.findings().flags["image_id"])))


def _unchecked(store: Store, table: pa.Table) -> int:
    """How many rows are of shards that were added since a check looked at the store."""
    return int(table.filter(pc.invert(pc.is_in(table["shard"], pa.array(_seen(store), pa.int32())))).num_rows)


def _seen(store: Store) -> set[int]:
    """The shards that all checks have looked at."""
    seen = [set(store.commits(found.kind)) for found in store.check_sets()]
    return set.intersection(*seen) if seen else set(store.commits())


def _finite(table: pa.Table) -> pa.Table:
    return table.filter(pc.fill_null(pc.is_finite(table["score"]), False))


def _manifest_table(finite: pa.Table, picks: Picks) -> pa.Table:
    assert len(np.unique(picks.rows)) == len(picks.rows) == len(picks.weights)
    chosen = finite.take(pa.array(picks.rows))
    columns = {name: chosen[name] for name in (*_COLUMNS, "score")}
    columns |= {"rank": pa.array(np.arange(len(picks.rows))), "weight": pa.array(picks.weights)}
    return pa.table([columns[field.name] for field in layout.MANIFEST], schema=layout.MANIFEST)
