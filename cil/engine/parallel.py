"""Data-parallel runs: several processes, each with a device of its own, train one run together.

Every rank does the whole run, with the same draws, but for two things: of each batch it computes the loss of its own
rows, and the gradients are added up over the ranks; and rank 0 alone evaluates and writes. What is no step of a phase
(exemplars, statistics, alignment) is computed by every rank from the same numbers, and compared at each boundary.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn

from cil.data import Batch
from cil.engine.process import raise_named, stop_signals
from cil.errors import ConfigError, ContractError, TrainingError, in_words
from cil.memory import State, encode_meta

if TYPE_CHECKING:
    from cil.engine.driver import Run

PATIENCE = timedelta(days=1)  # rank 0 evaluates for as long as it takes; a rank that ends is noticed at once
GRACE = 20.0  # seconds in which the other ranks may end by themselves when one has ended
LEAST = 2  # images a rank: fewer are not shared out, as batch norm has no statistics of one image


class Lost(TrainingError):
    """Another rank ended."""


@dataclass
class Ranks:
    """The processes that train a run together. By default there is one, and nobody is asked anything.

    Attributes:
        rank, count: The place of this process among them. Rank 0 evaluates and writes.
        local: Its place on its machine: the number of its GPU.
        address: Where they meet, as ``torch.distributed`` takes it.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    address: str = ""

    @property
    def many(self) -> bool:
        """True where there are others."""
        return self.count > 1

    @property
    def key(self) -> tuple[int | str, ...]:
        """Part of the keys of what is drawn for the rows of this rank."""
        return ("rank", self.rank) if self.rank else ()

    def join(self, device: str) -> None:
        """Meet the others."""
        cuda = device == "cuda"
        if cuda:
            torch.cuda.set_device(self.local)
        with _noticed():
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                init_method=self.address,
                rank=self.rank,
                world_size=self.count,
                timeout=PATIENCE,
            )

    def leave(self) -> None:
        """Part when the work is done. Whatever still holds the group goes first, as the end of a process may crash."""
        if self.many:
            gc.collect()
            self.wait()
            distributed.destroy_process_group()

    # what they tell each other --------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Until all are here."""
        self.any(False)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag is true if it is on some rank."""
        if not self.many:
            return flags
        found = torch.tensor(flags, dtype=torch.int32)
        self._sum(found)
        return tuple(bool(one) for one in found)

    def total(self, number: int) -> int:
        """Sum over all ranks."""
        if not self.many:
            return number
        found = torch.tensor([number], dtype=torch.int64)
        self._sum(found)
        return int(found)

    def told(self, content: Any = None) -> Any:
        """What rank 0 says: plain data."""
        if not self.many:
            return content
        data = json.dumps(content).encode()
        length = self.total(len(data) if self.rank == 0 else 0)
        given = torch.zeros(length, dtype=torch.uint8)
        if self.rank == 0:
            given = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self._broadcast(given)
        return json.loads(given.numpy().tobytes())

    def check_same(self, state: State, where: str) -> None:
        """Compare what is carried with that of rank 0, bit by bit.

        Raises:
            ContractError: naming tensors that differ.
        """
        if not self.many:
            return
        own = digests(state)
        mine = torch.tensor(list(hashlib.sha256(json.dumps(own).encode()).digest()), dtype=torch.uint8)
        first = mine.clone()
        self._broadcast(first)
        if not any(self.any(not torch.equal(first, mine))):
            return
        theirs = self.told(own)
        differ = [name for name in own if theirs.get(name) != own[name]]
        named = f"rank {self.rank} differs from rank 0 in {', '.join(differ[:3])}" if differ else "another rank differs"
        raise ContractError(
            f"the ranks do not carry the same {where}: {named}; what a method keeps must not be computed from the rows "
            f"of one rank (in loss): use after_step, which gets the whole batch, or set trainer.devices=1"
        )

    # training -------------------------------------------------------------------------------------------------------

    def part(self, batch: Batch) -> tuple[Batch, float]:
        """The rows of this rank, and their share of the batch: losses times shares add up to the mean over all rows.

        A batch with less than two images a rank, in one of its streams, is computed whole by every rank.
        """
        if not self.many:
            return batch, 1.0
        if min(map(len, (batch, *batch.streams.values()))) < LEAST * self.count:
            return batch, 1 / self.count
        mine = self._rows(batch)
        return mine, len(mine) / len(batch)

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

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their sums over ranks; one that no rank has stays None."""
        groups: dict[torch.dtype, list[Tensor]] = {}
        for parameter in {id(parameter): parameter for parameter in parameters}.values():
            groups.setdefault(parameter.dtype, []).append(parameter)
        for group in groups.values():
            there = torch.tensor([p.grad is not None for p in group]).to(group[0])
            flat = torch.cat([*((p if p.grad is None else p.grad).flatten() for p in group), there]).detach()
            start = 0
            for parameter in group:
                if parameter.grad is None:
                    flat[start : start + parameter.numel()] = 0
                start += parameter.numel()
            self._sum(flat)
            *sums, there = flat.split([*(p.numel() for p in group), len(group)])
            for parameter, given, total in zip(group, there.tolist(), sums, strict=True):
                if given:
                    parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    parameter.grad.copy_(total.view_as(parameter))

    def add_loss(self, terms: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """Terms of the loss with ``loss`` itself summed over ranks; the other terms stay those of this rank's rows."""
        whole = terms["loss"] * share
        self._sum(whole)
        return {**terms, "loss": whole}

    def sync_buffers(self, modules: Iterable[nn.Module]) -> None:
        """Buffers as rank 0 has them: running statistics of batch norm are of the rows of one rank."""
        if self.many:
            for buffer in {id(buffer): buffer for module in modules for buffer in module.buffers()}.values():
                self._broadcast(buffer.data)

    def _sum(self, tensor: Tensor) -> None:
        with _noticed():
            distributed.all_reduce(tensor)

    def _broadcast(self, tensor: Tensor) -> None:
        whole = tensor.contiguous()
        with _noticed():
            distributed.broadcast(whole, 0)
        if whole is not tensor:
            tensor.copy_(whole)


@contextmanager
def _noticed() -> Iterator[None]:
    """Around talk with the others: one that has ended is told of in one line."""
    try:
        yield
    except RuntimeError as error:
        raise Lost(
            f"another rank ended, or cannot be reached ({str(error).splitlines()[0][:120]}); its own error says why, "
            f"and the same command goes on from the last boundary or snapshot"
        ) from error


def digests(state: State) -> dict[str, str]:
    """SHA-256 of each tensor that is carried, and of the metadata."""
    found = {"metadata": hashlib.sha256(encode_meta(state.meta)).hexdigest()}
    for name, tensor in sorted(state.tensors.items()):
        whole = tensor.detach().cpu().contiguous()
        data = whole.flatten().view(torch.uint8).numpy().data if whole.numel() else b""
        found[name] = hashlib.sha256(f"{whole.dtype} {tuple(whole.shape)}".encode() + bytes(data)).hexdigest()
    return found


# who starts them ----------------------------------------------------------------------------------------------------


def place(devices: int, nodes: int) -> Ranks:
    """The place of this process, where torchrun or SLURM started it; else rank 0 of one, which starts the others.

    Raises:
        ConfigError: where another number of processes was started, or machines are asked for that nobody started.
    """
    count = devices * nodes
    if count == 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes; set trainer.devices and trainer.nodes"
        )
    if count == 1:
        return Ranks()
    from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        found: Any = TorchElasticEnvironment()
    elif "SLURM_NTASKS" in os.environ and SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1:
        found = SLURMEnvironment(auto_requeue=False)
    elif nodes > 1:
        raise ConfigError(f"trainer.nodes is {nodes}, but one process was started; start it by torchrun or srun")
    else:
        return Ranks()
    if found.world_size() != count:
        raise ConfigError(
            f"{found.world_size()} processes were started, but trainer.devices x trainer.nodes is {devices} x {nodes}"
        )
    # torchrun has a store of its own, which env:// finds
    elastic = isinstance(found, TorchElasticEnvironment)
    address = "env://" if elastic else f"tcp://{found.main_address}:{found.main_port}"
    return Ranks(found.global_rank(), count, found.local_rank(), address)


