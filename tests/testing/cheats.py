"""Learners that break one rule of the contract each. Every one of them must be caught, by the rule's name."""

from __future__ import annotations

import base64
import gc
import mmap
import os
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from cil.data import ArrayStore, Samples
from cil.errors import StreamError
from cil.memory import ExemplarMemory, State
from cil.strategies import Phase, Strategy
from cil.strategies.parts import store_exemplars
from cil.strategies.replay import Replay
from cil.streams import Stream
from cil.testing.toy import toy_dataset

GLOBAL: list[Samples] = []
SHARED = mmap.mmap(-1, 1 << 16)
FILE = Path(tempfile.gettempdir()) / f"cil-cheat-{os.getpid()}.pt"  # suites may run side by side


class Honest(Replay):
    """Replay, written by someone else: the control."""


class LoadsSomethingElse(Replay):
    """A state that is not the same after it was loaded."""

    def load_state(self, state: State) -> None:
        super().load_state(state)
        with torch.no_grad():
            self.net.head.weight.mul_(1.01)


class ModuleGlobal(Replay):
    """Training data in a global of the module."""

    def training_set(self, experience: Any) -> Samples:
        data = super().training_set(experience)
        return data + GLOBAL[-1] if experience.index and GLOBAL else data

    def after_experience(self, experience: Any) -> None:
        super().after_experience(experience)
        GLOBAL.append(experience.train)


class ClassAttribute(Replay):
    """Weights in an attribute of the class."""

    stash: ClassVar[dict[str, Tensor]] = {}

    def prepare(self, experience: Any) -> None:
        if experience.index and self.stash:
            self.net.backbone.load_state_dict(self.stash)

    def after_experience(self, experience: Any) -> None:
        super().after_experience(experience)
        if not experience.index:
            self.stash.update({key: value.clone() for key, value in self.net.backbone.state_dict().items()})


class InAFile(Replay):
    """Training data in a file."""

    def after_experience(self, experience: Any) -> None:
        super().after_experience(experience)
        torch.save(experience.train.pixels, FILE)


class ReadsAFile(Replay):
    """Data from a file that nobody handed over."""

    def before_experience(self, experience: Any) -> None:
        if FILE.exists():
            FILE.read_bytes()


class InSharedMemory(Replay):
    """Training data in memory that processes share."""

    def phases(self, experience: Any) -> Any:
        pixels = experience.train.pixels[:4]
        size, data = pixels.numel(), self.training_set(experience)
        if experience.index:
            held = torch.frombuffer(bytearray(SHARED[:size]), dtype=torch.uint8).view_as(pixels)
            data = data + Samples(ArrayStore(held), experience.train.slots[:4])
        SHARED[:size] = pixels.numpy().tobytes()
        yield Phase("main", data, self.loss)


class WalksFrames(Replay):
    """Past training data, by a walk through the callers."""

    def training_set(self, experience: Any) -> Samples:
        data, frame = super().training_set(experience), sys._getframe()
        while frame is not None:
            run = frame.f_locals.get("self")
            if type(run).__name__ == "Run" and experience.index:
                return data + run.work.stream[0].train
            frame = frame.f_back  # type: ignore[assignment]
        return data


class FreeState(State):
    """A state that says that its metadata weigh nothing."""

    def encoded_meta(self) -> bytes:
        return b""


