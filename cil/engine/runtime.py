"""Device and precision of a run."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cil.engine.launched import Place, started_place
from cil.engine.ranks import Ranks, process_group
from cil.errors import ConfigError, nearest
from cil.values import check_value

LARGE = 1 << 30  # bytes; a block below it is kept for the next step instead of going back to the system
LEAST_MOST_THREADS = 64  # a run of a larger machine can be repeated here, slowly
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", *AUTOCAST, "auto")


@dataclass
class Runtime:
    """Where and how precisely a run computes.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, ``mps``.
        precision: ``fp32``, ``bf16`` or ``fp16`` (autocast), or ``auto``: bf16 on a GPU that has it, else fp32.
        threads: CPU threads of torch; None leaves them as they are.
        devices, nodes: Devices on each machine, and machines, that share each batch.

    Attributes:
        ranks: The processes that do so, while the run is executed; until then this one.

    Raises:
        ConfigError: for an unknown name, or a device that is not there.
    """

    device: str = "auto"
    precision: str = "fp32"
    threads: int | None = None
    devices: int = 1
    nodes: int = 1
    ranks: Ranks = field(default_factory=Ranks, repr=False)
    known: Any = field(default=None, repr=False)  # ``KnownFeatures``, where frozen backbones are asked once an image
    scaler: Any = field(default=None, repr=False)  # torch's ``GradScaler``, in a phase of fp16

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"trainer.precision is '{self.precision}'; {nearest(self.precision, PRECISIONS)}")
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        kind, _, index = self.device.partition(":")
        if kind not in ("cpu", "cuda", "mps") or (index and not (index.isdigit() and kind == "cuda")):
            raise ConfigError(f"device is '{self.device}'; {nearest(kind, ('auto', 'cpu', 'cuda', 'cuda:0', 'mps'))}")
        if kind == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"device is '{self.device}' but torch sees no GPU here; set device=cpu")
        if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"device is '{self.device}' but there are {torch.cuda.device_count()} GPUs")
        if kind == "mps" and not torch.backends.mps.is_available():
            raise ConfigError("device is 'mps' but torch has no Metal device here; set device=cpu")
        if self.precision == "fp16" and kind == "cpu":
            raise ConfigError("trainer.precision is 'fp16', which needs a GPU; on device=cpu set bf16 or fp32")
        if self.precision == "auto":
            self.precision = "bf16" if kind == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
        check_value("trainer.threads", self.threads)
        most = max(LEAST_MOST_THREADS, 4 * (os.cpu_count() or 1))
        if (self.threads or 1) > most:
            raise ConfigError(
                f"trainer.threads is {self.threads}; this machine has {os.cpu_count()} cores, and more than {most} "
                f"threads would stand in each other's way"
            )
        self._check_devices(kind, index)
        keep_freed_blocks()
        if kind == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.benchmark = False

    def _check_devices(self, kind: str, index: str) -> None:
        check_value("trainer.devices", self.devices)
        check_value("trainer.nodes", self.nodes)
        if self.all_devices > 1 and (index or kind == "mps"):
            raise ConfigError(
                f"device is '{self.device}' and trainer.devices is {self.devices}; set device=cpu or cuda"
            )
        if kind == "cuda" and self.devices > torch.cuda.device_count():
            raise ConfigError(f"trainer.devices is {self.devices} but there are {torch.cuda.device_count()} GPUs here")

    def warnings(self) -> list[str]:
        """Sentences that a person should hear before the run."""
        if self.device != "cpu" or self.precision != "bf16" or has_fast_bf16():
            return []
        return ["trainer.precision is bf16, for which this processor has no units: fp32 is several times as fast"]

    @property
    def all_devices(self) -> int:
        """Devices that share each batch, on all machines."""
        return self.devices * self.nodes

    @property
    def place(self) -> Place:
        """The place of this process among those that share the work.

        Raises:
            ConfigError: where another number of processes was started.
        """
        return Place() if self.all_devices == 1 else started_place(self.devices, self.nodes)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around the work of a run: the ranks that do it have met.

        Raises:
            ConfigError: where another number of processes was started; RankEnded: where another one ends.
        """
        if self.all_devices == 1:
            yield
            return
        place, cuda = self.place, self.device == "cuda"
        if cuda:
            torch.cuda.set_device(place.local)
        try:
            with process_group(place, cuda) as self.ranks:
                yield
        finally:
            self.ranks = Ranks()

    def begin(self) -> None:
        """Take the threads. Not before a run begins: a process that plans runs and then forks may have started none."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def processor(self) -> str:
        """Name of what computes: kernels, and so the last bits, differ from one to the other."""
        if self.device.startswith("cuda"):
            return str(torch.cuda.get_device_name(self.torch_device))
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
        except OSError:  # not Linux
            lines = []
        named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(named, platform.processor() or platform.machine())

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which losses, features and predictions are computed."""
        return autocast_on(self.torch_device.type, self.precision)

    def frozen_features(self) -> AbstractContextManager[Any]:
        """Around what is no step of training: features of frozen backbones may be known."""
        return nullcontext() if self.known is None else self.known.lent()

    def save_features(self) -> None:
        """Keep what is known of frozen backbones now."""
        if self.known is not None:
            self.known.save()

    def fresh_features(self) -> AbstractContextManager[Any]:
        """Around answers that are to be computed, whatever is known."""
        return nullcontext() if self.known is None else self.known.fresh()

    def scale_losses(self, state: Mapping[str, Any]) -> None:
        """For a phase of training: where the precision has a loss scale, it starts anew, or from ``state``."""
        if self.precision == "fp16":
            self.scaler = torch.amp.GradScaler(self.torch_device.type)
            self.scaler.load_state_dict(dict(state) or self.scaler.state_dict())

    def loss_scale(self) -> dict[str, Any]:
        """The loss scale, for ``scale_losses`` to go on from; empty where there is none."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def backward(self, loss: Tensor) -> None:
        """Backward, scaled where the precision needs it."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    @property
    def lent_backward(self) -> Callable[[Tensor], None]:
        """``backward`` for a learner: where losses are not scaled a plain function, from which nothing leads here."""
        return self.backward if self.precision == "fp16" else plain_backward

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Undo the loss scale in the gradients, before anyone looks at them."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One step; none where a scaled gradient is not finite, and the scale is lowered."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()

    def close(self) -> None:
        """Release what the run holds on the device."""
        self.scaler = self.known = None
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


def plain_backward(loss: Tensor) -> None:
    """Backward of a loss that is not scaled."""
    loss.backward()


def autocast_on(device: str, precision: str) -> AbstractContextManager[Any]:
    """Types as ``trainer.precision`` chooses them on a kind of device."""
    return torch.autocast(device, dtype=AUTOCAST[precision]) if precision in AUTOCAST else nullcontext()


def has_fast_bf16() -> bool:
    """True where convolutions on the CPU take bf16 as it is."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def keep_freed_blocks() -> None:
    """Let this process keep memory that is freed, unless its environment has settings of its own (``MALLOC_...``).

    Blocks that go back to the system at each step and are asked for again cost up to a tenth of the time on the CPU.
    """
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # the C library has read its environment already
        if mallopt is not None:
            mallopt(-3, LARGE)  # M_MMAP_THRESHOLD
            mallopt(-1, LARGE)  # M_TRIM_THRESHOLD
