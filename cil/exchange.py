"""A finished run as a file: a ``torch.export`` program or ONNX, which other programs run, or its backbone's weights."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from cil.errors import ConfigError, in_words
from cil.models import GrowingNet, TimmBackbone, save_weights
from cil.tracking import replacing
from cil.trained import Trained

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FORMATS = {".pt2": "torch.export", ".onnx": "ONNX"}
TOLERANCE = 1e-4  # of scores, relative to the largest one


def export(net: Trained, path: str | Path) -> float:
    """Write a trained network as a file: float images (N, C, H, W) in [0, 1] in, scores (N, classes) out, for any N.

    What was written is run on random images, in batches of 1 and 5, and must answer as the network does.

    Args:
        net: As ``cil.load`` gives it, on the CPU.
        path: ``NAME.pt2`` for torch.export, ``NAME.onnx`` for ONNX, which needs ``pip install 'cil[onnx]'``.

    Returns:
        The largest difference of a score.

    Raises:
        ConfigError: for another ending, a method whose answer cannot be exported, and answers that differ.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ConfigError(f"{path} must end with {' or '.join(FORMATS)}, for {' or '.join(FORMATS.values())}")
    program = _program(net)
    with replacing(path) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        if path.suffix == ".onnx":
            _write_onnx(program, part)
        else:
            torch.export.save(program, part)
        return max(_difference(net, part, path.suffix, count) for count in (1, 5))


def export_backbone(net: Trained, path: str | Path) -> str:
    """Write the backbone of a trained network as safetensors, without its head, for ``model.weights`` of other runs.

    Of a timm model the names are timm's. Images are to be normalised as they were in the run; ``model.mean`` and
    ``model.std`` say so where a timm model's own statistics are others.

    Args:
        net: As ``cil.load`` gives it, of a method with one plain network.
        path: ``NAME.safetensors``.

    Returns:
        SHA-256 of the file.

    Raises:
        ConfigError: for another ending, for a method without a plain network, and for one whose network is frozen
            while other parts learn beside it.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path} must end with .safetensors, for the weights of a backbone")
    plain = getattr(net.learner, "net", None)
    if not isinstance(plain, GrowingNet):
        kind = type(net.learner).__name__
        raise ConfigError(f"{kind} has no single network whose weights could be written; see cil.load in Python")
    beside = _learns_beside(net)
    if beside:
        raise ConfigError(
            f"{type(net.learner).__name__} learns in {', '.join(beside)}, beside a backbone that is frozen; weights "
            f"of that are no result of the run: write NAME.pt2 or NAME.onnx, or use cil.load in Python"
        )
    backbone: Any = plain.backbone
    with replacing(path) as part:
        save_weights(backbone.model if isinstance(backbone, TimmBackbone) else backbone, part)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _learns_beside(net: Trained) -> list[str]:
    """Names of networks that are carried beside ``net``, where its backbone is frozen."""
    held = net.learner.held()
    if any(parameter.requires_grad for parameter in net.learner.net.backbone.parameters()):
        return []
    carried = {name.partition(".")[0] for name, kind in net.learner.structure().kinds.items() if kind == "parameters"}
    return [name for name, value in held.items() if isinstance(value, torch.nn.Module) and name in carried - {"net"}]


def _program(net: Trained) -> ExportedProgram:
    images = torch.rand(2, *net.image_shape)
    sizes = {"images": {0: torch.export.Dim("N")}}
    try:
        with torch.no_grad(), _OneDistance():
            return torch.export.export(_Scores(net), (images,), dynamic_shapes=sizes, strict=False)
    except Exception as error:  # whatever a method does in predict, torch names what it cannot trace
        name = type(net.learner).__name__
        raise ConfigError(f"{name}.predict cannot be exported: {in_words(error)}; use cil.load in Python") from error


class _OneDistance(TorchFunctionMode):
    """Euclidean distances by one formula: ``torch.cdist`` takes another one above 25 rows, so N could not vary."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.cdist and (kwargs or {}).get("p", 2) == 2:
            left, right = args[:2]
            return (left[..., :, None, :] - right[..., None, :, :]).square().sum(-1).sqrt()
        return function(*args, **(kwargs or {}))


class _Scores(torch.nn.Module):
    """One argument with a name, and nothing of the learner but what ``forward`` reads."""

    def __init__(self, net: Trained) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.net(images)
        return scores


def _write_onnx(program: ExportedProgram, path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise ConfigError("ONNX needs further packages: pip install 'cil[onnx]'") from None
    written = torch.onnx.export(program, dynamo=True, verbose=False)
    assert written is not None
    written.save(str(path), external_data=False)


def _difference(net: Trained, path: Path, ending: str, count: int) -> float:
    """The largest difference of scores on random images, refused above the tolerance."""
    images = torch.rand(count, *net.image_shape, generator=torch.Generator().manual_seed(count))
    with torch.no_grad():
        expected = net(images).float()
        if ending == ".onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            given = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
        else:
            given = torch.export.load(path).module()(images).float()
    difference = float((given - expected).abs().max())
    if difference > TOLERANCE * float(expected.abs().max().clamp(min=1)):
        raise ConfigError(f"the exported file answers otherwise, by {difference:.2g}; nothing was written")
    return difference
