"""Streams of well-known data sets without their images: for what can be told from structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cil.data.known_sets import KNOWN, with_unread_sets
from cil.errors import DataError
from cil.streams.base import Stream, fingerprint_of
from cil.streams.registry import stream_builder
from cil.streams.shifts import Segment, ShiftStream
from cil.targets import made

BUILDERS = ("class_incremental", "blurry")  # of those that take a data set


def without_images(given: Mapping[str, Any]) -> Stream | ShiftStream | None:
    """A stream that has structure and no image; None where it is not of a data set whose numbers are known.

    Args:
        given: ``builder``, ``dataset`` and the other arguments of the builder.
    """
    builder = given.get("builder")
    if builder == "corrupted":
        return _shifts(str(given.get("dataset")))
    if builder not in BUILDERS or (unread := with_unread_sets(given)) is None:
        return None
    return stream_builder(builder)(**made({key: unread[key] for key in unread if key != "builder"}))


def _shifts(dataset: str) -> ShiftStream | None:
    def unread() -> Any:
        raise DataError(f"the images of {dataset} were not read")

    known = KNOWN.get(dataset)
    if known is None:
        return None
    channels = known.shape[0]
    return ShiftStream(
        name=f"{dataset}_corrupted", classes=tuple(map(str, range(len(known.counts)))), domains=("unread",),
        segments=(Segment("unread", unread, 0, torch.zeros(0, dtype=torch.int64)),), image_shape=known.shape,
        mean=(0.5,) * channels, std=(0.25,) * channels, fingerprint=fingerprint_of("without images", str(known)),
    )  # fmt: skip
