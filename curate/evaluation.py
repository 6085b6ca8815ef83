"""Evaluate: a checkpoint on a folder of HR images -> PSNR and SSIM on Y, per image, by the field's protocol.

Protocol: LR from files, or MATLAB's bicubic of the HR cropped to a multiple of the scale (the same, to the sample); the
network's answer, RGB or Y, clamped and rounded to 8 bits as an image file would be; `scale` pixels cut off each border;
Y of BT.601 in studio range, from RGB, unrounded; the error in float64.
"""

from math import isfinite
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from curate import images, pool
from curate.archs import Arch
from curate.checkpoint import Checkpoint
from curate.errors import DataError, UsageError, one_line
from curate.images import ImageRefused
from curate.metrics import SSIM_WINDOW, psnr, quantise, rgb_to_y, ssim
from curate.progress import Progress, silent
from curate.resize import downscale
from curate.sources import PairedFolder, Source, find
from curate.tensors import crop_to_multiple, pick_device, to_float, to_tensor
from curate.windows import MULTIPLE

__all__ = ["averages", "evaluate", "summary"]

_PROTOCOL = "PSNR and SSIM on Y, border = scale, LR = {lr}"

_SCHEMA = [("name", pa.string()), ("psnr", pa.float64()), ("ssim", pa.float64())]


def evaluate(
    checkpoint: Checkpoint | str | Path,
    folder: str | Path,
    *,
    lr: str | Path | None = None,
    arch: str | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> pa.Table:
    """Columns name, psnr (dB) and ssim, one row an image of `folder`, sorted by name; the protocol in the metadata.

    `arch` is the spec of a public checkpoint's network. `lr` is a folder of LR images (`babyx2.png` beside `baby.png`);
    without it they are made. Raises UsageError for
    folders without images or an LR image that is missing, DataError for an image that cannot be read or is too small.
    """
    model = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.load(checkpoint, arch)
    target = pick_device(device)
    net = model.module().to(target)
    sources = find([str(folder)]).sources
    pairs = PairedFolder.open(str(lr), model.arch.scale) if lr else None
    loaded = pool.ahead(lambda source: _load(source, pairs, model.arch.scale), sources)
    rows = []
    for source, (lr_CHW, hr_CHW) in zip(sources, loaded, strict=True):
        rows.append({"name": source.name, **_measure(net, model.arch, lr_CHW.to(target), hr_CHW.to(target))})
        progress(len(rows), len(sources), source.name)
    protocol = _PROTOCOL.format(lr="files" if lr else "MATLAB bicubic")
    return pa.Table.from_pylist(rows, pa.schema(_SCHEMA, metadata={"protocol": protocol}))


def averages(table: pa.Table) -> dict[str, float]:
    """Mean psnr and ssim over the images of `evaluate`'s table."""
    return {name: sum(table[name].to_pylist()) / table.num_rows for name in ("psnr", "ssim")}


def summary(table: pa.Table) -> dict[str, Any]:
    """The table of `evaluate` with its averages and protocol, JSON-able; an infinite PSNR (equal images) is null."""
    rows = [{**row, "psnr": row["psnr"] if isfinite(row["psnr"]) else None} for row in table.to_pylist()]
    mean = averages(table)
    return {
        "protocol": table.schema.metadata[b"protocol"].decode(),
        "average": {**mean, "psnr": mean["psnr"] if isfinite(mean["psnr"]) else None},
        "images": rows,
    }


def _load(source: Source, pairs: PairedFolder | None, scale: int) -> tuple[Tensor, Tensor]:
    """(lr_CHW, hr_CHW) as uint8, HR cropped to what LR covers."""
    whole_CHW = _decode(source)
    if pairs is None:
        hr_CHW = crop_to_multiple(whole_CHW, scale)
        _check_size(hr_CHW, source, scale)
        return downscale(hr_CHW[None], scale)[0], hr_CHW
    found = pairs.lookup(source.name)
    if found is None:
        raise UsageError(f"no x{scale} LR image for '{one_line(source.name)}' in the LR folder")
    lr_CHW = _decode(found)
    height, width = (side * scale for side in lr_CHW.shape[1:])
    lost = (whole_CHW.shape[1] - height, whole_CHW.shape[2] - width)
    if min(lost) < 0 or max(lost) >= MULTIPLE:
        size = f"{whole_CHW.shape[1]}x{whole_CHW.shape[2]}"
        raise DataError(
            f"LR '{one_line(found.name)}' x{scale} is {height}x{width}, found HR '{one_line(source.name)}' of {size}: "
            f"it should be equal or less than {MULTIPLE} px larger"
        )
    hr_CHW = whole_CHW[:, :height, :width]
    _check_size(hr_CHW, source, scale)
    return lr_CHW, hr_CHW


def _check_size(hr_CHW: Tensor, source: Source, scale: int) -> None:
    least, (height, width) = SSIM_WINDOW + 2 * scale, hr_CHW.shape[1:]
    if min(height, width) < least:
        found = f"{height}x{width} px (a multiple of {scale})"
        raise DataError(f"'{one_line(source.name)}' is {found}; measuring takes {least}x{least}")


def _decode(source: Source) -> Tensor:
    try:
        return to_tensor(images.decode(source.read()))
    except ImageRefused as refusal:
        raise DataError(f"'{one_line(source.name)}' cannot be measured: {refusal}") from None


@torch.inference_mode()
def _measure(net: nn.Module, arch: Arch, lr_CHW: Tensor, hr_CHW: Tensor) -> dict[str, float]:
    lr_BCHW, hr_BCHW = to_float(lr_CHW)[None], to_float(hr_CHW)[None]
    if arch.colour == "y":
        sr_B1HW = quantise(net(rgb_to_y(lr_BCHW) * arch.peak) / arch.peak)
    else:
        sr_B1HW = rgb_to_y(quantise(net(lr_BCHW * arch.peak) / arch.peak))
    y_B1HW = rgb_to_y(hr_BCHW)
    return {
        "psnr": float(psnr(sr_B1HW, y_B1HW, border=arch.scale)),
        "ssim": float(ssim(sr_B1HW, y_B1HW, border=arch.scale)),
    }
