"""From what a source says of an example to its class number, or to its row of 0 and 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cil.data.tasks.tables import FileImages, Table
from cil.errors import DataError, nearest


@dataclass(frozen=True)
class Labelled:
    """Examples that have a label.

    Attributes:
        table: Of the source; its images may be cut out.
        rows: (n,) rows of the table that are left.
        labels: (n,) class numbers, or (n, L) of 0 and 1.
        names: Of the classes.
    """

    table: Table
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    names: tuple[str, ...]


def buckets(values: NDArray[Any], count: int, edges: Sequence[float] | None = None) -> NDArray[np.int64]:
    """The place of each value among ``count`` intervals: of equal mass, or up to and including each of ``edges``.

    Equal values share a bucket, so that masses differ where there are ties.

    >>> buckets(np.array([1, 2, 3, 4, 5, 6]), 3).tolist()
    [0, 0, 1, 1, 2, 2]
    >>> buckets(np.array([0.0, 0.5, 0.6]), 2, edges=[0.5]).tolist()
    [0, 0, 1]
    """
    if edges is None:
        shares = np.arange(1, count) / count
        edges = np.quantile(values, shares, method="inverted_cdf").tolist()
    return np.searchsorted(np.asarray(edges), values, side="left").astype(np.int64)


def labelled(table: Table, kind: str, classes: int | Sequence[str], transform: Mapping[str, Any]) -> Labelled:
    """Apply the label transformations of a task, in this order: crop, buckets, binarise, label_map, classes dropped.

    Args:
        kind: multiclass or multilabel.
        classes: How many, or their names in order. Names of a source are otherwise sorted; labels that are whole
            numbers are class numbers.
        transform: ``crop: {columns: [left, top, right, bottom], min_side}``; ``buckets: {column, n, mode: equal_mass}``
            over all examples, or ``{column, mode: edges, edges: [...]}``; ``binarise: {threshold}``: above it is 1;
            ``label_map: {old: new}``, null for examples (or labels) that go; ``drop_classes_below: n``.

    Raises:
        DataError: where labels do not agree with the kind or the classes.
    """
    rows = np.arange(len(table.images))
    if "crop" in transform:
        table, rows = _cropped(table, rows, transform["crop"])
    values: NDArray[Any] | list[tuple[str, ...]] = table.labels
    if "buckets" in transform:
        how = transform["buckets"]
        values = table.labels if "column" not in how else _column(table, how["column"])
        values = buckets(_numbers(values, "buckets"), how.get("n", 0), how.get("edges"))
    if "binarise" in transform:
        values = (_numbers(values, "binarise") > transform["binarise"]["threshold"]).astype(np.int64)
    replaced = any(key in transform for key in ("buckets", "binarise"))
    names = None if replaced and kind == "multiclass" else table.names
    if kind == "multilabel":
        return _multilabel(table, rows, values, names, classes, transform.get("label_map", {}))
    return _multiclass(table, rows, values, names, classes, transform)


def _multiclass(
    table: Table,
    rows: NDArray[np.int64],
    values: NDArray[Any] | list[tuple[str, ...]],
    names: tuple[str, ...] | None,
    classes: int | Sequence[str],
    transform: Mapping[str, Any],
) -> Labelled:
    if isinstance(values, list) or values.ndim != 1:
        shape = "several labels an example" if isinstance(values, list) else f"labels of shape {values.shape}"
        raise DataError(f"the source has {shape}, a multiclass task needs one an example; is it kind: multilabel?")
    values = values[rows]
    least = transform.get("drop_classes_below", 0)
    if "label_map" in transform or (least and values.dtype.kind in "iu"):  # by name: numbers change when classes go
        text = [_named(value, names) for value in values]
        mapping = {str(old): new for old, new in transform.get("label_map", {}).items()}
        changed = [mapping.get(value, value) for value in text]
        stays = np.array([value is not None for value in changed], dtype=bool)
        rows, values, names = rows[stays], np.array([str(value) for value in changed if value is not None]), None
    if least:
        found, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        stays = counts[place] >= least
        rows, values, names = rows[stays], values[stays], None
    if not len(rows):
        raise DataError("no example is left after the label transformations")
    wanted = None if isinstance(classes, int) else tuple(classes)
    whole = values.dtype.kind in "iub" or all(str(value).isdecimal() for value in values)
    if whole and wanted is not None and values.dtype.kind not in "iub" and set(map(str, values)) <= set(wanted):
        whole = False  # the names are numerals
    if whole and not least:
        codes = values.astype(np.int64)
        known = wanted or names
        many = classes if isinstance(classes, int) else len(classes)
        if known is not None and len(known) != many:
            raise DataError(f"classes is {many}, the source has {len(known)}")
        if codes.min() < 0 or codes.max() >= many:
            raise DataError(f"labels go from {codes.min()} to {codes.max()}; classes is {many}, so 0 to {many - 1}")
        return Labelled(table, rows, codes, known or tuple(map(str, range(many))))
    if values.dtype.kind == "f":
        raise DataError("labels are numbers with fractions; give classes by transform.buckets or transform.binarise")
    text = [str(value) for value in values]
    order = wanted or tuple(sorted(set(text), key=_natural))
    unknown = sorted(set(text) - set(order))
    if unknown:
        raise DataError(f"the source has the class '{unknown[0]}', which classes lacks; {nearest(unknown[0], order)}")
    if isinstance(classes, int) and len(order) != classes:
        raise DataError(f"classes is {classes}, the source has {len(order)}")
    code = {name: place for place, name in enumerate(order)}
    return Labelled(table, rows, np.array([code[value] for value in text], dtype=np.int64), order)


def _multilabel(
    table: Table,
    rows: NDArray[np.int64],
    values: NDArray[Any] | list[tuple[str, ...]],
    names: tuple[str, ...] | None,
    classes: int | Sequence[str],
    mapping: Mapping[Any, Any],
) -> Labelled:
    wanted = None if isinstance(classes, int) else tuple(classes)
    many = classes if isinstance(classes, int) else len(classes)
    if isinstance(values, list):
        renamed = {str(old): new for old, new in mapping.items()}
        sets = [{str(renamed.get(item, item)) for item in own if renamed.get(item, item) is not None} for own in values]
        order = wanted or names or tuple(sorted(set().union(*sets), key=_natural))
        unknown = sorted(set().union(*sets) - set(order))
        if unknown:
            raise DataError(
                f"the source has the label '{unknown[0]}', which classes lacks; {nearest(unknown[0], order)}"
            )
        matrix = np.array([[name in own for name in order] for own in sets], dtype=np.int64)
    elif values.ndim != 2:
        raise DataError(f"labels have shape {values.shape}, a multilabel task needs one column a class (n, L)")
    else:
        order = wanted or names or tuple(map(str, range(values.shape[1])))
        allowed = np.isin(values, (0, 1))
        if not allowed.all():
            bad = values[~allowed].flat[0]
            raise DataError(f"multilabel labels must be 0 or 1, one is {bad}; see transform.binarise")
        matrix = values.astype(np.int64)
    if matrix.shape[1] != many or len(order) != many:
        raise DataError(f"classes is {many}, the source has {matrix.shape[1]}")
    return Labelled(table, rows, matrix[rows], order)


def _cropped(table: Table, rows: NDArray[np.int64], how: Mapping[str, Any]) -> tuple[Table, NDArray[np.int64]]:
    if not isinstance(table.images, FileImages):
        raise DataError("transform.crop needs image files: source type csv or imagefolder")
    boxes = np.stack([_numbers(_column(table, name), "crop") for name in how["columns"]], axis=1)
    least = max(1, how.get("min_side", 1))
    sides = boxes[:, 2:] - boxes[:, :2]
    return replace(table, images=FileImages(table.images.paths, boxes)), rows[(sides >= least).all(axis=1)]


def _named(value: Any, names: tuple[str, ...] | None) -> str:
    if names is not None and isinstance(value, np.integer) and 0 <= value < len(names):
        return names[int(value)]
    return str(value)


def _natural(name: str) -> tuple[int, str]:
    """Numerals by value, before and after them names by alphabet."""
    return (int(name), name) if name.isdecimal() else (-1, name)


def _column(table: Table, name: str) -> NDArray[Any]:
    if name not in table.columns:
        raise DataError(f"no column '{name}'; {nearest(name, table.columns)}")
    return table.columns[name]


def _numbers(values: Any, where: str) -> NDArray[np.float64]:
    try:
        return np.asarray(values).astype(np.float64)
    except ValueError:
        raise DataError(f"transform.{where} needs numbers, the source has text") from None
