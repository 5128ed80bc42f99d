"""What rows carry, under every way of counting it, and how much of a budget that uses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from cil.report.grids import decimal, whole
from cil.report.rows import Note, Row, largest
from cil.report.runs import NETWORKS, RunSummary

MUCH = 0.10  # share of a limit that is worth a mark where it is not used
BILLS = {  # what each way of counting charges
    "exact": "Every byte that crosses the last boundary: weights, buffers, exemplars, labels, statistics...",
    "survey": "What Zhou et al. 2024 charge: backbones needed at inference, 4 bytes a parameter, and raw pixels.",
    "libcontinual": "What LibContinual (arXiv 2512.22029) charges.",
}
USE_TERMS = (
    ("past %", "Training images of the whole stream that the budget could hold beside the row's networks, as raw "
               "pixels; a cap on exemplars: the cap. At most 100."),
    ("unused %", "Share of the budget that the row leaves: bytes as the budget counts them, or exemplars."),
)  # fmt: skip


def bill_cells(row: Row, conventions: Sequence[str]) -> dict[str, str]:
    """Bytes at the end of the stream, a cell for each way of counting."""
    return {f"{name} B": whole(row.carried(name)) for name in conventions}


def bill_entry(row: Row, conventions: Sequence[str]) -> dict[str, int | None]:
    """The same for CSV and JSON."""
    return {f"{name}_bytes": row.carried(name) for name in conventions}


def bill_terms(conventions: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """What the headings of these cells mean."""
    return tuple((f"{name} B", BILLS.get(name, f"As budget.convention={name} counts.")) for name in conventions)


def use_cells(rows: Sequence[Row]) -> list[dict[str, str]]:
    """For each row how much of the past its budget could hold and how much of it is unused; empty without budgets."""
    found = [(share_of_past(row), unused_share(row)) for row in rows]
    if not any(share is not None for pair in found for share in pair):
        return [{} for _ in rows]
    return [{"past %": decimal(past), "unused %": decimal(unused)} for past, unused in found]


def use_entry(row: Row) -> dict[str, Any]:
    """The same for CSV and JSON, unrounded."""
    return {"past_share": share_of_past(row), "unused_share": unused_share(row)}


def share_of_past(row: Row) -> float | None:
    """Percent of the training images of the stream that the budget could hold; None without a budget, and for bounds.

    Under a cap on exemplars that is the cap. Under bytes: (limit - bytes of networks) / bytes of a raw image.
    """
    run = next(iter(row.shown), None)
    images, each = (0, 0) if run is None else (_images(run), math.prod(run.stream.get("image_shape") or (0,)))
    if run is None or run.bound or not images:
        return None
    held = exemplar_cap(run)
    if run.limit is not None and each:
        sizes = row.bytes_by_kind(run.convention)
        room = int(max(0, run.limit - sum(sizes.get(kind, 0) for kind in NETWORKS)) // each)
        held = room if held is None else min(held, room)
    return None if held is None else 100 * min(1.0, held / images)


def unused_share(row: Row) -> float | None:
    """Percent of its budget that a row leaves, below 0 where it is over; None without a budget, and for bounds."""
    run = next(iter(row.shown), None)
    if run is None or run.bound:
        return None
    used, allowed = row.carried(run.convention), run.limit
    if allowed is None:
        used, allowed = row.exemplars, exemplar_cap(run)
        if allowed is not None and run.budget.get("scope") == "carried+incoming":
            allowed += (run.result("given_up") or [0])[-1]  # what an image that is given up buys
    return None if used is None or not allowed else 100 * (1 - used / allowed)


def exemplar_cap(run: RunSummary) -> int | None:
    """Most exemplars at the end of the stream; None where their number is not capped."""
    each = run.budget.get("per_class")
    caps = [run.most_exemplars, None if each is None else each * len(run.stream.get("classes") or ())]
    return min((int(cap) for cap in caps if cap is not None), default=None)


def _images(run: RunSummary) -> int:
    return sum(run.stream.get("train_counts") or ())


def budget_notes(runs: Sequence[RunSummary]) -> Iterator[Note]:
    """Marks of runs with exemplars that a budget leaves too few of, or does not bind at all; bounds have none."""
    first = next(iter(runs), None)
    if first is None or first.bound or not any(any(run.result("exemplars") or ()) for run in runs):
        return
    limit = first.limit
    if limit is None and not first.counts_exemplars:
        return
    stored = max(run.exemplars or 0 for run in runs)
    classes = sum(map(len, first.stream.get("new_slots") or ()))
    images = _images(first)
    if stored < classes:
        few = f"{stored} exemplars for {classes} classes at the end, so {classes - stored} or more have none"
        yield Note("classes without exemplars", f"classes without exemplars: {few}")
    if images and stored >= images:
        yield Note(
            "keeps every image", f"keeps every image: all {images:,} training images, so the budget does not bind"
        )
    elif 2 * stored > images > 0:
        mark = f"keeps {stored / images:.0%} of all images"
        yield Note(mark, f"{mark}: {stored:,} of {images:,}, so it is near joint training")
    carried = largest(run.carried(first.convention) for run in runs)
    if limit is not None and carried is not None and limit - carried >= MUCH * limit:
        mark = f"budget unused {1 - carried / limit:.0%}"
        yield Note(mark, f"{mark}: {limit - carried:,} of {limit:,} bytes")
