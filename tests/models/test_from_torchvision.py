"""torchvision's models have the same bits as torchvision's own call; errors are reported in one sentence."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from trainer.contracts import taken_weights
from trainer.models.from_torchvision import from_torchvision


def build(name: str, shape: tuple[int, int, int] = (3, 32, 32), num_outputs: int = 7, **more: Any) -> nn.Module:
    return from_torchvision(input_shape=shape, num_outputs=num_outputs, name=name, **more)


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.proves("model=torchvision", reference="torchvision.models called directly", tolerance="bitwise")
def test_equals_torchvisions_own_call_bit_by_bit() -> None:
    torch.manual_seed(5)
    ours = build("mobilenet_v3_small", arguments={"dropout": 0.5})
    after = torch.rand(1)
    torch.manual_seed(5)
    theirs = models.mobilenet_v3_small(num_classes=7, dropout=0.5)
    assert same(ours, theirs)
    assert repr(ours) == repr(theirs)  # dropout included
    assert torch.equal(after, torch.rand(1))  # determining the image size draws no random numbers
    assert ours.training


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_models_with_auxiliary_classifiers_have_one_output(name: str) -> None:
    with torch.device("meta"):
        model = build(name, (3, 96, 96)).train()
        assert model(torch.empty(2, 3, 96, 96)).shape == (2, 7)
    with pytest.raises(ValueError, match=r"arguments.aux_logits=true: must be false"):
        build(name, (3, 96, 96), arguments={"aux_logits": True})


def test_grey_images_get_a_new_first_convolution() -> None:
    model = build("resnet18", (1, 28, 28))
    other = models.resnet18(num_classes=7)
    changed = {key for key, tensor in other.state_dict().items() if tensor.shape != model.state_dict()[key].shape}
    assert changed == {"conv1.weight"}
    conv = model.get_submodule("conv1")
    assert (conv.stride, conv.padding, conv.kernel_size, conv.bias) == ((2, 2), (3, 3), (7, 7), None)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
    with torch.device("meta"):
        deep = build("efficientnet_b0", (5, 32, 32))
        assert deep(torch.empty(2, 5, 32, 32)).shape == (2, 7)


def test_the_image_size_reaches_a_transformer() -> None:
    with torch.device("meta"):
        model = build("vit_b_16", (3, 48, 48))
        assert model(torch.empty(2, 3, 48, 48)).shape == (2, 7)
    assert model.get_parameter("encoder.pos_embedding").shape == (1, 10, 768)  # 3x3 patches and the class token


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("alexnet", (3, 28, 64), "^model alexnet needs images of at least 63x63; data gives 28x64$"),
        ("vgg11", (3, 28, 28), "^model vgg11 needs images of at least 32x32; data gives 28x28$"),
        (
            "inception_v3",
            (3, 32, 32),
            "^model inception_v3 needs images of at least 75x75; data gives 32x32$",
        ),
        ("vit_b_16", (3, 28, 28), "^model vit_b_16 cannot be built for images of 3x28x28: .*patch size"),
        ("vit_b_16", (3, 32, 48), "^model vit_b_16 does not take images of 32x48: Wrong image width"),
    ],
)
def test_images_that_do_not_fit_are_refused_in_a_sentence(name: str, shape: tuple[int, int, int], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build(name, shape)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet19", {}, "^name=resnet19: must be a classification model .*; did you mean resnet18"),
        ("fcn_resnet50", {}, "^name=fcn_resnet50: must be a classification model"),
        ("googlenet", {"dropuot": 0.1}, "^arguments.dropuot=0.1: must be one of .* did you mean dropout"),
        (
            "resnet18",
            {"num_classes": 3},
            "^arguments.num_classes=3: must be omitted; the data determine it",
        ),
        ("vit_b_16", {"image_size": 64}, "^arguments.image_size=64: must be omitted"),
        ("resnet18", {"weights": "IMAGENET1K_V1"}, "^arguments.weights=IMAGENET1K_V1: must be one of"),
        ("resnet18", {"layers": [1, 1, 1, 1]}, "resnet18 cannot be built .*'layers': .*multiple values"),
        ("resnet18", {"groups": 2}, "resnet18 cannot be built .*BasicBlock only supports groups=1"),
    ],
)
def test_bad_names_and_arguments_are_named(name: str, arguments: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build(name, arguments=arguments)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(1)
    model = models.squeezenet1_1(num_classes=9)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pt"
    torch.save(model.state_dict(), path)
    return model, path


def test_weights_are_read_from_a_file(saved: tuple[nn.Module, Path]) -> None:
    theirs, path = saved
    torch.manual_seed(2)
    assert same(build("squeezenet1_1", num_outputs=9, weights=str(path)), theirs)
    with torch.device("meta"):
        assert build("squeezenet1_1", num_outputs=9, weights=str(path)).get_parameter("features.0.weight").is_meta


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_what_the_data_determine_stays_new_and_is_told(saved: tuple[nn.Module, Path], channels: int) -> None:
    """A classifier for 7 classes instead of 9; the first convolution of grey images gives what it gives for colours."""
    theirs, path = saved
    torch.manual_seed(2)
    fresh = build("squeezenet1_1", (channels, 32, 32)).state_dict()
    torch.manual_seed(2)
    model = build("squeezenet1_1", (channels, 32, 32), weights=str(path))
    own, other = model.state_dict(), theirs.state_dict()
    head, first = ["classifier.1.bias", "classifier.1.weight"], "features.0.weight"
    assert all(torch.equal(own[key], fresh[key]) for key in head)
    assert all(torch.equal(own[key], other[key]) for key in other if key not in (*head, first))
    lists = ["taken: features.0.bias", "left out: classifier.1.bias (9,), ", "new: classifier.1.bias (7,), "]
    if channels == 1:
        lists.append(f"1 summed over colours: {first} (64, 3, 3, 3)")
        grey = torch.rand(2, 1, 32, 32)
        colours = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), other[first])
        torch.testing.assert_close(nn.functional.conv2d(grey, own[first]), colours)
    elif channels == 2:
        lists += [f"{first} (64, 3, 3, 3)", f"{first} (64, 2, 3, 3)"]
        assert torch.equal(own[first], fresh[first])
    told = taken_weights(model)
    assert told is not None and told.startswith(f"weights={path}: ")
    assert [words for words in lists if words not in told] == [], told
    with torch.device("meta"):
        assert taken_weights(build("squeezenet1_1", (channels, 32, 32), weights=str(path))) == told


def test_pretrained_weights_are_torchvisions(saved: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = models.get_model("squeezenet1_1", num_classes=1000).state_dict()
    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", lambda *_, **__: wanted)
    for pretrained in (True, "IMAGENET1K_V1"):
        own = build("squeezenet1_1", num_outputs=1000, pretrained=pretrained)
        assert taken_weights(own) is None and all(torch.equal(v, wanted[k]) for k, v in own.state_dict().items())
    told = taken_weights(build("squeezenet1_1", (1, 32, 32), pretrained=True))
    assert told is not None and told.startswith("pretrained=true: 49 taken: ")
    assert "2 left out: classifier.1.bias (1000,), " in told and "1 summed over colours: features.0.weight" in told
    with torch.device("meta"):  # no weights are read
        monkeypatch.setattr(models.WeightsEnum, "get_state_dict", lambda *_, **__: 1 / 0)
        assert taken_weights(build("squeezenet1_1", (1, 32, 32), pretrained=True)) == told
        assert taken_weights(build("vit_b_16", (3, 224, 224), pretrained="IMAGENET1K_SWAG_LINEAR_V1"))
        assert "2 left out: fc." in str(taken_weights(build("googlenet", pretrained=True)))
    for key, value, message in [
        ("pretrained", True, r"^pretrained=true: must be false unless .*weights=FILE .*\(ZeroDivisionError"),
        ("pretrained", "IMAGENET1K_V2", "^pretrained=IMAGENET1K_V2: must be false, true or one of .* did you mean"),
        ("weights", str(saved[1]), "^weights=.*: must be null with pretrained=true"),
    ]:
        with pytest.raises(ValueError, match=message):
            build("squeezenet1_1", **({"pretrained": True} | {key: value}))


def test_other_files_are_refused(saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    _, path = saved
    with pytest.raises(ValueError, match=r"features.0.bias has the shape \(64,\) in the file, \(96,\)"):
        build("squeezenet1_0", num_outputs=9, weights=str(path))
    with pytest.raises(ValueError, match="there is no such file"):
        build("squeezenet1_1", weights=str(tmp_path / "nothing.pt"))

    state = torch.load(path, weights_only=True)
    torch.save({key: state[key] for key in state if key != "features.0.bias"}, tmp_path / "less.pt")
    with pytest.raises(ValueError, match=r"1 entries are not in the file, such as features.0.bias"):
        build("squeezenet1_1", num_outputs=9, weights=str(tmp_path / "less.pt"))
    torch.save({**state, "more": torch.zeros(1)}, tmp_path / "more.pt")
    with pytest.raises(ValueError, match="1 entries are not in the model, such as more"):
        build("squeezenet1_1", num_outputs=9, weights=str(tmp_path / "more.pt"))
    torch.save({"model": state}, tmp_path / "nested.pt")
    with pytest.raises(ValueError, match="must be a state dict"):
        build("squeezenet1_1", num_outputs=9, weights=str(tmp_path / "nested.pt"))
    (tmp_path / "text.pt").write_text("these are no weights")
    with pytest.raises(ValueError, match="must be a state dict"):
        build("squeezenet1_1", num_outputs=9, weights=str(tmp_path / "text.pt"))


def test_a_file_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "code.pt"
    torch.save(models.squeezenet1_1(num_classes=9), path)  # a pickled module, not a state dict
    with pytest.raises(ValueError, match=r"must be a state dict saved by torch.save, of tensors only"):
        build("squeezenet1_1", num_outputs=9, weights=str(path))


def test_a_file_from_before_batch_norm_counted_is_fine(tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs = models.shufflenet_v2_x0_5(num_classes=7)
    old = theirs.state_dict()
    for key in [key for key in old if "num_batches" in key]:
        del old[key]
    torch.save(old, tmp_path / "old.pt")
    assert same(build("shufflenet_v2_x0_5", weights=str(tmp_path / "old.pt")), theirs)


def test_regnet_is_built_on_meta_without_drawing() -> None:
    before = torch.get_rng_state()
    with torch.device("meta"):
        model = build("regnet_y_400mf")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_model_is_built_for_grey_images(name: str) -> None:
    if name == "regnet_y_128gf":
        pytest.skip("is built on the CPU first, which takes 3 GB")
    with torch.device("meta"):
        model = build(name, (1, 224, 224))
        assert model(torch.empty(2, 1, 224, 224)).shape == (2, 7)
