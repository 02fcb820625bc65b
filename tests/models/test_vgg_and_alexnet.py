"""VGG and AlexNet against parameter counts of the papers and torchvision's models with the same weights."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision import models as torchvision_models
from torchvision.models.vgg import make_layers

from trainer.models.alexnet import alexnet
from trainer.models.vgg import vgg


@pytest.mark.proves(
    "model=alexnet",
    "model=vgg",
    reference="the numbers of parameters of the papers, 62,378,344 and 138,357,544 (VGG-16)",
    tolerance="exact",
)
@pytest.mark.parametrize(
    ("build", "side", "arguments", "count"),
    [
        (alexnet, 224, {}, 62_378_344),
        (alexnet, 227, {}, 62_378_344),
        (vgg, 224, {"depth": 11}, 132_863_336),  # table 2 of the paper, in millions: 133, 133, 138, 144
        (vgg, 224, {"depth": 13}, 133_047_848),
        (vgg, 224, {}, 138_357_544),
        (vgg, 224, {"depth": 19}, 143_667_240),
        (vgg, 224, {"norm": "batch"}, 138_361_768),  # torchvision's vgg16_bn has 4,224 superfluous biases more
    ],
)
def test_they_have_as_many_parameters_as_the_papers(
    build: Callable[..., nn.Module], side: int, arguments: dict, count: int
) -> None:
    with torch.device("meta"):
        model = build(input_shape=(3, side, side), num_outputs=1000, **arguments)
        outputs = model(torch.empty(2, 3, side, side))
    assert outputs.shape == (2, 1000)
    assert sum(p.numel() for p in model.parameters()) == count


def with_weights_of(ours: nn.Module, theirs: nn.Module, num_features: int, num_outputs: int) -> nn.Module:
    """torchvision's model with a narrow classifier, and our weights in the order of the layers."""
    theirs.classifier = nn.Sequential(
        nn.Linear(num_features, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, num_outputs)
    )
    pairs = zip(theirs.state_dict(), ours.state_dict().values(), strict=True)
    theirs.load_state_dict(dict(pairs), strict=True, assign=True)
    return theirs.eval()


@pytest.mark.proves(
    "model=vgg", reference="torchvision's VGG with the same weights", tolerance="bitwise, narrow, all four depths"
)
@pytest.mark.parametrize(("depth", "config"), [(11, "A"), (13, "B"), (16, "D"), (19, "E")])
def test_vgg_equals_torchvision(depth: int, config: str) -> None:
    torch.manual_seed(0)
    ours = vgg(input_shape=(3, 224, 224), num_outputs=4, depth=depth, width=2, hidden=[8, 6]).eval()
    layers = [width if width == "M" else int(width) // 32 for width in torchvision_models.vgg.cfgs[config]]
    with torch.device("meta"):
        theirs = torchvision_models.VGG(make_layers(layers), num_classes=4, init_weights=False)
        theirs = with_weights_of(ours, theirs, 16 * 49, 4)
    images = torch.randn(2, 3, 224, 224)
    assert torch.equal(ours(images), theirs(images))


@pytest.mark.proves(
    "model=alexnet", reference="torchvision's AlexNet with the same weights", tolerance="bitwise, with its widths"
)
@pytest.mark.parametrize("side", [224, 227])
def test_alexnet_equals_torchvision_with_its_widths(side: int) -> None:
    torch.manual_seed(0)
    widths = [64, 192, 384, 256, 256]  # of Krizhevsky 2014, which torchvision has
    ours = alexnet(input_shape=(3, side, side), num_outputs=4, channels=widths, hidden=[8, 6]).eval()
    with torch.device("meta"):
        theirs = with_weights_of(ours, torchvision_models.AlexNet(num_classes=4), 256 * 36, 4)
    images = torch.randn(1, 3, side, side)
    assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize(
    ("side", "sides"),
    [
        (4, (4, 4, 4, 2, 1)),
        (8, (8, 8, 4, 2, 1)),
        (9, (9, 5, 3, 2, 1)),
        (28, (14, 7, 4, 2, 1)),
        (32, (16, 8, 4, 2, 1)),
        (224, (112, 56, 28, 14, 7)),
    ],
)
def test_vgg_never_convolves_a_single_pixel(side: int, sides: tuple[int, ...]) -> None:
    seen: list[tuple[int, ...]] = []
    with torch.device("meta"):
        model = vgg(input_shape=(1, side, side), num_outputs=10, width=2, hidden=[4], norm="instance")
        names = [name for name, _ in model.named_children()]
        ends = [names[names.index(f"conv{stage}_1") - 1] for stage in (2, 3, 4, 5)] + [
            names[names.index("flatten") - 1]
        ]
        for name in ends:
            model.get_submodule(name).register_forward_hook(lambda layer, given, out: seen.append(tuple(out.shape)))
        assert model(torch.empty(2, 1, side, side)).shape == (2, 10)
    assert [shape[-1] for shape in seen] == list(sides)


def test_where_norm_and_dropout_stand() -> None:
    arguments = {"input_shape": (1, 8, 8), "num_outputs": 3, "hidden": [4], "norm": "group", "drop_prob": 0.25}
    for model in (
        vgg(**arguments, depth=11, width=2, norm_place="after"),
        alexnet(**arguments, channels=[2, 2, 2, 2, 2], norm_place="after"),
    ):
        layers = list(model.children())
        for conv, activation, norm in zip(layers, layers[1:], layers[2:], strict=False):
            if isinstance(conv, nn.Conv2d):
                assert isinstance(activation, nn.ReLU)
                assert isinstance(norm, nn.GroupNorm)
        names = [name for name, _ in model.named_children()]
        assert names[-4:] == ["linear6", "activation6", "dropout6", "output"]
        assert model.get_submodule("dropout6").p == 0.25


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (vgg, {"depth": 12}, "^depth=12: must be 11, 13, 16 or 19$"),
        (vgg, {"width": 0}, "width=.*: must be"),
        (vgg, {"norm": "batch_norm"}, "norm=batch_norm: must be one of .*"),
        (vgg, {"drop_prob": 1}, "drop_prob=1: must be a drop probability"),
        (vgg, {"input_shape": (1, 3, 8)}, "^model vgg needs images of at least 4x4; data gives 3x8$"),
        (alexnet, {"channels": [1, 2]}, r"channels=\[1, 2\]: must be"),
        (alexnet, {"channels": [1] * 6}, r"channels=\[1, 1, 1, 1, 1, 1\]: must be a list of 5 numbers"),
        (alexnet, {"hidden": [0]}, r"hidden=\[0\]: must be"),
        (alexnet, {"norm_place": "in"}, "norm_place=in: must be one of before, after"),
        (alexnet, {"input_shape": (1, 7, 8)}, "^model alexnet needs images of at least 8x8; data gives 7x8$"),
    ],
)
def test_bad_arguments_are_named(build: Callable[..., nn.Module], arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**{"input_shape": (1, 28, 28), "num_outputs": 10, **arguments})
