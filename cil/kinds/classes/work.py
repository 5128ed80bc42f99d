"""The work of a run on a stream of classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from cil.engine.anytime import AnytimeObserver
from cil.engine.learning import StrategyWork
from cil.engine.running import Counts, Rows
from cil.engine.work import Context, Facts
from cil.errors import ConfigError
from cil.kinds.classes.answers import Answers
from cil.kinds.classes.evaluation import evaluate, validation_counts
from cil.kinds.classes.record_types import ClassScores
from cil.kinds.classes.results import ScoresSoFar, class_scores
from cil.kinds.classes.sample_answers import ANSWERS, IMAGES, SLOTS, SampleAnswers
from cil.kinds.classes.unknowns import Unknowns
from cil.models import LinearHead
from cil.strategies import Strategy
from cil.streams import Stream
from cil.tracking import Record
from cil.tracking.arrays import Part
from cil.tracking.panels import Panel, confusion_panels, matrix_tables

NORMS = "classifier_norms"


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
        unknowns = Unknowns(index + 1) if self.open_set else None
        seen = self.stream.signatures[index].num_classes  # not what the learner says
        samples = SampleAnswers(seen) if self.pictures and index == len(self.stream) - 1 else None

        def answered(images: Tensor, scores: Tensor, slots: Tensor, where: Tensor) -> None:
            answers.count(slots, where)
            if samples is not None:
                samples.count(images, scores, slots)
            if unknowns is not None:
                unknowns.count(scores, slots, where)

        how: dict[str, Any] = {
            "seed": self.seed,
            "device": self.runtime.torch_device,
            "batch_size": self.evaluation_batch,
        }
        counts = evaluate(answers.listening(predict), self.stream, seen, answered=answered, **how)
        flops = counts["flops"] + answers.flops
        counts |= answers.counts() | classifier_norms(learner) | ({} if samples is None else samples.counts())
        if self._held_out is not None:
            held_out = validation_counts(predict, self._held_out, seen, **how)
            flops = flops + held_out.pop("flops")
            counts |= held_out
        if unknowns is not None:
            unknowns.ask(predict, self.stream, seen, **how)
            flops = flops + unknowns.flops
            counts |= unknowns.counts()
        return counts | {"flops": flops}

    def check_open_set(self) -> None:
        """Refuse a stream whose classes all arrive at once."""
        if not any(signature.new_slots for signature in self.stream.signatures[1:]):
            raise ConfigError(
                f"trainer.open_set is true, and all classes of stream '{self.stream.name}' arrive in its first "
                f"experience, so none is unknown: set it to false"
            )

    @cached_property
    def _held_out(self) -> Stream | None:
        return self.stream.judged_by_validation()

    def scores(self, rows: Sequence[Counts], facts: Sequence[Facts]) -> ClassScores:
        return class_scores(rows, facts, self.stream)

    def so_far(self, rows: Rows, facts: Sequence[Facts]) -> Mapping[str, Any]:
        return self._so_far.over(rows).results()

    def arrays(self, rows: Rows) -> Mapping[str, Part]:
        """``confusion`` (t, K, K): true by predicted after each experience; ``classifier_norms`` (t, K), NaN unseen.

        After the last experience the test images of ``SampleAnswers``, their slots and what was answered.
        """
        width, row = len(self.stream.classes), rows[-1]
        found = {"confusion": Part(row["cells"].numpy(), "stacked", (width, width))}
        if NORMS in row:
            norms = np.full(width, np.nan, np.float32)
            norms[: len(row[NORMS])] = row[NORMS].numpy()
            found[NORMS] = Part(norms, "stacked")
        found |= {name: Part(row[name].numpy()) for name in (IMAGES, SLOTS, ANSWERS) if name in row}
        return found

    def panels(self, record: Record) -> list[Panel]:
        parts = record.arrays().parts("confusion") if record.results.get("accuracy_matrix") else ()
        return [
            *super().panels(record),
            *matrix_tables(record.results.get("accuracy_matrix") or ()),
            *confusion_panels(parts, self.stream.classes, self.stream.experience_of_slot),
        ]


def classifier_norms(learner: Strategy) -> dict[str, Tensor]:
    """Length of the weight vector of each class, (C,) float32, by name; empty without a linear head on all classes."""
    kept = learner.held()
    for head in (kept.get("head"), getattr(kept.get("net"), "head", None)):
        if isinstance(head, LinearHead) and head.num_classes == learner.num_classes:
            return {NORMS: head.weight.detach().float().norm(dim=1).cpu()}
    return {}
