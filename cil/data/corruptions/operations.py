"""Image operations of several corruptions: conversion, blur, centre zoom, motion blur, plasma, bilinear sampling.

Every operation treats an image alike, bit for bit, whatever images lie beside it: sums run over whole numbers, along
lines, or element by element, never through a matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import scipy  # its parts are imported when they are used
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Generators = Iterator[Generator]  # one an image, in order; made only where they are asked for
GREY = np.array([0.299, 0.587, 0.114])  # share of red, green and blue in the grey of a colour


def to_unit(images: Pixels) -> Floats:
    """uint8 to [0, 1]."""
    return images / 255.0


def to_pixels(values: Any) -> Pixels:
    """Clip to [0, 1] and truncate to uint8.

    A millionth is added first, so that the last bit of a sum does not decide a pixel, and platforms agree.
    """
    scaled: Floats = np.clip(values, 0, 1) * 255 + 1e-6
    return scaled.astype(np.uint8)


def draw_each(rngs: Iterable[Generator], draw: Callable[[Generator], Any]) -> NDArray[Any]:
    """The draws of all images as one array."""
    return np.stack([draw(rng) for rng in rngs])


def grey_of(values: Floats) -> Floats:
    """(N, H, W, C) to (N, H, W, 1)."""
    if values.shape[-1] == 1:
        return values
    red, green, blue = (values[..., channel, None] * GREY[channel] for channel in range(3))
    grey: Floats = red + green + blue
    return grey


def gaussian(values: Floats, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> Floats:
    """Gaussian blur over axes 1 and 2, in pixels."""
    if sigma <= 0:
        return values
    axes = [sigma if axis in (1, 2) else 0.0 for axis in range(values.ndim)]
    blurred: Floats = scipy.ndimage.gaussian_filter(values, axes, mode=mode, truncate=truncate)
    return blurred


def centre_zoom(values: Floats, factor: float) -> Floats:
    """The centre of (N, H, W, ...) enlarged by ``factor`` >= 1 to the old size, bilinear.

    As the generating code: a centre of ceil(side / factor) pixels is enlarged so that its corners stay corners, and
    the centre of that is kept.
    """
    for axis in (1, 2):
        side = values.shape[axis]
        cut = math.ceil(side / factor)
        enlarged = round(cut * factor)
        at = np.arange(enlarged) * ((cut - 1) / max(1, enlarged - 1)) + (side - cut) // 2
        at = at[(enlarged - side) // 2 :][:side]
        low = np.floor(at).astype(np.int64)
        share = (at - low).reshape([-1 if own == axis else 1 for own in range(values.ndim)])
        low_values = values.take(low, axis)
        values = low_values + share * (values.take(np.minimum(low + 1, side - 1), axis) - low_values)
    return values


def motion_blur(image: Floats, radius: int, sigma: float, degrees: float) -> Floats:
    """One image (H, W, ...) smeared along one direction: a one-sided Gaussian of 2 radius + 1 taps, edges replicated.

    Source: ImageMagick's motion blur, which made the published images; the form of its kernel is from memory.
    """
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    weights /= weights.sum()
    rows = np.rint(taps * math.sin(math.radians(degrees))).astype(int)
    columns = np.rint(taps * math.cos(math.radians(degrees))).astype(int)
    top, left = -min(0, int(rows.min())), -min(0, int(columns.min()))
    around = [(top, max(0, int(rows.max()))), (left, max(0, int(columns.max())))]
    padded = np.pad(image, around + [(0, 0)] * (image.ndim - 2), mode="edge")
    height, width = image.shape[:2]
    smeared = np.zeros_like(image)
    for weight, row, column in zip(weights, rows + top, columns + left, strict=True):
        smeared += weight * padded[row : row + height, column : column + width]
    return smeared


def plasma(noise: Floats, decay: float) -> Floats:
    """Plasma fractals (diamond-square on a torus) of (N, S, S) uniform noise in [-1, 1], S a power of two; in [0, 1].

    A point is the mean of its four neighbours of the coarser grid plus noise, whose strength falls by decay^2 from grid
    to grid: the generating code multiplies by its decaying factor twice.
    """
    field, step, strength = np.zeros_like(noise), noise.shape[1], 1.0
    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        below, beside = np.roll(corners, -1, 1), np.roll(corners, -1, 2)
        between, in_rows, in_columns = (
            np.s_[:, half::step, half::step],
            np.s_[:, ::step, half::step],
            np.s_[:, half::step, ::step],
        )
        around = corners + below + beside + np.roll(below, -1, 2)
        centres = field[between] = around / 4 + strength * noise[between]
        around = corners + beside + centres + np.roll(centres, 1, 1)
        field[in_rows] = around / 4 + strength * noise[in_rows]
        around = corners + below + centres + np.roll(centres, 1, 2)
        field[in_columns] = around / 4 + strength * noise[in_columns]
        step, strength = half, strength / decay**2
    field -= field.min((1, 2), keepdims=True)
    field /= np.maximum(field.max((1, 2), keepdims=True), 1e-12)
    return field


def power_of_two(side: int) -> int:
    """The smallest power of two that is not below ``side``.

    >>> power_of_two(32), power_of_two(224)
    (32, 256)
    """
    return 1 << (side - 1).bit_length()


def bilinear(values: Floats, rows: Floats, columns: Floats, fold: Callable[[Any, int], Any]) -> Floats:
    """(N, H, W, C) read at places (N, H, W), in pixels; ``fold`` brings places outside back in."""
    count, height, width, channels = values.shape
    flat = values.reshape(-1, channels)
    first = (np.arange(count) * height * width)[:, None, None]
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    at_top, at_bottom = (first + fold(row, height) * width for row in (top, top + 1))
    at_left, at_right = fold(left, width), fold(left + 1, width)
    upper = flat[at_top + at_left] * (1 - right) + flat[at_top + at_right] * right
    lower = flat[at_bottom + at_left] * (1 - right) + flat[at_bottom + at_right] * right
    return np.asarray(upper * (1 - down) + lower * down)


def reflect_101(places: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """Mirror at the outermost pixels: c b | a b c | b a."""
    period = max(1, 2 * (side - 1))
    inside = places % period
    return np.minimum(inside, period - inside)


def reflect(places: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """Mirror at the edges: b a | a b c | c b."""
    inside = places % (2 * side)
    return np.minimum(inside, 2 * side - 1 - inside)
