"""References: LeNet-5, a transformer layer and tied weights by hand; ResNet-18 as published by torchvision."""

import io

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from trainer.reporting.model_table import ModelSummary, render, summarize


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.AvgPool2d(2)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        features = self.pool(self.conv1(images_NCHW).tanh())
        features = self.pool(self.conv2(features).tanh())
        hidden = self.fc2(self.fc1(features.flatten(1)).tanh()).tanh()
        output: Tensor = self.fc3(hidden)
        return output


def rows(summary: ModelSummary) -> list[tuple[object, ...]]:
    return [(layer.name, layer.kind, layer.output_shape, layer.parameters) for layer in summary.layers]


def test_lenet_by_hand() -> None:
    summary = summarize(LeNet(), (1, 28, 28))
    assert rows(summary) == [
        ("conv1", "Conv2d", (6, 28, 28), 6 * 25 + 6),
        ("conv2", "Conv2d", (16, 10, 10), 16 * 150 + 16),
        ("pool", "AvgPool2d", (16, 5, 5), 0),
        ("fc1", "Linear", (120,), 400 * 120 + 120),
        ("fc2", "Linear", (84,), 120 * 84 + 84),
        ("fc3", "Linear", (10,), 84 * 10 + 10),
    ]
    assert (summary.parameters, summary.trainable) == (61_706, 61_706)
    multiply_adds = 28 * 28 * 6 * 25 + 10 * 10 * 16 * 150 + 400 * 120 + 120 * 84 + 84 * 10
    assert summary.flops == 2 * multiply_adds == 833_040
    assert summary.problem is None


def test_attention_by_hand() -> None:
    tokens, dim, heads, hidden = 16, 64, 4, 128
    layer = nn.TransformerEncoderLayer(dim, heads, hidden, batch_first=True)
    summary = summarize(nn.Sequential(nn.Flatten(2), layer), (tokens, 8, 8))
    projections = 4 * tokens * dim * dim
    attention = 2 * heads * tokens * tokens * (dim // heads)
    feed_forward = 2 * tokens * dim * hidden
    assert summary.flops == 2 * (projections + attention + feed_forward)
    assert summary.parameters == sum(parameter.numel() for parameter in layer.parameters())
    shapes = {row.name: row.output_shape for row in summary.layers}
    assert shapes["1.self_attn"] == (tokens, dim)
    assert shapes["1.self_attn.out_proj"] is None, "its weights are used without calling it"


def test_resnet18_agrees_with_torchvision() -> None:
    import torchvision

    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    summary = summarize(torchvision.models.resnet18(), (3, 224, 224))
    assert summary.parameters == weights.meta["num_params"]
    assert summary.flops is not None
    # torchvision counts multiply-adds, in units of 10^9
    assert summary.flops / 2e9 == pytest.approx(weights.meta["_ops"], abs=5e-3)


def test_tied_frozen_and_own_parameters_are_counted_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(7))
            self.encode = nn.Linear(7, 7, bias=False)
            self.decode = nn.Linear(7, 7)
            self.decode.weight = self.encode.weight
            self.decode.bias.requires_grad_(False)

        def forward(self, inputs: Tensor) -> Tensor:
            output: Tensor = self.decode(self.encode(inputs) * self.scale)
            return output

    summary = summarize(Tied(), (7,))
    assert [(layer.name, layer.parameters) for layer in summary.layers] == [
        ("", 7),
        ("encode", 49),
        ("decode", 7),
    ]
    assert (summary.parameters, summary.trainable) == (63, 56)
    assert summary.flops == 2 * 2 * 49


def test_the_model_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    summary = summarize(model, (3, 8, 8))
    assert summary.flops == 2 * 36 * 4 * 27
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model] == [True, False, True]
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())
    assert model(torch.zeros(2, 3, 8, 8)).device.type == "cpu"


def test_a_model_that_cannot_run_on_the_meta_device_is_still_listed() -> None:
    class Peeks(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs) if inputs.sum().item() > 0 else inputs

    model = Peeks(3, 3)
    summary = summarize(model, (3,))
    assert (summary.parameters, summary.flops) == (12, None)
    assert summary.layers[0].output_shape is None
    assert summary.problem is not None
    assert "meta" in summary.problem
    assert not model._forward_hooks
    assert "FLOPs unknown" in printed(summary)


def test_a_shape_that_does_not_fit_is_reported() -> None:
    summary = summarize(nn.Linear(3, 2), (4,))
    assert summary.problem is not None
    assert "[1, 4]" in summary.problem


def printed(summary: ModelSummary) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(render(summary))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_the_table_shows_layers_and_totals() -> None:
    text = printed(summarize(LeNet(), (1, 28, 28)))
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["layer", "kind", "output", "parameters"]
    assert ["conv2", "Conv2d", "16x10x10", "2,416"] in lines
    assert ["pool", "AvgPool2d", "16x5x5"] in lines
    assert "61,706 parameters, all trainable" in text
    assert "833 kFLOPs forward a sample (a multiply-add is 2)" in text


def test_layer_names_are_not_markup() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleDict({"[bold]": nn.Linear(2, 2)})

        def forward(self, inputs: Tensor) -> Tensor:
            output: Tensor = self.layers["[bold]"](inputs)
            return output

    assert "layers.[bold]" in printed(summarize(Odd(), (2,)))
