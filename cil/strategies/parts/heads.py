"""Heads: rows that are aligned after training, and an auxiliary head that tells new classes from old ones."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from cil.data import Batch
from cil.models import Head, LinearHead, weight_align
from cil.strategies.base import Strategy
from cil.strategies.parts.losses import old_or_which


def align_rows(learner: Strategy, head: Head) -> None:
    """Scale the rows of new classes to the mean norm of the old ones (``weight_align``), where there are both."""
    if 0 < learner.old_classes < learner.num_classes:
        weight_align(head.weight, learner.old_classes)


def old_or_which_head(learner: Strategy, features: int) -> LinearHead:
    """A fresh auxiliary head for the loss ``old_or_which``: an output for all old classes, and one for each new one."""
    head = LinearHead(features).to(learner.device)
    head.grow(learner.num_classes - learner.old_classes + 1)
    return head


def copy_newest_branch(learner: Any) -> None:
    """Start the newest branch of ``net`` as the one before, with a fresh ``auxiliary_head``; in ``prepare``."""
    learner.net.copy_branch(-2, -1)
    learner.auxiliary_head = old_or_which_head(learner, learner.net.branch_dim)


def loss_with_newest(learner: Any, batch: Batch) -> dict[str, Tensor]:
    """Cross-entropy of all branches, and ``auxiliary`` times that of the auxiliary head on the newest one's features.

    Source: Yan et al. 2021 (DER), equation 5: the auxiliary head tells the new classes apart, and from all old ones.
    """
    output = learner.net(batch.images)
    terms = {"classes": F.cross_entropy(output.logits, batch.slots)}
    if learner.auxiliary_head is not None:
        logits = learner.auxiliary_head(output.features[:, -learner.net.branch_dim :])
        terms["auxiliary"] = learner.auxiliary * old_or_which(logits, batch.slots, learner.old_classes)
    return terms
