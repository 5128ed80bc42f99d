"""A-GEM: finetune along gradients that do not raise the loss on a batch of exemplars."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.contract.plain import not_at_first, plain_at_first
from cil.data import Batch, Samples
from cil.memory import Budget, ExemplarMemory
from cil.models import NetFactory
from cil.strategies.base import Strategy, check
from cil.strategies.parts import draw_batch, store_exemplars
from cil.strategies.registry import register
from cil.streams import Experience


@register("agem")
class AGEM(Strategy):
    """Averaged gradient episodic memory: exemplars are never trained on, they only bend the gradient.

    Args:
        reference: Exemplars of the reference gradient; None for as many as there are new images.
        selection, codec: See ``ExemplarMemory``.

    Source:
        Chaudhry, Ranzato, Rohrbach, Elhoseiny. ICLR 2019, arXiv:1812.00420, equation 11. Cross-entropy over all outputs
        for both gradients. Departure: floor(M / C) exemplars a class in place of M / T a task, which would need to know
        T. Weight decay and momentum act after the projection.
    """

    memory: ExemplarMemory
    of_exemplars: dict[str, Tensor] | None

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        reference: int | None = None,
        selection: str = "random",
        codec: str = "raw",
    ) -> None:
        super().__init__(make_net, budget)
        check.at_least(1, "agem", reference=reference)
        self.reference = reference
        self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")
        self.keep("of_exemplars", None, kind="gradients")  # g_ref, in the step that is taken

    def training_set(self, experience: Experience) -> Samples:
        return experience.train

    @plain_at_first()
    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)

    @not_at_first
    def adjust_gradients(self, batch: Batch) -> None:
        exemplars = draw_batch(self, self.memory.samples(), self.reference or len(batch), "reference")
        if exemplars is not None:
            gradients = self.gradient(self.loss(exemplars))
            self.of_exemplars = {str(place): gradient for place, gradient in enumerate(gradients)}
            project(self.trainable(), gradients)

    def after_experience(self, experience: Experience) -> None:
        store_exemplars(self, experience)


@torch.no_grad()
def project(parameters: list[torch.nn.Parameter], reference: list[Tensor]) -> None:
    """Remove from the gradients g the part against the reference r: g - (<g, r> / ||r||^2) r where <g, r> < 0.

    Done without reading a number from the device. A reference of zeros changes nothing.

    Args:
        parameters: Their ``grad`` is changed in place.
        reference: One gradient for each.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([1.0, -2.0])
    >>> project([weight], [torch.tensor([1.0, 1.0])])
    >>> weight.grad.tolist()
    [1.5, -1.5]
    """
    pairs = [(p.grad, r) for p, r in zip(parameters, reference, strict=True) if p.grad is not None]
    product = torch.stack([(g * r).sum() for g, r in pairs]).sum()
    square = torch.stack([r.square().sum() for r in reference]).sum()
    factor = product.clamp(max=0) / square.clamp(min=torch.finfo(square.dtype).tiny)
    for gradient, r in pairs:
        gradient.sub_(factor * r)
