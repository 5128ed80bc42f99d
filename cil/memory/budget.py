"""The budget: how many bytes or exemplars may be carried, as a user asks for it, and as a learner may read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from cil.errors import BudgetExceeded, ConfigError, ContractError
from cil.memory.exemplars import ExemplarMemory
from cil.memory.ledger import Ledger
from cil.memory.training_memory import TrainingMemory, largest_batch
from cil.values import check_value, limits

UNLIMITED = 2**62
MORE_BESIDE = (  # what one may do who is over the cap on side bytes
    "raise budget.side_bytes (null: no cap), set budget.enforce=report, or, where it holds them by design, let its "
    "side_bytes() say how many"
)


class Learner(Protocol):
    """What a budget asks of a strategy."""

    num_classes: int
    image_shape: tuple[int, int, int]

    def fixed_bytes(self, convention: str) -> int:
        """Bytes of all that is carried but rehearsal memories."""
        ...

    def memories(self) -> dict[str, ExemplarMemory]: ...


@dataclass(frozen=True)
class Alignment:
    """Another strategy whose bytes are the limit; they are computed on structure alone, before training.

    Attributes:
        to: Name, class or partial of the strategy.
        exemplars: Exemplars that it would have.
        model: Its model, as ``cil.train`` takes it; None: that of the run.
        each: Its bytes after each experience are the limits; else those after the last one are the one limit.
    """

    to: Any
    exemplars: int
    model: str | Mapping[str, Any] | None = None
    each: bool = False

    def __post_init__(self) -> None:
        check_value("budget.exemplars", self.exemplars)


@dataclass(frozen=True)
class Budget:
    """Bytes or exemplars that may cross a boundary, as a user asks for them.

    Args:
        exemplars: Cap on the number of exemplars in all, the classic protocol; bytes are then reported, not equal.
        limits: Cap in bytes after each experience; the last one holds for all later ones.
        per_class: Cap on the number of exemplars in all, so many for each class seen; in place of ``exemplars``.
        fit: With bytes: the hyperparameter of a method that spends them (``Strategy.fits``) is set to the largest value
            that fits, before training; exemplars fill a budget anyway.
        convention: ``exact``: every carried byte; ``survey``: as Zhou et al. 2024 count; ``libcontinual``: as
            LibContinual does (``cil.memory.libcontinual``).
        reserve: With bytes: exemplars get what is left beside the learner's size ``now``, or its size at the ``final``
            boundary, so that a growing learner keeps their number constant (the survey's way).
        scope: What the cap is on: what is ``carried``, or ``carried+incoming``: exemplars and the new images of an
            experience together, so that as many more exemplars may be held as incoming images are given up (RMM). The
            images given up are never handed to the learner. The limit is then one for the whole stream.
        enforce: ``error`` stops a run over its budget, ``shrink`` drops exemplars until it fits, ``report`` goes on.
        side_bytes: Cap on what is carried beside networks and exemplars, where it is not paid for anyway: with a cap on
            exemplars, and with bytes that the survey or LibContinual leaves free. ``auto``: what statistics of honest
            methods take (``cil.engine.dry_run.SideLimit``); None: no cap.
        training_bytes: Cap on what a step of training holds in all: what is carried, what else is held in training,
            gradients, optimizer state and activations (``peak_training_bytes`` of the record).
        flops: Operations that may be spent on an experience before its state is carried: training, every trial of a
            search, validation, and what hooks compute before it. Training stops there, overspending by a step at most,
            and the judging of the trial that it was in; what hooks compute is not stopped, and leaves less to train.
        updates: Optimizer steps of an experience, those of all trials together.
        caps: Limits of further budgets by name (entry point ``cil.budgets``).
        alignment: Of a budget in bytes that follows another strategy; see ``aligned``.

    Raises:
        ConfigError: naming the key, for a value that is not allowed.
    """

    exemplars: int | None = None
    limits: Sequence[int] | None = None
    convention: str = "exact"
    reserve: str = "now"
    enforce: str = "error"
    scope: str = "carried"
    side_bytes: int | str | None = "auto"
    training_bytes: int | None = None
    flops: float | None = None
    updates: int | None = None
    caps: Mapping[str, float] = field(default_factory=dict)
    per_class: int | None = None
    fit: bool = False
    alignment: Alignment | None = None

    def __post_init__(self) -> None:
        for key in (
            "convention", "reserve", "enforce", "scope", "exemplars", "training_bytes", "updates", "side_bytes",
            "per_class", "fit",
        ):  # fmt: skip
            check_value(f"budget.{key}", getattr(self, key))
        if self.per_class is not None and (self.exemplars is not None or self.alignment is not None):
            given = f"budget.exemplars={self.exemplars}" if self.alignment is None else "a budget aligned to another"
            raise ConfigError(f"budget.per_class is {self.per_class} beside {given}; both count exemplars: give one")
        if self.limits is not None and (not isinstance(self.limits, Sequence) or limits(list(self.limits))):
            raise ConfigError(f"budget.limit is {self.limits!r}; {limits([])}")
        if self.fit and self.limits is None and self.alignment is None:
            raise ConfigError("budget.fit is true, and no bytes are capped; choose budget=bytes or budget=aligned")
        if not isinstance(self.caps, Mapping):
            check_value("budget.caps", self.caps)
        for key, cap in ({"flops": self.flops} | {f"caps.{name}": cap for name, cap in self.caps.items()}).items():
            if cap is not None and not 0 < cap < float("inf"):
                each = "" if key.startswith("caps.") else ", for each experience"
                raise ConfigError(f"budget.{key} is {cap}; it must be a positive number{each}")
        if self.scope != "carried" and self.limits is not None and len(self.limits) > 1:
            raise ConfigError(f"budget.scope is {self.scope} with {len(self.limits)} limits; one must hold for all")

    @classmethod
    def aligned(
        cls, to: Any, exemplars: int, *, model: str | Mapping[str, Any] | None = None, each: bool = False, **terms: Any
    ) -> Budget:
        """A budget of as many bytes as the strategy ``to`` carries with so many exemplars (see ``Alignment``).

        Args:
            terms: ``convention``, ``reserve``, ``enforce`` and the other arguments of ``Budget``.
        """
        return cls(alignment=Alignment(to, exemplars, model, each), **terms)

    @property
    def kind(self) -> str:
        """``aligned``, ``bytes``, ``exemplars``, ``per_class`` or ``none``: the file of the configuration group."""
        if self.alignment is not None:
            return "aligned"
        if self.limits is not None:
            return "bytes"
        return "per_class" if self.per_class is not None else "none" if self.exemplars is None else "exemplars"

    @property
    def counts(self) -> bool:
        """True if the number of exemplars is capped."""
        return self.exemplars is not None or self.per_class is not None

    def description(self) -> dict[str, Any]:
        """The terms as the identity of a run says them: plain data."""
        terms = {key: value for key, value in asdict(replace(self, alignment=None)).items() if key != "alignment"}
        for key, default in (("caps", {}), ("side_bytes", "auto"), ("per_class", None), ("fit", False)):
            if terms[key] == default:
                del terms[key]
        terms["limits"] = None if self.limits is None else list(self.limits)
        alignment = self.alignment
        each = len(self.limits or ()) > 1 if alignment is None else alignment.each
        found = {"kind": self.kind, **terms, "at": "each" if each else "end", "to": None}
        if alignment is not None:
            to = alignment.to
            method = getattr(to, "func", to)
            own = getattr(method, "__dict__", {})  # a name is not inherited
            named = to if isinstance(to, str) else own.get("name") or getattr(method, "__name__", str(to))
            found |= {"exemplars": alignment.exemplars, "to": named}
            if alignment.model is not None:
                model = alignment.model
                found["to_model"] = model["name"] if isinstance(model, Mapping) else model
        return found

    @property
    def caps_side(self) -> bool:
        """True if what is carried beside networks and exemplars is capped: nothing else makes a learner pay for it."""
        free = self.counts or (self.limits is not None and self.convention != "exact")
        return free and self.side_bytes is not None

    def free_beside(self, ledger: Ledger) -> int:
        """Bytes beside networks and exemplars that this budget charges nothing for.

        That is all of them, but under ``libcontinual``, which charges most kinds: there at most what nobody pays for,
        and buffers of networks as well, which are free.
        """
        if self.counts or self.convention != "libcontinual":
            return ledger.beside.bytes
        return min(ledger.beside.bytes + ledger.by_kind().get("buffers", 0), ledger.unpaid_bytes)

    def lent(self, experience: int) -> Budget:
        """The same terms for a learner at an experience: it can change nothing of them, down to their lists.

        Limits of later experiences are left out: they would tell how many come.
        """
        own = copy(self)
        known = None if self.limits is None else tuple(self.limits[: experience + 1])
        object.__setattr__(own, "limits", known)
        object.__setattr__(own, "caps", dict(self.caps))
        return own

    def spent(self, flops: int, updates: int) -> bool:
        """True if so many operations or optimizer steps leave nothing for another step."""
        return (self.flops is not None and flops >= self.flops) or (
            self.updates is not None and updates >= self.updates
        )

    def check_training(
        self, name: str, measure: Callable[[int | None], TrainingMemory], key: str = "trainer.batch_size"
    ) -> TrainingMemory | None:
        """Refuse, before the first step, one that holds more than ``training_bytes``.

        Args:
            measure: Batch size (None: as configured) to what a step holds; not called where there is no cap.

        Returns:
            What the step holds; None where there is no cap.

        Raises:
            BudgetExceeded: naming every kind and its bytes, and the largest batch that fits.
        """
        if self.training_bytes is None:
            return None
        memory = measure(None)
        if memory.total <= self.training_bytes or self.enforce == "report":
            return memory
        fits = largest_batch(measure, self.training_bytes, memory.batch_size)
        advice = f"{key}={fits} is the largest that fits" if fits else "no batch size fits: take a smaller model"
        raise BudgetExceeded(
            f"{name} needs {memory.total:,} bytes in a step of {memory.batch_size} images ({memory.where}), "
            f"budget.training_bytes is {self.training_bytes:,}: {memory.describe()}; {advice}, or set "
            f"budget.training_bytes={memory.total}, or budget.enforce=report"
        )


@dataclass(frozen=True)
class NextBoundary:
    """What the engine knows of the boundary that comes next.

    Attributes:
        experience: Its index.
        given_up: Images of that experience that the learner does without (``Strategy.accepts``).
        image_bytes: Raw bytes of one of them.
        final_bytes: Fixed bytes of the learner at the end of the stream, from the dry run; for ``reserve: final``.
        side_bytes: Bytes that may be carried beside networks and exemplars; None: any.
        in_advance: Images that later experiences will give up, held as exemplars from the first one on
            (``Strategy.in_advance``).
        classes: Classes seen by then.
    """

    experience: int = 0
    given_up: int = 0
    image_bytes: int = 0
    final_bytes: int | None = None
    side_bytes: int | None = None
    in_advance: int = 0
    classes: int = 0


class Allowance:
    """What may be carried across the next boundary: the budget as it applies there. Nothing of it can be set.

    A learner has it as ``self.budget``; the engine holds states to one of its own.
    """

    __slots__ = ("boundary", "budget")
    budget: Budget
    boundary: NextBoundary

    def __init__(self, budget: Budget, boundary: NextBoundary = NextBoundary()) -> None:
        object.__setattr__(self, "budget", budget.lent(boundary.experience))
        object.__setattr__(self, "boundary", boundary)

    @classmethod
    def of(cls, given: Budget | Allowance) -> Allowance:
        """An allowance as it is; of a budget, that of the first boundary."""
        return given if isinstance(given, Allowance) else cls(given)

    def __setattr__(self, name: str, value: object) -> None:
        raise ContractError(
            f"budget.{name} cannot be set by a learner: what may be carried is the user's to say, by the keys budget.*"
        )

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __reduce__(self) -> tuple[type[Allowance], tuple[Budget, NextBoundary]]:
        return Allowance, (self.budget, self.boundary)  # copied with the learner that has it

    @property
    def convention(self) -> str:
        """``exact``, ``survey`` or ``libcontinual``."""
        return self.budget.convention

    @property
    def scope(self) -> str:
        """``carried`` or ``carried+incoming``."""
        return self.budget.scope

    @property
    def exemplars(self) -> int | None:
        """Exemplars that the user allows at the next boundary; None where they are not counted."""
        each = self.budget.per_class
        return self.budget.exemplars if each is None else each * self.boundary.classes

    @property
    def limits(self) -> Sequence[int] | None:
        """Bytes that the user allows after each experience up to this one; None where bytes are not capped."""
        return self.budget.limits

    @property
    def extra(self) -> int:
        """Exemplars that may be held beyond the cap, in place of incoming images."""
        return self.boundary.given_up + self.boundary.in_advance if self.scope == "carried+incoming" else 0

    @property
    def cap(self) -> int | None:
        """Exemplars allowed at the next boundary; None where they are not counted."""
        return None if self.exemplars is None else self.exemplars + self.extra

    @property
    def limit(self) -> int | None:
        """Bytes allowed at the next boundary; None where only exemplars are counted, or nothing is."""
        if self.limits is None:
            return None
        at = min(self.boundary.experience, len(self.limits) - 1)
        return int(self.limits[at]) + self.extra * self.boundary.image_bytes

    def remaining(self, learner: Learner) -> int:
        """Bytes left for rehearsal memories, after everything else that is kept, at its size after ``grow``."""
        if self.limit is None:
            return UNLIMITED
        fixed = learner.fixed_bytes(self.convention)
        if self.budget.reserve == "final" and self.boundary.final_bytes is not None:
            fixed = max(fixed, self.boundary.final_bytes)
        return max(0, self.limit - fixed)

    def counted_slots(self, learner: Learner) -> int:
        """Exemplars that the cap on their number allows in each rehearsal memory, whatever their bytes."""
        return UNLIMITED if self.cap is None else self.cap // max(1, len(learner.memories()))

    def exemplar_slots(self, learner: Learner) -> int:
        """The whole number of exemplars that fit in each rehearsal memory: the difference first, then one floor.

        A codec of variable size counts its exemplars at the raw size here, and fills ``remaining`` by actual size.
        """
        slots = self.counted_slots(learner)
        if self.limit is not None:
            items = [
                memory.item_bytes(learner.image_shape, learner.num_classes, self.convention)
                for memory in learner.memories().values()
            ]
            slots = min(slots, self.remaining(learner) // sum(items)) if items else 0
        return slots

    def capacity(self, learner: Learner, memory: ExemplarMemory) -> int | None:
        """Bytes that ``memory`` may fill by actual size; None where its items are of one size, or are only counted."""
        if memory.codec.fixed or self.limit is None or self.convention == "survey":
            return None
        return self.remaining(learner) // max(1, len(learner.memories()))

    def over(self, ledger: Ledger, exemplars: int) -> str | None:
        """What is over the budget, in words; None where all is well."""
        total = ledger.total(self.convention)
        more = f", and {self.extra:,} incoming images are given up for exemplars" if self.extra else ""
        if self.limit is not None and total > self.limit:
            asked = self.limit - self.extra * self.boundary.image_bytes
            return f"carries {total:,} bytes ({self.convention}), budget.limit is {asked:,}{more}"
        if self.cap is not None and exemplars > self.cap:
            each = self.budget.per_class
            allowed = f"exemplars is {self.exemplars:,}"
            if each is not None:
                allowed = f"per_class is {each:,} ({self.exemplars:,} for {self.boundary.classes} classes)"
            return f"carries {exemplars:,} exemplars, budget.{allowed}{more}"
        return self._over_beside(ledger) or self._over_in_training(ledger)

    def _over_beside(self, ledger: Ledger) -> str | None:
        most, held = self.boundary.side_bytes, self.budget.free_beside(ledger)
        if most is None or held <= most:
            return None
        return (
            f"carries {held:,} bytes beside networks and exemplars "
            f"({held / self.boundary.image_bytes:,.0f} images' worth), "
            f"budget.side_bytes allows {most:,}"
        )

    def _over_in_training(self, ledger: Ledger) -> str | None:
        most = self.budget.training_bytes
        if most is None or ledger.peak_training_bytes <= most:
            return None
        return f"held {ledger.peak_training_bytes:,} bytes in training, budget.training_bytes is {most:,}"

    def check(self, ledger: Ledger, exemplars: int, name: str, when: str = "after") -> None:
        """Refuse a state that is over the budget ``when`` the experience is reached or done.

        Raises:
            BudgetExceeded: naming every kind and its bytes.
        """
        over = self.over(ledger, exemplars)
        if over and self.budget.enforce != "report":
            counted = "exemplars" if self.budget.per_class is None else "per_class"
            kinds, key = ledger.describe(self.convention), f"budget.limit or budget.{counted}"
            if over == self._over_in_training(ledger):
                kinds, key = f"{kinds}, {ledger.describe(lifetime='training')}", "budget.training_bytes"
            if over == self._over_beside(ledger):
                raise BudgetExceeded(
                    f"{name} {over} {when} experience {self.boundary.experience}: {kinds}; {MORE_BESIDE}"
                )
            raise BudgetExceeded(
                f"{name} {over} {when} experience {self.boundary.experience}: {kinds}; raise {key}, or set "
                f"budget.enforce=report"
            )
