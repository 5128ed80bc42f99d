"""TensorBoard event files, an extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cil.errors import ConfigError
from cil.tracking.loggers import PREFIX, LogKind, LogValues

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

AXIS = {"step": "step", "epoch": "step", "boundary": "experience"}


class TensorBoardLogger:
    """Write ``run_dir/tensorboard``: ``train/*`` and ``epoch/*`` over optimiser steps, ``eval/*`` over experiences.

    Raises:
        ConfigError: if TensorBoard is not installed.
    """

    def __init__(self) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigError("logger=tensorboard needs a package: pip install 'cil[dashboards]', or logger=files")
        self._writer: SummaryWriter | None = None

    def start(self, identity: Mapping[str, Any], run_dir: Path, name: str, group: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(Path(run_dir) / "tensorboard"))

    def log(self, kind: LogKind, values: LogValues, axes: Mapping[str, Any]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(f"{PREFIX[kind]}/{name}", value, int(axes[AXIS[kind]]))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        if self._writer is not None:  # TensorBoard shows text as Markdown
            lines = [columns, ["---"] * len(columns), *rows]
            self._writer.add_text(name, "\n".join("|" + "|".join(str(cell) for cell in line) + "|" for line in lines))

    def finish(self, status: str) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
