"""Meta networks of a strategy: one set or one for each task, which of their values learn how, and routed answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.models import count_parameters, freeze
from cil.models.meta import MetaNetworks


class MetaSets(nn.ModuleList):
    """phi: sets of meta networks, one for all tasks or one for each; the last one learns, those before it are fixed."""

    @property
    def survey_parameters(self) -> int:
        """All of them are needed at inference."""
        return count_parameters(self)

    @property
    def latest(self) -> MetaNetworks:
        """The set that learns."""
        return self[-1]  # type: ignore[return-value]

    def add(self, made: MetaNetworks) -> None:
        """Fix what is there, and go on with a fresh set."""
        freeze(self)
        self.append(made)


def meta_groups(metas: MetaNetworks, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: the convolutions, which alone decay, and the norms."""
    each: list[Any] = list(metas)
    norms = [p for meta in each for layer in (meta.norm, meta.conv_norm) for p in layer.parameters()]
    return [
        {"params": [meta.conv.weight for meta in each], "lr": lr, "weight_decay": weight_decay},
        {"params": norms, "lr": lr, "weight_decay": 0.0},
    ]


def normalised_entropy(logits: Tensor) -> Tensor:
    """H(softmax) / ln C of each row, (N, C) to (N,), in [0, 1]; 1 for a single class, of which nothing can be said.

    >>> [round(value, 4) for value in normalised_entropy(torch.tensor([[0.0, 0.0], [50.0, 0.0]])).tolist()]
    [1.0, 0.0]
    """
    if logits.shape[1] == 1:
        return torch.ones_like(logits[:, 0])
    logs = F.log_softmax(logits.float(), 1)
    return -(logs.exp() * logs).sum(1) / math.log(logits.shape[1])


def routed(inside: Sequence[Tensor], doubts: Tensor, tasks: Sequence[Sequence[int]]) -> Tensor:
    """Answers that hold within tasks, as scores over all classes: each image is given to the task of least doubt.

    Args:
        inside: For each task (N, C_t) in [0, 1], a column for each of its slots.
        doubts: (N, T).
        tasks: Slots of each task; together 0 to C - 1.

    Returns:
        (N, C): what is inside, plus 1 in the task that the image is given to.
    """
    chosen = doubts.argmin(1, keepdim=True)  # (N, 1)
    columns = [own + (chosen == number) for number, own in enumerate(inside)]
    order = torch.tensor([slot for slots in tasks for slot in slots], device=doubts.device)
    return torch.cat(columns, 1)[:, order.argsort()]
