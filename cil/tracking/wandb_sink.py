"""Weights & Biases, offline unless asked for. The only file that touches ``wandb``."""

from __future__ import annotations

import netrc
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlsplit

from cil.errors import ConfigError, nearest
from cil.tracking.loggers import PREFIX, LogKind, LogValues
from cil.tracking.storage import plain, without_secrets

if TYPE_CHECKING:
    import wandb

Mode = Literal["offline", "online", "disabled"]
MODES = get_args(Mode)
AXIS = {"step": "opt_step", "epoch": "opt_step", "boundary": "experience"}
_INIT_SECONDS = 30  # limit of an online start; the default of 90 looks like a hang


class WandbLogger:
    """Send a run to wandb.

    Values are named ``train/*``, ``epoch/*`` (over ``opt_step``) and ``eval/*`` (over ``experience``). The axis is
    logged as a value and never as wandb's own step, so lines that come twice or out of order after a resume do no harm.

    Args:
        mode: ``offline`` writes to ``run_dir/wandb`` (send it later with ``wandb sync``), ``online``, ``disabled``.
        project, entity: Place on the server.
        group: Runs shown together; by default the group the run is started with.
        tags: Free words.
        id: Identifier of the run at wandb. By default one is drawn and kept in ``run_dir/wandb_id``, so that the parts
            of a resumed run are one run.

    Raises:
        ConfigError: for an unknown mode; at the start for ``online`` without an API key or a reachable server.
    """

    def __init__(
        self,
        mode: Mode = "offline",
        project: str = "cil",
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        id: str | None = None,
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"logger.mode={mode} is unknown; {nearest(mode, MODES)}")
        self.mode, self.project, self.entity, self.group = mode, project, entity, group
        self.tags, self.id = list(tags), id
        self._run: wandb.Run | None = None

    def start(self, identity: Mapping[str, Any], run_dir: Path, name: str, group: str | None) -> None:
        if self.mode == "disabled":
            return
        if self.mode == "online" and not _has_key():
            raise ConfigError(
                "logger.mode=online needs an API key: run 'wandb login', set WANDB_API_KEY, or use logger.mode=offline"
            )
        import wandb

        self.id = self.id or _kept_id(run_dir)
        settings = wandb.Settings(
            console="off",
            disable_git=True,
            x_disable_stats=True,
            init_timeout=_INIT_SECONDS,
            silent=self.mode == "offline",
        )
        try:
            self._run = wandb.init(
                project=self.project,
                entity=self.entity,
                group=self.group or group,
                name=name,
                tags=self.tags,
                id=self.id,
                resume="allow",
                config=plain(without_secrets(identity)),
                dir=str(run_dir),
                mode=self.mode,
                reinit="create_new",
                settings=settings,
            )
        except Exception as error:  # wandb has its own tree of errors, none of which training should know
            raise ConfigError(f"logger: wandb cannot start ({error}); use logger.mode=offline") from error
        for kind, prefix in PREFIX.items():
            self._run.define_metric(AXIS[kind])
            self._run.define_metric(f"{prefix}/*", step_metric=AXIS[kind])

    def log(self, kind: LogKind, values: LogValues, axes: Mapping[str, Any]) -> None:
        if self._run is not None:
            named = {f"{PREFIX[kind]}/{name}": value for name, value in values.items() if value is not None}
            where = {"experience": axes.get("experience"), "opt_step": axes.get("step"), "epoch": axes.get("epoch")}
            self._run.log(named | {axis: value for axis, value in where.items() if value is not None})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        if self._run is not None:
            import wandb

            self._run.log({name: wandb.Table(columns=list(columns), data=plain([list(row) for row in rows]))})

    def finish(self, status: str) -> None:
        if self._run is not None:
            self._run.summary["status"] = status
            self._run.finish(exit_code=0 if status == "finished" else 1)
            self._run = None


def _kept_id(run_dir: Path) -> str:
    path = Path(run_dir) / "wandb_id"
    if not path.exists():
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()


def _has_key() -> bool:
    """True if wandb would find a key without asking for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    named = os.environ.get("NETRC")
    for path in [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if netrc.netrc(str(path)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
