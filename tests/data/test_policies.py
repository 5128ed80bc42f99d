"""AutoAugment, RandAugment and Cutout: every image has operations and a hole of its own, by keyed draws."""

import math

import pytest
import torch
from torchvision.transforms.v2 import functional as f

from cil.data import Augment, to_float
from cil.data.policies import DRAWS, apply_policy, cut_hole
from cil.errors import ConfigError

PARTS = [{"policy": "autoaugment"}, {"policy": "randaugment"}, {"policy": "rand_m9"}, {"cutout": 6}]


def key(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(count=1, channels=3, size=24, seed=0):
    return torch.randint(20, 220, (count, channels, size, size), generator=key(seed), dtype=torch.uint8)


def draws(choices=(0.0, 0.0), chances=(0.0, 0.0), signs=(0.0, 0.0)):
    return torch.tensor([[*choices, *chances, *signs]])


# policies -----------------------------------------------------------------------------------------------------------

NAMES = (  # of the 14 operations of RandAugment, in the order in which a choice in [0, 1) meets them
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
LEAN = math.degrees(math.atan(0.27))
EXPECTED = {  # at nine tenths of the largest magnitude
    "Identity": lambda x: x,
    "ShearX": lambda x: f.affine(x, 0, [0, 0], 1, [LEAN, 0], center=[0, 0]),
    "ShearY": lambda x: f.affine(x, 0, [0, 0], 1, [0, LEAN], center=[0, 0]),
    "TranslateX": lambda x: torch.cat([torch.zeros_like(x[..., :10]), x[..., :-10]], 3),  # 150 / 331 * 24 * 0.9 = 9.8
    "TranslateY": lambda x: torch.cat([torch.zeros_like(x[..., :10, :]), x[..., :-10, :]], 2),
    "Rotate": lambda x: f.rotate(x, 27),
    "Brightness": lambda x: (x * 1.81).clamp(max=255).byte(),
    "Color": lambda x: f.adjust_saturation(x, 1.81),
    "Contrast": lambda x: f.adjust_contrast(x, 1.81),
    "Sharpness": lambda x: f.adjust_sharpness(x, 1.81),
    "Posterize": lambda x: x & 0b11110000,
    "Solarize": lambda x: torch.where(x >= 25.5, 255 - x, x),
    "AutoContrast": lambda x: f.autocontrast(x),
    "Equalize": lambda x: f.equalize(x),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", [0, 1])
def test_randaugment_does_each_operation_at_nine_tenths_of_its_largest_magnitude(name, place):
    choices = [0.0, 0.0]
    choices[place] = (NAMES.index(name) + 0.5) / 14
    found = apply_policy(noise(), draws(choices), "randaugment")
    assert (found.int() - EXPECTED[name](noise()).int()).abs().max() <= 1
    assert torch.equal(found, noise()) == (name == "Identity")


def test_a_sign_turns_an_operation_round():
    moved = apply_policy(noise(), draws((3.5 / 14, 0), signs=(0.5, 0.0)), "randaugment")
    assert torch.equal(moved, torch.cat([noise()[..., 10:], torch.zeros_like(noise()[..., :10])], 3))


def test_the_second_operation_sees_what_the_first_one_made():
    found = apply_policy(noise(), draws((3.5 / 14, 12.5 / 14)), "randaugment")
    moved = apply_policy(noise(), draws((3.5 / 14, 0)), "randaugment")
    assert torch.equal(found, f.autocontrast(moved))


def test_rand_m9_does_each_of_its_two_with_a_chance_of_one_half():
    x, last = noise(), 13.5 / 14  # of its 14, Invert; ShearX is the first
    assert torch.equal(apply_policy(x, draws((last, 0), (0.49, 0.5)), "rand_m9"), 255 - x)
    assert torch.equal(apply_policy(x, draws((last, 0), (0.5, 0.5)), "rand_m9"), x)
    assert torch.equal(apply_policy(x, draws((last, last), (0.49, 0.49)), "rand_m9"), x)  # there and back
    leant = apply_policy(x, draws((last, 0), (0.5, 0.49)), "rand_m9")
    assert (leant.int() - EXPECTED["ShearX"](x).int()).abs().max() <= 1


def test_autoaugment_takes_a_pair_and_each_of_its_operations_by_its_chance():
    """The first of 25 pairs: invert by 0.1; contrast by 0.2, at magnitude 6 of 9."""
    x = noise()
    assert torch.equal(apply_policy(x, draws((0.039, 0), (0.1, 0.2)), "autoaugment"), x)
    assert torch.equal(apply_policy(x, draws((0.039, 0), (0.09, 0.2)), "autoaugment"), 255 - x)
    found = apply_policy(x, draws((0.039, 0), (0.1, 0.19)), "autoaugment")
    assert torch.equal(found, f.adjust_contrast(x, 1.6))
    assert torch.equal(
        apply_policy(x, draws((0.039, 0), (0.1, 0.19), (0, 0.5)), "autoaugment"), f.adjust_contrast(x, 0.4)
    )
    # the second one: rotation by 0.7 at magnitude 2, translation by 0.3 at magnitude 9
    assert torch.equal(apply_policy(x, draws((0.041, 0), (0.69, 0.3)), "autoaugment"), f.rotate(x, 30 * 2 / 9))


@pytest.mark.parametrize("policy", ["autoaugment", "randaugment"])
@pytest.mark.parametrize("channels", [1, 3])
def test_in_a_batch_each_image_is_as_it_would_be_alone(policy, channels):
    pixels, drawn = noise(60, channels), torch.rand(60, DRAWS, generator=key(3))
    kept = pixels.clone()
    together = apply_policy(pixels, drawn, policy)
    alone = torch.cat([apply_policy(pixels[[k]], drawn[[k]], policy) for k in range(60)])
    assert (together.int() - alone.int()).abs().max() <= 1 and together.dtype == torch.uint8
    assert torch.equal(pixels, kept)
    changed = (together != pixels).flatten(1).any(1).float().mean()
    assert changed > 0.5


# the hole -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("draw", "rows", "columns"), [
    ((0.5, 0.5), (4, 8), (4, 8)), ((0.0, 0.5), (0, 2), (4, 8)), ((0.99, 0.01), (9, 12), (0, 2)),
])  # fmt: skip
def test_a_hole_is_a_square_around_a_pixel_cut_off_at_the_edge(draw, rows, columns):
    images = to_float(noise(size=12))
    found = cut_hole(images, torch.tensor([draw]), 4)
    expected = images.clone()
    expected[:, :, rows[0] : rows[1], columns[0] : columns[1]] = 0
    assert torch.equal(found, expected)


def test_every_pixel_is_equally_often_the_centre():
    images = torch.ones(5000, 1, 4, 4)
    holes = 1 - Augment(cutout=1)((255 * images).byte(), key())
    assert torch.equal(holes.sum((1, 2, 3)), torch.ones(5000))
    counts = holes.sum(0).flatten()  # 312 expected, standard deviation 17
    assert counts.min() > 240 and counts.max() < 385


# as augmentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_the_same_key_gives_the_same_bits_and_each_image_its_own(part):
    augment, pixels = Augment(**part), noise().repeat(40, 1, 1, 1)
    assert not augment.is_identity
    first = augment(pixels, key(1))
    assert torch.equal(augment(pixels, key(1)), first) and not torch.equal(augment(pixels, key(2)), first)
    assert len(first.flatten(1).unique(dim=0)) > 10
    assert first.min() >= 0 and first.max() <= 1 and first.dtype == torch.float32


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_crops_and_flips_stay_what_they_were(part):
    """The draws of a policy and of a hole are made after all others."""
    pixels, given = noise(30), {"crop_padding": 2, "flip": True, "brightness": 0.3}
    generators = key(4), key(4)
    before = Augment(**given)(pixels, generators[0])
    drawn = torch.rand(30, DRAWS + 2, generator=generators[0])
    found = Augment(**given, **part)(pixels, generators[1])
    if "cutout" in part:
        expected = cut_hole(before, drawn[:, DRAWS:], 6)
    else:
        expected = to_float(apply_policy((255 * before).round().byte(), drawn[:, :DRAWS], part["policy"]))
    assert torch.equal(found, expected)


def test_a_hole_is_cut_where_it_would_be_without_a_policy_and_into_what_the_policy_made():
    pixels = noise(30)
    alone = Augment(cutout=6)(pixels, key(4)) == 0
    both = Augment(cutout=6, policy="autoaugment")(pixels, key(4))
    assert not both[alone].any() and both[~alone].any()


def test_what_stands_in_for_stored_features_is_left_alone():
    pixels = torch.full((5, 1, 1, 1), 7, dtype=torch.uint8)
    assert torch.equal(Augment(policy="randaugment", cutout=8)(pixels, key()), to_float(pixels))


@pytest.mark.parametrize(("given", "message"), [
    ({"policy": "trivial"}, r"stream\.augment\.policy is 'trivial'; allowed: null, autoaugment, randaugment"),
    ({"cutout": -1}, r"stream\.augment\.cutout is -1; it must be a whole number >= 0"),
    ({"cutout": 2.5}, r"stream\.augment\.cutout is 2\.5"),
])  # fmt: skip
def test_wrong_arguments_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Augment(**given)


def test_a_policy_needs_one_channel_or_three():
    with pytest.raises(ConfigError, match="needs images of 1 or 3 channels, not 2"):
        Augment(policy="autoaugment").bind(noise(2, channels=2))
