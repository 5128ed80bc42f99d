"""Warnings before training: settings in which a method cannot show its strength."""

from __future__ import annotations

from inspect import signature

from cil.models import GrowingNet
from cil.strategies.base import Strategy


def method_name(learner: Strategy) -> str:
    """The registered name, or that of the class."""
    return str(getattr(learner, "name", type(learner).__name__))


def warn_of_random_weights(learner: Strategy) -> None:
    """Warn where the frozen network has random weights, which a strategy with ``train_first`` may train."""
    if getattr(learner.make_net, "pretrained", None) is None:
        advice = ", or strategy.train_first=true" if "train_first" in signature(type(learner)).parameters else ""
        learner.warnings.append(
            f"{method_name(learner)}: the weights of the frozen network are random, so accuracy will mean little; set "
            f"model.weights to a file (or hub, with model=timm or clip){advice}"
        )


def cosine_net(learner: Strategy) -> GrowingNet:
    """A growing network with a cosine head; warns where its features have no signs."""
    net = learner.make_net(head="cosine")
    if getattr(net.backbone, "signed", None) is False:
        learner.warnings.append(
            f"{method_name(learner)}: its cosine head is made for features with signs, and those of this "
            f"{type(net.backbone).__name__} end in a ReLU; the paper's backbones are as model=resnet32_cosine"
        )
    return net
