"""Adapters that break one rule of the contract each. Every one of them must be caught, by the rule's name."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from cil.adapt import Adapter, SourceModel
from cil.contract import Holder
from cil.data import Samples
from cil.memory import State

GLOBAL: list[float] = []


class Honest(Adapter):
    """Moves its answers by a running mean of them, one that is kept: the control."""

    def __init__(self, source: SourceModel, *, pace: float = 0.3) -> None:
        super().__init__(source)
        self.pace = pace
        self.net.eval()
        self.keep("mean", torch.zeros(source.num_classes), kind="statistics")

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            scores = self.logits(images).softmax(1)
            self.mean = (1 - self.pace) * self.mean + self.pace * scores.mean(0)
            noise = torch.rand(scores.shape, generator=self.generator("noise"))
            return scores - self.mean + 0.01 * noise


class LoadsSomethingElse(Honest):
    """A state that is not the same after it was loaded."""

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self.mean = self.mean + 1


class HelpedByAGlobal(Honest):
    """What it met stays in a module global, which a process of its own does not have."""

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        scores = super().adapt_and_predict(images)
        GLOBAL.append(float(scores.detach().std()))
        return scores.roll(len(GLOBAL), 1)


class RemembersAcrossAReset(Honest):
    """What it met stays on the class."""

    stash: ClassVar[dict[str, float]] = {}

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        self.stash["sum"] = self.stash.get("sum", 0.0) + float(images.sum())
        chosen = torch.Generator().manual_seed(int(1000 * self.stash["sum"]))
        return torch.rand(super().adapt_and_predict(images).shape, generator=chosen)


class RemembersTheLastBatch(Honest):
    """The batch before stays on the class, until it is deployed anew: what came long before a reset does not matter."""

    latest: ClassVar[list[float]] = []

    def deploy(self, source: Any) -> None:
        self.latest.clear()

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        chosen = torch.Generator().manual_seed(int(1e6 * sum(self.latest)))
        self.latest[:] = [float(images.mean())]
        return torch.rand(super().adapt_and_predict(images).shape, generator=chosen)


class HidesBytes(Honest):
    """Its ledger lines are smaller than what is stored."""

    def state(self) -> State:
        held = super().state()
        thin = {name: _Thin(tensor) if name == "mean" else tensor for name, tensor in held.tensors.items()}
        return State(thin, held.kinds, held.meta, held.references, held.survey)


class _Thin(torch.Tensor):
    """A tensor that says it has no values."""

    @staticmethod
    def __new__(cls, tensor: Tensor) -> Any:
        return torch.Tensor._make_subclass(cls, tensor)

    def numel(self) -> int:
        return 0


class DrawsFromNowhere(Honest):
    """Noise that no seed reaches."""

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        noise = torch.rand(4, generator=torch.Generator().manual_seed(torch.seed() % 2**31))
        return super().adapt_and_predict(images) + noise


class CountsInSecret(Honest):
    """A plain number that a resumed run does not have."""

    def __init__(self, source: SourceModel) -> None:
        super().__init__(source)
        self.count = 0

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        self.count += 1
        return super().adapt_and_predict(images) + self.count % 3 * torch.arange(4.0)


class ScoresTooFew(Honest):
    """No column for the last class."""

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        return super().adapt_and_predict(images)[:, :-1]


class NeedsTwoImages(Honest):
    """Fails on a last batch of one."""

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        if len(images) == 1:
            raise ValueError("a variance of one image")
        return super().adapt_and_predict(images)


class PeeksAtTheLabels(Honest):
    """Looks into the frames of its callers for a batch with labels."""

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        scores = super().adapt_and_predict(images)
        frame = sys._getframe(1)
        while frame is not None:
            batch = frame.f_locals.get("batch")
            if batch is not None and not isinstance(batch, Tensor):
                return torch.nn.functional.one_hot(batch.slots, scores.shape[1]).float()
            frame = frame.f_back
        return scores


class ChangesTheImages(Honest):
    """Normalises in place what it was handed."""

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        return super().adapt_and_predict(images.mul_(0.9))


class AnswersAfterwards(Honest):
    """Changes its answers when it knows more."""

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        if getattr(self, "answers", None) is not None:
            self.answers.add_(1)
        scores = super().adapt_and_predict(images)
        Holder.keep(self, "answers", scores, kind="temporary")
        return scores


class WritesAFile(Honest):
    """Leaves a note."""

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        (Path(tempfile.gettempdir()) / "cil-adapter-note").write_text("was here")
        return super().adapt_and_predict(images)


class ResetsWhenFresh(Honest):
    """Knows by its age that a domain begins, and forgets the one before."""

    def __init__(self, source: SourceModel) -> None:
        super().__init__(source)
        self.age = 0

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        if not self.age:
            self.mean.zero_()
        self.age += 1
        return super().adapt_and_predict(images)


class KeepsImagesInAClosure(Honest):
    """The images met lie in a function, uncharged."""

    def __init__(self, source: SourceModel) -> None:
        super().__init__(source)
        met: list[Tensor] = []
        self.remember = lambda images: met.append(images) or torch.cat(met)

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        shift = 1e4 * self.remember(images.clone()).mean() % 4
        return super().adapt_and_predict(images).roll(int(shift), 1)


class ChangesLater(Honest):
    """An attribute of the class that counts, and is used after twenty batches."""

    count: ClassVar[list[int]] = [0]

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        self.count[0] += 1
        return super().adapt_and_predict(images).roll(int(self.count[0] > 20), 1)


class SeesWhatIsToCome(Honest):
    """Looks into the frames of its callers for the images to come."""

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        scores = super().adapt_and_predict(images)
        frame = sys._getframe(1)
        while frame is not None:
            samples = frame.f_locals.get("samples")
            if isinstance(samples, Samples):
                return scores.roll(int(1e4 * samples.images.mean()) % 4, 1)
            frame = frame.f_back
        return scores


class PeeksInLargeBatches(PeeksAtTheLabels):
    """As that, where batches are as large as in real runs."""

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        return super().adapt_and_predict(images) if len(images) > 100 else Honest.adapt_and_predict(self, images)


@dataclass(frozen=True)
class Case:
    """A cheat, the rule that must see it, and what it must say."""

    cheat: type[Adapter]
    rule: str
    says: str


CASES = [
    Case(ResetsWhenFresh, "where_a_domain_begins_is_not_known", "not kept is age (int)"),
    Case(
        KeepsImagesInAClosure,
        "where_a_domain_begins_is_not_known",
        "is a function with a Tensor in it that was not kept",
    ),
    Case(ChangesLater, "where_a_domain_begins_is_not_known", "answered otherwise than in one segment"),
    Case(SeesWhatIsToCome, "later_images_are_not_known", "with other images later on"),
    Case(PeeksInLargeBatches, "labels_and_domains_are_not_looked_at", "its answers follow the labels"),
    Case(LoadsSomethingElse, "state_survives_the_round_trip", "load_state changed mean"),
    Case(HelpedByAGlobal, "what_was_not_kept_cannot_help", "with a process for each segment and in one process"),
    Case(RemembersAcrossAReset, "a_reset_leaves_nothing", "it answers by what it met before"),
    Case(RemembersTheLastBatch, "a_reset_leaves_nothing", "it answers by what it met before"),
    Case(HidesBytes, "the_ledger_is_the_checkpoint", "what is carried are plain tensors"),
    Case(DrawsFromNowhere, "same_seed_same_bits", "twice with the same seed"),
    Case(CountsInSecret, "a_resumed_run_ends_where_the_straight_run_ends", "interrupted at batch"),
    Case(ScoresTooFew, "each_class_is_scored", "gave scores (10, 3) in place of (10, 4)"),
    Case(NeedsTwoImages, "each_class_is_scored", "fails on a stream with a last batch of one image"),
    Case(PeeksAtTheLabels, "labels_and_domains_are_not_looked_at", "its answers follow the labels"),
    Case(ChangesTheImages, "the_images_are_left_as_they_are", "changed the images that it was handed"),
    Case(AnswersAfterwards, "the_images_are_left_as_they_are", "scores that were handed back changed later"),
    Case(WritesAFile, "hooks_keep_to_themselves", "writes the file"),
]
