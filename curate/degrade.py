"""How an HR batch becomes LR for training: bicubic, blur, noise, JPEG, and Real-ESRGAN's second-order chain.

    --degrade bicubic                          MATLAB's bicubic: the field's LR files
    --degrade blur:sigma=0.2:4+noise+jpeg      the classical model, JPEG((HR * kernel) shrunk + noise), or parts of it
    --degrade noise:sigma=5+bicubic+blur       another order: what stands before `bicubic` is done to HR, the rest to LR
    --degrade second_order:jpeg.quality=60:95  blind SR: blur, resize, noise and JPEG twice, and a sinc filter

Each is a frozen dataclass of options; a range `low:high` is what every sample draws its own value from, uniformly. A
sample's LR is a function of its HR, its seed and the options: not of its batch, nor, but for float32's last digits, of
the device. So training resumes exactly at any step, and a batch mixes strengths and sizes of degradation, for which
Real-ESRGAN keeps a pool of earlier samples. Random numbers are drawn on the CPU, the pixels stay where they are.

Axes   B batch, 1 a batch of one, 3 R G B, C those or one grey, H height, W width
"""

import dataclasses
import math
import re
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from curate import jpeg, optics
from curate.errors import UsageError, listed, meant, one_line
from curate.metrics import quantise
from curate.plugins import given_in
from curate.resize import downscale
from curate.tensors import to_float

__all__ = ["Bicubic", "Blur", "Chain", "Degradation", "Jpeg", "Noise", "Resize", "SecondOrder", "parse"]

_T = TypeVar("_T")

KINDS = ("iso", "aniso", "generalised_iso", "generalised_aniso", "plateau_iso", "plateau_aniso")  # of kernels
MIX = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)  # how often each of KINDS comes in Real-ESRGAN
SIZES = (7, 21)  # px, least and greatest side of a kernel
LEAST_SIGMA = 0.1  # px; below it a kernel is a single pixel
MODES = ("area", "bilinear", "bicubic")  # of resizing, each as likely


# Options as text: `0.2:4` is (0.2, 4.0), and one number is a range of nothing else


def _numbers(value: Any) -> Any:
    return value.split(":") if isinstance(value, str) else value


def _ends(value: Any) -> Any:
    return [value, value] if isinstance(value, str) and ":" not in value else _numbers(value)


Range = Annotated[tuple[float, float], pydantic.BeforeValidator(_ends)]
Whole = Annotated[tuple[int, int], pydantic.BeforeValidator(_ends)]
Weights = Annotated[tuple[float, ...], pydantic.BeforeValidator(_numbers)]


def _check_scale(scale: int) -> None:
    if scale < 1:
        raise ValueError(f"scale should be a whole number from 1, found {scale}")


def _check_range(name: str, ends: tuple[float, float], least: float, most: float = math.inf) -> None:
    low, high = ends
    if not least <= low <= high <= most or math.isinf(high):
        limits = f"from {least:g}" if math.isinf(most) else f"from {least:g} to {most:g}"
        raise ValueError(f"{name} should be low:high, {limits}, found {_text(ends)}")


def _check_around_1(name: str, ends: tuple[float, float]) -> None:
    low, high = ends
    if not 0 < low <= 1 <= high < math.inf:
        raise ValueError(f"{name} should be low:high with 1 between them, found {_text(ends)}")


def _check_weights(name: str, weights: tuple[float, ...], most: int) -> None:
    if not (len(weights) <= most and all(0 <= weight < math.inf for weight in weights) and sum(weights) > 0):
        raise ValueError(f"{name} should be up to {most} weights from 0, not all 0, found {_text(weights)}")


def _check_probs(**probs: float) -> None:
    for name, prob in probs.items():
        if not 0 <= prob <= 1:
            raise ValueError(f"{name} should be from 0 to 1, found {prob:g}")


def _text(numbers: Sequence[float]) -> str:
    return ":".join(f"{number:g}" for number in numbers)


# Steps


