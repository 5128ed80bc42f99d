"""TensorBoard event files, an extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cil.errors import ConfigError
from cil.tracking.labels import labels
from cil.tracking.loggers import PREFIX, LogKind, LogValues
from cil.tracking.panels import Panel, Table, new_points

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_ROWS = 200  # most rows of a table that is shown as text
AXIS = {"step": "step", "epoch": "step", "boundary": "experience"}


class TensorBoardLogger:
    """Write ``run_dir/tensorboard``: ``train/*`` and ``epoch/*`` over optimiser steps, ``eval/*`` over experiences.

    Curves and pictures of ``cil.tracking.panels`` are scalars and images over experiences, its tables text.

    Raises:
        ConfigError: if TensorBoard is not installed.
    """

    def __init__(self) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigError("logger=tensorboard needs a package: pip install 'cil[dashboards]', or logger=files")
        self._writer: SummaryWriter | None = None
        self._sent: set[tuple[str, int]] = set()  # curve or picture, and experience

    def start(self, identity: Mapping[str, Any], run_dir: Path, name: str, group: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer, self._sent = SummaryWriter(str(Path(run_dir) / "tensorboard")), set()
        self.table("run", ["setting", "value"], [*labels(identity, name).items(), ("sweep", group)])

    def log(self, kind: LogKind, values: LogValues, axes: Mapping[str, Any]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(f"{PREFIX[kind]}/{name}", value, int(axes[AXIS[kind]]))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        if self._writer is not None:  # TensorBoard shows text as Markdown
            lines = [columns, ["---"] * len(columns), *rows]
            self._writer.add_text(name, "\n".join("|" + "|".join(str(cell) for cell in line) + "|" for line in lines))

    def show(self, panels: Sequence[Panel], final: bool) -> None:
        if self._writer is None:
            return
        for experience, values in new_points(panels, self._sent).items():
            for name, value in values.items():
                if np.ndim(value):
                    self._writer.add_image(name, value, experience, dataformats="HW")
                else:
                    self._writer.add_scalar(name, value, experience)
        for panel in panels if final else ():
            if isinstance(panel, Table):
                self.table(f"tables/{panel.name}", panel.columns, panel.rows[:_ROWS])

    def finish(self, status: str) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
