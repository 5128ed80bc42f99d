"""Checkpoints: one commit a boundary, snapshots inside an experience. Safetensors and JSON; nothing is unpickled.

checkpoint/experience-003.json        what boundary 3 carries: names -> files, metadata, facts. Written last.
checkpoint/experience-003.safetensors the tensors that changed since the boundary before (frozen parts stay once)
checkpoint/evaluation-003.safetensors the counts of the evaluation after experience 3
snapshot/phase-1.*                    all that was held before phase 1 of the running experience
snapshot/now.*                        all that was held at some step, with optimizer and place
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cil.errors import ConfigError, ResumeError, nearest
from cil.memory import State, encode_meta
from cil.memory.state import Reference
from cil.tracking import replacing

KEEP = ("all", "last", "best")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON file, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, all or nothing."""
    plain = {name: _own(tensor.detach().cpu().contiguous()) for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(plain, temporary)


def _own(tensor: Tensor) -> Tensor:
    """A tensor with storage of its own (safetensors refuses shared ones)."""
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size() else tensor


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ResumeError(f"cannot read {path}: {error}; start again in another run_dir") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return content
    except (OSError, ValueError) as error:
        raise ResumeError(f"cannot read {path}: {error}; start again in another run_dir") from error


class Checkpoints:
    """The carried states of a run on disk.

    Args:
        folder: The run directory.
        keep: ``all`` boundaries, the ``last`` one, or the last and the ``best`` by accuracy.
    """

    def __init__(self, folder: Path, keep: str = "last") -> None:
        if keep not in KEEP:
            raise ConfigError(f"checkpoint.keep is '{keep}'; {nearest(keep, KEEP)}")
        self.folder = folder / "checkpoint"
        self.snapshots = folder / "snapshot"
        self.keep = keep
        self._facts: dict[int, dict[str, Any]] = {}
        self._pruned: set[int] = set()

    def done(self) -> int:
        """Number of experiences that are committed."""
        count = 0
        while (self.folder / f"experience-{count:03d}.json").exists():
            count += 1
        return count

    def facts(self, index: int) -> dict[str, Any]:
        """Plain data that was committed with the state of a boundary."""
        if index not in self._facts:  # they do not change any more
            self._facts[index] = read_json(self.folder / f"experience-{index:03d}.json")["facts"]
        return self._facts[index]

    def commit(self, index: int, state: State, facts: Mapping[str, Any]) -> None:
        """Write a boundary. It exists from the moment its JSON file has its name."""
        before: dict[str, Tensor] = {}
        files: dict[str, str] = {}
        if index:
            previous = read_json(self.folder / f"experience-{index - 1:03d}.json")
            if previous["files"] is not None:
                files, before = previous["files"], self._tensors(previous["files"])
        name = f"experience-{index:03d}.safetensors"
        new = {key: t.detach().cpu() for key, t in state.tensors.items()}
        changed = {key: t for key, t in new.items() if key not in before or not _equal(before[key], t)}
        write_tensors(self.folder / name, changed)
        content = {
            "files": {key: name if key in changed else files[key] for key in new},
            "kinds": dict(state.kinds),
            "meta": json.loads(encode_meta(state.meta) or b"{}"),
            "references": [vars(reference) for reference in state.references],
            "survey": dict(state.survey),
            "facts": dict(facts),
        }
        write_json(self.folder / f"experience-{index:03d}.json", content)
        self.drop_snapshots()

    def kept(self, index: int) -> bool:
        """True if the state carried out of experience ``index`` is still there."""
        return read_json(self.folder / f"experience-{index:03d}.json")["files"] is not None

    def state(self, index: int) -> State:
        """The state carried out of experience ``index``.

        Raises:
            ResumeError: if it was not kept.
        """
        content = read_json(self.folder / f"experience-{index:03d}.json")
        if content["files"] is None:
            raise ResumeError(f"the state after experience {index} was not kept; set checkpoint.keep=all")
        return State(
            self._tensors(content["files"]),
            content["kinds"],
            content["meta"],
            tuple(Reference(**reference) for reference in content["references"]),
            content["survey"],
        )

    def _tensors(self, files: Mapping[str, str]) -> dict[str, Tensor]:
        opened = {name: read_tensors(self.folder / name) for name in sorted(set(files.values()))}
        return {key: opened[name][key] for key, name in files.items()}

    def evaluated(self, index: int) -> dict[str, Tensor] | None:
        """The counts of one evaluation, if it was done."""
        path = self.folder / f"evaluation-{index:03d}.safetensors"
        return read_tensors(path) if path.exists() else None

    def write_evaluation(self, index: int, counts: Mapping[str, Tensor]) -> None:
        """Keep the counts of one evaluation."""
        write_tensors(self.folder / f"evaluation-{index:03d}.safetensors", counts)

    def prune(self, best: int | None = None, held: Iterable[int] = ()) -> None:
        """Drop the states that are not to be kept, nor ``held`` for later; facts and evaluations stay."""
        done = self.done()
        if self.keep == "all" or not done:
            return
        kept = {done - 1, *held} | ({best} if self.keep == "best" and best is not None else set())
        used: set[str] = set()
        for index in sorted(set(range(done)) - self._pruned):
            path = self.folder / f"experience-{index:03d}.json"
            content = read_json(path)
            if index in kept:
                used |= set((content["files"] or {}).values())
            elif content["files"] is not None:
                write_json(path, content | {"files": None})
        self._pruned |= set(range(done)) - kept
        for path in self.folder.glob("experience-*.safetensors"):
            if path.name not in used:
                path.unlink()

    # inside an experience -------------------------------------------------------------------------------------------

    def write_snapshot(self, name: str, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        """All that is held now. The tensors' file is named in the JSON, which is written last."""
        path = self.snapshots / f"{name}.json"
        old = json.loads(path.read_text())["tensors"] if path.exists() else None
        file = f"{name}-{'b' if old == f'{name}-a.safetensors' else 'a'}.safetensors"
        write_tensors(self.snapshots / file, tensors)
        write_json(path, {**content, "tensors": file, "names": list(tensors)})

    def drop_snapshots(self) -> None:
        """Forget the snapshots: their experience is committed."""
        shutil.rmtree(self.snapshots, ignore_errors=True)

    def snapshot_names(self) -> list[str]:
        """Names of the snapshots there are."""
        return sorted(path.stem for path in self.snapshots.glob("*.json"))

    def snapshot_content(self, name: str) -> dict[str, Any] | None:
        """The content of a snapshot, if there is one."""
        path = self.snapshots / f"{name}.json"
        return read_json(path) if path.exists() else None

    def snapshot_tensors(self, content: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors of a snapshot, in the order they were held in: sums over them depend on it."""
        found = read_tensors(self.snapshots / content["tensors"])
        return {name: found[name] for name in content["names"]}


@dataclass
class Snapshots:
    """Snapshots inside the stretch of a run that leads to boundary ``index``; those of another are not seen."""

    checkpoints: Checkpoints
    index: int

    def contents(self) -> dict[str, dict[str, Any]]:
        """Their contents by name."""
        found = {name: self.checkpoints.snapshot_content(name) for name in self.checkpoints.snapshot_names()}
        return {name: content for name, content in found.items() if content and content["experience"] == self.index}

    def find(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and content of one, if there is one."""
        content = self.checkpoints.snapshot_content(name)
        if content is None or content["experience"] != self.index:
            return None
        return self.checkpoints.snapshot_tensors(content), content

    def write(self, name: str, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        """Write one, in place of the one of that name."""
        self.checkpoints.write_snapshot(name, tensors, {**content, "experience": self.index})


def _equal(a: Tensor, b: Tensor) -> bool:
    """Same bits (so that -0.0 and NaN count as what they are)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))
