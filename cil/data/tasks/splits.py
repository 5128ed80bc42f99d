"""Splits of the examples into train, dev, dev_test and test, by a rule and a key; the same on every machine."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

from cil.errors import DataError, nearest

SPLITS = ("train", "dev", "dev_test", "test")
PARTS = {"A": (), "T": ("train", "test"), "V": ("train", "val", "test")}  # parts that a source must have
Rows = NDArray[np.int64]
Shares = Mapping[str, Any]

# shares of each of the publisher's parts; rule A takes all parts together
_SHARES: dict[str, dict[str, Shares]] = {
    "A": {"all": {"train": 0.56, "dev": 0.12, "dev_test": 0.12, "test": 0.2}},
    "T": {"train": {"train": 0.7, "dev": 0.15, "dev_test": 0.15}, "test": {"test": 1}},
    "V": {"train": {"train": 0.8, "dev": 0.2}, "val": {"dev_test": 1}, "test": {"test": 1}},
}


def generator(seed: int, dataset: str) -> Generator:
    """The generator that splits are drawn from: PCG64 of the seed and the CRC-32 of the data set's key."""
    return Generator(PCG64([seed, zlib.crc32(dataset.encode())]))


def apportion(count: int, shares: Shares) -> dict[str, int]:
    """``count`` examples by shares of any sum, with the largest remainders rounded up; the earlier share at a tie.

    At least one goes to ``train`` where it has a share.

    >>> apportion(100, {"train": 0.56, "dev": 0.12, "dev_test": 0.12, "test": 0.2})
    {'train': 56, 'dev': 12, 'dev_test': 12, 'test': 20}
    >>> apportion(1, {"train": 0.2, "test": 0.8})
    {'train': 1, 'test': 0}
    """
    exact = {name: Fraction(str(share)) for name, share in shares.items()}  # as written: 0.7 is seven tenths
    total = sum(exact.values())
    wanted = {name: count * share / total for name, share in exact.items()}
    whole = {name: int(share) for name, share in wanted.items()}
    by_remainder = sorted(wanted, key=lambda name: whole[name] - wanted[name])  # stable: earlier first
    for name in by_remainder[: count - sum(whole.values())]:
        whole[name] += 1
    if count and exact.get("train") and not whole["train"]:
        whole[max(whole, key=lambda name: whole[name])] -= 1
        whole["train"] = 1
    return whole


def split_rows(
    rule: Mapping[str, Any],
    dataset: str,
    labels: NDArray[Any],
    columns: Mapping[str, NDArray[Any]],
    listed: Callable[[str], Sequence[str]] | None = None,
) -> dict[str, Rows]:
    """Rows of each split, ascending.

    Args:
        rule: ``rule``: A, T, V or X; ``seed``; ``compat: nevis`` for independent draws (or index cuts where
            ``catalogue`` is true), whose counts are only near the shares. X has ``by``:

            * ``column``: values of ``column`` (by default ``split``) are the names of splits, or are listed for each in
              ``values: {train: [...], ...}``, or are divided by ``shares: {VALUE: {train: 0.9, dev: 0.1}, ...}``;
            * ``list``: ``lists: {train: [row numbers, or names as in the column name] or a text file, ...}``;
            * ``index_ranges``: ``ranges: {train: [[0, 100], ...], ...}``, the end excluded;
            * ``group``: whole groups, values of ``column``: ``groups: {train: [...], ...}``, or ``shares`` of them.

            Column ``part`` is the publisher's part. Examples that a rule X does not name are in no split.
        dataset: The key of the data; repeats have the same key, hence the same split.
        labels: (n,) class numbers, divided class by class; or (n, L), divided as a whole.
        columns: Columns of n values each.
        listed: Reads the lines of a list file.

    Raises:
        DataError: where a part, a column or a value is missing, or a row would be in two splits.

    Source: Bornschein et al. 2023 for the shares. Departure: stratified with exact counts, unless ``compat`` says
    nevis.
    """
    count, code = len(labels), rule.get("rule", "A")
    draw = generator(rule.get("seed", 0), dataset)
    if code != "X":
        part = np.full(count, "all") if code == "A" else columns["part"].astype(str)
        for name in PARTS[code]:
            if not (part == name).any():
                raise DataError(f"rule {code} needs a part '{name}', the source has: {_values(part)}")
        found = _by_shares(part, _SHARES[code], labels, draw, rule)
    elif rule["by"] == "column":
        column = _column(columns, rule.get("column", "split"))
        if "shares" in rule:
            found = _by_shares(column, rule["shares"], labels, draw, rule)
        else:
            found = _by_values(column, rule.get("values") or {name: [name] for name in SPLITS if name in column})
    elif rule["by"] == "group":
        column = _column(columns, rule["column"])
        groups = rule.get("groups")
        if groups is None:
            values = np.unique(column)
            order = draw.permutation(len(values))
            groups, start = {}, 0
            for name, many in apportion(len(values), _in_order(rule["shares"])).items():
                groups[name] = values[order[start : start + many]].tolist()
                start += many
        found = _by_values(column, groups)
    elif rule["by"] == "index_ranges":
        spans = {name: [np.arange(*span) for span in rule["ranges"][name]] for name in _in_order(rule["ranges"])}
        found = {name: np.concatenate(own) for name, own in spans.items()}
        for name, rows in found.items():
            if len(rows) and (rows.min() < 0 or rows.max() >= count):
                raise DataError(f"ranges of {name} go to {rows.max() + 1}, the source has {count} examples")
    else:
        found = {
            name: _listed_rows(name, rule["lists"][name], columns, count, listed) for name in _in_order(rule["lists"])
        }
    owner: dict[int, str] = {}
    for name, rows in found.items():
        for row in rows.tolist():
            if row in owner:
                raise DataError(f"example {row} is in {owner[row]} and in {name}; splits may not overlap")
            owner[row] = name
    return {name: np.sort(found.get(name, np.array([], dtype=np.int64))).astype(np.int64) for name in SPLITS}


