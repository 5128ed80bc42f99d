"""Scores over seeds, and whether one row may be called the best: only where the seeds support it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cil.metrics import ci, paired

LEVEL = 0.05  # of the two-sided paired test; intervals are those of 1 - LEVEL
SHOWN = 5  # most names in a sentence
DOUBTS = 3  # most rivals of whom a verdict says why they may be as good


@dataclass(frozen=True)
class Score:
    """One number over seeds, percent.

    Attributes:
        values: By seed; None where undefined.
    """

    values: Mapping[int, float | None]

    @property
    def known(self) -> list[float]:
        """The values, or nothing if one is undefined: a mean over the others would be a mean of something else."""
        known = [value for value in self.values.values() if value is not None]
        return known if len(known) == len(self.values) else []

    @property
    def mean(self) -> float | None:
        return sum(self.known) / len(self.known) if self.known else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1); None for fewer than two seeds."""
        known = self.known
        if len(known) < 2:
            return None
        centre = sum(known) / len(known)
        return math.sqrt(sum((value - centre) ** 2 for value in known) / (len(known) - 1))

    def at(self, seed: int) -> float:
        """The value of one seed, NaN if undefined."""
        value = self.values[seed]
        return math.nan if value is None else value

    def words(self, digits: int = 2) -> str:
        """Mean and deviation."""
        if self.mean is None:
            return "–"
        return f"{self.mean:.{digits}f}" if self.std is None else f"{self.mean:.{digits}f} ± {self.std:.{digits}f}"

    __str__ = words


@dataclass(frozen=True)
class Verdict:
    """A statement on the order of rows.

    Attributes:
        metric: For example ``Avg``.
        winner: Label of the best row, None where none is called.
        text: Why, in one sentence.
    """

    metric: str
    winner: str | None
    text: str


@dataclass(frozen=True)
class _Lead:
    """How the row with the highest mean stands to another one."""

    rival: str
    difference: float
    shared: int
    p: float  # NaN where no test is possible
    apart: bool  # intervals do not overlap


def verdict(metric: str, scores: Mapping[str, Score]) -> Verdict:
    """Call the row with the highest mean the best, if the seeds support it against every other row.

    It takes two seeds, and for each rival either a paired test over the shared seeds (5 %) or 95 % intervals that do
    not overlap. As every test must hold, no correction for their number is due: among rows that are equal in truth a
    best one is called in 5 % of cases if they are two, in 1 % if they are three, in fewer if they are more (simulated).
    A row of one seed is never the best, and if its mean is the highest, none is.

    Args:
        metric: Name for the sentence; higher is better.
        scores: By label of the row; all of one stream and one budget.

    >>> steady = Score({0: 70.0, 1: 72.0, 2: 74.0, 3: 71.0, 4: 73.0})
    >>> verdict("Avg", {"a": steady, "b": Score({0: 69.0, 1: 70.0, 2: 73.0, 3: 70.0, 4: 71.0})}).text
    'Avg: a is best; b is 1.40 behind (paired over 5 seeds, p = 0.0046).'
    >>> verdict("Avg", {"a": Score({0: 70.0}), "b": Score({0: 20.0})}).text
    'Avg: no winner is called on one seed (a, b).'
    """
    known = {label: score for label, score in scores.items() if score.mean is not None}
    labels = sorted(known, key=lambda label: (-(known[label].mean or 0.0), label))
    if len(labels) < 2:
        return Verdict(metric, None, f"{metric}: fewer than two rows to compare.")
    lone = [label for label in labels if len(known[label].known) < 2]
    if labels[0] in lone or len(lone) > len(labels) - 2:
        return Verdict(metric, None, f"{metric}: no winner is called on one seed ({few(lone)}).")
    best, *rivals = [label for label in labels if label not in lone]
    leads = [_lead(rival, known[best], known[rival]) for rival in rivals]
    unsure = [lead for lead in leads if not (lead.p <= LEVEL or lead.apart)]
    aside = f" Of one seed, so not judged: {few(lone)}." if lone else ""
    if not unsure:
        near = leads[0]
        text = f"{metric}: {best} is best; {near.rival} is {near.difference:.2f} behind ({_evidence(near)}).{aside}"
        return Verdict(metric, best, text)
    doubts = few([f"{lead.rival} ({lead.difference:.2f} behind, {_evidence(lead)})" for lead in unsure], DOUBTS)
    why = f"{best} has the highest mean, but is not surely ahead of {doubts}"
    return Verdict(metric, None, f"{metric}: no clear winner; {why}.{aside}")


def _lead(rival: str, best: Score, other: Score) -> _Lead:
    seeds = [seed for seed in best.values if seed in other.values]
    p = math.nan
    if len(seeds) >= 2:
        p = paired([best.at(seed) for seed in seeds], [other.at(seed) for seed in seeds])["p"]
    apart = ci(best.known)["low"] > ci(other.known)["high"]  # NaN, so False, for fewer than three seeds
    return _Lead(rival, (best.mean or 0.0) - (other.mean or 0.0), len(seeds), p, apart)


def _evidence(lead: _Lead) -> str:
    if not math.isnan(lead.p):
        text = f"paired over {lead.shared} seeds, p = {lead.p:.2g}"
    elif lead.shared >= 2:
        text = f"the same difference on all {lead.shared} shared seeds, so no spread is known"
    else:
        text = f"seeds shared: {lead.shared}"
    return f"{text}, 95 % intervals apart" if lead.apart else text


def few(names: Sequence[str], shown: int = SHOWN) -> str:
    """Names for a sentence: all of them where they are few.

    >>> few("abcde"), few("abcdefgh")
    ('a, b, c, d, e', 'a, b, c, d, e and 3 more')
    """
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
