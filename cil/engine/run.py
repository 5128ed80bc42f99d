"""A run: one strategy on one stream under one budget, from the first experience to the record."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from cil.engine.checkpoint import Checkpoints
from cil.engine.dryrun import Bill, MakeLearner, check_bills, dry_run
from cil.engine.evaluate import evaluate
from cil.engine.fit import Cost, Fit
from cil.engine.incoming import drawn
from cil.engine.keys import generator, reseed
from cil.engine.learners import Learners, MakeFactory, all_evaluating
from cil.engine.process import Stopped, in_child
from cil.engine.recipe import Recipe
from cil.engine.results import confusions, results_of
from cil.engine.runtime import Runtime
from cil.errors import BudgetExceeded, CilError, ConfigError, TrainingError
from cil.memory import Budget, Entry, Flops, Ledger
from cil.strategies import Strategy
from cil.streams import Experience, Stream
from cil.tracking import FileLogger, Loggers, Record, build_loggers

BOUNDARIES = ("inline", "process")


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
        group: Of runs that belong together on a dashboard.
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
    group: str | None = None

    def __post_init__(self) -> None:
        if self.boundary not in BOUNDARIES:
            raise ConfigError(f"boundary is '{self.boundary}'; allowed: {', '.join(BOUNDARIES)}")
        if self.boundary == "process" and (self.runtime.device != "cpu" or torch.get_num_threads() > 1):
            raise ConfigError("boundary=process forks, so it needs device=cpu and trainer.threads=1")
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
        self._stop = False
        self._clock = Clock()

    def execute(self) -> Record:
        """Run to the end, from wherever a run in this directory stood.

        Raises:
            BudgetExceeded: with status ``over_budget``; ResumeError: where the directory belongs to another run;
            KeyboardInterrupt: after a Ctrl-C, with what was computed saved and status ``interrupted``.
        """
        bills = self.bills()
        build_loggers(self.loggers)  # what is refused here leaves no trace
        record = Record.open(self.run_dir, self.identity)
        try:
            if record.status != "finished":
                self._execute(record, bills)
        finally:
            record.close()
            self.runtime.close()
        return record

    def bills(self) -> list[Bill]:
        """What will be carried after each experience; a bound is not held to its budget.

        Raises:
            CilError: for what can be known to fail before training.
        """
        make_net = partial(self.make_factory, seed=self.seed, meta=True)
        if self.make_learner(make_net(), replace(self.budget)).bound:
            self.budget.enforce = "report"
        found = dry_run(self.make_learner, make_net, self.stream.signatures, self.budget)
        if self.budget.reserve == "final":
            self.budget.final_bytes = found[-1].fixed[self.budget.convention]
        return found

    def _execute(self, record: Record, bills: list[Bill]) -> None:
        loggers = build_loggers(self.loggers, record, progress=self.progress)
        record.set_status("running")
        status: str = "finished"
        error: BaseException | None = None
        started = False
        try:
            record.update({"bills": [asdict(bill) for bill in bills]})
            check_bills(bills, self.budget, self.name)
            record.truncate(self._log_offset())
            if not self._snapshots(self.checkpoints.done()):
                self.checkpoints.drop_snapshots()  # of an experience that was committed before they could be dropped
            loggers.start(record.identity, Path(self.run_dir), self.name, self.group)
            started = True
            with self._interruptible():
                self._experiences(record, loggers)
        except BudgetExceeded as exceeded:
            status, error = "over_budget", exceeded
            record.results |= Record.load(record.directory).results  # the ledger may have been written by a child
        except (Stopped, KeyboardInterrupt):
            status, error = "interrupted", KeyboardInterrupt()
        except torch.OutOfMemoryError as full:
            status, error = "failed", TrainingError(
                f"no memory left on {self.runtime.device} ({str(full).splitlines()[0]}); lower trainer.batch_size or "
                f"take a smaller model"
            )  # fmt: skip
        except Exception as failed:
            status, error = "failed", failed
        record.set_status(status, None if status in ("finished", "interrupted") else _line(error))
        if started:
            loggers.finish(status)
        if error is not None:
            raise error

    def _experiences(self, record: Record, loggers: Loggers) -> None:
        within = loggers if self.boundary == "inline" else Loggers([FileLogger(record)])  # others have threads
        for index in range(max(0, self.checkpoints.done() - 1), len(self.stream)):
            if index >= self.checkpoints.done():
                self._isolated(partial(self._train, index, record, within))
            if self.checkpoints.evaluated(index) is None:
                self._isolated(partial(self._evaluate, index))
            self._publish(index, record, loggers)
            if self._stop and index + 1 < len(self.stream):
                raise Stopped

    # one experience -------------------------------------------------------------------------------------------------

    def _train(self, index: int, record: Record, loggers: Loggers) -> None:
        """One experience: everything that happens to a strategy, in order."""
        found = self._snapshots(index)
        self._clock = Clock(max((content["seconds"] for content in found.values()), default=0.0))
        learner = self.learners.rebuilt(index, self.checkpoints.state(index - 1) if index else None)
        taken = self.learners.meet(learner, index)
        experience = drawn(self.stream.training_half()[index], taken, generator(self.seed, "incoming", index))
        with self.runtime.autocast(), all_evaluating(learner):
            reseed(self.seed, "before", index)
            learner.before_experience(experience)
        if self.budget.scope != "carried":
            self._check_incoming(learner)
        self.learners.grow(learner, index)
        with self.runtime.autocast(), all_evaluating(learner):
            reseed(self.seed, "prepare", index)
            learner.prepare(experience)
        learner.to(self.runtime.torch_device)
        costs = self._phases(learner, experience, record, loggers)
        trained, flops = self._clock.seconds, Flops()
        reseed(self.seed, "after", index)
        with self.runtime.autocast(), flops.counting(), all_evaluating(learner):
            learner.after_experience(experience)
        training = [*learner.training_entries(), *max((cost.entries for cost in costs), key=_bytes, default=[])]
        if self.budget.enforce == "shrink":
            shrink(learner, self.budget)
        state, exemplars = learner.state(), count_exemplars(learner)
        ledger = Ledger.of(state, training)
        facts = {
            "signature": asdict(self.stream.signatures[index]),
            "given_up": self.budget.given_up,
            "ledger": ledger.to_json(),
            "exemplars": exemplars,
            "over_budget": self.budget.over(ledger, exemplars),
            "flops": {"training": sum(cost.flops for cost in costs), "consolidation": flops.count},
            "peak_training_bytes": ledger.peak_training_bytes,
            "seconds": {"train": trained, "consolidate": self._clock.seconds - trained},
            "steps": sum(cost.steps for cost in costs),
            "offset": record.offset(),
        }
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

    def _phases(self, learner: Strategy, experience: Experience, record: Record, loggers: Loggers) -> list[Cost]:
        """Run all phases. ``phase-k`` holds what phase k's definition saw, ``now`` some step inside a phase."""
        index, number = experience.index, 0
        before = sum(self.checkpoints.facts(i)["steps"] for i in range(index))
        now = self._snapshot("now", index)
        costs: list[Cost] = []
        phases = learner.phases(experience)
        while True:
            entry = self._snapshot(f"phase-{number}", index)
            if entry is not None:
                learner.load_full_state(entry[0], entry[1]["meta"])
                costs = [Cost.of(saved) for saved in entry[1]["costs"]]
            reseed(self.seed, "phase", index, number)
            between = Flops()  # features that a phase is trained on, for one
            with self.runtime.autocast(), between.counting(), all_evaluating(learner):  # as if nothing ran just now
                phase = next(phases, None)
            if between.count:
                costs.append(Cost(flops_per_image=between.count, images=1))
            if phase is None:
                return costs
            learner.to(self.runtime.torch_device)
            if self._snapshot(f"phase-{number + 1}", index) is None:
                keep = partial(self._keep, record, index, costs)
                fit = Fit(
                    learner, phase, number, self.recipe.of(phase, index), index, self.seed, self.stream.augment,
                    self.runtime, first_step=before + sum(cost.steps for cost in costs),
                    on_log=self._logger(loggers), on_snapshot=partial(keep, "now"), stop=lambda: self._stop,
                )  # fmt: skip
                fit.run(now if now is not None and now[1]["phase"] == number else None)
                costs.append(fit.cost)
                tensors, meta = learner.full_state()
                keep(f"phase-{number + 1}", tensors, {"meta": meta})
            number += 1

    def _evaluate(self, index: int) -> None:
        """Evaluate what was carried: the learner is rebuilt from it."""
        clock = Clock()
        learner = self.learners.rebuilt(index + 1, self.checkpoints.state(index))
        counts = evaluate(
            partial(self.learners.scores, learner),
            self.stream,
            learner.num_classes,
            seed=self.seed,
            device=self.runtime.torch_device,
            batch_size=self.evaluation_batch,
        )
        counts["seconds"] = torch.tensor([clock.seconds], dtype=torch.float64)
        self.checkpoints.write_evaluation(index, counts)

    # record and snapshots -------------------------------------------------------------------------------------------

    def _publish(self, index: int, record: Record, loggers: Loggers) -> None:
        """Bring the record up to experience ``index``."""
        facts = [self.checkpoints.facts(i) for i in range(index + 1)]
        rows = [row for i in range(index + 1) if (row := self.checkpoints.evaluated(i)) is not None]
        results = results_of(rows, facts, self.stream)
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
            axes = {"experience": index, "step": sum(fact["steps"] for fact in facts), "experiences": len(self.stream)}
            loggers.log("boundary", {name: value for name, value in values.items() if value is not None}, axes)
        curve = results["accuracy_curve"]
        self.checkpoints.prune(max(range(len(curve)), key=lambda i: curve[i] or 0.0))

    def _logger(self, loggers: Loggers) -> Callable[[Any, dict[str, float], dict[str, Any]], None]:
        return lambda kind, values, axes: loggers.log(kind, values, axes | {"experiences": len(self.stream)})

    def _log_offset(self) -> int:
        """Where ``metrics.jsonl`` stood at the point that is resumed from."""
        done = self.checkpoints.done()
        committed = self.checkpoints.facts(done - 1)["offset"] if done else 0
        return max([committed, *(content["offset"] for content in self._snapshots(done).values())])

    def _keep(self, record: Record, index: int, costs: list[Cost], name: str, tensors: Mapping[str, Tensor],
              content: Mapping[str, Any]) -> None:  # fmt: skip
        more = {"experience": index, "costs": [asdict(cost) for cost in costs]}
        more |= {"offset": record.offset(), "seconds": self._clock.seconds}
        self.checkpoints.write_snapshot(name, tensors, {**content, **more})

    def _snapshot(self, name: str, index: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """A snapshot, if it is of experience ``index``."""
        content = self.checkpoints.snapshot_content(name)
        if content is None or content["experience"] != index:
            return None
        return self.checkpoints.snapshot_tensors(content), content

    def _snapshots(self, index: int) -> dict[str, dict[str, Any]]:
        """What the snapshots of experience ``index`` say."""
        found = {name: self.checkpoints.snapshot_content(name) for name in self.checkpoints.snapshot_names()}
        return {name: content for name, content in found.items() if content and content["experience"] == index}

    # processes and signals ------------------------------------------------------------------------------------------

    def _isolated(self, work: Callable[[], None]) -> None:
        if self.boundary == "inline":
            work()
        else:
            in_child(work)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C finishes the step and saves; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True

        old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


class Clock:
    """Seconds of work, those before an interruption included."""

    def __init__(self, before: float = 0.0) -> None:
        self._before, self._began = before, time.perf_counter()

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + time.perf_counter() - self._began


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


def _bytes(entries: list[Entry]) -> int:
    return sum(entry.bytes for entry in entries)


def _line(error: BaseException | None) -> str:
    """One line for the record."""
    text = " ".join(str(error).split())
    return text if isinstance(error, CilError) else f"{type(error).__name__}: {text}"
