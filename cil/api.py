"""From objects to a run. The command line is a thin layer over ``plan``; ``train`` is it for Python."""

from __future__ import annotations

import hashlib
import inspect
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cil.engine.anytime import Anytime
from cil.engine.learners import MakeFactory
from cil.engine.recipe import Recipe
from cil.engine.run import Run
from cil.engine.runtime import Runtime
from cil.engine.tasks import check_told
from cil.errors import ConfigError, nearest
from cil.memory import Budget
from cil.models import NetFactory, build_backbone
from cil.strategies import Strategy, find
from cil.streams import Stream
from cil.targets import check_arguments, described
from cil.tracking import Record, identity_hash

MakeStrategy = Callable[..., Strategy]
_say = logging.getLogger("cil")


def train(
    strategy: str | type[Strategy] | MakeStrategy,
    stream: Stream,
    model: str | Mapping[str, Any] = "resnet20",
    budget: Budget | None = None,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    recipe: Recipe | None = None,
    **options: Any,
) -> Record:
    """Train a strategy on a stream under a budget. Calling it again goes on with the run, or finds it finished.

    Args:
        strategy: A name, a class, or a ``functools.partial`` of one with its hyperparameters.
        stream: What is met: ``cil.class_incremental("mnist5k", increment=2)``, for example.
        model: Name of a backbone, or a mapping with ``name`` and what ``networks`` takes.
        budget: What may be carried; by default nothing is capped.
        epochs, batch_size, lr: In place of those of the recipe.
        recipe: Optimizer, schedule and lengths; the default of ``cil.Recipe`` if left out.
        options: ``seed``, ``run_dir``, ``device``, ``precision``, ``threads``, ``loggers``, ``progress`` and whatever
            else ``plan`` takes.

    Returns:
        The record: ``record.results["last_accuracy"]``, ``record.directory``...

    Raises:
        CilError: what is wrong in one line, before training where it can be known then.
    """
    recipe = recipe or Recipe()
    changes: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size}
    recipe = replace(recipe, **{name: value for name, value in changes.items() if value is not None})
    if lr is not None:
        recipe = replace(recipe, optimizer=partial(recipe.optimizer, lr=lr))
    _check_options(options)
    run = plan(strategy, stream, model, budget, recipe=recipe, **options)
    for note in run.notes():
        _say.warning(note)
    return run.execute()


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that ``train`` does not take, and say where they belong."""
    takes = {name for call in (train, plan) for name in inspect.signature(call).parameters} - {"options"}
    for name in options.keys() - takes:
        for key, kind in (("recipe", Recipe), ("budget", Budget)):
            if name in {item.name for item in fields(kind) if item.name not in _SET_BY_THE_ENGINE}:
                raise ConfigError(f"unknown key {name}; train takes it as {key}=cil.{kind.__name__}({name}=...)")
        raise ConfigError(f"unknown key {name}; train has none; {nearest(name, takes)}")
    check_arguments(plan, options, "")


def plan(
    strategy: str | type[Strategy] | MakeStrategy,
    stream: Stream,
    model: str | Mapping[str, Any] = "resnet20",
    budget: Budget | None = None,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    root: str | Path = "runs",
    device: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
    loggers: Any = (),
    progress: bool = False,
    keep: str = "last",
    boundary: str = "inline",
    evaluation_batch: int = 500,
    anytime: Anytime | None = None,
    group: str | None = None,
    name: str | None = None,
    facts: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> Run:
    """Put a run together, without executing it.

    Args:
        run_dir: Where the record is; by default a folder under ``root`` that is named by the identity of the run.
        anytime: How often to evaluate inside experiences.
        threads: Of the CPU; by default as torch has them.
        name: Of the strategy in tables; by default the name that it is registered by, or that of its class.
        facts: What the identity says in place of what is read off the objects (``config``, ``budget``).
        others: See ``train`` and ``cil.engine.run.Run``.
    """
    make = find(strategy) if isinstance(strategy, str) else strategy
    kind = make.func if isinstance(make, partial) else make
    if isinstance(make, partial):
        check_arguments(kind, make.keywords, "strategy")
    name = name or str(getattr(kind, "name", getattr(kind, "__name__", "strategy")))
    check_told(bool(getattr(kind, "takes_task", False)), stream, name)
    budget, recipe = budget or Budget(), recipe or Recipe()
    runtime = Runtime(device, precision, threads or torch.get_num_threads())
    nets = _nets(model, stream)
    make_factory = networks(stream.image_shape, **nets)
    facts = dict(facts or {})
    config = facts.pop("config", None) or {
        "strategy": described(make) if isinstance(make, partial) else described(kind),
        "model": dict(model) if isinstance(model, Mapping) else {"name": model},
        "trainer": described(recipe),
        "anytime": None if anytime is None else asdict(anytime),
        "seed": seed,
    }
    identity = {
        "config": config,
        "strategy": name,
        "seed": seed,
        "budget": _terms(budget),
        "bound": bool(getattr(kind, "bound", False)),
        "uses_horizon": bool(getattr(kind, "uses_horizon", False)) or budget.reserve == "final",
        "class_order": list(stream.order),
        "stream": stream.description(),
        "networks": nets | weights_digest(nets["weights"]),
        "device": runtime.device,
        "threads": runtime.threads,
        "precision": runtime.precision,
        "versions": versions_of(kind, nets["name"]),
        "code": source_digest(kind),
        **facts,
    }
    identity["config_hash"] = identity_hash(config)
    return Run(
        stream=stream,
        make_learner=make,
        make_factory=make_factory,
        budget=budget,
        recipe=recipe,
        run_dir=Path(run_dir) if run_dir is not None else default_run_dir(identity, root),
        identity=identity,
        name=name,
        runtime=runtime,
        seed=seed,
        loggers=loggers,
        progress=progress,
        keep=keep,
        boundary=boundary,
        evaluation_batch=evaluation_batch,
        anytime=anytime,
        group=group,
        command=command,
    )


def networks(
    image_shape: Sequence[int],
    name: str = "resnet20",
    *,
    head: str = "linear",
    weights: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channels_last: bool = True,
    options: Mapping[str, Any] | None = None,
) -> MakeFactory:
    """How the networks of a run are made.

    Args:
        image_shape: (C, H, W).
        name: Of the backbone, ``resnet32`` or ``timm:NAME``; see ``cil list models``.
        head: ``linear`` or ``cosine``.
        weights: None for random ones, ``hub``, or the path of a file.
        mean, std: By channel, of images in [0, 1]; None: those that the weights expect, where they say so.
        channels_last: Memory layout of convolutions.
        options: Of the backbone, by name.
    """
    size = (image_shape[1], image_shape[2])
    backbone = partial(build_backbone, name, image_shape[0], size, weights, **(options or {}))
    public = None if weights is None else f"{name} {Path(weights).name}"
    return partial(NetFactory, backbone, head=head, mean=mean, std=std, channels_last=channels_last, pretrained=public)


def default_run_dir(identity: Mapping[str, Any], root: str | Path = "runs") -> Path:
    """``root/STREAM/STRATEGY-BUDGET-sSEED-HASH``: the same identity is the same folder."""
    budget = identity["budget"]
    size = {
        "none": "unlimited",
        "exemplars": f"{budget['exemplars']}exemplars",
        "bytes": f"{(budget['limits'] or [0])[-1]}bytes",
        "aligned": f"as-{budget['to']}-{budget['exemplars']}exemplars",
    }[budget["kind"]]
    folder = f"{identity['strategy']}-{size}-s{identity['seed']}-{identity_hash(identity)}"
    return Path(root) / safe_name(identity["stream"]["name"]) / safe_name(folder)


def safe_name(name: str) -> str:
    """A name as a file name."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)


