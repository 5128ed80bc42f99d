"""Selection rules: which samples of a class become exemplars.

Any prefix of an answer is the answer for fewer (not so for ``reservoir``, whose draws depend on the number), so that a
memory that shrinks keeps the samples that the rule would have chosen. Ties go to the lowest row. Features are scaled
to unit length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cil.errors import ShapeError, TrainingError
from cil.memory.selections import Gradients, Predictions, register_selection

ROUNDING = 1e-12  # share of the largest value: smaller differences are ties
CLUSTERS = 10  # within one class, by default

Array = NDArray[Any]


def unit(features: Tensor) -> Tensor:
    """Rows of unit length: phi / (||phi|| + 1e-8)."""
    rows: Tensor = features / (features.norm(dim=1, keepdim=True) + 1e-8)
    return rows


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
        ``||mu - (phi + S) / k||^2`` differs from ``||phi||^2 - 2 phi.(k mu - S)`` by a positive factor and a constant,
        so one matrix-vector product a pick is enough.

    >>> herd(torch.tensor([[0.0], [1.0], [5.0]]), count=2).tolist()
    [1, 2]
    """
    rows = _checked(features).detach().cpu().numpy()  # picks are small: calls of torch would cost more
    mean, squares = rows.mean(0), np.square(rows).sum(1)
    rounding = ROUNDING * squares.max()
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
    """The samples whose running mean stays nearest to the mean of all."""
    return herd(unit(features), count)


