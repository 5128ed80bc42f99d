"""What a strategy of Avalanche carries from one experience to the next, as kept values that are charged by kind.

Its own object does not survive a boundary. Before an experience a fresh one is made and given what was carried; after
it, what it holds is taken out of its plugins again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from cil.data import Samples
from cil.errors import ConfigError
from cil.interop.avalanche.host import Host, Logits
from cil.interop.avalanche.library import library
from cil.memory import ExemplarMemory, tensor_bytes
from cil.models import frozen_copy
from cil.strategies.parts.importance import padded_to

PREFIX = "net."  # of the names of parameters in the module that Avalanche trains


class Carried:
    """What is held beside the network: nothing, unless a subclass says so.

    Args:
        learner: Whose values are kept, and charged.
    """

    def __init__(self, learner: Host) -> None:
        self.learner = learner

    def grow(self) -> None:
        """Allocate at the size after the experience that begins, without data."""

    def before(self) -> None:
        """The network is still as the last experience left it."""

    def arguments(self) -> dict[str, Any]:
        """Arguments of the strategy that follow from the budget."""
        return {}

    def restore(self, strategy: Any, data: Any) -> None:
        """Give a fresh strategy what was carried.

        Args:
            data: The exemplars as a data set of Avalanche, in their order.
        """

    def save(self, strategy: Any, pool: Samples) -> None:
        """Keep what the strategy holds after training.

        Args:
            pool: Exemplars and new images; the attribute ``rows`` of a data set of Avalanche counts in it.
        """

    def plan(self, slots: int, counts: Mapping[int, int]) -> dict[int, int]:
        """Exemplars of each slot; see ``Strategy.exemplar_plan``."""
        return {}

    def side_bytes(self) -> int:
        """Bytes beside network and exemplars that the method holds by design."""
        return 0


class Nothing(Carried):
    """The network alone."""


# networks -------------------------------------------------------------------------------------------------------------


class Teacher(Carried):
    """LwF: a copy of the network as it was, made anew before each experience, so not carried."""

    def __init__(self, learner: Host) -> None:
        super().__init__(learner)
        learner.keep("teacher", None, kind="teacher")

    def before(self) -> None:
        if self.learner.num_classes:
            self.learner.teacher = frozen_copy(self.learner.net)

    def restore(self, strategy: Any, data: Any) -> None:
        if self.learner.teacher is None:
            return
        lwf = plugin_of(strategy, "LwFPlugin").lwf
        lwf.prev_model = Logits(self.learner.teacher).eval()
        lwf.prev_classes_by_task[0] = set(range(self.learner.old_classes))
        lwf.expcount = self.learner.experiences


# importance of weights ------------------------------------------------------------------------------------------------


class Importance(Carried):
    """MAS: the importance of each weight, and the weights that they are held to."""

    plugin: ClassVar[str] = "MASPlugin"
    held: ClassVar[tuple[str, ...]] = ("importance", "params")

    def __init__(self, learner: Host) -> None:
        super().__init__(learner)
        for name in self.held:
            learner.keep(name, {}, kind="statistics")

    def weights(self) -> dict[str, Tensor]:
        """The weights whose importance is kept, in the shape in which it is kept."""
        return {name: weight.detach() for name, weight in self.learner.net.named_parameters()}

    def grow(self) -> None:
        for name in self.held:
            setattr(self.learner, name, padded_to(getattr(self.learner, name), self.weights()))

    def tables(self, strategy: Any) -> dict[str, dict[str, Any]]:
        """The plugin's own table for each of ``held``, to be filled."""
        plugin = plugin_of(strategy, self.plugin)
        plugin.importance, plugin.params = {}, {}
        return {"importance": plugin.importance, "params": plugin.params}

    def restore(self, strategy: Any, data: Any) -> None:
        if self.learner.experiences:
            for name, table in self.tables(strategy).items():
                table.update(parameter_data(getattr(self.learner, name)))

    def trained_tables(self, strategy: Any) -> dict[str, Mapping[str, Any]]:
        """The plugin's table for each of ``held``, after training."""
        plugin = plugin_of(strategy, self.plugin)
        return {"importance": plugin.importance, "params": plugin.params}

    def save(self, strategy: Any, pool: Samples) -> None:
        for name, table in self.trained_tables(strategy).items():
            values = {key.removeprefix(PREFIX): value.data.detach().clone() for key, value in table.items()}
            setattr(self.learner, name, {key: values[key] for key in self.weights()})

    def side_bytes(self) -> int:
        return sum(tensor_bytes(value) for name in self.held for value in getattr(self.learner, name).values())


