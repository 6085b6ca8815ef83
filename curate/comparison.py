"""Diff: how two core-sets differ. What both chose, in which order, and what entered and left, by image and by score.

`changes` has a row a patch of either: patch_id, image_id, name, side (both | left | entered), its rank in A and in B,
and the scores that A and B were ranked by, under their own names. `left` is in A alone, `entered` in B alone.

DuckDB joins the two and sorts what it joined, within a limit of memory and a temporary folder; what is counted is
streamed. Of manifests in files no more than some rows are in Python's hands at a time.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate import coverage, layout, sql, storage, tables
from curate.errors import DataError, UsageError, listed, one_line
from curate.manifest import Manifest
from curate.progress import Progress, silent
from curate.store import ScoreSet, Store

__all__ = ["Comparison", "Summary", "diff", "summary"]

SIDES = ("both", "left", "entered")

_BINS = 10  # of a score, each with as many patches of either
_FEWEST_RANKS = 3  # that a correlation is made of
_BATCH_ROWS = 2**17
_GROUP_ROWS = 2**18  # of a Parquet row group
_WINDOW = ("image_id", "y", "x", "size")
_IS = {
    "both": "rank_a IS NOT NULL AND rank_b IS NOT NULL",
    "left": "rank_b IS NULL",
    "entered": "rank_a IS NULL",
}
_INSIDE = "rank_a IS NOT NULL AS in_a, rank_b IS NOT NULL AS in_b"


@dataclass(frozen=True)
class Summary:
    """What two manifests have in common and what not, in numbers."""

    counts: dict[
        str, Any
    ]  # patches and pixels of A, B, both, ...; jaccard = both / either; Spearman's rank correlation
    by_image: pa.Table  # image_id, name, both, left, entered: patches; the image that changed most first
    by_score: pa.Table  # score, low, high, both, left, entered: patches with low <= score <= high, a tenth of all a row
    notes: list[str]  # what makes the comparison one of little sense

    def titled(self, images: int) -> dict[str, pa.Table]:
        """Title -> table, for people: tenths of each score, and the first so many `images`."""
        tables = {}
        for score in pc.unique(self.by_score["score"]).to_pylist():
            tenths = self.by_score.filter(pc.field("score") == score).drop_columns("score")
            tables[f"by {one_line(score)}, from low to high, a tenth of the patches a row:"] = tenths
        shown = min(images, len(self.by_image))
        cut = f", {shown} of {len(self.by_image)}" if shown < len(self.by_image) else ""
        tables[f"by image, those that changed most first{cut}:"] = self.by_image.slice(0, shown)
        return tables


@dataclass(frozen=True)
class Comparison(Summary):
    """What `diff` found."""

    changes: pa.Table


def diff(
    a: Manifest | str | Path,
    b: Manifest | str | Path,
    *,
    store: Store | str | Path | None = None,
    memory: str = "1GB",
    progress: Progress = silent,
) -> Comparison:
    """Compare two manifests of one store (at `store`, if it has moved), at one time or two.

    The rank correlation is Spearman's, over the patches that both hold; null for fewer than 3. Pixels under several
    windows count once. The table of changes is held in memory: `summary` does without. Raises UsageError for windows
    of different sizes, which are never the same patch, DataError for a patch that is another window in each, and as
    `Manifest.load` and `Manifest.store` do.
    """
    with _joined(a, b, store, memory, progress) as joined:
        return Comparison(**vars(joined.summary()), changes=pa.Table.from_batches(joined.changes(), joined.schema()))


def summary(
    a: Manifest | str | Path,
    b: Manifest | str | Path,
    out: str | Path | None = None,
    *,
    store: Store | str | Path | None = None,
    memory: str = "1GB",
    progress: Progress = silent,
) -> Summary:
    """`diff` where memory is short, the same numbers; the table of changes goes to `out`, a Parquet file, or nowhere.

    DuckDB takes about `memory` and a temporary folder ($TMPDIR); the table by image is held. Raises as `diff` does, and
    CurateError where that is too little.
    """
    place = None if out is None else storage.place_for(out, "a comparison", "changes.parquet")
    with _joined(a, b, store, memory, progress) as joined:
        found = joined.summary()
        if place is not None:
            storage.remove_leftovers_of(place)
            storage.publish(place, joined.write)
    return found


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two."""

    manifest: Manifest  # without its rows, if they are in a file
    rows: int
    sizes: list[int]  # of its windows, px
    source: Path | pa.Table

    def called(self) -> str:
        """What it is called in a message."""
        manifest = self.manifest
        return f"'{one_line(manifest.path)}'" if manifest.path is not None else f"the one by {manifest.recipe.strategy}"