def run_together(run: Run) -> None:
    """Start a process for each device of this machine, and wait for them. One that ends takes the others with it.

    Raises:
        KeyboardInterrupt: after a Ctrl-C; CilError: as rank 0 raised it, else as another rank did.
    """
    if multiprocessing.current_process().daemon:
        raise ConfigError("trainer.devices is above 1, and runs side by side have one device each; set it to 1")
    context = torch.multiprocessing.get_context("spawn")
    count, children = run.runtime.together, []
    with tempfile.TemporaryDirectory() as folder, _interrupts() as interrupts:
        for rank in range(count):
            run.runtime.ranks = Ranks(rank, count, rank, f"file://{folder}/meeting")
            reader, writer = context.Pipe(duplex=False)
            child = context.Process(target=_execute, args=(run, writer), name=f"rank {rank}")
            try:
                child.start()
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                for other, _ in children:
                    other.kill()
                raise ConfigError(
                    f"trainer.devices={count} starts processes, and the run cannot be handed to them ({error}); give "
                    f"strategy, model and data by classes and functions of a module, or start it by torchrun"
                ) from error
            finally:
                run.runtime.ranks = Ranks()
            writer.close()
            children.append((child, reader))
        _attend([child for child, _ in children], interrupts)
        ends = [_end(child, reader) for child, reader in children]
    errors = [(rank, *end) for rank, end in enumerate(ends) if end[0] != "finished"]
    if not errors:
        return
    if interrupts or any(name == "KeyboardInterrupt" for _, name, _ in errors):
        raise KeyboardInterrupt
    rank, name, words = min(errors, key=lambda end: (end[1] == "Lost", end[0]))
    if name == "killed":
        raise TrainingError(
            f"rank {rank} of {count} was ended by {words}, and the others with it; the same command goes on from the "
            f"last boundary or snapshot"
        )
    raise_named(name, words)