class PathImportance(Importance):
    """Synaptic Intelligence: the importance along the path, and its sum before it is clipped."""

    plugin = "SynapticIntelligencePlugin"
    held = ("importance", "trajectory")

    def weights(self) -> dict[str, Tensor]:
        layers = [
            (name, layer) for name, layer in self.learner.net.named_modules() if not isinstance(layer, _BatchNorm)
        ]
        own = (f"{name}.{key}" for name, layer in layers for key, _ in layer.named_parameters(recurse=False))
        weights = super().weights()
        return {name: weights[name].flatten() for name in own if name in weights}

    def tables(self, strategy: Any) -> dict[str, dict[str, Any]]:
        plugin = plugin_of(strategy, self.plugin)
        plugin.create_syn_data(strategy.model, plugin.ewc_data, plugin.syn_data, plugin.excluded_parameters)
        return {"importance": plugin.ewc_data[1], "trajectory": plugin.syn_data["cum_trajectory"]}

    def trained_tables(self, strategy: Any) -> dict[str, Mapping[str, Any]]:
        plugin = plugin_of(strategy, self.plugin)
        return {"importance": plugin.ewc_data[1], "trajectory": plugin.syn_data["cum_trajectory"]}


class Snapshots(Carried):
    """EWC: weights and their importance, of each experience (``separate``), or of the last (``online``)."""

    held: ClassVar[tuple[str, ...]] = ("saved_params", "importances")

    def __init__(self, learner: Host) -> None:
        super().__init__(learner)
        for name in self.held:
            learner.keep(name, {}, kind="statistics")

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

    def side_bytes(self) -> int:
        return sum(tensor_bytes(value) for name in self.held for value in getattr(self.learner, name).values())


# images ---------------------------------------------------------------------------------------------------------------


class Memory(Carried):
    """Exemplars in groups; beside each image its group and the number that ranks it in the group's reservoir."""

    extras: ClassVar[Mapping[str, str]] = {"group": "other", "rank": "other"}

    def __init__(self, learner: Host) -> None:
        super().__init__(learner)
        learner.keep("memory", ExemplarMemory(extras=self.extras, extra_bytes=6), kind="exemplars")

    def arguments(self) -> dict[str, Any]:
        return {"mem_size": self.size}

    @property
    def size(self) -> int:
        """Exemplars that the budget allows; Avalanche asks for a number even where there is no cap."""
        return min(self.learner.budget.exemplar_slots(self.learner), 2**31)

    def policy(self, strategy: Any) -> Any:
        """The storage policy, which holds a reservoir a group."""
        raise NotImplementedError

    def groups(self) -> dict[int, Tensor]:
        """Rows of the exemplars of each group, highest rank first: a reservoir is sorted."""
        held = self.learner.memory.samples()
        if not len(held):
            return {}
        group, rank = held.extras["group"], held.extras["rank"]
        found = {}
        for number in group.unique().tolist():
            rows = (group == number).nonzero().flatten()
            found[int(number)] = rows[rank[rows].argsort(descending=True, stable=True)]
        return found

    def restore(self, strategy: Any, data: Any) -> None:
        policy = self.policy(strategy)
        reservoir = library("training.storage_policy").ReservoirSamplingBuffer
        for number, rows in self.groups().items():
            buffer = reservoir(len(rows))
            buffer.buffer = data.subset(rows.tolist())
            buffer._buffer_weights = self.learner.memory.samples().extras["rank"][rows]
            policy.buffer_groups[number] = buffer

    def save(self, strategy: Any, pool: Samples) -> None:
        buffers = {int(number): one for number, one in self.policy(strategy).buffer_groups.items() if len(one.buffer)}
        rows = [row for one in buffers.values() for row in attribute_of(one.buffer, "rows")]
        self.store(pool, rows, self.side_data(buffers))

    def side_data(self, buffers: Mapping[int, Any]) -> dict[str, Tensor]:
        """What is kept beside each image, in order of the groups."""
        groups = [number for number, one in buffers.items() for _ in range(len(one.buffer))]
        ranks = [one._buffer_weights[: len(one.buffer)] for one in buffers.values()]
        return {"group": torch.tensor(groups, dtype=torch.int16), "rank": torch.cat([torch.empty(0), *ranks])}

    def store(self, pool: Samples, rows: list[int], extras: dict[str, Tensor]) -> None:
        """Hold exactly these images."""
        self.learner.memory.replace([pool[rows].with_extras(extras)] if rows else [])

    def plan(self, slots: int, counts: Mapping[int, int]) -> dict[int, int]:
        """Each experience has its share; of which classes is random, so about alike."""
        arrivals = self.learner.arrivals
        plan: dict[int, int] = {}
        for experience, quota in enumerate(shares(slots, self.learner.experiences + 1)):
            plan |= evenly(quota, {slot: n for slot, n in counts.items() if arrivals.get(slot) == experience})
        return plan


