"""``cil check``: the contract checks on a strategy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cil.cli import environment
from cil.cli.names import METHODS
from cil.cli.refusals import parse_overrides
from cil.errors import ConfigError
from cil.targets import check_arguments, resolve

STREAM = ("stream", "data_root")  # keys that choose a stream
HELP = """
usage: cil check NAME... [strategy.KEY=VALUE ...] [adapter.KEY=VALUE ...] [stream=NAME stream.KEY=VALUE ...]

Demands of a strategy what the framework relies on: what it does not keep cannot help, same seed same bits, a resumed
run equals the straight one, predict has no side effects... A quarter of a minute on one core. Of an adapter: the like,
and that it answers without labels. NAME is module:Class, or a name of cil list strategies or adapters; keys that are
not given have their defaults, made small where a strategy says so. The rules are those of the stream's kind of run;
most are then checked on it, cut to its first experiences and a few images of each class, and those that need two pasts,
two futures or more experiences on toy streams. Without one all are, of the first kind that has such learners.

  cil check my_idea:MyStrategy
  cil check icarl
  cil check tent adapter.lr=0.01
  cil check ranpac strategy.size=64 strategy.gram=packed
  cil check icarl stream=rotated_digits
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command: 0 where all rules hold, 1 where one is broken."""
    for item in arguments:
        if item.startswith("-"):
            raise ConfigError(f"no option '{item}'; cil check takes names and key=value, see cil check --help")
    names = [item for item in arguments if "=" not in item]
    if not names:
        raise ConfigError("cil check needs a strategy or an adapter: module:Class, or a name of cil list")
    given, chosen = _options([item for item in arguments if "=" in item])
    environment.prepare()
    from cil.testing import kind_of

    sys.path.insert(0, str(Path.cwd()))  # an own idea in the folder one stands in
    stream = _stream(chosen) if chosen else None
    learners = {name: _learner(name) for name in names}  # all, before the first is checked
    subjects = {}
    for name, learner in learners.items():
        kind = kind_of(learner, stream)
        check_arguments(learner, given, kind.learner)
        subjects[name] = kind.subject(learner, given, stream)
    broken = sum(_checked(name, subject) for name, subject in subjects.items())
    return 1 if broken else 0


def _learner(name: str) -> Any:
    from cil import adapt, strategies

    known = adapt if name in adapt.names() and name not in strategies.names() else strategies
    learner = resolve(name, "NAME") if ":" in name else known.find(name)
    if not isinstance(learner, type):
        raise ConfigError(f"{name} is no class but a {type(learner).__name__}; name the class itself")
    return learner


def _options(overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Hyperparameters, of ``strategy.KEY=VALUE`` or ``adapter.KEY=VALUE``, and the overrides that choose a stream."""
    given, chosen = {}, []
    for item in parse_overrides(overrides):
        section, _, key = item.key_or_group.partition(".")
        if section in STREAM:
            chosen.append(str(item.input_line))
        elif section in METHODS and key:
            given[key] = item.value()
        else:
            raise ConfigError(
                f"cil check takes names, keys of theirs as in strategy.KEY=VALUE, and a stream, not '{item.input_line}'"
            )
    return given, chosen


def _stream(overrides: Sequence[str]) -> Any:
    from cil.cli.build import build_stream
    from cil.cli.compose import compose

    whole = build_stream(compose(overrides).config)
    small = whole.reduced()
    print(f"stream {whole.name}: {_size(small)} of {_size(whole)}", flush=True)
    return small


def _size(stream: Any) -> str:
    facts = stream.description()
    return f"{sum(facts.get('train_counts') or facts['counts']):,} images in {len(stream)} parts"


def _checked(name: str, subject: Any) -> int:
    """Print each rule and if it holds; the number of those that do not."""
    from cil.testing import outcomes

    broken, printed = 0, set[str]()
    for outcome in outcomes(subject):
        broken += outcome.error is not None
        error = "the same" if outcome.error in printed else outcome.error
        printed |= {outcome.error} if outcome.error else set()
        print(f"{'ok    ' if error is None else 'BROKEN'} {outcome.name}: {error or outcome.rule}", flush=True)
        if error is not None:
            print(f"       the rule: {outcome.rule}", flush=True)
    print(f"{name}: {f'{broken} rule(s) broken' if broken else 'keeps the contract'}")
    return broken
