"""TENT: lower the entropy of predictions by gamma and beta of the norm layers."""

from __future__ import annotations

from torch import Tensor

from cil.adapt.base import Adapter, SourceModel
from cil.adapt.parts.losses import entropy, gradients
from cil.adapt.parts.norms import train_norms, use_batch_statistics
from cil.adapt.parts.optimizer import CarriedOptimizer, make_optimizer
from cil.adapt.registry import register


@register("tent")
class Tent(Adapter):
    """Entropy minimisation, one step a batch, by gamma and beta of the norm layers; statistics are the batch's.

    The stream's protocol (``reset_each_shift``) decides whether it starts again at each domain.

    Args:
        optimizer: ``adam``, ``sgd`` (Nesterov), or None: Adam for networks of about 10 or 100 classes (CIFAR), SGD for
            about 1000 (ImageNet).
        lr: Learning rate; None: 1e-3, and 2.5e-4 for about 1000 classes.
        momentum: Momentum of SGD.

    Raises:
        ConfigError: for a network without norm layers.

    Source:
        Wang et al., "Tent: Fully test-time adaptation by entropy minimization", ICLR 2021, arXiv:2006.10726, section 3.
        The answer is that before the step, as in the authors' code. Batches of 200 on CIFAR and 64 on ImageNet there.
    """

    optimizer: CarriedOptimizer

    def __init__(
        self, source: SourceModel, *, optimizer: str | None = None, lr: float | None = None, momentum: float = 0.9
    ) -> None:
        super().__init__(source)
        tuned = train_norms(use_batch_statistics(self.net), "tent")
        made = make_optimizer(tuned, "tent", self.num_classes, optimizer, lr, momentum)
        self.keep("optimizer", made, kind="optimizer", lifetime="carried")

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        logits = self.logits(images)
        loss = entropy(logits).mean()  # section 3.1
        self.optimizer.step(gradients(loss, self.optimizer.tuned))
        return logits.detach()
