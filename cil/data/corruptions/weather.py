"""Weather: snow, frost, fog, spatter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy  # its parts are imported when they are used
from numpy.random import Generator
from numpy.typing import NDArray

from cil.data.corruptions import operations as ops
from cil.data.corruptions.operations import Floats, Generators, Pixels, to_pixels, to_unit
from cil.errors import DataError
from cil.values import home_path

WATER, MUD = (175 / 255, 238 / 255, 238 / 255), (63 / 255, 42 / 255, 20 / 255)
PHOTOS = 5  # the generating code lists six photographs and draws from the first five


def snow(images: Pixels, flakes: tuple[float, ...], rngs: Generators) -> Pixels:
    """A whitened image, with a layer of smeared flakes and the same layer turned by 180 degrees.

    Args:
        flakes: Mean and deviation of the noise, zoom of the flakes, threshold under which there is none, radius and
            sigma of the smear (pixels; its direction is drawn from -135 to -45 degrees), share of the image that is
            not whitened.
    """
    mean, deviation, zoom, threshold, radius, sigma, share = flakes

    def draw(rng: Generator) -> tuple[Floats, float]:
        return mean + deviation * rng.standard_normal(images.shape[1:3]), float(rng.uniform(-135, -45))

    draws = [draw(rng) for rng in rngs]
    layers = ops.centre_zoom(np.stack([layer for layer, _ in draws]), zoom)
    layers = to_unit(to_pixels(np.where(layers < threshold, 0, layers)))
    smeared = [
        ops.motion_blur(layer, int(radius), sigma, angle) for layer, (_, angle) in zip(layers, draws, strict=True)
    ]
    fallen = np.stack(smeared)[..., None]
    values = to_unit(images)
    values = share * values + (1 - share) * np.maximum(values, 1.5 * ops.grey_of(values) + 0.5)
    return to_pixels(values + fallen + fallen[:, ::-1, ::-1])


def frost(images: Pixels, mix: tuple[float, float], rngs: Generators, *, photos: Sequence[Pixels] = ()) -> Pixels:
    """a x + b frost, with a random part of a random photograph of frost; without photographs, of a made texture.

    Args:
        mix: a and b.
        photos: (H, W, 3) uint8, each at least a pixel larger than the images; see ``frost_photos``.

    Raises:
        DataError: where a photograph is too small.
    """
    height, width = images.shape[1:3]
    if photos:
        small = min(photos, key=lambda photo: min(photo.shape[:2]))
        if small.shape[0] <= height or small.shape[1] <= width:
            size = f"{small.shape[0]}x{small.shape[1]}"
            raise DataError(
                f"a photograph of frost is {size} pixels when scaled, images are {height}x{width}; give larger ones"
                " (stream.frost_photos)"
            )

        def part(rng: Generator) -> Pixels:
            photo = photos[int(rng.integers(len(photos)))]
            top, left = rng.integers(photo.shape[0] - height), rng.integers(photo.shape[1] - width)
            return photo[top : top + height, left : left + width]

        layers = to_unit(ops.draw_each(rngs, part))
    else:
        layers = _frost_synthetic(height, width, rngs)
    if images.shape[-1] == 1:
        layers = ops.grey_of(layers)
    return to_pixels(mix[0] * to_unit(images) + mix[1] * layers)


def _frost_synthetic(height: int, width: int, rngs: Generators) -> Floats:
    """Bluish ice, (N, H, W, 3) in [0, 1]: a grainy ground of a random brightness, with bright veins along level lines.

    Mean, spread and tint are near those of the published photographs (about 0.64 on average, 0.11 within a picture).
    """
    side = ops.power_of_two(max(height, width))

    def draw(rng: Generator) -> Floats:
        return np.concatenate([rng.uniform(-1, 1, (3, side, side)).ravel(), rng.uniform(0.45, 0.75, 1)])

    draws = ops.draw_each(rngs, draw)
    noise, level = draws[:, :-1].reshape(-1, 3, side, side), draws[:, -1, None, None]
    ground, *folds = (ops.plasma(noise[:, layer], decay) for layer, decay in enumerate((1.25, 1.6, 1.4)))
    veins = np.maximum(*(np.clip(1 - 5 * np.abs(2 * fold - 1), 0, 1) for fold in folds))
    ice = (level + 0.5 * (ground - 0.5) + 0.2 * veins)[:, :height, :width, None]
    return np.asarray(np.clip(ice * np.array((0.88, 1.02, 1.1)), 0, 1))


def frost_photos(folder: str | Path, scale: float) -> list[Pixels]:
    """The first five pictures of a folder, by name, scaled without smoothing, as the generating code scales them.

    Raises:
        DataError: where there is no picture, or one cannot be read.
    """
    from PIL import Image

    from cil.data.file_store import IMAGE_SUFFIXES, read_image

    where = home_path(folder)
    found = sorted(path for path in where.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)[:PHOTOS]
    if not found:
        raise DataError(f"{where} has no photograph of frost; put images there or leave out stream.frost_photos")
    photos = []
    for path in found:
        photo = read_image(path)
        size = (round(photo.width * scale), round(photo.height * scale))
        steps = (1 / scale, 0, 0, 0, 1 / scale, 0)
        scaled = photo.transform(size, Image.Transform.AFFINE, steps, Image.Resampling.BILINEAR)
        photos.append(np.asarray(scaled))
    return photos


def fog(images: Pixels, thickness: tuple[float, float], rngs: Generators) -> Pixels:
    """x <- (x + a f) max(x) / (max(x) + a), with a plasma fractal f in [0, 1].

    Args:
        thickness: a, and the decay of the fractal from grid to grid.
    """
    amount, decay = thickness
    height, width = images.shape[1:3]
    side = ops.power_of_two(max(height, width))
    field = ops.plasma(ops.draw_each(rngs, lambda rng: rng.uniform(-1, 1, (side, side))), decay)
    values = to_unit(images)
    brightest = values.max((1, 2, 3), keepdims=True)
    return to_pixels((values + amount * field[:, :height, :width, None]) * brightest / (brightest + amount))


def spatter(images: Pixels, liquid: tuple[float, ...], rngs: Generators) -> Pixels:
    """Drops of water with a lit rim, or mud that covers.

    Args:
        liquid: Mean and deviation of the noise, sigma of its blur (pixels), threshold above which it is liquid, amount
            (water) or sigma of the second blur (mud), 1 for mud.

    Departure: the rims of drops are where the thresholded noise begins; the generating code looks for them with
    Canny's detector, which finds those places and a few inside large drops.
    """
    mean, deviation, sigma, threshold, amount, mud = liquid
    noise = ops.draw_each(rngs, lambda rng: rng.standard_normal(images.shape[1:3]))
    layers = ops.gaussian(mean + deviation * noise, sigma)
    layers = np.where(layers < threshold, 0, layers)
    if mud:
        cover = ops.gaussian((layers > threshold).astype(np.float64), amount)
        cover = np.where(cover < 0.8, 0, cover)[..., None]
        return to_pixels(to_unit(images) * (1 - cover) + cover * _colour(MUD, images.shape[-1]))
    lit = np.stack([_light_rims(np.floor(layer * 255)) for layer in layers])
    lit = amount * lit / np.maximum(lit.max((1, 2), keepdims=True), 1e-12)
    return to_pixels(to_unit(images) + lit[..., None] * _colour(WATER, images.shape[-1]))


def _colour(colour: tuple[float, float, float], channels: int) -> Floats:
    values = np.array(colour)
    return values if channels == 3 else (values * ops.GREY).sum(keepdims=True)


def _light_rims(layer: Floats) -> Floats:
    """Brightness (not scaled) of the water of one image: an embossed distance to the rims, where there is water."""
    wet = layer > 0
    rims = wet & ~scipy.ndimage.binary_erosion(wet, np.ones((3, 3)), border_value=1)
    away = scipy.ndimage.distance_transform_edt(~rims) if rims.any() else np.full(layer.shape, 20.0)
    away = np.floor(scipy.ndimage.uniform_filter(np.minimum(away, 20.0), 3, mode="mirror")).astype(np.int64)
    counts = np.bincount(away.ravel(), minlength=256).cumsum()  # histogram equalisation
    lowest = counts[away.min()]
    levels = (counts - lowest) * (255 / max(1, counts[-1] - lowest))
    relief: NDArray[np.float64] = np.rint(levels)[away]
    relief = scipy.ndimage.correlate(relief, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror")
    return np.asarray(layer * np.rint(scipy.ndimage.uniform_filter(np.clip(relief, 0, 255), 3, mode="mirror")))
