"""How the settings of a row were chosen, and what tuning cost, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cil.report.runs import RunSummary, dig

NONE = "none"


def tuning_of(run: RunSummary) -> dict[str, Any]:
    """The tuning that an identity names; a run without has the defaults or what a person set."""
    return run.identity.get("tuning") or {"protocol": NONE, "n_trials": 0, "tuning_cost": 0}


def is_tuned(run: RunSummary) -> bool:
    """True if ``cil tune`` chose its settings."""
    return bool(tuning_of(run)["protocol"] != NONE)


def tuning_words(run: RunSummary) -> str:
    """For example ``two_phase, 20 trials``."""
    tuning = tuning_of(run)
    return f"{tuning['protocol']}, {tuning['n_trials']} trials" if is_tuned(run) else NONE


def tuning_facts(run: RunSummary) -> str:
    """All of it in words; empty where nothing was tuned."""
    tuning = tuning_of(run)
    if not is_tuned(run):
        return ""
    space = "; ".join(f"{key} {_range(values)}" for key, values in (tuning.get("search_space") or {}).items())
    return (
        f"{tuning_words(run)} on {tuning.get('tuned_on')}, by {tuning['selection_metric']} on validation data; space "
        f"{tuning['search_space_hash']}: {space}"
    )


def _range(values: dict[str, Any]) -> str:
    kind, numbers = next(iter(values.items()))
    joined = ", ".join(map(str, numbers))
    return f"one of {joined}" if kind == "choices" else f"{kind} {joined}"


def tuning_warnings(runs: Sequence[RunSummary]) -> Iterable[str]:
    """Warnings where tuned rows are unlike each other, or their result is a weaker one."""
    tuned = [run for run in runs if is_tuned(run)]
    met = sorted({tuning_words(run) for run in tuned})
    if len(met) > 1:
        yield f"Rows differ in how they were tuned: {' and '.join(met)}."
    if 0 < len(tuned) < len(runs):
        yield "Some rows were tuned and others were not."
    shared = {tuning_of(run)["protocol"] for run in tuned if dig(tuning_of(run), "classes_disjoint") is False}
    if "two_phase" in shared:
        yield "Tuned on the classes that are reported on, in other orders: other classes are the stricter test."
