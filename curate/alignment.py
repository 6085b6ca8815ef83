"""One picture in another: is this photograph, cropped, resized, turned or encoded again, a part of that one?

Local features (SIFT, Lowe 2004, by OpenCV; compared as RootSIFT, Arandjelovic and Zisserman 2012) propose where a
picture may lie in another one, RANSAC keeps the placement that most of them agree on, and the pixels decide.

Pictures here are grey_HW, uint8. A placement maps x, y of picture A to picture B by a similarity: scale, turn, shift.
Mirrored pictures are not found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan2, ceil, degrees, hypot, sqrt

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["Agreement", "Features", "Index", "Placement", "agreement", "correlation", "features", "grey", "shrink"]

_DENSITY = 4e-3  # features kept for a pixel: 37 in a crop of 96x96 px
_FEWEST = 300  # features of a small picture
_AREA = 2**21  # px, of a picture that features are looked for in: 0.5 GB; a larger one is made smaller first
_CONTRAST = 0.01  # of a feature; OpenCV's 0.04 leaves smooth photographs without any
_NEAR = 0.45  # distance of two RootSIFT descriptors (0 to 1.41) up to which they may show the same thing
_NEIGHBOURS = 3  # descriptors of the index that each is compared with
_TREES, _CHECKS = 4, 64  # of the search among descriptors, which is approximate
_REPROJECTION = 3.0  # px between where a feature is and where a placement puts it
_INLIERS = 6  # features that a placement needs to be looked at; the pixels decide
_PLACEMENTS = 5  # pictures of the index whose pixels are looked at, for one picture
_SCALE = 16.0  # px of one picture for a px of the other, at most: beyond it many features have met one place
_SMOOTHING = 1.5  # px of the coarser picture, blurred before pixels are compared: half a px of shift does not count
_SIDE = 512  # px, longest side of the grid on which they are
_FLAT = 1e-2  # product of two standard deviations, in grey values, below which there is nothing to correlate

_Grey = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Features:
    """What is recognisable in a picture."""

    points_N2: npt.NDArray[np.float32]  # x, y in px
    descriptors_ND: npt.NDArray[np.float32]  # RootSIFT, of length 1


@dataclass(frozen=True, slots=True)
class Placement:
    """Where picture A lies in picture B."""

    matrix_23: npt.NDArray[np.float64]  # (x, y) of B = matrix_23 @ (x, y, 1) of A
    inliers: int  # pairs of features that agree on it

    @property
    def scale(self) -> float:
        """Px of B for a px of A."""
        return hypot(self.matrix_23[0, 0], self.matrix_23[1, 0])

    @property
    def degrees(self) -> float:
        """How far A is turned in B, clockwise as seen, -180 to 180."""
        return degrees(atan2(self.matrix_23[1, 0], self.matrix_23[0, 0]))

    def inverse(self) -> "Placement":
        """Where B lies in A."""
        return Placement(np.asarray(cv2.invertAffineTransform(self.matrix_23), np.float64), self.inliers)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well two pictures agree where they overlap."""

    correlation: float  # Pearson's, of the smoothed pixels that both have; 0 if they have too few, or flat ones
    share_a: float  # of A's pixels that lie in B, 0 to 1
    share_b: float


