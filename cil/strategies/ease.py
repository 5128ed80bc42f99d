"""EASE: an adapter for each experience, prototypes in the features of each, and those that are missing synthesised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.contract import Phase
from cil.data import Batch
from cil.memory import Budget, State
from cil.models import CosineHead, Head, NetFactory, freeze
from cil.models.base import full_precision, in_full_precision
from cil.models.tuners import BlockAdapters
from cil.strategies.base import check
from cil.strategies.parts.frozen_backbone import class_sums, float64_features
from cil.strategies.parts.frozen_heads import FeaturesAndHead
from cil.strategies.parts.frozen_transformer import FrozenTransformer
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("ease")
class EASE(FrozenTransformer):
    """Features phi_0 ... phi_t of a frozen transformer with the adapters of each experience: t + 1 passes an image.

    Class c of experience i scores cos(phi_i, P_i[c]) + (alpha / t) sum_(j != i) cos(phi_j, P_j[c]).

    Args:
        rank: r of the adapters.
        others: alpha, weight of the features of other experiences.

    What spends bytes is ``rank``.

    Source:
        Zhou, Sun, Ye, Zhan. "Expandable subspace ensemble for pre-trained model-based class-incremental learning",
        CVPR 2024, arXiv:2403.12030. Departures: sums and numbers of features are carried, and what is
        synthesised is made anew from them; the experience of a class is the one in which it arrived, whatever the
        increments.
    """

    answers_by = "prototypes"
    fits = "rank"
    toy = {"rank": 4}
    adapters: Any  # BlockAdapters of each experience
    sums: Tensor  # (C, T, D) of images of a class in features of an experience; 0: it had none then
    counts: Tensor  # (C, T) int32
    prototypes: Tensor  # (C, T, D) of unit length, the missing ones too
    head: Head

    def __init__(self, make_net: NetFactory, budget: Budget, *, rank: int = 64, others: float = 0.1) -> None:
        super().__init__(make_net, budget)
        check.at_least(1, "ease", rank=rank)
        check.at_least(0, "ease", others=others)
        self.rank, self.others = rank, others
        self.arrivals: list[int] = []  # of each class, its experience
        self.keep("adapters", nn.ModuleList(), kind="parameters")
        self.keep("sums", self.net.weight.new_zeros(0, 0, self.vit.feature_dim), kind="prototypes")
        self.keep("counts", self.net.weight.new_zeros(0, 0, dtype=torch.int32), kind="statistics")
        self.keep("head", None, kind="temporary")
        self.keep("prototypes", None, kind="temporary")  # they follow from the sums

    def build_net(self) -> Head:
        return super().build_net().requires_grad_(False)  # it never gets an output

    def grow_net(self, signature: Signature) -> None:
        self.present = sorted(signature.present)
        for adapters in self.adapters:
            freeze(adapters)
        self.adapters.append(BlockAdapters(self.vit, self.rank))
        self.arrivals += [signature.index] * len(signature.new_slots)
        self.sums = F.pad(self.sums, (0, 0, 0, 1, 0, len(signature.new_slots)))
        self.counts = F.pad(self.counts, (0, 1, 0, len(signature.new_slots)))
        self.head = CosineHead(self.vit.feature_dim).to(self.net.weight)
        self.head.grow(len(self.present))

    def phases(self, experience: Experience) -> Iterator[Phase]:
        if self.present:
            yield Phase("main", experience.train, self.loss)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy over the classes of the experience, by a cosine head that is dropped after it."""
        here = torch.tensor(self.present, device=batch.slots.device)
        logits = self.head(self.features(len(self.adapters) - 1, batch.images))
        return F.cross_entropy(logits, torch.searchsorted(here, batch.slots))

    def after_experience(self, experience: Experience) -> None:
        for index in range(len(self.adapters)):
            view = FeaturesAndHead(partial(self.features, index), self.net, [self.vit, self.adapters])
            features = float64_features(self, experience.train, view)
            sums, counts = class_sums(features, experience.train.slots, self.num_classes)
            self.sums[:, index] += sums.to(self.sums)
            self.counts[:, index] += counts.to(self.counts)

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self.prototypes = completed(self.sums / self.counts.clamp(min=1)[:, :, None], self.arrivals)

    def features(self, index: int, images: Tensor) -> Tensor:
        """phi_index: (N, ...) to (N, D)."""
        found: Tensor = self.adapters[index].features(self.vit, self.normalise(images))
        return found

    def predict(self, images: Tensor) -> Tensor:
        """The scores above; minus infinity for a class without images: (N, ...) to (N, C)."""
        phi = torch.stack([self.features(index, images) for index in range(len(self.adapters))], dim=1)
        with in_full_precision(phi):
            scores = torch.einsum("ntd,ctd->nct", F.normalize(full_precision(phi), dim=2), self.prototypes)
        own = F.one_hot(torch.tensor(self.arrivals), len(self.adapters)).to(scores)  # (C, T)
        weights = own + (1 - own) * self.others / max(1, len(self.adapters) - 1)
        return (scores * weights).sum(2).masked_fill(self.counts.sum(1) == 0, -torch.inf)


def completed(means: Tensor, arrivals: Sequence[int]) -> Tensor:
    """Prototypes of unit length in all features, (C, T, D).

    P_j[c] of a class that came before j is sum over c' of S(c, c') P_j[c'], for the classes c' that came with j or
    later; S(c, c') is the softmax over c' of cos(P_i[c], P_i[c']), i the experience of c.

    Args:
        means: (C, T, D) of features; 0 where a class had no images.
        arrivals: Of each class, its experience.

    Source: Zhou et al., "EASE", CVPR 2024.
    """
    unit, found, there = F.normalize(means, dim=2), means.clone(), (means != 0).any(2)
    came = torch.tensor(arrivals, device=means.device)
    for slot, i in enumerate(arrivals):
        for j in range(i + 1, means.shape[1]):
            known = (came >= j) & there[:, i] & there[:, j]
            if not there[slot, j] and there[slot, i] and bool(known.any()):
                similarity = (unit[known, i] @ unit[slot, i]).softmax(0)
                found[slot, j] = similarity @ means[known, j]
    return F.normalize(found, dim=2)
