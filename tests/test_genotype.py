"""Genotypes are the same as text, as lists and as files; what is none is refused in one short line."""

import json
import time
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from conftest import put
from hypothesis import given, settings
from hypothesis import strategies as st

from curate import plugins
from curate.errors import CurateError, DataError, UsageError
from curate.genotype import CELLS, CHOOSING, LAYERS, OPERATIONS, PUBLISHED, Genotype

OPS = "conv_1x1+sep_7x7+sep_5x5"
TEXT = f"{OPS}@12.23.24.45"
MILLION = 10**6


def orders(cell: int) -> list[tuple[int, ...]]:
    """All inputs that a cell can have."""
    return [order for count in range(1, cell) for order in permutations(range(1, cell), count)]


genotypes = st.builds(
    Genotype.of,
    st.lists(st.sampled_from(OPERATIONS), min_size=LAYERS, max_size=LAYERS),
    st.tuples(*(st.sampled_from(orders(cell)) for cell in CHOOSING)),
)


def refused(kind: type[CurateError], act: Callable[[], object]) -> str:
    """The message, one printable and short line, that comes at once."""
    began = time.monotonic()
    with pytest.raises(kind) as error:
        act()
    message = str(error.value)
    assert message.isprintable() and len(message) < 600
    assert time.monotonic() - began < 10
    return message


# Text


@settings(derandomize=True, deadline=None)
@given(genotypes)
def test_text_is_read_again_as_what_it_was(genotype: Genotype) -> None:
    assert Genotype.parse(str(genotype)) == genotype
    assert Genotype.parse(genotype.name) == genotype
    assert plugins.given_in(f"dlsr:genotype={genotype}") == {"genotype": str(genotype)}  # nothing in it parts a spec


@settings(derandomize=True, deadline=None)
@given(genotypes, genotypes)
def test_other_genotypes_are_other_texts(one: Genotype, other: Genotype) -> None:
    assert (str(one) == str(other)) == (one == other)


def test_text_names_operations_and_inputs_in_their_order() -> None:
    genotype = Genotype.of(["conv_1x1", "sep_7x7", "sep_5x5"], [[1, 2], [3], [4, 1], [5, 3, 1, 2, 4]])
    assert str(genotype) == genotype.name == f"{OPS}@12.3.41.53124"
    assert Genotype.parse(f"{OPS}@12.3.41.53142") != genotype


def test_published_ones_have_names() -> None:
    assert list(PUBLISHED) == ["dlsr", "dlsr-div", "dlsr-s"]
    assert str(PUBLISHED["dlsr"]) == TEXT
    assert str(PUBLISHED["dlsr-div"]) == "sep_3x3+sep_5x5+sep_5x5@21.32.43.13"
    assert PUBLISHED["dlsr-s"] == PUBLISHED["dlsr"]  # of fewer maps, which a genotype does not say
    for name, genotype in PUBLISHED.items():
        assert Genotype.parse(name) == genotype
        assert genotype.name == name.removesuffix("-s")
    assert Genotype.parse(TEXT).name == "dlsr"


# Files


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    genotypes,
    st.none() | st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.booleans())),
)
def test_files_are_read_again_as_what_they_were(tmp_path_factory: Any, genotype: Genotype, search: Any) -> None:
    file = tmp_path_factory.mktemp("genotype") / "genotype.json"
    genotype.save(file, search)
    assert Genotype.load(file) == Genotype.parse(file) == Genotype.parse(str(file)) == genotype
    assert json.loads(file.read_bytes()) == {
        "format": 1,
        "operations": list(genotype.operations),
        "inputs": [list(chosen) for chosen in genotype.inputs],
        "search": search,
    }
    written = file.read_bytes()
    genotype.save(file, search)
    assert file.read_bytes() == written and list(file.parent.iterdir()) == [file]


