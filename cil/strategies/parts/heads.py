"""Rows of a head: aligned after training, imprinted before it, or kept as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.models import Head, weight_align
from cil.strategies.base import Strategy
from cil.strategies.parts.rehearsal import features
from cil.streams import Experience


def align_rows(learner: Strategy, head: Head) -> None:
    """Scale the rows of new classes to the mean norm of the old ones (``weight_align``), where there are both."""
    if 0 < learner.old_classes < learner.num_classes:
        weight_align(head.weight, learner.old_classes)


@torch.no_grad()
def imprint(learner: Strategy, experience: Experience) -> None:
    """Start the rows of new classes at the unit mean of their unit features, times the mean norm of the old rows.

    For a cosine head of one row a class.

    Source: Qi et al., "Low-shot learning with imprinted weights", CVPR 2018; optional in LUCIR's code.
    """
    if not learner.old_classes:
        return
    weight = learner.net.head.weight
    norm = weight[: learner.old_classes].norm(dim=1).mean()
    for slot in experience.new_slots:
        images = experience.train.of_class(slot)
        if len(images):
            mean = F.normalize(features(learner, images)).mean(0)
            weight[slot] = norm * F.normalize(mean, dim=0).to(weight)


def rows_without_data(learner: Strategy, owner: Any) -> dict[str, Tensor]:
    """Copies of weight and bias of ``owner.head`` below ``first_slot``, whose classes have no images now, by name."""
    if not learner.first_slot:
        return {}
    named = {name: value for name, value in owner.head.named_parameters() if name in ("weight", "bias")}
    return {n: v[: len(v) // learner.num_classes * learner.first_slot].detach().clone() for n, v in named.items()}


def hold_rows(owner: Any, rows: Mapping[str, Tensor]) -> None:
    """``freeze_rows`` for what ``rows_without_data`` gave."""
    for name, own in rows.items():
        freeze_rows(getattr(owner.head, name), own)


def freeze_rows(weight: nn.Parameter, rows: Tensor) -> None:
    """Keep the first rows of a head as they were: call it in ``adjust_gradients`` and in ``after_step``.

    Before a step they lose their gradient; after it, effects of momentum and weight decay are undone.

    Args:
        weight: (C, D).
        rows: (R, D), R <= C.
    """
    if weight.grad is not None:
        weight.grad[: len(rows)] = 0
    with torch.no_grad():
        weight[: len(rows)] = rows
