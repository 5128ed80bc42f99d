"""Subspaces of what a layer has been given: an orthonormal basis that grows, or that of its complement; by task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.errors import ConfigError

DIRECTIONS = ("met", "published")  # of the first experience: those that reach epsilon, or one fewer
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class Subspace(nn.Module):
    """A subspace of R^d, to keep as ``statistics``: an orthonormal basis M of it, or N of its complement.

    While it has no more than d / 2 dimensions M is held, then N: floor(d / 2) columns are enough for either, and are
    there from the start, as bytes are known before training: 4 d floor(d / 2) bytes, and 8.
    """

    basis: Tensor  # (d, floor(d / 2)); columns from ``count`` on are 0
    count: Tensor  # () int64: columns of M; of N, below 0: -1 - columns

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("basis", torch.zeros(size, size // 2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @property
    def complement(self) -> bool:
        """True where N is held."""
        return int(self.count) < 0

    @property
    def dimension(self) -> int:
        count = int(self.count)
        return count if count >= 0 else len(self.basis) + 1 + count

    def outside(self, rows: Tensor) -> Tensor:
        """The part of rows (N, d) that lies outside: g - g M M', or g N N'."""
        within = rows @ self.basis.to(rows) @ self.basis.T.to(rows)
        return within if self.complement else rows - within

    @torch.no_grad()
    def extend(self, moments: Tensor, share: float, fewer: int = 0, least: int = 0) -> int:
        """Add the leading directions of inputs X, until so much of |X|^2 lies inside; returns how many.

        Args:
            moments: (d, d), X X': the eigenvalues are the squared singular values of X, and are not squared again.
            share: epsilon, in [0, 1].
            fewer: Leave out so many of them, the smallest, but for the first ``least``.

        Source: Saha, Garg, Roy, "Gradient projection memory", ICLR 2021, equations 8 and 9. Its code takes one
            direction less in the first experience: it counts those whose cumulative share is below epsilon.
        """
        moments = moments.cpu().double()
        total, outer = moments.trace(), self._coordinates()  # (d, m): of all that lies outside
        values, axes = torch.linalg.eigh(outer.T @ moments @ outer)
        values, axes = values.flip(0).clamp(min=0), axes.flip(1)
        inside = (total - values.sum() + F.pad(values.cumsum(0), (1, 0))) / total.clamp(min=1e-300)
        enough = (inside >= share - 1e-12).nonzero().flatten()
        taken = int(enough[0]) if len(enough) and total > 0 else 0 if total <= 0 else len(values)
        taken = max(taken - fewer, min(taken, least))
        if taken:
            self._hold(outer @ axes[:, :taken], outer @ axes[:, taken:])
        return taken

    def _coordinates(self) -> Tensor:
        """(d, m) orthonormal basis of all outside, float64 on the CPU."""
        held = self.basis.cpu().double()
        if self.complement:
            return held[:, : -1 - int(self.count)]
        return orthogonal_complement(held[:, : int(self.count)])

    def _hold(self, new: Tensor, rest: Tensor) -> None:
        """Take ``new`` directions in; ``rest`` is what is still outside."""
        size, limit = self.basis.shape
        if size - rest.shape[1] <= limit:
            found = torch.cat([self.basis.cpu().double()[:, : int(self.count)], new], dim=1)
            count = found.shape[1]
        else:
            found, count = rest, -1 - rest.shape[1]
        found = torch.linalg.qr(found).Q if found.shape[1] else found  # rounding does not add up
        self.basis.zero_()[:, : found.shape[1]] = found.to(self.basis)
        self.count.fill_(count)


def orthogonal_complement(basis: Tensor) -> Tensor:
    """(d, d - k) orthonormal basis of all that lies outside an orthonormal one (d, k)."""
    if not basis.shape[1]:
        return torch.eye(len(basis)).to(basis)
    whole: Tensor = torch.linalg.qr(basis, mode="complete").Q
    return whole[:, basis.shape[1] :]


class TaskSubspaces(nn.Module):
    """An orthonormal basis M of all inputs so far, and which of its columns each task needs; to keep as ``statistics``.

    Columns stay where they are, as later tasks refer to them: 4 d^2 bytes, d a task, and 8.
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


def layer_key(name: str) -> str:
    """A layer's name without dots, which names of modules in a dict may not have."""
    return name.replace(".", "/")


def freeze_unprojected(backbone: nn.Module) -> None:
    """Leave the weights of layers alone in training: of norms, biases and embeddings no subspace of inputs tells where
    to go."""
    projected = {id(layer.weight) for layer in weighted_layers(backbone).values()}
    for parameter in backbone.parameters():
        if id(parameter) not in projected:
            parameter.requires_grad_(False)


def norms_in_evaluation(backbone: nn.Module) -> None:
    """Put norms into evaluation mode, so that their statistics stay."""
    for layer in backbone.modules():
        if isinstance(layer, NORMS):
            layer.eval()


def weighted_layers(backbone: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Linear layers and plain convolutions of a network, by name.

    Not those of ``nn.MultiheadAttention``, which uses their weights without calling them: nobody sees their inputs.

    Raises:
        ConfigError: where it has none, or grouped ones.
    """
    unseen = {id(module.out_proj) for module in backbone.modules() if isinstance(module, nn.MultiheadAttention)}
    layers = ((name, layer) for name, layer in backbone.named_modules() if id(layer) not in unseen)
    found = {name: layer for name, layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)}
    grouped = [name for name, layer in found.items() if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    if not found or grouped:
        what = f"{grouped[0]} is a convolution in groups" if grouped else "it has no linear layer or convolution"
        raise ConfigError(f"gradients cannot be projected by input: {what}; set model.name")
    return found


@contextmanager
def input_moments(layers: Mapping[str, nn.Linear | nn.Conv2d]) -> Iterator[dict[str, Tensor]]:
    """Sums X X', (d, d) float64, of the inputs of each layer (of convolutions patches) in passes inside the block."""
    found: dict[str, Tensor] = {}

    def add(name: str, layer: Any, given: tuple[Tensor, ...]) -> None:
        rows = input_rows(layer, given[0].detach()).double()
        found[name] = found.get(name, 0.0) + rows.T @ rows

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(partial(add, name)).remove)
        yield found


def input_rows(layer: nn.Linear | nn.Conv2d, images: Tensor) -> Tensor:
    """Inputs of a layer as rows of its weight: (N, d), d = weight.numel() / outputs.

    >>> input_rows(nn.Conv2d(1, 4, 2), torch.arange(6.0).view(1, 1, 2, 3)).tolist()
    [[0.0, 1.0, 3.0, 4.0], [1.0, 2.0, 4.0, 5.0]]
    """
    if isinstance(layer, nn.Linear):
        return images.flatten(0, -2)
    around, mode = layer._reversed_padding_repeated_twice, layer.padding_mode  # of padding="same" too
    images = F.pad(images, around) if mode == "zeros" else F.pad(images, around, mode=mode)
    patches = F.unfold(images, layer.kernel_size, layer.dilation, 0, layer.stride)  # (N, d, places)
    return patches.transpose(1, 2).flatten(0, 1)
