"""SAR: entropy minimisation on sure images, sharpness-aware, with a way back from collapse."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cil.adapt.base import Adapter, SourceModel, check
from cil.adapt.parts.losses import any_true, entropy, gradients, mean_where
from cil.adapt.parts.norms import is_transformer, late_layers, train_norms, use_batch_statistics
from cil.adapt.parts.optimizer import CarriedOptimizer, assign, flat, make_optimizer
from cil.adapt.registry import register
from cil.errors import ConfigError

UNKNOWN = -1.0  # an average of entropies never is


@register("sar")
class SAR(Adapter):
    """Sharpness-aware and reliable entropy minimisation, by gamma and beta of the norm layers but the last ones.

    Two forward and backward passes a batch. Nothing moves where no image is sure in both.

    Args:
        margin: E0 / ln K: images whose entropy is not below E0 are left out.
        rho: Length of the perturbation of the weights.
        recover: e0: where the moving average of the loss falls below it, all goes back to the source; 0 is never. With
            few classes entropies are small, and 0.2 may fire again and again.
        memory: Share of the old average of the loss.
        leave: Names of modules whose norm layers are not trained; None: the last of four stages and the layers after it
            (``layer4``, ``stages[-1]``; blocks 9 to 11 of 12 and the final norm), and none of networks of three stages,
            in which the authors' code finds no ``layer4``; [] for none.
        optimizer: ``sgd`` or ``adam``.
        lr: Learning rate; None: 1e-3, and 2.5e-4 for convolutional networks of about 1000 classes, in batches of 64.
        momentum: Momentum of SGD, without Nesterov's.

    Raises:
        ConfigError: for a network without norm layers, or one whose last stage is not known.

    Source:
        Niu et al., "Towards stable test-time adaptation in dynamic wild world", ICLR 2023, arXiv:2302.12400; equations
        by number. Departure: where no image is left, the step is skipped; the authors' code goes on with the gradient
        of a mean over nothing.
    """

    optimizer: CarriedOptimizer
    start: Tensor  # (P,), the source's gamma and beta
    average: Tensor  # (), of the loss; below 0 before the first

    def __init__(
        self,
        source: SourceModel,
        *,
        margin: float = 0.4,
        rho: float = 0.05,
        recover: float = 0.2,
        memory: float = 0.9,
        leave: Sequence[str] | None = None,
        optimizer: str = "sgd",
        lr: float | None = None,
        momentum: float = 0.9,
    ) -> None:
        super().__init__(source)
        check.at_least(0, "sar", margin=margin, rho=rho, recover=recover)
        check.between(0, 1, "sar", memory=memory)
        self.bound = margin * math.log(self.num_classes)
        self.rho, self.recover, self.memory = rho, recover, memory
        left = late_layers(self.net, "sar") if leave is None else [self._module(name) for name in leave]
        tuned = train_norms(use_batch_statistics(self.net), "sar", left)
        rate = 1e-3 if is_transformer(self.net) else 2.5e-4
        made = make_optimizer(tuned, "sar", self.num_classes, optimizer, lr, momentum, imagenet_lr=rate, nesterov=False)
        self.keep("optimizer", made, kind="optimizer", lifetime="carried")
        self.keep("start", flat(tuned).detach(), kind="teacher", lifetime="carried")
        self.keep("average", torch.full((), UNKNOWN, device=tuned[0].device), kind="statistics")

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        logits = self.logits(images)
        uncertain = entropy(logits)  # (N,)
        sure = uncertain.detach() < self.bound  # equation 2
        if any_true(sure):
            self._step(images, sure, flat(gradients(mean_where(uncertain, sure), self.optimizer.tuned)))
        return logits.detach()

    def _step(self, images: Tensor, sure: Tensor, gradient: Tensor) -> None:
        tuned = self.optimizer.tuned
        before = flat(tuned).detach()
        assign(tuned, before + self.rho * gradient / (gradient.norm() + 1e-12))  # equation 4
        uncertain = entropy(self.logits(images))
        still = sure & (uncertain.detach() < self.bound)
        if not any_true(still):
            assign(tuned, before)
            return
        loss = mean_where(uncertain, still)
        perturbed = gradients(loss, tuned)  # equation 5: the gradient there, the step from here
        assign(tuned, before)
        self.optimizer.step(perturbed)
        self._recover(loss.detach())

    @torch.no_grad()
    def _recover(self, loss: Tensor) -> None:
        """Section 4.2, model recovery: a loss near zero means that all images are given one class."""
        average = self.memory * self.average + (1 - self.memory) * loss
        self.average = torch.where(self.average < 0, loss, average)
        if self.average < self.recover:
            assign(self.optimizer.tuned, self.start)
            self.optimizer.restart()
            self.average = torch.full_like(self.average, UNKNOWN)

    def _module(self, name: str) -> torch.nn.Module:
        try:
            return self.net.get_submodule(name)
        except AttributeError as error:
            known = ", ".join(child for child, _ in self.net.named_children())
            raise ConfigError(f"adapter.leave of sar: the network has no module '{name}'; it has {known}") from error
