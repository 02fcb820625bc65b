"""LeNet against the published parameter counts and against a hand-written forward pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.lenet import lenet


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.proves(
    "model=lenet", reference="the 431,080 parameters of Caffe's LeNet", tolerance="exact, layer by layer"
)
def test_caffe_lenet_has_431080_parameters() -> None:
    model = lenet(input_shape=(1, 28, 28), num_outputs=10, channels=[20, 50], hidden=[500], norm="none")
    assert count(model) == 431_080
    # conv1 20*25+20, conv2 50*20*25+50, 4*4*50 = 800 inputs to 500, 500 to 10
    assert [p.numel() for p in model.parameters()] == [500, 20, 25_000, 50, 400_000, 500, 5_000, 10]


def test_lenet5_has_61706_parameters() -> None:
    model = lenet(input_shape=(1, 32, 32), num_outputs=10, channels=[6, 16], hidden=[120, 84], norm="none")
    assert count(model) == 61_706


def reference(model: nn.Module, images_NCHW: Tensor, padding: int) -> Tensor:
    w = dict(model.named_parameters())
    x = F.max_pool2d(F.relu(F.conv2d(images_NCHW, w["conv1.weight"], w["conv1.bias"], padding=padding)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, w["conv2.weight"], w["conv2.bias"], padding=padding)), 2)
    x = F.relu(F.linear(x.flatten(1), w["linear3.weight"], w["linear3.bias"]))
    return F.linear(x, w["output.weight"], w["output.bias"])


# 24 is the last size whose unpadded last map (3x3) would be smaller than Caffe's 4x4
@pytest.mark.proves("model=lenet", reference="the same network written with torch's functions", tolerance="bitwise")
@pytest.mark.parametrize(("size", "padding"), [(28, 0), (32, 0), (8, 2), (16, 2), (24, 2), (27, 2), (4, 2)])
def test_padding_and_layers_equal_functions_of_torch(size: int, padding: int) -> None:
    model = lenet(input_shape=(2, size, size), num_outputs=3, channels=[4, 5], hidden=[6], norm="none")
    images_NCHW = torch.randn(3, 2, size, size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(images_NCHW), reference(model, images_NCHW, padding))


def test_images_need_not_be_square() -> None:
    model = lenet(input_shape=(1, 28, 40), num_outputs=3)
    # 40 -> 36 -> 18 -> 14 -> 7 beside 28 -> 4
    assert model.get_parameter("linear3.weight").shape == (500, 50 * 4 * 7)
    assert model(torch.zeros(2, 1, 28, 40)).shape == (2, 3)
    # the shorter side alone would be padded
    model = lenet(input_shape=(1, 8, 40), num_outputs=3)
    assert model.get_parameter("linear3.weight").shape == (500, 50 * 2 * 10)


def test_norm_and_dropout_have_their_places() -> None:
    model = lenet(
        input_shape=(1, 8, 8),
        num_outputs=3,
        channels=[4],
        hidden=[5],
        norm="batch",
        drop_prob=0.5,
        activation="tanh",
    )
    assert [(name, type(layer)) for name, layer in model.named_children()] == [
        ("conv1", nn.Conv2d),
        ("norm1", nn.BatchNorm2d),
        ("activation1", nn.Tanh),
        ("pool1", nn.MaxPool2d),
        ("flatten", nn.Flatten),
        ("linear2", nn.Linear),
        ("norm2", nn.BatchNorm1d),
        ("activation2", nn.Tanh),
        ("dropout2", nn.Dropout),
        ("output", nn.Linear),
    ]
    assert model.get_submodule("conv1").bias is None


def test_too_small_images_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"^model lenet needs images of at least 4x4; data gives 3x28$"):
        lenet(input_shape=(1, 3, 28), num_outputs=10)
    with pytest.raises(ValueError, match=r"^model lenet needs images of at least 16x16; data gives 8x8$"):
        lenet(input_shape=(1, 8, 8), num_outputs=10, channels=[4, 4, 4, 4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": []}, r"channels=\[\]: must be a list of at least 1 of whole numbers >= 1"),
        ({"channels": [20, -1]}, r"channels=\[20, -1\]: must be"),
        ({"hidden": [0]}, r"hidden=\[0\]: must be"),
        ({"norm": "layer"}, "norm=layer: must be one of none, batch"),
        ({"drop_prob": 2}, "drop_prob=2: must be"),
        ({"activation": "gleu"}, "did you mean gelu"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lenet(input_shape=(1, 28, 28), num_outputs=10, **arguments)
