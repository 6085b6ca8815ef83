"""Evaluate: a checkpoint on a folder of HR images -> PSNR and SSIM per image, by one of the field's protocols.

All of them clamp the network's answer and round it to 8 bits, as an image file would, compute the error in float64, and
average the images' figures. Grey files become RGB first (the convention of IMDN, PAN, RLFN).

    y      on Y of BT.601 in studio range, made from RGB and not rounded; `scale` px cut off each border; LR from files,
           or MATLAB's bicubic of the HR cropped to a multiple of the scale, which is the same to the sample. The
           protocol of nearly all published tables; for networks of luma or RGB
    luma   that of the authors of SRCNN and VDSR, where photographs are grey from the start: Y of the HR rounded to 8
           bits, LR its bicubic in floating point (or Y of the LR files), `scale` px cut off; for networks of luma
    rgb    on RGB, `scale` + 6 px cut off each border (EDSR, NTIRE); for networks of RGB
"""

import hashlib
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor, nn

from curate import images, plugins, pool
from curate.archs import Arch
from curate.checkpoint import Checkpoint
from curate.errors import DataError, UsageError, listed, one_line
from curate.images import ImageRefused
from curate.metrics import SSIM_WINDOW, psnr, quantise, rgb_to_y, ssim
from curate.progress import Progress, silent
from curate.resize import downscale
from curate.sources import PairedFolder, Source, find, hr_folder
from curate.tensors import crop_to_multiple, pick_device, to_float, to_tensor
from curate.windows import MULTIPLE

__all__ = ["Protocol", "averages", "evaluate", "fingerprint", "summary"]

Protocol = Literal["y", "luma", "rgb"]

_SAID = {  # in every answer
    "y": "PSNR and SSIM on Y, border = scale",
    "luma": "PSNR and SSIM on 8-bit Y, border = scale",
    "rgb": "PSNR and SSIM on RGB, border = scale + 6",
}
_COLOURS = {"y": ("y", "rgb"), "luma": ("y",), "rgb": ("rgb",)}  # of networks that a protocol can measure
_METRICS = {"psnr": psnr, "ssim": ssim}
_RGB_BORDER = 6  # px beyond the scale
_MEASURED = "evaluate 1"  # raise it when the same images begin to give other figures

_SCHEMA = [("name", pa.string()), ("psnr", pa.float64()), ("ssim", pa.float64())]


def evaluate(
    checkpoint: Checkpoint | str | Path,
    folder: str | Path,
    *,
    lr: str | Path | None = None,
    arch: str | None = None,
    protocol: Protocol = "y",
    device: str = "auto",
    progress: Progress = silent,
) -> pa.Table:
    """Columns name, psnr (dB) and ssim, one row an image of `folder`, sorted by name; the protocol in the metadata.

    `folder` holds the HR images, or is a benchmark's, with `HR` and perhaps `LR_bicubic/X2`, ... in it. `lr` is a
    folder of LR images (`babyx2.png` beside `baby.png`); without it, the benchmark's are used, or they are made. `arch`
    is the spec of a public checkpoint's network. Raises UsageError for folders without images, an LR image that is
    missing, a protocol that is not for this network's colours, DataError for an image that cannot be read or is too
    small.
    """
    model = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.load(checkpoint, arch)
    if protocol not in _COLOURS:
        raise UsageError(f"no protocol '{one_line(protocol)}'; there are: {listed(_COLOURS)}")
    if model.arch.colour not in _COLOURS[protocol]:
        fitting = [name for name, colours in _COLOURS.items() if model.arch.colour in colours]
        network = f"a network of {'luma' if model.arch.colour == 'y' else 'RGB'}"
        raise UsageError(f"protocol '{protocol}' asked for {network}, which takes: {listed(fitting)}")
    target = pick_device(device)
    net = model.module().to(target)
    hr, lr = _benchmark(folder, model.arch.scale, lr)
    sources = find([str(hr)]).sources
    pairs = PairedFolder.open(str(lr), model.arch.scale) if lr else None
    border = model.arch.scale + (_RGB_BORDER if protocol == "rgb" else 0)
    least = _least(model.arch, border)
    loaded = pool.ahead(lambda source: _load(source, pairs, model.arch.scale, least), sources)
    rows = []
    for source, (lr_CHW, hr_CHW) in zip(sources, loaded, strict=True):
        lr_BCHW = None if lr_CHW is None else to_float(lr_CHW.to(target))[None]
        sr_BCHW, reference_BCHW = _answer(net, model.arch, protocol, lr_BCHW, to_float(hr_CHW.to(target))[None])
        measured = {name: metric(sr_BCHW, reference_BCHW, border=border) for name, metric in _METRICS.items()}
        rows.append({"name": source.name, **{name: float(value) for name, value in measured.items()}})
        progress(len(rows), len(sources), source.name)
    made = "bicubic of Y, unrounded" if protocol == "luma" else "MATLAB bicubic"
    said = f"{_SAID[protocol]}, LR = {'files' if lr else made}"
    return pa.Table.from_pylist(rows, pa.schema(_SCHEMA, metadata={"protocol": said}))


