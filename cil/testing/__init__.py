"""Contract checks for authors of plugins (strategies, adapters, streams), and toy streams to try things on."""

from __future__ import annotations

from cil.testing.carried import check_codec_elsewhere as check_codec
from cil.testing.check import CheckResult, Rule, check_adapter, check_strategy, kind_of, outcomes
from cil.testing.shifts import toy_adaptation, toy_shifts
from cil.testing.streams import check_stream
from cil.testing.toy import toy_run, toy_stream, toy_tasks, uneven_stream

__all__ = [
    "CheckResult", "Rule", "check_adapter", "check_codec", "check_strategy", "check_stream", "kind_of", "outcomes",
    "toy_adaptation", "toy_run", "toy_shifts", "toy_stream", "toy_tasks", "uneven_stream",
]  # fmt: skip
