"""Named parts that several strategies share: losses, memory updates, penalties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data import Batch, Samples
from cil.models import extract
from cil.strategies.base import Strategy
from cil.streams import Experience


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
    """
    return F.cross_entropy(logits[:, old_classes:], slots - old_classes)


def store_exemplars(learner: Strategy, experience: Experience) -> None:
    """Rebuild every rehearsal memory with the network as it is: floor(M / C) a class (specification 1.3)."""
    for name, memory in learner.memories().items():
        capacity = learner.budget.capacity(learner, memory)
        # items of variable size: as many as fit by actual size, in order of choice
        budget = learner.budget if capacity is None else replace(learner.budget, limits=None)
        quota = budget.exemplar_slots(learner) // max(1, learner.num_classes)
        generator = learner.generator(f"select:{name}")
        memory.rebuild(experience.train, quota, lambda samples: features(learner, samples), generator, capacity)


def draw(learner: Strategy, samples: Samples, count: int, purpose: str) -> Batch | None:
    """A training batch of ``count`` samples at most, drawn without replacement; None where there are none.

    The draw is keyed by purpose and step, so that it may be made in ``loss``: what is drawn from may have changed in
    the step before, as an online memory does.
    """
    if not len(samples):
        return None
    generator = learner.generator(f"{purpose}:{learner.progress.step}")
    rows = torch.randperm(len(samples), generator=generator)[:count]
    part = samples[rows]
    pixels = part.pixels.to(learner.device)
    return Batch(
        learner.desk.augment(pixels, generator),
        part.slots.to(learner.device),
        None if part.targets is None else part.targets.to(learner.device),
        lambda: pixels,
        rows,
        {name: values.to(learner.device) for name, values in part.extras.items()},
    )


def features(learner: Strategy, samples: Samples) -> Tensor:
    """(N, D) features on the CPU, in evaluation mode, with the network as it is."""
    return extract(learner.net, samples).cpu()


def quadratic_penalty(
    parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor], importance: Mapping[str, Tensor]
) -> Tensor:
    """sum_j importance_j (theta_j - anchor_j)^2, over the part of each tensor that the anchor has."""
    total: Tensor | None = None
    for name, old in anchor.items():
        term = (old_part(importance[name], old) * (old_part(parameters[name], old) - old).square()).sum()
        total = term if total is None else total + term
    return torch.zeros(()) if total is None else total


def old_part(grown: Tensor, old: Tensor) -> Tensor:
    """The view of a tensor that has the shape ``old`` had before it grew: of a head its old rows."""
    return grown[tuple(map(slice, old.shape))]
