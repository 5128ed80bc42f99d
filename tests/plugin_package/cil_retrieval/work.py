"""The work of a run: a strategy is trained as ever, and evaluated by what its features find."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cil import Samples, Strategy
from cil.engine.learning import StrategyWork
from cil.engine.running import Counts
from cil.engine.work import Facts
from cil.errors import StreamError
from cil.memory import Flops, unit
from cil_retrieval.gallery import GalleryStream


@dataclass
class RetrievalWork(StrategyWork):
    """Trains a strategy on a stream of classes, and looks up test images in a gallery of all classes seen."""

    stream: GalleryStream

    curve: ClassVar[str] = "recall_at_1"  # the score by which the best experience is chosen

    def count(self, index: int, learner: Strategy, predict: Callable[..., Tensor]) -> Counts:
        """Queries whose nearest image has their class, and the sum of the average precisions of all."""
        flops, halves = Flops(), zip(*map(self.stream.halves, range(index + 1)), strict=True)
        with self.learners.answering(learner), flops.counting():
            (gallery, held), (queries, asked) = (self._embedded(learner, half) for half in halves)
            if not len(asked):
                raise StreamError("no class has two test images, so there is no query; raise stream.test_per_class")
            right, precision = look_up(queries, gallery, asked, held)
        found = {"right": right.sum().item(), "precision": precision.sum().item(), "flops": flops.count}
        found |= {"queries": len(asked), "gallery": len(held)}
        return {name: torch.tensor([value], dtype=torch.float64) for name, value in found.items()}

    def _embedded(self, learner: Strategy, parts: Sequence[Samples]) -> tuple[Tensor, Tensor]:
        """Features and slots of all images."""
        batches = (batch for part in parts for batch in part.batches(self.evaluation_batch, self.runtime.torch_device))
        found = [(embed(learner, batch.images).float().cpu(), batch.slots.cpu()) for batch in batches]
        return torch.cat([features for features, _ in found]), torch.cat([slots for _, slots in found])

    def scores(self, rows: Sequence[Counts], facts: Sequence[Facts]) -> dict[str, object]:
        recall, precision = ([100 * float(r[n]) / float(r["queries"]) for r in rows] for n in ("right", "precision"))
        curves = {"recall_at_1": recall, "mean_average_precision": precision}
        means = {f"average_{name}": sum(curve) / len(curve) for name, curve in curves.items()}
        return {**curves, **means, "gallery": [int(row["gallery"]) for row in rows]}

    def logged(self, results: Mapping[str, Any]) -> dict[str, Any]:
        return {name: results[name][-1] for name in ("recall_at_1", "mean_average_precision")}


def embed(learner: Strategy, images: Tensor) -> Tensor:
    """(N, D), of unit length: the features of the network where it gives some, else the scores of the classes."""
    features = getattr(learner.net(images), "features", None)
    return unit(learner.predict(images) if features is None else features)


def look_up(queries: Tensor, gallery: Tensor, asked: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Of each query if the nearest image has its class, and the average precision of the whole ranking.

    Args:
        queries, gallery: (Q, D) and (G, D), of unit length: near is of a high cosine.
        asked, held: (Q,) and (G,), their classes; each class that is asked for is held.
    """
    order = (queries @ gallery.T).argsort(dim=1, descending=True, stable=True)
    right = held[order] == asked[:, None]  # (Q, G), the nearest first
    precision = right.cumsum(1) / torch.arange(1, len(held) + 1)
    return right[:, 0], (precision * right).sum(1) / right.sum(1)
