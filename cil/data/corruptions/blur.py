"""Blur: defocus, glass, motion, zoom, Gaussian."""

from __future__ import annotations

import functools
import math

import numpy as np
import scipy  # its parts are imported when they are used
from numpy.random import Generator
from numpy.typing import NDArray

from cil.data.corruptions.operations import Floats, Generators, Pixels, centre_zoom, gaussian, to_pixels, to_unit
from cil.data.corruptions.operations import motion_blur as smear


def gaussian_blur(images: Pixels, sigma: float, rngs: Generators) -> Pixels:
    """Sigma in pixels, edges replicated."""
    return to_pixels(gaussian(to_unit(images), sigma))


def defocus_blur(images: Pixels, optics: tuple[float, float], rngs: Generators) -> Pixels:
    """Mean over a disk, then a small Gaussian against its jagged rim. Borders are mirrored at the outermost pixel.

    Args:
        optics: Radius of the disk, and sigma of the Gaussian, in pixels.

    Departure: the generating code blurs the disk in a window that it may touch, and mirrors the rim at the window's
    edge; here the image is blurred twice, which is the same wherever the disk does not touch (all but radii 8 and 10).
    """
    radius, sigma = optics
    return to_pixels(_alias(_disk_mean(images, radius) / 255, sigma, 3 if radius <= 8 else 5))


def _disk_mean(images: Pixels, radius: float) -> Floats:
    """Mean over the pixels at X^2 + Y^2 <= radius^2, from running sums of whole numbers along each row."""
    reach = math.floor(radius)
    height, width = images.shape[1:3]
    around = ((0, 0), (reach, reach), (reach, reach), (0, 0))
    sums = np.pad(images, around, mode="reflect").cumsum(2, dtype=np.int64)  # numpy's reflect is reflect-101
    sums = np.concatenate([np.zeros_like(sums[:, :, :1]), sums], axis=2)
    total, count = np.zeros(images.shape, np.int64), 0
    for row in range(-reach, reach + 1):
        half = math.floor(math.sqrt(radius**2 - row**2))
        line = sums[:, reach + row : reach + row + height]
        total += line[:, :, reach + half + 1 :][:, :, :width] - line[:, :, reach - half :][:, :, :width]
        count += 2 * half + 1
    return total / count


def _alias(values: Floats, sigma: float, taps: int) -> Floats:
    """A Gaussian of so few taps, as OpenCV's GaussianBlur."""
    weights = np.exp(-((np.arange(taps) - taps // 2) ** 2) / (2 * sigma**2))
    for axis in (1, 2):
        values = scipy.ndimage.correlate1d(values, weights / weights.sum(), axis, mode="mirror")
    return values


def glass_blur(
    images: Pixels, glass: tuple[float, int, int], rngs: Generators, *, exact_bug_compat: bool = False
) -> Pixels:
    """Blur, exchange each pixel with one nearby, from the bottom right to the top left, and blur.

    Args:
        glass: Sigma of both blurs, most pixels that one is moved by, rounds of exchanges.
        exact_bug_compat: Copy the pixel nearby instead of exchanging both, as the code does that made the published
            images: it exchanges two views of one array.
    """
    sigma, most, rounds = glass
    height, width = images.shape[1:3]
    pixels = to_pixels(gaussian(to_unit(images), sigma))

    def shifts(rng: Generator) -> NDArray[np.int8]:
        return rng.integers(-most, most, size=(rounds, height, width, 2), dtype=np.int8)

    moved = np.stack([shifts(rng) for rng in rngs])
    number = np.arange(len(images))[:, None]
    for own in range(rounds):
        for rows, columns in _fronts(height, width, most):
            shift = moved[:, own, rows, columns]  # (N, pixels of the front, 2)
            there = (number, rows + shift[..., 1], columns + shift[..., 0])
            here = pixels[:, rows, columns]  # a copy
            pixels[:, rows, columns] = pixels[there]
            if not exact_bug_compat:
                pixels[there] = here
    return to_pixels(gaussian(to_unit(pixels), sigma))


@functools.lru_cache(maxsize=16)
def _fronts(height: int, width: int, most: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pixels that may be exchanged at once with the same outcome as one after the other, in order.

    A pixel reaches ``most`` pixels around itself, so those 2 most columns apart in neighbouring rows never meet, and a
    front column + 2 most row, taken downwards, keeps the order of all that do meet.
    """
    rows, columns = np.meshgrid(
        np.arange(most + 1, height - most + 1), np.arange(most + 1, width - most + 1), indexing="ij"
    )
    front = (columns + 2 * most * rows).ravel()
    order = np.argsort(-front, kind="stable")
    cuts = np.flatnonzero(np.diff(front[order])) + 1
    pairs = zip(np.split(rows.ravel()[order], cuts), np.split(columns.ravel()[order], cuts), strict=True)
    return [pair for pair in pairs if len(pair[0])]


def motion_blur(images: Pixels, motion: tuple[int, float], rngs: Generators) -> Pixels:
    """Smeared in a direction of -45 to 45 degrees; radius and sigma in pixels."""
    radius, sigma = motion
    pairs = zip(to_unit(images), rngs, strict=True)
    return np.stack([to_pixels(smear(image, radius, sigma, rng.uniform(-45, 45))) for image, rng in pairs])


def zoom_blur(images: Pixels, zoom: tuple[float, float], rngs: Generators) -> Pixels:
    """Mean of the image and its centre zooms from 1 to ``stop``, in steps."""
    stop, step = zoom
    values = to_unit(images)
    factors = np.arange(1, stop, step)  # rounding decides whether the last one is in: as in the generating code
    total = values.copy()
    for factor in factors:
        total += centre_zoom(values, float(factor))
    return to_pixels(total / (len(factors) + 1))
