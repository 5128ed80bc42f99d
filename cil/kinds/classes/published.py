"""Published numbers of the same stream, split and exemplars, to stand beside runs: never ranked with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from cil.interop.pycil import portions
from cil.kinds.classes.rows import AVERAGE, FORGETTING, LAST
from cil.report.grids import NOTHING, Line
from cil.report.grouping import MIB
from cil.report.runs import RunSummary
from cil.report.section import RowsOfOthers

NEAR = 0.005  # of a limit in bytes, as published ones are rounded
CLASS_ORDER_SEED = 1993  # of numpy's legacy generator, in all of these publications
HEADS = {"Avg %": AVERAGE, "Last %": LAST, "forgetting": FORGETTING}  # in the order of the file


def published_beside(run: RunSummary) -> tuple[RowsOfOthers, ...]:
    """The published tables of the setting that a run has."""
    content = _content()
    order = "" if _same_order(run.order[1]) else "; another class order"
    return tuple(
        _published(f"published: {content['sources'][table['source']]}, {table['where']}{order}; not ranked", table)
        for table in content["tables"]
        if _matches(run, table, content["images"])
    )


def _published(heading: str, table: Mapping[str, Any]) -> RowsOfOthers:
    lines, entries = [], []
    for strategy, values in table["rows"].items():
        known = dict(zip(HEADS, [*values, None, None], strict=False))
        cells = {head: NOTHING if value is None else f"{value:.2f}" for head, value in known.items()}
        label = f"{strategy} (published)"
        lines.append(Line(label, cells))
        scores = {HEADS[head]: value for head, value in known.items()}
        entries.append({"label": label, "strategy": strategy, "standing": "published", **scores, "notes": heading})
    return RowsOfOthers(heading, tuple(lines), tuple(entries))


def _matches(run: RunSummary, table: Mapping[str, Any], images: Mapping[str, int]) -> bool:
    """True for the same data set, whole, in the same portions, under the same budget."""
    stream = run.stream
    sizes = [len(slots) for slots in stream.get("new_slots") or ()]
    name, base, increment = table["dataset"], table["base"], table["increment"]
    return (
        str(stream.get("name")).split("_b")[0] == name
        and sizes == portions(sum(sizes), base or increment, increment)
        and bool(sum(stream.get("train_counts") or ()) >= images.get(name, 0))
        and bool(_weights(run)) == bool(table.get("pretrained"))
        and _same_budget(run, table)
    )


def _same_budget(run: RunSummary, table: Mapping[str, Any]) -> bool:
    budget = run.budget
    if "mebibytes" in table:
        wanted = float(table["mebibytes"]) * MIB
        return run.limit is not None and run.convention == "survey" and abs(run.limit - wanted) <= NEAR * wanted
    if run.limit is not None or budget.get("per_class") is not None:
        return False
    return bool((budget.get("exemplars") or 0) == table["exemplars"])


def _weights(run: RunSummary) -> Any:
    return (run.identity.get("networks") or {}).get("weights")


def _same_order(order: Sequence[int]) -> bool:
    wanted: list[int] = np.random.RandomState(CLASS_ORDER_SEED).permutation(len(order)).tolist()
    return list(order) == wanted


@cache
def _content() -> dict[str, Any]:
    import yaml

    text = resources.files("cil.kinds.classes").joinpath("published.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
