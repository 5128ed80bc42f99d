"""Options that several stream builders share: dataclasses whose fields are keys of the configuration."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from cil.data import Augment, Dataset, Samples
from cil.errors import ConfigError, StreamError, nearest
from cil.values import is_finite, is_whole

T = TypeVar("T")
B = TypeVar("B", bound=Callable[..., Any])
MOST_SEED = 2**32 - 1
MOST_EXPERIENCES = 10_000  # the bill of each is made before anything is trained
SMALLEST_STD = 1e-6
MOST_FILES_FOR_MEAN = 2000  # images decoded for mean and std, where the data are files


def accepts(*kinds: type, only: bool = False) -> Callable[[B], B]:
    """Decorator of a builder: adds the fields of dataclasses to the signature that others see in place of its ``**``.

    Args:
        kinds: The dataclasses; the builder gets their fields among its keywords, see ``take``.
        only: True where no other keywords are allowed; else the rest are options of the data set.
    """

    def declare(builder: B) -> B:
        shown = inspect.signature(builder)
        *own, rest = shown.parameters.values()
        shared = [field for kind in kinds for field in inspect.signature(kind).parameters.values()]
        builder.__signature__ = shown.replace(parameters=[*own, *shared, *([] if only else [rest])])  # type: ignore[attr-defined]
        for kind in kinds:
            builder.__annotations__ |= typing.get_type_hints(kind)
        return builder

    return declare


def take(kind: type[T], options: dict[str, Any]) -> T:
    """Build one dataclass of options from the keywords that are its fields; they are removed from ``options``."""
    names = [field.name for field in fields(kind) if field.name in options]  # type: ignore[arg-type]
    return kind(**{name: options.pop(name) for name in names})


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Which images of a class are used, and how they reach the network.

    Attributes:
        train_per_class, test_per_class: Most images of a class, chosen at random; None: all.
        augment: Training augmentation, or its arguments, in place of the default; {} for none.
        mean, std: One value a channel for images in [0, 1]; None: the default.
        root: Data root; see ``cil.data.data_root``.
    """

    train_per_class: int | None = None
    test_per_class: int | None = None
    augment: Augment | Mapping[str, Any] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    root: str | Path | None = None

    def __post_init__(self) -> None:
        check_counts(train_per_class=self.train_per_class, test_per_class=self.test_per_class)

    def augmentation(self, default: Augment) -> Augment:
        """The augmentation that was asked for, else ``default``.

        Raises:
            ConfigError: for an unknown argument.
        """
        given, known = self.augment, Augment.__dataclass_fields__
        if given is None or isinstance(given, Augment):
            return given or default
        if not isinstance(given, Mapping):
            raise ConfigError(f"stream.augment is {given!r}; give its arguments ({', '.join(known)}) or null")
        for key in given:
            if key not in known:
                raise ConfigError(f"stream.augment.{key} is not known; {nearest(key, known)}")
        return Augment(**given)


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(ImageOptions):
    """``ImageOptions``, and which classes and training images of one data set are used.

    By default augmentation, mean and std are the data set's own; where it has none of the latter they are computed on
    the training images of the first experience alone, as nothing later is known when training starts. Of files at most
    2000 are read for it.

    Attributes:
        order_seed: Seed of the class order, and of the images that ``validation`` and the caps choose.
        classes: Use only the first so many of the order; or only these, a list of names or labels; None: all.
        validation: Share in [0, 1) of each class's training images that is held out, at least one image where it is
            not 0. Never test images; taken after ``train_per_class``.
    """

    order_seed: int = 1993
    classes: int | Sequence[int | str] | None = None
    validation: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.order_seed)
        if not isinstance(self.classes, list | tuple):  # which is looked up among the classes of the data set
            check_counts(classes=self.classes)
        share = self.validation
        if not is_finite(share) or not 0 <= share < 1:
            raise ConfigError(f"stream.validation is {share!r}; it is the share of training images, in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class SplitOptions(DatasetOptions):
    """``DatasetOptions``, and the order of the classes.

    Attributes:
        order: ``seed`` (a permutation by ``order_seed``), ``natural``, ``by_set`` (of a pool: one data set after the
            other, each by ``order_seed``), or a list that gives the label or the name of the class in each slot.
        interleave: With ``by_set``, so many classes of each data set at a time, by turns; None: all.
    """

    order: str | Sequence[int | str] = "seed"
    interleave: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interleave is None:
            return
        if not (is_whole(self.interleave) and self.interleave >= 1):
            raise ConfigError(f"stream.interleave is {self.interleave!r}; it must be a whole number from 1 on, or null")
        if not (isinstance(self.order, str) and self.order == "by_set"):
            raise ConfigError(f"stream.interleave is of stream.order=by_set, and that is {self.order!r}")


def normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None, data: Dataset, samples: Callable[[], Samples]
) -> list[tuple[float, ...]]:
    """Mean and deviation of each channel: as given, else the data set's own, else computed on ``samples``.

    Raises:
        ConfigError, StreamError: for values that are no numbers, too few, or a deviation that is not above 0.
    """
    if mean is None or std is None:
        known = (data.mean, data.std) if data.mean is not None and data.std is not None else None
        computed = known or channel_statistics(samples())
        mean, std = computed[0] if mean is None else mean, computed[1] if std is None else std
    return check_channels(mean, std, data.train.shape[0])


