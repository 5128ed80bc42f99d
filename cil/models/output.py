"""Output of a network's forward pass."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """Results of one forward pass that losses use, so that none reaches inside a (wrapped) network.

    Attributes:
        logits: (N, C), one column for each output of the head.
        features: (N, D), what the head sees; D = b * d for a network of b branches.
        stages: Maps (N, C_s, H_s, W_s) after each stage of the backbone, or empty where it has none.
    """

    logits: Tensor
    features: Tensor
    stages: tuple[Tensor, ...] = ()
