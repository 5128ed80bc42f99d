"""The command line in this process."""

from __future__ import annotations

import logging

from cil.cli.main import main


def run_command(words: list[str]) -> int:
    """A command line in this process, whose logging stays as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        return main(words)
    finally:
        root.handlers[:], root.level = handlers, level
        logging.disable(logging.NOTSET)
