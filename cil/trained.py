"""A finished run: as a plain module that scores images, and evaluated again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cil import metrics
from cil.api import check_types, networks
from cil.engine.asked_again import Asked
from cil.engine.checkpoint import Checkpoints
from cil.engine.lifecycle import Learners
from cil.engine.recovery import committed
from cil.engine.runtime import Runtime
from cil.errors import ConfigError, ResumeError, StreamError
from cil.kinds.classes.evaluation import evaluate as count
from cil.memory import Budget
from cil.strategies import Strategy, find, names
from cil.streams import Signature, Stream, TaskKey
from cil.targets import PARTIAL, TARGET, check_arguments, refuse_targets
from cil.tracking import Record
from cil.tracking.files import RECORD
from cil.tracking.record import reading
from cil.values import check_value


class Trained(nn.Module):
    """The learner of a run, as a module in evaluation mode.

    ``forward`` takes float images (N, C, H, W) in [0, 1], as the stream has them, and gives scores (N, classes seen);
    whatever the method answers by, a head or the nearest mean, is inside. After a stream that tells the task, the task
    is a second argument, and the columns are its classes; without it a task-aware method raises ``ConfigError``.

    Attributes:
        classes: Name of the class of each column.
        image_shape: (C, H, W) of the images that it was trained on.
        learner: The strategy itself.
        identity: What the run was, as its record has it.
    """

    def __init__(self, learner: Strategy, identity: dict[str, Any]) -> None:
        super().__init__()
        self.learner, self.identity = learner, identity
        self.classes: list[str] = identity["stream"]["classes"][: learner.num_classes]
        channels, height, width = identity["stream"]["image_shape"]
        self.image_shape = (channels, height, width)
        for name, value in learner.held().items():
            if isinstance(value, nn.Module):
                self.add_module(name, value)
        self.eval()

    def forward(self, images: Tensor, *task: TaskKey) -> Tensor:
        if self.learner.takes_task and not task:
            raise ConfigError(
                f"{type(self.learner).__name__} answers within the task of an image, and none is given: in Python "
                f"cil.load(run_dir)(images, task)"
            )
        return self.learner.predict(images, *task)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Trained:
        """Moves what is no module too: means, prototypes."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        probe = fn(torch.zeros((), device=self.learner.device))
        self.learner.to(probe.device)
        return self


def load(run_dir: str | Path, *, strategy: Any = None, device: str = "cpu", experience: int | None = None) -> Trained:
    """Load what a run learned.

    Args:
        run_dir: Folder of a run that has committed at least one experience.
        strategy: The class (or a partial), where it cannot be imported from where the run had it.
        device: Device of the module.
        experience: After which experience; by default the last one done. Earlier ones need ``checkpoint.keep=all``.

    Raises:
        RecordError, ResumeError: where there is no such run, or its state was not kept.
    """
    _check_arguments(run_dir, strategy, experience)
    record = Record.load(run_dir)
    learners, index, checkpoints = _learners(record, strategy, device, experience)
    return Trained(learners.rebuilt(index + 1, checkpoints.state(index)), record.identity)


def evaluate(
    run_dir: str | Path,
    stream: Stream,
    *,
    strategy: Any = None,
    device: str = "cpu",
    experience: int | None = None,
    batch_size: int = 500,
) -> dict[str, Any]:
    """Evaluate what a run learned on the test data of a stream: its own, or another one with the same slots.

    Returns:
        Percent: ``accuracy``, ``accuracy_by_experience``, ``accuracy_task_aware_by_experience``, ``accuracy_by_class``,
        ``mean_class_accuracy``; and ``images``, their number; ``confusion``, (K, K) counts.

    Raises:
        StreamError: where the stream has images of another shape, or fewer classes.
        ContractError: where an image gets other scores when it is asked again, in other company.
    """
    _check_arguments(run_dir, strategy, experience)
    check_types(stream=(stream, Stream))
    check_value("trainer.evaluation_batch", batch_size)
    record = Record.load(run_dir)
    if stream.task_known_at_test or record.identity["stream"].get("task_known_at_test"):
        raise StreamError(
            f"'{stream.name}' or the run's stream tells the task of a test image, and cil evaluate does not; the "
            f"record has what was evaluated (stream.splits, stream.reevaluate)"
        )
    learners, index, checkpoints = _learners(record, strategy, device, experience)
    learner = learners.rebuilt(index + 1, checkpoints.state(index))
    shape = tuple(record.identity["stream"]["image_shape"])
    if tuple(stream.image_shape) != shape:
        raise StreamError(
            f"the run was trained on images {shape}; stream '{stream.name}' has {tuple(stream.image_shape)}"
        )
    if len(stream.classes) < learner.num_classes:
        raise StreamError(
            f"the run knows {learner.num_classes} classes; stream '{stream.name}' has {len(stream.classes)}"
        )
    asked = Asked(record.identity["seed"], "evaluate", stream.fingerprint)
    rows = count(
        asked.listening(partial(learners.scores, learner)), stream, learner.num_classes,
        seed=record.identity["seed"], device=learners.runtime.torch_device, batch_size=batch_size,
    )  # fmt: skip
    if not type(learner).transductive:
        other = learners.rebuilt(index + 1, checkpoints.state(index))
        asked.again(partial(learners.scores, other), type(other).__name__, f"after experience {index}")
    confusion, tested = metrics.confusion_of(rows["cells"].numpy(), len(stream.classes)), rows["count"].numpy()
    by_class = metrics.class_accuracy(confusion)[: learner.num_classes]
    return {
        "experience": index,
        "images": int(tested.sum()),
        "accuracy": 100 * float(rows["correct"].sum()) / max(1, int(tested.sum())),
        "accuracy_by_experience": metrics.accuracy_from_counts(rows["correct"].numpy(), tested).tolist(),
        "accuracy_task_aware_by_experience": metrics.accuracy_from_counts(
            rows["correct_task_aware"].numpy(), tested
        ).tolist(),
        "mean_class_accuracy": metrics.mean_class_accuracy(confusion),
        "accuracy_by_class": dict(zip(stream.classes, by_class.tolist(), strict=False)),
        "confusion": confusion.tolist(),
    }


