"""Short runs of strategies, and ways to look into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from recount import Recount
from torch import Tensor, nn

from cil.data import Batch
from cil.engine.driver import Run
from cil.engine.recipe import Recipe
from cil.kinds.classes.rules import (
    predict_does_not_look_at_the_rest_of_the_batch,
    predict_has_no_side_effects,
    predict_scores_each_class_seen,
    the_budget_is_never_exceeded,
    the_live_learner_answers_as_the_rebuilt_one,
    uneven_streams_are_learned,
)
from cil.memory import Budget, State
from cil.models import Output
from cil.strategies import Strategy, find
from cil.streams import Experience, Signature, Stream, class_incremental
from cil.testing import rules, toy_stream, uneven_stream
from cil.testing.carried import no_images_are_carried_beside_the_memories
from cil.testing.toy import regrouped as toy_regrouped
from cil.testing.toy import toy_dataset, toy_factory
from cil.tracking import Record

# one plain network, and cross-entropy in the first experience
LINEAR = ("finetune", "joint", "replay", "lwf", "ewc", "si", "mas", "gem", "icarl", "bic", "wa", "der")
# whose ``memory`` has floor(M / C) exemplars of each class, herded on the features of what is carried
REHEARSAL = ("replay", "gem", "icarl", "bic", "wa", "podnet", "lucir", "coil", "aanets", "der", "memo", "dytox")
# whose ``teacher`` is the network of the last boundary
DISTILLING = ("lwf", "icarl", "bic", "wa", "podnet", "lucir", "coil", "aanets", "dytox")
PIXELS = 3 * 12 * 12  # bytes of a toy image
OF_SETTINGS = (  # rules that other settings of a strategy may break; the others are checked of each with its defaults
    rules.state_survives_the_round_trip,
    rules.processes_make_no_difference,
    rules.the_ledger_is_the_checkpoint,
    no_images_are_carried_beside_the_memories,
    rules.a_resumed_run_ends_where_the_straight_run_ends,
    rules.hooks_keep_to_themselves,
    the_live_learner_answers_as_the_rebuilt_one,
    the_budget_is_never_exceeded,
    predict_scores_each_class_seen,
    predict_has_no_side_effects,
    predict_does_not_look_at_the_rest_of_the_batch,
    uneven_streams_are_learned,
)
STREAMS = {"toy": toy_stream, "uneven": uneven_stream}
ONE_STEP = Recipe(epochs=1, batch_size=64, max_steps=1)


@dataclass(frozen=True)
class Done:
    """A run that was executed, all boundaries kept.

    Attributes:
        recount: Its operations, where they were counted.
    """

    run: Run
    record: Record
    recount: Recount | None = None

    @property
    def stream(self) -> Stream:
        return self.run.work.stream

    def state(self, index: int) -> State:
        """What was carried out of experience ``index``."""
        return self.run.checkpoints.state(index)

    def learner(self, index: int) -> Any:
        """The learner after experience ``index``, rebuilt from what it carried."""
        return self.run.work.learners.rebuilt(index + 1, self.state(index))

    def net(self, index: int) -> dict[str, Tensor]:
        """Weights and buffers of the network after experience ``index``."""
        return {name: value for name, value in self.state(index).tensors.items() if name.startswith("net.")}

    def ledger(self, index: int) -> dict[str, int]:
        """Exact bytes carried out of experience ``index``, by kind."""
        return {k: v for k, v in self.record.results["ledger"][index]["totals"]["exact"].items() if k != "total"}

    def trained_with(self, index: int) -> dict[str, int]:
        """Bytes of the lines that were held in training only, by name."""
        entries = self.record.results["ledger"][index]["entries"]
        return {entry["name"]: entry["bytes"] for entry in entries if entry["lifetime"] == "training"}


def bare(
    strategy: str | type[Strategy], *, classes: Sequence[int] = (), budget: Budget | None = None, **hyperparameters: Any
) -> Any:
    """A learner without an engine, grown by so many classes after one another."""
    kind = find(strategy) if isinstance(strategy, str) else strategy
    factory = toy_factory(toy_stream(), seed=0, model=kind.toy_model)
    learner = kind(factory, budget or Budget(exemplars=10), **hyperparameters)
    torch.manual_seed(0)
    for signature in signatures(classes):
        learner.grow(signature)
    return learner


def signatures(classes: Sequence[int], images: int = 12) -> list[Signature]:
    """Of experiences of so many classes each."""
    made, seen = [], 0
    for index, count in enumerate(classes):
        slots = tuple(range(seen, seen + count))
        seen += count
        made.append(Signature(index, slots, slots, dict.fromkeys(slots, images), (3, 12, 12), seen))
    return made


def batch(*slots: int) -> Batch:
    """Some images of these slots."""
    images = torch.rand(len(slots), 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.tensor(slots))


class Fixed(nn.Module):
    """A network that gives the same outputs, whatever it is shown: its parameters."""

    def __init__(self, logits: Sequence[Sequence[float]], features: Sequence[Sequence[float]] = ()) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.features = nn.Parameter(torch.tensor(features))

    def forward(self, images: Tensor) -> Output:
        return Output(self.logits, self.features)


def observed(strategy: str, see: Callable[[str, Any, Experience], None]) -> type[Strategy]:
    """The strategy, with ``see(when, learner, experience)`` called in the course of every experience.

    ``when``: ``before`` the structure grows, ``prepared`` for training, ``trained``, and ``done``.
    """

    class Observed(find(strategy)):  # type: ignore[misc]
        def before_experience(self, experience: Experience) -> None:
            super().before_experience(experience)
            see("before", self, experience)

        def prepare(self, experience: Experience) -> None:
            super().prepare(experience)
            see("prepared", self, experience)

        def after_experience(self, experience: Experience) -> None:
            see("trained", self, experience)
            super().after_experience(experience)
            see("done", self, experience)

    return Observed


def bits(module: nn.Module) -> dict[str, Tensor]:
    """Copies of parameters and buffers."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of what is not the same, bit for bit."""
    names = sorted(a.keys() | b.keys())
    return [name for name in names if name not in a or name not in b or not torch.equal(a[name], b[name])]


def below(held: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Parameters and buffers of the part ``name``."""
    return {k.removeprefix(f"{name}."): value for k, value in held.items() if k.startswith(f"{name}.")}


def regrouped(*groups: tuple[int, ...]) -> Stream:
    """The toy images in other experiences: one for each group of slots."""
    return toy_regrouped(class_incremental(toy_dataset(), increment=6, order="natural"), groups, "regrouped")
