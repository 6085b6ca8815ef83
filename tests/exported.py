"""What the tests of exports share: a store of small photographs, a manifest of half of its windows, what is refused."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from curate.errors import CurateError
from curate.exporting import export
from curate.ingestion import ingest
from curate.manifest import Manifest
from curate.selection import select

PATCH, STEP = 25, 7  # windows off every LR grid
SIZES = ((48, 60), (37, 50), (61, 39))  # height, width
FOLDERS = ("folder", "basicsr", "neosr", "trainner")
HAS_LMDB = find_spec("lmdb") is not None
CHUNK = 10 * PATCH * PATCH * 3  # bytes: several tar and Parquet files
Pixels = npt.NDArray[np.uint8]

_LMDB = pytest.param("lmdb", marks=pytest.mark.skipif(not HAS_LMDB, reason="needs the extra lmdb"))
each_target = pytest.mark.parametrize("target", [*FOLDERS, "hf", _LMDB, "webdataset"])


def half(folder: Path, write_photos: Callable[..., Path]) -> Manifest:
    """Half of the windows, of all photographs of a new store, each with a weight of its own."""
    ingest([write_photos(folder / "photos", SIZES)], folder / "store", patch=PATCH, step=STEP)
    chosen = select(folder / "store", "random", keep=0.4).save(folder / "half.parquet")
    return changed(chosen, "weight", np.linspace(0.5, 1.5, len(chosen)).astype(np.float32))


def changed(manifest: Manifest, column: str, values: Any) -> Manifest:
    index = manifest.table.schema.get_field_index(column)
    field = manifest.table.schema.field(column)
    return replace(manifest, table=manifest.table.set_column(index, field, pa.array(values, field.type)))


def refusal(kind: type[CurateError], manifest: Manifest | Path, out: Path | str, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        export(manifest, out, **{"to": "folder"} | options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