class FreeMetadata(Replay):
    """Metadata that ride free."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("numbers", [])

    def after_experience(self, experience: Any) -> None:
        super().after_experience(experience)
        self.numbers = [*self.numbers, *experience.train.pixels.flatten()[:50].tolist()]

    def state(self) -> State:
        own = super().state()
        return FreeState(own.tensors, own.kinds, own.meta, own.references, own.survey)


class ImagesAsStatistics(Replay):
    """Training images under another name, as they are."""

    kind: ClassVar[str] = "statistics"
    dtype: ClassVar[torch.dtype] = torch.uint8

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("more", torch.zeros(4, 3, 12, 12, dtype=self.dtype), kind=self.kind)

    def hidden(self, pixels: Tensor) -> Tensor:
        return pixels

    def after_experience(self, experience: Any) -> None:
        super().after_experience(experience)
        self.more = self.hidden(experience.train.pixels[:4])


class ImagesAsPrototypes(ImagesAsStatistics):
    """Training images as halves in [0, 1], in the imaginary part."""

    kind = "prototypes"
    dtype = torch.complex64

    def hidden(self, pixels: Tensor) -> Tensor:
        return torch.complex(torch.zeros(pixels.shape), pixels.float() / 255)


class ImagesNormalised(ImagesAsStatistics):
    """Training images normalised by channel."""

    dtype = torch.float32

    def hidden(self, pixels: Tensor) -> Tensor:
        normalised: Tensor = self.net.normalise(pixels.float() / 255)
        return normalised


class ImagesInLowBits(ImagesAsStatistics):
    """Training images in the low 16 bits of plausible numbers."""

    dtype = torch.float32

    def hidden(self, pixels: Tensor) -> Tensor:
        pairs = pixels.flatten().view(torch.int16).int() & 0xFFFF
        values = torch.linspace(-1, 1, pixels.numel()).view(torch.int32) & ~0xFFFF
        values[: len(pairs)] |= pairs
        return values.view(torch.float32).view(pixels.shape)


class ImagesAsText(Replay):
    """Training images as text among the metadata."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("more", "")

    def after_experience(self, experience: Any) -> None:
        super().after_experience(experience)
        self.more = base64.b64encode(experience.train.pixels[:4].numpy().tobytes()).decode()


class PublicRows:
    """A codec that keeps the row of a public set, two bytes an image."""

    fixed = True
    lossless = False
    public: ClassVar[Any] = staticmethod(lambda: toy_dataset().train.pixels)

    def stored_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return 2, 1, 1

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.cdist(pixels.flatten(1).float(), self.public().flatten(1).float()).argmin(1)
        return rows.to(torch.int16).view(torch.uint8), torch.full((len(pixels),), 2, dtype=torch.int32)

    def decode(self, data: Tensor, sizes: Tensor, shape: tuple[int, int, int]) -> Tensor:
        chosen: Tensor = self.public()[data.contiguous().view(torch.int16).long()]
        return chosen


class KeepsRowNumbers(Replay):
    """Exemplars that are row numbers of a public set."""

    codec: ClassVar[type] = PublicRows

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("memory", ExemplarMemory(self.codec(), "random"), kind="exemplars")


class Dictionary(PublicRows):
    """A codec with the images in a dictionary on the class."""

    held: ClassVar[dict[int, Tensor]] = {}

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        first = len(self.held)
        self.held.update(enumerate(pixels.clone(), first))
        rows = torch.arange(first, first + len(pixels), dtype=torch.int16)
        return rows.view(torch.uint8), torch.full((len(pixels),), 2, dtype=torch.int32)

    def decode(self, data: Tensor, sizes: Tensor, shape: tuple[int, int, int]) -> Tensor:
        return torch.stack([self.held[row] for row in data.contiguous().view(torch.int16).tolist()])


class KeepsADictionary(KeepsRowNumbers):
    """Exemplars that are keys of a dictionary."""

    codec = Dictionary


class DataInNames(Strategy):
    """Bytes in the names of tensors, which nobody pays for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("names", {}, kind="other")

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)

    def after_experience(self, experience: Any) -> None:
        self.names = {str(bytes(experience.train.pixels[0].flatten()[:20].tolist())): torch.zeros(())}

    def load_state(self, state: State) -> None:
        self.net.load_state_dict({key[4:]: value for key, value in state.tensors.items() if key.startswith("net.")})


class GrowsOnData(Replay):
    """A tensor whose size is not known from the structure."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("sketch", torch.zeros(1), kind="statistics")

    def after_experience(self, experience: Any) -> None:
        super().after_experience(experience)
        self.sketch = torch.zeros(1 + len(experience.train) % 7)


class Light(Tensor):
    """A tensor that says that it has no values."""

    def numel(self) -> int:
        return 0


class BytesInShapes(Replay):
    """Tensors without values, whose shapes say something."""

    def state(self) -> State:
        own = super().state()
        shape = [0, *self.memory.samples().pixels.flatten()[:6].tolist()]
        sides = {"memory.images": torch.empty(shape, dtype=torch.uint8), "memory.slots": torch.empty(0).byte()}
        kinds = {**own.kinds, "memory.images": "exemplars", "memory.slots": "labels"}
        return State({**own.tensors, **sides}, kinds, own.meta, own.references, own.survey)

    def load_state(self, state: State) -> None:
        self.net.load_state_dict({key[4:]: value for key, value in state.tensors.items() if key.startswith("net.")})


