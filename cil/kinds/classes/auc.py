"""Accuracy over several budgets as one number: AUC-A and AUC-L of the survey."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cil.kinds.classes.rows import ClassRow
from cil.kinds.classes.table import ClassTable
from cil.metrics import auc
from cil.report.grids import Grid, Line, Titled, decimal, grid
from cil.report.grouping import MIB, config_text
from cil.report.plots import Picture, Plot, drawn, figure_of, legend, line_style
from cil.report.section import Section
from cil.report.verdicts import Score

UNKNOWN = Score({})


@dataclass(frozen=True)
class Area:
    """An area under accuracy against memory; None where undefined.

    Attributes:
        area: Fraction times MiB, as the survey prints it. None if a budget is missing: nothing is extrapolated.
        std: Sample standard deviation over seeds, if the same ones ran at every budget.
        mean: The area divided by the range of budgets: the mean accuracy over it, a fraction.
    """

    area: float | None
    std: float | None
    mean: float | None

    def words(self, decimals: int) -> str:
        """Area and deviation."""
        return decimal(self.area, decimals) + ("" if self.std is None else f" ± {self.std:.{decimals}f}")


@dataclass(frozen=True)
class BudgetCurve:
    """One strategy over the budgets.

    Attributes:
        average, last: Accuracy at each budget, unknown where the strategy has no ranked run.
        auc_a, auc_l: Area under the average incremental and under the last accuracy.
    """

    label: str
    seeds: tuple[int, ...]
    average: tuple[Score, ...]
    last: tuple[Score, ...]
    auc_a: Area
    auc_l: Area

    def entry(self) -> dict[str, Any]:
        """The row for JSON, numbers unrounded."""
        entry: dict[str, Any] = {"label": self.label, "seeds": self.seeds}
        for name, scores, area in (("a", self.average, self.auc_a), ("l", self.last, self.auc_l)):
            entry[f"accuracy_{name}"] = [score.mean for score in scores]
            entry |= {f"auc_{name}": area.area, f"auc_{name}_std": area.std, f"auc_{name}_mean": area.mean}
        return entry


@dataclass(frozen=True)
class BudgetCurves:
    """Strategies over the same budgets: areas over other budgets cannot be compared with these.

    Attributes:
        limits: Bytes of each budget, smallest first.
    """

    stream: str
    convention: str
    limits: tuple[int, ...]
    rows: tuple[BudgetCurve, ...]

    @property
    def mebibytes(self) -> list[float]:
        """The budgets in the survey's unit of 2^20 bytes."""
        return [limit / MIB for limit in self.limits]

    @property
    def sizes(self) -> list[str]:
        """The same as text, with as many digits as tell them apart."""
        digits = 2
        while len(set(sizes := [f"{size:.{digits}f}" for size in self.mebibytes])) < len(self.limits):
            digits += 1
        return sizes


def budget_curves(tables: Iterable[ClassTable]) -> list[BudgetCurves]:
    """Curves for each stream that was learned under several byte budgets.

    Source:
        Zhou et al. 2024, arXiv:2302.03648, the measures AUC-A and AUC-L.
    """
    found = []
    families: dict[tuple[int, str], list[ClassTable]] = {}
    for table in tables:
        if table.limit is not None:
            families.setdefault((table.comparison, table.convention), []).append(table)
    for (_, convention), family in families.items():
        limits = tuple(sorted({table.limit for table in family if table.limit is not None}))
        if 1 < len(limits) == len(family):  # two lists of limits with the same end are no points of one curve
            found.append(BudgetCurves(family[0].stream, convention, limits, tuple(_rows(family, limits))))
    return found


def _rows(family: Iterable[ClassTable], limits: Sequence[int]) -> list[BudgetCurve]:
    points: dict[str, dict[int, list[ClassRow]]] = {}
    for table in family:
        for row in table.of("ranked"):
            # a smaller budget may take a smaller network, so the model is no part of what is followed
            key = f"{row.strategy} {config_text(row.runs[0], without=('budget', 'model'))}"
            points.setdefault(key, {}).setdefault(table.limit or 0, []).append(row)
    rows = []
    for at in points.values():
        if all(len(candidates) == 1 for candidates in at.values()):
            rows.append(_curve(at[min(at)][0].strategy, {limit: rows[0] for limit, rows in at.items()}, limits))
            continue
        models: dict[str, dict[int, ClassRow]] = {}
        for limit, candidates in at.items():
            for row in candidates:
                models.setdefault(config_text(row.runs[0], without=("budget",)), {})[limit] = row
        rows += [_curve(followed[min(followed)].label, followed, limits) for followed in models.values()]
    return sorted(_numbered(rows), key=lambda row: (-(row.auc_a.area or 0.0), row.label))


