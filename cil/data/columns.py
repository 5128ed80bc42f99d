"""What a data set says of its test images beside one class each: groups, and several accepted classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cil.data.samples import Samples
from cil.data.tasks.file_sources import column_of, read_table
from cil.errors import DataError, nearest

GROUP = "group "  # begins the name of a column of groups in ``Samples.extras``: (N,) places in its list of names
ACCEPTED = "accepted"  # (N, L) classes that count as right, filled up with -1
NONE = -1
Names = dict[str, tuple[str, ...]]  # the groups of each column


def with_columns(samples: Samples, groups: Mapping[str, Sequence[str]], accepted: Any = None) -> tuple[Samples, Names]:
    """Samples with their columns, and the groups of each in alphabetical order.

    Args:
        samples: N test images.
        groups: N values for each column of groups.
        accepted: (N, L) labels that count as right, filled up with -1; a row of -1 alone is not counted at all.
    """
    names: Names = {}
    extras: dict[str, Tensor] = {}
    for column, values in groups.items():
        names[column] = tuple(sorted({str(value) for value in values}))
        place = {name: number for number, name in enumerate(names[column])}
        extras[GROUP + column] = torch.tensor([place[str(value)] for value in values])
    if accepted is not None:
        extras[ACCEPTED] = torch.as_tensor(np.asarray(accepted, np.int64))
    return samples.with_extras(extras), names


def relabelled(samples: Samples, place: Tensor) -> Samples:
    """The same images where class ``k`` is now called ``place[k]``, -1 for none; accepted classes too."""
    renamed = samples.with_slots(place[samples.slots])
    if ACCEPTED not in samples.extras:
        return renamed
    accepted = samples.extras[ACCEPTED]
    return renamed.with_extras({ACCEPTED: torch.where(accepted >= 0, place[accepted.clamp_min(0)], NONE)})


def columns_of_arrays(
    samples: Samples, arrays: Mapping[str, Any], classes: int, where: str | Path
) -> tuple[Samples, Names]:
    """Columns among the arrays of a file: ``group_NAME`` (N,) text or whole numbers, and ``accepted`` (N, L).

    Raises:
        DataError: for another length or type, or a label out of range, naming the file.
    """
    groups = {name.removeprefix("group_"): array for name, array in arrays.items() if name.startswith("group_")}
    for column, array in groups.items():
        if array.shape != (len(samples),) or array.dtype.kind not in "iubUS":
            raise DataError(
                f"{where}: group_{column} is {array.dtype} of shape {array.shape}; it must have a text or a whole "
                f"number for each of the {len(samples)} images"
            )
    accepted = arrays.get(ACCEPTED)
    if accepted is not None:
        if accepted.ndim != 2 or len(accepted) != len(samples) or accepted.dtype.kind not in "iu":
            raise DataError(
                f"{where}: accepted is {accepted.dtype} of shape {accepted.shape}; it must be whole numbers, a row of "
                f"labels for each of the {len(samples)} images, filled up with -1"
            )
        if accepted.size and not NONE <= int(accepted.min()) <= int(accepted.max()) < classes:
            raise DataError(
                f"{where}: accepted has labels from {accepted.min()} to {accepted.max()}; they are of 0 to "
                f"{classes - 1}, or -1 for none"
            )
    return with_columns(samples, {name: array.astype(str).tolist() for name, array in groups.items()}, accepted)


def columns_of_table(
    samples: Samples, files: Sequence[Path], table: Path, classes: Sequence[str]
) -> tuple[Samples, Names]:
    """Columns of a ``.csv`` file: ``image``, a path beside it; ``accepted``, names of classes with ; between; groups.

    Raises:
        DataError: for an image without a row or with two, or an unknown class, naming file and line.
    """
    header, rows = read_table(table)
    if "image" not in header:
        raise DataError(f"{table} has no column 'image'; it names the file of each row, beside this table")
    place: dict[str, int] = {}
    for number, image in enumerate(column_of(table, rows, "image")):
        file = str(table.parent / image)
        if file in place:
            raise DataError(f"{table} names {image} in line {place[file] + 2} and in line {number + 2}")
        place[file] = number
    missing = [file for file in files if str(file) not in place]
    if missing:
        raise DataError(f"{table} has no row for {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}")
    order = [place[str(file)] for file in files]
    groups = {name: column_of(table, rows, name) for name in header if name not in ("image", ACCEPTED)}
    accepted = None
    if ACCEPTED in header:
        accepted = _accepted_names(table, column_of(table, rows, ACCEPTED), classes)[order]
    return with_columns(samples, {name: [values[row] for row in order] for name, values in groups.items()}, accepted)


def _accepted_names(table: Path, cells: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """(N, L) labels of the names in each cell."""
    place = {name: label for label, name in enumerate(classes)}
    found = []
    for line, cell in enumerate(cells, start=2):
        names = [name.strip() for name in cell.split(";") if name.strip()]
        for name in names:
            if name not in place:
                raise DataError(f"{table} line {line} accepts '{name}', which is no class; {nearest(name, place)}")
        found.append([place[name] for name in names])
    labels = np.full((len(found), max(map(len, found), default=0) or 1), NONE, np.int64)
    for row, own in zip(labels, found, strict=True):
        row[: len(own)] = own
    return labels


def by_name(samples: Samples, own: Sequence[str], classes: Sequence[str], where: str | Path) -> Samples:
    """Samples whose file numbers its classes in another order, under the numbers of ``classes``.

    Raises:
        DataError: where the names are others.
    """
    if list(own) == list(classes):
        return samples
    odd = sorted({*own} ^ {*classes})
    if odd or len(own) != len(classes) or samples.targets is not None:
        what = f"'{odd[0]}' is in one of them alone" if odd else "they are in another order"
        raise DataError(f"{where}: its class names are not those of the training images: {what}")
    place = {name: label for label, name in enumerate(classes)}
    return relabelled(samples, torch.tensor([place[name] for name in own]))