class WeighsNothing(Replay):
    """A state of tensors that lie about their size."""

    def state(self) -> State:
        own = super().state()
        light = {name: t.as_subclass(Light) if name == "memory.images" else t for name, t in own.tensors.items()}
        return State(light, own.kinds, own.meta, own.references, own.survey)


class TwiceTheBudget(Replay):
    """More exemplars than allowed."""

    def after_experience(self, experience: Any) -> None:
        self.memory.rebuild(experience.train, 10, lambda samples: torch.zeros(len(samples), 1), self.generator("x"))


class SaysItIsSmall(Replay):
    """A bill that leaves out the network, so that more exemplars seem to fit."""

    def fixed_bytes(self, convention: str = "exact") -> int:
        return 0


class ExemplarsAsStatistics(Replay):
    """Stored images under another name; under a budget of bytes they count all the same."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("extra", torch.zeros(0), kind="statistics")

    def grow(self, signature: Any) -> None:
        super().grow(signature)
        self.extra = torch.zeros(40, *signature.image_shape)

    def fixed_bytes(self, convention: str = "exact") -> int:
        return super().fixed_bytes(convention) - self.extra.numel() * 4


class OtherRandomness(Replay):
    """Draws that do not come from the run's seed."""

    def loss(self, batch: Any) -> Tensor:
        generator = torch.Generator()
        generator.seed()
        return super().loss(batch) * (1 + 0.1 * torch.rand((), generator=generator))


class CountsSteps(Replay):
    """Something that training changes and that is not kept: gone after a resume."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps = 0

    def after_step(self, batch: Any) -> None:
        self.steps += 1

    def loss(self, batch: Any) -> Tensor:
        return super().loss(batch) / (1 + self.steps)


class PredictsInTrainingMode(Replay):
    """Batch statistics of the test data."""

    def predict(self, images: Tensor) -> Tensor:
        self.net.train()
        return super().predict(images)


class LearnsFromTestImages(Replay):
    """A head that moves with each answer."""

    def predict(self, images: Tensor) -> Tensor:
        scores = super().predict(images)
        self.net.head.bias.data -= scores.mean(0)
        return scores


class RemembersTestImages(Replay):
    """A counter of the answers given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked = 0

    def predict(self, images: Tensor) -> Tensor:
        self.asked += 1
        return super().predict(images) + self.asked


class GuessesTheTask(Replay):
    """One experience for the whole batch, by majority."""

    def predict(self, images: Tensor) -> Tensor:
        scores = super().predict(images)
        if scores.shape[1] > 2:
            task = int(scores.argmax(1).div(2, rounding_mode="floor").mode().values)
            scores[:, 2 * task : 2 * task + 2] += 100
        return scores


class CountsPlaces(Replay):
    """An answer that depends on the place in the batch."""

    def predict(self, images: Tensor) -> Tensor:
        scores = super().predict(images)
        return scores + torch.arange(len(scores)).unsqueeze(1) % 3 * torch.arange(scores.shape[1])


class AsksForTheTask(Replay):
    """A predict that wants to know the experience."""

    def predict(self, images: Tensor, task: int) -> Tensor:  # type: ignore[override]
        return super().predict(images)


class NewClassesOnly(Replay):
    """Scores of the newest classes alone."""

    def predict(self, images: Tensor) -> Tensor:
        return super().predict(images)[:, self.old_classes :]


class NotANumber(Replay):
    """Scores that are not numbers."""

    def predict(self, images: Tensor) -> Tensor:
        scores = super().predict(images)
        return torch.where(torch.arange(scores.shape[1]) == scores.shape[1] - 1, torch.nan, scores)


class PeeksAtTheTest(Replay):
    """Test data, by a search through all objects of the interpreter."""

    def training_set(self, experience: Any) -> Samples:
        data = super().training_set(experience)
        streams = [found for found in gc.get_objects() if isinstance(found, Stream)]  # those of other tests too
        for found in [one for one in streams if experience.signature in one.signatures]:
            with suppress(StreamError):
                data = data + found.test(experience.index)
        return data


