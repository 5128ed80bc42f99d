"""The work of a run that trains a strategy, but for its evaluation: that is the kind's own (``cil.kinds``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from cil.contract import Frozen, exemplar_memories, freeze
from cil.data import Samples
from cil.data.looks import Looks
from cil.engine.anytime import Anytime
from cil.engine.asked_again import Asked, asks_again
from cil.engine.budget_fit import Fitted, fit_warnings
from cil.engine.caps import caps_of, caps_results, check_caps, measure_caps
from cil.engine.cost import Cost
from cil.engine.driver import Boundary, Context, Facts
from cil.engine.dry_run import Bill, check_bills, dry_run
from cil.engine.image_fit import size_warnings
from cil.engine.keys import generator, reseed
from cil.engine.lifecycle import (
    Learners,
    MakeFactory,
    MakeLearner,
    admit,
    all_evaluating,
    allowance,
    enter,
    in_advance,
    sample_experience,
)
from cil.engine.look_limits import counted_experience, limit_copies
from cil.engine.phases import Observer, Training
from cil.engine.recipe import Recipe
from cil.engine.running import Counts, Rows
from cil.engine.runtime import Runtime
from cil.engine.scoring import scored
from cil.engine.spending import compute, flops_by_part, largest_loss, spent
from cil.engine.status import Clock
from cil.engine.strategy_steps import StrategySteps
from cil.engine.timed_step import SecondsPerImage, seconds_of_training, seconds_per_image
from cil.errors import BudgetExceeded, ConfigError, ContractError
from cil.memory import Allowance, Budget, Entry, Flops, OptimizerSteps, State
from cil.memory.codec_check import check_codec, is_own
from cil.strategies import Strategy
from cil.streams import Experience, Signature, Stream, TaskKey
from cil.tracking import Record, plain
from cil.tracking.arrays import Part
from cil.tracking.panels import Panel, curves, ledger_tables

HOOKS = {"before": "before_experience", "prepare": "prepare", "after": "after_experience"}
CODEC_IMAGES = 8  # by which a codec of another package is tried


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
        answers: Which are evaluated, where a learner has several: ``all``, or its ``own`` alone.
        open_set: Score test images of classes to come, as unknown ones.
        anytime: How often to evaluate inside experiences; None: not at all.
        fit: The hyperparameter that the budget has set; None where it sets none.

    Attributes:
        method: Class of the strategy. What it says of itself is read off it once, here, and by nobody else.
        bound: True for a bound, which a budget only reports on; it is not ranked.
        transductive: True for a strategy that says so on its class: its answers may depend on the other test images.
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
    anytime: Anytime | None = None
    fit: Fitted | None = None

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
        self.method, self.bound, self.transductive = method, bool(method.bound), bool(method.transductive)
        if self.bound:
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
        """Refuse a kind of run, or a stream, that has no unknown classes. Default: the kind has none.

        Raises:
            ConfigError: naming the key.
        """
        raise ConfigError(
            f"trainer.open_set is true, and runs of kind {self.stream.kind} score no unknown classes: set it to false"
        )

    def bills(self) -> dict[str, Any]:
        """The bill of each experience, with the caps that structure alone tells."""
        caps = caps_results(self.budget, self._static_caps) if self._static_caps else {}
        found = {"warnings": self.warnings(), "fitted": None if self.fit is None else asdict(self.fit)}
        bills = [asdict(bill) for bill in self.bill]
        return {"bills": bills, **caps, **{name: value for name, value in found.items() if value}}

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
        """Sentences that a person should hear before training: of the data, the strategy, the recipe and the budget."""
        learner = self._structure()
        found = [*self.stream.provenance.notes, *learner.warnings, *self.recipe.warnings()]
        found += size_warnings(getattr(learner, "net", None), self.stream.image_shape[1:])
        found += [] if self.fit is None else [self.fit.words(self.name)]
        if learner.memories() and self.budget.enforce != "report":
            found += fit_warnings(self.bill, self.budget, self.stream.signatures, self.name)
        return found

    def excess(self) -> str | None:
        """Why it cannot be trained under its budget; None where it can, and of a bound, which is not held to it."""
        if self.bound:
            return None
        try:
            check_bills(self.bill, self.budget, self.name)
            self.check_static_caps()
        except BudgetExceeded as error:
            return str(error)
        return None

    def carried_bytes(self) -> list[int]:
        """Bytes that will be carried after each experience, every one counted."""
        return [bill.total["exact"] for bill in self.bill]

    def rates(self) -> SecondsPerImage:
        """Time a few steps, on noise."""
        return seconds_per_image(self.steps(), self.runtime.torch_device)

    def duration(self, rates: SecondsPerImage) -> float:
        """Seconds of training at these rates, about."""
        return seconds_of_training(self.stream.signatures, self.bill, rates)

    def steps(self) -> StrategySteps:
        """Measures steps before there are any."""
        return StrategySteps(
            self.make_learner, self.make_factory, self.stream.signatures, self.budget, self.bill, self.recipe,
            self.name, self.stream.augment, self.runtime.precision, self.seed,
        )  # fmt: skip

    # one experience -------------------------------------------------------------------------------------------------

    def train(self, index: int, context: Context) -> Boundary:
        """One experience: everything that happens to a strategy, in order."""
        flops = Flops()  # operations of all that is no step of a phase
        state = context.checkpoints.state(index - 1) if index else None
        with _settled(context), flops.counting_rest():
            with flops.counting():
                learner = self.learners.rebuilt(index, state)
                taken = self.learners.admit(learner, index)
            allowance = self.allowance(index, taken, in_advance(learner, self.stream.signatures[index]))
            keyed = generator(self.seed, "incoming", index)
            experience = sample_experience(self._training_half[index], taken, keyed)
            arriving = experience.train
            check_codecs(learner, arriving)
            allowed = "free" if self.bound else self.recipe.looks
            experience, looks = counted_experience(experience, allowed, self.name)
            around = partial(self._around, learner, index, flops, looks)
            came_with = sum(map(len, learner.memories().values()))

            def grow() -> None:
                with flops.counting():
                    self.learners.grow(learner, index)
                limit_copies(looks, learner, allowance, came_with)

            enter(learner, experience, grow, around, partial(self._make_room, learner, index, allowance))
            observer = self.observer(index, context)
            training = Training(
                context, index, self.seed, self.recipe, self.stream.augment_of(index), self.runtime,
                sum(fact["steps"] for fact in context.facts(index)), self.budget,
                Cost.once(flops), partial(self._error, experience), experience.train, observer, looks,
            )  # fmt: skip
            costs = training.run(learner, learner.phases(experience))
            parameters = sum(p.numel() for p in {id(p): p for m in learner.modules() for p in m.parameters()}.values())
            context.stop.here()  # what was trained is in the snapshots
            observed = None if observer is None else observer.experience_ends(learner)
            trained = context.clock.seconds
            with around("after"):
                learner.after_experience(experience)
            if self.budget.enforce == "shrink":
                self._shrink(learner, index, allowance)
            held = [*learner.training_entries(), *max((cost.entries for cost in costs), key=_bytes, default=[])]
            findings, parts = plain(learner.diagnostics), dict(learner.context.parts)
            check_codecs(learner, arriving)
            carried = self.frozen(learner, index)  # last, as it shares the tensors of the learner
        facts: dict[str, Any] = {
            "signature": asdict(self.stream.signatures[index]),
            "given_up": allowance.boundary.given_up,
            "flops": flops_by_part(costs, parts, flops.count),
            "seconds": {"train": trained, "consolidate": context.clock.seconds - trained},
            "steps": sum(cost.steps for cost in costs),
            "looks": looks.summary(),
            "own_updates": flops.updates + sum(cost.own_updates for cost in costs),
            "peak_parameters": parameters,
            "findings": findings,
            "loss": largest_loss(costs),
            "search": [cost.trial | {"flops": cost.flops} for cost in costs if cost.trial],
        }
        if reused := sum(cost.reused for cost in costs):
            facts["reused_seconds"] = reused
        if observed is not None:
            facts["anytime"] = observed
            facts["seconds"]["train"] -= observed["seconds"]
        if self.budget.flops is not None or self.budget.updates is not None:
            facts["compute"] = compute(self.budget, facts["flops"], facts["steps"] + facts["own_updates"])
            facts["ended_early"] = any(cost.cut for cost in costs)
        return Boundary(carried, facts, held, allowance)

    def allowance(self, index: int, taken: Signature, wanted: int) -> Allowance:
        """What may be carried out of an experience: the engine's own, no learner has it.

        Args:
            taken: The signature with the images that are taken.
            wanted: Exemplars in advance.
        """
        full, bill = self.stream.signatures[index], self.bill[index]
        return allowance(self.budget, full, taken, self.learners.final_bytes, bill.side_limit, wanted)

    def frozen(self, learner: Strategy, index: int) -> Frozen:
        """What a learner carries out of experience ``index``, as plain data."""
        signature = self.stream.signatures[index]
        return freeze(learner, signature.image_shape, signature.num_classes, self.bill[index].networks)

    def observer(self, index: int, context: Context) -> Observer | None:
        """Looks at the learner between steps. Default: nobody does."""
        return None

    # evaluation -----------------------------------------------------------------------------------------------------

    def evaluate(self, index: int, context: Context) -> Counts:
        """Count answers of the learner, rebuilt from what was carried and nothing else.

        Raises:
            ContractError: where another one, rebuilt in the same way, answers differently in other company.
        """
        clock = Clock()
        fingerprint = self.stream.fingerprint  # which no learner is told
        asked = Asked(self.seed, index, fingerprint)
        counts = self._counts(index, context, asked)
        if not self.transductive and asks_again(self.seed, index, len(self.stream), fingerprint):
            learner, predict = self._answering(index, context, context.checkpoints.state(index))
            with self.runtime.fresh_features():
                asked.again(predict, type(learner).__name__, f"after experience {index}")
        return counts | {"seconds": torch.tensor([clock.seconds], dtype=torch.float64)}

    def _answering(self, index: int, context: Context, state: State) -> tuple[Strategy, Callable[..., Tensor]]:
        """A learner rebuilt from the state that was carried across boundary ``index``, and its answers."""
        learner = self.learners.rebuilt(index + 1, state)

        def predict(images: Tensor, task: TaskKey | None = None) -> Tensor:
            context.stop.here()
            return self.learners.scores(learner, images, task)

        return learner, predict

    def _counts(self, index: int, context: Context, asked: Asked) -> dict[str, Tensor]:
        """What the kind counts, with questions kept in ``asked``; and what further budgets measure."""
        loading, state = Flops(), context.checkpoints.state(index)
        with OptimizerSteps() as steps:
            with loading.counting():
                learner, predict = self._answering(index, context, state)
            counts = dict(self.count(index, learner, asked.listening(predict)))
            measured = measure_caps(caps_of(self.budget), learner, predict)
        if steps.count:
            raise ContractError(
                f"{self.name} takes {steps.count} steps of an optimizer in the evaluation after experience {index}, in "
                f"load_state or predict; there nothing may be trained: do it in after_experience, where it is billed"
            )
        counts["flops"] = counts["flops"] + loading.count
        try:
            check_caps(self.budget, measured, self.name, index)
        except BudgetExceeded:
            context.settle()
            context.record.update(caps_results(self.budget, [*Rows(context.checkpoints, index), measured]))
            raise
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

    def so_far(self, rows: Rows, facts: Sequence[Facts]) -> Mapping[str, Any]:
        """The part of the results that ``logged`` and ``curve`` read. Default: all scores, from all rows.

        A kind whose streams are long goes on from the boundary before (``cil.engine.running``).
        """
        return self.scores(rows, facts)

    def arrays(self, rows: Rows) -> Mapping[str, Part]:
        """What the last boundary adds to results that are large. Default: nothing."""
        return {}

    def line(
        self, index: int, so_far: Mapping[str, Any], facts: Sequence[Facts]
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Scores, bytes and exemplars after an experience, for loggers."""
        values = {
            **self.logged(so_far),
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

    def panels(self, record: Record) -> list[Panel]:
        """Bytes by kind, exemplars, losses and seconds over experiences. A kind adds its own."""
        results = record.results
        spent = {"exemplars": results.get("exemplars"), "loss": results.get("losses")}
        seconds = results.get("seconds") or {}
        spent |= {f"seconds_{name}": values for name, values in seconds.items() if name != "total"}
        return [*ledger_tables(results.get("ledger") or ()), *curves("spent", spent)]

    def kept(self, so_far: Mapping[str, Any]) -> tuple[int, set[int]]:
        """The boundary of the highest score."""
        curve = so_far[self.curve]
        return max(range(len(curve)), key=lambda i: curve[i] or 0.0), set()

    # parts ----------------------------------------------------------------------------------------------------------

    @cached_property
    def _training_half(self) -> Stream:
        return self.stream.training_half()

    def _on_meta(self) -> Any:
        return self.make_factory(seed=self.seed, meta=True)

    def _structure(self) -> Strategy:
        """A learner without values that has met nothing."""
        return self.make_learner(self._on_meta(), Allowance(self.budget))

    @contextmanager
    def _around(self, learner: Strategy, index: int, flops: Flops, looks: Looks, hook: str) -> Iterator[None]:
        """Around a hook: keyed random numbers, precision, operations and looks counted, all in evaluation mode."""
        reseed(self.seed, hook, index)
        with (
            looks.by(HOOKS[hook]),
            self.runtime.autocast(),
            self.runtime.frozen_features(),
            flops.counting(),
            all_evaluating(learner),
        ):
            yield

    def _make_room(self, learner: Strategy, index: int, allowance: Allowance) -> None:
        """Under a budget on both, exemplars and the images that arrive fit together."""
        if self.budget.scope == "carried":
            return
        if self.budget.enforce == "shrink":
            self._shrink(learner, index, allowance)
        frozen = self.frozen(learner, index)
        allowance.check(frozen.ledger(), frozen.exemplars, self.name, when="with what arrives in")

    def _shrink(self, learner: Strategy, index: int, allowance: Allowance) -> None:
        """Drop exemplars, the last chosen first, until the state fits."""
        while (frozen := self.frozen(learner, index)) and allowance.over(frozen.ledger(), frozen.exemplars):
            largest = max((max(m.counts().values(), default=0) for m in learner.memories().values()), default=0)
            if not largest:
                return
            for memory in learner.memories().values():
                memory.shrink(largest - 1)

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


def check_codecs(learner: Strategy, arriving: Samples) -> None:
    """Refuse codecs of other packages that know the images: what decoding needs is charged.

    Raises:
        ContractError: naming the codec.
    """
    for memory in exemplar_memories(learner).values():
        if not is_own(memory.codec):
            check_codec(memory.codec, arriving[:CODEC_IMAGES].pixels)


@contextmanager
def _settled(context: Context) -> Iterator[None]:
    """What is refused inside leaves a record of all boundaries before."""
    try:
        yield
    except BudgetExceeded:
        context.settle()
        raise


def _bytes(entries: list[Entry]) -> int:
    return sum(entry.bytes for entry in entries)
