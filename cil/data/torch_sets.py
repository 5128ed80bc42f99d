"""Data sets of torch, torchvision and the Hugging Face hub: each image is decoded once."""

from __future__ import annotations

import hashlib
import inspect
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from cil.data.arrays import class_names
from cil.data.augment import Augment
from cil.data.columns import by_name
from cil.data.file_store import MOST_SIZE, centre_cut, with_progress
from cil.data.mapped_store import MappedStore, write_images
from cil.data.registry import Dataset, data_root, register_dataset
from cil.data.samples import ArrayStore, Samples, Store
from cil.errors import ConfigError, DataError
from cil.targets import resolve

IN_MEMORY = 2**30  # bytes: more than that is kept in a file of the data root
_PIECE = 500  # images that are written at a time
_NAMED = {"image": ("image", "img"), "label": ("label", "labels", "fine_label")}  # keys of items that are mappings
Item = Callable[[int], tuple[Any, Any]]  # place to image and label


def from_torch(
    train: Any,
    test: Any,
    *,
    name: str = "torch",
    size: int | None = None,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
    augment: Augment | None = None,
    root: str | Path | None = None,
) -> Dataset:
    """A data set of two torch, torchvision or Hugging Face data sets.

    Every image is asked for once, and kept: in memory up to a gigabyte a split, else in a file below
    DATA_ROOT/cache/pixels. So a transform must be the same each time; the stream augments, and the network normalises.

    Args:
        train, test: Have a length, and items (image, label) or mappings with ``image`` and ``label``. An image is one
            of Pillow, (H, W) or (H, W, C) uint8 of numpy, or (C, H, W) of torch, uint8 or float in [0, 1].
        name: In tables.
        size: Height and width in pixels: the centre of the image whose shorter side becomes so long. None: as they
            are, all alike.
        channels: 1 for grey, 3 for RGB; None: as the first image has.
        classes: Names of the labels of both; None: ``train.classes``, else numbers. Where ``test.classes`` has the same
            names in another order, its labels are matched by name; other names are refused.
        augment: Of training images; None: none.
        root: Data root; see ``cil.data.data_root``.

    Raises:
        DataError: for images or labels of another kind, naming the split and the place.
    """
    if size is not None and not 1 <= size <= MOST_SIZE:
        raise ConfigError(f"size is {size}; it must be from 1 to {MOST_SIZE} pixels, or None")
    splits: dict[str, Samples] = {}
    for split, data in (("train", train), ("test", test)):
        if not hasattr(data, "__len__") or not hasattr(data, "__getitem__") or isinstance(data, IterableDataset):
            raise DataError(f"{name}: {split} is a {type(data).__name__}; it must have a length and items")
        if len(data) == 0:
            raise DataError(f"{name}: {split} has no items; it needs one image of each class at least")
        first = _pixels_of(_item_of(data, 0, f"{name}: {split}")[0], size, channels, f"{name}: {split} item 0")
        if channels is None:
            channels = first.shape[0]
        splits[split] = _decode_all(data, f"{name}: {split}", size, channels, tuple(first.shape), data_root(root))
    given = [str(item) for item in classes] if classes else _names_of(train)
    named = class_names(given, list(splits.values()), name)
    tests = None if classes else _names_of(test)
    if tests:
        splits["test"] = by_name(splits["test"], tests, named, f"{name}: test")
    return Dataset(name, splits["train"], splits["test"], named, augment=augment or Augment(), source="torch data sets")


@register_dataset("torch")
def torch_pair(root: Path, make: str, size: int | None = None, channels: int | None = None) -> Dataset:
    """What ``module:function`` makes: two torch data sets, for training and for test; or a ``Dataset``.

    Args:
        make: ``module:function``, which is called without arguments. ``stream.dataset=module:function`` says the same.
        size, channels: See ``from_torch``.

    Raises:
        ConfigError: where it cannot be imported, or makes something else.
    """
    made = resolve(make, "stream.dataset")
    if callable(made):
        _check_call(made, make)
        made = made()
    if isinstance(made, Dataset):
        return made
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise ConfigError(f"stream.dataset={make} makes a {type(made).__name__}; it must make a pair (train, test)")
    return from_torch(*made, name=make.replace(":", "."), size=size, channels=channels, root=root)


def _check_call(function: Callable[..., Any], make: str) -> None:
    """Refuse a function that wants arguments: none are given here."""
    try:
        inspect.signature(function).bind()
    except ValueError:  # some built-in functions have no signature
        return
    except TypeError as error:
        raise ConfigError(f"stream.dataset={make}: {error}; it is called without arguments") from None


@register_dataset("huggingface")
def huggingface(
    root: Path,
    path: str,
    revision: str,
    config: str | None = None,
    train: str = "train",
    test: str = "test",
    size: int = 224,
    channels: int = 3,
) -> Dataset:
    """A data set of the Hugging Face hub at one commit; needs ``pip install "cil[hub]"``.

    Args:
        path, config: OWNER/NAME, and the name of a part of it where there are several.
        revision: The commit, 40 hexadecimal digits: a branch or a tag may change.
        train, test: Names of its splits.
        size, channels: See ``from_torch``.

    Raises:
        ConfigError: for a revision that is no commit.
        DataError: where it cannot be had.
    """
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise ConfigError(f"stream.revision is '{revision}'; it must be a commit of {path}, 40 hexadecimal digits")
    try:
        import datasets
    except ImportError:
        raise DataError("data set 'huggingface' needs the package datasets: pip install 'cil[hub]'") from None
    try:
        splits = [
            datasets.load_dataset(path, config, split=split, revision=revision, cache_dir=str(root / "hf"))
            for split in (train, test)
        ]
    except Exception as error:  # the library raises many kinds
        raise DataError(f"{path} at {revision} cannot be read ({' '.join(str(error).split())})") from None
    return from_torch(*splits, name=path, size=size, channels=channels, root=root)


