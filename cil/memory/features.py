"""Memories of features: stored vectors, and the mean and spread of a class.

They are of use while the network below does not change.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cil.data import Samples
from cil.errors import ConfigError, ShapeError, StateError, nearest
from cil.memory.exemplars import ExemplarMemory

DTYPES = {32: torch.float32, 16: torch.float16, 8: torch.int8}  # by bits
SPREADS = ("none", "radius", "diagonal", "low_rank", "tied", "full")
SHAPE = (1, 1, 1)  # shape of the image of a sample that is a feature


def feature_samples(extras: Mapping[str, Tensor], slots: Tensor) -> Samples:
    """Samples without pixels, for phases that train on features: they are reached as ``batch.extras["features"]``.

    Args:
        extras: ``features`` (N, D), and further data by row.
        slots: (N,).
    """
    pixels = torch.zeros(len(slots), *SHAPE, dtype=torch.uint8)
    plain = Samples.from_arrays(pixels, slots.cpu())
    return Samples(plain.parts[0][0], plain.slots, extras={name: values.cpu() for name, values in extras.items()})


class _NoPixels:
    """The codec of samples without pixels."""

    fixed = True
    lossless = True

    def stored_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return (0, 0, 0)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return torch.empty(0, dtype=torch.uint8), torch.zeros(len(pixels), dtype=torch.int32)

    def decode(self, data: Tensor, sizes: Tensor, shape: tuple[int, int, int]) -> Tensor:
        return torch.zeros(len(sizes), *shape, dtype=torch.uint8)


class FeatureMemory(ExemplarMemory):
    """An exemplar memory that holds feature vectors in place of images; charged as ``features`` and ``labels``.

    A vector costs D * bits / 8 bytes, with 8 bits four more for its scale: values are then whole multiples of a 127th
    of the vector's largest one. Under the survey's convention, which knows no features, it costs the same, and labels
    are free. ``budget.exemplars`` counts vectors.

    Args:
        dim: D.
        bits: 32 (float32), 16 (float16) or 8 (int8).
        selection: A rule that needs nothing, or features.

    Raises:
        ConfigError: for other bits, or a rule that needs more.
    """

    def __init__(self, dim: int, bits: int = 32, selection: str = "herding") -> None:
        if bits not in DTYPES:
            raise ConfigError(f"strategy.bits is {bits}; allowed: {', '.join(map(str, DTYPES))}")
        self.dim, self.bits = dim, bits
        kinds = {"features": "features"} | ({"scales": "features"} if bits == 8 else {})
        super().__init__(_NoPixels(), selection, kinds, dim * bits // 8 + (4 if bits == 8 else 0))
        if self.select.needs not in ("nothing", "features"):
            raise ConfigError(
                f"strategy.selection is '{selection}', which needs {self.select.needs}; where features are stored, "
                f"choose a rule that needs features alone, as herding does"
            )

    def packed(self, features: Tensor, slots: Tensor) -> Samples:
        """Features (N, D) in the form that is stored: the input of ``rebuild`` and ``add``."""
        features = features.detach().float().cpu()
        if self.bits == 8:
            scales = features.abs().amax(1) / 127  # (N,)
            whole = (features / torch.where(scales > 0, scales, 1.0)[:, None]).round()
            return feature_samples({"features": whole.to(torch.int8), "scales": scales}, slots)
        limits = torch.finfo(DTYPES[self.bits])
        return feature_samples({"features": features.clamp(limits.min, limits.max).to(DTYPES[self.bits])}, slots)

    def unpacked(self, samples: Samples) -> Tensor:
        """Features (N, D) float32 of packed samples."""
        values = samples.extras["features"].float()
        return values * samples.extras["scales"][:, None] if self.bits == 8 else values

    def features(self) -> Tensor:
        """(M, D) float32, class by class, best first; beside them stand ``slots``."""
        return self.unpacked(self.samples()) if len(self) else torch.empty(0, self.dim)

    # charged and saved ----------------------------------------------------------------------------------------------

    def item_bytes(self, shape: tuple[int, int, int], num_classes: int, convention: str = "exact") -> int:
        """Bytes of one vector, and under ``exact`` its label, for images of any shape."""
        return self.extra_bytes if convention == "survey" else super().item_bytes(shape, num_classes, convention)

    def item_kinds(self, shape: tuple[int, int, int], num_classes: int) -> dict[str, int]:
        return {kind: size for kind, size in super().item_kinds(shape, num_classes).items() if size}

    def survey_bytes(self) -> int:
        return len(self) * self.extra_bytes

    @property
    def tensor_names(self) -> set[str]:
        return super().tensor_names - {"images"}

    def tensors(self, num_classes: int) -> dict[str, tuple[Tensor, str]]:
        return {name: held for name, held in super().tensors(num_classes).items() if name != "images"}

    def load(self, tensors: Mapping[str, Tensor], shape: tuple[int, int, int]) -> None:
        super().load(tensors, SHAPE)
        expected = {"features": ((self.dim,), DTYPES[self.bits]), "scales": ((), torch.float32)}
        for name, values in self._extras.items():
            size, dtype = expected[name]
            if values.shape[1:] != size or values.dtype != dtype:
                raise StateError(
                    f"feature memory: {name} are {values.dtype} {tuple(values.shape)}, not {dtype} (N, D) with D = "
                    f"{self.dim}"
                )


class Prototypes(nn.Module):
    """Mean and spread of the features of each class, to keep as ``prototypes``; grown with the classes.

    Bytes of a class: 4 D for its mean and 8 for its count, and for its covariance 4 D (``diagonal``), 4 (r D + 1)
    (``low_rank``) or 2 D (D + 1) (``full``: the lower triangle). What all classes share is there once: 4 bytes of a
    ``radius``, 2 D (D + 1) of a ``tied`` covariance. Variances are divided by N, so that
    they are known of a single image; the codes of SLCA, MOS, RAPF and FeCAM divide by N - 1.

    Args:
        dim: D.
        spread: ``none``; ``radius``: one variance for all dimensions and classes, the mean within classes;
            ``diagonal``; ``low_rank``: U U' + s I, which keeps the r largest variances and the sum of all; ``tied``:
            one covariance, that within classes; ``full``.
        rank: r of ``low_rank``; below D.

    Raises:
        ConfigError: for another spread or rank.

    Source:
        The radius is that of Zhu et al. 2021 (PASS), pooled over samples and updated in every experience, not in the
        first alone. ``low_rank``: Tipping and Bishop 1999, equation 7, the maximum of the likelihood.
    """

    means: Tensor  # (C, D)
    counts: Tensor  # (C,) int64
    spreads: Tensor  # () | (C, D) | (C, r D + 1) | (D (D + 1) / 2,) | (C, D (D + 1) / 2); variances

    def __init__(self, dim: int, spread: str = "diagonal", rank: int = 1) -> None:
        super().__init__()
        if spread not in SPREADS:
            raise ConfigError(f"strategy.spread is '{spread}'; {nearest(spread, SPREADS)}")
        if not 0 < rank < max(dim, 2):
            raise ConfigError(f"strategy.rank is {rank}; it must be 1 or more, and below the {dim} features")
        self.dim, self.spread, self.rank = dim, spread, rank
        self.register_buffer("means", torch.zeros(0, dim))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))
        triangle = dim * (dim + 1) // 2
        shapes = {
            "radius": (),
            "tied": (triangle,),
            "diagonal": (0, dim),
            "low_rank": (0, rank * dim + 1),
            "full": (0, triangle),
        }
        if spread != "none":
            self.register_buffer("spreads", torch.zeros(shapes[spread]))

    def grow(self, count: int) -> None:
        """Make room for ``count`` more classes."""
        for name, held in list(self.named_buffers()):
            if name != "spreads" or self.spread not in ("radius", "tied"):
                setattr(self, name, torch.cat([held, held.new_zeros(count, *held.shape[1:])]))

    @torch.no_grad()
    def update(self, features: Tensor, slots: Tensor) -> None:
        """Add features (N, D) of slots (N,); statistics of a known class are merged.

        Raises:
            ShapeError: for features of another shape.

        Source: Chan, Golub, LeVeque 1979, for two sets of samples.
        """
        if features.ndim != 2 or features.shape[1] != self.dim or len(features) != len(slots):
            raise ShapeError(f"features {tuple(features.shape)} of {len(slots)} slots; they must be (N, {self.dim})")
        features, slots = features.to(self.means.device).double(), slots.to(self.means.device)
        for slot in slots.unique().tolist():
            rows = features[slots == slot]
            known, new = int(self.counts[slot]), len(rows)
            share = new / (known + new)
            mean = rows.mean(0)
            apart = mean - self.means[slot]
            self._widen(slot, rows - mean, apart, known, share)
            self.means[slot] += share * apart
            self.counts[slot] += new

    def _widen(self, slot: int, centred: Tensor, apart: Tensor, known: int, share: float) -> None:
        """Merge the spread: within the old samples, within the new ones, and between their means."""
        if self.spread == "radius":
            total = int(self.counts.sum())
            within = centred.square().sum() / self.dim
            between = apart.square().mean() * known * share
            self.spreads.copy_((self.spreads * total + within + between) / (total + len(centred)))
        elif self.spread == "tied":
            total = int(self.counts.sum())
            scatter = self._triangle(centred.T @ centred + known * share * apart.outer(apart))
            self.spreads.copy_((self.spreads.double() * total + scatter) / (total + len(centred)))
        elif self.spread == "low_rank":
            within, between = centred.T @ centred / len(centred), apart.outer(apart).double()
            old = self.covariance(slot).double() if known else torch.zeros_like(within)
            self.spreads[slot] = self._leading((1 - share) * old + share * within + share * (1 - share) * between)
        elif self.spread != "none":
            if self.spread == "diagonal":
                within, between = centred.square().mean(0), apart.square()
            else:
                within, between = self._triangle(centred.T @ centred / len(centred)), self._triangle(apart.outer(apart))
            old = self.spreads[slot].double()
            self.spreads[slot] = (1 - share) * old + share * within + share * (1 - share) * between

    @torch.no_grad()
    def draw(self, slots: Tensor, generator: torch.Generator, jitter: float = 0.0) -> Tensor:
        """One Gaussian sample for each of slots (N,): (N, D); the mean itself without a spread.

        Args:
            slots: Slots of classes that were seen.
            generator: On the CPU.
            jitter: Added to all variances of matrices (``low_rank``, ``tied``, ``full``).
        """
        noise = torch.randn(len(slots), self.dim, generator=generator).to(self.means.device)
        slots = slots.to(self.means.device)
        if self.spread == "none":
            noise = torch.zeros_like(noise)
        elif self.spread == "radius":
            noise = noise * self.spreads.sqrt()
        elif self.spread == "diagonal":
            noise = noise * self.spreads[slots].sqrt()
        else:
            for slot in slots.unique().tolist():
                noise[slots == slot] = noise[slots == slot] @ self.root(slot, jitter)
        return self.means[slots] + noise

    def covariance(self, slot: int) -> Tensor:
        """(D, D) covariance of a class; all zero for ``none``."""
        if self.spread in ("full", "tied"):
            lower = self.means.new_zeros(self.dim, self.dim)
            row, column = torch.tril_indices(self.dim, self.dim, device=lower.device)
            lower[row, column] = self.spreads[slot] if self.spread == "full" else self.spreads
            return lower + lower.tril(-1).T
        if self.spread == "low_rank":
            factor = self.spreads[slot, 1:].view(self.dim, self.rank)
            return factor @ factor.T + self.spreads[slot, 0] * torch.eye(self.dim).to(factor)
        if self.spread == "none":
            return self.means.new_zeros(self.dim, self.dim)
        return torch.diag((self.spreads if self.spread == "radius" else self.spreads[slot]).expand(self.dim))

    def root(self, slot: int, jitter: float = 0.0) -> Tensor:
        """(D, D) symmetric root of a covariance, whose axes may have any sign: noise times it has that covariance."""
        variances, axes = torch.linalg.eigh(self.covariance(slot).double())
        scales = (variances.clamp(min=0) + jitter).sqrt()
        root: Tensor = ((axes * scales) @ axes.T).to(self.means)
        return root

    def pooled_covariance(self) -> Tensor:
        """(D, D) float64 mean of the covariances of all classes, weighted by their counts; zero without samples."""
        shares = self.counts.double() / self.counts.sum().clamp(min=1)
        total = torch.zeros(self.dim, self.dim, dtype=torch.float64, device=self.means.device)
        for slot in range(len(self.counts)):
            total += shares[slot] * self.covariance(slot).double()
        return total

    def _leading(self, matrix: Tensor) -> Tensor:
        """(r D + 1,) of a covariance: s, the mean of the variances that are left out, then U."""
        variances, axes = torch.linalg.eigh(matrix)
        left, kept = variances[: -self.rank].clamp(min=0).mean(), variances[-self.rank :]
        factor = axes[:, -self.rank :] * (kept - left).clamp(min=0).sqrt()
        return torch.cat([left[None], factor.flatten()])

    def _triangle(self, matrix: Tensor) -> Tensor:
        row, column = torch.tril_indices(self.dim, self.dim, device=matrix.device)
        return matrix[row, column]
