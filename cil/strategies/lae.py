"""LAE: a tuner that learns, a slow average of it, and answers by whichever of the two is surer."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from cil.data import Batch
from cil.memory import Budget
from cil.models import NetFactory, TimmBackbone
from cil.models.base import drawn_for
from cil.models.low_rank import Directions
from cil.models.prefixes import TunedPrefixes
from cil.models.tuners import AttentionAdapters, Tuner
from cil.strategies.base import check
from cil.strategies.parts.frozen_transformer import FrozenTransformer
from cil.strategies.registry import register
from cil.streams import Experience

KINDS = ("adapter", "low_rank", "prefix")


@register("lae")
class LAE(FrozenTransformer):
    """Online theta_on learns classes of the experience; offline theta_off <- a theta_off + (1 - a) theta_on follows.

    Both share a head; a class scores max(softmax z_on, softmax z_off). Two passes an image. Bytes go by ``rank``.

    Args:
        tuner: ``adapter``: beside attention. ``low_rank``: sums to keys and values. ``prefix``: of attention, whose
            weights are divided by their sum.
        rank: r of the first two, 5 as published; tokens of a prefix, 10 as published.
        blocks: The first ones, which have them.
        momentum: a, for each step from the second experience on.
        head_first: Share of a later experience's training in which the head alone learns; in [0, 1].

    Source:
        Gao et al. "A unified continual learning framework with general
        parameter-efficient tuning", ICCV 2023, arXiv:2303.10070.
    """

    fits = "rank"
    toy = {"rank": 2}
    online: Tuner
    offline: Tuner

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        tuner: str = "adapter",
        rank: int = 5,
        blocks: int = 5,
        momentum: float = 0.9999,
        head_first: float = 0.6,
    ) -> None:
        super().__init__(make_net, budget)
        check.one_of(KINDS, "lae", tuner=tuner)
        check.at_least(1, "lae", rank=rank, blocks=blocks)
        check.between(0, 1, "lae", momentum=momentum, head_first=head_first)
        self.momentum, self.head_first = momentum, head_first
        self.keep("online", small_tuner(tuner, self.vit, rank, blocks), kind="parameters")
        offline = small_tuner(tuner, self.vit, rank, blocks).requires_grad_(False)
        self.keep("offline", offline, kind="parameters")

    def loss(self, batch: Batch) -> Tensor:
        return self.local_cross_entropy(self.online.features(self.vit, self.normalise(batch.images)), batch.slots)

    def adjust_gradients(self, batch: Batch) -> None:
        if self.old_classes and self.progress.share < self.head_first:  # calibrated speed: the head learns first
            for parameter in self.online.parameters():
                parameter.grad = None

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        if self.old_classes:  # theta_off <- a theta_off + (1 - a) theta_on
            for slow, fast in zip(self.offline.parameters(), self.online.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.momentum)

    def after_experience(self, experience: Experience) -> None:
        if experience.index == 0:
            self.offline.load_state_dict(self.online.state_dict())

    def predict(self, images: Tensor) -> Tensor:
        """max(softmax z_on, softmax z_off): (N, ...) to (N, C), in [0, 1]."""
        x = self.normalise(images)
        online, offline = (self.net(tuner.features(self.vit, x)).softmax(1) for tuner in (self.online, self.offline))
        return torch.maximum(online, offline)


def small_tuner(kind: str, vit: TimmBackbone, rank: int, blocks: int) -> Tuner:
    """A tuner of the first blocks with factors that learn, one of ``KINDS``."""
    if kind == "adapter":
        return AttentionAdapters(vit, rank, blocks)
    if kind == "prefix":
        made = partial(TunedPrefixes, len(vit.model.blocks[:blocks]), rank, vit.feature_dim)
        return drawn_for(next(vit.parameters()), made)
    sums = Directions(vit, rank, ("k", "v"), by_layer=True, blocks=blocks)
    sums.grow(next(vit.parameters()).detach())
    return sums
