"""The common corruptions of images: 15, and 4 more, each at 5 severities; for small images and for large ones.

Source: Hendrycks, Dietterich. ICLR 2019, arXiv:1903.12261. Parameters are those of the published CIFAR-10-C,
Tiny-ImageNet-C and ImageNet-C. What this package corrupts is alike in distribution, not pixel for pixel, and never goes
by the published names.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

from cil.data.corruptions.severities import CANONICAL, EXTRA, NAMES, SETS, SEVERITIES, TABLES
from cil.errors import ConfigError, ShapeError, nearest

__all__ = ["CANONICAL", "EXTRA", "NAMES", "SETS", "SEVERITIES", "corrupt", "corrupt_all", "generator", "parameters"]

VERSION = 1  # raise it when a pixel may change: it is part of fingerprints
ALIKE_FROM = {"64": 46, "224": 120}  # pixels: sides from here on are nearer to that size, as ratios
_AT_ONCE = 1 << 21  # values that are worked on together; they become float64

_WHERE = {  # modules, which import SciPy, so only when asked for
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"),
    "weather": ("snow", "frost", "fog", "spatter"),
    "digital": ("brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression", "saturate"),
}


def corrupt(
    image: NDArray[np.uint8],
    name: str,
    severity: int,
    rng: Generator,
    *,
    table: str = "auto",
    exact_bug_compat: bool = False,
    photos: Sequence[NDArray[np.uint8]] = (),
) -> NDArray[np.uint8]:
    """One image, corrupted.

    Args:
        image: (H, W, C) uint8, C of 1 or 3.
        name: One of ``NAMES``.
        severity: 1 to 5.
        rng: All draws come from it.
        table: Which parameters: ``32`` (CIFAR-C), ``64`` (Tiny-ImageNet-C), ``224`` (ImageNet-C); auto: those of the
            size nearest to the image's.
        exact_bug_compat: Option of glass blur.
        photos: Photographs for frost; see ``cil.data.corruptions.weather.frost_photos``.

    Returns:
        (H, W, C) uint8.

    Raises:
        ConfigError: for an unknown name, severity or table.
        ShapeError: for an image of another type or shape.
    """
    if np.ndim(image) != 3:
        raise ShapeError(f"an image to corrupt must be uint8 (H, W, C), not {np.shape(image)}")
    corrupted = _apply(np.asarray(image)[None], name, severity, iter([rng]), table, exact_bug_compat, photos)
    return np.asarray(corrupted[0])


def corrupt_all(
    images: NDArray[np.uint8],
    name: str,
    severity: int,
    *,
    seed: int = 0,
    places: Iterable[int] | None = None,
    table: str = "auto",
    exact_bug_compat: bool = False,
    photos: Sequence[NDArray[np.uint8]] = (),
) -> NDArray[np.uint8]:
    """Many images, each by a generator of its own: any part of them, in any order, gives the same pixels.

    Args:
        images: (N, H, W, C) uint8.
        seed: From 0 to 2^32 - 1.
        places: Number of each image in its data set, which its generator is made from; 0 to N - 1 where left out.
        name, severity, table, exact_bug_compat, photos: See ``corrupt``.

    Returns:
        (N, H, W, C) uint8.

    Raises:
        ConfigError, ShapeError: as ``corrupt``.

    >>> grey = np.full((2, 4, 4, 3), 100, np.uint8)
    >>> int(corrupt_all(grey, "brightness", 2)[0, 0, 0, 0])  # 100 + 0.1 * 255
    125
    """
    images = np.asarray(images)
    numbers = range(len(images)) if places is None else [int(place) for place in places]
    if len(numbers) != len(images):
        raise ShapeError(f"{len(images)} images to corrupt, but {len(numbers)} places")
    rngs = (generator(seed, name, severity, place) for place in numbers)  # made when drawn from
    return _apply(images, name, severity, rngs, table, exact_bug_compat, photos)


def generator(seed: int, name: str, severity: int, place: int) -> Generator:
    """The generator of one image.

    Raises:
        ConfigError: for an unknown corruption, or a seed outside 0 to 2^32 - 1.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"stream.seed is {seed}; it must be in 0 to 2^32 - 1")
    check_name(name)
    return Generator(PCG64([seed, NAMES.index(name), severity, place]))


def parameters(name: str, severity: int, table: str) -> Any:
    """The numbers of a corruption at a severity; its function says what they mean.

    >>> parameters("contrast", 5, "32"), parameters("defocus_blur", 1, "224")
    (0.15, (3, 0.1))

    Raises:
        ConfigError: for an unknown name, severity or table.
    """
    check_name(name)
    check_severity(severity)
    if table not in TABLES:
        raise ConfigError(f"stream.table is '{table}'; {nearest(table, ('auto', *SETS))}")
    return TABLES[table][name][severity - 1]


def table_of(height: int, width: int) -> str:
    """The parameters that fit the size.

    >>> table_of(28, 28), table_of(64, 64), table_of(224, 224)
    ('32', '64', '224')
    """
    return next((size for size in ("224", "64") if max(height, width) >= ALIKE_FROM[size]), "32")


def check_name(name: str) -> None:
    """Raise ``ConfigError`` where no corruption has that name."""
    if name not in NAMES:
        raise ConfigError(f"unknown corruption '{name}' (stream.corruptions); {nearest(name, NAMES)}")


def check_severity(severity: int) -> None:
    """Raise ``ConfigError`` where it is not 1 to 5."""
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise ConfigError(f"stream.severity is {severity!r}; it must be 1, 2, 3, 4 or 5")


def _apply(
    images: NDArray[np.uint8],
    name: str,
    severity: int,
    rngs: Iterator[Generator],
    table: str,
    exact_bug_compat: bool,
    photos: Sequence[NDArray[np.uint8]],
) -> NDArray[np.uint8]:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ShapeError(
            f"images to corrupt must be uint8 (N, H, W, C) of 1 or 3 channels, not {images.dtype} {images.shape}"
        )
    chosen = table_of(*images.shape[1:3]) if table == "auto" else table
    numbers = parameters(name, severity, chosen)
    module = next(module for module, names in _WHERE.items() if name in names)
    function: Callable[..., NDArray[np.uint8]] = getattr(import_module(f"cil.data.corruptions.{module}"), name)
    if name == "glass_blur":
        function = functools.partial(function, exact_bug_compat=exact_bug_compat)
    elif name == "frost":
        function = functools.partial(function, photos=photos)
    corrupted = np.empty_like(images)
    step = max(1, _AT_ONCE // max(1, images[:1].size))
    for start in range(0, len(images), step):
        part = images[start : start + step]
        corrupted[start : start + step] = function(part, numbers, itertools.islice(rngs, len(part)))
    return corrupted
