"""A figure as one SVG element of a page: rows can be found in it, points say their values, colours follow the page."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterator
from html import escape
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Okabe and Ito's colours without yellow, then darker ones: told apart by most readers with a colour deficiency;
# for more than ten rows a deeper shade of each
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a3d9a", "#8c510a", "#35978f", "#7f7f7f"),
    *("#003a5c", "#7d3700", "#00573f", "#8a3f68", "#8a6000", "#2a7fb5", "#3a2158", "#4c2c05", "#1c5650", "#454545"),
)
INK, FAINT, BOUND = "#1f2933", "#d9dee4", "#52606d"
ON_DARK, ON_LIGHT = "#fefefe", "#1e2832"  # text on the coloured cells of a heat map, whatever the page's colours are

NAMESPACES = {"": "http://www.w3.org/2000/svg", "xlink": "http://www.w3.org/1999/xlink"}
ROW = "row:"  # how the id of an artist begins that belongs to a row
VARIABLES = {INK: "ink", FAINT: "line", BOUND: "soft", "#ffffff": "paper"} | {
    colour: f"c{place}" for place, colour in enumerate(COLOURS)
}  # colour: its name in page.css, where a dark page has another one


def svg_of(figure: Figure, prefix: str, title: str, labels: Collection[str] = ()) -> str:
    """The figure as one element for a page: no XML head, no addresses, ids of its own.

    What belongs to a row has its label as ``data-row``; each marker of its line has its values as a title.

    Args:
        prefix: Beginning of all ids.
        title: For those who cannot see it.
    """
    points = _mark_rows(figure, labels)
    root = ElementTree.fromstring(_printed(figure, prefix))
    for group in root.iter(f"{{{NAMESPACES['']}}}g"):
        if (name := group.get("id", "")).startswith(ROW):
            del group.attrib["id"]
            label = name.removeprefix(ROW).partition(":")[2]
            group.set("data-row", label)
            _add_titles(group, points.get(name, []))
    for name, address in NAMESPACES.items():
        ElementTree.register_namespace(name, address)
    text = ElementTree.tostring(root, encoding="unicode").strip()
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)  # HTML knows both, and a reader may look for addresses
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    text = re.sub(r"#[0-9a-f]{6}\b", lambda one: f"var(--{VARIABLES[one[0]]})" if one[0] in VARIABLES else one[0], text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title, quote=True)}"', 1)


def _printed(figure: Figure, salt: str) -> str:
    """SVG as matplotlib writes it, the same bytes for the same figure."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    nothing: dict[str, None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    canvas: Any = FigureCanvasSVG(figure)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        canvas.print_svg(buffer, metadata=nothing)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _mark_rows(figure: Figure, labels: Collection[str]) -> dict[str, list[str]]:
    """Give each artist of a row an id that names it; titles of the markers of its lines by that id."""
    titles: dict[str, list[str]] = {}
    for axes in figure.axes:
        for place, (artist, label) in enumerate(_artists(axes, labels)):
            name = f"{ROW}{place}:{label}"
            artist.set_gid(name)
            if hasattr(artist, "get_xydata") and artist in axes.lines:
                titles[name] = _values(axes, artist, label)
    return titles


def _artists(axes: Axes, labels: Collection[str]) -> Iterator[tuple[Any, str]]:
    """What belongs to a row by its label: lines, error bars, entries of the legend, bars beside a name."""
    for artist in (*axes.lines, *axes.collections):
        if (label := str(artist.get_label()).removeprefix("_")) in labels:
            yield artist, label
    for container in axes.containers:
        if (label := str(container.get_label())) in labels:
            yield from ((part, label) for part in _flat(container))
    if (legend := axes.get_legend()) is not None:
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
            if (label := text.get_text()) in labels:
                yield from ((part, label) for part in (*_flat(handle), text))
    names = [text.get_text() for text in axes.get_yticklabels()]
    if names and all(name in labels for name in names):
        placed: list[tuple[Any, float]] = []
        bars: list[Any] = [patch for patch in axes.patches if hasattr(patch, "get_height")]
        placed += [(patch, patch.get_y() + patch.get_height() / 2) for patch in bars]
        placed += [(text, text.xy[1]) for text in axes.texts if hasattr(text, "xy")]
        for artist, height in placed:
            if 0 <= round(height) < len(names):
                yield artist, names[round(height)]


def _flat(parts: Any) -> Iterator[Artist]:
    if isinstance(parts, (tuple, list)):
        for part in parts:
            yield from _flat(part)
    elif parts is not None:
        yield parts


def _values(axes: Axes, line: Line2D, label: str) -> list[str]:
    x, y = axes.get_xlabel() or "x", axes.get_ylabel() or "y"
    data: Any = line.get_xydata()
    points = [(float(a), float(b)) for a, b in data]
    return [f"{label}: {b:.4g} ({y}) at {a:.6g} ({x})" for a, b in points if a == a and b == b]


def _add_titles(group: ElementTree.Element, titles: list[str]) -> None:
    """A title in each marker, where there are as many as points: some may lie outside the picture."""
    markers = list(group.iter(f"{{{NAMESPACES['']}}}use"))
    if len(markers) != len(titles):
        return
    for marker, words in zip(markers, titles, strict=True):
        ElementTree.SubElement(marker, f"{{{NAMESPACES['']}}}title").text = words
