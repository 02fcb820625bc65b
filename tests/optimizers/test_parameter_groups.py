import pytest
import torch
from torch import nn

from trainer.contracts import ParameterGroup
from trainer.optimizers.parameter_groups import parameter_groups, unmatched


def groups_of(net: nn.Module, decay: float, exclude: list[str]) -> list[ParameterGroup]:
    config = {"optimizer": {"weight_decay": decay}, "no_weight_decay": exclude, "parameter_groups": {}}
    return parameter_groups(net, config)


def model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 4), nn.LayerNorm(4))


def names_by_decay(net: nn.Module, exclude: list[str], decay: float = 0.1) -> dict[float, set[str]]:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    groups = groups_of(net, decay, exclude)
    return {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in groups}


@pytest.mark.parametrize(
    ("exclude", "spared"),
    [
        (["bias", "norm"], {"0.bias", "1.weight", "1.bias", "3.bias", "4.weight", "4.bias"}),
        (["bias"], {"0.bias", "1.bias", "3.bias", "4.bias"}),
        (["norm"], {"1.weight", "1.bias", "4.weight", "4.bias"}),
        (["3.*"], {"3.weight", "3.bias"}),
    ],
)
def test_spares_kinds_and_patterns(exclude: list[str], spared: set[str]) -> None:
    net = model()
    everything = {name for name, _ in net.named_parameters()}
    assert names_by_decay(net, exclude) == {0.1: everything - spared, 0.0: spared}


def test_one_group_when_nothing_is_spared_or_nothing_decays() -> None:
    assert list(names_by_decay(model(), [])) == [0.1]
    assert list(names_by_decay(model(), ["bias", "norm"], decay=0.0)) == [0.0]


def test_frozen_parameters_are_left_out_and_shared_ones_count_once() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    net[2].requires_grad_(False)
    assert names_by_decay(net, ["bias"]) == {0.1: {"0.weight"}, 0.0: {"0.bias", "1.bias"}}


def test_only_the_decayed_ones_shrink_when_the_gradient_is_zero() -> None:
    net = model()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.SGD(groups_of(net, 0.5, ["bias", "norm"]), lr=0.1)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        factor = 0.95 if name in ("0.weight", "3.weight") else 1.0
        assert torch.allclose(parameter, before[name] * factor), name


def test_patterns_that_match_no_parameter_are_found() -> None:
    assert unmatched(model(), ["bias", "norm", "3.*", "*.weight", "head.*", "bia"]) == ["head.*", "bia"]


@pytest.mark.parametrize("factor", [0.1, 1.0, 2.0])
def test_a_factor_multiplies_the_rate_of_its_group(factor: float) -> None:
    entries = {"head": {"match": "3.*", "lr_factor": factor}, "rest": {"match": ["0.*"]}}
    config = {"optimizer": {"lr": 0.5}, "no_weight_decay": [], "parameter_groups": entries}
    rates = {group["name"]: group.get("lr", 0.5) for group in parameter_groups(model(), config)}
    assert rates == {"all": 0.5, "head": 0.5 * factor, "rest": 0.5}
