"""BN statistics: of the batch, or mixed with the source's."""

import pytest
import torch

from cil.errors import ConfigError


def test_pixels_are_normalised_by_the_batch(made):
    adapter = made("bn_stats", made.one_norm())
    assert adapter.adapt_and_predict(made.crossed).tolist() == [
        pytest.approx([-1, 1], abs=1e-5),
        pytest.approx([1, -1], abs=1e-5),
    ]
    assert "net.norm.running_mean" not in adapter.state().tensors  # what is not used is not carried


def test_alpha_is_the_share_of_the_batch(made):
    source = made.one_norm()
    source.net.norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
    source.net.norm.running_var.copy_(torch.tensor([0.5, 1.0]))
    adapter = made("bn_stats", source, alpha=0.25)
    # batch: means 0.4 and 0.6, variances 0.04; so means 0.85, 1.65 and variances 0.385, 0.76
    expected = [(0.2 - 0.85) / 0.385**0.5, (0.8 - 1.65) / 0.76**0.5]
    for _ in range(2):  # nothing moves from batch to batch
        assert adapter.adapt_and_predict(made.crossed)[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert adapter.state().tensors["net.norm.running_mean"].tolist() == [1, 2]


def test_alpha_0_is_the_source_and_alpha_near_1_the_batch(made):
    images = made.pictures(6)
    answers = {alpha: made("bn_stats", alpha=alpha).adapt_and_predict(images) for alpha in (0.0, 1 - 1e-7, 1.0)}
    torch.testing.assert_close(answers[0.0], made("source").adapt_and_predict(images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(answers[1 - 1e-7], answers[1.0], rtol=1e-4, atol=1e-4)
    assert (answers[0.0] - answers[1.0]).abs().max() > 0.1


def test_a_share_above_1_is_refused(made):
    with pytest.raises(ConfigError, match=r"adapter.alpha of bn_stats is 2; it must be between 0 and 1"):
        made("bn_stats", alpha=2)
