"""Small made-up streams, and runs on them that take a second."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cil import plugins
from cil.data import ArrayStore, Augment, Dataset, Samples
from cil.data.samples import itself
from cil.engine.driver import Run
from cil.engine.lifecycle import MakeLearner
from cil.engine.options import RunOptions
from cil.engine.recipe import Recipe
from cil.engine.runtime import Runtime
from cil.memory import Budget
from cil.models import NetFactory, SmallConvNet, build_backbone, register_model
from cil.models.base import count_parameters
from cil.models.registry import ImageSize
from cil.strategies import Strategy, find
from cil.streams import Stream, TaskKey, TaskStream, class_incremental
from cil.streams.base import ExperienceData, Signature, fingerprint_of
from cil.streams.task_stream import Event

SIDE = 12  # pixels
EXEMPLARS = 10
RECIPE = Recipe(epochs=2, batch_size=8, log_every=1)


@register_model("toy_clip")
class ToyClip(SmallConvNet):
    """A backbone that also reads: each text is a unit vector drawn by its letters."""

    def __init__(self, in_channels: int, image_size: ImageSize) -> None:
        super().__init__(in_channels)

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(N, D), see ``TextEncoder``."""
        numbers = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") for text in texts]
        generators = [torch.Generator().manual_seed(number) for number in numbers]
        return F.normalize(torch.stack([torch.randn(self.feature_dim, generator=own) for own in generators]))

    def logit_factor(self) -> float:
        """See ``TextEncoder``."""
        return 100.0


class _ToyBlock(nn.Module):
    """Tokens (N, T, D) that see their mean, and an MLP behind a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + x.mean(1, keepdim=True)
        found: torch.Tensor = x + self.mlp(self.norm2(x))
        return found


@register_model("toy_clip_transformer")
class ToyClipTransformer(nn.Module):
    """A backbone that also reads, with a block in each tower: on patches of an image, on letters of a text."""

    feature_dim = 16

    def __init__(self, in_channels: int, image_size: ImageSize) -> None:
        super().__init__()
        self.patches, self.letters = nn.Conv2d(in_channels, 16, 4, 4), nn.Embedding(256, 8)
        self.image_block, self.text_block = _ToyBlock(16), _ToyBlock(8)
        self.text_out = nn.Linear(8, 16)
        self.survey_parameters = count_parameters(self.patches) + count_parameters(self.image_block)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """(N, C, H, W) to (N, D), and no maps."""
        return self.image_block(self.patches(images).flatten(2).mT).mean(1), ()

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(N, D), see ``TextEncoder``."""
        rows = [list(text.encode()[:40].ljust(40)) for text in texts]
        tokens = self.letters(torch.tensor(rows, device=self.letters.weight.device))
        return F.normalize(self.text_out(self.text_block(tokens).mean(1)))

    def logit_factor(self) -> float:
        """See ``TextEncoder``."""
        return 10.0


def toy_dataset(
    train: Sequence[int] = (12,) * 6, test: Sequence[int] = (8,) * 6, *, seed: int = 0, test_seed: int = 1
) -> Dataset:
    """Noisy 12 x 12 colour patterns, one for each class.

    Args:
        train, test: Images of each class.
        seed: Of the patterns and the training noise.
        test_seed: Of the test noise; another one changes no training image.
    """
    patterns = torch.randint(0, 256, (len(train), 3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed)).float()

    def split(counts: Sequence[int], key: int) -> Samples:
        labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        noise = torch.randn(len(labels), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(key))
        return Samples(ArrayStore((patterns[labels] + 60 * noise).clamp(0, 255).byte()), labels)

    names = [str(label) for label in range(len(train))]
    return Dataset("toy", split(train, 100 + seed), split(test, 200 + test_seed), names, augment=Augment(flip=True))


def toy_stream(*, seed: int = 0, test_seed: int = 1) -> Stream:
    """Three experiences of two classes, twelve training images each.

    Args:
        seed: Of the training images of the first two experiences: 0, or another for their negatives.
        test_seed: Of the test images; another one changes nothing else.
    """
    data = toy_dataset(test_seed=test_seed)
    stream = class_incremental(data, increment=2)
    if not seed:
        return stream
    early = torch.isin(data.train.slots, torch.tensor(stream.order[:4])).view(-1, 1, 1, 1)
    pixels = torch.where(early, 255 - data.train.pixels, data.train.pixels)
    other = replace(data, train=Samples(ArrayStore(pixels), data.train.slots))
    return class_incremental(other, increment=2, mean=stream.mean, std=stream.std)


