"""What a search went through: there and back as tensors, told by a table, drawn."""

import io
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
import torch

from curate.genotype import CHOOSING, LAYERS, OPERATIONS
from curate.nas.history import History
from curate.nas.supernet import Architecture

STEPS = (0, 100, 250)
CONNECTIONS = pytest.mark.parametrize("connections", [True, False])


def at(step: int, connections: bool) -> Architecture:
    return Architecture.fresh(connections=connections, seed=step)


def history(connections: bool = True) -> History:
    made = History()
    for step in STEPS:
        made.add(step, at(step, connections))
    return made


@CONNECTIONS
def test_tensors_there_and_back(connections: bool) -> None:
    made = history(connections)
    tensors = made.tensors()
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "steps": (3,),
        "alpha": (3, LAYERS, len(OPERATIONS)),
        **({f"beta{cell}": (3, cell - 1) for cell in CHOOSING} if connections else {}),
    }
    again = History.of(tensors)
    assert again.steps == list(STEPS)
    assert again.parquet() == made.parquet()
    for both in (made, again):
        both.add(300, at(300, connections))
    assert again.parquet() == made.parquet()


def test_values_are_copied() -> None:
    """A search goes on with the same tensors."""
    made, architecture = History(), at(0, True)
    made.add(0, architecture)
    with torch.no_grad():
        for leaf in architecture.leaves():
            leaf.zero_()
    assert torch.equal(made.values["alpha"][0], at(0, True).alpha_LO.detach())
    assert not any(value.requires_grad for kept in made.values.values() for value in kept)


@CONNECTIONS
def test_table(connections: bool) -> None:
    table = pq.read_table(io.BytesIO(history(connections).parquet()))
    assert table.column_names == ["step", "of", "choice", "value", "share"]
    assert [str(kind) for kind in table.schema.types] == ["int64", "string", "string", "float", "float"]
    rows = iter(table.to_pylist())
    for step in STEPS:
        architecture = at(step, connections)
        places = {f"layer{n}": (OPERATIONS, value_O) for n, value_O in enumerate(architecture.alpha_LO, start=1)}
        for cell, beta_J in architecture.betas.items():
            places[f"cell{cell}"] = (tuple(str(earlier) for earlier in range(1, cell)), beta_J)
        for of, (choices, value_C) in places.items():
            mine = [next(rows) for _ in choices]
            assert [row["step"] for row in mine] == [step] * len(choices)
            assert [row["of"] for row in mine] == [of] * len(choices)
            assert [row["choice"] for row in mine] == list(choices)
            assert [row["value"] for row in mine] == value_C.tolist()
            assert [row["share"] for row in mine] == value_C.softmax(0).tolist()
            assert sum(row["share"] for row in mine) == pytest.approx(1, abs=1e-6)
    assert next(rows, None) is None


def test_same_history_same_bytes() -> None:
    assert history().parquet() == history().parquet()
    assert history().picture(100) == history().picture(100)
    assert history().parquet() != history(connections=False).parquet()


@CONNECTIONS
@pytest.mark.parametrize("warmup", [None, 100])
def test_picture(connections: bool, warmup: int | None) -> None:
    text = history(connections).picture(warmup)
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert all(name in text for name in OPERATIONS)
    assert text != history(not connections).picture(warmup)


@CONNECTIONS
def test_shares_of_the_last_step(connections: bool) -> None:
    found = history(connections).shares()
    shares = at(STEPS[-1], connections).shares()
    assert len(found) == LAYERS * len(OPERATIONS) + (2 + 3 + 4 + 5) * connections
    assert found["layer2/sep_3x3"] == shares.alpha_LO[1, 4].item()
    if connections:
        assert found["cell5/4"] == shares.betas[5][3].item()


@CONNECTIONS
def test_genotype_of_a_step(connections: bool) -> None:
    for number, step in enumerate(STEPS):
        assert history(connections).genotype(number) == at(step, connections).genotype()
