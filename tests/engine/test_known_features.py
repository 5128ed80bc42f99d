"""Features of frozen backbones are computed once an image, and what keeps them can carry nothing."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cil.api import plan
from cil.data import Augment
from cil.engine.audit import Redoing
from cil.engine.checkpoint import read_tensors, write_tensors
from cil.engine.driver import Run
from cil.engine.known_features import BLOCK, KnownFeatures, Table
from cil.engine.recipe import Recipe
from cil.engine.shared_phases import SharedPhases
from cil.errors import ContractError
from cil.memory import Budget, Flops
from cil.models import GrowingNet, NetFactory, build_backbone, freeze
from cil.strategies import find
from cil.streams import class_incremental
from cil.testing.toy import toy_dataset
from cil.tracking import Record

IMAGES = 4 * (6 + 3)  # of the stream, training and test


def run_of(
    strategy: str, folder: Path, features: str | None = "fp32", reuse: Path | None = None, **options: Any
) -> Run:
    """A short run on a frozen backbone of random weights, without augmentation."""
    stream = class_incremental(toy_dataset(train=(6,) * 4, test=(3,) * 4), increment=2, augment=Augment())
    given = {} if strategy == "l2p" else {"train_first": options.pop("train_first", False)}
    make = partial(find(strategy), **find(strategy).toy, **given)
    model = dict(find(strategy).toy_model) or {"name": "smallconv"}
    fixed: dict[str, Any] = {"recipe": Recipe(epochs=1, batch_size=12), "device": "cpu", "threads": 1}
    return plan(
        make, stream, model, Budget(exemplars=8), run_dir=folder, features=features, reuse=reuse, **fixed, **options
    )  # fmt: skip


def outcome(run: Run) -> dict[str, Any]:
    """Results but for times, and the bits that are carried."""
    results = {name: value for name, value in run.execute().results.items() if name != "seconds"}
    tensors = run.checkpoints.state(1).tensors
    bits = {name: t.contiguous().flatten().view(torch.uint8).tolist() for name, t in sorted(tensors.items())}
    return {"results": json.loads(json.dumps(results)), "bits": bits}


def kept(folder: Path) -> list[bytes]:
    """Digests of all images in a folder of features of one backbone."""
    tables = list(folder.iterdir())
    assert len(tables) == 1
    found = [read_tensors(path, tables[0].name)["images"] for path in sorted(tables[0].iterdir())]
    return [bytes(row) for row in torch.cat(found).tolist()]


def test_each_image_is_computed_once_for_all_methods_and_nothing_but_seconds_changes(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    plain = outcome(run_of("slda", tmp_path / "plain", None))
    assert outcome(run_of("slda", tmp_path / "first", reuse=shared))["results"] == plain["results"]
    images = kept(shared / "features")
    assert len(images) == len(set(images)) == IMAGES
    warm = outcome(run_of("simplecil", tmp_path / "warm", reuse=shared))
    assert kept(shared / "features") == images  # not one more
    assert warm == outcome(run_of("simplecil", tmp_path / "cold"))
    assert len(kept(tmp_path / "cold" / "features")) == IMAGES  # without a shared folder, in that of the run


class Forgetting:
    """A logger that empties what is known at each boundary."""

    run: Run

    def start(self, identity: Mapping[str, Any], run_dir: Path, name: str, group: str | None) -> None: ...

    def log(self, kind: str, values: Mapping[str, Any], axes: Mapping[str, Any]) -> None:
        if kind == "boundary":
            shutil.rmtree(self.run.run_dir / "features")
            self.run.runtime.known._tables.clear()

    def table(self, name: str, columns: Any, rows: Any) -> None: ...

    def finish(self, status: str) -> None: ...


def test_it_carries_nothing_over_a_boundary(tmp_path: Path) -> None:
    forgetting = Forgetting()
    forgetting.run = run_of("slda", tmp_path / "forgets", "bf16", loggers=[forgetting])
    forgets, knows = outcome(forgetting.run), outcome(run_of("slda", tmp_path / "knows", "bf16"))
    assert forgets == knows
    assert not (tmp_path / "forgets" / "features").exists()


def test_what_is_known_is_asked_again_of_the_backbone(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    run_of("slda", tmp_path / "first", reuse=shared).execute()
    for path in (shared / "features").rglob("*.safetensors"):
        found = read_tensors(path, path.parent.name)
        found["features"] = found["features"].flip(0)  # those of other images, with a sum that is right
        write_tensors(path, found, path.parent.name)
    with pytest.raises(ContractError, match="answers differently when asked again"):
        run_of("simplecil", tmp_path / "second", reuse=shared).execute()


def test_an_audit_takes_over_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of("slda", tmp_path / "run", "bf16", tmp_path / "shared", keep="all", train_first=True)
    run.execute()
    assert list((tmp_path / "shared").glob("*.json"))
    assert list((tmp_path / "shared" / "features").iterdir())
    for owner, name in ((SharedPhases, "run"), (Table, "load")):
        monkeypatch.setattr(owner, name, lambda *given: pytest.fail("it was asked"))
    again = Redoing(Record.load(run.run_dir), run)
    for index in (0, 1):
        audit = again.redo(index, tmp_path / f"again-{index}")
        assert (audit.verdict, audit.key) == ("equal", "")


@pytest.mark.slow
def test_queries_of_a_frozen_transformer_are_known(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    found = outcome(run_of("l2p", tmp_path / "known"))
    assert found["results"] == outcome(run_of("l2p", tmp_path / "plain", None))["results"]
    assert len(kept(tmp_path / "known" / "features")) == 4 * 3  # training images are augmented steps of training


# one table ----------------------------------------------------------------------------------------------------------


def frozen_net() -> GrowingNet:
    """A small network, frozen."""
    make = partial(build_backbone, "smallconv", 3, 12)
    return freeze(NetFactory(make, mean=[0.5] * 3, std=[0.5] * 3)())


def some_images(count: int = 10) -> torch.Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def features_of(known: KnownFeatures, net: GrowingNet, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), known.lent():
        found: torch.Tensor = net(images).features
        return found


def tables(known: KnownFeatures) -> list[Table]:
    return list(known._tables.values())


def test_a_feature_is_that_of_its_image_whatever_came_with_it(tmp_path: Path) -> None:
    net, images = frozen_net(), some_images(BLOCK + 6)
    one, other = KnownFeatures(tmp_path / "one", "fp32"), KnownFeatures(tmp_path / "other", "fp32")
    found = torch.cat([features_of(one, net, part) for part in images.split(7)])
    assert torch.equal(found, features_of(other, net, images.flip(0)).flip(0))
    with one.fresh():
        assert torch.equal(features_of(one, net, images[3:5]), found[3:5])
        channels_last = images.contiguous(memory_format=torch.channels_last)
        assert torch.equal(features_of(one, net, channels_last), found)
    with torch.no_grad():
        torch.testing.assert_close(found, net(images).features)
    rounded = features_of(KnownFeatures(None, "bf16"), net, images)
    assert torch.equal(rounded, found.bfloat16().float())


def test_operations_are_billed_for_every_image_known_or_not(tmp_path: Path) -> None:
    net, images, counts = frozen_net(), some_images(), []
    known = KnownFeatures(tmp_path, "fp32")
    for run in (lambda: net(images), *(2 * [lambda: features_of(known, net, images)])):
        flops = Flops()
        with torch.no_grad(), flops.counting():
            run()
        counts.append(flops.count)
    assert counts[0] == counts[1] == counts[2] > 0


def test_a_changed_backbone_is_another_and_one_that_learns_is_not_known(tmp_path: Path) -> None:
    net, images, known = frozen_net(), some_images(), KnownFeatures(tmp_path, "fp32")
    before = features_of(known, net, images)
    next(net.parameters()).data.mul_(2)  # no version of the tensor tells
    assert not torch.equal(features_of(known, net, images), before)
    assert len(tables(known)) == 2
    net.backbone.register_forward_hook(lambda *given: None)  # does what nobody knows
    features_of(known, net, images)
    net = frozen_net().requires_grad_(True)
    features_of(known, net, images)
    assert len(tables(known)) == 2
    assert net(images).features.requires_grad


def test_weights_in_another_order_are_another_backbone(tmp_path: Path) -> None:
    """Their plain sum is the same, and no version of the tensor tells."""
    net, images, known = frozen_net(), some_images(), KnownFeatures(tmp_path, "fp32")
    features_of(known, net, images)
    for change in (lambda weight: weight.flip(0), lambda weight: weight.flip(1)):
        weight = [p for p in net.backbone.parameters() if p.ndim == 4][-1].data
        weight.copy_(change(weight).clone())
        with torch.no_grad():
            torch.testing.assert_close(features_of(known, net, images), net(images).features)
    assert len(tables(known)) == 3


def test_a_backbone_that_looks_at_the_batch_is_asked(tmp_path: Path) -> None:
    """Batch norm without running statistics: a feature depends on the company of its image."""
    net, images, known = frozen_net(), some_images(), KnownFeatures(tmp_path, "fp32")
    norm = next(m for m in net.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    norm.track_running_stats = False
    with torch.no_grad():
        assert torch.equal(features_of(known, net, images), net(images).features)
    assert not tables(known)


def test_maps_are_not_kept_and_who_looks_is_told(tmp_path: Path) -> None:
    with torch.no_grad(), KnownFeatures(tmp_path, "fp32").lent():
        stages = frozen_net()(some_images()).stages
    for look in (list, lambda found: found[-1]):
        with pytest.raises(ContractError, match="set trainer"):
            look(stages)


def test_what_is_damaged_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net, images, known = frozen_net(), some_images(), KnownFeatures(tmp_path, "fp32")
    right = features_of(known, net, images)
    known.save()
    path = next(tmp_path.rglob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(features_of(KnownFeatures(tmp_path, "fp32"), net, images), right)
    assert "computed again" in caplog.text
    write_tensors(path, {"images": torch.zeros(2, 3)}, path.parent.name)  # of somebody else
    with caplog.at_level(logging.WARNING):
        assert torch.equal(features_of(KnownFeatures(tmp_path, "fp32"), net, images), right)
    assert "holds no features of images" in caplog.text


def test_other_surroundings_are_another_table(tmp_path: Path) -> None:
    net, images = frozen_net(), some_images()
    names = set()
    for kind, environment in (("fp32", {}), ("bf16", {}), ("fp32", {"code": "2"})):
        known = KnownFeatures(tmp_path, kind, environment)
        features_of(known, net, images)
        names.add(tables(known)[0].folder.name)
    assert len(names) == 3
