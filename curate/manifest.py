"""The Manifest: one Parquet file that says which patches, in which rank, with which weight, and why.

Any Parquet reader opens it (columns: `layout.MANIFEST`). The file's metadata holds, under `curate`, the recipe as JSON
(`schema.ManifestRecipe`): the store and its state, the strategy with all its options, the query, counts, fingerprints.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import xxhash

from curate import schema, storage
from curate.errors import DataError, UsageError, one_line
from curate.schema import ManifestRecipe
from curate.storage import Place
from curate.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Manifest", "Scan"]

_Read = TypeVar("_Read")

_GROUP_ROWS = 2**20  # of a Parquet row group, 100 MB in memory


@dataclass(frozen=True)
class Manifest:
    """Chosen windows, rank by rank, and the recipe that chose them."""

    table: pa.Table  # columns of layout.MANIFEST, sorted by rank
    recipe: ManifestRecipe
    path: Place | None = None  # where it was loaded from or saved to

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @classmethod
    def load(cls, path: str | Place) -> Manifest:
        """Read a manifest. UsageError if there is no file, DataError if it is not a manifest or damaged."""
        import pyarrow.parquet as pq

        file = _existing(path)
        with storage.local_copy(file) as copy:
            recipe = _recipe(_parquet(pq.read_schema, copy, file), file)
            table = _parquet(_read_whole, copy, file)
        return cls(table.replace_schema_metadata(None).sort_by("rank"), recipe, file)

    @classmethod
    @contextlib.contextmanager
    def scan(cls, path: str | Place) -> Iterator[Scan]:
        """A manifest whose rows are read piece by piece. Raises as `load` does, the damage of a row when it is read."""
        import pyarrow.parquet as pq

        from curate import layout

        file = _existing(path)
        with storage.local_copy(file) as copy:
            found = _parquet(pq.read_metadata, copy, file)
            recipe = _recipe(_parquet(pq.read_schema, copy, file), file)
            yield Scan(cls(layout.MANIFEST.empty_table(), recipe, file), found.num_rows, copy)

    @classmethod
    def named(cls, paths: Sequence[str | Place]) -> dict[str, Path]:
        """File name without ending -> path, for SQL; only the files' footers are read, of those at a URL all.

        Raises as `load` does.
        """
        found: dict[str, Path] = {}
        for path in paths:
            import pyarrow.parquet as pq

            file = _existing(path)
            if file.stem in found:
                raise UsageError(f"two manifests are called '{one_line(file.stem)}' in SQL; rename one of the files")
            found[file.stem] = storage.local_file(file)
            _recipe(_parquet(pq.read_schema, found[file.stem], file), file)
        return found

    def save(self, path: str | Place) -> Manifest:
        """Write the file whole or not at all; the same manifest gives the same bytes. Returns it with its new path.

        The store is named relative to the manifest's folder, so that both can be moved together, where both are on one
        disk or in one bucket.
        """
        url = str(self.store_path())
        recipe = self.recipe.model_copy(update={"store": self.recipe.store.model_copy(update={"url": url})})
        saved = self.write(path, [self.table], lambda: recipe)
        return Manifest(self.table, saved, storage.place(path, "a manifest"))

    @staticmethod
    def write(path: str | Place, tables: Iterable[pa.Table], recipe: Callable[[], ManifestRecipe]) -> ManifestRecipe:
        """Save a manifest that comes as tables, one after the other, and its recipe when they have been taken.

        The recipe names the store by its absolute path or URL; it is returned as it was saved. However many tables
        there are, the bytes are the same, and no more than a million rows are held.
        """
        import pyarrow as pa

        file = Manifest.place_for(path)
        saved = []

        def text() -> bytes:
            made = recipe()
            url = storage.relative(storage.place(made.store.url, "a store"), file.resolve().parent)
            versions = made.versions | {"arrow": pa.cpp_version}
            store = made.store.model_copy(update={"url": url})
            saved.append(made.model_copy(update={"store": store, "versions": versions}))
            return schema.dump(saved[0])

        storage.remove_leftovers_of(file)
        storage.publish(file, lambda stream: _write(stream, tables, text))
        return saved[0]

    @staticmethod
    def place_for(path: str | Place) -> Place:
        """Where a manifest that will be written goes. UsageError for a folder, and for another ending than .parquet."""
        return storage.place_for(path, "a manifest", "refined.parquet")

    @staticmethod
    def recipe_at(path: str | Place) -> ManifestRecipe:
        """The recipe of a manifest, of which no rows are read. Raises as `load` does."""
        import pyarrow.parquet as pq

        file = _existing(path)
        with storage.local_copy(file) as copy:
            return _recipe(_parquet(pq.read_schema, copy, file), file)

    @staticmethod
    def is_as_written(path: Place) -> bool:
        """Whether a manifest that can be read has the very bytes that are written for its rows and its recipe.

        Where another version of Arrow wrote it, which need not give the same bytes, only that it is the one it names.
        """
        import pyarrow as pa

        with storage.local_copy(path) as copy:
            try:
                return _is_as_written(copy)
            except (pa.ArrowException, OSError, UnicodeDecodeError):
                return False

    def store(self, path: str | Place | None = None) -> Store:
        """Open the store that it was made from, at `path` if it has moved, and check that it is in the state of then.

        A store that has grown since is that store; DataError for another one, or one whose shards were changed;
        UsageError if there is none.
        """
        reference = self.recipe.store
        where = storage.place(path, "a store") if path is not None else self.store_path()
        if path is None and not Store.is_store(where):
            raise UsageError(f"the manifest's store is not at '{one_line(where)}' any more; name it with --store PATH")
        store = Store.open(where)
        digest = store.digest(reference.shards)
        if digest != reference.digest:
            raise DataError(
                f"'{one_line(where)}' is not the store that the manifest was made from, or it was changed since: "
                f"the digest of its first {reference.shards} shards differs, {reference.digest[:8]}... then, "
                f"{digest[:8]}... now"
            )
        return store

    def verify(self, store: Store) -> None:
        """Check that every window lies inside an image of `store`, and every weight is one; DataError names the first
        that is not."""
        import numpy as np

        ids = self.table["image_id"].combine_chunks().dictionary_encode()
        for image_id in ids.dictionary.to_pylist():
            if store.cell(image_id) is None:
                where = f"the store '{one_line(store.path)}'"
                raise DataError(f"the manifest's image '{one_line(image_id)}' is not in {where}")
        shapes_I2 = np.array([store.shape(image_id) for image_id in ids.dictionary.to_pylist()], np.int64).reshape(
            -1, 2
        )
        corner_W2 = np.stack([self.table[name].to_numpy().astype(np.int64) for name in ("y", "x")], 1)
        size_W1 = self.table["size"].to_numpy().astype(np.int64)[:, None]
        inside_W2 = (corner_W2 >= 0) & (size_W1 > 0) & (corner_W2 + size_W1 <= shapes_I2[ids.indices.to_numpy()])
        weight_W = self.table["weight"].to_numpy()
        for what, good_W in (
            ("is not inside its image", inside_W2.all(1)),
            ("has a weight that is none", np.isfinite(weight_W) & (weight_W >= 0)),
        ):
            if not good_W.all():
                row = self.table.slice(int(np.argmin(good_W)), 1).to_pylist()[0]
                found = ", ".join(f"{name}={row[name]}" for name in ("y", "x", "size", "weight"))
                raise DataError(f"the manifest's patch '{one_line(row['patch_id'])}' {what}: {found}")

    def digest(self) -> str:
        """xxh3-128 (hex) of what a trainer reads: the patches and their weights, rank by rank."""
        return self.digest_of([self.table])

    @staticmethod
    def digest_of(pieces: Iterable[pa.Table | pa.RecordBatch]) -> str:
        """`digest` of patch_id and weight that come in the order of the ranks. It holds the weights."""
        digest, between, weights = xxhash.xxh3_128(), "", bytearray()
        for piece in pieces:
            if piece.num_rows:
                digest.update((between + "\n".join(piece["patch_id"].to_pylist())).encode())
                weights += piece["weight"].to_numpy().astype("<f4").tobytes()
                between = "\n"
        digest.update(weights)
        return digest.hexdigest()

    def describe(self) -> str:
        """The recipe, indented, for people."""
        return json.dumps(self.recipe.model_dump(mode="json"), indent=2, ensure_ascii=False)

    def store_path(self) -> Place:
        """Where its store is, by its recipe."""
        folder = self.path.resolve().parent if self.path else Path.cwd()
        return storage.resolve(self.recipe.store.url, folder)


@dataclass(frozen=True)
class Scan:
    """A manifest in a file, for as long as `Manifest.scan` holds it."""

    manifest: Manifest  # its recipe and its place; of its rows none
    rows: int
    path: Path  # of the file, or of a copy here of one that is far

    def batches(self, *columns: str) -> Iterator[pa.RecordBatch]:
        """These columns of all its rows, in no order. DataError for damage in them."""
        from curate import tables

        rows = tables.batches(self.path, columns, page_checksum_verification=True)

        def piece(_: Path) -> pa.RecordBatch | None:
            batch = next(rows, None)
            if batch is not None:
                batch.validate(full=True)  # text that is not UTF-8 would be found out when it is looked at
            return batch

        assert self.manifest.path is not None
        while (batch := _parquet(piece, self.path, self.manifest.path)) is not None:
            yield batch


def _write(stream: BinaryIO, pieces: Iterable[pa.Table], recipe: Callable[[], bytes]) -> None:
    """A manifest's file; its recipe is asked for when the rows are written."""
    import pyarrow.parquet as pq

    from curate import layout
    from curate.tables import grouped

    # Without Arrow's own copy of the schema, which would hide what is added when the rows are written.
    options = {"compression": "zstd", "write_page_checksum": True, "store_schema": False}
    with pq.ParquetWriter(stream, layout.MANIFEST, **options) as writer:
        for rows in grouped(pieces, _GROUP_ROWS):
            writer.write_table(rows, row_group_size=_GROUP_ROWS)
        writer.add_key_value_metadata({schema.METADATA_KEY: recipe()})


