"""SD-LoRA: low-rank sums of earlier experiences stay as directions, and go on learning how far to go along each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cil.data import Batch
from cil.errors import ConfigError
from cil.memory import Budget
from cil.models import NetFactory
from cil.models.low_rank import Directions
from cil.strategies.base import check
from cil.strategies.parts.frozen_transformer import FrozenTransformer
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("sd_lora")
class SDLoRA(FrozenTransformer):
    """W + sum_(i < t) alpha_i B_i A_i / (|B_i| |A_i|) + alpha_t B_t A_t for queries and values of a frozen transformer.

    Experience t trains A_t, B_t, all alpha_i and the head over its classes. One pass an image, no task is chosen. Bytes
    go by ``rank``.

    Args:
        rank: r of each sum.
        carry_magnitudes: alpha of each sum goes on from where it was, lengths included, so that the network does not
            jump at a boundary; false, as published: one alpha for all sums of an experience, which begin anew.
        start: What alpha of earlier experiences begin with where they begin anew.
        later_ranks: Pairs [k, r]: from experience k on, from 0, the rank is r, or ``rank`` if less. SD-LoRA-RR: rank
            10, [[4, 8], [8, 6]].
        merge_below: A direction which those before it span up to so small a sum of squares goes into their alpha, and
            is zero from then on. SD-LoRA-KD: 9e-4. Its bytes stay charged, as sizes are known before training.

    Source:
        Wu et al. "SD-LoRA: scalable decoupled low-rank adaptation for class incremental learning",
        ICLR 2025, arXiv:2501.13198. Departures: ``carry_magnitudes``; the bytes of a merged direction.
    """

    fits = "rank"
    toy = {"rank": 2}
    directions: Directions

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        rank: int = 10,
        carry_magnitudes: bool = True,
        start: float = 0.8,
        later_ranks: Sequence[Sequence[int]] = (),
        merge_below: float = 0.0,
    ) -> None:
        super().__init__(make_net, budget)
        check.at_least(1, "sd_lora", rank=rank)
        check.one_of((True, False), "sd_lora", carry_magnitudes=carry_magnitudes)
        check.at_least(0, "sd_lora", start=start, merge_below=merge_below)
        self.later_ranks, self.merge_below = _checked(later_ranks), merge_below
        self.carry_magnitudes, self.start = carry_magnitudes, start
        self.keep("directions", Directions(self.vit, rank, ("q", "v"), by_layer=carry_magnitudes), kind="parameters")

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        lower = [rank for first, rank in self.later_ranks if first <= signature.index]
        self.directions.grow(self.net.weight, min([self.directions.rank, *lower[-1:]]))

    @torch.no_grad()
    def prepare(self, experience: Experience) -> None:
        if not self.carry_magnitudes:
            for alpha in list(self.directions.magnitudes)[:-1]:
                alpha.fill_(self.start)

    def loss(self, batch: Batch) -> Tensor:
        return self.local_cross_entropy(self.features(batch.images), batch.slots)

    def after_experience(self, experience: Experience) -> None:
        self.directions.normalise_last()
        if self.merge_below:
            self.directions.merge_last(self.merge_below)

    def features(self, images: Tensor) -> Tensor:
        """(N, D) of images in [0, 1]."""
        return self.directions.features(self.vit, self.normalise(images))

    def predict(self, images: Tensor) -> Tensor:
        return self.net(self.features(images))


def _checked(pairs: Sequence[Sequence[int]]) -> list[list[int]]:
    """The pairs of ``later_ranks``: an experience and a rank, both from 1 on, which rise."""
    plain = [[*pair] for pair in pairs]
    starts = [pair[0] for pair in plain if len(pair) == 2 and min(pair) >= 1]
    if len(starts) < len(plain) or starts != sorted({*starts}):
        raise ConfigError(
            f"strategy.later_ranks of sd_lora is {plain}; allowed: pairs of an experience from 1 on, in rising order, "
            f"and a rank from 1 on, as [[4,8],[8,6]]"
        )
    return plain
