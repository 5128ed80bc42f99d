"""Meta networks of a strategy: one set or one for each task, their parameter groups, and routing between tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.models import count_parameters, freeze
from cil.models.meta import MetaNetworks


class MetaNetworkSets(nn.ModuleList):
    """phi: sets of meta networks, one for all tasks or one for each; the last set learns, the others are fixed."""

    @property
    def survey_parameters(self) -> int:
        """All of them are needed at inference."""
        return count_parameters(self)

    @property
    def latest(self) -> MetaNetworks:
        """The set that learns."""
        return self[-1]  # type: ignore[return-value]

    def add(self, made: MetaNetworks) -> None:
        """Fix the sets there are, and go on with a fresh one."""
        freeze(self)
        self.append(made)


def meta_network_groups(metas: MetaNetworks, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: the convolutions, which alone decay, and the norms."""
    each: list[Any] = list(metas)
    norms = [p for meta in each for layer in (meta.norm, meta.conv_norm) for p in layer.parameters()]
    return [
        {"params": [meta.conv.weight for meta in each], "lr": lr, "weight_decay": weight_decay},
        {"params": norms, "lr": lr, "weight_decay": 0.0},
    ]


def normalised_entropy(logits: Tensor) -> Tensor:
    """H(softmax) / ln C of each row, (N, C) to (N,), in [0, 1]; 1 for a single class, where it is undefined.

    >>> [round(value, 4) for value in normalised_entropy(torch.tensor([[0.0, 0.0], [50.0, 0.0]])).tolist()]
    [1.0, 0.0]
    """
    if logits.shape[1] == 1:
        return torch.ones_like(logits[:, 0])
    logs = F.log_softmax(logits.float(), 1)
    return -(logs.exp() * logs).sum(1) / math.log(logits.shape[1])


def route(scores: Sequence[Tensor], uncertainties: Tensor, tasks: Sequence[Sequence[int]]) -> Tensor:
    """Scores over all classes from scores within tasks: each image goes to the task of least uncertainty.

    Args:
        scores: For each task (N, C_t) in [0, 1], a column for each of its slots.
        uncertainties: (N, T).
        tasks: Slots of each task; together 0 to C - 1.

    Returns:
        (N, C): the scores within tasks, plus 1 in the task of the image.
    """
    chosen = uncertainties.argmin(1, keepdim=True)  # (N, 1)
    columns = [own + (chosen == number) for number, own in enumerate(scores)]
    order = torch.tensor([slot for slots in tasks for slot in slots], device=uncertainties.device)
    return torch.cat(columns, 1)[:, order.argsort()]
