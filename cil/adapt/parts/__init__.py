"""What methods of adaptation share: norm layers, entropy, an optimizer that is carried, teachers, views, a bank."""

from cil.adapt.parts.bank import BalancedBank
from cil.adapt.parts.losses import cross_entropy, entropy, gradients, mean_where, some
from cil.adapt.parts.norms import (
    MixedNorm2d,
    frozen,
    late_layers,
    replace_batch_norms,
    train_norms,
    use_batch_statistics,
)
from cil.adapt.parts.optimizer import CarriedOptimizer, make_optimizer
from cil.adapt.parts.settings import by_classes, one_of, within
from cil.adapt.parts.teacher import follow
from cil.adapt.parts.vectors import assign, flat
from cil.adapt.parts.views import on_device, random_view

__all__ = [
    "BalancedBank",
    "CarriedOptimizer",
    "MixedNorm2d",
    "assign",
    "by_classes",
    "cross_entropy",
    "entropy",
    "flat",
    "follow",
    "frozen",
    "gradients",
    "late_layers",
    "make_optimizer",
    "mean_where",
    "on_device",
    "one_of",
    "random_view",
    "replace_batch_norms",
    "some",
    "train_norms",
    "use_batch_statistics",
    "within",
]
