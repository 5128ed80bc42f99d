"""What ranks other than the first do: they train beside it, from what it writes, and write nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cil.engine.checkpoint import Checkpoints
from cil.engine.process import Stopped
from cil.engine.ranks import Ranks
from cil.engine.runtime import Runtime
from cil.engine.status import Stop
from cil.engine.work import Context, Work
from cil.errors import ConfigError
from cil.tracking import Loggers, Record


def follow(work: Work, identity: Mapping[str, Any], checkpoints: Checkpoints, runtime: Runtime, stop: Stop) -> None:
    """Do the part of this rank, to the end of the run.

    Raises:
        KeyboardInterrupt: where any rank was asked to stop.
    """
    try:
        with runtime.together(), stop.listening():
            runtime.begin()
            record = Record(checkpoints.folder.parent, dict(identity))
            context = Context(
                record, checkpoints, Loggers([]), Loggers([]), stop, work.length, work.results, ranks=runtime.ranks
            )
            done = agree(checkpoints, runtime.ranks, stop, 0)
            for index in range(max(0, done - 1), work.boundaries):
                if index >= done:
                    context.begin(index)
                    context.check_same(work.train(index, context), index)
                    context.end_where_asked()
                if index + 1 < work.boundaries:
                    context.end_where_asked()
    except Stopped:
        raise KeyboardInterrupt from None


def agree(checkpoints: Checkpoints, ranks: Ranks, stop: Stop, done: int) -> int:
    """The boundaries that are done, as rank 0 knows them; all ranks do the same run in the same folder.

    Raises:
        ConfigError: where they do not.
    """
    stop.jointly = ranks.several
    run, done = ranks.broadcast([checkpoints.run, done])
    if run != checkpoints.run or done != checkpoints.done():
        raise ConfigError(
            f"rank {ranks.rank} has another run than rank 0, or another run_dir={checkpoints.folder.parent}; give all "
            f"ranks the same command, data and code, and a folder that all machines share"
        )
    return int(done)
