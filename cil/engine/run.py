"""A run: one strategy on one stream under one budget, from the first experience to the record."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cil import metrics
from cil.engine.checkpoint import Checkpoints
from cil.engine.dryrun import Bill, MakeLearner, check_bills, dry_run
from cil.engine.evaluate import evaluate
from cil.engine.fit import Fit, Stopped
from cil.engine.keys import generator, reseed
from cil.engine.recipe import Recipe
from cil.engine.runtime import Runtime
from cil.errors import BudgetExceeded, CilError, ConfigError, TrainingError
from cil.memory import Budget, Entry, Ledger, State
from cil.models import NetFactory, evaluating
from cil.strategies import Desk, Strategy
from cil.streams import Experience, Stream
from cil.tracking import Loggers, Record, build_loggers

MakeFactory = Callable[..., NetFactory]


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
        if self.boundary not in ("inline", "process"):
            raise ConfigError(f"boundary is '{self.boundary}'; allowed: inline, process")
        if self.boundary == "process" and (self.runtime.device != "cpu" or torch.get_num_threads() > 1):
            raise ConfigError("boundary=process forks, so it needs device=cpu and trainer.threads=1")
        self.checkpoints = Checkpoints(Path(self.run_dir), self.keep)
        self._stop = False
        self._state: State | None = None

    # the whole ------------------------------------------------------------------------------------------------------

    def execute(self) -> Record:
        """Run to the end, from wherever a run in this directory stood.

        Raises:
            BudgetExceeded: with status ``over_budget``; ResumeError: where the directory belongs to another run;
            KeyboardInterrupt: after a Ctrl-C, with what was computed saved and status ``interrupted``.
        """
        record = Record.open(self.run_dir, self.identity)
        try:
            return self._execute(record)
        finally:
            record.close()
            self.runtime.close()

    def _execute(self, record: Record) -> Record:
        if record.status == "finished":
            return record
        self.budget = replace(self.budget)
        loggers = build_loggers(self.loggers, record, progress=self.progress)
        record.set_status("running")
        try:
            self._plan()
            record.truncate(self._log_offset())
            loggers.start(record.identity, Path(self.run_dir), self.name, self.group)
            with self._interruptible():
                self._experiences(record, loggers)
            status, error = "finished", None
        except BudgetExceeded as exceeded:
            record.update({"bills": [bill.to_json() for bill in self._bills]})
            status, error = "over_budget", exceeded
        except (Stopped, KeyboardInterrupt):
            status, error = "interrupted", KeyboardInterrupt()
        except torch.OutOfMemoryError as memory:
            status = "failed"
            error = TrainingError(f"no memory left on {self.runtime.device}: {str(memory).splitlines()[0]} "
                                  "lower trainer.batch_size or take a smaller model")  # fmt: skip
        except Exception as failed:
            status, error = "failed", failed
        record.set_status(status, None if error is None else _line(error))
        loggers.finish(status)
        if error is not None:
            raise error
        return record

    def _plan(self) -> None:
        """The dry run: what can be known before training fails before training."""
        self._bills: list[Bill] = []
        probe = self.make_learner(self.make_factory(seed=self.seed, meta=True), replace(self.budget))
        if probe.bound:
            self.budget.enforce = "report"
        make_net = partial(self.make_factory, seed=self.seed, meta=True)
        if self.budget.reserve == "final" and self.budget.limits is not None:
            now = replace(self.budget, reserve="now")
            final = dry_run(self.make_learner, make_net, self.stream.signatures, now)[-1]
            self.budget.final_bytes = final.fixed[self.budget.convention]
        self._bills = dry_run(self.make_learner, make_net, self.stream.signatures, self.budget)
        check_bills(self._bills, self.budget, self.name)

    def _experiences(self, record: Record, loggers: Loggers) -> None:
        for index in range(len(self.stream)):
            if index >= self.checkpoints.done():
                self._in_process(lambda index=index: self._train(index, record, loggers))
            if self.checkpoints.evaluated(index) is None:
                self._in_process(lambda index=index: self._evaluate(index))
            self._publish(index, record, loggers)
            if self._stop:
                raise Stopped
        best = max(range(len(self.stream)), key=lambda i: record.results["accuracy_curve"][i] or 0.0)
        self.checkpoints.prune(best)

    # one experience -------------------------------------------------------------------------------------------------

    def rebuilt(self, index: int, state: State | None) -> Strategy:
        """A fresh learner, grown to the structure after ``index`` experiences, holding ``state``."""
        self.budget.experience = max(0, index - 1)
        reseed(self.seed, "build")
        device = self.runtime.torch_device
        learner = self.make_learner(self.make_factory(seed=self.seed, device=device), self.budget)
        learner.desk = Desk(device, partial(self._keyed, index), self.runtime.backward)
        learner.to(device)
        for signature in self.stream.signatures[:index]:
            self._grow(learner, signature.index)
        if state is not None:
            reseed(self.seed, "load", index)
            with self.runtime.autocast():
                learner.load_state(state)
        return learner

    def _keyed(self, index: int, purpose: str) -> torch.Generator:
        return generator(self.seed, "strategy", index, purpose)

    def _grow(self, learner: Strategy, index: int) -> None:
        reseed(self.seed, "grow", index)
        learner.grow(self.stream.signatures[index])
        learner.to(self.runtime.torch_device)

    def carried(self, index: int) -> State | None:
        """The state before experience ``index``."""
        return self.checkpoints.state(index - 1) if index else None

    def _train(self, index: int, record: Record, loggers: Loggers) -> None:
        """One experience: everything that happens to a strategy, in order."""
        began = time.perf_counter()
        self._began = time.monotonic()
        experience = self.stream.training_half()[index]
        learner = self.rebuilt(index, self.carried(index))
        self.budget.experience = index
        with self.runtime.autocast():
            reseed(self.seed, "before", index)
            learner.before_experience(experience)
        self._grow(learner, index)
        with self.runtime.autocast():
            reseed(self.seed, "prepare", index)
            learner.prepare(experience)
        learner.to(self.runtime.torch_device)
        fits = self._phases(learner, experience, record, loggers)
        trained = time.perf_counter()
        reseed(self.seed, "after", index)
        with self.runtime.autocast(), evaluating_all(learner):
            learner.after_experience(experience)
        ledger = self._commit(learner, index, fits, record, began, trained)
        self.budget.check(ledger, _exemplars(learner), self.name)

    def _phases(self, learner: Strategy, experience: Experience, record: Record, loggers: Loggers) -> list[Fit]:
        index = experience.index
        now = self._snapshot("now", index)
        fits: list[Fit] = []
        phases = learner.phases(experience)
        number = 0
        while True:
            entry = self._snapshot(f"phase-{number}", index)
            if entry is not None:  # this phase began before: what its definition saw is what it sees again
                learner.load_full_state(entry[0], entry[1]["meta"])
                fits = [_restored(cost, learner) for cost in entry[1]["fits"]]
            reseed(self.seed, "phase", index, number)
            with self.runtime.autocast():
                phase = next(phases, None)
            if phase is None:
                return fits
            later = self._snapshot(f"phase-{number + 1}", index)
            if later is None:
                fit = Fit(
                    learner, phase, number, self.recipe.of(phase, index), index, self.seed,
                    self.stream.augment, self.runtime, on_log=self._logger(loggers, phase.name, record),
                    on_snapshot=partial(self._save, record, fits), stop=lambda: self._stop,
                )  # fmt: skip
                fit.run(now if now is not None and now[1]["phase"] == number else None)
                fits.append(fit)
                tensors, meta = learner.full_state()
                content = {"experience": index, "meta": meta, "fits": [_saved(fit) for fit in fits]}
                self.checkpoints.write_snapshot(
                    f"phase-{number + 1}", tensors, {**content, "offset": record.offset(), "seconds": self._spent()}
                )
            number += 1

    def _commit(
        self, learner: Strategy, index: int, fits: list[Fit], record: Record, began: float, trained: float
    ) -> Ledger:
        training = [*learner.training_entries(), *_largest([fit.entries for fit in fits])]
        if self.budget.enforce == "shrink":
            self._shrink(learner, training)
        state = learner.state()
        ledger = Ledger.of(state, training)
        over = self.budget.over(ledger, _exemplars(learner))
        if over and self.budget.enforce == "error":
            self.budget.check(ledger, _exemplars(learner), self.name)
        facts = {
            "ledger": ledger.to_json(),
            "exemplars": _exemplars(learner),
            "flops": sum(fit.cost.flops for fit in fits),
            "peak_training_bytes": ledger.peak_training_bytes,
            "train_seconds": self._before_seconds(index) + trained - began,
            "consolidate_seconds": time.perf_counter() - trained,
            "steps": sum(fit.cost.images for fit in fits),
            "offset": record.offset(),
        }
        self.checkpoints.commit(index, state, facts)
        return ledger

    def _shrink(self, learner: Strategy, training: list[Entry]) -> None:
        """Drop exemplars, the last chosen first, until the state fits."""
        while self.budget.over(Ledger.of(learner.state(), training), _exemplars(learner)):
            largest = max((max(m.counts().values(), default=0) for m in learner.memories().values()), default=0)
            if not largest:
                return
            for memory in learner.memories().values():
                memory.shrink(largest - 1)

    def _evaluate(self, index: int) -> None:
        """Evaluate what was carried: the learner is rebuilt from it."""
        began = time.perf_counter()
        learner = self.rebuilt(index + 1, self.checkpoints.state(index))
        counts = evaluate(
            partial(self.scores, learner),
            self.stream,
            learner.num_classes,
            seed=self.seed,
            device=self.runtime.torch_device,
            batch_size=self.evaluation_batch,
        )
        counts["seconds"] = torch.tensor([time.perf_counter() - began], dtype=torch.float64)
        self.checkpoints.write_evaluation(index, counts)

    @torch.inference_mode()
    def scores(self, learner: Strategy, images: Tensor) -> Tensor:
        """What ``predict`` says, in evaluation mode."""
        with self.runtime.autocast(), evaluating_all(learner):
            return learner.predict(images)

    # record ---------------------------------------------------------------------------------------------------------

    def _publish(self, index: int, record: Record, loggers: Loggers) -> None:
        """Bring the record up to experience ``index``."""
        done = index + 1
        rows = [self.checkpoints.evaluated(i) for i in range(done)]
        facts = [self.checkpoints.facts(i) for i in range(done)]
        results = results_of([row for row in rows if row is not None], facts, self.stream)
        record.save_arrays({"confusion": np.stack([row["confusion"].numpy() for row in rows if row is not None])})
        record.update(results)
        values = {
            "accuracy": results["accuracy_curve"][-1],
            "forgetting": results["forgetting"],
            "carried_bytes": facts[-1]["ledger"]["totals"]["exact"]["total"],
            "exemplars": facts[-1]["exemplars"],
        }
        if self.checkpoints.done() == done:
            # a killed process may have written the line already: the commit knows where it would start
            record.truncate(facts[-1]["offset"])
            loggers.log("boundary", {k: v for k, v in values.items() if v is not None},
                        {"experience": index, "experiences": len(self.stream)})  # fmt: skip

    def _logger(self, loggers: Loggers, phase: str, record: Record) -> Callable[..., None]:
        def log(kind: Any, values: dict[str, float], axes: dict[str, int], totals: dict[str, Any]) -> None:
            loggers.log(kind, values, axes | {"phase": phase, "experiences": len(self.stream)} | totals)

        return log

    def _log_offset(self) -> int:
        """Where ``metrics.jsonl`` stood at the point that is resumed from."""
        done = self.checkpoints.done()
        offset = self.checkpoints.facts(done - 1)["offset"] if done else 0
        if done and self.checkpoints.evaluated(done - 1) is not None and done < len(self.stream):
            pass
        for name, found in self._snapshots(done).items():
            offset = max(offset, found["offset"]) if name else offset
        return offset

    def _snapshots(self, index: int) -> dict[str, dict[str, Any]]:
        folder = self.checkpoints.snapshots
        names = [path.stem for path in folder.glob("*.json")] if folder.exists() else []
        found = {name: self._snapshot(name, index) for name in sorted(names)}
        return {name: content[1] for name, content in found.items() if content is not None}

    def _snapshot(self, name: str, index: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        found = self.checkpoints.snapshot(name)
        return found if found is not None and found[1]["experience"] == index else None

    def _save(self, record: Record, fits: list[Fit], tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
        more = {"offset": record.offset(), "seconds": self._spent(), "fits": [_saved(fit) for fit in fits]}
        self.checkpoints.write_snapshot("now", tensors, {**content, **more})

    def _spent(self) -> float:
        return time.monotonic() - self._began

    def _before_seconds(self, index: int) -> float:
        return 0.0

    # processes and signals ------------------------------------------------------------------------------------------

    def _in_process(self, work: Callable[[], None]) -> None:
        if self.boundary == "inline":
            work()
        else:
            in_child(work)

    @contextmanager
    def _interruptible(self) -> Any:
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
