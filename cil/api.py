"""From objects to a run. The command line is a thin layer over ``plan``; ``train`` is it for Python."""

from __future__ import annotations

import hashlib
import inspect
import logging
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cil import plugins
from cil.engine.anytime import Anytime
from cil.engine.budget_fit import Fitted, fitted
from cil.engine.caps import caps_of
from cil.engine.driver import Run
from cil.engine.dry_run import limits_like
from cil.engine.lifecycle import MakeFactory
from cil.engine.options import RunOptions
from cil.engine.own_code import files_of
from cil.engine.planned import check_task_aware
from cil.engine.recipe import Recipe, with_default_snapshots
from cil.engine.runtime import Runtime
from cil.errors import ConfigError, nearest
from cil.memory import Budget
from cil.models import NetFactory, build_backbone
from cil.strategies import Strategy, find
from cil.strategies.registry import STRATEGIES
from cil.streams import Stream
from cil.targets import check_arguments, described
from cil.tracking import Record, identity_hash

MakeStrategy = Callable[..., Strategy]
Model = str | Mapping[str, Any]
_fits: dict[str, Fitted | None] = {}  # by strategy, networks, budget and structure of the stream
_say = logging.getLogger("cil")


def train(
    strategy: str | type[Strategy] | MakeStrategy,
    stream: Stream,
    model: Model = "resnet20",
    budget: Budget | None = None,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    recipe: Recipe | None = None,
    anytime: Anytime | None = None,
    **options: Any,
) -> Record:
    """Train a strategy on a stream under a budget. Calling it again goes on with the run, or finds it finished.

    Args:
        strategy: A name, a class, or a ``functools.partial`` of one with its hyperparameters.
        stream: The stream to learn: ``cil.class_incremental("mnist5k", increment=2)``, for example.
        model: Name of a backbone, or a mapping with ``name`` and what ``networks`` takes.
        budget: Limits on what is carried; by default nothing is capped.
        epochs, batch_size, lr: In place of those of the recipe.
        recipe: Optimizer, schedule and lengths; the default of ``cil.Recipe`` if left out.
        anytime: How often to evaluate inside experiences.
        options: ``seed``, ``run_dir``, ``device``, ``progress`` and the others of ``cil.RunOptions``.

    Returns:
        The record: ``record.results["last_accuracy"]``, ``record.directory``...

    Raises:
        CilError: what is wrong in one line, before training where it can be known then.
    """
    changes = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "recipe": recipe, "anytime": anytime}
    run = plan_training(strategy, stream, model, budget, **changes, **options)
    for warning in run.work.warnings():
        _say.warning(warning)
    return run.execute()


def plan_training(
    strategy: str | type[Strategy] | MakeStrategy,
    stream: Stream,
    model: Model = "resnet20",
    budget: Budget | None = None,
    **given: Any,
) -> Run:
    """The run that ``train`` executes; ``given`` as for ``train``."""
    takes = {*inspect.signature(train).parameters, *(item.name for item in fields(RunOptions))} - {"options"}
    for name in given.keys() - takes:
        for key, kind in (("recipe", Recipe), ("budget", Budget)):
            if name in {item.name for item in fields(kind)}:
                raise ConfigError(f"unknown key {name}; train takes it as {key}=cil.{kind.__name__}({name}=...)")
        raise ConfigError(f"unknown key {name}; train has none; {nearest(name, takes)}")
    check_types(recipe=(given.get("recipe"), Recipe, None))
    recipe = given.pop("recipe", None) or Recipe()
    changes = {name: given.pop(name, None) for name in ("epochs", "batch_size", "lr")}
    recipe = replace(recipe, **{name: changes[name] for name in ("epochs", "batch_size") if changes[name] is not None})
    if changes["lr"] is not None:
        recipe = replace(recipe, optimizer=partial(recipe.optimizer, lr=changes["lr"]))
    return plan(strategy, stream, model, budget, recipe=recipe, **given)


def check_types(**given: tuple[Any, ...]) -> None:
    """Refuse arguments of another type; each is given as its value, then the types that it may have.

    Raises:
        ConfigError: naming the argument.
    """
    for name, (value, *kinds) in given.items():
        if not any(value is None if kind is None else isinstance(value, kind) for kind in kinds):
            allowed = " or ".join("None" if kind is None else _TYPES.get(kind, kind.__name__) for kind in kinds)
            raise ConfigError(f"{name} is a {type(value).__name__}, {str(value)[:60]!r}; it must be {allowed}")


