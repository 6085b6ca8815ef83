"""Do our numbers agree with the literature's? python pipelines/truth.py SET5 [CHECKPOINTS]

SET5 is the benchmark's folder with HR and LR_bicubic in it; CHECKPOINTS holds public files, of which those that are
found are measured. Prints, as Markdown, ours beside the published: the LR files, the bicubic rows, checkpoints (from
the LR files and from LR that we make), the bundled SRCNN, and every network's parameters and multiply-adds.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch

import curate
from curate import images, macs, plugins
from curate.evaluation import Protocol, averages, evaluate
from curate.metrics import psnr, quantise, rgb_to_y, ssim
from curate.resize import downscale, upscale
from curate.tensors import crop_to_multiple, to_float, to_tensor

SCALES = (2, 3, 4)
BICUBIC = {2: "33.66 / .9299", 3: "30.39 / .8682", 4: "28.42 / .8104"}
BUNDLED = {2: "36.66 / .9542", 3: "32.75 / .9090", 4: "30.48 / .8628"}  # SRCNN 9-5-5, ImageNet (Dong et al. 2016)


class Public(NamedTuple):
    file: str
    arch: str
    protocol: Protocol
    published: str


PUBLIC = (
    Public("srcnn_915_x2.mat", "srcnn:scale=2", "y", "36.34"),
    Public("srcnn_915_x2.mat", "srcnn:scale=2", "luma", "36.34"),
    Public("fsrcnn_x2.pth", "fsrcnn:scale=2", "y", "37.00 (paper), 37.06 (file)"),
    Public("fsrcnn_x2.pth", "fsrcnn:scale=2", "luma", "37.00 (paper), 37.06 (file)"),
    Public("imdn_x2.pth", "imdn:scale=2", "y", "38.00 / .9605"),
    Public("dlsr_x2.pt", "dlsr:scale=2", "y", "38.04 / .9606"),
)


class Network(NamedTuple):
    spec: str
    parameters: str  # published
    multiply_adds: str  # published, G for an answer of 1280x720


NETWORKS = (
    Network("srcnn", "57,281", "52.7"),
    Network("srcnn:kernel=9-1-5", "8,129", "-"),
    Network("fsrcnn", "12,464 (without biases, PReLU)", "6.0 (last layer at HR size)"),
    Network("drrn", "297,216", "6,796.9"),
    Network("idn", "552,769", "-"),
    Network("rdn", "22,123,395", "-"),
    Network("rdn:scale=3", "22,308,035", "-"),
    Network("rdn:scale=4", "22,271,107", "-"),
    Network("edsr", "1,370K", "316.3"),
    Network("edsr:scale=3", "1,555K", "-"),
    Network("edsr:scale=4", "1,518K", "-"),
    Network("rcan", "15,445K", "-"),
    Network("imdn", "694K", "158.8"),
    Network("imdn:scale=3", "703K", "71.5"),
    Network("imdn:scale=4", "715K", "40.9"),
    Network("swinir", "11.8M", "-"),
    Network("swinir:variant=light", "878K (910,152 in the public code)", "195.6"),
    Network("swinir:scale=4,variant=light", "897K (929,628 in the public code)", "-"),
    Network("dlsr", "322K", "68.1"),
    Network("dlsr:scale=3", "329K", "30.9"),
    Network("dlsr:scale=4", "338K", "17.9"),
    Network("dlsr:genotype=dlsr-div", "328K", "69.3"),
    Network("dlsr:genotype=dlsr-s", "56K", "12.4"),
    Network("unet", "ours", "-"),
)


def main(set5: str, checkpoints: str = "") -> None:
    """Print the tables."""
    folder = Path(set5)
    print("| | differing samples of LR | bicubic, `luma` | published |\n|---|---|---|---|")
    for scale in SCALES:
        print(f"| x{scale} | {differing(folder, scale)} | {bicubic(folder, scale)} | {BICUBIC[scale]} |")
    print("\n| checkpoint | protocol | LR files | LR made | published |\n|---|---|---|---|---|")
    for public in PUBLIC:
        file = Path(checkpoints) / public.file
        if checkpoints and file.is_file():
            given, made = (measured(file, where, public) for where in (folder, folder / "HR"))
            print(f"| {public.file} | `{public.protocol}` | {given} | {made} | {public.published} |")
    weights = Path(curate.__file__).parent / "weights"
    for scale in SCALES:
        ours = Public("", f"srcnn:scale={scale}", "y", "")
        given, made = (measured(weights / f"srcnn_955_x{scale}.safetensors", w, ours) for w in (folder, folder / "HR"))
        print(f"| bundled SRCNN 9-5-5 x{scale} | `y` | {given} | {made} | {BUNDLED[scale]} |")
    print("\n| arch | parameters | published | multiply-adds, G | published |\n|---|---|---|---|---|")
    for network in NETWORKS:
        arch = plugins.parse("archs", network.spec)
        count = macs.multiply_adds(arch, 720, 1280) / 1e9
        ours = f"{macs.parameters(arch):,} | {network.parameters} | {count:,.1f} | {network.multiply_adds}"
        print(f"| {network.spec} | {ours} |")


def differing(set5: Path, scale: int) -> str:
    """Samples of the LR files that ours differ in."""
    wrong = total = 0
    for hr_CHW, name in photographs(set5):
        file = set5 / "LR_bicubic" / f"X{scale}" / f"{name}x{scale}.png"
        lr_CHW = to_tensor(images.decode(file.read_bytes()))
        made_CHW = downscale(crop_to_multiple(hr_CHW, scale)[None], scale)[0]
        wrong += int((made_CHW != lr_CHW).sum())
        total += lr_CHW.numel()
    return f"{wrong} of {total:,}"


def bicubic(set5: Path, scale: int) -> str:
    """The answer of no network at all."""
    figures = []
    for hr_CHW, _ in photographs(set5):
        luma_B1HW = quantise(rgb_to_y(to_float(crop_to_multiple(hr_CHW, scale))[None]))
        sr_B1HW = quantise(upscale(downscale(luma_B1HW, scale), scale))
        figures.append([float(metric(sr_B1HW, luma_B1HW, border=scale)) for metric in (psnr, ssim)])
    return text(*torch.tensor(figures, dtype=torch.float64).mean(0).tolist())


def measured(file: Path, folder: Path, public: Public) -> str:
    mean = averages(evaluate(file, folder, arch=public.arch, protocol=public.protocol))
    return text(mean["psnr"], mean["ssim"])


def photographs(set5: Path) -> list[tuple[torch.Tensor, str]]:
    files = sorted((set5 / "HR").iterdir())
    return [(to_tensor(images.decode(file.read_bytes())), file.stem) for file in files]


def text(decibel: float, similarity: float) -> str:
    return f"{decibel:.3f} / {similarity:.4f}".replace("/ 0.", "/ .")


if __name__ == "__main__":
    main(*sys.argv[1:])
