"""Rows over several streams: ranks, time to a target, and performance profiles (as AlgoPerf scores optimizers)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from cil import metrics
from cil.kinds.classes.rows import LAST, ranked
from cil.kinds.classes.seeds import ranking
from cil.report.grids import Line, decimal, grid
from cil.report.plots import Picture, draw_plots, figure_of, legend, line_style
from cil.report.rows import Row
from cil.report.section import Section
from cil.report.verdicts import Score

MOST = 4.0  # times the operations of the cheapest, from which on a row earns nothing
FACTORS = (1.0, 1.5, 2.0, MOST)


@dataclass(frozen=True)
class Workload:
    """Rows of one stream that may be compared, with the accuracy that they are to reach.

    Attributes:
        key: Result that the target is of: the last accuracy on validation images where all have it, else on test ones.
        target: Percent: the median over the rows, each the mean over its seeds.
    """

    name: str
    rows: Mapping[str, Row]
    key: tuple[str | int, ...]
    target: float

    def time(self, label: str) -> float:
        """Training FLOPs to the target, median over seeds; inf where it is missed.

        An accuracy on all classes there is at the end of the stream alone, so it takes all of its operations, or never
        comes.
        """
        runs = self.rows[label].runs
        costs = [math.inf if run.flops is None else float(max(run.flops, 1)) for run in runs]
        reached = [(run.result(*self.key) or 0.0) >= self.target for run in runs]
        return metrics.time_over_studies([[c if ok else math.inf] for c, ok in zip(costs, reached, strict=True)])


@dataclass(frozen=True)
class StreamsRow:
    """One row over the streams: the operations to the target of each, inf where missed."""

    label: str
    times: tuple[float, ...]
    score: float
    shares: tuple[float, ...]


def stream_sections(tables: Sequence[tuple[str, Sequence[Row]]]) -> list[Section]:
    """A section over all streams; none where fewer than two rows are ranked on two streams or more.

    Args:
        tables: Rows of each table with the stream in words. Of several tables of a stream that with most ranked rows
            counts: budgets, precisions and devices make no independent workloads.

    Source: Dahl et al. 2023 (AlgoPerf) for profiles, Demsar 2006 for ranks.
    """
    by_stream: dict[str, dict[str, Row]] = {}
    for title, rows in tables:
        scored = {row.label: row for row in ranked(rows) if row.score(LAST).known}
        by_stream[title] = max(by_stream.get(title, {}), scored, key=len)
    found = [(title, rows) for title, rows in by_stream.items() if len(rows) > 1]
    labels = [label for label in found[0][1] if all(label in rows for _, rows in found)] if found else []
    if len(found) < 2 or len(labels) < 2:
        return []
    return [_section([workload(title, rows) for title, rows in found], labels)]


def workload(name: str, rows: Mapping[str, Row]) -> Workload:
    """A workload whose target is the median of its rows."""
    held_out: tuple[str | int, ...] = ("validation_curve", -1)
    key: tuple[str | int, ...] = held_out if all(row.score(*held_out).known for row in rows.values()) else (LAST,)
    return Workload(name, rows, key, median(row.score(*key).mean or 0.0 for row in rows.values()))


def streams_rows(workloads: Sequence[Workload], labels: Sequence[str]) -> list[StreamsRow]:
    """Profiles of the rows that met all workloads, highest score first."""
    times = np.array([[one.time(label) for one in workloads] for label in labels])
    shares, scores = metrics.performance_profile(times, FACTORS), metrics.profile_score(times, MOST)
    rows = [
        StreamsRow(label, tuple(own.tolist()), float(score), tuple(share.tolist()))
        for label, own, score, share in zip(labels, times, scores, shares, strict=True)
    ]
    return sorted(rows, key=lambda row: (-row.score, row.label))


def _section(workloads: Sequence[Workload], labels: Sequence[str]) -> Section:
    rows = streams_rows(workloads, labels)
    places = {
        label: Score({i: one.rows[label].score(LAST).mean for i, one in enumerate(workloads)}) for label in labels
    }
    ranks, words = ranking(places)
    lines = []
    for row in rows:
        reached = sum(not math.isinf(time) for time in row.times)
        cells = {"reached": f"{reached} of {len(workloads)}"}
        cells |= {f"within {factor:g}x": decimal(share, 2) for factor, share in zip(FACTORS, row.shares, strict=True)}
        cells["score"] = decimal(row.score, 3)
        if ranks:
            cells["mean rank"] = decimal(ranks[row.label], 2)
        lines.append(Line(row.label, cells))
    validated = " (validation)"
    targets = "; ".join(f"{one.name}: {one.target:.2f} %{validated * (one.key[0] != LAST)}" for one in workloads)
    remarks = (
        "Reached: streams on which the median seed ends at or above the target, the median of the ranked rows. "
        f"{targets}.",
        "Within: share of streams on which the target is reached at no more than so many times the training FLOPs of "
        f"the cheapest that reaches it. Score: area under that share from 1 to {MOST:g}; 1 is cheapest everywhere.",
        *([words] if words else []),
    )
    return Section(
        title=f"{len(workloads)} streams: time to target",
        rows=tuple(rows),
        grid=grid("strategy", lines),
        remarks=remarks,
        content={
            "workloads": [{"name": one.name, "target": one.target, "of": one.key[0]} for one in workloads],
            "rows": [_entry(row, ranks) for row in rows],
        },
        plots=lambda number, paint: draw_plots(number, partial(_profile, rows, paint)),
    )


def _entry(row: StreamsRow, ranks: Mapping[str, float]) -> dict[str, Any]:
    times = [None if math.isinf(time) else time for time in row.times]
    return {"label": row.label, "flops_to_target": times, "score": row.score, "mean_rank": ranks.get(row.label)}


def _profile(rows: Sequence[StreamsRow], paint: Mapping[str, str]) -> Picture:
    factors = np.linspace(1, MOST, 121)
    shares = metrics.performance_profile([row.times for row in rows], factors)
    figure, (axes,) = figure_of(3.9)
    for place, (row, share) in enumerate(zip(rows, shares, strict=True)):
        axes.plot(factors, share, **(line_style(paint[row.label], place) | {"marker": ""}), label=row.label)
    axes.set(ylim=(-0.03, 1.03), xlabel="training FLOPs by those of the cheapest")
    axes.set_ylabel("share of streams on which the target is reached")
    legend(axes)
    return "Performance profiles", "Up and left is better.", figure
