"""timm's models have the same bits as timm's own call; errors are reported in one sentence."""

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.libraries import need_library
from trainer.contracts import taken_weights
from trainer.models.from_timm import from_timm

RATES = {"drop_prob": 0.5, "stochastic_depth": 0.1}


@pytest.fixture(autouse=True)
def installed(request: pytest.FixtureRequest) -> None:
    if "missing" not in request.node.name:
        need_library("model=timm")


def build(name: str, shape: tuple[int, int, int] = (3, 32, 32), num_outputs: int = 7, **more: Any) -> nn.Module:
    return from_timm(input_shape=shape, num_outputs=num_outputs, name=name, **more)


@pytest.mark.proves("model=timm", reference="timm.create_model called directly", tolerance="bitwise")
def test_equals_timms_own_call_bit_by_bit() -> None:
    import timm

    torch.manual_seed(5)
    ours = build("test_resnet.r160_in1k", (1, 32, 32), **RATES, arguments={"act_layer": "gelu"})
    after = torch.rand(1)
    torch.manual_seed(5)
    sizes = {"num_classes": 7, "in_chans": 1, "drop_rate": 0.5, "drop_path_rate": 0.1}
    theirs = timm.create_model("test_resnet.r160_in1k", **sizes, act_layer="gelu")
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert repr(ours) == repr(theirs)
    assert torch.equal(after, torch.rand(1))
    assert ours.training


def test_the_image_size_reaches_a_transformer() -> None:
    with torch.device("meta"):
        model = build("test_vit", (3, 48, 64), stochastic_depth=0.2)
        assert model(torch.empty(2, 3, 48, 64)).shape == (2, 7)
    assert model.get_parameter("pos_embed").shape == (1, 1 + 3 * 4, 64)  # 16x16 patches and the class token


@pytest.mark.parametrize(
    ("name", "shape", "more", "message"),
    [
        ("convnext_atto", (1, 8, 28), {}, "^model convnext_atto needs images of at least 32x32; data gives 8x28$"),
        ("test_vit", (1, 8, 8), {}, "^model test_vit does not take images of 8x8: "),
        ("resnet19", (3, 32, 32), {}, "^name=resnet19: must be a model of timm; did you mean resnet18"),
        ("resnet18.", (3, 32, 32), {}, "^name=resnet18.: must be resnet18 or one of resnet18.a1_in1k, "),
        ("resnet18.a1", (3, 32, 32), {}, "^name=resnet18.a1: must be resnet18 or one of resnet18.a1_in1k, "),
        ("hf-hub:timm/resnet18", (3, 32, 32), {}, "^name=hf-hub:timm/resnet18: must be a model of timm"),
        ("resnet18", (3, 32, 32), {"drop_prob": 1}, r"^drop_prob=1: must be a drop probability in \[0, 1\)$"),
        ("resnet18", (3, 32, 32), {"stochastic_depth": -1}, r"^stochastic_depth=-1: must be the last block's"),
        (
            "resnet18", (3, 32, 32), {"drop_prob": 0.1, "arguments": {"drop_rate": 0.1}},
            "^drop_prob=0.1: must be null for model resnet18, given drop_rate$",
        ),
        (
            "vgg11", (3, 32, 32), {"stochastic_depth": 0.1},
            "^stochastic_depth=0.1: must be null for model vgg11, which has none$",
        ),
        (
            "resnet18", (3, 32, 32), {"arguments": {"actlayer": "gelu"}},
            "^arguments.actlayer=gelu: must be an argument of model resnet18; did you mean act_layer?",
        ),
        ("resnet18", (3, 32, 32), {"arguments": {"in_chans": 3}}, "^arguments.in_chans=3: must be omitted; the data"),
        ("resnet18", (3, 32, 32), {"arguments": {"checkpoint_path": 1}}, "^arguments.checkpoint_path=1: must be omit"),
        ("resnet18", (3, 32, 32), {"arguments": {"pretrained": True}}, "^arguments.pretrained=true: must be omitted"),
        ("resnet200", (3, 32, 32), {"pretrained": True}, "^pretrained=true: must be false: timm has no"),
        ("resnet18", (3, 32, 32), {"arguments": {"layers": [1]}}, "^model resnet18 cannot be built for images of 3x32"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_sentence(
    name: str, shape: tuple[int, int, int], more: dict[str, Any], message: str
) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build(name, shape, **more)


def test_weights_are_read_from_a_file(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(1)
    theirs = timm.create_model("test_resnet", num_classes=7).state_dict()
    torch.save(theirs, tmp_path / "weights.pt")
    ours = build("test_resnet", weights=str(tmp_path / "weights.pt")).state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_pretrained_weights_are_timms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from a file, as timm's own overlay does, in place of a download."""
    import timm

    theirs = timm.create_model("test_resnet")
    torch.save(theirs.state_dict(), tmp_path / "timm.pt")
    create, loaded = timm.create_model, []

    def offline(name: str, pretrained: bool = False, **more: Any) -> nn.Module:
        loaded.append(pretrained)
        return create(name, pretrained, pretrained_cfg_overlay={"file": str(tmp_path / "timm.pt")}, **more)

    monkeypatch.setattr(timm, "create_model", offline)
    ours = build("test_resnet", (1, 32, 32), pretrained=True)
    state, other = ours.state_dict(), theirs.state_dict()
    assert any(loaded)
    head, first = ["fc.bias", "fc.weight"], "conv1.0.weight"
    assert torch.equal(state[first], other[first].sum(1, keepdim=True))
    assert all(torch.equal(value, other[key]) for key, value in state.items() if key not in (*head, first))
    told = taken_weights(ours)
    assert told is not None and "1 summed over colours: conv1.0.weight" in told
    assert "2 left out: fc.bias (1000,)" in told and "2 new: fc.bias (7,)" in told
    loaded.clear()
    with torch.device("meta"):
        assert taken_weights(build("test_resnet", (1, 32, 32), pretrained=True)) == told
    assert not any(loaded)


def test_a_missing_library_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any, **others: Any) -> Any:
        if name == "timm":
            raise ModuleNotFoundError("No module named 'timm'", name="timm")
        return real(name, *more, **others)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"^needs timm, which is not installed: pip install 'gearshift\[timm\]'$"):
        build("resnet18")


@pytest.mark.slow
def test_models_of_many_families_are_built_for_grey_images() -> None:
    import timm

    names = timm.list_models()[::80]
    assert len(names) > 15
    for name in names:
        height, width = timm.get_pretrained_cfg(name).input_size[1:]
        with torch.device("meta"):
            model = build(name, (1, height, width))
            assert model(torch.empty(2, 1, height, width)).shape == (2, 7), name
