"""Network architectures, one file each: what an Arch is.

An Arch is a frozen dataclass of hyper-parameters that builds a super-resolution network. Its file's name is its name:
`srcnn:scale=3` is `curate/archs/srcnn.py`, built with scale=3. Every field has a default, so that the bare name builds.
The first line of the module's docstring is what `curate archs` shows. Nothing here imports torch.

Axes in names: B batch, C channels (1 where `colour` is y, 3 where it is rgb), H height, W width.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from curate import plugins
from curate.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from curate.units import PrunableUnit

__all__ = ["Arch", "check_side"]


class Arch(Protocol):
    """What training, evaluation and checkpoints need of an architecture. Subclass it: `adapt`, `infer` come along."""

    scale: int  # output height / input height, and the same for width

    least: ClassVar[int] = 1  # px, the shortest side of an input that the network can take
    hfen: ClassVar[float] = 0.0  # weight of HFEN (`curate.losses`) in the loss that its authors trained it by

    tail: ClassVar[str | None] = None  # the last layer that sees feature maps: where a teacher's are compared

    @property
    def outputs(self) -> tuple[int, ...]:
        """Scales of the images that the network makes, the last one `scale`.

        Where these are several, `build().scales(lr_BCHW)` gives them all, and calling the network the last one.
        """
        return (self.scale,)

    @property
    def dual_features(self) -> int:
        """Maps within the dual networks that its authors train it with (`curate.dual`)."""
        return 16

    @property  # as a ClassVar, or as an option where public networks of one name differ in it
    def colour(self) -> Literal["y", "rgb"]:
        """y: BT.601 studio luma, [16, 235] / 255 of `peak`; rgb: sRGB, [0, peak]."""
        ...

    @property
    def peak(self) -> float:
        """What white of an 8-bit image (255) is in the network's input and output: 1.0 or 255.0."""
        ...

    def build(self) -> "nn.Module":
        """A fresh network lr_BCHW float32 -> sr_BCHW float32, H and W times `scale`, any H and W.

        Values run up to `peak` on both sides; the output is not clamped. Initial weights are drawn from torch's
        current random generator, so that the caller's seed decides them.
        """
        ...

    def adapt(self, state: "dict[str, Tensor]") -> "dict[str, Tensor]":
        """A public checkpoint's tensors under the names and shapes of `build().state_dict()`.

        Names that are not known to it are passed on, for the caller to refuse. Raises DataError where a known name
        has a shape that cannot be.
        """
        return state

    def infer(self, state: "dict[str, Tensor]") -> dict[str, Any]:
        """The options that the shapes of an adapted state tell, whatever our own are; {} if they fit no variant.

        None for an option that no shape tells, and whose default would be a guess: whoever loads it is asked for it.
        """
        return {}

    def prunable(self) -> "tuple[PrunableUnit, ...]":
        """The units of the network that can be pruned, in the order of a config; their widths before any is.

        An arch that has some has an option `config` too, and builds the network that it says.
        """
        return ()


def check_side(arch: Arch, side: int, what: str) -> None:
    """UsageError for HR squares of `side` px, named by `what`, whose LR is smaller than the network can take."""
    least = arch.scale * arch.least
    if side < least:
        takes = f"{plugins.shown(arch)} takes LR of {arch.least} px or more a side"
        raise UsageError(f"{takes}: {what} should be {least} px or more, found {side}, in LR {side // arch.scale}")
