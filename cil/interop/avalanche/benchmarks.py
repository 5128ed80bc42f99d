"""Streams as benchmarks of Avalanche, and its benchmarks as streams."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cil.data import Augment, Samples, concatenated, data_root
from cil.data.samples import itself
from cil.errors import CilError, ConfigError, DataError, StreamError, in_words, nearest
from cil.interop.avalanche.library import ToInput, dataset_of, library, require
from cil.streams import ExperienceData, ImageOptions, Provenance, Signature, Stream, fingerprint_of
from cil.streams.base import take_rows
from cil.streams.options import channel_statistics, check_channels
from cil.streams.registry import register_stream
from cil.targets import resolve

_GREY = 1e-3  # how far from a whole grey level a value may be that is one


def to_avalanche(stream: Stream, *, normalise: bool = True) -> Any:
    """A stream as a benchmark of Avalanche, with ``train_stream`` and ``test_stream``; targets are slots.

    Where no class re-appears it is the older ``NCScenario``, which all its strategies take (iCaRL and PNN ask for it),
    and which has the images of an experience class by class. Other streams become a benchmark of data sets, with
    classes and task labels.

    Args:
        normalise: Give inputs with the stream's mean and deviation taken out, for networks that do not normalise.

    Raises:
        ConfigError: where Avalanche is not installed.
        StreamError: for streams that tell the task, or where an image has several labels.
    """
    if stream.task_known_at_test:
        raise StreamError(f"stream '{stream.name}' tells the task; only streams of classes become Avalanche benchmarks")
    scale: dict[str, Any] = {"mean": stream.mean, "std": stream.std} if normalise else {}
    training, evaluation = ToInput(stream.augment, **scale), ToInput(**scale)
    train = [experience.train for experience in stream]
    test = [stream.test(index) for index in range(len(stream))]
    if all(signature.present == signature.new_slots for signature in stream.signatures):
        pieces = [dataset_of(concatenated(parts), training, evaluation) for parts in (train, test)]
        return library("benchmarks.scenarios.deprecated.generators").nc_benchmark(
            *pieces, n_experiences=len(stream), task_labels=False, shuffle=False,
            fixed_class_order=list(range(stream.signatures[-1].num_classes)),
            per_exp_classes={s.index: len(s.new_slots) for s in stream.signatures},
        )  # fmt: skip
    scenarios, supervised = library("benchmarks.scenarios"), library("benchmarks.scenarios.supervised")
    streams = {
        name: [dataset_of(samples, training, evaluation) for samples in parts if len(samples)]
        for name, parts in (("train", train), ("test", test))
    }
    benchmark = scenarios.benchmark_from_datasets(**streams)
    return library("benchmarks.scenarios.task_aware").with_task_labels(supervised.with_classes_timeline(benchmark))


def from_avalanche(
    benchmark: Any,
    *,
    name: str = "avalanche",
    classes: Sequence[str] | None = None,
    normalised: Sequence[Sequence[float]] | None = None,
    augment: Augment | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Stream:
    """A benchmark of Avalanche as a stream: its experiences, their classes, its test images.

    Images are read once, in the evaluation view: the stream augments, the network normalises. A class arrives where it
    first has training images; its test images, of whatever experience, are judged from there on. Several new classes of
    an experience come in order of their labels. Task labels are not told.

    Args:
        classes: Names by label; None: numbers.
        normalised: Mean and deviation a channel that its transforms take out, so that pixels can be had back; None:
            images are in [0, 1].
        augment, mean, std: See ``ImageOptions``; mean and deviation by default of the first experience.

    Raises:
        StreamError: where experiences reuse labels for other classes, or have no images.
        DataError: for images outside [0, 1].
    """
    train = [_read(exp, normalised, f"{name}: train experience {k}") for k, exp in enumerate(benchmark.train_stream)]
    test = [_read(exp, normalised, f"{name}: test experience {k}") for k, exp in enumerate(benchmark.test_stream)]
    if not train or not test:
        raise StreamError(f"{name} has {len(train)} training and {len(test)} test experiences; both are needed")
    _refuse_heads(benchmark, name)
    order: list[int] = []
    signatures = []
    for index, samples in enumerate(train):
        counts = samples.counts()
        new = [label for label in sorted(counts) if label not in order]
        first, order = len(order), order + new
        by_slot = {order.index(label): count for label, count in counts.items()}
        slots = tuple(range(first, len(order)))
        signatures.append(Signature(index, slots, tuple(sorted(by_slot)), by_slot, samples.shape, len(order)))
    slot_of = torch.full((max(*order, *concatenated(test).slots.tolist()) + 1,), -1)
    slot_of[torch.tensor(order)] = torch.arange(len(order))
    train = [samples.with_slots(slot_of[samples.slots]) for samples in train]
    judged = concatenated(test).with_slots(slot_of[concatenated(test).slots])
    rows = [torch.isin(judged.slots, torch.tensor(s.new_slots)).nonzero().flatten() for s in signatures]
    own_mean, own_std = channel_statistics(train[0])
    mean, std = check_channels(mean or own_mean, std or own_std, train[0].shape[0])
    stream = Stream(
        name=name,
        classes=[str(label) if classes is None else str(classes[label]) for label in order],
        order=order,
        signatures=signatures,
        parts=[
            ExperienceData(partial(itself, samples), partial(take_rows, judged, own))
            for samples, own in zip(train, rows, strict=True)
        ],
        fingerprint=fingerprint_of(
            *(piece for samples in (*train, judged) for piece in (samples.pixels, samples.slots))
        ),
        augment=augment or Augment(),
        mean=mean,
        std=std,
    )
    tested = set(judged.slots.tolist())
    missing = sum(slot not in tested for signature in signatures for slot in signature.new_slots)
    stream.provenance = Provenance(notes=(f"{missing} classes of '{name}' have no test image",) if missing else ())
    return stream


@register_stream("avalanche")
def avalanche_stream(
    benchmark: str,
    *,
    experiences: int = 5,
    seed: int = 1993,
    options: Mapping[str, Any] | None = None,
    normalised: Sequence[Sequence[float]] | None = None,
    dataset_root: str | None = None,
    augment: Augment | Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    root: str | Path | None = None,
) -> Stream:
    """A classic benchmark of Avalanche by its name, or what ``module:function`` makes.

    Args:
        benchmark: ``SplitMNIST``, ``SplitCIFAR100``, ...; or ``module:function``, called with ``options`` alone.
        experiences: Of a classic benchmark.
        seed: Of its class order.
        options: Further arguments of it.
        normalised: See ``from_avalanche``; not needed for classic ones, whose transforms are left out.
        dataset_root: Where its files are; None: the folder ``avalanche`` of the data root. Avalanche downloads what is
            missing.
        augment, mean, std, root: See ``ImageOptions``.

    Raises:
        ConfigError: where Avalanche is not installed, or there is no such benchmark.
        DataError: where it cannot be made, as without a network.
    """
    require("stream=avalanche")
    images = ImageOptions(augment=augment, mean=mean, std=std)
    if ":" in benchmark:
        make: Callable[[], Any] = partial(resolve(benchmark, "stream.benchmark"), **dict(options or {}))
    else:
        folder = Path(dataset_root) if dataset_root else data_root(root) / "avalanche"
        make = _classic(benchmark, experiences, seed, folder, dict(options or {}))
    try:
        made = make()
    except CilError:
        raise
    except Exception as error:  # the library, torchvision and downloads raise many kinds
        raise DataError(f"stream.benchmark={benchmark} cannot be made: {in_words(error)}") from error
    if not hasattr(made, "train_stream") or not hasattr(made, "test_stream"):
        raise ConfigError(
            f"stream.benchmark={benchmark} makes a {type(made).__name__}; it must have train_stream and test_stream"
        )
    return from_avalanche(
        made, name=benchmark.replace(":", "."), normalised=normalised, augment=images.augmentation(Augment()),
        mean=mean, std=std,
    )  # fmt: skip


def _classic(name: str, experiences: int, seed: int, folder: Path, options: dict[str, Any]) -> Callable[[], Any]:
    """A classic benchmark without transforms but to tensors, ready to be called."""
    from torchvision.transforms import ToTensor

    classic = library("benchmarks.classic")
    known = [item for item, value in vars(classic).items() if item[:1].isupper() and inspect.isfunction(value)]
    if name not in known:
        raise ConfigError(f"stream.benchmark is '{name}'; {nearest(name, known)}; or module:function")
    call = getattr(classic, name)
    takes = inspect.signature(call).parameters
    given: dict[str, Any] = {
        "n_experiences": experiences, "seed": seed, "dataset_root": str(folder),
        "train_transform": None, "eval_transform": ToTensor(),
    }  # fmt: skip
    for key in options:
        if key not in takes:
            raise ConfigError(f"stream.options.{key} is not known to {name}; {nearest(key, takes)}")
    return partial(call, **{key: value for key, value in given.items() if key in takes} | options)


def _read(experience: Any, normalised: Sequence[Sequence[float]] | None, where: str) -> Samples:
    """The images of an experience in the evaluation view, as whole grey levels, under their labels."""
    pixels, labels = [], []
    for item in experience.dataset.eval():
        image = torch.as_tensor(item[0])
        if image.dtype == torch.uint8:
            pixels.append(image)
        else:
            pixels.append(_grey_levels(image.float(), normalised, where))
        labels.append(int(item[1]))
    if not pixels:
        raise StreamError(f"{where} has no image")
    return Samples.from_arrays(torch.stack(pixels), torch.tensor(labels))


def _grey_levels(image: Tensor, normalised: Sequence[Sequence[float]] | None, where: str) -> Tensor:
    if image.ndim != 3:
        raise DataError(f"{where} has an item of shape {tuple(image.shape)}; an image is (C, H, W)")
    if normalised is not None:
        mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in normalised)
        image = image * std + mean
    if image.min() < -_GREY or image.max() > 1 + _GREY:
        raise DataError(
            f"{where} has values from {image.min():.2f} to {image.max():.2f}; they must be in [0, 1]: take Normalize "
            f"out of its transforms, or set stream.normalised=[[MEAN, ...], [STD, ...]]"
        )
    return (255 * image).round().clamp(0, 255).to(torch.uint8)


def _refuse_heads(benchmark: Any, name: str) -> None:
    """Refuse benchmarks in which a label means another class in each task."""
    seen: dict[int, set[int]] = {}  # classes of each task
    for experience in benchmark.train_stream:
        data = experience.dataset
        tasks = getattr(data, "targets_task_labels", None)
        for label, task in zip(data.targets, tasks, strict=True) if tasks is not None else ():
            seen.setdefault(int(task), set()).add(int(label))
    shared = set.intersection(*seen.values()) if len(seen) > 1 else set()
    if shared:
        raise StreamError(
            f"{name} has {len(seen)} tasks that share the labels {sorted(shared)[:5]}; make it with "
            f"return_task_id=False and class_ids_from_zero_in_each_exp=False"
        )
