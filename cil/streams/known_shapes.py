"""Streams of well-known data sets without their images: shapes and numbers, for what can be told from structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from cil.data import Augment
from cil.errors import DataError
from cil.streams.base import ExperienceData, Signature, Stream, fingerprint_of
from cil.streams.class_choice import experience_sizes
from cil.streams.shifts import Segment, ShiftStream

Shape = tuple[int, int, int]


class KnownShape(NamedTuple):
    """Shape (C, H, W) of the images of a data set, its classes, and training images of each."""

    shape: Shape
    classes: int
    per_class: int


KNOWN = {
    "cifar10": KnownShape((3, 32, 32), 10, 5000),
    "cifar100": KnownShape((3, 32, 32), 100, 500),
    "fashion_mnist": KnownShape((1, 28, 28), 10, 6000),
    "kmnist": KnownShape((1, 28, 28), 10, 6000),
    "tiny_imagenet": KnownShape((3, 64, 64), 200, 500),
    "imagenet100": KnownShape((3, 224, 224), 100, 1300),
    "imagenet1000": KnownShape((3, 224, 224), 1000, 1300),
}


def without_images(given: Mapping[str, Any]) -> Stream | ShiftStream | None:
    """A stream that has structure and no image; None where it is not of a data set whose numbers are known.

    Args:
        given: ``builder``, ``dataset`` and the other arguments of the builder.
    """
    known, size = KNOWN.get(str(given.get("dataset"))), given.get("size")
    chosen = given.get("classes")
    if known is None or (isinstance(chosen, int) and chosen > known.classes):  # which its builder refuses
        return None
    if isinstance(size, int):
        known = known._replace(shape=(known.shape[0], size, size))
    if given.get("builder") == "class_incremental":
        return _classes(given, known)
    return _shifts(given, known) if given.get("builder") == "corrupted" else None


def _classes(given: Mapping[str, Any], known: KnownShape) -> Stream:
    def unread() -> Any:
        raise DataError(f"the images of {given['dataset']} were not read")

    chosen = given["classes"] or known.classes
    classes = chosen if isinstance(chosen, int) else len(chosen)
    signatures, seen = [], 0
    for index, size in enumerate(experience_sizes(classes, given["base"], given["increment"])):
        slots = tuple(range(seen, seen + size))
        seen += size
        counts = {slot: _count(given, known.per_class, slot) for slot in slots}
        signatures.append(Signature(index, slots, slots, counts, known.shape, seen))
    shots = f"_{given['shots']}shots" if given.get("shots") else ""
    return Stream(
        name=f"{given['dataset']}_b{given['base']}_inc{given['increment']}{shots}",
        classes=[str(slot) for slot in range(classes)], order=range(classes), signatures=signatures,
        parts=[ExperienceData(unread, unread)] * len(signatures), augment=Augment(),
        fingerprint=fingerprint_of("without images", str(signatures)),
        mean=given["mean"] or [0.5] * known.shape[0], std=given["std"] or [0.25] * known.shape[0],
    )  # fmt: skip


def _count(given: Mapping[str, Any], per_class: int, slot: int) -> int:
    """Training images of a slot."""
    few = given.get("shots") if slot >= given["base"] else None
    count = min(per_class, given["train_per_class"] or per_class, few or per_class)
    return count - (max(1, round(given["validation"] * count)) if given["validation"] else 0)


def _shifts(given: Mapping[str, Any], known: KnownShape) -> ShiftStream:
    def unread() -> Any:
        raise DataError(f"the images of {given['dataset']} were not read")

    channels = known.shape[0]
    return ShiftStream(
        name=f"{given['dataset']}_corrupted", classes=tuple(map(str, range(known.classes))), domains=("unread",),
        segments=(Segment("unread", unread, 0, torch.zeros(0, dtype=torch.int64)),), image_shape=known.shape,
        mean=(0.5,) * channels, std=(0.25,) * channels, fingerprint=fingerprint_of("without images", str(known)),
    )  # fmt: skip