def _by_shares(
    column: NDArray[Any], shares: Mapping[Any, Shares], labels: NDArray[Any], draw: Generator, rule: Mapping[str, Any]
) -> dict[str, Rows]:
    pieces: dict[str, list[Rows]] = {}
    for value, own in shares.items():
        rows = np.flatnonzero(column == str(value))
        if not len(rows):
            raise DataError(f"no example has the value '{value}' that is to be divided; there are: {_values(column)}")
        ordered = _in_order(own)
        if rule.get("compat") == "nevis" and len(ordered) > 1:
            parts = _split_as_nevis(rows, ordered, draw, rule.get("catalogue", False))
        else:
            strata = [rows] if labels.ndim == 2 else [rows[labels[rows] == label] for label in np.unique(labels[rows])]
            parts = [piece for stratum in strata for piece in _cut(stratum, ordered, draw)]
        for name, piece in parts:
            pieces.setdefault(name, []).append(piece)
    return {name: np.concatenate(own) for name, own in pieces.items()}


def _cut(rows: Rows, shares: Shares, draw: Generator) -> list[tuple[str, Rows]]:
    shuffled, start, pieces = rows[draw.permutation(len(rows))], 0, []
    for name, many in apportion(len(rows), shares).items():
        pieces.append((name, shuffled[start : start + many]))
        start += many
    return pieces


def _split_as_nevis(rows: Rows, shares: Shares, draw: Generator, catalogue: bool) -> list[tuple[str, Rows]]:
    """Split as the reference code does: a draw an example, or cuts at int(share * n), the rest to the last."""
    names, weights = list(shares), np.array([float(share) for share in shares.values()])
    if catalogue:
        sizes = [int(share * len(rows)) for share in weights[:-1] / weights.sum()]
        return list(zip(names, np.split(rows, np.cumsum(sizes)), strict=True))
    choices = draw.choice(len(names), size=len(rows), p=weights / weights.sum())
    return [(name, rows[choices == place]) for place, name in enumerate(names)]


def _by_values(column: NDArray[Any], values: Mapping[str, Sequence[Any]]) -> dict[str, Rows]:
    found = {}
    for name in _in_order(values):
        wanted = np.array([str(value) for value in values[name]])
        missing = sorted(set(wanted) - set(column))
        if missing:
            raise DataError(
                f"no example has the value '{missing[0]}' asked for in {name}; {nearest(missing[0], set(column))}"
            )
        found[name] = np.flatnonzero(np.isin(column, wanted))
    return found


def _listed_rows(
    name: str,
    wanted: Sequence[Any] | str,
    columns: Mapping[str, NDArray[Any]],
    count: int,
    listed: Callable[[str], Sequence[str]] | None,
) -> Rows:
    if isinstance(wanted, str):
        if listed is None:
            raise DataError(f"list of {name} is the file '{wanted}', which cannot be read here; list the rows instead")
        wanted = listed(wanted)
    place = {str(item): row for row, item in enumerate(columns["name"])} if "name" in columns else {}
    rows = []
    for item in wanted:
        row = place.get(str(item), int(item) if str(item).isdigit() else -1)
        if not 0 <= row < count:
            raise DataError(f"list of {name} has '{item}', which is no example of the source ({count} in all)")
        rows.append(row)
    return np.array(rows, dtype=np.int64)


def _in_order(named: Mapping[str, Any]) -> dict[str, Any]:
    """In the order of the splits, whatever the order in the file."""
    return {name: named[name] for name in SPLITS if name in named}


def _column(columns: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if name not in columns:
        raise DataError(f"no column '{name}'; {nearest(name, columns)}")
    return np.asarray(columns[name]).astype(str)


def _values(column: NDArray[Any]) -> str:
    return ", ".join(np.unique(column)[:8].tolist())
