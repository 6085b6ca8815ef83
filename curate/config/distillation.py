"""Options of `curate distill`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from curate.config.options import Config
from curate.errors import UsageError, one_line

__all__ = ["DistillConfig"]


@dataclass(frozen=True)
class DistillConfig(Config):
    """How to distil a manifest's patches into a few new ones."""

    patches: Annotated[int | None, "How many to make."] = None
    bytes: Annotated[int | None, "Or: the bytes that they may take in the store."] = None
    size: Annotated[int, "Their side, HR px; real patches are crops of this size."] = 96
    space: Annotated[
        Literal["pixel", "vae", "ldm"], "What is changed: pixels, latents, or what a diffusion starts at."
    ] = "pixel"
    model: Annotated[str | None, "A folder or hub name of diffusers, for vae and ldm (the bundled one)."] = None
    residual: Annotated[
        bool, "Add to what is decoded the details that the autoencoder lost of the patch at the start."
    ] = True
    injection: Annotated[
        Literal["code", "paper"], "Of the latents into the diffusion, as LD3M's code or paper has it."
    ] = "code"
    sampling: Annotated[int, "Steps of the diffusion."] = 10
    guidance: Annotated[float, "Of a conditional denoiser away from the null condition; 1 for none."] = 1.0
    objective: Annotated[Literal["dc", "dm", "mtt"], "Match gradients, distributions of features, or trajectories."] = (
        "dc"
    )
    arch: Annotated[str, "The matching network."] = "fsrcnn:scale=2,d=32,s=8,m=1"
    distance: Annotated[Literal["cos", "mse", "both"], "Of gradients (dc)."] = "cos"
    statistics: Annotated[Literal["mean", "moments", "fourier", "all"], "Of features (dm)."] = "all"
    groups: Annotated[Literal["cluster", "image", "none"], "What stands for classes."] = "cluster"
    clusters: Annotated[int, "How many."] = 10
    start: Annotated[
        Literal["random", "rank"], "Which real patches to begin with: drawn, or the manifest's first ones."
    ] = "random"
    pool: Annotated[int, "Real patches to compare with, held in memory as 8 bits."] = 4096
    batch_size: Annotated[int, "Synthetic patches a step (of dc and dm; of each inner step of mtt)."] = 32
    real_batch: Annotated[int, "Real patches a step."] = 64
    steps: Annotated[int, "Steps of the patches."] = 500
    optimizer: Annotated[Literal["adam", "sgd"], "Of the patches."] = "adam"
    rate: Annotated[
        float, "Step size: of adam about what a value moves a step, in [0, 1] or latents of deviation 1."
    ] = 0.003
    momentum: Annotated[float, "Of sgd."] = 0.5
    net_every: Annotated[int, "Steps between two fresh matching networks (dc, dm)."] = 20
    net_steps: Annotated[int, "Each is trained by a random number of steps on real patches, up to this one."] = 60
    net_rate: Annotated[float, "Step size of that (Adam)."] = 1e-3
    experts: Annotated[int, "Networks trained on real patches (mtt)."] = 4
    expert_epochs: Annotated[int, "Passes of each over the pool."] = 20
    expert_rate: Annotated[float, "Step size of that (plain SGD)."] = 0.1
    expert_batch: Annotated[int, "Real patches a step of that."] = 64
    ahead: Annotated[int, "Epochs of an expert that a trajectory is to cover."] = 2
    latest: Annotated[int, "The last epoch of an expert at which one may start."] = 10
    inner_steps: Annotated[int, "Steps on synthetic patches that are to cover them."] = 20
    form: Annotated[Literal["full", "constant"], "Of a trajectory's gradient: exact, or in the memory of one step."] = (
        "full"
    )
    teacher: Annotated[str | None, "A checkpoint whose answers stand for HR."] = None
    chunk: Annotated[int, "Patches that are decoded at a time; halved where memory does not suffice."] = 16
    seed: Annotated[int, "Of all that is drawn."] = 0
    log_every: Annotated[int, "Steps between two points of the curves."] = 50
    save_every: Annotated[int, "Steps between two states to resume from, and pictures."] = 200

    _least: ClassVar[Mapping[str, float]] = {
        "patches": 1,
        "bytes": 1,
        "size": 12,
        "sampling": 2,
        "guidance": 0,
        "clusters": 1,
        "pool": 1,
        "batch_size": 1,
        "real_batch": 1,
        "steps": 0,
        "net_every": 1,
        "net_steps": 0,
        "experts": 1,
        "expert_epochs": 1,
        "expert_batch": 1,
        "ahead": 1,
        "latest": 0,
        "inner_steps": 1,
        "chunk": 1,
        "seed": 0,
        "log_every": 1,
        "save_every": 1,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.patches is None) == (self.bytes is None):
            found = "neither" if self.patches is None else f"{self.patches} patches and {self.bytes} bytes"
            raise UsageError(f"a budget should be given, in patches or in bytes, found {found}")
        if self.size % 12:
            raise UsageError(f"size should be a multiple of 12 px, so that x2, x3 and x4 divide it, found {self.size}")
        for name in ("rate", "net_rate", "expert_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"{name} should be above 0, found {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum should be 0 or more and below 1, found {self.momentum}")
        if self.latest + self.ahead > self.expert_epochs:
            asked = f"{self.ahead} epochs from epoch {self.latest}"
            raise UsageError(f"experts of {self.expert_epochs} epochs have no {asked}: give more --expert-epochs")
        if self.teacher is not None and self.objective == "dm":
            raise UsageError("a teacher's labels go with dc and mtt: dm does not look at HR")
        if self.model is not None and self.space == "pixel":
            raise UsageError(f"a model goes with the spaces vae and ldm, found {one_line(self.model)} and pixel")
