"""How long a network takes for an image on a device."""

from time import perf_counter

import torch
from torch import Tensor, nn

__all__ = ["milliseconds"]

_RUNS = 5  # of a measurement, whose median counts


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
