"""Accuracy over several budgets as one number: AUC-A and AUC-L of the survey."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cil.metrics import auc
from cil.report.settings import MIB, config_text
from cil.report.verdicts import Score

if TYPE_CHECKING:
    from cil.report.rows import Row
    from cil.report.tables import Section


@dataclass(frozen=True)
class Under:
    """An area under accuracy against memory; None where undefined.

    Attributes:
        area: Fraction times MiB, as the survey prints it. None if a budget is missing: nothing is extrapolated.
        std: Sample standard deviation over seeds, if the same ones ran at every budget.
        mean: The area divided by the range of budgets: the mean accuracy over it, a fraction.
    """

    area: float | None
    std: float | None
    mean: float | None


@dataclass(frozen=True)
class Area:
    """One strategy over the budgets.

    Attributes:
        average, last: Accuracy at each budget, None where the strategy has no ranked run.
        auc_a, auc_l: Area under the average incremental and under the last accuracy.
    """

    label: str
    seeds: tuple[int, ...]
    average: tuple[Score | None, ...]
    last: tuple[Score | None, ...]
    auc_a: Under
    auc_l: Under


@dataclass(frozen=True)
class Areas:
    """Strategies over the same budgets: areas over other budgets cannot be compared with these.

    Attributes:
        limits: Bytes of each budget, smallest first.
    """

    title: str
    convention: str
    limits: tuple[int, ...]
    rows: tuple[Area, ...]

    @property
    def mebibytes(self) -> list[float]:
        """The budgets in the survey's unit of 2^20 bytes."""
        return [limit / MIB for limit in self.limits]

    @property
    def decimals(self) -> int:
        """Of an area, as many as the survey prints: 2 over 15.9 MiB, 1 over 944 MiB."""
        return max(0, 3 - math.floor(math.log10(self.mebibytes[-1] - self.mebibytes[0])))


def areas_of(sections: Sequence[Section]) -> list[Areas]:
    """Areas for each stream that was learned under several byte budgets.

    Source: specification of the survey's protocol, section 7; ``cil.metrics.auc``.
    """
    found = []
    families: dict[tuple[int, str], list[Section]] = {}
    for section in sections:
        if section.limit is not None:
            families.setdefault((section.arena, section.convention), []).append(section)
    for (_, convention), family in families.items():
        limits = tuple(sorted({section.limit for section in family if section.limit is not None}))
        if 1 < len(limits) == len(family):  # two lists of limits with the same end are no points of one curve
            title = family[0].title.split(";")[0]
            found.append(Areas(title, convention, limits, tuple(_rows(family, limits))))
    return found


def _rows(family: Iterable[Section], limits: Sequence[int]) -> list[Area]:
    points: dict[str, dict[int, list[Row]]] = {}
    for section in family:
        for row in section.of("ranked"):
            # a smaller budget may take a smaller network, so the model is no part of what is followed
            key = f"{row.strategy} {config_text(row.runs[0], without=('budget', 'model'))}"
            points.setdefault(key, {}).setdefault(section.limit or 0, []).append(row)
    rows = []
    for at in points.values():
        if all(len(candidates) == 1 for candidates in at.values()):
            rows.append(_area(at[min(at)][0].strategy, {limit: rows[0] for limit, rows in at.items()}, limits))
            continue
        models: dict[str, dict[int, Row]] = {}
        for limit, candidates in at.items():
            for row in candidates:
                models.setdefault(config_text(row.runs[0], without=("budget",)), {})[limit] = row
        rows += [_area(followed[min(followed)].label, followed, limits) for followed in models.values()]
    return sorted(_named(rows), key=lambda row: (-(row.auc_a.area or 0.0), row.label))


def _named(rows: list[Area]) -> list[Area]:
    """Rows of one strategy get a number where nothing else tells them apart."""
    seen: Counter[str] = Counter()
    named = []
    for row in rows:
        seen[row.label] += 1
        number = seen[row.label]
        named.append(replace(row, label=f"{row.label} #{number}") if number > 1 else row)
    return named


def _area(label: str, at: dict[int, Row], limits: Sequence[int]) -> Area:
    average = tuple(at[limit].average if limit in at else None for limit in limits)
    last = tuple(at[limit].last if limit in at else None for limit in limits)
    seeds = tuple(sorted(set.intersection(*(set(row.seeds) for row in at.values()))))
    return Area(label, seeds, average, last, _under(limits, average), _under(limits, last))


def _under(limits: Sequence[int], scores: Sequence[Score | None]) -> Under:
    x = [limit / MIB for limit in limits]
    means = [math.nan if score is None or score.mean is None else score.mean / 100 for score in scores]
    area = auc(x, means)
    if math.isnan(area):
        return Under(None, None, None)
    met = [score for score in scores if score is not None]
    seeds = met[0].values.keys()
    spread = None
    if all(score.values.keys() == seeds for score in met):
        spread = Score({seed: auc(x, [score.at(seed) / 100 for score in met]) for seed in seeds}).std
    return Under(area, spread, auc(x, means, normalise=True))
