"""AlexNet in two columns against the paper's numbers and against a hand-written model of two columns."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.alexnet_two_column import alexnet_two_column

SMALL = {"channels": [8, 8, 12, 12, 8], "hidden": [24, 16], "drop_prob": 0.0}


@pytest.mark.proves(
    "model=alexnet_two_column",
    reference="60,965,224 parameters, counted by hand from section 3.5 of the paper",
    tolerance="exact",
)
@pytest.mark.parametrize("side", [224, 227])
def test_it_has_as_many_parameters_as_the_papers(side: int) -> None:
    with torch.device("meta"):
        model = alexnet_two_column(input_shape=(3, side, side), num_outputs=1000)
        outputs = model(torch.empty(2, 3, side, side))
    assert outputs.shape == (2, 1000)
    # section 1 of the paper says 60 million; computed by hand from the kernels in section 3.5
    assert sum(p.numel() for p in model.parameters()) == 60_965_224
    kernels = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert kernels == [(96, 3, 11, 11), (256, 48, 5, 5), (384, 256, 3, 3), (384, 192, 3, 3), (256, 192, 3, 3)]


def by_columns(model: nn.Sequential, images_NCHW: Tensor) -> Tensor:
    """The same model as two separate columns that exchange maps only where the paper's figure has connections."""
    layers = dict(model.named_children())

    def half(name: str, x: Tensor, column: int, padding: int) -> Tensor:
        weight, bias = layers[name].weight.chunk(2)[column], layers[name].bias.chunk(2)[column]
        return F.relu(F.conv2d(x, weight, bias, padding=padding))

    both = [F.max_pool2d(half("conv1", images_NCHW, column, 2), 2) for column in (0, 1)]
    both = [F.max_pool2d(half("conv2", both[column], column, 2), 2) for column in (0, 1)]
    both = [half("conv3", torch.cat(both, 1), column, 1) for column in (0, 1)]
    both = [half("conv4", both[column], column, 1) for column in (0, 1)]
    both = [F.max_pool2d(half("conv5", both[column], column, 1), 2) for column in (0, 1)]
    features = torch.cat([column.flatten(1) for column in both], 1)
    hidden = F.relu(F.linear(features, layers["linear6"].weight, layers["linear6"].bias))
    hidden = F.relu(F.linear(hidden, layers["linear7"].weight, layers["linear7"].bias))
    return F.linear(hidden, layers["output"].weight, layers["output"].bias)


@pytest.mark.proves(
    "model=alexnet_two_column", reference="two columns written with torch's functions", tolerance="1e-14"
)
@pytest.mark.parametrize("side", [8, 32])
def test_columns_meet_at_one_convolution_and_at_the_top(side: int) -> None:
    torch.manual_seed(0)
    model = alexnet_two_column(input_shape=(3, side, side), num_outputs=10, **SMALL).double()
    images = torch.randn(4, 3, side, side, dtype=torch.float64)
    torch.testing.assert_close(model(images), by_columns(model, images), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("height", "width", "num_features"), [(8, 8, 8), (28, 28, 8 * 9), (32, 32, 8 * 16), (64, 64, 8), (8, 128, 8 * 16)]
)
def test_images_of_any_size_fit(height: int, width: int, num_features: int) -> None:
    with torch.device("meta"):
        model = alexnet_two_column(input_shape=(1, height, width), num_outputs=10, **SMALL)
        assert model(torch.empty(2, 1, height, width)).shape == (2, 10)
    assert model.get_submodule("linear6").in_features == num_features


def test_norms_and_dropout_stand_where_they_are_said_to() -> None:
    model = alexnet_two_column(
        input_shape=(1, 8, 8), num_outputs=10, channels=[2] * 5, hidden=[4], norm="batch", drop_prob=0.25
    )
    names = [name for name, _ in model.named_children()]
    convolutions = "conv1 norm1 activation1 pool1 conv2 norm2 activation2 pool2 conv3 norm3 activation3 conv4 norm4"
    assert names[:13] == convolutions.split()
    top = "activation4 conv5 norm5 activation5 pool5 flatten linear6 norm6 activation6 dropout6 output"
    assert names[13:] == top.split()
    assert model.get_submodule("dropout6").p == 0.25
    assert [name for name, _ in model.named_parameters() if name.endswith("bias") and "norm" not in name] == [
        "output.bias"
    ]


def test_its_plans_name_what_there_is() -> None:
    model = alexnet_two_column(input_shape=(1, 8, 8), num_outputs=10, channels=[2] * 5, hidden=[4, 4], norm="batch")
    children = [name for name, _ in model.named_children()]
    assert model.pipeline_plan == children[1:]
    assert model.tensor_plan == {
        "conv1": "column", "norm1": "split", "conv2": "group", "norm2": "split", "conv3": "cross", "norm3": "split",
        "conv4": "group", "norm4": "split", "conv5": "group", "norm5": "split", "linear6": "cross", "norm6": "split",
        "dropout6": "split", "linear7": "cross", "norm7": "split", "dropout7": "split", "output": "row",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": [8, 8]}, r"^channels=\[8, 8\]: must be a list of 5 even numbers >= 2, half of each per column$"),
        ({"channels": [8, 8, 7, 8, 8]}, r"channels=\[8, 8, 7, 8, 8\]: must be"),
        ({"hidden": [0]}, r"hidden=\[0\]: must be"),
        ({"norm": "layer"}, "norm=layer: must be one of none, batch"),
        ({"drop_prob": 1.0}, "drop_prob=1.0: must be"),
        ({"input_shape": (1, 7, 9)}, "model alexnet_two_column needs images of at least 8x8; data gives 7x9"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        alexnet_two_column(**{"input_shape": (1, 28, 28), "num_outputs": 10, **arguments})
