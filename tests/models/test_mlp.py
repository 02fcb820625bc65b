"""Fully connected models against a forward pass in NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from trainer.models.mlp import linear, mlp
from trainer.models.parts import ACTIVATIONS


def images_of(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def numbers(model: nn.Module, name: str) -> np.ndarray:
    return model.get_parameter(name).detach().double().numpy()


@pytest.mark.proves("model=linear", reference="numpy in float64", tolerance="1e-5 relative")
def test_linear_is_one_matrix_product_of_all_pixels() -> None:
    model = linear(input_shape=(2, 3, 4), num_outputs=5)
    images_NCHW = images_of(6, 2, 3, 4)
    flat = images_NCHW.double().numpy().reshape(6, 24)
    expected = np.einsum("nd,kd->nk", flat, numbers(model, "output.weight")) + numbers(model, "output.bias")
    np.testing.assert_allclose(model(images_NCHW).detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert count(model) == 24 * 5 + 5


@pytest.mark.proves("model=mlp", reference="numpy in float64", tolerance="1e-5 relative")
def test_mlp_is_linear_layers_with_relu_between() -> None:
    model = mlp(input_shape=(1, 2, 3), num_outputs=4, hidden=[7, 5])
    images_NCHW = images_of(8, 1, 2, 3)
    x = images_NCHW.double().numpy().reshape(8, 6)
    for layer in ("linear1", "linear2"):
        x = np.maximum(x @ numbers(model, f"{layer}.weight").T + numbers(model, f"{layer}.bias"), 0)
    expected = x @ numbers(model, "output.weight").T + numbers(model, "output.bias")
    np.testing.assert_allclose(model(images_NCHW).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.proves("model=mlp", reference="numbers of parameters counted by hand", tolerance="exact")
def test_parameter_counts_by_hand() -> None:
    assert count(mlp(input_shape=(1, 8, 8), num_outputs=10, hidden=[64, 64])) == 4160 + 4160 + 650
    # twice: batch norm replaces the bias (64 fewer) and adds a scale and a shift (128 more)
    assert count(mlp(input_shape=(1, 8, 8), num_outputs=10, hidden=[64, 64], norm="batch")) == 8970 + 2 * 64
    assert count(mlp(input_shape=(1, 8, 8), num_outputs=10, hidden=[64, 64], norm="layer")) == 8970 + 2 * 128
    assert count(mlp(input_shape=(1, 8, 8), num_outputs=1, hidden=[])) == 65


def test_norm_stands_before_and_dropout_after_the_activation() -> None:
    model = mlp(input_shape=(1, 2, 2), num_outputs=3, hidden=[5], norm="layer", activation="tanh", drop_prob=0.25)
    assert [(name, type(layer)) for name, layer in model.named_children()] == [
        ("flatten", nn.Flatten),
        ("linear1", nn.Linear),
        ("norm1", nn.LayerNorm),
        ("activation1", nn.Tanh),
        ("dropout1", nn.Dropout),
        ("output", nn.Linear),
    ]


def test_dropout_is_the_probability_to_drop() -> None:
    model = mlp(input_shape=(1, 1, 1), num_outputs=1, hidden=[10_000], activation="identity", drop_prob=0.9)
    kept = []
    model.get_submodule("dropout1").register_forward_hook(lambda layer, given, out: kept.append(out.ne(0)))
    torch.manual_seed(0)
    model(torch.ones(1, 1, 1, 1))
    assert 800 < int(kept[0].sum()) < 1200  # 1000 expected, standard deviation 30


@pytest.mark.parametrize(
    ("name", "at_one"),
    [
        ("relu", 1.0),
        ("leaky_relu", 1.0),
        ("elu", 1.0),
        ("selu", 1.05070098),
        ("gelu", 0.84134475),  # the normal distribution function at 1
        ("silu", 0.73105858),  # 1 / (1 + 1/e)
        ("mish", 0.86509839),  # tanh(ln(1 + e))
        ("softplus", 1.31326169),  # ln(1 + e)
        ("tanh", 0.76159416),
        ("sigmoid", 0.73105858),
        ("identity", 1.0),
    ],
)
def test_every_activation_by_its_value_at_one(name: str, at_one: float) -> None:
    model = mlp(input_shape=(1, 1, 1), num_outputs=1, hidden=[1], activation=name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        model.get_parameter("linear1.bias").zero_()
        model.get_parameter("output.bias").zero_()
        assert model(torch.ones(1, 1, 1, 1)).item() == pytest.approx(at_one, abs=1e-6)


def test_every_activation_is_in_the_table_above() -> None:
    (mark,) = test_every_activation_by_its_value_at_one.pytestmark  # type: ignore[attr-defined]
    assert {name for name, _ in mark.args[1]} == set(ACTIVATIONS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": [64, 0]}, r"hidden=\[64, 0\]: must be a list of whole numbers >= 1"),
        ({"hidden": [6.5]}, r"hidden=\[6.5\]: must be a list of whole numbers >= 1"),
        ({"norm": "bach"}, "norm=bach: must be one of none, batch, layer; did you mean batch"),
        ({"activation": "rleu"}, "activation=rleu: must be one of relu, .*; did you mean relu"),
        ({"drop_prob": 1.0}, r"drop_prob=1.0: must be a drop probability in \[0, 1\)"),
        ({"drop_prob": -0.1}, "drop_prob=-0.1: must be"),
        ({"drop_prob": float("nan")}, "drop_prob=nan: must be"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mlp(input_shape=(1, 8, 8), num_outputs=10, **arguments)
