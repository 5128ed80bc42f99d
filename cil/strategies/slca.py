"""SLCA: the backbone learns slowly, the head fast; then the head is aligned on Gaussian samples of all classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.contract import Phase
from cil.data import Batch
from cil.memory import Budget
from cil.models import GrowingNet, LinearHead, NetFactory, extract
from cil.models.tuners import LowRank
from cil.strategies.base import check
from cil.strategies.parts.alignment import (
    GaussianAlignment,
    draw_all,
    epoch_features,
    mean_logit_norm,
    reverse_cross_entropy,
)
from cil.strategies.parts.frozen_backbone import features_only, trains_first
from cil.strategies.parts.frozen_heads import FeaturesAndHead
from cil.strategies.parts.heads import hold_rows, rows_without_data
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("slca")
class SLCA(GaussianAlignment):
    """Cross-entropy over the classes of the experience, with one learning rate for the backbone and one for the head.

    Then a copy of the head, which answers, is trained on samples of N(s_c mu_c, S_c). The head itself goes on from
    where it was. Statistics are those of the backbone when a class arrived. What spends bytes is ``covariance``, of
    ``low_rank`` its ``rank``.

    Args:
        tuning: What is trained below the head: ``full``: the backbone. ``low_rank``: sums of rank 4 to its linear
            layers, norms, biases and class token (SLCA++); the weights themselves stay public.
        backbone_lr: Learning rate of that; the head's is ``optimizer.lr``.
        first_lr: Of the sums of ``low_rank`` in the first experience; null: ``backbone_lr``.
        cross_entropy, reverse: a and b of the loss a CE + b RCE; SLCA has 1 and 0, SLCA++ 1 and 0.1.
        covariance: Of each class: ``full``, ``low_rank``, ``diagonal``; ``tied``: one for all.
        rank: r of ``low_rank``.
        jitter: Added to variances in sampling.
        scaling: Of the means: ``mean``: s_c = 0.9 + 0.1 (t_c + 1) / (t + 1), t_c the experience in which c arrived.
            ``decay``: whole samples over 1 + u (t - t_c), u from U(0.01, 0.03) for each of them (SLCA++).
        answer_growth: v; with ``decay`` the aligned head answers for class c on features times 1 + v (t - t_c).
        align_epochs, align_samples, align_batch, align_lr: Of the alignment: epochs (0: none), samples a class and
            epoch, images a step, learning rate.
        temperature: tau: logits are divided by tau times the mean norm of an experience's logits; null: they are not.

    Source:
        Zhang, Wang, Kang, Chen, Wei. "SLCA: slow learner with classifier alignment for continual learning on a
        pre-trained model", ICCV 2023, arXiv:2303.05118; "SLCA++", 2024, arXiv:2408.08295 (``tuning=low_rank
        backbone_lr=1e-3 reverse=0.1 scaling=decay``). The code of SLCA++ has a larger rate for the sums in the first
        experience (``first_lr=5e-3``) and larger features for the heads of earlier experiences
        (``answer_growth=0.02``), as ``recipe=survey`` sets them. Departure: covariances are divided by N, in both codes
        by N - 1.
    """

    answers_by = "aligned_head"
    toy = {"align_samples": 8, "align_epochs": 2}

    net: GrowingNet
    head: LinearHead
    aligned: LinearHead
    tuner: LowRank | None

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        tuning: str = "full",
        backbone_lr: float = 1e-4,
        first_lr: float | None = None,
        cross_entropy: float = 1.0,
        reverse: float = 0.0,
        covariance: str = "full",
        rank: int = 10,
        jitter: float = 1e-4,
        scaling: str = "mean",
        answer_growth: float = 0.0,
        align_epochs: int = 5,
        align_samples: int = 256,
        align_batch: int = 256,
        align_lr: float = 0.01,
        temperature: float | None = 0.1,
    ) -> None:
        super().__init__(make_net, budget)
        check.one_of(("full", "low_rank"), "slca", tuning=tuning)
        check.one_of(("mean", "decay"), "slca", scaling=scaling)
        check.at_least(
            0, "slca", cross_entropy=cross_entropy, reverse=reverse, jitter=jitter, answer_growth=answer_growth,
            align_epochs=align_epochs,
        )  # fmt: skip
        check.at_least(1, "slca", rank=rank, align_samples=align_samples, align_batch=align_batch)
        check.above(0, "slca", backbone_lr=backbone_lr, first_lr=first_lr, align_lr=align_lr, temperature=temperature)
        self.backbone_lr, self.first_lr = backbone_lr, first_lr
        self.answer_growth = answer_growth if scaling == "decay" and align_epochs else 0.0
        self.cross_entropy, self.reverse = cross_entropy, reverse
        self.jitter, self.scaling, self.temperature = jitter, scaling, temperature
        self.align: dict[str, Any] = {"epochs": align_epochs, "lr": align_lr, "batch_size": align_batch}
        self.align_samples = align_samples
        self.arrivals: list[int] = []  # t_c
        blank, d = self.net.head.weight, self.net.feature_dim
        self.keep("head", LinearHead(d).to(blank), kind="parameters")
        self.keep("aligned", LinearHead(d).to(blank), kind="parameters")
        self.keep_gaussians(blank, d, covariance, rank)
        self.keep("old_rows", {}, kind="temporary")  # of the head, as they were
        self.keep("tuner", None, kind="temporary")
        if tuning == "low_rank":
            trains_first(self, False)
            self.keep("tuner", LowRank(self.net.backbone), kind="parameters")
        elif make_net.pretrained is None:
            self.warnings.append(
                f"slca: the network starts from random weights, and learns at strategy.backbone_lr={backbone_lr}, "
                f"which is meant for public ones: set model.weights, or the learning rate of the backbone"
            )

    def build_net(self) -> GrowingNet:
        return features_only(self.make_net)

    def grow_net(self, signature: Signature) -> None:
        new = len(signature.new_slots)
        self.head.grow(new)
        self.aligned.grow(new)
        self.gaussians.grow(new)
        self.arrivals += [signature.index] * new
        self.index = signature.index

    def prepare(self, experience: Experience) -> None:
        if experience.index == 0 and self.tuner is not None:
            self.tuner.initialise(self.net.backbone)
        self.old_rows = rows_without_data(self, self)

    def phases(self, experience: Experience) -> Iterator[Phase]:
        groups = [*self.slow_groups(experience.index), {"params": list(self.head.parameters())}]
        yield Phase("main", experience.train, self.loss, parameters=groups)
        new = experience.train[torch.isin(experience.train.slots, torch.tensor(experience.new_slots))]
        if len(new):  # of what comes back, features have moved
            self.gaussians.update(extract(self._view(), new), new.slots)
        self.aligned.load_state_dict(self.head.state_dict())
        if experience.index and self.align["epochs"]:
            head = list(self.aligned.parameters())
            yield Phase(
                "align", self.alignment_set(), self.align_loss, parameters=head, main=False, schedule="cosine",
                **self.align,
            )  # fmt: skip

    def slow_groups(self, index: int) -> list[dict[str, Any]]:
        """Parameters below the head that train in experience ``index``, with their learning rates."""
        if self.tuner is None:
            return [{"params": [p for p in self.net.backbone.parameters() if p.requires_grad], "lr": self.backbone_lr}]
        if index or self.first_lr is None:
            return [{"params": list(self.tuner.parameters()), "lr": self.backbone_lr}]
        return [
            {"params": [*self.tuner.up, *self.tuner.down], "lr": self.first_lr},
            {"params": list(self.tuner.copies), "lr": self.backbone_lr},
        ]

    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        logits = self.head(self.features(batch.images))[:, self.first_slot :]  # classes of the experience
        slots = batch.slots - self.first_slot
        terms = {"classes": self.cross_entropy * F.cross_entropy(logits, slots)}
        if self.reverse:
            terms["reverse"] = self.reverse * reverse_cross_entropy(logits, slots)
        return terms

    def align_loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of z / (tau mean_t |z_t|) over all classes."""
        logits = self.aligned(epoch_features(self, batch))
        if self.temperature is not None:
            sizes = [self.arrivals.count(index) for index in range(self.arrivals[-1] + 1)]
            logits = logits / (self.temperature * mean_logit_norm(logits, sizes))
        return F.cross_entropy(logits, batch.slots)

    def adjust_gradients(self, batch: Batch) -> None:
        """Heads of earlier experiences stay: no gradient, no decay, no momentum."""
        hold_rows(self, self.old_rows)

    after_step = adjust_gradients

    def features(self, images: Tensor) -> Tensor:
        """(N, D) of images in [0, 1]."""
        if self.tuner is None:
            return self.net(images).features
        return self.tuner.features(self.net.backbone, self.net.normalise(images))

    def predict(self, images: Tensor) -> Tensor:
        """Logits of the aligned head: (N, ...) to (N, C)."""
        features = self.features(images)
        if self.answer_growth:
            factors = 1 + self.answer_growth * (self.index - torch.tensor(self.arrivals).to(features))
            return F.linear(features, self.aligned.weight * factors[:, None], self.aligned.bias)
        return self.aligned(features)

    def scales(self, index: int, generator: torch.Generator) -> Tensor:
        """Factors in experience ``index``: (C,) of the means, in [0.9, 1]; with ``decay`` (C, n) of the samples."""
        arrived = torch.tensor(self.arrivals)
        if self.scaling == "mean":
            return 0.9 + 0.1 * (arrived + 1) / (index + 1)
        u = 0.01 + 0.02 * torch.rand(len(arrived), self.align_samples, generator=generator)
        return 1 / (1 + u * (index - arrived)[:, None])

    def draw_samples(self, epoch: int) -> Tensor:
        return draw_all(
            self.gaussians,
            self.generator(f"align:{epoch}"),
            count=self.align_samples,
            scales=self.scales(self.index, self.generator(f"scales:{epoch}")),
            whole=self.scaling == "decay",
            jitter=self.jitter,
        )

    def _view(self) -> FeaturesAndHead:
        """Features and the head as one network."""
        parts = [self.net] if self.tuner is None else [self.net, self.tuner]
        return FeaturesAndHead(self.features, self.head, parts)
