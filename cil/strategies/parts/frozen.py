"""Backbones that no longer change: whether they are trained first, and exact sums over their features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.contract import Phase, loaded_reference
from cil.data import Batch, Samples
from cil.errors import ConfigError, TrainingError, nearest
from cil.models import CosineHead, GrowingNet, Head, LinearHead, NetFactory, extract, freeze
from cil.strategies.base import Strategy
from cil.strategies.parts.notes import note_random_weights
from cil.streams import Experience, Signature


def features_only(make_net: NetFactory) -> GrowingNet:
    """A network that never gets an output, so that its head costs nothing: what a frozen backbone is used for."""
    net = make_net("linear")
    net.head.requires_grad_(False)
    return net


def trains_first(learner: Strategy, choice: bool | str) -> bool:
    """Whether the first experience trains ``learner.net``; if not, it is frozen here and for good.

    Public weights that nothing trains are kept as a reference from then on, carried and charged once.

    Args:
        learner: Its ``net`` is kept.
        choice: What ``train_first`` says: True, False, or ``auto`` (where there are no public weights).

    Raises:
        ConfigError: for anything else.
    """
    if choice not in (True, False, "auto"):
        raise ConfigError(f"strategy.train_first is '{choice}'; allowed: auto, true, false")
    public = getattr(learner.make_net, "pretrained", None)
    if choice is True or (choice == "auto" and public is None):
        return True
    net = freeze(learner.net)
    note_random_weights(learner, ", or strategy.train_first=true")
    if public is not None:
        learner.keep("net", net, kind="parameters", reference=loaded_reference(net, public))
    return False


def first_head(learner: Strategy, signature: Signature, kind: str, trained: bool) -> Head | None:
    """A head to train ``learner.net`` with in the first experience; from the second on none, and the network is frozen.

    Args:
        learner: Calls this in ``grow_net`` and keeps the head as ``temporary``.
        signature: Of the experience.
        kind: ``linear`` or ``cosine``. A linear one is drawn as that of a plain network is.
        trained: What ``trains_first`` said.

    Raises:
        ConfigError: for another kind.
    """
    heads: dict[str, type[Head]] = {"linear": LinearHead, "cosine": CosineHead}
    if kind not in heads:
        raise ConfigError(f"strategy.first_head is '{kind}'; {nearest(kind, heads)}")
    if signature.index:
        freeze(learner.net)
    if signature.index or not trained:
        return None
    head = heads[kind](learner.net.feature_dim).to(learner.net.head.weight)
    head.grow(len(signature.new_slots))
    return head


def first_phase(learner: Any, experience: Experience) -> Iterator[Phase]:
    """The phase that trains ``net`` by cross-entropy of ``first_head``; none where there is no such head.

    Args:
        learner: Keeps what ``first_head`` gave under that name.
        experience: Whose images train it.
    """
    net, head = learner.net, learner.first_head
    if head is not None:

        def loss(batch: Batch) -> Tensor:
            return F.cross_entropy(head(net(batch.images).features), batch.slots)

        yield Phase("main", experience.train, loss)


def exact_features(learner: Strategy, samples: Samples) -> Tensor:
    """(N, D) float64 features of the evaluation view, on the learner's device (on the CPU where that has no float64).

    Raises:
        TrainingError: where they are not finite.
    """
    found = exact(extract(learner.net, samples))
    if not bool(found.isfinite().all()):
        raise TrainingError("features are not finite, so no statistics can be taken of them; lower optimizer.lr")
    return found


def exact(tensor: Tensor) -> Tensor:
    """The values as float64: neither autocast nor TF32 touches them. ``mps`` has none, so from there to the CPU."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def lent(tensor: Tensor, learner: Strategy) -> Tensor:
    """What was computed exactly, for ``predict``: on the learner's device, in the widest type that it has."""
    return tensor.to(learner.device, torch.float32 if learner.device.type == "mps" else torch.float64)


def class_sums(features: Tensor, slots: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sum of the features of each class, (C, D), and their number, (C,); as a product, so the same bits each time."""
    members = F.one_hot(slots.to(features.device), classes).to(features.dtype)  # (N, C)
    return members.T @ features, members.sum(0)


def cosines(features: Tensor, sums: Tensor) -> Tensor:
    """Of features (N, D) to class means, given as sums (C, D): (N, C) float32, minus infinity for a class without any.

    >>> cosines(torch.tensor([[3.0, 4.0]]), torch.tensor([[5.0, 0.0], [0.0, 0.0]]))
    tensor([[0.6000,   -inf]])
    """
    sums = exact(sums)
    scores = F.normalize(exact(features)) @ F.normalize(sums).T
    return scores.masked_fill((sums == 0).all(1), -torch.inf).to(features.device, torch.float32)
