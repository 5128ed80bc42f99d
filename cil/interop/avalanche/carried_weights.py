"""What strategies of Avalanche carry beside images: a teacher, and the importance of weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from cil.data import Samples
from cil.interop.avalanche.carried import Carried, Host, Logits, plugin_of
from cil.interop.avalanche.library import library
from cil.memory import tensor_bytes
from cil.strategies.parts.importance import padded_to

PREFIX = "net."  # of the names of parameters in the module that Avalanche trains


class Teacher(Carried):
    """LwF: a copy of the network as it was, made anew before each experience, so not carried."""

    def __init__(self, learner: Host) -> None:
        super().__init__(learner)
        learner.keep("teacher", None, kind="teacher")

    def before(self) -> None:
        if self.learner.num_classes:
            self.learner.teacher = copy.deepcopy(self.learner.net).requires_grad_(False)

    def restore(self, strategy: Any, data: Any) -> None:
        if self.learner.teacher is None:
            return
        lwf = plugin_of(strategy, "LwFPlugin").lwf
        lwf.prev_model = Logits(self.learner.teacher).train()  # as in Avalanche: batch norm goes by the batch
        lwf.prev_classes_by_task[0] = set(range(self.learner.old_classes))
        lwf.expcount = self.learner.experiences


class Tables(Carried):
    """Statistics of weights, in tables of tensors by name."""

    held: ClassVar[tuple[str, ...]]

    def __init__(self, learner: Host) -> None:
        super().__init__(learner)
        for name in self.held:
            learner.keep(name, {}, kind="statistics")

    def side_bytes(self) -> int:
        return sum(tensor_bytes(value) for name in self.held for value in getattr(self.learner, name).values())


class Importance(Tables):
    """MAS: the importance of each weight, and the weights that they are held to."""

    plugin: ClassVar[str] = "MASPlugin"
    held = ("importance", "params")

    def weights(self) -> dict[str, Tensor]:
        """The weights whose importance is kept, in the shape in which it is kept."""
        return {name: weight.detach() for name, weight in self.learner.net.named_parameters()}

    def grow(self) -> None:
        for name in self.held:
            setattr(self.learner, name, padded_to(getattr(self.learner, name), self.weights()))

    def open_tables(self, strategy: Any) -> None:
        """Let the plugin have its tables, as after a first experience."""
        plugin = plugin_of(strategy, self.plugin)
        plugin.importance, plugin.params = {}, {}

    def tables(self, strategy: Any) -> dict[str, dict[str, Any]]:
        """The plugin's own table for each of ``held``."""
        plugin = plugin_of(strategy, self.plugin)
        return {"importance": plugin.importance, "params": plugin.params}

    def restore(self, strategy: Any, data: Any) -> None:
        if self.learner.experiences:
            self.open_tables(strategy)
            for name, table in self.tables(strategy).items():
                table.update(parameter_data(getattr(self.learner, name)))

    def save(self, strategy: Any, pool: Samples) -> None:
        for name, table in self.tables(strategy).items():
            values = {key.removeprefix(PREFIX): value.data.detach().clone() for key, value in table.items()}
            setattr(self.learner, name, {key: values[key] for key in self.weights()})


class PathImportance(Importance):
    """Synaptic Intelligence: the importance along the path, and its sum before it is clipped."""

    plugin = "SynapticIntelligencePlugin"
    held = ("importance", "trajectory")

    def weights(self) -> dict[str, Tensor]:
        norms = {name for name, layer in self.learner.net.named_modules() if isinstance(layer, _BatchNorm)}
        weights = super().weights().items()
        return {name: weight.flatten() for name, weight in weights if name.rpartition(".")[0] not in norms}

    def open_tables(self, strategy: Any) -> None:
        plugin = plugin_of(strategy, self.plugin)
        plugin.create_syn_data(strategy.model, plugin.ewc_data, plugin.syn_data, plugin.excluded_parameters)

    def tables(self, strategy: Any) -> dict[str, dict[str, Any]]:
        plugin = plugin_of(strategy, self.plugin)
        return {"importance": plugin.ewc_data[1], "trajectory": plugin.syn_data["cum_trajectory"]}


class Snapshots(Tables):
    """EWC: weights and their importance, of each experience (``separate``), or of the last (``online``)."""

    held = ("saved_params", "importances")

    @property
    def separate(self) -> bool:
        return bool(self.learner.options["mode"] == "separate")

    def grow(self) -> None:
        learner = self.learner
        now = {f"{learner.experiences}:{key}": weight.detach() for key, weight in learner.net.named_parameters()}
        for name in self.held:
            new = {key: torch.zeros_like(weight) for key, weight in now.items()}
            setattr(learner, name, {**getattr(learner, name), **new} if self.separate else new)

    def restore(self, strategy: Any, data: Any) -> None:
        plugin = plugin_of(strategy, "EWCPlugin")
        for name in self.held:
            for key, values in getattr(self.learner, name).items():
                index, _, parameter = key.partition(":")
                if int(index) < self.learner.experiences:
                    getattr(plugin, name)[int(index)].update(parameter_data({parameter: values}))

    def save(self, strategy: Any, pool: Samples) -> None:
        plugin, index = plugin_of(strategy, "EWCPlugin"), self.learner.experiences
        for name in self.held:
            new = getattr(plugin, name)[index]
            kept = dict(getattr(self.learner, name))
            for parameter, values in new.items():
                kept[f"{index}:{parameter.removeprefix(PREFIX)}"] = values.data.detach().clone()
            setattr(self.learner, name, kept)


def parameter_data(values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tensors by parameter in the form in which plugins hold them."""
    make = library("training.utils").ParamData
    return {
        PREFIX + key: make(PREFIX + key, init_tensor=value.clone(), device=value.device)
        for key, value in values.items()
    }