def _is_as_written(path: Path) -> bool:
    import pyarrow.parquet as pq

    read = pq.ParquetFile(path)
    recipe, writer = read.metadata.metadata[schema.METADATA_KEY.encode()], read.metadata.created_by
    arrow = schema.parse(ManifestRecipe, recipe, path).versions.get("arrow")
    if arrow is not None and writer != f"parquet-cpp-arrow version {arrow}":
        return False
    stream = io.BytesIO()
    _write(stream, [read.read().replace_schema_metadata(None)], lambda: recipe)
    return bool(pq.read_metadata(stream).created_by != writer or stream.getbuffer() == path.read_bytes())


def _existing(path: str | Place) -> Place:
    file = storage.place(path, "a manifest")
    if not file.is_file():
        found = "a folder" if file.is_dir() else "nothing"
        raise UsageError(f"'{one_line(path)}' is not a manifest: found {found}; 'curate select' writes one")
    return file


def _read_whole(copy: Path) -> pa.Table:
    from curate import tables

    table = tables.read(copy, checked=True, page_checksum_verification=True)
    table.validate(full=True)  # text that is not UTF-8 would be found out when it is looked at
    return table


def _parquet(read: Callable[[Path], _Read], copy: Path, file: Place) -> _Read:
    """What `read` gives of a Parquet file, of which `copy` is here. DataError if it is none, or damaged."""
    import pyarrow as pa

    try:
        return read(copy)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system: Arrow's own have none
            raise DataError(f"the manifest '{one_line(file)}' cannot be read: {os.strerror(error.errno)}") from None
        raise DataError(f"'{one_line(file)}' is not a manifest: {one_line(error)}") from None


def _recipe(found: pa.Schema, file: Place) -> ManifestRecipe:
    """The recipe in a Parquet file's metadata. DataError if the file is not a manifest."""
    from curate import layout

    metadata = (found.metadata or {}).get(schema.METADATA_KEY.encode())
    if metadata is None or not found.equals(layout.MANIFEST):
        columns = one_line(", ".join(found.names))
        raise DataError(f"'{one_line(file)}' is a Parquet file but not a manifest: its columns are {columns}")
    return schema.parse(ManifestRecipe, metadata, file)
