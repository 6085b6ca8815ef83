"""Slim is the network of another arch less what its units say; no file makes it import or open anything."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from curate import plugins
from curate.archs.drn import Drn
from curate.archs.slim import Slim, written
from curate.checkpoint import Checkpoint, weights_hash
from curate.errors import CurateError, DataError, UsageError
from curate.units import PrunableUnit, Span, left

UNITS = "64-conv1.weight-conv1.bias-conv2.weight+32-conv2.weight-conv2.bias-conv3.weight"  # of SRCNN

OUTSIDE = """
from dataclasses import dataclass
from curate.archs.srcnn import Srcnn

@dataclass(frozen=True)
class Net(Srcnn):
    width: int = 3
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module with an arch of the user's own; what is imported of it is forgotten again."""
    package = f"lab_{tmp_path.name}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "net.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    yield f"{package}.net"
    forget(package)


def forget(package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def refusal(error: type[CurateError], path: Path, arch: str | None = None) -> str:
    """The line with which a checkpoint is refused."""
    with pytest.raises(error) as refused:
        Checkpoint.load(path, arch)
    assert str(refused.value).isprintable()
    return str(refused.value)


def claim(folder: Path, spec: str) -> Path:
    """A checkpoint file whose record names an arch as it likes."""
    weights = {"weight": torch.ones(3)}
    record = {"format": 1, "arch": spec, "weights": weights_hash(weights), "training": {}}
    save_file(weights, folder / "net.safetensors", {"curate": json.dumps(record)})
    return folder / "net.safetensors"


def test_a_config_leaves_the_first_maps_of_each_unit() -> None:
    arch = plugins.parse("archs", f"slim:units={UNITS},config=5.3")
    shapes = {name: tuple(tensor.shape) for name, tensor in arch.build().state_dict().items()}
    assert shapes["conv1.weight"] == (5, 1, 9, 9) and shapes["conv1.bias"] == (5,)
    assert shapes["conv2.weight"] == (3, 5, 5, 5) and shapes["conv3.weight"] == (1, 3, 5, 5)
    assert [unit.width for unit in left(arch)] == [5, 3] and [unit.width for unit in arch.prunable()] == [64, 32]
    assert [unit.name for unit in arch.prunable()] == ["conv1", "conv2"]
    assert arch.build()(torch.rand(1, 1, 7, 9)).shape == (1, 1, 14, 18)
    assert replace(arch, config="64.32").config is None


def test_all_else_is_that_of_the_arch() -> None:
    inner = Drn(scale=4, features=8, blocks=1)
    arch = Slim(arch=plugins.full_spec(inner))
    assert arch.inner == inner
    for name in ("scale", "colour", "peak", "least", "hfen", "tail", "outputs", "dual_features"):
        assert getattr(arch, name) == getattr(inner, name), name
    assert plugins.parse("archs", plugins.spec_of(arch)) == arch == plugins.parse("archs", plugins.full_spec(arch))
    assert Slim(arch="dlsr").hfen == 0.2 and Slim(arch="dlsr").least == 15


def test_a_scale_is_said_once() -> None:
    assert Slim(arch="srcnn:scale=3") == Slim(arch="srcnn", scale=3)
    assert replace(Slim(arch="srcnn:kernel=9-1-5"), scale=4).inner.scale == 4
    with pytest.raises(UsageError, match="scale should be 3, that of srcnn:scale=3, found 4"):
        plugins.parse("archs", "slim:arch=srcnn:scale=3,scale=4")


def test_units_are_said_again_as_they_were_written() -> None:
    turned = PrunableUnit("up", 4, (Span("up.weight", 1), Span("up.bias", 0)), (Span("last.weight", 0),))
    assert written([turned]) == "4-up.weight@1-up.bias-last.weight@0"
    assert Slim(units=written([turned])).prunable() == (turned,)
    assert written(Slim(units=UNITS).prunable()) == UNITS and Slim().prunable() == ()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("slim:arch=slim", "arch should be another one than slim"),
        ("slim:arch=slimm", "no 'slimm' in curate.archs"),
        ("slim:arch=srcnn:kernal=3", "arch 'srcnn' has no option 'kernal'"),
        ("slim:units=conv1.weight", "units should be such as 16-head.weight"),
        ("slim:units=0-a.weight-b.weight", "units should be such as"),
        (f"slim:units={UNITS},config=5", "a number for each of the 2 units, found 1"),
        (f"slim:units={UNITS},config=65.3", "number 1, of conv1, should be a number from 1 to 64"),
        ("slim:config=5", "for each of the 0 units"),
    ],
)
def test_what_cannot_be_is_one_line(spec: str, reason: str) -> None:
    with pytest.raises(UsageError) as refused:
        plugins.parse("archs", spec)
    assert reason in str(refused.value) and str(refused.value).isprintable()


