"""Train on a manifest with a plain PyTorch loop: python examples/plain_pytorch.py refined.parquet"""

import sys
from itertools import islice

import torch

import curate
from curate.archs.fsrcnn import Fsrcnn
from curate.metrics import rgb_to_y


def main(manifest: str, steps: int = 200) -> float:
    """The loss of the last step."""
    arch = Fsrcnn(scale=2)
    net = arch.build()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    for batch in islice(curate.batches(manifest, scale=arch.scale, crop=96, batch_size=16, seed=0), steps):
        error_B1HW = (net(rgb_to_y(batch.lr_BCHW)) - rgb_to_y(batch.hr_BCHW)).abs()
        loss = (error_B1HW.flatten(1).mean(1) * batch.weight_B).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return loss.item()


if __name__ == "__main__":
    print(f"loss {main(*sys.argv[1:2]):.4f}")  # noqa: T201 - a program that prints its result
