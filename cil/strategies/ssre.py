"""SSRE: self-sustaining representation expansion; the network widens for an experience, and folds back after it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.contract import Phase
from cil.data import Batch
from cil.errors import ConfigError
from cil.memory import Budget
from cil.models import GrowingNet, NetFactory, ParallelAdapters, adaptable, extract, frozen_copy
from cil.strategies.base import Strategy, check
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("ssre")
class SSRE(Strategy):
    """Learn in 1x1 adapters beside the old kernels; images that resemble an old class distil, the others are learned.

    Args:
        distillation: Weight of the feature distillation, a sum over the batch; >= 0.
        prototypes: Weight of the loss on the means of old classes, drawn at random, as many as images; >= 0.
        temperature: Divides all logits in the losses; > 0.
        freeze_norm: Whether batch norm stays as the first experience left it (PyCIL, which trains in evaluation mode
            after the first); else it normalises by batches, and its statistics move. Its weights never learn later.

    Raises:
        ConfigError: for a network without 3x3 convolutions.

    Source:
        Zhu, Zhai, Cao, Luo, Zha. CVPR 2022, arXiv:2203.06359, as PyCIL has it. Departures: the adapters exist only
        while an experience is learned, so that the carried network is the folded one; they start at zero, so that it
        begins as the old one; the augmentation is that of the stream in all experiences; the first experience has no
        adapters, which PyCIL trains there too, and the stem has one, which it has not there.
    """

    adapters: ParallelAdapters | None
    teacher: GrowingNet | None
    means: Tensor  # (C, D)

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        distillation: float = 1.0,
        prototypes: float = 10.0,
        temperature: float = 0.1,
        freeze_norm: bool = True,
    ) -> None:
        super().__init__(make_net, budget)
        check.at_least(0, "ssre", distillation=distillation, prototypes=prototypes)
        check.above(0, "ssre", temperature=temperature)
        if not adaptable(self.net):
            raise ConfigError("strategy=ssre widens 3x3 convolutions, and the network (model.name) has none")
        self.distillation, self.prototypes = distillation, prototypes
        self.temperature, self.freeze_norm = temperature, freeze_norm
        self.keep("adapters", None, kind="temporary")
        self.keep("teacher", None, kind="teacher")
        self.keep("means", torch.empty(0, self.net.feature_dim), kind="prototypes")

    def grow(self, signature: Signature) -> None:
        super().grow(signature)
        self.means = torch.cat([self.means, self.means.new_zeros(len(signature.new_slots), self.means.shape[1])])

    def before_experience(self, experience: Experience) -> None:
        if self.num_classes:
            self.teacher = frozen_copy(self.net)

    def prepare(self, experience: Experience) -> None:
        if self.old_classes:
            self.adapters = ParallelAdapters(self.net.backbone)

    def phases(self, experience: Experience) -> Iterator[Phase]:
        learns = None  # everything, in the first experience
        if self.adapters is not None:
            learns = [*self.adapters.parameters(), *self.net.head.parameters()]
        yield Phase("main", self.training_set(experience), self.loss, learns)

    def train_mode(self) -> None:
        super().train_mode()
        if self.adapters is not None and self.freeze_norm:
            self.net.eval()

    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        output = self.net(batch.images)
        classes = F.cross_entropy(output.logits / self.temperature, batch.slots, reduction="none")
        if self.teacher is None:
            return {"classes": classes.mean()}
        old = self.means[: self.old_classes]
        resemblance = self.resemblance(output.features.detach(), old)  # s
        moved = (output.features - self.teacher(batch.images).features).norm(dim=1)
        generator = self.generator(f"prototypes:{self.progress.step}")
        slots = torch.randint(len(old), (len(batch),), generator=generator).to(self.device)
        recalled = F.cross_entropy(self.net.head(old[slots]) / self.temperature, slots)
        return {
            "classes": ((1 - resemblance) * classes).mean(),  # prototype selection
            "distillation": self.distillation * (resemblance * moved).sum(),
            "prototypes": self.prototypes * recalled,
        }

    @staticmethod
    def resemblance(features: Tensor, means: Tensor) -> Tensor:
        """s = max_y cos(phi, mu_y): (N, D) and (C_o, D) to (N,) in [-1, 1]."""
        return (F.normalize(features) @ F.normalize(means).T).amax(1).clamp(-1, 1)

    def after_experience(self, experience: Experience) -> None:
        if self.adapters is not None:
            self.adapters.fold()  # structural reparameterisation
        for slot in experience.new_slots:
            self.means[slot] = extract(self.net, experience.train.of_class(slot)).mean(0)