@contextlib.contextmanager
def _joined(
    a: Manifest | str | Path,
    b: Manifest | str | Path,
    store: Store | str | Path | None,
    memory: str,
    progress: Progress,
) -> Iterator["_Joined"]:
    with contextlib.ExitStack() as stack:
        one, two = (_read(item, stack, progress) for item in (a, b))
        if one.sizes != two.sizes:
            found = " and ".join(f"of {listed(side.sizes)} px in {side.called()}" for side in (one, two))
            raise UsageError(f"core-sets are compared window by window, of one size; found windows {found}")
        source = store if isinstance(store, Store) else one.manifest.store(store)
        spill = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="curate-")))
        there = source.score_columns()
        recipes = (one.manifest.recipe, two.manifest.recipe)
        scores = sorted({recipe.by for recipe in recipes if recipe.by in there} - {None})
        own = len(scores) == 1 and all(_is_the_score(side.manifest, there) for side in (one, two))
        files = {
            name: side.source for name, side in zip("ab", (one, two), strict=True) if isinstance(side.source, Path)
        }
        options: dict[str, Any] = {"memory": memory, "spill": spill, "watched": progress is not silent}
        try:
            if own or not scores:  # the manifests have all that is wanted
                views = {name: sql.parquet([path]) for name, path in files.items()}
                connection = stack.enter_context(sql.connect(views, files.values(), **options))
            else:
                connection = stack.enter_context(source.connect(files, **options))
            for name, side in zip("ab", (one, two), strict=True):
                if not isinstance(side.source, Path):
                    connection.register(name, side.source)
            joined = _Joined(connection, one, two, source, scores, progress)
            joined.join(own)
            yield joined
        except duckdb.Error as error:
            raise sql.query_error(error) from None


def _read(item: Manifest | str | Path, stack: contextlib.ExitStack, progress: Progress) -> _Side:
    """A manifest, of whose file every row is looked at as `Manifest.load` does, and none is kept."""
    if isinstance(item, Manifest):
        return _Side(item, len(item), sorted(pc.unique(item.table["size"]).to_pylist()), item.table)
    scan = stack.enter_context(Manifest.scan(item))
    sizes, done = set[int](), 0
    for batch in scan.batches(*layout.MANIFEST.names):
        sizes.update(pc.unique(batch["size"]).to_pylist())
        done += batch.num_rows
        progress(done, scan.rows, "read")
    pa.default_memory_pool().release_unused()  # it is DuckDB's turn
    return _Side(scan.manifest, scan.rows, sorted(sizes), scan.path)


def _is_the_score(manifest: Manifest, there: Mapping[str, tuple[ScoreSet, str]]) -> bool:
    """Whether a manifest was ranked by a score that the store still has."""
    by = manifest.recipe.by
    return by is not None and by in there and manifest.recipe.scorers.get(by) == there[by][0].record.fingerprint


