"""The vision transformer against torchvision's with the same weights, and its parameters by hand."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.ops import StochasticDepth

from trainer.initializers import IdentityResidual, Orthogonal
from trainer.initializers.weights import left_alone
from trainer.models.vit import vit

SMALL = {"input_shape": (3, 8, 8), "num_outputs": 5, "dim": 12, "depth": 2, "num_heads": 3, "hidden": 20}


def build(**arguments: object) -> nn.Sequential:
    torch.manual_seed(0)
    return vit(**(SMALL | arguments))  # type: ignore[arg-type]


def images(height: int = 8, width: int = 8) -> Tensor:
    return torch.randn(4, 3, height, width, generator=torch.Generator().manual_seed(1))


NAMES = {"patches.embed": "conv_proj", "norm": "encoder.ln", "output": "heads.head"}
BLOCK = {"attention{}.norm": "ln_1", "attention{}.output": "self_attention.out_proj", "feed_forward{}.norm": "ln_2",
         "feed_forward{}.linear1": "mlp.0", "feed_forward{}.linear2": "mlp.3"}  # fmt: skip


def as_torchvisions(own: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    names = NAMES | {
        mine.format(number): f"encoder.layers.encoder_layer_{number - 1}.{theirs}"
        for number in range(1, depth + 1)
        for mine, theirs in BLOCK.items()
    }
    state = {f"{theirs}.{kind}": own[f"{mine}.{kind}"] for mine, theirs in names.items() for kind in ("weight", "bias")}
    for number in range(1, depth + 1):
        for kind in ("weight", "bias"):
            parts = [own[f"attention{number}.{name}.{kind}"] for name in ("query", "key", "value")]
            state[f"encoder.layers.encoder_layer_{number - 1}.self_attention.in_proj_{kind}"] = torch.cat(parts)
    return state | {"class_token": own["patches.class_token"], "encoder.pos_embedding": own["patches.positions"]}


@pytest.mark.proves(
    "model=vit",
    reference="torchvision's VisionTransformer with the same weights, outputs and gradients",
    tolerance="1e-10 relative, gradients 1e-9",
)
@pytest.mark.parametrize("drop_prob", [0.0, 0.3])
def test_it_equals_torchvisions_with_the_same_weights(drop_prob: float) -> None:
    ours = build(patch=2, drop_prob=drop_prob).double().eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.5)
    theirs = VisionTransformer(
        8, 2, num_layers=2, num_heads=3, hidden_dim=12, mlp_dim=20, dropout=drop_prob, num_classes=5
    )
    theirs.double().eval().load_state_dict(as_torchvisions(ours.state_dict(), depth=2))
    sites = [[m.p for m in model.modules() if isinstance(m, nn.Dropout) and m.p] for model in (ours, theirs)]
    assert sites[0] == sites[1]
    assert len(sites[0]) == (7 if drop_prob else 0)
    results = [model(images().double()) for model in (ours, theirs)]
    for result in results:
        result.square().sum().backward()
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, gradient in as_torchvisions(gradients, depth=2).items():  # type: ignore[arg-type]
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-11)


@pytest.mark.proves(
    "model=vit",
    reference="numbers of parameters counted by hand, and that of torchvision's vit_b_16",
    tolerance="exact",
)
def test_parameters_by_hand() -> None:
    with torch.device("meta"):
        base = vit(input_shape=(3, 224, 224), num_outputs=1000, dim=768, depth=12, num_heads=12, hidden=3072)
    assert sum(p.numel() for p in base.parameters()) == 86_567_656  # torchvision's vit_b_16
    # 16 patches of 12 numbers: (12 + 1) * 12; (16 + 2) * 12; blocks; 2 * 12; 13 * 5
    block = 4 * (144 + 12) + 2 * 12 * 20 + 20 + 12 + 4 * 12
    counts = {pool: sum(p.numel() for p in build(pool=pool).parameters()) for pool in ("class_token", "mean")}
    assert counts["class_token"] == 156 + 216 + 2 * block + 24 + 65
    assert counts["class_token"] - counts["mean"] == 2 * 12


@pytest.mark.parametrize(
    ("height", "width", "patch"),
    [(8, 8, 2), (28, 28, 4), (32, 32, 4), (64, 64, 8), (96, 96, 12), (224, 224, 16), (6, 9, 1), (31, 31, 1), (3, 3, 1)],
)
def test_the_patch_size_follows_from_the_image_size(height: int, width: int, patch: int) -> None:
    with torch.device("meta"):
        model = build(input_shape=(3, height, width))
        assert model(torch.empty(2, 3, height, width)).shape == (2, 5)
    embed = model.get_submodule("patches.embed")
    assert isinstance(embed, nn.Conv2d) and embed.kernel_size == embed.stride == (patch, patch)


def test_the_mean_of_tokens_does_not_depend_on_their_order() -> None:
    model = build(pool="mean")
    nn.init.zeros_(model.get_parameter("patches.positions"))
    turned = images().unflatten(3, (4, 2)).roll(1, 3).flatten(3)  # patches, one place to the right
    torch.testing.assert_close(model(turned), model(images()))
    with_class_token = build()
    assert not torch.allclose(with_class_token(turned), with_class_token(images()), atol=1e-4)


def test_initializers_leave_only_the_embeddings_alone() -> None:
    model = build()
    assert left_alone(model) == ["patches.class_token", "patches.positions"]
    Orthogonal()(model)
    weight = model.get_parameter("attention1.key.weight").detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(12))
    IdentityResidual()(model)
    silent = model[1:-3]  # the blocks
    tokens = torch.randn(2, 17, 12)
    assert torch.equal(silent(tokens), tokens)


def test_dropped_branches_get_more_frequent_with_depth() -> None:
    model = build(stochastic_depth=0.4, drop_prob=0.1)
    rates = [m.p for m in model.modules() if type(m).__name__ == "StochasticDepth"]
    assert rates == pytest.approx([0.2, 0.2, 0.4, 0.4])
    block = build(stochastic_depth=0.999, depth=1).get_submodule("attention1").train()
    tokens = torch.randn(6, 17, 12)
    torch.manual_seed(0)
    assert torch.equal(block(tokens), tokens), "every branch is dropped"
    theirs, ours = StochasticDepth(0.5, "row"), build(stochastic_depth=0.5).get_submodule("attention2.stochastic_depth")
    drawn = []
    for module in (theirs, ours):
        torch.manual_seed(1)
        drawn.append(module(tokens))
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch": 3}, "^patch=3: must be a divisor of both sides of the 8x8 images"),
        ({"patch": 0}, "^patch=0: must be at least 1"),
        (
            {"input_shape": (3, 227, 227)},
            "^patch=null: must be given, .*no patch size up to 16 divides both.* 227x227$",
        ),
        ({"num_heads": 5}, "^num_heads=5: must be a divisor of dim=12"),
        ({"depth": 0}, "^depth=0: must be at least 1"),
        ({"pool": "max"}, "^pool=max: must be one of class_token, mean"),
        ({"activation": "gellu"}, "did you mean gelu"),
        ({"drop_prob": 1}, "^drop_prob=1: must be a drop probability"),
        ({"stochastic_depth": -0.1}, "^stochastic_depth=-0.1: must be"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_a_rank_has_whole_heads() -> None:
    from trainer.parallelism.split_layers import check_split
    from trainer.parallelism.tensor import contracts

    model = build(dim=18, num_heads=3)
    with pytest.raises(ValueError, match=r"^tensor=2: must divide the 3 heads of attention1.query"):
        check_split(contracts.tensor_plan(model), model, 2, "tensor=2")
