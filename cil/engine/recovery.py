"""Going on after damage: which boundaries of a run are whole, and the way back to the last of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cil.engine.checkpoint import MEND, NUMBERED, SNAPSHOT, Checkpoints, files_in, read_json
from cil.errors import ResumeError
from cil.tracking.arrays import DENSE, FOLDER
from cil.tracking.files import METRICS, RECORD
from cil.tracking.storage import remove_partial


def check_owner(checkpoints: Checkpoints) -> None:
    """Refuse a folder with files of another run, or with files that do not say of which run they are.

    Raises:
        ResumeError: naming the folder. Nothing was written.
    """
    folder = checkpoints.folder.parent
    named = []
    for path in (*files_in(checkpoints.folder, NUMBERED), *files_in(checkpoints.snapshots, SNAPSHOT)):
        if path.suffix == ".json":
            with suppress(ResumeError):  # what is damaged names none
                named.append(read_json(path).get("run"))
    runs = {run for run in named if run is not None}
    if runs - {checkpoints.run}:
        other = ", ".join(sorted(runs - {checkpoints.run}))
        raise ResumeError(
            f"run_dir={folder} has checkpoints of another run (its identity is {other}, this one's "
            f"{checkpoints.run}); choose another run_dir"
        )
    if runs or (folder / RECORD).exists():
        return
    kept = [checkpoints.folder, checkpoints.snapshots, folder / METRICS, folder / FOLDER, folder / DENSE]
    found = [path.name for path in kept if path.is_file() or (path.is_dir() and any(path.iterdir()))]
    if found:
        raise ResumeError(
            f"run_dir={folder} has {', '.join(found)} and no {RECORD} that says of which run; choose another run_dir, "
            f"or remove them"
        )


@dataclass
class Recovery:
    """What was found when a run was about to go on.

    Attributes:
        damage: What cannot be used, a sentence each.
        uncounted: Boundaries whose answers are to be counted again.
    """

    damage: list[str] = field(default_factory=list)
    uncounted: list[int] = field(default_factory=list)

    def reads(self, read: Callable[..., Any], *arguments: Any) -> bool:
        """True if something can be read; else it is noted why not."""
        try:
            read(*arguments)
        except ResumeError as error:
            sentence = str(error).partition("; ")[0]
            self.damage += [sentence] if sentence not in self.damage else []
            return False
        return True


def recover(checkpoints: Checkpoints) -> Recovery:
    """Go back to the last boundary that is whole, and drop what comes after it.

    A boundary is whole if its state is, and everything that was committed and counted up to it. Answers are counted
    again where the state that gave them was kept.
    """
    found, done, back = Recovery(), checkpoints.done(), 0
    for folder in (checkpoints.folder, checkpoints.snapshots):
        remove_partial(folder)
    uncounted: list[int] = []
    for index in range(done):
        if not found.reads(checkpoints.content, index):
            break
        content = checkpoints.content(index)
        kept = content["files"] is not None and found.reads(checkpoints.state, index)
        if not found.reads(read_counts, checkpoints, index, done):
            if index in content.get("counted", ()) or not kept:
                break
            uncounted.append(index)
        if kept:
            back = index + 1
    later = [path for path in files_in(checkpoints.folder, NUMBERED) if path.suffix == ".json"][done:]
    if later:
        found.damage.append(f"{checkpoints.folder}/experience-{done:03d}.json is missing, {later[0].name} is there")
    checkpoints.go_back(back)
    found.uncounted = [index for index in uncounted if index < back]
    for index in found.uncounted:
        checkpoints.evaluation(index).unlink(missing_ok=True)
    snapshots = [found.reads(_snapshot, checkpoints, name) for name in checkpoints.snapshot_names()]
    if back < done or not all(snapshots):
        checkpoints.drop_snapshots()
    return found


def committed(checkpoints: Checkpoints, results: Mapping[str, Any]) -> int:
    """Number of boundaries of a run, which are at least those that its record has results of.

    Raises:
        ResumeError: naming the first file that is missing. Of a run without any, all were removed (``cil runs``).
    """
    done, told = checkpoints.done(), len(results.get("ledger") or ())
    if done < told and files_in(checkpoints.folder, NUMBERED):
        path = checkpoints.folder / f"experience-{done:03d}.json"
        raise ResumeError(f"{path} is missing, and the record has results of {told} boundaries; {MEND}")
    return done


def read_counts(checkpoints: Checkpoints, index: int, done: int, last: bool = False) -> None:
    """Read the counts at a boundary; they may be missing where no later commit says that they were there.

    Args:
        last: The run has finished, so its last boundary has counts too.

    Raises:
        ResumeError: where they are damaged, or missing.
    """
    if checkpoints.evaluated(index) is None:
        named = (index in checkpoints.content(later).get("counted", ()) for later in range(index, min(index + 2, done)))
        if any(named) or (last and index == done - 1):
            raise ResumeError(f"{checkpoints.evaluation(index)} is missing")


def _snapshot(checkpoints: Checkpoints, name: str) -> None:
    """Read a snapshot, and look for those that it builds on."""
    content = checkpoints.snapshot_content(name)
    assert content is not None
    checkpoints.snapshot_tensors(content)
    for other in content.get("beside", ()):
        if checkpoints.snapshot_content(other) is None:
            raise ResumeError(f"{checkpoints.snapshots}/{other}.json is missing")
