"""What a learner takes of the images that arrive; what it gives up is not handed to it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from cil.errors import ContractError
from cil.memory import Budget
from cil.strategies import Strategy
from cil.streams import Experience, Signature


def met(learner: Strategy, signature: Signature, budget: Budget) -> Signature:
    """The signature with the images that the learner takes; the budget is told which boundary is next, and the rest.

    Raises:
        ContractError: where it takes more images of a class than there are, or none.
    """
    taken = dict(learner.accepts(signature))
    if taken.keys() != signature.counts.keys() or any(not 0 < taken[k] <= n for k, n in signature.counts.items()):
        raise ContractError(
            f"{type(learner).__name__}.accepts gives {taken} at experience {signature.index}; there are "
            f"{signature.counts}, and of each slot at least one image and at most all must be taken"
        )
    budget.experience = signature.index
    budget.given_up = sum(signature.counts.values()) - sum(taken.values())
    budget.image_bytes = math.prod(signature.image_shape)
    return signature if not budget.given_up else replace(signature, counts=taken)


def drawn(experience: Experience, taken: Signature, generator: torch.Generator) -> Experience:
    """The experience with so many images of each slot, drawn without replacement; their order stays."""
    if taken == experience.signature:
        return experience
    slots, rows = experience.train.slots, []
    for slot, count in sorted(taken.counts.items()):
        own = (slots == slot).nonzero().flatten()
        rows.append(own[torch.randperm(len(own), generator=generator)[:count]])
    return replace(experience, signature=taken, train=experience.train[torch.cat(rows).sort().values].sealed())
