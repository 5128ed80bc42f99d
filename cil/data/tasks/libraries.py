"""Examples that another library fetches: torchvision's data sets, the Hugging Face hub."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from cil.data.tasks.examples import Access, ArrayImages, ExampleTable, in_memory, join_tables, origin_hint, parts_of
from cil.errors import DataError, nearest

_BINARY = {"CIFAR10": "cifar10", "CIFAR100": "cifar100"}  # torchvision would unpickle them; read in another edition
_UNPICKLE = ("ImageNet", "LSUN", "LSUNClass", "PhotoTour")


def torchvision(source: Mapping[str, Any], access: Access) -> ExampleTable:
    """A class of torchvision.datasets, once a part; images are read when asked for."""
    given = parts_of(source) or {"all": {}}
    pieces: list[tuple[str, ExampleTable]] = []
    for part, own in given.items():
        for options in own if isinstance(own, list) else [own]:  # several of the publisher's splits may be one part
            options = {**(source.get("args") or {}), **(options or {})}
            if source["name"] in _BINARY:
                pieces.append((part, _binary_edition(source, options, access)))
            else:
                pieces.append((part, _table_of_torchvision(_construct(source, options, access), source)))
    return join_tables(pieces)


def _construct(source: Mapping[str, Any], options: dict[str, Any], access: Access) -> Any:
    from torchvision import datasets

    name, where = source["name"], access.root / source.get("root", "torchvision")
    known = [item for item in datasets.__all__ if item[0].isupper() and item not in _UNPICKLE]
    if name not in known:
        why = "it would read a pickle; use type imagefolder" if name in _UNPICKLE else nearest(name, known)
        raise DataError(f"torchvision's data set '{name}' (source.name): {why}")
    made = getattr(datasets, name)
    parameters = inspect.signature(made).parameters.values()
    fetches = any(item.name == "download" or item.kind is item.VAR_KEYWORD for item in parameters)

    def attempt(**more: bool) -> Any:
        try:
            return made(str(where), **options, **more)
        except (TypeError, ValueError) as error:
            raise DataError(f"torchvision's {name} does not take what source.args and parts say: {error}") from None
        except ImportError as error:
            raise DataError(f"torchvision's {name} needs a package that is not installed: {error.name}") from None

    try:
        return attempt(**({"download": False} if fetches else {}))
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
    if not fetches or not source.get("download", True):
        raise DataError(f"{name} is not in {where}, nor is it fetched ({reason}){origin_hint(source)}")
    if not access.download:
        raise DataError(f"{name} is not in {where} and may not be downloaded: {access.why_not}")
    try:
        where.mkdir(parents=True, exist_ok=True)
        return attempt(download=True)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{name} could not be downloaded to {where} ({reason}){origin_hint(source)}") from None


def _table_of_torchvision(data: Any, source: Mapping[str, Any]) -> ExampleTable:
    attribute, count = source.get("label_attr"), range(len(data))
    labels: Any
    if attribute == "voc_objects":
        labels = [tuple(sorted({item["name"] for item in data[row][1]["annotation"]["object"]})) for row in count]
    elif attribute is None:
        labels = np.array([np.asarray(data[row][1]) for row in count])
    elif hasattr(data, attribute):
        labels = np.asarray(getattr(data, attribute))
    else:
        raise DataError(f"torchvision's {source['name']} has no attribute '{attribute}' (source.label_attr)")
    names = tuple(map(str, getattr(data, "classes", None) or ()))
    known = names and not isinstance(labels, list) and len(set(names)) == len(names)
    images = ArrayImages(len(data), lambda row: np.asarray(data[row][0]))
    return ExampleTable(images, labels, names=names if known else None)


def _binary_edition(source: Mapping[str, Any], options: dict[str, Any], access: Access) -> ExampleTable:
    from cil.data.registry import load_dataset

    name, train = _BINARY[source["name"]], options.pop("train", True)
    if options:
        raise DataError(f"torchvision's {source['name']} takes only train here, not {', '.join(options)}")
    if not access.download and not (access.root / name / "train.npz").is_file():
        raise DataError(f"{access.root / name} does not exist and may not be downloaded: {access.why_not}")
    data = load_dataset(name, access.root)
    samples = data.train if train else data.test
    pixels = samples.pixels.permute(0, 2, 3, 1).numpy()
    return ExampleTable(in_memory(pixels), samples.slots.numpy(), names=tuple(data.classes))


def hub(source: Mapping[str, Any], access: Access) -> ExampleTable:
    """A data set of the Hugging Face hub at a pinned revision; a list of classes an example is multilabel."""
    import datasets

    image, label = source.get("image_column", "image"), source.get("label_column", "label")
    offline, pieces = datasets.config.HF_HUB_OFFLINE, []
    datasets.config.HF_HUB_OFFLINE = offline or not access.download
    try:
        for part, split in (parts_of(source) or {"all": "train"}).items():
            cache = str(access.root / "hf")
            data = datasets.load_dataset(
                source["path"], source.get("config"), split=split, revision=source["revision"], cache_dir=cache
            )
            pieces.append((part, _table_of_hub(data, image, label)))
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds
        refused = "" if access.download else f"; it may not be downloaded: {access.why_not}"
        reason = " ".join(str(error).split())
        raise DataError(f"{source['path']} at {source['revision']} cannot be read ({reason}){refused}") from None
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    return join_tables(pieces)


def _table_of_hub(data: Any, image: str, label: str) -> ExampleTable:
    for name in (image, label):
        if name not in data.column_names:
            raise DataError(f"the data set has no column '{name}'; {nearest(name, data.column_names)}")
    feature, values = data.features[label], list(data[label])
    inner = getattr(feature, "feature", None)
    names = getattr(feature if inner is None else inner, "names", None)
    labels: Any
    if inner is None:
        labels = np.asarray(values)
    else:
        labels = [tuple(str(names[item] if names else item) for item in own) for own in values]
    images = ArrayImages(len(data), lambda row: np.asarray(data[row][image]))
    return ExampleTable(images, labels, names=None if names is None else tuple(names))
