"""What the processes that train one run together tell each other.

Each process, a rank, does the whole run with the same draws, but for two things: of each batch it computes the loss of
its own rows, and the gradients are added up; and rank 0 alone evaluates and writes (``Run`` of ``cil.engine.driver``).
What is no step of a phase, such as choosing exemplars, every rank computes from the same numbers; at each boundary they
compare what they carry. A run on one device has one rank, which asks nobody.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from cil.contract import Holder
from cil.data import Batch
from cil.engine.keys import key, seed_all
from cil.engine.launched import Place
from cil.errors import ConfigError, ContractError, RankEnded
from cil.memory import encode_meta
from cil.memory.tensor_bits import digest_of

LEAST = 2  # images of a rank: fewer are not shared out, as batch norm has no statistics of one image
STEP, BOUNDARY = timedelta(minutes=10), timedelta(days=1)  # patience: rank 0 evaluates while the others wait


class Ranks:
    """The ranks of a run on one device: this one. ``Together`` is its counterpart for several.

    Attributes:
        rank, count: The number of this one, and how many there are.
    """

    rank, count = 0, 1

    @property
    def several(self) -> bool:
        """True where there are others."""
        return self.count > 1

    # a step ---------------------------------------------------------------------------------------------------------

    def part(self, batch: Batch) -> tuple[Batch, float]:
        """The rows of this rank, and their share of the batch."""
        return batch, 1.0

    def drawing(self, learner: Holder) -> AbstractContextManager[None]:
        """Around the loss of these rows: what it draws is of this rank; what is drawn afterwards, of all.

        Generators by purpose are the same on all ranks for a strategy of ``same_draws``.
        """
        return nullcontext()

    def add(self, losses: dict[str, Tensor], share: float, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """Gradients become their sums over ranks, and ``loss``, times ``share``, does; the losses.

        Other terms of the loss stay those of the rank's rows: which there are may depend on the rows.
        """
        return losses

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag is true if it is on some rank."""
        return flags

    def total(self, number: int) -> int:
        """The sum over ranks."""
        return number

    def sync_buffers(self, modules: Iterable[nn.Module]) -> None:
        """Buffers become those of rank 0: running statistics of batch norm are of the rows of one rank."""

    # between steps --------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Until all ranks are here, for as long as rank 0 evaluates."""

    def broadcast(self, content: Any, by: int = 0) -> Any:
        """What rank ``by`` says: plain data."""
        return content

    def gathered(self, content: Any) -> list[Any]:
        return [self.broadcast(content, rank) for rank in range(self.count)]

    def check_same(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], when: str) -> None:
        """Compare what a learner holds with that of rank 0, bit by bit.

        Raises:
            ContractError: naming tensors that differ.
        """


