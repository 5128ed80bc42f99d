"""Images of classes that a run has not met yet, as unknown ones: the evaluation alone asks about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cil import metrics
from cil.kinds.classes.evaluation import Predict, evaluable, shuffled
from cil.memory import Flops
from cil.metrics import plain
from cil.streams import Stream

KNOWN, CORRECT, UNKNOWN = "open_set.known", "open_set.correct", "open_set.unknown"  # names of counts


class Unknowns:
    """Collects the highest score that each test image gets: of classes that were learned, and of those to come.

    Known images are scored by the evaluation that there is anyway; unknown ones are asked after it, of a learner that
    is thrown away, so nothing that was learned or answered depends on them.

    Args:
        learned: Experiences learned: known are the test images of these.

    Attributes:
        flops: Of the pass over unknown images.
    """

    def __init__(self, learned: int) -> None:
        self.learned, self.flops = learned, 0
        self._known, self._correct, self._unknown = list[Tensor](), list[Tensor](), list[Tensor]()

    def count(self, scores: Tensor, slots: Tensor, where: Tensor) -> None:
        """Keep the highest of the ``scores`` (N, C) of images of ``slots`` (N,) and experiences ``where`` (N,)."""
        best, answer = scores.max(1)
        known = where < self.learned
        self._known.append(best[known].float().cpu())
        self._correct.append((answer == slots)[known].cpu())

    def ask(
        self, predict: Predict, stream: Stream, num_classes: int, seed: int, device: torch.device, batch_size: int
    ) -> None:
        """Score the test images of all classes that were not seen yet, in a keyed random order."""
        known = set(evaluable(stream, num_classes))
        tests = [(index, stream.test(index)) for index in range(len(stream)) if index not in known]
        parts = [(index, samples[samples.slots >= num_classes]) for index, samples in tests]
        size, flops = sum(len(samples) for _, samples in parts), Flops()
        for batch, _ in shuffled(parts, seed, stream.fingerprint, device, batch_size):
            if self._unknown:
                scores = predict(batch.images)
            else:  # operations of one batch tell those of all
                with flops.counting():
                    scores = predict(batch.images)
                self.flops = round(flops.count / len(batch.images) * size)
            self._unknown.append(scores.max(1).values.float().cpu())

    def counts(self) -> dict[str, Tensor]:
        """Scores of known images (n,) float32, which of them were answered rightly, and scores of unknown ones (m,)."""
        none = torch.empty(0)
        return {
            KNOWN: torch.cat([none, *self._known]),
            CORRECT: torch.cat([none.bool(), *self._correct]),
            UNKNOWN: torch.cat([none, *self._unknown]),
        }


def open_set_scores(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """Open-set recognition after each experience, by the maximum logit; see ``cil.metrics.open_set``.

    Returns:
        ``auroc``, ``fpr95``, ``aupr_unknown``, ``aupr_known`` and ``oscr``, each null where no class is unknown;
        ``unknown``, the unknown images; ``mean_auroc`` and ``mean_oscr`` over the experiences that have some.
    """
    found = [_scores(row) for row in rows]
    curves = {name: [getattr(one, name) for one in found] for name in metrics.OpenSet._fields}
    unknown = [len(row.get(UNKNOWN, ())) for row in rows]
    means = {
        f"mean_{name}": plain(
            np.mean([value for value, many in zip(curves[name], unknown, strict=True) if many] or [np.nan])
        )
        for name in ("auroc", "oscr")
    }
    return {"score": "max_logit", **{name: plain(curve) for name, curve in curves.items()}, "unknown": unknown, **means}


def _scores(row: Mapping[str, Tensor]) -> metrics.OpenSet:
    if UNKNOWN not in row:  # counted before the option was set
        return metrics.OpenSet(*[float("nan")] * 5)
    return metrics.open_set(*(row[name].numpy() for name in (KNOWN, CORRECT, UNKNOWN)))
