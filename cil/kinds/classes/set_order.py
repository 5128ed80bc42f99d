"""One pool of data sets in two orders: one set after the other, and classes of all sets mixed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import comb
from typing import Any

from cil.kinds.classes.rows import ranked
from cil.metrics import ci
from cil.report.grids import Line, Titled, grid
from cil.report.grouping import allowance, budget_words
from cil.report.rows import Row
from cil.report.section import Section
from cil.report.verdicts import Score

AVERAGES = {"image": "by_image", "class": "by_class", "set": "by_set"}
NOTE = (
    "Last accuracy of the mixed order less that of one set after the other, in points, on the seeds that both have; ± "
    "half the width of its 95 % interval, from three seeds on. By image, a set counts as its test images; by class and "
    "by set, each class or set counts the same."
)


@dataclass(frozen=True)
class OrderEffect:
    """Last accuracy of one strategy in both orders, by the averages of ``AVERAGES``."""

    label: str
    by_set: Mapping[str, Score]
    mixed: Mapping[str, Score]

    def difference(self, average: str) -> Score:
        """Mixed less by set, on each seed that both have."""
        first, second = self.by_set[average].values, self.mixed[average].values
        shared = sorted(first.keys() & second.keys())
        values = {seed: (first[seed], second[seed]) for seed in shared}
        return Score({seed: None if None in (a, b) else b - a for seed, (a, b) in values.items()})  # type: ignore[operator]

    def difference_words(self, average: str) -> str:
        score = self.difference(average)
        if score.mean is None:
            return "–"
        half = f" ± {ci(score.known)['half_width']:.2f}" if len(score.known) > 2 else ""
        return f"{score.mean:+.2f}{half}"

    def entry(self) -> dict[str, Any]:
        found: dict[str, Any] = {"label": self.label}
        for average in AVERAGES:
            found[f"last_by_set_{average}"] = self.by_set[average].mean
            found[f"last_mixed_{average}"] = self.mixed[average].mean
            found[f"difference_{average}"] = self.difference(average).mean
        return found


def set_order_sections(settings: Iterable[Sequence[Row]]) -> list[Section]:
    """Sections of pools that were learned in both orders, under the same budget.

    Source: LibContinual, arXiv:2512.22029, section V-D (cross-domain and category-randomised streams). There the last
    accuracy is a mean over experiences, which are data sets in one order and mixtures in the other.
    """
    families: dict[Any, tuple[list[Sequence[Row]], list[Sequence[Row]]]] = {}
    for rows in settings:
        first = rows[0].group.first
        if first.stream.get("pool"):
            key = (first.stream["pool"], allowance(first), first.device, first.precision)
            families.setdefault(key, ([], []))[not in_turn(first.stream)].append(rows)
    return [_section(first, second) for by_set, mixed in families.values() for first in by_set for second in mixed]


def in_turn(stream: Mapping[str, Any]) -> bool:
    """True where all classes of a set come before those of the next, also where an experience has the last of one."""
    origins = [stream["origins"][slot] for slots in stream["new_slots"] for slot in slots]
    return len(list(groupby(origins))) == len(set(origins))


def sets_met(stream: Mapping[str, Any]) -> list[int]:
    """Data sets in each experience."""
    return [len({stream["origins"][slot] for slot in slots}) or 1 for slots in stream["new_slots"]]


def share_of_pairs(stream: Mapping[str, Any]) -> float | None:
    """Share of the pairs of classes in one experience that are of one data set; None where there is no pair."""
    same = pairs = 0
    for slots in stream["new_slots"]:
        own = [stream["origins"][slot] for slot in slots]
        same += sum(comb(own.count(name), 2) for name in set(own))
        pairs += comb(len(own), 2)
    return same / pairs if pairs else None


def _section(by_set: Sequence[Row], mixed: Sequence[Row]) -> Section:
    effects = [
        OrderEffect(row.label, _last(row), _last(other))
        for row in ranked(by_set)
        for other in ranked(mixed)
        if row.label == other.label and set(row.seeds) & set(other.seeds)
    ]
    first, second = by_set[0].group.first, mixed[0].group.first
    lines = [
        Line(effect.label, {f"Δ {name}": effect.difference_words(name) for name in AVERAGES}) for effect in effects
    ]
    both = []
    for effect in effects:
        orders = (("by set,", effect.by_set), ("mixed,", effect.mixed))
        cells = {f"{words} {name} %": str(scores[name]) for name in AVERAGES for words, scores in orders}
        both.append(Line(effect.label, cells))
    sets = ", ".join(dict.fromkeys(first.stream["origins"]))
    return Section(
        title=f"{sets}: classes mixed, against one data set after the other",
        subtitle=budget_words(first.budget),
        condition="Budget",
        rows=tuple(effects),
        grid=grid("strategy", lines),
        tables=(Titled("Last accuracy in both orders", grid("strategy", both)),),
        facts={"one set after the other": _words(first.stream), "mixed": _words(second.stream)},
        remarks=(NOTE,),
        content={"rows": [effect.entry() for effect in effects]},
        plots=lambda number, paint: [],
    )


def _last(row: Row) -> dict[str, Score]:
    return {name: row.score("averages", key, -1) for name, key in AVERAGES.items()}


def _words(stream: Mapping[str, Any]) -> str:
    met, share = sets_met(stream), share_of_pairs(stream)
    pairs = "" if share is None else f"; {100 * share:.1f} % of the pairs of classes in one are of one set"
    return f"{sum(met) / len(met):.2f} data sets an experience{pairs}"