_TYPES = {
    str: "a name", int: "a whole number", Callable: "a class or a partial of one", Mapping: "a mapping",
    Stream: "a cil.Stream", Budget: "a cil.Budget", Recipe: "a cil.Recipe", Anytime: "a cil.Anytime", Path: "a path",
}  # fmt: skip


def plan(
    strategy: str | type[Strategy] | MakeStrategy,
    stream: Stream,
    model: Model = "resnet20",
    budget: Budget | None = None,
    *,
    recipe: Recipe | None = None,
    anytime: Anytime | None = None,
    name: str | None = None,
    facts: Mapping[str, Any] | None = None,
    options: RunOptions | None = None,
    **given: Any,
) -> Run:
    """Put a run together, without executing it.

    Args:
        strategy, stream, model, budget, recipe, anytime: As for ``train``.
        name: The strategy in tables; by default the name that it is registered by, or that of its class.
        facts: Parts of the identity, in place of those that are read off the objects (``config``).
        options: How it is run; ``given``: fields of it, which go before it.
    """
    check_types(
        strategy=(strategy, str, Callable), stream=(stream, Stream), model=(model, str, Mapping),
        budget=(budget, Budget, None), recipe=(recipe, Recipe, None), anytime=(anytime, Anytime, None),
    )  # fmt: skip
    make = find(strategy) if isinstance(strategy, str) else strategy
    method = make.func if isinstance(make, partial) else make
    if isinstance(make, partial):
        check_arguments(method, make.keywords, "strategy")
    name = name or free_name_of(method, STRATEGIES)
    check_task_aware(bool(getattr(method, "takes_task", False)), stream, name)
    options, recipe = RunOptions.of(given, options), recipe or Recipe()
    recipe.check()
    runtime = options.runtime()
    nets = _nets(model, stream)
    budget = with_limits(budget or Budget(), stream, model)
    make_factory = networks(stream.image_shape, **nets)
    fit = _fit(make, make_factory, stream, budget, name, nets)
    fixed: dict[str, Any] = {} if fit is None else {fit.key: fit.value}
    make = partial(make, **fixed) if fixed else make
    work = plugins.find("cil.kinds", stream.kind).work(
        stream=stream, make_learner=make, make_factory=make_factory, budget=budget, fit=fit,
        recipe=recipe, name=name, runtime=runtime, seed=options.seed, evaluation_batch=options.evaluation_batch,
        answers=options.answers, open_set=options.open_set, pictures=options.pictures, anytime=anytime,
    )  # fmt: skip
    facts = dict(facts or {})
    config = facts.pop("config", None) or {
        "strategy": described(make) if isinstance(make, partial) else described(method),
        "model": dict(model) if isinstance(model, Mapping) else {"name": model},
        "trainer": described(recipe),
        "anytime": None if anytime is None else asdict(anytime),
        "seed": options.seed,
    }
    if fixed:  # what is run, whatever was asked for
        config = {**config, "strategy": {**config["strategy"], **fixed}}
    ignored_keys = getattr(method, "ignored_keys", None)  # of the recipe, each with what is in its place
    ignored = dict(ignored_keys(config["strategy"])) if ignored_keys and isinstance(config["strategy"], Mapping) else {}
    identity = {
        "kind": stream.kind,
        "config": config,
        "strategy": name,
        "seed": options.seed,
        "budget": budget.description(),
        "bound": work.bound,
        "uses_horizon": bool(work.method.uses_horizon) or budget.reserve == "final",
        **({} if options.features is None else {"features": options.features}),
        **({} if options.pictures else {"pictures": False}),
        **({"transductive": True} if work.transductive else {}),
        **({"uses_validation": True} if work.method.uses_validation else {}),
        **({"ignored": ignored} if ignored else {}),
        "class_order": list(stream.order),
        "stream": stream.description(),
        **({"starts_from": starts_from} if (starts_from := work.method.starts_from) else {}),
        "networks": nets | weights_digest(nets["weights"]),
        **environment_of((method, type(work), *map(type, caps_of(budget).values())), nets["name"], runtime),
        **facts,
    }
    return made_run(work, options, runtime, identity, partial(default_run_dir, identity))


