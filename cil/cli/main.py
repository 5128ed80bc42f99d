"""``cil``: finds the command and tells errors in one line. Imports neither torch nor Hydra itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from cil.errors import CilError, ConfigError, nearest

COMMANDS = {
    "run": "one run: any key or group of the configuration as key=value",
    "compare": "many strategies, seeds and budgets: runs side by side, a table, a page",
    "sweep": "any grid of keys, then a table; --multirun of Hydra with its launchers",
    "tune": "hyperparameters by a protocol that never opens the test data; then the result",
    "budget": "who carries how many bytes, before anything is trained",
    "memory": "what a step of training or adaptation holds, by part of the network",
    "report": "table, page, CSV or Markdown of runs that were made",
    "evaluate": "a finished run once more, on its own or on other test data",
    "audit": "a finished run: an experience redone from its stored state, bit for bit",
    "show": "a stream as a picture, or a run as a curve",
    "stream": "a stream of tasks as a manifest: validate it, show it",
    "list": "strategies, adapters, streams, models and more, with their origin",
    "check": "the contract checks on a strategy or an adapter: module:Class, or a name",
}
_MODULES = {"list": "listing"}
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        0; 2 for what the user can mend (one line says how), 1 for other failures, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _command(given)
        sys.stdout.flush()  # here, where a closed pipe is no error
        return code
    except CilError as error:
        return _print_error(error, 2)
    except KeyboardInterrupt as stopped:
        print(f"cil: interrupted{f'; {stopped}' if str(stopped) else ''}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _print_error(error, 1)


def _command(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    name, rest = given[0], given[1:]
    if name in ("--version", "-V"):
        from importlib.metadata import version

        print(f"cil {version('cil')}")
        return 0
    if name in ("-sc", "--shell-completion"):
        return int(import_module("cil.cli.completion").complete(given, COMMANDS))
    if name not in COMMANDS:
        raise ConfigError(f"no command '{name}'; {nearest(name, COMMANDS)}")
    module = import_module(f"cil.cli.{_MODULES.get(name, name)}")
    if any(item in ("-h", "--help") for item in rest):
        print(module.HELP.strip())
        return 0
    return int(module.main(rest))


def _print_error(error: Exception, code: int) -> int:
    if os.environ.get("CIL_TRACEBACK"):
        import traceback

        traceback.print_exc()
    if isinstance(error, CilError):
        text = " ".join(str(error).split())
    else:
        text = f"{type(error).__name__}: {' '.join(str(error).split())} (CIL_TRACEBACK=1 shows where)"
    print(f"cil: {text}", file=sys.stderr)
    return code


def _help() -> str:
    lines = [f"  {name:<9} {about}" for name, about in COMMANDS.items()]
    return "\n".join(
        [
            "usage: cil COMMAND [key=value ...]      cil COMMAND --help says more",
            "",
            *lines,
            "",
            "  cil run strategy=icarl stream=split_mnist5k budget.exemplars=200",
            "  cil compare experiment=demo strategy=finetune,replay,icarl,joint seed=0,1",
            "",
            'shell completion: eval "$(cil -sc install=bash)"      version: cil --version',
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
