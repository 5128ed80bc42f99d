"""The work of an adaptation run: one adapter meets a stream of shifting test images, and predicts each of them once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cil.adapt import Adapter, SourceModel
from cil.contract import Frozen, Holder, RuntimeContext, freeze
from cil.data import Augment, Batch, Samples
from cil.engine.answers_checked import checked_scores
from cil.engine.cost import held_in_training
from cil.engine.keys import generator, lent, reseed
from cil.engine.lifecycle import as_structured
from cil.engine.phases import Training
from cil.engine.process import Stopped
from cil.engine.recipe import Recipe
from cil.engine.running import Counts, Rows
from cil.engine.runtime import Runtime
from cil.engine.step_kinds import StepWatch, drawn_steps
from cil.engine.work import Boundary, Context, Facts
from cil.errors import ConfigError, ContractError, StreamError, TrainingError
from cil.kinds.adaptation.record_types import AdaptationResults
from cil.kinds.adaptation.results import SegmentsSoFar, adaptation_results
from cil.kinds.adaptation.segment_counts import SegmentCounts
from cil.memory import Flops, Ledger, State
from cil.streams.shifts import ShiftStream
from cil.tracking import Record
from cil.tracking.arrays import Part
from cil.tracking.panels import Panel, Table, ledger_tables

DEPLOYED = 0  # boundary 0: the adapter as it is deployed; boundary k: after segment k - 1
PREDICTED = "predicted|"  # beside the adapter's own tensors in a snapshot


@dataclass
class AdaptationWork:
    """Lets an adapter meet a stream, one segment at each boundary.

    What happens to an adapter, in order: it is made; ``phases`` and ``deploy`` where it wants source data; what it then
    carries is the deployed state. For each segment of the stream a fresh adapter is given what was carried (the
    deployed state where ``segment.reset``), meets every image of it once, and hands over its state: charged, committed,
    resumed from. It sees images alone: no label, no name of a domain, no count of what is to come.

    Args:
        make_adapter: A source to a fresh adapter.
        make_source: A device to a fresh trained network.
        recipe: How source phases are trained; how often the log is written and snapshots are made (steps: batches).
        columns: (K,) column of the scores that belongs to each slot of the stream; None where they are the same.
        batch_size: Images a batch; the last one of a segment may be shorter.
        clean: Also measure the error on the clean test images, before and after: a copy of the adapter meets them as it
            would meet a further segment, and is thrown away.
        admit: Called with a fresh adapter and the shape of a batch before anything else is done; it may refuse.
    """

    stream: ShiftStream
    make_adapter: Callable[[SourceModel], Adapter]
    make_source: Callable[[torch.device], SourceModel]
    recipe: Recipe
    name: str
    runtime: Runtime
    seed: int = 0
    columns: Tensor | None = None
    batch_size: int = 200
    clean: bool = False
    admit: Callable[[Adapter, tuple[int, ...]], None] | None = None

    batch_key = "adaptation.batch_size"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"adaptation.batch_size is {self.batch_size}; it must be 1 or more")
        if self.runtime.precision == "fp16":
            raise ConfigError("trainer.precision is fp16; adapters go backward by themselves: set fp32 or bf16")
        if self.clean and self.stream.clean is None:
            raise ConfigError(f"adaptation.clean=true, but stream '{self.stream.name}' has no clean images")
        self._so_far = SegmentsSoFar()

    @property
    def boundaries(self) -> int:
        """The deployment, and one for each segment."""
        return len(self.stream) + 1

    @property
    def length(self) -> int:
        return len(self.stream)

    def check(self) -> None:
        """Refuse an adapter, a source and a stream that do not fit each other."""
        if self.recipe.looks != "free":
            raise ConfigError(
                f"trainer.looks is {self.recipe.looks}, and an adapter is handed each image once anyway: set it to free"
            )
        self.carried()

    def bills(self) -> dict[str, Any]:
        """None: what an adapter carries does not grow."""
        return {}

    def check_budget(self) -> dict[str, Any]:
        """Nothing more: ``check`` has asked ``admit``."""
        return {}

    def warnings(self) -> list[str]:
        return self.runtime.warnings()

    def carried(self) -> Ledger:
        """The bytes that a fresh adapter carries.

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
        return self._frozen(adapter).ledger()

    def _frozen(self, adapter: Adapter) -> Frozen:
        return freeze(adapter, self.stream.image_shape, len(self.stream.classes))

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
        adapter.context = RuntimeContext(device, lent(self.seed, "adapter", "build"), self.runtime.lent_backward)
        adapter.to(device)
        if state is not None:
            reseed(self.seed, "load")
            adapter.load_state(as_structured(state, adapter))
            adapter.to(device)
        return adapter

    def train(self, index: int, context: Context) -> Boundary:
        return self._deploy(context) if index == DEPLOYED else self._adapt(index, context)

    def evaluate(self, index: int, context: Context) -> None:
        """Nothing: an adapter predicts while it adapts."""

    def results(self, rows: Sequence[Counts], facts: Sequence[Facts]) -> AdaptationResults:
        return adaptation_results(rows, facts, self.stream)

    def so_far(self, rows: Rows, facts: Sequence[Facts]) -> Mapping[str, Any]:
        return self._so_far.over(rows).results()

    def arrays(self, rows: Rows) -> Mapping[str, Part]:
        return self._so_far.over(rows).arrays(rows[-1])

    def line(
        self, index: int, so_far: Mapping[str, Any], facts: Sequence[Facts]
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Error, accuracy so far and bytes after a segment, for loggers; none at deployment."""
        if index == DEPLOYED:
            return None
        values = {
            "error": so_far["segment_errors"][-1],
            "accuracy": 100 - so_far["online_error"],
            "carried_bytes": facts[-1]["ledger"]["totals"]["exact"]["total"],
        }
        axes = {"experience": index - 1, "phase": self.stream.segments[index - 1].name}
        return values, axes | {"step": sum(fact["steps"] for fact in facts)}

    def panels(self, record: Record) -> list[Panel]:
        results = record.results
        domains = [*zip(self.stream.domains, results.get("domain_errors") or (), strict=False)]
        return [
            *ledger_tables((results.get("ledger") or [])[1:]),  # the first is the deployment
            *([Table("domain_errors", ["domain", "error"], domains)] if domains else []),
        ]

    def kept(self, so_far: Mapping[str, Any]) -> tuple[int, set[int]]:
        """The segment of the lowest error; and the deployment, where the adapter is put back to it."""
        errors = so_far["segment_errors"]
        resets = any(segment.reset for segment in self.stream.segments[len(errors) :])
        best = 1 + min(range(len(errors)), key=lambda i: errors[i]) if errors else DEPLOYED
        return best, {DEPLOYED} if resets else set()

    # source data ----------------------------------------------------------------------------------------------------

    def _deploy(self, context: Context) -> Boundary:
        """Phases on source data, where the adapter wants them, and what it makes ready before the first batch."""
        flops = Flops()
        with flops.counting():
            adapter = self.rebuilt(None)
        costs, samples = [], None
        if adapter.needs_source:
            samples = self._source()
            adapter.context.generator = lent(self.seed, "adapter", "source")
            modes = [(layer, layer.training) for module in adapter.modules() for layer in module.modules()]
            training = Training(context, DEPLOYED, self.seed, self.recipe, Augment(), self.runtime)
            costs = training.run(adapter, adapter.phases(samples))
            for layer, mode in modes:
                layer.training = mode
        trained = context.clock.seconds
        adapter.context.generator = lent(self.seed, "adapter", "deploy")
        reseed(self.seed, "deploy")
        with self.runtime.autocast(), flops.counting():
            adapter.deploy(samples)
        held = held_in_training(adapter, costs)
        carried, ready = self._frozen(adapter), context.clock.seconds
        facts: dict[str, Any] = {
            "flops": {"source": sum(cost.flops for cost in costs), "deploy": flops.count},
            "seconds": {"source": trained, "deploy": ready - trained},
            "steps": sum(cost.steps for cost in costs),
        }
        if not costs:
            facts["peak_training_bytes"] = None  # nothing was trained
        counts = self._clean_counts(carried.state, "before") if self.clean else None
        return Boundary(carried, facts, held, counts=counts)

    def _source(self) -> Samples:
        """Clean labelled data, slots as the network has its columns."""
        assert self.stream.source is not None  # ``carried`` has refused
        samples = self.stream.source()
        return samples if self.columns is None else samples.with_slots(self.columns[samples.slots])

    # one segment ----------------------------------------------------------------------------------------------------

    def _adapt(self, index: int, context: Context) -> Boundary:
        """One segment: every image once, then the boundary."""
        segment = self.stream.segments[index - 1]
        loading = Flops()
        with loading.counting():
            adapter = self.rebuilt(context.checkpoints.state(DEPLOYED if segment.reset else index - 1))
        counts = SegmentCounts.after(context.checkpoints.facts(index - 1).get("metered"))
        now = context.snapshots.find("now")
        if now is not None:
            held = {name: tensor for name, tensor in now[0].items() if not name.startswith(PREDICTED)}
            adapter.load_full_state(held, now[1]["meta"])
            counts = SegmentCounts.of(now[1]["tally"], now[0][f"{PREDICTED}slots"])
        samples = segment.samples()
        if len(samples) != segment.count:
            raise StreamError(
                f"stream '{self.stream.name}', {segment.name}: {segment.count} images were announced, "
                f"{len(samples)} came"
            )
        before = sum(fact["steps"] for fact in context.facts(index))
        last = -(-segment.count // self.batch_size)
        saved = time.monotonic()
        drawn = drawn_steps(last, generator(self.seed, "counted", self.stream.fingerprint, index)).tolist()
        watch = StepWatch(adapter)
        for number, batch in self._batches(samples, len(counts.wrong)):
            with counts.looking(watch), counts.metering(adapter, watch, len(batch), drawn[number]) as counted:
                predicted, seconds = self._predicted(adapter, batch, (index, number), f"{segment.name}, batch {number}")
            counts.add(predicted, self._truth(batch.slots), None if counted else seconds)
            done = number + 1
            if done % self.recipe.log_every == 0:
                where = {"experience": index - 1, "phase": segment.name, "epoch": 0, "step": before + done}
                totals = {"epochs": 1, "share": done / last}
                context.log("step", {"error": counts.error(self.recipe.log_every)}, where | totals)
            stopped = context.stop() and done < last
            if stopped or self.recipe.snapshot_due(done, saved):
                with counts.hook():
                    tensors, meta = adapter.full_state()
                tensors |= {f"{PREDICTED}slots": counts.predictions()}
                context.save("now", tensors, {"meta": meta, "tally": counts.saved()})
                saved = time.monotonic()
            if stopped:
                raise Stopped
        return self._boundary(index, adapter, counts, samples, loading.count, context)

    def _boundary(
        self, index: int, adapter: Adapter, counted: SegmentCounts, samples: Samples, loading: int, context: Context
    ) -> Boundary:
        """The adapter's state, with what was counted on the way to it, and the operations of loading the last one."""
        segment = self.stream.segments[index - 1]
        seconds = context.clock.seconds
        rest = Flops()
        with rest.counting():
            held = [*Holder.training_entries(adapter), *counted.entries()]
            carried = self._frozen(adapter)  # last, as it shares the tensors of the adapter
        predictions = counted.predictions()
        wrong = (predictions != self._truth(samples.slots)).cpu()
        domains, width = segment.domains.cpu(), len(self.stream.domains)
        counts = {
            "wrong": torch.tensor(counted.wrong),
            "count": torch.tensor(counted.count),
            "wrong_by_domain": torch.bincount(domains[wrong], minlength=width),
            "count_by_domain": torch.bincount(domains, minlength=width),
            "predictions": self._slots(predictions).to(torch.int32),
        }
        if self.clean and index == len(self.stream):
            counts |= self._clean_counts(carried.state, "after")
        evaluated = context.clock.seconds - seconds
        facts = {
            "flops": {"adapt": loading + counted.flops + rest.count},
            "metered": counted.metered(),
            "seconds": {"adapt": seconds, "batches": counted.seconds, "evaluate": evaluated},
            "steps": len(counted.wrong),
        }
        return Boundary(carried, facts, held, counts=counts)

    def _batches(self, samples: Samples, first: int) -> Iterator[tuple[int, Batch]]:
        left = samples[first * self.batch_size :] if first else samples
        yield from enumerate(left.batches(self.batch_size, self.runtime.torch_device), first)

    def _predicted(
        self, adapter: Adapter, batch: Batch, place: tuple[int | str, int], where: str
    ) -> tuple[Tensor, float]:  # fmt: skip
        """Columns (N,) that the adapter predicts, and the seconds it took. It is handed the images and nothing else."""
        adapter.context.generator = lent(self.seed, "adapter", *place)
        reseed(self.seed, "adapt", *place)
        began = self._now()
        try:
            with self.runtime.autocast(), torch.enable_grad():
                given = adapter.adapt_and_predict(batch.images)
            scores = checked_scores(given, f"{type(adapter).__name__}.adapt_and_predict").detach()
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
            wrong += int((best != self._truth(batch.slots)).sum())
        return {"clean_wrong": torch.tensor([wrong]), "clean_count": torch.tensor([len(samples)])}

    def _truth(self, slots: Tensor) -> Tensor:
        return slots if self.columns is None else self.columns.to(slots.device)[slots]

    def _slots(self, columns: Tensor) -> Tensor:
        return columns if self.columns is None else self.columns.argsort()[columns]

    def _now(self) -> float:
        if self.runtime.device.startswith("cuda"):
            torch.cuda.synchronize(self.runtime.torch_device)
        return time.perf_counter()
