"""The strategy contract: the hooks that a method fills. ``cil.contract.Holder`` has what it holds and carries."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cil.contract import Checks, Holder, Phase, Progress, Search
from cil.contract.renamed import old_name
from cil.data import Batch, Samples
from cil.memory import Allowance, Budget
from cil.models import NetFactory, Output
from cil.streams import Experience, Signature

check = Checks("strategy")


class Strategy(Holder):
    """A class-incremental learner. A subclass names what it keeps and writes ``loss``.

    Args:
        make_net: Makes a fresh growing network (``make_net.branching()`` a branching one).
        budget: Limit of what is carried; ``self.budget.exemplar_slots(self)`` is the number of exemplars that fit.

    Only what ``keep`` names crosses a boundary: every experience starts with a fresh object, grown to the structure of
    the classes seen, into which the carried state is loaded.
    """

    net: Any  # the network that ``build_net`` makes
    uses_horizon: ClassVar[bool] = False  # needs to know how many experiences will come
    bound: ClassVar[bool] = False  # an upper bound, not a competitor: kept out of rankings
    transductive: ClassVar[bool] = False  # the answer to a test image may depend on the other test images
    uses_validation: ClassVar[bool] = False  # is handed the images that the stream holds out, and may train on them
    holds_out: ClassVar[bool] = False  # leaves images out of its main phase, for a later one
    whole_batches: ClassVar[str | None] = None  # why ``loss`` must see whole batches: several devices share none
    same_draws: ClassVar[bool] = False  # devices that share a batch draw the same in ``loss``, not each for its rows
    takes_task: ClassVar[bool] = False  # task-aware: answers ``predict(images, task)``
    answers_by: str = "head"  # name of the answer that ``predict`` gives, where others stand beside it
    starts_from: ClassVar[str | None] = None  # origin of initial weights that are not those of ``make_net``
    fits: ClassVar[str | None] = None  # the hyperparameter that spends bytes, which budget.fit=true sets
    searches: bool = False  # its trials need held-out data in every experience
    notes, findings = old_name("notes", "warnings"), old_name("findings", "diagnostics")
    toy: ClassVar[Mapping[str, Any]] = {}  # hyperparameters for toy runs, where the defaults are far too large
    toy_model: ClassVar[Mapping[str, Any]] = {}  # name and options of a backbone for toy runs, where any will not do

    def __init__(self, make_net: NetFactory, budget: Budget | Allowance) -> None:
        super().__init__()
        self.make_net = make_net
        self.budget = Allowance.of(budget)
        self.old_classes = 0
        self.first_slot = 0  # lowest slot with data in the experience; where no class re-appears, the first new one
        self.came_back, self.came_back_before = 0, 0  # classes met again, up to this experience and before it
        self.progress = Progress()
        self.warnings: list[str] = []  # sentences for a person, before training
        self.diagnostics: dict[str, Any] = {}  # JSON of an experience, for the record
        self.keep("net", self.build_net(), kind="parameters")

    @classmethod
    def ignored_keys(cls, hyperparameters: Mapping[str, Any]) -> dict[str, str]:
        """Keys of optimizer and trainer that do nothing with these, each with the one that does. Default: none."""
        return {}

    @classmethod
    def fitted_key(cls, hyperparameters: Mapping[str, Any]) -> str | None:
        """``fits`` beside the other hyperparameters; None where none spends bytes with these. Default: ``fits``."""
        return cls.fits

    @classmethod
    def smallest_fit(cls, hyperparameters: Mapping[str, Any]) -> int:
        """The smallest value that ``fits`` may have beside the other hyperparameters. Default: 1."""
        return 1

    # hooks ----------------------------------------------------------------------------------------------------------

    def build_net(self) -> nn.Module:
        """The network, before any class is known. Default: one growing network."""
        return self.make_net()

    def grow(self, signature: Signature) -> None:
        """Make structure for the classes that arrive: deterministic, without data. Default: widen the head.

        Allocate here, at its final size, whatever grows with classes or experiences: it is billed before training. An
        override calls ``super().grow(signature)`` first.
        """
        self.old_classes = self.num_classes
        self.num_classes = signature.num_classes
        self.first_slot = min(signature.present, default=self.old_classes)
        self.came_back_before = self.came_back
        self.came_back += len(set(signature.present).difference(signature.new_slots))
        self.image_shape = signature.image_shape
        self.grow_net(signature)

    def grow_net(self, signature: Signature) -> None:
        """Grow the network alone."""
        self.net.grow(len(signature.new_slots))

    def before_experience(self, experience: Experience) -> None:
        """Copy a teacher or take a snapshot: the network is still as the last experience left it."""

    def prepare(self, experience: Experience) -> None:
        """Use data and new structure together: imprinting, transport, identity initialisation."""

    def training_set(self, experience: Experience) -> Samples:
        """Samples of the main phase. Default: the new data and all exemplars."""
        data = experience.train
        for memory in self.memories().values():
            data = data + memory.samples()
        return data

    def loss(self, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        """Loss of a batch: the one method that most strategies must write."""
        raise NotImplementedError(f"{type(self).__name__} must write loss(batch), or give its phases a loss")

    def phases(self, experience: Experience) -> Iterator[Phase | Search]:
        """Phases of training, lazily: code between two of them runs between them. Default: one phase.

        A ``Search`` is a phase too: the engine trains its trials, judges them on held-out data and keeps the best.

        After an interruption the iterator runs again up to where training stopped, each stretch on the state that it
        saw the first time, so it must depend only on what is kept.
        """
        yield Phase("main", self.training_set(experience), self.loss)

    def train_mode(self) -> None:
        """Put what is trained into training mode. Default: the network; frozen parts stay in evaluation mode."""
        for module in self._trained_modules():
            module.train()

    def adjust_gradients(self, batch: Batch) -> None:
        """After backward, before the optimizer: project, clip, mask."""

    def after_step(self, batch: Batch) -> None:
        """After the optimizer: accumulate, insert, average."""

    def after_experience(self, experience: Experience) -> None:
        """Store statistics, align weights, choose exemplars."""

    def predict(self, images: Tensor) -> Tensor:
        """Score each class seen: (N, C, H, W) float in [0, 1] to (N, num_classes). Default: the logits of the head."""
        found: Tensor = self.net(images).logits
        return found

    def further_answers(self, images: Tensor, output: Output) -> Mapping[str, Tensor]:
        """Scores of the same images, (N, num_classes), by other means that are carried, by name. Default: none.

        They are counted beside ``predict``, which stays the answer. That by the nearest mean of exemplars comes by
        itself where exemplars are carried.

        Args:
            output: What the network that ``predict`` asked last gave for these images.
        """
        return {}

    def accepts(self, signature: Signature) -> Mapping[int, int]:
        """Number of images that the learner takes of each slot of an experience. Default: all that arrive.

        Asked before the experience, of its structure alone. The engine draws that many and hands over no others, also
        not in the signature; under ``budget.scope=carried+incoming`` as many more exemplars may be held.
        """
        return signature.counts

    def in_advance(self, signature: Signature) -> int:
        """Exemplars beyond the cap after the first experience, for images that later ones give up. Default: 0.

        Asked as ``accepts`` is, of the first experience alone, in which no old exemplar is held beside the images.
        Under ``budget.scope=carried+incoming`` that many more may be held; when the next experience begins, exemplars
        must fit with what it takes.
        """
        return 0

    def quotas(self, experience: Experience, quota: int, net: nn.Module) -> Mapping[int, int]:
        """Exemplars of single slots, where ``store_exemplars`` shall keep another number than ``quota``.

        Args:
            net: Network by whose outputs they are chosen.
        """
        return {}

    def held_quota(self, counts: Collection[int]) -> int:
        """Quota of old classes, floor(M / C_o), from the exemplars held of each. Default: the largest count."""
        return max(counts, default=0)

    def exemplar_plan(self, slots: int, counts: Mapping[int, int]) -> dict[int, int]:
        """Exemplars of each slot after an experience, for the dry run. Default: floor(slots / C), small classes whole.

        Args:
            slots: Exemplars that the budget allows.
            counts: Images of each slot seen to choose from: those held and those that arrive. Dropped images are gone,
                even if there is room for them later.
        """
        quota = slots // max(1, len(counts))
        return {slot: min(quota, count) for slot, count in counts.items()} if self.memories() else {}

    def memory_of(self, slot: int) -> str | None:
        """Name of the only rehearsal memory that holds exemplars of a slot. Default: None, every memory holds all."""
        return None

    def side_bytes(self) -> int:
        """Further bytes that the method holds by design beside network and exemplars, asked of its structure.

        They are added to what ``budget.side_bytes=auto`` allows, where statistics are of another size than a network
        or a covariance a class. Default: none.
        """
        return 0

    # helpers --------------------------------------------------------------------------------------------------------

    @property
    def share_before(self) -> float:
        """Share of what was met before this experience in all that was met, in classes: C_o / C.

        A class that comes back counts again whenever it does. Without that, an experience without a new class, as a
        further domain, would weigh nothing.
        """
        return (self.old_classes + self.came_back_before) / (self.num_classes + self.came_back)

    def gradient(self, loss: Tensor) -> list[Tensor]:
        """Gradients of an extra loss for the trainable parameters; their ``grad`` stays as it is."""
        return list(torch.autograd.grad(loss, self.trainable(), materialize_grads=True))
