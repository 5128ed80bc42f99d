"""A few test images with the answers to them at the end of a stream, for people to look at."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cil.report.images import SIDE

IMAGES, SLOTS, ANSWERS = "sample_images", "sample_slots", "sample_answers"  # names of counts, and of arrays
COUNT = 16  # images, of as many classes


def spread(classes: int, count: int = COUNT) -> list[int]:
    """``count`` slots evenly over all, the first and the last among them; all where they are few.

    >>> spread(3), spread(100, 4)
    ([0, 1, 2], [0, 33, 66, 99])
    """
    return [int(slot) for slot in np.linspace(0, classes - 1, min(count, classes)).round()]


class SampleAnswers:
    """Keeps of some classes the first image that an evaluation asks about, small, and what was answered.

    No image is asked about for this alone.
    """

    def __init__(self, classes: int) -> None:
        self._wanted = set(spread(classes))
        self._found: dict[int, tuple[Tensor, int]] = {}  # by slot

    def count(self, images: Tensor, scores: Tensor, slots: Tensor) -> None:
        """Look through a batch, whose images are of ``slots`` (N,), for classes that are still without one."""
        for slot in sorted(self._wanted - self._found.keys()):
            rows = (slots == slot).nonzero()[:1, 0]
            if len(rows):
                self._found[slot] = small(images[rows])[0].cpu(), int(scores[rows[0]].argmax())

    def counts(self) -> dict[str, Tensor]:
        """Images (n, H, W, C) uint8, their slots (n,) and the slots that were answered (n,), in order of the slots."""
        if not self._found:
            return {}
        slots = sorted(self._found)
        return {
            IMAGES: torch.stack([self._found[slot][0] for slot in slots]).permute(0, 2, 3, 1).contiguous(),
            SLOTS: torch.tensor(slots),
            ANSWERS: torch.tensor([self._found[slot][1] for slot in slots]),
        }


def small(images: Tensor) -> Tensor:
    """(N, C, H, W) floats in [0, 1] as uint8, by means over areas where a side is longer than ``SIDE``."""
    height, width = images.shape[-2:]
    if (longest := max(height, width)) > SIDE:
        size = [max(1, side * SIDE // longest) for side in (height, width)]
        images = F.interpolate(images.float(), size=size, mode="area")
    return (255 * images.detach().float()).round().clamp(0, 255).to(torch.uint8)
