"""CoTTA: learn from a slow teacher, averaged over views where the source is unsure, and restore some weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cil.adapt.base import Adapter, SourceModel, check
from cil.adapt.parts.losses import cross_entropy, gradients
from cil.adapt.parts.norms import freeze_reversibly, use_batch_statistics
from cil.adapt.parts.optimizer import CarriedOptimizer, default_by_classes, make_optimizer, move_teacher
from cil.adapt.parts.views import generator_on, random_view
from cil.adapt.registry import register
from cil.models import frozen_copy


@register("cotta")
class CoTTA(Adapter):
    """Continual test-time adaptation of all weights, by a weight-averaged and augmentation-averaged teacher.

    Three networks are carried (student, teacher, source) and the moments of all weights; all three use the statistics
    of the batch.

    Args:
        threshold: p_th: where the source's mean confidence is below it, the teacher's logits are averaged over views.
            None: 0.92, 0.72, 0.1 for networks of about 10, 100, 1000 classes. It depends on how the source model is
            calibrated.
        restore: p, probability that a weight goes back to its source value after a step. None: 0.01, 0.01, 0.001.
        momentum: m, momentum of the teacher's average.
        views: N, random views that are averaged (``random_view``: one draw a view, for all images).
        loss: ``one_way``: cross-entropy of the student under the teacher; ``symmetric``: half of it and half of the
            reverse. None: one-way for about 10 and 100 classes, symmetric for about 1000.
        optimizer: ``adam`` or ``sgd`` (Nesterov, 0.9); None: Adam, and SGD for about 1000 classes.
        lr: Learning rate; None: 1e-3, and 1e-2 for about 1000 classes.

    Source:
        Wang et al., "Continual test-time domain adaptation", CVPR 2022, arXiv:2203.13591; equations by number. Defaults
        by data set, and batch statistics in all three networks, as in the authors' code; the symmetric loss is that of
        their later ImageNet version.
    """

    toy = {"views": 2}
    teacher: nn.Module
    source_net: nn.Module
    optimizer: CarriedOptimizer

    def __init__(
        self,
        source: SourceModel,
        *,
        threshold: float | None = None,
        restore: float | None = None,
        momentum: float = 0.999,
        views: int = 32,
        loss: str | None = None,
        optimizer: str | None = None,
        lr: float | None = None,
    ) -> None:
        super().__init__(source)
        check.between(0, 1, "cotta", threshold=threshold, restore=restore, momentum=momentum)
        check.at_least(1, "cotta", views=views)
        check.one_of((None, "one_way", "symmetric"), "cotta", loss=loss)
        classes = self.num_classes
        self.threshold = default_by_classes(threshold, classes, {10: 0.92, 100: 0.72, 1000: 0.1})
        self.restore = default_by_classes(restore, classes, {10: 0.01, 100: 0.01, 1000: 0.001})
        self.momentum, self.views = momentum, views
        kind = default_by_classes(loss, classes, {10: "one_way", 100: "one_way", 1000: "symmetric"})
        self.symmetric = kind == "symmetric"
        freeze_reversibly(use_batch_statistics(self.net))
        self.keep("teacher", frozen_copy(self.net), kind="teacher", lifetime="carried")
        self.keep("source_net", frozen_copy(self.net), kind="teacher", lifetime="carried")
        tuned = list(self.net.requires_grad_(True).parameters())
        made = make_optimizer(tuned, "cotta", classes, optimizer, lr, 0.9, imagenet_lr=1e-2)
        self.keep("optimizer", made, kind="optimizer", lifetime="carried")

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        target = self._target(images)
        logits = self.logits(images)
        loss = cross_entropy(target, logits)  # equation 1
        if self.symmetric:
            loss = 0.5 * loss + 0.5 * cross_entropy(logits, target)
        self.optimizer.step(gradients(loss.mean(), self.optimizer.tuned))
        move_teacher(self.teacher, self.net, self.momentum)  # equation 2
        self._restore()
        return target  # equation 6: the teacher answers

    @torch.no_grad()
    def _target(self, images: Tensor) -> Tensor:
        """Equations 3 to 5: the teacher's logits, averaged over views where the source is not confident."""
        confidence = self.logits(images, self.source_net).float().softmax(1).amax(1).mean()
        if confidence >= self.threshold:
            return self.logits(images, self.teacher)
        seen = (random_view(images, self.generator(f"view {view}")) for view in range(self.views))
        return torch.stack([self.logits(view, self.teacher) for view in seen]).mean(0)

    @torch.no_grad()
    def _restore(self) -> None:
        """Equations 7 and 8: each value of each weight goes back to the source with probability p."""
        for place, (own, old) in enumerate(zip(self.net.parameters(), self.source_net.parameters(), strict=True)):
            generator = generator_on(self.generator(f"restore {place}"), own.device)
            back = torch.rand(own.shape, generator=generator, device=own.device) < self.restore
            own.copy_(torch.where(back, old, own))
