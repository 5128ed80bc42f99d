"""Linear networks, tiny streams and strategies that act: what the tests of the engine share."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.data import Augment, Batch, Dataset, Samples
from cil.engine.driver import Run
from cil.engine.fit import Fit
from cil.engine.recipe import Recipe, constant
from cil.engine.runtime import Runtime
from cil.memory import Budget, ExemplarMemory
from cil.models import NetFactory
from cil.models.base import drop_counters
from cil.strategies import Phase, Strategy
from cil.strategies.parts import features, new_class_cross_entropy, store_exemplars
from cil.streams import Experience, Stream, class_incremental
from cil.testing.toy import strategy_run

SHAPE = (1, 2, 2)  # of an image: four features
PLAIN = partial(torch.optim.SGD, lr=0.5)


class Flat(nn.Module):
    """Images as features: with a head on top, a linear network."""

    def __init__(self, feature_dim: int = 4, survey_parameters: int = 0) -> None:
        super().__init__()
        self.feature_dim, self.survey_parameters = feature_dim, survey_parameters

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return images.flatten(1), ()


class Hidden(nn.Module):
    """Three hidden units without bias: twelve parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_dim, self.survey_parameters = 3, 12
        self.layer = nn.Linear(4, 3, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.layer(images.flatten(1)), ()


def some_samples(count: int, classes: int = 2, seed: int = 0) -> Samples:
    """Random images; slots in turn."""
    pixels = torch.randint(0, 256, (count, *SHAPE), generator=torch.Generator().manual_seed(seed)).byte()
    return Samples.from_arrays(pixels, torch.arange(count) % classes)


def small_stream(experiences: int = 3, classes: int = 2, train: int = 8, test: int = 4, **options: Any) -> Stream:
    """Experiences of so many classes with so many images each, 1 x 2 x 2; slot = label, nothing is augmented."""
    total = experiences * classes
    names = [f"class {slot}" for slot in range(total)]
    data = Dataset("small", some_samples(total * train, total), some_samples(total * test, total, seed=1), names)
    given = {"increment": classes, "order": "natural", "augment": Augment(), "mean": [0.0], "std": [1.0]}
    return class_incremental(data, **{**given, **options})


def factory(backbone: Callable[[], nn.Module] = Flat, **given: Any) -> NetFactory:
    """Networks on images as they are, from seed 0."""
    return NetFactory(backbone, **given)


class Normed(Hidden):
    """Three hidden units with batch normalisation: a network that behaves otherwise in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = drop_counters(nn.BatchNorm1d(3))

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.norm(super().forward(images)[0]), ()


class Learner(Strategy):
    """Cross-entropy over all outputs. ``log`` notes what happens, in order."""

    def __init__(self, make_net: NetFactory, budget: Budget) -> None:
        super().__init__(make_net, budget)
        self.log: list[Any] = []

    def loss(self, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        self.log.append(("loss", len(batch)))
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)


def grown(kind: type[Learner] = Learner, backbone: Callable[[], nn.Module] = Flat, classes: int = 2) -> Any:
    """A learner of a first experience; its head is drawn from a fixed seed."""
    learner = kind(factory(backbone), Budget())
    torch.manual_seed(5)
    learner.grow(small_stream(1, classes).signatures[0])
    return learner


def fit_of(learner: Strategy, phase: Phase, recipe: Recipe, **options: Any) -> Fit:
    """The training of one phase of experience 0, on the CPU, seed 0, without augmentation."""
    given: dict[str, Any] = {"experience": 0, "seed": 0, "augment": Augment(), "runtime": Runtime("cpu")}
    return Fit(learner, phase, 0, recipe, **{**given, **options})


def plain(**changes: Any) -> Recipe:
    """SGD without momentum, a constant learning rate of 0.5, one epoch."""
    given: dict[str, Any] = {"optimizer": PLAIN, "scheduler": constant, "epochs": 1, "batch_size": 4}
    return Recipe(**{**given, **changes})


def small_run(kind: type[Strategy], folder: Path, stream: Stream | None = None, **options: Any) -> Run:
    """A run of linear networks on the small stream: 4 steps an epoch, 12 in all."""
    own = stream or small_stream()
    given: dict[str, Any] = {
        "budget": Budget(exemplars=6),
        "recipe": plain(log_every=1),
        "make_factory": factory,
    }
    return strategy_run(kind, own, folder, name=kind.__name__, **{**given, **options})


# strategies that do more --------------------------------------------------------------------------------------------


class Rehearse(Strategy):
    """Rehearsal of randomly chosen exemplars."""

    memory: ExemplarMemory

    def __init__(self, make_net: NetFactory, budget: Budget) -> None:
        super().__init__(make_net, budget)
        self.keep("memory", ExemplarMemory(selection="random"), kind="exemplars")

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)

    def after_experience(self, experience: Experience) -> None:
        store_exemplars(self, experience)


class Acting(Rehearse):
    """Calls ``act(experience, step)`` before each loss."""

    act: Callable[[int, int], None] = staticmethod(lambda experience, step: None)

    def loss(self, batch: Batch) -> Tensor:
        type(self).act(self.old_classes // 2, self.progress.step)
        return super().loss(batch)


class TwoStages(Strategy):
    """All of the network first; then the head alone, towards what the first stage found."""

    def __init__(self, make_net: NetFactory, budget: Budget) -> None:
        super().__init__(make_net, budget)
        self.keep("spread", None, kind="temporary")

    def loss(self, batch: Batch) -> Tensor:
        return new_class_cross_entropy(self.net(batch.images).logits, batch.slots, self.old_classes)

    def _calm(self, batch: Batch) -> dict[str, Tensor]:
        return {"classes": self.loss(batch), "calm": self.spread * self.net.head.weight.square().mean()}

    def phases(self, experience: Experience) -> Iterator[Phase]:
        yield from super().phases(experience)
        self.net(experience.train.images)  # in training mode this would move the running statistics
        self.spread = features(self, experience.train).std()
        yield Phase(
            "head", experience.train, self._calm, parameters=self.net.head.parameters(), main=False, epochs=2, lr=0.01
        )


# ends of runs -------------------------------------------------------------------------------------------------------


class Interrupt:
    """A logger that interrupts the run at a line of the log."""

    def __init__(self, line: int, kinds: Sequence[str] = ("step",)) -> None:
        self.left, self.kinds = line, kinds

    def start(self, *args: Any) -> None:
        """Nothing to open."""

    def log(self, kind: str, values: Mapping[str, float], axes: Mapping[str, Any]) -> None:
        self.left -= kind in self.kinds
        if self.left < 0:
            raise KeyboardInterrupt

    def table(self, *args: Any) -> None:
        """Nothing to keep."""

    def finish(self, status: str) -> None:
        """Nothing to close."""


def forked(work: Callable[[], Any]) -> int:
    """Start ``work`` in a process, and a process group, of its own; its id. It exits with 0, 1, or 130 on Ctrl-C."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(code)


def exit_code(child: int, seconds: float = 30.0) -> int:
    """How a process ended; killed, and -9, if it does not."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
