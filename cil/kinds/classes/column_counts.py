"""Right answers by group, and by several accepted classes an image: counted in evaluation, and as results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cil import metrics
from cil.data.columns import ACCEPTED, GROUP
from cil.kinds.classes.record_types import AcceptedScores, GroupScores
from cil.metrics import plain

Counts = Mapping[str, Tensor]


class ColumnCounts:
    """Counts answers by the columns of the test images; see ``cil.data.columns``."""

    def __init__(self, groups: Mapping[str, Sequence[str]]) -> None:
        self._counts = {GROUP + name: torch.zeros(len(known), 2, dtype=torch.int64) for name, known in groups.items()}

    def add(self, columns: Mapping[str, Tensor], best: Tensor, right: Tensor, num_classes: int) -> None:
        """Count a batch.

        Args:
            best: (N,) answers.
            right: (N,) True where the answer is the image's class.
            num_classes: Slots seen: an image none of whose accepted classes was seen does not count.
        """
        for name, counts in self._counts.items():
            if name in columns:
                group, many = columns[name], len(counts)
                counts += torch.stack([group[own].bincount(minlength=many).cpu() for own in (right, right | True)], 1)
        if ACCEPTED in columns:
            accepted = columns[ACCEPTED]
            known = ((accepted >= 0) & (accepted < num_classes)).any(1)
            met = (accepted == best[:, None]).any(1) & known
            found = torch.stack([met.sum(), known.sum()]).cpu()
            self._counts[ACCEPTED] = self._counts.get(ACCEPTED, torch.zeros(2, dtype=torch.int64)) + found

    def counts(self) -> dict[str, Tensor]:
        """``group NAME`` (G, 2) and ``accepted`` (2,) int64: right answers, and images that count."""
        return dict(self._counts)


def group_scores(rows: Sequence[Counts], groups: Mapping[str, Sequence[str]]) -> dict[str, GroupScores]:
    """Accuracy by group after each experience, and the worst group, for each column.

    Source: Koh et al. 2021 (WILDS); Gustafson et al. 2023 (FACET).
    """
    found = {}
    for column, names in groups.items():
        counts = np.stack([row[GROUP + column].numpy() for row in rows]).astype(float)  # (t, G, 2)
        accuracy = metrics.accuracy_from_counts(counts[..., 0], counts[..., 1])
        summaries = [metrics.group_summary(own, each[:, 1]) for own, each in zip(accuracy, counts, strict=True)]
        worst = [summary.worst_group for summary in summaries]
        found[column] = GroupScores(
            names=list(names),
            count=[int(count) for count in counts[-1, :, 1]],
            accuracy=plain(accuracy),
            worst=[None if number is None else names[number] for number in worst],
            worst_accuracy=plain([summary.worst_group_accuracy for summary in summaries]),
            disparity=plain([summary.disparity for summary in summaries]),
            unranked=[names[number] for number in summaries[-1].unranked.tolist()],
        )
    return found


def accepted_scores(rows: Sequence[Counts]) -> AcceptedScores | None:
    """Percent of images whose answer is one of those accepted; None where no file says which are.

    Source: Beyer et al. 2020 (ReaL labels of ImageNet).
    """
    if not any(ACCEPTED in row for row in rows):
        return None
    counts: Any = np.array([row[ACCEPTED].tolist() if ACCEPTED in row else [0, 0] for row in rows], float)
    curve = metrics.accuracy_from_counts(counts[:, 0], counts[:, 1])
    return AcceptedScores(
        accuracy_curve=plain(curve), last_accuracy=plain(curve)[-1], counted=[int(count) for count in counts[:, 1]]
    )
