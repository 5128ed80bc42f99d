"""Methods on public weights: what each learned and stores beside the backbone, and its accuracy against that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cil.kinds.classes.rows import LAST
from cil.report.grids import Line, Titled, grid, whole
from cil.report.plots import Picture, dot_style, figure_of, legend, row_colour
from cil.report.rows import Row
from cil.report.setup import input_words
from cil.report.verdicts import few

HEADING = "Backbone, learned, stored"
NOTE = (
    "Bytes after the last experience. Backbone: public weights that no run modifies; one that a method trains is "
    "learned. Learned: all other parameters and buffers. Stored: statistics, prototypes, images and the rest."
)
KIB = 1024


def three_lines_table(rows: Sequence[Row]) -> Titled | None:
    """Three lines of bytes for each row; None where no row has public weights."""
    known = _known(rows)
    if not known:
        return None
    lines = []
    for row in known:
        sizes = {f"{name} B": whole(size) for name, size in row.three_lines.items()}
        beside = row.three_lines["learned"] + row.three_lines["stored"]
        lines.append(Line(row.label, sizes | {"learned + stored B": whole(beside), "Last %": str(row.score(LAST))}))
    return Titled(HEADING, grid("strategy", lines), " ".join([NOTE, *_inputs(known)]))


def _inputs(rows: Sequence[Row]) -> Iterator[str]:
    """What is done to images before the networks see them; where rows differ, with the rows that it holds for."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(input_words(row.group.first), []).append(row.label)
    for words, labels in found.items():
        if words:
            yield f"Images{f' of {few(labels)}' if len(found) > 1 else ''}: {words}."


def learned_bytes_picture(rows: Sequence[Row], paint: Mapping[str, str]) -> Picture | None:
    """Last accuracy against the bytes that were learned, and against these with what is stored."""
    known = [(row, score) for row in _known(rows) if (score := row.score(LAST)).mean is not None]
    if len(known) < 2:
        return None
    figure, panels = figure_of(4.2, width=11, panels=2)
    for axes, names in zip(panels, (("learned",), ("learned", "stored")), strict=True):
        for place, (row, score) in enumerate(known):
            size = sum(row.three_lines[name] for name in names) / KIB
            style = dot_style(row_colour(row, paint), place, size=8)
            axes.errorbar([size], [score.mean or 0.0], yerr=[score.std or 0.0], capsize=3, **style, label=row.label)
        axes.set_xscale("symlog", linthresh=1)  # methods that learn nothing stand at 0
        axes.set(xlim=(-0.2, None), xlabel=f"{' and '.join(names)}, KiB")
    panels[0].set_ylabel("last accuracy, %")
    legend(panels[0])
    caption = (
        "Beside the public weights. A backbone that a method trains counts as learned. Bars: one standard deviation "
        "over seeds. Up and left is better."
    )
    return "Last accuracy against learned bytes", caption, figure


def _known(rows: Sequence[Row]) -> list[Row]:
    """Rows whose bytes are known, where at least one has public weights."""
    known = [row for row in rows if row.three_lines]
    return known if any(row.three_lines["backbone"] for row in known) else []
