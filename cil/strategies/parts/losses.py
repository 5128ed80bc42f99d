"""Losses and penalties, and what gradients are kept from."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def distillation(logits: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Knowledge distillation over the old outputs, without a factor temperature squared.

    L_KD(t) = -(1/n) sum_i sum_k softmax(teacher_i; t)_k log softmax(logits_i; t)_k

    Args:
        logits: (N, C_o) of the student, the old outputs alone.
        teacher: (N, C_o).
        temperature: > 0.

    Source: Hinton et al. 2015; specification 1.2.

    >>> distillation(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])).item()  # doctest: +ELLIPSIS
    0.693147...
    """
    return -(F.softmax(teacher / temperature, 1) * F.log_softmax(logits / temperature, 1)).sum(1).mean()


def new_class_cross_entropy(logits: Tensor, slots: Tensor, old_classes: int) -> Tensor:
    """Cross-entropy over the new outputs alone (over all, while none is old): old rows get no gradient.

    Args:
        logits: (N, C).
        slots: (N,), each >= ``old_classes``.

    Source: specification 0, cross-entropy over new logits; as in the survey's code.
    """
    return F.cross_entropy(logits[:, old_classes:], slots - old_classes)


def cosine_distance(features: Tensor, teacher: Tensor) -> Tensor:
    """mean_i (1 - cos(phi_i, teacher_i)): LUCIR's less-forget term, PODNet's flat term; (N, D), (N, D).

    Source: specification 3.6 and 2.10, POD-flat.

    >>> cosine_distance(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]])).item()  # doctest: +ELLIPSIS
    0.39999...
    """
    return (1 - F.cosine_similarity(features.float(), teacher.float())).mean()  # in bf16 half of it would be rounding


def less_forget(features: Tensor, teacher: Tensor, strength: float, old: int, new: int) -> Tensor:
    """strength * sqrt(old / new) * mean of 1 - cos: features keep their direction, the more so the more is old.

    Args:
        features, teacher: (N, D), of the same images.
        old, new: Numbers of classes; where none is new it counts as one.

    Source: Hou et al. 2019, less-forget constraint (specification 3.6).
    """
    return strength * math.sqrt(old / max(1, new)) * cosine_distance(features, teacher)


def old_or_which(logits: Tensor, slots: Tensor, old_classes: int) -> Tensor:
    """Cross-entropy of an auxiliary head: output 0 for any old class, then one output for each new class.

    Args:
        logits: (N, 1 + C_n).
        slots: (N,).

    Source: Yan et al. 2021 (DER), equation 5.
    """
    return F.cross_entropy(logits, torch.clamp(slots - old_classes + 1, min=0))


def margin_ranking(cosines: Tensor, slots: Tensor, old_classes: int, negatives: int = 2, margin: float = 0.5) -> Tensor:
    """Keep old images away from the new classes that are nearest to them.

    L = (1 / (n_o K)) sum_{i old} sum_{k = 1..K} max(0, margin - cos_true + cos_new(k)); 0 without old images or new
    classes.

    Args:
        cosines: (N, C), not scaled: the margin is one of cosines.
        slots: (N,).
        old_classes: C_o; an image is old where its slot is below.
        negatives: K, new classes of the highest cosine.
        margin: Wanted between the own class and those.

    Source: Hou et al., LUCIR, CVPR 2019, inter-class separation, the margin ranking loss L_mr (specification 3.6).
    """
    count = min(negatives, cosines.shape[1] - old_classes)
    if count < 1:
        return cosines.sum() * 0
    nearest = cosines[:, old_classes:].topk(count, dim=1).values  # (N, K)
    own = cosines.gather(1, slots[:, None])
    old = (slots < old_classes).to(cosines)
    return ((margin - own + nearest).clamp(min=0).mean(1) * old).sum() / old.sum().clamp(min=1)


def quadratic_penalty(
    parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor], importance: Mapping[str, Tensor]
) -> Tensor:
    """sum_j importance_j (theta_j - anchor_j)^2, over the part of each tensor that the anchor has.

    Source: the penalty of EWC (equation 3 of Kirkpatrick et al.), SI (equation 4 of Zenke et al.) and MAS.
    """
    total: Tensor | None = None
    for name, old in anchor.items():
        term = (old_part(importance[name], old) * (old_part(parameters[name], old) - old).square()).sum()
        total = term if total is None else total + term
    return torch.zeros(()) if total is None else total


def learned(net: nn.Module, head: bool = True) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name; of the head only where ``head`` says so."""
    return {n: p for n, p in net.named_parameters() if p.requires_grad and (head or not n.startswith("head."))}


def old_part(grown: Tensor, old: Tensor) -> Tensor:
    """The view of a tensor that has the shape ``old`` had before it grew: of a head its old rows."""
    return grown[tuple(map(slice, old.shape))]


def grown(held: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A number for each weight, after the weights grew: zeros, and what was held so far in the old part."""
    larger = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for name, old in held.items():
        old_part(larger[name], old).copy_(old)
    return larger


def hold_rows(weight: nn.Parameter, rows: Tensor) -> None:
    """Keep the first rows of a head as they were: call it in ``adjust_gradients`` and in ``after_step``.

    Before a step they lose their gradient; after it, what momentum or weight decay did to them is undone.

    Args:
        weight: (C, D).
        rows: (R, D), R <= C.
    """
    if weight.grad is not None:
        weight.grad[: len(rows)] = 0
    with torch.no_grad():
        weight[: len(rows)] = rows
