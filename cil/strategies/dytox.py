"""DyTox: one transformer for all tasks, and for each task a token that extracts its features."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.contract import Phase
from cil.data import Batch
from cil.errors import ConfigError
from cil.memory import Budget, ExemplarMemory
from cil.models import NetFactory, frozen_copy
from cil.models.convit import ConViT, TaskHead, TaskTokenNet
from cil.strategies.base import Strategy, check
from cil.strategies.parts import balanced_set, distillation, store_exemplars
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("dytox")
class DyTox(Strategy):
    """Dynamic token expansion: a new token and classifier for each experience, old ones frozen, the rest shared.

    Its encoder is the configured model, which must be ``convit``; width and heads of the task-attention block are its.

    Args:
        divergence: Weight of the divergence loss: a head on the newest embedding tells new classes from each other and
            from all old ones together. It is gone after training.
        temperature: Temperature of the distillation, which has no factor of its square; > 0.
        kd_mean: The distillation term is a mean over ``outputs`` (batch and old outputs, as the official code and its
            numbers have it), or over ``batch`` alone, which weighs C_o times as much.
        tuning_epochs: Epochs of the second phase on as many images of each new class as of each old one; 0 for none.
        tuning_lr: Its constant learning rate.
        tuning_teacher: Whether it distils too.
        selection, codec: See ``ExemplarMemory``. Chosen on the embeddings of all tasks side by side.

    Raises:
        ConfigError: for a value out of range, and for a model that is not ``convit``.

    Source:
        Douillard, Rame, Couairon, Cord. CVPR 2022, arXiv:2111.11326, section 3. Departures: exemplars are chosen after
        the second phase, with the network that is carried; old tokens and classifiers stay frozen in it; an experience
        without new classes adds no token.
    """

    toy_model = {"name": "convit", "options": {"width": 32, "depth": 2, "heads": 4}}
    toy = {"tuning_epochs": 2}
    net: TaskTokenNet
    memory: ExemplarMemory
    teacher: TaskTokenNet | None
    divergence_head: TaskHead | None

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        divergence: float = 0.1,
        temperature: float = 1.0,
        kd_mean: str = "outputs",
        tuning_epochs: int = 20,
        tuning_lr: float = 5e-5,
        tuning_teacher: bool = False,
        selection: str = "herding",
        codec: str = "raw",
    ) -> None:
        super().__init__(make_net, budget)
        check.at_least(0, "dytox", divergence=divergence, tuning_epochs=tuning_epochs)
        check.above(0, "dytox", temperature=temperature, tuning_lr=tuning_lr)
        check.one_of(("outputs", "batch"), "dytox", kd_mean=kd_mean)
        self.divergence, self.temperature, self.kd_mean = divergence, temperature, kd_mean
        self.tuning_epochs, self.tuning_lr, self.tuning_teacher = tuning_epochs, tuning_lr, tuning_teacher
        self.old_share = 0.0
        self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")
        self.keep("teacher", None, kind="teacher")
        self.keep("divergence_head", None, kind="temporary")

    def build_net(self) -> TaskTokenNet:
        encoder = self.make_net.backbone()
        if not isinstance(encoder, ConViT):
            raise ConfigError(
                f"strategy dytox needs the patches of a ConViT, not a {type(encoder).__name__}: set model=convit "
                f"(model.name=convit)"
            )
        return TaskTokenNet(encoder, self.make_net.normalise())

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        self.old_share = 1 - len(signature.present) / self.num_classes  # C_o / C where no class re-appears

    def before_experience(self, experience: Experience) -> None:
        if self.num_classes:
            self.teacher = frozen_copy(self.net)

    def prepare(self, experience: Experience) -> None:
        if self.old_classes and self.num_classes > self.old_classes and self.divergence:
            head = TaskHead(self.net.token_dim).to(self.device)
            head.linear.grow(self.num_classes - self.old_classes + 1)  # output 0 for all old classes
            self.divergence_head = head

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """(1 - l) L_clf + l L_kd + divergence L_div, with l the share of classes that are old."""
        logits, terms = self._classes(batch)
        if self.teacher is not None:
            old = self.teacher(batch.images).logits  # (N, C_o)
            distilled = distillation(logits[:, : old.shape[1]], old, self.temperature)
            distilled = distilled / old.shape[1] if self.kd_mean == "outputs" else distilled
            terms["classes"] = (1 - self.old_share) * terms["classes"]
            terms["distillation"] = self.old_share * distilled  # L_kd, section 3
        return terms

    def _classes(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits, and the terms that need no teacher."""
        output = self.net(batch.images)
        terms = {"classes": binary_cross_entropy(output.logits, batch.slots)}  # L_clf
        if self.divergence_head is not None:  # L_div
            scores = self.divergence_head(output.features[:, -self.net.token_dim :])
            target = torch.clamp(batch.slots - self.old_classes + 1, min=0)
            terms["divergence"] = self.divergence * binary_cross_entropy(scores, target)
        return output.logits, terms

    def tuning_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of the second phase: without divergence, and without distillation unless it is asked for."""
        terms = dict(self.loss(batch)) if self.tuning_teacher else self._classes(batch)[1]
        return {name: term for name, term in terms.items() if name != "divergence"}

    def phases(self, experience: Experience) -> Iterator[Phase]:
        yield Phase("main", self.training_set(experience), self.loss)
        if not (self.old_classes and self.tuning_epochs):
            return
        balanced = balanced_set(self, experience)
        if len(balanced):
            frozen = {id(parameter) for parameter in self.net.encoder.parameters()}
            tuned = [parameter for parameter in self.trainable() if id(parameter) not in frozen]
            yield Phase(
                "tuning", balanced, self.tuning_loss, tuned, main=False,
                epochs=self.tuning_epochs, lr=self.tuning_lr, schedule="constant",
            )  # fmt: skip

    def after_experience(self, experience: Experience) -> None:
        store_exemplars(self, experience)


def binary_cross_entropy(logits: Tensor, slots: Tensor) -> Tensor:
    """Mean over images and outputs of the binary cross-entropy between logits (N, C) and one-hot slots (N,)."""
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(slots, logits.shape[1]).to(logits.dtype))
