"""The CIFAR residual networks against the paper's table, parameter counts by hand and torchvision's block."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from trainer.models.parts import Style
from trainer.models.resnet import Block, resnet


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def build(depth: int, **arguments: object) -> nn.Sequential:
    with torch.device("meta"):
        return resnet(input_shape=(3, 32, 32), num_outputs=10, depth=depth, **arguments)


# by hand for depth 20: convolutions without bias, norms with scale and shift, 3 blocks per stage:
#   conv1 432 + norm 32; stage 1: 6 * (2304 + 32); stage 2: 4608 + 5 * 9216 + 6 * 64;
# stage 3: 18432 + 5 * 36864 + 6 * 128; output 650. Each further block per stage: 2 * (2336 + 9280 + 36992).
@pytest.mark.proves(
    "model=resnet20",
    "model=resnet32",
    "model=resnet44",
    "model=resnet56",
    "model=resnet110",
    reference="numbers of parameters counted by hand, and table 6 of He et al. 2015",
    tolerance="exact; the two or three digits of the table",
)
@pytest.mark.parametrize(
    ("depth", "exact", "table_6"),
    [
        (20, 269_722, 0.27),
        (32, 464_154, 0.46),
        (44, 658_586, 0.66),
        (56, 853_018, 0.85),
        (110, 1_727_962, 1.7),
    ],
)
def test_parameter_counts_of_the_paper(depth: int, exact: int, table_6: float) -> None:
    model = build(depth)
    assert count(model) == exact
    assert round(exact / 1e6, 1 if depth == 110 else 2) == table_6
    main_path = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(main_path) == depth


@pytest.mark.proves(
    "model=plain20", reference="the number of parameters of resnet20, counted by hand", tolerance="exact"
)
def test_shortcuts_and_norms_change_the_count_as_by_hand() -> None:
    assert count(build(20, shortcut="none")) == 269_722
    # two 1x1 convolutions with norm: 16*32 + 64 and 32*64 + 128
    assert count(build(20, shortcut="projection")) == 269_722 + 576 + 2176
    # a bias instead of scale and shift for each of 7*16 + 6*32 + 6*64 channels
    assert count(build(20, norm="none")) == 269_722 - 688
    # width 8, depth 8: 216+16, 2*(576+16), 1152+2304+64, 4608+9216+128, output 330
    assert count(build(8, width=8)) == 232 + 1184 + 3520 + 13952 + 330


def test_sizes_halve_at_the_second_and_third_stage() -> None:
    model = resnet(input_shape=(3, 32, 32), num_outputs=10, depth=14)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, block in model.named_children():
        block.register_forward_hook(lambda layer, given, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    model(torch.zeros(2, 3, 32, 32))
    assert shapes == {
        "conv1": (16, 32, 32),
        "norm1": (16, 32, 32),
        "activation1": (16, 32, 32),
        "block1_1": (16, 32, 32),
        "block1_2": (16, 32, 32),
        "block2_1": (32, 16, 16),
        "block2_2": (32, 16, 16),
        "block3_1": (64, 8, 8),
        "block3_2": (64, 8, 8),
        "pool": (64, 1, 1),
        "flatten": (64,),
        "output": (10,),
    }


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def silenced(num_inputs: int, num_filters: int, shortcut: str) -> Block:
    """A block whose convolutions return zero, so that only the shortcut contributes."""
    block = Block(num_inputs, num_filters, shortcut=shortcut, style=Style())
    nn.init.zeros_(block.conv1.weight)
    nn.init.zeros_(block.conv2.weight)
    return block


@pytest.mark.proves(
    "model=resnet",
    "model=resnet20",
    "model=resnet32",
    "model=resnet44",
    "model=resnet56",
    "model=resnet110",
    reference="every second pixel, and channels of zeros",
    tolerance="bitwise, shortcut=identity",
)
@pytest.mark.parametrize("size", [8, 7])
def test_option_a_takes_every_second_pixel_and_adds_zero_channels(size: int) -> None:
    x_NCHW = features(2, 3, size, size)
    out_NCHW = silenced(3, 6, "identity")(x_NCHW)
    half = (size + 1) // 2
    assert out_NCHW.shape == (2, 6, half, half)
    for row in range(half):
        for column in range(half):
            expected = x_NCHW[:, :, 2 * row, 2 * column].clamp(min=0)
            assert torch.equal(out_NCHW[:, :3, row, column], expected)
    assert torch.count_nonzero(out_NCHW[:, 3:]) == 0


@pytest.mark.proves(
    "model=plain20", "model=plain56", reference="zeros, as the output of a block without weights", tolerance="exact"
)
def test_a_block_of_one_size_passes_its_input_on_and_a_plain_one_does_not() -> None:
    x_NCHW = features(2, 4, 5, 5)
    for shortcut in ("identity", "projection"):
        assert torch.equal(silenced(4, 4, shortcut)(x_NCHW), x_NCHW.clamp(min=0))
    assert torch.count_nonzero(silenced(4, 4, "none")(x_NCHW)) == 0


@pytest.mark.proves("model=resnet", reference="torchvision's BasicBlock", tolerance="bitwise, shortcut=projection")
@pytest.mark.parametrize("num_filters", [4, 8])
def test_projection_equals_torchvision_block(num_filters: int) -> None:
    ours = Block(4, num_filters, shortcut="projection", style=Style())
    stride = num_filters // 4
    downsample = None
    if stride == 2:
        downsample = nn.Sequential(nn.Conv2d(4, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8))
    theirs = BasicBlock(4, num_filters, stride=stride, downsample=downsample)
    theirs.load_state_dict(dict(zip(theirs.state_dict().keys(), ours.state_dict().values(), strict=True)), strict=True)
    x_NCHW = features(3, 4, 9, 9)
    assert torch.equal(ours(x_NCHW), theirs(x_NCHW))
    assert torch.equal(ours.norm2.running_var, theirs.bn2.running_var)


def test_what_a_hook_keeps_of_a_layer_is_not_overwritten() -> None:
    model = resnet(input_shape=(3, 8, 8), num_outputs=4, depth=8)
    kept: list[tuple[Tensor, Tensor]] = []
    for layer in model.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda layer, given, out: kept.append((out, out.detach().clone())))
    model(features(4, 3, 8, 8))
    assert len(kept) > 20
    assert all(torch.equal(out, at_that_time) for out, at_that_time in kept)


def test_gradients_reach_the_first_layer_past_silent_blocks_only_by_shortcuts() -> None:
    for shortcut, reached in (("identity", True), ("projection", True), ("none", False)):
        torch.manual_seed(0)
        model = resnet(input_shape=(3, 8, 8), num_outputs=4, depth=8, shortcut=shortcut)
        for name, parameter in model.named_parameters():
            if "block" in name and "conv" in name and "shortcut" not in name:
                nn.init.zeros_(parameter)
        model(features(4, 3, 8, 8)).square().sum().backward()
        gradient = model.get_parameter("conv1.weight").grad
        assert gradient is not None
        assert bool(gradient.abs().max() > 0) is reached


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 21}, r"depth=21: must be 6n\+2 with n >= 1; the nearest allowed: 20 and 26"),
        ({"depth": 19}, "nearest allowed: 14 and 20"),
        ({"depth": 2}, "nearest allowed: 8$"),
        ({"depth": -4}, "nearest allowed: 8$"),
        ({"width": 0}, r"width=\[?0\]?: must be"),
        ({"shortcut": "identiy"}, "shortcut=identiy: must be one of .*; did you mean identity"),
        ({"norm": "leyer"}, "norm=leyer: must be one of .*; did you mean layer"),
        ({"norm_place": "behind"}, "norm_place=behind: must be one of before, after"),
        ({"drop_prob": 1.0}, r"drop_prob=1.0: must be a drop probability in \[0, 1\)"),
        ({"stochastic_depth": -0.1}, r"stochastic_depth=-0.1: must be the last block's drop probability, in \[0, 1\)"),
        ({"stochastic_depth": 0.1, "shortcut": "none"}, "stochastic_depth=0.1: must be 0 without shortcuts"),
        ({"activation": "rulu"}, "did you mean relu"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resnet(input_shape=(3, 32, 32), num_outputs=10, **arguments)


def test_too_small_images_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"^model resnet needs images of at least 4x4; data gives 3x9$"):
        resnet(input_shape=(3, 3, 9), num_outputs=10)
    assert resnet(input_shape=(3, 4, 4), num_outputs=10, depth=8)(torch.zeros(2, 3, 4, 4)).shape == (2, 10)
