"""Parts of several adapters: norm layers, entropy, a carried optimizer, teachers, views, a bank of images."""

from cil.adapt.parts.bank import BalancedBank
from cil.adapt.parts.losses import any_true, cross_entropy, entropy, gradients, mean_where
from cil.adapt.parts.norms import (
    MixedNorm2d,
    freeze_reversibly,
    late_layers,
    replace_batch_norms,
    train_norms,
    use_batch_statistics,
)
from cil.adapt.parts.optimizer import CarriedOptimizer, make_optimizer
from cil.adapt.parts.parameters import assign, flat, move_teacher
from cil.adapt.parts.published_defaults import default_by_classes
from cil.adapt.parts.views import generator_on, random_view

__all__ = [
    "BalancedBank",
    "CarriedOptimizer",
    "MixedNorm2d",
    "any_true",
    "assign",
    "cross_entropy",
    "default_by_classes",
    "entropy",
    "flat",
    "freeze_reversibly",
    "generator_on",
    "gradients",
    "late_layers",
    "make_optimizer",
    "mean_where",
    "move_teacher",
    "random_view",
    "replace_batch_norms",
    "train_norms",
    "use_batch_statistics",
]
