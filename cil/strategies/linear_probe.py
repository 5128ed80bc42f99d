"""Linear probe: a frozen backbone, and a linear head that is trained on its features as classes arrive."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from cil.contract import Phase
from cil.data import Batch
from cil.memory import Budget, ExemplarMemory
from cil.models import Head, NetFactory
from cil.strategies.base import check
from cil.strategies.parts import store_exemplars
from cil.strategies.parts.frozen_backbone import FrozenBackbone, fresh_head
from cil.strategies.parts.frozen_heads import FeaturesAndHead, freeze_old_rows, grow_head, scoped_cross_entropy
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("linear_probe")
class LinearProbe(FrozenBackbone):
    """Rows for new classes are trained, all else stays fixed: the lower bound of plasticity on a frozen backbone.

    Args:
        rehearsal: Whether exemplars are kept. Without any the softmax is over the new classes alone; with them new data
            and exemplars are shuffled together, and it is over all classes seen.
        lr: Learning rate of the head; its weight decay is 0.
        train_old_head: Whether rows of classes that are not here are trained too; this matters with rehearsal alone.
        selection, codec: See ``ExemplarMemory``.
        train_first, first_head: See ``FrozenBackbone``.

    Source:
        Baseline: logistic regression on fixed features, by stochastic gradients.
    """

    head: Head

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        rehearsal: bool = False,
        lr: float = 0.1,
        train_old_head: bool = True,
        selection: str = "herding",
        codec: str = "raw",
        train_first: bool | str = "auto",
        first_head: str = "linear",
    ) -> None:
        super().__init__(make_net, budget, train_first, first_head)
        check.one_of((True, False), "linear_probe", rehearsal=rehearsal, train_old_head=train_old_head)
        check.at_least(0, "linear_probe", lr=lr)
        self.lr, self.scope, self.old_rows_learn = lr, "all" if rehearsal else "new", train_old_head
        self.keep("head", fresh_head(self), kind="parameters")
        if rehearsal:
            self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        grow_head(self, self.head, signature)

    def phases(self, experience: Experience) -> Iterator[Phase]:
        yield from self.train_then_freeze(experience)
        groups = [{"params": list(self.head.parameters()), "lr": self.lr, "weight_decay": 0.0}]
        yield Phase("head", self.training_set(experience), self.loss, groups, fresh=False)

    def loss(self, batch: Batch) -> Tensor:
        logits = self.head(self.net(batch.images).features)
        return scoped_cross_entropy(logits, batch.slots, self.first_slot, self.scope)

    def adjust_gradients(self, batch: Batch) -> None:
        if not self.old_rows_learn:
            freeze_old_rows(self.head, self.first_slot)

    def after_experience(self, experience: Experience) -> None:
        store_exemplars(self, experience, FeaturesAndHead(self._features, self.head, [self.net]))

    def predict(self, images: Tensor) -> Tensor:
        """The head's logits."""
        logits: Tensor = self.head(self._features(images))
        return logits

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self.net(images).features
        return features
