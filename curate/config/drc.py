"""Options of `curate drc`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from curate.config.options import Config
from curate.errors import UsageError

__all__ = ["DrcConfig"]

_RATES = ("rate", "arch_rate", "layer_rate", "finetune_rate")


@dataclass(frozen=True)
class DrcConfig(Config):
    """How to compress: the defaults are DRC's (Guo et al.) where these are published; it takes days on a GPU."""

    ratio: Annotated[
        float, "Share of each unit's maps that is to go; what stays is a multiple of 4, and a search may take more."
    ] = 0.3
    numbers: Annotated[
        Literal["search", "darts", "uniform"],
        "How many maps of each unit stay: searched, searched with weights of each candidate's own, or the same share.",
    ] = "search"
    channels: Annotated[str | None, "These are known: numbers such as 12.20.36, or a .txt file; no search."] = None
    criterion: Annotated[
        Literal["greedy", "l1", "thinet", "random"],
        "Which ones: one by one by the loss's gradient (DRC), the largest weights, what rebuilds the output, any.",
    ] = "greedy"
    importance: Annotated[
        bool, "A search ranks a unit's maps by their weights first; without it the first ones stay."
    ] = True
    dual: Annotated[float, "Weight of the dual regression loss; 0 for none."] = 0.1
    batch_size: Annotated[int, "Crops a step of search and selection."] = 16
    crop: Annotated[int, "Side of their crops, HR px."] = 192
    degrade: Annotated[str, "How LR is made: bicubic, blur, second_order, ..."] = "bicubic"
    search_steps: Annotated[int, "Of the search; each updates numbers on one half and weights on the other."] = 2_500
    rate: Annotated[float, "Step size of the search's weights (Adam, cosine)."] = 1e-4
    arch_rate: Annotated[float, "Step size of the search's numbers (Adam)."] = 3e-4
    arch_decay: Annotated[float, "Weight decay of the search's numbers (L2)."] = 1e-3
    clip: Annotated[float, "Largest norm of the gradient of the search's weights; 0 for none."] = 5.0
    patches: Annotated[int, "Crops that a selection looks at."] = 160
    per_pass: Annotated[int, "Maps chosen between two looks; more than the paper's 1 is faster."] = 1
    feature_weight: Annotated[float, "Of the distance to the unpruned layer's output in a selection."] = 1.0
    layer_rate: Annotated[float, "Step size of a layer's weights after each choice (SGD); 0 leaves them."] = 5e-5
    finetune_steps: Annotated[int, "Of the training that follows; 0 for none."] = 500_000
    finetune_rate: Annotated[float, "Its step size (cosine)."] = 1e-4
    finetune_batch_size: Annotated[int, "Its crops a step."] = 32
    finetune_crop: Annotated[int, "Side of its crops, HR px."] = 192
    optimizer: Annotated[Literal["adam", "adamw", "soap"], "Of that training."] = "adam"
    teacher_weight: Annotated[float, "Of the distance to a teacher (--teacher) in that training."] = 1.0
    teacher_by: Annotated[Literal["features", "answer"], "What is compared with the teacher's."] = "features"
    precision: Annotated[Literal["fp32", "bf16"], "Of the network's products."] = "fp32"
    seed: Annotated[int, "Of halves, order, crops, flips and fresh weights."] = 0
    log_every: Annotated[int, "Steps between two points of the curves."] = 100
    validate_every: Annotated[int, "Steps of the training between two validations."] = 1000
    save_every: Annotated[int, "Steps between two states to resume from."] = 1000

    _least: ClassVar[Mapping[str, float]] = {
        "dual": 0,
        "batch_size": 1,
        "crop": 1,
        "search_steps": 1,
        "arch_decay": 0,
        "clip": 0,
        "patches": 1,
        "per_pass": 1,
        "feature_weight": 0,
        "finetune_steps": 0,
        "finetune_batch_size": 1,
        "finetune_crop": 1,
        "teacher_weight": 0,
        "seed": 0,
        "log_every": 1,
        "validate_every": 1,
        "save_every": 1,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio < 1:
            raise UsageError(f"ratio should be above 0 and below 1, found {self.ratio}")
        for name in _RATES:
            least = "0 or more" if name == "layer_rate" else "above 0"
            found = getattr(self, name)
            if not (0 <= found < 1 and (found or name == "layer_rate")):
                raise UsageError(f"{name} should be {least} and below 1, found {found}")
        if self.patches % self.batch_size:
            raise UsageError(f"patches should be a multiple of batch_size {self.batch_size}, found {self.patches}")
