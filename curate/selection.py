"""Select: scores -> a Manifest. Which patches are candidates, how many to keep, and what is written down about it."""

import math
import platform
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import starmap
from pathlib import Path
from typing import Literal, get_args

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate import __version__, coverage, flags, plugins, schema, sql
from curate.errors import UsageError, listed, one_line
from curate.manifest import Manifest
from curate.schema import ManifestRecipe, StoreReference
from curate.store import Store
from curate.strategies import Picks, Strategy, share

__all__ = ["candidates", "check_names", "select"]

Unit = Literal["patches", "pixels"]

_COLUMNS = ("patch_id", "image_id", "y", "x", "size", "shard")


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

    Raises UsageError for a share out of range, a score that does not exist, or nothing to choose from.
    """
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
    matching = candidates(store, column, where, chosen.columns)
    everything = matching if with_flagged else _unflagged(store, matching)
    flagged = matching.num_rows - everything.num_rows
    finite = _finite(everything) if column else everything
    if unit == "pixels":
        picks = _within_pixels(chosen, finite, share(keep, coverage.pixels(finite)), share(keep, finite.num_rows))
    else:
        picks = chosen.select(finite, share(keep, finite.num_rows)) if share(keep, finite.num_rows) else None
    if picks is None or not len(picks.rows):
        condition = f" with {one_line(where)}" if where else ""
        condition += f", {flagged} flagged ones left out" if flagged else ""
        counted = "the pixels of " if unit == "pixels" else ""
        raise UsageError(f"nothing to choose: {keep} of {counted}{finite.num_rows} candidates{condition} is 0 patches")
    recipe = ManifestRecipe(
        store=StoreReference(url=str(store.path.resolve()), shards=len(store.commits()), digest=store.digest()),
        strategy=plugins.spec_of(chosen),
        options=plugins.options_of(chosen),
        by=column,
        keep=keep,
        unit=unit,
        where=where,
        counts={
            "patches": sum(store.rows(unit, "patches") for unit in store.commits().values()),
            "flagged": flagged,
            "unchecked": _unchecked(store, everything),
            "candidates": everything.num_rows,
            "without_finite_score": everything.num_rows - finite.num_rows,
            "selected": len(picks.rows),
            "pixels": coverage.pixels(finite.take(pa.array(picks.rows))),
        },
        scorers=_scorers(store, (column, *chosen.columns), where),
        checks={} if with_flagged else {found.folder: found.record.label for found in store.check_sets()},
        versions={
            "curate": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("duckdb", "numpy", "pyarrow")},
        },
    )
    return Manifest(_manifest_table(finite, picks), recipe)


def candidates(store: Store, column: str | None, where: str | None = None, more: Sequence[str] = ()) -> pa.Table:
    """The patches that a choice is made from: patch_id, image_id, y, x, size, shard and score, sorted by patch_id.

    The score is float64, null without a column. `where` is one SQL condition; it can name every
    column of `scores` and of `images`. `more` are further ones of these columns to have, as they are.
    """
    return _candidates(sql.connect(store.views(), store.table_files()), column, where, more)


def check_names(scores: Mapping[str, pa.DataType], strategy: Strategy, where: str | None) -> None:
    """UsageError if a strategy asks for a column, or a condition says anything, that a store with such scores lacks."""
    fields = [*schema.PATCHES, pa.field("shard", pa.int32()), *starmap(pa.field, scores.items())]
    found = flags.nothing()
    views = {"images": schema.IMAGES.empty_table(), "patches": schema.PATCHES.empty_table()}
    views |= {"scores": pa.schema(fields).empty_table()}
    views |= {"duplicates": found.duplicates, "leaks": found.leaks, "flags": found.flags}
    _candidates(sql.connect(views, []), None, where, strategy.columns)


def _candidates(
    connection: duckdb.DuckDBPyConnection, column: str | None, where: str | None, more: Sequence[str]
) -> pa.Table:
    score = f"CAST({sql.identifier(column)} AS DOUBLE)" if column else "CAST(NULL AS DOUBLE)"
    joined = "SELECT scores.*, images.* EXCLUDE (image_id) FROM scores JOIN images USING (image_id)"
    try:
        rows = connection.sql(joined)
        if where is not None:
            sql.check(connection, f"SELECT * FROM scores WHERE (\n{where}\n)")
            rows = rows.filter(where)
        if missing := set(more) - set(rows.columns):
            raise UsageError(f"the strategy needs '{one_line(listed(missing))}'; the store has: {listed(rows.columns)}")
        wanted = ", ".join([*_COLUMNS, f"{score} AS score", *map(sql.identifier, more)])
        return rows.project(wanted).order("patch_id").to_arrow_table()
    except duckdb.Error as error:
        raise sql.query_error(error) from None


def _score_column(store: Store, by: str | None, *, needed: bool) -> str | None:
    columns = [name for name, (found, _) in store.score_columns().items() if not found.record.vector]
    if by is None:
        if not needed:
            return None
        if len(columns) == 1:
            return columns[0]
        raise UsageError(f"which score to choose by? The store has: {listed(columns)}; say --by NAME")
    if by not in columns:
        hint = "" if columns else "; 'curate score STORE srcnn sobel' makes some"
        raise UsageError(f"no score '{one_line(by)}' in the store; there are: {listed(columns)}{hint}")
    return by


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
    seen = [store.commits(found.kind).keys() for found in store.check_sets()]
    everywhere = store.commits().keys() if not seen else set.intersection(*map(set, seen))
    return int(table.filter(pc.invert(pc.is_in(table["shard"], pa.array(everywhere, pa.int32())))).num_rows)


def _finite(table: pa.Table) -> pa.Table:
    return table.filter(pc.fill_null(pc.is_finite(table["score"]), False))


def _manifest_table(finite: pa.Table, picks: Picks) -> pa.Table:
    assert len(np.unique(picks.rows)) == len(picks.rows) == len(picks.weights)
    chosen = finite.take(pa.array(picks.rows))
    columns = {name: chosen[name] for name in (*_COLUMNS, "score")}
    columns |= {"rank": pa.array(np.arange(len(picks.rows))), "weight": pa.array(picks.weights)}
    return pa.table([columns[field.name] for field in schema.MANIFEST], schema=schema.MANIFEST)
