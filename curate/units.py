"""Prunable units: maps inside a network that can go without changing what is around them, and how many are left.

A unit is the inner width of a block of two layers: one layer makes the maps, another one reads them, nothing else sees
them. Each arch that has some describes them (`Arch.prunable`), in the order of published configurations.

A config says how many maps of each unit a network has: numbers with dots between them, `12.20.36`, or the name of a
file ending in .txt with one number a line, as the authors of DRC (Guo et al.) publish them. Nothing here needs torch.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from curate import storage
from curate.errors import DataError, UsageError, counted, short
from curate.storage import Place

__all__ = [
    "PrunableUnit",
    "Span",
    "fitted",
    "kept_first",
    "left",
    "narrowed",
    "read_config",
    "removed",
    "rows",
    "settled",
    "shrunk",
    "text",
]

_NUMBER = "[0-9]{1,6}"
_TEXT = re.compile(rf"{_NUMBER}(\.{_NUMBER})*")
_ENDING = ".txt"
_SHOWN = 200  # characters of what is wrong, in a message


@dataclass(frozen=True)
class Span:
    """Where a unit's maps lie along one axis of a parameter.

    Map j of `width` is at start + (o * width + j) * inner + i, for every o below `outer` and i below `inner`. inner is
    r**2 where a pixel shuffle makes one map of r**2; outer is the number of heads, or three times that where queries,
    keys and values lie one after the other.
    """

    parameter: str  # its name in the network
    axis: int
    start: int = 0
    outer: int = 1
    inner: int = 1

    def places(self, width: int, chosen: Sequence[int]) -> list[int]:
        """Where the chosen maps of `width` are, in the order of memory."""
        return [
            self.start + (block * width + one) * self.inner + part
            for block in range(self.outer)
            for one in chosen
            for part in range(self.inner)
        ]

    def length(self, width: int) -> int:
        """How much of the axis `width` maps take."""
        return self.outer * width * self.inner


@dataclass(frozen=True)
class PrunableUnit:
    """Maps that can be removed one by one."""

    name: str  # the module that they are in
    width: int  # how many there are; of attention, features of a head
    makers: tuple[Span, ...]  # all that belongs to them before they are read: rows, biases, slopes, depthwise kernels
    readers: tuple[Span, ...]  # columns of the layer that reads them: their norm is the maps' importance
    gates: tuple[Span, ...] = ()  # what is to be 0 besides the readers for a map to have no effect: attention's queries
    count: int = 1  # what one of them counts in a config: the number of heads

    @property
    def spans(self) -> tuple[Span, ...]:
        """All that goes with a map. Gates lie within makers."""
        return self.makers + self.readers


def rows(layer: str, *, bias: bool = True, start: int = 0, outer: int = 1, inner: int = 1) -> tuple[Span, ...]:
    """What makes maps in a convolution or a linear layer, by its name; of a transposed convolution rows are axis 1."""
    parameters = ("weight", "bias") if bias else ("weight",)
    return tuple(Span(f"{layer}.{parameter}", 0, start, outer, inner) for parameter in parameters)


def text(widths: Sequence[int], units: Sequence[PrunableUnit]) -> str:
    """A config as text: of each unit how many maps it has."""
    return ".".join(str(width * unit.count) for width, unit in zip(widths, units, strict=True))


def settled(arch: Any) -> str | None:
    """The config of an arch as text, None where nothing is removed; for its `__post_init__`. Raises as `fitted` does.

    Units are only counted where there is a config: what a file says of a network may be of any size.
    """
    if arch.config is None:
        return None
    full: tuple[PrunableUnit, ...] = arch.prunable()
    widths = fitted(arch.config.strip('"'), full)
    return None if widths == [unit.width for unit in full] else text(widths, full)


def fitted(config: str | Place, units: Sequence[PrunableUnit]) -> list[int]:
    """The width of each unit that a config, a text or a file, asks for.

    UsageError where it is none, or does not fit the units; DataError for a file that is damaged.
    """
    numbers, source = read_config(config)
    if len(numbers) != len(units):
        found = f"found {len(numbers)}"
        raise UsageError(f"{source} should have a number for each of the {counted(len(units), 'unit')}, {found}")
    widths = []
    for place, (number, unit) in enumerate(zip(numbers, units, strict=True), start=1):
        most = unit.width * unit.count
        if not unit.count <= number <= most or number % unit.count:
            whole = f"a multiple of {unit.count} from {unit.count}" if unit.count > 1 else "a number from 1"
            raise UsageError(f"{source}: number {place}, of {unit.name}, should be {whole} to {most}, found {number}")
        widths.append(number // unit.count)
    return widths


def read_config(config: str | Place) -> tuple[list[int], str]:
    """The numbers of a config, a text or a file that ends in .txt, and what to call it in messages."""
    if isinstance(config, str) and not config.endswith(_ENDING):
        if not _TEXT.fullmatch(config):
            asked = f"numbers such as 12.20.36, or a file that ends in {_ENDING}"
            raise UsageError(f"config should be {asked}, found '{short(config, _SHOWN)}'")
        return [int(number) for number in config.split(".")], "config"
    file = storage.place(config, "a config")
    shown = f"'{short(file, _SHOWN)}'"
    try:
        lines = storage.read_small(file, "config", shown).decode("ascii").split()
    except UnicodeDecodeError:
        raise DataError(f"{shown} is not a config: it should have one number a line") from None
    if not lines or not all(re.fullmatch(_NUMBER, line) for line in lines):
        wrong = next((line for line in lines if not re.fullmatch(_NUMBER, line)), "nothing")
        raise DataError(f"{shown} is not a config: it should have one number a line, found {short(wrong, _SHOWN)}")
    return [int(line) for line in lines], shown


def kept_first(widths: Sequence[int]) -> list[list[int]]:
    """The first maps of each unit, as many as `widths` says."""
    return [list(range(width)) for width in widths]


def shrunk(units: Sequence[PrunableUnit], widths: Sequence[int]) -> tuple[PrunableUnit, ...]:
    """The units of the network that is left with these widths.

    Units that share an axis, as those whose maps are joined, move up where others before them became shorter.
    """
    lost: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for unit, width in zip(units, widths, strict=True):
        for span in unit.spans:
            less = span.length(unit.width) - span.length(width)
            lost.setdefault((span.parameter, span.axis), []).append((span.start, less))

    def moved(span: Span) -> Span:
        before = lost.get((span.parameter, span.axis), [])
        return replace(span, start=span.start - sum(less for start, less in before if start < span.start))

    def all_of(spans: Sequence[Span]) -> tuple[Span, ...]:
        return tuple(map(moved, spans))

    return tuple(
        replace(unit, width=width, makers=all_of(unit.makers), readers=all_of(unit.readers), gates=all_of(unit.gates))
        for unit, width in zip(units, widths, strict=True)
    )


def removed(units: Sequence[PrunableUnit], kept: Sequence[Sequence[int]]) -> Iterator[tuple[str, int, set[int]]]:
    """(parameter, axis, places that go) for each axis that becomes shorter."""
    gone: dict[tuple[str, int], set[int]] = {}
    for unit, chosen in zip(units, kept, strict=True):
        left_out = sorted(set(range(unit.width)) - set(chosen))
        for span in unit.spans if left_out else ():
            gone.setdefault((span.parameter, span.axis), set()).update(span.places(unit.width, left_out))
    for (parameter, axis), places in gone.items():
        yield parameter, axis, places


def narrowed(
    full: Sequence[PrunableUnit], before: Mapping[str, Sequence[int]], after: Mapping[str, Sequence[int]]
) -> list[int] | None:
    """The widths with which parameters of the shapes `before` have the shapes `after`; None where there are none.

    An axis on which one unit alone lies tells how wide it is; so does one of several units, once the others are known.
    """
    lying: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for number, unit in enumerate(full):
        for span in unit.spans:
            lying.setdefault((span.parameter, span.axis), []).append((number, span.length(1)))
    left_over = {(name, axis): before[name][axis] - after[name][axis] for name, axis in lying if name in after}
    widths: dict[int, int] = {}
    while True:
        alone = [(key, units[0]) for key, units in lying.items() if len(units) == 1 and key in left_over]
        new = {number: full[number].width - left_over[key] // length for key, (number, length) in alone}
        if not new:
            break
        widths |= new
        for key, units in lying.items():
            for number, length in [one for one in units if one[0] in new]:
                units.remove((number, length))
                if key in left_over:
                    left_over[key] -= length * (full[number].width - new[number])
    found = [widths.get(number, 0) for number in range(len(full))]
    fitting = all(1 <= width <= unit.width for width, unit in zip(found, full, strict=True))
    return found if fitting and not any(left_over.values()) else None


def left(arch: Any) -> tuple[PrunableUnit, ...]:
    """The units of an arch's network as its config leaves them; () of an arch that has none."""
    full: tuple[PrunableUnit, ...] = arch.prunable()
    config: str | None = getattr(arch, "config", None)
    return full if config is None else shrunk(full, fitted(config, full))
