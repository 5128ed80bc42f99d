"""Checkpoints: one commit a boundary, snapshots inside an experience. Safetensors and JSON; nothing is unpickled.

checkpoint/experience-003.json        what boundary 3 carries: names -> files, metadata, facts. Written last.
checkpoint/experience-003.safetensors the tensors that changed since the boundary before (frozen parts stay once)
checkpoint/evaluation-003.safetensors the counts of the evaluation after experience 3
snapshot/phase-1.*                    all that was held before phase 1 of the running experience
snapshot/now.*                        all that was held at some step, with optimizer and place

Every file has its SHA-256: a JSON file its own and those of the files that it names, a safetensors file in its
metadata. What does not have its sum is not used; see ``cil.engine.recovery``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load, save_file
from torch import Tensor

from cil.errors import ConfigError, ResumeError, nearest
from cil.memory import State, encode_meta
from cil.memory.state import Reference
from cil.memory.tensor_bits import bits, same_bits
from cil.tracking import replacing
from cil.tracking.digests import SEAL, sealed, tensors_sum, unseal

KEEP = ("all", "last", "best")
NUMBERED = re.compile(r"(experience-(\d{3,})\.(json|safetensors)|evaluation-(\d{3,})\.safetensors)")
SNAPSHOT = re.compile(r"((now|(phase|search)-\d+)\.json|(now|(phase|search)-\d+)-[ab]\.safetensors)")
OF_NUMPY = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool, torch.float32, torch.float64}
IN_BOUNDARY = ("files", "kinds", "meta", "references", "survey", "libcontinual", "facts")
IN_SNAPSHOT = ("tensors", "names")
READ_LAST = 16  # evaluations that are held in memory


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON file with its name and its sum, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(sealed({**content, "name": path.name})))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], run: str = "") -> str:
    """A safetensors file of a run, all or nothing; its sum, which it holds too."""
    plain = {name: _own(tensor.detach().cpu().contiguous()) for name, tensor in tensors.items()}
    places = Counter(tensor.data_ptr() for tensor in plain.values() if tensor.numel())
    for name, tensor in plain.items():  # a weight that a network has under two names
        if tensor.numel() and places[tensor.data_ptr()] > 1:
            plain[name] = tensor.clone()
    seal = _sum_of(path, plain, run)
    with replacing(path) as temporary:
        if OF_NUMPY.issuperset(tensor.dtype for tensor in plain.values()):  # keeps nothing; the same bytes
            save_arrays({name: tensor.numpy() for name, tensor in plain.items()}, temporary, {SEAL: seal})
        else:  # keeps 6 kB for each size of a tensor that it ever wrote
            save_file(plain, temporary, {SEAL: seal})
    return seal


def _sum_of(path: Path, tensors: Mapping[str, Tensor], run: str) -> str:
    parts = ((name, str(t.dtype), tuple(t.shape), bits(t).numpy()) for name, t in tensors.items())
    return tensors_sum(f"{run}/{path.name}", parts)


def _own(tensor: Tensor) -> Tensor:
    """A tensor with storage of its own (safetensors refuses shared ones)."""
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size() else tensor


def read_tensors(path: Path, run: str | None = None, known: str | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Args:
        run: The run that it must be of; None: it is not verified. A file of an earlier version, which has no sum, is
            read as it is.
        known: Its sum, where another file says it.

    Raises:
        ResumeError: naming the file, where it cannot be read or is not what was written.
    """
    try:
        data = path.read_bytes()  # a third of the time that mapping it takes: most files have many small tensors
        # in memory that torch aligns: sums depend on it in their last bits, and the heap's differs from run to run
        tensors = {name: tensor.clone() for name, tensor in sorted(load(data).items())}
        sums = {_metadata(data).get(SEAL), known} - {None}
    except (OSError, SafetensorError) as error:
        raise ResumeError(f"cannot read {path}: {error}; {MEND}") from error
    if run is not None and sums and sums != {_sum_of(path, tensors, run)}:
        raise ResumeError(f"{path} is damaged, or of another run: it has not the SHA-256 it was written with; {MEND}")
    return tensors


def _metadata(data: bytes) -> dict[str, str]:
    """Texts in the header of a safetensors file, which was read before without an error: its length, then JSON."""
    found: dict[str, str] | None = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__")
    return found or {}


