"""Source: what the trained network says, whatever came before."""

import torch


def test_it_answers_as_the_network_did_in_evaluation_mode(made):
    source = made.conv_source()
    images = made.pictures(5)
    with torch.no_grad():
        expected = source.net(images).logits
    adapter = made("source", source)
    for _ in range(2):
        assert torch.equal(adapter.adapt_and_predict(images), expected)
    assert torch.equal(adapter.adapt_and_predict(images[:1]), expected[:1]) or torch.allclose(
        adapter.adapt_and_predict(images[:1]), expected[:1], atol=1e-5
    )
