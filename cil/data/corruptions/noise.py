"""Noise: Gaussian, shot, impulse, speckle. Every value of every channel is drawn for itself."""

from __future__ import annotations

import numpy as np

from cil.data.corruptions.operations import Generators, Pixels, draw_each, to_pixels, to_unit


def gaussian_noise(images: Pixels, scale: float, rngs: Generators) -> Pixels:
    """x + N(0, scale)."""
    return to_pixels(to_unit(images) + scale * draw_each(rngs, lambda rng: rng.standard_normal(images.shape[1:])))


def speckle_noise(images: Pixels, scale: float, rngs: Generators) -> Pixels:
    """x + x N(0, scale)."""
    return to_pixels(to_unit(images) * (1 + scale * draw_each(rngs, lambda rng: rng.standard_normal(images.shape[1:]))))


def shot_noise(images: Pixels, photons: float, rngs: Generators) -> Pixels:
    """Poisson(x photons) / photons."""
    counts = np.stack([rng.poisson(image * photons) for image, rng in zip(to_unit(images), rngs, strict=True)])
    return to_pixels(counts / photons)


def impulse_noise(images: Pixels, amount: float, rngs: Generators) -> Pixels:
    """Salt and pepper: a share of ``amount`` of the values becomes 0 or 1, either with the same chance."""
    draws = draw_each(rngs, lambda rng: rng.random(images.shape[1:]))
    return np.where(draws < amount / 2, np.uint8(0), np.where(draws < amount, np.uint8(255), images))
