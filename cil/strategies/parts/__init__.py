"""Named parts that several strategies share."""

from cil.strategies.parts.branches import BranchForEachExperience
from cil.strategies.parts.frozen_backbone import (
    FrozenBackbone,
    class_sums,
    cosine_scores,
    features_only,
    float64_features,
    for_predict,
    fresh_head,
    to_float64,
    trains_first,
)
from cil.strategies.parts.frozen_heads import FeaturesAndHead, freeze_old_rows, grow_head, scoped_cross_entropy
from cil.strategies.parts.heads import align_rows, freeze_rows, imprint
from cil.strategies.parts.importance import (
    learning_parameters,
    old_part,
    padded_to,
    quadratic_penalty,
    snapshot,
    sum_of_gradients,
)
from cil.strategies.parts.losses import (
    cosine_distance,
    distillation,
    less_forget,
    margin_ranking,
    new_class_cross_entropy,
)
from cil.strategies.parts.rehearsal import balanced_set, draw_batch, features, outputs, rule_input, store_exemplars
from cil.strategies.parts.reservoir_sampling import ReservoirRehearsal, fixed_capacity
from cil.strategies.parts.setup_warnings import cosine_net, warn_of_random_weights
from cil.strategies.parts.wrappers import Wrapper

__all__ = [
    "BranchForEachExperience",
    "FeaturesAndHead",
    "FrozenBackbone",
    "ReservoirRehearsal",
    "Wrapper",
    "align_rows",
    "balanced_set",
    "class_sums",
    "cosine_distance",
    "cosine_net",
    "cosine_scores",
    "distillation",
    "draw_batch",
    "features",
    "features_only",
    "fixed_capacity",
    "float64_features",
    "for_predict",
    "freeze_old_rows",
    "freeze_rows",
    "fresh_head",
    "grow_head",
    "imprint",
    "learning_parameters",
    "less_forget",
    "margin_ranking",
    "new_class_cross_entropy",
    "old_part",
    "outputs",
    "padded_to",
    "quadratic_penalty",
    "rule_input",
    "scoped_cross_entropy",
    "snapshot",
    "store_exemplars",
    "sum_of_gradients",
    "to_float64",
    "trains_first",
    "warn_of_random_weights",
]
