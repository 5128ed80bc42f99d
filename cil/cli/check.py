"""``cil check``: the contract checks on a strategy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cil.cli import environment
from cil.errors import ConfigError
from cil.targets import resolve

HELP = """
usage: cil check STRATEGY...

Demands of a strategy what the framework relies on: what it does not keep cannot help, same seed same bits, a resumed
run equals the straight one, predict has no side effects... A minute on one core. STRATEGY is module:Class, or a name.

  cil check my_idea:MyStrategy
  cil check icarl
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command: 0 where all rules hold, 1 where one is broken."""
    if not arguments:
        raise ConfigError("cil check needs a strategy: module:Class, or a name of cil list strategies")
    environment.prepare()
    sys.path.insert(0, str(Path.cwd()))  # an own idea in the folder one stands in
    broken = 0
    for name in arguments:
        broken += _checked(name)
    return 1 if broken else 0


def _checked(name: str) -> int:
    """Tell each rule and whether it holds; how many do not."""
    from cil.strategies import Strategy, find
    from cil.testing import Subject, outcomes

    kind = resolve(name, "strategy") if ":" in name else find(name)
    if not (isinstance(kind, type) and issubclass(kind, Strategy)):
        raise ConfigError(f"{name} is not a subclass of cil.Strategy")
    broken, said = 0, set[str]()
    for outcome in outcomes(Subject(kind)):
        broken += outcome.error is not None
        error = "the same" if outcome.error in said else outcome.error
        said |= {outcome.error} if outcome.error else set()
        print(
            f"{'ok    ' if error is None else 'BROKEN'} {outcome.name}: {error or outcome.rule}",
            flush=True,
        )
    print(f"{name}: {f'{broken} rule(s) broken' if broken else 'keeps the contract'}")
    return broken