class Together(Ranks):
    """This rank among others.

    Args:
        place: Its place. The ranks meet here.
        cuda: Whether each has a GPU.

    Raises:
        RankEnded: by any method, where another rank does not answer.
    """

    def __init__(self, place: Place, cuda: bool) -> None:
        self.rank, self.count = place.rank, place.count
        self._device = torch.device("cuda", place.local) if cuda else torch.device("cpu")
        with _answering():
            if not distributed.is_initialized():
                distributed.init_process_group(
                    "gloo", init_method=place.address, rank=place.rank, world_size=place.count, timeout=STEP
                )
            self._boundaries = distributed.new_group(backend="gloo", timeout=BOUNDARY)
            self._steps = distributed.new_group(backend="gloo", timeout=STEP)
            self._gradients = distributed.new_group(backend="nccl", timeout=STEP) if cuda else self._steps

    # a step ---------------------------------------------------------------------------------------------------------

    def part(self, batch: Batch) -> tuple[Batch, float]:
        """See ``Ranks``. A batch with less than two images a rank in one of its streams is computed whole by each."""
        if min(map(len, (batch, *batch.streams.values()))) < LEAST * self.count:
            return batch, 1 / self.count
        own = self._rows(batch)
        return own, len(own) / len(batch)

    def _rows(self, batch: Batch) -> Batch:
        chosen = slice(len(batch) * self.rank // self.count, len(batch) * (self.rank + 1) // self.count)
        return replace(
            batch,
            images=batch.images[chosen],
            slots=batch.slots[chosen],
            targets=None if batch.targets is None else batch.targets[chosen],
            fetch=None if batch.fetch is None else lambda: batch.pixels[chosen],
            rows=None if batch.rows is None else batch.rows[chosen],
            extras={name: values[chosen] for name, values in batch.extras.items()},
            streams={name: self._rows(part) for name, part in batch.streams.items()},
        )

    @contextmanager
    def drawing(self, learner: Holder) -> Iterator[None]:
        context = learner.context
        seed, generator = torch.initial_seed(), context.generator
        seed_all(key(seed, "rank", self.rank))
        if not getattr(learner, "same_draws", False):
            context.generator = lambda purpose: generator(f"{purpose}:rank {self.rank}")
        yield
        context.generator = generator
        seed_all(seed)  # as if the loss had drawn nothing

    def add(self, losses: dict[str, Tensor], share: float, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        loss = losses["loss"] * share
        self._sum(loss, self._gradients)
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for parameter in {id(parameter): parameter for parameter in parameters}.values():
            by_type.setdefault(parameter.dtype, []).append(parameter)
        for same in by_type.values():
            self._add_gradients(same)
        return {**losses, "loss": loss}

    def _add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Gradients of one type in one message, with which of them are there: one that no rank has stays None."""
        there = torch.tensor([p.grad is not None for p in parameters], device=self._device)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        message = torch.cat([*(part.flatten() for part in parts), there.to(parts[0])])
        self._sum(message, self._gradients)
        *sums, found = message.split([*(p.numel() for p in parameters), len(parameters)])
        for parameter, part, total, somewhere in zip(parameters, parts, sums, found.tolist(), strict=True):
            if somewhere:
                parameter.grad = part.copy_(total.view_as(part))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        found = torch.tensor(flags, dtype=torch.int32)
        self._sum(found, self._steps)
        return tuple(bool(one) for one in found)

    def total(self, number: int) -> int:
        found = torch.tensor([number])
        self._sum(found, self._steps)
        return int(found)

    def sync_buffers(self, modules: Iterable[nn.Module]) -> None:
        for buffer in {id(buffer): buffer for module in modules for buffer in module.buffers()}.values():
            self._broadcast_tensor(buffer.data, self._gradients)

    # between steps --------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        self._sum(torch.zeros(1), self._boundaries)

    def broadcast(self, content: Any, by: int = 0) -> Any:
        text = json.dumps(content).encode() if self.rank == by else b""
        length = torch.tensor([len(text)])
        self._broadcast_tensor(length, self._boundaries, by)
        letters = torch.tensor(list(text) or [0] * int(length), dtype=torch.uint8)
        self._broadcast_tensor(letters, self._boundaries, by)
        return json.loads(bytes(letters.tolist()))

    def check_same(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], when: str) -> None:
        own = digests(tensors, meta)
        theirs = self.broadcast(own)
        differ = [name for name in sorted(own.keys() | theirs.keys()) if own.get(name) != theirs.get(name)]
        whose = torch.zeros(self.count, dtype=torch.int64)
        whose[self.rank] = len(differ)
        self._sum(whose, self._boundaries)
        if not whose.any():
            return
        named = f", there in {', '.join(differ[:3])}" if differ else ""
        raise ContractError(
            f"what is kept {when} is not the same on rank {int(whose.nonzero()[0])} as on rank 0{named}; it must not "
            f"depend on the rows that loss was given: use after_step, which gets the whole batch, or set "
            f"trainer.devices=1"
        )

    def leave(self) -> None:
        """Wait for the others and part; another run of this process meets them again."""
        self.wait()
        for group in {self._boundaries, self._steps, self._gradients}:
            distributed.destroy_process_group(group)

    def _sum(self, tensor: Tensor, group: Any) -> None:
        with _answering():
            distributed.all_reduce(tensor, group=group)

    def _broadcast_tensor(self, tensor: Tensor, group: Any, by: int = 0) -> None:
        whole = tensor.contiguous()
        with _answering():
            distributed.broadcast(whole, by, group=group)
        if whole is not tensor:
            tensor.copy_(whole)


@contextmanager
def process_group(place: Place, cuda: bool) -> Iterator[Ranks]:
    """Around the work of a run: the ranks that do it. An error here ends it on the others.

    Raises:
        RankEnded: where another rank ended it.
    """
    ranks = Together(place, cuda)
    try:
        yield ranks
    except BaseException:
        distributed.destroy_process_group()  # who waits for this one is told
        raise
    ranks.leave()


@contextmanager
def _answering() -> Iterator[None]:
    """Around a question to the others."""
    try:
        yield
    except RuntimeError as error:
        raise RankEnded(
            f"another rank ended or does not answer ({str(error).splitlines()[0][:120]}); the same command goes on "
            f"from the last boundary or snapshot"
        ) from error


def digests(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of each tensor, and of the metadata."""
    found = {name: digest_of({f"{tensor.dtype} {tuple(tensor.shape)}": tensor}) for name, tensor in tensors.items()}
    return found | {"metadata": hashlib.sha256(encode_meta(meta)).hexdigest()}


def check_shared(work: Any, options: Any, count: int) -> None:
    """Refuse what several devices cannot do together.

    Raises:
        ConfigError: naming the key to change.
    """
    asked = f"trainer.devices x trainer.nodes is {count}, and"
    if reason := getattr(work, "whole_batches", "this kind of run shares no batches"):
        raise ConfigError(f"{asked} {work.name} runs on one device ({reason}); set both to 1")
    if options.boundary == "process":
        raise ConfigError(f"{asked} boundary=process forks; set boundary=inline")
    if options.features is not None:
        raise ConfigError(f"{asked} known features are those of one process; set trainer.features=null")
    size = min(work.recipe.batch_size, work.recipe.first.get("batch_size") or work.recipe.batch_size)
    if size < LEAST * count:
        raise ConfigError(f"{asked} trainer.batch_size is {size}; give each device {LEAST} images at least")