def test_a_file_may_be_at_a_url(memory: str) -> None:
    Genotype.parse(TEXT).save(f"{memory}/genotype.json")
    assert Genotype.parse(f"{memory}/genotype.json") == PUBLISHED["dlsr"]
    assert "no such file" in refused(UsageError, lambda: Genotype.parse(f"{memory}/other.json"))
    assert "it is a folder" in refused(UsageError, lambda: Genotype.load(memory))
    large = put(f"{memory}/large.json", b" " * (2 * MILLION))
    assert "it has 2000000 bytes" in refused(DataError, lambda: Genotype.parse(large))
    assert "without credentials" in refused(UsageError, lambda: Genotype.parse("s3://key:secret@bucket/genotype.json"))


def test_a_file_written_by_hand_needs_no_more_than_the_network(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"operations": ["conv_1x1", "sep_7x7", "sep_5x5"], "inputs": [[1, 2], [2, 3], [2, 4], [4, 5]]}')
    assert Genotype.load(file) == PUBLISHED["dlsr"]


# What is none


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("dlrs", "no genotype 'dlrs'; there are: dlsr, dlsr-div, dlsr-s; did you mean 'dlsr'?; or give a text such as"),
        ("", "no genotype ''"),
        (OPS, f"such as {TEXT}, or a file such as genotype.json"),
        (f"{OPS}@1-2.23.24.45", "no genotype"),
        (f"{OPS}@12.23.24.45\n", r"no genotype 'conv_1x1+sep_7x7+sep_5x5@12.23.24.45\n'"),
        (f"{OPS}@\u0661.23.24.45", "no genotype"),  # a digit, but not of ours
        (f"{TEXT}@", "no genotype"),
        ("conv_1x1+sep_7x9+sep_5x5@12.23.24.45", "no operation 'sep_7x9'; there are: conv_1x1, "),
        ("conv_1x1+sep_7x9+sep_5x5@12.23.24.45", "dil_5x5; did you mean 'sep_7x7'?"),
        ("none+sep_7x7+sep_5x5@12.23.24.45", "no operation 'none'"),
        ("conv_1x1++sep_5x5@12.23.24.45", "no operation ''"),
        ("@12.23.24.45", "3 operations, found 0: none"),
        ("conv_1x1+sep_7x7@12.23.24.45", "3 operations, found 2: conv_1x1+sep_7x7"),
        (f"{OPS}+sep_3x3@12.23.24.45", f"3 operations, found 4: {OPS}+sep_3x3"),
        (f"{OPS}@12.23.24", "the inputs of cells 3 to 6, 4 lists, found 3"),
        (f"{OPS}@1.12.23.24.45", "4 lists, found 5"),
        (f"{OPS}@", "4 lists, found 1"),
        (f"{OPS}@12..24.45", "the inputs of cell 4 should be different cells from 1 to 3, at least one; found none"),
        (f"{OPS}@12.23.44.45", "the inputs of cell 5 should be different cells from 1 to 4, at least one; found 4, 4"),
        (f"{OPS}@02.23.24.45", "cell 3 should be different cells from 1 to 2, at least one; found 0, 2"),
        (f"{OPS}@13.23.24.45", "cell 3 should be different cells from 1 to 2, at least one; found 1, 3"),
        (f"{OPS}@12.23.24.46", "cell 6 should be different cells from 1 to 5, at least one; found 4, 6"),
    ],
)
def test_texts_that_are_no_genotype(text: str, reason: str) -> None:
    assert reason in refused(UsageError, lambda: Genotype.parse(text))
    if text.isprintable() and not text.endswith("\n"):
        assert reason in refused(UsageError, lambda: plugins.parse("archs", f"dlsr:genotype={text}"))


def test_no_cell_takes_its_own_output_or_a_later_one() -> None:
    for cell in CHOOSING:
        for wrong in (cell, CELLS + 1):
            inputs = [[1]] * len(CHOOSING)
            inputs[cell - CHOOSING[0]] = [wrong]
            message = refused(UsageError, lambda inputs=inputs: Genotype.of(OPS.split("+"), inputs))
            assert f"inputs of cell {cell} should be different cells from 1 to {cell - 1}" in message


