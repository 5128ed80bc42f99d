"""Losses that several methods share."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def distillation(logits: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Knowledge distillation over the old outputs, without a factor temperature squared.

    L_KD(t) = -(1/n) sum_i sum_k softmax(teacher_i; t)_k log softmax(logits_i; t)_k

    Args:
        logits: (N, C_o) of the student, the old outputs alone.
        teacher: (N, C_o).
        temperature: > 0.

    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531; without the factor as in Zhou et al. 2024.

    >>> import torch
    >>> distillation(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])).item()  # doctest: +ELLIPSIS
    0.693147...
    """
    return -(F.softmax(teacher / temperature, 1) * F.log_softmax(logits / temperature, 1)).sum(1).mean()


def new_class_cross_entropy(logits: Tensor, slots: Tensor, old_classes: int) -> Tensor:
    """Cross-entropy over the new outputs alone (all, while none is old): old rows get no gradient.

    Args:
        logits: (N, C).
        slots: (N,), each >= ``old_classes``.

    Source: the code of Zhou et al. 2024.
    """
    return F.cross_entropy(logits[:, old_classes:], slots - old_classes)


def cosine_distance(features: Tensor, teacher: Tensor) -> Tensor:
    """mean_i (1 - cos(phi_i, teacher_i)) of features (N, D) twice.

    Source: less-forget term of LUCIR (Hou et al. 2019), POD-flat of PODNet (Douillard et al. 2020).

    >>> import torch
    >>> cosine_distance(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]])).item()  # doctest: +ELLIPSIS
    0.39999...
    """
    return (1 - F.cosine_similarity(features.float(), teacher.float())).mean()  # in bf16 half of it would be rounding


def less_forget(features: Tensor, teacher: Tensor, strength: float, old: int, new: int) -> Tensor:
    """strength * sqrt(old / new) * mean of 1 - cos: features keep their direction, the more so the more is old.

    Args:
        features, teacher: (N, D), of the same images.
        old, new: Numbers of classes; no new class counts as one.

    Source: Hou et al. (LUCIR), CVPR 2019, less-forget constraint.
    """
    return strength * math.sqrt(old / max(1, new)) * cosine_distance(features, teacher)


def margin_ranking(cosines: Tensor, slots: Tensor, old_classes: int, negatives: int = 2, margin: float = 0.5) -> Tensor:
    """Keep old images away from the new classes that are nearest to them.

    L = (1 / (n_o K)) sum_{i old} sum_{k = 1..K} max(0, margin - cos_true + cos_new(k)); 0 without old images or new
    classes.

    Args:
        cosines: (N, C), not scaled.
        slots: (N,).
        old_classes: C_o; an image is old if its slot is below.
        negatives: K, new classes of the highest cosine.
        margin: Least difference between the cosine of the own class and theirs.

    Source: Hou et al. (LUCIR), CVPR 2019, inter-class separation, the margin ranking loss L_mr.
    """
    count = min(negatives, cosines.shape[1] - old_classes)
    if count < 1:
        return cosines.sum() * 0
    nearest = cosines[:, old_classes:].topk(count, dim=1).values  # (N, K)
    own = cosines.gather(1, slots[:, None])
    old = (slots < old_classes).to(cosines)
    return ((margin - own + nearest).clamp(min=0).mean(1) * old).sum() / old.sum().clamp(min=1)
