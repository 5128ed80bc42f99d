"""Subspaces of a layer's inputs, one for each task, that share the columns of one orthonormal basis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cil.strategies.parts.subspace import orthogonal_complement


class TaskSubspaces(nn.Module):
    """An orthonormal basis M of all inputs so far, and which of its columns each task needs; to keep as ``statistics``.

    Columns stay where they are, as later tasks refer to them: 4 d^2 bytes, d a task, and 8.

    Args:
        size: d.
    """

    basis: Tensor  # (d, d), columns from ``count`` on are 0
    count: Tensor  # () int64
    members: Tensor  # (T, d) bool: columns of each task

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("basis", torch.zeros(size, size))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("members", torch.zeros(0, size, dtype=torch.bool))

    def grow(self) -> None:
        """Make room for another task, which has no columns yet."""
        self.members = torch.cat([self.members, self.members.new_zeros(1, self.members.shape[1])])

    def outside(self, rows: Tensor) -> Tensor:
        """The part of rows (N, d) that lies outside what all tasks need: g - g M M'."""
        basis = self.basis.to(rows)
        return rows - rows @ basis @ basis.T

    def shares(self, rows: Tensor) -> Tensor:
        """|g S_j S_j'| / |g| of each task j, for rows g (N, d): (T,)."""
        squares = (rows @ self.basis.to(rows)).square().sum(0)
        found: Tensor = (self.members.to(rows) @ squares).sqrt() / rows.norm().clamp(min=1e-12)
        return found

    def columns_of(self, tasks: Sequence[int], count: int) -> Tensor:
        """(count, d): a row a task, 1 where it needs a column; then rows of 0."""
        rows = self.basis.new_zeros(count, len(self.basis))
        rows[: len(tasks)] = self.members[list(tasks)].to(rows)
        return rows

    @torch.no_grad()
    def add(self, moments: Tensor, share: float) -> int:
        """Give the last task the fewest columns, old and new, that hold so much of |X|^2; returns how many are new.

        Args:
            moments: (d, d), X X' of its inputs X.
            share: epsilon, in [0, 1].
        """
        moments, known = moments.cpu().double(), int(self.count)
        held = self.basis.cpu().double()[:, :known]
        outer = orthogonal_complement(held)
        values, axes = torch.linalg.eigh(outer.T @ moments @ outer)
        squares = torch.cat([(held * (moments @ held)).sum(0), values.flip(0)]).clamp(min=0)
        order, total = squares.argsort(descending=True, stable=True), squares.sum()  # |X|^2, as float32 columns see it
        short = squares[order].cumsum(0) < (share - 1e-12) * total
        needed = int(short.sum()) + 1 if share * total > 0 else 0
        chosen = order[:needed]
        new = int((chosen >= known).sum())  # the leading ones, as they are in order
        self.basis[:, known : known + new] = (outer @ axes.flip(1)[:, :new]).to(self.basis)
        self.count += new
        self.members[-1, chosen[chosen < known]] = True
        self.members[-1, known : known + new] = True
        return new
