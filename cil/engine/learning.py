"""The work of a run that trains a strategy, but for its evaluation: that is the kind's own (``cil.kinds``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from cil.contract import Frozen, exemplar_memories, freeze
from cil.data import Samples
from cil.data.looks import Looks
from cil.engine.anytime import AnytimeObserver
from cil.engine.asked_again import Asked, asks_again
from cil.engine.caps import caps_of, caps_results, check_caps, measure_caps
from cil.engine.cost import Cost, held_in_training
from cil.engine.keys import generator, reseed
from cil.engine.lifecycle import all_evaluating, allowance, enter, in_advance, sample_experience
from cil.engine.look_limits import counted_experience, limit_copies
from cil.engine.phases import Training
from cil.engine.planned import PlannedWork
from cil.engine.running import Counts, Rows
from cil.engine.scoring import scored
from cil.engine.spending import compute, flops_by_part, largest_loss, spent
from cil.engine.status import Clock
from cil.engine.work import Boundary, Context, Facts
from cil.errors import BudgetExceeded, ContractError
from cil.memory import Allowance, BackwardPasses, Flops, OptimizerSteps, State
from cil.memory.codec_check import check_codec, check_held, is_own
from cil.strategies import Strategy
from cil.streams import Experience, Signature, Stream, TaskKey
from cil.tracking import Record, plain
from cil.tracking.arrays import Part
from cil.tracking.panels import Panel, curves, ledger_tables

HOOKS = {"before": "before_experience", "prepare": "prepare", "after": "after_experience"}
CODEC_IMAGES = 8  # by which a codec of another package is tried


@dataclass
class StrategyWork(PlannedWork):
    """Trains a strategy on a stream under a budget, one experience at each boundary. Subclasses evaluate it."""

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
            lent = self._training_half[index]
            if not self.method.uses_validation:  # images that are held out are for those alone whose class says so
                lent = replace(lent, validation=None)
            experience = sample_experience(lent, taken, keyed)
            arriving = experience.train
            check_codecs(learner, arriving)
            allowed = "free" if self.bound else self.recipe.looks
            experience, looks = counted_experience(experience, allowed, self.name)
            around = partial(self._around, learner, index, flops, looks)
            came_with = sum(map(len, learner.memories().values()))

            def grow() -> None:
                with flops.counting(), learner.making():
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
            held = held_in_training(learner, costs)
            findings, parts = plain(learner.diagnostics), dict(learner.context.parts)
            check_codecs(learner, arriving, stored=True)
            carried = self.frozen(learner, index)  # last, as it shares the tensors of the learner
        total = self.runtime.ranks.total  # of operations: all devices together
        facts: dict[str, Any] = {
            "signature": asdict(self.stream.signatures[index]),
            "given_up": allowance.boundary.given_up,
            "flops": {part: total(count) for part, count in flops_by_part(costs, parts, flops.count).items()},
            "seconds": {"train": trained, "consolidate": context.clock.seconds - trained},
            "steps": sum(cost.steps for cost in costs),
            "looks": looks.summary(),
            "own_updates": flops.updates + sum(cost.own_updates for cost in costs),
            "peak_parameters": parameters,
            "findings": findings,
            "loss": largest_loss(costs),
            "search": [cost.trial | {"flops": total(cost.flops)} for cost in costs if cost.trial],
        }
        if reused := sum(cost.reused for cost in costs):
            facts["reused_seconds"] = reused
        if not self.bound and (made := max((cost.own_images for cost in costs), default=0)):
            facts["own_images"] = made
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

    def observer(self, index: int, context: Context) -> AnytimeObserver | None:
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
        with OptimizerSteps() as steps, BackwardPasses() as backward:
            with loading.counting():
                learner, predict = self._answering(index, context, state)
            counts = dict(self.count(index, learner, asked.listening(predict)))
            measured = measure_caps(caps_of(self.budget), learner, predict)
        if steps.count or backward.any:
            what = f"takes {steps.count} steps of an optimizer" if steps.count else "goes backward"
            raise ContractError(
                f"{self.name} {what} in the evaluation after experience {index}, in load_state or predict; there "
                f"nothing may be trained: do it in after_experience, where it is billed"
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
        columns, first = (experience.signature.num_classes, 0) if task is None else (task.classes, task.first)
        order = generator(self.seed, "validate", experience.index)
        answer = partial(self.learners.scores, learner, task=task)
        return scored(
            answer, samples, columns, first, order, self.runtime.torch_device, self.evaluation_batch
        ).error  # fmt: skip


def check_codecs(learner: Strategy, arriving: Samples, stored: bool = False) -> None:
    """Refuse codecs of other packages that know the images: what decoding needs is charged.

    Args:
        stored: Look at what they stored of these images, too.
    """
    for memory in exemplar_memories(learner).values():
        if is_own(memory.codec):
            continue
        check_codec(memory.codec, arriving[:CODEC_IMAGES].pixels)
        slot = min({*memory.slots.tolist()}.intersection(arriving.slots.tolist()), default=None) if stored else None
        if slot is not None and memory.samples().shape == arriving.shape:  # images, no features
            rows = (memory.slots == slot).nonzero().flatten()[:CODEC_IMAGES]
            check_held(memory.codec, *memory.as_trained(rows), arriving.of_class(slot).pixels)


@contextmanager
def _settled(context: Context) -> Iterator[None]:
    """What is refused inside leaves a record of all boundaries before."""
    try:
        yield
    except BudgetExceeded:
        context.settle()
        raise
