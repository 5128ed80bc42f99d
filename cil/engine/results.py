"""The numbers of a record, from what was committed and evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from torch import Tensor

from cil import metrics
from cil.engine.anytime import anytime_results
from cil.engine.tasks import plain, task_results
from cil.streams import DomainStream, Stream
from cil.streams.task_stream import TaskStream

Rows = Sequence[Mapping[str, Tensor]]


def results_of(rows: Rows, facts: Sequence[Mapping[str, Any]], stream: Stream) -> dict[str, Any]:
    """The ``results`` of a record (design, section 6).

    Of domain streams with the means of R by ``domain_summary``; of others whose classes come back with
    ``forgetting_by_class``, as an experience that brings no class has no test data, and R a gap.

    Args:
        rows: What ``evaluate`` gave after each experience so far.
        facts: What was committed with each.
    """
    if isinstance(stream, TaskStream):
        return {**task_results(rows, facts, stream), **spent(rows, facts)}
    names = ("correct", "correct_task_aware", "count")
    correct, aware, count = (np.stack([row[name].numpy() for row in rows]).astype(float) for name in names)
    tested = np.where(count > 0, count, np.nan)
    accuracy = metrics.summary(
        np.stack([row["confusion"].numpy() for row in rows]),
        100 * aware / tested,
        stream.experience_of_slot,
        counts=(correct, count),
    )
    more: dict[str, Any] = {"anytime": anytime_results(facts)} if "anytime" in facts[-1] else {}
    if isinstance(stream, DomainStream):
        found = metrics.domain_summary(accuracy["accuracy_matrix"])._asdict()
        more["domains"] = {"names": list(stream.domains), **{name: plain(value) for name, value in found.items()}}
    elif any(set(s.present) - set(s.new_slots) for s in stream.signatures):
        more["forgetting_by_class"] = forgetting_by_class(rows, stream)
    return {**accuracy, **more, **spent(rows, facts)}


def forgetting_by_class(rows: Rows, stream: Stream) -> float | None:
    """Mean over the classes that were ever answered rightly before, in points (specification metrics 3, F_last)."""
    first = stream.experience_of_slot
    right = metrics.per_class_accuracy(confusions(rows), first)
    fallen = metrics.per_class_forgetting(right, first)
    known = ~np.isnan(fallen) & (np.nan_to_num(right[:-1]).max(0, initial=0) > 0)
    return float(fallen[known].mean()) if known.any() else None


def spent(rows: Rows, facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a run carried and spent: ledger, operations by part (summed up over experiences), seconds, peaks."""
    parts = dict.fromkeys(name for fact in facts for name in fact["flops"])
    flops = {name: list(accumulate(fact["flops"].get(name, 0) for fact in facts)) for name in parts}
    both = [(row, fact.get("anytime", {"flops": 0, "seconds": 0.0})) for row, fact in zip(rows, facts, strict=True)]
    flops["evaluation"] = list(accumulate(int(row["flops"]) + inside["flops"] for row, inside in both))
    seconds: dict[str, Any] = {name: [fact["seconds"][name] for fact in facts] for name in ("train", "consolidate")}
    seconds["evaluate"] = [float(row["seconds"]) + inside["seconds"] for row, inside in both]
    peaks = [fact["peak_parameters"] for fact in facts if "peak_parameters" in fact]
    compute = {"compute": [fact.get("compute") for fact in facts]} if "compute" in facts[-1] else {}
    return {
        "ledger": [fact["ledger"] for fact in facts],
        "exemplars": [fact["exemplars"] for fact in facts],
        "given_up": [fact.get("given_up", 0) for fact in facts],
        "over_budget": [fact["over_budget"] for fact in facts],
        "flops": {**flops, "total": sum(each[-1] for each in flops.values())},
        "seconds": {**seconds, "total": sum(map(sum, seconds.values()))},
        "peak_training_bytes": max(fact["peak_training_bytes"] for fact in facts),
        "peak_parameters": max(peaks, default=None),
        **compute,
    }


def confusions(rows: Rows) -> np.ndarray:
    """(t, K, K) counts: what nearly every other metric can be computed from again."""
    return np.stack([row["confusion"].numpy() for row in rows])
