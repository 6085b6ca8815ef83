"""Latent diffusion models: what diffusers itself answers, for every kind; what is refused, and in which words."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from latents import FOLDERS, SCHEDULES, Autoencoder, Denoiser, write_ldm
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import curate
from curate.errors import CurateError, DataError, UsageError
from curate.ldm import LatentModel, Prediction, Schedule, load

AUTOENCODERS = get_args(Autoencoder)
DENOISERS = get_args(Denoiser)
CONDITIONED = ("conditional", "pixart", "sana")
WEIGHTS = "diffusion_pytorch_model.safetensors"
ROOT = Path(curate.__file__).parents[1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`write_ldm` with the same arguments but the folder; what was written once is there."""
    root = tmp_path_factory.mktemp("ldm")
    written: dict[str, Path] = {}

    def write(*what: Any, **options: Any) -> Path:
        name = repr((what, sorted(options.items())))
        if name not in written:
            written[name] = write_ldm(root / str(len(written)), *what, **options)
        return written[name]

    return write


@pytest.fixture
def copied(folders: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Such a folder that the test may change."""
    return lambda *what, **options: shutil.copytree(folders(*what, **options), tmp_path / "copy", dirs_exist_ok=True)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def patches(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def theirs(name: str, folder: Path, part: str) -> Any:
    """A network of diffusers'."""
    import diffusers

    return getattr(diffusers, name).from_pretrained(folder / part).eval().requires_grad_(False)


def refusal(question: Callable[[], object], kind: type[CurateError] = DataError) -> str:
    """The line with which it is refused."""
    with pytest.raises(kind) as refused:
        question()
    assert type(refused.value) is kind
    assert str(refused.value).isprintable()
    return str(refused.value)


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def reweigh(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


# What it is


@pytest.mark.parametrize("denoiser", [*DENOISERS, None])
@pytest.mark.parametrize("autoencoder", AUTOENCODERS)
def test_every_autoencoder_goes_with_every_denoiser(
    folders: Callable[..., Path], autoencoder: Autoencoder, denoiser: Denoiser | None
) -> None:
    model = load(folders(autoencoder, denoiser))
    assert (model.factor, model.channels) == (4, 4)
    assert model.multiple == (8 if denoiser in ("dit", "pixart") else 4)  # their latents go in twos
    assert model.condition_shape == ((1, 6) if denoiser in CONDITIONED else None)
    assert model.has_denoiser == (denoiser is not None) == (model.schedule is not None)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    patches_BCHW = patches(2, 3, 24, 24)
    latents_BCHW = model.encode(patches_BCHW)
    assert latents_BCHW.shape == (2, 4, 6, 6)
    assert model.decode(latents_BCHW).shape == patches_BCHW.shape
    if denoiser is not None:
        for answer in model.predict(latents_BCHW, 500):
            assert answer.shape == latents_BCHW.shape and answer.dtype == torch.float32 and answer.isfinite().all()
    else:
        assert "it has no denoiser" in refusal(lambda: model.predict(latents_BCHW, 0), UsageError)


@pytest.mark.parametrize("factor", [1, 2, 8])
@pytest.mark.parametrize("autoencoder", AUTOENCODERS)
def test_the_factor_is_what_the_autoencoder_does(
    folders: Callable[..., Path], autoencoder: Autoencoder, factor: int
) -> None:
    model = load(folders(autoencoder, None, factor=factor, channels=8))
    assert (model.factor, model.multiple, model.channels) == (factor, factor, 8)
    assert model.encode(patches(1, 3, 16, 32)).shape == (1, 8, 16 // factor, 32 // factor)


@pytest.mark.parametrize(("halvings", "multiple"), [(0, 4), (1, 8), (2, 16)])
@pytest.mark.parametrize("denoiser", ["unet", "conditional"])
def test_a_u_net_halves_what_it_gets(
    folders: Callable[..., Path], denoiser: Denoiser, halvings: int, multiple: int
) -> None:
    model = load(folders("kl", denoiser, halvings=halvings))
    assert model.multiple == multiple
    model.check_size(multiple, 3 * multiple)
    line = refusal(lambda: model.check_size(multiple + 4, multiple + 1), UsageError)
    assert f"multiples of {multiple} px" in line and f"found {multiple + 4} x {multiple + 1} px" in line
    assert refusal(lambda: model.encode(patches(1, 3, multiple, multiple + 1)), UsageError)


def test_patches_that_are_not_square_are_not_for_a_dit(folders: Callable[..., Path]) -> None:
    assert "should be square" in refusal(lambda: load(folders("kl", "dit")).check_size(16, 24), UsageError)


def test_latents_that_do_not_fit_are_refused(folders: Callable[..., Path]) -> None:
    model = load(folders("kl", "unet", halvings=1))
    for shape in ((1, 3, 8, 8), (4, 8, 8), (1, 4, 0, 8), (1, 4, 8, 8, 1)):
        assert f"found {shape}" in refusal(lambda shape=shape: model.decode(random(*shape)), UsageError)
    assert "sides multiples of 2" in refusal(lambda: model.predict(random(1, 4, 6, 7), 0), UsageError)
    for step in (-1, 1000):
        assert "0 to 999" in refusal(lambda step=step: model.predict(random(1, 4, 8, 8), step), UsageError)
    assert "takes no condition" in refusal(lambda: model.predict(random(1, 4, 8, 8), 0, random(1, 1, 6)), UsageError)
    asked = load(folders("kl", "conditional"))
    for shape in ((2, 1, 6), (1, 6), (1, 1, 7)):
        line = refusal(lambda shape=shape: asked.predict(random(1, 4, 8, 8), 0, random(*shape)), UsageError)
        assert f"1 x tokens x 6, found {shape}" in line


# That it answers as diffusers does


def test_kl_latents_are_the_mean_shifted_and_scaled(folders: Callable[..., Path]) -> None:
    folder, patches_BCHW = folders("kl", "unet"), patches(2, 3, 16, 24)
    model, vae = load(folder), theirs("AutoencoderKL", folder, "vae")
    mean_BCHW = vae.encode(patches_BCHW * 2 - 1).latent_dist.mean
    torch.testing.assert_close(model.encode(patches_BCHW), (mean_BCHW - 0.25) * 0.5)
    torch.testing.assert_close(model.decode((mean_BCHW - 0.25) * 0.5), vae.decode(mean_BCHW).sample / 2 + 0.5)
    assert torch.equal(model.quantise(mean_BCHW), mean_BCHW)


def test_latents_with_means_and_deviations_of_channels(copied: Callable[..., Path]) -> None:
    folder = copied("kl", None)
    raw_BCHW = (load(folder).encode(patches(1, 3, 16, 16)) / 0.5) + 0.25
    mean_C, std_C = [1.0, 2.0, 3.0, 4.0], [0.5, 1.0, 2.0, 4.0]
    edit(folder / "vae/config.json", latents_mean=mean_C, latents_std=std_C)
    model = load(folder)
    mean_1C11, std_1C11 = (torch.tensor(values)[None, :, None, None] for values in (mean_C, std_C))
    latents_BCHW = model.encode(patches(1, 3, 16, 16))
    torch.testing.assert_close(latents_BCHW, (raw_BCHW - mean_1C11) * 0.5 / std_1C11)
    decoded_BCHW = theirs("AutoencoderKL", folder, "vae").decode(raw_BCHW).sample / 2 + 0.5
    torch.testing.assert_close(model.decode(latents_BCHW), decoded_BCHW)


@pytest.mark.parametrize("name", ["AutoencoderDC", "AutoencoderTiny"])
def test_latents_of_dc_and_tiny_are_scaled(folders: Callable[..., Path], name: str) -> None:
    kind = name.removeprefix("Autoencoder").lower()
    folder, patches_BCHW = folders(kind, None), patches(2, 3, 16, 24)
    model, vae = load(folder), theirs(name, folder, "vae")
    raw_BCHW = vae.encode(patches_BCHW * 2 - 1)[0]
    torch.testing.assert_close(model.encode(patches_BCHW), raw_BCHW * 0.5)
    torch.testing.assert_close(model.decode(raw_BCHW * 0.5), vae.decode(raw_BCHW).sample / 2 + 0.5)


def test_a_vq_model_quantises_as_diffusers_does_in_any_portions(
    folders: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, patches_BCHW = folders("vq", None), patches(2, 3, 24, 32)
    model, vae = load(folder), theirs("VQModel", folder, "vqvae")
    raw_BCHW = vae.encode(patches_BCHW * 2 - 1).latents
    codes_BCHW = vae.quantize(raw_BCHW)[0]
    assert len(codes_BCHW.movedim(1, -1).flatten(0, 2).unique(dim=0)) > 1
    latents_BCHW = model.encode(patches_BCHW)
    torch.testing.assert_close(latents_BCHW, raw_BCHW * 0.5)
    torch.testing.assert_close(model.quantise(latents_BCHW), codes_BCHW * 0.5)
    torch.testing.assert_close(model.decode(latents_BCHW), vae.decode(raw_BCHW).sample / 2 + 0.5)
    whole_BCHW = model.quantise(latents_BCHW)
    monkeypatch.setattr("curate.ldm._CODE_CHUNK", 7 * 32)
    assert torch.equal(model.quantise(latents_BCHW), whole_BCHW)


def test_a_vq_models_latents_are_its_codes_and_its_gradient_goes_straight_through(
    folders: Callable[..., Path],
) -> None:
    model = load(folders("vq", None))
    latents_BCHW = random(1, 4, 3, 5).requires_grad_()
    codes_BCHW = model.quantise(latents_BCHW)
    assert torch.equal(model.quantise(codes_BCHW.detach()), codes_BCHW)  # a code is its own nearest
    up_BCHW = random(1, 4, 3, 5, seed=1)
    (down_BCHW,) = torch.autograd.grad(codes_BCHW, latents_BCHW, up_BCHW)
    assert torch.equal(down_BCHW, up_BCHW)
    (grad_BCHW,) = torch.autograd.grad(model.decode(latents_BCHW).square().sum(), latents_BCHW)
    assert bool(grad_BCHW.abs().sum((1, 2, 3)).gt(0).all())


@pytest.mark.parametrize("denoiser", DENOISERS)
def test_the_denoiser_gets_what_diffusers_would_give_it(folders: Callable[..., Path], denoiser: Denoiser) -> None:
    """Noise as the network answers it: the step, zeros or the null class for a condition, sigmas left out."""
    folder, noisy_BCHW, step = folders("kl", denoiser), random(2, 4, 8, 8), 321
    condition_BKD, step_B = torch.zeros(2, 1, 6), torch.tensor([step, step])
    name, part, more = {
        "unet": ("UNet2DModel", "unet", {}),
        "conditional": ("UNet2DConditionModel", "unet", {"encoder_hidden_states": condition_BKD}),
        "dit": ("DiTTransformer2DModel", "transformer", {"class_labels": torch.tensor([5, 5])}),
        "pixart": ("PixArtTransformer2DModel", "transformer", {"encoder_hidden_states": condition_BKD}),
        "sana": ("SanaTransformer2DModel", "transformer", {"encoder_hidden_states": condition_BKD}),
    }[denoiser]
    answer_BCHW = theirs(name, folder, part)(noisy_BCHW, timestep=step_B, **more).sample
    assert answer_BCHW.shape[1] == (8 if denoiser in ("dit", "pixart") else 4)
    torch.testing.assert_close(load(folder).predict(noisy_BCHW, step)[1], answer_BCHW[:, :4])


@pytest.mark.parametrize("denoiser", CONDITIONED)
def test_a_condition_changes_the_answer_and_none_is_zeros(folders: Callable[..., Path], denoiser: Denoiser) -> None:
    model, noisy_BCHW = load(folders("kl", denoiser)), random(2, 4, 8, 8)
    null_BCHW = model.predict(noisy_BCHW, 10)[1]
    assert torch.equal(model.predict(noisy_BCHW, 10, torch.zeros(2, 1, 6))[1], null_BCHW)
    for tokens in (1, 3):
        assert not torch.equal(model.predict(noisy_BCHW, 10, random(2, tokens, 6))[1], null_BCHW)


def test_sana_is_told_the_step_in_its_own_units(copied: Callable[..., Path]) -> None:
    folder = copied("kl", "sana")
    edit(folder / "transformer/config.json", timestep_scale=0.5)
    told = {"timestep": torch.tensor([150.0]), "encoder_hidden_states": torch.zeros(1, 1, 6)}
    answer_BCHW = theirs("SanaTransformer2DModel", folder, "transformer")(random(1, 4, 8, 8), **told).sample
    torch.testing.assert_close(load(folder).predict(random(1, 4, 8, 8), 300)[1], answer_BCHW)


def test_pixart_is_told_the_size_where_it_asks_for_it(copied: Callable[..., Path]) -> None:
    import diffusers

    folder = copied("kl", "pixart")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = diffusers.PixArtTransformer2DModel.load_config(folder / "transformer")
        asking = diffusers.PixArtTransformer2DModel.from_config(
            {**config, "use_additional_conditions": True, "num_attention_heads": 3, "cross_attention_dim": 12}
        )
    asking.save_pretrained(folder / "transformer")
    sizes = {"resolution": torch.tensor([[16.0, 32.0]]), "aspect_ratio": torch.tensor([[0.5]])}
    more = {"encoder_hidden_states": torch.zeros(1, 1, 6), "timestep": torch.tensor([7])}
    answer_BCHW = asking.eval()(random(1, 4, 4, 8), added_cond_kwargs=sizes, **more).sample
    torch.testing.assert_close(load(folder).predict(random(1, 4, 4, 8), 7)[1], answer_BCHW[:, :4])


def test_classes_of_a_u_net_the_last_is_for_none(copied: Callable[..., Path]) -> None:
    import diffusers

    folder = copied("kl", "unet")
    with torch.random.fork_rng(devices=[]):
        config = diffusers.UNet2DModel.load_config(folder / "unet")
        classes = diffusers.UNet2DModel.from_config({**config, "num_class_embeds": 3})
    classes.save_pretrained(folder / "unet")
    answer_BCHW = classes.eval()(random(1, 4, 8, 8), timestep=9, class_labels=torch.tensor([2])).sample
    torch.testing.assert_close(load(folder).predict(random(1, 4, 8, 8), 9)[1], answer_BCHW)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_latents_and_noise_are_told_apart_as_ddim_does(folders: Callable[..., Path], prediction: str) -> None:
    import diffusers

    folder, noisy_BCHW, step = folders("kl", "unet", schedule=prediction), random(2, 4, 8, 8), 600
    model = load(folder)
    latents_BCHW, noise_BCHW = model.predict(noisy_BCHW, step)
    answer_BCHW = theirs("UNet2DModel", folder, "unet")(noisy_BCHW, step).sample
    ddim = diffusers.DDIMScheduler.from_config(SCHEDULES[prediction] | {"clip_sample": False})
    ddim.set_timesteps(10)
    told = ddim.step(answer_BCHW, step, noisy_BCHW)
    torch.testing.assert_close(latents_BCHW, told.pred_original_sample, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.schedule.noised(latents_BCHW, noise_BCHW, step), noisy_BCHW, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        model.schedule.noised(random(2, 4, 8, 8), random(2, 4, 8, 8, seed=1), torch.tensor([3, 999])),
        ddim.add_noise(random(2, 4, 8, 8), random(2, 4, 8, 8, seed=1), torch.tensor([3, 999])),
    )


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_flow_has_the_noise_of_diffusers_schedulers(copied: Callable[..., Path], name: str, shift: float) -> None:
    import diffusers

    folder, noisy_BCHW = copied("kl", "unet", schedule="flow"), random(1, 4, 8, 8)
    config = {"_class_name": name, "num_train_timesteps": 1000, "shift": shift}
    if name.startswith("DPM"):  # Sana's
        config |= {"use_flow_sigmas": True, "flow_shift": shift, "prediction_type": "flow_prediction"}
        del config["shift"]
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    model = load(folder)
    assert model.schedule.prediction == "flow"
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    sigma_T = scheduler.sigmas.flip(0)[-1000:].double()
    torch.testing.assert_close(model.schedule.noise_T, sigma_T, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.schedule.keep_T, 1 - sigma_T, rtol=1e-6, atol=1e-6)
    timestep = float(scheduler.timesteps.flip(0)[250])
    answer_BCHW = theirs("UNet2DModel", folder, "unet")(noisy_BCHW, torch.tensor([timestep])).sample
    latents_BCHW, noise_BCHW = model.predict(noisy_BCHW, 250)
    torch.testing.assert_close(noise_BCHW - latents_BCHW, answer_BCHW, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.schedule.noised(latents_BCHW, noise_BCHW, 250), noisy_BCHW)


# The schedule


@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_split_undoes_noised_for_every_kind_of_answer(folders: Callable[..., Path], prediction: Prediction) -> None:
    named = {"v": "v_prediction"}.get(prediction, prediction)
    schedule = load(folders("kl", "unet", schedule=named)).schedule
    latents_BCHW, noise_BCHW = random(3, 2, 4, 4).double(), random(3, 2, 4, 4, seed=1).double()
    for step in (1, 500, 990, torch.tensor([2, 400, 900])):
        keep, noise = (values_T[step].reshape(-1, 1, 1, 1) for values_T in (schedule.keep_T, schedule.noise_T))
        answer_BCHW = {
            "epsilon": noise_BCHW,
            "sample": latents_BCHW,
            "v": keep * noise_BCHW - noise * latents_BCHW,
            "flow": noise_BCHW - latents_BCHW,
        }[prediction]
        noisy_BCHW = schedule.noised(latents_BCHW, noise_BCHW, step)
        told = schedule.split(noisy_BCHW, answer_BCHW, step)
        torch.testing.assert_close(told, (latents_BCHW, noise_BCHW), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("number", [1, 2, 3, 7, 10, 50, 999, 1000])
def test_steps_go_down_from_the_last_one_evenly(number: int) -> None:
    schedule = Schedule(torch.linspace(1, 0, 1000), torch.linspace(0, 1, 1000), "epsilon")
    steps = schedule.steps(number)
    assert len(set(steps)) == len(steps) == number and steps == sorted(steps, reverse=True)
    assert steps[0] == 999 and steps[-1] >= 0
    gaps = [high - low for high, low in zip(steps, [*steps[1:], -1], strict=True)]
    assert max(gaps) - min(gaps) <= 1
    for wrong in (0, 1001, -1):
        assert f"1 to 1000, found {wrong}" in refusal(lambda wrong=wrong: schedule.steps(wrong), UsageError)


# Gradients


@pytest.mark.parametrize("autoencoder", AUTOENCODERS)
def test_gradients_are_those_of_finite_differences(folders: Callable[..., Path], autoencoder: Autoencoder) -> None:
    """Through the encoder, the decoder (behind a VQModel's codes, which do not move), and the denoiser."""
    model = load(folders(autoencoder, "unet")).double()
    step, precision = (1e-4, 1e-2) if autoencoder == "dc" else (1e-6, 1e-4)  # its norms are float32 whatever comes in
    patches_BCHW, latents_BCHW = patches(1, 3, 8, 8).double(), random(1, 4, 2, 2).double()
    if autoencoder == "vq":
        codes_BCHW = model.quantise(latents_BCHW)
        model.quantise = lambda given_BCHW: given_BCHW  # type: ignore[method-assign]
        latents_BCHW = codes_BCHW + 1e-3
    functions = {
        "encode": (model.encode, patches_BCHW),
        "decode": (model.decode, latents_BCHW),
        "predict": (lambda noisy_BCHW: model.predict(noisy_BCHW, 300)[0], latents_BCHW),
    }
    for name, (function, at_BCHW) in functions.items():
        direction_BCHW = random(*at_BCHW.shape, seed=2).double()
        weights = random(*function(at_BCHW).shape, seed=3).double()
        at_BCHW = at_BCHW.clone().requires_grad_()
        (grad_BCHW,) = torch.autograd.grad((function(at_BCHW) * weights).sum(), at_BCHW)
        with torch.no_grad():
            ends = [(function(at_BCHW + sign * step * direction_BCHW) * weights).sum() for sign in (1, -1)]
        slope = float((grad_BCHW * direction_BCHW).sum())
        assert float((ends[0] - ends[1]) / (2 * step)) == pytest.approx(slope, rel=precision), name
        assert float(grad_BCHW.abs().sum()) > 0


# Loading


def test_weights_in_one_file_in_parts_or_in_halves_and_an_autoencoder_alone(
    folders: Callable[..., Path], tmp_path: Path
) -> None:
    whole, patches_BCHW = folders("kl", "unet"), patches(1, 3, 16, 16)
    parts = shutil.copytree(whole, tmp_path / "parts")
    (parts / "vae" / WEIGHTS).unlink()
    theirs("AutoencoderKL", whole, "vae").save_pretrained(parts / "vae", max_shard_size="20KB")
    assert len(list((parts / "vae").glob("*-of-*.safetensors"))) > 1
    assert load(parts).digest == load(whole).digest
    alone = load(whole / "vae")
    assert not alone.has_denoiser and alone.multiple == 4
    assert torch.equal(alone.encode(patches_BCHW), load(whole).encode(patches_BCHW))
    halves = shutil.copytree(whole, tmp_path / "halves")
    reweigh(halves / "unet", lambda state: {key: value.half() for key, value in state.items()})
    model = load(halves)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.digest != load(whole).digest


def test_the_digest_tells_weights_and_configs_and_nothing_else(copied: Callable[..., Path], tmp_path: Path) -> None:
    folder = copied("kl", "unet")
    first = load(folder).digest
    assert load(shutil.copytree(folder, tmp_path / "elsewhere")).digest == first
    edit(folder / "vae/config.json", _diffusers_version="0.1", _name_or_path="x")
    (folder / "model_index.json").write_text("{}")
    assert load(folder).digest == first
    seen = {first}
    changes: list[Callable[[], None]] = [
        lambda: edit(folder / "vae/config.json", scaling_factor=0.25),
        lambda: edit(folder / "unet/config.json", norm_eps=1e-4),
        lambda: edit(folder / "scheduler/scheduler_config.json", beta_end=0.02),
        lambda: reweigh(folder / "vae", lambda state: state | {"encoder.conv_in.bias": torch.ones(8)}),
        lambda: reweigh(folder / "unet", lambda state: state | {"conv_in.bias": torch.ones(8)}),
        lambda: shutil.rmtree(folder / "unet"),
    ]
    for change in changes:
        change()
        seen.add(load(folder).digest)
    assert len(seen) == len(changes) + 1


def test_loading_is_silent_and_leaves_everything_as_it_was(
    copied: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(5)
    state, level = torch.random.get_rng_state(), logging.getLogger("diffusers").level
    folder, said = copied("vq", "sana"), []
    edit(folder / "transformer/config.json", unknown=1)  # of which diffusers would say that it ignores it
    edit(folder / "scheduler/scheduler_config.json", unknown=1)
    handler = logging.Handler()
    handler.emit = said.append
    logging.getLogger("diffusers").addHandler(handler)
    model = load(folder)
    logging.getLogger("diffusers").removeHandler(handler)
    model.decode(model.encode(patches(1, 3, 8, 8)))
    assert said == []
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert logging.getLogger("diffusers").level == level
    nn.Linear(1, 1).register_parameter("more", None)  # nobody counts any more


def test_diffusers_is_imported_only_to_load() -> None:
    code = "import sys, curate.ldm, curate.scorers.ldm, curate.scorers.latent; assert 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# What is refused


def test_without_the_bundled_model_it_says_what_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.ldm._BUNDLED", tmp_path / "none")
    assert "no bundled latent diffusion model" in refusal(lambda: load(None), UsageError)


@pytest.mark.parametrize("name", ["nowhere", "./no/folder", "a/b/c", "https://hub/org/name", "../x", "org/na\nme"])
def test_no_such_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # wherever the tests run there may be something called x beside it
    line = refusal(lambda: load(name), UsageError)
    assert "should be one as diffusers writes it, or a name on the hub" in line


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "found a file" in refusal(lambda: load(tmp_path / "model.safetensors"), UsageError)


def write_bytes(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(content)


def weights_with(part: str, **tensors: Tensor) -> Callable[[Path], object]:
    return lambda folder: reweigh(folder / part, lambda state: state | tensors)


def config_with(part: str, **values: Any) -> Callable[[Path], object]:
    return lambda folder: edit(folder / part / "config.json", **values)


def schedule_with(**values: Any) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "scheduler/scheduler_config.json", **values)


BIAS = "conv_in.bias"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no autoencoder": (
        lambda folder: shutil.rmtree(folder / "vae"),
        "has a denoiser (unet) without an autoencoder: it should have one of autoencoder, vae, vqvae",
    ),
    "nothing": (
        lambda folder: [shutil.rmtree(part) for part in folder.iterdir()],
        "has not an autoencoder: it should have one of",
    ),
    "no schedule": (
        lambda folder: shutil.rmtree(folder / "scheduler"),
        "is half a model: it has a denoiser without scheduler/scheduler_config.json",
    ),
    "config alone": (lambda folder: (folder / "unet" / WEIGHTS).unlink(), f"weights in {WEIGHTS}, found none"),
    "weights alone": (
        lambda folder: (folder / "vae/config.json").unlink(),
        f"is half a model: it has weights ({WEIGHTS}) without config.json",
    ),
    "neither": (
        lambda folder: [file.unlink() for file in (folder / "vae").iterdir()],
        "is half a model: it has no config.json",
    ),
    "a pickle": (
        lambda folder: (folder / "unet" / WEIGHTS).rename(folder / "unet/diffusion_pytorch_model.bin"),
        "found diffusion_pytorch_model.bin alone, a pickle, which may run code",
    ),
    "an unknown class": (
        config_with("unet", _class_name="FluxTransformer2DModel"),
        "holds a 'FluxTransformer2DModel'; known here are: DiTTransformer2DModel, PixArtTransformer2DModel, "
        "SanaTransformer2DModel, UNet2DConditionModel, UNet2DModel",
    ),
    "a denoiser for an autoencoder": (
        config_with("vae", _class_name="UNet2DModel"),
        "holds a 'UNet2DModel'; known here are: AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel",
    ),
    "a class that is no name": (config_with("vae", _class_name=["AutoencoderKL"]), "holds a '['AutoencoderKL']'"),
    "no class": (config_with("vae", _class_name=None), "holds a 'None'"),
    "JSON cut": (write_bytes("vae/config.json", b'{"a"'), "config.json' should be a JSON object, or is damaged"),
    "JSON of a list": (write_bytes("vae/config.json", b"[]"), "should be a JSON object"),
    "JSON without end": (write_bytes("vae/config.json", b"[" * 10**6), "should be a JSON object"),
    "no JSON for a schedule": (write_bytes("scheduler/scheduler_config.json", b"\xff"), "should be a JSON object"),
    "not safetensors": (write_bytes(f"vae/{WEIGHTS}", b"pickle" * 99), "is not a safetensors file, or is damaged"),
    "empty weights": (write_bytes(f"vae/{WEIGHTS}", b""), "is not a safetensors file, or is damaged"),
    "weights cut": (
        lambda folder: os.truncate(folder / "unet" / WEIGHTS, 40_000),
        "is not a safetensors file, or is damaged",
    ),
    "parts that are pickles": (
        write_bytes(f"unet/{WEIGHTS}.index.json", b'{"weight_map": {"conv_in.bias": "weights.bin"}}'),
        "should say in which safetensors file beside it each weight is",
    ),
    "parts elsewhere": (
        write_bytes(f"unet/{WEIGHTS}.index.json", b'{"weight_map": {"conv_in.bias": "../../other.safetensors"}}'),
        "should say in which safetensors file beside it each weight is",
    ),
    "an index of nothing": (write_bytes(f"unet/{WEIGHTS}.index.json", b"{}"), "should say in which safetensors file"),
    "a part that is not there": (
        write_bytes(f"unet/{WEIGHTS}.index.json", b'{"metadata": {}, "weight_map": {"conv_in.bias": "a.safetensors"}}'),
        "is no UNet2DModel, or is damaged",
    ),
    "weights missing": (
        lambda folder: reweigh(
            folder / "unet", lambda state: {key: state[key] for key in state if not key.startswith("conv_")}
        ),
        "weights that do not fit its config.json; missing: conv_in.bias, conv_in.weight, conv_norm_out.bias and 3 more",
    ),
    "weights missing of an autoencoder": (
        lambda folder: reweigh(folder / "vae", lambda state: {key: state[key] for key in list(state)[1:]}),
        "weights that do not fit its config.json; missing: ",
    ),
    "weights too many": (weights_with("unet", more=torch.ones(2)), "unexpected: more"),
    "another shape": (weights_with("unet", **{BIAS: torch.ones(9)}), f"Cannot load because {BIAS} expected shape"),
    "NaN": (weights_with("unet", **{BIAS: torch.full((8,), torch.nan)}), f"weights that are not finite: {BIAS}"),
    "other channels": (config_with("vae", latent_channels=5), "is no AutoencoderKL, or is damaged: Cannot load"),
    "an unknown block": (config_with("unet", down_block_types=["NoBlock"]), "is no UNet2DModel, or is damaged"),
    "layers without end": (config_with("unet", layers_per_block=10**9), "asks for more weights than there are"),
    "a width of words": (config_with("unet", block_out_channels=["eight"]), "is no UNet2DModel, or is damaged"),
    "a scale of 0": (config_with("vae", scaling_factor=0), "does not work as a latent diffusion model"),
    "no scale": (config_with("vae", scaling_factor=None), "does not work as a latent diffusion model"),
    "quantised weights": (config_with("unet", quantization_config={"quant_method": "x"}), "has quantised weights"),
    "a denoiser of more channels": (
        lambda folder: shutil.copytree(
            write_ldm(folder / "other", channels=3) / "unet", folder / "unet", dirs_exist_ok=True
        ),
        "does not work as a latent diffusion model: its denoiser takes 3 channels, its latents have 4",
    ),
    "an unknown spacing of noise": (schedule_with(beta_schedule="steep"), "is no schedule: steep is not implemented"),
    "an unknown answer": (
        schedule_with(prediction_type="luck"),
        "should predict one of epsilon, flow_prediction, sample, v_prediction, found 'luck'",
    ),
    "no steps": (schedule_with(num_train_timesteps=0), "should have 1 to 100000 num_train_timesteps, found '0'"),
    "steps without end": (schedule_with(num_train_timesteps=10**12), "should have 1 to 100000 num_train_timesteps"),
    "steps of words": (schedule_with(num_train_timesteps="many"), "found 'many'"),
    "noise that is none": (schedule_with(beta_start=float("nan")), "its noise is not finite"),
    "noise alone at the end": (schedule_with(rescale_betas_zero_snr=True), "predicts noise where nothing else is left"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_whole_model_is_refused_in_one_line(copied: Callable[..., Path], name: str) -> None:
    folder = copied("kl", "unet")
    spoil, expected = BAD[name]
    spoil(folder)
    begun = time.monotonic()
    line = refusal(lambda: load(folder))
    assert expected in line and str(folder) in line and len(line) < 400 + len(str(folder))
    assert time.monotonic() - begun < 20


def test_a_pickle_beside_is_not_looked_at(copied: Callable[..., Path]) -> None:
    folder = copied("kl", "unet")
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"anything")
    assert load(folder).has_denoiser


# The hub


def test_a_name_that_is_not_there_offline() -> None:
    line = refusal(lambda: load("org/not-there"), UsageError)
    assert line.startswith("no folder 'org/not-there', and it cannot be fetched from the hub: ")
    assert "HF_HUB_OFFLINE" in line


@pytest.mark.slow
def test_a_name_that_cannot_be_fetched_is_one_line_soon(tmp_path: Path) -> None:
    """No hub at a closed port of this machine: no traceback, no retries, nothing else printed."""
    code = "from curate.errors import UsageError\nfrom curate.ldm import load\ntry:\n load('org/name')\n"
    code += "except UsageError as error:\n print(error)"
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1 and "no folder 'org/name', and it cannot be fetched from the hub" in done.stdout
    assert time.monotonic() - begun < 60


def test_a_name_in_the_hubs_cache_is_loaded(
    folders: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, kept = "0123456789abcdef" * 2 + "01234567", tmp_path / "models--org--tiny"
    folder = folders("vq", "unet")
    shutil.copytree(folder, kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load("org/tiny").digest == load(folder).digest


def test_only_what_is_used_is_asked_of_the_hub(folders: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from fnmatch import fnmatch

    asked: list[str] = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(folders("kl", "unet"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert isinstance(load("org/name"), LatentModel)
    for file in ("vae/config.json", f"unet/{WEIGHTS}", f"transformer/{WEIGHTS}.index.json", f"vqvae/{WEIGHTS}"):
        assert file in asked
    for file in ("unet/diffusion_pytorch_model-00001-of-00002.safetensors", "config.json", WEIGHTS):
        assert any(fnmatch(file, pattern) for pattern in asked)
    for file in (
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.safetensors",
        "v1-5-pruned.safetensors",
        "pipeline.py",
    ):
        assert not any(fnmatch(file, pattern) for pattern in asked)
    assert all(
        folder in {*FOLDERS.values(), "vae", "autoencoder", "transformer", "scheduler", ""}
        for folder in (pattern.rpartition("/")[0] for pattern in asked)
    )
