"""Dual networks: their sizes, what a network and its way back answer, and the file that they are kept in."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file
from test_training import Probe, fresh, refusal
from torch import Tensor, nn

from curate import checkpoint, degrade, dual, plugins
from curate.archs import Arch
from curate.archs.drn import Drn
from curate.archs.srcnn import Srcnn
from curate.checkpoint import Checkpoint, weights_hash
from curate.dual import DUAL_FILE, Regression, dual_networks
from curate.errors import DataError, UsageError
from curate.metrics import rgb_to_y
from curate.repairing import repair
from curate.tensors import to_float, to_tensor
from curate.verification import verify

DRN = Drn(features=4, blocks=1)
EDSR = plugins.parse("archs", "edsr:scale=4,features=4,blocks=1")


@dataclass(frozen=True)
class Luma(Probe):
    """The same of luma."""

    colour: ClassVar[Literal["y", "rgb"]] = "y"


def parameters(duals: nn.ModuleList) -> list[int]:
    return [sum(parameter.numel() for parameter in one.parameters()) for one in duals]


def weights(duals: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in duals.state_dict().items()}


def made(arch: Arch, seed: int = 0) -> Checkpoint:
    return Checkpoint(arch, fresh(arch, seed).state_dict(), {})


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("edsr:scale=2", [864]),
        ("edsr:scale=3", [864]),
        ("edsr:scale=4", [3168]),
        ("swinir:scale=4,variant=light", [3168]),
        ("drn", [864, 864]),
        ("drn:size=l", [1080, 1080]),
        ("drn:scale=8", [432] * 3),
        ("fsrcnn:scale=4", [16 * 9 + 16 * 16 * 9 + 16 * 9]),
    ],
)
def test_the_numbers_of_parameters_are_the_published_ones(arch: str, expected: list[int]) -> None:
    """A conv 3x3 for every halving, or the third, and one back to the image, without biases; 16 maps, or DRN's."""
    assert parameters(dual_networks(plugins.parse("archs", arch))) == expected


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("colour", ["y", "rgb"])
def test_the_way_back_has_the_size_of_lr(scale: int, colour: str) -> None:
    (one,) = dual_networks(Luma(scale=scale) if colour == "y" else Probe(scale=scale))
    channels = 1 if colour == "y" else 3
    assert one(torch.zeros(2, channels, 5 * scale, 7 * scale)).shape == (2, channels, 5, 7)


def test_a_scale_without_dual_networks_is_one_line() -> None:
    message = refusal(UsageError, lambda: dual_networks(Probe(scale=6)))
    assert message.startswith("dual networks are for steps of x2, x3, x4, x8: ") and message.endswith("has x6")


def test_each_of_several_answers_is_led_one_step_back() -> None:
    net, duals = fresh(DRN), dual_networks(DRN)
    lr_BCHW = 255 * torch.rand(2, 3, 6, 8)
    answer = Regression(DRN, net, duals)(lr_BCHW)
    assert [sr.shape[2:] for sr in answer.srs] == [(6, 8), (12, 16), (24, 32)]
    assert all(torch.equal(a, b) for a, b in zip(answer.srs, net.scales(lr_BCHW), strict=True))
    assert torch.equal(answer.lrs[0], duals[0](answer.srs[1])) and torch.equal(answer.lrs[1], duals[1](answer.srs[2]))
    alone = Regression(EDSR, fresh(EDSR), dual_networks(EDSR))(lr_BCHW)
    assert (len(alone.srs), len(alone.lrs), alone.lrs[0].shape, alone.maps_BHW) == (1, 1, lr_BCHW.shape, None)
    assert Regression(EDSR, fresh(EDSR))(lr_BCHW).lrs == ()


def test_a_watched_network_tells_of_the_maps_before_its_last_layer() -> None:
    for arch in (EDSR, DRN):
        net = fresh(arch)
        last = net.get_submodule(arch.tail or "")
        entered: list[Tensor] = []
        handle = last.register_forward_pre_hook(lambda _, inputs, found=entered: found.append(inputs[0]))
        whole = Regression(arch, net, watched=True)
        for side in (6, 7):
            maps_BHW = whole(torch.rand(1, 3, side, side)).maps_BHW
            assert torch.equal(maps_BHW, entered[-1].mean(1)) and maps_BHW.shape == (1, 4 * side, 4 * side)
        handle.remove()


