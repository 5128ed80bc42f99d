"""Digital: brightness, contrast, saturation, elastic transform, pixelation, JPEG compression."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator

from cil.data.corruptions import operations as ops
from cil.data.corruptions.operations import Floats, Generators, Pixels, to_pixels, to_unit

if TYPE_CHECKING:
    from PIL.Image import Image


def brightness(images: Pixels, more: float, rngs: Generators) -> Pixels:
    """HSV value + ``more``, hue and saturation kept: all channels grow by the same factor; black becomes grey."""
    values = to_unit(images)
    value = values.max(-1, keepdims=True)
    brighter = np.minimum(value + more, 1)
    return to_pixels(np.where(value > 0, values * (brighter / np.where(value > 0, value, 1)), brighter))


def saturate(images: Pixels, change: tuple[float, float], rngs: Generators) -> Pixels:
    """HSV saturation S becomes S c0 + c1, hue and value kept. Grey has the hue of red; images of one channel have none.

    Args:
        change: c0 and c1.
    """
    if images.shape[-1] == 1:
        return images.copy()
    values = to_unit(images)
    value = values.max(-1, keepdims=True)
    below = value - values  # value * saturation * a factor of the hue
    saturation = below.max(-1, keepdims=True) / np.maximum(value, 1e-12)
    wanted = np.clip(saturation * change[0] + change[1], 0, 1)
    red = value * wanted * np.array((0, 1, 1))
    return to_pixels(value - np.where(saturation > 0, below * wanted / np.maximum(saturation, 1e-12), red))


def contrast(images: Pixels, factor: float, rngs: Generators) -> Pixels:
    """(x - mean) factor + mean, with the mean of each channel of the image."""
    sums = images.sum((1, 2), keepdims=True, dtype=np.int64)  # whole numbers: the same in any order
    mean = sums / (255 * images.shape[1] * images.shape[2])
    return to_pixels((to_unit(images) - mean) * factor + mean)


def elastic_transform(images: Pixels, stretch: tuple[float, float, float], rngs: Generators) -> Pixels:
    """A random affine map, then random smooth displacements.

    Args:
        stretch: Largest displacement before smoothing, sigma of the smoothing, and how far each of three points is
            moved by the affine map, all in pixels.

    Departure: coordinates are not rounded to 1/32 pixel, as OpenCV's are.
    """
    most, sigma, shift = stretch
    height, width = images.shape[1:3]

    def draw(rng: Generator) -> tuple[Floats, Floats]:
        return rng.uniform(-shift, shift, (3, 2)), rng.uniform(-1, 1, (2, height, width))

    draws = [draw(rng) for rng in rngs]
    moved = np.stack([points for points, _ in draws])  # (N, 3, 2): x, y
    # three corners of a square around the centre: bottom right, top right, top left
    reach = min(height, width) // 3
    centre = np.array((width // 2, height // 2))
    points = centre + reach * np.array(((1, 1), (1, -1), (-1, -1))) + moved
    along_y = (points[:, 0] - points[:, 1]) / (2 * reach)  # where a step along y, and one along x, lead to
    along_x = (points[:, 1] - points[:, 2]) / (2 * reach)
    determinant = along_x[:, 0] * along_y[:, 1] - along_x[:, 1] * along_y[:, 0]
    rows, columns = np.indices((height, width), dtype=np.float64)
    from_x = columns - points[:, 2, 0, None, None]  # backwards, from the third point
    from_y = rows - points[:, 2, 1, None, None]

    def part(value: Floats) -> Floats:
        return np.asarray(value / determinant)[:, None, None]

    source_x = centre[0] - reach + part(along_y[:, 1]) * from_x - part(along_y[:, 0]) * from_y
    source_y = centre[1] - reach - part(along_x[:, 1]) * from_x + part(along_x[:, 0]) * from_y
    values = ops.bilinear(to_unit(images), source_y, source_x, ops.reflect_101)
    if most:
        fields = most * np.stack([ops.gaussian(field, sigma, "reflect", 3.0) for _, field in draws])
        values = ops.bilinear(values, rows + fields[:, 1], columns + fields[:, 0], ops.reflect)
    return to_pixels(values)


def pixelate(images: Pixels, share: float, rngs: Generators) -> Pixels:
    """Shrunk to int(side share) by box means, and back."""
    from PIL import Image

    height, width = images.shape[1:3]
    small = (max(1, int(width * share)), max(1, int(height * share)))
    box = Image.Resampling.BOX
    return _by_pillow(images, lambda image: image.resize(small, box).resize((width, height), box))


def jpeg_compression(images: Pixels, quality: int, rngs: Generators) -> Pixels:
    """Through JPEG at this quality; its bytes, and so a few last bits, depend on the library that Pillow brings."""
    from PIL import Image

    def through(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _by_pillow(images, through)


def _by_pillow(images: Pixels, change: Callable[[Image], Image]) -> Pixels:
    from PIL import Image

    made = np.empty_like(images)
    for image, place in zip(images, made, strict=True):
        changed = np.asarray(change(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)))
        place[...] = changed.reshape(place.shape)
    return made
