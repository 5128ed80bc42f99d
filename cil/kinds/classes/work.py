"""The work of a run on a stream of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from cil.engine.driver import Context, Counts, Facts
from cil.engine.learning import StrategyWork
from cil.kinds.classes.anytime import Anytime, AnytimeObserver
from cil.kinds.classes.evaluation import evaluate
from cil.kinds.classes.results import class_results, confusions


@dataclass
class ClassWork(StrategyWork):
    """Trains a strategy on a stream of classes, and evaluates it on all classes seen.

    Args:
        anytime: How often to evaluate inside experiences; None: not at all.
    """

    anytime: Anytime | None = None

    def observer(self, index: int, context: Context) -> AnytimeObserver | None:
        if self.anytime is None:
            return None
        facts = context.facts(index)
        return AnytimeObserver(
            self.anytime, self.stream, index, facts, self.seed, self.evaluation_batch, self.runtime
        )  # fmt: skip

    def evaluate(self, index: int, context: Context) -> Counts:
        """Right and wrong answers on the test data of all classes seen, from what was carried alone."""
        learner, clock = self.carried_learner(index, context)
        counts = evaluate(
            partial(self.answers, learner, context), self.stream, learner.num_classes,
            seed=self.seed, device=self.runtime.torch_device, batch_size=self.evaluation_batch,
        )  # fmt: skip
        return {**counts, "seconds": torch.tensor([clock.seconds], dtype=torch.float64)}

    def results(self, rows: Sequence[Counts], facts: Sequence[Facts]) -> dict[str, Any]:
        """Accuracy over time, forgetting, and what was carried and spent."""
        return class_results(rows, facts, self.stream)

    def arrays(self, rows: Sequence[Counts], facts: Sequence[Facts]) -> Mapping[str, np.ndarray[Any, Any]]:
        """``confusion`` (t, K, K): true by predicted after each experience."""
        return {"confusion": confusions(rows)}