def _check_arguments(run_dir: Any, strategy: Any, experience: Any) -> None:
    check_types(
        run_dir=(run_dir, str, Path), strategy=(strategy, str, Callable, None), experience=(experience, int, None)
    )  # fmt: skip


def _learners(record: Record, strategy: Any, device: str, experience: int | None) -> tuple[Learners, int, Checkpoints]:
    """Makes the learners of a run, from its record and its checkpoints alone."""
    with reading(record):
        identity, checkpoints = record.identity, Checkpoints(record.directory, run=record.run)
        if "networks" not in identity:
            raise ConfigError(f"{record.directory} is of the kind {record.kind}; give the run of a strategy")
        done = committed(checkpoints, record.results)
        if not done:
            raise ResumeError(f"{record.directory} has no checkpoint yet: no experience was finished")
        index = done - 1 if experience is None else experience
        if not 0 <= index < done:
            raise ConfigError(f"experience {index} of {record.directory} is not there; it has 0 to {done - 1}")
        make = _strategy(record) if strategy is None else strategy
        make = find(make) if isinstance(make, str) else make
        nets = {key: value for key, value in identity["networks"].items() if key != "weights_sha256"}
        if not checkpoints.state(index).references:  # all weights are in the checkpoint
            nets["weights"] = None
        signatures = tuple(_signature(checkpoints.facts(i)["signature"]) for i in range(index + 1))
        names = ("exemplars", "per_class", "limits", "convention", "reserve", "scope", "enforce")
        terms = {key: identity["budget"][key] for key in names if key in identity["budget"]}
        if identity["budget"].get("kind") == "aligned":
            terms.pop("exemplars", None)  # of the strategy that it is aligned to
        runtime = Runtime(device, identity["precision"])
        factory = networks(identity["stream"]["image_shape"], **nets)
        return Learners(make, factory, Budget(**terms), signatures, runtime, identity["seed"]), index, checkpoints


def _strategy(record: Record) -> Any:
    """The strategy of a record. A record is data: it names what is registered, or what the caller has imported."""
    config, name = record.identity["config"]["strategy"], str(record.identity.get("strategy"))
    if isinstance(config, str):
        return find(config)
    where = f"{record.directory}/{RECORD}: config.strategy"
    given = {key: value for key, value in dict(config).items() if key not in (TARGET, PARTIAL)}
    refuse_targets(given, where)
    target = str(config.get(TARGET)).replace(":", ".")
    for kind in ((find(name),) if name in names() else ()) + (_imported(target),):
        if kind is not None and f"{kind.__module__}.{kind.__qualname__}" == target:
            check_arguments(kind, given, "strategy")
            return partial(kind, **given)
    raise ConfigError(
        f"{where} is {target}, which is no registered strategy, and code is never imported because a record names it; "
        f"say it yourself: load(run_dir, strategy=...), or strategy=module:Class on the command line"
    )


def _imported(target: str) -> type[Strategy] | None:
    """The strategy class of that name, if this process has imported its module already."""
    module, _, name = target.rpartition(".")
    kind = getattr(sys.modules.get(module), name, None)
    return kind if isinstance(kind, type) and issubclass(kind, Strategy) else None


def _signature(facts: dict[str, Any]) -> Signature:
    """From JSON, which has lists for tuples and text for keys."""
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}
    task = None if facts.get("task") is None else TaskKey(**facts["task"])
    counts = {int(slot): number for slot, number in facts["counts"].items()}
    return Signature(**plain | {"counts": counts, "task": task})
