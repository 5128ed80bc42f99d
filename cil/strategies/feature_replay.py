"""Feature replay: features learned once, then a head that rehearses stored features, or samples of class Gaussians."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data import Batch, Samples
from cil.memory import Budget, FeatureMemory, Prototypes, feature_samples
from cil.models import NetFactory
from cil.strategies.base import Strategy
from cil.strategies.parts import features, store_exemplars
from cil.strategies.phase import Phase
from cil.strategies.ranges import one_of
from cil.strategies.registry import register
from cil.streams import Experience, Signature

STORES = ("features", "prototypes")


@register("feature_replay")
class FeatureReplay(Strategy):
    """The network learns the first experience; from the second on its backbone is frozen, so that features stay valid.

    The head then goes on learning with cross-entropy over all outputs, on the features of the new images (evaluation
    view) and as many of each old class as a new class has images on average, so that few stored ones are not drowned by
    many new ones: those stored, as many as the budget allows, again and again in turn; or Gaussian samples.

    Args:
        store: ``features`` (vectors chosen as exemplars are), or ``prototypes`` (mean and spread of each class).
        bits: Of a value of a stored feature: 32, 16 or 8; without meaning for prototypes.
        spread: Of prototypes: ``none``, ``radius``, ``diagonal``, ``full``; see ``cil.memory.Prototypes``.
        selection: Rule that chooses features; one that needs features alone, or nothing.

    Source:
        A baseline, with stored features as in Hayes et al. 2020 (REMIND, there quantised feature maps) and samples of
        prototypes as in Zhu et al. 2021 (PASS); memory by the specification of protocols 4.1.
    """

    memory: FeatureMemory
    prototypes: Prototypes

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        store: str = "features",
        bits: int = 32,
        spread: str = "diagonal",
        selection: str = "herding",
    ) -> None:
        super().__init__(make_net, budget)
        one_of(STORES, "feature_replay", store=store)
        memory = FeatureMemory(make_net.feature_dim, bits, selection)
        prototypes = Prototypes(make_net.feature_dim, spread)  # both are made, so that all options are checked
        if store == "features":
            self.keep("memory", memory, kind="features")
        else:
            self.keep("prototypes", prototypes, kind="prototypes")
        self.store = store

    def grow(self, signature: Signature) -> None:
        super().grow(signature)
        if self.store == "prototypes":
            self.prototypes.grow(self.num_classes - self.old_classes)

    def training_set(self, experience: Experience) -> Samples:
        """Images in the first experience, then features, new and old."""
        if not self.old_classes:
            return experience.train
        new = feature_samples({"features": features(self, experience.train)}, experience.train.slots)
        present = new.slots.unique()
        each = len(new) // max(1, len(present))
        if self.store == "features":
            held = feature_samples({"features": self.memory.features()}, self.memory.slots)
            return new + held[_rounds(held.slots, present, each)]
        old = torch.arange(self.old_classes)
        slots = old[~torch.isin(old, present)].repeat_interleave(each)
        return new + feature_samples({"features": self.prototypes.draw(slots, self.generator("prototypes"))}, slots)

    def phases(self, experience: Experience) -> Iterator[Phase]:
        if not self.old_classes:
            yield Phase("main", self.training_set(experience), self.loss)
        else:
            head = list(self.net.head.parameters())
            yield Phase("head", self.training_set(experience), self.head_loss, parameters=head)

    def train_mode(self) -> None:
        self.net.train(not self.old_classes)  # the backbone is frozen from the second experience on

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)

    def head_loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.net.head(batch.extras["features"]), batch.slots)

    def after_experience(self, experience: Experience) -> None:
        if self.store == "features":
            store_exemplars(self, experience)
        else:
            self.prototypes.update(features(self, experience.train), experience.train.slots)


def _rounds(slots: Tensor, present: Tensor, each: int) -> Tensor:
    """Rows of what is stored: all, and those of an absent class over and over until there are ``each``.

    Args:
        slots: (M,) of what is stored, class by class.
        present: Classes that have new images.
        each: Rows wanted of a class.
    """
    rows = [torch.empty(0, dtype=torch.int64)]
    for slot in slots.unique().tolist():
        own = (slots == slot).nonzero().flatten()
        count = len(own) if slot in present else max(each, len(own))
        rows.append(own[torch.arange(count) % len(own)])
    return torch.cat(rows)
