"""A stream as a picture: a few training images of each experience."""

from __future__ import annotations

from pathlib import Path

import torch

from cil.errors import ConfigError
from cil.streams.base import Stream


def contact_sheet(stream: Stream, path: str | Path, per_experience: int = 8) -> Path:
    """Write a PNG with one row of training images for each experience, each under its class name.

    The images of a row are spread evenly over the classes of the experience, in order of their slots.

    Args:
        stream: Any stream; its test data are not read.
        path: File to write; its folder is made where it is missing.
        per_experience: Images in a row.

    Returns:
        The path.

    Raises:
        ConfigError: where ``per_experience`` is less than 1.
    """
    if per_experience < 1:
        raise ConfigError(f"per_experience is {per_experience}; it must be 1 or more")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns, rows = per_experience, len(stream)
    figure = Figure(figsize=(1.1 * columns + 0.6, 1.25 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no change to matplotlib's global backend
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(stream.name, fontsize=10)
    for row, experience in zip(axes, stream, strict=True):
        by_slot = experience.train.slots.argsort(stable=True)
        picked = experience.train[by_slot[_evenly(len(by_slot), columns)]]
        for axis in row:
            axis.set(xticks=[], yticks=[], frame_on=False)
        row[0].set_ylabel(f"{experience.index}", rotation=0, labelpad=8, va="center")
        for axis, image, slot in zip(row, picked.pixels, picked.slots.tolist(), strict=False):
            shown = image.permute(1, 2, 0).cpu().numpy()
            axis.imshow(shown if shown.shape[2] == 3 else shown[..., 0], cmap="gray", vmin=0, vmax=255)
            axis.set_title(stream.classes[slot][:16].replace("$", r"\$"), fontsize=6, pad=2)
    where = Path(path)
    where.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(where, format="png", dpi=110)
    return where


def _evenly(count: int, wanted: int) -> torch.Tensor:
    """``wanted`` places (or all ``count``), in the middle of equal pieces."""
    wanted = min(count, wanted)
    return ((torch.arange(wanted) + 0.5) * count / wanted).long()
