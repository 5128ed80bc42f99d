"""``cil export``: a finished run as a file that other programs run, or its backbone's weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cil.cli import environment
from cil.cli.arguments import split_options, split_own_class, whole_number
from cil.errors import ConfigError

HELP = """
usage: cil export RUN_DIR FILE.pt2|FILE.onnx|FILE.safetensors [--experience N] [strategy=module:Class]

Writes what a run learned as a torch.export program (.pt2) or as ONNX (.onnx, with pip install 'cil[onnx]'): images
(N, C, H, W) in [0, 1] in, scores of the classes seen out. The names of the classes lie beside it, FILE.classes.txt. The
file is run on random images, and must answer as the network does.

A .safetensors file has the weights of the backbone alone, for model.weights of other runs, and its SHA-256 is printed.

  cil export runs/demo/wa-200exemplars-s0-0a1b2c3d4e5f wa.onnx
  cil export runs/small_vit small_vit.safetensors
"""


def main(arguments: Sequence[str]) -> int:
    rest, options, _ = split_options(arguments, {"--experience": ""})
    paths, own = split_own_class(rest)
    if len(paths) != 2:
        raise ConfigError("cil export needs a run directory and a file, as in cil export RUN_DIR net.onnx")
    experience = whole_number("--experience", options["--experience"], 0)
    environment.prepare()
    from cil.cli.compose import own_class
    from cil.exchange import export, export_backbone
    from cil.tracking import write_bytes_atomic
    from cil.trained import load

    net = load(paths[0], strategy=own_class(own, "strategy"), experience=experience)
    if paths[1].endswith(".safetensors"):
        print(f"{paths[1]}: weights of the backbone, for model.weights; sha256 {export_backbone(net, paths[1])}")
        return 0
    difference = export(net, paths[1])
    names = Path(paths[1]).with_suffix(".classes.txt")
    write_bytes_atomic(names, "".join(f"{name}\n" for name in net.classes).encode())
    print(
        f"{paths[1]}: {len(net.classes)} classes ({names}); on random images its scores are those of the run, "
        f"but for {difference:.1g} at most"
    )
    return 0
