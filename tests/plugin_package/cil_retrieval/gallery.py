"""The stream: split classes, and of each the test images in two halves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from cil import Samples, Stream, class_incremental


class GalleryStream(Stream):
    """A class-incremental stream whose test images are a gallery, and queries about it."""

    kind: ClassVar[str] = "retrieval"

    def halves(self, index: int) -> tuple[Samples, Samples]:
        """Gallery and queries of experience ``index``: of each class the even rows, and the odd ones."""
        test = self.test(index)
        rows = [(test.slots == slot).nonzero().flatten() for slot in test.slots.unique()]
        return test[torch.cat([own[::2] for own in rows])], test[torch.cat([own[1::2] for own in rows])]


def growing_gallery(dataset: str, *, increment: int, root: str | Path | None = None, **options: Any) -> GalleryStream:
    """Split a data set as ``cil.class_incremental`` does, to be searched."""
    stream = class_incremental(dataset, increment=increment, root=root, **options)
    return GalleryStream.of(stream, f"gallery_{stream.name}")
