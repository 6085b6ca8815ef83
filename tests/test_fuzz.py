"""Any input gives a result or a CurateError: the targets of `make fuzz`, a few mutations of each.

Valid inputs are made here and changed by a `Random` that Hypothesis controls, the same in every run.
"""

import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FUZZ = Path(__file__).parent.parent / "fuzz"
sys.path.insert(0, str(FUZZ))
import mutations  # noqa: E402
from targets import TARGETS, Target  # noqa: E402
from workshop import Workshop  # noqa: E402

sys.path.remove(str(FUZZ))

STORES = {"commit_of_scores", "commit", "scorer", "check", "store", "shard", "query", "manifest_used"}
STORES |= {name for name in TARGETS if name.startswith("table_")}  # a store is opened and used in each: 0.2 s
REFUSED = {"checkpoint_pth": 2, "checkpoint_mat": 2, "checkpoint_safetensors": 2}  # what no public file can answer
SOME = {"spec", "options"}  # an input is for one of several parsers


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Target]]:
    """A function name -> target."""
    shop = Workshop(tmp_path_factory.mktemp("fuzz"))
    yield cache(lambda name: TARGETS[name](shop))


@pytest.mark.parametrize("name", TARGETS)
def test_the_first_valid_input_gives_results(name: str, make: Callable[[str], Target]) -> None:
    """Else a target would try nothing but how it is refused."""
    target = make(name)
    refused = target.act(target.seeds[0])
    assert refused == REFUSED.get(name, 0) or name in SOME


def attempt(make: Callable[[str], Target], name: str, examples: int, database: bool = False) -> None:
    target = make(name)

    @settings(max_examples=examples, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, len(target.seeds) - 1), st.randoms(use_true_random=False))
    def tried(number: int, rng: Random) -> None:
        target.act(target.mutate(target.seeds[number], rng))

    tried()


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_gives_a_result_or_one_line(name: str, make: Callable[[str], Target]) -> None:
    attempt(make, name, 3 if name in STORES else 12)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", TARGETS)
def test_many_inputs_give_results_or_one_line(name: str, make: Callable[[str], Target]) -> None:
    attempt(make, name, 60 if name in STORES else 1000)


def test_mutations_of_the_same_seed_are_the_same(make: Callable[[str], Target]) -> None:
    for name in ("manifest", "table_cells", "store", "study", "checkpoint", "image_png"):
        target = make(name)
        made = [target.mutate(target.seeds[0], Random(seed)) for seed in (1, 1, 2, 3)]
        assert made[0] == made[1] and len(set(made)) == 3


def test_mutations_change_every_part_of_a_file() -> None:
    data, changed = bytes(range(200)), set()
    for seed in range(300):
        made = mutations.edit(data, Random(seed))
        changed |= {at for at, (one, other) in enumerate(zip(data, made, strict=False)) if one != other}
    assert len(changed) > 190


def test_what_is_nested_as_deep_as_python_reads_is_mutated_too() -> None:
    depth = sys.getrecursionlimit() // 2
    data = b'{"a":' * depth + b"1" + b"}" * depth
    for seed in range(200):
        assert isinstance(mutations.rejson(data, Random(seed)), bytes)
