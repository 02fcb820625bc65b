"""Initializers against fan values by hand, torch's own functions bit by bit, and deep networks."""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from trainer.initializers import KaimingNormal, KaimingUniform, Normal, XavierNormal, XavierUniform

FOLDER = Path(__file__).parents[1] / "configs" / "initializer"
Initializer = Callable[[nn.Module], None]


def drawn(initializer: Initializer, layer: nn.Linear | nn.Conv2d, seed: int = 0) -> Tensor:
    """The initialized weights of a layer; asserts that they have changed."""
    before = layer.weight.detach().clone()
    torch.manual_seed(seed)
    initializer(nn.Sequential(layer))
    assert not torch.equal(before, layer.weight)
    return layer.weight.detach()


def linear() -> nn.Linear:
    return nn.Linear(300, 700)  # fan_in 300, fan_out 700


def conv() -> nn.Conv2d:
    return nn.Conv2d(40, 120, 5)  # fan_in 40 * 25 = 1000, fan_out 120 * 25 = 3000, or 120 by channels


NORMAL = [
    (Normal(0.05), linear, 0.0025),
    (XavierNormal(), linear, 2 / 1000),
    (XavierNormal(), conv, 2 / 4000),
    (XavierNormal(gain=3.0), linear, 18 / 1000),
    (KaimingNormal(), linear, 2 / 300),
    (KaimingNormal(), conv, 2 / 1000),
    (KaimingNormal(mode="fan_out"), linear, 2 / 700),
    (KaimingNormal(mode="fan_out"), conv, 2 / 3000),
    (KaimingNormal(mode="fan_out", conv_fan_out="channels"), conv, 2 / 120),
    (KaimingNormal(mode="fan_out", conv_fan_out="channels"), linear, 2 / 700),
    (KaimingNormal(nonlinearity="linear"), linear, 1 / 300),
    (KaimingNormal(nonlinearity="sigmoid"), linear, 1 / 300),
    (KaimingNormal(nonlinearity="tanh"), linear, 25 / 9 / 300),
    (KaimingNormal(nonlinearity="selu"), linear, 9 / 16 / 300),
    (KaimingNormal(nonlinearity="leaky_relu", a=0.5), linear, 1.6 / 300),
]
UNIFORM = [
    (XavierUniform(), linear, 6 / 1000),
    (XavierUniform(), conv, 6 / 4000),
    (XavierUniform(gain=0.5), linear, 1.5 / 1000),
    (KaimingUniform(), linear, 6 / 300),
    (KaimingUniform(), conv, 6 / 1000),
    (KaimingUniform(mode="fan_out"), conv, 6 / 3000),
    (KaimingUniform(mode="fan_out", conv_fan_out="channels"), conv, 6 / 120),
    (KaimingUniform(nonlinearity="leaky_relu", a=1.0), linear, 3 / 300),
]


@pytest.mark.parametrize(("initializer", "layer", "variance"), NORMAL)
def test_normal_ones_have_the_variance_by_hand(
    initializer: Initializer, layer: Callable[[], nn.Linear], variance: float
) -> None:
    weights = drawn(initializer, layer()).double().flatten()
    n = len(weights)
    sigma = variance**0.5
    assert abs(weights.mean()) < 5 * sigma / n**0.5
    assert weights.var().item() == pytest.approx(variance, rel=5 * (2 / n) ** 0.5)
    # neither truncated nor uniform: 4.55 % of a normal distribution are beyond two standard deviations
    assert (weights.abs() > 2 * sigma).double().mean().item() == pytest.approx(0.0455, abs=0.003)
    assert weights.abs().max() > 4 * sigma