def check_channels(mean: Sequence[float], std: Sequence[float], channels: int) -> list[tuple[float, ...]]:
    """Mean and deviation as numbers, one a channel.

    Raises:
        ConfigError, StreamError: for values that are no numbers, too few, or a deviation that is not above 0.
    """
    checked = []
    for key, values in (("mean", mean), ("std", std)):
        try:
            own = tuple(float(value) for value in values)
        except (TypeError, ValueError):
            raise ConfigError(f"stream.{key} is {values!r}; it must list a number a channel, or be null") from None
        if len(own) != channels:
            raise StreamError(f"stream.{key} has {len(own)} values; images have {channels} channels")
        if not all(math.isfinite(value) and (value > 0 or key == "mean") for value in own):
            raise StreamError(f"stream.{key} is {list(own)}; need finite numbers{', above 0' * (key == 'std')}")
        if not all((0 if key == "mean" else SMALLEST_STD) <= value <= 1 for value in own):
            raise StreamError(
                f"stream.{key} is {list(own)}; need numbers of images in [0, 1]"
                f"{f', from {SMALLEST_STD} to 1' * (key == 'std')}: divide those of images in [0, 255] by 255"
            )
        checked.append(own)
    return checked


def channel_statistics(samples: Samples) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, for images in [0, 1]; a constant channel gets std 1.

    Of samples that are files, at most 2000, evenly spaced, are decoded.
    """
    if not samples.in_memory and len(samples) > MOST_FILES_FOR_MEAN:
        samples = samples[torch.linspace(0, len(samples) - 1, MOST_FILES_FOR_MEAN).long()]
    counts = torch.zeros(samples.shape[0], 256, dtype=torch.int64)  # of each value: exact, whatever the order of sums
    for start in range(0, len(samples), 500):
        for own, channel in zip(counts, samples[start : start + 500].pixels.transpose(0, 1), strict=True):
            own += channel.flatten().bincount(minlength=256).cpu()
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = counts.double() / counts.sum(1, keepdim=True)
    mean = shares @ values
    std = (shares @ values.square() - mean.square()).clamp_min(0).sqrt()
    return mean.tolist(), torch.where(std < 1e-6, 1.0, std).tolist()


def check_integers(least: int, most: int | None = None, **values: Any) -> None:
    """Refuse values that are no whole numbers in a range."""
    for key, value in values.items():
        if not is_whole(value) or value < least or (most is not None and value > most):
            upper = "2^32 - 1" if most == MOST_SEED else most
            wanted = f"from {least} on" if most is None else f"from {least} to {upper}"
            raise ConfigError(f"stream.{key} is {value!r}; it must be a whole number {wanted}")


def check_choice(key: str, value: Any, allowed: Sequence[str], more: str = "") -> None:
    """Refuse a value that is none of the names allowed."""
    if value not in allowed:
        raise ConfigError(f"stream.{key} is {value!r}; {nearest(str(value), allowed)}{more}")


def check_counts(**values: Any) -> None:
    """Refuse values that are neither None nor whole numbers from 1 on."""
    for key, value in values.items():
        if value is not None and not (is_whole(value) and value >= 1):
            raise ConfigError(f"stream.{key} is {value!r}; it must be a whole number from 1 on, or null for all")


def check_seed(seed: Any) -> None:
    """Refuse what is no whole number, and seeds that numpy's legacy generator does not take."""
    if not is_whole(seed):
        raise ConfigError(f"stream.order_seed is {seed!r}; it must be a whole number")
    if not 0 <= seed <= MOST_SEED:
        raise StreamError(f"stream.order_seed is {seed}; it must be in 0 to 2^32 - 1")