def _fit(
    make: MakeStrategy, make_factory: MakeFactory, stream: Stream, budget: Budget, name: str, nets: Mapping[str, Any]
) -> Fitted | None:
    """The hyperparameter that the budget sets, found once in a process: seeds share it."""
    if not budget.fit:
        return None
    key = repr((described(make), dict(nets), budget.description(), stream.signatures))
    if key not in _fits:
        _fits[key] = fitted(make, partial(make_factory, seed=0, meta=True), stream.signatures, budget, name)
    return _fits[key]


def name_of(method: Any) -> str:
    """A method as tables name it: as it is registered itself, else by its own name. No name is inherited."""
    own: Mapping[str, Any] = getattr(method, "__dict__", {})
    return str(own.get("name") or getattr(method, "__name__", "strategy"))


def free_name_of(method: Any, registry: plugins.Registry[Any]) -> str:
    """The name of a method in tables, where no other method is known by it.

    Raises:
        ConfigError: where one is: its rows would be taken for that one's.
    """
    name = name_of(method)
    known = registry.get(name) if name in registry.names() else None
    again = plugins.place_of(known) == plugins.place_of(method)  # defined once more, in a notebook
    if known in (None, method) or (again and not str(getattr(known, "__module__", "")).startswith("cil.")):
        return name
    raise ConfigError(
        f"{registry.kind} {plugins.place_of(method)} is called '{name}', which is the name of "
        f"{plugins.place_of(known)} in tables; give it another one"
    )


def made_run(
    work: Any, options: RunOptions, runtime: Runtime, identity: dict[str, Any], folder: Callable[[str | Path], Path]
) -> Run:
    """A run with its identity hashed, in its own folder: the one asked for, or ``folder`` of the root."""
    identity["config"] = with_default_snapshots(identity["config"])
    identity["config_hash"] = identity_hash(identity["config"])
    run_dir = folder(options.root) if options.run_dir is None else Path(options.run_dir)
    return Run(work, options, identity, run_dir, runtime)


def environment_of(parts: Sequence[Any], model: str, runtime: Runtime) -> dict[str, Any]:
    """The part of an identity that says what computes, and with which code.

    Args:
        parts: Classes that other packages may have brought: the method, the work of its kind of run, further budgets.
    """
    return {
        "device": runtime.device,
        "threads": runtime.threads,
        "precision": runtime.precision,
        **({"devices": runtime.all_devices} if runtime.all_devices > 1 else {}),
        "versions": versions_of(parts, model),
        "code": source_digest(*parts),
    }


def with_limits(budget: Budget, stream: Stream, model: Model) -> Budget:
    """An aligned budget with its limits in bytes, by a dry run of the other strategy; any other budget as it is.

    Raises:
        ConfigError: where the other strategy is unknown, or a bound.
    """
    alignment = budget.alignment
    if alignment is None or budget.limits is not None:
        return budget
    make = find(alignment.to, "budget.to") if isinstance(alignment.to, str) else alignment.to
    alignment = replace(alignment, model=model if alignment.model is None else alignment.model)
    budget = replace(budget, alignment=alignment)
    if getattr(getattr(make, "func", make), "bound", False):
        to = budget.description()["to"]
        raise ConfigError(f"budget.to={to} is a bound that keeps all data; align to a strategy that competes")
    if getattr(getattr(make, "func", make), "takes_task", False):
        check_task_aware(True, stream, f"{budget.description()['to']} (budget.to)")
    factory = networks(stream.image_shape, **_nets(alignment.model or model, stream))
    make_net = partial(factory, seed=0, meta=True)
    return replace(budget, limits=limits_like(make, make_net, stream.signatures, budget))


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
    """Make the factory of a run's networks.

    Args:
        image_shape: (C, H, W).
        name: Name of the backbone, ``resnet32`` or ``timm:NAME``; see ``cil list models``.
        head: ``linear`` or ``cosine``.
        weights: None for random ones, ``hub``, or the path of a file.
        mean, std: By channel, of images in [0, 1]; None: those that the weights expect, where they say so.
        channels_last: Memory layout of convolutions.
        options: Arguments of the backbone by name.
    """
    size = (image_shape[1], image_shape[2])
    backbone = partial(build_backbone, name, image_shape[0], size, weights, **(options or {}))
    public = None if weights is None else f"{_full_name(name) if weights == 'hub' else name} {Path(weights).name}"
    return partial(NetFactory, backbone, head=head, mean=mean, std=std, channels_last=channels_last, pretrained=public)


