"""The results of an adaptation run, from what was counted and committed at each boundary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from cil.engine.running import Counts, SoFar
from cil.kinds.adaptation.record_types import AdaptationResults
from cil.streams.shifts import ShiftStream
from cil.tracking.arrays import Part


def adaptation_results(
    rows: Sequence[Counts], facts: Sequence[Mapping[str, Any]], stream: ShiftStream
) -> AdaptationResults:
    """The results of an adaptation run.

    Args:
        rows: Counts up to each boundary: the first is the deployment (clean images at most), then a segment each.
        facts: Plain data committed with each.

    Returns:
        ``domain_errors`` (percent, in order of ``stream.domains``; None where not met yet), ``mean_error`` (their mean,
        unweighted; None until all were met), ``segment_errors``, ``online_error`` (of all images so far),
        ``clean_error_before`` and ``_after``, ``ledger`` (at each boundary), ``flops``, ``seconds`` (``per_batch``: of
        batches that no meter slowed down), ``peak_training_bytes`` (while adapting), ``peak_source_training_bytes``.
    """
    segments, adapted, deployed = rows[1:], facts[1:], facts[0]
    by_domain = [
        sum((row[f"{name}_by_domain"].numpy() for row in segments), np.zeros(len(stream.domains), int))
        for name in ("wrong", "count")
    ]
    domains = [percent(w, n) for w, n in zip(*by_domain, strict=True)]
    known = [error for error in domains if error is not None]
    batches = [seconds for fact in adapted for seconds in fact["seconds"]["batches"]]
    adapting, evaluating = ([fact["seconds"][name] for fact in adapted] for name in ("adapt", "evaluate"))
    flops = list(accumulate(fact["flops"]["adapt"] for fact in adapted))
    return {
        "domain_errors": domains,
        "mean_error": sum(known) / len(known) if len(known) == len(domains) else None,
        "segment_errors": [percent(row["wrong"].sum(), row["count"].sum()) for row in segments],
        "online_error": percent(*(sum(int(row[name].sum()) for row in segments) for name in ("wrong", "count"))),
        "clean_error_before": _clean(rows[0]),
        "clean_error_after": _clean(rows[-1]) if len(rows) == len(stream) + 1 else None,
        "ledger": [fact["ledger"] for fact in facts],
        "flops": {
            "source": deployed["flops"]["source"],
            "deploy": deployed["flops"]["deploy"],
            "adapt": flops,
            "total": sum(deployed["flops"].values()) + sum(flops[-1:]),
        },
        "seconds": {
            "source": deployed["seconds"]["source"],
            "deploy": deployed["seconds"]["deploy"],
            "adapt": adapting,
            "evaluate": evaluating,
            "per_batch": sum(batches) / len(batches) if batches else None,
            "total": sum(deployed["seconds"].values()) + sum(adapting) + sum(evaluating),
        },
        "peak_training_bytes": max((fact["peak_training_bytes"] for fact in adapted), default=None),
        "peak_source_training_bytes": deployed["peak_training_bytes"],
    }


class SegmentsSoFar(SoFar):
    """Errors of each segment, in percent, and of all images so far."""

    def clear(self) -> None:
        self.errors: list[float | None] = []
        self.wrong, self.count = 0, 0

    def add(self, row: Counts) -> None:
        if "wrong" in row:
            wrong, count = int(row["wrong"].sum()), int(row["count"].sum())
            self.errors.append(percent(wrong, count))
            self.wrong, self.count = self.wrong + wrong, self.count + count

    def results(self) -> dict[str, Any]:
        return {"segment_errors": self.errors, "online_error": percent(self.wrong, self.count)}

    def arrays(self, row: Counts) -> dict[str, Part]:
        """Of each batch of the last segment: ``wrong``, ``count``, ``segment``, and ``running_error`` of all so far."""
        if "wrong" not in row:
            return {}
        wrong, count = row["wrong"].numpy(), row["count"].numpy()
        behind = self.wrong - wrong.sum(), self.count - count.sum()
        running = 100 * (behind[0] + wrong.cumsum()) / (behind[1] + count.cumsum())
        found = {"wrong": wrong, "count": count, "segment": np.full(len(wrong), len(self.errors) - 1)}
        return {name: Part(values, "joined") for name, values in {**found, "running_error": running}.items()}


def percent(wrong: Any, count: Any) -> float | None:
    """Wrong of ``count``, in percent; None of none.

    >>> percent(1, 8), percent(0, 0)
    (12.5, None)
    """
    return 100 * float(wrong) / float(count) if count else None


def _clean(row: Counts) -> float | None:
    return percent(row["clean_wrong"][0], row["clean_count"][0]) if "clean_wrong" in row else None
