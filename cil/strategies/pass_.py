"""PASS: prototype augmentation and self-supervision; no images are kept, only one mean for each class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data import Batch
from cil.errors import ConfigError
from cil.memory import Budget
from cil.models import GrowingNet, NetFactory, extract, frozen_copy
from cil.strategies.base import Strategy, check
from cil.strategies.registry import register
from cil.streams import Experience, Signature

TURNS = 4  # quarter turns of a square image, each a label of its own


@register("pass")
class PASS(Strategy):
    """Learn four rotations of every class as classes; recall old ones by noise around their means.

    Args:
        distillation: Weight of the feature distillation, which is one norm over the features of the whole batch (as in
            the public code: it grows with the root of the batch size); >= 0.
        prototypes: Weight of the loss on pseudo-features; >= 0.
        temperature: Divides all logits in the losses; > 0.
        pseudo: Pseudo-features a step.
        pseudo_by_classes: They are ``pseudo * floor(C_o / C_n)``, as PyCIL has it: none while more classes arrive than
            are known.
        radius: Classes over which the variance of the noise is averaged: ``all`` seen, each as it was when it arrived
            (PyCIL), or those of the ``first`` experience.

    Raises:
        ConfigError: for images that are not square, which cannot be turned.

    Source:
        Zhu, Zhang, Wang, Yin, Liu. CVPR 2021, "Prototype Augmentation and Self-Supervision for Incremental Learning",
        as PyCIL has it, but for ``pseudo_by_classes``. Departures: any backbone (ResNet-18 with CBAM there); a class of
        one image has no variance, and counts as 0.
    """

    teacher: GrowingNet | None
    means: Tensor  # (C, D)
    spread: Tensor  # radius of the noise, the root of a mean variance

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        distillation: float = 10.0,
        prototypes: float = 10.0,
        temperature: float = 0.1,
        pseudo: int = 64,
        pseudo_by_classes: bool = False,
        radius: str = "all",
    ) -> None:
        super().__init__(make_net, budget)
        check.at_least(0, "pass", distillation=distillation, prototypes=prototypes, pseudo=pseudo)
        check.above(0, "pass", temperature=temperature)
        check.one_of(("all", "first"), "pass", radius=radius)
        self.distillation, self.prototypes, self.temperature = distillation, prototypes, temperature
        self.pseudo, self.pseudo_by_classes, self.radius = pseudo, pseudo_by_classes, radius
        self.keep("teacher", None, kind="teacher")
        self.keep("means", torch.empty(0, self.net.feature_dim), kind="prototypes")
        self.keep("spread", torch.zeros(()), kind="statistics")

    def grow(self, signature: Signature) -> None:
        if signature.image_shape[1] != signature.image_shape[2]:
            height, width = signature.image_shape[1:]
            raise ConfigError(f"strategy=pass turns images, which must be square; the stream has {height} x {width}")
        super().grow(signature)
        self.means = torch.cat([self.means, self.means.new_zeros(len(signature.new_slots), self.means.shape[1])])

    def grow_net(self, signature: Signature) -> None:
        self.net.grow(TURNS * len(signature.new_slots))  # label 4 y + r

    def before_experience(self, experience: Experience) -> None:
        if self.num_classes and self.distillation:
            self.teacher = frozen_copy(self.net)

    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        images = torch.cat([torch.rot90(batch.images, turns, (2, 3)) for turns in range(TURNS)])  # (4 N, ...)
        labels = torch.cat([TURNS * batch.slots + turns for turns in range(TURNS)])
        output = self.net(images)
        terms = {"classes": F.cross_entropy(output.logits / self.temperature, labels)}  # label augmentation
        if self.teacher is not None:
            # L_kd
            terms["distillation"] = self.distillation * (output.features - self.teacher(images).features).norm()
        count = self.pseudo if self.old_classes else 0
        if self.pseudo_by_classes:
            count *= self.old_classes // max(1, self.num_classes - self.old_classes)
        if count and self.prototypes:  # prototype augmentation
            features, slots = self.pseudo_features(count)
            logits = self.net.head(features) / self.temperature
            terms["prototypes"] = self.prototypes * F.cross_entropy(logits, TURNS * slots)
        return terms

    def pseudo_features(self, count: int) -> tuple[Tensor, Tensor]:
        """(count, D) normal around the means of old classes drawn at random, and their slots."""
        generator = self.generator(f"pseudo:{self.progress.step}")
        slots = torch.randint(self.old_classes, (count,), generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator).to(self.device)
        slots = slots.to(self.device)
        return self.means[slots] + self.spread * noise, slots  # mu_y + r e

    def after_experience(self, experience: Experience) -> None:
        variances = []
        for slot in experience.new_slots:
            features = extract(self.net, experience.train.of_class(slot))  # unturned, in evaluation mode
            self.means[slot] = features.mean(0)
            scatter = (features - self.means[slot]).square().sum()
            variances.append(scatter / max(1, len(features) - 1) / features.shape[1])  # trace of the covariance / d
        if variances and (self.radius == "all" or not self.old_classes):
            total = self.old_classes * self.spread.square() + torch.stack(variances).sum()
            self.spread = (total / self.num_classes).sqrt()

    def predict(self, images: Tensor) -> Tensor:
        """The unturned outputs 0, 4, 8, ...: (N, C, H, W) to (N, num_classes)."""
        logits: Tensor = self.net(images).logits
        return logits[:, ::TURNS]
