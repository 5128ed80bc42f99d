"""The strategy contract: the hooks that a method fills. What it holds and carries is ``cil.contract.Holder``'s."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cil.contract import Holder, Phase, Progress, Search
from cil.data import Batch, Samples
from cil.memory import Allowance, Budget
from cil.models import NetFactory
from cil.streams import Experience, Signature


class Strategy(Holder):
    """A class-incremental learner. Subclass it, say what is kept, write ``loss``.

    Args:
        make_net: Makes a fresh growing network (``make_net.branching()`` a branching one).
        budget: What may be carried; ``self.budget.exemplar_slots(self)`` answers in exemplars, read-only.

    Only what ``keep`` names crosses a boundary: every experience starts with a fresh object, grown to the structure of
    the classes seen, into which the carried state is loaded.
    """

    net: Any  # what ``build_net`` gives
    uses_horizon: ClassVar[bool] = False  # needs to know how many experiences will come
    bound: ClassVar[bool] = False  # an upper bound, not a competitor: kept out of rankings
    holds_out: ClassVar[bool] = False  # leaves images out of its main phase, for a later one
    takes_task: ClassVar[bool] = False  # answers ``predict(images, task)``, so streams must tell the task
    searches: bool = False  # has trials, which held-out data of every experience must judge
    toy: ClassVar[Mapping[str, Any]] = {}  # hyperparameters for toy runs, where the defaults are far too large
    toy_model: ClassVar[Mapping[str, Any]] = {}  # name and options of a backbone for toy runs, where any will not do

    def __init__(self, make_net: NetFactory, budget: Budget | Allowance) -> None:
        super().__init__()
        self.make_net = make_net
        self.budget = Allowance.of(budget)
        self.old_classes = 0
        self.first_slot = 0  # the lowest with data here; where no class re-appears, the first new one
        self.progress = Progress()
        self.notes: list[str] = []  # a sentence for each thing that a person should hear before training
        self.findings: dict[str, Any] = {}  # what to tell of an experience: plain data, for the record
        self.keep("net", self.build_net(), kind="parameters")

    # what a method may fill -----------------------------------------------------------------------------------------

    def build_net(self) -> nn.Module:
        """The network, before any class is known. Default: one growing network."""
        return self.make_net()

    def grow(self, signature: Signature) -> None:
        """Structure for the classes that arrive: deterministic, no data. Default: widen the head.

        Whatever grows with classes or experiences is allocated here at its final size, so that it can be billed
        before training. An override calls ``super().grow(signature)`` first.
        """
        self.old_classes = self.num_classes
        self.num_classes = signature.num_classes
        self.first_slot = min(signature.present, default=self.old_classes)
        self.image_shape = signature.image_shape
        self.grow_net(signature)

    def grow_net(self, signature: Signature) -> None:
        """Structure of the network alone."""
        self.net.grow(len(signature.new_slots))

    def before_experience(self, experience: Experience) -> None:
        """The network is still as the last experience left it: copy a teacher, take a snapshot."""

    def prepare(self, experience: Experience) -> None:
        """Data and new structure meet: imprinting, transport, identity initialisation."""

    def training_set(self, experience: Experience) -> Samples:
        """What the main phase trains on. Default: new data and all that the rehearsal memories hold."""
        data = experience.train
        for memory in self.memories().values():
            data = data + memory.samples()
        return data

    def loss(self, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        """The one method that most strategies must write."""
        raise NotImplementedError(f"{type(self).__name__} must write loss(batch), or give its phases a loss")

    def phases(self, experience: Experience) -> Iterator[Phase | Search]:
        """The phases of training, lazily: code between two of them runs between them. Default: one.

        A ``Search`` is a phase too: the engine trains its trials, judges them on held-out data and keeps the best.

        After an interruption the iterator is run again up to where training stood, each stretch on the state it saw
        the first time, so it must not depend on anything that is not kept.
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
        """Statistics, alignment, exemplars."""

    def predict(self, images: Tensor) -> Tensor:
        """Score each class seen: (N, C, H, W) float in [0, 1] to (N, num_classes). Default: the head's logits."""
        return self.net(images).logits

    def accepts(self, signature: Signature) -> Mapping[int, int]:
        """Images of each slot that the learner takes of an experience. Default: all that arrive.

        Asked before the experience, of structure alone. The engine draws that many and hands over no others, also not
        in the signature; under ``budget.scope=carried+incoming`` as many more exemplars may be held.
        """
        return signature.counts

    def quotas(self, experience: Experience, quota: int, net: nn.Module) -> Mapping[int, int]:
        """Exemplars of single slots, where ``store_exemplars`` shall take another number than ``quota``.

        ``net``: by whose outputs they are chosen.
        """
        return {}

    def held_quota(self, counts: Collection[int]) -> int:
        """floor(M / C_o), by how many exemplars the classes held have. Default: the most; small classes have fewer."""
        return max(counts, default=0)

    def exemplar_plan(self, slots: int, counts: Mapping[int, int]) -> dict[int, int]:
        """Exemplars of each slot after an experience, for the dry run. Default: floor(slots / C), small classes whole.

        Args:
            slots: What the budget allows.
            counts: Images to choose from, of each slot seen: those held, and those that arrive. What was not kept is
                gone, even if there is room for it later.
        """
        quota = slots // max(1, len(counts))
        return {slot: min(quota, count) for slot, count in counts.items()} if self.memories() else {}

    def memory_of(self, slot: int) -> str | None:
        """Name of the rehearsal memory that alone holds exemplars of a slot. Default: None, each memory holds all."""
        return None

    # what the base does ---------------------------------------------------------------------------------------------

    def gradient(self, loss: Tensor) -> list[Tensor]:
        """Gradients of an extra loss for the trainable parameters; their ``grad`` is not touched."""
        parameters = self.trainable()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
