"""Which samples of a class become exemplars: rules over features, chosen by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cil.errors import ConfigError, ShapeError, TrainingError, nearest

Selection = Callable[[Tensor, int, torch.Generator], Tensor]  # (N, D) features, count, generator -> (count,) rows
_SELECTIONS: dict[str, Selection] = {}
_BLIND: set[Selection] = set()  # rules that look at no feature


def register_selection(name: str, features: bool = True) -> Callable[[Selection], Selection]:
    """Make a rule known by name. Other packages: entry points of the group ``cil.selections``.

    Args:
        name: As in ``strategy.selection``.
        features: Whether the rule looks at features; one that does not is given (N, 0), and none are computed.
    """

    def add(rule: Selection) -> Selection:
        _SELECTIONS[name] = rule
        if not features:
            _BLIND.add(rule)
        return rule

    return add


def selection(name: str) -> Selection:
    """The rule of that name.

    Raises:
        ConfigError: if there is none.
    """
    if name not in _SELECTIONS:
        from importlib.metadata import entry_points

        for point in entry_points(group="cil.selections"):
            _SELECTIONS.setdefault(point.name, point.load())
    if name not in _SELECTIONS:
        raise ConfigError(f"no selection rule '{name}' (strategy.selection); {nearest(name, _SELECTIONS)}")
    return _SELECTIONS[name]


def uses_features(rule: Selection) -> bool:
    """Whether features must be computed for a rule."""
    return rule not in _BLIND


def unit(features: Tensor) -> Tensor:
    """Rows of unit length: phi / (||phi|| + 1e-8)."""
    return features / (features.norm(dim=1, keepdim=True) + 1e-8)


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2 or len(features) == 0:
        raise ShapeError(f"features must be (N, D) with N > 0, not {tuple(features.shape)}")
    if not bool(features.isfinite().all()):
        raise TrainingError("exemplars cannot be chosen: features are not finite; lower optimizer.lr")
    return features.double()


def herd(features: Tensor, count: int) -> Tensor:
    """Choose, in order, the samples whose running mean stays nearest to the mean of all.

    Args:
        features: (N, D), one row for each sample of one class, already normalised.
        count: Samples wanted; no more than N are returned.

    Returns:
        (min(count, N),) int64 row numbers, best first: any prefix is itself a herd. Ties go to the lowest row, and
        distances that differ by rounding alone (1e-12 relative) are tied.

    Raises:
        ShapeError: if ``features`` is not (N, D) with N > 0.
        TrainingError: if a feature is not finite.

    Source:
        Rebuffi et al. 2017, Algorithm 4, after Welling 2009. For pick k the distance
        ||mu - (phi + S) / k||^2 differs from |phi|^2 - 2 phi.(k mu - S) by a positive factor and a constant, so one
        matrix-vector product a pick is enough.

    >>> herd(torch.tensor([[0.0], [1.0], [5.0]]), count=2).tolist()
    [1, 2]
    """
    rows = _checked(features).detach().cpu().numpy()  # picks are small: calls of torch would cost more
    mean, squares = rows.mean(0), np.square(rows).sum(1)
    rounding = 1e-12 * squares.max()
    chosen: list[int] = []
    total = np.zeros_like(mean)
    for k in range(1, min(count, len(rows)) + 1):
        distance = squares - 2 * (rows @ (k * mean - total))
        distance[chosen] = np.inf
        best = int((distance <= distance.min() + rounding).argmax())
        chosen.append(best)
        total += rows[best]
    return torch.tensor(chosen, dtype=torch.int64)


@register_selection("herding")
def _herding(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return herd(unit(features), count)


@register_selection("random", features=False)
def random(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """A uniform draw without replacement; any prefix is one too."""
    return torch.randperm(len(features), generator=generator)[:count]


@register_selection("reservoir", features=False)
def reservoir(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Reservoir sampling over the rows in order: each is kept with probability count / N.

    The sample is shuffled at the end, so that any prefix, which is what a memory keeps when it shrinks, is uniform too:
    the first places of a reservoir favour the first rows.

    Source: Vitter 1985, Algorithm R.
    """
    kept = torch.arange(min(count, len(features)))
    for row in range(count, len(features)):
        place = int(torch.randint(row + 1, (), generator=generator))
        if place < count:
            kept[place] = row
    return kept[torch.randperm(len(kept), generator=generator)]


@register_selection("closest_to_mean")
def closest_to_mean(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The samples nearest to the class mean of unit features, nearest first; ties go to the lowest row."""
    features = _checked(unit(features))
    return (features - features.mean(0)).norm(dim=1).argsort(stable=True)[:count].cpu()


def class_means(features: Tensor, slots: Tensor, num_classes: int) -> Tensor:
    """Unit mean of the unit features of each slot: (N, D), (N,) -> (C, D).

    A slot without samples gets a row of NaN, which never is the nearest.
    """
    features = unit(features)
    sums = torch.zeros(num_classes, features.shape[1], dtype=features.dtype, device=features.device)
    sums.index_add_(0, slots, features)
    counts = torch.bincount(slots, minlength=num_classes).to(features).unsqueeze(1)
    return F.normalize(sums / counts, dim=1)
