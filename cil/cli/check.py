"""``cil check``: the contract checks on a strategy."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cil.cli import environment
from cil.cli.names import METHODS
from cil.cli.refusals import parse_overrides
from cil.errors import ConfigError
from cil.targets import check_arguments, resolve

HELP = """
usage: cil check NAME... [strategy.KEY=VALUE ...] [adapter.KEY=VALUE ...]

Demands of a strategy what the framework relies on: what it does not keep cannot help, same seed same bits, a resumed
run equals the straight one, predict has no side effects... A quarter of a minute on one core. Of an adapter: the like,
and that it answers without labels. NAME is module:Class, or a name of cil list strategies or adapters; keys that are
not given have their defaults, made small where a strategy says so.

  cil check my_idea:MyStrategy
  cil check icarl
  cil check tent adapter.lr=0.01
  cil check ranpac strategy.size=64 strategy.gram=packed
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command: 0 where all rules hold, 1 where one is broken."""
    names = [item for item in arguments if "=" not in item]
    if not names:
        raise ConfigError("cil check needs a strategy or an adapter: module:Class, or a name of cil list")
    given = _hyperparameters([item for item in arguments if "=" in item])
    environment.prepare()
    sys.path.insert(0, str(Path.cwd()))  # an own idea in the folder one stands in
    broken = 0
    for name in names:
        broken += _checked(name, given)
    return 1 if broken else 0


def _hyperparameters(overrides: Sequence[str]) -> dict[str, Any]:
    """Values of ``strategy.KEY=VALUE`` or ``adapter.KEY=VALUE``, in the grammar of ``cil run``."""
    given = {}
    for item in parse_overrides(overrides):
        section, _, key = item.key_or_group.partition(".")
        if section not in METHODS or not key:
            raise ConfigError(
                f"cil check takes names and keys of theirs, as in strategy.KEY=VALUE, not '{item.input_line}'"
            )
        given[key] = item.value()
    return given


def _checked(name: str, given: Mapping[str, Any]) -> int:
    """Print each rule and if it holds; the number of those that do not."""
    from cil import adapt, strategies
    from cil.testing import kind_of, outcomes

    known = adapt if name in adapt.names() and name not in strategies.names() else strategies
    learner = resolve(name, "NAME") if ":" in name else known.find(name)
    if not (isinstance(learner, type) and issubclass(learner, strategies.Strategy | adapt.Adapter)):
        raise ConfigError(f"{name} is not a subclass of cil.Strategy or cil.Adapter")
    kind = kind_of(learner)
    check_arguments(learner, given, kind.learner)
    broken, printed = 0, set[str]()
    for outcome in outcomes(kind.subject(learner, given)):
        broken += outcome.error is not None
        error = "the same" if outcome.error in printed else outcome.error
        printed |= {outcome.error} if outcome.error else set()
        print(
            f"{'ok    ' if error is None else 'BROKEN'} {outcome.name}: {error or outcome.rule}",
            flush=True,
        )
    print(f"{name}: {f'{broken} rule(s) broken' if broken else 'keeps the contract'}")
    return broken