def _nets(model: str | Mapping[str, Any], stream: Stream) -> dict[str, Any]:
    """The arguments of ``networks`` with the normalisation decided: the stream's, unless public weights know better."""
    given = dict(model) if isinstance(model, Mapping) else {"name": model}
    if "name" not in given:
        raise ConfigError("model.name is missing; see cil list models")
    check_arguments(networks, given, "model")
    nets: dict[str, Any] = {"head": "linear", "weights": None, "mean": None, "std": None} | given
    if nets["weights"] not in (None, "hub") and not Path(nets["weights"]).is_file():
        raise ConfigError(f"model.weights={nets['weights']} is no file; give the path of one, hub, or null")
    if (nets["mean"] is None) != (nets["std"] is None):
        raise ConfigError("model.mean and model.std go together: give both or neither")
    if nets["mean"] is None and not (nets["weights"] and str(nets["name"]).startswith("timm:")):
        nets |= {"mean": list(stream.mean), "std": list(stream.std)}
    return nets


_SET_BY_THE_ENGINE = ("final_bytes", "experience", "given_up", "image_bytes")


def _terms(budget: Budget) -> dict[str, Any]:
    """A plain budget as the identity says it."""
    kind = "bytes" if budget.limits is not None else "none" if budget.exemplars is None else "exemplars"
    held = {key: value for key, value in asdict(budget).items() if key not in _SET_BY_THE_ENGINE}
    return {"kind": kind, **held, "at": "end" if len(budget.limits or ()) < 2 else "each", "to": None}


def weights_digest(weights: str | None) -> dict[str, str]:
    """SHA-256 of a weights file, to stand in an identity; nothing where there is no file."""
    if weights is None or not Path(weights).is_file():
        return {}
    return {"weights_sha256": hashlib.sha256(Path(weights).read_bytes()).hexdigest()}


def versions_of(kind: Any, model: str) -> dict[str, str]:
    """Of what computes: a strategy of another package counts, timm only where it makes the network."""
    packages = ["torch", "numpy", *(["timm"] if str(model).startswith("timm:") else [])]
    own = str(kind.__module__).partition(".")[0]
    if own not in ("cil", "__main__"):
        from importlib.metadata import packages_distributions

        packages += packages_distributions().get(own, [])
    return {"cil": _version("cil"), "python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "source"


# rooms that move results
_COMPUTE = (
    "adapt",
    "contract",
    "data",
    "engine",
    "memory",
    "metrics",
    "models",
    "strategies",
    "streams",
)  # rooms that move results


def source_digest(kind: Any) -> str:
    """Digest of the source of the strategy and of what computes here: after an edit the same command is another run."""
    package = Path(__file__).resolve().parent
    files = {f"{path.relative_to(package)}": path for room in _COMPUTE for path in (package / room).rglob("*.py")}
    for base in inspect.getmro(kind) if isinstance(kind, type) else (kind,):
        with suppress(OSError, TypeError):  # typed into a session, or built in
            path = Path(inspect.getfile(base)).resolve()
            if not path.is_relative_to(package):
                files[f"{base.__module__}:{path.name}"] = path
    digest = hashlib.sha256()
    for name in sorted(files):  # names that are all different: an order by names alike would be that of a set
        digest.update(f"{name}\0".encode() + files[name].read_bytes())
    return digest.hexdigest()[:12]
