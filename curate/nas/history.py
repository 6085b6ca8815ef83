"""How an architecture changed: its values at some of a search's steps, as tensors, as a table and as pictures."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from curate.genotype import OPERATIONS, Genotype
from curate.nas import pictures
from curate.nas.supernet import Architecture

__all__ = ["History"]

_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("of", pa.string()),  # layer1, ..., cell3, ...
        ("choice", pa.string()),  # an operation, or the number of an earlier cell
        ("value", pa.float32()),
        ("share", pa.float32()),  # after softmax
    ]
)


@dataclass
class History:
    """Values before softmax, of the steps in their order."""

    steps: list[int] = field(default_factory=list)
    values: dict[str, list[Tensor]] = field(
        default_factory=dict
    )  # name as `Architecture.tensors` has it -> each step's

    def add(self, step: int, architecture: Architecture) -> None:
        """The values after `step` steps."""
        self.steps.append(step)
        for name, tensor in architecture.tensors().items():
            self.values.setdefault(name, []).append(tensor.detach().cpu().clone())

    def tensors(self) -> dict[str, Tensor]:
        """For a snapshot."""
        return {"steps": torch.tensor(self.steps), **{name: torch.stack(kept) for name, kept in self.values.items()}}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "History":
        """The way back from `tensors`."""
        values = {name: list(kept) for name, kept in tensors.items() if name != "steps"}
        return cls(tensors["steps"].tolist(), values)

    def parquet(self) -> bytes:
        """A row a step and choice, as a Parquet file."""
        rows: dict[str, list[object]] = {name: [] for name in _SCHEMA.names}
        for number, step in enumerate(self.steps):
            for of, choices, value_C in self._at(number):
                numbers = zip(choices, value_C.tolist(), value_C.softmax(0).tolist(), strict=True)
                for choice, value, share in numbers:
                    for name, entry in zip(_SCHEMA.names, (step, of, choice, value, share), strict=True):
                        rows[name].append(entry)
        stream = io.BytesIO()
        pq.write_table(pa.table(rows, _SCHEMA), stream, compression="zstd", store_schema=False)
        return stream.getvalue()

    def picture(self, warmup: int | None = None) -> str:
        """Shares over the steps, as SVG."""
        alpha_TLO = torch.stack(self.values["alpha"]).softmax(2).numpy()
        betas: dict[int, npt.NDArray[np.float32]] = {
            int(name.removeprefix("beta")): torch.stack(kept).softmax(1).numpy()
            for name, kept in self.values.items()
            if name.startswith("beta")
        }
        return pictures.architecture(self.steps, alpha_TLO, betas, warmup)

    def shares(self) -> dict[str, float]:
        """Of the last of the steps, for curves: `layer1/conv_3x3`."""
        return {
            f"{of}/{choice}": share
            for of, choices, value_C in self._at(-1)
            for choice, share in zip(choices, value_C.softmax(0).tolist(), strict=True)
        }

    def genotype(self, number: int) -> Genotype:
        """That of one of the steps."""
        values = {name: kept[number] for name, kept in self.values.items()}
        return Architecture.of(values).genotype()

    def _at(self, number: int) -> list[tuple[str, tuple[str, ...], Tensor]]:
        """(of, its choices, their values) of one of the steps."""
        found: list[tuple[str, tuple[str, ...], Tensor]] = []
        for name, kept in self.values.items():
            if name == "alpha":
                found += [(f"layer{n}", OPERATIONS, value_O) for n, value_O in enumerate(kept[number], start=1)]
            else:
                choices = tuple(str(earlier + 1) for earlier in range(len(kept[number])))
                found.append((name.replace("beta", "cell"), choices, kept[number]))
        return found
