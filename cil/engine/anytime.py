"""Evaluation inside experiences: what a learner would answer every so many steps. Training is the same bit by bit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cil import metrics
from cil.contract import Holder
from cil.data import Batch, Samples, concatenated
from cil.engine.answers_checked import checked_scores
from cil.engine.asked_again import Asked, asks_again
from cil.engine.keys import generator
from cil.engine.lifecycle import all_evaluating
from cil.engine.runtime import Runtime
from cil.engine.search import copied
from cil.engine.status import is_out_of_memory
from cil.errors import ConfigError, ContractError
from cil.memory import Flops, encode_meta
from cil.memory.meters import rest_paused
from cil.memory.tensor_bits import same_bits
from cil.streams import Stream
from cil.tracking import plain
from cil.tracking.record_types import AnytimeResults
from cil.values import check_value

WINDOWS = (10, 100)  # evaluations, of windowed forgetting and plasticity
ASKED = 100  # evaluations of an experience are followed by as many questions as those of a run of so many experiences


@dataclass(frozen=True)
class Anytime:
    """Settings of the evaluation inside experiences.

    Args:
        every: Steps or samples between two evaluations; there is one more at the end of each experience.
        unit: ``steps`` of the optimizer, or ``samples`` of the stream: images of the phases as they arrive, in a second
            epoch once more; exemplars that are mixed in count too.
        images: Test images of each experience, a fixed random choice; None for all.
    """

    every: int
    unit: str = "steps"
    images: int | None = None

    def __post_init__(self) -> None:
        check_value("anytime.every", self.every)
        if self.every is None:
            raise ConfigError("anytime.every is None; leave anytime out for no evaluation inside experiences")
        check_value("anytime.unit", self.unit)
        check_value("anytime.images", self.images)


class AnytimeObserver:
    """Evaluates a learner inside one experience, on test images of the classes exposed so far.

    A class is exposed once an image of it was in a batch. Answers are the best among exposed classes; those that
    ``predict`` has no score for yet are never chosen, as the new ones of a nearest-mean answer before the boundary.

    Args:
        settings: How often, and on what.
        stream: Its test data of experiences 0 to ``index`` are read.
        past: Facts of the experiences before.
        transductive: Answers may depend on the other images.
    """

    def __init__(
        self, settings: Anytime, stream: Stream, index: int, past: Sequence[Mapping[str, Any]], seed: int,
        batch_size: int, runtime: Runtime, transductive: bool = False,
    ) -> None:  # fmt: skip
        self.transductive = transductive
        self.settings, self.stream, self.index = settings, stream, index
        self.seed, self.batch_size, self.runtime = seed, batch_size, runtime
        self.rows: list[dict[str, Any]] = []
        self.online = [0, 0]  # right answers, and images, ahead of learning them
        self.seconds, self.flops, self.per_image = 0.0, 0.0, 0.0
        self.before = past[-1]["anytime"]["samples"] if past else 0  # samples of what is behind
        self.samples, self.updates = self.before, sum(fact["steps"] for fact in past)
        seen = stream.signatures[index].num_classes
        self.exposed = torch.arange(seen, device=runtime.torch_device) < seen - len(stream.signatures[index].new_slots)

    def batch(self, learner: Any, batch: Batch, arrived: int, updates: int) -> None:
        """A batch was trained on.

        Args:
            arrived: Images of the phase that arrived by now.
            updates: Optimizer steps of the run by now.
        """
        self.exposed[batch.slots] = True
        every, by_steps = self.settings.every, self.settings.unit == "steps"
        past, now = (self.updates, updates) if by_steps else (self.samples, self.before + arrived)
        self.samples = self.before + arrived
        if updates > self.updates:
            self.updates = updates
            if now // every > past // every:
                self._evaluate(learner)

    @rest_paused()
    def ahead(self, learner: Any, samples: Samples | None) -> None:
        """Images of a single pass are answered as they arrive; of classes not exposed yet, no answer is right."""
        if samples is None:
            return
        start, questions = time.monotonic(), Asked(self.seed, "ahead", *self._place)
        with self._unchanged(learner):
            for batch in samples.batches(self.batch_size, self.runtime.torch_device):
                right = self._answered(learner, batch.images, questions) == batch.slots
                self.online[0] += int((right & self.exposed[batch.slots]).sum())
                self.online[1] += len(batch)
        self._ask_again(learner, questions, first=self.online[1] == len(samples))
        self.flops += self.per_image * len(samples)
        self.seconds += time.monotonic() - start

    def all_arrived(self, images: int) -> None:
        """The images of a single pass that the budget left no step for arrived too."""
        self.samples = self.before + images

    def phase_ends(self) -> None:
        """The samples of the next phase are counted from here on."""
        self.before = self.samples

    def experience_ends(self, learner: Any) -> dict[str, Any]:
        """Evaluations of the experience, with one after its last step."""
        if self.updates and (not self.rows or self.rows[-1]["update"] < self.updates):
            self._evaluate(learner)
        names = ("rows", "samples", "online", "seconds")
        found = {name: getattr(self, name) for name in names} | {"flops": round(self.flops)}
        return found | asdict(self.settings)

    def state(self) -> dict[str, Any]:
        """Plain data, for a snapshot."""
        names = ("rows", "online", "seconds", "flops", "per_image", "before", "samples", "updates")
        return {"exposed": self.exposed.tolist(), **{name: getattr(self, name) for name in names}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a snapshot."""
        for name, value in state.items():
            setattr(self, name, list(value) if isinstance(value, list) else value)
        self.exposed = torch.tensor(state["exposed"], device=self.runtime.torch_device)

    @cached_property
    def _tests(self) -> tuple[Samples, Tensor]:
        """Test samples of the experiences so far, shuffled, and the experience of each."""
        parts, where = [], []
        for index in range(self.index + 1):
            samples = self.stream.test(index)
            order = torch.randperm(
                len(samples), generator=generator(self.seed, "anytime", self.stream.fingerprint, index)
            )
            if len(samples):
                parts.append(samples[order[: self.settings.images].sort().values])
                where += [index] * len(parts[-1])
        joined = concatenated(parts).joined()
        order = torch.randperm(len(joined), generator=generator(self.seed, "anytime", self.stream.fingerprint))
        return joined[order], torch.tensor(where)[order]

    @rest_paused()
    def _evaluate(self, learner: Any) -> None:
        start, questions = time.monotonic(), Asked(self.seed, "anytime", *self._place)
        tests, where = self._tests
        exposed = self.exposed.cpu()
        asked = exposed[tests.slots].nonzero().flatten()
        tests, where = tests[asked], where[asked]
        right = torch.zeros(len(tests), dtype=torch.bool)
        with self._unchanged(learner):
            for batch in tests.batches(self.batch_size, self.runtime.torch_device):
                assert batch.rows is not None
                right[batch.rows] = (self._answered(learner, batch.images, questions) == batch.slots).cpu()
        self._ask_again(learner, questions, first=not self.rows)
        self.flops += self.per_image * len(tests)
        count = torch.bincount(where, minlength=self.index + 1).tolist()
        correct = torch.bincount(where[right], minlength=self.index + 1).tolist()
        self.rows.append({"update": self.updates, "samples": self.samples, "correct": correct, "count": count})
        self.seconds += time.monotonic() - start

    @contextmanager
    def _unchanged(self, learner: Any) -> Iterator[None]:
        """Around answers of the learner that is being trained: it must be left as it was.

        Raises:
            ContractError: naming what is kept and was changed.
        """
        before, meta = copied(Holder.full_state(learner))
        told = encode_meta(meta)
        yield
        tensors, meta = Holder.full_state(learner)
        changed = [*(before.keys() ^ tensors.keys())]
        changed += [name for name in before.keys() & tensors.keys() if not same_bits(before[name], tensors[name])]
        if encode_meta(meta) != told:
            changed.append("metadata")
        if changed:
            raise ContractError(
                f"{type(learner).__name__}.predict changes {min(changed)} inside experience {self.index}; where test "
                f"images are answered nothing that is kept may change"
            )

    @property
    def _place(self) -> tuple[object, ...]:
        """Names an evaluation; no learner is told the fingerprint."""
        return self.stream.fingerprint, self.index, self.updates, self.samples

    def _ask_again(self, learner: Any, questions: Asked, first: bool) -> None:
        """Ask some images again after the first evaluation of an experience, and after a few others."""
        if not self.transductive and (first or asks_again(self.seed, 0, ASKED, *self._place)):
            questions.again(partial(self._scores, learner), type(learner).__name__, f"inside experience {self.index}")

    def _answered(self, learner: Any, images: Tensor, questions: Asked) -> Tensor:
        """The best of the classes exposed, (n,)."""
        flops = Flops()
        answer = questions.listening(partial(self._scores, learner))
        with nullcontext() if self.per_image else flops.counting():
            scores = answer(images)
        self.per_image = self.per_image or flops.count / len(images)
        missing = len(self.exposed) - scores.shape[1]
        scores = torch.nn.functional.pad(scores.float(), (0, missing), value=-torch.inf)
        return scores.masked_fill(~self.exposed, -torch.inf).argmax(1)

    def _scores(self, learner: Any, images: Tensor) -> Tensor:
        """Scores of the classes that the learner answers by; refused where it cannot answer yet."""
        try:
            with torch.no_grad(), self.runtime.autocast(), self.runtime.frozen_features(), all_evaluating(learner):
                scores = learner.predict(images)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ContractError(
                f"{type(learner).__name__} cannot answer inside experience {self.index}; set anytime.every=null "
                f"({type(error).__name__} {' '.join(str(error).split())[:120]})"
            ) from error
        return checked_scores(scores, f"{type(learner).__name__}.predict")