def _attend(children: Sequence[Any], interrupts: list[int]) -> None:
    """Wait for all; pass signals on, and end what is left a while after one has failed."""
    passed, deadline = 0, float("inf")
    while alive := [child for child in children if child.is_alive()]:
        wait([child.sentinel for child in alive], timeout=0.5)
        new, passed = len(interrupts) - passed, len(interrupts)
        for child in alive * new:
            with suppress(OSError):
                os.kill(child.pid, signal.SIGINT)
        if any(child.exitcode for child in children):
            deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            for child in alive:
                child.kill()
    for child in children:
        child.join()


def _end(child: Any, pipe: Connection) -> tuple[str, str]:
    """How a process ended: ``finished``, ``killed`` or the name of its error, and words."""
    with suppress(EOFError, OSError):
        if pipe.poll():
            name, words = json.loads(pipe.recv_bytes())
            return name, words
    code = child.exitcode
    return "killed", f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Signals that ask to stop, noted in place of an exception in the middle of anything."""
    found: list[int] = []
    try:
        old = {number: signal.signal(number, lambda number, frame: found.append(number)) for number in stop_signals()}
    except ValueError:  # not the main thread
        old = {}
    try:
        yield found
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _execute(run: Run, pipe: Connection) -> None:
    """Do the part of one rank, and send how it ended."""
    os.setpgid(0, 0)  # a Ctrl-C on the terminal reaches the parent alone, which passes it on once
    for number in stop_signals():
        signal.signal(number, signal.default_int_handler)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: no rank outlives its parent
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    end = ("finished", "")
    try:
        run.execute()
    except KeyboardInterrupt:
        end = ("KeyboardInterrupt", "")
    except BaseException as error:
        end = (type(error).__name__, in_words(error)[:5_000])  # less than a pipe holds
    pipe.send_bytes(json.dumps(end).encode())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(end[0] != "finished"))  # threads of a process group may crash where an interpreter takes itself down


def check_devices(work: Any, options: Any, count: int) -> None:
    """Refuse what several devices cannot do together.

    Raises:
        ConfigError: naming the key to change.
    """
    if count == 1:
        return
    set_to = f"trainer.devices x trainer.nodes is {count}, and"
    if not getattr(work, "shares_batches", False):
        raise ConfigError(f"{set_to} {work.name} needs whole batches: set both to 1")
    if options.boundary == "process":
        raise ConfigError(f"{set_to} boundary=process forks: set boundary=inline")
    if options.features is not None:
        raise ConfigError(f"{set_to} known features are of one process: set trainer.features=null")
    size = min(work.recipe.batch_size, work.recipe.first.get("batch_size") or work.recipe.batch_size)
    if size < LEAST * count:
        raise ConfigError(f"{set_to} trainer.batch_size is {size}: give each device {LEAST} images at least")


def folder_seen(run_dir: Path, done: int, own: int) -> None:
    """Refuse a folder that is not the same for all ranks.

    Raises:
        ConfigError: naming it.
    """
    if done != own:
        raise ConfigError(f"run_dir={run_dir} is not one folder for all ranks; give one that all machines share")
