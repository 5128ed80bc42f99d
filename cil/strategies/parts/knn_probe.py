"""Rank stored networks for a new task by nearest neighbours on their features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data import Samples
from cil.models import TaskNet, batch_statistics_features
from cil.strategies.base import Strategy
from cil.streams import Experience, TaskKey


@dataclass(frozen=True)
class KNNProbe:
    """Score networks by how well nearest neighbours among a task's training features answer its dev images.

    Args:
        neighbours: Number that votes, each alike, by Euclidean distance.
        train, dev: Most images that are embedded, drawn at random.

    Source:
        NEVIS'22 (Bornschein et al., JMLR 24 (308), 2023), learner "dynamic": 5 neighbours, 10,000 and 5,000 images,
        batch norm with the statistics of batches; the score is accuracy, or the mAP of the neighbours' frequencies.
    """

    neighbours: int = 5
    train: int = 10_000
    dev: int = 5_000

    def scores(
        self, learner: Strategy, nets: Mapping[str, TaskNet], experience: Experience, task: TaskKey
    ) -> dict[str, float]:
        """Percent by name of the network; billed as ``probe``. Without dev images each scores 0.

        Args:
            learner: Lends its generators, and is billed.
        """
        dev = experience.validation
        if dev is None or not len(dev):
            return dict.fromkeys(nets, 0.0)
        with learner.context.part("probe"):
            return {name: self._score(learner, net, experience.train, dev, task) for name, net in nets.items()}

    def _score(self, learner: Strategy, net: TaskNet, train: Samples, dev: Samples, task: TaskKey) -> float:
        features, truth = [], []
        for purpose, samples, most in (("train", train, self.train), ("dev", dev, self.dev)):
            order = torch.randperm(len(samples), generator=learner.generator(f"probe:{purpose}"))[:most]
            features.append(batch_statistics_features(net, samples, order))
            labels = samples.slots - task.first if samples.targets is None else samples.targets
            truth.append(labels[order].to(features[-1].device))
        votes = neighbour_votes(features[0], truth[0], features[1], self.neighbours, task.classes)
        return agreement(votes, truth[1])


def neighbour_votes(train: Tensor, labels: Tensor, queries: Tensor, neighbours: int, classes: int) -> Tensor:
    """(Q, classes) share of each class, or label, among the nearest training features.

    Args:
        train, queries: (N, D) and (Q, D).
        labels: (N,) in [0, classes), or (N, classes) of 0 and 1.
    """
    known = F.one_hot(labels, classes).float() if labels.ndim == 1 else labels.float()
    lengths, votes = train.square().sum(1), []
    for part in queries.split(1024):
        distances = lengths - 2 * part @ train.T  # squared, less a term that is the same for all training features
        rows = distances.topk(min(neighbours, len(train)), largest=False).indices
        votes.append(known[rows].mean(1))
    return torch.cat(votes)


def agreement(votes: Tensor, truth: Tensor) -> float:
    """Percent: accuracy of votes (Q, C) for labels (Q,), the first of equals; mean average precision for (Q, C) labels.

    Labels without a positive are left out of the mean.
    """
    if truth.ndim == 1:
        return 100 * float((votes.argmax(1) == truth).float().mean())
    precisions = []
    for scores, hits in zip(votes.T, truth.T, strict=True):
        if bool(hits.any()):
            thresholds = scores.unique().flip(0)
            above = scores[None] >= thresholds[:, None]
            positives = (above * hits[None]).sum(1)
            rises = torch.diff(positives, prepend=positives.new_zeros(1)) / hits.sum()
            precisions.append(float((rises * positives / above.sum(1)).sum()))
    return 100 * sum(precisions) / max(1, len(precisions))
