"""Style of plots, and pictures as SVG text that needs nothing from outside: same records, same bytes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cil.report.svg import BOUND, COLOURS, FAINT, INK, ON_DARK, ON_LIGHT, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vPX<>*"
WIDTH = 6.4  # inches of a plot that shares its line
Picture = tuple[str, str, "Figure"]  # title, caption, figure


@dataclass(frozen=True)
class Plot:
    """A picture with its words.

    Attributes:
        svg: One ``<svg>`` element whose ids nothing else on a page has.
        figure: What it was made of, for files of other formats.
        broad: True if it wants the whole width of a page.
        leads: True if it stands before the table.
    """

    title: str
    caption: str
    svg: str
    broad: bool = False
    leads: bool = False
    figure: Figure | None = field(default=None, repr=False, compare=False)


def colours(labels: Iterable[str]) -> dict[str, str]:
    """One colour for each label, the same wherever the same labels are shown."""
    return {label: COLOURS[index % len(COLOURS)] for index, label in enumerate(sorted(set(labels)))}


def draw_plots(
    number: int, *draw: Callable[[], Picture | None], leads: int = 0, labels: Collection[str] = ()
) -> list[Plot]:
    """Draw the plots of one section, in the style of a report.

    Args:
        number: Place of the section on its page, so that no id comes twice.
        draw: Make the pictures; None is left out.
        leads: How many of them stand before the table.
        labels: Names of the rows, so that a page can show some of them alone.
    """
    with styled():
        plots = []
        for i, (title, caption, figure) in enumerate(picture for make in draw if (picture := make()) is not None):
            svg = svg_of(figure, f"s{number}p{i}", title, labels)
            plots.append(Plot(title, caption, svg, figure.get_figwidth() > WIDTH, i < leads, figure))
        return plots


BESIDE: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8.5, "color": INK}
_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # letters stay letters
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.framealpha": 0.0,
    "axes.edgecolor": BOUND,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def styled() -> Iterator[None]:
    """The same look whatever the reader's own matplotlib settings are."""
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE]):
        yield


def figure_of(height: float, width: float = WIDTH, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches, and its panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    row = list(figure.subplots(1, panels, squeeze=False)[0])
    for axes in row:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
    return figure, row


def bars(labels: Sequence[str], panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of horizontal bars, one for each label, the first on top; the names stand beside the first panel."""
    count = len(labels)
    width = WIDTH if panels == 1 else 1.7 * WIDTH  # letters as large as those of other figures
    figure, row = figure_of(1.3 + 0.36 * count, width, panels)
    for place, axes in enumerate(row):
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.6, count - 0.4)
        axes.set_yticks(range(count), [""] * count if place else list(reversed(labels)))
    return figure, row


def row_colour(row: Any, paint: Mapping[str, str]) -> str:
    """The colour of a row of ``cil.report.rows``: bounds are grey."""
    return BOUND if row.bound else paint[row.label]


def dot_style(colour: str, place: int, size: int = 9) -> dict[str, Any]:
    """How a row is drawn as a point."""
    return line_style(colour, place) | {"linestyle": "none", "markersize": size}


def line_style(colour: str, place: int, dashed: bool = False) -> dict[str, Any]:
    """How the line of a row is drawn."""
    marker = MARKERS[place % len(MARKERS)]
    return {
        "color": colour,
        "linestyle": "--" if dashed else "-",
        "linewidth": 1.8,
        "marker": marker,
        "markersize": 5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }


MANY, BROAD = 12, 28  # names, and letters of one, up to which a legend is one column beside its panel


def legend(axes: Axes) -> None:
    """Names of the lines: beside the panel where they are few and short, else below it in columns."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels), default=0)
    if len(labels) <= MANY and longest <= BROAD:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, handlelength=1.6)
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    columns = max(1, int(figure.get_figwidth() / (0.55 + 0.075 * max(longest, 14))))  # inches of an entry
    figure.set_figheight(figure.get_figheight() + 0.19 * -(-len(labels) // columns))
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}
    axes.legend(handles, labels, **place, ncols=columns, frameon=False, fontsize=9, handlelength=1.6)


def band(
    axes: Axes, x: Sequence[float], centre: Sequence[float], std: Sequence[float], colour: str, label: str = ""
) -> None:
    """One standard deviation around the line of a row."""
    low, high = ([mean + sign * s for mean, s in zip(centre, std, strict=True)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0, label=f"_{label}")


__all__ = [
    "BESIDE", "BOUND", "COLOURS", "FAINT", "INK", "MARKERS", "ON_DARK", "ON_LIGHT", "WIDTH", "Picture", "Plot", "band",
    "bars", "colours", "dot_style", "draw_plots", "figure_of", "legend", "line_style", "row_colour", "styled", "svg_of",
]  # fmt: skip
