"""What a person should hear before training: settings in which a method cannot show what it can do."""

from __future__ import annotations

from typing import Any

from cil.models import GrowingNet
from cil.strategies.base import Strategy


def named(learner: Strategy) -> str:
    """The name that it is registered by, or that of its class."""
    return str(getattr(learner, "name", type(learner).__name__))


def note_random_weights(learner: Strategy, instead: str = "") -> None:
    """Say that the frozen network starts from random weights, where it does.

    Args:
        instead: What else may be set, for the end of the sentence.
    """
    if getattr(learner.make_net, "pretrained", None) is None:
        learner.notes.append(
            f"{named(learner)}: the weights of the frozen network are random, so accuracy will mean little; set "
            f"model.weights to a file (or hub, with model=timm){instead}"
        )


def cosine_net(learner: Strategy) -> GrowingNet:
    """A growing network with a cosine head. Where its features are known to lack signs, a note says so."""
    net = learner.make_net(head="cosine")
    backbone: Any = net.backbone
    if getattr(backbone, "signed", None) is False:
        learner.notes.append(
            f"{named(learner)}: its cosine head is made for features with signs, and those of this "
            f"{type(backbone).__name__} end in a ReLU; the paper's backbones are as model=resnet32_cosine"
        )
    return net