class Degradation(Protocol):
    """What makes LR, or a step of it. Subclass it as a frozen dataclass and write `apply`."""

    @property
    def scale(self) -> int:
        """By how much H and W become smaller; 1 for a step that keeps the size."""
        ...

    def __call__(self, image_B3HW: Tensor, seeds_B: Sequence[int | Sequence[int]]) -> Tensor:
        """The images degraded, as their 8-bit files would hold them: float32 sRGB in [0, 1], whole 1/255, same device.

        image_B3HW: float32 sRGB in [0, 1], any device; H and W become H / scale and W / scale. Not differentiable.
        seeds_B: a seed for each image, a whole number from 0 or several of them, such as (run's seed, sample's number).
        Raises UsageError where the scale does not divide H and W.
        """
        height, width = image_B3HW.shape[-2:]
        if height % self.scale or width % self.scale:
            raise UsageError(f"an image of {height}x{width} pixels is not a multiple of the scale, {self.scale}")
        # Not torch's generator: it takes seeds modulo 2^32, and draws other numbers on other devices.
        rngs_B = [np.random.default_rng(seed) for seed in seeds_B]
        with torch.no_grad(), torch.autocast(image_B3HW.device.type, enabled=False):
            return quantise(self.apply(image_B3HW, rngs_B))

    def apply(self, image_B3HW: Tensor, rngs_B: Sequence[np.random.Generator]) -> Tensor:
        """The same as one step of several: not rounded to 8 bits, each image drawing from its own generator."""
        ...


@dataclass(frozen=True)
class Bicubic(Degradation):
    """MATLAB's bicubic on 8-bit pixels (`curate.resize`): equal to the public LR files, sample for sample."""

    scale: int = 2

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def apply(self, image_B3HW: Tensor, rngs_B: Sequence[np.random.Generator]) -> Tensor:
        return to_float(downscale((quantise(image_B3HW) * 255).round().to(torch.uint8), self.scale))


@dataclass(frozen=True)
class Chain(Degradation):
    """Steps one after another, not rounded in between."""

    steps: tuple[Degradation, ...]

    @property
    def scale(self) -> int:
        return math.prod(step.scale for step in self.steps)

    def apply(self, image_B3HW: Tensor, rngs_B: Sequence[np.random.Generator]) -> Tensor:
        for step in self.steps:
            image_B3HW = step.apply(image_B3HW, rngs_B)
        return image_B3HW


@dataclass(frozen=True)
class Blur(Degradation):
    """A kernel of its own for each image (`curate.optics`): isotropic Gaussian, unless `kinds` says otherwise."""

    sigma: Range = (0.2, 3.0)  # px, along each axis of the kernel
    size: Whole = SIZES  # px, side of the kernel, odd
    kinds: Weights = (1.0,)  # how often iso, aniso, generalised_iso, generalised_aniso, plateau_iso, plateau_aniso come
    beta_generalised: Range = (0.5, 4.0)  # exponent; drawn below 1 half of the time, and above 1 the other
    beta_plateau: Range = (1.0, 2.0)  # the same
    sinc_prob: float = 0.0  # how often a sinc filter comes instead
    prob: float = 1.0  # how often there is a blur at all

    scale: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_range("sigma", self.sigma, LEAST_SIGMA)
        _check_range("size", self.size, 1)
        if not all(side % 2 for side in self.size):
            raise ValueError(f"size should be of odd sides, found {_text(self.size)}")
        _check_weights("kinds", self.kinds, len(KINDS))
        _check_around_1("beta_generalised", self.beta_generalised)
        _check_around_1("beta_plateau", self.beta_plateau)
        _check_probs(sinc_prob=self.sinc_prob, prob=self.prob)

    def apply(self, image_B3HW: Tensor, rngs_B: Sequence[np.random.Generator]) -> Tensor:
        return optics.filtered(image_B3HW, [self._kernel(rng) for rng in rngs_B])

    def _kernel(self, rng: np.random.Generator) -> Tensor:
        if rng.random() >= self.prob:
            return torch.ones(1, 1)
        size = _odd(rng, self.size)
        if rng.random() < self.sinc_prob:
            return optics.sinc(size, rng.uniform(math.pi / (3 if size < 13 else 5), math.pi))
        kind = KINDS[_pick(rng, self.kinds)]
        sigma_x, sigma_y = rng.uniform(*self.sigma, size=2)
        theta = rng.uniform(-math.pi, math.pi)
        if not kind.endswith("aniso"):
            sigma_y = sigma_x
        if kind.startswith("plateau"):
            return optics.plateau(size, sigma_x, sigma_y, theta, beta=_beta(rng, self.beta_plateau))
        beta = _beta(rng, self.beta_generalised) if kind.startswith("generalised") else 1.0
        return optics.gaussian(size, sigma_x, sigma_y, theta, beta=beta)


