"""The results of a run on a stream of classes."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from cil import metrics, plugins
from cil.engine.anytime import anytime_results
from cil.engine.running import Counts, CurveSoFar
from cil.engine.spending import Rows
from cil.errors import in_words
from cil.kinds.classes.answers import FURTHER, OWN
from cil.kinds.classes.column_counts import accepted_scores, group_scores
from cil.kinds.classes.evaluation import CORRECT, COUNT
from cil.kinds.classes.record_types import Averages, ClassScores, OpenSetScores
from cil.kinds.classes.unknowns import UNKNOWN, open_set_scores
from cil.metrics import plain
from cil.streams import DomainStream, Stream
from cil.tracking.record_types import Scores

OWN_METRICS = "cil.metrics"  # entry points of metrics that other packages bring
_say = logging.getLogger("cil.kinds")


def class_scores(rows: Rows, facts: Sequence[Mapping[str, Any]], stream: Stream) -> ClassScores:
    """The results of a run on a stream of classes.

    Of domain streams with the means of R by ``domain_summary``; of others whose classes come back with
    ``forgetting_by_class``, as an experience that brings no class has no test data, and R a gap.
    """
    names = ("correct", "correct_task_aware", "count")
    counted = [[row[name].numpy() for name in names] for row in rows]
    correct, aware, count = (np.stack(parts).astype(float) for parts in zip(*counted, strict=True))
    tested = np.where(count > 0, count, np.nan)
    images = _right_and_tested(rows[-1], stream)[1]
    summary = metrics.summary_of_counts(correct, count, 100 * aware / tested, images, stream.experience_of_slot)
    scores = cast(ClassScores, summary | answer_scores(rows, summary))
    if own := own_metrics(summary["accuracy_matrix"]):
        scores["metrics"] = own
    scores["averages"] = averages(rows, stream)
    if stream.provenance.groups:
        scores["groups"] = group_scores(rows, stream.provenance.groups)
    if (accepted := accepted_scores(rows)) is not None:
        scores["accepted"] = accepted
    if COUNT in rows[-1]:
        scores["validation_curve"] = validation_curve(rows)
    if UNKNOWN in rows[-1]:
        scores["open_set"] = cast(OpenSetScores, open_set_scores(rows))
    if "anytime" in facts[-1]:
        scores["anytime"] = anytime_results(facts)
    if isinstance(stream, DomainStream):
        found = metrics.domain_summary(summary["accuracy_matrix"])
        scores["domains"] = {
            "names": list(stream.domains),
            "in_domain": plain(found.in_domain),
            "next_domain": plain(found.next_domain),
            "backward": plain(found.backward),
            "forward": plain(found.forward),
        }
    elif any(set(s.present) - set(s.new_slots) for s in stream.signatures):
        scores["forgetting_by_class"] = forgetting_by_class(rows, stream)
    else:
        scores["task_identification_curve"] = plain([task_identification(row, stream) for row in rows])
    return scores


def own_metrics(matrix: Any) -> dict[str, float | None]:
    """What each metric of another package says of a run; None where it is undefined, or fails.

    A metric is a function of the matrix R, (T, T) percent with NaN where an experience was not evaluated, to a number.
    One that fails is named in a warning with its line: a run that was trained is not lost to it.
    """
    found: dict[str, float | None] = {}
    for name in plugins.names(OWN_METRICS):
        try:
            value = float(plugins.find(OWN_METRICS, name)(np.array(matrix, dtype=float)))
        except Exception as error:  # whatever a function of others raises
            _say.warning(f"the metric {name} is left out: {in_words(error)}")
            value = math.nan
        found[name] = value if math.isfinite(value) else None
    return found


def validation_curve(rows: Rows) -> Scores:
    """Percent of the held-out images of all experiences learned, after each; null where none was counted."""
    curve = []
    for index, row in enumerate(rows):
        right, among = (row[name][: index + 1].sum() if name in row else np.nan for name in (CORRECT, COUNT))
        curve.append(float(metrics.accuracy_from_counts(float(right), float(among))))
    found: Scores = plain(curve)
    return found


def averages(rows: Rows, stream: Stream) -> Averages:
    """Accuracy on all classes seen with equal weight for each image, each class and, of a pool, each data set."""
    origins = np.array(stream.provenance.origins)
    parts = {name: origins == name for name in dict.fromkeys(stream.provenance.origins)}
    by_image, by_class, sets = [], [], []
    for row in rows:
        correct, tested = _right_and_tested(row, stream)
        by_image.append(_percent(correct, tested))
        by_class.append(_mean(metrics.accuracy_from_counts(correct, tested)))
        sets.append([_percent(correct[own], tested[own]) for own in parts.values()])
    found: Averages = {"by_image": plain(by_image), "by_class": plain(by_class)}
    if parts:
        found["by_set"] = plain([_mean(np.array(own)) for own in sets])
        found["sets"] = dict(zip(parts, plain(np.array(sets).T), strict=True))
    return found


def _mean(percent: np.ndarray) -> float:
    known = percent[~np.isnan(percent)]
    return float(known.mean()) if len(known) else np.nan


def _percent(correct: np.ndarray, tested: np.ndarray) -> float:
    return 100 * float(correct.sum()) / float(tested.sum()) if tested.any() else np.nan


def task_identification(row: Counts, stream: Stream) -> float:
    """Percent of the answers that name a class of the right experience, whichever of them (TID)."""
    owner = np.asarray(stream.experience_of_slot)
    true, predicted, counts = row["cells"].numpy().astype(np.int64).T
    found = counts[owner[true] == owner[predicted]].sum()
    return float(metrics.accuracy_from_counts(found, counts.sum()))


def answer_scores(rows: Rows, own: Mapping[str, Any]) -> dict[str, Any]:
    """The ``answer`` that is a learner's own, and all its ``answers``; empty where none were counted by name.

    Args:
        own: Accuracy by its own answer, which stands among the others as it is.
    """
    tested = np.array([[int(row["count"][: index + 1].sum())] for index, row in enumerate(rows)])
    kept = dict.fromkeys(name for row in rows for name in sorted(row))
    names = [name for begin in (OWN, FURTHER) for name in kept if name.startswith(begin)]
    found: dict[str, Any] = {}
    for name in names:
        right = np.array([row[name].tolist() if name in row else [np.nan] * 2 for row in rows])  # (t, 2)
        curve, top5 = metrics.accuracy_from_counts(right, tested).T
        found[name.removeprefix(OWN).removeprefix(FURTHER)] = {
            "accuracy_curve": plain(curve),
            "average_incremental_accuracy": plain(metrics.average_incremental_accuracy(curve)),
            "last_accuracy": plain(metrics.last_accuracy(curve)),
            "top5_curve": plain(top5),
        }
    if not found:
        return {}
    first = next(iter(found))
    found[first] |= {key: own[key] for key in found[first] if key in own}
    return {"answer": first, "answers": found}


def forgetting_by_class(rows: Rows, stream: Stream) -> float | None:
    """Mean over the classes that were ever answered rightly before, in points."""
    first = stream.experience_of_slot
    correct, tested = (np.stack(parts) for parts in zip(*(_right_and_tested(row, stream) for row in rows), strict=True))
    right = metrics.once_seen(metrics.accuracy_from_counts(correct, tested), first)
    fallen = metrics.per_class_forgetting(right, first)
    known = ~np.isnan(fallen) & (np.nan_to_num(right[:-1]).max(0, initial=0) > 0)
    return float(fallen[known].mean()) if known.any() else None


def _right_and_tested(row: Counts, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    """Right answers and test images of each slot, (K,): diagonal and row sums of the confusion."""
    true, predicted, counts = row["cells"].numpy().astype(np.int64).T
    correct, tested = np.zeros((2, len(stream.classes)), np.int64)
    np.add.at(tested, true, counts)
    np.add.at(correct, true[true == predicted], counts[true == predicted])
    return correct, tested


class ScoresSoFar(CurveSoFar):
    """Accuracy on all classes seen and forgetting, boundary by boundary."""

    def add(self, row: Counts) -> None:
        correct, count = (row[name].numpy().astype(float) for name in ("correct", "count"))
        accuracies = metrics.accuracy_from_counts(correct, count)
        until = len(self.curve) + 1  # experiences learned
        known, weight = accuracies[:until], count[:until]
        right = np.where(weight > 0, weight * known, 0.0).sum()
        self.extend(right / weight.sum() if weight.any() else np.nan, accuracies)
