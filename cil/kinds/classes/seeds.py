"""Rows over seeds: intervals, paired tests corrected for their number, and ranks where there are enough seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from cil import metrics
from cil.kinds.classes.rows import AVERAGE, LAST
from cil.report.grids import NOTHING, Line, Titled, grid
from cil.report.rows import Row
from cil.report.verdicts import LEVEL, Score, few

HEADING = "Over seeds"
ENOUGH = 5  # seeds, or streams, from which on ranks over them say something
TERMS = (
    ("95 % interval", "Of the mean over seeds, by Student's t; from three seeds on."),
    ("not told apart from", "Rows whose last accuracy does not differ at 5 %: paired over shared seeds, corrected by "
                            "Holm for all pairs of the table."),
    ("mean rank", "Of the last accuracy, 1 is best. Rows whose mean ranks are less than the critical difference apart "
                  "are not told apart (Friedman, then Nemenyi; Demsar 2006)."),
)  # fmt: skip


def seeds_table(rows: Sequence[Row]) -> Titled | None:
    """Intervals and tests of ranked rows; None where no two of them have three seeds."""
    scores = {row.label: row.score(LAST) for row in rows}
    if sum(len(score.known) > 2 for score in scores.values()) < 2:
        return None
    unlike = pairs(scores)
    ranks, words = ranking(scores)
    lines = []
    for row in rows:
        near = [b if a == row.label else a for (a, b), p in unlike.items() if row.label in (a, b) and not p <= LEVEL]
        cells = {
            f"{head}, 95 % interval": _interval(row.score(name)) for head, name in (("Avg", AVERAGE), ("Last", LAST))
        }
        all_others = len(near) == len(rows) - 1 > 2
        cells["not told apart from"] = "all others" if all_others else few(near) if near else "none"
        if ranks:
            cells["mean rank"] = f"{ranks[row.label]:.2f}" if row.label in ranks else NOTHING
        lines.append(Line(row.label, cells))
    return Titled(HEADING, grid("strategy", lines), words)


def seeds_content(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """All pairs with their corrected p, for JSON; None where no test is possible."""
    found = pairs({row.label: row.score(LAST) for row in rows})
    return [{"rows": list(pair), "metric": LAST, "p_holm": p if p == p else None} for pair, p in found.items()]


def pairs(scores: Mapping[str, Score]) -> dict[tuple[str, str], float]:
    """p of the paired test of each two rows over the seeds they share, corrected for their number; NaN without one.

    >>> a, b, c = (Score(dict(enumerate(values))) for values in ([70, 72, 74], [60, 63, 63], [70, 71, 75]))
    >>> {pair: round(p, 3) for pair, p in pairs({"a": a, "b": b, "c": c}).items()}
    {('a', 'b'): 0.01, ('a', 'c'): 1.0, ('b', 'c'): 0.026}
    """
    tests = {}
    for one, other in combinations(scores, 2):
        a, b = scores[one], scores[other]
        shared = [seed for seed in a.values if seed in b.values] if a.known and b.known else []
        tests[one, other] = metrics.paired([a.at(seed) for seed in shared], [b.at(seed) for seed in shared])["p"]
    return dict(zip(tests, metrics.holm(list(tests.values())).tolist(), strict=True))


def ranking(scores: Mapping[str, Score]) -> tuple[dict[str, float], str]:
    """Mean ranks over the seeds that all rows share, and what they say; nothing where these are few.

    Args:
        scores: By row; higher is better. ``Score.values`` may be by stream in place of seed.
    """
    known = {label: score for label, score in scores.items() if score.known}
    shared = (
        [key for key in next(iter(known.values())).values if all(key in s.values for s in known.values())]
        if known
        else []
    )
    if len(known) < 3 or len(shared) < ENOUGH:
        return {}, ""
    found = metrics.friedman([[score.at(key) for score in known.values()] for key in shared])
    apart = metrics.critical_difference(len(known), len(shared), LEVEL)
    labels = list(known)
    groups = metrics.alike(found.ranks.tolist(), apart)
    joined = "; ".join(few([labels[index] for index in group]) for group in groups)
    words = (
        f"Mean ranks over {len(shared)}: Friedman p = {found.p:.2g} (Iman and Davenport {found.f_p:.2g}); critical "
        f"difference {apart:.2f} at {100 * LEVEL:.0f} %. Not told apart by their ranks: {joined or 'none'}."
    )
    return dict(zip(labels, found.ranks.tolist(), strict=True)), words


def _interval(score: Score) -> str:
    found = metrics.ci(score.known)
    return f"{found['low']:.2f} to {found['high']:.2f}" if found["n"] > 2 else NOTHING