@pytest.mark.parametrize(
    "units",
    [
        "64-conv9.weight-conv2.weight",  # not there
        "63-conv1.weight-conv2.weight",  # of another width
        "64-conv1.bias@1-conv2.weight",  # no such axis
        "64-conv1.weight-conv1.weight@0",  # one axis twice
    ],
)
def test_units_of_another_network_are_refused_when_it_is_built(units: str) -> None:
    with pytest.raises(UsageError, match=r"units do not fit srcnn:kernel=9-5-5: conv"):
        Slim(units=units).build()


def test_a_checkpoint_needs_no_torch_pruning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    arch = Slim(arch="srcnn:scale=3", units=UNITS, config="5.3")
    Checkpoint(arch, arch.build().state_dict(), {}).save(tmp_path)
    assert Checkpoint.load(tmp_path).arch == arch
    for spec in ("slim", "srcnn", "slim:config=5.3", "srcnn:scale=3"):
        assert Checkpoint.load(tmp_path, spec).arch == arch
    assert "not for srcnn:scale=2" in refusal(UsageError, tmp_path, "srcnn:scale=2")
    assert "not for fsrcnn" in refusal(UsageError, tmp_path, "fsrcnn")


# --- files of others --------------------------------------------------------------------------------------------------


def test_an_arch_outside_curate_is_named_by_the_user_alone(tmp_path: Path, lab: str) -> None:
    arch = Slim(arch=f'"{lab}:width=5,kernel=9-1-5"', scale=3)
    Checkpoint(arch, arch.build().state_dict(), {}).save(tmp_path)
    package = lab.partition(".")[0]
    forget(package)
    message = refusal(UsageError, tmp_path)
    asked = f"{lab}:kernel=9-1-5,width=5"
    assert message.endswith(f"is for an arch outside curate; to import it, give --arch {asked}")
    for other in ("slim", "srcnn", "my_lab.net", "slim:arch=srcnn", package):
        assert refusal(UsageError, tmp_path, other) == message
    assert package not in sys.modules
    for spec in (asked, lab, f"{lab}:scale=3", f'slim:arch="{lab}:width=5,kernel=9-1-5"'):
        assert plugins.spec_of(Checkpoint.load(tmp_path, spec).arch) == plugins.spec_of(arch)
    for spec in (f"{lab}:width=4", f"slim:arch={lab}"):
        assert "not for" in refusal(UsageError, tmp_path, spec)


@pytest.mark.parametrize(
    "spec",
    [
        "slim:arch={}",
        "slim:arch={}:scale=2",
        'slim:scale=2,arch="{}:width=5,scale=2"',
        'slim: arch = "{}" ',
        "slim:arch=slim:arch={}",
        'slim:arch="slim:arch={},scale=2"',
        "srcnn:arch={}",
        "curate.archs.slim:arch={}",
    ],
)
def test_a_record_imports_nothing(spec: str, tmp_path: Path, lab: str) -> None:
    with pytest.raises(UsageError, match="is for an arch outside curate; to import it, give --arch"):
        Checkpoint.load(claim(tmp_path, spec.format(lab)))
    assert lab not in sys.modules


@pytest.mark.parametrize("file", ["genotype.json", "http://example.org/x.json", "config.txt"])
@pytest.mark.parametrize("spec", ["slim:config={}", "slim:arch=dlsr:genotype={}", 'slim:arch="drn:config={},scale=4"'])
def test_a_record_opens_no_other_file(spec: str, file: str, tmp_path: Path) -> None:
    assert f"it names another file, '{file}'" in refusal(DataError, claim(tmp_path, spec.format(file)))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("slim:" + "arch=slim:" * 500 + "arch=os.path", "more than 3, one in the other"),
        ("slim:units=9-a.weight-b.weight", "units do not fit"),
        ("slim:units=" + "+".join(["9-a.weight-b.weight"] * 5000), "units do not fit"),
        ("slim:arch=", "no '' in curate.archs"),
        ("slim:arch=slim", "another one than slim"),
        ("slim:arch=edsr:features=1000000000000000", "does not fit"),
        (
            'slim:arch="edsr:features=10000000,blocks=4",units=8-body.0.conv1.weight-x.weight,config=3',
            "does not fit",
        ),
    ],
)
def test_a_hostile_record_is_one_line(spec: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(CurateError) as refused:
        Checkpoint.load(claim(tmp_path, spec))
    assert reason in str(refused.value) and str(refused.value).isprintable()
