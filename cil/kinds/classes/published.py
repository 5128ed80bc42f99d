"""Published numbers of the same stream, split and exemplars, to stand beside runs: never ranked with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from cil.interop.pycil import portions
from cil.kinds.classes.rows import AVERAGE, FORGETTING, LAST
from cil.kinds.classes.set_order import in_turn
from cil.report.grids import NOTHING, Line
from cil.report.grouping import MIB
from cil.report.runs import RunSummary
from cil.report.section import RowsOfOthers

NEAR = 0.005  # of a limit in bytes, as published ones are rounded
CLASS_ORDER_SEED = 1993  # of numpy's legacy generator, in all of these publications
HEADS = {"Avg %": AVERAGE, "Last %": LAST, "forgetting": FORGETTING}  # in the order of the file


def published_beside(runs: Sequence[RunSummary]) -> tuple[RowsOfOthers, ...]:
    """The published tables of the setting that runs have, the first of which stands for all.

    A row says in its name which network or epochs it has, where a run of its method, or else the first one, has others.
    """
    content, run = _content(), runs[0]
    theirs = np.random.RandomState(CLASS_ORDER_SEED).permutation(len(run.order[1]))
    order = "" if list(run.order[1]) == theirs.tolist() else "; another class order"
    scale = f"; the runs have scale={run.scale}" if run.scale else ""
    return tuple(
        _published(
            f"published: {content['sources'][table['source']]}, {table['where']}{order}{scale}; not ranked",
            table, content["settings"].get(table["source"], {}), runs,
        )
        for table in content["tables"]
        if _matches(run, table, content["images"])
    )  # fmt: skip


def _published(
    heading: str, table: Mapping[str, Any], setting: Mapping[str, Any], runs: Sequence[RunSummary]
) -> RowsOfOthers:  # fmt: skip
    ours = {run.learner: run for run in reversed(runs)}
    lines, entries = [], []
    for strategy, values in table["rows"].items():
        known = dict(zip(HEADS, [*values, None, None], strict=False))
        cells = {head: NOTHING if value is None else f"{value:.2f}" for head, value in known.items()}
        other = _other_setting(strategy, table["dataset"], setting, ours.get(strategy, runs[0]))
        label = f"{strategy} ({', '.join(['published', *other])})"
        lines.append(Line(label, cells))
        scores = {HEADS[head]: value for head, value in known.items()}
        entries.append({"label": label, "strategy": strategy, "standing": "published", **scores, "notes": heading})
    return RowsOfOthers(heading, tuple(lines), tuple(entries))


def _other_setting(strategy: str, dataset: str, setting: Mapping[str, Any], run: RunSummary) -> Iterator[str]:
    """The network and the epochs of a published row, where a run has others; a cosine head is no other network."""
    network = setting.get("other_networks", {}).get(strategy) or setting.get("networks", {}).get(dataset)
    own = str((run.identity.get("networks") or {}).get("name"))
    if network and own.removesuffix("_cosine") != network:
        yield network
    epochs, trainer = setting.get("epochs", {}).get(strategy), run.config.get("trainer") or {}
    if epochs and (trainer.get("epochs") != epochs or trainer.get("max_steps")):
        yield f"{epochs} epochs"


def _matches(run: RunSummary, table: Mapping[str, Any], images: Mapping[str, int]) -> bool:
    """True for the same data set, whole, in the same portions, under the same budget."""
    stream, trainer = run.stream, run.config.get("trainer") or {}
    sizes = [len(slots) for slots in stream.get("new_slots") or ()]
    name, base, increment = table["dataset"], table["base"], table["increment"]
    return (
        str(stream.get("name")).split("_b")[0] == name
        and sizes == portions(sum(sizes), base or increment, increment)
        and bool(sum(stream.get("train_counts") or ()) >= images.get(name, 0))
        and bool((run.identity.get("networks") or {}).get("weights")) == bool(table.get("pretrained"))
        and ("order" not in table or table["order"] == ("by_set" if in_turn(stream) else "mixed"))
        and _same_budget(run, table)
        and all(trainer.get(key) == value for key, value in table.get("training", {}).items())  # such as one epoch
    )


def _same_budget(run: RunSummary, table: Mapping[str, Any]) -> bool:
    budget = run.budget
    if "mebibytes" in table:
        wanted = float(table["mebibytes"]) * MIB
        return run.limit is not None and run.convention == "survey" and abs(run.limit - wanted) <= NEAR * wanted
    if run.limit is not None or budget.get("per_class") is not None:
        return False
    return bool((budget.get("exemplars") or 0) == table["exemplars"])


@cache
def _content() -> dict[str, Any]:
    import yaml

    text = resources.files("cil.kinds.classes").joinpath("published.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