def read_json(path: Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """A JSON file that was sealed, or is of an earlier version.

    Args:
        keys: That it has.

    Raises:
        ResumeError: naming the file, where it cannot be read or is not what was written there.
    """
    try:
        content, whole = unseal(dict(json.loads(path.read_text())))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ResumeError(f"cannot read {path}: {error}; {MEND}") from error
    if whole is False:
        raise ResumeError(f"{path} is damaged: it has not the SHA-256 it was written with; {MEND}")
    if content.get("name", path.name) != path.name:
        raise ResumeError(f"{path} is damaged: it was written as {content['name']}; {MEND}")
    lacking = [key for key in keys if key not in content]
    if lacking:
        raise ResumeError(f"{path} is damaged: it has no {lacking[0]}; {MEND}")
    return content


def files_in(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """Files of a folder that a run gives such names, sorted; other files are somebody else's."""
    found = (path.name for path in (folder.iterdir() if folder.is_dir() else ()))
    return [folder / name for name in sorted(filter(names.fullmatch, found))]  # names compare faster than paths


MEND = (
    "restore it, or run the same command again (a finished run: without its record.json), which goes on from the last "
    "whole boundary"
)


class Checkpoints:
    """The carried states of a run on disk.

    Args:
        folder: The run directory.
        keep: ``all`` boundaries, the ``last`` one, or the last and the ``best`` by accuracy.
        run: Digest of its identity, which stands in every file; files of another run are refused.
    """

    def __init__(self, folder: Path, keep: str = "last", run: str = "") -> None:
        if keep not in KEEP:
            raise ConfigError(f"checkpoint.keep is '{keep}'; {nearest(keep, KEEP)}")
        self.folder = folder / "checkpoint"
        self.snapshots = folder / "snapshot"
        self.keep = keep
        self.run = run
        self._facts: dict[int, dict[str, Any]] = {}
        self._pruned: set[int] = set()
        self._done = 0
        self._evaluated: dict[int, tuple[tuple[int, ...], dict[str, Tensor]]] = {}  # by boundary: the file, its content

    def done(self) -> int:
        """Number of experiences that are committed."""
        if self._done and not self._json(self._done - 1).exists():
            self._done = 0
        while self._json(self._done).exists():  # goes on from the count of before
            self._done += 1
        return self._done

    def _json(self, index: int) -> Path:
        return self.folder / f"experience-{index:03d}.json"

    def content(self, index: int) -> dict[str, Any]:
        """What the JSON file of a boundary holds.

        Raises:
            ResumeError: if it is damaged, or of another run.
        """
        return self._own(self._json(index), IN_BOUNDARY)

    def _own(self, path: Path, keys: Iterable[str]) -> dict[str, Any]:
        content = read_json(path, keys)
        if self.run and content.get("run", self.run) != self.run:
            raise ResumeError(f"{path} is of another run ({content['run']}, not {self.run}); choose another run_dir")
        return content

    def facts(self, index: int) -> dict[str, Any]:
        """Plain data that was committed with the state of a boundary."""
        if index not in self._facts:  # they do not change any more
            self._facts[index] = self.content(index)["facts"]
        return self._facts[index]

    def commit(
        self, index: int, state: State, facts: Mapping[str, Any], counts: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write a boundary, with the counts of answers that were given on the way to it.

        It exists from the moment its JSON file has its name.
        """
        if counts is not None:
            self.write_evaluation(index, counts)
        before: dict[str, Tensor] = {}
        files: dict[str, str] = {}
        sums: dict[str, str] = {}
        if index:
            previous = self.content(index - 1)
            if previous["files"] is not None:
                files, sums, before = previous["files"], previous.get("sums", {}), self._tensors(previous)
        name = f"experience-{index:03d}.safetensors"
        new = {key: t.detach().cpu() for key, t in state.tensors.items()}
        changed = {key: t for key, t in new.items() if key not in before or not same_bits(before[key], t)}
        named = {key: name if key in changed else files[key] for key in new}
        sums = {**sums, name: write_tensors(self.folder / name, changed, self.run)}
        content = {
            "run": self.run,
            "files": named,
            "sums": {file: seal for file, seal in sums.items() if file in {name, *named.values()}},
            "counted": [i for i in (index - 1, index) if self.evaluation(i).exists()],
            "kinds": dict(state.kinds),
            "meta": json.loads(encode_meta(state.meta) or b"{}"),
            "references": [vars(reference) for reference in state.references],
            "survey": dict(state.survey),
            "libcontinual": dict(state.libcontinual),
            "facts": dict(facts),
        }
        write_json(self._json(index), content)
        self.drop_snapshots()

    def kept(self, index: int) -> bool:
        """True if the state carried out of experience ``index`` is still there."""
        return self.content(index)["files"] is not None

    def state(self, index: int) -> State:
        """The state carried out of experience ``index``.

        Raises:
            ResumeError: if it was not kept.
        """
        content = self.content(index)
        if content["files"] is None:
            raise ResumeError(f"the state after experience {index} was not kept; set checkpoint.keep=all")
        return State(
            self._tensors(content),
            content["kinds"],
            content["meta"],
            tuple(Reference(**reference) for reference in content["references"]),
            content["survey"],
            content.get("libcontinual", {}),  # of a version that did not count it
        )

    def _tensors(self, content: Mapping[str, Any]) -> dict[str, Tensor]:
        files, run, sums = content["files"], content.get("run"), content.get("sums", {})
        opened = {name: read_tensors(self.folder / name, run, sums.get(name)) for name in sorted(set(files.values()))}
        return {key: opened[name][key] for key, name in files.items()}

    def evaluation(self, index: int) -> Path:
        """The file of the counts at a boundary."""
        return self.folder / f"evaluation-{index:03d}.safetensors"

    def evaluated(self, index: int) -> dict[str, Tensor] | None:
        """The counts of one evaluation, if it was done. Those read last are kept in memory while their files stay."""
        path = self.evaluation(index)
        if not path.exists():
            return None
        found = path.stat()
        mark = (found.st_ino, found.st_mtime_ns, found.st_size)
        known, content = self._evaluated.pop(index, ((), {}))
        if known != mark:
            content = read_tensors(path, self.run or None)
        self._evaluated[index] = (mark, content)
        if len(self._evaluated) > READ_LAST:
            del self._evaluated[next(iter(self._evaluated))]
        return dict(content)

    def write_evaluation(self, index: int, counts: Mapping[str, Tensor]) -> None:
        write_tensors(self.evaluation(index), counts, self.run)

    def prune(self, best: int | None = None, held: Iterable[int] = ()) -> None:
        """Drop the states that are not to be kept, nor ``held`` for later; facts and evaluations stay."""
        done = self.done()
        if self.keep == "all" or not done:
            return
        kept = {done - 1, *held} | ({best} if self.keep == "best" and best is not None else set())
        used: set[str] = set()
        for index in sorted(set(range(done)) - self._pruned):
            content = self.content(index)
            if index in kept:
                used |= set((content["files"] or {}).values())
            elif content["files"] is not None:
                write_json(self._json(index), content | {"files": None, "sums": {}})
        self._pruned |= set(range(done)) - kept
        for path in files_in(self.folder, NUMBERED):
            if path.name.startswith("experience-") and path.suffix == ".safetensors" and path.name not in used:
                path.unlink()

    def go_back(self, count: int) -> None:
        """Drop all boundaries but the first ``count``, the last one first, its JSON file before what that names."""
        numbered = [(int(path.stem.partition("-")[2]), path) for path in files_in(self.folder, NUMBERED)]
        for index, path in sorted(numbered, key=lambda pair: (-pair[0], pair[1].suffix)):
            if index >= count:
                path.unlink()
        self._facts = {index: facts for index, facts in self._facts.items() if index < count}
        self._pruned = {index for index in self._pruned if index < count}

    # inside an experience -------------------------------------------------------------------------------------------

    def write_snapshot(self, name: str, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        """All that is held now. The tensors' file is named in the JSON, which is written last."""
        path = self.snapshots / f"{name}.json"
        old = self._own(path, IN_SNAPSHOT)["tensors"] if path.exists() else None
        file = f"{name}-{'b' if old == f'{name}-a.safetensors' else 'a'}.safetensors"
        seal = write_tensors(self.snapshots / file, tensors, self.run)
        own = {"run": self.run, "tensors": file, "sums": {file: seal}, "names": list(tensors)}
        write_json(path, {**content, **own, "beside": [one for one in self.snapshot_names() if one != name]})

    def drop_snapshots(self) -> None:
        """Forget the snapshots: their experience is committed. Files of other people stay."""
        with suppress(OSError):
            for path in files_in(self.snapshots, SNAPSHOT):
                path.unlink()
            self.snapshots.rmdir()

    def snapshot_names(self) -> list[str]:
        return [path.stem for path in files_in(self.snapshots, SNAPSHOT) if path.suffix == ".json"]

    def snapshot_content(self, name: str) -> dict[str, Any] | None:
        path = self.snapshots / f"{name}.json"
        return self._own(path, IN_SNAPSHOT) if path.exists() else None

    def snapshot_tensors(self, content: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors of a snapshot, in the order they were held in: sums over them depend on it."""
        file = content["tensors"]
        found = read_tensors(self.snapshots / file, content.get("run"), content.get("sums", {}).get(file))
        return {name: found[name] for name in content["names"]}


@dataclass
class Snapshots:
    """Snapshots inside the stretch of a run that leads to boundary ``index``; those of another are not seen."""

    checkpoints: Checkpoints
    index: int

    def contents(self) -> dict[str, dict[str, Any]]:
        found = {name: self.checkpoints.snapshot_content(name) for name in self.checkpoints.snapshot_names()}
        return {name: content for name, content in found.items() if content and content["experience"] == self.index}

    def find(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        content = self.checkpoints.snapshot_content(name)
        if content is None or content["experience"] != self.index:
            return None
        return self.checkpoints.snapshot_tensors(content), content

    def write(self, name: str, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        self.checkpoints.write_snapshot(name, tensors, {**content, "experience": self.index})