def grey(pixels_HW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """RGB, uint8, as grey_HW."""
    return np.asarray(cv2.cvtColor(pixels_HW3, cv2.COLOR_RGB2GRAY), np.uint8)


def features(grey_HW: npt.NDArray[np.uint8]) -> Features:
    """The strongest features of a picture; as many as its size gives, none of a flat one."""
    factor = min(1.0, sqrt(_AREA / grey_HW.size))
    small_HW = grey_HW
    if factor < 1:
        height, width = (max(1, round(side * factor)) for side in grey_HW.shape)
        small_HW = np.asarray(cv2.resize(grey_HW, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    count = max(_FEWEST, ceil(_DENSITY * small_HW.size))
    sift = cv2.SIFT.create(nfeatures=count, contrastThreshold=_CONTRAST)
    points, sift_ND = sift.detectAndCompute(small_HW, None)
    if sift_ND is None:
        return Features(np.empty((0, 2), np.float32), np.empty((0, 128), np.float32))
    root_ND = np.sqrt(sift_ND / np.maximum(sift_ND.sum(1, keepdims=True), 1e-7))
    sides = np.array([grey_HW.shape[axis] / small_HW.shape[axis] for axis in (1, 0)])
    places_N2 = (np.array([point.pt for point in points]) + 0.5) * sides - 0.5
    return Features(places_N2.astype(np.float32), root_ND.astype(np.float32))


class Index:
    """The features of many pictures A, to be found in pictures B."""

    def __init__(self, pictures: Sequence[Features]) -> None:
        self._points_N2 = np.concatenate([picture.points_N2 for picture in pictures])
        self._owner_N = np.repeat(np.arange(len(pictures)), [len(picture.points_N2) for picture in pictures])
        self._size = len(pictures)
        if not len(self._points_N2):
            return
        descriptors_ND = np.concatenate([picture.descriptors_ND for picture in pictures])
        cv2.setRNGSeed(0)  # the trees are random: the same pictures give the same ones
        kd_trees: dict[str, bool | int | float | str] = {"algorithm": 1, "trees": _TREES}
        self._matcher = cv2.FlannBasedMatcher(kd_trees, {"checks": _CHECKS})
        self._matcher.add([descriptors_ND])
        self._matcher.train()

    def find(self, picture: Features) -> list[tuple[int, Placement]]:
        """Numbers of the pictures A that may lie in `picture` as B, and where; the likeliest first."""
        if not len(picture.points_N2) or not len(self._points_N2):
            return []
        matches = self._matcher.knnMatch(picture.descriptors_ND, k=min(_NEIGHBOURS, len(self._points_N2)))
        near = [(match.trainIdx, match.queryIdx) for row in matches for match in row if match.distance < _NEAR]
        if not near:
            return []
        ours, theirs = np.array(near).T
        owner = self._owner_N[ours]
        found = []
        for number in np.flatnonzero(np.bincount(owner, minlength=self._size) >= _INLIERS):
            own = owner == number
            placement = _placement(self._points_N2[ours[own]], picture.points_N2[theirs[own]])
            if placement is not None:
                found.append((int(number), placement))
        return sorted(found, key=lambda item: (-item[1].inliers, item[0]))[:_PLACEMENTS]


def _placement(a_N2: npt.NDArray[np.float32], b_N2: npt.NDArray[np.float32]) -> Placement | None:
    """The similarity that most pairs of points agree on; None if too few do."""
    matrix, agrees = cv2.estimateAffinePartial2D(
        a_N2, b_N2, method=cv2.RANSAC, ransacReprojThreshold=_REPROJECTION, maxIters=1000, confidence=0.999
    )
    if matrix is None or not 1 / _SCALE <= hypot(matrix[0, 0], matrix[1, 0]) <= _SCALE:  # NaN is neither
        return None
    # One feature of A that is near many of B is one witness, not many: a repeated or collapsed match is none.
    witnesses = min(len(np.unique(points[agrees.ravel() > 0], axis=0)) for points in (a_N2, b_N2))
    return Placement(np.asarray(matrix, np.float64), witnesses) if witnesses >= _INLIERS else None


def agreement(
    a_HW: npt.NDArray[np.uint8], b_HW: npt.NDArray[np.uint8], placement: Placement, *, fewest: int = 24
) -> Agreement:
    """Compare the pixels of A and B where a placement lays them upon each other.

    On the grid of the coarser picture, or a coarser one still. `fewest`: the overlap should be so many px of it high
    and wide, or the correlation is 0.
    """
    if placement.scale < 1:  # B is the coarser one
        turned = agreement(b_HW, a_HW, placement.inverse(), fewest=fewest)
        return Agreement(turned.correlation, turned.share_b, turned.share_a)
    factor = min(1.0, _SIDE / max(a_HW.shape))
    ours_HW, to_a_33 = _smooth(a_HW, factor)
    theirs_HW, to_b_33 = _smooth(b_HW, factor / placement.scale)
    across_33 = to_b_33 @ np.vstack([placement.matrix_23, [0, 0, 1]]) @ np.linalg.inv(to_a_33)
    size = (ours_HW.shape[1], ours_HW.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    laid_HW = np.asarray(cv2.warpAffine(theirs_HW, across_33[:2], size, flags=flags), np.float32)
    inside_HW = cv2.warpAffine(np.ones_like(theirs_HW), across_33[:2], size, flags=flags) > 0.999
    common = int(inside_HW.sum())
    share_a, share_b = common / inside_HW.size, min(1.0, common / theirs_HW.size)
    if min(inside_HW.any(axis).sum() for axis in (0, 1)) < fewest * factor:
        return Agreement(0.0, share_a, share_b)
    return Agreement(correlation(ours_HW[inside_HW], laid_HW[inside_HW]), share_a, share_b)


def _smooth(grey_HW: npt.NDArray[np.uint8], factor: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """A smoothed picture at `factor` of its size (1 or less), and the map of px centres from the old grid to its."""
    height, width = (max(1, round(side * factor)) for side in grey_HW.shape)
    by_y, by_x = height / grey_HW.shape[0], width / grey_HW.shape[1]
    centres_33 = np.array([[by_x, 0, by_x / 2 - 0.5], [0, by_y, by_y / 2 - 0.5], [0, 0, 1]])
    smooth_HW = cv2.GaussianBlur(shrink(grey_HW, height, width), (0, 0), _SMOOTHING)
    return np.asarray(smooth_HW, np.float32), centres_33


def shrink(grey_HW: _Grey, height: int, width: int) -> npt.NDArray[np.float32]:
    """A picture at another, smaller size, each new px the mean of the old ones under it; grey values, float32."""
    small_HW = cv2.resize(grey_HW.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small_HW, np.float32)


def correlation(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Pearson's correlation of two arrays of one shape, -1 to 1; 0 if one of them is flat."""
    ours, theirs = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    spread = float(ours.std() * theirs.std())
    return 0.0 if spread < _FLAT else float(((ours - ours.mean()) * (theirs - theirs.mean())).mean() / spread)
