"""Named parts that several strategies share: losses, memory updates, penalties."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.data import Batch, Samples
from cil.errors import ConfigError, TrainingError, nearest
from cil.memory import (
    ExemplarMemory,
    FeatureMemory,
    Gradients,
    OnlineMemory,
    Predictions,
    Seen,
    reservoir_places,
    selection,
)
from cil.memory.exemplars import See
from cil.models import CosineHead, GrowingNet, Head, LinearHead, NetFactory, extract, extract_outputs, freeze
from cil.strategies.base import Strategy, reference_of
from cil.streams import Experience, Signature


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
        budget = learner.budget if capacity is None else replace(learner.budget, limits=None)
        quota = budget.exemplar_slots(learner) // max(1, learner.num_classes)
        new: Samples = experience.train
        see: See = partial(seen, net, learner.num_classes, memory.select.needs)
        if isinstance(memory, FeatureMemory):
            new, see = memory.packed(extract(net, new), new.slots), memory.unpacked
        own = learner.quotas(experience, quota)
        memory.rebuild(new, quota, see, learner.generator(f"select:{name}"), capacity, own)


def draw(learner: Strategy, samples: Samples | OnlineMemory, count: int, purpose: str) -> Batch | None:
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


def same_sized(learner: Strategy, memory: ExemplarMemory) -> int:
    """Exemplars that ``memory`` has room for, where all are of one size.

    Raises:
        ConfigError: where their sizes vary and the budget is in bytes: how many fit is not known while they come in.
    """
    if learner.budget.capacity(learner, memory) is not None:
        raise ConfigError(
            "a memory that is filled item by item knows no sizes ahead, so with a budget in bytes strategy.codec must "
            "be one of fixed size: raw, or downsample:SIDE"
        )
    return learner.budget.exemplar_slots(learner)


NOTHING_SEEN = f"{0:015d}"  # a count of fixed width, so that its bytes are known before training


def open_reservoir(learner: Strategy, memory: OnlineMemory, experience: Experience) -> int:
    """How many exemplars a reservoir may hold in an experience; call it in ``prepare``. What is over goes, by chance.

    It is what the budget allows at the next boundary, where stored logits may be wider and exemplars fewer, but no more
    than there are images to choose from, so that the bill before training holds however often images are offered.
    """
    capacity = min(same_sized(learner, memory), len(memory) + len(experience.train))
    memory.thin(capacity, learner.generator("thin"))
    return capacity


def offer(
    learner: Strategy, memory: OnlineMemory, seen: str, capacity: int, batch: Batch, extras: Mapping[str, Tensor]
) -> str:
    """Offer the images of a step, before augmentation, to a reservoir; call it in ``after_step``.

    With ``trainer.accumulate`` a step offers its last batch alone.

    Args:
        seen: Items offered so far, as kept by the learner: ``NOTHING_SEEN`` at first, then what this returned last.
        capacity: What ``open_reservoir`` returned.
        extras: Side data of the batch.

    Returns:
        Items offered, these included.
    """
    generator = learner.generator(f"reservoir:{learner.progress.step}")
    held, count = len(memory), len(batch)
    places = reservoir_places(held, int(seen), count, capacity, generator).tolist()
    taken = {place: row for row, place in enumerate(places) if place >= 0}  # of two for one place the later stays
    if taken:
        rows = torch.tensor(sorted(taken.values()), device=batch.slots.device)
        leaving = torch.tensor([place for place in taken if place < held], dtype=torch.int64)
        memory.exchange(leaving, batch.pixels[rows], batch.slots[rows], {k: v[rows] for k, v in extras.items()})
    return f"{int(seen) + count:0{len(NOTHING_SEEN)}d}"


def reservoir_plan(slots: int, counts: Mapping[int, int]) -> dict[int, int]:
    """The exemplars that a reservoir holds after an experience: their number; of which classes they are is chance."""
    plan = {}
    for slot, count in counts.items():
        plan[slot] = min(count, slots)
        slots -= plan[slot]
    return plan


def features(learner: Strategy, samples: Samples) -> Tensor:
    """(N, D) features on the CPU, in evaluation mode, with the network as it is."""
    return extract(learner.net, samples).cpu()


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


# cosine heads, and features that stay near the teacher's (LUCIR, PODNet, AANets) --------------------------------------


def cosine_distance(features: Tensor, teacher: Tensor) -> Tensor:
    """mean_i (1 - cos(phi_i, teacher_i)): LUCIR's less-forget term, PODNet's flat term; (N, D), (N, D).

    >>> cosine_distance(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]])).item()  # doctest: +ELLIPSIS
    0.39999...
    """
    return (1 - F.cosine_similarity(features.float(), teacher.float())).mean()  # in bf16 half of it would be rounding


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

    Source: Hou et al., LUCIR, CVPR 2019, inter-class separation.
    """
    count = min(negatives, cosines.shape[1] - old_classes)
    if count < 1:
        return cosines.sum() * 0
    nearest = cosines[:, old_classes:].topk(count, dim=1).values  # (N, K)
    own = cosines.gather(1, slots[:, None])
    old = (slots < old_classes).to(cosines)
    return ((margin - own + nearest).clamp(min=0).mean(1) * old).sum() / old.sum().clamp(min=1)


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