def long_stream(*, seed: int = 0, longer: bool = False) -> Stream:
    """Six experiences of two classes, five training images each: for rules about what lies far back, or ahead.

    Args:
        seed: Of the training images of the first three experiences: 0, or another for their negatives.
        longer: Another future: the last experience has other images and a third class, and one more follows.
    """
    sizes = (2,) * 5 + ((3, 2) if longer else (2,))
    data = toy_dataset(train=(5,) * 15, test=(2,) * 15)
    pixels, slots = data.train.pixels, data.train.slots
    changed = (slots < 6) & bool(seed) | (slots >= 10) & longer
    pixels = torch.where(changed.view(-1, 1, 1, 1), 255 - pixels, pixels)
    other = replace(data, train=Samples(ArrayStore(pixels), slots))
    whole = class_incremental(other, increment=15, order="natural", mean=[0.5] * 3, std=[0.25] * 3)
    ends = list(accumulate(sizes))
    return regrouped(whole, [tuple(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)], "toy_long")


def uneven_stream() -> Stream:
    """Experiences of three, one and two classes; a class of two images; 17 images, a last batch of one at size 8."""
    data = toy_dataset(train=(6, 6, 5, 9, 2, 7), test=(4, 3, 2, 4, 3, 4))
    whole = class_incremental(data, increment=6, order="natural")
    return regrouped(whole, [(0, 1, 2), (3,), (4, 5)], "toy_uneven")


def regrouped(whole: Stream, groups: Sequence[tuple[int, ...]], name: str) -> Stream:
    """The first slots of a stream of one experience, in experiences of these groups."""
    signatures, parts, seen = [], [], 0
    for index, slots in enumerate(groups):
        seen += len(slots)
        pick = partial(_of, slots)
        part = ExperienceData(partial(pick, whole[0].train), partial(pick, whole.test(0)))
        signatures.append(Signature(index, slots, slots, part.train().counts(), whole.image_shape, seen))
        parts.append(part)
    return Stream(
        name=name, classes=whole.classes[:seen], order=whole.order[:seen], signatures=signatures, parts=parts,
        fingerprint=fingerprint_of(whole.fingerprint, repr(groups)), augment=whole.augment, mean=whole.mean,
        std=whole.std,
    )  # fmt: skip


def toy_tasks(
    *,
    seed: int = 0,
    test_seed: int = 1,
    each: int = 12,
    order: str = "abca",
    reevaluate: str = "all_seen",
    same: int = 1,
) -> TaskStream:
    """Four events of three data sets, 12 x 12: two classes, three labels an image, three classes, the first once more.

    Args:
        seed: Of the training images of all events but the last ``same``, which have seed 0.
        test_seed: Of the test images; another one changes nothing else.
        each: Training images of a class.
        order: Of the data sets a, b and c.
    """
    known = {"a": (2, False, True), "b": (3, True, False), "c": (3, False, True)}
    start, keys = 0, {}
    for name in dict.fromkeys(order):
        keys[name] = TaskKey(name, start, *known[name])
        start += known[name][0]
    signatures, parts, events, tests = [], [], [], []
    for index, name in enumerate(order):
        key = keys[name]
        met = [keys[other] for other in order[: index + 1]]
        number = 0 if index >= len(order) - same else seed  # so that the last events of two pasts are the same
        train, dev = (_task_images(key, each, 100 + more + number) for more in (0, 10))
        held = {split: _task_images(key, 8, 200 + more + test_seed) for more, split in ((0, "dev_test"), (10, "test"))}
        new = tuple(range(key.first, key.first + key.classes)) if key not in met[:-1] else ()
        shape, seen = (3, SIDE, SIDE), max(task.first + task.classes for task in met)
        counts = train.counts()
        signatures.append(Signature(index, new, tuple(counts), counts, shape, seen, key))
        parts.append(ExperienceData(partial(itself, train), partial(itself, held["dev_test"]), partial(itself, dev)))
        tests.append({split: partial(itself, samples) for split, samples in held.items()})
        kind = "multilabel" if key.multilabel else "multiclass"
        sizes_of = {"train": len(train), "dev": len(dev), **{split: len(samples) for split, samples in held.items()}}
        events.append(Event(key, f"{name}-{index}", 2000 + index, "other", kind, index > 2, sizes_of))
    made = fingerprint_of("toy_tasks", str((seed, test_seed, each, order)))
    return TaskStream(
        name="toy_tasks", classes=[str(slot) for slot in range(start)], order=list(range(start)),
        signatures=signatures, parts=parts, fingerprint=made,
        augment=Augment(flip=True), mean=[0.5] * 3, std=[0.5] * 3, events=events, tests=tests, reevaluate=reevaluate,
    )  # fmt: skip


def long_tasks(*, seed: int = 0, longer: bool = False) -> TaskStream:
    """Six events of ``toy_tasks``; ``seed`` and ``longer`` as of ``long_stream``."""
    return toy_tasks(seed=seed, each=4, order="abcabab" if longer else "abcabc", same=4 if longer else 3)


