"""Stream, Experience, Signature: a data set in the order in which a learner meets it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any, ClassVar, Self, TypeVar

import torch

from cil.data import Augment, Samples
from cil.errors import StreamError

S = TypeVar("S", Samples, Samples | None)


@dataclass(frozen=True)
class TaskKey:
    """Identity of a task, on streams that tell it: one data set, and so one head.

    Attributes:
        dataset: Equal for experiences with the same data set.
        first: Its first slot.
        classes: Number of its slots, which follow one another: the columns of ``predict(images, task)``.
        multilabel: True where an image may have several labels.
        mirrored: True where a mirror image keeps its label.
    """

    dataset: str
    first: int
    classes: int
    multilabel: bool = False
    mirrored: bool = True

    @property
    def name(self) -> str:
        """Short name for parts of a network, the same wherever the data set re-appears."""
        return str(self.first)


@dataclass(frozen=True)
class Signature:
    """Structure of one experience: all that ``grow`` is given, and enough for a dry run.

    Attributes:
        index: Place in the stream, from 0.
        new_slots: Slots that arrive here for the first time.
        present: Slots with training images here.
        counts: Training images of each slot present.
        image_shape: (C, H, W).
        num_classes: Slots seen up to and including this experience.
        task: Identity of the task; None on streams that do not tell it at test time either. The images of a multilabel
            task all count under its first slot.
    """

    index: int
    new_slots: tuple[int, ...]
    present: tuple[int, ...]
    counts: dict[int, int]
    image_shape: tuple[int, int, int]
    num_classes: int
    task: TaskKey | None = None

    def lent(self) -> Signature:
        """A copy for a learner: what it does to it, its counts too, is seen by nobody else."""
        return replace(self, counts=dict(self.counts), task=copy(self.task))


@dataclass(frozen=True)
class Experience:
    """Training data of one step of the stream: all that a strategy gets of it.

    Attributes:
        class_names: Of the new slots, for learners that read them.
    """

    signature: Signature
    train: Samples
    validation: Samples | None = None
    class_names: Mapping[int, str] = field(default_factory=dict)

    @property
    def index(self) -> int:
        return self.signature.index

    @property
    def new_slots(self) -> tuple[int, ...]:
        return self.signature.new_slots

    @property
    def present(self) -> tuple[int, ...]:
        return self.signature.present

    @property
    def task(self) -> TaskKey | None:
        return self.signature.task


@dataclass(frozen=True)
class ExperienceData:
    """Functions that load the samples of one experience; each call loads them anew."""

    train: Callable[[], Samples]
    test: Callable[[], Samples]
    validation: Callable[[], Samples | None] = lambda: None


def take_rows(samples: Samples, rows: torch.Tensor) -> Samples:
    """``samples[rows]``, for ``functools.partial``."""
    return samples[rows]


def changed_samples(load: Callable[[], S], change: Callable[[Samples], Samples]) -> S:
    """``change(load())``, for ``functools.partial``; None stays None."""
    samples = load()
    return samples if samples is None else change(samples)


def first_of_each(samples: Samples, count: int) -> Samples:
    """The first ``count`` samples of each slot, in their order."""
    rows = [(samples.slots == slot).nonzero().flatten()[:count] for slot in samples.counts()]
    return samples[torch.cat(rows).sort().values] if rows else samples


@dataclass(frozen=True)
class Provenance:
    """What is known of the images of a stream beyond their classes; no learner gets it.

    Attributes:
        pool: SHA-256 of the images taken of a pool of data sets, the same in every order of their classes; empty of one
            data set.
        origins: Name of the data set of each slot, of a pool.
        groups: Names of the groups of each column by which accuracy is told; see ``cil.data.columns``.
        notes: Sentences that a person should hear before training.
    """

    pool: str = ""
    origins: tuple[str, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def description(self) -> dict[str, Any]:
        """The same for the record, where there is something to say."""
        pool = {"pool": self.pool, "origins": list(self.origins)} if self.origins else {}
        return pool | (
            {"groups": {column: list(names) for column, names in self.groups.items()}} if self.groups else {}
        )


class Stream:
    """A sequence of experiences over one set of slots.

    Args:
        classes: Name of the class in each slot.
        order: Label in the data set of each slot.
        fingerprint: SHA-256 over pixels, labels, order and split (see ``fingerprint_of``).
        augment: Training augmentation.
        mean, std: One value a channel, for images in [0, 1].
        official: True where checksums say that the data are the official set; None where none is known.

    Attributes:
        kind: Name of the kind of run that learns from it (entry point ``cil.kinds``).
        provenance: What is known of the images beyond their classes.
    """

    kind: ClassVar[str] = "classes"
    provenance: Provenance = Provenance()

    def __init__(
        self,
        *,
        name: str,
        classes: Sequence[str],
        order: Sequence[int],
        signatures: Sequence[Signature],
        parts: Sequence[ExperienceData],
        fingerprint: str,
        augment: Augment,
        mean: Sequence[float],
        std: Sequence[float],
        official: bool | None = None,
    ) -> None:
        if not signatures:
            raise StreamError(f"stream '{name}' has no experience; set stream.increment or stream.base")
        if len(signatures) != len(parts):
            raise StreamError(f"stream '{name}': {len(signatures)} signatures for {len(parts)} parts")
        augment.check_size(*signatures[0].image_shape[1:])
        self.name = name
        self.classes = tuple(classes)
        self.order = tuple(int(label) for label in order)
        self.signatures = tuple(signatures)
        self.fingerprint = fingerprint
        self.augment = augment
        self.mean, self.std = tuple(mean), tuple(std)
        self.official = official
        self._parts = tuple(parts)

    @classmethod
    def of(cls, stream: Stream, name: str | None = None) -> Self:
        """The same experiences as a stream of this class, for a kind of run that evaluates them otherwise."""
        made = cls.__new__(cls)
        made.__dict__.update(stream.__dict__)
        made.name = name or stream.name
        return made

    def __len__(self) -> int:
        return len(self.signatures)

    def __getitem__(self, index: int) -> Experience:
        """The training half of one experience, over stores that hold nothing else."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"experience {index} of a stream of {len(self)}")
        part = self._parts[index]
        validation = part.validation()
        return Experience(
            self.signatures[index].lent(),
            part.train().sealed(),
            validation.sealed() if validation is not None and len(validation) else None,
            {slot: self.classes[slot] for slot in self.signatures[index].new_slots},
        )

    def __iter__(self) -> Iterator[Experience]:
        return (self[index] for index in range(len(self)))

    def test(self, index: int) -> Samples:
        """Test samples of experience ``index``, read by the evaluator alone.

        Raises:
            StreamError: where this is the training half.
        """
        return self._parts[index].test()

    def judged_by_validation(self) -> Self | None:
        """The same stream with the validation samples in place of the test samples; None where it holds none.

        There is no way to the test data from it.
        """
        if not any(part.validation() for part in self._parts):
            return None
        other = copy(self)
        other._parts = tuple(replace(part, test=partial(_validation_samples, part)) for part in self._parts)
        return other

    def training_half(self) -> Stream:
        """The same stream without a way to the test data."""

        def closed() -> Samples:
            raise StreamError("this half of the stream has no test data: it was given to training")

        half = copy(self)
        half._parts = tuple(replace(part, test=closed) for part in self._parts)
        return half

    def reduced(self, experiences: int = 6, images: int = 48) -> Self:
        """The first experiences with few images, for checks: at least two of each class, else ``images`` to train on.

        Args:
            images: Training images of an experience, about; and as many to test on.
        """
        kept = self.signatures[:experiences]
        each = max(2, images // max(len(signature.present) for signature in kept))
        pick, other = partial(first_of_each, count=each), copy(self)
        other.__dict__.pop("experience_of_slot", None)
        other.signatures = tuple(replace(s, counts={k: min(each, n) for k, n in s.counts.items()}) for s in kept)
        other._parts = tuple(
            ExperienceData(
                partial(changed_samples, part.train, pick),
                partial(changed_samples, part.test, pick),
                partial(changed_samples, part.validation, pick),
            )
            for part in self._parts[:experiences]
        )
        seen = max(signature.num_classes for signature in kept)
        other.classes, other.order = self.classes[:seen], self.order[:seen]
        other.provenance = replace(self.provenance, origins=self.provenance.origins[:seen])
        other.fingerprint = fingerprint_of(self.fingerprint, f"reduced to {experiences}, {images}")
        return other

    def with_tests(self, change: Callable[[Samples], Samples]) -> Self:
        """The same stream with ``change`` done to the test samples of every experience."""
        other = copy(self)
        other._parts = tuple(replace(part, test=partial(changed_samples, part.test, change)) for part in self._parts)
        return other

    def augment_of(self, index: int) -> Augment:
        """Training augmentation of experience ``index``."""
        return self.augment

    @property
    def task_known_at_test(self) -> bool:
        """True where signatures name the task, so that ``predict`` is given it (NEVIS-like streams only)."""
        return self.signatures[0].task is not None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.signatures[0].image_shape

    @cached_property
    def experience_of_slot(self) -> tuple[int, ...]:
        """The experience in which each slot arrives."""
        where = {slot: s.index for s in self.signatures for slot in s.new_slots}
        return tuple(where[slot] for slot in range(len(where)))

    def description(self) -> dict[str, Any]:
        """Description for the record."""
        return {
            "name": self.name,
            "experiences": len(self),
            "classes": list(self.classes),
            "class_order": list(self.order),
            "new_slots": [list(s.new_slots) for s in self.signatures],
            "train_counts": [sum(s.counts.values()) for s in self.signatures],
            "image_shape": list(self.image_shape),
            "mean": list(self.mean),
            "std": list(self.std),
            "augment": asdict(self.augment),
            "fingerprint": self.fingerprint,
            "data": {True: "official", False: "unofficial", None: "no official checksum known"}[self.official],
            "task_known_at_test": self.task_known_at_test,
            **self.provenance.description(),
        }


def _validation_samples(part: ExperienceData) -> Samples:
    """The validation samples of an experience, or no samples."""
    found = part.validation()
    return part.train()[:0] if found is None else found


def fingerprint_of(*values: torch.Tensor | str | Sequence[int]) -> str:
    """SHA-256 over tensors' bytes and the text of everything else, in order."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.contiguous().cpu().numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()
