"""Codecs: what comes back, and the bytes that are charged; memories filled by actual size."""

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cil.data import ArrayStore, Samples
from cil.errors import ConfigError
from cil.memory import ExemplarMemory, tensor_bytes
from cil.memory.codecs import codec


def noise(count: int, shape: tuple[int, int, int] = (3, 16, 16), key: int = 0) -> Tensor:
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(key))


def smooth(count: int, shape: tuple[int, int, int] = (3, 16, 16)) -> Tensor:
    """A ramp for each image, brighter from one to the next."""
    ramp = torch.linspace(0, 100, shape[2]).expand(shape)
    return torch.stack([ramp + 10 * (k % 12) for k in range(count)]).to(torch.uint8)


def samples(pixels: Tensor, slots: list[int]) -> Samples:
    return Samples(ArrayStore(pixels), torch.tensor(slots))


def held(memory: ExemplarMemory, num_classes: int = 10) -> int:
    return sum(tensor_bytes(tensor) for tensor, _ in memory.tensors(num_classes).values())


shapes = st.tuples(st.sampled_from([1, 3]), st.integers(1, 12), st.integers(1, 12))


@given(shapes, st.integers(0, 4), st.sampled_from(["raw", "jpeg", "jpeg:20"]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_sizes_add_up_to_the_data_and_shapes_come_back(shape, count, name):
    pixels = noise(count, shape)
    data, sizes = codec(name).encode(pixels)
    assert data.dtype == torch.uint8
    assert len(sizes) == count
    assert int(sizes.sum()) == len(data)
    if count:
        back = codec(name).decode(data, sizes, shape)
        assert back.shape == pixels.shape
        assert back.dtype == torch.uint8


def test_raw_gives_back_every_bit_for_a_byte_a_value():
    pixels = noise(5).to(memory_format=torch.channels_last)
    data, sizes = codec("raw").encode(pixels)
    assert sizes.tolist() == [768] * 5
    assert torch.equal(codec("raw").decode(data, sizes, (3, 16, 16)), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_stores_what_a_jpeg_file_holds_and_comes_close(channels):
    from PIL import Image

    pixels = smooth(2, (channels, 16, 16))
    data, sizes = codec("jpeg:95").encode(pixels)
    file = data[: int(sizes[0])].numpy().tobytes()
    image = Image.open(io.BytesIO(file))
    assert (image.format, image.size, image.mode) == ("JPEG", (16, 16), "L" if channels == 1 else "RGB")
    back = codec("jpeg:95").decode(data, sizes, (channels, 16, 16))
    assert (back.int() - pixels.int()).abs().float().mean() < 3


def test_a_lower_quality_takes_fewer_bytes():
    pixels = noise(2, (3, 64, 64))
    fine, coarse = (int(codec(f"jpeg:{quality}").encode(pixels)[1].sum()) for quality in (90, 20))
    assert coarse < 0.6 * fine < 0.6 * pixels.numel()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("jpg", r"no codec 'jpg' \(strategy\.codec\); did you mean 'jpeg'"),
        ("jpeg:high", "jpeg:75"),
        ("raw:5", "no codec 'raw:5'"),
        ("jpeg:0", r"quality 0 is not in 1\.\.95"),
        ("jpeg:100", r"quality 100 is not in 1\.\.95"),
    ],
)
def test_an_unknown_codec_or_quality_is_refused_in_one_line(name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        codec(name)
    assert "\n" not in str(caught.value)


def test_jpeg_refuses_images_that_are_neither_grey_nor_colour():
    with pytest.raises(ConfigError, match=r"1 or 3 channels, not 4; set strategy\.codec=raw"):
        codec("jpeg").encode(noise(1, (4, 8, 8)))


# memories of variable size ------------------------------------------------------------------------------------------


def test_a_jpeg_memory_charges_its_actual_bytes_a_size_and_a_label_each():
    memory = ExemplarMemory("jpeg")
    pixels = torch.cat([noise(1), smooth(2)])
    memory.replace([samples(pixels, [0, 1, 1])])
    data, sizes = codec("jpeg").encode(pixels)
    assert held(memory) == len(data) + 3 * 4 + 3 * 1
    assert sizes[0] > sizes[1]
    kinds = {name: kind for name, (_, kind) in memory.tensors(10).items()}
    assert kinds == {"images": "exemplars", "sizes": "exemplars", "slots": "labels"}
    assert memory.survey_bytes() == 3 * 768


def test_an_image_is_compressed_once_however_often_the_memory_changes():
    memory = ExemplarMemory("jpeg:30", "random")
    memory.replace([samples(noise(6), [0] * 6)])
    first, bytes_of_first = memory.samples().pixels, memory.tensors(10)["sizes"][0]
    for slot in range(1, 6):
        memory.rebuild(samples(noise(6, key=slot), [slot] * 6), 6 - slot, lambda data: None, torch.Generator())
        memory.add(slot, samples(noise(1, key=9), [slot]))
    memory.replace([memory.samples()])
    assert torch.equal(memory.of_class(0).pixels, first[:1])
    assert torch.equal(memory.tensors(10)["sizes"][0][:1], bytes_of_first[:1])


def test_bytes_are_filled_by_actual_size_the_best_of_each_class_first():
    pixels = torch.cat([noise(8), smooth(8)])  # class 0 costs more than class 1
    data = samples(pixels, [0] * 8 + [1] * 8)

    def filled(capacity: int) -> ExemplarMemory:
        memory = ExemplarMemory("jpeg")
        memory.rebuild(data, 8, lambda part: part.pixels.flatten(1).double(), torch.Generator(), capacity)
        return memory

    whole = filled(10**6)
    assert whole.counts() == {0: 8, 1: 8}
    for quota in range(9):
        exact = held(_prefix(whole, quota))
        assert filled(exact).counts() == ({0: quota, 1: quota} if quota else {})
        assert held(filled(exact)) == exact
        if quota:  # one byte less: the last of the last class has to go, and nothing else
            assert filled(exact - 1).counts() == {0: quota} | ({1: quota - 1} if quota > 1 else {})


def _prefix(memory: ExemplarMemory, quota: int) -> ExemplarMemory:
    other = ExemplarMemory("jpeg")
    other.load({name: tensor for name, (tensor, _) in memory.tensors(2).items()}, (3, 16, 16))
    other.shrink(quota)
    return other


def test_side_data_count_when_bytes_are_filled():
    memory = ExemplarMemory("jpeg", extras={"logits": "replay_logits"})
    data = Samples(ArrayStore(smooth(4)), torch.tensor([0, 0, 1, 1]), extras={"logits": torch.zeros(4, 100)})
    _, sizes = codec("jpeg").encode(smooth(1))
    each = int(sizes[0]) + 4 + 1 + 400
    memory.rebuild(data, 2, lambda part: part.pixels.flatten(1).double(), torch.Generator(), 3 * each + 20)
    assert memory.counts() == {0: 2, 1: 1}
    assert held(memory) == pytest.approx(3 * each, abs=20)
