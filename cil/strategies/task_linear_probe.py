"""Task linear probe: a frozen backbone, and a linear head for each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from cil.memory import Budget
from cil.models import NetFactory, TaskNet, freeze
from cil.strategies.parts.task_learner import SEARCH, TaskLearner
from cil.strategies.registry import register
from cil.streams import Signature


@register("task_linear_probe")
class TaskLinearProbe(TaskLearner):
    """Only heads are trained. Without ``model.weights`` the first task trains the backbone before it is frozen.

    Args:
        search: See ``TaskRecipe``.

    Source:
        Bornschein et al., NEVIS'22, JMLR 24 (308), 2023, "FT-s" with a frozen backbone. ``linear_probe`` is its like on
        class-incremental streams.
    """

    net: TaskNet

    def __init__(self, make_net: NetFactory, budget: Budget, *, search: Mapping[str, Any] = SEARCH) -> None:
        super().__init__(make_net, budget, search=search)
        self.frozen = getattr(make_net, "pretrained", None) is not None
        if self.frozen:
            freeze(self.net.backbone)

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        if signature.index:
            self.frozen = True
            freeze(self.net.backbone)

    def tuned(self) -> list[nn.Parameter]:
        return list(self.net.heads[self.task.name].parameters()) if self.frozen else super().tuned()
