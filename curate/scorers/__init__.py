"""Scorers give numbers to patches. One file each; the file's name is the scorer's name.

A scorer is a frozen dataclass of options that subclasses one of two bases:
    MapScorer    draws maps over the whole image; a patch's scores are made of the maps' means over its window
    PatchScorer  needs each window as a whole
Neither knows the store. Map scorers are preferred: one pass serves every overlapping window, and no window's border
gets into its score.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

from curate import plugins

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    TensorFunction = Callable[[Tensor], Tensor]

__all__ = ["MapScorer", "PatchScorer", "Scorer"]


class Scorer(ABC):
    """What both kinds have."""

    columns: ClassVar[tuple[str, ...]]  # names of the K scores
    vector: ClassVar[bool] = False  # whether the K numbers are one column, a list of fixed size, under the one name
    version: ClassVar[int]  # raise it when the same options begin to give other numbers
    large: ClassVar[bool] = False  # one image takes all processors and much memory: no two at a time on a CPU

    def on(self, device: "torch.device") -> Self:
        """The scorer as it runs on a device: what its options leave open is settled, so that `identity` tells it."""
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the numbers, JSON-able: all options, with the hash of a file's content in place of its path."""
        return plugins.options_of(self)

    @abstractmethod
    def build(self, device: "torch.device") -> "TensorFunction":
        """The scorer as a function, with its weights on `device`."""


class MapScorer(Scorer):
    """Draws K maps over an image."""

    reach: ClassVar[int | None] = None  # px around a pixel that decide its values, maps of full size; None: unknown

    @abstractmethod
    def build(self, device: "torch.device") -> "TensorFunction":
        """Returns image_BCHW (float32 sRGB in [0, 1], C = 3, H and W multiples of 12) -> maps_BKHW (float32).

        Maps of H / n rows and W / n columns do too, n a factor of 12: each of their pixels stands for n x n px.
        Where `reach` is known the image may come as strips of any height above it: what fits a processor's cache is
        done in half of the time.
        """

    def finish(self, means_NK: "Tensor") -> "Tensor":
        """The scores of N windows from the maps' means over them (float64): a variance from a mean of squares, ..."""
        return means_NK


class PatchScorer(Scorer):
    """Scores windows one by one."""

    @abstractmethod
    def build(self, device: "torch.device") -> "TensorFunction":
        """Returns patches_BCHW (float32 sRGB in [0, 1], C = 3) -> scores_BK (float32)."""
