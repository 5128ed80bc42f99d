"""Linear probe: a frozen backbone, and a linear head that is trained on its features as classes arrive."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from cil.contract import Phase
from cil.data import Batch
from cil.memory import Budget, ExemplarMemory
from cil.models import GrowingNet, Head, NetFactory
from cil.strategies.base import Strategy
from cil.strategies.parts import features_only, first_head, store_exemplars, trains_first
from cil.strategies.parts.tuned import (
    Assembled,
    grow_small_rows,
    hold_old_rows,
    scoped_cross_entropy,
    then_frozen,
    tuned_head,
)
from cil.strategies.ranges import at_least, one_of
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("linear_probe")
class LinearProbe(Strategy):
    """Rows for new classes are trained, all else stands still: the lower bound of plasticity on a frozen backbone.

    Args:
        rehearsal: Whether exemplars are kept. Without any the softmax is over the new classes alone; with them new data
            and exemplars are shuffled together, and it is over all classes seen.
        lr: Of the head; its weight decay is 0.
        train_old_head: Whether rows of classes that are not here are trained too; this matters with rehearsal alone.
        selection, codec: Of exemplars.
        train_first: Whether the first experience trains the backbone before it is frozen; ``auto``: only where
            ``model.weights`` gives no public weights.
        first_head: Head of that training, dropped after it; ``linear`` or ``cosine``.

    Source:
        Baseline: logistic regression on fixed features, by stochastic gradients.
    """

    net: GrowingNet
    head: Head
    first_head: Head | None

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
        super().__init__(make_net, budget)
        one_of((True, False), "linear_probe", rehearsal=rehearsal, train_old_head=train_old_head)
        at_least(0, "linear_probe", lr=lr)
        self.lr, self.scope, self.old_rows_learn = lr, "all" if rehearsal else "new", train_old_head
        self.trained = trains_first(self, train_first)
        self.head_kind = first_head
        self.keep("first_head", None, kind="temporary")
        self.keep("head", tuned_head(self), kind="parameters")
        if rehearsal:
            self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")

    def build_net(self) -> GrowingNet:
        return features_only(self.make_net)

    def grow_net(self, signature: Signature) -> None:
        self.first_head = first_head(self, signature, self.head_kind, self.trained)
        grow_small_rows(self, self.head, signature)

    def phases(self, experience: Experience) -> Iterator[Phase]:
        yield from then_frozen(self, experience)
        groups = [{"params": list(self.head.parameters()), "lr": self.lr, "weight_decay": 0.0}]
        yield Phase("head", self.training_set(experience), self.loss, groups, fresh=False)

    def loss(self, batch: Batch) -> Tensor:
        logits = self.head(self.net(batch.images).features)
        return scoped_cross_entropy(logits, batch.slots, self.first_slot, self.scope)

    def adjust_gradients(self, batch: Batch) -> None:
        if not self.old_rows_learn:
            hold_old_rows(self.head, self.first_slot)

    def after_experience(self, experience: Experience) -> None:
        store_exemplars(self, experience, Assembled(self._features, self.head, [self.net]))

    def predict(self, images: Tensor) -> Tensor:
        """The head's logits."""
        return self.head(self._features(images))  # type: ignore[no-any-return]

    def _features(self, images: Tensor) -> Tensor:
        return self.net(images).features
