"""The name of a row: its strategy or adapter, and what tells it from another row of the same one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from cil.report.grouping import Group, differing
from cil.report.runs import flat
from cil.report.tuning import is_tuned

LABEL, VALUE = 60, 24  # most characters of a label, and of one value in it


def labels_of(groups: Sequence[Group]) -> list[str]:
    """The learner's name, with the keys that tell its rows apart."""
    labels = []
    short = _shortened({key for group in groups for key in differing([other.first for other in groups])})
    for group in groups:
        alike = [other.first for other in groups if other.first.learner == group.first.learner]
        configs = [flat(run.config) for run in alike]
        leaves = flat(group.first.config)
        named = f"{group.first.kind.learner}.name"  # of a learner that stands for those of another toolbox
        parts = [
            f"{short.get(key, key)}={_cut(_value(leaves[key]), VALUE)}"
            for key in differing(alike)
            if key in leaves and key != named
            if not (leaves[key] is None and any(key not in config for config in configs))
        ]
        if leaves.get(named) not in (None, group.first.learner):
            parts.insert(0, _cut(str(leaves[named]), VALUE))
        if is_tuned(group.first) and not all(map(is_tuned, alike)):
            parts = [f"tuned: {parts[0]}" if parts else "tuned", *parts[1:]]
        label = f"{group.first.learner} ({', '.join(parts)})" if parts else group.first.learner
        labels.append(_cut(label, LABEL))
    return numbered(labels)


def numbered(labels: Sequence[str]) -> list[str]:
    """Labels with a number where nothing else tells them apart.

    >>> numbered(["der", "wa", "der"])
    ['der', 'wa', 'der #2']
    """
    seen: Counter[str] = Counter()
    found = []
    for label in labels:
        seen[label] += 1
        found.append(f"{label} #{seen[label]}" if seen[label] > 1 else label)
    return found


def _shortened(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each key that no other one shares, or the one before where it says nothing: ``model.name``.

    >>> _shortened(["optimizer.lr", "model.name", "trainer.epochs", "strategy.epochs"])
    {'optimizer.lr': 'lr', 'model.name': 'model', 'trainer.epochs': 'trainer.epochs', 'strategy.epochs': 'epochs'}
    """
    last = {key: key.removesuffix(".name").removesuffix(".kind").rpartition(".")[2] for key in keys}
    many = Counter(last.values())
    owned = {key: key.removeprefix("strategy.").removeprefix("adapter.") for key in last}
    return {key: name if many[name] == 1 else owned[key] for key, name in last.items()}


def _value(value: Any) -> str:
    """
    >>> _value(0.0701331), _value(2.0), _value([0.1, 0.25]), _value("a")
    ('0.07013', '2.0', '[0.1, 0.25]', 'a')
    """
    return f"{value:.4g}" if isinstance(value, float) and len(str(value)) > 6 else str(value)


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1]}…"
