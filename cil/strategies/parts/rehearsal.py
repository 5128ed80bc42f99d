"""Exemplars: stored after an experience, drawn in training, and what a selection looks at."""

from __future__ import annotations

from copy import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.data import Augment, Batch, Samples
from cil.errors import ConfigError
from cil.memory import (
    FeatureMemory,
    Gradients,
    OnlineMemory,
    Predictions,
    Seen,
    selection,
)
from cil.memory.exemplars import See
from cil.models import extract, extract_outputs
from cil.strategies.base import Strategy
from cil.streams import Experience


def store_exemplars(learner: Strategy, experience: Experience, net: nn.Module | None = None) -> None:
    """Rebuild every rehearsal memory with the network as it is: floor(M / C) a class (specification 1.3).

    Args:
        learner: Its memories, and its ``net`` where none is given.
        experience: What has just been learned.
        net: Whose features, or logits, the exemplars are chosen by.
    """
    net = learner.net if net is None else net
    for name, memory in learner.memories().items():
        capacity = learner.budget.capacity(learner, memory)
        # items of variable size: as many as fit by actual size, in order of choice
        allowed = learner.budget.exemplar_slots if capacity is None else learner.budget.counted_slots
        quota = allowed(learner) // max(1, learner.num_classes)
        new: Samples = experience.train
        see: See = partial(seen, net, learner.num_classes, memory.select.needs)
        if isinstance(memory, FeatureMemory):
            new, see = memory.packed(extract(net, new), new.slots), memory.unpacked
        own = learner.quotas(experience, quota, net)
        memory.rebuild(new, quota, see, learner.generator(f"select:{name}"), capacity, own)


def features(learner: Strategy, samples: Samples) -> Tensor:
    """(N, D) features on the CPU, in evaluation mode, with the network as it is."""
    return extract(learner.net, samples).cpu()


def outputs(learner: Strategy, samples: Samples) -> Tensor:
    """(N, C) logits on the CPU, in evaluation mode, with the network as it is."""
    return extract_outputs(learner.net, samples).logits.float().cpu()


def seen(net: nn.Module, num_classes: int, needs: str, samples: Samples) -> Seen:
    """What a rule of selection needs to see of samples, on the CPU; see ``cil.memory.selections``.

    Args:
        net: As it is, in evaluation mode.
        num_classes: Logits it must have, where any are needed.
        needs: ``features``, ``logits`` or ``gradients``.

    Raises:
        ConfigError: where logits are needed, and there is not one for each class.
    """
    if needs == "features":
        return extract(net, samples).cpu()
    output = extract_outputs(net, samples)
    logits, slots = output.logits.cpu(), samples.slots
    if logits.shape[1] != num_classes:
        raise ConfigError(
            f"strategy.selection needs one logit for each of {num_classes} classes, the network has {logits.shape[1]}; "
            f"choose a rule that needs features alone, as herding does"
        )
    return Predictions(logits, slots) if needs == "logits" else Gradients.of(logits, output.features.cpu(), slots)


def draw(
    learner: Strategy, samples: Samples | OnlineMemory, count: int, purpose: str, augment: Augment | None = None
) -> Batch | None:
    """A training batch of ``count`` samples at most, drawn without replacement; None where there are none.

    A single one is drawn twice, each with an augmentation of its own: batch statistics of one image are undefined where
    maps are of one pixel, and of two that are alike they are those of one.

    The draw is keyed by purpose and step, so that it may be made in ``loss``: what is drawn from may have changed in
    the step before, as an online memory does. ``augment``: in place of that of the experience.
    """
    if not len(samples):
        return None
    generator = learner.generator(f"{purpose}:{learner.progress.step}")
    rows = torch.randperm(len(samples), generator=generator)[:count]
    rows = rows.repeat(2) if len(rows) == 1 else rows
    part = samples[rows]
    pixels = part.pixels.to(learner.device)
    return Batch(
        (augment or learner.desk.augment)(pixels, generator),
        part.slots.to(learner.device),
        None if part.targets is None else part.targets.to(learner.device),
        lambda: pixels,
        rows,
        {name: values.to(learner.device) for name, values in part.extras.items()},
    )


def balanced_set(learner: Strategy, experience: Experience, rule: str | None = None) -> Samples:
    """Exemplars, and of each class present as many images as of an old class, floor(M / C_o); of none more than those.

    Empty where there are no exemplars. Nothing of it is kept.

    Args:
        learner: Has the exemplars as ``memory``.
        experience: Where the other images come from.
        rule: That chooses them, with the network as it is; that of the memory where left out.
    """
    held = copy(learner.memories()["memory"])  # what is held is replaced below, never changed
    if rule is not None:
        held.select = selection(rule)
    quota = learner.held_quota(held.counts().values())
    generator = learner.generator("select:balanced")
    see = partial(seen, learner.net, learner.num_classes, held.select.needs)
    held.rebuild(experience.train, quota, see, generator)
    return held.samples()


@torch.no_grad()
def imprint(learner: Strategy, experience: Experience) -> None:
    """Start the rows of new classes at the unit mean of their unit features, times the mean norm of the old rows.

    For a cosine head of one row a class.

    Source: Qi et al., "Low-shot learning with imprinted weights", CVPR 2018; optional in LUCIR's code.
    """
    if not learner.old_classes:
        return
    weight = learner.net.head.weight
    norm = weight[: learner.old_classes].norm(dim=1).mean()
    for slot in experience.new_slots:
        own = experience.train.of_class(slot)
        if len(own):
            mean = F.normalize(features(learner, own)).mean(0)
            weight[slot] = norm * F.normalize(mean, dim=0).to(weight)
