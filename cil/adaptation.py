"""From objects to an adaptation run: a trained network, an adapter, a stream of shifting test images."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cil.adapt import Adapter, SourceModel, find
from cil.adapt.registry import ADAPTERS
from cil.api import check_types, environment_of, free_name_of, made_run, networks, safe_name, weights_digest
from cil.engine.driver import Run
from cil.engine.options import RunOptions
from cil.engine.recipe import Recipe
from cil.errors import ConfigError, StreamError
from cil.kinds.adaptation.steps import AdapterSteps, admission
from cil.kinds.adaptation.work import AdaptationWork
from cil.memory import Budget
from cil.memory.tensor_bits import digest_of
from cil.models import GrowingNet
from cil.models.classifier import load_classifier
from cil.models.partition import NoChain
from cil.strategies import Strategy
from cil.streams import Stream
from cil.streams.shifts import ShiftStream
from cil.targets import check_arguments, described
from cil.tracking import Record, identity_hash
from cil.trained import Trained, load
from cil.values import check_value

MakeAdapter = Callable[..., Adapter]


def adapt_to(
    stream: ShiftStream,
    adapter: str | type[Adapter] | MakeAdapter,
    source: str | Path | Mapping[str, Any],
    *,
    batch_size: int = 200,
    clean: bool = False,
    recipe: Recipe | None = None,
    budget: Budget | None = None,
    **options: Any,
) -> Record:
    """Let an adapter meet a stream of shifting test images. Calling it again goes on with the run, or finds it done.

    Args:
        stream: The stream to adapt to.
        adapter: A name, a class, or a ``functools.partial`` of one with its hyperparameters.
        source: The directory of a finished run; or what ``load_classifier`` takes, as a mapping: ``name``, ``weights``,
            ``mean``, ``std``...
        batch_size: Images a batch.
        clean: Also measure the error on the clean test images, before and after.
        recipe: How an adapter that wants source data is trained on it.
        budget: Its ``training_bytes`` cap an update, and a step on source data.
        options: ``seed``, ``run_dir``, ``device``, ``progress`` and the others of ``cil.RunOptions``.

    Returns:
        The record: ``record.results["mean_error"]``, ``record.results["domain_errors"]``...

    Raises:
        CilError: what is wrong in one line, before anything is done where it can be known then.

    >>> adapt_to(stream, "tent", {"name": "resnet20", "weights": "net.safetensors"})  # doctest: +SKIP
    """
    return plan_adaptation(
        stream, adapter, source, batch_size=batch_size, clean=clean, recipe=recipe, budget=budget, **options
    ).execute()  # fmt: skip


def plan_adaptation(
    stream: ShiftStream,
    adapter: str | type[Adapter] | MakeAdapter,
    source: str | Path | Mapping[str, Any],
    *,
    batch_size: int = 200,
    clean: bool = False,
    recipe: Recipe | None = None,
    budget: Budget | None = None,
    name: str | None = None,
    facts: Mapping[str, Any] | None = None,
    options: RunOptions | None = None,
    **given: Any,
) -> Run:
    """Put an adaptation run together, without executing it.

    Args:
        stream, adapter, source, batch_size, clean, recipe, budget: As for ``adapt_to``.
        name, facts, options, given: As for ``cil.plan``.
    """
    if not isinstance(stream, ShiftStream):
        given, what = getattr(stream, "name", "stream"), type(stream).__name__
        what = "class-incremental" if isinstance(stream, Stream) else f"a {what}"
        raise ConfigError(
            f"an adapter meets images that shift; '{given}' is {what}: choose a stream of that kind, as in "
            f"stream=cifar10_corrupted"
        )
    check_types(
        adapter=(adapter, str, Callable), source=(source, str, Path, Mapping), budget=(budget, Budget, None),
        recipe=(recipe, Recipe, None),
    )  # fmt: skip
    check_value("adaptation.batch_size", batch_size)
    make = find(adapter) if isinstance(adapter, str) else adapter
    method: Any = make.func if isinstance(make, partial) else make
    if isinstance(make, partial):
        check_arguments(method, make.keywords, "adapter")
    options, recipe, budget = RunOptions.of(given, options), recipe or Recipe(), budget or Budget()
    recipe.check()
    runtime = options.runtime()
    sources: Weights | Finished
    sources = Weights(source, stream) if isinstance(source, Mapping) else Finished(source, stream)
    name = name or (adapter if isinstance(adapter, str) else free_name_of(method, ADAPTERS))
    make_adapter = partial(_placed, make, name, sources)
    admit = None
    if budget.training_bytes is not None:
        steps = AdapterSteps(make_adapter, sources, name, recipe, runtime.precision, options.seed)
        admit = admission(budget, steps, source_batch_keys(method)[-1])
    work = AdaptationWork(
        stream, make_adapter, sources, recipe, name, runtime, options.seed, sources.columns, batch_size, clean, admit
    )
    facts = dict(facts or {})
    config = facts.pop("config", None) or {
        "adapter": described(make if isinstance(make, partial) else method),
        "adaptation": {"batch_size": batch_size, "clean": clean},
        **({"trainer": described(recipe)} if getattr(method, "needs_source", False) else {}),
        "seed": options.seed,
    }
    identity = {
        "kind": stream.kind,
        "config": config,
        "adapter": name,
        "seed": options.seed,
        "source": sources.description,
        "stream": stream.description(),
        "batch_size": batch_size,
        **environment_of((method, type(work)), sources.model, runtime),
        **facts,
    }

    def folder(root: str | Path) -> Path:
        named = f"{name}-on-{sources.name}-s{options.seed}-{identity_hash(identity)}"
        return Path(root) / safe_name(stream.name) / safe_name(named)

    return made_run(work, options, runtime, identity, folder)


def source_batch_keys(method: Any) -> list[str]:
    """Keys of an adapter that say how many images of the source data a batch has; else the trainer's."""
    own = [f"adapter.{name}" for name in inspect.signature(method).parameters if "batch" in name]
    return own or ["trainer.batch_size"]


