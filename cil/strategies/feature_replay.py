"""Feature replay: features learned once, then a head that rehearses stored features, or samples of class Gaussians."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.contract import Phase
from cil.data import Batch, Samples
from cil.memory import Budget, FeatureMemory, Prototypes, feature_samples
from cil.models import GrowingNet, Head, LinearHead, NetFactory, freeze
from cil.strategies.base import Strategy, check
from cil.strategies.parts import features, store_exemplars
from cil.strategies.parts.frozen_backbone import trains_first
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("feature_replay")
class FeatureReplay(Strategy):
    """The network learns the first experience; then its backbone is frozen for good, so that features stay valid.

    From there on the head alone learns, with cross-entropy over all outputs, on the features of the new images
    (not augmented) and of old classes: for each as many as a new class has images on average, so that few stored ones
    are not drowned by many new ones. They are stored features, repeated in turn, or Gaussian samples.

    Args:
        store: ``features`` (vectors chosen as exemplars are), or ``prototypes`` (mean and spread of each class).
        bits: Bits of a value of a stored feature: 32, 16 or 8; without meaning for prototypes.
        spread: Spread of prototypes: ``none``, ``radius``, ``diagonal``, ``tied``, ``full``, ``low_rank`` (of rank 1);
            see ``cil.memory.Prototypes``.
        selection: Rule that chooses features; one that needs features alone, or nothing.
        train_first: See ``FrozenBackbone``.

    Source:
        A baseline, with stored features as in Hayes et al. 2020 (REMIND, there quantised feature maps) and samples of
        prototypes as in Zhu et al. 2021 (PASS).
    """

    net: GrowingNet  # the backbone, with a head that never gets an output
    head: Head
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
        train_first: bool | str = "auto",
    ) -> None:
        super().__init__(make_net, budget)
        check.one_of(("features", "prototypes"), "feature_replay", store=store)
        self.trained = trains_first(self, train_first)
        memory = FeatureMemory(make_net.feature_dim, bits, selection)
        prototypes = Prototypes(make_net.feature_dim, spread)  # both are made, so that all options are checked
        if store == "features":
            self.keep("memory", memory, kind="features")
        else:
            self.keep("prototypes", prototypes, kind="prototypes")
        self.store = store

    def build_net(self) -> GrowingNet:
        """The backbone; its head is kept apart, as it goes on learning."""
        net = self.make_net()
        self.keep("head", net.head, kind="parameters")
        net.head = LinearHead(net.feature_dim).to(net.head.weight).requires_grad_(False)
        return net

    def grow_net(self, signature: Signature) -> None:
        if signature.index:
            freeze(self.net)
        self.head.grow(len(signature.new_slots))

    def grow(self, signature: Signature) -> None:
        super().grow(signature)
        if self.store == "prototypes":
            self.prototypes.grow(self.num_classes - self.old_classes)

    def training_set(self, experience: Experience) -> Samples:
        """Images while the backbone learns, then features, new and old."""
        if self._trains_backbone(experience):
            return experience.train
        new = feature_samples({"features": features(self, experience.train)}, experience.train.slots)
        present = new.slots.unique()
        each = len(new) // max(1, len(present))
        if self.store == "features":
            held = feature_samples({"features": self.memory.features()}, self.memory.slots)
            return new + held[_repeated_rows(held.slots, present, each)]
        old = torch.arange(self.old_classes)
        slots = old[~torch.isin(old, present)].repeat_interleave(each)
        return new + feature_samples({"features": self.prototypes.draw(slots, self.generator("prototypes"))}, slots)

    def phases(self, experience: Experience) -> Iterator[Phase]:
        if self._trains_backbone(experience):
            yield Phase("main", self.training_set(experience), self.loss)
        else:
            head = list(self.head.parameters())
            yield Phase("head", self.training_set(experience), self.head_loss, parameters=head, fresh=False)

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.predict(batch.images), batch.slots)

    def head_loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.head(batch.extras["features"]), batch.slots)

    def predict(self, images: Tensor) -> Tensor:
        return self.head(self.net(images).features)

    def after_experience(self, experience: Experience) -> None:
        if self.store == "features":
            store_exemplars(self, experience)
        else:
            self.prototypes.update(features(self, experience.train), experience.train.slots)

    def _trains_backbone(self, experience: Experience) -> bool:
        return self.trained and experience.index == 0


def _repeated_rows(slots: Tensor, present: Tensor, each: int) -> Tensor:
    """Rows of the memory: all, and those of an absent class repeated until there are ``each``.

    Args:
        slots: (M,) of the memory, class by class.
        present: Classes that have new images.
        each: Rows wanted of a class.
    """
    rows = [torch.empty(0, dtype=torch.int64)]
    for slot in slots.unique().tolist():
        own = (slots == slot).nonzero().flatten()
        count = len(own) if slot in present else max(each, len(own))
        rows.append(own[torch.arange(count) % len(own)])
    return torch.cat(rows)
