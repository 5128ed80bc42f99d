"""Frozen backbones: whether the first experience trains them, and exact sums over their features."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.contract import Phase, loaded_reference
from cil.contract.plain import PlainLoss
from cil.data import Batch, Samples
from cil.errors import ConfigError, TrainingError, nearest
from cil.memory import Budget
from cil.models import CosineHead, GrowingNet, Head, LinearHead, NetFactory, extract, freeze, is_frozen
from cil.strategies.base import Strategy
from cil.strategies.parts.setup_warnings import warn_of_random_weights
from cil.streams import Experience, Signature

HEADS: dict[str, type[Head]] = {"linear": LinearHead, "cosine": CosineHead}


class FrozenBackbone(Strategy):
    """A learner whose network is frozen from the second experience on, or from the start.

    Its ``net`` has a head without outputs; the learner keeps a head, or statistics of features, of its own.

    Args:
        train_first: Whether the first experience trains the backbone; ``auto``: only where ``model.weights`` gives no
            public weights.
        first_head: Head of that training, dropped after it: ``linear`` or ``cosine``.

    Raises:
        ConfigError: for other values.
    """

    net: GrowingNet
    first_head: Head | None

    def __init__(self, make_net: NetFactory, budget: Budget, train_first: bool | str, first_head: str) -> None:
        super().__init__(make_net, budget)
        self.trained = trains_first(self, train_first)
        self.first_head_kind = first_head
        self.keep("first_head", None, kind="temporary")

    def build_net(self) -> GrowingNet:
        return features_only(self.make_net)

    def grow_net(self, signature: Signature) -> None:
        if self.first_head_kind not in HEADS:
            raise ConfigError(
                f"strategy.first_head is '{self.first_head_kind}'; {nearest(self.first_head_kind, HEADS)}"
            )
        self.first_head = None
        if signature.index:
            if not is_frozen(self.net):
                freeze(self.net)
        elif self.trained:
            self.first_head = fresh_head(self, self.first_head_kind)
            self.first_head.grow(len(signature.new_slots))

    def backbone_features(self, images: Tensor) -> Tensor:
        """(N, D) of images in [0, 1]: those of ``net``, unless more is trained beside it."""
        return self.net(images).features

    @property
    def asks_net_alone(self) -> bool:
        """True where ``backbone_features`` are those of ``net``: training it is then a plain phase."""
        return type(self).backbone_features is FrozenBackbone.backbone_features

    def phases(self, experience: Experience) -> Iterator[Phase]:
        """Train ``net`` by cross-entropy of ``first_head``, where there is one."""
        head = self.first_head
        if head is not None:

            def loss(batch: Batch) -> Tensor:
                return F.cross_entropy(head(self.backbone_features(batch.images)), batch.slots)

            yield Phase("main", experience.train, PlainLoss(self.net, head=head) if self.asks_net_alone else loss)

    def train_then_freeze(self, experience: Experience) -> Iterator[Phase]:
        """``phases`` of the base, after which the network is frozen within the first experience."""
        yield from FrozenBackbone.phases(self, experience)
        if experience.index == 0:
            freeze(self.net)
            self.first_head = None


def features_only(make_net: NetFactory) -> GrowingNet:
    """A network whose head never gets an output, so that it costs nothing."""
    net = make_net("linear")
    net.head.requires_grad_(False)
    return net


def fresh_head(learner: Strategy, kind: str = "linear") -> Head:
    """A head without outputs on the features of ``learner.net``: ``linear`` or ``cosine``."""
    return HEADS[kind](learner.net.feature_dim).to(learner.net.head.weight)


def trains_first(learner: Strategy, choice: bool | str) -> bool:
    """True if the first experience trains ``learner.net``; otherwise it is frozen here, for good.

    Frozen public weights are kept as a reference, carried and charged once.

    Raises:
        ConfigError: where ``train_first`` is neither True, False nor ``auto``.
    """
    if choice not in (True, False, "auto"):
        raise ConfigError(f"strategy.train_first is '{choice}'; allowed: auto, true, false")
    public = getattr(learner.make_net, "pretrained", None)
    if choice is True or (choice == "auto" and public is None):
        return True
    net = freeze(learner.net)
    warn_of_random_weights(learner)
    if public is not None:
        learner.keep("net", net, kind="parameters", reference=loaded_reference(net, public))
    return False


def float64_features(learner: Strategy, samples: Samples, net: nn.Module | None = None) -> Tensor:
    """(N, D) float64 features of images that are not augmented, by ``net`` in place of ``learner.net``.

    Raises:
        TrainingError: where they are not finite.
    """
    features = to_float64(extract(learner.net if net is None else net, samples))
    if not bool(features.isfinite().all()):
        raise TrainingError("features are not finite, so no statistics can be taken of them; lower optimizer.lr")
    return features


def to_float64(tensor: Tensor) -> Tensor:
    """The values as float64, which neither autocast nor TF32 rounds; on the CPU where the device (mps) has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def for_predict(tensor: Tensor, learner: Strategy) -> Tensor:
    """A float64 result on the learner's device, in the widest type that it has."""
    return tensor.to(learner.device, torch.float32 if learner.device.type == "mps" else torch.float64)


def class_sums(features: Tensor, slots: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sums of the features of each class, (C, D), and their numbers, (C,); a product, so always the same bits."""
    members = F.one_hot(slots.to(features.device), classes).to(features.dtype)  # (N, C)
    return members.T @ features, members.sum(0)


def cosine_scores(features: Tensor, sums: Tensor) -> Tensor:
    """Cosines of features (N, D) to class means, given as sums (C, D): (N, C) float32.

    Minus infinity for a class without images.

    >>> cosine_scores(torch.tensor([[3.0, 4.0]]), torch.tensor([[5.0, 0.0], [0.0, 0.0]]))
    tensor([[0.6000,   -inf]])
    """
    sums = to_float64(sums)
    scores = F.normalize(to_float64(features)) @ F.normalize(sums).T
    return scores.masked_fill((sums == 0).all(1), -torch.inf).to(features.device, torch.float32)
