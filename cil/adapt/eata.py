"""EATA: entropy minimisation on images that are sure and new, held near the source by its Fisher information."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.adapt.base import Adapter, SourceModel, check
from cil.adapt.parts.losses import any_true, entropy, gradients, mean_where
from cil.adapt.parts.norms import train_norms, use_batch_statistics
from cil.adapt.parts.optimizer import CarriedOptimizer, default_by_classes, flat, make_optimizer
from cil.adapt.registry import register
from cil.data import Samples
from cil.errors import ConfigError


@register("eata")
class EATA(Adapter):
    """Efficient anti-forgetting test-time adaptation, by gamma and beta of the norm layers; ``strength`` 0 is ETA.

    Args:
        margin: E0 / ln K: images whose entropy is not below E0 are left out.
        similarity: epsilon: images are left out whose prediction has a cosine with the mean prediction that is not
            below it in size. None: 0.4, 0.1, 0.05 for networks of about 10, 100, 1000 classes.
        strength: beta, weight of the distance to the source's gamma and beta, by Fisher information; None: 1, 1, 2000.
            0: ETA, which carries neither and reads no source data.
        samples: Source images, drawn at random, that the Fisher information is estimated on.
        fisher_batch: Images in a batch there: gradients are squared batch by batch.
        memory: Share of the old mean prediction in its update.
        optimizer: ``adam``, ``sgd`` (without Nesterov's momentum), or None: Adam on CIFAR, SGD for about 1000 classes.
        lr: Learning rate; None: 1e-3, and 2.5e-4 for about 1000 classes, in batches of 64.
        momentum: Momentum of SGD.

    Raises:
        ConfigError: for a network without norm layers, or no source data where strength > 0.

    Source:
        Niu et al., "Efficient test-time model adaptation without forgetting", ICML 2022, arXiv:2204.02610; equations by
        number. Departure: source training images are used where the authors' code takes clean test images, since those
        are no source data.
    """

    needs_source = True
    toy = {"samples": 16, "fisher_batch": 8}
    optimizer: CarriedOptimizer
    mean: Tensor  # (K,), of kept predictions; zeros before the first
    fisher: Tensor  # (P,)
    start: Tensor  # (P,), the source's gamma and beta

    def __init__(
        self,
        source: SourceModel,
        *,
        margin: float = 0.4,
        similarity: float | None = None,
        strength: float | None = None,
        samples: int = 2000,
        fisher_batch: int = 64,
        memory: float = 0.9,
        optimizer: str | None = None,
        lr: float | None = None,
        momentum: float = 0.9,
    ) -> None:
        super().__init__(source)
        check.at_least(0, "eata", margin=margin, similarity=similarity, strength=strength)
        check.at_least(1, "eata", samples=samples, fisher_batch=fisher_batch)
        check.between(0, 1, "eata", memory=memory)
        self.bound = margin * math.log(self.num_classes)
        self.similarity = default_by_classes(similarity, self.num_classes, {10: 0.4, 100: 0.1, 1000: 0.05})
        self.strength = default_by_classes(strength, self.num_classes, {10: 1.0, 100: 1.0, 1000: 2000.0})
        self.samples, self.fisher_batch, self.memory = samples, fisher_batch, memory
        tuned = train_norms(use_batch_statistics(self.net), "eata")
        made = make_optimizer(tuned, "eata", self.num_classes, optimizer, lr, momentum, nesterov=False)
        self.keep("optimizer", made, kind="optimizer", lifetime="carried")
        self.keep("mean", torch.zeros(self.num_classes, device=tuned[0].device), kind="statistics")
        self.needs_source = self.strength > 0  # type: ignore[misc]
        if self.strength:
            self.keep("start", flat(tuned).detach(), kind="teacher", lifetime="carried")
            self.keep("fisher", torch.zeros_like(self.start), kind="statistics")

    def deploy(self, source: Samples | None) -> None:
        """Equation 8: the mean over batches of squared gradients, with the network's own answers as labels."""
        if not self.strength:
            return
        if not source:
            raise ConfigError("eata estimates Fisher information on source data, and there is none; adapter.strength=0")
        tuned = self.optimizer.tuned
        rows = torch.randperm(len(source), generator=self.generator("fisher"))[: self.samples]
        squares, batches = torch.zeros_like(self.fisher), 0
        for batch in source[rows].batches(self.fisher_batch, self.device):
            logits = self.logits(batch.images)
            loss = F.cross_entropy(logits, logits.argmax(1))
            squares += flat(gradients(loss, tuned)).square()
            batches += 1
        self.fisher = squares / batches

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        logits = self.logits(images)
        uncertain = entropy(logits)  # (N,)
        predicted = logits.detach().float().softmax(1)
        kept = self._reliable(uncertain.detach(), predicted)
        if any_true(kept):
            self.mean = self._mean_prediction(mean_where(predicted.T, kept))
            weight = torch.exp(self.bound - uncertain.detach())  # equation 3
            loss = mean_where(weight * uncertain, kept)
            if self.strength:  # equations 7 and 9
                distance = (self.fisher * (flat(self.optimizer.tuned) - self.start).square()).sum()
                loss = loss + self.strength * distance
            self.optimizer.step(gradients(loss, self.optimizer.tuned))
        return logits.detach()

    def _reliable(self, uncertain: Tensor, predicted: Tensor) -> Tensor:
        """Equations 3 and 5: mask (N,) of images that are sure, and unlike the mean prediction where there is one."""
        cosine = F.cosine_similarity(self.mean[None], predicted, dim=1)
        return (uncertain < self.bound) & ((cosine.abs() < self.similarity) | ~self.mean.any())

    def _mean_prediction(self, new: Tensor) -> Tensor:
        """Equation 4: the moving average of mean predictions, which starts at the first."""
        return torch.where(self.mean.any(), self.memory * self.mean + (1 - self.memory) * new, new)
