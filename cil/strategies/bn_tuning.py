"""BN tuning: a frozen backbone whose batch-norm scales and shifts are trained, and a linear head."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from cil.contract import Phase
from cil.errors import ConfigError
from cil.memory import Budget
from cil.models import NetFactory
from cil.strategies.base import check
from cil.strategies.parts.frozen_linear import FrozenLinear
from cil.strategies.registry import register
from cil.streams import Experience


@register("bn_tuning")
class BNTuning(FrozenLinear):
    """Gamma and beta of all batch norms learn; convolutions and running statistics stay as they are.

    The tuned values are held beside the network, which is never written to: public weights stay a reference.

    Args:
        rehearsal, train_old_head, selection, codec, train_first, first_head: See ``linear_probe``.
        lr: Learning rate of gamma and beta.
        head_lr: Learning rate of the head. Nothing decays.

    Raises:
        ConfigError: for a value out of range, or a backbone without batch norms.

    Source:
        Frankle, Schwab, Morcos, "Training BatchNorm and only BatchNorm", ICLR 2021, arXiv:2003.00152, on trained
        instead of random weights. Departure: statistics are those of the frozen network, as those of one experience are
        biased towards its classes.
    """

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
        super().__init__(make_net, budget, train_first, first_head)
        check.at_least(0, "bn_tuning", lr=lr, head_lr=head_lr)
        self.lr, self.head_lr = lr, head_lr
        own = dict(self.net.named_parameters())
        norms = [name for name, layer in self.net.named_modules() if isinstance(layer, _BatchNorm) and layer.affine]
        self.names = [f"{name}.{which}" for name in norms for which in ("weight", "bias")]
        if not self.names:
            raise ConfigError(
                f"bn_tuning needs a backbone with batch norms; a {type(self.net.backbone).__name__} has none; choose "
                f"another model.name"
            )
        self.keep("tuned", nn.ParameterList(own[name].detach().clone() for name in self.names), kind="parameters")
        self.keep_head(rehearsal, train_old_head, selection, codec)

    def phases(self, experience: Experience) -> Iterator[Phase]:
        yield from self.train_then_freeze(experience)
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

    def features(self, images: Tensor) -> Tensor:
        """(N, D) with the tuned values in place of those of ``net``."""
        tuned = dict(zip(self.names, self.tuned, strict=True))
        found: Tensor = functional_call(self.net, tuned, (images,)).features
        return found
