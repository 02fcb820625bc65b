"""Any classification model of timm, adapted to the data's channels, image size and classes."""

import inspect
import re
from collections.abc import Callable, Mapping
from types import ModuleType

import torch
from torch import nn

from trainer.base.checks import check_that, refuse
from trainer.base.config import Config, ConfigValue
from trainer.base.text import did_you_mean
from trainer.models.from_library import built, check_images, check_rates, read, take, take_pretrained

# constructor arguments that the data determine, by timm's names
_FROM_DATA = ("num_classes", "in_chans", "img_size")
# our keys -> timm's
_RATES = {"drop_prob": "drop_rate", "stochastic_depth": "drop_path_rate"}


def from_timm(
    *,
    input_shape: tuple[int, int, int],
    num_outputs: int,
    name: str = "resnet18",
    pretrained: bool = False,
    weights: str | None = None,
    drop_prob: float | None = None,
    stochastic_depth: float | None = None,
    arguments: Mapping[str, ConfigValue] | None = None,
) -> nn.Module:
    """Build the model `name` of `timm.create_model`, with `arguments` for its constructor.

    The data give the numbers of classes and channels and, for models of a fixed size (vit, swin), the image size.
    `drop_prob` and `stochastic_depth` are drop probabilities in [0, 1), null for the model's own (timm's `drop_rate`
    and `drop_path_rate`). timm is not installed with Gearshift: `pip install 'gearshift[timm]'`.

    `pretrained` takes timm's weights, those of the tag if `name` has one (resnet18.a1_in1k), which are downloaded once;
    `weights` is the path to a state dict saved with torch.save, read with weights_only=True. What may differ is the
    same as for `model=torchvision`, and is told.

    Raises ValueError without timm, for an unknown name or argument, weights that do not match, or images that are too
    small; DataError for damaged weights.
    """
    check_rates(drop_prob, stochastic_depth)
    timm = _library()
    _check_name(timm, name)
    given = dict(arguments or {})
    rates = {"drop_prob": drop_prob, "stochastic_depth": stochastic_depth}
    build = _constructor(timm, name, given, rates, input_shape)
    check_that(not pretrained or weights is None, "weights", weights, "null with pretrained=true")
    has_weights = timm.get_pretrained_cfg(name).has_weights
    check_that(not pretrained or has_weights, "pretrained", True, f"false: timm has no weights of {name}")

    def recipe(num_channels: int, num_classes: int) -> nn.Module:
        return built(lambda: build({"in_chans": num_channels, "num_classes": num_classes}), name, given, input_shape)

    try:
        model = recipe(input_shape[0], num_outputs)
    except ValueError as error:
        _refuse_argument(timm, name, str(error), rates, given)
        raise
    check_images(model, name, input_shape)
    if pretrained:
        take_pretrained(model, lambda loads: build({"pretrained": loads}), recipe, name, pretrained)
    elif weights is not None:
        take(model, read(model, weights), recipe, name, f"weights={weights}")
    return model


def _library() -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ValueError("needs timm, which is not installed: pip install 'gearshift[timm]'") from error
    library: ModuleType = timm
    return library


def _check_name(timm: ModuleType, name: str) -> None:
    """Raise ValueError unless the name, which may end in a tag of pretrained weights, is in timm's list."""
    architecture = name.partition(".")[0]
    names = timm.list_models()
    check_that(architecture in names, "name", name, f"a model of timm{did_you_mean(architecture, names)}")
    if architecture != name:
        known = timm.list_models(f"{architecture}.*", pretrained=True)
        check_that(
            name in known, "name", name, f"{architecture} or one of {', '.join(known)}" if known else architecture
        )


def _constructor(
    timm: ModuleType, name: str, arguments: Config, rates: Mapping[str, float | None], shape: tuple[int, int, int]
) -> Callable[[Config], nn.Module]:
    """Check the arguments; return the function that builds the model with further arguments of `timm.create_model`."""
    for key, value in arguments.items():
        check_that(key not in _FROM_DATA, f"arguments.{key}", value, "omitted; the data determine it")
        # among them are files and settings of weights to load
        is_ours = key in inspect.signature(timm.create_model).parameters
        check_that(not is_ours, f"arguments.{key}", value, "omitted; it is no argument of the model's constructor")
    chosen = dict(arguments)
    for key, rate in rates.items():
        if rate is not None:
            check_that(_RATES[key] not in arguments, key, rate, f"null for model {name}, given {_RATES[key]}")
            chosen[_RATES[key]] = rate
    size = {"img_size": shape[1:]} if timm.get_pretrained_cfg(name).fixed_input_size else {}

    def build(more: Config) -> nn.Module:
        model: nn.Module = timm.create_model(name, **size, **chosen, **more)
        return model

    return build


def _refuse_argument(
    timm: ModuleType, name: str, message: str, rates: Mapping[str, float | None], arguments: Config
) -> None:
    """Raise ValueError for the argument that a constructor does not know, if the message is about one."""
    found = re.search(r"unexpected keyword argument '(\w+)'", message)
    word = "" if found is None else found[1]
    for key, rate in rates.items():
        if rate is not None and _RATES[key] == word:
            refuse(key, rate, f"null for model {name}, which has none")
    if word in arguments:
        with torch.device("meta"):
            known = inspect.signature(type(timm.create_model(name))).parameters
        hint = did_you_mean(word, [key for key in known if key not in _FROM_DATA])
        refuse(f"arguments.{word}", arguments[word], f"an argument of model {name}{hint}")
