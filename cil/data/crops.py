"""Random resized crops: their boxes, and the crops of images that are arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def crop_box(width: int, height: int, draws: Sequence[float]) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random part: 8 to 100 % of the area, sides 3:4 to 4:3.

    Args:
        draws: Four numbers in [0, 1): area, ratio of sides, left, top.

    Source: Szegedy et al. 2015 (random resized crop). Departure: sides that leave the picture are cut to it instead of
    being drawn again, so that each image takes four draws.
    """
    area = width * height * (0.08 + 0.92 * draws[0])
    ratio = math.exp((2 * draws[1] - 1) * math.log(4 / 3))  # width to height
    wide = min(width, max(1, round(math.sqrt(area * ratio))))
    high = min(height, max(1, round(math.sqrt(area / ratio))))
    return int(draws[2] * (width - wide + 1)), int(draws[3] * (height - high + 1)), wide, high


def crop_resized(pixels: Tensor, draws: Tensor, side: int | None = None) -> Tensor:
    """A random part of each image by ``draws`` (n, 4), resized to the old size or to ``side``: uint8, as given."""
    height, width = pixels.shape[2:]
    if height == width == 1:
        return pixels  # what stands in for stored features has no parts
    size = (height, width) if side is None else (side, side)
    cropped = pixels.new_empty(*pixels.shape[:2], *size)
    for image, own, place in zip(pixels, draws.tolist(), cropped, strict=True):
        left, top, wide, high = crop_box(width, height, own)
        part = image[None, :, top : top + high, left : left + wide].float()
        place.copy_(F.interpolate(part, size, mode="bilinear")[0].round())
    return cropped
