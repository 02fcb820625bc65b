"""Any classification model of torchvision, adapted to the data's channels, image size and classes."""

import inspect
from collections.abc import Callable, Iterable, Mapping

from torch import nn

from trainer.base.checks import check_that, refuse
from trainer.base.config import Config, ConfigValue
from trainer.base.text import did_you_mean, written
from trainer.models.from_library import built, check_images, check_rates, read, take, take_pretrained

# constructor arguments that the data determine, by torchvision's names
_FROM_DATA = ("num_classes", "image_size", "input_size")
# our keys -> the names that constructors have for them
_RATES = {"drop_prob": ("dropout", "drop_rate"), "stochastic_depth": ("stochastic_depth_prob",)}


def from_torchvision(
    *,
    input_shape: tuple[int, int, int],
    num_outputs: int,
    name: str = "resnet18",
    pretrained: bool | str = False,
    weights: str | None = None,
    drop_prob: float | None = None,
    stochastic_depth: float | None = None,
    arguments: Mapping[str, ConfigValue] | None = None,
) -> nn.Module:
    """Build the model `name` of `torchvision.models`, with `arguments` for its constructor.

    The data give the number of classes and, if the constructor takes it (vit, maxvit), the image size. If the data do
    not have 3 channels, the first convolution is replaced by a new one. Auxiliary classifiers (googlenet,
    inception_v3) are omitted. `drop_prob` and `stochastic_depth` are drop probabilities in [0, 1), null for the
    model's own.

    `pretrained` takes torchvision's weights, true for the default ones or a name such as IMAGENET1K_V1, which are
    downloaded once; `weights` is the path to a state dict saved with torch.save, read with weights_only=True. They must
    match the model entry by entry. Only the classifier stays new if it is for another number of classes, and the first
    convolution for another number of channels; for grey images its kernels are summed over colours. The run says what
    was taken, left out and is new.

    Raises ValueError for an unknown name or argument, weights that do not match, or images that are too small;
    DataError for damaged weights.
    """
    check_rates(drop_prob, stochastic_depth)
    given = dict(arguments or {})
    build = _constructor(name, given, {"drop_prob": drop_prob, "stochastic_depth": stochastic_depth}, input_shape)
    check_that(not pretrained or weights is None, "weights", weights, f"null with pretrained={written(pretrained)}")

    def recipe(num_channels: int, num_classes: int) -> nn.Module:
        model = built(lambda: build(num_classes), name, given, input_shape)
        _take_channels(model, num_channels)
        return model

    library = _pretrained(name, pretrained) if pretrained else None
    model = recipe(input_shape[0], num_outputs)
    check_images(model, name, input_shape)
    if library is not None:
        take_pretrained(model, library, recipe, name, pretrained)
    elif weights is not None:
        take(model, read(model, weights), recipe, name, f"weights={weights}")
    return model


def _constructor(
    name: str, arguments: Config, rates: Mapping[str, float | None], input_shape: tuple[int, int, int]
) -> Callable[[int], nn.Module]:
    """Check the name and arguments; return the function that builds the model for a number of classes."""
    from torchvision import models

    names = models.list_models(module=models)
    check_that(name in names, "name", name, f"a classification model of torchvision.models{did_you_mean(name, names)}")
    # builders take **kwargs; the class that they return has the full signature
    returned = inspect.signature(models.get_model_builder(name)).return_annotation
    parameters = inspect.signature(returned).parameters
    _check_arguments(name, arguments, [p.name for p in parameters.values() if p.kind is not p.VAR_KEYWORD])
    _, height, width = input_shape
    from_data = {"image_size": height, "input_size": (height, width)}
    # without auxiliary classifiers a model has one output; init_weights=None warns
    ours = {"aux_logits": False, "init_weights": True} | from_data
    chosen = {key: value for key, value in ours.items() if key in parameters} | arguments
    for key, rate in rates.items():
        if rate is not None:
            own = next((word for word in _RATES[key] if word in parameters), None)
            if own is None or own in arguments:
                refuse(key, rate, f"null for model {name}" + (", which has none" if own is None else f", given {own}"))
            chosen[own] = rate
    return lambda num_outputs: models.get_model(name, weights=None, num_classes=num_outputs, **chosen)


def _pretrained(name: str, pretrained: bool | str) -> Callable[[bool], nn.Module]:
    """Check the name of weights; return the function that builds torchvision's model, with them or only its shapes."""
    from torchvision import models

    named = models.get_model_weights(name).__members__
    wanted = "DEFAULT" if pretrained is True else pretrained
    must = f"false, true or one of {', '.join(named)} for model {name}{did_you_mean(wanted, named)}"
    check_that(wanted in named, "pretrained", pretrained, must)
    weights = named[str(wanted)]
    # what torchvision sets for the weights, and for auxiliary classifiers, which it removes after loading
    taken = inspect.signature(inspect.signature(models.get_model_builder(name)).return_annotation).parameters
    size = weights.meta.get("min_size", (0, 0))
    found = {"num_classes": len(weights.meta["categories"]), "image_size": size[0], "input_size": size}
    fixed = {"aux_logits": False, "init_weights": False} | found
    shapes = {key: value for key, value in fixed.items() if key in taken}
    return lambda loads: (
        models.get_model(name, weights=weights) if loads else models.get_model(name, weights=None, **shapes)
    )


def _check_arguments(name: str, arguments: Mapping[str, ConfigValue], known: Iterable[str]) -> None:
    free = [key for key in known if key not in _FROM_DATA]
    for key, value in arguments.items():
        check_that(key not in _FROM_DATA, f"arguments.{key}", value, "omitted; the data determine it")
        if key not in free:
            hint = did_you_mean(key, free)
            raise ValueError(f"arguments.{key}={value}: must be one of {', '.join(free)} for model {name}{hint}")
    check_that(not arguments.get("aux_logits"), "arguments.aux_logits", True, "false; a model has one output here")


def _take_channels(model: nn.Module, num_channels: int) -> None:
    """Replace the first convolution by one of `num_channels`, with torch's default initialization."""
    path, first = next((path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d))
    if first.in_channels == num_channels:
        return
    parent, _, attribute = path.rpartition(".")
    new = nn.Conv2d(
        num_channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    setattr(model.get_submodule(parent), attribute, new)
