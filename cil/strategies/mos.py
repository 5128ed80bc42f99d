"""MOS: adapters that are merged with those of the past as they learn, and looked for by each image."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.contract import Phase
from cil.data import Batch
from cil.memory import Budget
from cil.models import NetFactory, freeze
from cil.models.tuners import BlockAdapters
from cil.strategies.base import check
from cil.strategies.parts.alignment import GaussianAlignment, draw_all, epoch_features
from cil.strategies.parts.frozen_backbone import class_sums, cosine_scores, float64_features
from cil.strategies.parts.frozen_heads import FeaturesAndHead
from cil.strategies.parts.frozen_transformer import FrozenTransformer
from cil.strategies.registry import register
from cil.streams import Experience, Signature

ASKED = 4  # adapters that are asked for the class of an image, at most


@register("mos")
class MOS(GaussianAlignment, FrozenTransformer):
    """Adapters A_b of a frozen transformer go on from A_(b-1), held to the mean of the past; each set stays.

    Then the head is aligned on Gaussian samples of all classes. An image starts with the adapters of the class that is
    nearest in the features of the first ones, and moves to those of the class that they predict, until they agree.
    As many passes an image as experiences. What spends bytes is ``covariance``, then ``rank``.

    Args:
        rank: r of the adapters.
        merge: alpha, after each step A_b <- (1 - alpha) A_b + alpha times the mean of earlier ones; in [0, 1].
        apart: Weight of pushing features and class means apart.
        head_lr: Learning rate of the head; the adapters' is ``optimizer.lr``.
        covariance: Of each class: ``full``, ``low_rank`` (of rank 10), ``diagonal``; ``tied``: one for all.
        jitter: Added to variances in sampling.
        align_epochs, align_samples, align_batch, align_lr: Of the alignment: epochs (0: none), samples a class and
            epoch, images a step, learning rate.

    Source:
        Sun, Zhou, Zhao, Gan, Zhan, Ye. "MOS: model surgery for pre-trained model-based class-incremental learning",
        AAAI 2025, arXiv:2412.09441. Departures: answers change nothing, where code merges saved
        adapters again in every pass; covariances are divided by N, in code by N - 1.
    """

    fits = "rank"
    toy = {"rank": 2, "align_samples": 8, "align_epochs": 2}
    adapters: Any  # BlockAdapters of each experience
    sums: Tensor  # (C, D), of features with the first adapters

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        rank: int = 16,
        merge: float = 0.1,
        apart: float = 0.1,
        head_lr: float = 0.003,
        covariance: str = "full",
        jitter: float = 1e-4,
        align_epochs: int = 30,
        align_samples: int = 240,
        align_batch: int = 240,
        align_lr: float = 0.005,
    ) -> None:
        super().__init__(make_net, budget)
        check.at_least(1, "mos", rank=rank, align_samples=align_samples, align_batch=align_batch)
        check.between(0, 1, "mos", merge=merge)
        check.at_least(0, "mos", apart=apart, jitter=jitter, align_epochs=align_epochs)
        check.above(0, "mos", head_lr=head_lr, align_lr=align_lr)
        self.rank, self.merge, self.apart, self.head_lr, self.jitter = rank, merge, apart, head_lr, jitter
        self.align: dict[str, Any] = {"epochs": align_epochs, "lr": align_lr, "batch_size": align_batch}
        self.align_samples = align_samples
        self.arrivals: list[int] = []  # of each class, its experience
        d, blank = self.vit.feature_dim, self.net.weight
        self.keep("adapters", nn.ModuleList(), kind="parameters")
        self.keep_gaussians(blank, d, covariance, min(10, d - 1))
        self.keep("sums", blank.new_zeros(0, d), kind="prototypes")

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        new = len(signature.new_slots)
        for adapters in self.adapters:
            freeze(adapters)
        self.adapters.append(BlockAdapters(self.vit, self.rank))
        self.gaussians.grow(new)
        self.sums = F.pad(self.sums, (0, 0, 0, new))
        self.arrivals += [signature.index] * new

    def prepare(self, experience: Experience) -> None:
        if len(self.adapters) > 1:
            self.adapters[-1].load_state_dict(self.adapters[-2].state_dict())

    def phases(self, experience: Experience) -> Iterator[Phase]:
        head = list(self.net.parameters())
        groups = [{"params": list(self.adapters[-1].parameters())}, {"params": head, "lr": self.head_lr}]
        yield Phase("main", experience.train, self.loss, parameters=groups)
        new = torch.isin(experience.train.slots, torch.tensor(experience.new_slots, dtype=torch.int64))
        train = experience.train[new]
        if len(train):  # of what comes back, features have moved
            self.gaussians.update(float64_features(self, train, self._view(-1)), train.slots)
        if experience.index and self.align["epochs"]:
            yield Phase(
                "align", self.alignment_set(), self.align_loss, parameters=head, main=False, schedule="cosine",
                **self.align,
            )  # fmt: skip

    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        features = self.features(-1, batch.images)
        terms = {"classes": self.local_cross_entropy(features, batch.slots)}
        if self.apart:
            known = self.gaussians.means[self.gaussians.counts > 0]
            terms["apart"] = self.apart * spread_out(torch.cat([known.to(features), features]))
        return terms

    def align_loss(self, batch: Batch) -> Tensor:
        """Cross-entropy over all classes, of samples of features."""
        return F.cross_entropy(self.net(epoch_features(self, batch)), batch.slots)

    def draw_samples(self, epoch: int) -> Tensor:
        ones, generator = torch.ones(self.num_classes), self.generator(f"align:{epoch}")
        return draw_all(self.gaussians, generator, count=self.align_samples, scales=ones, jitter=self.jitter)

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        past = [list(adapters.parameters()) for adapters in self.adapters[:-1]]
        if past and "rows" not in batch.extras:  # A_b <- (1 - alpha) A_b + alpha mean_k A_k; not in the alignment
            for own, *earlier in zip(self.adapters[-1].parameters(), *past, strict=True):
                own.lerp_(torch.stack(list(earlier)).mean(0), self.merge)

    def after_experience(self, experience: Experience) -> None:
        features = float64_features(self, experience.train, self._view(0))
        sums, _ = class_sums(features, experience.train.slots, self.num_classes)
        self.sums = self.sums + sums.to(self.sums)

    def features(self, index: int, images: Tensor) -> Tensor:
        """(N, D) of images in [0, 1], with the adapters of an experience."""
        found: Tensor = self.adapters[index].features(self.vit, self.normalise(images))
        return found

    def predict(self, images: Tensor) -> Tensor:
        """softmax z_a + softmax (t + 1) z_first: (N, ...) to (N, C)."""
        features = [self.features(index, images) for index in range(len(self.adapters))]
        first = cosine_scores(features[0], self.sums)
        logits = torch.stack([self.net(each) for each in features], dim=1)  # (N, T, C)
        found = settled(logits, first.argmax(1), torch.tensor(self.arrivals, device=logits.device))
        own = logits[torch.arange(len(logits)), found]
        return own.softmax(1) + (len(self.adapters) * first).softmax(1)

    def _view(self, index: int) -> FeaturesAndHead:
        return FeaturesAndHead(partial(self.features, index), self.net, [self.vit, self.adapters])


def settled(logits: Tensor, classes: Tensor, arrivals: Tensor) -> Tensor:
    """(N,) experiences whose adapters answer: they predict a class of their own, or are the fourth that are asked.

    Args:
        logits: (N, T, C), with the adapters of each experience.
        classes: (N,), where the search starts.
        arrivals: (C,), the experience of each class.

    Source: Sun et al., "MOS", AAAI 2025.
    """
    predicted = arrivals[logits.argmax(2)]  # (N, T)
    found = arrivals[classes]
    for _ in range(ASKED - 1):
        found = predicted.gather(1, found[:, None]).flatten(0)
    return found


def spread_out(rows: Tensor) -> Tensor:
    """Cross-entropy of M M' / 0.8 with the identity: each row of M (R, D) shall be like itself alone.

    >>> spread_out(torch.eye(2)).item()  # doctest: +ELLIPSIS
    0.25192...
    """
    return F.cross_entropy(rows @ rows.T / 0.8, torch.arange(len(rows), device=rows.device))
