"""experiment=pretrained_cifar100 at scale=paper: every row meets its first batch, on a ViT-B/16 of random weights."""

from __future__ import annotations

import pytest
import timm
from omegaconf import OmegaConf
from safetensors.torch import save_file

from cil.cli.build import build
from cil.cli.compose import compose
from cil.cli.names import conf_dir

FILE = OmegaConf.load(conf_dir() / "experiment" / "pretrained_cifar100.yaml")
ROWS = [f"strategy={name}" for name in FILE.hydra.sweeper.params.strategy.split(",")] + list(FILE.variants)
FEW_IMAGES = (  # as few digits as training takes; all else is of scale=paper
    "stream.dataset=digits",
    "stream.increment=5",
    "stream.train_per_class=2",
    "stream.test_per_class=2",
    "trainer.max_steps=1",
    "trainer.batch_size=4",
    "progress=false",
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file in timm's layout, as large as the public one."""
    path = tmp_path_factory.mktemp("weights") / "vit_b16.safetensors"
    save_file(timm.create_model("vit_base_patch16_224", num_classes=0).state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.timeout(3600)  # gpm decomposes what 48 layers were given: minutes an experience
@pytest.mark.parametrize("row", ROWS)
def test_every_row_trains_a_step_on_the_whole_transformer(row, weights, tmp_path):
    given = ["experiment=pretrained_cifar100", "scale=paper", *row.split(), *FEW_IMAGES, f"model.weights={weights}"]
    record = build(compose(given), root=tmp_path).execute()
    assert record.status == "finished"
    whole = row in ("strategy=slca", "strategy=gpm")  # these train all of it, and carry what it became
    one_channel = 85_798_656 - 2 * 16 * 16 * 768  # ViT-B/16 without a head; patches of digits
    assert record.results["ledger"][-1]["public"] == (0 if whole else 4 * one_channel)
