"""Which strategies of Avalanche can be run here, with which options; and which cannot, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cil.errors import ConfigError, nearest
from cil.interop.avalanche.carried import Carried
from cil.interop.avalanche.carried_images import (
    AllData,
    ClassBuffer,
    ExperienceBuffer,
    FirstOfEach,
    LogitsBuffer,
    RestartedBuffer,
)
from cil.interop.avalanche.carried_weights import Importance, PathImportance, Snapshots, Teacher


@dataclass(frozen=True)
class Method:
    """A strategy of Avalanche that can be carried.

    Attributes:
        carried: What it holds beside the network, in our terms.
        options: Its own arguments and their defaults, in Avalanche 0.6 but where it has none.
        bound: True where it keeps all data.
        restarts: True where each experience starts from a fresh network.
    """

    carried: type[Carried]
    options: Mapping[str, Any] = field(default_factory=dict)
    bound: bool = False
    restarts: bool = False


METHODS: dict[str, Method] = {
    "Naive": Method(Carried),
    "Replay": Method(ExperienceBuffer),
    "ER_ACE": Method(ClassBuffer, {"batch_size_mem": 10}),
    "DER": Method(LogitsBuffer, {"batch_size_mem": None, "alpha": 0.1, "beta": 0.5}),
    "GDumb": Method(RestartedBuffer, restarts=True),
    "AGEM": Method(FirstOfEach, {"sample_size": 64}),
    "EWC": Method(Snapshots, {"ewc_lambda": 1.0, "mode": "separate", "decay_factor": None}),
    "MAS": Method(Importance, {"lambda_reg": 1.0, "alpha": 0.5}),
    "SynapticIntelligence": Method(PathImportance, {"si_lambda": 1.0, "eps": 1e-7}),
    "LwF": Method(Teacher, {"alpha": 1.0, "temperature": 2.0}),
    "Cumulative": Method(AllData, bound=True),
    "JointTraining": Method(AllData, bound=True, restarts=True),
}


def method(name: str, bound: bool) -> Method:
    """The strategy of that name.

    Args:
        bound: True for those that keep all data.

    Raises:
        ConfigError: for one that cannot be run, with the reason; for an unknown name, with the nearest known ones.
    """
    found = METHODS.get(name)
    if found is None and name in REFUSED:
        raise ConfigError(f"strategy.name is '{name}' of Avalanche, which cannot be run here: {REFUSED[name]}")
    if found is None:
        known = [key for key, value in METHODS.items() if value.bound == bound]
        raise ConfigError(f"strategy.name is '{name}'; {nearest(name, known)}")
    if found.bound != bound:
        other = "avalanche_bound" if found.bound else "avalanche"
        kind = "keeps all data, so it is a bound" if found.bound else "does not keep all data, so it is no bound"
        raise ConfigError(f"strategy.name is '{name}', which {kind}; set strategy={other}")
    return found


def checked_options(name: str, found: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a strategy, those given in place of the defaults.

    Raises:
        ConfigError: for an option that it does not have; the size of its memory is the budget's.
    """
    for key in given:
        if key in ("mem_size", "patterns_per_exp"):
            raise ConfigError(f"strategy.options.{key} is set by the budget; set budget.exemplars or budget.limit")
        if key not in found.options:
            raise ConfigError(f"strategy.options.{key} is not known to {name}; {nearest(key, found.options)}")
    return {**found.options, **given}


REFUSED: dict[str, str] = {  # tried or read with avalanche-lib 0.6.0, torch 2.13 and timm 1.0
    "AR1": "it downloads weights of a network of its own when it is made",
    "BiC": "it fails with torch 2.13, whose MultiStepLR has no argument 'verbose'",
    "CWRStar": "it consolidates weights of one named layer, which is none of our growing heads; not mapped",
    "GEM": "it keeps raw images and solves with quadprog, under GPL; strategy=gem is our own",
    "GSS_greedy": "it failed on an empty max() in a small run; not chased",
    "ICaRL": "it asks for the scenario that an experience is of, which a sealed boundary does not have; "
    "strategy=icarl is our own",
    "L2P": "it fails with timm 1.0, whose PretrainedCfg cannot be indexed; strategy=l2p is our own",
    "MIR": "its replay loader is made at the end of an experience from the last batch, which no boundary carries",
    "PNNStrategy": "it asks for the task of each test image, and grows a column a task in a network of its own",
    "SCR": "it failed in a small run, where sizes of labels and outputs differ; not chased",
}
