"""InfLoRA: sums whose inputs are out of the way of earlier ones."""

import pytest
import torch
from small_runs import bare, batch, bits, differing, observed

from cil.strategies.inflora import designed
from cil.strategies.parts.subspace import Subspace

TOY = {"rank": 2}


def test_what_is_designed_lies_outside_by_hand():
    """M = [e1], C = diag(4, 3, 1): e2 over the root of three; any B leaves the output on e1 as it was, bit for bit."""
    basis = Subspace(3)
    basis.basis[0, 0], basis.count = 1.0, torch.tensor(1)
    moments = torch.diag(torch.tensor([4.0, 3.0, 1.0], dtype=torch.float64))
    down = designed(moments, basis, 1).float()
    torch.testing.assert_close(down.abs(), torch.tensor([[0.0, 0.57735, 0.0]]))
    weight, up = torch.randn(5, 3), torch.randn(5, 1)
    assert torch.equal((weight + up @ down)[:, 0], weight[:, 0])
    two = designed(moments, basis, 3)
    assert two[1].abs().tolist() == pytest.approx([0, 0, 0.57735], abs=1e-5) and not two[2].any()  # nothing is left


def test_as_published_energies_are_squared_again():
    """C = diag(4.5, .5) has shares .9 and .1; squared .98780: one direction, where .95 needs two."""
    moments = torch.diag(torch.tensor([4.5, 0.5], dtype=torch.float64))
    assert Subspace(4).extend(torch.block_diag(moments, torch.zeros(2, 2)), 0.95) == 2
    assert Subspace(4).extend(torch.block_diag(moments @ moments, torch.zeros(2, 2)), 0.95) == 1
    assert round(4.5**2 / (4.5**2 + 0.5**2), 5) == 0.98780


def test_the_share_grows_by_a_step_and_is_of_what_was_asked_for(monkeypatch):
    shares = []
    monkeypatch.setattr(
        Subspace, "extend", lambda self, moments, share, *_, **__: shares.append((moments[0, 0].item(), share))
    )
    for energy in ("variance", "published"):
        learner = bare("inflora", classes=[1] * 6, energy=energy, **TOY)
        learner._moments = lambda samples: [3 * torch.eye(16)] * 2
        learner.after_experience(type("Experience", (), {"index": 5, "train": None}))
    assert [share for _, share in shares] == [pytest.approx(0.975)] * 4
    assert [first for first, _ in shares] == [3, 3, 9, 9]


def test_factors_of_the_past_and_all_down_projections_stay_and_inputs_are_protected(learn):
    seen = {}

    def see(when, learner, experience):
        t, now = experience.index, bits(learner.sums)
        if when == "prepared":
            assert not learner.sums.pairs[t].up.any()
            for block, basis in enumerate(learner.bases):
                inside = learner.sums.pairs[t].down[block, 0] - basis.outside(learner.sums.pairs[t].down[block, 0])
                assert inside.abs().max() < 1e-5
            seen.update(now)
        if when == "done":
            assert set(differing({name: seen[name] for name in now}, now)) == {f"pairs.{t}.up"}
            assert all(0 < basis.dimension <= 16 for basis in learner.bases)

    done = learn(observed("inflora", see))
    vit = sum(value.numel() for name, value in done.state(2).tensors.items() if name.startswith("vit."))
    for t in range(3):
        factors = 2 * 3 * 2 * 16 * (t + 1)
        assert done.ledger(t)["parameters"] == 4 * (vit + factors + 17 * 2 * (t + 1))
        assert done.ledger(t)["statistics"] == 2 * (4 * 16 * 8 + 8)


def test_before_the_first_step_the_network_is_the_backbone_and_old_rows_get_no_gradient():
    learner = bare("inflora", classes=[2, 2], **TOY)
    shown = batch(2, 3)
    assert torch.equal(learner.features(shown.images), learner.plain_features(learner.normalise(shown.images)))
    learner.loss(shown).backward()
    assert learner.sums.pairs[1].up.grad.any() and learner.sums.pairs[0].up.grad is None
    assert not learner.net.weight.grad[:2].any() and learner.net.weight.grad[2:].any(dim=1).all()


def test_the_bytes_of_a_vit_b16_by_hand():
    with torch.device("meta"):
        bases = [Subspace(768) for _ in range(12)]
    assert sum(4 * basis.basis.numel() for basis in bases) == 14_155_776
