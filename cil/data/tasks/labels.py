"""Labels of a source turned into class numbers, or into rows of 0 and 1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cil.data.tasks.examples import ExampleTable, FileImages
from cil.errors import DataError, nearest

Names = tuple[str, ...]
Values = NDArray[Any] | list[Names]


@dataclass(frozen=True)
class LabelledExamples:
    """Examples that have a label.

    Attributes:
        table: Table of the source; its images may be cut out.
        rows: (n,) rows of the table that are left.
        labels: (n,) class numbers, or (n, L) of 0 and 1.
        names: Names of the classes.
    """

    table: ExampleTable
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    names: Names


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


def label_examples(
    table: ExampleTable, kind: str, classes: int | Sequence[str], transform: Mapping[str, Any]
) -> LabelledExamples:
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
        table, rows = _crop(table, rows, transform["crop"])
    values: Values = table.labels
    names = table.names
    if "buckets" in transform:
        how = transform["buckets"]
        measured = _column(table, how["column"]) if "column" in how else table.labels
        values, names = buckets(_numbers(measured, "buckets"), how.get("n", 0), how.get("edges")), None
    if "binarise" in transform:
        values = (_numbers(values, "binarise") > transform["binarise"]["threshold"]).astype(np.int64)
        names = names if kind == "multilabel" else None
    mapping = {str(old): new for old, new in transform.get("label_map", {}).items()}
    if kind == "multilabel":
        matrix, order = _matrix(values, names, classes, mapping)
        return LabelledExamples(table, rows, matrix[rows], order)
    if isinstance(values, list) or values.ndim != 1:
        shape = "several labels an example" if isinstance(values, list) else f"labels of shape {values.shape}"
        raise DataError(f"the source has {shape}, a multiclass task needs one an example; is it kind: multilabel?")
    coded = values[rows]
    least = transform.get("drop_classes_below", 0)
    if mapping or least:  # by name from here on: numbers change when classes go
        text = [_class_name(value, names) for value in coded]
        for old in mapping:
            if old not in text:
                raise DataError(f"transform.label_map has '{old}', no class of the source; {nearest(old, set(text))}")
        changed = [mapping.get(old, old) for old in text]
        rows = rows[np.array([new is not None for new in changed])]
        coded = np.array([str(new) for new in changed if new is not None])
        _, place, counts = np.unique(coded, return_inverse=True, return_counts=True)
        rows, coded = rows[counts[place] >= least], coded[counts[place] >= least]
    if not len(rows):
        raise DataError("no example is left after the label transformations")
    codes, order = _codes(coded, names, classes)
    return LabelledExamples(table, rows, codes, order)


def _codes(values: NDArray[Any], names: Names | None, classes: int | Sequence[str]) -> tuple[NDArray[np.int64], Names]:
    """Class numbers, and the names of the classes; ``names`` are the source's, for labels that are numbers."""
    many = classes if isinstance(classes, int) else len(classes)
    listed = None if isinstance(classes, int) else tuple(classes)
    if values.dtype.kind == "f":
        raise DataError("labels are numbers with fractions; give classes by transform.buckets or transform.binarise")
    if values.dtype.kind in "iub":
        codes, known = values.astype(np.int64), listed or names
        if known is not None and len(known) != many:
            raise DataError(f"classes is {many}, the source has {len(known)}")
        if listed and names and set(listed) == set(names) and listed != names:
            raise DataError("classes lists the source's names in another order than its class numbers have")
        if codes.min() < 0 or codes.max() >= many:
            raise DataError(f"labels go from {codes.min()} to {codes.max()}; classes is {many}, so 0 to {many - 1}")
        return codes, known or tuple(map(str, range(many)))
    text = set(map(str, values))
    if "" in text:
        raise DataError("an example has an empty label")
    order = listed or tuple(sorted(text, key=_natural))
    _check_known(text, order, "class")
    if len(order) != many:
        raise DataError(f"classes is {many}, the source has {len(order)}")
    code = {name: place for place, name in enumerate(order)}
    return np.array([code[str(value)] for value in values], dtype=np.int64), order


def _matrix(
    values: Values, names: Names | None, classes: int | Sequence[str], mapping: Mapping[str, Any]
) -> tuple[NDArray[np.int64], Names]:
    many = classes if isinstance(classes, int) else len(classes)
    listed = None if isinstance(classes, int) else tuple(classes)
    if isinstance(values, list):
        sets = [{str(new) for item in own if (new := mapping.get(item, item)) is not None} for own in values]
        found = set().union(*sets)
        order = listed or (None if mapping else names) or tuple(sorted(found, key=_natural))
        _check_known(found, order, "label")
        matrix = np.array([[name in own for name in order] for own in sets], dtype=np.int64)
    elif values.ndim != 2:
        raise DataError(f"labels have shape {values.shape}, a multilabel task needs one column a class (n, L)")
    elif mapping:
        raise DataError("transform.label_map is for labels by name; these are columns of 0 and 1")
    else:
        order = listed or names or tuple(map(str, range(values.shape[1])))
        allowed = np.isin(values, (0, 1))
        if not allowed.all():
            bad = values[~allowed].flat[0]
            raise DataError(f"multilabel labels must be 0 or 1, one is {bad}; see transform.binarise")
        matrix = values.astype(np.int64)
    if matrix.shape[1] != many or len(order) != many:
        raise DataError(f"classes is {many}, the source has {matrix.shape[1]}")
    return matrix, order


def _check_known(found: Iterable[str], order: Names, what: str) -> None:
    unknown = sorted(set(found) - set(order))
    if unknown:
        raise DataError(f"the source has the {what} '{unknown[0]}', which classes lacks; {nearest(unknown[0], order)}")


def _crop(
    table: ExampleTable, rows: NDArray[np.int64], how: Mapping[str, Any]
) -> tuple[ExampleTable, NDArray[np.int64]]:
    if not isinstance(table.images, FileImages):
        raise DataError("transform.crop needs image files: source type csv")
    boxes = np.stack([_numbers(_column(table, name), "crop") for name in how["columns"]], axis=1)
    least = max(1, how.get("min_side", 1))
    sides = boxes[:, 2:] - boxes[:, :2]
    return replace(table, images=FileImages(table.images.paths, boxes)), rows[(sides >= least).all(axis=1)]


def _class_name(value: Any, names: Names | None) -> str:
    if names is not None and isinstance(value, np.integer) and 0 <= value < len(names):
        return names[int(value)]
    return str(value)


def _natural(name: str) -> tuple[int, str]:
    """Names by alphabet, after them numerals by value."""
    return (int(name), name) if name.isdecimal() else (-1, name)


def _column(table: ExampleTable, name: str) -> NDArray[Any]:
    if name not in table.columns:
        raise DataError(f"no column '{name}'; {nearest(name, table.columns)}")
    return table.columns[name]


def _numbers(values: Any, where: str) -> NDArray[np.float64]:
    try:
        return np.asarray(values).astype(np.float64)
    except ValueError:
        raise DataError(f"transform.{where} needs numbers, the source has text") from None
