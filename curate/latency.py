"""How long a network takes for an image on a device."""

from time import perf_counter

import torch
from torch import Tensor, nn

from curate.archs import Arch

__all__ = ["answer", "milliseconds", "of"]

_RUNS = 5  # of a measurement, whose median counts
_ANSWER = {"cuda": (720, 1280), "cpu": (180, 320)}  # height, width, px: on a CPU the large one takes many seconds


def answer(device: torch.device) -> tuple[int, int]:
    """(height, width) of the answer that networks are timed with on a device."""
    return _ANSWER[device.type]


def of(arch: Arch, device: torch.device) -> float:
    """Milliseconds for such an answer, of a fresh network: its weights do not matter."""
    height, width = (side // arch.scale for side in answer(device))
    generator = torch.Generator().manual_seed(0)
    image_BCHW = torch.rand(1, 1 if arch.colour == "y" else 3, height, width, generator=generator) * arch.peak
    with torch.random.fork_rng(devices=[]):
        net = arch.build().eval()
    return milliseconds(net, image_BCHW.to(device, memory_format=torch.channels_last))


@torch.inference_mode()
def milliseconds(net: nn.Module, image_BCHW: Tensor) -> float:
    """Of one pass, on the image's device; the median of five after one that is not counted. The network moves there."""
    net = net.to(image_BCHW.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    times = []
    for _ in range(_RUNS + 1):
        _wait(image_BCHW.device)
        start = perf_counter()
        net(image_BCHW)
        _wait(image_BCHW.device)
        times.append(1000 * (perf_counter() - start))
    return sorted(times[1:])[_RUNS // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