def anytime_results(facts: Sequence[Mapping[str, Any]]) -> AnytimeResults:
    """The part ``anytime`` of a record.

    - ``every``, ``unit``, ``images``: as set. ``updates``, ``samples``, ``experiences``: where each evaluation was.
    - ``accuracy``: percent on test images of all classes exposed. ``accuracy_by_experience``: one list an evaluation,
      of the experiences begun by then, None without a test image.
    - ``a_auc``: sum of ``accuracy`` times the samples since the evaluation before, over all samples.
      ``average_anytime_accuracy``, ``min_accuracy``, ``worst_case_accuracy``: at the end.
    - ``online_accuracy``: in a single pass, of images that are answered when they arrive, before they are learned.
    - ``windowed_forgetting``, ``windowed_plasticity``: by length of the window in evaluations.
    - ``stability_gaps``: of each pair of an ``earlier`` and a ``later`` experience ``gap``, ``recovery`` and
      ``recovery_updates``, None where it was not regained. ``stability_gap``: mean over pairs of neighbours.
    - ``flops``: of these evaluations; with their seconds they also stand with those of evaluation.

    What is undefined is None, as all but the series where an experience had no step.

    Source:
        De Lange et al. 2023 (stability gap, min-ACC, WC-ACC); Koh et al. 2022 (A_AUC).
    """
    parts = [fact["anytime"] for fact in facts]
    rows = [(index, row) for index, part in enumerate(parts) for row in part["rows"]]
    updates, samples = ([row[name] for _, row in rows] for name in ("update", "samples"))
    each = [_percent(row["correct"], row["count"]) for _, row in rows]
    whole = [_percent([sum(row["correct"])], [sum(row["count"])])[0] for _, row in rows]
    ends = list(accumulate(fact["steps"] for fact in facts))
    series: dict[int, Any] = {}
    for j in range(len(facts)):
        own = [(u, a[j]) for u, a in zip(updates, each, strict=True) if len(a) > j and a[j] is not None]
        if own:
            series[j] = ([u for u, _ in own], [a for _, a in own])
    known = metrics.anytime(series, ends, WINDOWS) if series and min(np.diff([0, *ends])) > 0 else None
    gaps = known.stability_gaps if known else {}
    pairs: list[Any] = [{"earlier": j, "later": k, **plain(gap._asdict())} for (j, k), gap in gaps.items()]
    neighbours = [gap.gap for (j, k), gap in gaps.items() if k == j + 1 and np.isfinite(gap.gap)]
    online = np.sum([part["online"] for part in parts], axis=0).tolist()
    at = dict(zip(samples, whole, strict=True))  # of several steps on a batch the last
    for part, ends_at in zip(parts, accumulate(len(part["rows"]) for part in parts), strict=True):
        if part["rows"]:  # what it would answer until the experience is over, where a budget ended training before
            at.setdefault(part["samples"], whole[ends_at - 1])
    at = dict(sorted(at.items()))
    return {
        "every": parts[-1]["every"],
        "unit": parts[-1]["unit"],
        "images": parts[-1]["images"],
        "updates": updates,
        "samples": samples,
        "experiences": [index for index, _ in rows],
        "accuracy": whole,
        "accuracy_by_experience": each,
        "a_auc": plain(metrics.area_over_samples(list(at), list(at.values()))) if known else None,
        "online_accuracy": _percent([online[0]], [online[1]])[0],
        "average_anytime_accuracy": plain(known.average_anytime_accuracy) if known else None,
        "min_accuracy": plain(known.min_accuracy) if known else None,
        "worst_case_accuracy": plain(known.worst_case_accuracy) if known else None,
        "windowed_forgetting": plain(known.windowed_forgetting) if known else {},
        "windowed_plasticity": plain(known.windowed_plasticity) if known else {},
        "stability_gaps": pairs,
        "stability_gap": float(np.mean(neighbours)) if neighbours else None,
        "flops": sum(part["flops"] for part in parts),
    }


def _percent(correct: Sequence[int], count: Sequence[int]) -> list[float | None]:
    return [100 * right / many if many else None for right, many in zip(correct, count, strict=True)]
