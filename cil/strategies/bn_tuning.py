"""BN tuning: a frozen backbone of which the scales and shifts of batch norms alone are trained, and a linear head."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from cil.contract import Phase
from cil.data import Batch
from cil.errors import ConfigError
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


@register("bn_tuning")
class BNTuning(Strategy):
    """Gamma and beta of all batch norms learn; convolutions and running statistics stand still.

    The tuned values are held beside the network, which is never written to: public weights stay a reference.

    Args:
        rehearsal, train_old_head, selection, codec, train_first, first_head: As of ``linear_probe``.
        lr: Of gamma and beta.
        head_lr: Of the head. Nothing decays.

    Raises:
        ConfigError: for a value out of range, or a backbone without batch norms.

    Source:
        Frankle, Schwab, Morcos, "Training BatchNorm and only BatchNorm", ICLR 2021, arXiv:2003.00152, on trained
        instead of random weights. Departure: statistics are those of the frozen network, as of one experience they are
        biased towards its classes.
    """

    net: GrowingNet
    head: Head
    first_head: Head | None
    tuned: nn.ParameterList

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        rehearsal: bool = False,
        lr: float = 0.01,
        head_lr: float = 0.1,
        train_old_head: bool = True,
        selection: str = "herding",
        codec: str = "raw",
        train_first: bool | str = "auto",
        first_head: str = "linear",
    ) -> None:
        super().__init__(make_net, budget)
        one_of((True, False), "bn_tuning", rehearsal=rehearsal, train_old_head=train_old_head)
        at_least(0, "bn_tuning", lr=lr, head_lr=head_lr)
        self.lr, self.head_lr = lr, head_lr
        self.scope, self.old_rows_learn = "all" if rehearsal else "new", train_old_head
        self.trained = trains_first(self, train_first)
        self.head_kind = first_head
        own = dict(self.net.named_parameters())
        norms = [name for name, layer in self.net.named_modules() if isinstance(layer, _BatchNorm) and layer.affine]
        self.names = [f"{name}.{which}" for name in norms for which in ("weight", "bias")]
        if not self.names:
            raise ConfigError(
                f"bn_tuning needs a backbone with batch norms; a {type(self.net.backbone).__name__} has none; choose "
                f"another model.name"
            )
        self.keep("first_head", None, kind="temporary")
        self.keep("tuned", nn.ParameterList(own[name].detach().clone() for name in self.names), kind="parameters")
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
        if experience.index == 0:  # the network may just have been trained
            own = dict(self.net.named_parameters())
            with torch.no_grad():
                for name, value in zip(self.names, self.tuned, strict=True):
                    value.copy_(own[name])
        groups = [
            {"params": list(self.tuned.parameters()), "lr": self.lr, "weight_decay": 0.0},
            {"params": list(self.head.parameters()), "lr": self.head_lr, "weight_decay": 0.0},
        ]
        yield Phase("norms", self.training_set(experience), self.loss, groups, fresh=False)

    def loss(self, batch: Batch) -> Tensor:
        logits = self.head(self._features(batch.images))
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
        tuned = dict(zip(self.names, self.tuned, strict=True))
        return functional_call(self.net, tuned, (images,)).features  # type: ignore[no-any-return]