def default_run_dir(identity: Mapping[str, Any], root: str | Path = "runs") -> Path:
    """``root/STREAM/STRATEGY-BUDGET-sSEED-HASH``: the same identity is the same folder."""
    budget = identity["budget"]
    size = {
        "none": "unlimited",
        "exemplars": f"{budget['exemplars']}exemplars",
        "per_class": f"{budget.get('per_class')}each",
        "bytes": f"{(budget['limits'] or [0])[-1]}bytes",
        "aligned": f"as-{budget['to']}-{budget['exemplars']}exemplars",
    }[budget["kind"]]
    folder = f"{identity['strategy']}-{size}-s{identity['seed']}-{identity_hash(identity)}"
    return Path(root) / safe_name(identity["stream"]["name"]) / safe_name(folder)


def safe_name(name: str) -> str:
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
    if nets["mean"] is None and not (nets["weights"] and str(nets["name"]).startswith(("timm:", "clip:"))):
        nets |= {"mean": list(stream.mean), "std": list(stream.std)}
    return nets


def _full_name(name: str) -> str:
    """The name of a model with its tag, so that it says which public weights are meant."""
    if not name.startswith("timm:"):
        return name
    from cil.models.timm_zoo import full_name

    return f"timm:{full_name(name.removeprefix('timm:'))}"


def weights_digest(weights: str | None) -> dict[str, str]:
    """SHA-256 of a weights file, to stand in an identity; nothing where there is no file."""
    if weights is None or not Path(weights).is_file():
        return {}
    return {"weights_sha256": hashlib.sha256(Path(weights).read_bytes()).hexdigest()}


def versions_of(parts: Iterable[Any], model: str) -> dict[str, str]:
    """Versions of the packages that compute: those of plugins too, timm and open_clip where they make the network."""
    zoos = {"timm": "timm", "clip": "open_clip_torch"}
    packages = ["torch", "numpy", *(package for name, package in zoos.items() if str(model).startswith(f"{name}:"))]
    owners = {str(part.__module__).partition(".")[0] for part in parts} - {"cil", "__main__"}
    packages += [name for owner in sorted(owners) for name in _distributions().get(owner, [])]
    return {"cil": _version("cil"), "python": platform.python_version()} | {name: _version(name) for name in packages}


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Names of distributions by package; reads what every installed one says of itself."""
    from importlib.metadata import packages_distributions

    return packages_distributions()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "source"


# files that move results; the other files of a kind print, draw and check
_COMPUTE = tuple(
    f"{room}/**/*.py"
    for room in ("adapt", "contract", "data", "engine", "memory", "metrics", "models", "strategies", "streams")
) + tuple(f"kinds/*/{name}.py" for name in ("work", "evaluation", "results", "segment_counts"))


def source_digest(*parts: Any) -> str:
    """Digest of the source of these classes and of what computes here: after an edit, the same command is a new run.

    With the files that a class's own file imports from the same folder or package (``cil.engine.own_code``).
    """
    package = Path(__file__).resolve().parent
    files = {f"{path.relative_to(package)}": path for pattern in _COMPUTE for path in package.glob(pattern)}
    for base in [one for part in parts for one in (inspect.getmro(part) if isinstance(part, type) else (part,))]:
        with suppress(OSError, TypeError):  # typed into a session, or built in
            path = Path(inspect.getfile(base)).resolve()
            if not path.is_relative_to(package):
                own = files_of(base.__module__, path)
                files |= {f"{module}:{file.name}": file for module, file in own.items()}
    digest = hashlib.sha256()
    for name in sorted(files):  # names that are all different: an order by names alike would be that of a set
        digest.update(f"{name}\0".encode() + files[name].read_bytes())
    return digest.hexdigest()[:12]