def _placed(make: MakeAdapter, name: str, sources: Weights | Finished, source: SourceModel) -> Adapter:
    """An adapter on its source; refused where it cuts a network and a finished run answers by more than one."""
    try:
        return make(source)
    except NoChain as error:
        if isinstance(sources, Weights):
            raise
        raise ConfigError(
            f"adapter={name} cuts one chain of residual blocks, and {sources.label} does not answer by one alone; give "
            f"a run of a plain network, as of strategy=finetune or replay, or an adapter that takes any, as tent"
        ) from error


class Weights:
    """Trained networks from a file, one copy for each call.

    Args:
        model: Arguments of ``load_classifier``.
        stream: Its classes, by slot, are the outputs of the network in order.

    Raises:
        ConfigError: where the file is missing or does not fit.
    """

    columns: Tensor | None = None

    def __init__(self, model: Mapping[str, Any], stream: ShiftStream) -> None:
        check_arguments(networks, model, "model")
        if not model.get("name"):
            raise ConfigError("model.name is missing; see cil list models")
        if not model.get("weights"):
            raise ConfigError(
                "an adapter needs a trained network: give model.weights=FILE, or source=RUN_DIR of a finished run"
            )
        self.model = str(model["name"])
        self.name = self.model if model["weights"] == "hub" else Path(str(model["weights"])).stem
        self._shape = stream.image_shape
        self._net = load_classifier(**{"image_shape": stream.image_shape, **model})
        rest = {key: value for key, value in model.items() if key != "weights"}
        self.description = {"kind": "weights", "name": self.name, **rest, **weights_digest(str(model["weights"]))}

    def __call__(self, device: torch.device) -> SourceModel:
        net = deepcopy(self._net).to(device)
        return SourceModel(net, net.num_classes, self._shape, self.name)


class Finished:
    """Networks of a finished run, loaded anew for each call.

    Args:
        run_dir: Folder of a run of any strategy.
        stream: A stream of the same classes; their order may differ.

    Attributes:
        columns: (K,) slot of the run for each class of the stream.
        label: The run, for messages.

    Raises:
        CilError: where there is no such run, or it knows other classes.
    """

    def __init__(self, run_dir: str | Path, stream: ShiftStream) -> None:
        record = Record.load(run_dir)
        if record.status != "finished":
            raise ConfigError(f"source={run_dir} is {record.status}; it must be a run that has finished")
        self._run_dir, self._shape = Path(run_dir), stream.image_shape
        trained = load(run_dir)
        known, asked = trained.classes, list(stream.classes)
        if sorted(known) != sorted(asked):
            odd = sorted(set(known) ^ set(asked))[:3]
            raise StreamError(
                f"source={run_dir} knows {len(known)} classes, stream '{stream.name}' has {len(asked)}; they must be "
                f"the same, and differ in {', '.join(odd)}"
            )
        shape = tuple(record.identity["stream"]["image_shape"])
        if shape != tuple(stream.image_shape):
            raise StreamError(f"source={run_dir} takes images {shape}; stream '{stream.name}' has {stream.image_shape}")
        columns = [known.index(name) for name in asked]
        self.columns = None if columns == list(range(len(columns))) else torch.tensor(columns)
        identity = record.identity
        self.name = f"{identity['stream']['name']}_{identity['strategy']}"
        self.label = f"source={run_dir} (strategy={identity['strategy']})"
        self.model = str(identity.get("networks", {}).get("name", ""))
        self.description = {
            "kind": "run",
            "name": self.name,
            "strategy": identity["strategy"],
            "stream": identity["stream"]["name"],
            "identity": identity_hash(identity),
            "state_sha256": digest_of(trained.learner.state().tensors),
        }

    def __call__(self, device: torch.device) -> SourceModel:
        trained = load(self._run_dir, device=str(device))
        learner = trained.learner
        plain = type(learner).predict is Strategy.predict and isinstance(learner.net, GrowingNet)
        net = learner.net.eval() if plain else Learned(trained)
        return SourceModel(net, learner.num_classes, self._shape, self.name)


class Learned(nn.Module):
    """A finished learner as a network: gradients flow through its ``predict``.

    Its modules are submodules, and the tensors that it holds (class means, say) are buffers, so that all of them are
    carried and charged. Rehearsal memories are not: nothing is learned from them any more.
    """

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.trained = trained
        for name, value in trained.learner.held().items():
            held = {name: value} if isinstance(value, Tensor) else value if isinstance(value, dict) else {}
            for key, tensor in held.items():
                if isinstance(tensor, Tensor):  # the same tensor: what is loaded here is loaded there
                    self.register_buffer(f"held_{name}_{key}".replace(".", "_"), tensor)

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, K) of images (N, C, H, W) in [0, 1]."""
        return self.trained.forward(images)