class ExperienceBuffer(Memory):
    """Replay: a reservoir of each experience, all of one size."""

    def policy(self, strategy: Any) -> Any:
        return plugin_of(strategy, "ReplayPlugin").storage_policy

    def restore(self, strategy: Any, data: Any) -> None:
        super().restore(strategy, data)
        self.policy(strategy)._num_exps = self.learner.experiences


class ClassBuffer(Memory):
    """ER-ACE: a reservoir of each class, all of one size; filled before training, so that new images are in it."""

    def policy(self, strategy: Any) -> Any:
        return strategy.storage_policy

    def restore(self, strategy: Any, data: Any) -> None:
        super().restore(strategy, data)
        policy = self.policy(strategy)
        policy.seen_classes.update(policy.buffer_groups)

    def plan(self, slots: int, counts: Mapping[int, int]) -> dict[int, int]:
        quotas = shares(slots, len(counts))
        return {slot: min(quota, counts[slot]) for slot, quota in zip(sorted(counts), quotas, strict=True)}


class RestartedBuffer(ClassBuffer):
    """GDumb: the same reservoirs; the network starts anew, so nothing of it is needed."""

    def policy(self, strategy: Any) -> Any:
        return plugin_of(strategy, "GDumbPlugin").storage_policy

    def restore(self, strategy: Any, data: Any) -> None:
        super().restore(strategy, data)
        plugin_of(strategy, "GDumbPlugin").init_model = strategy.model


class LogitsBuffer(ClassBuffer):
    """DER: the same reservoirs, and the logits of each image when it was stored; 0 for classes that came later."""

    extras: ClassVar[Mapping[str, str]] = {**Memory.extras, "logits": "replay_logits"}

    def grow(self) -> None:
        memory, classes = self.learner.memory, self.learner.num_classes
        memory.extra_bytes = 6 + 4 * classes
        if len(memory):
            held = memory.samples()
            logits = held.extras["logits"]
            memory.replace([held.with_extras({"logits": F.pad(logits, (0, classes - logits.shape[1]))})])

    def restore(self, strategy: Any, data: Any) -> None:
        if len(data):
            data = with_logits(data, self.learner.memory.samples().extras["logits"])
        super().restore(strategy, data)

    def side_data(self, buffers: Mapping[int, Any]) -> dict[str, Tensor]:
        rows = [torch.as_tensor(row) for one in buffers.values() for row in attribute_of(one.buffer, "logits")]
        logits = torch.stack(rows).float() if rows else torch.empty(0, self.learner.num_classes)
        return {**super().side_data(buffers), "logits": logits}


