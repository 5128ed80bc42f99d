"""``cil predict``: what a finished run says of images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cil.cli import environment
from cil.cli.arguments import split_options, split_own_class, whole_number
from cil.cli.formats import in_columns
from cil.errors import ConfigError

if TYPE_CHECKING:
    from cil.trained import Trained

HELP = """
usage: cil predict RUN_DIR IMAGE_OR_FOLDER ... [--top K] [--experience N] [--json] [strategy=module:Class]

The classes that a run sees in image files, by its own answer, most likely first. Images are brought to the size of the
run's stream: the shorter side becomes that long (8/7 of it where the stream read files as they were needed, as it did
with its test images), and the centre is cut out. The numbers are the method's scores: of a head its logits, of a
nearest mean minus the distance.

  cil predict runs/demo/icarl-200exemplars-s0-0a1b2c3d4e5f photo.png
  cil predict RUN_DIR folder --top 1 --json

  --top K          so many classes of each image; 3 by default
  --experience N   as the run stood after experience N (from 0); earlier ones need checkpoint.keep=all
  --json           a list with file, classes and scores of each
"""
BATCH = 64  # images decoded and asked at once


def main(arguments: Sequence[str]) -> int:
    rest, options, flags = split_options(arguments, {"--top": "3", "--experience": "", "--device": "cpu"}, ["--json"])
    paths, own = split_own_class(rest)
    if len(paths) < 2:
        raise ConfigError("cil predict needs a run directory, and images or folders of images")
    top = whole_number("--top", options["--top"]) or 3
    experience = whole_number("--experience", options["--experience"], 0)
    environment.prepare()
    from cil.cli.compose import own_class
    from cil.trained import load

    net = load(paths[0], strategy=own_class(own, "strategy"), device=options["--device"], experience=experience)
    files = list(_files(paths[1:]))
    found = list(answers(net, files, top, shorter_side(net.identity, net.image_shape[1])))
    if "--json" in flags:
        print(json.dumps(found, indent=1))
        return 0
    rows = [
        (one["file"], *(f"{name} {score:.3g}" for name, score in zip(one["classes"], one["scores"], strict=True)))
        for one in found
    ]
    print("\n".join(in_columns(rows, set())))
    return 0


def _files(paths: Sequence[str]) -> Iterator[str]:
    from cil.data.file_store import images_below

    for path in paths:
        if Path(path).is_dir():
            below = images_below(Path(path))
            if not below:
                raise ConfigError(f"{path} has no images")
            yield from below
        else:
            yield path


def shorter_side(identity: Mapping[str, Any], size: int) -> int | None:
    """Pixels that the shorter side of a file gets before its centre is cut out, as the run's stream did with its test
    images; None: as ``FileStore`` does by itself."""
    stream = (identity.get("config") or {}).get("stream") or {}
    return None if stream.get("in_memory") is False else size


def answers(net: Trained, files: Sequence[str], top: int, shorter: int | None) -> Iterator[dict[str, Any]]:
    """``file``, and the ``classes`` with the highest ``scores``, best first.

    Raises:
        DataError: for a file that is no readable image, naming it.
    """
    import torch

    from cil.data.file_store import FileStore

    channels, height, width = net.image_shape
    if height != width:
        raise ConfigError(f"the run was trained on images of {height}x{width} pixels; cil predict cuts squares alone")
    store = FileStore(files, height, channels, shorter)
    device = net.learner.device
    for rows in torch.arange(len(files)).split(BATCH):
        with torch.no_grad():
            scores = net(store.pixels(rows).to(device).float() / 255).float().cpu()
        best, places = scores.topk(min(top, scores.shape[1]))
        for row, values, columns in zip(rows.tolist(), best.tolist(), places.tolist(), strict=True):
            yield {"file": files[row], "classes": [net.classes[i] for i in columns], "scores": values}
