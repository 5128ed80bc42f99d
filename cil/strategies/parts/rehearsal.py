"""Exemplars: stored after an experience, drawn in training, the input of rules that select them, their means."""

from __future__ import annotations

from copy import copy
from functools import partial

import torch
from torch import Tensor, nn

from cil.data import Augment, Batch, Samples
from cil.errors import ConfigError
from cil.memory import FeatureMemory, Gradients, Predictions, ReservoirMemory, RuleInput, selection, unit
from cil.memory.exemplars import Observe
from cil.models import extract, extract_outputs
from cil.strategies.base import Strategy
from cil.streams import Experience


def store_exemplars(learner: Strategy, experience: Experience, net: nn.Module | None = None) -> None:
    """Rebuild every rehearsal memory with the network as it is: floor(M / C) exemplars a class.

    Args:
        net: Network whose features, or logits, the rules look at; ``learner.net`` if None.
    """
    net = learner.net if net is None else net
    for name, memory in learner.memories().items():
        capacity = learner.budget.capacity(learner, memory)
        # items of variable size: as many as fit by actual size, in order of choice
        allowed = learner.budget.exemplar_slots if capacity is None else learner.budget.counted_slots
        quota = allowed(learner) // max(1, learner.num_classes)
        new: Samples = experience.train
        observe: Observe = partial(rule_input, net, learner.num_classes, memory.select.needs)
        if isinstance(memory, FeatureMemory):
            new, observe = memory.packed(extract(net, new), new.slots), memory.unpacked
        own = learner.quotas(experience, quota, net)
        memory.rebuild(new, quota, observe, learner.generator(f"select:{name}"), capacity, own)


def features(learner: Strategy, samples: Samples) -> Tensor:
    """(N, D) features on the CPU, in evaluation mode, with the network as it is."""
    return extract(learner.net, samples).cpu()


def outputs(learner: Strategy, samples: Samples) -> Tensor:
    """(N, C) logits on the CPU, in evaluation mode, with the network as it is."""
    return extract_outputs(learner.net, samples).logits.float().cpu()


def rule_input(net: nn.Module, num_classes: int, needs: str, samples: Samples) -> RuleInput:
    """Input of a selection rule for samples of one class, on the CPU; see ``cil.memory.selections``.

    Args:
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


def draw_batch(
    learner: Strategy, samples: Samples | ReservoirMemory, count: int, purpose: str, augment: Augment | None = None
) -> Batch | None:
    """A training batch of at most ``count`` samples, drawn without replacement; None where there are none.

    A single sample is taken twice, with two augmentations: batch statistics of one image are undefined where maps are
    of one pixel.

    The draw is keyed by purpose and step, so that it may be made in ``loss``: the samples may have changed in the step
    before, as those of a reservoir do.

    Args:
        augment: In place of that of the experience.
    """
    if not len(samples):
        return None
    generator = learner.generator(f"{purpose}:{learner.progress.step}")
    rows = torch.randperm(len(samples), generator=generator)[:count]
    rows = rows.repeat(2) if len(rows) == 1 else rows
    part = samples[rows]
    pixels = part.pixels.to(learner.device)
    return Batch(
        (augment or learner.context.augment)(pixels, generator, part.slots),
        part.slots.to(learner.device),
        None if part.targets is None else part.targets.to(learner.device),
        lambda: pixels,
        rows,
        {name: values.to(learner.device) for name, values in part.extras.items()},
    )


def balanced_set(learner: Strategy, experience: Experience, rule: str | None = None) -> Samples:
    """The exemplars, and of each class present as many images as of an old class, floor(M / C_o).

    Empty where there are no exemplars. Nothing of it is kept.

    Args:
        learner: Has the exemplars as ``memory``.
        rule: Selection rule, applied with the network as it is; that of the memory if None.
    """
    balanced = copy(learner.memories()["memory"])  # its content is replaced below, never changed
    balanced.passing = True
    if rule is not None:
        balanced.select = selection(rule)
    quota = learner.held_quota(balanced.counts().values())
    observe = partial(rule_input, learner.net, learner.num_classes, balanced.select.needs)
    balanced.rebuild(experience.train, quota, observe, learner.generator("select:balanced"))
    return balanced.samples()


def nearest_mean(features: Tensor, means: Tensor) -> Tensor:
    """Score each class by minus the distance of unit features to its mean: (N, D), (C, D) to (N, C).

    Args:
        features: As a network gives them.
        means: Of unit length (``cil.memory.class_means``); a row of NaN, of a class without an exemplar, is never the
            nearest.

    Source: Rebuffi et al. 2017 (iCaRL), Algorithm 1.

    >>> nearest_mean(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]])).mul(1000).round().tolist()
    [[-894.0, -0.0]]
    """
    scores = -torch.cdist(unit(features.float()), means)
    return scores.masked_fill(means.isnan().any(1), -torch.inf)