@register_selection("random", needs="nothing")
def random(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """A uniform draw without replacement; any prefix is one too."""
    return torch.randperm(len(features), generator=generator)[:count]


@register_selection("reservoir", needs="nothing")
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
    distances: Tensor = (features - features.mean(0)).norm(dim=1)
    return distances.argsort(stable=True)[:count].cpu()


# by the network's answers -------------------------------------------------------------------------------------------


def _by_value(values: Tensor, count: int, lowest_first: bool) -> Tensor:
    """Rows in order of their value; ties go to the lowest row."""
    if values.ndim != 1 or len(values) == 0:
        raise ShapeError(f"values to choose by must be (N,) with N > 0, not {tuple(values.shape)}")
    if not bool(values.isfinite().all()):
        raise TrainingError("exemplars cannot be chosen: logits are not finite; lower optimizer.lr")
    return (values if lowest_first else -values).argsort(stable=True)[:count].cpu()


@register_selection("entropy", needs="logits", options=("uncertain", "typical"))
def entropy(seen: Predictions, count: int, generator: torch.Generator, option: str = "uncertain") -> Tensor:
    """The samples whose prediction has the highest entropy first; ``typical``: the lowest.

    Source: Masana et al. 2022 (FACIL), section on exemplar selection.
    """
    entropies = torch.special.entr(seen.logits.double().softmax(1)).sum(1)
    return _by_value(entropies, count, lowest_first=option == "typical")


@register_selection("margin", needs="logits", options=("top_two", "true_class"))
def margin(seen: Predictions, count: int, generator: torch.Generator, option: str = "top_two") -> Tensor:
    """The samples nearest to a decision boundary first: smallest difference of the two largest probabilities.

    ``true_class``: smallest logit of the true class, the distance of FACIL.

    Source: Masana et al. 2022, after Chaudhry et al. 2018 (RWalk).
    """
    if option == "true_class":
        return _by_value(_own_class(seen.logits.double(), seen.slots), count, lowest_first=True)
    top = seen.logits.double().softmax(1).topk(min(2, seen.logits.shape[1]), dim=1).values
    return _by_value(top[:, 0] - top[:, 1:].sum(1), count, lowest_first=True)


@register_selection("loss", needs="logits", options=("highest", "lowest"))
def loss(seen: Predictions, count: int, generator: torch.Generator, option: str = "highest") -> Tensor:
    """The samples of the highest cross-entropy first; ``lowest``: those of the lowest."""
    losses = -_own_class(seen.logits.double().log_softmax(1), seen.slots)
    return _by_value(losses, count, lowest_first=option == "lowest")


@register_selection("confidence", needs="logits")
def confidence(seen: Predictions, count: int, generator: torch.Generator) -> Tensor:
    """The samples whose largest probability is smallest first."""
    return _by_value(seen.logits.double().log_softmax(1).amax(1), count, lowest_first=True)


def _own_class(values: Tensor, slots: Tensor) -> Tensor:
    return values.gather(1, slots.long()[:, None])[:, 0]


# by coverage -------------------------------------------------------------------------------------------------------


def farthest_first(start: int, count: int, closeness: Callable[[int], Array]) -> Tensor:
    """From ``start`` on, always the row that is least close to the nearest of those chosen.

    Args:
        closeness: Closeness (N,) of all rows to one row; the larger the closer.

    Returns:
        (min(count, N),) int64; ties go to the lowest row.

    Source:
        Gonzalez 1985: with distances the cover radius is at most twice the best one.

    >>> points = np.array([0.0, 1.0, 2.0, 10.0])
    >>> farthest_first(0, 4, lambda row: -abs(points - points[row])).tolist()
    [0, 3, 2, 1]
    """
    nearest_chosen = closeness(start)
    rounding = ROUNDING * float(np.abs(nearest_chosen).max(initial=0))
    taken = np.zeros(len(nearest_chosen), dtype=bool)
    chosen: list[int] = []
    row = start
    while len(chosen) < min(count, len(taken)):
        chosen.append(row)
        taken[row] = True
        nearest_chosen = np.maximum(nearest_chosen, closeness(row))
        left = np.where(taken, np.inf, nearest_chosen)
        row = int((left <= left.min() + rounding).argmax())
    return torch.tensor(chosen, dtype=torch.int64)


def _argmin(distances: Array) -> int:
    """The row of the smallest value; ties, also those that rounding alone breaks, go to the lowest row."""
    return int((distances <= distances.min() + ROUNDING * np.abs(distances).max()).argmax())


@register_selection("k_center", options=("mean", "random"))
def k_center(features: Tensor, count: int, generator: torch.Generator, option: str = "mean") -> Tensor:
    """Greedy k-center: from the sample nearest to the mean, always the one farthest from all chosen.

    ``random``: from a random sample.

    Source: Sener and Savarese 2018, Algorithm 1, after Gonzalez 1985.
    """
    rows = _unit_rows(features)
    start = int(torch.randint(len(rows), (), generator=generator))
    if option == "mean":
        start = _argmin(np.square(rows - rows.mean(0)).sum(1))
    return farthest_first(start, count, lambda row: -np.square(rows - rows[row]).sum(1))


@register_selection("gradient_diversity", needs="gradients")
def gradient_diversity(seen: Gradients, count: int, generator: torch.Generator) -> Tensor:
    """Samples whose loss gradients point in different directions.

    From the sample whose gradient is most along the class's mean gradient direction, always the one whose largest
    cosine with the gradients of those chosen is smallest. Gradients are those of a linear head's weights and biases.

    Source:
        After Aljundi et al. 2019 (GSS), which keeps the buffer of a stream diverse in gradients: its greedy form scores
        a sample by its largest cosine with gradients of random buffer batches and replaces at random by score. Here the
        class is at hand as a whole, so the same score is taken against all samples chosen so far, exactly, and
        nothing is replaced. Departure: the head's gradients in place of all parameters'.
    """
    errors, inputs = (_unit_rows(part) for part in seen)
    mean = errors.T @ inputs / len(errors)  # (C, D + 1)
    start = _argmin(-((errors @ mean) * inputs).sum(1))
    return farthest_first(start, count, lambda row: (errors @ errors[row]) * (inputs @ inputs[row]))


# by clusters -------------------------------------------------------------------------------------------------------


@register_selection("k_means", options=("NUMBER",))
def k_means(features: Tensor, count: int, generator: torch.Generator, option: int = CLUSTERS) -> Tensor:
    """The sample nearest to the centre of each of so many clusters (10), then the second nearest of each, and on.

    Larger clusters come first in each round, so that a cluster has floor(count / clusters) samples or one more, or all.
    """
    rows = _unit_rows(features)
    clusters, cosines = _clusters(rows, option, generator)
    clusters.sort(key=lambda members: (-len(members), members[0]))
    queues = [_ordered(members, -cosines[members]) for members in clusters]
    rounds = max(map(len, queues))
    order = [queue[place] for place in range(rounds) for queue in queues if place < len(queue)]
    return torch.tensor(order[:count], dtype=torch.int64)


@register_selection("cluster_complexity", options=("easy", "hard", "random"))
def cluster_complexity(features: Tensor, count: int, generator: torch.Generator, option: str = "easy") -> Tensor:
    """More samples of clusters that are wide and far from the others; in a cluster the ``easy`` ones near the centre.

    ``hard``: the ones far from the centre, as in the source, which keeps a large share of much data; for few
    exemplars a class typical ones are safer. ``random``: drawn.

    Source:
        Abbas et al. 2024, density-based pruning of web-scale data, with the sub-clusters of a class (ten) as clusters.
        Complexity d_j = d_intra,j d_inter,j; shares softmax(d / 0.5); see ``allocation``. Departure: instead of
        rounding the allocation of one count, samples are taken one by one from the cluster that lacks most of its
        allocation at that count, so that the sum is right and prefixes nest.
    """
    rows = _unit_rows(features)
    clusters, cosines = _clusters(rows, CLUSTERS, generator)
    shares = _softmax(complexities(rows, clusters).round(10) / 0.5)
    ranked = sorted(range(len(clusters)), key=lambda j: (-shares[j], clusters[j][0]))
    clusters, shares = [clusters[j] for j in ranked], shares[ranked]
    sign = {"easy": -1.0, "hard": 1.0}
    keys = torch.rand(len(rows), generator=generator, dtype=torch.float64).numpy()
    queues = [_ordered(own, sign[option] * cosines[own] if option in sign else keys[own]) for own in clusters]
    sizes = np.array([len(own) for own in clusters])
    counts = np.arange(1, min(count, len(rows)) + 1)
    taken, order = np.zeros(len(sizes), dtype=int), []
    for wanted in allocation(shares, sizes, counts):
        j = int((wanted - taken >= (wanted - taken).max() - 1e-9).argmax())
        order.append(queues[j][taken[j]])
        taken[j] += 1
    return torch.tensor(order, dtype=torch.int64)


def allocation(shares: Array, sizes: Array, counts: Array, lower: float = 1.0) -> Array:
    """Samples of each cluster: the x nearest to shares * count with sum(x) = count, lower <= x <= sizes.

    Args:
        shares: (k,), of sum one.
        sizes: (k,) samples there are.
        counts: (n,) samples wanted, each at most the sum of the sizes.
        lower: Least number of each cluster; less where there are not as many.

    Returns:
        (n, k), not rounded; each column grows with the count.

    Source:
        Abbas et al. 2024: x = clip(shares * count + lambda, lower, sizes), lambda by bisection.

    >>> allocation(np.array([0.5, 0.3, 0.2]), np.array([5, 50, 50]), np.array([40])).round(6).tolist()
    [[5.0, 19.5, 15.5]]
    """
    counts = counts[:, None].astype(float)
    least = np.minimum(np.minimum(lower, counts / len(sizes)), sizes)
    target = shares * counts
    low, high = -counts - sizes.max(), counts + sizes.max()  # all at their least; all at their most
    for _ in range(100):
        shift = (low + high) / 2
        few = np.clip(target + shift, least, sizes).sum(1, keepdims=True) < counts
        low, high = np.where(few, shift, low), np.where(few, high, shift)
    return np.asarray(np.clip(target + high, least, sizes))


def complexities(rows: Array, clusters: Sequence[Array]) -> Array:
    """d_j: mean cosine distance of the members to their centre, times that of the centre to the 20 nearest others.

    Args:
        rows: (N, D) of unit length.
        clusters: Row numbers of each.

    Returns:
        (k,). A cluster of one sample has the mean of the others; where there is no other cluster, all are 0.
    """
    centres = np.stack([_unit(rows[members].sum(0)) for members in clusters])
    if len(clusters) == 1:
        return np.zeros(1)
    intra = np.array([1 - (rows[members] @ centre).mean() for members, centre in zip(clusters, centres, strict=True)])
    apart = np.sort(1 - centres @ centres.T + np.diag(np.full(len(centres), np.inf)), axis=1)[:, : len(centres) - 1]
    found: Array = intra * apart[:, :20].mean(1)
    tiny = np.array([len(members) < 2 for members in clusters])
    found[tiny] = found[~tiny].mean() if not tiny.all() else 0.0
    return found


def _clusters(rows: Array, count: int, generator: torch.Generator) -> tuple[list[Array], Array]:
    """Spherical k-means of unit rows: members of each cluster that has any, and each row's cosine with its centre.

    Starts by k-means++ (Arthur and Vassilvitskii 2007); ends where no row changes its cluster, or after 100 rounds.
    """
    draws = torch.rand(min(count, len(rows)), generator=generator, dtype=torch.float64).numpy()
    centres = rows[[int(draws[0] * len(rows))]]
    while len(centres) < len(draws):
        weights = np.clip(1 - (rows @ centres.T).max(1), 0, None)  # half the squared distance
        weights[weights < 1e-9] = 0
        if not weights.any():  # fewer distinct rows than clusters
            break
        reached = weights.cumsum() / weights.sum()
        centres = np.concatenate([centres, rows[[int((reached > draws[len(centres)]).argmax())]]])
    own = np.full(len(rows), -1)
    for _ in range(100):
        cosines = rows @ centres.T
        now = (cosines >= cosines.max(1, keepdims=True) - ROUNDING).argmax(1)
        if (now == own).all():
            break
        own = now
        for j in np.unique(own):
            centres[j] = _unit(rows[own == j].sum(0))
    cosines = rows @ centres.T
    return [np.flatnonzero(own == j) for j in np.unique(own)], cosines[np.arange(len(rows)), own]


def _ordered(members: Array, keys: Array) -> list[int]:
    """Members by key, lowest first; keys that differ by rounding alone are tied, and go by row."""
    return [int(members[place]) for place in np.argsort(keys.round(10), kind="stable")]


def _unit_rows(features: Tensor) -> Array:
    """(N, D) in double precision."""
    return _unit(_checked(features).detach().cpu().numpy())


def _unit(rows: Array) -> Array:
    """Rows scaled to unit length; zero stays zero."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1))


def _softmax(values: Array) -> Array:
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum())


def class_means(features: Tensor, slots: Tensor, num_classes: int) -> Tensor:
    """Unit mean of the unit features of each slot: (N, D), (N,) to (C, D).

    A slot without samples gets a row of NaN, which is never the nearest.
    """
    features = unit(features)
    sums = torch.zeros(num_classes, features.shape[1], dtype=features.dtype, device=features.device)
    sums.index_add_(0, slots, features)
    counts = torch.bincount(slots, minlength=num_classes).to(features).unsqueeze(1)
    return F.normalize(sums / counts, dim=1)
