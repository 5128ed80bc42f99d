"""What is known of a run that trains a strategy before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from types import BuiltinFunctionType
from typing import Any, ClassVar

from torch import Tensor, nn

from cil.engine.anytime import Anytime
from cil.engine.budget_fit import Fitted, fit_warnings
from cil.engine.caps import caps_of, caps_results, check_caps, measure_caps
from cil.engine.dry_run import Bill, check_bills, dry_run
from cil.engine.lifecycle import Learners, MakeFactory, MakeLearner, admit
from cil.engine.recipe import Recipe
from cil.engine.runtime import Runtime
from cil.engine.strategy_steps import StrategySteps
from cil.engine.timed_step import SecondsPerImage, seconds_of_training, seconds_per_image
from cil.engine.torch_settings import torch_as_before
from cil.errors import BudgetExceeded, ConfigError
from cil.memory import Allowance, Budget
from cil.models.base import Backbone
from cil.strategies import Strategy
from cil.streams import Stream

MUCH_LARGER = 3  # times the size that a network was designed for, from which on a word is worth it


@dataclass
class PlannedWork:
    """A strategy on a stream under a budget, before anything is trained: what it will carry, spend and be refused for.

    Args:
        budget: What may be carried; a bound is not held to it.
        evaluation_batch, answers, open_set, pictures: As of ``cil.RunOptions``.
        anytime: How often to evaluate inside experiences; None: not at all.
        fit: The hyperparameter that the budget has set; None where it sets none.

    Attributes:
        method: Class of the strategy. What it says of itself is read off it once, here, and by nobody else.
        bound: True for a bound, which a budget only reports on; it is not ranked.
        transductive: True for a strategy that says so on its class: its answers may depend on the other test images.
        whole_batches: Why no two devices may share a batch of it, as a strategy says on its class; None: they may.
        curve: Key of the results that holds the score after each experience, percent.
        looks_inside: True for work that has an ``observer``, and so may be asked to evaluate inside experiences.
    """

    stream: Stream
    make_learner: MakeLearner
    make_factory: MakeFactory
    budget: Budget
    recipe: Recipe
    name: str
    runtime: Runtime
    seed: int = 0
    evaluation_batch: int = 500
    answers: str = "all"
    open_set: bool = False
    pictures: bool = True
    anytime: Anytime | None = None
    fit: Fitted | None = None

    batch_key = "trainer.batch_size"
    curve: ClassVar[str] = "accuracy_curve"
    looks_inside: ClassVar[bool] = False

    def __post_init__(self) -> None:
        method: object = getattr(self.make_learner, "func", self.make_learner)
        if not isinstance(method, type | BuiltinFunctionType):
            method = type(self._structure())  # made by a function
        if not (isinstance(method, type) and issubclass(method, Strategy)):
            found = getattr(method, "__name__", method)
            raise ConfigError(f"strategy {self.name} is or makes a {found}, which is no class of cil.Strategy")
        self.method, self.bound, self.transductive = method, bool(method.bound), bool(method.transductive)
        self.whole_batches = method.whole_batches
        if self.bound:
            self.budget = replace(self.budget, enforce="report")

    @property
    def boundaries(self) -> int:
        return len(self.stream)

    @property
    def length(self) -> int:
        return len(self.stream)

    @cached_property
    def learners(self) -> Learners:
        return Learners(
            self.make_learner, self.make_factory, self.budget, self.stream.signatures, self.runtime, self.seed,
            self.stream.augment, self.final_bytes,
        )  # fmt: skip

    @property
    def final_bytes(self) -> int | None:
        """Fixed bytes at the end of the stream, where the budget reserves them."""
        return self.bill[-1].fixed[self.budget.convention] if self.budget.reserve == "final" else None

    @cached_property
    def bill(self) -> list[Bill]:
        """The bytes that will be carried after each experience.

        Raises:
            ConfigError: where the strategy cannot be grown without data.
        """
        return dry_run(self.make_learner, self._on_meta, self.stream.signatures, self.budget)

    def check(self) -> None:
        learner = self._structure()
        check_task_aware(learner.takes_task, self.stream, self.name)
        self.check_stream(learner)
        if self.open_set:
            self.check_open_set()
        _ = self.bill
        if 1 in (self.recipe.batch_size, self.recipe.first.get("batch_size")):
            try:
                self.steps().at(0, 1)
            except ConfigError as error:  # of batch norm
                raise ConfigError(f"{self.batch_key} is 1, and {error}") from error

    def check_stream(self, learner: Strategy) -> None:
        """Refuse a stream or a setting that this kind of run cannot have; ``learner`` has met no class."""
        if self.anytime is not None and not self.looks_inside:
            raise ConfigError(
                f"anytime.every is {self.anytime.every}, and runs of kind {self.stream.kind} are not evaluated inside "
                f"experiences: set it to null"
            )

    def check_open_set(self) -> None:
        """Refuse a kind of run, or a stream, that has no unknown classes. Default: the kind has none."""
        raise ConfigError(
            f"trainer.open_set is true, and runs of kind {self.stream.kind} score no unknown classes: set it to false"
        )

    def bills(self) -> dict[str, Any]:
        """The bill of each experience, with the caps that structure alone tells."""
        caps = caps_results(self.budget, self._static_caps) if self._static_caps else {}
        fitted = {name: value for name, value in asdict(self.fit).items() if name != "fits"} if self.fit else None
        found = {"warnings": self.warnings(), "fitted": fitted}
        bills = [asdict(bill) for bill in self.bill]
        return {"bills": bills, **caps, **{name: value for name, value in found.items() if value}}

    def check_budget(self) -> dict[str, Any]:
        """Refuse what is over the budget whatever is trained, and a step that holds too much."""
        self._check_bills()
        self.check_static_caps()
        memory = self.budget.check_training(self.name, self.steps().largest, self.batch_key)
        return {} if memory is None else {"training_bill": {"total": memory.total, **memory.kinds}}

    def _check_bills(self) -> None:
        """Refuse bytes that are over the budget, also of a method whose smallest value does not fit."""
        try:
            check_bills(self.bill, self.budget, self.name)
        except BudgetExceeded as error:
            if self.fit is None or self.fit.fits:
                raise
            raise BudgetExceeded(f"with strategy.{self.fit.key}={self.fit.value}, its smallest, {error}") from None

    def check_static_caps(self) -> None:
        """Refuse a structure that is over a cap.

        Raises:
            BudgetExceeded: naming the cap and the first experience after which it is.
        """
        for index, measured in enumerate(self._static_caps):
            check_caps(self.budget, measured, self.name, index, "by its structure after")

    def warnings(self) -> list[str]:
        """Sentences that a person should hear before training: of the data, the strategy, the recipe and the budget."""
        learner = self._structure()
        found = [*self.stream.provenance.notes, *learner.warnings, *self.recipe.warnings(), *self.runtime.warnings()]
        found += size_warnings(getattr(learner, "net", None), self.stream.image_shape[1:])
        found += [self.fit.words(self.name)] if self.fit is not None and self.fit.fits else []
        if learner.memories() and self.budget.enforce != "report":
            found += fit_warnings(self.bill, self.budget, self.stream.signatures, self.name)
        return found

    def excess(self) -> str | None:
        """Why it cannot be trained under its budget; None where it can, and of a bound, which is not held to it."""
        if self.bound:
            return None
        try:
            self._check_bills()
            self.check_static_caps()
        except BudgetExceeded as error:
            return str(error)
        return None

    def stored_bytes(self) -> list[int]:
        """Bytes that a run will store after each experience: all that is carried but public weights."""
        return [bill.total["exact"] - bill.public for bill in self.bill]

    def rates(self) -> SecondsPerImage:
        """Time a few steps, on noise."""
        return seconds_per_image(self.steps())

    def duration(self, rates: SecondsPerImage) -> float:
        """Seconds of training at these rates, about."""
        return seconds_of_training(self.stream.signatures, self.bill, rates)

    def steps(self) -> StrategySteps:
        return StrategySteps(self)

    # parts ----------------------------------------------------------------------------------------------------------

    def _on_meta(self) -> Any:
        return self.make_factory(seed=self.seed, meta=True)

    @torch_as_before()
    def _structure(self) -> Strategy:
        """A learner without values that has met nothing."""
        return self.make_learner(self._on_meta(), Allowance(self.budget))

    @cached_property
    def _static_caps(self) -> list[dict[str, Tensor]]:
        """After each experience what structure alone tells; nothing where no cap is of that."""
        static = {name: cap for name, cap in caps_of(self.budget).items() if cap.static}
        if not static:
            return []
        learner, found = self._structure(), []
        for signature in self.stream.signatures:
            learner.grow(admit(learner, signature, self.budget).lent())
            found.append(measure_caps(static, learner, learner.predict))
        return found


def check_task_aware(takes_task: bool, stream: Stream, name: str) -> None:
    """Refuse a strategy that must be given the task on a stream that does not give it, and the other way round."""
    if takes_task and not stream.task_known_at_test:
        raise ConfigError(
            f"strategy {name} must be told the task of a test image, which stream '{stream.name}' does not; choose a "
            f"stream that does, as stream=embedded_tasks with stream.heads=per_task"
        )
    if stream.task_known_at_test and not takes_task:
        raise ConfigError(
            f"strategy {name} answers without being told the task, which stream '{stream.name}' tells; set "
            f"stream.heads=offset, or choose a strategy whose predict takes the task (strategy=all names them)"
        )


def size_warnings(net: object, size: Sequence[int]) -> Iterator[str]:
    """A sentence where images (height, width) are much larger than those that a network, if any, was designed for."""
    for module in net.modules() if isinstance(net, nn.Module) else ():
        if isinstance(module, Backbone) and module.usual_size and min(size) >= MUCH_LARGER * module.usual_size:
            yield (
                f"{type(module).__name__} is a network for images of about {module.usual_size} pixels, and those of "
                f"the stream have {size[0]}x{size[1]}: it will be slow and see little of each; take stream.size="
                f"{module.usual_size}, or a network for large images, as model=resnet18"
            )
            return
