"""Named parts that several strategies share."""

from cil.strategies.parts.frozen import (
    class_sums,
    exact,
    exact_features,
    features_only,
    first_head,
    first_phase,
    lent,
    trains_first,
)
from cil.strategies.parts.heads import align_rows, copy_newest_branch, loss_with_newest
from cil.strategies.parts.hosts import Guest
from cil.strategies.parts.losses import (
    cosine_distance,
    distillation,
    grown,
    hold_rows,
    learned,
    less_forget,
    margin_ranking,
    new_class_cross_entropy,
    old_part,
    quadratic_penalty,
)
from cil.strategies.parts.rehearsal import balanced_set, draw, features, imprint, outputs, seen, store_exemplars
from cil.strategies.parts.reservoirs import NOTHING_SEEN, offer, open_reservoir, reservoir_plan, same_sized

__all__ = [
    "NOTHING_SEEN",
    "Guest",
    "align_rows",
    "balanced_set",
    "class_sums",
    "copy_newest_branch",
    "cosine_distance",
    "distillation",
    "draw",
    "exact",
    "exact_features",
    "features",
    "features_only",
    "first_head",
    "first_phase",
    "grown",
    "hold_rows",
    "imprint",
    "learned",
    "lent",
    "less_forget",
    "loss_with_newest",
    "margin_ranking",
    "new_class_cross_entropy",
    "offer",
    "old_part",
    "open_reservoir",
    "outputs",
    "quadratic_penalty",
    "reservoir_plan",
    "same_sized",
    "seen",
    "store_exemplars",
    "trains_first",
]
