"""Parameters and multiply-adds of a network, counted as the literature counts them.

A multiply-add is one product of a convolution, a linear layer or an attention matrix, for one image, and the size is
that of the answer: 1280x720 in most tables. Biases, activations, normalisation, pooling and the bicubic enlargement of
the input are not counted. A transposed convolution makes its products at each px of its input; CARN's table counts
FSRCNN's at each px of the output, 6.0 G for 2.9. SwinIR's is for an answer of 1024x720, DRN's and DRC's are for an
input of 96x96.
"""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from curate.archs import Arch
from curate.archs._layers import Bicubic
from curate.errors import UsageError

__all__ = ["convention", "multiply_adds", "parameters"]


def parameters(arch: Arch) -> int:
    """Numbers that training sets, in the arch's network; buffers are none."""
    return sum(parameter.numel() for parameter in _fresh(arch).parameters())


def multiply_adds(arch: Arch, height: int, width: int) -> int:
    """Multiply-adds for one answer of `height` x `width` px, from an input of 1 / scale of that, rounded half up.

    What borders the network adds, as SwinIR does up to whole windows, counts too. Nothing is computed, so any size is
    quick; the network has to run on torch's meta device, where tensors have shapes and no values.
    Raises UsageError for a size below one LR pixel, or below what the network can take.
    """
    lr_height, lr_width = _lr_size(arch, height, width)
    # Built with values: code that is made for those (`x.item()` in most transformers) finds none on the meta device.
    net = _fresh(arch).to("meta").eval()
    counter = FlopCounterMode(display=False)
    enlarging: list[int] = []  # operations so far, negative as an enlargement begins and positive as it ends
    for module in net.modules():
        if isinstance(module, Bicubic):
            module.register_forward_pre_hook(lambda *_: enlarging.append(-counter.get_total_flops()))
            module.register_forward_hook(lambda *_: enlarging.append(counter.get_total_flops()))
    channels = 1 if arch.colour == "y" else 3
    with torch.no_grad(), counter:
        net(torch.empty(1, channels, lr_height, lr_width, device="meta"))
    return (counter.get_total_flops() - sum(enlarging)) // 2  # a product and a sum


def convention(arch: Arch, height: int, width: int) -> str:
    """What `multiply_adds` of the same arguments is: a sentence with the sizes, what is counted and what is not."""
    lr_height, lr_width = _lr_size(arch, height, width)
    image = "luma" if arch.colour == "y" else "RGB"
    return (
        f"products of convolutions, linear layers and attention that make one answer of {width}x{height} px from "
        f"{lr_width}x{lr_height} px of {image}, borders that the network adds included; biases, activations, "
        "normalisation, pooling and bicubic enlargement are not counted"
    )


def _lr_size(arch: Arch, height: int, width: int) -> tuple[int, int]:
    least = arch.scale * arch.least
    if min(height, width) < least:
        raise UsageError(f"a size should be at least {least}x{least} px, found {width}x{height}")
    lr_height, lr_width = ((length + arch.scale // 2) // arch.scale for length in (height, width))
    return lr_height, lr_width


def _fresh(arch: Arch) -> nn.Module:
    """A network with random weights. Torch's random generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        return arch.build()
