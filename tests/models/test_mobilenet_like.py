"""Separable convolutions: MobileNet's published size, a forward pass by hand, and the ratio of operations."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.mobilenet_like import mobilenet_like
from trainer.parallelism.sizes import layers_of

MOBILENET = {
    "channels": [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024],
    "halve_at": [1, 3, 5, 7, 13],
    "halve_by": "stride",
}


def build(input_shape: tuple[int, int, int] = (3, 8, 8), num_outputs: int = 7, **arguments: object) -> nn.Sequential:
    torch.manual_seed(0)
    return mobilenet_like(input_shape=input_shape, num_outputs=num_outputs, **arguments)  # type: ignore[arg-type]


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.proves(
    "model=mobilenet_like",
    reference="tables 1 and 4 of Howard et al. 2017: 4,231,976 parameters, maps, 569 million multiply-adds",
    tolerance="exact",
)
def test_mobilenet_has_4231976_parameters_and_its_table_of_maps() -> None:
    with torch.device("meta"):
        model = build((3, 224, 224), 1000, **MOBILENET)
        maps: list[int] = []
        for name, layer in model.named_children():
            if name.startswith(("conv", "pointwise")):
                layer.register_forward_hook(lambda layer, given, out: maps.append(out.shape[-1]))
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    assert count(model) == 4_231_976
    assert maps == [112, 112, 56, 56, 28, 28, *[14] * 6, 7, 7]  # Howard et al. 2017, table 1
    work = sum(layer.work for layer in layers_of(model, (3, 224, 224)))
    assert round(work / 1e6) == 569  # million multiply-adds, table 4


@pytest.mark.proves(
    "model=mobilenet_like",
    reference="the network written with torch's functions, channel by channel",
    tolerance="1e-7 relative",
)
def test_a_small_one_by_hand() -> None:
    model = build(channels=[4, 6], halve_at=[2], norm="none", activation="tanh").double()
    # conv 3*9*4 + 4; depthwise 4*9 + 4; pointwise 4*6 + 6; output 6*7 + 7
    assert count(model) == 112 + 40 + 30 + 49
    w = dict(model.named_parameters())
    images_NCHW = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    x: Tensor = F.conv2d(images_NCHW, w["conv1.weight"], w["conv1.bias"], padding=1).tanh()
    filtered = [
        F.conv2d(x[:, c : c + 1], w["depthwise2.weight"][c : c + 1], w["depthwise2.bias"][c : c + 1], padding=1)
        for c in range(4)
    ]
    x = torch.cat(filtered, 1).tanh()
    x = torch.einsum("nchw,fc->nfhw", x, w["pointwise2.weight"][:, :, 0, 0]) + w["pointwise2.bias"].view(-1, 1, 1)
    x = F.max_pool2d(x.tanh(), 2).mean((2, 3))
    torch.testing.assert_close(model(images_NCHW), x @ w["output.weight"].T + w["output.bias"])


@pytest.mark.parametrize("num_filters", [8, 64])
def test_a_separable_layer_takes_1_over_n_plus_1_over_9_of_the_operations(num_filters: int) -> None:
    model = build(channels=[5, num_filters], halve_at=[])
    work = {layer.name: layer.work for layer in layers_of(model, (3, 8, 8))}
    full = 64 * 9 * 5 * num_filters
    assert work["depthwise2"] + work["pointwise2"] == pytest.approx(full * (1 / num_filters + 1 / 9))


def test_later_pooling_keeps_larger_maps_at_the_same_size() -> None:
    late, early = (build(channels=[8, 8, 8], halve_at=layers) for layers in ([2, 3], [1, 2]))
    assert count(late) == count(early)
    works = [sum(layer.work for layer in layers_of(model, (3, 8, 8))) for model in (late, early)]
    # layer 1 on 64 pixels; layer 2 on 64 or 16, layer 3 on 16 or 4; the output
    assert works == [64 * 216 + (a + b) * 8 * 17 + 56 for a, b in ((64, 16), (16, 4))]


@pytest.mark.parametrize(("norm", "size", "smallest"), [("batch", 3, 4), ("instance", 7, 8)])
def test_images_that_are_too_small_are_refused(norm: str, size: int, smallest: int) -> None:
    with pytest.raises(ValueError, match=f"needs images of at least {smallest}x{smallest} with .*2 halvings"):
        build((1, size, size), norm=norm)
    assert build((1, smallest, smallest), norm=norm)(torch.randn(2, 1, smallest, smallest)).shape == (2, 7)
    assert build((1, 1, 1), halve_by="stride")(torch.randn(2, 1, 1, 1)).shape == (2, 7)


def test_its_tensor_plan_follows_channels_from_one_mixing_to_the_next() -> None:
    plan = {"conv1": "column", "norm1": "split", "depthwise2": "group", "norm2_depthwise": "split", "pointwise2": "row"}
    assert build(channels=[4, 6], halve_at=[]).tensor_plan == plan
    assert build(channels=[4, 6, 8], halve_at=[], drop_prob=0.1).tensor_plan == plan | {
        "pointwise3": "column", "norm3": "split", "dropout": "split", "output": "row"
    }  # fmt: skip
    assert build(channels=[4, 6], halve_at=[], norm="layer").tensor_plan == {"conv1": "gather", "pointwise2": "gather"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": []}, r"^channels=\[\]: must be"),
        ({"channels": [4, 0]}, r"^channels=\[4, 0\]: must be"),
        ({"halve_at": [7]}, r"^halve_at=\[7\]: must be numbers of the 6 layers, from 1, in rising order"),
        ({"halve_at": [3, 2]}, r"^halve_at=\[3, 2\]: must be numbers"),
        ({"halve_at": [0]}, r"^halve_at=\[0\]: must be"),
        ({"halve_by": "pool"}, "^halve_by=pool: must be one of max_pool, stride; did you mean max_pool"),
        ({"norm": "bach"}, "did you mean batch"),
        ({"drop_prob": 1.0}, "^drop_prob=1.0: must be"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**arguments)  # type: ignore[arg-type]
