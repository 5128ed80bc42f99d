"""Plots that take accuracy apart: old and new classes, tasks, unknown classes, the classifier; and what it cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cil import metrics
from cil.kinds.classes.plasticity import old_and_new, tested, within_task
from cil.kinds.classes.rows import LAST
from cil.report.plots import INK, WIDTH, Picture, dot_style, figure_of, legend, line_style, row_colour
from cil.report.rows import Row, mean
from cil.report.runs import RunSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOMENTS = 4  # experiences of which a confusion is drawn
LEAST, MOST = 0.5, 1.5  # norms, by their mean, at the ends of the colours
Draw = Callable[[], Picture | None]
Curve = Callable[[RunSummary], Sequence[float | None] | None]


def analysis_plots(rows: Sequence[Row], paint: Mapping[str, str]) -> list[Draw]:
    """Functions that make a picture each, or None where no record has what it shows."""
    curves: list[tuple[str, str, dict[str, Curve]]] = [
        ("Old and new classes", "On the test images of all earlier experiences, and of the newest one.",
         {"old classes, %": lambda run: [one.old for one in old_and_new(run)],
          "newest classes, %": lambda run: [one.new for one in old_and_new(run)]}),
        ("Tasks, and classes within them",
         "Answers within the right experience; and answers that are right where the experience is given.",
         {"task found, %": lambda run: run.result("task_identification_curve"), "within task, %": within_task}),
        ("Known and unknown classes",
         "Classes to come are unknown; known is told by the maximum logit. OSCR: area under right and accepted answers "
         "against accepted unknown images. A guess has an AUROC of 0.5; the unknown classes become fewer.",
         {"AUROC": lambda run: run.result("open_set", "auroc"), "OSCR": lambda run: run.result("open_set", "oscr")}),
        ("Accuracy on held-out training images", "On validation images of all classes seen.",
         {"accuracy, %": lambda run: run.result("validation_curve")}),
    ]  # fmt: skip
    drawn: list[Draw] = [partial(_curves, title, caption, rows, paint, panels) for title, caption, panels in curves]
    return [*drawn, partial(_costs, rows, paint), partial(_task_confusion, rows), partial(_norms, rows)]


def _curves(
    title: str, caption: str, rows: Sequence[Row], paint: Mapping[str, str], panels: Mapping[str, Curve]
) -> Picture | None:
    """A panel for each curve over the experiences; means over seeds."""
    found = {
        words: {row.label: _mean([curve(run) for run in row.runs]) for row in rows} for words, curve in panels.items()
    }
    if not any(not np.isnan(one).all() for means in found.values() for one in means.values()):
        return None
    from matplotlib.ticker import MaxNLocator

    figure, axes = figure_of(3.7, (1.1 * len(panels) + 0.4) * WIDTH / 1.5, len(panels))
    for panel, (words, means) in zip(axes, found.items(), strict=True):
        for place, row in enumerate(rows):
            centre = means[row.label]
            style = line_style(row_colour(row, paint), place, dashed=row.bound)
            panel.plot(range(1, len(centre) + 1), centre, **style, label=row.label)
        panel.set(ylim=(0, 100 if words.endswith("%") else 1), xlabel="experiences learned", ylabel=words)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes[-1])
    return title, f"{caption} Mean over seeds.", figure


def _mean(curves: Sequence[Sequence[float | None] | None]) -> np.ndarray[Any, Any]:
    """Mean over seeds at each experience, NaN where one does not know it."""
    known = [np.asarray(curve, dtype=np.float64) for curve in curves if curve is not None]
    if not known or len(known) < len(curves):
        return np.full(1, np.nan)
    centre: np.ndarray[Any, Any] = np.stack([curve[: min(map(len, known))] for curve in known]).mean(0)
    return centre


def _costs(rows: Sequence[Row], paint: Mapping[str, str]) -> Picture | None:
    """Last accuracy against operations and seconds of everything but evaluation."""
    measures: dict[str, Callable[[RunSummary], float | None]] = {
        "FLOPs, evaluation aside": lambda run: run.flops,
        "seconds, evaluation aside": lambda run: run.training_seconds,
    }
    found = {
        words: [(place, row, cost) for place, row in enumerate(rows)
                if (cost := mean([measure(run) for run in row.runs])) and row.score(LAST).mean is not None]
        for words, measure in measures.items()
    }  # fmt: skip
    found = {words: points for words, points in found.items() if len(points) > 1}
    if not found:
        return None
    figure, axes = figure_of(3.7, (1.1 * len(found) + 0.4) * WIDTH / 1.5, len(found))
    for panel, (words, points) in zip(axes, found.items(), strict=True):
        for place, row, cost in points:
            score = row.score(LAST)
            style = dot_style(row_colour(row, paint), place, size=8)
            bar: dict[str, Any] = {"yerr": [score.std or 0.0], "capsize": 3, "elinewidth": 1.2}
            panel.errorbar([cost], [score.mean or 0.0], **bar, **style, label=row.label)
        sizes = [cost for _, _, cost in points]
        if max(sizes) > 20 * min(sizes):
            panel.set_xscale("log")
        panel.set(xlabel=words, ylabel="last accuracy, %")
        panel.margins(x=0.1, y=0.12)
    legend(axes[-1])
    caption = "Mean over seeds; bars: one standard deviation. Up and left is better. Seconds: on equal machines alone."
    return "Last accuracy against compute", caption, figure


def _task_confusion(rows: Sequence[Row]) -> Picture | None:
    """For each row, of its first seed, which experience answers name, after a few experiences."""
    found = {row.label: _confusions(row.runs[0]) for row in rows}
    found = {label: moments for label, moments in found.items() if moments}
    if not found:
        return None
    columns = max(map(len, found.values()))
    figure, grid = _panels(len(found), columns, 1.75, 1.75)
    for line, (label, moments) in zip(grid, found.items(), strict=True):
        for axes, (step, shares) in zip(line, moments.items(), strict=False):
            picture = axes.imshow(shares, vmin=0, vmax=100, cmap="YlGnBu", interpolation="nearest")
            axes.set_title(f"{step + 1} learned", fontsize=8, color=INK)
        line[0].set_ylabel(label, fontsize=8)
    figure.colorbar(
        picture, ax=list(np.ravel(grid)), shrink=0.8, aspect=30, label="images of the experience, %", pad=0.02
    )
    caption = (
        "Row: experience that an image is of. Column: experience of the class that is answered. Of the "
        "first seed. The confusion of all classes is in the record (arrays)."
    )
    return "Confusion of experiences over time", caption, figure


def _confusions(run: RunSummary) -> dict[int, np.ndarray[Any, Any]]:
    """Percent of the images of each experience by the experience answered, (t, t), after a few experiences."""
    if tested(run) is None or run.steps < 2:
        return {}
    owner = [index for index, slots in enumerate(run.stream["new_slots"]) for _ in slots]
    moments = sorted({round(step) for step in np.linspace(1, run.done - 1, min(MOMENTS, run.done - 1))})
    found = {}
    for step, confusion in enumerate(run.parts("confusion")):
        if step in moments:
            counts = metrics.task_confusion(confusion, owner, run.steps)[: step + 1, : step + 1]
            found[step] = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return found


def _norms(rows: Sequence[Row]) -> Picture | None:
    """For each row, of its first seed, the lengths of the weight vectors of all classes over time."""
    found = {row.label: np.stack(norms) for row in rows if (norms := [*row.runs[0].parts("classifier_norms")])}
    if not found:
        return None
    across = min(3, len(found))
    figure, grid = _panels(math.ceil(len(found) / across), across, 2.9, 2.0)
    panels: list[Axes] = list(np.ravel(grid))
    for axes, (label, lengths) in zip(panels, found.items(), strict=False):
        relative = lengths / np.nanmean(lengths, axis=1, keepdims=True)
        picture = axes.imshow(relative, vmin=LEAST, vmax=MOST, cmap="PuOr_r", interpolation="nearest", aspect="auto")
        axes.set_title(label, fontsize=9, color=INK)
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    figure.colorbar(picture, ax=panels, shrink=0.8, aspect=25, label="norm by mean", pad=0.02)
    caption = (
        "Row: after this experience. Column: a class, in order of arrival. Length of its weights in the linear "
        "classifier, divided by the mean of all classes seen: above 1 it is favoured. First seed."
    )
    return "Norms of the classifier", caption, figure


def _panels(down: int, across: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure of small pictures without ticks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * across + 1.0, height * down + 0.2), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure, grid
