"""The name of a row: its strategy, and what tells it from another row of the same one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cil.report.runs import flat
from cil.report.settings import Group, differing
from cil.report.tuning import is_tuned

LABEL, VALUE = 60, 24  # most characters of a label, and of one value in it


def labels_of(groups: Sequence[Group]) -> list[str]:
    """The strategy's name, with the keys that tell rows of one strategy apart."""
    labels = []
    for group in groups:
        alike = [other.first for other in groups if other.first.strategy == group.first.strategy]
        configs = [flat(run.config) for run in alike]
        leaves = flat(group.first.config)
        parts = [
            f"{key.removeprefix('strategy.').removeprefix('adapter.')}={_cut(str(leaves[key]), VALUE)}"
            for key in differing(alike)
            if key in leaves and not (leaves[key] is None and any(key not in config for config in configs))
        ]
        if is_tuned(group.first) and not all(map(is_tuned, alike)):
            parts = [f"tuned: {parts[0]}" if parts else "tuned", *parts[1:]]
        label = f"{group.first.strategy} ({', '.join(parts)})" if parts else group.first.strategy
        labels.append(_cut(label, LABEL))
    seen: Counter[str] = Counter()
    for index, label in enumerate(labels):
        seen[label] += 1
        if seen[label] > 1:
            labels[index] = f"{label} #{seen[label]}"
    return labels


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1]}…"
