"""Genotypes of DLSR: what a search finds, and what a discrete network is built from.

    operations    of the three mixed layers that all six cells share, each one of OPERATIONS
    inputs        of cells 3 to 6: the earlier cells, counted from 1, whose outputs each one takes, in this order

As text, for specs: `conv_1x1+sep_7x7+sep_5x5@12.23.24.45`; or the name of a published one; or a file (schema
`genotype-record.json`), of which the text is kept, so that a checkpoint does not need the file.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curate import schema, storage
from curate.errors import UsageError, meant, short
from curate.schema import GenotypeRecord
from curate.storage import Place

__all__ = ["CELLS", "CHOOSING", "GENOTYPE_FILE", "LAYERS", "OPERATIONS", "PUBLISHED", "Genotype"]

OPERATIONS = ("conv_1x1", "conv_3x3", "conv_5x5", "conv_7x7", "sep_3x3", "sep_5x5", "sep_7x7", "dil_3x3", "dil_5x5")
LAYERS = 3  # mixed layers of a cell
CELLS = 6
CHOOSING = range(3, CELLS + 1)  # the cells that choose their inputs; the first two have one predecessor each

GENOTYPE_FILE = "genotype.json"  # in the folder of a search that has ended

_TEXT = re.compile(r"([^@]*)@([0-9.]*)")
_LONGEST = 1000  # characters of a text; a genotype has about 50
_SHOWN = 200  # characters of what is wrong, in a message


@dataclass(frozen=True)
class Genotype:
    """A discrete architecture. UsageError for what is none."""

    operations: tuple[str, ...]
    inputs: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.operations) != LAYERS:
            found = f"found {len(self.operations)}: {short('+'.join(self.operations), _SHOWN) or 'none'}"
            raise UsageError(f"a genotype should have {LAYERS} operations, {found}")
        for name in self.operations:
            if name not in OPERATIONS:
                known = f"there are: {', '.join(OPERATIONS)}{meant(name, OPERATIONS)}"
                raise UsageError(f"no operation '{short(name, _SHOWN)}'; {known}")
        if len(self.inputs) != len(CHOOSING):
            asked = f"the inputs of cells {CHOOSING[0]} to {CHOOSING[-1]}, {len(CHOOSING)} lists"
            raise UsageError(f"a genotype should have {asked}, found {len(self.inputs)}")
        for cell, chosen in zip(CHOOSING, self.inputs, strict=True):
            if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(1, cell)):
                asked = f"the inputs of cell {cell} should be different cells from 1 to {cell - 1}, at least one"
                raise UsageError(f"{asked}; found {short(', '.join(map(str, chosen)), _SHOWN) or 'none'}")

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return "+".join(self.operations) + "@" + ".".join("".join(map(str, chosen)) for chosen in self.inputs)

    @property
    def name(self) -> str:
        """The name of the published one that it is; otherwise the text."""
        return next((name for name, known in PUBLISHED.items() if known == self), str(self))

    @classmethod
    def parse(cls, text: str | Place) -> "Genotype":
        """From a name, a text, or a file that ends in .json.

        Raises UsageError for what names none, or is wrong in itself, DataError for a file that is damaged.
        """
        if not isinstance(text, str) or text.endswith(".json"):
            return cls.load(text)
        if text in PUBLISHED:
            return PUBLISHED[text]
        match = _TEXT.fullmatch(text) if len(text) <= _LONGEST else None
        if match is None:
            known = f"there are: {', '.join(PUBLISHED)}{meant(text, PUBLISHED)}"
            others = f"or give a text such as {_DLSR}, or a file such as genotype.json"
            raise UsageError(f"no genotype '{short(text, _SHOWN)}'; {known}; {others}")
        inputs = [list(map(int, part)) for part in match[2].split(".")]
        return cls.of(match[1].split("+") if match[1] else [], inputs)

    @classmethod
    def of(cls, operations: Sequence[str], inputs: Sequence[Sequence[int]]) -> "Genotype":
        """From lists."""
        return cls(tuple(operations), tuple(tuple(chosen) for chosen in inputs))

    @classmethod
    def load(cls, path: str | Place) -> "Genotype":
        """Read a file. UsageError where there is none, or what it says is wrong; DataError for one that is damaged."""
        file = storage.place(path, "a genotype")
        shown = f"'{short(file, _SHOWN)}'"
        content = storage.read_small(file, "genotype", shown, "; 'curate nas dlsr' writes genotype.json")
        record = schema.parse(GenotypeRecord, content, shown)
        try:
            return cls.of(record.operations, record.inputs)
        except UsageError as error:
            raise UsageError(f"{shown}: {error}") from None

    def save(self, path: str | Place, search: Mapping[str, Any] | None = None) -> None:
        """Write a file, whole or not at all; `search` is how it was found, JSON-able."""
        inputs = [list(chosen) for chosen in self.inputs]
        record = GenotypeRecord(
            operations=list(self.operations), inputs=inputs, search=None if search is None else dict(search)
        )
        storage.publish_bytes(storage.place(path, "a genotype"), schema.dump(record, indent=2))


# Huang et al. 2021; the second is taken for their DLSR-DIV, whose published size it has.
_DLSR = Genotype.of(("conv_1x1", "sep_7x7", "sep_5x5"), ((1, 2), (2, 3), (2, 4), (4, 5)))
_DIV = Genotype.of(("sep_3x3", "sep_5x5", "sep_5x5"), ((2, 1), (3, 2), (4, 3), (1, 3)))
PUBLISHED: Mapping[str, Genotype] = {"dlsr": _DLSR, "dlsr-div": _DIV, "dlsr-s": _DLSR}  # dlsr-s has 18 maps, not 48
