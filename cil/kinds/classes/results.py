"""The results of a run on a stream of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from cil import metrics
from cil.engine.anytime import anytime_results
from cil.engine.spending import Rows, plain
from cil.kinds.classes.record_types import ClassScores
from cil.streams import DomainStream, Stream


def class_scores(rows: Rows, facts: Sequence[Mapping[str, Any]], stream: Stream) -> ClassScores:
    """The results of a run on a stream of classes.

    Of domain streams with the means of R by ``domain_summary``; of others whose classes come back with
    ``forgetting_by_class``, as an experience that brings no class has no test data, and R a gap.

    Args:
        rows: Counts of ``evaluate`` after each experience so far.
        facts: Plain data committed with each.
    """
    names = ("correct", "correct_task_aware", "count")
    correct, aware, count = (np.stack([row[name].numpy() for row in rows]).astype(float) for name in names)
    tested = np.where(count > 0, count, np.nan)
    summary = metrics.summary(
        np.stack([row["confusion"].numpy() for row in rows]),
        100 * aware / tested,
        stream.experience_of_slot,
        counts=(correct, count),
    )
    scores = cast(ClassScores, summary)
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
    return scores


def forgetting_by_class(rows: Rows, stream: Stream) -> float | None:
    """Mean over the classes that were ever answered rightly before, in points."""
    first = stream.experience_of_slot
    right = metrics.per_class_accuracy(confusions(rows), first)
    fallen = metrics.per_class_forgetting(right, first)
    known = ~np.isnan(fallen) & (np.nan_to_num(right[:-1]).max(0, initial=0) > 0)
    return float(fallen[known].mean()) if known.any() else None


def confusions(rows: Rows) -> np.ndarray:
    """(t, K, K) counts: what nearly every other metric can be computed from again."""
    return np.stack([row["confusion"].numpy() for row in rows])