class FirstOfEach(Memory):
    """A-GEM: random images of each experience. All share the budget, so each has fewer once there are more."""

    extras: ClassVar[Mapping[str, str]] = {"group": "other"}

    def __init__(self, learner: Host) -> None:
        super().__init__(learner)
        learner.memory.extra_bytes = 2

    def arguments(self) -> dict[str, Any]:
        if self.size < 1:
            raise ConfigError("strategy.name=AGEM needs room for an exemplar; raise budget.exemplars or budget.limit")
        return {"patterns_per_exp": self.size}

    def groups(self) -> dict[int, Tensor]:
        held = self.learner.memory.samples()
        if not len(held):
            return {}
        return {int(k): (held.extras["group"] == k).nonzero().flatten() for k in held.extras["group"].unique().tolist()}

    def restore(self, strategy: Any, data: Any) -> None:
        plugin = plugin_of(strategy, "AGEMPlugin")
        plugin.buffers = [data.subset(rows.tolist()) for rows in self.groups().values()]
        if plugin.buffers:
            loader = library("benchmarks.utils.data_loader").GroupBalancedInfiniteDataLoader
            size = max(1, plugin.sample_size // len(plugin.buffers))
            plugin.buffer_dataloader = loader(plugin.buffers, batch_size=size, num_workers=0, pin_memory=False)
            plugin.buffer_dliter = iter(plugin.buffer_dataloader)

    def save(self, strategy: Any, pool: Samples) -> None:
        buffers = plugin_of(strategy, "AGEMPlugin").buffers
        held = [
            attribute_of(one, "rows")[:quota]
            for one, quota in zip(buffers, shares(self.size, len(buffers)), strict=True)
        ]
        groups = [number for number, rows in enumerate(held) for _ in rows]
        self.store(pool, [row for rows in held for row in rows], {"group": torch.tensor(groups, dtype=torch.int16)})


class AllData(Memory):
    """Cumulative and joint training: every image seen."""

    extras: ClassVar[Mapping[str, str]] = {}

    def __init__(self, learner: Host) -> None:
        super().__init__(learner)
        learner.memory.extra_bytes = 0

    def arguments(self) -> dict[str, Any]:
        return {}

    def restore(self, strategy: Any, data: Any) -> None:
        if len(data) and hasattr(strategy, "dataset"):
            strategy.dataset = data

    def save(self, strategy: Any, pool: Samples) -> None:
        self.store(pool, list(range(len(pool))), {})

    def plan(self, slots: int, counts: Mapping[int, int]) -> dict[int, int]:
        return dict(counts)


# parts ----------------------------------------------------------------------------------------------------------------


def plugin_of(strategy: Any, kind: str) -> Any:
    """The plugin of a strategy, by the name of its class."""
    return next(plugin for plugin in strategy.plugins if type(plugin).__name__ == kind)


def attribute_of(data: Any, name: str) -> list[Any]:
    """An attribute of each item of a data set of Avalanche."""
    values = getattr(data, name)
    return [values[row] for row in range(len(data))]


def parameter_data(values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tensors by parameter in the form in which plugins hold them."""
    make = library("training.utils").ParamData
    return {
        PREFIX + key: make(PREFIX + key, init_tensor=value.clone(), device=value.device)
        for key, value in values.items()
    }


def with_logits(data: Any, logits: Tensor) -> Any:
    """A data set whose items end with the logits of the image."""
    utils = library("benchmarks.utils")
    attribute = library("benchmarks.utils.data_attribute").TensorDataAttribute
    flat = library("benchmarks.utils.flat_data").FlatData
    rows = flat([list(logits)], discard_elements_not_in_indices=True)
    return utils.make_avalanche_dataset(data, data_attributes=[attribute(rows, name="logits", use_in_getitem=True)])


def shares(total: int, count: int) -> list[int]:
    """``total`` in ``count`` parts that differ by one at most, the larger ones first, as Avalanche divides it."""
    return [total // count + (k < total % count) for k in range(count)] if count else []


def evenly(total: int, available: Mapping[int, int]) -> dict[int, int]:
    """``total`` over slots that have so many each, as alike as that allows."""
    plan: dict[int, int] = {}
    left = total
    for place, slot in enumerate(sorted(available, key=lambda slot: available[slot])):
        plan[slot] = min(available[slot], -(-left // (len(available) - place)))
        left -= plan[slot]
    return plan
