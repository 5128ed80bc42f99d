"""Accuracy over several budgets as one number: AUC-A and AUC-L of the survey."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

from cil.kinds.classes.rows import AVERAGE, LAST, ranked
from cil.metrics import auc
from cil.report.grids import Line, Titled, decimal, grid
from cil.report.grouping import MIB, config_text
from cil.report.labels import numbered
from cil.report.plots import Picture, Plot, draw_plots, figure_of, legend, line_style
from cil.report.rows import Row
from cil.report.section import Section
from cil.report.verdicts import Score


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

    def cells(self, metric: str, sizes: Sequence[str], decimals: int) -> dict[str, str]:
        """Cells of ``Avg`` or ``Last`` at each budget, and of the area under it."""
        scores, area = (self.average, self.auc_a) if metric == "Avg" else (self.last, self.auc_l)
        cells = {"n": str(len(self.seeds))} | {f"{metric} @{s}": str(y) for s, y in zip(sizes, scores, strict=True)}
        return cells | {f"AUC-{metric[0]}": area.words(decimals), "mean": decimal(area.mean, 3)}

    def entry(self) -> dict[str, Any]:
        """The row for JSON, numbers unrounded."""
        entry: dict[str, Any] = {"label": self.label, "seeds": self.seeds}
        for name, scores, area in (("a", self.average, self.auc_a), ("l", self.last, self.auc_l)):
            entry[f"accuracy_{name}"] = [score.mean for score in scores]
            entry |= {f"auc_{name}": area.area, f"auc_{name}_std": area.std, f"auc_{name}_mean": area.mean}
        return entry


def curve_sections(stream: str, settings: Iterable[Sequence[Row]]) -> list[Section]:
    """Sections of a stream that was learned under several byte budgets, for each convention.

    Source:
        Zhou et al. 2024, arXiv:2302.03648, the measures AUC-A and AUC-L.
    """
    families: dict[str, list[tuple[int, Sequence[Row]]]] = {}
    for rows in settings:
        first = rows[0].group.first
        if first.limit is not None:
            families.setdefault(first.convention, []).append((first.limit, rows))
    found = []
    for convention, family in families.items():
        limits = sorted({limit for limit, _ in family})
        if 1 < len(limits) == len(family):  # two lists of limits with the same end are no points of one curve
            found.append(_section(stream, convention, limits, budget_curves(family, limits)))
    return found


def _by_budget(row: Row) -> tuple[str, ...]:
    """Parts of a config that go by the budget: itself, and the hyperparameter that is as large as it holds."""
    return "budget", f"strategy.{row.runs[0].fitted.partition('=')[0]}"


def budget_curves(family: Iterable[tuple[int, Sequence[Row]]], limits: Sequence[int]) -> list[BudgetCurve]:
    """Ranked rows followed over the budgets, largest area first.

    Args:
        family: The limit and the rows of each setting.
        limits: In bytes, smallest first.
    """
    points: dict[str, dict[int, list[Row]]] = {}
    for limit, rows in family:
        for row in ranked(rows):
            # a smaller budget may take a smaller network, so the model is no part of what is followed
            key = f"{row.group.first.learner} {config_text(row.runs[0], without=('model', *_by_budget(row)))}"
            points.setdefault(key, {}).setdefault(limit, []).append(row)
    curves = []
    for at in points.values():
        if all(len(candidates) == 1 for candidates in at.values()):
            learner = at[min(at)][0].group.first.learner
            curves.append(_curve(learner, {limit: rows[0] for limit, rows in at.items()}, limits))
            continue
        models: dict[str, dict[int, Row]] = {}
        for limit, candidates in at.items():
            for row in candidates:
                models.setdefault(config_text(row.runs[0], without=_by_budget(row)), {})[limit] = row
        curves += [_curve(followed[min(followed)].label, followed, limits) for followed in models.values()]
    named = zip(numbered([curve.label for curve in curves]), curves, strict=True)
    return sorted((replace(c, label=label) for label, c in named), key=lambda c: (-(c.auc_a.area or 0.0), c.label))


def _curve(label: str, at: dict[int, Row], limits: Sequence[int]) -> BudgetCurve:
    average, last = (
        tuple(at[limit].score(name) if limit in at else Score({}) for limit in limits) for name in (AVERAGE, LAST)
    )
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


def _section(stream: str, convention: str, limits: Sequence[int], curves: Sequence[BudgetCurve]) -> Section:
    x = [limit / MIB for limit in limits]  # the survey's unit
    digits = next(digits for digits in count(2) if len({f"{size:.{digits}f}" for size in x}) == len(x))
    sizes = [f"{size:.{digits}f}" for size in x]
    explained = (
        f"AUC-A and AUC-L: area under Avg and Last as fractions, in MiB, at most {x[-1] - x[0]:.2f}; mean: the area "
        "divided by the range. Areas over other budgets are not to be compared; a missing point leaves none."
    )
    decimals = max(0, 3 - math.floor(math.log10(x[-1] - x[0])))  # as the survey: 2 over 15.9 MiB, 1 over 944 MiB
    average, last = (
        grid("strategy", [Line(curve.label, curve.cells(metric, sizes, decimals)) for curve in curves])
        for metric in ("Avg", "Last")
    )
    return Section(
        title=f"{stream}: accuracy over {len(x)} budgets from {sizes[0]} to {sizes[-1]} MiB ({convention})",
        rows=tuple(curves),
        grid=average,
        tables=(Titled("Last accuracy over the same budgets", last),),
        remarks=(explained,),
        content={"convention": convention, "limits": limits, "rows": [curve.entry() for curve in curves]},
        plots=partial(_plots, curves, x, convention),
    )


def _plots(
    curves: Sequence[BudgetCurve], x: Sequence[float], convention: str, number: int, paint: Mapping[str, str]
) -> list[Plot]:
    average = partial(_picture, "Average incremental accuracy", [curve.average for curve in curves])
    last = partial(_picture, "Last accuracy", [curve.last for curve in curves])
    colours = {curve.label: paint[curve.label] for curve in curves}
    return draw_plots(number, *(partial(draw, colours, x, convention) for draw in (average, last)), labels=colours)


def _picture(
    words: str, scores: Sequence[tuple[Score, ...]], colours: Mapping[str, str], x: Sequence[float], convention: str
) -> Picture:
    figure, (axes,) = figure_of(3.9)
    for place, ((label, colour), curve) in enumerate(zip(colours.items(), scores, strict=True)):
        points = [(size, s.mean, s.std or 0.0) for size, s in zip(x, curve, strict=True) if s.known]
        sizes, y, std = zip(*points, strict=True) if points else ((), (), ())
        axes.errorbar(sizes, y, yerr=std, **line_style(colour, place), label=label, capsize=2, elinewidth=1)
    axes.set(xlabel=f"budget, MiB of 2^20 bytes ({convention})", ylabel="accuracy, %")
    legend(axes)
    return f"{words} against the budget", "Mean over seeds; bars: one standard deviation.", figure
