"""A linear head that is trained on features of a frozen backbone, with exemplars or without."""

from __future__ import annotations

from torch import Tensor

from cil.data import Batch
from cil.memory import ExemplarMemory
from cil.models import Head
from cil.strategies.base import check
from cil.strategies.parts.frozen_backbone import FrozenBackbone, fresh_head
from cil.strategies.parts.frozen_heads import FeaturesAndHead, freeze_old_rows, grow_head, scoped_cross_entropy
from cil.strategies.parts.rehearsal import store_exemplars
from cil.strategies.parts.setup_warnings import method_name
from cil.streams import Experience, Signature


class FrozenLinear(FrozenBackbone):
    """Logits of a head on ``features``; without exemplars the softmax is over the new classes alone."""

    head: Head

    def keep_head(self, rehearsal: bool, train_old_head: bool, selection: str, codec: str) -> None:
        """Keep the head, and a memory where it rehearses; arguments as of ``linear_probe``."""
        check.one_of((True, False), method_name(self), rehearsal=rehearsal, train_old_head=train_old_head)
        self.scope, self.old_rows_learn = "all" if rehearsal else "new", train_old_head
        self.keep("head", fresh_head(self), kind="parameters")
        memory = ExemplarMemory(codec, selection)  # which refuses unknown names whether it is kept or not
        if rehearsal:
            self.keep("memory", memory, kind="exemplars")

    def features(self, images: Tensor) -> Tensor:
        """(N, D) of images in [0, 1]: those of ``net``, unless more is learned in it."""
        return self.net(images).features

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        grow_head(self, self.head, signature)

    def loss(self, batch: Batch) -> Tensor:
        return scoped_cross_entropy(self.predict(batch.images), batch.slots, self.first_slot, self.scope)

    def adjust_gradients(self, batch: Batch) -> None:
        if not self.old_rows_learn:
            freeze_old_rows(self.head, self.first_slot)

    def after_experience(self, experience: Experience) -> None:
        store_exemplars(self, experience, FeaturesAndHead(self.features, self.head, [self.net]))

    def predict(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))
