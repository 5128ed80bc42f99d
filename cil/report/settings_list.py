"""Words that every kind of run uses of its rows: settings that they share, and what a reader must know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cil.report.grouping import Group
from cil.report.rows import Row
from cil.report.runs import RunSummary
from cil.report.verdicts import few


def known(facts: Mapping[str, str]) -> dict[str, str]:
    """Facts without the empty ones."""
    return {name: text for name, text in facts.items() if text}


def computing(runs: Sequence[RunSummary]) -> dict[str, str]:
    """How the runs were computed."""
    first = runs[0]
    return {"precision": first.precision, "device": first.device, "threads": ", ".join(values_of(runs, "threads"))}


def values_of(runs: Iterable[RunSummary], key: str) -> list[str]:
    """Values of a key of the identity."""
    return sorted({str(run.identity[key]) for run in runs if key in run.identity})


def versions_of(runs: Iterable[RunSummary]) -> list[str]:
    """Each package with the versions that were used; a plugin's strategy names packages that others do not."""
    met: dict[str, set[str]] = {}
    for run in runs:
        for name, version in (run.identity.get("versions") or {}).items():
            met.setdefault(str(name), set()).add(str(version))
    return [f"{name} {' and '.join(sorted(met[name]))}" for name in sorted(met)]


def one_seed(rows: Iterable[Row]) -> Iterable[str]:
    """A warning about rows of a single seed."""
    if labels := [row.label for row in rows if len(row.runs) == 1]:
        yield f"One seed only: {few(labels)}. A difference from it may be chance."


def unlike_values(runs: Sequence[RunSummary], key: str) -> Iterable[str]:
    """A warning where a key of the identity, such as ``threads``, has several values."""
    if len(values := values_of(runs, key)) > 1:
        yield f"Runs differ in {key.replace('_', ' ')}: {' and '.join(values)}."


def unlike_versions(runs: Sequence[RunSummary]) -> Iterable[str]:
    """A warning where packages had several versions."""
    if several := [words for words in versions_of(runs) if " and " in words]:
        yield f"Runs differ in versions: {', '.join(several)}."


def edited_code(groups: Sequence[Group], rows: Iterable[Row]) -> Iterable[str]:
    """A warning about rows whose seeds ran on different code, in order of the groups."""
    rows = sorted(rows, key=lambda row: groups.index(row.group))
    if edited := [row.label for row in rows if len(values_of(row.group.runs, "code")) > 1]:
        yield f"The code was edited between the seeds of one row: {few(edited)}."
