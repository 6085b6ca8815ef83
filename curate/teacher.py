"""Knowledge distillation: a trained network, the teacher, beside one that is trained, and how far the two are apart.

    features    the mean squared error of the maps that enter the last layer (`Arch.tail`), each the mean over channels:
                two networks of any widths can be compared, if their maps are of one size (DRC, Guo et al.)
    answer      the mean absolute error of the answers, in the student's range of values

Axes in names: B batch, C channels, H height, W width.
"""

from typing import Literal

import torch
from torch import Tensor

from curate import plugins
from curate.archs import Arch
from curate.checkpoint import Checkpoint
from curate.config import TrainConfig
from curate.dual import Answer, Regression
from curate.errors import UsageError

__all__ = ["Teacher", "check_teacher"]

_NAMES = ("teacher_weight", "teacher_by")


def check_teacher(student: Arch, config: TrainConfig, teacher: Checkpoint | None) -> None:
    """UsageError for a teacher that cannot be one of `student`, and for options of one where there is none."""
    if teacher is None:
        plain = TrainConfig(steps=1)
        if given := [name for name in _NAMES if getattr(config, name) != getattr(plain, name)]:
            raise UsageError(f"{given[0]} goes with a teacher; name its checkpoint with --teacher")
        return
    arch = teacher.arch
    for name, own, other in (("scale", student.scale, arch.scale), ("colour", student.colour, arch.colour)):
        if own != other:
            found = f"{plugins.spec_of(arch)} has {name} {other}"
            raise UsageError(f"a teacher of {plugins.spec_of(student)} should have {name} {own}: {found}")
    for one in (student, arch):
        if config.teacher_by == "features" and one.tail is None:
            found = f"{plugins.spec_of(one)} does not say which layer is its last"
            raise UsageError(f"{found}, whose maps a teacher is compared by; train with --teacher-by answer")


class Teacher:
    """A trained network that is asked, and does not change."""

    def __init__(
        self, checkpoint: Checkpoint, student: Arch, by: Literal["features", "answer"], device: torch.device
    ) -> None:
        self.arch = checkpoint.arch
        self.student = student
        self.watched = by == "features"
        net = Regression(self.arch, checkpoint.module(), watched=self.watched).requires_grad_(False)
        self.net = _settled(net).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = device

    def check(self, whole: Regression, side: int) -> None:
        """UsageError where the maps of the network that is trained have another size, for LR of `side` px."""
        if not self.watched:
            return
        lr_BCHW = torch.zeros(1, 1 if self.student.colour == "y" else 3, side, side, device=self.device)
        with torch.no_grad():
            maps_BHW = _settled(whole)(lr_BCHW).maps_BHW
            whole.train()
        own, other = maps_BHW.shape[1:], self(lr_BCHW).shape[1:]
        if own != other:
            sizes = " and ".join(f"{width}x{height}" for height, width in (own, other))
            names = f"{plugins.spec_of(self.student)} and its teacher {plugins.spec_of(self.arch)}"
            raise UsageError(f"the last maps of {names} have different sizes, {sizes}; train with --teacher-by answer")

    @torch.no_grad()
    def __call__(self, lr_BCHW: Tensor) -> Tensor:
        """What the student should resemble: maps_BHW, or sr_BCHW, in the student's range of values; float32."""
        factor = self.arch.peak / self.student.peak
        answer = self.net(lr_BCHW * factor).float()
        wanted: Tensor = answer.maps_BHW if self.watched else answer.srs[-1] / factor
        return wanted

    def distance(self, answer: Answer, wanted: Tensor) -> Tensor:
        """How far each sample's answer is from what this teacher makes of it, as B."""
        if not self.watched:
            return (answer.srs[-1] - wanted).abs().flatten(1).mean(1)
        assert answer.maps_BHW is not None
        return (answer.maps_BHW - wanted).square().flatten(1).mean(1)


def _settled(whole: Regression) -> Regression:
    """In eval mode, but as large as in training: SwinIR fills its windows up by less then, as the outermost module."""
    whole.eval()
    whole.net.training = True
    return whole