def _numbered(rows: list[BudgetCurve]) -> list[BudgetCurve]:
    """Rows of one strategy get a number where nothing else tells them apart."""
    seen: Counter[str] = Counter()
    numbered = []
    for row in rows:
        seen[row.label] += 1
        number = seen[row.label]
        numbered.append(replace(row, label=f"{row.label} #{number}") if number > 1 else row)
    return numbered


def _curve(label: str, at: dict[int, ClassRow], limits: Sequence[int]) -> BudgetCurve:
    average = tuple(at[limit].average if limit in at else UNKNOWN for limit in limits)
    last = tuple(at[limit].last if limit in at else UNKNOWN for limit in limits)
    seeds = tuple(sorted(set.intersection(*(set(row.seeds) for row in at.values()))))
    return BudgetCurve(label, seeds, average, last, _area(limits, average), _area(limits, last))


def _area(limits: Sequence[int], scores: Sequence[Score]) -> Area:
    x = [limit / MIB for limit in limits]
    means = [math.nan if score.mean is None else score.mean / 100 for score in scores]
    area = auc(x, means)
    if math.isnan(area):
        return Area(None, None, None)
    seeds = scores[0].values.keys()
    spread = None
    if all(score.values.keys() == seeds for score in scores):
        spread = Score({seed: auc(x, [score.at(seed) / 100 for score in scores]) for seed in seeds}).std
    return Area(area, spread, auc(x, means, normalise=True))


def curves_section(curves: BudgetCurves) -> Section:
    """Average incremental and last accuracy at each budget, and the areas under them."""
    x = curves.mebibytes
    explained = (
        f"AUC-A and AUC-L: area under Avg and Last as fractions, in MiB, at most {x[-1] - x[0]:.2f}; mean: the area "
        "divided by the range. Areas over other budgets are not to be compared; a missing point leaves none."
    )
    return Section(
        title=f"{curves.stream}: accuracy over {len(x)} budgets from {curves.sizes[0]} to {curves.sizes[-1]} MiB "
        f"({curves.convention})",
        labels=tuple(row.label for row in curves.rows),
        grid=_grid(curves, "Avg", "AUC-A"),
        tables=(Titled("Last accuracy over the same budgets", _grid(curves, "Last", "AUC-L")),),
        remarks=(explained,),
        content={
            "convention": curves.convention,
            "limits": curves.limits,
            "rows": [row.entry() for row in curves.rows],
        },
        plots=partial(_plots, curves),
    )


def _grid(curves: BudgetCurves, metric: str, area_name: str) -> Grid:
    x = curves.mebibytes
    decimals = max(0, 3 - math.floor(math.log10(x[-1] - x[0])))  # as the survey: 2 over 15.9 MiB, 1 over 944 MiB
    lines = []
    for row in curves.rows:
        scores, area = (row.average, row.auc_a) if metric == "Avg" else (row.last, row.auc_l)
        cells = {"n": str(len(row.seeds))}
        cells |= {f"{metric} @{size}": str(score) for size, score in zip(curves.sizes, scores, strict=True)}
        lines.append(Line(row.label, cells | {area_name: area.words(decimals), "mean": decimal(area.mean, 3)}))
    return grid("strategy", lines)


def _plots(curves: BudgetCurves, number: int, paint: Mapping[str, str]) -> list[Plot]:
    names = (("average", "Average incremental accuracy"), ("last", "Last accuracy"))
    return drawn(number, *(partial(_picture, curves, name, words, paint) for name, words in names))


def _picture(curves: BudgetCurves, name: str, words: str, paint: Mapping[str, str]) -> Picture:
    figure, (axes,) = figure_of(3.9)
    for place, row in enumerate(curves.rows):
        scores = row.average if name == "average" else row.last
        points = [(x, s.mean, s.std or 0.0) for x, s in zip(curves.mebibytes, scores, strict=True) if s.known]
        x, y, std = zip(*points, strict=True) if points else ((), (), ())
        axes.errorbar(x, y, yerr=std, **line_style(paint[row.label], place), label=row.label, capsize=2, elinewidth=1)
    axes.set_xlabel(f"budget, MiB of 2^20 bytes ({curves.convention})")
    axes.set_ylabel("accuracy, %")
    legend(axes)
    return f"{words} against the budget", "Mean over seeds; bars: one standard deviation.", figure
