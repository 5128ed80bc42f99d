"""Named parts that several strategies share. Those of rehearsal and the losses are here, the others in the modules."""

from cil.strategies.parts.losses import (
    cosine_distance,
    distillation,
    less_forget,
    margin_ranking,
    new_class_cross_entropy,
)
from cil.strategies.parts.rehearsal import balanced_set, draw_batch, features, nearest_mean, outputs, store_exemplars

__all__ = [
    "balanced_set", "cosine_distance", "distillation", "draw_batch", "features", "less_forget", "margin_ranking",
    "nearest_mean", "new_class_cross_entropy", "outputs", "store_exemplars",
]  # fmt: skip
