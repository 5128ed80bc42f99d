"""FOSTER: boost the old network by a new backbone, then compress both into one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.contract import Phase
from cil.contract.plain import not_at_first, plain_at_first
from cil.data import Batch
from cil.memory import Budget, ExemplarMemory
from cil.models import BranchingNet, GrowingNet, LinearHead, NetFactory, Output, freeze
from cil.strategies.base import Strategy, check
from cil.strategies.parts import distillation, store_exemplars
from cil.strategies.parts.heads import align_rows
from cil.strategies.registry import register
from cil.streams import Experience, Signature


def balance_weights(counts: Sequence[int], beta: float) -> Tensor:
    """Weights (C,) of classes by their effective numbers of images, with mean 1: few images, a large weight.

    w_k proportional to (1 - beta) / (1 - beta^n_k)

    Args:
        counts: Images n_k of each class; a class without any counts as one with one.
        beta: In [0, 1); 0 weighs all alike.

    Source: Cui et al., CVPR 2019, equation 2, as in Wang et al. 2022.

    >>> balance_weights([22] * 90 + [500] * 10, 0.96)[[0, 99]].tolist()  # doctest: +ELLIPSIS
    [1.04246..., 0.61781...]
    """
    number = torch.tensor(counts, dtype=torch.float64).clamp(min=1)
    weights = (1 - beta) / (1 - beta**number)
    return (weights * len(counts) / weights.sum()).float()


def balanced_distillation(logits: Tensor, teacher: Tensor, weights: Tensor, temperature: float = 2.0) -> Tensor:
    """Distillation of all outputs, the teacher's shares weighed by class and made to sum to 1 again.

    L_BKD = -(1/n) sum_i sum_k q'_ik log softmax(logits_i; t)_k,  q'_i proportional to w * softmax(teacher_i; t)

    Args:
        logits, teacher: (N, C).
        weights: (C,), > 0; all alike is plain distillation.
        temperature: > 0.

    Source: Wang et al. 2022, balanced distillation of the compression stage.
    """
    shares = weights * F.softmax(teacher / temperature, 1)
    shares = shares / shares.sum(1, keepdim=True)
    return -(shares * F.log_softmax(logits / temperature, 1)).sum(1).mean()


@register("foster")
class FOSTER(Strategy):
    """Feature boosting and compression. The student, one backbone, is carried and answers by default.

    Args:
        beta1: beta of the balance weights that divide the logits in boosting; in [0, 1).
        beta2: beta of the balance weights of the teacher's shares in compression; in [0, 1).
        temperature: Temperature of both distillations; > 0.
        strength: Weight of the distillation of the old head in boosting, lambda_okd; >= 0.
        old_features: Rows of new classes on the features of the old backbone: ``trained`` or kept at ``zero`` ("ft" and
            "az" in the reference code).
        align_teacher: Whether to align the norms of new and old rows after boosting.
        align_student: The same after compression.
        compression_epochs: Epochs of compression, or, below 1, a share of those of boosting; None: as long as boosting.
        compression_decay: Weight decay in compression; >= 0.
        keep: The network that answers: the ``student``, or the ``teacher``, the two backbones of boosting, whose
            accuracy the reference code reports. The next experience starts from the student, so that ``teacher``
            carries three backbones; the survey's convention charges the two that answer. Both networks are evaluated
            where both are carried, with ``teacher``; with ``student`` the two of boosting are gone at the boundary,
            and nothing can be said of them.
        selection, codec: See ``ExemplarMemory``. Chosen on the features of both backbones.

    Source:
        Wang, Zhou, Ye, Zhan. ECCV 2022, arXiv:2204.04662. As in the reference code: the new
        backbone starts as a copy of the old one, compression from the old network. Departures: image numbers n_k are
        counted, where the reference code takes floor(M / C_o) for old classes; the student answers (see ``keep``).
    """

    net: GrowingNet  # the student; before compression it is the old network, with rows for the new classes
    memory: ExemplarMemory
    boosted: BranchingNet | None  # [phi_o, phi_n] and a head on both
    extra_head: LinearHead | None  # on phi_n alone
    weights: Tensor | None  # (2, C): w of beta1, and w' of beta2

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        beta1: float = 0.96,
        beta2: float = 0.97,
        temperature: float = 2.0,
        strength: float = 1.0,
        old_features: Literal["trained", "zero"] = "trained",
        align_teacher: bool = False,
        align_student: bool = False,
        compression_epochs: float | None = None,
        compression_decay: float = 0.0,
        keep: Literal["student", "teacher"] = "student",
        selection: str = "herding",
        codec: str = "raw",
    ) -> None:
        super().__init__(make_net, budget)
        check.at_least(0, "foster", beta1=beta1, beta2=beta2)
        check.below(1, "foster", beta1=beta1, beta2=beta2)
        check.above(0, "foster", temperature=temperature)
        check.at_least(0, "foster", strength=strength, compression_decay=compression_decay)
        check.whole_or_share("foster", compression_epochs=compression_epochs)
        check.one_of(("trained", "zero"), "foster", old_features=old_features)
        check.one_of(("student", "teacher"), "foster", keep=keep)
        self.beta1, self.beta2, self.temperature, self.strength = beta1, beta2, temperature, strength
        self.old_features = old_features
        self.align_teacher, self.align_student = align_teacher, align_student
        self.compression_epochs, self.compression_decay = compression_epochs, compression_decay
        self.carries_teacher, self.answers_by = keep == "teacher", keep
        self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")
        self.keep("boosted", None, kind="parameters" if self.carries_teacher else "temporary")
        self.keep("extra_head", None, kind="temporary")
        self.keep("weights", None, kind="temporary")

    def build_net(self) -> GrowingNet:
        return self.make_net(head="linear")

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        if self.old_classes and self.carries_teacher:
            self.boosted = self._two_backbones()

    def _two_backbones(self) -> BranchingNet:
        """The structure of boosting: old rows on old features, then all rows on both."""
        boosted = self.make_net.branching()
        for classes in (self.old_classes, self.num_classes - self.old_classes):
            boosted.add_branch()
            boosted.grow(classes)
        return boosted

    def prepare(self, experience: Experience) -> None:
        if not self.old_classes:
            return
        old, dim, old_head = self.old_classes, self.net.feature_dim, self.net.head.state_dict()
        self.boosted = boosted = self._two_backbones()
        for branch in boosted.branches:  # phi_o, frozen; phi_n starts as its copy
            branch.load_state_dict(self.net.backbone.state_dict())
        with torch.no_grad():
            boosted.head.weight[:old, :dim] = old_head["weight"][:old]
            boosted.head.bias[:old] = old_head["bias"][:old]
            if self.old_features == "zero":
                boosted.head.weight[old:, :dim] = 0
        self.extra_head = LinearHead(dim).to(self.device)
        self.extra_head.grow(self.num_classes)
        images = self.training_set(experience).counts()
        counts = [images.get(slot, 0) for slot in range(self.num_classes)]
        self.weights = torch.stack([balance_weights(counts, beta) for beta in (self.beta1, self.beta2)]).to(self.device)

    def phases(self, experience: Experience) -> Iterator[Phase]:
        data = self.training_set(experience)
        if self.boosted is None or self.extra_head is None:
            yield Phase("main", data, self.loss)
            return
        learns = [*self.boosted.branches[-1].parameters(), *self.boosted.head.parameters()]
        yield Phase("boosting", data, self.loss, [*learns, *self.extra_head.parameters()])
        if self.align_teacher:
            align_rows(self, self.boosted.head)
        freeze(self.boosted)
        yield Phase(
            "compression", data, self.compression_loss, list(self.net.parameters()),
            epochs=self.compression_epochs, weight_decay=self.compression_decay,
        )  # fmt: skip

    @plain_at_first()
    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        if self.boosted is None or self.extra_head is None or self.weights is None:  # the first experience
            return F.cross_entropy(self.net(batch.images).logits, batch.slots)
        output, old = self.boosted(batch.images), self.old_classes
        phi_old, phi_new = output.features.split(self.net.feature_dim, 1)
        known = self.net.head(phi_old)[:, :old].detach()  # the old network's logits
        balanced = output.logits / self.weights[0]  # boosting, logits by balance weights
        return {
            "classes": F.cross_entropy(balanced, batch.slots),
            "new_features": F.cross_entropy(self.extra_head(phi_new), batch.slots),  # feature enhancement, z_fe
            "distillation": self.strength * distillation(output.logits[:, :old], known, self.temperature),
        }

    def compression_loss(self, batch: Batch) -> Tensor:
        """Balanced distillation of the two backbones into the student."""
        assert self.boosted is not None and self.weights is not None
        with torch.no_grad():
            teacher = self.boosted(batch.images).logits
        return balanced_distillation(self.net(batch.images).logits, teacher, self.weights[1], self.temperature)

    @not_at_first
    def adjust_gradients(self, batch: Batch) -> None:
        if self.old_features == "zero" and self.boosted is not None:
            gradient = self.boosted.head.weight.grad
            if gradient is not None:
                gradient[self.old_classes :, : self.net.feature_dim] = 0

    def after_experience(self, experience: Experience) -> None:
        if self.align_student:
            align_rows(self, self.net.head)
        store_exemplars(self, experience, self.boosted)

    def predict(self, images: Tensor) -> Tensor:
        """Scores of the network that answers: (N, ...) to (N, C)."""
        answers = self.boosted if self.carries_teacher and self.boosted is not None else self.net
        return answers(images).logits

    def further_answers(self, images: Tensor, output: Output) -> dict[str, Tensor]:
        """The student beside the two backbones, by a pass of its own."""
        return {"student": self.net(images).logits} if self.carries_teacher else {}

    def replaced_at_inference(self) -> tuple[str, ...]:
        """The student, where the two-branch network is kept and answers."""
        return ("net",) if self.carries_teacher and self.boosted is not None else ()