@dataclass(frozen=True)
class Noise(Degradation):
    """Gaussian noise, or shot noise, whose variance is proportional to the light; clamped to [0, 1]."""

    sigma: Range = (1.0, 30.0)  # of Gaussian noise, in 8-bit levels
    poisson_scale: Range = (0.05, 3.0)  # of shot noise, whose strength 1 is that of 256 photons for white
    poisson_prob: float = 0.0  # how often it is shot noise
    grey_prob: float = 0.0  # how often R, G and B get the same noise

    scale: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_range("sigma", self.sigma, 0)
        _check_range("poisson_scale", self.poisson_scale, 0)
        _check_probs(poisson_prob=self.poisson_prob, grey_prob=self.grey_prob)

    def apply(self, image_B3HW: Tensor, rngs_B: Sequence[np.random.Generator]) -> Tensor:
        noise_B3HW = [self._noise(image_13HW, rng) for image_13HW, rng in _each(image_B3HW, rngs_B)]
        return (image_B3HW + torch.cat(noise_B3HW)).clamp_(0, 1)

    def _noise(self, image_13HW: Tensor, rng: np.random.Generator) -> Tensor:
        poisson, grey = rng.random(2) < (self.poisson_prob, self.grey_prob)
        seen_1CHW = _grey(image_13HW) if grey else image_13HW
        if poisson:
            noise_1CHW = rng.uniform(*self.poisson_scale) * optics.shot_noise(seen_1CHW, rng)
        else:
            sigma = rng.uniform(*self.sigma) / 255
            normal_1CHW = torch.from_numpy(rng.standard_normal(seen_1CHW.shape, dtype=np.float32))
            noise_1CHW = sigma * normal_1CHW.to(image_13HW.device)
        return noise_1CHW.expand_as(image_13HW)


@dataclass(frozen=True)
class Jpeg(Degradation):
    """JPEG, 4:2:0, as libjpeg writes and reads it (`curate.jpeg`)."""

    quality: Whole = (30, 95)  # libjpeg's, 1 to 100

    scale: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_range("quality", self.quality, 1, 100)

    def apply(self, image_B3HW: Tensor, rngs_B: Sequence[np.random.Generator]) -> Tensor:
        return jpeg.compress(image_B3HW, [int(rng.integers(*self.quality, endpoint=True)) for rng in rngs_B])


# Second order


