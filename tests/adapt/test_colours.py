"""Colour views: each change against torchvision's, the shares in which they happen."""

import pytest
import torch
from torchvision.transforms import functional as V

from cil.adapt.parts.colours import (
    blur,
    change_brightness,
    change_contrast,
    change_hue,
    change_saturation,
    colour_views,
    grey,
)

IMAGES = torch.rand(5, 3, 9, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("ours", "theirs", "amount"),
    [
        (change_brightness, V.adjust_brightness, 1.3),
        (change_contrast, V.adjust_contrast, 0.7),
        (change_saturation, V.adjust_saturation, 1.4),
        (change_hue, V.adjust_hue, 0.08),
        (change_hue, V.adjust_hue, -0.1),
    ],
)
def test_a_change_is_torchvisions(ours, theirs, amount):
    found = ours(IMAGES, torch.full((5, 1, 1, 1), amount))
    assert torch.allclose(found, theirs(IMAGES, amount), atol=2e-4)
    assert not torch.allclose(found, IMAGES, atol=1e-2)


def test_a_blur_is_torchvisions_with_each_images_own_sigma():
    sigmas = [0.1, 0.5, 1.0, 1.5, 2.0]
    found = blur(IMAGES, torch.tensor(sigmas).view(-1, 1, 1, 1))
    for image, view, sigma in zip(IMAGES, found, sigmas, strict=True):
        assert torch.allclose(view, V.gaussian_blur(image, [3, 3], [sigma]), atol=1e-5)


def test_a_third_of_a_turn_makes_red_green_and_grey_stays():
    red = torch.tensor([0.8, 0.1, 0.1]).view(1, 3, 1, 1)
    assert torch.allclose(
        change_hue(red, torch.tensor(1 / 3)), torch.tensor([0.1, 0.8, 0.1]).view(1, 3, 1, 1), atol=1e-6
    )
    plain = torch.full((1, 3, 1, 1), 0.4)
    assert torch.allclose(change_hue(plain, torch.tensor(0.2)), plain)


def test_images_are_drawn_for_one_by_one_and_changed_in_the_published_shares():
    images = IMAGES[:1].repeat(2000, 1, 1, 1)
    views = colour_views(images, torch.Generator().manual_seed(1))
    assert torch.equal(images, IMAGES[:1].repeat(2000, 1, 1, 1))
    assert views.min() >= 0
    assert views.max() <= 1
    same = (views == images).flatten(1).all(1).float().mean()
    assert same == pytest.approx(0.6 * 0.8 * 0.9, abs=0.04)
    without_colour = torch.isclose(views[:, :1], views, atol=1e-6).flatten(1).all(1).float().mean()
    assert without_colour == pytest.approx(0.1, abs=0.025)
    assert len(torch.unique(views.flatten(1), dim=0)) > 900
    again = colour_views(images, torch.Generator().manual_seed(1))
    assert torch.equal(views, again)


def test_images_of_one_channel_change_in_brightness_contrast_and_sharpness():
    images = IMAGES[:, :1].repeat(20, 1, 1, 1)
    views = colour_views(images, torch.Generator().manual_seed(1))
    assert views.shape == images.shape
    assert not torch.equal(views, images)
    assert torch.equal(grey(images), images)
