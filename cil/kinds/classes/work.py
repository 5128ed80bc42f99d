"""The work of a run on a stream of classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cil.engine.anytime import AnytimeObserver
from cil.engine.driver import Context, Facts
from cil.engine.learning import StrategyWork
from cil.engine.running import Counts, Rows
from cil.kinds.classes.answers import Answers
from cil.kinds.classes.evaluation import evaluate
from cil.kinds.classes.record_types import ClassScores
from cil.kinds.classes.results import ScoresSoFar, class_scores
from cil.strategies import Strategy
from cil.tracking.arrays import Part


@dataclass
class ClassWork(StrategyWork):
    """Trains a strategy on a stream of classes, and evaluates it on all classes seen."""

    looks_inside = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._so_far = ScoresSoFar()

    def observer(self, index: int, context: Context) -> AnytimeObserver | None:
        if self.anytime is None:
            return None
        facts = context.facts(index)
        return AnytimeObserver(
            self.anytime, self.stream, index, facts, self.seed, self.evaluation_batch, self.runtime, self.transductive
        )  # fmt: skip

    def count(self, index: int, learner: Strategy, predict: Callable[..., Tensor]) -> Counts:
        """Right and wrong answers on the test data of all classes seen; those by other means are counted beside."""
        answers = Answers(learner, self.learners, index + 1, self.evaluation_batch, self.answers)
        counts = evaluate(
            answers.listening(predict), self.stream, learner.num_classes,
            seed=self.seed, device=self.runtime.torch_device, batch_size=self.evaluation_batch,
            answered=answers.count,
        )  # fmt: skip
        return counts | answers.counts() | {"flops": counts["flops"] + answers.flops}

    def scores(self, rows: Sequence[Counts], facts: Sequence[Facts]) -> ClassScores:
        """Accuracy over time and forgetting."""
        return class_scores(rows, facts, self.stream)

    def so_far(self, rows: Rows, facts: Sequence[Facts]) -> Mapping[str, Any]:
        """The accuracy curve, its mean, and forgetting."""
        return self._so_far.over(rows).results()

    def arrays(self, rows: Rows) -> Mapping[str, Part]:
        """``confusion`` (t, K, K): true by predicted after each experience."""
        width = len(self.stream.classes)
        return {"confusion": Part(rows[-1]["cells"].numpy(), "stacked", (width, width))}