@dataclass(frozen=True)
class Resize:
    """How `SecondOrder` draws a size: larger, smaller or the same. Not a step for a batch, whose sizes would differ."""

    factor: Range = (0.15, 1.5)  # least and greatest
    updown: Weights = (0.2, 0.7, 0.1)  # how often it is above 1, below 1, and 1

    def __post_init__(self) -> None:
        _check_around_1("factor", self.factor)
        _check_weights("updown", self.updown, 3)

    def apply(self, image_13HW: Tensor, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
        """The image at the (height, width) of `size` times a factor, by a random one of `MODES`, not antialiased."""
        low, high = self.factor
        factor = rng.uniform(*((1.0, high), (low, 1.0), (1.0, 1.0))[_pick(rng, self.updown)])
        height, width = (max(1, int(side * factor)) for side in size)
        return _interpolated(image_13HW, (height, width), rng)


@dataclass(frozen=True)
class SecondOrder(Degradation):
    """Real-ESRGAN's degradation (Wang et al. 2021, figure 2) with its published settings.

    Two rounds of blur, resize, noise and JPEG, the second at about LR's size; last the resize to LR's size with a sinc
    filter, before or after the second JPEG. What differs from the published code: every sample draws for itself, JPEG
    is libjpeg's (pixels rounded to 8 bits, tables to whole steps, chroma interpolated), and flat crops get no more shot
    noise than others (`optics.PHOTONS`). Sharpening HR, the other half of the paper's recipe, is not done here.
    """

    scale: int = 4
    blur: Blur = Blur(sigma=(0.2, 3.0), kinds=MIX, sinc_prob=0.1)
    resize: Resize = Resize(factor=(0.15, 1.5), updown=(0.2, 0.7, 0.1))
    noise: Noise = Noise(sigma=(1.0, 30.0), poisson_scale=(0.05, 3.0), poisson_prob=0.5, grey_prob=0.4)
    jpeg: Jpeg = Jpeg(quality=(30, 95))
    blur2: Blur = Blur(sigma=(0.2, 1.5), kinds=MIX, sinc_prob=0.1, prob=0.8)
    resize2: Resize = Resize(factor=(0.3, 1.2), updown=(0.3, 0.4, 0.3))  # of LR's size
    noise2: Noise = Noise(sigma=(1.0, 25.0), poisson_scale=(0.05, 2.5), poisson_prob=0.5, grey_prob=0.4)
    jpeg2: Jpeg = Jpeg(quality=(30, 95))
    sinc_prob: float = 0.8  # how often a sinc filter follows the last resize

    def __post_init__(self) -> None:
        _check_scale(self.scale)
        _check_probs(sinc_prob=self.sinc_prob)

    def apply(self, image_B3HW: Tensor, rngs_B: Sequence[np.random.Generator]) -> Tensor:
        # One by one: after the first resize no two images have the same size.
        return torch.cat([self._one(image_13HW, rng) for image_13HW, rng in _each(image_B3HW, rngs_B)])

    def _one(self, image_13HW: Tensor, rng: np.random.Generator) -> Tensor:
        height, width = image_13HW.shape[-2:]
        lr_size = (height // self.scale, width // self.scale)
        image_13HW = self.blur.apply(image_13HW, [rng])
        image_13HW = self.resize.apply(image_13HW, (height, width), rng)
        image_13HW = self.noise.apply(image_13HW, [rng])
        image_13HW = self.jpeg.apply(image_13HW, [rng])
        image_13HW = self.blur2.apply(image_13HW, [rng])
        image_13HW = self.resize2.apply(image_13HW, lr_size, rng)
        image_13HW = self.noise2.apply(image_13HW, [rng])
        if rng.random() < 0.5:
            return self.jpeg2.apply(self._last_resize(image_13HW, lr_size, rng), [rng])
        return self._last_resize(self.jpeg2.apply(image_13HW, [rng]), lr_size, rng)

    def _last_resize(self, image_13HW: Tensor, lr_size: tuple[int, int], rng: np.random.Generator) -> Tensor:
        image_13HW = _interpolated(image_13HW, lr_size, rng)
        if rng.random() >= self.sinc_prob:
            return image_13HW
        return optics.filtered(image_13HW, [optics.sinc(_odd(rng, SIZES), rng.uniform(math.pi / 3, math.pi))])


# Drawing


def _each(image_B3HW: Tensor, rngs_B: Sequence[np.random.Generator]) -> Iterator[tuple[Tensor, np.random.Generator]]:
    """Batches of one image, with its generator."""
    for image_3HW, rng in zip(image_B3HW.unbind(), rngs_B, strict=True):
        yield image_3HW[None], rng


def _pick(rng: np.random.Generator, weights: Sequence[float]) -> int:
    ends = list(accumulate(weights))
    return bisect(ends, rng.random() * ends[-1], hi=len(ends) - 1)


def _odd(rng: np.random.Generator, sizes: tuple[int, int]) -> int:
    return 2 * int(rng.integers(sizes[0] // 2, sizes[1] // 2, endpoint=True)) + 1


def _beta(rng: np.random.Generator, ends: tuple[float, float]) -> float:
    return rng.uniform(ends[0], 1) if rng.random() < 0.5 else rng.uniform(1, ends[1])


def _interpolated(image_13HW: Tensor, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    return F.interpolate(image_13HW, size=size, mode=MODES[rng.integers(len(MODES))])


def _grey(image_B3HW: Tensor) -> Tensor:
    """The BT.601 mean of R, G and B, in [0, 1]."""
    red_B1HW, green_B1HW, blue_B1HW = image_B3HW.chunk(3, dim=1)
    return 0.299 * red_B1HW + 0.587 * green_B1HW + 0.114 * blue_B1HW


# Specs


def parse(spec: str, scale: int) -> Degradation:
    """The degradation that a spec names, from HR to LR `scale` times smaller.

    spec: `name:option=value,option=value`, or several such joined by `+`, the first done first; a range is `low:high`
    or one number, weights are `a:b:c`, an option of a part is `part.option`. Where neither `bicubic` nor `second_order`
    is named, `bicubic` comes after the blurs at the front: the order of the classical model.
    Raises UsageError for an unknown name or option, a value that does not fit, and two steps that shrink.
    """
    steps = [_step(part, scale) for part in re.split(r"\+(?=[A-Za-z_])", spec)]
    shrinking = sum(isinstance(step, Bicubic | SecondOrder) for step in steps)
    if shrinking > 1:
        raise UsageError(
            f"'{one_line(spec)}' shrinks {shrinking} times; one of bicubic, second_order can be named, once"
        )
    if not shrinking:
        steps.insert(sum(1 for _ in takewhile(lambda step: isinstance(step, Blur), steps)), Bicubic(scale))
    return steps[0] if len(steps) == 1 else Chain(tuple(steps))


def _step(spec: str, scale: int) -> Degradation:
    name = spec.partition(":")[0]
    defaults: dict[str, Degradation] = {
        "bicubic": Bicubic(scale),
        "blur": Blur(),
        "jpeg": Jpeg(),
        "noise": Noise(),
        "second_order": SecondOrder(scale),
    }
    if name not in defaults:
        raise UsageError(f"no degradation '{one_line(name)}'; there are: {listed(defaults)}{meant(name, defaults)}")
    given = given_in(spec)
    valid = set(_option_names(defaults[name])) - {"scale"}
    if unknown := given.keys() - valid:
        has = f"it has: {listed(valid)}{meant(min(unknown), valid)}"
        raise UsageError(f"degradation '{name}' has no option '{one_line(listed(unknown))}'; {has}")
    return _changed(defaults[name], given, name)


def _option_names(options: Any) -> Iterator[str]:
    """Names of fields, and `part.name` of those of a field that is itself a dataclass."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            yield from (f"{field.name}.{name}" for name in _option_names(value))
        else:
            yield field.name


def _changed(options: _T, texts: Mapping[str, str], name: str) -> _T:
    """`options` with the values that `texts` gives."""
    values: dict[str, Any] = {**vars(options), **texts}
    for part in {text.partition(".")[0] for text in texts if "." in text}:
        own = {text.removeprefix(f"{part}."): values.pop(text) for text in texts if text.startswith(f"{part}.")}
        values[part] = _changed(getattr(options, part), own, f"{name}.{part}")
    try:
        return pydantic.TypeAdapter(type(options)).validate_python(values)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        option = str(next(iter(problem["loc"]), ""))
        reason = str(problem["ctx"]["error"]) if "error" in problem.get("ctx", {}) else problem["msg"]
        found = f"option '{option}' {reason}, not '{texts[option]}'" if option else reason
        raise UsageError(f"degradation '{name}': {one_line(found)}") from None
