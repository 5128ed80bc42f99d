"""Previous: fine-tune from where the last task left the network."""

from __future__ import annotations

from cil.strategies.parts.task_learner import TaskLearner
from cil.strategies.registry import register


@register("previous")
class Previous(TaskLearner):
    """One backbone, trained on one task after the other, and a head for each data set, used again when it comes back.

    Args:
        search: See ``TaskRecipe``.

    Source:
        Bornschein et al., NEVIS'22, JMLR 24 (308), 2023, "FT-prev". Departure: earlier tasks are answered by the
        backbone as it is now, not by a copy of it as it was then.
    """
