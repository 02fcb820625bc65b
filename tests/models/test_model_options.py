"""Every YAML option of a model has all keys with the function's defaults, and builds on any device."""

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from tests.libraries import need_library

FOLDER = Path(__file__).parents[2] / "configs" / "model"
OPTIONS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
RUNTIME = {"input_shape", "num_outputs"}


def read(option: str) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    keys = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{option}.yaml"))
    assert isinstance(keys, dict)
    module, _, function = keys.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), function), {str(k): v for k, v in keys.items()}


@pytest.mark.parametrize("option", OPTIONS)
def test_the_yaml_lists_every_key_with_its_default(option: str) -> None:
    function, keys = read(option)
    parameters = inspect.signature(function).parameters
    defaults = {key: p.default for key, p in parameters.items() if key not in RUNTIME}
    listed = {key: tuple(value) if isinstance(value, list) else value for key, value in keys.items()}
    if found := re.fullmatch(r"(resnet|plain)(\d+)", option):
        defaults |= {"depth": int(found[2])} | ({"shortcut": "none"} if found[1] == "plain" else {})
    if found := re.fullmatch(r"wide_resnet(\d+)_(\d+)", option):
        defaults |= {"depth": int(found[1]), "width": int(found[2])}
    if option in ("torchvision", "timm"):
        listed["arguments"] = listed["arguments"] or None
    assert listed == defaults


@pytest.mark.parametrize("option", OPTIONS)
def test_the_first_line_describes_the_option(option: str) -> None:
    lines = (FOLDER / f"{option}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize("input_shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("option", OPTIONS)
def test_digits_fashion_and_cifar_fit_on_the_meta_device(option: str, input_shape: tuple[int, int, int]) -> None:
    need_library(option)
    function, keys = read(option)
    before = torch.get_rng_state()
    with torch.device("meta"):
        model = function(input_shape=input_shape, num_outputs=10, **keys)
        outputs_NK = model(torch.empty(4, *input_shape))
    assert outputs_NK.shape == (4, 10)
    assert outputs_NK.is_meta
    assert outputs_NK.dtype == torch.float32
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("option", ["linear", "mlp", "lenet", "resnet20", "torchvision"])
def test_one_step_down_the_gradient_lowers_a_regression_loss(option: str) -> None:
    torch.manual_seed(0)
    function, keys = read(option)
    model = function(input_shape=(1, 8, 8), num_outputs=1, **keys)
    images_NCHW = torch.randn(16, 1, 8, 8)
    targets_NK = images_NCHW.mean(dim=(1, 2, 3)).unsqueeze(1) * 8

    def loss() -> torch.Tensor:
        return (model(images_NCHW) - targets_NK).square().mean()

    first = loss()
    first.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 1e-3 * parameter.grad
    assert loss() < first