def test_the_way_back_learns_how_lr_was_made(make_photo: Callable[..., npt.NDArray[np.uint8]]) -> None:
    """One that learned from bicubic LR makes that better, one of LR blurred by wide slanted kernels that."""
    photos = torch.stack([to_float(to_tensor(make_photo(32, 32, seed))) for seed in range(4)])
    arch, hr_BCHW = Srcnn(scale=2), rgb_to_y(photos)
    kinds = [degrade.parse(name, 2)(photos, [1, 2, 3, 4]) for name in ("bicubic", "blur:kinds=0:1,sigma=2:4")]
    ways = []
    for lr_BCHW in map(rgb_to_y, kinds):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            (way,) = dual_networks(arch)
        adam = torch.optim.Adam(way.parameters(), lr=1.5e-2)
        for _ in range(100):
            adam.zero_grad()
            (way(hr_BCHW) - lr_BCHW).abs().mean().backward()
            adam.step()
        ways.append(way)
    errors = [[(way(hr_BCHW) - rgb_to_y(lr)).abs().mean().item() for way in ways] for lr in kinds]
    assert errors[0][0] < 0.8 * errors[0][1] and errors[1][1] < 0.9 * errors[1][0]


# Their file


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Checkpoint, dict[str, Tensor]]:
    """The folder of a network with dual networks, the checkpoint and their weights."""
    found = replace(made(EDSR), recipe={"config": {"dual": 0.1}})
    duals = weights(dual_networks(EDSR))
    dual.save(tmp_path / "run", duals, found)
    found.save(tmp_path / "run")
    return tmp_path / "run", found, duals


def test_what_is_saved_is_loaded(run: tuple[Path, Checkpoint, dict[str, Tensor]]) -> None:
    folder, found, duals = run
    for place in (folder, str(folder), folder / "model.safetensors"):
        again = dual.load(place, found)
        assert again is not None and weights_hash(again) == weights_hash(duals)
    before = (folder / DUAL_FILE).read_bytes()
    dual.save(folder, dict(reversed(duals.items())), found)
    assert (folder / DUAL_FILE).read_bytes() == before
    report = verify(folder)
    assert report.whole and report.checked[0].files == 3 and verify(folder / DUAL_FILE).whole
    (folder / DUAL_FILE).unlink()
    assert dual.load(folder, found) is None


def test_every_flipped_bit_is_found(run: tuple[Path, Checkpoint, dict[str, Tensor]]) -> None:
    folder, found, _ = run
    file = folder / DUAL_FILE
    data = file.read_bytes()
    header = 8 * (8 + int.from_bytes(data[:8], "little"))
    for bit in [*range(0, header, header // 40), *range(header, 8 * len(data), 2 * len(data))]:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        looked, problems = dual.check(folder)
        assert looked == [file] and [name for name, _ in problems] == [file], bit
        assert problems[0][1].isprintable()
    refusal(DataError, lambda: dual.load(folder, found))
    assert not verify(folder).whole and not verify(file).whole
    report = repair(folder)  # nothing tells what they were
    assert not report.left.whole and report.rebuilt == [] and file.read_bytes() == changed


@pytest.mark.parametrize("whose", ["other weights", "other file", "other arch", "not finite"])
def test_what_does_not_belong_there_is_one_line(
    whose: str, run: tuple[Path, Checkpoint, dict[str, Tensor]], tmp_path: Path
) -> None:
    folder, found, duals = run
    file = folder / DUAL_FILE
    if whose == "other weights":
        dual.save(folder, duals, made(EDSR, seed=1))
    elif whose == "other file":
        save_file(duals, file)
    elif whose == "other arch":
        dual.save(folder, weights(dual_networks(DRN)), found)
    else:
        dual.save(folder, {name: tensor / 0 for name, tensor in duals.items()}, found)
    expected = {
        "other weights": "belongs to other weights than the checkpoint beside it",
        "other file": "does not say whose it is",
    }.get(whose, "does not hold dual networks of edsr:scale=4,features=4,blocks=1")
    assert expected in refusal(DataError, lambda: dual.load(folder, found))
    if whose in ("other weights", "other file"):
        assert len(dual.check(folder)[1]) == 1


def test_missing_dual_networks_are_a_finding_of_a_run_that_was_trained_with_some(
    run: tuple[Path, Checkpoint, dict[str, Tensor]],
) -> None:
    folder, found, duals = run
    dual.save(folder / "best", duals, found)
    found.save(folder / "best")
    assert verify(folder).checked[0].files == 6 and verify(folder).whole
    (folder / "best" / DUAL_FILE).unlink()
    ((place, problem),) = dual.check(folder)[1]
    assert place == folder / "best" / DUAL_FILE and "they are missing" in problem
    replace(found, recipe={}).save(folder / "best")
    assert dual.check(folder)[1] == checkpoint.check(folder)[1] == []


def test_dual_networks_at_a_url(memory: str) -> None:
    found, duals = made(EDSR), weights(dual_networks(EDSR))
    assert dual.load(memory, found) is None
    dual.save(memory, duals, found)
    again = dual.load(memory, found)
    assert again is not None and weights_hash(again) == weights_hash(duals)
