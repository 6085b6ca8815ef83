"""Latent diffusion models as diffusers keeps them: images to latents and back, and noise told from latents.

    FOLDER/vae | vqvae | autoencoder    config.json, diffusion_pytorch_model.safetensors (or shards and their index)
    FOLDER/unet | transformer           the same; may be absent: an autoencoder alone
    FOLDER/scheduler                    scheduler_config.json, where there is a denoiser
    FOLDER                              config.json and the weights themselves: an autoencoder alone

Only these classes are built, from JSON and safetensors: no pickle is read, no code of a folder's own is run.

Axes in names: B batch, C channels (of an image R G B), H height, W width, T training steps of the diffusion, K tokens
and D numbers a token of a condition.
"""

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from curate.errors import DataError, UsageError, listed, one_line
from curate.tensors import content_hash

__all__ = ["LatentModel", "Prediction", "Schedule", "load"]

Prediction = Literal["epsilon", "sample", "v", "flow"]

_BUNDLED = Path(__file__).parent / "weights" / "ldm_f4"
_AUTOENCODERS = ("vae", "vqvae", "autoencoder")  # sub-folders, the first that is there
_DENOISERS = ("unet", "transformer")
_SCHEDULE = "scheduler/scheduler_config.json"
_AUTOENCODER_CLASSES = ("AutoencoderKL", "VQModel", "AutoencoderDC", "AutoencoderTiny")
_DENOISER_CLASSES = (
    "UNet2DModel",
    "UNet2DConditionModel",
    "DiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "SanaTransformer2DModel",
)
_CONFIG = "config.json"
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_INDEX = _WEIGHTS + ".index.json"
_HUB_FILES = (_CONFIG, _WEIGHTS, _INDEX, "diffusion_pytorch_model-*-of-*.safetensors")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "sample": "sample",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
_TOKENS = 1  # of a condition; a network takes any number
_MAX_NAMED = 3  # weights named in a message
_MAX_TIMES, _MAX_MORE = 4, 1000  # how many more weights a config may ask for than there are
_MAX_STEPS = 100_000
_CODE_CHUNK = 1 << 24  # distances to codes that are in memory at a time

# What diffusers and torch raise on configs and weights that they do not expect.
_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, eq=False)
class Schedule:
    """How much of the latents is left after each training step, and what the denoiser answers.

    Noisy latents are keep * latents + noise_T[step] * noise.
    """

    keep_T: Tensor  # float64, on the CPU; falls from nearly 1
    noise_T: Tensor  # float64, on the CPU
    prediction: Prediction  # the noise, the latents, v = keep * noise - noise_T * latents, or noise - latents

    def __len__(self) -> int:
        return len(self.keep_T)

    def noised(self, latents_BCHW: Tensor, noise_BCHW: Tensor, step: int | Tensor) -> Tensor:
        """Latents after `step`, one for all or step_B."""
        keep, noise = self._at(step, latents_BCHW)
        noisy_BCHW: Tensor = keep * latents_BCHW + noise * noise_BCHW
        return noisy_BCHW

    def split(self, noisy_BCHW: Tensor, predicted_BCHW: Tensor, step: int | Tensor) -> tuple[Tensor, Tensor]:
        """The latents and the noise that noisy latents are made of, as the denoiser's answer has it."""
        keep, noise = self._at(step, noisy_BCHW)
        if self.prediction == "epsilon":
            return (noisy_BCHW - noise * predicted_BCHW) / keep, predicted_BCHW
        if self.prediction == "sample":
            return predicted_BCHW, (noisy_BCHW - keep * predicted_BCHW) / noise
        if self.prediction == "v":
            return keep * noisy_BCHW - noise * predicted_BCHW, noise * noisy_BCHW + keep * predicted_BCHW
        return noisy_BCHW - noise * predicted_BCHW, noisy_BCHW + keep * predicted_BCHW

    def steps(self, number: int) -> list[int]:
        """`number` steps for DDIM, evenly spread, from the last training step down.

        They start with the last one ("trailing"), for it alone has as much noise as sampling starts from; the usual
        spacing of DDIM leaves it out (Lin et al. 2024).
        """
        total = len(self)
        if not 1 <= number <= total:
            raise UsageError(f"steps should be 1 to {total}, found {number}")
        return [round(total - index * total / number) - 1 for index in range(number)]

    def timestep(self, step: int) -> float:
        """`step` as the denoiser is told it: the noise in it, times the number of steps, where flow is predicted."""
        return float(self.noise_T[step]) * len(self) if self.prediction == "flow" else step

    def _at(self, step: int | Tensor, like: Tensor) -> tuple[Any, Any]:
        if isinstance(step, int):
            return self._of(self.keep_T, step), self._of(self.noise_T, step)
        keep, noise = (
            self._of(values_T, step).to(like)[:, None, None, None] for values_T in (self.keep_T, self.noise_T)
        )
        return keep, noise

    def _of(self, values_T: Tensor, step: int | Tensor) -> Any:
        return float(values_T[step]) if isinstance(step, int) else values_T[step.to(values_T.device)]


