"""RanPAC: features of a frozen backbone through a fixed random layer, and a ridge classifier from running sums."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.errors import ConfigError
from cil.memory import Budget, State, tensor_bytes
from cil.models import NetFactory, freeze
from cil.models.tuners import TUNERS, Tuner, make_tuner
from cil.strategies.base import check
from cil.strategies.parts.frozen_backbone import FrozenBackbone, float64_features, for_predict, to_float64
from cil.strategies.parts.frozen_heads import FeaturesAndHead
from cil.strategies.parts.ridge import TYPES, from_upper_triangle, solve, upper_triangle
from cil.strategies.registry import register
from cil.streams import Experience, Signature

GRID = tuple(10.0**power for power in range(-8, 9))
ROWS = 1000  # projected at once
HEAVY = 100  # times the network's bytes: from there on a warning about G is given


@register("ranpac")
class RanPAC(FrozenBackbone):
    """h = relu(W_r' phi), W_r ~ N(0, 1); G = sum h h', Q = sum h y'; scores h' (G + lambda I)^-1 Q.

    Args:
        size: M, length of h.
        ridge: lambda, or ``auto``: the one of 10^-8 ... 10^8 with the least squared error on the last 20 % of the
            shuffled images of the experience, fitted on the others.
        projection: ``seed``: W_r is drawn again from a carried seed of eight bytes. ``stored``: it is carried itself.
        gram: How G is carried: ``full``, or ``packed``: its upper triangle.
        statistics: Type of the carried sums, ``float32`` or ``float64``.
        tuner: What the first experience trains beside a frozen transformer (phase 1): ``adapter``, ``scale_shift``
            or ``none``; see ``cil.models.tuners``.
        rank: r of the adapters.
        train_first, first_head: See ``FrozenBackbone``; the head also of phase 1.

    What spends bytes is ``size``.

    Source:
        McDonnell, Gong, Parvaneh, Abbasnejad, van den Hengel. NeurIPS 2023, arXiv:2307.02251, Algorithm 1.
        Departures: without ``tuner`` there is no phase 1; a lambda chosen by ``auto`` is not below the rounding error
        of the carried G, sqrt(M) eps max G.
    """

    toy = {"size": 64}
    fits = "size"

    seed: Tensor | None  # (), int64
    layer: Tensor  # (D, M), W_r
    gram: Tensor  # (M, M), or (M (M + 1) / 2,)
    targets: Tensor  # (M, C), Q
    ridge: Tensor | None  # ()
    tuner: Tuner | None
    head: Tensor  # (M, C)

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        size: int = 10_000,
        ridge: float | str = "auto",
        projection: str = "seed",
        gram: str = "full",
        statistics: str = "float32",
        tuner: str = "none",
        rank: int = 64,
        train_first: bool | str = "auto",
        first_head: str = "cosine",
    ) -> None:
        check.one_of(TUNERS, "ranpac", tuner=tuner)
        check.at_least(1, "ranpac", rank=rank)
        if tuner != "none" and train_first is True:
            raise ConfigError(
                f"strategy.tuner of ranpac is '{tuner}', which leaves the backbone as it is, and strategy.train_first "
                f"is true: set one of them to none or auto"
            )
        super().__init__(make_net, budget, train_first if tuner == "none" else False, first_head)
        self.keep("tuner", None, kind="temporary")
        if tuner != "none":
            self.keep("tuner", make_tuner(tuner, self.net.backbone, rank, "ranpac"), kind="parameters")
            self.trained = True
        check.one_of(("seed", "stored"), "ranpac", projection=projection)
        check.one_of(("full", "packed"), "ranpac", gram=gram)
        check.one_of(tuple(TYPES), "ranpac", statistics=statistics)
        check.at_least(1, "ranpac", size=size)
        if isinstance(ridge, str) and ridge != "auto":
            raise ConfigError(f"strategy.ridge of ranpac is '{ridge}'; allowed: a number > 0, or auto")
        if not isinstance(ridge, str):
            check.above(0, "ranpac", ridge=ridge)
        self.size, self.packed = size, gram == "packed"
        self.given_ridge = 0.0 if ridge == "auto" else float(ridge)
        blank, kind = self.net.head.weight, TYPES[statistics]
        stored = projection == "stored"
        seed = None if stored else blank.new_zeros((), dtype=torch.int64)
        self.keep("seed", seed, kind="temporary" if stored else "statistics")
        layer = blank.new_zeros(self.net.feature_dim, size) if stored else None
        self.keep("layer", layer, kind="statistics" if stored else "temporary")
        shape = (size * (size + 1) // 2,) if self.packed else (size, size)
        self.keep("gram", blank.new_zeros(shape, dtype=kind), kind="statistics")
        self.keep("targets", blank.new_zeros(size, 0, dtype=kind), kind="statistics")
        lambda_ = None if self.given_ridge else blank.new_ones(())
        self.keep("ridge", lambda_, kind="temporary" if lambda_ is None else "statistics")
        self.keep("head", None, kind="temporary")  # it follows from the sums
        sums = tensor_bytes(self.gram)
        weights = max(1, sum(map(tensor_bytes, self.net.state_dict().values())))
        if sums > HEAVY * weights:
            self.warnings.append(
                f"ranpac will carry {sums:,} bytes for G, {sums // weights:,} times its network, and solve systems of "
                f"strategy.size={size}; strategy.size={size // 10} carries a hundredth"
            )

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        if signature.index and self.tuner is not None:
            freeze(self.tuner)
        self.targets = F.pad(self.targets, (0, len(signature.new_slots)))

    def side_bytes(self) -> int:
        """G, Q and a stored projection go by ``size`` alone."""
        stored = [self.layer] if self.seed is None else []
        return sum(map(tensor_bytes, [self.gram, self.targets, *stored]))

    def prepare(self, experience: Experience) -> None:
        if experience.index == 0:  # W_r is drawn once
            seed = torch.randint(2**62, (), generator=self.generator("projection"))
            self.layer = self._draw_projection(int(seed))
            if self.seed is not None:
                self.seed = seed

    def after_experience(self, experience: Experience) -> None:
        order = torch.randperm(len(experience.train), generator=self.generator("order"))
        samples = experience.train[order]
        view: nn.Module = self.net
        if self.tuner is not None:
            view = FeaturesAndHead(self.backbone_features, self.net.head, [self.net, self.tuner])
        features = float64_features(self, samples, view)
        truth = F.one_hot(samples.slots, self.num_classes).to(features)  # (N, C)
        gram, targets = self._sums(features, truth)
        gram += self._gram()  # G and Q, running sums: Algorithm 1
        self.targets = self.targets + targets.to(self.targets)
        if self.ridge is not None and len(samples) > 1:
            rounding = math.sqrt(self.size) * torch.finfo(self.gram.dtype).eps * float(gram.diagonal().max())
            self.ridge = torch.tensor(max(self._choose_ridge(features, truth), rounding)).to(self.ridge)
        self.gram = (upper_triangle(gram) if self.packed else gram).to(self.gram)

    def load_state(self, state: State) -> None:
        super().load_state(state)
        if self.seed is not None:
            self.layer = self._draw_projection(int(self.seed))
        system = self._gram()
        system.diagonal().add_(self.given_ridge if self.ridge is None else float(self.ridge))
        self.head = for_predict(solve(system, to_float64(self.targets)), self)  # (G + lambda I)^-1 Q

    def backbone_features(self, images: Tensor) -> Tensor:
        """(N, D), those of the tuned transformer where there is a tuner."""
        if self.tuner is None:
            return super().backbone_features(images)
        return self.tuner.features(self.net.backbone, self.net.normalise(images))

    @property
    def asks_net_alone(self) -> bool:
        return self.tuner is None

    def predict(self, images: Tensor) -> Tensor:
        """Score each class seen; one without data by minus infinity: (N, ...) to (N, C)."""
        features = self.backbone_features(images).to(self.head)
        scores: Tensor = (features @ self.layer.to(self.head)).relu() @ self.head
        return scores.masked_fill((self.targets == 0).all(0), -torch.inf)

    def _draw_projection(self, seed: int) -> Tensor:
        """W_r, (D, M)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.net.feature_dim, self.size, generator=generator).to(self.device)

    def _project(self, features: Tensor) -> Tensor:
        """h: (N, D) to (N, M)."""
        return (features @ to_float64(self.layer)).relu()

    def _sums(self, features: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """G (M, M) and Q (M, C) of these images."""
        gram, targets = features.new_zeros(self.size, self.size), features.new_zeros(self.size, truth.shape[1])
        for rows, own in zip(features.split(ROWS), truth.split(ROWS), strict=True):
            h = self._project(rows)
            gram.addmm_(h.T, h)
            targets.addmm_(h.T, own)
        return gram, targets

    def _choose_ridge(self, features: Tensor, truth: Tensor) -> float:
        """The lambda of the grid with the least squared error on the last 20 %; one decomposition serves all.

        With fewer images than M by the dual, W = H' (H H' + lambda I)^-1 Y: the same classifier.
        """
        cut = int(0.8 * len(features))
        fit = self._project(features[:cut]) if cut <= self.size else None
        if fit is None:
            gram, right = self._sums(features[:cut], truth[:cut])
        else:
            gram, right = fit @ fit.T, truth[:cut]
        values, vectors = torch.linalg.eigh(gram)
        values, right = values.clamp(min=0)[:, None], vectors.T @ right
        errors = features.new_zeros(len(GRID))
        for rows, own in zip(features[cut:].split(ROWS), truth[cut:].split(ROWS), strict=True):
            h = self._project(rows)
            left = (h if fit is None else h @ fit.T) @ vectors
            errors += torch.stack([(left @ (right / (values + ridge)) - own).square().sum() for ridge in GRID])
        return GRID[int(errors.argmin())]

    def _gram(self) -> Tensor:
        """A float64 copy of G, (M, M)."""
        held = to_float64(self.gram)
        return from_upper_triangle(held, self.size) if self.packed else held.clone()
