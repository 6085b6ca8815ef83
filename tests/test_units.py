"""Units without a network: where maps lie, configs and files of them, what is left, how wide shapes say they are."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from curate import plugins, units
from curate.archs.dlsr import Dlsr
from curate.archs.drn import Drn
from curate.archs.imdn import Imdn
from curate.archs.swinir import Swinir
from curate.checkpoint import full_spec
from curate.errors import CurateError, DataError, UsageError
from curate.units import PrunableUnit, Span, rows

TWO = (
    PrunableUnit("a", 4, rows("a"), (Span("c.weight", 1),)),
    PrunableUnit("b", 3, rows("b", bias=False), (Span("c.weight", 1, start=4),), count=2),
)


def test_places_by_hand() -> None:
    assert Span("w", 0).places(4, [0, 2]) == [0, 2]
    assert Span("w", 0, start=5).places(4, [0, 2]) == [5, 7]
    assert Span("w", 0, inner=3).places(4, [1]) == [3, 4, 5]
    assert Span("w", 0, start=1, outer=2, inner=2).places(3, [0, 2]) == [1, 2, 5, 6, 7, 8, 11, 12]
    assert Span("w", 0, outer=2, inner=2).length(3) == 12


def test_what_goes_is_what_is_not_kept() -> None:
    gone = {(name, axis): places for name, axis, places in units.removed(TWO, [[0, 3], [1]])}
    assert gone == {
        ("a.weight", 0): {1, 2},
        ("a.bias", 0): {1, 2},
        ("b.weight", 0): {0, 2},
        ("c.weight", 1): {1, 2, 4, 6},
    }
    assert list(units.removed(TWO, units.kept_first([4, 3]))) == []


def test_joined_maps_move_up() -> None:
    first, second = units.shrunk(TWO, [1, 2])
    assert (first.width, second.width, first.readers[0].start, second.readers[0].start) == (1, 2, 0, 1)
    assert units.shrunk(TWO, [4, 3]) == TWO


def test_shapes_tell_widths() -> None:
    before = {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (3, 3), "c.weight": (9, 7)}
    assert units.narrowed(TWO, before, before) == [4, 3]
    after = {"a.weight": (1, 3), "a.bias": (1,), "b.weight": (2, 3), "c.weight": (9, 3)}
    assert units.narrowed(TWO, before, after) == [1, 2]
    for name, shape in (("c.weight", (9, 4)), ("a.bias", (2,)), ("a.weight", (5, 3)), ("b.weight", (0, 3))):
        assert units.narrowed(TWO, before, {**after, name: shape}) is None
    # Of two that share an axis, one is told by its other ones.
    without_b = {name: shape for name, shape in after.items() if name != "b.weight"}
    assert units.narrowed(TWO, before, without_b) == [1, 2]
    assert units.narrowed(TWO, before, {"c.weight": (9, 3)}) is None


# Configs


def test_a_text_and_a_file_are_the_same_config(tmp_path: Path) -> None:
    file = tmp_path / "channels, two.txt"
    file.write_text("3\n4\n")
    assert units.fitted("3.4", TWO) == units.fitted(file, TWO) == units.fitted(str(file), TWO) == [3, 2]
    assert units.text([3, 2], TWO) == "3.4"
    file.write_bytes(b"3\r\n\r\n4")
    assert units.fitted(file, TWO) == [3, 2]
    made = plugins.parse("archs", f'srcnn:config="{file}"')
    assert made.config == "3.4" == plugins.parse("archs", "srcnn:config=3.4").config


def test_a_full_config_is_none() -> None:
    assert plugins.parse("archs", "srcnn:config=64.32") == plugins.parse("archs", "srcnn")
    assert Imdn(config=None).config is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("", "config should be numbers such as 12.20.36, or a file that ends in .txt, found ''"),
        ("3,4", "found '3,4'"),
        ("3.4.", "found '3.4.'"),
        ("-3.4", "found '-3.4'"),
        ("3.4\x1b", "found '3.4\\x1b'"),
        ("٣.4", "found '٣.4'"),  # digits of another script are none
        ("9" * 400, "found '9999"),
        ("3", "config should have a number for each of the 2 units, found 1"),
        ("3.4.5", "config should have a number for each of the 2 units, found 3"),
        ("5.4", "config: number 1, of a, should be a number from 1 to 4, found 5"),
        ("0.4", "config: number 1, of a, should be a number from 1 to 4, found 0"),
        ("3.8", "config: number 2, of b, should be a multiple of 2 from 2 to 6, found 8"),
        ("3.3", "config: number 2, of b, should be a multiple of 2 from 2 to 6, found 3"),
        ("nowhere.txt", "no config 'nowhere.txt': there is no such file"),
        (f"{'x' * 300}.txt", "no config"),
    ],
)
def test_what_is_no_config_is_refused_in_one_line(config: str, reason: str) -> None:
    assert reason in refused(UsageError, config)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it should have one number a line, found nothing"),
        (b"3\nfour\n", "it should have one number a line, found four"),
        (b"3.4\n", "found 3.4"),
        (b"\xff\xfe3\n", "it should have one number a line"),
        (b"1\n" * 600_000, "it has 1200000 bytes"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(content: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "config.txt"
    file.write_bytes(content)
    assert refused(DataError, str(file)).endswith(reason)


def test_a_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.txt").write_text("3")
    assert refused(UsageError, str(tmp_path / "config.txt")).startswith(f"'{tmp_path}/config.txt' should have")
    (tmp_path / "folder.txt").mkdir()
    assert refused(UsageError, str(tmp_path / "folder.txt")).endswith("it is a folder")


def refused(kind: type[CurateError], config: str) -> str:
    with pytest.raises(kind) as error:
        units.fitted(config, TWO)
    message = str(error.value)
    assert type(error.value) is kind and message.isprintable() and len(message) < 500
    return message


# Of archs


@pytest.mark.parametrize("name", [name for name in plugins.names("archs") if name != "slim"])  # whose own it is to say
def test_every_arch_names_its_units_once_and_has_a_config(name: str) -> None:
    arch = plugins.parse("archs", name)
    names = [unit.name for unit in arch.prunable()]
    assert names and len(set(names)) == len(names)
    config = units.text([1] * len(names), arch.prunable())
    smallest = plugins.parse("archs", f"{name}:config={config}")
    assert smallest.config == config and [unit.width for unit in units.left(smallest)] == [1] * len(names)
    assert full_spec(smallest).endswith(f",config={config}")
    assert units.left(arch) == arch.prunable()


def test_published_orders() -> None:
    """Of DRN what leads down, then size by size the blocks and the pixel shuffle; of SwinIR by turns."""
    small = Drn(blocks=2).prunable()
    assert [unit.name for unit in small] == [
        *("down.0.dual_module", "down.1.dual_module"),
        *("up_blocks.0.0.body", "up_blocks.0.1.body", "up_blocks.0.2"),
        *("up_blocks.1.0.body", "up_blocks.1.1.body", "up_blocks.1.2"),
    ]
    assert [unit.width for unit in small] == [16, 32, *[64] * 6]
    light = Swinir(variant="light").prunable()
    assert [(unit.width * unit.count, unit.count) for unit in light] == [(60, 6), (120, 1)] * 24
    assert [unit.width for unit in Swinir(scale=4).prunable()[72:]] == [64] * 3


def test_units_of_dlsr_are_those_of_its_genotype() -> None:
    a_cell = {
        len([unit for unit in Dlsr(genotype=name).prunable() if unit.name.startswith("B3.")]) for name in GENOTYPES
    }
    assert a_cell == {6, 7, 4}


GENOTYPES = ("dlsr", "dlsr-div", "conv_1x1+dil_3x3+conv_7x7@1.2.3.4")


def test_an_arch_without_units_has_none() -> None:
    @dataclass
    class Bare:
        def prunable(self) -> tuple[PrunableUnit, ...]:
            return ()

    assert units.left(Bare()) == ()
