"""Test images with what each row answered to them at the end of the stream, as a table of a page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from cil.kinds.classes.sample_answers import ANSWERS, IMAGES, SLOTS
from cil.report.images import picture, png_strip
from cil.report.page import html_table
from cil.report.rows import Row
from cil.report.runs import RunSummary

Array = np.ndarray[Any, Any]
RIGHT = "✓"
NOTE = (
    f"The first image of some classes that the last evaluation asked about, and what the first seed of each row "
    f"answered: {RIGHT} the right class, else the class that it named."
)


def sample_tables(rows: Sequence[Row]) -> str:
    """A table for all rows that were asked about the same images, as HTML; empty where no record has any."""
    by_images: dict[bytes, list[tuple[Row, Array, Array, Array]]] = {}
    for row in rows:
        if row.runs and (found := samples_of(row.runs[0])) is not None:
            images, slots, answers = found
            by_images.setdefault(images.tobytes() + slots.tobytes(), []).append((row, images, slots, answers))
    tables = [_table(alike) for alike in by_images.values()]
    return "\n".join(["<h3>Test images and answers</h3>", *tables, f'<p class="note">{NOTE}</p>']) if tables else ""


def samples_of(run: RunSummary) -> tuple[Array, Array, Array] | None:
    """Images (n, H, W, C), their slots and the slots answered; None where the record keeps none."""
    found = run.arrays((IMAGES, SLOTS, ANSWERS))
    return (found[IMAGES], found[SLOTS], found[ANSWERS]) if len(found) == 3 else None


def _table(alike: Sequence[tuple[Row, Array, Array, Array]]) -> str:
    first, images, slots, _ = alike[0]
    classes = first.runs[0].stream["classes"]  # by slot
    names = [str(classes[slot]) for slot in slots]
    heads = [f"{picture(png_strip([image]), name)}{escape(name)}" for image, name in zip(images, names, strict=True)]
    return html_table(["strategy", *heads], [_line(row, slots, answers) for row, _, _, answers in alike], "samples")


def _line(row: Row, slots: Array, answers: Array) -> str:
    classes = row.runs[0].stream["classes"]
    cells = "".join(
        f'<td class="right">{RIGHT}</td>'
        if slot == answer
        else f'<td class="wrong">{escape(str(classes[answer]))}</td>'
        for slot, answer in zip(slots, answers, strict=True)
    )
    return f'<tr data-row="{escape(row.label)}"><th scope="row">{escape(row.label)}</th>{cells}</tr>'
