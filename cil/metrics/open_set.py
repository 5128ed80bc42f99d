"""Open-set recognition: telling images of known classes from those of classes that were never learned."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cil.errors import DataError
from cil.metrics._arrays import Floats, check_same_shape, floats
from cil.metrics.multilabel import average_precision

ACCEPTED = 0.95  # share of the known images that the threshold of ``fpr95`` accepts


class OpenSet(NamedTuple):
    """Fractions in [0, 1]; NaN without known or without unknown images.

    Attributes:
        auroc: Chance that a known image has a higher score than an unknown one, ties half; 0.5 is a guess.
        fpr95: Unknown images accepted at the highest threshold that accepts 95 % of the known ones; less is better.
        aupr_unknown, aupr_known: Average precision of finding the unknown, and the known images.
        oscr: Area under the share of known images that are accepted and answered rightly, against the share of
            unknown ones that are accepted. At most ``auroc``, and at most the accuracy on the known images.
    """

    auroc: float
    fpr95: float
    aupr_unknown: float
    aupr_known: float
    oscr: float


def open_set(known: ArrayLike, correct: ArrayLike, unknown: ArrayLike) -> OpenSet:
    """How well a score tells known images from unknown ones.

    Args:
        known: (n,) score of each image of a known class, higher for more surely known: the maximum logit, for example.
        correct: (n,) true where its class was answered rightly.
        unknown: (m,) score of each image of a class that was not learned.

    Raises:
        DataError: if a score is NaN.
        ShapeError: if ``known`` and ``correct`` differ in length.

    Source: Dhamija et al. 2018 for OSCR, here from (0, 0) to (1, accuracy): widely copied code adds a point (1, 1) and
    leaves out one image. Vaze et al. 2022 for the maximum logit as score.

    >>> open_set([5, 4, 3, 1], [True, True, False, True], [2, 0.5])
    OpenSet(auroc=0.875, fpr95=0.5, aupr_unknown=0.8333333333333333, aupr_known=0.95, oscr=0.625)
    """
    high, low = floats("known", known, ndim=1), floats("unknown", unknown, ndim=1)
    right = np.asarray(correct, dtype=bool)
    check_same_shape("known", high, "correct", right)
    if np.isnan(high).any() or np.isnan(low).any():
        raise DataError("scores hold NaN; they cannot be ranked.")
    if not len(high) or not len(low):
        return OpenSet(*[float("nan")] * 5)
    scores, is_known = np.concatenate([high, low]), np.repeat([1, 0], [len(high), len(low)])
    return OpenSet(
        auroc=_auroc(high, low),
        fpr95=_accepted_unknown(high, low),
        aupr_unknown=average_precision(-scores, 1 - is_known) / 100,
        aupr_known=average_precision(scores, is_known) / 100,
        oscr=_oscr(high, right, low),
    )


def _auroc(known: Floats, unknown: Floats) -> float:
    ordered = np.sort(unknown)
    below, not_above = (np.searchsorted(ordered, known, side=side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(unknown)))


def _accepted_unknown(known: Floats, unknown: Floats) -> float:
    needed = int(np.ceil(ACCEPTED * len(known) - 1e-9))
    return float((unknown >= np.sort(known)[-needed]).mean())


def _oscr(known: Floats, correct: NDArray[np.bool_], unknown: Floats) -> float:
    thresholds = np.unique(np.concatenate([known, unknown]))[::-1]
    accepted, found = (
        np.append(0.0, (len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")) / among)
        for scores, among in ((unknown, len(unknown)), (known[correct], len(known)))
    )
    return float(np.trapezoid(found, accepted))
