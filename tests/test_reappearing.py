"""Classes may re-appear: every strategy learns from a stream in which they do."""

from __future__ import annotations

import pytest
import torch

from cil import strategies
from cil.engine.recipe import Recipe
from cil.streams import Stream, class_incremental
from cil.streams.base import ExperienceData, Signature
from cil.testing import check_stream, toy_run
from cil.testing.toy import toy_dataset


def reappearing() -> Stream:
    """Classes 0 and 1; then 2, 3 and other images of 0; then 4, 5 and 2."""
    whole = class_incremental(toy_dataset(), increment=6, order="natural")
    train, test = whole[0].train, whole.test(0)
    early = torch.arange(len(train)) % 2 == 0
    groups = [
        (train[(train.slots < 2) & early], (0, 1), 2),
        (train[torch.isin(train.slots, torch.tensor([2, 3])) & early | (train.slots == 0) & ~early], (2, 3), 4),
        (train[torch.isin(train.slots, torch.tensor([4, 5])) | (train.slots == 2) & ~early], (4, 5), 6),
    ]
    signatures, parts = [], []
    for index, (samples, new, seen) in enumerate(groups):
        counts = samples.counts()
        signatures.append(Signature(index, new, tuple(sorted(counts)), counts, whole.image_shape, seen))
        own = test[torch.isin(test.slots, torch.tensor(new))]
        parts.append(ExperienceData(lambda samples=samples: samples, lambda own=own: own))
    return Stream(
        name="toy_reappearing", classes=whole.classes, order=whole.order, signatures=signatures, parts=parts,
        fingerprint="made", augment=whole.augment, mean=whole.mean, std=whole.std,
    )  # fmt: skip


def test_the_stream_keeps_the_contract():
    check_stream(reappearing())


@pytest.mark.parametrize("name", [name for name in strategies.built_in() if not strategies.find(name).takes_task])
def test_every_strategy_learns_from_it(name, tmp_path):
    record = toy_run(name, reappearing(), tmp_path, recipe=Recipe(epochs=1, batch_size=12)).execute()
    assert record.status == "finished"
    assert record.results["class_counts"] == [8] * 6
    assert [bill["exemplars"] for bill in record.results["bills"]] == record.results["exemplars"]


def test_finetune_trains_the_outputs_of_classes_that_come_back(tmp_path):
    run = toy_run("finetune", reappearing(), tmp_path, keep="all")
    run.execute()
    before, after = (run.checkpoints.state(index).tensors["net.head.bias"] for index in (0, 1))
    assert not torch.equal(before[:1], after[:1]) and torch.isfinite(after).all()
