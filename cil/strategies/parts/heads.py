"""Heads: rows that are aligned after training, and an auxiliary head that tells new classes from old ones."""

from __future__ import annotations

from cil.models import Head, LinearHead, weight_align
from cil.strategies.base import Strategy


def align_rows(learner: Strategy, head: Head) -> None:
    """Scale the rows of new classes to the mean norm of the old ones (``weight_align``), where there are both."""
    if 0 < learner.old_classes < learner.num_classes:
        weight_align(head.weight, learner.old_classes)


def old_or_which_head(learner: Strategy, features: int) -> LinearHead:
    """A fresh auxiliary head for the loss ``old_or_which``: an output for all old classes, and one for each new one."""
    head = LinearHead(features).to(learner.device)
    head.grow(learner.num_classes - learner.old_classes + 1)
    return head