def balanced_set(learner: Strategy, experience: Experience, rule: str | None = None) -> Samples:
    """Exemplars, and of each class present as many images as an old class has at most: floor(M / C_o).

    Empty where there are no exemplars. Nothing of it is kept.

    Args:
        learner: Has the exemplars as ``memory``.
        experience: Where the other images come from.
        rule: That chooses them, with the network as it is; that of the memory where left out.
    """
    held = copy(learner.memories()["memory"])  # what is held is replaced below, never changed
    if rule is not None:
        held.select = selection(rule)
    quota = max(held.counts().values(), default=0)
    generator = learner.generator("select:balanced")
    see = partial(seen, learner.net, learner.num_classes, held.select.needs)
    held.rebuild(experience.train, quota, see, generator)
    return held.samples()


def grown(held: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A number for each weight, after the weights grew: zeros, and what was held so far in the old part."""
    larger = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for name, old in held.items():
        old_part(larger[name], old).copy_(old)
    return larger


def features_only(make_net: NetFactory) -> GrowingNet:
    """A network that never gets an output, so that its head costs nothing: what a frozen backbone is used for."""
    net = make_net("linear")
    net.head.requires_grad_(False)
    return net


def trains_first(learner: Strategy, choice: bool | str) -> bool:
    """Whether the first experience trains ``learner.net``; if not, it is frozen here and for good.

    Public weights that nothing trains are kept as a reference from then on, carried and charged once.

    Args:
        learner: Its ``net`` is kept.
        choice: What ``train_first`` says: True, False, or ``auto`` (where there are no public weights).

    Raises:
        ConfigError: for anything else.
    """
    if choice not in (True, False, "auto"):
        raise ConfigError(f"strategy.train_first is '{choice}'; allowed: auto, true, false")
    public = getattr(learner.make_net, "pretrained", None)
    if choice is True or (choice == "auto" and public is None):
        return True
    net = freeze(learner.net)
    if public is not None:
        learner.keep("net", net, kind="parameters", reference=reference_of(net, public))
    return False


def first_head(learner: Strategy, signature: Signature, kind: str, trained: bool) -> Head | None:
    """A head to train ``learner.net`` with in the first experience; from the second on none, and the network is frozen.

    Args:
        learner: Calls this in ``grow_net`` and keeps the head as ``temporary``.
        signature: Of the experience.
        kind: ``linear`` or ``cosine``. A linear one is drawn as that of a plain network is.
        trained: What ``trains_first`` said.

    Raises:
        ConfigError: for another kind.
    """
    heads: dict[str, type[Head]] = {"linear": LinearHead, "cosine": CosineHead}
    if kind not in heads:
        raise ConfigError(f"strategy.first_head is '{kind}'; {nearest(kind, heads)}")
    if signature.index:
        freeze(learner.net)
    if signature.index or not trained:
        return None
    head = heads[kind](learner.net.feature_dim).to(learner.net.head.weight)
    head.grow(len(signature.new_slots))
    return head


def exact_features(learner: Strategy, samples: Samples) -> Tensor:
    """(N, D) float64 features of the evaluation view, on the learner's device (on the CPU where that has no float64).

    Raises:
        TrainingError: where they are not finite.
    """
    found = exact(extract(learner.net, samples))
    if not bool(found.isfinite().all()):
        raise TrainingError("features are not finite, so no statistics can be taken of them; lower optimizer.lr")
    return found


def exact(tensor: Tensor) -> Tensor:
    """The values as float64: neither autocast nor TF32 touches them. ``mps`` has none, so from there to the CPU."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def lent(tensor: Tensor, learner: Strategy) -> Tensor:
    """What was computed exactly, for ``predict``: on the learner's device, in the widest type that it has."""
    return tensor.to(learner.device, torch.float32 if learner.device.type == "mps" else torch.float64)


def class_sums(features: Tensor, slots: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sum of the features of each class, (C, D), and their number, (C,); as a product, so the same bits each time."""
    members = F.one_hot(slots.to(features.device), classes).to(features.dtype)  # (N, C)
    return members.T @ features, members.sum(0)
