"""Ridge regression from running sums, or one batch after the other: the same classifier in any order and grouping."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.strategies.parts.frozen_backbone import to_float64

Batches = Iterable[tuple[Tensor, Tensor]]
TYPES = {"float32": torch.float32, "float64": torch.float64}


class RidgeSums(nn.Module):
    """W = (G + gamma I)^-1 Q of the sums G = sum h h' and Q = sum h y', to keep as ``statistics``.

    Bytes: 2 E (E + 1) of the upper triangle of G and 4 E C of Q, twice that in float64.

    Args:
        size: E, length of h.
        strength: gamma > 0.
    """

    gram: Tensor  # (E (E + 1) / 2,)
    targets: Tensor  # (E, C)

    def __init__(self, size: int, strength: float, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.size, self.strength = size, strength
        self.register_buffer("gram", torch.zeros(size * (size + 1) // 2, dtype=dtype))
        self.register_buffer("targets", torch.zeros(size, 0, dtype=dtype))

    def grow(self, count: int) -> None:
        """Make room for ``count`` more classes."""
        self.targets = F.pad(self.targets, (0, count))

    def add(self, batches: Batches) -> None:
        """Add batches of images: h (N, E) and their one-hot targets (N, C), float64."""
        gram = targets = None
        for h, y in batches:
            if gram is None or targets is None:
                gram, targets = h.T @ h, h.T @ y
            else:
                gram.addmm_(h.T, h)
                targets.addmm_(h.T, y)
        if gram is not None and targets is not None:
            self.gram.add_(upper_triangle(gram).to(self.gram))
            self.targets.add_(targets.to(self.targets))

    def weights(self) -> Tensor:
        """W, (E, C) float64; a class without images has a column of zeros."""
        system = from_upper_triangle(to_float64(self.gram), self.size)
        system.diagonal().add_(self.strength)
        return solve(system, to_float64(self.targets))


class RecursiveRidge(nn.Module):
    """The same W by recursion (recursive least squares), with R = (G + gamma I)^-1, to keep as ``statistics``.

    Bytes: 4 E E of R and 4 E C of W, twice that in float64.

    Args:
        size: E, length of h.
        strength: gamma > 0.

    Source: Zhuang et al., ACIL, NeurIPS 2022, theorem 1.
    """

    inverse: Tensor  # (E, E), R
    solution: Tensor  # (E, C), W

    def __init__(self, size: int, strength: float, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.register_buffer("inverse", torch.eye(size, dtype=dtype) / strength)  # R_0 = I / gamma
        self.register_buffer("solution", torch.zeros(size, 0, dtype=dtype))

    def grow(self, count: int) -> None:
        """Make room for ``count`` more classes."""
        self.solution = F.pad(self.solution, (0, count))

    def add(self, batches: Batches) -> None:
        """Add batches of images: h (N, E) and their one-hot targets (N, C), float64."""
        r, w = to_float64(self.inverse), to_float64(self.solution)
        for h, y in batches:
            seen = h @ r  # X R, (N, E)
            inner = seen @ h.T + torch.eye(len(h)).to(h)  # I + X R X'
            r = r - seen.T @ solve(inner, seen)  # R <- R - R X' (I + X R X')^-1 X R
            w = w + r @ (h.T @ (y - h @ w))  # W <- W + R X' (Y - X W)
        self.inverse.copy_((r + r.T) / 2)
        self.solution.copy_(w)

    def weights(self) -> Tensor:
        """W, (E, C) float64; a class without images has a column of zeros."""
        return to_float64(self.solution)


RIDGES: dict[str, type[RidgeSums | RecursiveRidge]] = {"sums": RidgeSums, "recursion": RecursiveRidge}


def solve(system: Tensor, right: Tensor) -> Tensor:
    """X of system X = right, by Cholesky; by LU where rounding has cost the system its definiteness."""
    factor, broken = torch.linalg.cholesky_ex(system)
    return torch.linalg.solve(system, right) if bool(broken) else torch.cholesky_solve(right, factor)


def upper_triangle(matrix: Tensor) -> Tensor:
    """(E, E) to (E (E + 1) / 2,), row by row."""
    return matrix[torch.ones(matrix.shape, dtype=torch.bool, device=matrix.device).triu()]


def from_upper_triangle(values: Tensor, size: int) -> Tensor:
    """The symmetric (E, E) matrix of its upper triangle.

    >>> from_upper_triangle(torch.tensor([1.0, 2.0, 3.0]), 2).tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    mask = torch.ones(size, size, dtype=torch.bool, device=values.device).triu()
    upper = values.new_zeros(size, size).masked_scatter_(mask, values)
    return upper + upper.triu(1).T
