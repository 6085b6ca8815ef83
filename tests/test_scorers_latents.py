"""Scorers with a latent diffusion model: by hand, bit-equal whatever the batch, and in a store end to end."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pytest
import torch
from latents import write_ldm
from torch import Tensor

from curate import cli, ldm, plugins
from curate.errors import UsageError
from curate.ingestion import ingest
from curate.scorers._latents import LatentScorer, in_batches
from curate.scorers.latent import Latent
from curate.scorers.ldm import Ldm
from curate.scoring import label, score
from curate.selection import select
from curate.store import Store
from curate.tensors import has_bfloat16, to_float, to_tensor

CPU = torch.device("cpu")
MakePhoto = Callable[[int, int, int], npt.NDArray[np.uint8]]


@pytest.fixture
def patches_BCHW(make_photo: MakePhoto) -> Tensor:
    """Six patches of photographs."""
    return to_float(torch.stack([to_tensor(make_photo(24, 32, seed)) for seed in range(6)]))


def scores(scorer: LatentScorer, patches_BCHW: Tensor) -> Tensor:
    with torch.inference_mode():
        return scorer.build(CPU)(patches_BCHW)


def exact(**options: Any) -> Ldm:
    return Ldm(precision="fp32", **options)


# ldm


@pytest.mark.parametrize("autoencoder", ["kl", "vq"])
def test_ldm_is_the_error_of_predicted_noise_and_of_what_is_decoded(
    tmp_path: Path, patches_BCHW: Tensor, autoencoder: Any
) -> None:
    folder = write_ldm(tmp_path / "model", autoencoder, "unet")
    model, steps = ldm.load(folder), (3, 700)
    scorer = exact(model=folder, timesteps="3+700", seed=4)
    expected = []
    for patch_CHW in patches_BCHW:
        latents_BCHW = model.encode(patch_CHW[None])
        noise_SCHW = scorer._noise(patch_CHW, (2, 4, 6, 8))
        losses = []
        for step, noise_CHW in zip(steps, noise_SCHW, strict=True):
            keep, sigma = model.schedule.keep_T[step], model.schedule.noise_T[step]
            noisy_BCHW = (keep * latents_BCHW + sigma * noise_CHW).float()
            answer_BCHW = model.denoiser(noisy_BCHW, step).sample
            losses.append(float((answer_BCHW - noise_CHW).square().mean()))
        decoded_CHW = model.decode(latents_BCHW)[0].clamp(0, 1)
        expected.append([sum(losses) / 2, float((decoded_CHW - patch_CHW).square().mean())])
    torch.testing.assert_close(scores(scorer, patches_BCHW), torch.tensor(expected))


def test_noise_is_a_patchs_own(patches_BCHW: Tensor) -> None:
    """Standard normal; another for other pixels, another seed; none of the 8-bit rounding below it matters."""
    shape, scorer = (4, 4, 64, 64), Ldm()
    noise = scorer._noise(patches_BCHW[0], shape)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02) and float(noise.std()) == pytest.approx(1, abs=0.02)
    assert torch.equal(scorer._noise(patches_BCHW[0] + 1e-4, shape), noise)
    mirrored, turned = patches_BCHW[0].flip(2), patches_BCHW[0].transpose(1, 2)
    for other in (patches_BCHW[1], patches_BCHW[0] + 1 / 255, mirrored, turned, patches_BCHW[0].reshape(3, 32, 24)):
        assert not torch.equal(scorer._noise(other, shape), noise)
    assert not torch.equal(Ldm(seed=1)._noise(patches_BCHW[0], shape), noise)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", [Ldm, Latent])
def test_a_patch_has_the_same_bits_whatever_it_comes_with(
    tiny_ldm: Path, patches_BCHW: Tensor, kind: type[LatentScorer], precision: Any
) -> None:
    scorer = kind(precision=precision)
    whole = scores(scorer, patches_BCHW)
    assert torch.equal(torch.cat([scores(scorer, patch_CHW[None]) for patch_CHW in patches_BCHW]), whole)
    order = [4, 0, 5, 3, 1, 2]
    assert torch.equal(scores(scorer, patches_BCHW[order]), whole[order])
    assert torch.equal(scores(scorer, patches_BCHW.repeat(2, 1, 1, 1)), whole.repeat(2, 1))
    wide_BCHW = torch.nn.functional.pad(patches_BCHW, (5, 3, 7, 1))[..., 7:-1, 5:-3]  # windows of an image, strided
    assert torch.equal(scores(scorer, wide_BCHW), whole)


def test_seed_and_steps_change_the_loss_and_not_the_autoencoders_error(tiny_ldm: Path, patches_BCHW: Tensor) -> None:
    first = scores(exact(), patches_BCHW)
    for other in (exact(seed=1), exact(timesteps="100+300+500+701"), exact(timesteps="900")):
        changed = scores(other, patches_BCHW)
        assert bool((changed[:, 0] != first[:, 0]).all()) and torch.equal(changed[:, 1], first[:, 1])


def test_bf16_says_nearly_the_same(tiny_ldm: Path, patches_BCHW: Tensor) -> None:
    for kind, tolerance in ((Ldm, 0.02), (Latent, 0.05)):
        torch.testing.assert_close(
            scores(kind(precision="bf16"), patches_BCHW),
            scores(kind(precision="fp32"), patches_BCHW),
            rtol=tolerance,
            atol=tolerance / 10,
        )
    assert not torch.equal(scores(Ldm(precision="bf16"), patches_BCHW), scores(exact(), patches_BCHW))
    assert Ldm().on(CPU).precision == ("bf16" if has_bfloat16(CPU) else "fp32")
    assert exact().on(CPU) == exact()


def test_without_a_denoiser_there_is_no_loss_and_the_same_error(
    tiny_ldm: Path, tmp_path: Path, patches_BCHW: Tensor
) -> None:
    alone = shutil.copytree(tiny_ldm / "vae", tmp_path / "alone")
    found = scores(exact(model=alone), patches_BCHW)
    assert bool(found[:, 0].isnan().all())
    assert torch.equal(found[:, 1], scores(exact(), patches_BCHW)[:, 1])
    vector = Latent(model=alone, precision="fp32")
    assert torch.equal(scores(vector, patches_BCHW), scores(Latent(precision="fp32"), patches_BCHW))


def test_any_kind_of_answer_is_turned_into_noise(tmp_path: Path, patches_BCHW: Tensor) -> None:
    for schedule in ("v_prediction", "flow", "sample"):
        folder = write_ldm(tmp_path / schedule, "tiny", "unet", schedule=schedule)
        assert bool(scores(exact(model=folder), patches_BCHW).isfinite().all())


@pytest.mark.parametrize("timesteps", ["", "a", "1+", "+1", "1,2", "-1", "1.5", "1000000", "1 + 2"])
def test_steps_that_are_none(timesteps: str) -> None:
    with pytest.raises(UsageError, match=r"timesteps should be numbers like 100\+300\+500\+700"):
        plugins.parse("scorers", f'ldm:timesteps="{timesteps}"' if "," in timesteps else f"ldm:timesteps={timesteps}")


def test_steps_that_the_model_does_not_have_and_patches_that_do_not_fit(tiny_ldm: Path) -> None:
    with pytest.raises(UsageError, match="timesteps of this model should be below 1000, found 5\\+1000"):
        Ldm(timesteps="5+1000").build(CPU)
    for kind in (Ldm, Latent):
        with pytest.raises(UsageError, match=r"multiples of 4 px for this model .4 px a latent., found 24 x 30 px"):
            scores(kind(), torch.zeros(2, 3, 24, 30))


@pytest.mark.parametrize("kind", [Ldm, Latent])
def test_identity_has_the_models_digest(tiny_ldm: Path, tmp_path: Path, kind: type[LatentScorer]) -> None:
    copy = shutil.copytree(tiny_ldm, tmp_path / "copy")
    first = kind().identity()
    assert first["model"] == ldm.load(tiny_ldm).digest
    assert kind(model=copy).identity() == first
    config = json.loads((copy / "vae/config.json").read_text())
    (copy / "vae/config.json").write_text(json.dumps(config | {"scaling_factor": 0.6}))
    assert kind(model=copy).identity()["model"] != first["model"]
    assert label(kind(model=copy)) == f"{kind.__name__.lower()}:model=copy"


def test_a_gpus_memory_that_does_not_suffice_halves_the_batch() -> None:
    sizes = []

    def function(patches_BCHW: Tensor) -> Tensor:
        sizes.append(len(patches_BCHW))
        if len(patches_BCHW) > 2:
            raise torch.OutOfMemoryError
        return patches_BCHW.mean((1, 2, 3))[:, None]

    patches_BCHW = torch.rand(5, 3, 4, 4)
    assert torch.equal(in_batches(function, patches_BCHW, 8), patches_BCHW.mean((1, 2, 3))[:, None])
    assert sizes == [5, 4, 2, 2, 1]


@pytest.mark.gpu
def test_on_a_gpu_in_bf16_scores_are_nearly_those_of_a_cpu(tiny_ldm: Path, patches_BCHW: Tensor) -> None:
    cuda = torch.device("cuda")
    with torch.inference_mode():
        whole = Ldm(precision="bf16").build(cuda)(patches_BCHW.to(cuda)).cpu()
    torch.testing.assert_close(whole, scores(exact(), patches_BCHW), rtol=0.02, atol=1e-3)


# latent


@pytest.mark.parametrize("cells", [1, 2, 3])
def test_latent_is_means_deviations_and_means_of_cells(tiny_ldm: Path, patches_BCHW: Tensor, cells: int) -> None:
    found = scores(Latent(cells=cells, precision="fp32"), patches_BCHW).numpy()
    latents = ldm.load(tiny_ldm).encode(patches_BCHW).numpy().astype(np.float64)
    parts = [latents.mean((2, 3)), latents.std((2, 3))]
    if cells == 2:
        halves = latents.reshape(6, 4, 2, 3, 2, 4).mean((3, 5))
        parts.append(halves.reshape(6, -1))
    assert found.shape == (6, 4 * (2 + (cells**2 if cells > 1 else 0)))
    expected = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(found[:, : expected.shape[1]], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cells", [0, 9, -1])
def test_cells_that_are_none(cells: int) -> None:
    with pytest.raises(UsageError, match="cells should be 1 to 8"):
        plugins.parse("scorers", f"latent:cells={cells}")


# In a store


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Store:
    """A store of 24-px patches scored by `ldm` and `latent` of the folder `model` beside it, and by sobel."""
    root = tmp_path_factory.mktemp("scored")
    ingest([write_photos(root / "photos", [(60, 72), (48, 60)])], root / "store", patch=24, step=12)
    model = write_ldm(root / "model")
    score(root / "store", [f"ldm:model={model}", f"latent:model={model}", "sobel"])
    return Store.open(root / "store")


def beside(store: Store, name: str) -> Path:
    return Path(str(store.path)).parent / name


def test_scores_of_a_store_are_those_of_its_windows(scored: Store) -> None:
    names = ["ldm:model=model.ldm_loss", "ldm:model=model.vae_mse", "latent:model=model"]
    assert set(names) <= set(scored.score_columns())
    columns = ", ".join(f'"{name}"' for name in names)
    rows = scored.query(f"select image_id, y, x, {columns} from scores").to_pylist()
    assert len(rows) == 32
    for row in rows[::7]:
        pixels = scored.read(row["image_id"], row["y"], row["x"], 24, 24)
        patch_1CHW = to_float(to_tensor(pixels))[None]
        model = beside(scored, "model")
        assert scores(Ldm(model=model), patch_1CHW)[0].tolist() == [row[names[0]], row[names[1]]]
        assert scores(Latent(model=model), patch_1CHW)[0].tolist() == row[names[2]]


@pytest.mark.parametrize("strategy", ["kcenter", "cluster"])
def test_patches_are_chosen_by_their_latents(scored: Store, strategy: str) -> None:
    by = "latent:model=model"
    manifest = select(scored, f"{strategy}:by={by}", by="sobel", keep=0.25)
    again = select(scored, f"{strategy}:by={by}", by="sobel", keep=0.25)
    assert manifest.table.equals(again.table)
    assert set(manifest.recipe.scorers) == {by, "sobel"}
    other = select(scored, "des", by="sobel", keep=0.25)
    assert len(manifest.table) == len(other.table)
    assert set(manifest.table["patch_id"].to_pylist()) != set(other.table["patch_id"].to_pylist())


@pytest.mark.parametrize("column", ["ldm_loss", "vae_mse"])
def test_patches_are_chosen_by_either_column(scored: Store, column: str) -> None:
    by = f"ldm:model=model.{column}"
    manifest = select(scored, "des", by=by, keep=0.5)
    chosen = manifest.table["score"].to_pylist()
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[0] == pc.max(scored.query(f'select "{by}" as s from scores')["s"]).as_py()


def test_it_is_scored_anew_when_the_model_changes_and_only_then(scored: Store, tmp_path: Path) -> None:
    store, model = (shutil.copytree(beside(scored, name), tmp_path / name) for name in ("store", "model"))
    assert score(store, [f"ldm:model={model}"]).patches == 0
    shutil.rmtree(model / "unet")
    report = score(store, [f"ldm:model={model}"])
    assert report.patches == report.not_finite == 32  # of the two columns the loss is NaN
    assert "model" in report.why[0] and report.why[0].isprintable()


@pytest.mark.parametrize(
    ("spec", "code", "expected"),
    [
        ("ldm", 2, "sides of patches should be multiples of 4 px for this model (4 px a latent), found 30 x 30 px"),
        ("latent:model={}/half", 1, "has a denoiser (unet) without an autoencoder"),
        ("ldm:model=org/not-there", 2, "cannot be fetched from the hub"),
        ("ldm:model=not-there", 2, "no folder 'not-there'"),
    ],
)
def test_what_is_wrong_is_one_line_at_the_command_line(
    tmp_path: Path,
    write_photos: Callable[..., Path],
    tiny_ldm: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    spec: str,
    code: int,
    expected: str,
) -> None:
    ingest([write_photos(tmp_path / "photos", [(60, 72)])], tmp_path / "store", patch=30, step=30)
    (tmp_path / "half" / "unet").mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["curate", "score", str(tmp_path / "store"), spec.format(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capfd.readouterr()
    assert ended.value.code == code
    assert printed.out == "" and printed.err.count("\n") == 1 and expected in printed.err
