"""Unshared convolutions against unfold and einsum, and against a convolution; block-diagonal layers against the dense
matrix."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.initializers import KaimingNormal, Orthogonal
from trainer.initializers.weights import weights_of
from trainer.models.locally_connected import BlockDiagonal, LocallyConnected, block_diagonal, locally_connected
from trainer.models.mlp import mlp
from trainer.parallelism.sizes import layers_of

GEOMETRIES = [((3, 8, 8), 3, 1), ((2, 7, 5), 3, 2), ((1, 6, 9), 5, 2), ((4, 3, 3), 1, 1)]


def images(shape: tuple[int, ...], count: int = 4) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.proves("model=locally_connected", reference="torch's unfold and einsum", tolerance="1e-7 relative")
@pytest.mark.parametrize(("shape", "kernel_size", "stride"), GEOMETRIES)
def test_a_local_layer_is_an_einsum_over_patches(shape: tuple[int, int, int], kernel_size: int, stride: int) -> None:
    layer = LocallyConnected(shape, 6, kernel_size, stride).double()
    patches_NDL = F.unfold(images(shape), kernel_size, padding=kernel_size // 2, stride=stride)
    assert layer.bias is not None
    weights_LFD, biases_LF = layer.weight.view(patches_NDL.shape[2], 6, -1), layer.bias.view(-1, 6)
    expected_NFL = torch.einsum("lfd,ndl->nfl", weights_LFD, patches_NDL) + biases_LF.T
    height, width = layer.output_hw
    torch.testing.assert_close(layer(images(shape)), expected_NFL.unflatten(2, (height, width)))
    assert count(layer) == height * width * 6 * (shape[0] * kernel_size**2 + 1)


@pytest.mark.proves(
    "model=locally_connected",
    reference="torch.nn.Conv2d with the same weights everywhere, outputs and gradients",
    tolerance="1e-7 relative",
)
@pytest.mark.parametrize(("shape", "kernel_size", "stride"), GEOMETRIES)
def test_with_equal_weights_it_is_a_convolution(shape: tuple[int, int, int], kernel_size: int, stride: int) -> None:
    local = LocallyConnected(shape, 6, kernel_size, stride).double()
    shared = nn.Conv2d(shape[0], 6, kernel_size, stride, padding=kernel_size // 2).double()
    assert local.bias is not None and shared.bias is not None
    with torch.no_grad():
        local.weight.copy_(shared.weight.flatten(1).repeat(local.num_blocks, 1).unsqueeze(2))
        local.bias.copy_(shared.bias.repeat(local.num_blocks))
    inputs = [images(shape).requires_grad_() for _ in range(2)]
    outputs = [layer(x) for layer, x in zip((local, shared), inputs, strict=True)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    assert local.weight.grad is not None and shared.weight.grad is not None
    of_all_places = local.weight.grad.view(local.num_blocks, 6, -1).sum(0)
    torch.testing.assert_close(of_all_places.view_as(shared.weight), shared.weight.grad)


@pytest.mark.proves(
    "model=block_diagonal", reference="the dense layer with torch.block_diag as its matrix", tolerance="1e-7 relative"
)
def test_a_block_diagonal_layer_is_the_dense_one_with_zeros_elsewhere() -> None:
    layer = BlockDiagonal(12, 6, 3).double()
    x_ND = images((12,))
    dense = torch.block_diag(*layer.weight.squeeze(2).chunk(3))
    assert dense.shape == (6, 12)
    torch.testing.assert_close(layer(x_ND), F.linear(x_ND, dense, layer.bias))
    assert torch.equal(nn.Conv1d.forward(layer, x_ND.unsqueeze(2)).squeeze(2).round(decimals=9),
                       layer(x_ND).round(decimals=9))  # fmt: skip


@pytest.mark.proves(
    "model=block_diagonal", reference="the lecture's example, 16 operations instead of 32", tolerance="exact"
)
def test_the_lectures_example_takes_16_operations_instead_of_32() -> None:
    def operations(num_blocks: int) -> int:
        model = block_diagonal(input_shape=(1, 2, 4), num_outputs=1, hidden=[4], num_blocks=num_blocks)
        return next(layer.work for layer in layers_of(model, (1, 2, 4)) if layer.name == "blocks1")

    assert (operations(1), operations(2)) == (8 * 4, 2 * (2 * 4)) == (32, 16)


def test_one_block_is_an_mlp() -> None:
    ours = block_diagonal(input_shape=(1, 4, 4), num_outputs=3, hidden=[8, 6], num_blocks=1, activation="tanh").double()
    theirs = mlp(input_shape=(1, 4, 4), num_outputs=3, hidden=[8, 6], activation="tanh").double()
    with torch.no_grad():
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.copy_(own.view_as(other))
    torch.testing.assert_close(ours(images((1, 4, 4))), theirs(images((1, 4, 4))))


def test_parameters_by_hand() -> None:
    def built(shared: bool) -> nn.Module:
        return locally_connected(
            input_shape=(3, 9, 8), num_outputs=7, channels=[4, 6], kernel_size=3, hidden=[5], shared=shared
        )

    # maps of 5x4 and 3x2 pixels; 36 features; 5 hidden units
    top = 36 * 5 + 5 + 5 * 7 + 7
    assert count(built(False)) == 20 * 4 * (27 + 1) + 6 * 6 * (36 + 1) + top
    assert count(built(True)) == 4 * (27 + 1) + 6 * (36 + 1) + top
    blocks = block_diagonal(input_shape=(3, 4, 4), num_outputs=7, hidden=[12, 8], num_blocks=4)
    assert count(blocks) == 48 * 12 // 4 + 12 + 12 * 8 // 4 + 8 + 8 * 7 + 7
    works = [[layer.work for layer in layers_of(built(shared), (3, 9, 8)) if layer.work] for shared in (False, True)]
    assert works[0] == works[1] == [20 * 4 * 27, 6 * 6 * 36, 36 * 5, 5 * 7]


def test_initializers_draw_the_matrix_of_each_place() -> None:
    model = locally_connected(input_shape=(3, 32, 32), num_outputs=7, channels=[5])
    fans = {weight.fans for weight in weights_of(model) if weight.layer is model.get_submodule("local1")}
    assert fans == {(27, 5)}
    KaimingNormal(nonlinearity="relu")(model)
    weight = model.get_parameter("local1.weight").detach()
    assert float(weight.var()) == pytest.approx(2 / 27, rel=0.05)
    Orthogonal()(model)
    for part in weight.squeeze(2).chunk(256)[::50]:
        torch.testing.assert_close(part @ part.T, 2 * torch.eye(5), rtol=0, atol=1e-5)  # relu follows


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (locally_connected, {"channels": []}, r"^channels=\[\]: must be"),
        (locally_connected, {"kernel_size": 4}, "^kernel_size=4: must be odd"),
        (locally_connected, {"kernel_size": 0}, "^kernel_size=0: must be at least 1"),
        (locally_connected, {"norm": "instance"}, "needs images of at least 5x5 with norm=instance; data gives 4x4"),
        (locally_connected, {"drop_prob": 1.0}, "^drop_prob=1.0: must be"),
        (block_diagonal, {"num_blocks": 0}, "^num_blocks=0: must be at least 1"),
        (block_diagonal, {"num_blocks": 5}, "^num_blocks=5: must be a divisor of the 32 values of 2x4x4"),
        (block_diagonal, {"hidden": [8, 6], "num_blocks": 4}, r"^hidden=\[8, 6\]: must be multiples of num_blocks=4"),
        (block_diagonal, {"activation": "rulu"}, "did you mean relu"),
    ],
)
def test_bad_arguments_are_named(model: object, arguments: dict[str, object], message: str) -> None:
    assert callable(model)
    with pytest.raises(ValueError, match=message):
        model(**({"input_shape": (2, 4, 4), "num_outputs": 3} | arguments))