class LatentModel(nn.Module):
    """An autoencoder and, where there is one, the denoiser of its latents; frozen, in eval mode. `load` makes them.

    Everything is differentiable in its arguments, in float32 (float64 after `.double()`). Latents are scaled as the
    denoiser sees them.
    """

    factor: int  # px of an image to one of its latents, each way
    channels: int  # of latents
    multiple: int  # px of which a patch's sides are multiples: `factor`, times what the denoiser halves
    schedule: Schedule | None  # of the denoiser
    condition_shape: tuple[int, ...] | None  # KD of a sample's condition, of any number of tokens; None: there is none
    digest: str  # sha256 of all weights and configs

    def __init__(
        self, autoencoder: nn.Module, denoiser: nn.Module | None, schedule: Schedule | None, digest: str
    ) -> None:
        super().__init__()
        self.autoencoder, self.denoiser, self.schedule, self.digest = autoencoder, denoiser, schedule, digest
        self._kind = type(autoencoder).__name__
        config = _config(autoencoder)
        shift, scale = _scaling(config)
        self.shift = nn.Buffer(shift)
        self.scale = nn.Buffer(scale)
        blocks = config["encoder_block_out_channels" if self._kind in _MANY_BLOCKS else "block_out_channels"]
        self.factor = 2 ** (len(blocks) - 1)
        self.channels = config["latent_channels"]
        if self._kind == "VQModel":
            self.channels = config["vq_embed_dim"] or self.channels
        self._halved = 1 if denoiser is None else _halved(denoiser)
        self.multiple = self.factor * self._halved
        self.condition_shape = None if denoiser is None else _condition_shape(denoiser)
        self.eval().requires_grad_(False)

    @property
    def has_denoiser(self) -> bool:
        """Whether there is one."""
        return self.denoiser is not None

    def encode(self, patches_BCHW: Tensor) -> Tensor:
        """Patches, sRGB in [0, 1], of sides that `check_size` takes -> latents_BCHW, sides by `factor` smaller.

        The posterior's mean, where there is one; of a VQModel the latents before quantisation.
        """
        self.check_size(*patches_BCHW.shape[-2:])
        answer = self.autoencoder.encode(patches_BCHW * 2 - 1)  # type: ignore[operator]
        if self._kind == "AutoencoderKL":
            latents_BCHW = answer.latent_dist.mean
        else:
            latents_BCHW = answer.latent if self._kind == "AutoencoderDC" else answer.latents
        scaled: Tensor = (latents_BCHW - self.shift) * self.scale
        return scaled

    def quantise(self, latents_BCHW: Tensor) -> Tensor:
        """Each latent of a VQModel as its nearest code, the gradient going straight through. Of others: as it is."""
        if self._kind != "VQModel":
            return latents_BCHW
        self._check_latents(latents_BCHW)
        codes_BCHW = self._nearest((latents_BCHW / self.scale + self.shift).detach())
        return (codes_BCHW - self.shift) * self.scale + (latents_BCHW - latents_BCHW.detach())

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """latents_BCHW -> patches_BCHW, sRGB in [0, 1] but not clamped. A VQModel quantises, as `quantise` does."""
        self._check_latents(latents_BCHW)
        latents_BCHW = self.quantise(latents_BCHW) / self.scale + self.shift
        if self._kind == "VQModel":  # by its parts: its own `decode` holds the distances to all codes at once
            spatial = _config(self.autoencoder)["norm_type"] == "spatial"
            inner_BCHW = self.autoencoder.post_quant_conv(latents_BCHW)  # type: ignore[operator]
            answer = self.autoencoder.decoder(inner_BCHW, latents_BCHW if spatial else None)  # type: ignore[operator]
        else:
            answer = self.autoencoder.decode(latents_BCHW).sample  # type: ignore[operator]
        patches: Tensor = (answer + 1) / 2
        return patches

    def predict(self, noisy_BCHW: Tensor, step: int, condition_BKD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The clean latents and the noise in noisy latents of a training step, both BCHW.

        Without a condition it is zeros, or a network's null class (its last). UsageError where there is no denoiser.
        """
        denoiser, schedule = self.denoiser, self.schedule
        if denoiser is None or schedule is None:
            raise UsageError("this model is an autoencoder alone: it has no denoiser to predict noise")
        self._check_latents(noisy_BCHW, self._halved)
        if not 0 <= step < len(schedule):
            raise UsageError(f"a step should be 0 to {len(schedule) - 1}, found {step}")
        more = self._asked(denoiser, noisy_BCHW, condition_BKD)
        timestep = schedule.timestep(step)
        if type(denoiser).__name__ == "SanaTransformer2DModel":
            timestep *= _config(denoiser)["timestep_scale"]
        timestep_B = torch.full((len(noisy_BCHW),), timestep, device=noisy_BCHW.device)
        predicted_BCHW = denoiser(noisy_BCHW, timestep=timestep_B, **more).sample[:, : self.channels]
        return schedule.split(noisy_BCHW, predicted_BCHW, step)

    def check_size(self, height: int, width: int) -> None:
        """UsageError for a patch, in px, that the model does not take: its sides should be multiples of `multiple`."""
        found = f"found {height} x {width} px"
        if height % self.multiple or width % self.multiple or not height or not width:
            why = f"{self.factor} px a latent" + (f", {self._halved} latents a step" if self._halved > 1 else "")
            raise UsageError(
                f"sides of patches should be multiples of {self.multiple} px for this model ({why}), {found}"
            )
        if height != width and type(self.denoiser).__name__ == "DiTTransformer2DModel":
            raise UsageError(f"patches should be square for a DiTTransformer2DModel, {found}")

    def _check_latents(self, latents_BCHW: Tensor, multiple: int = 1) -> None:
        shape = tuple(latents_BCHW.shape)
        sides = shape[2:]
        if len(shape) != 4 or shape[1] != self.channels or not all(side and side % multiple == 0 for side in sides):
            size = f", sides multiples of {multiple}" if multiple > 1 else ""
            raise UsageError(f"latents should be batch x {self.channels} x height x width{size}, found {shape}")

    def _nearest(self, latents_BCHW: Tensor) -> Tensor:
        """The nearest code of each latent, in the VQModel's own units."""
        codes_ND: Tensor = self.autoencoder.quantize.embedding.weight  # type: ignore[union-attr, assignment]
        latents_MD = latents_BCHW.movedim(1, -1).reshape(-1, codes_ND.shape[1])
        rows = max(_CODE_CHUNK // len(codes_ND), 1)
        parts = latents_MD.split(rows)  # type: ignore[no-untyped-call]
        nearest_M = torch.cat([torch.cdist(part_MD, codes_ND).argmin(1) for part_MD in parts])
        batch, _, height, width = latents_BCHW.shape
        return codes_ND[nearest_M].reshape(batch, height, width, -1).movedim(-1, 1)

    def _asked(self, denoiser: nn.Module, noisy_BCHW: Tensor, condition_BKD: Tensor | None) -> dict[str, Any]:
        """What the denoiser takes beside latents and step."""
        batch = len(noisy_BCHW)
        if self.condition_shape is None:
            if condition_BKD is not None:
                raise UsageError("this model's denoiser takes no condition")
        elif condition_BKD is None:
            condition_BKD = noisy_BCHW.new_zeros(batch, *self.condition_shape)
        elif condition_BKD.ndim != 3 or (len(condition_BKD), condition_BKD.shape[2]) != (
            batch,
            self.condition_shape[1],
        ):
            found = tuple(condition_BKD.shape)
            raise UsageError(f"a condition should be {batch} x tokens x {self.condition_shape[1]}, found {found}")
        more: dict[str, Any] = {} if condition_BKD is None else {"encoder_hidden_states": condition_BKD}
        null_class = _null_class(denoiser)
        if null_class is not None:
            more["class_labels"] = torch.full((batch,), null_class, device=noisy_BCHW.device)
        if type(denoiser).__name__ == "PixArtTransformer2DModel" and denoiser.use_additional_conditions:
            height, width = (side * self.factor for side in noisy_BCHW.shape[2:])
            more["added_cond_kwargs"] = {
                "resolution": noisy_BCHW.new_tensor([height, width]).expand(batch, 2),
                "aspect_ratio": noisy_BCHW.new_tensor([height / width]).expand(batch, 1),
            }
        return more


def load(model: str | Path | None, *, device: torch.device | str = "cpu") -> LatentModel:
    """The model in a folder, of a name on the hub (`org/name`), or, for None, the bundled one.

    A name is fetched as the user's settings say (HF_HUB_OFFLINE, HF_HOME, ...), and only what is used of it. Torch's
    random generators stay as they were. UsageError where there is no such model, DataError for half a model, and for
    parts that are damaged, unknown, or do not fit together.
    """
    with _quiet():
        folder = _folder(model)
        names = [name for name in _AUTOENCODERS if (folder / name).is_dir()]
        alone = not names and any((folder / name).is_file() for name in (_CONFIG, _WEIGHTS, _INDEX))
        denoisers = [] if alone else [name for name in _DENOISERS if (folder / name).is_dir()]
        if not names and not alone:
            half = f"has a denoiser ({denoisers[0]}) without" if denoisers else "has not"
            raise DataError(f"{_quoted(folder)} {half} an autoencoder: it should have one of {listed(_AUTOENCODERS)}")
        autoencoder, config = _part(folder / names[0] if names else folder, _AUTOENCODER_CLASSES)
        digest = hashlib.sha256(_digest(autoencoder, config))
        denoiser, schedule = None, None
        if denoisers:
            denoiser, config = _part(folder / denoisers[0], _DENOISER_CLASSES)
            schedule, schedule_config = _schedule(folder / _SCHEDULE)
            digest.update(_digest(denoiser, config))
            digest.update(_json_bytes(schedule_config))
        return _tried(folder, autoencoder, denoiser, schedule, digest.hexdigest()).to(device)


# What is where


def _folder(model: str | Path | None) -> Path:
    if model is None:
        if not _BUNDLED.is_dir():
            raise UsageError("no bundled latent diffusion model here; name a folder or one of the hub: model=FOLDER")
        return _BUNDLED
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UsageError(f"{_quoted(folder)} should be a folder as diffusers writes it, found a file")
    if not _HUB_NAME.fullmatch(str(model)):
        raise UsageError(f"no folder {_quoted(model)}; it should be one as diffusers writes it, or a name on the hub")
    return _fetched(str(model))


def _fetched(name: str) -> Path:
    """The folder in the hub's cache with what is used of a model."""
    from huggingface_hub import snapshot_download

    parts = ("", *(f"{part}/" for part in (*_AUTOENCODERS, *_DENOISERS)))
    files = [f"{part}{file}" for part in parts for file in _HUB_FILES] + [_SCHEDULE]
    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except (OSError, RuntimeError, ValueError) as error:  # what the hub's client raises: all are kinds of these
        reason = one_line(str(error).strip().partition("\n")[0])
        raise UsageError(f"no folder {_quoted(name)}, and it cannot be fetched from the hub: {reason}") from None


def _part(folder: Path, known: tuple[str, ...]) -> tuple[nn.Module, dict[str, Any]]:
    """One network and its config."""
    import diffusers

    config = _read_json(folder / _CONFIG) if (folder / _CONFIG).is_file() else None
    weights = [name for name in (_WEIGHTS, _INDEX) if (folder / name).is_file()]
    if config is None:
        there = f"weights ({weights[0]}) without" if weights else "no"
        raise DataError(f"{_quoted(folder)} is half a model: it has {there} {_CONFIG}")
    name = config.get("_class_name")
    if name not in known:
        raise DataError(f"{_quoted(folder)} holds a '{one_line(name)}'; known here are: {listed(known)}")
    if not weights:
        pickles = [file.name for suffix in ("bin", "pt", "pth", "ckpt") for file in sorted(folder.glob(f"*.{suffix}"))]
        found = f"{one_line(pickles[0])} alone, a pickle, which may run code" if pickles else "none"
        raise DataError(f"{_quoted(folder)} should have weights in {_WEIGHTS}, found {found}")
    if config.get("quantization_config"):
        raise DataError(f"{_quoted(folder)} has quantised weights; they should be floating point")
    most = _MAX_TIMES * _number(folder) + _MAX_MORE
    try:
        with torch.random.fork_rng(devices=[]), _at_most(most):
            module, info = getattr(diffusers, name).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                torch_dtype=torch.float32,
            )
    except _ERRORS as error:
        raise DataError(f"{_quoted(folder)} is no {name}, or is damaged: {_reason(error)}") from None
    _check_weights(folder, module, info)
    return module, config


def _number(folder: Path) -> int:
    """How many weights there are; DataError where the file that says so is damaged."""
    from safetensors import SafetensorError, safe_open

    if (folder / _INDEX).is_file():
        return len(_read_json(folder / _INDEX).get("weight_map", ()))
    try:
        with safe_open(folder / _WEIGHTS, framework="pt") as file:
            return len(file.keys())
    except (OSError, SafetensorError):
        raise DataError(f"{_quoted(folder / _WEIGHTS)} is not a safetensors file, or is damaged") from None


@contextmanager
def _at_most(number: int) -> Iterator[None]:
    """ValueError once so many weights are made: a config may ask for a network without end."""
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1
        if made > number:
            raise ValueError(f"its {_CONFIG} asks for more weights than there are")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _check_weights(folder: Path, module: nn.Module, info: Mapping[str, Any]) -> None:
    """DataError where weights and network do not match one to one: diffusers fills in what is missing, at random."""
    found = [
        f"{what}: {_some(sorted(key if isinstance(key, str) else key[0] for key in info[name]))}"
        for what, name in (
            ("missing", "missing_keys"),
            ("unexpected", "unexpected_keys"),
            ("of another shape", "mismatched_keys"),
        )
        if info[name]
    ]
    if found:
        raise DataError(f"{_quoted(folder)} has weights that do not fit its {_CONFIG}; {'; '.join(found)}")
    bad = [key for key, tensor in module.state_dict().items() if not bool(tensor.isfinite().all())]
    if bad:
        raise DataError(f"{_quoted(folder)} has weights that are not finite: {_some(bad)}")


def _schedule(file: Path) -> tuple[Schedule, dict[str, Any]]:
    from diffusers import DDIMScheduler

    if not file.is_file():
        raise DataError(f"{_quoted(file.parents[1])} is half a model: it has a denoiser without {_SCHEDULE}")
    config = _read_json(file)
    name = config.get("_class_name")
    prediction = _PREDICTIONS.get(str(config.get("prediction_type", "epsilon")))
    is_flow = config.get("use_flow_sigmas") is True or (isinstance(name, str) and name.startswith("FlowMatch"))
    number = config.get("num_train_timesteps", 1000)
    if not isinstance(number, int) or not 1 <= number <= _MAX_STEPS:
        raise DataError(
            f"{_quoted(file)} should have 1 to {_MAX_STEPS} num_train_timesteps, found '{one_line(number)}'"
        )
    try:
        if is_flow:
            shift = (
                1.0 if config.get("use_dynamic_shifting") else float(config.get("shift", config.get("flow_shift", 1.0)))
            )
            noise_T = torch.arange(1, number + 1, dtype=torch.float64) / number
            noise_T = shift * noise_T / (1 + (shift - 1) * noise_T)
            keep_T, prediction = 1 - noise_T, "flow"
        else:
            share_T = DDIMScheduler.from_config(config).alphas_cumprod.double()  # type: ignore[no-untyped-call]
            keep_T, noise_T = share_T.sqrt(), (1 - share_T).sqrt()
    except _ERRORS as error:
        raise DataError(f"{_quoted(file)} is no schedule: {_reason(error)}") from None
    if prediction is None:
        found = one_line(config["prediction_type"])
        raise DataError(f"{_quoted(file)} should predict one of {listed(_PREDICTIONS)}, found '{found}'")
    if not len(keep_T) or not bool((keep_T.isfinite() & noise_T.isfinite()).all()):
        raise DataError(f"{_quoted(file)} is no schedule: its noise is not finite")
    if prediction == "epsilon" and not bool((keep_T > 0).all()):
        raise DataError(f"{_quoted(file)} predicts noise where nothing else is left: latents cannot be told from it")
    return Schedule(keep_T, noise_T, prediction), config


def _tried(
    folder: Path, autoencoder: nn.Module, denoiser: nn.Module | None, schedule: Schedule | None, digest: str
) -> LatentModel:
    """The parts together, once they were run on the smallest patch."""
    try:
        model = LatentModel(autoencoder, denoiser, schedule, digest)
        side = 2 * model.multiple
        with torch.inference_mode():
            patches_BCHW = torch.full((1, 3, side, side), 0.5)
            latents_BCHW = model.encode(patches_BCHW)
            expected = (1, model.channels, side // model.factor, side // model.factor)
            if latents_BCHW.shape != expected:
                raise ValueError(f"its latents are {tuple(latents_BCHW.shape)}, not {expected}")
            decoded_BCHW = model.decode(latents_BCHW)
            if decoded_BCHW.shape != patches_BCHW.shape:
                raise ValueError(f"its answer is {tuple(decoded_BCHW.shape)}, not {tuple(patches_BCHW.shape)}")
            if not bool(decoded_BCHW.isfinite().all()):
                raise ValueError("its answer is not finite")
            if denoiser is not None:
                taken = _config(denoiser)["in_channels"]
                if taken != model.channels:
                    raise ValueError(f"its denoiser takes {taken} channels, its latents have {model.channels}")
                noise_BCHW = model.predict(latents_BCHW, 0)[1]
                if noise_BCHW.shape != expected:
                    raise ValueError(f"its denoiser's answer is {tuple(noise_BCHW.shape)}, not {expected}")
    except (*_ERRORS, UsageError) as error:
        raise DataError(f"{_quoted(folder)} does not work as a latent diffusion model: {_reason(error)}") from None
    return model


# About diffusers' networks

_MANY_BLOCKS = ("AutoencoderDC", "AutoencoderTiny")  # their encoders and decoders have blocks of their own


def _config(module: nn.Module) -> Mapping[str, Any]:
    config: Mapping[str, Any] = module.config  # type: ignore[assignment]
    return config


def _scaling(config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(shift, scale) of latents, each a number or 1C11: (latents - shift) * scale is what the denoiser sees."""
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        shift, scale = (torch.tensor(config[name])[None, :, None, None] for name in ("latents_mean", "latents_std"))
        return shift, config["scaling_factor"] / scale
    return torch.tensor(float(config.get("shift_factor") or 0)), torch.tensor(float(config["scaling_factor"]))


def _halved(denoiser: nn.Module) -> int:
    """Of which number of latents, each way, a denoiser takes a multiple."""
    if "Transformer" in type(denoiser).__name__:
        patch: int = _config(denoiser)["patch_size"]
        return patch
    blocks = denoiser.down_blocks
    halves: int = 2 ** sum(getattr(block, "downsamplers", None) is not None for block in blocks)  # type: ignore[union-attr]
    return halves


def _condition_shape(denoiser: nn.Module) -> tuple[int, ...] | None:
    config = _config(denoiser)
    match type(denoiser).__name__:
        case "UNet2DConditionModel":
            width = config["encoder_hid_dim"] or config["cross_attention_dim"]
            return _TOKENS, int(width if isinstance(width, int) else width[0])
        case "PixArtTransformer2DModel":
            return _TOKENS, int(config["caption_channels"] or config["cross_attention_dim"])
        case "SanaTransformer2DModel":
            return _TOKENS, int(config["caption_channels"])
    return None


def _null_class(denoiser: nn.Module) -> int | None:
    """The class that stands for none, of a denoiser with classes."""
    config = _config(denoiser)
    if type(denoiser).__name__ == "DiTTransformer2DModel":
        number: int = config["num_embeds_ada_norm"]  # it has one more than it counts
        return number
    classes: int | None = config.get("num_class_embeds")
    return classes - 1 if classes else None


@contextmanager
def _quiet() -> Iterator[None]:
    """No word of diffusers' and the hub's: what matters of it is raised."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "huggingface_hub", "accelerate")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers  # noqa: F401 - it sets its loggers up
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            are_progress_bars_disabled,
            disable_progress_bars,
            enable_progress_bars,
        )

        levels = [logger.level for logger in loggers]
        bars = not are_progress_bars_disabled()
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        disable_progress_bars()
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if bars:
                enable_progress_bars()


# Small things


def _digest(module: nn.Module, config: Mapping[str, Any]) -> bytes:
    return content_hash(module.state_dict()).encode() + _json_bytes(config)


def _json_bytes(config: Mapping[str, Any]) -> bytes:
    """A config as bytes, without who wrote it."""
    kept = {key: value for key, value in config.items() if key == "_class_name" or not key.startswith("_")}
    return json.dumps(kept, sort_keys=True).encode()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{_quoted(file)} should be a JSON object, or is damaged")
    return found


def _reason(error: Exception) -> str:
    """The first sentence of what went wrong, one line; diffusers goes on with advice about its own options."""
    text = " ".join(str(error).split()).partition(". ")[0]
    return one_line(text.removesuffix(".")) or type(error).__name__


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - _MAX_NAMED} more" if len(keys) > _MAX_NAMED else ""
    return ", ".join(map(one_line, keys[:_MAX_NAMED])) + more


def _quoted(path: str | Path) -> str:
    return f"'{one_line(path)}'"