class NeedsTwoClasses(Replay):
    """Fails where an experience has one class."""

    def prepare(self, experience: Any) -> None:
        first, second = experience.new_slots[:2]
        assert first != second


class ForgetsToKeep(Replay):
    """A tensor that was not kept."""

    def after_experience(self, experience: Any) -> None:
        store_exemplars(self, experience)
        self.centre = experience.train.pixels.float().mean(0)


class LateGlobal(Replay):
    """Training data of long ago, in a global of the module, from the fourth experience on."""

    def training_set(self, experience: Any) -> Samples:
        data = super().training_set(experience)
        GLOBAL.append(experience.train)
        return data + GLOBAL[experience.index - 3] if experience.index > 2 else data


class LateAttribute(Replay):
    """As that, in an attribute of the class, and careful where it is empty."""

    met: ClassVar[list[Samples]] = []

    def training_set(self, experience: Any) -> Samples:
        data = super().training_set(experience)
        self.met.append(experience.train)
        return data + self.met[0] if experience.index > 3 else data


class KnowsTheHorizon(Replay):
    """Counts on the class, in the dry run, how many classes there will be."""

    most: ClassVar[list[int]] = [0]

    def grow(self, signature: Any) -> None:
        super().grow(signature)
        self.most[0] = max(self.most[0], signature.num_classes)

    def loss(self, batch: Any) -> Tensor:
        return super().loss(batch) * self.num_classes / self.most[0]


class LooksAtTheLabels(Replay):
    """Answers by what it finds in the frames of the evaluation; it says that it is transductive, to be asked once."""

    transductive = True

    def predict(self, images: Tensor) -> Tensor:
        scores, frame = super().predict(images), sys._getframe()
        while frame is not None:
            slots = frame.f_locals.get("slots")
            if isinstance(slots, Tensor) and len(slots) == len(images):
                return scores + 100 * F.one_hot(slots, scores.shape[1])
            frame = frame.f_back  # type: ignore[assignment]
        return scores


TRAINED = torch.randn(16, 3, 3, 3, generator=torch.Generator().manual_seed(9))  # as if it had been read at import


class StartsTrained(Replay):
    """Begins with weights of another training, and says nothing."""

    def before_experience(self, experience: Any) -> None:
        if not experience.index:
            weights = next(self.net.backbone.parameters())
            noise = torch.randn(weights.shape, generator=self.generator("hide"))
            weights.data.copy_(TRAINED[: len(weights), : weights.shape[1]] + 0.1 * noise)


class HiddenBuffer(Replay):
    """A buffer that is not saved; it is lost at the boundary."""

    def build_net(self) -> Any:
        net = super().build_net()
        net.register_buffer("shift", torch.zeros(1), persistent=False)
        return net

    def after_experience(self, experience: Any) -> None:
        super().after_experience(experience)
        self.net.shift.fill_(1.0)

    def predict(self, images: Tensor) -> Tensor:
        scores = super().predict(images)
        return scores + self.net.shift * torch.arange(scores.shape[1])


class Prior:
    """An object with numbers in it."""

    def __init__(self, classes: int) -> None:
        self.numbers = np.arange(classes, dtype=np.float32)


class NumbersAside(Replay):
    """Counts of the classes in an object of its own, which nobody keeps."""

    prior: Prior | None = None

    def after_experience(self, experience: Any) -> None:
        super().after_experience(experience)
        self.prior = Prior(self.num_classes)

    def predict(self, images: Tensor) -> Tensor:
        scores = super().predict(images)
        return scores if self.prior is None else scores + torch.from_numpy(self.prior.numbers)


class ReadsAPublicCopy(Replay):
    """The data set once more, test images too, from an installed package."""

    def training_set(self, experience: Any) -> Samples:
        load_digits()
        return super().training_set(experience)


@dataclass(frozen=True)
class Case:
    """A cheat, the rule that catches it, and a word of the message."""

    cheat: type[Strategy]
    rule: str
    says: str


