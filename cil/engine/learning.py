"""The work of a run that trains a strategy, but for its evaluation: that is the kind's own (``cil.kinds``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cil.data import Samples
from cil.engine.anytime import Anytime
from cil.engine.budget_fit import fit_warnings
from cil.engine.caps import caps_of, caps_results, check_caps, measure_caps
from cil.engine.cost import Cost
from cil.engine.driver import Boundary, Context, Counts, Facts
from cil.engine.dry_run import Bill, check_bills, dry_run
from cil.engine.keys import generator, reseed
from cil.engine.lifecycle import Learners, MakeFactory, MakeLearner, admit, all_evaluating, enter, sample_experience
from cil.engine.phases import Observer, Training
from cil.engine.recipe import Recipe
from cil.engine.runtime import Runtime
from cil.engine.scoring import scored
from cil.engine.spending import spent
from cil.engine.status import Clock
from cil.engine.strategy_steps import StrategySteps
from cil.errors import ConfigError
from cil.memory import Allowance, Budget, Entry, Flops, Ledger
from cil.strategies import Strategy
from cil.streams import Experience, Stream, TaskKey


@dataclass
class StrategyWork:
    """Trains a strategy on a stream under a budget, one experience at each boundary. Subclasses evaluate it.

    Args:
        stream: What is learned from.
        make_learner: Factory of networks and allowance to a fresh strategy.
        make_factory: Keyword arguments ``seed``, ``device``, ``meta`` to a factory of networks.
        budget: What may be carried; a bound is not held to it.
        recipe: How phases are trained.
        name: The strategy, for messages.
        runtime: Device and precision.
        seed: All random draws follow from it.
        evaluation_batch: Images a batch in evaluation.
        anytime: How often to evaluate inside experiences; None: not at all.

    Attributes:
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
    anytime: Anytime | None = None

    batch_key = "trainer.batch_size"
    curve: ClassVar[str] = "accuracy_curve"
    looks_inside: ClassVar[bool] = False

    def __post_init__(self) -> None:
        method: object = getattr(self.make_learner, "func", self.make_learner)
        if not isinstance(method, type):
            method = type(self._structure())  # made by a function
        if not issubclass(method, Strategy):
            raise ConfigError(
                f"strategy {self.name} is or makes a {method.__name__}, which is no class of cil.Strategy"
            )
        if method.bound:
            self.budget = replace(self.budget, enforce="report")

    @property
    def boundaries(self) -> int:
        """One for each experience."""
        return len(self.stream)

    @property
    def length(self) -> int:
        """Experiences of the stream."""
        return len(self.stream)

    @cached_property
    def learners(self) -> Learners:
        """Makes learners from what was carried."""
        final = self.bill[-1].fixed[self.budget.convention] if self.budget.reserve == "final" else None
        stream = self.stream
        return Learners(
            self.make_learner, self.make_factory, self.budget, stream.signatures, self.runtime, self.seed,
            stream.augment, final,
        )  # fmt: skip

    @cached_property
    def bill(self) -> list[Bill]:
        """The bytes that will be carried after each experience.

        Raises:
            ConfigError: where the strategy cannot be grown without data.
        """
        return dry_run(self.make_learner, self._on_meta, self.stream.signatures, self.budget)

    def check(self) -> None:
        """Refuse what does not fit together, before anything is trained."""
        learner = self._structure()
        check_task_aware(learner.takes_task, self.stream, self.name)
        self.check_stream(learner)
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

    def bills(self) -> dict[str, Any]:
        """The bill of each experience, with the caps that structure alone tells."""
        caps = caps_results(self.budget, self._static_caps) if self._static_caps else {}
        warnings = self.warnings()
        return {"bills": [asdict(bill) for bill in self.bill], **caps, **({"warnings": warnings} if warnings else {})}

    def check_budget(self) -> dict[str, Any]:
        """Refuse what is over the budget whatever is trained, and a step that holds too much."""
        check_bills(self.bill, self.budget, self.name)
        self.check_static_caps()
        memory = self.budget.check_training(self.name, self.steps().largest, self.batch_key)
        return {} if memory is None else {"training_bill": {"total": memory.total, **memory.kinds}}

    def check_static_caps(self) -> None:
        """Refuse a structure that is over a cap.

        Raises:
            BudgetExceeded: naming the cap and the first experience after which it is.
        """
        for index, measured in enumerate(self._static_caps):
            check_caps(self.budget, measured, self.name, index, "by its structure after")

    def warnings(self) -> list[str]:
        """Sentences that a person should hear before training: of the strategy, the recipe and the budget."""
        learner = self._structure()
        found = [*learner.warnings, *self.recipe.warnings()]
        if learner.memories() and self.budget.enforce != "report":
            found += fit_warnings(self.bill, self.budget, self.stream.signatures, self.name)
        return found

    def steps(self) -> StrategySteps:
        """Measures steps before there are any."""
        return StrategySteps(
            self.make_learner, self.make_factory, self.stream.signatures, self.budget, self.bill, self.recipe,
            self.name, self.stream.augment, self.runtime.precision, self.seed,
        )  # fmt: skip

    # one experience -------------------------------------------------------------------------------------------------

    def train(self, index: int, context: Context) -> Boundary:
        """One experience: everything that happens to a strategy, in order."""
        learner = self.learners.rebuilt(index, context.checkpoints.state(index - 1) if index else None)
        taken = self.learners.admit(learner, index)
        allowance = Allowance.of(learner.budget)
        keyed = generator(self.seed, "incoming", index)
        experience = sample_experience(self.stream.training_half()[index], taken, keyed)
        self.keep_images(experience, context)
        flops = Flops()  # operations of all hooks but the phases
        around = partial(self._around, learner, index, flops)
        grow = partial(self.learners.grow, learner, index)
        enter(learner, experience, grow, around, partial(self._make_room, learner, allowance))
        observer = self.observer(index, context)
        training = Training(
            context, index, self.seed, self.recipe, self.stream.augment_of(index), self.runtime,
            sum(fact["steps"] for fact in context.facts(index)), self.budget, flops.count,
            partial(self._error, experience), experience.train, observer,
        )  # fmt: skip
        costs = training.run(learner, learner.phases(experience))
        parameters = sum(p.numel() for p in {id(p): p for m in learner.modules() for p in m.parameters()}.values())
        context.stop.here()  # what was trained is in the snapshots
        observed = None if observer is None else observer.experience_ends(learner)
        trained = context.clock.seconds
        with around("after"):
            learner.after_experience(experience)
        held = [*learner.training_entries(), *max((cost.entries for cost in costs), key=_bytes, default=[])]
        if self.budget.enforce == "shrink":
            shrink(learner, allowance)
        facts: dict[str, Any] = {
            "signature": asdict(self.stream.signatures[index]),
            "given_up": allowance.boundary.given_up,
            "flops": flops_by_part(costs, learner, flops.count),
            "seconds": {"train": trained, "consolidate": context.clock.seconds - trained},
            "steps": sum(cost.steps for cost in costs),
            "peak_parameters": parameters,
            "findings": learner.diagnostics,
            "loss": _largest_loss(costs),
            "search": [cost.trial | {"flops": cost.flops} for cost in costs if cost.trial],
        }
        if observed is not None:
            facts["anytime"] = observed
            facts["seconds"]["train"] -= observed["seconds"]
        if self.budget.flops is not None or self.budget.updates is not None:
            facts["compute"] = compute(self.budget, facts["flops"], facts["steps"])
            facts["ended_early"] = any(cost.cut for cost in costs)
        return Boundary(learner.state(), facts, held, count_exemplars(learner), allowance)

    def keep_images(self, experience: Experience, context: Context) -> None:
        """Keep images of an experience in the record, for reports. Default: none."""

    def observer(self, index: int, context: Context) -> Observer | None:
        """Looks at the learner between steps. Default: nobody does."""
        return None

    # evaluation -----------------------------------------------------------------------------------------------------

    def evaluate(self, index: int, context: Context) -> Counts:
        """Count answers of the learner, rebuilt from what was carried and nothing else."""
        clock = Clock()
        learner = self.learners.rebuilt(index + 1, context.checkpoints.state(index))

        def predict(images: Tensor, task: TaskKey | None = None) -> Tensor:
            context.stop.here()
            return self.learners.scores(learner, images, task)

        counts = dict(self.count(index, learner, predict))
        counts["seconds"] = torch.tensor([clock.seconds], dtype=torch.float64)
        measured = measure_caps(caps_of(self.budget), learner, predict)
        if measured:
            rows = [*(context.checkpoints.evaluated(i) or {} for i in range(index)), measured]
            context.record.update(caps_results(self.budget, rows))
            check_caps(self.budget, measured, self.name, index)
        return counts | measured

    def count(self, index: int, learner: Strategy, predict: Callable[..., Tensor]) -> Counts:
        """Count answers after experience ``index``: the kind's own.

        Args:
            learner: Rebuilt from what was carried.
            predict: Images, and the task where the stream tells it, to scores.

        Returns:
            Tensors by name, of whatever ``scores`` is to be computed from; ``flops``, (1,) float64, is among them.
        """
        raise NotImplementedError(f"{type(self).__name__} must write count(index, learner, predict)")

    def results(self, rows: Sequence[Counts], facts: Sequence[Facts]) -> Mapping[str, object]:
        """Scores, and what was carried and spent."""
        return {**self.scores(rows, facts), **spent(rows, facts), **caps_results(self.budget, rows)}

    def scores(self, rows: Sequence[Counts], facts: Sequence[Facts]) -> Mapping[str, object]:
        """The part of the results that the kind's own counts give; with what ``logged`` reads, and ``curve``."""
        raise NotImplementedError(f"{type(self).__name__} must write scores(rows, facts)")

    def arrays(self, rows: Sequence[Counts], facts: Sequence[Facts]) -> Mapping[str, np.ndarray[Any, Any]]:
        """Results that are large. Default: none."""
        return {}

    def line(
        self, index: int, results: Mapping[str, Any], facts: Sequence[Facts]
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Scores, bytes and exemplars after an experience, for loggers."""
        values = {
            **self.logged(results),
            "carried_bytes": facts[-1]["ledger"]["totals"]["exact"]["total"],
            "exemplars": facts[-1]["exemplars"],
        }
        if "ended_early" in facts[-1]:  # under a budget of compute
            values["ended_early"] = int(facts[-1]["ended_early"])
        return values, {"experience": index, "step": sum(fact["steps"] for fact in facts)}

    def logged(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Scores for loggers, by the names that these show. Default: accuracy and forgetting."""
        return {
            "accuracy": results["accuracy_curve"][-1],
            "average_incremental_accuracy": results["average_incremental_accuracy"],
            "forgetting": results["forgetting"],
        }

    def kept(self, results: Mapping[str, Any]) -> tuple[int, set[int]]:
        """The boundary of the highest score."""
        curve = results[self.curve]
        return max(range(len(curve)), key=lambda i: curve[i] or 0.0), set()

    # parts ----------------------------------------------------------------------------------------------------------

    def _on_meta(self) -> Any:
        return self.make_factory(seed=self.seed, meta=True)

    def _structure(self) -> Strategy:
        """A learner without values that has met nothing."""
        return self.make_learner(self._on_meta(), Allowance(self.budget))

    @contextmanager
    def _around(self, learner: Strategy, index: int, flops: Flops, hook: str) -> Iterator[None]:
        """Around a hook: keyed random numbers, precision, its operations counted, everything in evaluation mode."""
        reseed(self.seed, hook, index)
        with self.runtime.autocast(), flops.counting(), all_evaluating(learner):
            yield

    def _make_room(self, learner: Strategy, allowance: Allowance) -> None:
        """Under a budget on both, exemplars and the images that arrive fit together."""
        if self.budget.scope == "carried":
            return
        if self.budget.enforce == "shrink":
            shrink(learner, allowance)
        ledger = Ledger.of(learner.state())
        allowance.check(ledger, count_exemplars(learner), self.name, when="with what arrives in")

    def _error(self, experience: Experience, learner: Strategy, samples: Samples) -> float:
        """Error in percent on held-out data of an experience, by which trials of a search are judged."""
        task = experience.task
        columns, first = (learner.num_classes, 0) if task is None else (task.classes, task.first)
        order = generator(self.seed, "validate", experience.index)
        answer = partial(self.learners.scores, learner, task=task)
        return scored(
            answer, samples, columns, first, order, self.runtime.torch_device, self.evaluation_batch
        ).error  # fmt: skip

    @cached_property
    def _static_caps(self) -> list[dict[str, Tensor]]:
        """After each experience what structure alone tells; nothing where no cap is of that."""
        static = {name: cap for name, cap in caps_of(self.budget).items() if cap.static}
        if not static:
            return []
        learner, found = self._structure(), []
        for signature in self.stream.signatures:
            learner.grow(admit(learner, signature, self.budget))
            found.append(measure_caps(static, learner, learner.predict))
        return found


def check_task_aware(takes_task: bool, stream: Stream, name: str) -> None:
    """Refuse a strategy that must be given the task on a stream that does not give it, and the other way round.

    Raises:
        ConfigError: naming the keys to change.
    """
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


def count_exemplars(learner: Strategy) -> int:
    """Exemplars in all rehearsal memories."""
    return sum(len(memory) for memory in learner.memories().values())


def shrink(learner: Strategy, allowance: Allowance) -> None:
    """Drop exemplars, the last chosen first, until the state fits."""
    while allowance.over(Ledger.of(learner.state()), count_exemplars(learner)):
        largest = max((max(m.counts().values(), default=0) for m in learner.memories().values()), default=0)
        if not largest:
            return
        for memory in learner.memories().values():
            memory.shrink(largest - 1)


def flops_by_part(costs: Sequence[Cost], learner: Strategy, hooks: int) -> dict[str, int]:
    """FLOPs of an experience: ``training``, what a search adds, and of hooks what they name and the rest."""
    parts = {"training": 0}
    for cost in costs:
        parts[cost.part] = parts.get(cost.part, 0) + cost.flops
    named = {name: flops.count for name, flops in learner.context.parts.items()}
    return {**parts, "consolidation": hooks - sum(named.values()), **named}


def compute(budget: Budget, flops: Mapping[str, int], steps: int) -> dict[str, Any]:
    """FLOPs and updates that an experience had available, and spent."""
    spent = {"flops": (budget.flops, sum(flops.values())), "updates": (budget.updates, steps)}
    return {name: {"available": pair[0], "spent": pair[1]} for name, pair in spent.items() if pair[0] is not None}


def _largest_loss(costs: Sequence[Cost]) -> float | None:
    """The largest mean loss of the last epochs of phases, of trials those that were chosen; None without training."""
    kept = (cost.loss for cost in costs if not cost.trial or cost.trial.get("chosen"))
    return max((loss for loss in kept if loss is not None), default=None)


def _bytes(entries: list[Entry]) -> int:
    return sum(entry.bytes for entry in entries)
