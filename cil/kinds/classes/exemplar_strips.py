"""The exemplars that rows chose, as strips of small images: read from the last state of a run, where it is kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from cil.report.images import picture, png_strip
from cil.report.page import html_table
from cil.report.rows import Row
from cil.report.runs import RunSummary
from cil.tracking.digests import SEAL, tensors_sum, unseal

ROWS, CLASSES = 8, 16  # most rows with a strip, and images in it
LARGEST = 2**26  # bytes of a file of a state beyond which it is not read for this
Array = np.ndarray[Any, Any]
_say = logging.getLogger("cil.report")


def exemplar_table(rows: Sequence[Row]) -> str:
    """A strip for each row that keeps raw images, as HTML; empty where none does."""
    lines: list[str] = []
    for row in rows:
        images = first_exemplars(row.runs[0]) if row.runs and not row.bound and len(lines) < ROWS else None
        if images is not None:
            strip = picture(png_strip(images), f"exemplars of {row.label}")
            lines.append(
                f'<tr data-row="{escape(row.label)}"><th scope="row">{escape(row.label)}</th><td>{strip}</td></tr>'
            )
    if not lines:
        return ""
    note = (
        f"The first exemplar kept of each class, up to {CLASSES}, in order of arrival; of the first seed, at the end."
    )
    table = html_table(["strategy", "exemplars"], lines, "timeline strip")
    return f'<h3>Exemplars</h3>\n{table}\n<p class="note">{note}</p>'


def first_exemplars(run: RunSummary) -> Array | None:
    """The first image that is kept of each class, (n, H, W, C) uint8; None where the state is not there, or not raw.

    A file is read only if it has the sum it was written with; of one that has not, or is missing, there is a warning.
    """
    if run.identity.get("pictures") is False:
        return None
    states = sorted((run.record.directory / "checkpoint").glob("experience-*.json"))
    if not states:  # they were removed together
        return None
    last = states[-1].with_name(f"experience-{max(len(run.result('ledger') or ()), len(states)) - 1:03d}.json")
    damaged = last
    try:
        content, whole = unseal(dict(json.loads(last.read_bytes())))
        if whole is False:
            raise ValueError("its sum differs")
        kept = [name for name, kind in content["kinds"].items() if kind == "exemplars" and name.endswith(".images")]
        if not kept or "sums" not in content:
            return None
        damaged = last.with_name(Path(content["files"][kept[0]]).name)
        if damaged.stat().st_size > LARGEST:
            return None
        tensors, seal = _read(damaged)
        if not seal == content["sums"].get(damaged.name) == _sum_of(damaged, tensors, run.record.run):
            raise ValueError("its sum differs")
        images, slots = tensors[kept[0]], tensors[f"{kept[0].removesuffix('images')}slots"]
    except (OSError, LookupError, ValueError, TypeError, SafetensorError):
        _say.warning("without pictures of exemplars: %s is missing or damaged", damaged)
        return None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) != len(slots):
        return None
    first = np.unique(slots, return_index=True)[1][:CLASSES]
    return images[first].transpose(0, 2, 3, 1) if len(first) else None


def _read(path: Path) -> tuple[dict[str, Array], str | None]:
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, (file.metadata() or {}).get(SEAL)  # noqa: SIM118


def _sum_of(path: Path, tensors: dict[str, Array], run: str) -> str:
    """The sum of the tensors in a file of a run, as ``cil.engine.checkpoint`` makes it."""
    flat = ((name, array, np.ascontiguousarray(array).reshape(-1).view(np.uint8)) for name, array in tensors.items())
    return tensors_sum(f"{run}/{path.name}", ((n, f"torch.{a.dtype}", tuple(a.shape), bits) for n, a, bits in flat))
