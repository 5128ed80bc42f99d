"""Shift streams: one set of classes, test images whose domain changes without notice; for test-time adaptation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from cil.data import Samples
from cil.errors import StreamError


@dataclass(frozen=True)
class Segment:
    """A stretch of the stream. Batches do not reach over its end, and a boundary is declared there.

    Attributes:
        name: ``gaussian_noise``, ``gaussian_noise-3`` (a severity), ``mixed``, ``fog (round 2)``.
        samples: Its test images in order of arrival, made when asked for; ``slots`` are read by the evaluator alone.
        domains: (count,) index into ``ShiftStream.domains`` of each image: errors are reported by domain.
        reset: True: the adapter is put back to its source before it (the protocol ``reset_each_shift``).
    """

    name: str
    samples: Callable[[], Samples]
    count: int
    domains: Tensor
    reset: bool = False


@dataclass(frozen=True)
class ShiftStream:
    """Stream that an adapter meets: segments of test images, one after the other.

    Attributes:
        name: Name of the stream in tables (``cifar10_c``; ``cifar10_corrupted`` for images corrupted here).
        classes: Names of the classes, by slot.
        domains: Names of the domains, in order of first appearance.
        source: Clean labelled training data of the same classes; None where there are none.
        clean: The uncorrupted test images; None where there are none.
        mean, std: One value a channel, for images in [0, 1].
        fingerprint: SHA-256 over all that the stream is made of.
        official: True where checksums say that the files are the published ones; None where none is known.
        settings: Further entries of the record (severity, order, seed, images a domain).
        kind: Name of the kind of run that adapts to it (entry point ``cil.kinds``).
    """

    kind: ClassVar[str] = "adaptation"
    name: str
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    segments: tuple[Segment, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    source: Callable[[], Samples] | None = None
    clean: Callable[[], Samples] | None = None
    official: bool | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.segments:
            raise StreamError(f"stream '{self.name}' has no segment; set stream.corruptions")
        for segment in self.segments:
            if len(segment.domains) != segment.count:
                raise StreamError(
                    f"stream '{self.name}', {segment.name}: {segment.count} images and {len(segment.domains)} domains"
                )

    def __len__(self) -> int:
        return len(self.segments)

    def reduced(self, segments: int = 4, images: int = 24) -> ShiftStream:
        """The first segments with few images, the last one after a reset, for checks."""
        kept = []
        for segment in self.segments[:segments]:
            size = min(images, segment.count)
            load = partial(_first, segment.samples, size)
            kept.append(replace(segment, samples=load, count=size, domains=segment.domains[:size]))
        kept[-1] = replace(kept[-1], reset=True)
        return replace(self, segments=tuple(kept), fingerprint=f"{self.fingerprint}-reduced-{segments}-{images}")

    def description(self) -> dict[str, Any]:
        """Description for the record."""
        return {
            "name": self.name,
            "kind": "shifts",
            "segments": [segment.name for segment in self.segments],
            "counts": [segment.count for segment in self.segments],
            "domains": list(self.domains),
            "classes": list(self.classes),
            "image_shape": list(self.image_shape),
            "mean": list(self.mean),
            "std": list(self.std),
            "fingerprint": self.fingerprint,
            "data": {True: "official", False: "unofficial", None: "no official checksum known"}[self.official],
            **self.settings,
        }


def _first(load: Callable[[], Samples], count: int) -> Samples:
    return load()[:count]