# one image ------------------------------------------------------------------------------------------------------------


def _item_of(data: Any, place: int, where: str) -> tuple[Any, Any]:
    item = data[place]
    if isinstance(item, dict):
        found = [next((key for key in keys if key in item), None) for keys in _NAMED.values()]
        if None in found:
            raise DataError(f"{where} item {place} has {', '.join(map(str, item))}; it needs image and label")
        return item[found[0]], item[found[1]]
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise DataError(f"{where} item {place} is a {type(item).__name__}; it must be (image, label)")
    return item[0], item[1]


def _label_of(label: Any, where: str) -> int:
    try:
        number = int(label)
    except (TypeError, ValueError):
        number = -1
    if number < 0 or number != label:
        raise DataError(f"{where} has the label {label!r}; it must be a whole number from 0 on")
    return number


def _pixels_of(image: Any, size: int | None, channels: int | None, where: str) -> Tensor:
    from PIL import Image

    if isinstance(image, Image.Image):
        picture = image.convert(_mode(channels or (1 if image.mode in ("1", "L") else 3)))
        if image.mode.startswith(("I", "F")):
            raise DataError(f"{where} has pixels of mode {image.mode}, whose range is not known; give 8 bits a channel")
    else:
        picture = Image.fromarray(_array_of(image, where)).convert(_mode(channels or _channels_of(image)))
    if size is not None:
        picture = centre_cut(picture, size, size)
    array = np.asarray(picture)
    array = array[..., None] if array.ndim == 2 else array
    return torch.from_numpy(np.array(array.transpose(2, 0, 1), order="C"))


def _array_of(image: Any, where: str) -> np.ndarray:
    array = np.asarray(image)
    if isinstance(image, Tensor) and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min(initial=0) >= 0 and array.max(initial=0) <= 1):
            raise DataError(
                f"{where} has floats outside of [0, 1]; take Normalize out of its transform: networks normalise"
            )
        array = np.rint(array * 255).astype(np.uint8)
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        given = tuple(np.shape(image))
        how = "(C, H, W), as a tensor" if isinstance(image, Tensor) else "(H, W, C), as an array"
        raise DataError(f"{where} is {array.dtype} of shape {given}; it must be uint8 with 1 or 3 channels, {how}")
    return np.ascontiguousarray(array)


def _channels_of(image: Any) -> int:
    shape = np.shape(image)
    return 3 if len(shape) == 3 and shape[0 if isinstance(image, Tensor) else 2] == 3 else 1


def _mode(channels: int) -> str:
    if channels not in (1, 3):
        raise ConfigError(f"stream.channels is {channels}; it must be 1 or 3")
    return "RGB" if channels == 3 else "L"


# all of them ----------------------------------------------------------------------------------------------------------


def _decode_all(
    data: Any, where: str, size: int | None, channels: int, shape: tuple[int, ...], root: Path
) -> Samples:  # fmt: skip
    """Every item once; refuses what is not the same when it is asked for again."""
    count, labels, sums = len(data), [], hashlib.sha256()
    each = np.zeros((count, 32), np.uint8)

    def decoded() -> Iterator[Tensor]:
        for place in with_progress(range(count), count):
            image, label = _item_of(data, place, where)
            pixels = _pixels_of(image, size, channels, f"{where} item {place}")
            if tuple(pixels.shape) != shape:
                raise DataError(f"{where} item {place} is {tuple(pixels.shape)}, item 0 {shape} (C, H, W); give a size")
            labels.append(_label_of(label, f"{where} item {place}"))
            digest = hashlib.sha256(pixels.numpy().data).digest()
            sums.update(digest)
            each[place] = np.frombuffer(digest, np.uint8)
            yield pixels

    again = _pixels_of(_item_of(data, 0, where)[0], size, channels, where)
    store: Store
    if count * int(np.prod(shape)) <= IN_MEMORY:
        store = ArrayStore(torch.stack(list(decoded())))
    else:
        channels_, height, width = shape
        folder = root / "cache" / "pixels"
        path = folder / f"{secrets.token_hex(8)}.part"  # its name is known when all images are
        write_images(path, _stacked(decoded()), count, (channels_, height, width))
        path = path.replace(folder / sums.hexdigest())
        store = MappedStore(path, (channels_, height, width), each)
    if not torch.equal(store.pixels(torch.zeros(1, dtype=torch.int64))[0], again):
        raise DataError(f"{where} item 0 is another image each time; take random transforms out: the stream augments")
    return Samples(store, torch.tensor(labels))


def _stacked(images: Iterator[Tensor]) -> Iterator[Tensor]:
    while held := list(islice(images, _PIECE)):
        yield torch.stack(held)


def _names_of(data: Any) -> list[str] | None:
    """Class names of a data set of torchvision or Hugging Face; None where it has none."""
    names = getattr(data, "classes", None)
    if names:
        return [str(name) for name in names]
    features = getattr(data, "features", None) or {}
    key = next((key for key in _NAMED["label"] if key in features), None)
    return getattr(features[key], "names", None) if key else None