CASES = [
    Case(LateGlobal, "what_was_not_kept_cannot_help", "something of another past was used"),
    Case(LateAttribute, "what_was_not_kept_cannot_help", "differs after experience 4"),
    Case(LateAttribute, "only_the_state_crosses_a_boundary", "two pasts"),
    Case(KnowsTheHorizon, "the_future_is_not_known", "after experience 0 already"),
    Case(LooksAtTheLabels, "test_labels_play_no_part_in_answers", "other labels on the same test images"),
    Case(StartsTrained, "training_starts_from_what_the_factory_gives", "the same whatever the seed"),
    Case(HiddenBuffer, "the_live_learner_answers_as_the_rebuilt_one", "registered with persistent=False"),
    Case(NumbersAside, "the_live_learner_answers_as_the_rebuilt_one", "prior came to hold a ndarray"),
    Case(ReadsAPublicCopy, "hooks_keep_to_themselves", "in training_set)"),
    Case(LoadsSomethingElse, "state_survives_the_round_trip", "load_state changed net.head.weight"),
    Case(ModuleGlobal, "what_was_not_kept_cannot_help", "process for each experience"),
    Case(ClassAttribute, "what_was_not_kept_cannot_help", "process for each experience"),
    Case(ModuleGlobal, "only_the_state_crosses_a_boundary", "two pasts"),
    Case(InSharedMemory, "only_the_state_crosses_a_boundary", "two pasts"),
    Case(WalksFrames, "only_the_state_crosses_a_boundary", "two pasts"),
    Case(InAFile, "hooks_keep_to_themselves", "writes the file"),
    Case(ReadsAFile, "hooks_keep_to_themselves", "reads the file"),
    Case(FreeMetadata, "metadata_is_charged", "gives a FreeState"),
    Case(DataInNames, "state_survives_the_round_trip", "differ in"),
    Case(GrowsOnData, "state_survives_the_round_trip", "at its final size"),
    Case(BytesInShapes, "state_survives_the_round_trip", "differs from what is kept in memory.images"),
    Case(WeighsNothing, "the_ledger_is_the_checkpoint", "what is carried are plain tensors"),
    Case(ImagesAsStatistics, "no_images_are_carried_beside_the_memories", "more holds an image of experience 0"),
    Case(ImagesAsPrototypes, "no_images_are_carried_beside_the_memories", "more holds an image"),
    Case(ImagesNormalised, "no_images_are_carried_beside_the_memories", "more holds an image"),
    Case(ImagesInLowBits, "no_images_are_carried_beside_the_memories", "more holds an image"),
    Case(ImagesAsText, "no_images_are_carried_beside_the_memories", "metadata more holds an image"),
    Case(KeepsRowNumbers, "exemplars_decode_from_their_bytes", "it knows these images"),
    Case(KeepsADictionary, "exemplars_decode_from_their_bytes", "codec Dictionary"),
    Case(TwiceTheBudget, "the_budget_is_never_exceeded", "budget.exemplars is 10"),
    Case(SaysItIsSmall, "the_budget_is_never_exceeded", "budget.limit is"),
    Case(ExemplarsAsStatistics, "the_budget_is_never_exceeded", "statistics"),
    Case(OtherRandomness, "same_seed_same_bits", "twice with the same seed"),
    Case(CountsSteps, "a_resumed_run_ends_where_the_straight_run_ends", "interrupted at step"),
    Case(CountsSteps, "a_resumed_run_ends_where_the_straight_run_ends", "not kept is steps (int)"),
    Case(PredictsInTrainingMode, "predict_has_no_side_effects", "predict"),
    Case(LearnsFromTestImages, "predict_has_no_side_effects", "answers differently"),
    Case(RemembersTestImages, "predict_has_no_side_effects", "answers differently"),
    Case(PredictsInTrainingMode, "predict_does_not_look_at_the_rest_of_the_batch", "company"),
    Case(GuessesTheTask, "predict_does_not_look_at_the_rest_of_the_batch", "company"),
    Case(CountsPlaces, "predict_does_not_look_at_the_rest_of_the_batch", "order"),
    Case(AsksForTheTask, "predict_scores_each_class_seen", "task"),
    Case(NewClassesOnly, "predict_scores_each_class_seen", "classes"),
    Case(NotANumber, "predict_scores_each_class_seen", "not numbers"),
    Case(PeeksAtTheTest, "test_data_play_no_part_in_training", "with other test images"),
    Case(PeeksAtTheTest, "hooks_keep_to_themselves", "gc.get_objects"),
    Case(NeedsTwoClasses, "uneven_streams_are_learned", "ValueError"),
    Case(ForgetsToKeep, "same_seed_same_bits", "was not kept"),
]
