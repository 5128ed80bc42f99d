"""The bill before training: structure and counts alone, on the ``meta`` device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from cil.engine.incoming import met
from cil.errors import BudgetExceeded, CilError, ConfigError
from cil.memory import Budget
from cil.models import NetFactory
from cil.strategies import Strategy
from cil.streams import Signature

MakeLearner = Callable[[NetFactory, Budget], Strategy]


@dataclass(frozen=True)
class Bill:
    """What a learner will carry after one experience.

    Attributes:
        fixed: Bytes of everything but exemplars, by convention.
        exemplars: Their number.
        total: Bytes in all, by convention; exemplars of variable size at their raw size.
        by_kind: Exact bytes of each kind.
    """

    experience: int
    fixed: dict[str, int]
    exemplars: int
    total: dict[str, int]
    by_kind: dict[str, int]


def dry_run(make_learner: MakeLearner, make_net: Callable[[], NetFactory], signatures: Sequence[Signature],
            budget: Budget) -> list[Bill]:  # fmt: skip
    """Grow a learner without values over all boundaries and read off its bytes.

    Args:
        make_learner: The strategy with its hyperparameters.
        make_net: A fresh factory on the ``meta`` device.
        signatures: Of the stream.
        budget: Not changed. With ``reserve: final`` its final size is taken from a first pass.

    Raises:
        ConfigError: where the strategy cannot be grown without data.
    """
    if budget.reserve == "final" and budget.limits is not None and budget.final_bytes is None:
        first = dry_run(make_learner, make_net, signatures, replace(budget, reserve="now"))
        budget = replace(budget, final_bytes=first[-1].fixed[budget.convention])
    own = replace(budget)
    learner = make_learner(make_net(), own)
    held: dict[int, int] = {}
    bills = []
    for signature in signatures:
        signature = met(learner, signature, own)
        try:
            learner.grow(signature)
        except CilError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{type(learner).__name__}.grow fails without data at experience {signature.index}: {error}"
            ) from error
        choice = {slot: held.get(slot, 0) + signature.counts.get(slot, 0) for slot in range(signature.num_classes)}
        held = learner.exemplar_plan(own.exemplar_slots(learner), choice)
        exemplars = sum(held.values())
        state = learner.state()
        by_kind: dict[str, int] = {}
        for name, tensor in state.tensors.items():
            kind = state.kinds[name]
            by_kind[kind] = by_kind.get(kind, 0) + tensor.numel() * tensor.element_size()
        meta = len(state.encoded_meta())
        if meta:
            by_kind["other"] = by_kind.get("other", 0) + meta
        if state.references:
            by_kind["parameters"] = by_kind.get("parameters", 0) + sum(r.bytes for r in state.references)
        fixed = {convention: learner.fixed_bytes(convention) for convention in ("exact", "survey")}
        total = dict(fixed)
        for name, memory in learner.memories().items():
            count = sum(held_in(learner, name, held).values())
            for convention in fixed:
                total[convention] += count * memory.item_bytes(learner.image_shape, learner.num_classes, convention)
            for kind, size in memory.item_kinds(learner.image_shape, learner.num_classes).items() if count else ():
                by_kind[kind] = by_kind.get(kind, 0) + count * size
        bills.append(Bill(signature.index, fixed, exemplars, total, by_kind))
    return bills


def held_in(learner: Strategy, name: str, held: Mapping[int, int]) -> dict[int, int]:
    """Of the exemplars of each slot, those in one memory."""
    return {slot: count for slot, count in held.items() if learner.memory_of(slot) in (None, name)}


def check_bills(bills: Sequence[Bill], budget: Budget, name: str) -> None:
    """Refuse before training what cannot fit whatever is trained.

    Raises:
        BudgetExceeded: naming the first boundary at which the learner without exemplars is over the limit.
    """
    if budget.limits is None or budget.enforce == "report":
        return
    for bill in bills:
        limit = int(budget.limits[min(bill.experience, len(budget.limits) - 1)])
        if bill.fixed[budget.convention] > limit:
            parts = ", ".join(f"{kind} {size:,}" for kind, size in sorted(bill.by_kind.items(), key=lambda i: -i[1]))
            raise BudgetExceeded(
                f"{name} will carry {bill.fixed[budget.convention]:,} bytes ({budget.convention}) without a single "
                f"exemplar after experience {bill.experience}, budget.limit is {limit:,}: {parts}; raise budget.limit, "
                f"take a smaller model, or set budget.enforce=report"
            )
