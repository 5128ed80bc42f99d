"""RMM: give up incoming images for more exemplars, around any method that rehearses."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.data import Samples
from cil.errors import ConfigError
from cil.memory import Budget
from cil.models import NetFactory, extract_outputs
from cil.strategies.base import check
from cil.strategies.parts.wrappers import Wrapper
from cil.strategies.registry import register
from cil.streams import Experience, Signature

RATES = [0.3, 0.3, 0.3, 0.3, 0.4, 0.6, 0.6, 0.5, 0.5, 0.5]  # of the survey, for ten experiences of CIFAR-100
TILTS = [0.2, 0.2, 0.1, 0.0, 0.1, 0.1, 0.1, 0.0, 0.0, 0.1]


@register("rmm")
class RMM(Wrapper):
    """Reinforced memory management with fixed rates; losses, networks and answers are the host's.

    Level 1: a share m_b of each class that arrives is given up. Under ``budget.scope=carried+incoming`` as many more
    exemplars are held, so that old exemplars and the new images kept are never more than M and the images that arrive;
    under ``carried`` there is no such trade, and the images are merely lost. The first experience, where no exemplar is
    held beside the images, keeps them all: after it there are as many more exemplars as a share m_0 of a later
    experience's images, in advance of what that one gives up. Level 2: the half of the new classes with
    the larger cross-entropy gets floor(q (1 - c_b)) exemplars each, the other half floor(q (1 + c_b)), for q =
    floor(M_b / C); by the network that exemplars are chosen by, which around foster is the one of two branches. With
    rates and tilts of 0 it is the host, bit for bit.

    Args:
        host: Name of the wrapped method; it must keep exemplars, by the part ``store_exemplars``.
        host_options: Hyperparameters of the host that differ from its defaults.
        rates: m_b of each experience, in [0, 1]; the last one holds for all later ones.
        tilts: c_b of each experience, in [-1, 1]; the same. Above 0 the harder classes get fewer.
        increment: Classes that a later experience brings, of whose images the first rate is a share; null: as many as
            the first one.

    Raises:
        ConfigError: for a host that is not possible, or an option that it does not have.

    Source:
        Liu, Schiele, Sun. NeurIPS 2021, arXiv:2301.05792, with the rate lists of the survey of Zhou et al. 2024; the
        default is the one for ten experiences. Not here: the policy (DDPG) that finds rates by episodes of whole
        streams. Departures: kept images are drawn without replacement; exemplars are chosen among them; a rate of 0
        means M, not the M_b before; where fewer images are given up than before, exemplars are dropped when the
        experience begins, so that the sum holds then too; in a group of odd size the middle class gets q; no class
        gets more than the smallest of those that could give more than q, so that the bill is known before training;
        with images of variable size under a budget in bytes there is no q, and so no level 2.
    """

    host = "icarl"
    hosts = "icarl or foster"

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        host: str = "icarl",
        host_options: Mapping[str, Any] | None = None,
        rates: Sequence[float] = RATES,
        tilts: Sequence[float] = TILTS,
        increment: int | None = None,
    ) -> None:
        super().__init__(make_net, budget, **self.options(host, host_options))
        for key, values, least in (("rates", rates, 0), ("tilts", tilts, -1)):
            held = list(values) if isinstance(values, Sequence) else []
            if not held or not all(isinstance(value, int | float) and least <= value <= 1 for value in held):
                raise ConfigError(f"strategy.{key} of rmm is {values}; it must be a list of numbers in [{least}, 1]")
        check.at_least(1, "rmm", increment=increment)
        if not self.memories():
            raise ConfigError(f"strategy.host of rmm is '{host}', which keeps no exemplars that rates could buy")
        if budget.scope == "carried" and any(rates):
            self.warnings.append(
                "rmm: under budget.scope=carried the images that it gives up buy no exemplars and are merely lost; the "
                "paper's trade is budget.scope=carried+incoming"
            )
        self.rates = tuple(rates)
        self.tilts = tuple(tilts)
        self.increment = increment

    def accepts(self, signature: Signature) -> dict[int, int]:
        """Level 1: floor((1 - m_b) n) of the n images of each class, and one at least; all of the first experience."""
        if not signature.index:
            return dict(signature.counts)
        share = 1 - _value_at(self.rates, signature.index)
        return {slot: max(1, _floor(share * count)) for slot, count in signature.counts.items()}

    def in_advance(self, signature: Signature) -> int:
        """floor(m_0 n), n the images of as many classes as a later experience brings."""
        counts = signature.counts
        images = sum(counts.values()) * min(1.0, (self.increment or len(counts)) / max(1, len(counts)))
        return _floor(self.rates[0] * images)

    def grow(self, signature: Signature) -> None:
        super().grow(signature)
        self.index, self.tilt = signature.index, _value_at(self.tilts, signature.index)
        self.arriving = {slot: signature.counts.get(slot, 0) for slot in signature.new_slots}

    def before_experience(self, experience: Experience) -> None:
        if self.budget.scope != "carried":  # fewer old exemplars where more images are taken
            slots = self.budget.exemplar_slots(self)
            for memory in self.memories().values():
                capacity = self.budget.capacity(self, memory)
                if capacity is not None:  # images of variable size, by their bytes
                    memory.fit(capacity)
                    continue
                counts = memory.counts().values()
                fits = (q for q in range(max(counts, default=0), 0, -1) if sum(min(q, n) for n in counts) <= slots)
                memory.shrink(next(fits, 0))
        super().before_experience(experience)

    def quotas(self, experience: Experience, quota: int, net: nn.Module) -> dict[int, int]:
        """Level 2: easy classes first, by their mean cross-entropy on their own images."""
        quotas = dict(super().quotas(experience, quota, net))
        if not self.tilt or not quota:
            return quotas
        losses = {}
        for slot in self.arriving:
            images = experience.train.of_class(slot)
            if len(images):
                logits = self._logits(images, net)
                losses[slot] = float(F.cross_entropy(logits, images.slots.to(logits.device)))
        return quotas | self._tilt_quotas(sorted(losses, key=lambda slot: (losses[slot], slot)), quota)

    def _logits(self, images: Samples, net: nn.Module) -> Tensor:
        """Logits (N, C) of the network that exemplars are chosen by; where it has none, of the host's, or scores."""
        for candidate in (net, self.net):
            if candidate.num_classes == self.num_classes:
                return extract_outputs(candidate, images).logits
        with torch.no_grad():
            return torch.cat([self.predict(batch.images) for batch in images.batches(device=self.device)])

    def held_quota(self, counts: Collection[int]) -> int:
        """The mean, as easy and hard classes are as many."""
        tilted = any(_value_at(self.tilts, index) for index in range(self.index))
        return sum(counts) // max(1, len(counts)) if tilted else super().held_quota(counts)

    def _tilt_quotas(self, slots: Sequence[int], quota: int) -> dict[int, int]:
        """Exemplars of the new classes with more images than the quota, given from easy to hard."""
        able = [slot for slot in slots if self.arriving[slot] > quota]
        most = min((self.arriving[slot] for slot in able), default=quota)
        # level 2: q (1 + c_b) and q (1 - c_b)
        easy, hard = (min(most, _floor(quota * (1 + tilt))) for tilt in (self.tilt, -self.tilt))
        half = len(able) // 2
        return dict.fromkeys(able[:half], easy) | dict.fromkeys(able[len(able) - half :], hard)

    def exemplar_plan(self, slots: int, counts: Mapping[int, int]) -> dict[int, int]:
        plan = super().exemplar_plan(slots, counts)
        quota = slots // max(1, len(counts))
        return plan | self._tilt_quotas(list(self.arriving), quota) if self.tilt else plan


def _value_at(values: Sequence[float], index: int) -> float:
    """The value of an experience; the last one holds for all later ones."""
    return values[min(index, len(values) - 1)]


def _floor(value: float) -> int:
    """The whole part, robust to rounding: 0.7 * 10 is 7."""
    return math.floor(value + 1e-9)
