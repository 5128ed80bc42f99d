"""Small tasks that need no download: made by drawing, or out of images that come with scikit-learn and scikit-image.

Each generator gives its examples in the order of a seed. Column ``split`` has the split of each, where the tasks of one
family share their images or where splits may not share pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from cil.data.embedded import read_digits
from cil.data.tasks.examples import ExampleTable, in_memory
from cil.data.tasks.splits import SPLITS, generator, split_rows
from cil.errors import DataError

SIZE = 32  # pixels, of what is drawn
SHAPES = ("circle", "square", "triangle", "cross")
COUNTS = (400, 100, 100, 200)  # train, dev, dev_test, test
PAIRS = (600, 150, 150, 300)
TILE = 48
PHOTOGRAPHS = (
    *("astronaut", "camera", "coffee", "hubble_deep_field", "immunohistochemistry", "moon", "retina", "rocket"),
)
TEXTURES = ("brick", "grass", "gravel")
Canvas = NDArray[Any]


# --- synthetic: nothing but a seed ---


def shapes(seed: int = 0, counts: Sequence[int] = COUNTS) -> ExampleTable:
    """One filled circle, square, triangle or cross an image, of random colour, size and place: 32x32 RGB."""
    draw, images, labels = generator(seed, "shapes"), [], []
    for row in range(sum(counts)):
        canvas, radius = _background(draw), int(draw.integers(5, 13))
        centre = draw.integers(radius, SIZE - radius, size=2)
        _paint(canvas, _mask(SHAPES[row % 4], centre, radius), draw)
        images.append(_add_noise(canvas, draw))
        labels.append(row % 4)
    return _table_of(images, np.array(labels), counts, SHAPES)


def shapes_present(seed: int = 0, counts: Sequence[int] = COUNTS) -> ExampleTable:
    """No to four shapes an image, one a quarter of it, so none hides another; a label for each kind that occurs."""
    draw, images = generator(seed, "shapes-present"), []
    labels = np.zeros((sum(counts), 4), np.int64)
    for row in range(sum(counts)):
        canvas = _background(draw)
        for quarter in draw.permutation(4)[: draw.integers(0, 5)]:
            which, radius = int(draw.integers(4)), int(draw.integers(4, 8))
            corner = np.array(divmod(int(quarter), 2)) * SIZE // 2
            centre = corner + draw.integers(radius, SIZE // 2 - radius + 1, size=2)
            _paint(canvas, _mask(SHAPES[which], centre, radius), draw)
            labels[row, which] = 1
        images.append(_add_noise(canvas, draw))
    return _table_of(images, labels, counts, SHAPES)


def dot_count(seed: int = 0, counts: Sequence[int] = COUNTS) -> ExampleTable:
    """1 to 25 dots an image, as many images of each number; labels and column ``dots`` are the numbers."""
    draw, images, dots = generator(seed, "dot-count"), [], []
    for row in range(sum(counts)):
        canvas, many = _background(draw), row % 25 + 1
        colour = draw.integers(150, 256, size=3)
        for cell in draw.permutation(25)[:many]:  # cells of 6x6 keep the dots apart
            top, left = np.array(divmod(int(cell), 5)) * 6 + 1 + draw.integers(0, 4, size=2)
            canvas[top : top + 2, left : left + 2] = colour
        images.append(_add_noise(canvas, draw))
        dots.append(many)
    made = _table_of(images, np.array(dots), counts, None)
    made.columns["dots"] = np.array(dots)
    return made


def _background(draw: Generator) -> Canvas:
    return np.zeros((SIZE, SIZE, 3)) + draw.integers(0, 90, size=3)


def _paint(canvas: Canvas, mask: NDArray[np.bool_], draw: Generator) -> None:
    canvas[mask] = draw.integers(130, 256, size=3)


def _add_noise(canvas: Canvas, draw: Generator, sigma: float = 3.0) -> NDArray[np.uint8]:
    """A little grain (standard deviation in grey levels): so that no two images are alike."""
    return np.clip(np.rint(canvas + sigma * draw.standard_normal(canvas.shape)), 0, 255).astype(np.uint8)


def _mask(shape: str, centre: NDArray[Any], radius: int) -> NDArray[np.bool_]:
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    rows, columns = np.mgrid[:SIZE, :SIZE] - np.asarray(centre)[:, None, None]
    inside: NDArray[np.bool_] = (abs(rows) <= radius) & (abs(columns) <= radius)
    if shape == "circle":
        return rows**2 + columns**2 <= radius**2
    if shape == "triangle":  # apex above, as wide at the foot as it is high
        return inside & (2 * abs(columns) <= rows + radius)
    if shape == "cross":
        arm = max(1, radius // 3)
        return inside & ((abs(rows) <= arm) | (abs(columns) <= arm))
    return inside


# --- scikit-learn's handwritten digits ---


def digits() -> ExampleTable:
    """1797 handwritten digits, 8x8 grey, 10 classes (UCI optdigits, the test part)."""
    images, labels = read_digits()
    return ExampleTable(in_memory(images), labels, names=tuple(map(str, range(10))))


def digit_parity(seed: int = 0) -> ExampleTable:
    """The digits as even or odd, each in the split that it has in task ``digits``."""
    images, labels = read_digits()
    columns = {"split": _digit_splits(labels, seed)}
    return ExampleTable(in_memory(images), labels % 2, columns, ("even", "odd"))


def digits_rot(seed: int = 0) -> ExampleTable:
    """The digits 2, 3, 4, 5 and 7, each turned by 0, 90, 180 or 270 degrees; splits as in ``digits``."""
    images, labels = read_digits()
    split = _digit_splits(labels, seed)
    rows = np.flatnonzero(np.isin(labels, (2, 3, 4, 5, 7)))
    turns = np.empty(len(labels), np.int64)
    turns[rows] = generator(seed, "digits-rot").permutation(np.arange(len(rows)) % 4)
    turned = [np.rot90(images[row], turns[row]) for row in rows]
    columns = {"split": split[rows]}
    return ExampleTable(in_memory(turned), turns[rows], columns, ("0", "90", "180", "270"))


def digits_noisy(seed: int = 0, sigma: float = 0.2) -> ExampleTable:
    """The digits, four times as large, in colour on a coloured ground with Gaussian noise; splits as in ``digits``.

    Args:
        sigma: Standard deviation of the noise, where white is 1.
    """
    images, labels = read_digits()
    draw = generator(seed, "digits-noisy")
    made: list[NDArray[np.uint8]] = []
    for image in images:
        ink = _enlarge(image, 4)[..., None] / 255
        ground, front = draw.uniform(0, 0.5, 3), draw.uniform(0.5, 1, 3)
        made.append(_add_noise(255 * (ground * (1 - ink) + front * ink), draw, 255 * sigma))
    columns = {"split": _digit_splits(labels, seed)}
    return ExampleTable(in_memory(made), labels, columns, tuple(map(str, range(10))))


def digit_pairs(seed: int = 0, counts: Sequence[int] = PAIRS) -> ExampleTable:
    """Two digits side by side, 32x32 grey; a label for each digit. Both are of the same split of ``digits``."""
    images, labels = read_digits()
    split, draw = _digit_splits(labels, seed), generator(seed, "digit-pairs")
    made: list[NDArray[np.uint8]] = []
    targets = np.zeros((sum(counts), 10), np.int64)
    for name, many in zip(SPLITS, counts, strict=True):
        for pair in draw.choice(np.flatnonzero(split == name), size=(many, 2)):
            canvas = np.zeros((SIZE, SIZE), np.uint8)
            for place, row in enumerate(pair):
                canvas[8:24, 16 * place : 16 * place + 16] = _enlarge(images[row], 2)
            targets[len(made), labels[pair]] = 1
            made.append(canvas)
    return _table_of(made, targets, counts, tuple(map(str, range(10))))


def _digit_splits(labels: NDArray[np.int64], seed: int) -> NDArray[np.str_]:
    """Where rule A puts each digit under the key ``digits``."""
    names = np.empty(len(labels), dtype="<U8")
    for name, rows in split_rows({"rule": "A", "seed": seed}, "digits", labels, {}).items():
        names[rows] = name
    return names


def _enlarge(image: NDArray[np.uint8], times: int) -> NDArray[np.uint8]:
    return image.repeat(times, axis=0).repeat(times, axis=1)


# --- scikit-image's pictures ---


def faces() -> ExampleTable:
    """200 grey patches of 25x25: 100 faces of Labeled Faces in the Wild, then 100 patches without a face."""
    patches = np.rint(np.asarray(_pictures().lfw_subset()) * 255).astype(np.uint8)
    labels = np.repeat([1, 0], len(patches) // 2)
    return ExampleTable(in_memory(patches), labels, names=("other", "face"))


def textures() -> ExampleTable:
    """Brick, grass and gravel, 512x512 grey each, in 10x10 tiles of 48x48; rows 0-5, 6, 7 and 8-9 of tiles a split."""
    tiles, labels, split = [], [], []
    for label, name in enumerate(TEXTURES):
        picture = _picture(name)
        for row, name_of in enumerate(("train",) * 6 + ("dev", "dev_test", "test", "test")):
            for column in range(10):
                tiles.append(_tile(picture, row, column))
                labels.append(label)
                split.append(name_of)
    return ExampleTable(in_memory(tiles), np.array(labels), {"split": np.array(split)}, TEXTURES)


def photo_patches(seed: int = 0, counts: Sequence[int] = (40, 10, 10, 20)) -> ExampleTable:
    """Tiles of 48x48 of eight photographs; a class is a photograph, a split a band of it (half, eighths, quarter).

    Tiles of one colour (the frame of the retina) are left out: they show nothing, and are copies of each other.

    Args:
        counts: Tiles of each photograph in train, dev, dev_test and test, at most.
    """
    draw, tiles, labels, split = generator(seed, "photo-patches"), [], [], []
    for label, name in enumerate(PHOTOGRAPHS):
        picture = _picture(name)
        high, wide = picture.shape[0] // TILE, picture.shape[1] // TILE
        ends = [high // 2, high // 2 + high // 8, high // 2 + 2 * (high // 8), high]
        for name_of, start, end, most in zip(SPLITS, [0, *ends], ends, counts, strict=False):
            cells = [(row, column) for row in range(start, end) for column in range(wide)]
            cells = [cell for cell in cells if np.ptp(_tile(picture, *cell), axis=(0, 1)).any()]
            for place in np.sort(draw.permutation(len(cells))[:most]):
                tiles.append(_tile(picture, *cells[place]))
                labels.append(label)
                split.append(name_of)
    columns = {"split": np.array(split)}
    return ExampleTable(in_memory(tiles), np.array(labels), columns, PHOTOGRAPHS)


def _pictures() -> Any:
    try:
        import skimage.data
    except ImportError:
        raise DataError("this task needs scikit-image: pip install 'cil[samples]'") from None
    return skimage.data


def _picture(name: str) -> NDArray[np.uint8]:
    return np.asarray(getattr(_pictures(), name)())


def _tile(picture: NDArray[np.uint8], row: int, column: int) -> NDArray[np.uint8]:
    return picture[TILE * row : TILE * (row + 1), TILE * column : TILE * (column + 1)]


def _table_of(
    images: list[Any], labels: NDArray[Any], counts: Sequence[int], names: tuple[str, ...] | None
) -> ExampleTable:
    """A table whose splits follow one another."""
    columns = {"split": np.repeat(np.array(SPLITS), counts)}
    return ExampleTable(in_memory(images), labels, columns, names)


GENERATORS: dict[str, dict[str, Callable[..., ExampleTable]]] = {
    "synthetic": {"shapes": shapes, "shapes_present": shapes_present, "dot_count": dot_count},
    "sklearn": {
        "digits": digits,
        "digit_parity": digit_parity,
        "digits_rot": digits_rot,
        "digits_noisy": digits_noisy,
        "digit_pairs": digit_pairs,
    },
    "skimage": {"faces": faces, "textures": textures, "photo_patches": photo_patches},
}
