"""What a network's forward returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """All that a loss may want of one forward pass, so that it never reaches inside a (wrapped) network.

    Attributes:
        logits: (N, C), one column for each output of the head.
        features: (N, D), what the head sees; D = b * d for a network of b branches.
        stages: Maps (N, C_s, H_s, W_s) after each stage of the backbone, or empty where it has none.
    """

    logits: Tensor
    features: Tensor
    stages: tuple[Tensor, ...] = ()
