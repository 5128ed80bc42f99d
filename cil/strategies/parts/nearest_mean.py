"""The nearest mean of exemplars."""

from __future__ import annotations

import torch
from torch import Tensor

from cil.memory import unit


def nearest_mean(features: Tensor, means: Tensor) -> Tensor:
    """Score each class by minus the distance of unit features to its mean: (N, D), (C, D) to (N, C).

    Args:
        features: As a network gives them.
        means: Of unit length (``cil.memory.class_means``); a row of NaN, of a class without an exemplar, is never the
            nearest.

    Source: Rebuffi et al. 2017 (iCaRL), Algorithm 1.

    >>> nearest_mean(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]])).mul(1000).round().tolist()
    [[-894.0, -0.0]]
    """
    scores = -torch.cdist(unit(features.float()), means)
    return scores.masked_fill(means.isnan().any(1), -torch.inf)
