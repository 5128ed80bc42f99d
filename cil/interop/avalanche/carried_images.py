"""What strategies of Avalanche carry of images: their buffers, as exemplars with group and rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data import Samples
from cil.errors import ConfigError
from cil.interop.avalanche.carried import Carried, Host, plugin_of
from cil.interop.avalanche.library import library
from cil.memory import ExemplarMemory


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
        """Rows of the exemplars of each group, highest rank first, as a reservoir is sorted; else as they are held."""
        held = self.learner.memory.samples()
        if not len(held):
            return {}
        group, rank = held.extras["group"], held.extras.get("rank", torch.zeros(len(held)))
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
            utils, flat = library("benchmarks.utils"), library("benchmarks.utils.flat_data").FlatData
            attribute = library("benchmarks.utils.data_attribute").TensorDataAttribute
            logits = list(self.learner.memory.samples().extras["logits"])
            rows = attribute(flat([logits], discard_elements_not_in_indices=True), name="logits", use_in_getitem=True)
            data = utils.make_avalanche_dataset(data, data_attributes=[rows])  # items end with the logits of the image
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


def attribute_of(data: Any, name: str) -> list[Any]:
    """An attribute of each item of a data set of Avalanche."""
    values = getattr(data, name)
    return [values[row] for row in range(len(data))]


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
