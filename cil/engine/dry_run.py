"""The bill before training: structure and counts alone, on the ``meta`` device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cil.contract import freeze
from cil.engine.lifecycle import MakeLearner, admit
from cil.engine.torch_settings import torch_as_before
from cil.errors import BudgetExceeded, CilError, ConfigError, ContractError, in_words
from cil.memory import Allowance, Budget, tensor_bytes
from cil.memory.budget import MORE_BESIDE
from cil.memory.ledger import CONVENTIONS
from cil.models import GrowingNet, NetFactory
from cil.strategies import Strategy
from cil.streams import Signature

METADATA = 4096  # bytes that any learner may carry: counters, orders of classes


@dataclass(frozen=True)
class Bill:
    """The bytes that a learner will carry after one experience.

    Attributes:
        fixed: Bytes of everything but exemplars, by convention.
        total: Bytes in all, by convention; exemplars of variable size at their raw size.
        by_kind: Exact bytes of each kind.
        beside: Bytes beside networks and exemplars.
        free_beside: Of these, bytes that the budget charges nothing for.
        side_limit: How many of those may be carried; None: any.
        networks: Most bytes that count as networks; None: any.
        public: Of the exact bytes, those of public weights that are referred to: no file of a run has them.
    """

    experience: int
    fixed: dict[str, int]
    exemplars: int
    total: dict[str, int]
    by_kind: dict[str, int]
    beside: int = 0
    free_beside: int = 0
    side_limit: int | None = None
    networks: int | None = None
    public: int = 0


@dataclass(frozen=True)
class SideLimit:
    """How much may be carried after an experience beside networks and exemplars, where nothing else makes one pay.

    A cap on the number of exemplars says nothing of images that are kept as something else, and the survey's convention
    charges nothing for them. Honest methods keep statistics there: an importance of each weight (one network), a mean
    and a covariance of features a class. They fit; a data set does not.

    Attributes:
        bytes: Beside networks and exemplars; None: no cap.
        networks: Most bytes that count as networks: those of one plain network of this setting for each experience so
            far, and of one more. What a learner carries as parameters above that is beside them.
    """

    bytes: int | None
    networks: int

    @classmethod
    def of(cls, plain: GrowingNet, signature: Signature, budget: Budget, declared: int) -> SideLimit:
        """The limit under a budget.

        ``side_bytes: auto`` allows, with P bytes of the plain network, D features and C classes,

            max(P, C * 2 D (D + 1)) + C * (8 D + 16) + 4096

        an importance of each weight or a covariance a class, beside a mean and a variance; and what is declared.

        Args:
            plain: A network of this setting, grown to the classes seen.
            declared: Further bytes that the method holds by design (``Strategy.side_bytes``).
        """
        network = sum(map(tensor_bytes, plain.state_dict().values()))
        networks = (signature.index + 2) * network
        if not budget.caps_side:
            return cls(None, networks)
        if not isinstance(budget.side_bytes, str):
            return cls(budget.side_bytes, networks)
        features, classes = plain.feature_dim, signature.num_classes
        covariances = classes * 2 * features * (features + 1)
        own = max(network, covariances) + classes * (8 * features + 16) + METADATA
        return cls(own + declared, networks)


@torch_as_before()
def dry_run(
    make_learner: MakeLearner,
    make_net: Callable[[], NetFactory],
    signatures: Sequence[Signature],
    budget: Budget,
    final_bytes: int | None = None,
) -> list[Bill]:
    """Grow a learner without values over all boundaries and read off its bytes.

    Args:
        make_net: Gives a fresh factory on the ``meta`` device.
        budget: With ``reserve: final`` the final size is taken from a first pass, unless ``final_bytes`` says it.

    Raises:
        ConfigError: where the strategy cannot be grown without data.
        ContractError: where it did not grow with the classes.
    """
    if budget.reserve == "final" and budget.limits is not None and final_bytes is None:
        first = dry_run(make_learner, make_net, signatures, budget, final_bytes=0)
        final_bytes = first[-1].fixed[budget.convention]
    learner = make_learner(make_net(), Allowance(budget))
    plain = make_net()()
    held: dict[int, int] = {}
    bills = []
    for signature in signatures:
        taken = admit(learner, signature, budget, final_bytes)
        try:
            learner.grow(taken.lent())
        except CilError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{type(learner).__name__}.grow fails without data at experience {signature.index}: {in_words(error)}"
            ) from error
        if learner.num_classes != taken.num_classes:
            raise ContractError(
                f"{type(learner).__name__}.grow leaves num_classes at {learner.num_classes} of {taken.num_classes} at "
                f"experience {signature.index}; an override calls super().grow(signature) first"
            )
        held = planned_exemplars(learner, taken, held)
        plain.grow(len(taken.new_slots))
        side = learner.side_bytes()
        if type(side) is not int or side < 0:
            raise ContractError(f"{type(learner).__name__}.side_bytes gives {side!r}; it must be a whole number from 0")
        bills.append(_bill(learner, taken, held, budget, SideLimit.of(plain, taken, budget, side)))
    if learner.unallocated() and len(signatures) > 1:
        name = learner.unallocated()[0]
        raise ConfigError(
            f"{type(learner).__name__} keeps {name} as carried, and neither __init__ nor grow makes it, so nobody "
            f"knows its bytes before training: make it there at its final size, or keep it with lifetime='training'"
        )
    return bills


def planned_exemplars(learner: Strategy, signature: Signature, held: Mapping[int, int]) -> dict[int, int]:
    """Exemplars of each slot after an experience, from those ``held`` before and what arrives."""
    choice = {slot: held.get(slot, 0) + signature.counts.get(slot, 0) for slot in range(signature.num_classes)}
    return learner.exemplar_plan(Allowance.of(learner.budget).exemplar_slots(learner), choice)


def held_in(learner: Strategy, name: str, held: Mapping[int, int]) -> dict[int, int]:
    """The exemplars of each slot that lie in one memory."""
    return {slot: count for slot, count in held.items() if learner.memory_of(slot) in (None, name)}


def _bill(
    learner: Strategy, signature: Signature, held: Mapping[int, int], budget: Budget, side: SideLimit
) -> Bill:  # fmt: skip
    frozen = freeze(learner, signature.image_shape, signature.num_classes, side.networks)
    state = frozen.state
    by_kind: dict[str, int] = {}

    def add(kind: str, size: int) -> None:
        by_kind[kind] = by_kind.get(kind, 0) + size

    for name, tensor in state.tensors.items():
        add(state.kinds[name], tensor.numel() * tensor.element_size())
    if meta := len(state.encoded_meta()):
        add("other", meta)
    public = sum(reference.bytes for reference in state.references)
    if public:
        add("parameters", public)
    fixed = {convention: learner.fixed_bytes(convention) for convention in CONVENTIONS}
    total = dict(fixed)
    for name, memory in learner.memories().items():
        count = sum(held_in(learner, name, held).values())
        for convention in fixed:
            total[convention] += count * memory.item_bytes(learner.image_shape, learner.num_classes, convention)
        for kind, size in memory.item_kinds(learner.image_shape, learner.num_classes).items() if count else ():
            add(kind, count * size)
    return Bill(
        signature.index, fixed, sum(held.values()), total, by_kind, frozen.beside.bytes,
        budget.free_beside(frozen.ledger()), side.bytes, side.networks, public,
    )  # fmt: skip


def check_bills(bills: Sequence[Bill], budget: Budget, name: str) -> None:
    """Refuse before training what cannot fit whatever is trained.

    Raises:
        BudgetExceeded: naming the first boundary at which the learner without exemplars is over the limit.
    """
    if budget.enforce == "report":
        return
    for bill in bills:
        if bill.side_limit is not None and bill.free_beside > bill.side_limit:
            raise BudgetExceeded(
                f"{name} will carry {bill.free_beside:,} bytes beside networks and exemplars after experience "
                f"{bill.experience}, budget.side_bytes allows {bill.side_limit:,}: {_kinds(bill)}; "
                f"{MORE_BESIDE}"
            )
    if budget.limits is None:
        return
    for bill in bills:
        limit = int(budget.limits[min(bill.experience, len(budget.limits) - 1)])
        if bill.fixed[budget.convention] > limit:
            raise BudgetExceeded(
                f"{name} will carry {bill.fixed[budget.convention]:,} bytes ({budget.convention}) without a single "
                f"exemplar after experience {bill.experience}, budget.limit is {limit:,}: {_kinds(bill)}; raise "
                f"budget.limit, take a smaller model, or set budget.enforce=report"
            )


def _kinds(bill: Bill) -> str:
    return ", ".join(f"{kind} {size:,}" for kind, size in sorted(bill.by_kind.items(), key=lambda item: -item[1]))


def limits_like(
    make_learner: MakeLearner, make_net: Callable[[], NetFactory], signatures: Sequence[Signature], budget: Budget
) -> list[int]:
    """Bytes that the strategy of an aligned budget carries: after each experience, or the last one's alone."""
    assert budget.alignment is not None
    exemplars, shape = budget.alignment.exemplars, signatures[0].image_shape
    bills = dry_run(make_learner, make_net, signatures, Budget(exemplars=exemplars))
    totals = [bill.total[budget.convention] for bill in bills]
    if budget.convention == "survey":  # the nominal number of exemplars, whole quotas or not
        pixels = shape[0] * shape[1] * shape[2]
        totals = [bill.fixed["survey"] + (exemplars * pixels if bill.exemplars else 0) for bill in bills]
    return totals if budget.alignment.each else totals[-1:]
