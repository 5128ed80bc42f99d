"""Named parts that several strategies share."""

from cil.strategies.parts.frozen import class_sums, exact, exact_features, features_only, first_head, lent, trains_first
from cil.strategies.parts.losses import (
    cosine_distance,
    distillation,
    grown,
    hold_rows,
    less_forget,
    margin_ranking,
    new_class_cross_entropy,
    old_or_which,
    old_part,
    quadratic_penalty,
)
from cil.strategies.parts.rehearsal import balanced_set, draw, features, imprint, seen, store_exemplars
from cil.strategies.parts.reservoirs import NOTHING_SEEN, offer, open_reservoir, reservoir_plan, same_sized

__all__ = [
    "NOTHING_SEEN",
    "balanced_set",
    "class_sums",
    "cosine_distance",
    "distillation",
    "draw",
    "exact",
    "exact_features",
    "features",
    "features_only",
    "first_head",
    "grown",
    "hold_rows",
    "imprint",
    "lent",
    "less_forget",
    "margin_ranking",
    "new_class_cross_entropy",
    "offer",
    "old_or_which",
    "old_part",
    "open_reservoir",
    "quadratic_penalty",
    "reservoir_plan",
    "same_sized",
    "seen",
    "store_exemplars",
    "trains_first",
]