@pytest.mark.parametrize(("initializer", "layer", "bound_squared"), UNIFORM)
def test_uniform_ones_have_the_bounds_by_hand(
    initializer: Initializer, layer: Callable[[], nn.Linear], bound_squared: float
) -> None:
    weights = drawn(initializer, layer()).double().flatten()
    n, bound = len(weights), bound_squared**0.5
    assert 0.999 * bound < weights.max() <= bound * (1 + 1e-6)
    assert -0.999 * bound > weights.min() >= -bound * (1 + 1e-6)
    assert abs(weights.mean()) < 5 * bound / (3 * n) ** 0.5
    assert (weights.abs() < bound / 2).double().mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Normal(0.05), lambda w: nn.init.normal_(w, 0, 0.05)),
        (XavierNormal(2.0), lambda w: nn.init.xavier_normal_(w, 2.0)),
        (XavierUniform(2.0), lambda w: nn.init.xavier_uniform_(w, 2.0)),
        (KaimingNormal("fan_out", "tanh"), lambda w: nn.init.kaiming_normal_(w, 0, "fan_out", "tanh")),
        (KaimingNormal("fan_in", "leaky_relu", 0.2), lambda w: nn.init.kaiming_normal_(w, 0.2)),
        (KaimingUniform("fan_out"), lambda w: nn.init.kaiming_uniform_(w, 0, "fan_out", "relu")),
    ],
)
def test_equal_torchs_functions_layer_after_layer(ours: Initializer, theirs: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Sequential(nn.Conv1d(3, 5, 7), nn.Linear(6, 9)))
    torch.manual_seed(11)
    ours(model)
    torch.manual_seed(11)
    for layer in (model[0], model[1][0], model[1][1]):
        torch.testing.assert_close(layer.weight.detach(), theirs(torch.empty_like(layer.weight)), rtol=1e-6, atol=0)


def test_biases_become_zero_norms_one_and_the_rest_stays() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.GroupNorm(1, 3),
        nn.InstanceNorm2d(3, affine=True),
        nn.Linear(3, 4, bias=False),
        nn.LayerNorm(4),
        nn.RMSNorm(4),
        nn.BatchNorm1d(4, affine=False),
        nn.Embedding(5, 4),
        nn.PReLU(),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    KaimingNormal()(model)
    left = {name for name, p in model.named_parameters() if bool((p == 7).all())}
    assert left == {"8.weight", "9.weight"}
    for index in (0, 1, 2, 3, 5):
        assert torch.count_nonzero(model[index].bias) == 0
    for index in (1, 2, 3, 5, 6):
        assert torch.equal(model[index].weight.detach(), torch.ones(4 if index > 3 else 3))
    assert all(p.requires_grad and p.grad_fn is None for p in model.parameters())


def test_half_precision_weights_are_the_rounded_float32_ones() -> None:
    full, half = nn.Linear(20, 30), nn.Linear(20, 30).to(torch.bfloat16)
    assert torch.equal(drawn(XavierUniform(), half), drawn(XavierUniform(), full).to(torch.bfloat16))


