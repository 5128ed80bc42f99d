"""A run: one strategy on one stream under one budget, from the first experience to the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cil.data import Samples
from cil.engine.anytime import Anytime, Watch, check_watchable
from cil.engine.checkpoint import Checkpoints
from cil.engine.cost import Cost
from cil.engine.dryrun import Bill, MakeLearner, check_bills, dry_run
from cil.engine.evaluate import evaluate
from cil.engine.incoming import drawn
from cil.engine.keys import generator, reseed
from cil.engine.learners import Learners, MakeFactory, all_evaluating
from cil.engine.phases import Training
from cil.engine.process import Stopped
from cil.engine.recipe import Recipe
from cil.engine.results import confusions, results_of
from cil.engine.runtime import Runtime
from cil.engine.session import (
    Clock,
    Snapshots,
    Stop,
    attended,
    check_boundary,
    isolated,
    log_offset,
    loggers_within,
    recorded,
)
from cil.engine.strategy_steps import StrategySteps
from cil.engine.tasks import check_judged, check_told, evaluate_tasks, scored
from cil.memory import Budget, Entry, Flops, Ledger
from cil.strategies import Strategy
from cil.streams import Experience, Stream, TaskKey
from cil.streams.show import thumbnails
from cil.streams.task_stream import TaskStream
from cil.tracking import Loggers, Record, build_loggers


@dataclass
class Run:
    """All that a run needs; ``execute`` does it, or goes on with it.

    Args:
        stream: What is met.
        make_learner: Factory and budget to a fresh strategy.
        make_factory: Keyword arguments ``seed``, ``device``, ``meta`` to a factory of networks.
        budget: What may be carried.
        recipe: How phases are trained.
        run_dir: Where the record is; the same directory and identity resume.
        identity: What makes the run this run.
        name: Of the strategy, for messages.
        runtime: Device and precision.
        seed: All random draws follow from it.
        loggers: What ``cil.tracking.build_loggers`` takes; files are always written.
        progress: Show progress.
        keep: Which boundaries' states stay on disk: ``last``, ``all`` or ``best``.
        boundary: ``inline``, or ``process``: each experience and each evaluation in a process of its own.
        evaluation_batch: Images a batch.
        anytime: How often to evaluate inside experiences; None: not at all.
        group: Of runs that belong together on a dashboard.
        command: By which it was asked for, for whoever reads the record; None: not by a command.
    """

    stream: Stream
    make_learner: MakeLearner
    make_factory: MakeFactory
    budget: Budget
    recipe: Recipe
    run_dir: Path
    identity: Mapping[str, Any]
    name: str
    runtime: Runtime = field(default_factory=Runtime)
    seed: int = 0
    loggers: Any = ()
    progress: bool = False
    keep: str = "last"
    boundary: str = "inline"
    evaluation_batch: int = 500
    anytime: Anytime | None = None
    group: str | None = None
    command: str | None = None

    def __post_init__(self) -> None:
        check_boundary(self.boundary, self.runtime)
        self.budget = replace(self.budget)  # its own: the run sets which boundary is next
        self.checkpoints = Checkpoints(Path(self.run_dir), self.keep)
        self.learners = Learners(
            self.make_learner,
            self.make_factory,
            self.budget,
            self.stream.signatures,
            self.runtime,
            self.seed,
            self.stream.augment,
        )
        self._stop = Stop()
        self._clock = Clock()

    def execute(self) -> Record:
        """Run to the end, from wherever a run in this directory stood.

        Raises:
            BudgetExceeded: with status ``over_budget``; ResumeError: where the directory belongs to another run;
            KeyboardInterrupt: after a Ctrl-C, with what was computed saved and status ``interrupted``.
        """
        bills = self.bills()
        return recorded(
            self.run_dir,
            self.identity,
            self.loggers,
            self.runtime,
            lambda record: self._execute(record, bills),
            self.command,
        )

    def bills(self) -> list[Bill]:
        """What will be carried after each experience; a bound is not held to its budget.

        Raises:
            CilError: for what can be known to fail before training.
        """
        make_net = partial(self.make_factory, seed=self.seed, meta=True)
        learner = self.make_learner(make_net(), replace(self.budget))
        check_told(learner.takes_task, self.stream, self.name)
        check_judged(learner.searches, self.stream)
        check_watchable(self.anytime, self.stream)
        if learner.bound:
            self.budget.enforce = "report"
        found = dry_run(self.make_learner, make_net, self.stream.signatures, self.budget)
        if self.budget.reserve == "final":
            self.budget.final_bytes = found[-1].fixed[self.budget.convention]
        return found

    def notes(self) -> list[str]:
        """What a person should hear before training (``Strategy.warnings``)."""
        make_net = self.make_factory(seed=self.seed, meta=True)
        return list(self.make_learner(make_net, replace(self.budget)).warnings)

    def steps(self, bills: list[Bill]) -> StrategySteps:
        """What measures its steps before there are any."""
        return StrategySteps(
            self.make_learner, self.make_factory, self.stream.signatures, self.budget, bills, self.recipe, self.name,
            self.stream.augment, self.runtime.precision, self.seed,
        )  # fmt: skip

    @property
    def _batch_key(self) -> str:
        """Where batches are made smaller: learners that are told the task set their own."""
        told = any(signature.task is not None for signature in self.stream.signatures)
        return "strategy.search.batch_size" if told else "trainer.batch_size"

    def _execute(self, record: Record, bills: list[Bill]) -> None:
        loggers = build_loggers(self.loggers, record, progress=self.progress)

        def begin() -> None:
            record.update({"bills": [asdict(bill) for bill in bills]})
            check_bills(bills, self.budget, self.name)
            memory = self.budget.check_training(self.name, self.steps(bills).largest, self._batch_key)
            if memory is not None:
                record.update({"training_bill": {"total": memory.total, **memory.kinds}})
            record.truncate(log_offset(self.checkpoints))
            if not Snapshots(self.checkpoints, self.checkpoints.done()).contents():
                self.checkpoints.drop_snapshots()  # of an experience that was committed before they could be dropped

        def work() -> None:
            with self._stop.listening():
                self._experiences(record, loggers)

        attended(
            record, loggers, begin, work, name=self.name, group=self.group, device=self.runtime.device,
            batch_key=self._batch_key,
        )  # fmt: skip

    def _experiences(self, record: Record, loggers: Loggers) -> None:
        within = loggers_within(self.boundary, loggers, record)
        for index in range(max(0, self.checkpoints.done() - 1), len(self.stream)):
            if index >= self.checkpoints.done():
                isolated(self.boundary, partial(self._train, index, record, within))
                self._stop_here()
            if self.checkpoints.evaluated(index) is None:
                isolated(self.boundary, partial(self._evaluate, index))
            self._publish(index, record, loggers)
            if self._stop() and index + 1 < len(self.stream):
                raise Stopped

    # one experience -------------------------------------------------------------------------------------------------

    def _train(self, index: int, record: Record, loggers: Loggers) -> None:
        """One experience: everything that happens to a strategy, in order."""
        found = Snapshots(self.checkpoints, index).contents()
        self._clock = Clock(max((content["seconds"] for content in found.values()), default=0.0))
        learner = self.learners.rebuilt(index, self.checkpoints.state(index - 1) if index else None)
        taken = self.learners.meet(learner, index)
        experience = drawn(self.stream.training_half()[index], taken, generator(self.seed, "incoming", index))
        if isinstance(self.stream, TaskStream):  # for the timeline of a report, which opens no data
            record.save_arrays({f"thumbnails.{index}": thumbnails(experience.train)})
        flops = Flops()  # of all but the phases
        with self.runtime.autocast(), flops.counting(), all_evaluating(learner):
            reseed(self.seed, "before", index)
            learner.before_experience(experience)
        if self.budget.scope != "carried":
            self._check_incoming(learner)
        self.learners.grow(learner, index)
        with self.runtime.autocast(), flops.counting(), all_evaluating(learner):
            reseed(self.seed, "prepare", index)
            learner.prepare(experience)
        learner.to(self.runtime.torch_device)
        watch = self._watch(index)
        costs = self._phases(learner, experience, record, loggers, flops.count, watch)
        parameters = sum(p.numel() for p in {id(p): p for m in learner.modules() for p in m.parameters()}.values())
        self._stop_here()  # what was trained is in the snapshots
        watched = None if watch is None else watch.experience_ends(learner)
        trained = self._clock.seconds
        reseed(self.seed, "after", index)
        with self.runtime.autocast(), flops.counting(), all_evaluating(learner):
            learner.after_experience(experience)
        training = [*learner.training_entries(), *max((cost.entries for cost in costs), key=_bytes, default=[])]
        if self.budget.enforce == "shrink":
            shrink(learner, self.budget)
        state, exemplars = learner.state(), count_exemplars(learner)
        ledger = Ledger.of(state, training)
        facts: dict[str, Any] = {
            "signature": asdict(self.stream.signatures[index]),
            "given_up": self.budget.given_up,
            "ledger": ledger.to_json(),
            "exemplars": exemplars,
            "over_budget": self.budget.over(ledger, exemplars),
            "flops": by_part(costs, learner, flops.count),
            "peak_training_bytes": ledger.peak_training_bytes,
            "seconds": {"train": trained, "consolidate": self._clock.seconds - trained},
            "steps": sum(cost.steps for cost in costs),
            "offset": record.offset(),
            "peak_parameters": parameters,
            "findings": learner.diagnostics,
            "search": [cost.trial | {"flops": cost.flops} for cost in costs if cost.trial],
        }
        if watched is not None:
            facts["anytime"] = watched
            facts["seconds"]["train"] -= watched["seconds"]
        if self.budget.flops is not None or self.budget.updates is not None:
            facts["compute"] = compute(self.budget, facts["flops"], facts["steps"])
            facts["ended_early"] = any(cost.cut for cost in costs)
        if facts["over_budget"]:
            earlier = [self.checkpoints.facts(i)["ledger"] for i in range(index)]
            record.update({"ledger": [*earlier, facts["ledger"]]})
            self.budget.check(ledger, exemplars, self.name)
        self.checkpoints.commit(index, state, facts)

    def _check_incoming(self, learner: Strategy) -> None:
        """Exemplars and the images that arrive fit together: as many more of those as are missing of these."""
        if self.budget.enforce == "shrink":
            shrink(learner, self.budget)
        ledger = Ledger.of(learner.state())
        self.budget.check(ledger, count_exemplars(learner), self.name, when="with what arrives in")

    def _phases(
        self, learner: Strategy, experience: Experience, record: Record, loggers: Loggers, before: int,
        watch: Watch | None,
    ) -> list[Cost]:  # fmt: skip
        """Run all phases of the experience, from wherever a snapshot stands; ``before`` are operations of its hooks."""
        index = experience.index
        training = Training(
            index, self.seed, self.recipe, self.stream.augment_of(index), self.runtime,
            Snapshots(self.checkpoints, index), record, self._clock,
            first_step=sum(self.checkpoints.facts(i)["steps"] for i in range(index)), on_log=self._logger(loggers),
            stop=self._stop, budget=self.budget, before=before, error=partial(self._error, experience),
            arriving=experience.train, watch=watch,
        )  # fmt: skip
        return training.run(learner, learner.phases(experience))

    def _watch(self, index: int) -> Watch | None:
        if self.anytime is None:
            return None
        past = [self.checkpoints.facts(i) for i in range(index)]
        return Watch(self.anytime, self.stream, index, past, self.seed, self.evaluation_batch, self.runtime)

    def _error(self, experience: Experience, learner: Strategy, samples: Samples) -> float:
        """Error in percent on held-out data of an experience, by which trials of a search are judged."""
        task = experience.task
        columns, first = (learner.num_classes, 0) if task is None else (task.classes, task.first)
        order = generator(self.seed, "validate", experience.index)
        device, size = self.runtime.torch_device, self.evaluation_batch
        answer = partial(self.learners.scores, learner, task=task)
        return scored(answer, samples, columns, first, order, device, size).error

    def _evaluate(self, index: int) -> None:
        """Evaluate what was carried: the learner is rebuilt from it."""
        clock = Clock()
        learner = self.learners.rebuilt(index + 1, self.checkpoints.state(index))

        def scores(images: Tensor, task: TaskKey | None = None) -> Tensor:
            self._stop_here()
            return self.learners.scores(learner, images, task)

        given: dict[str, Any] = {"seed": self.seed, "device": self.runtime.torch_device}
        given["batch_size"] = self.evaluation_batch
        if isinstance(self.stream, TaskStream):
            counts = evaluate_tasks(scores, self.stream, index, **given)
        else:
            counts = evaluate(scores, self.stream, learner.num_classes, **given)
        counts["seconds"] = torch.tensor([clock.seconds], dtype=torch.float64)
        self.checkpoints.write_evaluation(index, counts)

    def _stop_here(self) -> None:
        """Stop if that was asked for, where going on would keep a person waiting and nothing is lost."""
        if self._stop():
            raise Stopped

    # record -------------------------------------------------------------------------------------------------------

    def _publish(self, index: int, record: Record, loggers: Loggers) -> None:
        """Bring the record up to experience ``index``."""
        facts = [self.checkpoints.facts(i) for i in range(index + 1)]
        rows = [row for i in range(index + 1) if (row := self.checkpoints.evaluated(i)) is not None]
        results = results_of(rows, facts, self.stream)
        if not isinstance(self.stream, TaskStream):
            record.save_arrays({"confusion": confusions(rows)})
        record.update(results)
        if record.offset() == facts[-1]["offset"]:  # else this boundary's line was written before an interruption
            values = {
                "accuracy": results["accuracy_curve"][-1],
                "average_incremental_accuracy": results["average_incremental_accuracy"],
                "forgetting": results["forgetting"],
                "carried_bytes": facts[-1]["ledger"]["totals"]["exact"]["total"],
                "exemplars": facts[-1]["exemplars"],
            }
            if "ended_early" in facts[-1]:  # under a budget of compute
                values["ended_early"] = int(facts[-1]["ended_early"])
            axes = {"experience": index, "step": sum(fact["steps"] for fact in facts), "experiences": len(self.stream)}
            loggers.log("boundary", {name: value for name, value in values.items() if value is not None}, axes)
        curve = results["accuracy_curve"]
        self.checkpoints.prune(max(range(len(curve)), key=lambda i: curve[i] or 0.0))

    def _logger(self, loggers: Loggers) -> Callable[[Any, dict[str, float], dict[str, Any]], None]:
        return lambda kind, values, axes: loggers.log(kind, values, axes | {"experiences": len(self.stream)})


def count_exemplars(learner: Strategy) -> int:
    """Exemplars in all rehearsal memories."""
    return sum(len(memory) for memory in learner.memories().values())


def shrink(learner: Strategy, budget: Budget) -> None:
    """Drop exemplars, the last chosen first, until the state fits."""
    while budget.over(Ledger.of(learner.state()), count_exemplars(learner)):
        largest = max((max(m.counts().values(), default=0) for m in learner.memories().values()), default=0)
        if not largest:
            return
        for memory in learner.memories().values():
            memory.shrink(largest - 1)


def by_part(costs: Sequence[Cost], learner: Strategy, hooks: int) -> dict[str, int]:
    """Operations of an experience: ``training``, what a search adds, and of hooks what they name and the rest."""
    parts = {"training": 0}
    for cost in costs:
        parts[cost.part] = parts.get(cost.part, 0) + cost.flops
    named = {name: flops.count for name, flops in learner.desk.parts.items()}
    return {**parts, "consolidation": hooks - sum(named.values()), **named}


def compute(budget: Budget, flops: Mapping[str, int], steps: int) -> dict[str, Any]:
    """What was available to an experience, and what was spent."""
    spent = {"flops": (budget.flops, sum(flops.values())), "updates": (budget.updates, steps)}
    return {name: {"available": pair[0], "spent": pair[1]} for name, pair in spent.items() if pair[0] is not None}


def _bytes(entries: list[Entry]) -> int:
    return sum(entry.bytes for entry in entries)
