"""A latent diffusion model is trained on a store's patches, stopped and resumed to the same bytes, and loads."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from curate import ldm, ldm_training, stopping
from curate.config import LdmConfig
from curate.errors import DataError, UsageError
from curate.ingestion import ingest
from curate.resume import STATE_FILE
from curate.sampling import sample, samples

QUICK: dict[str, Any] = {
    "latents": 3, "width": 8, "denoiser_width": 16, "autoencoder_steps": 4, "denoiser_steps": 4, "autoencoder_crop": 16,
    "crop": 16, "batch_size": 2, "log_every": 2, "save_every": 3, "codes": 8,
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the disk, and what a stopped run says of itself is forgotten."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(stopping, "_kept", stopping._kept)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("ldm")
    ingest([write_photos(folder / "photos", [(72, 96), (60, 84)])], folder / "store", patch=24, step=12)
    return folder / "store"


def config(**options: Any) -> LdmConfig:
    return LdmConfig(**{**QUICK, **options})


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("events.")
    }


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_what_was_trained_loads_and_draws(kind: str, store: Path, tmp_path: Path) -> None:
    made = ldm_training.train(store, config(kind=kind, half=True), tmp_path / "model")
    model = ldm.load(tmp_path / "model")
    assert (model.factor, model.channels, model.has_denoiser, model.multiple) == (4, 3, True, 16)
    patches = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert model.decode(model.encode(patches)).shape == patches.shape
    drawn = samples(model, 3, 32, steps=3)
    assert drawn.shape == (3, 3, 32, 32) and drawn.isfinite().all()
    assert torch.equal(drawn[:2], samples(model, 2, 32, steps=3))  # noise of one's own
    sample(tmp_path / "model", tmp_path / "sheet.png", size=16, number=4, steps=2)
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert made["parameters"].keys() == {{"kl": "vae", "vq": "vqvae"}[kind], "unet"}
    assert not (tmp_path / "model" / STATE_FILE).exists()


def test_latents_have_deviation_one(store: Path, tmp_path: Path) -> None:
    """What the denoiser learnt on: the scale is in the autoencoder's config."""
    ldm_training.train(store, config(batch_size=16), tmp_path / "model")
    run = ldm_training._Run(
        ldm_training.select(store, "random", keep=1.0), config(batch_size=16), ldm_training.Store.open(store)
    )
    hr = next(run.feed(0, stage=1)).hr_BCHW
    assert float(ldm.load(tmp_path / "model").encode(hr).std()) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("kind", ["kl", pytest.param("vq", marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(
    kind: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In either stage, and at the border between them."""
    ldm_training.train(store, config(kind=kind), tmp_path / "whole")
    done: list[int] = []
    for stop in (2, 4, 5):
        with monkeypatch.context() as patched:
            patched.setattr(stopping, "caught", lambda stop=stop: done[-1:] == [stop])
            with pytest.raises(stopping.Stopped):
                ldm_training.train(
                    store, config(kind=kind), tmp_path / "parts", progress=lambda step, *_: done.append(step)
                )
    assert len(done) < 10  # it went on, and did not begin again
    ldm_training.train(store, config(kind=kind), tmp_path / "parts")
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


def test_a_finished_run_is_returned_and_another_one_refused(store: Path, tmp_path: Path) -> None:
    made = ldm_training.train(store, config(), tmp_path / "model")
    before = files(tmp_path / "model")
    assert ldm_training.train(store, config(log_every=3), tmp_path / "model") == made
    assert files(tmp_path / "model") == before
    with pytest.raises(UsageError, match="holds a model trained with latents 3, not 4"):
        ldm_training.train(store, config(latents=4), tmp_path / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        ldm_training.train(store, config(), tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ldm_training.INDEX_FILE).write_text("{}")
    with pytest.raises(UsageError, match="holds another model"):
        ldm_training.train(store, config(), tmp_path / "other")


def test_an_autoencoder_alone(store: Path, tmp_path: Path) -> None:
    ldm_training.train(store, config(denoiser_steps=0), tmp_path / "model")
    model = ldm.load(tmp_path / "model")
    assert not model.has_denoiser
    with pytest.raises(UsageError, match="nothing can be drawn"):
        samples(model, 1, 16)


def test_the_loss_falls_and_is_drawn(store: Path, tmp_path: Path) -> None:
    made = ldm_training.train(
        store,
        config(autoencoder_steps=80, denoiser_steps=0, optimizer="soap", rate=3e-3, log_every=20),
        tmp_path / "model",
    )
    events = EventAccumulator(str(tmp_path / "model"), size_guidance={"images": 0}).Reload()
    losses = [point.value for point in events.Scalars("train/loss")]
    assert losses[-1] < 0.8 * losses[0]
    assert made["last"]["loss"] == pytest.approx(losses[-1])
    assert events.Images("pictures/crops_and_rebuilt")


def test_a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_state(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = ldm_training._Live.loss
    monkeypatch.setattr(
        ldm_training._Live,
        "loss",
        lambda live, hr: losses(live, hr) * (float("nan") if live.step == 5 else 1),
    )
    with pytest.raises(DataError, match="the loss is nan at step 5"):
        ldm_training.train(store, config(), tmp_path / "model")
    assert (tmp_path / "model" / STATE_FILE).is_file()
    assert not (tmp_path / "model" / ldm_training.INDEX_FILE).exists()


def test_crops_should_fit_the_patches(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="crop should be at most the store's patch of 24 px, found 48"):
        ldm_training.train(store, config(crop=48), tmp_path / "model")
    assert not (tmp_path / "model").exists()
