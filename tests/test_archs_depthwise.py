"""Depthwise convolutions are torch's own forward, and the same function's derivatives backward, on a CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from curate.archs import _depthwise
from curate.archs._depthwise import Depthwise, depthwise

SIDES, DILATIONS = (3, 5, 7), (1, 2)
WIDE = (2, 48, 32, 32)  # where torch 2.13's bfloat16 gradient of the weights is wrong: channels last, taps apart
SIZES = ((16, 17), (9, 13), (3, 2), (1, 1))  # height, width: also below the kernel's side
KERNELS = pytest.mark.parametrize("dilation", DILATIONS)
TAPS = pytest.mark.parametrize("side", SIDES)


@pytest.fixture(autouse=True, params=["as it is", "in tiles"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of the weights as it is taken, and of all types and sizes in tiles."""
    if request.param == "in tiles":
        monkeypatch.setattr(_depthwise, "_TILED", (torch.float64, torch.float32, torch.bfloat16))
        monkeypatch.setattr(_depthwise, "_FEW", 0)


def drawn(*size: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def torchs(maps_BCHW: Tensor, weight_C1KK: Tensor, dilation: int) -> Tensor:
    padding = dilation * (weight_C1KK.shape[-1] // 2)
    return F.conv2d(maps_BCHW, weight_C1KK, padding=padding, dilation=dilation, groups=maps_BCHW.shape[1])


def gradients(maps_BCHW: Tensor, weight_C1KK: Tensor, dilation: int, towards_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Of the maps and of the weights, of a sum of the answer times `towards`."""
    given = maps_BCHW.detach().requires_grad_(), weight_C1KK.detach().requires_grad_()
    of_maps, of_weight = torch.autograd.grad(depthwise(*given, dilation), given, towards_BCHW)
    return of_maps, of_weight


def exact(maps_BCHW: Tensor, weight_C1KK: Tensor, dilation: int, towards_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The same from products alone, in float64: each tap sees the maps moved by its place."""
    maps_BCHW, weight_C1KK, towards_BCHW = maps_BCHW.double(), weight_C1KK.double(), towards_BCHW.double()
    (height, width), side = maps_BCHW.shape[2:], weight_C1KK.shape[-1]
    margin = dilation * (side // 2)
    seen, back = F.pad(maps_BCHW, (margin,) * 4), F.pad(towards_BCHW, (margin,) * 4)
    of_maps, of_weight = torch.zeros_like(maps_BCHW), torch.zeros_like(weight_C1KK)
    for i in range(side):
        for j in range(side):
            y, x = dilation * i, dilation * j
            of_weight[:, 0, i, j] = (seen[:, :, y : y + height, x : x + width] * towards_BCHW).sum((0, 2, 3))
            y, x = 2 * margin - y, 2 * margin - x
            of_maps += weight_C1KK[:, 0, i, j][:, None, None] * back[:, :, y : y + height, x : x + width]
    return of_maps, of_weight


def apart(found: Tensor, right: Tensor) -> float:
    """The error as a share of what is right."""
    return float((found.double() - right).norm() / right.norm())


@TAPS
@KERNELS
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_forward_is_torchs(side: int, dilation: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    maps_BCHW, weight_C1KK = drawn(2, 5, *size, dtype=dtype), drawn(5, 1, side, side, dtype=dtype, seed=1)
    assert torch.equal(depthwise(maps_BCHW, weight_C1KK, dilation), torchs(maps_BCHW, weight_C1KK, dilation))


@TAPS
@KERNELS
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 5])
def test_gradients(side: int, dilation: int, size: tuple[int, int], channels: int) -> None:
    maps_BCHW, weight_C1KK = drawn(2, channels, *size), drawn(channels, 1, side, side, seed=1)
    towards_BCHW = drawn(2, channels, *size, seed=2)
    found = gradients(maps_BCHW, weight_C1KK, dilation, towards_BCHW)
    maps_BCHW.requires_grad_(), weight_C1KK.requires_grad_()
    own = torch.autograd.grad(torchs(maps_BCHW, weight_C1KK, dilation), (maps_BCHW, weight_C1KK), towards_BCHW)
    known = exact(maps_BCHW.detach(), weight_C1KK.detach(), dilation, towards_BCHW)
    for mine, of_torch, right in zip(found, own, known, strict=True):
        assert mine.shape == right.shape
        assert torch.allclose(mine, of_torch, rtol=1e-12, atol=1e-12)
        assert torch.allclose(mine, right, rtol=1e-12, atol=1e-12)


@TAPS
@KERNELS
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_within_rounding(
    side: int, dilation: int, dtype: torch.dtype, error: float, layout: torch.memory_format
) -> None:
    """Where torch's own is 1.3 times the gradient's norm away, or infinite."""
    maps_BCHW = drawn(*WIDE, dtype=dtype).to(memory_format=layout)
    weight_C1KK = drawn(48, 1, side, side, dtype=dtype, seed=1)
    towards_BCHW = drawn(*WIDE, dtype=dtype, seed=2).to(memory_format=layout)
    right = exact(maps_BCHW, weight_C1KK, dilation, towards_BCHW)
    for mine, known in zip(gradients(maps_BCHW, weight_C1KK, dilation, towards_BCHW), right, strict=True):
        assert mine.dtype == dtype
        assert apart(mine, known) < error


@TAPS
@KERNELS
def test_autocast(side: int, dilation: int) -> None:
    """float32 weights, bfloat16 products, as a search makes them: gradients come back as float32."""
    layer = Depthwise(48, side, dilation)
    with torch.no_grad():
        layer.weight.copy_(drawn(48, 1, side, side, seed=1))
    maps_BCHW = drawn(*WIDE, dtype=torch.float32).to(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        made_BCHW = layer(maps_BCHW)
        with torch.no_grad():
            own_BCHW = torchs(maps_BCHW, layer.weight, dilation)
    assert made_BCHW.dtype == torch.bfloat16
    assert torch.equal(made_BCHW, own_BCHW)
    towards_BCHW = drawn(*WIDE, seed=2).bfloat16()
    found = torch.autograd.grad(made_BCHW, (maps_BCHW, layer.weight), towards_BCHW)
    right = exact(maps_BCHW.detach().bfloat16(), layer.weight.detach().bfloat16(), dilation, towards_BCHW)
    for mine, known in zip(found, right, strict=True):
        assert mine.dtype == torch.float32
        assert apart(mine, known) < 8e-3


@KERNELS
@pytest.mark.parametrize(("side", "size"), [(3, (4, 3)), (5, (3, 5)), (7, (2, 4))])
def test_derivatives_of_both_orders(side: int, dilation: int, size: tuple[int, int]) -> None:
    given = drawn(1, 2, *size).requires_grad_(), drawn(2, 1, side, side, seed=1).requires_grad_()

    def made(maps_BCHW: Tensor, weight_C1KK: Tensor) -> Tensor:
        return depthwise(maps_BCHW, weight_C1KK, dilation)

    assert torch.autograd.gradcheck(made, given)
    assert torch.autograd.gradgradcheck(made, given)


@pytest.mark.parametrize("needed", [0, 1])
def test_only_the_gradient_that_is_needed(needed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [drawn(2, 3, 8, 9), drawn(3, 1, 5, 5, seed=1)]
    both = gradients(*given, 1, torch.ones(2, 3, 8, 9, dtype=torch.float64))
    given[needed].requires_grad_()
    answer_BCHW = depthwise(given[0], given[1])
    unwanted = "depthwise" if needed else "_of_weight"
    monkeypatch.setattr(f"curate.archs._depthwise.{unwanted}", lambda *_: pytest.fail("for nobody"))
    answer_BCHW.sum().backward()
    assert torch.equal(given[needed].grad, both[needed])  # type: ignore[arg-type]
    assert given[1 - needed].grad is None


@TAPS
@KERNELS
def test_the_layer(side: int, dilation: int) -> None:
    """Weights have the name, shape and values of torch's layer, so that files of either load into the other."""
    torch.manual_seed(0)
    layer = Depthwise(6, side, dilation)
    torch.manual_seed(0)
    padding = dilation * (side // 2)
    own = torch.nn.Conv2d(6, 6, side, padding=padding, dilation=dilation, groups=6, bias=False)
    assert list(layer.state_dict()) == ["weight"]
    assert torch.equal(layer.weight, own.weight)
    maps_BCHW = drawn(1, 6, 11, 10, dtype=torch.float32)
    assert torch.equal(layer(maps_BCHW), own(maps_BCHW))


def test_other_devices_take_torchs() -> None:
    """Nothing but shapes, as where multiply-adds are counted."""
    assert depthwise(drawn(2, 3, 8, 9).to("meta"), drawn(3, 1, 5, 5).to("meta"), 2).shape == (2, 3, 8, 9)
