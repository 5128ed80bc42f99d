"""Heads that are trained on a frozen backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.models import Head, Output
from cil.models.growing import HeadedNet
from cil.strategies.base import Strategy
from cil.strategies.parts.losses import new_class_cross_entropy
from cil.streams import Signature


class FeaturesAndHead(HeadedNet):
    """A function that gives features and a head on them, as one network.

    Args:
        features: (N, C, H, W) images to (N, D).
        parts: Modules that ``features`` runs, so that their mode can be set.
    """

    def __init__(self, features: Callable[[Tensor], Tensor], head: Head, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self._features = features
        self.head = head
        self.parts = nn.ModuleList(parts)

    def forward(self, images: Tensor) -> Output:
        features = self._features(images)
        return Output(self.head(features), features)


def grow_head(learner: Strategy, head: Head, signature: Signature) -> None:
    """Widen a head by rows for the new classes, N(0, 0.01) each, biases 0; old rows stay bit for bit."""
    old = head.num_classes
    head.grow(len(signature.new_slots))
    rows = head.weight.detach()[old:]
    rows.copy_(0.01 * torch.randn(rows.shape, generator=learner.generator(f"head:{signature.index}")))


def scoped_cross_entropy(logits: Tensor, slots: Tensor, first_slot: int, scope: str) -> Tensor:
    """Cross-entropy over ``all`` outputs, or over the ``new`` ones: those from ``first_slot`` on."""
    return F.cross_entropy(logits, slots) if scope == "all" else new_class_cross_entropy(logits, slots, first_slot)


def freeze_old_rows(head: Head, count: int) -> None:
    """Remove the gradient of the first ``count`` rows and biases of a head; call it in ``adjust_gradients``.

    Without weight decay, and with a fresh optimizer, those rows stay bit for bit.
    """
    for parameter in head.parameters():
        if parameter.ndim and parameter.grad is not None:
            parameter.grad[:count] = 0
