"""What a start of wandb does for uses that no run here has: left out, it takes half the time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quick_start(offline: bool) -> Iterator[None]:
    """Start wandb inside of this. Left out, each where this version of wandb has it:

    * inputs of its job launcher, whose package is imported for every run. A process that uses the launcher has imported
      it already, and keeps it;
    * pandas, imported to ask whether a table is a data frame; wandb then goes by the name of the type;
    * offline: reports of its own use and errors, for which a thread asks the server.
    """
    import wandb

    if hasattr(wandb.util, "pd_available") and "pandas" not in sys.modules:
        wandb.util.pd_available = False
    if offline:
        _call("wandb.analytics.opentelemetry.opentelemetry_proxy", "disable")
    inputs = "_detect_and_apply_job_inputs"
    original = getattr(wandb.Run, inputs, None)
    if "wandb.sdk.launch" in sys.modules or original is None:
        yield
        return
    setattr(wandb.Run, inputs, _nothing)
    try:
        yield
    finally:
        setattr(wandb.Run, inputs, original)


def _nothing(run: Any) -> None:
    """In place of a method of ``wandb.Run``."""


def _call(module: str, name: str) -> None:
    function = getattr(sys.modules.get(module), name, None)
    if function is not None:
        function()
