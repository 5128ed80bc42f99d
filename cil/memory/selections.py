"""Selection rules by name, each with the input that it needs of the samples of a class; ``rules`` has the rules.

A rule gets its input, the number wanted and a generator, and returns that many distinct row numbers (or all rows,
where there are fewer), best first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.errors import ConfigError, nearest
from cil.plugins import load, points

NEEDS = ("nothing", "features", "logits", "gradients")


class Predictions(NamedTuple):
    """The network's answers for samples of one class: input of a rule that needs ``logits``.

    Attributes:
        logits: (N, C).
        slots: (N,) int64, the true slots.
    """

    logits: Tensor
    slots: Tensor


class Gradients(NamedTuple):
    """Gradients of each sample's cross-entropy for the weights and biases of a linear head, in factors.

    The gradient of sample i is the outer product of its error, softmax(logits_i) - onehot(slot_i), and its input,
    (features_i, 1). Inner products of two such matrices are those of the errors times those of the inputs, so that the
    matrices (C x (D + 1) numbers a sample) are never made.

    Attributes:
        errors: (N, C).
        inputs: (N, D + 1).
    """

    errors: Tensor
    inputs: Tensor

    @classmethod
    def of(cls, logits: Tensor, features: Tensor, slots: Tensor) -> Gradients:
        """The factors from logits (N, C), features (N, D) and true slots (N,)."""
        errors = logits.double().softmax(1) - F.one_hot(slots.long(), logits.shape[1])
        return cls(errors, torch.cat([features.double(), features.new_ones(len(features), 1).double()], dim=1))


RuleInput = Tensor | Predictions | Gradients
Selection = Callable[..., Tensor]  # (input, count, generator[, option]) -> (min(count, N),) rows


@dataclass(frozen=True)
class SelectionRule:
    """A selection rule with its option.

    Attributes:
        choose: The function.
        needs: One of ``NEEDS``.
        options: Words that may follow the name after a colon; ``NUMBER`` stands for any whole number from 1 on.
        option: Given to ``choose`` as ``option``; None for none.
    """

    choose: Selection
    needs: str = "features"
    options: Sequence[str] = ()
    option: str | int | None = None

    def __call__(self, seen: RuleInput, count: int, generator: torch.Generator) -> Tensor:
        """Row numbers of the chosen, best first."""
        given = {} if self.option is None else {"option": self.option}
        return self.choose(seen, count, generator, **given)

    def with_option(self, name: str, option: str) -> SelectionRule:
        """The rule ``name`` with the option that followed its name.

        Raises:
            ConfigError: if the rule has no such option.
        """
        if "NUMBER" in self.options and option.isdigit() and int(option) > 0:
            return replace(self, option=int(option))
        if option in self.options and option != "NUMBER":
            return replace(self, option=option)
        allowed = ", ".join([name, *(f"{name}:{known}" for known in self.options)])
        raise ConfigError(f"strategy.selection is '{name}:{option}'; allowed: {allowed}")


_SELECTIONS: dict[str, SelectionRule] = {}


def register_selection(
    name: str, needs: str = "features", options: Sequence[str] = ()
) -> Callable[[Selection], Selection]:
    """Make a rule known by name. Other packages: entry points of the group ``cil.selections``.

    Args:
        name: Name in ``strategy.selection``.
        needs: Input of the rule for the samples of a class: ``nothing`` ((N, 0), and nothing is computed), ``features``
            (N, D), ``logits`` (a ``Predictions``), ``gradients`` (a ``Gradients``).
        options: Words that may follow the name after a colon, given to the rule as ``option``; see ``SelectionRule``.

    Raises:
        ConfigError: if there is no such need.
    """
    if needs not in NEEDS:
        raise ConfigError(f"selection rule '{name}' needs '{needs}'; {nearest(needs, NEEDS)}")

    def add(rule: Selection) -> Selection:
        _SELECTIONS[name] = SelectionRule(rule, needs, options)
        return rule

    return add


def selection(name: str) -> SelectionRule:
    """The rule of that name; an option follows a colon: ``herding``, ``k_means:20``, ``entropy:typical``.

    Raises:
        ConfigError: if there is none, or it has no such option.
    """
    base, colon, option = name.partition(":")
    if base not in _SELECTIONS:
        for point in points("cil.selections"):
            loaded = load(point)  # may be registered by now, under this name or another one
            own = next((rule for rule in _SELECTIONS.values() if rule.choose is loaded), SelectionRule(loaded))
            _SELECTIONS.setdefault(point.name, own)
    if base not in _SELECTIONS:
        raise ConfigError(f"no selection rule '{base}' (strategy.selection); {nearest(base, _SELECTIONS)}")
    return _SELECTIONS[base].with_option(base, option) if colon else _SELECTIONS[base]
