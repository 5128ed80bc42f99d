"""Tables and plots of adaptation runs, laid out for text, Markdown, CSV, JSON and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from cil.report.grids import NOTHING, Grid, Line, kinds_of_bytes, whole
from cil.report.online import OnlineRow, OnlineSection
from cil.report.verdicts import Score

TERMS = (
    ("n", "Seeds that finished. Numbers are means over them, ± one sample standard deviation (n − 1)."),
    ("error, mean %", "Online error of every domain, their unweighted mean. Images are predicted once, on arrival."),
    ("carried B", "Every byte that the method holds between two batches: weights, statistics, teachers, moments..."),
    ("peak B", "The same, and what an update needs besides: values kept for the backward pass, gradients."),
    ("s / batch", "Seconds of predicting and updating, without reading images; compare only on equal machines."),
    ("clean", "Error on clean images: before, and after the stream, of a copy that meets them as one domain more."),
    ("best", "Called only where two seeds or more support it against every other row: a paired t-test on shared seeds "
             "(5 %), or 95 % intervals that do not overlap."),
)  # fmt: skip


def online_grid(section: OnlineSection) -> Grid:
    """The main table of a section."""
    heads = ["adapter", "n", "error, mean %", "carried B", "peak B", "s / batch"]
    heads += ["clean before %", "clean after %"] if section.clean else []
    lines = [_line(row, section.clean) for row in section.rows]
    return Grid((*heads, *section.domains), (("", tuple(lines)),))


def _line(row: OnlineRow, clean: bool) -> Line:
    seconds = NOTHING if row.seconds_per_batch is None else f"{row.seconds_per_batch:.3f}"
    cells = [str(len(row.seeds)), str(row.mean), whole(row.carried), whole(row.peak_training), seconds]
    cells += [str(score) for score in row.clean] if clean else []
    domains = (_short(score) for score in row.domains)
    return Line(row.label, (*cells, *domains), ("incomplete",) if row.remark else ())


def _short(score: Score) -> str:
    """One decimal, without deviation: there are many of them."""
    return NOTHING if score.mean is None else f"{score.mean:.1f}"


def online_bill(section: OnlineSection) -> Grid:
    """Bytes by kind that are carried at the end of the stream, and what an update needs besides."""
    rows = [row for row in section.rows if row.carried is not None]
    kinds = kinds_of_bytes(row.kinds for row in rows)
    lines = []
    for row in rows:
        sizes = [whole(row.kinds.get(kind, 0)) for kind in kinds]
        lines.append(Line(row.label, (*sizes, whole(row.carried), whole(row.peak_training))))
    return Grid(("adapter", *kinds, "carried", "with an update"), (("", tuple(lines)),))


def online_remarks(section: OnlineSection) -> list[str]:
    """Sentences on rows."""
    return [f"{row.label}: {row.remark}" for row in section.rows if row.remark]


def online_entries(sections: Sequence[OnlineSection]) -> list[dict[str, Any]]:
    """One flat entry a row, numbers unrounded, every entry with the same keys."""
    names = dict.fromkeys(name for section in sections for name in section.domains)
    entries = []
    for number, section in enumerate(sections, 1):
        for row in section.rows:
            errors = dict(zip(section.domains, row.domains, strict=True))
            entry: dict[str, Any] = {"table": number, "title": section.title, "label": row.label}
            entry |= {"n": len(row.seeds), "seeds": " ".join(map(str, row.seeds))}
            scores = {"mean_error": row.mean, "clean_error_before": row.clean[0], "clean_error_after": row.clean[1]}
            for name, score in scores.items():
                entry |= {name: score.mean, f"{name}_std": score.std}
            entry |= {"carried_bytes": row.carried, "peak_training_bytes": row.peak_training}
            entry |= {"seconds_per_batch": row.seconds_per_batch, "remark": row.remark}
            for name in names:
                own = errors.get(name, Score({}))
                entry |= {f"error_{name}": own.mean, f"error_{name}_std": own.std}
            entries.append(entry)
    return entries


def online_plots(section: OnlineSection, number: int, paint: Mapping[str, str]) -> list[Any]:
    """Error over time, and mean error against bytes."""
    from cil.report.plots import WIDTH, Plot, styled, svg_of

    rows = [row for row in section.rows if row.mean.mean is not None]
    if not rows:
        return []
    with styled():
        made = [_over_time(section, rows, paint), _against_bytes(rows, paint)]
        return [
            Plot(title, caption, svg_of(figure, f"o{number}p{index}", title), figure.get_figwidth() > WIDTH)
            for index, (title, caption, figure) in enumerate(made)
        ]


def _over_time(section: OnlineSection, rows: Sequence[OnlineRow], paint: Mapping[str, str]) -> tuple[str, str, Any]:
    from cil.report.plots import WIDTH, figure_of, legend, line_style

    figure, (axes,) = figure_of(4.6, width=1.7 * WIDTH)
    places = list(range(len(section.segments)))
    for place, row in enumerate(rows):
        columns = [Score({run.seed: run.result("segment_errors", k) for run in row.runs}) for k in places]
        style = line_style(paint[row.label], place)
        centre = [column.mean or 0.0 for column in columns]
        axes.plot(places, centre, **style, label=row.label)
        if len(row.runs) > 1:
            std = [column.std or 0.0 for column in columns]
            low, high = ([m + sign * s for m, s in zip(centre, std, strict=True)] for sign in (-1, 1))
            axes.fill_between(places, low, high, color=style["color"], alpha=0.12, linewidth=0)
    every = max(1, len(places) // 30)
    axes.set_xticks(places[::every], section.segments[::every], rotation=55, ha="right", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("online error, %")
    legend(axes)
    return "Error over time", "Of each segment, in order of arrival. Mean over seeds; band: one deviation.", figure


def _against_bytes(rows: Sequence[OnlineRow], paint: Mapping[str, str]) -> tuple[str, str, Any]:
    from cil.report.plots import figure_of, legend, line_style
    from cil.report.settings import MIB

    figure, (axes,) = figure_of(3.9)
    for place, row in enumerate(rows):
        style = line_style(paint[row.label], place) | {"linestyle": "none", "markersize": 9}
        axes.plot([(row.peak_training or 0) / MIB], [row.mean.mean or 0.0], **style, label=row.label)
    axes.set_xlabel("held at once during an update, MiB")
    axes.set_ylabel("mean online error, %")
    axes.set_xlim(left=0)
    axes.margins(x=0.08, y=0.12)
    legend(axes)
    return "Error against memory", "Down and left is better.", figure


def online_reading(clean: bool) -> str:
    """How to read a page of adaptation runs, as HTML; with or without errors on clean images."""
    known = [(term, text) for term, text in TERMS if clean or term != "clean"]
    terms = "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in known)
    return (
        "<section>\n<h2>How to read adaptation runs</h2>\n"
        "<p>A trained network meets test images whose look changes without notice, and may change itself batch by "
        "batch; it is told neither labels nor where a domain ends. What it holds at the end of a segment is all that "
        "it goes on with. Rows are compared inside one table only: same images in the same order, same source.</p>\n"
        f"<dl>\n{terms}\n</dl>\n</section>"
    )
