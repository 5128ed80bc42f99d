"""FeCAM: a frozen backbone; each class is a Gaussian of its own, and the nearest in Mahalanobis distance answers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.errors import ConfigError, TrainingError
from cil.memory import Budget, Prototypes, State, tensor_bytes
from cil.models import NetFactory
from cil.models.base import in_full_precision
from cil.strategies.base import check
from cil.strategies.parts.frozen_backbone import FrozenBackbone, float64_features, to_float64
from cil.strategies.registry import register
from cil.streams import Experience, Signature

COVARIANCES = ("full", "low_rank", "diagonal", "tied")


@register("fecam")
class FeCAM(FrozenBackbone):
    """z_c = -(phi - mu_c)' S_c^-1 (phi - mu_c), phi and mu_c of unit length, S_c the shrunk correlation of class c.

    What spends bytes is ``covariance``, of ``low_rank`` its ``rank``. A class of one image, or of equal ones, takes the
    mean covariance of all classes.

    Args:
        covariance: ``full``: one a class. ``low_rank``: its ``rank`` largest variances and the mean of the others.
            ``diagonal``: variances alone. ``tied``: one covariance for all classes.
        rank: r of ``low_rank``.
        diagonal_shrinkage, other_shrinkage: gamma_1 > 0 and gamma_2 of equation 1.
        correlation: Whether the shrunk covariance is scaled to a unit diagonal (equation 2); what is left of a diagonal
            one would be the nearest class mean.
        tukey: beta in (0, 1]: features become phi^beta (equation 3), which needs features of 0 or more; ``auto``: 0.5
            where those of the backbone end in a ReLU; null: they stay as they are.
        unit: Whether features are scaled to unit length before means and covariances are taken, as the authors do for
            transformers.
        train_first, first_head: See ``FrozenBackbone``.

    Raises:
        ConfigError: for a value out of range.

    Source:
        Goswami, Liu, Twardowski, van de Weijer. "FeCAM: exploiting the heterogeneity of class distributions in
        exemplar-free continual learning", NeurIPS 2023, arXiv:2309.14062, section 3. Transformers in the authors' code:
        ``unit=true other_shrinkage=0``. Departures: ``low_rank``; for convolutional networks that code shrinks a
        covariance twice, and takes the power of the mean of features where here it is the mean of their powers.
    """

    answers_by = "discriminant"
    gaussians: Prototypes
    factors: Tensor | None  # (C, D, D), or (1, D, D): S^-1 = F' F
    centres: Tensor | None  # (C, D)

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        covariance: str = "full",
        rank: int = 10,
        diagonal_shrinkage: float = 1.0,
        other_shrinkage: float = 1.0,
        correlation: bool = True,
        tukey: float | str | None = "auto",
        unit: bool = False,
        train_first: bool | str = "auto",
        first_head: str = "cosine",
    ) -> None:
        super().__init__(make_net, budget, train_first, first_head)
        check.one_of(COVARIANCES, "fecam", covariance=covariance)
        check.at_least(1, "fecam", rank=rank)
        check.above(0, "fecam", diagonal_shrinkage=diagonal_shrinkage)
        check.at_least(0, "fecam", other_shrinkage=other_shrinkage)
        if tukey == "auto":
            tukey = 0.5 if getattr(self.net.backbone, "signed", None) is False else None
        check.above(0, "fecam", tukey=tukey)
        check.between(0, 1, "fecam", tukey=tukey)
        if covariance == "diagonal" and correlation:
            raise ConfigError(
                "strategy.covariance of fecam is 'diagonal', which strategy.correlation=true turns into ones: set it "
                "to false, or take simplecil, which is what remains"
            )
        self.shrinkage, self.correlation = (diagonal_shrinkage, other_shrinkage), correlation
        self.tukey, self.unit = (None if tukey is None else float(tukey)), unit
        gaussians = Prototypes(self.net.feature_dim, covariance, rank if covariance == "low_rank" else 1)
        self.keep("gaussians", gaussians.to(self.net.head.weight.device), kind="statistics")
        self.keep("factors", None, kind="temporary")  # both follow from the statistics
        self.keep("centres", None, kind="temporary")

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        self.gaussians.grow(len(signature.new_slots))

    def side_bytes(self) -> int:
        """Statistics go by ``covariance`` and ``rank``."""
        return sum(map(tensor_bytes, self.gaussians.state_dict().values()))

    def after_experience(self, experience: Experience) -> None:
        self.gaussians.update(self._transformed(float64_features(self, experience.train)), experience.train.slots)

    def load_state(self, state: State) -> None:
        super().load_state(state)
        known = self.gaussians.counts.tolist()
        shared = self.gaussians.pooled_covariance()
        slots = [0] if self.gaussians.spread == "tied" else range(len(known))
        whitening = [self._whitening(to_float64(self.gaussians.covariance(slot)), shared) for slot in slots if known]
        self.factors = torch.stack(whitening).to(self.gaussians.means) if known else None
        self.centres = self._scaled(to_float64(self.gaussians.means)).to(self.gaussians.means)

    def predict(self, images: Tensor) -> Tensor:
        """Minus the squared distance to each class; to one without data minus infinity: (N, ...) to (N, C)."""
        assert self.factors is not None and self.centres is not None
        features = self._scaled(self._transformed(to_float64(self.net(images).features))).to(self.centres)
        with in_full_precision(features):
            scores = [  # equation 4, class by class: (N, D, D) is never built
                -self._whitened(features - centre, slot).square().sum(1) for slot, centre in enumerate(self.centres)
            ]
        return torch.stack(scores, dim=1).masked_fill(self.gaussians.counts == 0, -torch.inf)

    def _whitened(self, differences: Tensor, slot: int) -> Tensor:
        """F d of each row d; F of a diagonal covariance is held as its diagonal."""
        assert self.factors is not None
        factor = self.factors[slot % len(self.factors)]
        return differences * factor if factor.ndim == 1 else differences @ factor.T

    def _transformed(self, features: Tensor) -> Tensor:
        """Features as means and covariances are taken of them."""
        if self.tukey is not None:
            if bool((features < 0).any()):
                raise TrainingError("fecam: features below 0 have no power; set strategy.tukey to null")
            features = features**self.tukey  # equation 3
        return F.normalize(features) if self.unit else features

    def _scaled(self, features: Tensor) -> Tensor:
        """Of unit length, where covariances have no scale of their own, or that of unit features."""
        return F.normalize(features) if self.correlation or self.unit else features

    def _whitening(self, covariance: Tensor, shared: Tensor) -> Tensor:
        """F with F' F = S^-1 of a class: (D, D), or (D,) of a diagonal one."""
        if not bool(covariance.diagonal().any()):
            covariance = shared.to(covariance)
        if not bool(covariance.diagonal().any()):
            shrunk = torch.eye(len(covariance)).to(covariance)
        else:
            shrunk = shrink(covariance, *self.shrinkage)
        if self.gaussians.spread == "diagonal":
            return 1 / shrunk.diagonal().sqrt()
        return inverse_root(correlation_of(shrunk) if self.correlation else shrunk)


