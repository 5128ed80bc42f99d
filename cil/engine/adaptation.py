"""An adaptation run: one adapter meets a stream of shifting test images, and predicts each of them once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cil.adapt import Adapter, SourceModel
from cil.contract import Desk
from cil.data import Augment, Batch, Samples
from cil.engine.checkpoint import Checkpoints
from cil.engine.keys import generator, reseed
from cil.engine.learners import as_structured
from cil.engine.online import online_results
from cil.engine.phases import Training
from cil.engine.process import Stopped
from cil.engine.recipe import Recipe
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
from cil.engine.tally import Tally
from cil.errors import ConfigError, ContractError, StreamError, TrainingError
from cil.memory import Entry, Flops, Ledger, State
from cil.streams.shifts import ShiftStream
from cil.tracking import Loggers, Record, build_loggers

DEPLOYED = 0  # boundary 0: the adapter as it is deployed; boundary k: after segment k - 1
PREDICTED = "predicted|"  # beside the adapter's own tensors in a snapshot


@dataclass
class AdaptationRun:
    """All that an adaptation run needs; ``execute`` does it, or goes on with it.

    What happens to an adapter, in order: it is made; ``phases`` and ``deploy`` where it wants source data; what it then
    carries is the deployed state. For each segment of the stream a fresh adapter is given what was carried (the
    deployed state where ``segment.reset``), meets every image of it once, and hands over its state: charged, committed,
    resumed from. It sees images alone: no label, no name of a domain, no count of what is to come.

    Args:
        stream: What is met.
        make_adapter: A source to a fresh adapter.
        make_source: A device to a fresh trained network.
        recipe: How source phases are trained; how often the log is written and snapshots are made (steps: batches).
        run_dir: Where the record is; the same directory and identity resume.
        identity: What makes the run this run.
        name: Of the adapter, for messages.
        columns: (K,) column of the scores that belongs to each slot of the stream; None where they are the same.
        runtime: Device and precision.
        seed: All random draws follow from it.
        loggers, progress, group, command: As of ``cil.engine.run.Run``.
        keep: Which boundaries' states stay on disk: ``last``, ``all`` or ``best``.
        boundary: ``inline``, or ``process``: each segment in a process of its own.
        batch_size: Images a batch; the last one of a segment may be shorter.
        clean: Also measure the error on the clean test images, before and after: a copy of the adapter meets them as it
            would meet a further segment, and is thrown away.
        admit: Called with a fresh adapter and the shape of a batch before anything else is done; it may refuse.
    """

    stream: ShiftStream
    make_adapter: Callable[[SourceModel], Adapter]
    make_source: Callable[[torch.device], SourceModel]
    recipe: Recipe
    run_dir: Path
    identity: Mapping[str, Any]
    name: str
    columns: Tensor | None = None
    runtime: Runtime = field(default_factory=Runtime)
    seed: int = 0
    loggers: Any = ()
    progress: bool = False
    keep: str = "last"
    boundary: str = "inline"
    batch_size: int = 200
    clean: bool = False
    group: str | None = None
    command: str | None = None
    admit: Callable[[Adapter, tuple[int, ...]], None] | None = None

    def __post_init__(self) -> None:
        check_boundary(self.boundary, self.runtime)
        if self.batch_size < 1:
            raise ConfigError(f"adaptation.batch_size is {self.batch_size}; it must be 1 or more")
        if self.runtime.precision == "fp16":
            raise ConfigError("trainer.precision is fp16; adapters go backward by themselves: set fp32 or bf16")
        if self.clean and self.stream.clean is None:
            raise ConfigError(f"adaptation.clean=true, but stream '{self.stream.name}' has no clean images")
        self.checkpoints = Checkpoints(Path(self.run_dir), self.keep)
        self._stop = Stop()
        self._clock = Clock()

    def execute(self) -> Record:
        """Run to the end, from wherever a run in this directory stood.

        Raises:
            CilError: for what can be known to fail before anything is done; ResumeError: where the directory belongs
            to another run; KeyboardInterrupt: after a Ctrl-C, with status ``interrupted``.
        """
        self.carried()
        return recorded(self.run_dir, self.identity, self.loggers, self.runtime, self._execute, self.command)

    def carried(self) -> Ledger:
        """What a fresh adapter carries.

        Raises:
            CilError: where adapter, source and stream do not fit each other.
        """
        adapter = self.rebuilt(None)
        if adapter.needs_source and self.stream.source is None:
            raise ConfigError(
                f"{self.name} reads labelled source data before it is deployed; stream '{self.stream.name}' has none"
            )
        if self.admit is not None:
            self.admit(adapter, (self.batch_size, *self.stream.image_shape))
        return Ledger.of(adapter.state())

    def rebuilt(self, state: State | None) -> Adapter:
        """A fresh adapter on a fresh network, holding ``state``."""
        device = self.runtime.torch_device
        reseed(self.seed, "build")
        source = self.make_source(device)
        shape, classes = tuple(self.stream.image_shape), len(self.stream.classes)
        if (source.num_classes, tuple(source.image_shape)) != (classes, shape):
            raise ConfigError(
                f"the source has {source.num_classes} classes of images {tuple(source.image_shape)}; stream "
                f"'{self.stream.name}' has {classes} of {shape}"
            )
        adapter = self.make_adapter(source)
        adapter.desk = Desk(device, partial(generator, self.seed, "adapter", "build"), self.runtime.backward)
        adapter.to(device)
        if state is not None:
            reseed(self.seed, "load")
            adapter.load_state(as_structured(state, adapter))
            adapter.to(device)
        return adapter

    def _execute(self, record: Record) -> None:
        loggers = build_loggers(self.loggers, record, progress=self.progress)

        def begin() -> None:
            record.truncate(log_offset(self.checkpoints))
            if not Snapshots(self.checkpoints, self.checkpoints.done()).contents():
                self.checkpoints.drop_snapshots()

        def work() -> None:
            with self._stop.listening():
                self._boundaries(record, loggers)

        key = "adaptation.batch_size"
        device = self.runtime.device
        attended(record, loggers, begin, work, name=self.name, group=self.group, device=device, batch_key=key)

    def _boundaries(self, record: Record, loggers: Loggers) -> None:
        within = loggers_within(self.boundary, loggers, record)
        for index in range(max(0, self.checkpoints.done() - 1), len(self.stream) + 1):
            if index >= self.checkpoints.done():
                work = self._deploy if index == DEPLOYED else partial(self._adapt, index)
                isolated(self.boundary, partial(work, record, within))
            self._publish(index, record, loggers)
            if self._stop() and index < len(self.stream):
                raise Stopped

    # source data ----------------------------------------------------------------------------------------------------

    def _deploy(self, record: Record, loggers: Loggers) -> None:
        """Phases on source data, where the adapter wants them, and what it makes ready before the first batch."""
        snapshots = Snapshots(self.checkpoints, DEPLOYED)
        self._clock = Clock(max((content["seconds"] for content in snapshots.contents().values()), default=0.0))
        adapter = self.rebuilt(None)
        costs, samples = [], None
        if adapter.needs_source:
            samples = self._source()
            adapter.desk.generator = partial(generator, self.seed, "adapter", "source")
            modes = [(layer, layer.training) for module in adapter.modules() for layer in module.modules()]
            costs = Training(
                DEPLOYED, self.seed, self.recipe, Augment(), self.runtime, snapshots, record, self._clock,
                on_log=self._logger(loggers), stop=self._stop,
            ).run(adapter, adapter.phases(samples))  # fmt: skip
            for layer, mode in modes:
                layer.training = mode
        trained, flops = self._clock.seconds, Flops()
        adapter.desk.generator = partial(generator, self.seed, "adapter", "deploy")
        reseed(self.seed, "deploy")
        with self.runtime.autocast(), flops.counting():
            adapter.deploy(samples)
        training = [*adapter.training_entries(), *max((cost.entries for cost in costs), key=_bytes, default=[])]
        state, ready = adapter.state(), self._clock.seconds
        if self.clean:
            self.checkpoints.write_evaluation(DEPLOYED, self._clean_counts(state, "before"))
        ledger = Ledger.of(state, training)
        facts = {
            "ledger": ledger.to_json(),
            "flops": {"source": sum(cost.flops for cost in costs), "deploy": flops.count},
            "peak_training_bytes": ledger.peak_training_bytes if costs else None,
            "seconds": {"source": trained, "deploy": ready - trained},
            "steps": sum(cost.steps for cost in costs),
            "offset": record.offset(),
        }
        self.checkpoints.commit(DEPLOYED, state, facts)

    def _source(self) -> Samples:
        """Clean labelled data, slots as the network has its columns."""
        assert self.stream.source is not None  # ``carried`` has refused
        samples = self.stream.source()
        return samples if self.columns is None else samples.with_slots(self.columns[samples.slots])

    # one segment ----------------------------------------------------------------------------------------------------

    def _adapt(self, index: int, record: Record, loggers: Loggers) -> None:
        """One segment: every image once, then the boundary."""
        segment, snapshots = self.stream.segments[index - 1], Snapshots(self.checkpoints, index)
        adapter = self.rebuilt(self.checkpoints.state(DEPLOYED if segment.reset else index - 1))
        tally = Tally()
        now = snapshots.find("now")
        if now is not None:
            held = {name: tensor for name, tensor in now[0].items() if not name.startswith(PREDICTED)}
            adapter.load_full_state(held, now[1]["meta"])
            tally = Tally.of(now[1]["tally"], now[0][f"{PREDICTED}slots"])
        self._clock = Clock(now[1]["seconds"] if now is not None else 0.0)
        samples = segment.samples()
        if len(samples) != segment.count:
            raise StreamError(
                f"stream '{self.stream.name}', {segment.name}: {segment.count} images were announced, "
                f"{len(samples)} came"
            )
        before = sum(self.checkpoints.facts(i)["steps"] for i in range(index))
        last = -(-segment.count // self.batch_size)
        saved = time.monotonic()
        for number, batch in self._batches(samples, len(tally.wrong)):
            measured = number < (2 if index == 1 else 1)
            with tally.measuring(adapter, len(batch)) if measured else nullcontext():
                predicted, seconds = self._predicted(adapter, batch, (index, number), f"{segment.name}, batch {number}")
            tally.add(predicted, self._truth(batch), None if measured else seconds)
            done = number + 1
            if done % self.recipe.log_every == 0:
                where = {"experience": index - 1, "phase": segment.name, "epoch": 0, "step": before + done}
                totals = {"experiences": len(self.stream), "epochs": 1, "share": done / last}
                loggers.log("step", {"error": tally.error(self.recipe.log_every)}, where | totals)
            stopped = self._stop() and done < last
            if stopped or self._due(done, saved):
                tensors, meta = adapter.full_state()
                tensors |= {f"{PREDICTED}slots": tally.predictions()}
                content = {"meta": meta, "tally": tally.saved()}
                snapshots.keep("now", tensors, content, record=record, clock=self._clock)
                saved = time.monotonic()
            if stopped:
                raise Stopped
        self._commit(index, adapter, tally, samples, record)

    def _commit(self, index: int, adapter: Adapter, tally: Tally, samples: Samples, record: Record) -> None:
        """The boundary: the adapter's state is charged and stored with what was counted."""
        segment = self.stream.segments[index - 1]
        state, seconds = adapter.state(), self._clock.seconds
        ledger = Ledger.of(state, [*adapter.training_entries(), *tally.entries()])
        predictions = tally.predictions()
        wrong = (predictions != self._truth_of(samples.slots)).cpu()
        domains, width = segment.domains.cpu(), len(self.stream.domains)
        counts = {
            "wrong": torch.tensor(tally.wrong),
            "count": torch.tensor(tally.count),
            "wrong_by_domain": torch.bincount(domains[wrong], minlength=width),
            "count_by_domain": torch.bincount(domains, minlength=width),
            "predictions": self._slots(predictions).to(torch.int32),
        }
        if self.clean and index == len(self.stream):
            counts |= self._clean_counts(state, "after")
        self.checkpoints.write_evaluation(index, counts)
        facts = {
            "ledger": ledger.to_json(),
            "flops": {"adapt": round(tally.flops / max(1, tally.measured) * segment.count)},
            "peak_training_bytes": ledger.peak_training_bytes,
            "seconds": {"adapt": seconds, "batches": tally.seconds, "evaluate": self._clock.seconds - seconds},
            "steps": len(tally.wrong),
            "offset": record.offset(),
        }
        self.checkpoints.commit(index, state, facts)

    def _batches(self, samples: Samples, first: int) -> Iterator[tuple[int, Batch]]:
        """Batches in order of arrival, from number ``first`` on."""
        left = samples[first * self.batch_size :] if first else samples
        yield from enumerate(left.batches(self.batch_size, self.runtime.torch_device), first)

    def _predicted(
        self, adapter: Adapter, batch: Batch, place: tuple[int | str, int], where: str
    ) -> tuple[Tensor, float]:  # fmt: skip
        """Columns (N,) that the adapter predicts, and the seconds it took. It is handed the images and nothing else."""
        adapter.desk.generator = partial(generator, self.seed, "adapter", *place)
        reseed(self.seed, "adapt", *place)
        began = self._now()
        try:
            with self.runtime.autocast(), torch.enable_grad():
                scores = adapter.adapt_and_predict(batch.images).detach()
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise ConfigError(
                f"{self.name} needs gradients through the predictions of its source, and this one gives none; choose "
                f"another source, or an adapter that trains nothing (adapter=source or bn_stats)"
            ) from error
        seconds = self._now() - began
        expected = (len(batch), len(self.stream.classes))
        if tuple(scores.shape) != expected:
            raise ContractError(f"{self.name} gave scores {tuple(scores.shape)} in place of {expected} in {where}")
        if bool(scores.isnan().any()):
            raise TrainingError(
                f"{self.name} gave scores that are not numbers in segment {where}; lower its learning rate"
            )
        return scores.argmax(1), seconds

    def _clean_counts(self, state: State, when: str) -> dict[str, Tensor]:
        """Errors on the clean images of an adapter that holds ``state``, and is thrown away."""
        assert self.stream.clean is not None
        samples, adapter = self.stream.clean(), self.rebuilt(state)
        wrong = 0
        for number, batch in self._batches(samples, 0):
            best, _ = self._predicted(adapter, batch, (f"clean {when}", number), f"clean images, batch {number}")
            wrong += int((best != self._truth(batch)).sum())
        return {"clean_wrong": torch.tensor([wrong]), "clean_count": torch.tensor([len(samples)])}

    def _truth(self, batch: Batch) -> Tensor:
        return self._truth_of(batch.slots)

    def _truth_of(self, slots: Tensor) -> Tensor:
        """The columns that are right."""
        return slots if self.columns is None else self.columns.to(slots.device)[slots]

    def _slots(self, columns: Tensor) -> Tensor:
        """Columns of the scores as slots of the stream."""
        return columns if self.columns is None else self.columns.argsort()[columns]

    def _now(self) -> float:
        if self.runtime.device.startswith("cuda"):
            torch.cuda.synchronize(self.runtime.torch_device)
        return time.perf_counter()

    def _logger(self, loggers: Loggers) -> Callable[[Any, dict[str, float], dict[str, Any]], None]:
        return lambda kind, values, axes: loggers.log(kind, values, axes | {"experiences": len(self.stream)})

    def _due(self, done: int, saved: float) -> bool:
        steps, minutes = self.recipe.snapshot_steps, self.recipe.snapshot_minutes
        return bool(steps and done % steps == 0) or bool(minutes and time.monotonic() - saved > 60 * minutes)

    # record ---------------------------------------------------------------------------------------------------------

    def _publish(self, index: int, record: Record, loggers: Loggers) -> None:
        """Bring the record up to boundary ``index``."""
        facts = [self.checkpoints.facts(i) for i in range(index + 1)]
        rows = [self.checkpoints.evaluated(i) or {} for i in range(index + 1)]
        results, arrays = online_results(rows, facts, self.stream)
        if arrays:
            record.save_arrays(arrays)
        record.update(results)
        if index > DEPLOYED and record.offset() == facts[-1]["offset"]:  # else its line was written before
            errors = results["segment_errors"]
            values = {
                "error": errors[-1],
                "accuracy": 100 - results["online_error"],
                "carried_bytes": facts[-1]["ledger"]["totals"]["exact"]["total"],
            }
            axes = {"experience": index - 1, "phase": self.stream.segments[index - 1].name}
            axes |= {"step": sum(fact["steps"] for fact in facts), "experiences": len(self.stream)}
            loggers.log("boundary", values, axes)
        resets = any(segment.reset for segment in self.stream.segments[index:])
        best = 1 + min(range(index), key=lambda i: results["segment_errors"][i]) if index else DEPLOYED
        self.checkpoints.prune(best, held={DEPLOYED} if resets else ())


def _bytes(entries: list[Entry]) -> int:
    return sum(entry.bytes for entry in entries)
