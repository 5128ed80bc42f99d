"""What a learner hands over as scores: plain numbers, for which no code of the learner answers any more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from cil.contract.reachable import of_library
from cil.errors import ContractError


def checked_scores(scores: Any, who: str) -> Tensor:
    """The scores, if they are a plain tensor of real numbers that nobody else computes with.

    A subclass of ``Tensor``, or a mode of torch that was left open, is asked when scores are compared with labels, and
    could say that they are equal.

    Raises:
        ContractError: where they are not, or a mode is open that is neither torch's nor ours.
    """
    if type(scores) is not Tensor:
        hint = "; its logits are meant, perhaps" if hasattr(scores, "logits") else ""
        raise ContractError(
            f"{who} gives a {type(scores).__name__}; allowed: a plain torch.Tensor of scores, a row an image{hint}"
        )
    if scores.layout is not torch.strided or scores.dtype is torch.bool or scores.is_complex():
        raise ContractError(f"{who} gives scores that are {scores.dtype}, {scores.layout}; allowed: real numbers")
    for mode in foreign_modes():
        raise ContractError(
            f"a mode of torch, {type(mode).__name__}, is open after {who}: it would compute with the scores; open it "
            f"by a with statement, which closes it"
        )
    return scores


def foreign_modes() -> list[object]:
    """Modes of torch that are open now, and are neither torch's nor ours: they see every operator."""
    found = (*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack())
    return [mode for mode in found if not of_library(type(mode))]
