"""Independent: every task from random weights, with a network of its own. No transfer: the reference."""

from __future__ import annotations

from cil.models import TaskNets
from cil.strategies.parts.task_learner import TaskLearner
from cil.strategies.registry import register
from cil.streams import Signature


@register("independent")
class Independent(TaskLearner):
    """A fresh network for each experience; that of a data set which comes again is replaced.

    Args:
        search: See ``TaskRecipe``.

    Source:
        Bornschein et al., NEVIS'22, JMLR 24 (308), 2023.
    """

    net: TaskNets

    def build_net(self) -> TaskNets:
        return TaskNets()

    def grow_net(self, signature: Signature) -> None:
        self.put_fresh_net()