@dataclass(frozen=True, slots=True)
class _Joined:
    """Two manifests, patch by patch: a temporary table of DuckDB's, `joined`."""

    connection: duckdb.DuckDBPyConnection  # with the views `a` and `b`
    one: _Side
    two: _Side
    store: Store
    scores: list[str]  # the first is the column score_0 of `joined`, ...
    progress: Progress

    def join(self, own: bool) -> None:
        """Make the table; its score is the manifests' `own`, or its scores are the store's.

        DataError for a patch that is not the same window in both: one of them was not made by curate.
        """
        columns = [f"coalesce(a.{name}, b.{name}) AS {name}" for name in ("patch_id", *_WINDOW)]
        columns += ["a.rank AS rank_a", "b.rank AS rank_b"]
        columns += [f"coalesce({' OR '.join(f'a.{name} <> b.{name}' for name in _WINDOW)}, false) AS apart"]
        source = "a FULL JOIN b ON a.patch_id = b.patch_id"
        if own:
            columns += ["coalesce(a.score, b.score) AS score_0"]
        elif self.scores:
            found = ", ".join(
                f"CAST({sql.identifier(name)} AS DOUBLE) AS score_{n}" for n, name in enumerate(self.scores)
            )
            columns += [f"score_{n}" for n in range(len(self.scores))]
            source += (
                f" LEFT JOIN (SELECT patch_id, {found} FROM scores) s ON s.patch_id = coalesce(a.patch_id, b.patch_id)"
            )
        with self._shown("compared"):
            self.connection.execute(f"CREATE TEMP TABLE joined AS SELECT {', '.join(columns)} FROM {source}")
        ((patch_id,),) = self.connection.execute("SELECT min(patch_id) FROM joined WHERE apart").fetchall()
        if patch_id is not None:
            called = f"{self.one.called()} and {self.two.called()}"
            raise DataError(f"{called} have a patch '{one_line(patch_id)}' each, which are two different windows")

    def summary(self) -> Summary:
        by_image = self._by_image()
        counts: dict[str, Any] = {"a": self.one.rows, "b": self.two.rows}
        counts |= {side: pc.sum(by_image[side]).as_py() or 0 for side in SIDES}
        either = sum(counts[side] for side in SIDES)
        counts["jaccard"] = counts["both"] / either if either else None
        counts["rank_correlation"] = self._rank_correlation()
        counts |= self._pixels()
        tenths = [row for number, score in enumerate(self.scores) for row in self._by_score(number, score)]
        columns = [("score", pa.string()), ("low", pa.float64()), ("high", pa.float64())]
        schema = pa.schema([*columns, *((side, pa.int64()) for side in SIDES)])
        return Summary(counts, by_image, pa.Table.from_pylist(tenths, schema), self._strangers(by_image))

    def changes(self) -> Iterator[pa.RecordBatch]:
        """The table of changes, in the order of patch_id."""
        self.connection.register("names", self._names())
        scores = "".join(f", score_{number}" for number in range(len(self.scores)))
        side = "CASE WHEN rank_b IS NULL THEN 'left' WHEN rank_a IS NULL THEN 'entered' ELSE 'both' END"
        query = f"SELECT patch_id, image_id, name, {side}, rank_a, rank_b{scores} FROM joined LEFT JOIN names"
        for batch in self._stream(f"{query} USING (image_id) ORDER BY patch_id", "written"):
            yield pa.RecordBatch.from_arrays(batch.columns, schema=self.schema())

    def schema(self) -> pa.Schema:
        """Of the table of changes."""
        texts = [(name, pa.string()) for name in ("patch_id", "image_id", "name", "side")]
        ranks = [(f"rank_{name}", pa.int64()) for name in "ab"]
        return pa.schema([*texts, *ranks, *((name, pa.float64()) for name in self.scores)])

    def write(self, stream: BinaryIO) -> None:
        """The table of changes as a Parquet file."""
        with pq.ParquetWriter(stream, self.schema(), compression="zstd") as writer:
            pieces = (pa.Table.from_batches([batch]) for batch in self.changes())
            for rows in tables.grouped(pieces, _GROUP_ROWS):
                writer.write_table(rows, row_group_size=_GROUP_ROWS)

    def _by_image(self) -> pa.Table:
        sides = {side: f"count(*) FILTER ({_IS[side]}) AS {sql.identifier(side)}" for side in SIDES}
        query = f"SELECT image_id, {', '.join(sides.values())} FROM joined GROUP BY image_id"
        schema = pa.schema([("image_id", pa.string()), *((side, pa.int64()) for side in SIDES)])
        sums = pa.Table.from_batches(self._stream(query, "counted by image"), schema)
        moved = pc.add(sums["left"], sums["entered"])
        order = [("moved", "descending"), ("image_id", "ascending")]
        named = sums.append_column("moved", moved).join(self._names(), "image_id").sort_by(order)
        return named.select(["image_id", "name", *SIDES])

    def _names(self) -> pa.Table:
        return self.store.images().select(["image_id", "name"]).filter(pc.is_valid(pc.field("image_id")))

    def _rank_correlation(self) -> float | None:
        """Spearman's. Ranks have no ties: each is the place among those that both hold."""
        places = ", ".join(f"row_number() OVER (ORDER BY rank_{side}) AS place_{side}" for side in "ab")
        apart = "CAST(place_a - place_b AS HUGEINT)"
        query = f"SELECT count(*), sum({apart} * {apart}) FROM (SELECT {places} FROM joined WHERE {_IS['both']})"
        with self._shown("ranked"):
            ((count, squares),) = self.connection.execute(query).fetchall()
        return None if count < _FEWEST_RANKS else float(1 - Fraction(6 * squares, count * (count**2 - 1)))

    def _pixels(self) -> dict[str, int]:
        counts = dict.fromkeys(("pixels_a", "pixels_b", "pixels_either"), 0)
        query = f"SELECT {', '.join(_WINDOW)}, {_INSIDE} FROM joined ORDER BY image_id"
        for windows in coverage.by_images(self._stream(query, "pixels counted")):
            counts["pixels_a"] += coverage.pixels(windows.filter(windows["in_a"]))
            counts["pixels_b"] += coverage.pixels(windows.filter(windows["in_b"]))
            counts["pixels_either"] += coverage.pixels(windows)
        return counts

    def _by_score(self, number: int, score: str) -> list[dict[str, Any]]:
        """Tenths of the patches of either by one score, and how many of each side lie there; none without a score."""
        known = f"score_{number} IS NOT NULL AND NOT isnan(score_{number})"
        ((total,),) = self.connection.execute(f"SELECT count(*) FROM joined WHERE {known}").fetchall()
        ends = np.cumsum([total // _BINS + (tenth < total % _BINS) for tenth in range(_BINS)])
        low, high = np.full(_BINS, np.inf), np.full(_BINS, -np.inf)
        counts, place = np.zeros((_BINS, len(SIDES)), np.int64), 0
        query = f"SELECT score_{number} AS score, {_INSIDE} FROM joined WHERE {known} ORDER BY score, patch_id"
        for batch in self._stream(query, "ordered by score"):
            tenth = np.searchsorted(ends, np.arange(place, place + batch.num_rows), "right")
            np.minimum.at(low, tenth, batch["score"].to_numpy())
            np.maximum.at(high, tenth, batch["score"].to_numpy())
            in_a, in_b = (batch[name].to_numpy(zero_copy_only=False) for name in ("in_a", "in_b"))
            side = np.where(in_a, np.where(in_b, 0, 1), 2)  # of SIDES
            counts += np.bincount(tenth * len(SIDES) + side, minlength=counts.size).reshape(counts.shape)
            place += batch.num_rows
        rows = zip(low.tolist(), high.tolist(), counts.tolist(), strict=True)
        return [
            {"score": score, "low": least, "high": most, **dict(zip(SIDES, there, strict=True))}
            for least, most, there in rows
            if sum(there)
        ]

    def _strangers(self, by_image: pa.Table) -> list[str]:
        """A line if two manifests of different stores have no photograph in common."""
        in_a, in_b = (pc.greater(pc.add(by_image["both"], by_image[side]), 0) for side in ("left", "entered"))
        one, two = self.one.manifest, self.two.manifest
        ours, theirs = (manifest.recipe.packed_from or manifest.recipe.store for manifest in (one, two))
        if pc.any(pc.and_(in_a, in_b)).as_py() or theirs.digest in (ours.digest, self.store.digest(theirs.shards)):
            return []
        for made, other, view in ((self.one, self.two, "b"), (self.two, self.one, "a")):
            origin = made.manifest.recipe.distilled_from
            if origin is not None and origin.manifest == self._digest(view):
                called = f"{made.called()} was distilled from {other.called()}"
                return [f"{called}: its patches are new, they have none in common"]
        return [
            f"{self.one.called()} and {self.two.called()} have no photograph in common, and are of different stores, "
            f"'{one_line(one.store_path())}' and '{one_line(two.store_path())}': "
            "is one of them another file than was meant?"
        ]

    def _digest(self, view: str) -> str:
        """`Manifest.digest` of `a` or `b`."""
        return Manifest.digest_of(self._stream(f"SELECT patch_id, weight FROM {view} ORDER BY rank", "hashed"))

    def _stream(self, query: str, what: str) -> Iterator[pa.RecordBatch]:
        with self._shown(what):
            answer = self.connection.sql(query).to_arrow_reader(_BATCH_ROWS)
            yield from sql.batches(answer)

    def _shown(self, what: str) -> contextlib.AbstractContextManager[None]:
        """While in it, DuckDB's own estimate of how many of the rows it has been through is told."""
        if self.progress is silent:
            return contextlib.nullcontext()
        rows = self.one.rows + self.two.rows
        return sql.watching(self.connection, lambda share: self.progress(int(share * rows), rows, what))
