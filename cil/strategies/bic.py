"""BiC: bias correction, two numbers for each task, learned on a balanced validation set after training."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.contract import Phase
from cil.contract.plain import plain_at_first
from cil.data import Batch, Samples
from cil.memory import Budget, ExemplarMemory
from cil.models import GrowingNet, NetFactory, Output, frozen_copy
from cil.strategies.base import Strategy, check
from cil.strategies.parts import distillation, store_exemplars
from cil.strategies.registry import register
from cil.streams import Experience, Signature


class BiasLayers(nn.Module):
    """alpha_b z_k + beta_b for the outputs k of each task b; the identity before it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.ParameterList()  # alpha and beta of each task
        self.counts: list[int] = []  # its outputs

    def grow(self, count: int) -> None:
        """Add a pair for ``count`` outputs."""
        self.counts.append(count)
        self.pairs.append(nn.Parameter(torch.tensor([1.0, 0.0]), requires_grad=False))

    def forward(self, logits: Tensor) -> Tensor:
        """(N, C) to (N, C); also for a teacher with fewer tasks."""
        each = [pair.expand(count, 2) for pair, count in zip(self.pairs, self.counts, strict=True)]
        pairs = torch.cat(each)[: logits.shape[1]]  # (C, 2)
        return logits * pairs[:, 0] + pairs[:, 1]


@register("bic")
class BiC(Strategy):
    """Rehearsal and distillation, then a linear correction of the new outputs, learned apart.

    Args:
        temperature: Temperature of the distillation; > 0.
        split: Share of an old class's exemplars that is left out of the first stage, as is the same number of images of
            each new class; the second stage learns on them. 0, or a share below one image: no second stage.
        bias_epochs: Epochs of the second stage; null: epochs and schedule of the first.
        bias_lr: Learning rate of the second stage; null: that of the first.
        second_stage: ``paper``: cross-entropy on the corrected logits of a network that stays as it is; ``survey``: as
            in the survey's code, on their probabilities (small gradients, and a loss that is never small), with batch
            norm in training mode, so that validation images move the running statistics.
        selection, codec: See ``ExemplarMemory``.

    Source:
        Wu, Chen, Wang, Ye, Liu, Guo, Fu. CVPR 2019, arXiv:1905.13260, sections 3 and 4. Validation images are chosen
        at random and augmented, both stages are equally long, and every output that is trained or distilled passes the
        layers of its task, as in the survey's code. Departure from it: the split is a share of the exemplars that are
        held, where that code takes it of floor(M / C_o). In lambda = C_o / C a class that comes back counts again.
    """

    holds_out = True
    answers_by = "corrected_head"
    memory: ExemplarMemory
    teacher: GrowingNet | None
    bias: BiasLayers

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        temperature: float = 2.0,
        split: float = 0.1,
        bias_epochs: int | None = None,
        bias_lr: float | None = None,
        second_stage: str = "paper",
        selection: str = "herding",
        codec: str = "raw",
    ) -> None:
        super().__init__(make_net, budget)
        check.above(0, "bic", temperature=temperature, bias_lr=bias_lr)
        check.at_least(0, "bic", split=split)
        check.below(1, "bic", split=split)
        check.at_least(1, "bic", bias_epochs=bias_epochs)
        check.one_of(("paper", "survey"), "bic", second_stage=second_stage)
        self.temperature, self.split = temperature, split
        self.bias_epochs, self.bias_lr, self.as_survey = bias_epochs, bias_lr, second_stage == "survey"
        self.keep("bias", BiasLayers(), kind="parameters")
        self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")
        self.keep("teacher", None, kind="teacher")

    def grow(self, signature: Signature) -> None:
        super().grow(signature)
        if signature.new_slots:
            self.bias.grow(len(signature.new_slots))

    def before_experience(self, experience: Experience) -> None:
        if self.num_classes:
            self.teacher = frozen_copy(self.net)  # its bias layers are the old ones here, which stay as they are

    def phases(self, experience: Experience) -> Iterator[Phase]:
        train, validation = self.stages(experience)
        yield Phase("main", train, self.loss)
        if len(validation):
            newest = self.bias.pairs[-1].requires_grad_(True)
            yield Phase(
                "bias", validation, self.bias_loss, parameters=[newest], main=self.bias_epochs is None,
                epochs=self.bias_epochs, lr=self.bias_lr, train_mode=None if self.as_survey else self.net.eval,
            )  # fmt: skip
            newest.requires_grad_(False)

    @plain_at_first("classes")  # the bias layers are the identity
    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        logits = self.predict(batch.images)
        classes = F.cross_entropy(logits, batch.slots)
        if self.teacher is None:
            return {"classes": classes}
        old = self.bias(self.teacher(batch.images).logits)
        share = self.share_before  # lambda, section 3: L = lambda L_d + (1 - lambda) L_c
        distilled = distillation(logits[:, : old.shape[1]], old, self.temperature)
        return {"classes": (1 - share) * classes, "distillation": share * distilled}

    def bias_loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of the corrected logits, or of their probabilities, in the second stage."""
        with torch.no_grad():
            logits = self.net(batch.images).logits
        corrected = self.bias(logits)  # section 4, the bias correction layer
        return F.cross_entropy(corrected.softmax(1) if self.as_survey else corrected, batch.slots)

    def stages(self, experience: Experience) -> tuple[Samples, Samples]:
        """The training set of the first stage and the validation set of the second: as many images of each class.

        One image of a class stays in the first stage, also where the class has no more than the validation set wants.
        """
        whole = self.training_set(experience)
        held = self.held_quota(self.memory.counts().values())  # floor(M / C_o)
        count = math.floor(self.split * held + 1e-9)
        if not experience.new_slots or not count:
            return whole, whole[:0]
        apart = torch.zeros(len(whole), dtype=torch.bool)
        generator = self.generator("validation")
        for slot, images in sorted(whole.counts().items()):
            rows = (whole.slots == slot).nonzero().flatten()
            apart[rows[torch.randperm(images, generator=generator)[: min(count, images - 1)]]] = True
        return whole[(~apart).nonzero().flatten()], whole[apart.nonzero().flatten()]

    def after_experience(self, experience: Experience) -> None:
        store_exemplars(self, experience)  # validation images may be chosen too

    def predict(self, images: Tensor) -> Tensor:
        """Corrected logits: (N, ...) to (N, C)."""
        found: Tensor = self.bias(self.net(images).logits)
        return found

    def further_answers(self, images: Tensor, output: Output) -> dict[str, Tensor]:
        return {"head": output.logits}
