"""Words on what was audited of the runs of a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cil.report.runs import RunSummary
from cil.report.verdicts import few
from cil.tracking.audits import Audit


def audit_words(runs: Sequence[RunSummary]) -> Iterable[tuple[str, str]]:
    """Marks and sentences on the audits of the runs of one setting: those that differ first."""
    found = [(run, audit) for run in runs for audit in run.audits]
    refuted = [f"{_place(run, audit)} ({audit.key})" for run, audit in found if audit.refutes]
    if refuted:
        yield "audit differs", f"audit differs, so not ranked: redone from its stored state, {few(refuted)}"
    unlike = [(run, audit) for run, audit in found if not (audit.equal or audit.elsewhere or audit.refutes)]
    unsure = [f"{_place(run, audit)} ({audit.key})" for run, audit in unlike]
    if unsure:
        yield "audit unsure", f"audit unsure: other bits on a device that need not give the same twice, {few(unsure)}"
    elsewhere = [
        f"{_place(run, audit)} (other {', '.join(audit.elsewhere)})" for run, audit in found if audit.elsewhere
    ]
    apart = [pair for pair in found if pair[1].elsewhere and not pair[1].equal]
    if elsewhere:
        much = f"{len(apart)} of {len(elsewhere)} with other bits, which says nothing" if apart else "the same bits"
        yield "audited elsewhere", f"audited elsewhere: {few(elsewhere)}: {much}"
    same = [pair for pair in found if pair[1].equal and not pair[1].elsewhere]
    if same and not refuted:
        seeds = len({run.seed for run, _ in same})
        mark = "audited" if seeds == len(runs) else f"audited {seeds}/{len(runs)}"
        count = f"{len(same)} experience{'s' * (len(same) > 1)}"
        yield mark, f"{mark}: {count} redone from the stored state before, with the same bits"


def _place(run: RunSummary, audit: Audit) -> str:
    parts = "" if "state" in audit.compared else f" ({' and '.join(audit.compared)} alone)"
    return f"experience {audit.experience} of seed {run.seed}{parts}"