def shrink(covariance: Tensor, diagonal: float, others: float) -> Tensor:
    """S + gamma_1 V_1 I + gamma_2 V_2 (1 - I), V_1 and V_2 the means on and off the diagonal (equation 1).

    >>> shrink(torch.tensor([[4.0, 2.0], [2.0, 4.0]]), 1.0, 1.0).tolist()
    [[8.0, 4.0], [4.0, 8.0]]
    """
    size, eye = len(covariance), torch.eye(len(covariance)).to(covariance)
    mean = covariance.diagonal().mean()
    rest = (covariance.sum() - covariance.diagonal().sum()) / max(1, size * (size - 1))
    return covariance + diagonal * mean * eye + others * rest * (1 - eye)


def correlation_of(covariance: Tensor) -> Tensor:
    """S(i, j) / sqrt(S(i, i) S(j, j)) (equation 2).

    >>> correlation_of(torch.tensor([[4.0, 3.0], [3.0, 9.0]])).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    scale = covariance.diagonal().sqrt()
    return covariance / (scale[:, None] * scale)


def inverse_root(matrix: Tensor) -> Tensor:
    """F with F' F the inverse of a symmetric matrix; of one that is not definite, of its positive part."""
    factor, broken = torch.linalg.cholesky_ex(matrix)
    if bool(broken):
        values, axes = torch.linalg.eigh(matrix)
        positive = values > values.max() * len(values) * torch.finfo(values.dtype).eps
        root: Tensor = torch.where(positive, values.clamp(min=1e-300).rsqrt(), 0.0)[:, None] * axes.T
    else:
        root = torch.linalg.solve_triangular(factor, torch.eye(len(matrix)).to(matrix), upper=False)
    return root
