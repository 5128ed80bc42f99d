"""What is trained on a frozen backbone: a head of its own, and whatever makes the features that it sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.contract import Phase
from cil.models import CosineHead, Head, LinearHead, Output, freeze
from cil.strategies.base import Strategy
from cil.strategies.parts.frozen import first_phase
from cil.strategies.parts.losses import new_class_cross_entropy
from cil.streams import Experience, Signature


class Assembled(nn.Module):
    """Features, however they come about, and a head on them: one network, for what looks at a network's outputs.

    Args:
        features: (N, C, H, W) images to (N, D).
        head: On D features.
        parts: The modules that ``features`` runs, so that their mode can be set.
    """

    def __init__(self, features: Callable[[Tensor], Tensor], head: Head, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self._features = features
        self.head = head
        self.parts = nn.ModuleList(parts)

    def forward(self, images: Tensor) -> Output:
        found = self._features(images)
        return Output(self.head(found), found)

    @property
    def num_classes(self) -> int:
        """C, columns of the logits."""
        return self.head.num_classes

    @property
    def feature_dim(self) -> int:
        """D, columns of the features."""
        return self.head.in_features


def grow_small_rows(learner: Strategy, head: Head, signature: Signature) -> None:
    """Widen a head by rows for the new classes, N(0, 0.01) each, biases 0; old rows stay bit for bit."""
    old = head.num_classes
    head.grow(len(signature.new_slots))
    rows = head.weight.detach()[old:]
    drawn = 0.01 * torch.randn(rows.shape, generator=learner.generator(f"head:{signature.index}"))
    rows.copy_(drawn)


def tuned_head(learner: Strategy, kind: str = "linear") -> Head:
    """A head without outputs on the features of ``learner.net``: ``linear`` or ``cosine``."""
    make: type[Head] = {"linear": LinearHead, "cosine": CosineHead}[kind]
    return make(learner.net.feature_dim).to(learner.net.head.weight)


def then_frozen(learner: Strategy, experience: Experience) -> Iterator[Phase]:
    """The first experience's training of ``net``, where there is one, after which the network is frozen for good."""
    yield from first_phase(learner, experience)
    if experience.index == 0:
        freeze(learner.net)
        learner.first_head = None


def scoped_cross_entropy(logits: Tensor, slots: Tensor, first_slot: int, scope: str) -> Tensor:
    """Cross-entropy over the outputs of what is present (``new``: from ``first_slot`` on) or over ``all``."""
    return F.cross_entropy(logits, slots) if scope == "all" else new_class_cross_entropy(logits, slots, first_slot)


def hold_old_rows(head: Head, count: int) -> None:
    """Take the gradient off the first ``count`` rows and biases of a head; call it in ``adjust_gradients``.

    Where a head's weight decay is 0 and the optimizer is fresh, those rows then stay bit for bit.
    """
    for parameter in head.parameters():
        if parameter.ndim and parameter.grad is not None:
            parameter.grad[:count] = 0