@pytest.mark.parametrize(
    "text",
    [
        "a" * MILLION,
        "+" * MILLION,
        "@" * MILLION,
        "\n" * MILLION,
        f"{OPS}@" + "1" * MILLION,
        f"{OPS}@" + "." * MILLION,
        f"{OPS}@{'1' * MILLION}.1.1.1",
        f"{OPS}{'c' * MILLION}@12.23.24.45",
        "conv_1x1+" * (MILLION // 9) + "@12.23.24.45",
        "a" * MILLION + ".json",
        "a/" * MILLION + ".json",
        "\0.json",
    ],
    ids=lambda text: f"{text[:12]!r}...{text[-5:]!r}",
)
def test_hostile_texts_are_refused_at_once(text: str) -> None:
    refused(UsageError, lambda: Genotype.parse(text))


def content(**changes: Any) -> bytes:
    genotype = {"format": 1, "operations": OPS.split("+"), "inputs": [[1, 2], [2, 3], [2, 4], [4, 5]]}
    return json.dumps({**genotype, **changes}).encode()


@pytest.mark.parametrize(
    ("data", "kind", "reason"),
    [
        (b"", DataError, "is not a valid GenotypeRecord: the document: Invalid JSON"),
        (b"no json", DataError, "Invalid JSON"),
        (b"\xff\xfe" + content(), DataError, "Invalid JSON"),
        (content().replace(b"conv_1x1", b"conv_\xff"), DataError, "Invalid JSON"),
        (b"[" * MILLION, DataError, "Invalid JSON"),
        (b"[]", DataError, "should be an object"),
        (b"{}", DataError, "operations: Field required"),
        (content(format=2), DataError, "format 2 is not one that curate"),
        (content(cells=6), DataError, "cells: Extra inputs are not permitted"),
        (content(operations="conv_1x1"), DataError, "operations: Input should be a valid"),
        (content(inputs=[1, 2, 3, 4]), DataError, "inputs.0: Input should be a valid"),
        (content(inputs=[[1.5], [1], [1], [1]]), DataError, "inputs.0.0: Input should be a valid integer"),
        (content(search=[]), DataError, "search: Input should be an object"),
        (content(search={"big": "a" * 2 * MILLION}), DataError, "is not a genotype: it has 20001"),
        (content(operations=["conv_9x9", "sep_7x7", "sep_5x5"]), UsageError, "': no operation 'conv_9x9'; there are"),
        (content(operations=["c" * MILLION, "sep_7x7", "sep_5x5"]), UsageError, "': no operation 'ccc"),
        (content(operations=[]), UsageError, "': a genotype should have 3 operations, found 0: none"),
        (content(inputs=[]), UsageError, "4 lists, found 0"),
        (content(inputs=[[-1, 2], [2, 3], [2, 4], [4, 5]]), UsageError, "found -1, 2"),
        (content(inputs=[[], [2, 3], [2, 4], [4, 5]]), UsageError, "found none"),
        (content(inputs=[[1] * 10**5, [2], [2], [2]]), UsageError, "found 1, 1, 1"),
        (content().replace(b"[1, 2]", b"[" + b"1" * 4000 + b"]"), UsageError, "found 111"),
        (content().replace(b"[1, 2]", b"[" + b"1" * 5000 + b"]"), DataError, "number out of range"),
    ],
)
def test_files_that_are_no_genotype(
    data: bytes, kind: type[CurateError], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("genotype.json").write_bytes(data)
    assert reason in (message := refused(kind, lambda: Genotype.parse("genotype.json")))
    assert message.startswith("'genotype.json'")
    assert refused(kind, lambda: plugins.parse("archs", "dlsr:genotype=genotype.json")) == message


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    for name, reason in {
        "missing.json": "there is no such file; 'curate nas dlsr' writes genotype.json",
        "run.json": "it is a folder; 'curate nas dlsr' writes genotype.json",
        "run.json/genotype.json": "there is no such file",
        "loop.json": "there is no such file",
        f"{'a' * 300}.json": "File name too long",
    }.items():
        message = refused(UsageError, lambda name=name: Genotype.parse(str(tmp_path / name)))
        assert message.startswith("no genotype '") and reason in message
