"""``cil``: finds the command and tells errors in one line. Imports neither torch nor Hydra itself."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from cil.cli.arguments import config_dirs
from cil.cli.composition import files_remembered
from cil.cli.environment import in_environment
from cil.cli.names import OWN, check_own_conf_dirs
from cil.cli.refusals import GROUPS
from cil.errors import CilError, ConfigError, TrainingError, in_words, nearest, places_of

COMMANDS = {
    "run": "one run: any key or group of the configuration as key=value",
    "compare": "many strategies, seeds and budgets: runs side by side, a table, a page",
    "sweep": "any grid of keys, then a table; --multirun of Hydra with its launchers",
    "tune": "hyperparameters by a protocol that never opens the test data; then the result",
    "budget": "who carries how many bytes, before anything is trained",
    "memory": "what a step of training or adaptation holds, by part of the network",
    "report": "table, page, LaTeX, figures, CSV of runs that were made, or go on",
    "evaluate": "a finished run once more, on its own or on other test data",
    "predict": "what a finished run says of image files",
    "export": "a finished run as a torch.export or ONNX file, or its backbone's weights",
    "audit": "a finished run: an experience redone from its stored state, bit for bit",
    "diff": "which settings of two runs differ, and where each came from",
    "import": "results of PyCIL or PILOT, from their logs, as records beside runs",
    "dashboard": "a workspace or report of wandb for a sweep, written to a file",
    "runs": "the runs of a folder: list them, thin them out, move them",
    "cite": "the papers behind what runs used",
    "show": "a stream as a picture, or a run as a curve",
    "stream": "a stream of tasks as a manifest: validate it, show it",
    "list": "strategies, adapters, streams, models and more, with their origin",
    "new": "a small package with an own strategy, adapter, stream, metric or kind of run",
    "check": "the contract checks on a strategy or an adapter: module:Class, or a name",
}
_MODULES = {"list": "listing", "import": "importing"}
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        0; 2 for what the user can mend (one line says how), 1 for other failures, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    _hear_notes()
    for stream in (sys.stdout, sys.stderr):  # a terminal without these letters shows others
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = _command(given)
        if sys.stdout is not None:  # it was closed
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
    except SystemExit as stopped:
        if places_of(stopped)[0]:  # of a user's module: must not look like success
            return _print_error(stopped, 1)
        raise  # Hydra's own, after a help text
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:  # files that a run writes are named where they are
            return _print_error(
                TrainingError("no space left where standard output goes; make room, or write it elsewhere"), 1
            )
        return _print_error(error, 1)
    except Exception as error:
        return _print_error(error, 1)


def _check_folder() -> None:
    """Refuse a working directory that is there no more."""
    with suppress(FileNotFoundError):
        if Path.cwd().is_dir():
            return
    raise ConfigError("the working directory was deleted; change to another folder")


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
        return int(import_module("cil.cli.compose").complete(given, COMMANDS))
    if name not in COMMANDS:
        raise ConfigError(f"no command '{name}'; {nearest(name, COMMANDS)}")
    _check_folder()
    rest, own = config_dirs(rest)
    if own:
        with in_environment(**{OWN: own}):
            return _command([name, *rest])
    check_own_conf_dirs()
    _refuse_doubled(rest)
    module = import_module(f"cil.cli.{_MODULES.get(name, name)}")
    if any(item in ("-h", "--help") for item in rest):
        print(module.HELP.strip())
        return 0
    with files_remembered():
        return int(module.main(rest))


def _refuse_doubled(arguments: Sequence[str]) -> None:
    """Refuse a group that is given two files: the first would be forgotten without a word."""
    values: dict[str, str] = {}
    for key, equals, value in (item.partition("=") for item in arguments if not item.startswith("-")):
        if key in GROUPS and equals and values.setdefault(key, value) != value:
            raise ConfigError(f"{key} is given twice, {values[key]} and {value}; leave one out")


class Notes(logging.Handler):
    """Prints warnings of the framework as notes, to standard error; each once a command."""

    said: set[str]

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.said:
            print(f"cil: note: {text}", file=sys.stderr, flush=True)
        self.said.add(text)


def _hear_notes() -> None:
    log = logging.getLogger("cil")
    heard = next((one for one in log.handlers if isinstance(one, Notes)), None)
    if heard is None:
        heard = Notes(logging.WARNING)
        log.addHandler(heard)
    heard.said = set()


def _print_error(error: BaseException, code: int) -> int:
    if os.environ.get("CIL_TRACEBACK"):
        import traceback

        traceback.print_exc()
    text = in_words(error)
    if not isinstance(error, CilError):
        text += "; CIL_TRACEBACK=1 shows how it came there"
    print(f"cil: {text}", file=sys.stderr)
    return code


def _help() -> str:
    commands = "\n".join(f"  {name:<9} {about}" for name, about in COMMANDS.items())
    return (
        f"usage: cil COMMAND [key=value ...]      cil COMMAND --help says more\n\n{commands}\n\n"
        "  cil run strategy=icarl stream=split_mnist5k budget.exemplars=200\n"
        "  cil compare experiment=demo strategy=finetune,replay,icarl,joint seed=0,1\n\n"
        'shell completion: eval "$(cil -sc install=bash)"      version: cil --version'
    )


if __name__ == "__main__":
    sys.exit(main())