def fingerprint(folder: str | Path, scale: int) -> str:
    """16 hex of all that `evaluate` measures a network of this scale on: names and bytes of the HR and LR images."""
    hr, lr = _benchmark(folder, scale, None)
    digest = hashlib.sha256(_MEASURED.encode())
    for source in find([str(hr)]).sources + (find([str(lr)]).sources if lr else []):
        try:
            digest.update(f"\0{source.name}\0{hashlib.sha256(source.read()).hexdigest()}".encode())
        except OSError as error:
            raise DataError(f"'{one_line(source.name)}' cannot be read: {one_line(error)}") from None
    return digest.hexdigest()[:16]


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


def _benchmark(folder: str | Path, scale: int, lr: str | Path | None) -> tuple[str | Path, str | Path | None]:
    """The folders of HR and of LR images: those of a benchmark where `folder`, which may be a URL, is a local one."""
    hr, files = hr_folder(folder), Path(folder) / "LR_bicubic" / f"X{scale}"
    if hr == folder:
        return folder, lr
    return hr, lr or (files if files.is_dir() else None)


class _Least(NamedTuple):
    """The smallest HR image."""

    side: int  # px
    of: str  # what takes no smaller one


def _least(arch: Arch, border: int) -> _Least:
    measured, seen = SSIM_WINDOW + 2 * border, arch.scale * arch.least
    return _Least(seen, plugins.spec_of(arch)) if seen > measured else _Least(measured, "measuring")


def _load(source: Source, pairs: PairedFolder | None, scale: int, least: _Least) -> tuple[Tensor | None, Tensor]:
    """(lr_CHW, hr_CHW) as uint8, HR cropped to what LR covers, not smaller than `least`; no LR if it is to be made."""
    whole_CHW = _decode(source)
    if pairs is None:
        hr_CHW = crop_to_multiple(whole_CHW, scale)
        _check_size(hr_CHW, source, scale, least)
        return None, hr_CHW
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
    _check_size(hr_CHW, source, scale, least)
    return lr_CHW, hr_CHW


def _check_size(hr_CHW: Tensor, source: Source, scale: int, least: _Least) -> None:
    height, width = hr_CHW.shape[1:]
    if min(height, width) < least.side:
        found = f"{height}x{width} px (a multiple of {scale})"
        raise DataError(f"'{one_line(source.name)}' is {found}; {least.of} takes {least.side}x{least.side}")


def _decode(source: Source) -> Tensor:
    try:
        return to_tensor(images.decode(source.read()))
    except ImageRefused as refusal:
        raise DataError(f"'{one_line(source.name)}' cannot be measured: {refusal}") from None


@torch.inference_mode()
def _answer(
    net: nn.Module, arch: Arch, protocol: Protocol, lr_BCHW: Tensor | None, hr_BCHW: Tensor
) -> tuple[Tensor, Tensor]:
    """What is compared: the network's answer and the reference, values in [0, 1], both luma or both RGB."""
    luma_B1HW = rgb_to_y(hr_BCHW)
    if protocol == "luma":
        luma_B1HW = quantise(luma_B1HW)
        seen_BCHW = downscale(luma_B1HW, arch.scale) if lr_BCHW is None else rgb_to_y(lr_BCHW)
    else:
        if lr_BCHW is None:
            lr_BCHW = to_float(downscale((hr_BCHW * 255).round().to(torch.uint8), arch.scale))
        seen_BCHW = rgb_to_y(lr_BCHW) if arch.colour == "y" else lr_BCHW
    sr_BCHW = quantise(net(seen_BCHW * arch.peak) / arch.peak)
    if protocol == "rgb":
        return sr_BCHW, hr_BCHW
    return (sr_BCHW if arch.colour == "y" else rgb_to_y(sr_BCHW)), luma_B1HW
