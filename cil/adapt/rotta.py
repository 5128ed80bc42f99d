"""RoTTA: slow batch-norm statistics, a balanced bank of recent images, and a teacher that answers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cil.adapt.base import Adapter, SourceModel, check
from cil.adapt.parts.bank import BalancedBank
from cil.adapt.parts.losses import cross_entropy, entropy, gradients
from cil.adapt.parts.norms import MixedNorm2d, freeze_reversibly, replace_batch_norms
from cil.adapt.parts.optimizer import CarriedOptimizer, move_teacher
from cil.adapt.parts.views import random_view
from cil.adapt.registry import register
from cil.errors import ConfigError
from cil.models import frozen_copy


@register("rotta")
class RoTTA(Adapter):
    """Robust test-time adaptation: gamma and beta of batch norm learn from a bank of images, not from the batch.

    Args:
        capacity: N, images in the bank.
        every: Test images between two updates.
        share: alpha, share of the batch in the moving statistics.
        momentum: Momentum of the teacher's average (1 - nu).
        age_weight: lambda_t.
        entropy_weight: lambda_u.
        lr: Learning rate of Adam.

    Raises:
        ConfigError: for a network without ``BatchNorm2d``.

    Source:
        Yuan, Xie, Li, "Robust test-time adaptation in dynamic scenarios", CVPR 2023, arXiv:2303.13899; equations by
        number. Departures: the bank holds bytes, which is exact for images of 256 levels; in an update only the norms
        are in training mode, so that dropout, where a network has some, stays off.
    """

    toy = {"capacity": 12, "every": 8}
    teacher: nn.Module
    bank: BalancedBank
    optimizer: CarriedOptimizer

    def __init__(
        self,
        source: SourceModel,
        *,
        capacity: int = 64,
        every: int = 64,
        share: float = 0.05,
        momentum: float = 0.999,
        age_weight: float = 1.0,
        entropy_weight: float = 1.0,
        lr: float = 1e-3,
    ) -> None:
        super().__init__(source)
        check.at_least(1, "rotta", capacity=capacity, every=every)
        check.between(0, 1, "rotta", share=share, momentum=momentum)
        check.at_least(0, "rotta", age_weight=age_weight, entropy_weight=entropy_weight, lr=lr)
        self.every, self.momentum = every, momentum
        freeze_reversibly(self.net)
        norms = replace_batch_norms(self.net, lambda norm: MixedNorm2d(norm, share, follow=True))
        tuned = [value for norm in norms for value in (norm.weight, norm.bias) if value is not None]
        if not tuned:
            raise ConfigError(
                f"rotta trains batch norm, and this {type(self.net).__name__} has none; choose another model"
            )
        self.keep("teacher", frozen_copy(self.net), kind="teacher", lifetime="carried")
        for value in tuned:
            value.requires_grad_(True)
        bank = BalancedBank(
            capacity, self.num_classes, self.image_shape, age_weight, entropy_weight, device=tuned[0].device
        )
        self.keep("bank", bank, kind="exemplars")
        self.keep("optimizer", CarriedOptimizer(tuned, "adam", lr), kind="optimizer", lifetime="carried")

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            answer = self.logits(images, self.teacher)
            labels, uncertain = answer.argmax(1), entropy(answer)
        start = 0
        while start < len(images):
            stop = start + self.every - int(self.bank.arrived) % self.every  # up to the next update
            self.bank.add(images[start:stop], labels[start:stop], uncertain[start:stop])
            if int(self.bank.arrived) % self.every == 0:
                self._update(self.generator(f"view {start}"))
            start = stop
        return answer

    def fill(self, images: Tensor) -> None:
        places = torch.arange(self.bank.capacity, device=images.device)
        self.bank.add(images[places % len(images)], places % self.num_classes, torch.zeros(len(places)))
        self.bank.arrived.fill_(self.every - 1)  # the next image makes an update

    def learned_from(self, images: Tensor) -> Tensor:
        return self.bank.held()[0]

    def _update(self, generator: torch.Generator) -> None:
        images, ages = self.bank.held()
        _set_norm_mode(self.net, True)
        _set_norm_mode(self.teacher, True)
        with torch.no_grad():
            target = self.logits(images, self.teacher)
        loss = cross_entropy(target, self.logits(random_view(images, generator)))
        weight = torch.sigmoid(-ages / self.bank.capacity)  # equation 9: exp(-a / N) / (1 + exp(-a / N))
        self.optimizer.step(gradients((weight * loss).mean(), self.optimizer.tuned))  # equation 8
        _set_norm_mode(self.net, False)
        _set_norm_mode(self.teacher, False)
        move_teacher(self.teacher, self.net, self.momentum)  # equation 10


def _set_norm_mode(net: nn.Module, mode: bool) -> None:
    """Let batch norms mix in the batch and move on (equations 2 and 3), or use their stored statistics."""
    for layer in net.modules():
        if isinstance(layer, MixedNorm2d):
            layer.training = mode
