"""Pretrained-static: every task starts from one and the same pre-trained network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cil.contract import loaded_reference
from cil.memory import Budget
from cil.models import NetFactory, TaskNet, TaskNets, freeze
from cil.strategies.parts.task_learner import SEARCH, TaskLearner
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("pretrained_static")
class PretrainedStatic(TaskLearner):
    """A network for each data set, fine-tuned from weights that no task changes.

    With ``model.weights`` those are the public weights, kept as a reference. Without, the first task trains a network,
    and that is where all later ones start.

    Args:
        search: See ``TaskRecipe``.

    Source:
        Bornschein et al., NEVIS'22, JMLR 24 (308), 2023, "FT-s". With a frozen backbone it is ``task_linear_probe``.
    """

    net: TaskNets
    start: TaskNet

    def __init__(self, make_net: NetFactory, budget: Budget, *, search: Mapping[str, Any] = SEARCH) -> None:
        super().__init__(make_net, budget, search=search)
        self.public = getattr(make_net, "pretrained", None)
        start = freeze(TaskNet(make_net("linear")))
        reference = None if self.public is None else loaded_reference(start, self.public)
        self.keep("start", start, kind="parameters", reference=reference)

    def build_net(self) -> TaskNets:
        return TaskNets()

    def grow_net(self, signature: Signature) -> None:
        self.put_fresh_net()

    def prepare(self, experience: Experience) -> None:
        if self.public is not None or experience.index:
            self.net.of(self.task.name).take_backbone(self.start.backbone)

    def after_experience(self, experience: Experience) -> None:
        if self.public is None and not experience.index:
            self.start.take_backbone(self.net.of(self.task.name).backbone)
