"""A manifest in two parts: one trains a search's weights, the other tells its architecture what they are worth.

They share no photograph, or the architecture would be praised for what the weights have learnt by heart.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from curate.errors import UsageError, counted
from curate.manifest import Manifest

__all__ = ["Parts", "parts"]


class Parts(NamedTuple):
    """Windows of the same store, in the manifest's order."""

    training: Manifest
    architecture: Manifest


def parts(manifest: Manifest, share: float, seed: int) -> Parts:
    """Photographs drawn by the seed, until about `share` of the patches is reached, are the architecture's part.

    Both parts have at least one photograph. UsageError for a manifest with patches of one alone, or of none.
    """
    ids, of_W = np.unique(manifest.table["image_id"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    if len(ids) < 2:
        asked = "a search should have patches of two photographs or more, to split them"
        raise UsageError(f"{asked}; found {counted(len(manifest), 'patch')} of {counted(len(ids), 'photograph')}")
    order = np.random.default_rng([seed, len(ids)]).permutation(len(ids))
    before = np.concatenate([[0], np.bincount(of_W)[order].cumsum()[:-1]])  # patches of the photographs drawn before
    taken = max(1, min(len(ids) - 1, int((before < share * len(of_W)).sum())))
    held_W = np.isin(of_W, order[:taken])
    return Parts(
        *(Manifest(manifest.table.filter(pa.array(of)), manifest.recipe, manifest.path) for of in (~held_W, held_W))
    )
