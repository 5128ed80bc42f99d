"""How a budget fits a setting: warnings before training, where it leaves classes without exemplars or does not bind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cil.engine.dry_run import Bill
from cil.memory import Budget
from cil.streams import Signature

MUCH = 0.10  # share of a limit that is worth a word where it is not used


def fit_warnings(bills: Sequence[Bill], budget: Budget, signatures: Sequence[Signature], name: str) -> Iterator[str]:
    """Sentences on the end of the stream, for a learner that rehearses.

    Args:
        bills: What will be carried after each experience.
        name: The strategy, for messages.
    """
    stored, classes = bills[-1].exemplars, signatures[-1].num_classes
    images = sum(sum(signature.counts.values()) for signature in signatures)
    limit = None if budget.limits is None else int(budget.limits[-1])
    if not budget.counts and limit is None:
        return
    if limit is not None and bills[-1].fixed[budget.convention] > limit:  # refused, with its bytes
        return
    counted = "exemplars" if budget.per_class is None else "per_class"
    asked = f"budget.{counted}={getattr(budget, counted)}" if limit is None else f"budget.limit={limit:,}"
    if stored < classes and 0 not in (budget.exemplars, budget.per_class):
        yield (
            f"{name}: {asked} leaves {stored} exemplars for {classes} classes after the last experience, so "
            f"{classes - stored} of them or more have none; raise it{f' to {classes} or more' if limit is None else ''}"
        )
    if stored >= images:
        yield f"{name}: {asked} does not bind, every one of {images:,} training images is kept; lower it"
    if limit is not None and stored:
        unused = 1 - bills[-1].total[budget.convention] / limit
        if unused >= MUCH:
            yield f"{name}: {unused:.0%} of {asked} is unused after the last experience; rivals may use it"