def test_seeds_decide() -> None:
    one, again, other = (drawn(KaimingNormal(), linear(), seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_model_on_meta_is_accepted() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        KaimingNormal()(model)
    assert all(p.is_meta for p in model.parameters())


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="no linear or convolution layer"):
        Normal()(nn.Sequential(nn.Flatten(), nn.ReLU()))


def variance_ratio(initializer: Initializer, activation: nn.Module) -> float:
    """Mean square of the activations of layer 30 over those of layer 1; mean of 24 networks of width 250.

    For relu the ratio of one network is log-normal with log variance 30 * 5 / 250; the mean of 24 has deviation 0.18.
    """
    torch.manual_seed(0)
    layer = nn.Linear(250, 250, bias=False)
    ratios = []
    for _ in range(24):
        x_ND = torch.randn(16, 250)
        squares = []
        for _ in range(30):
            initializer(layer)
            with torch.no_grad():
                x_ND = activation(layer(x_ND))
            squares.append(x_ND.square().mean().item())
        ratios.append(squares[-1] / squares[0])
    return sum(ratios) / len(ratios)


MATCHING = [
    (KaimingNormal(), nn.ReLU()),
    (KaimingUniform(), nn.ReLU()),
    (KaimingNormal(nonlinearity="leaky_relu", a=0.3), nn.LeakyReLU(0.3)),
    (KaimingNormal(nonlinearity="tanh"), nn.Tanh()),
    (KaimingNormal(nonlinearity="linear"), nn.Identity()),
    (XavierNormal(), nn.Identity()),
    (XavierUniform(), nn.Identity()),
    (XavierNormal(gain=5 / 3), nn.Tanh()),
]
WRONG = [
    (KaimingNormal(nonlinearity="linear"), nn.ReLU()),
    (XavierNormal(), nn.ReLU()),
    (XavierUniform(), nn.ReLU()),
    (KaimingUniform(), nn.Identity()),
    (KaimingNormal(), nn.LeakyReLU(0.3)),
    (KaimingNormal(nonlinearity="linear"), nn.Tanh()),
    (Normal(0.01), nn.ReLU()),
    (Normal(0.05), nn.ReLU()),
    (Normal(0.01), nn.Tanh()),
]


@pytest.mark.parametrize(("initializer", "activation"), MATCHING)
def test_the_matching_one_keeps_the_variance_through_30_layers(initializer: Initializer, activation: nn.Module) -> None:
    assert 0.5 < variance_ratio(initializer, activation) < 2


@pytest.mark.parametrize(("initializer", "activation"), WRONG)
def test_the_wrong_one_does_not(initializer: Initializer, activation: nn.Module) -> None:
    ratio = variance_ratio(initializer, activation)
    assert ratio < 0.5 or ratio > 2


def test_fan_out_keeps_the_variance_of_gradients() -> None:
    """With layers that are each four times as wide: fan_out preserves the gradient, fan_in the activation."""
    ratios = {}
    for mode in ("fan_in", "fan_out"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(200, 800), nn.ReLU(), nn.Linear(800, 3200), nn.ReLU())
        KaimingNormal(mode=mode)(model)
        x_ND = torch.randn(256, 200, requires_grad=True)
        out_ND = model(x_ND)
        gradient_ND = torch.randn_like(out_ND)
        out_ND.backward(gradient_ND)
        assert x_ND.grad is not None
        ratios[mode] = (out_ND.square().mean() * 2).item(), x_ND.grad.square().mean().item()
    # relu halves the variance of a gradient, which the gain restores; 4 * 4 is the ratio of widths
    forward, backward = ratios["fan_in"]
    assert (forward, backward) == pytest.approx((2, 16), rel=0.2)
    forward, backward = ratios["fan_out"]
    assert (forward, backward) == pytest.approx((2 / 16, 1), rel=0.2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Normal(0), "^std=0: must be a number above 0$"),
        (lambda: Normal(float("inf")), "^std=inf: must be"),
        (lambda: XavierNormal(-1.0), "^gain=-1.0: must be a number above 0$"),
        (lambda: XavierUniform(float("nan")), "^gain=nan: must be"),
        (
            lambda: KaimingNormal(mode="fanin"),
            "^mode=fanin: must be one of fan_in, fan_out; did you mean fan_in",
        ),
        (
            lambda: KaimingUniform(nonlinearity="rleu"),
            "^nonlinearity=rleu: must be one of .*did you mean relu",
        ),
        (lambda: KaimingNormal(conv_fan_out="channel"), "^conv_fan_out=channel: .*did you mean channels"),
        (lambda: KaimingNormal(conv_fan_out="channels"), "^conv_fan_out=channels: .*unless mode=fan_out"),
        (lambda: KaimingNormal(a=0.2), "^a=0.2: must be 0 unless nonlinearity=leaky_relu$"),
        (
            lambda: KaimingNormal(nonlinearity="leaky_relu", a=float("nan")),
            "^a=nan: must be a finite number$",
        ),
    ],
)
def test_bad_arguments_are_named(build: Callable[[], Initializer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_yaml_lists_every_key_with_its_default(path: Path) -> None:
    assert path.read_text().startswith("# ")
    keys: Any = OmegaConf.to_container(OmegaConf.load(path))
    if path.stem == "default":
        assert keys == {}
        return
    module, _, name = keys.pop("_target_").rpartition(".")
    initializer = getattr(importlib.import_module(module), name)
    assert keys == {key: p.default for key, p in inspect.signature(initializer).parameters.items()}
    assert name.lower() == path.stem.replace("_", "")
