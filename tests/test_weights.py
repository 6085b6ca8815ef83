"""The bundled weights, SRCNN's and a latent diffusion model: what is shipped is what the model cards say."""

import json
import re
from pathlib import Path

import pytest

import curate
from curate import ldm
from curate.checkpoint import Checkpoint, read_recipe
from curate.evaluation import averages
from curate.ldm_training import RECIPE_FILE
from curate.metrics import psnr, rgb_to_y
from curate.resize import downscale, upscale
from curate.scorers.srcnn import Srcnn
from curate.tensors import crop_to_multiple, to_float, to_tensor

WEIGHTS = Path(curate.__file__).parent / "weights"
SCALES = (2, 3, 4)
PHOTO = Path(curate.__file__).parent / "samples" / "test" / "chelsea.png"


def card_psnr(scale: int) -> float:
    """Set5's PSNR in the model card."""
    row = re.search(rf"^\| x{scale} \|.*?\| ([\d.]+) \|", (WEIGHTS / "README.md").read_text("utf-8"), re.MULTILINE)
    assert row is not None
    return float(row[1])


def file(scale: int) -> Path:
    return WEIGHTS / f"srcnn_955_x{scale}.safetensors"


def test_they_take_less_than_a_megabyte() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir() if path.is_file()) < 1_000_000


@pytest.mark.parametrize("scale", SCALES)
def test_their_recipe_says_what_made_them(scale: int) -> None:
    recipe = read_recipe(file(scale))
    assert recipe["arch"] == f"srcnn:scale={scale},kernel=9-5-5"
    chosen = recipe["training"]["manifest"]["recipe"]
    assert chosen["strategy"] == "des" and chosen["where"] == "name <> '302003.jpg'"  # Set5's woman.png
    assert (recipe["training"]["init"] is None) == (scale == 2)


@pytest.mark.parametrize("scale", SCALES)
def test_they_beat_bicubic_on_a_photograph_that_they_have_not_seen(scale: int) -> None:
    import numpy as np
    from PIL import Image

    hr_BCHW = crop_to_multiple(to_tensor(np.asarray(Image.open(PHOTO).convert("RGB"))))[None]
    bicubic = upscale(rgb_to_y(to_float(downscale(hr_BCHW, scale))), scale)
    plain = float(psnr(bicubic, rgb_to_y(to_float(hr_BCHW)), border=scale))
    assert averages(curate.evaluate(Checkpoint.load(file(scale)), PHOTO))["psnr"] > plain + 0.2


@pytest.mark.parametrize("scale", SCALES)
def test_the_scorer_takes_them(scale: int) -> None:
    import torch

    assert Srcnn(scale=scale).build(torch.device("cpu"))(torch.full((1, 3, 24, 24), 0.5)).shape == (1, 1, 24, 24)


@pytest.mark.parametrize("scale", SCALES)
def test_set5_is_what_the_card_says(scale: int, shared: Path) -> None:
    measured = averages(curate.evaluate(file(scale), shared / "benchmark" / "Set5" / "HR"))["psnr"]
    assert round(measured, 2) == pytest.approx(card_psnr(scale), abs=0.011)  # a CPU rounds differently from another


@pytest.mark.parametrize(("scale", "published"), [(2, 36.66), (3, 32.75), (4, 30.48)])
def test_the_card_claims_what_the_paper_reached(scale: int, published: float) -> None:
    assert card_psnr(scale) >= published


# The latent diffusion model

LDM = WEIGHTS / "ldm_f4"


def test_the_diffusion_model_takes_less_than_ten_megabytes() -> None:
    assert sum(path.stat().st_size for path in LDM.rglob("*") if path.is_file()) < 10_000_000


def test_its_recipe_and_its_card_say_what_it_is() -> None:
    recipe = json.loads((LDM / RECIPE_FILE).read_bytes())
    model, card = ldm.load(None), (LDM / "README.md").read_text("utf-8")
    assert (model.factor, model.channels, model.multiple) == (4, 8, 16)
    assert recipe["identity"] == {"patches": recipe["identity"]["patches"], "code": 1} | {
        name: value for name, value in recipe["config"].items() if name not in ("log_every", "save_every")
    }
    for part, net in (("vae", model.autoencoder), ("unet", model.denoiser)):
        assert net is not None
        number = sum(tensor.numel() for tensor in net.parameters())
        assert recipe["parameters"][part] == number
        assert f"| {number:,} |" in card


def test_it_rebuilds_a_photograph_and_tells_its_noise(shared: Path) -> None:
    """On held-out photographs: about what the card says of all of them."""
    import numpy as np
    import torch
    from PIL import Image

    model, generator = ldm.load(None), torch.Generator().manual_seed(0)
    files = sorted((shared / "corpus" / "bsds-test").glob("*.jpg"))[:20]
    assert model.schedule is not None
    found = []
    for path in files:
        patch = to_float(to_tensor(np.asarray(Image.open(path).convert("RGB"))))[None, :, 96:192, 96:192]
        with torch.inference_mode():
            latents = model.encode(patch)
            rebuilt = model.decode(latents).clamp(0, 1)
            noise = torch.randn(latents.shape, generator=generator)
            _, predicted = model.predict(model.schedule.noised(latents, noise, 300), 300)
        found.append([float((rebuilt - patch).square().mean()), float((predicted - noise).square().mean())])
    error, noise_error = np.mean(found, axis=0)
    assert -10 * np.log10(error) > 29
    assert noise_error < 0.3  # 1 is what knows nothing has