def _task_images(task: TaskKey, each: int, seed: int) -> Samples:
    """Patterns of a task's classes, or sums of those that an image shows, in noise; ``each`` images a class."""
    own = ord(task.dataset)
    known = torch.Generator().manual_seed(1000 + own)
    patterns = torch.randint(0, 256, (task.classes, 3, SIDE, SIDE), generator=known).float()
    drawn = torch.Generator().manual_seed(seed + 1000 * own)
    labels = torch.arange(task.classes).repeat(each)
    targets = F.one_hot(labels, task.classes).float()
    if task.multilabel:
        targets = ((targets + torch.rand(targets.shape, generator=drawn)) > 0.7).float()
    shown = torch.einsum("nk,kchw->nchw", targets, patterns) / targets.sum(1)[:, None, None, None]
    noisy = (shown + 40 * torch.randn(shown.shape, generator=drawn)).clamp(0, 255).byte()
    slots = torch.full_like(labels, task.first) if task.multilabel else labels + task.first
    return Samples(ArrayStore(noisy), slots, targets=targets if task.multilabel else None)


def _of(slots: Sequence[int], samples: Samples) -> Samples:
    return samples[torch.isin(samples.slots, torch.tensor(slots))]


def toy_factory(
    stream: Any, *, seed: int, device: Any = "cpu", meta: bool = False, model: Mapping[str, Any] | None = None
) -> NetFactory:
    """Networks small enough for a test: with convolutions and batch normalisation, unless ``model`` says another.

    Args:
        stream: Of any kind; its images are shown to them.
        seed, device, meta: As of ``NetFactory``.
        model: ``name`` and ``options`` of a backbone; a strategy that cannot work with any has them as ``toy_model``.
    """
    given = dict(model or {"name": "smallconv"})
    make = partial(
        build_backbone, given["name"], stream.image_shape[0], stream.image_shape[1], **given.get("options", {})
    )
    return NetFactory(make, mean=stream.mean, std=stream.std, seed=seed, device=device, meta=meta)


def toy_run(
    strategy: str | type[Strategy],
    stream: Stream,
    run_dir: Path,
    *,
    hyperparameters: Mapping[str, Any] | None = None,
    budget: Budget | None = None,
    recipe: Recipe = RECIPE,
    wrap: Callable[[MakeLearner], MakeLearner] | None = None,
    **options: Any,
) -> Run:
    """A short run, ready to be executed; ``options`` are those of ``run_of``.

    Args:
        wrap: Done to the function that makes the learner.
    """
    kind = find(strategy) if isinstance(strategy, str) else strategy
    given = {**kind.toy, **(hyperparameters or {})}
    make = partial(kind, **given)
    return strategy_run(
        wrap(make) if wrap else make,
        stream,
        run_dir,
        name=kind.__name__,
        make_factory=partial(toy_factory, stream, model=kind.toy_model),
        budget=budget or Budget(exemplars=EXEMPLARS),
        recipe=recipe,
        identity={"options": given, "bound": kind.bound},
        **options,
    )


def strategy_run(
    make_learner: MakeLearner,
    stream: Stream,
    run_dir: Path,
    *,
    name: str,
    budget: Budget,
    identity: Mapping[str, Any] | None = None,
    **given: Any,
) -> Run:
    """A run of a strategy, put together from its parts; ``given`` as for ``run_of``."""
    found = {
        "strategy": name,
        "class_order": list(stream.order),
        "budget": budget.description(),
        "networks": {"name": "toy", "head": "linear", "weights": None, "mean": None, "std": None},
        "bound": False,
        "uses_horizon": False,
        **(identity or {}),
    }
    own = ("evaluation_batch", "answers", "open_set", "pictures")
    evaluation: dict[str, Any] = {key: given[key] for key in own if key in given}
    return run_of(stream, run_dir, found, evaluation, name=name, make_learner=make_learner, budget=budget, **given)


def run_of(
    stream: Any,
    run_dir: Path,
    identity: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
    *,
    name: str,
    runtime: Runtime | None = None,
    **given: Any,
) -> Run:
    """A run put together from its parts, whatever its kind.

    Args:
        identity: Its identity, but for what all kinds have.
        more: Further parts of its work.
        given: Fields of ``RunOptions``, and parts of the work of its kind.
    """
    known = {item.name for item in fields(RunOptions)}
    chosen = RunOptions(**{key: value for key, value in given.items() if key in known})
    parts = {key: value for key, value in given.items() if key not in known} | dict(more or {})
    runtime = runtime or Runtime()
    work = plugins.find("cil.kinds", stream.kind).work(
        stream=stream, name=name, runtime=runtime, seed=chosen.seed, **parts
    )
    common = {
        "kind": stream.kind,
        "config": {},
        "seed": chosen.seed,
        "device": runtime.device,
        "precision": runtime.precision,
        "stream": stream.description(),
    }
    return Run(work, chosen, {**common, **identity}, run_dir, runtime)
