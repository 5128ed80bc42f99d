"""Classifier heads that widen in place, and the alignment of their rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.errors import ShapeError


class Head(nn.Module):
    """A classifier that starts without outputs and grows.

    Attributes:
        weight: One row for each output.
    """

    __call__: Callable[..., Tensor]
    weight: nn.Parameter

    @property
    def in_features(self) -> int:
        """D, length of a feature."""
        return self.weight.shape[1]

    @property
    def num_classes(self) -> int:
        """C, columns of the logits."""
        return self.weight.shape[0]

    def grow(self, count: int) -> None:
        """Add ``count`` outputs in place; old rows stay bit for bit.

        New values are drawn on the CPU from torch's global generator, then moved to the head's device and dtype; on
        ``meta`` nothing is drawn. Parameters are replaced, so optimisers are made after growth.

        Raises:
            ShapeError: for a negative count, or features of no length.
        """
        raise NotImplementedError

    def _check(self, count: int) -> None:
        if count < 0 or self.in_features == 0:
            raise ShapeError(f"a head on {self.in_features} features cannot grow by {count} outputs")


class LinearHead(Head):
    """W phi + c.

    Args:
        in_features: D; 0 where branches come later (``grow_inputs``).

    Source: Survey's code: rows Kaiming-uniform with linear gain, U(-sqrt(3 / D), sqrt(3 / D)); biases 0.
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, in_features))
        self.bias = nn.Parameter(torch.empty(0))

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, D) to logits (N, C)."""
        return F.linear(features, self.weight, self.bias)

    def grow(self, count: int) -> None:
        self._check(count)
        rows, columns = self.weight.shape
        self.weight = _enlarge(self.weight, rows + count, columns, math.sqrt(3 / columns))
        bias = self.bias.new_zeros(rows + count)  # torch.cat imports sympy on the meta device
        bias[:rows] = self.bias.detach()
        self.bias = nn.Parameter(bias, self.bias.requires_grad)

    def grow_inputs(self, count: int) -> None:
        """See ``count`` more features: old rows x old columns stay, all else is drawn for the new total length.

        Source: Yan et al., DER, CVPR 2021, section 3.3, as in the survey's code.
        """
        rows, columns = self.weight.shape
        if count < 1:
            raise ShapeError(f"a head cannot see {count} more features")
        self.weight = _enlarge(self.weight, rows, columns + count, math.sqrt(3 / (columns + count)))


class CosineHead(Head):
    """scale * cos(w, phi), with a learnable scale.

    Args:
        proxies: K rows for each class; the similarity of a class is then the mean of its rows' similarities under
            their own softmax (local similarity classifier).

    Source: Hou et al., LUCIR, CVPR 2019, eq. 5; for K > 1 Douillard et al., PODNet, ECCV 2020, section 3.2. Rows U(-1 /
    sqrt(D), 1 / sqrt(D)), scale 1.
    """

    def __init__(self, in_features: int, proxies: int = 1) -> None:
        super().__init__()
        self.proxies = proxies
        self.weight = nn.Parameter(torch.empty(0, in_features))
        self.scale = nn.Parameter(torch.ones(()))

    @property
    def num_classes(self) -> int:
        return self.weight.shape[0] // self.proxies

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, D) to logits (N, C)."""
        return self.scale * self.similarities(features)

    def similarities(self, features: Tensor) -> Tensor:
        """Unscaled: features (N, D) to (N, C) in [-1, 1]."""
        cosines = F.linear(F.normalize(features), F.normalize(self.weight))
        if self.proxies == 1:
            return cosines
        groups = torch.unflatten(cosines, 1, (self.num_classes, self.proxies))  # (N, C, K)
        return (groups.softmax(2) * groups).sum(2)

    def grow(self, count: int) -> None:
        self._check(count)
        rows, columns = self.weight.shape
        self.weight = _enlarge(self.weight, rows + count * self.proxies, columns, 1 / math.sqrt(columns))


@torch.no_grad()
def _enlarge(old: nn.Parameter, rows: int, columns: int, bound: float) -> nn.Parameter:
    """(rows, columns) of U(-bound, bound) with ``old`` in its upper left corner."""
    if old.is_meta:
        new = old.new_empty(rows, columns)
    else:
        new = torch.empty(rows, columns, device="cpu").uniform_(-bound, bound).to(old)
    new[: old.shape[0], : old.shape[1]] = old
    return nn.Parameter(new, requires_grad=old.requires_grad)


@torch.no_grad()
def weight_align(weight: Tensor, old: int) -> float:
    """Scale the rows of new classes, in place, to the mean norm of the old ones.

    Args:
        weight: (C, D), one row for each class; rows ``old`` and up are new. Biases have no part in it.
        old: Number of old classes, 0 < old < C.

    Returns:
        gamma, the mean norm of the old rows over that of the new rows.

    Raises:
        ShapeError: if there are no old or no new rows.

    Source: Zhao et al., "Maintaining Discrimination and Fairness", CVPR 2020, eqs. 8 and 9.

    >>> weight = torch.tensor([[1.0], [3.0], [4.0], [6.0]])
    >>> round(weight_align(weight, old=2), 4), weight[2:, 0].tolist()
    (0.4, [1.600000023841858, 2.4000000953674316])
    """
    if weight.ndim != 2 or not 0 < old < len(weight):
        raise ShapeError(f"weights {tuple(weight.shape)} with {old} old rows: needs (C, D) and 0 < old < C")
    norms = weight.norm(dim=1)
    gamma = norms[:old].mean() / norms[old:].mean()
    weight[old:] *= gamma
    return float(gamma)
