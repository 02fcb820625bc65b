"""Building blocks shared by models: activations and norms by name, fully connected layers, argument checks."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from trainer.base.checks import check_choice as check_choice
from trainer.base.checks import check_number, check_that, check_wholes
from trainer.base.checks import check_one_of as check_one_of

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}
NORMS = ("batch", "layer", "instance", "group", "none")
NORM_PLACES = ("before", "after")
# for vectors of features; feature maps use `norm_layer`
_NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
_MOST_GROUPS = 32  # Wu & He 2018
_WHOLE_SAMPLE = (nn.LayerNorm, nn.GroupNorm)  # norms that need all channels at once
_PER_CHANNEL = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d)


def activation_layer(name: str) -> nn.Module:
    """A new activation module. Raises ValueError for an unknown name."""
    check_choice("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


def norm_layer(name: str, num_channels: int) -> nn.Module:
    """A new norm of feature maps (N, C, H, W): y = a_c (x - mean) / sqrt(var + 1e-5) + b_c, with learned a and b.

    mean and var (divisor: the number of elements) are those of x over

    - batch: (N, H, W), for each channel; running averages of them in evaluation (Ioffe & Szegedy 2015)
    - layer: (C, H, W), for each sample (Ba et al. 2016); this is one group, not a norm over the channels of each pixel
    - instance: (H, W), for each sample and channel (Ulyanov et al. 2016); needs maps of more than one pixel
    - group: (C/G, H, W), for each sample and group of channels (Wu & He 2018); G is the largest divisor of C that is
      at most 32, their choice, and leaves at least 2 channels in a group; 1 if there is none

    and none is the identity. Source: UVic PHYS 555, "Batch, Layer, Instance, and Group Normalization". Raises
    ValueError for another name.
    """
    check_choice("norm", name, NORMS)
    if name == "batch":
        return nn.BatchNorm2d(num_channels)
    if name == "instance":
        return nn.InstanceNorm2d(num_channels, affine=True)
    if name == "none":
        return nn.Identity()
    return nn.GroupNorm(num_groups(num_channels) if name == "group" else 1, num_channels)


def num_groups(num_channels: int) -> int:
    """Groups of `norm=group`: see `norm_layer`."""
    candidates = range(min(_MOST_GROUPS, num_channels // 2), 0, -1)
    return next((count for count in candidates if num_channels % count == 0), 1)


@dataclass(frozen=True)
class Style:
    """Norm and activation of a model's convolutions: which, and in which order.

    `norm_place`: `before` the activation, as usual, or `after` it (UVic PHYS 555, "Batch Normalization": "Typically
    inserted before activation"). Raises ValueError for unknown names.
    """

    norm: str = "batch"
    activation: str = "relu"
    norm_place: str = "before"

    def __post_init__(self) -> None:
        check_choice("norm", self.norm, NORMS)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("norm_place", self.norm_place, NORM_PLACES)

    @property
    def has_bias(self) -> bool:
        """Whether a convolution has a bias: not if a norm of each channel follows, which would cancel it."""
        return self.norm not in ("batch", "instance") or self.norm_place == "after"

    def conv(
        self,
        num_inputs: int,
        num_filters: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
    ) -> nn.Conv2d:
        """A convolution, by default padded to keep the size."""
        padding = kernel_size // 2 if padding is None else padding
        return nn.Conv2d(num_inputs, num_filters, kernel_size, stride, padding, groups=groups, bias=self.has_bias)

    def unnormalized_conv(self, num_inputs: int, num_filters: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
        """A convolution that no norm follows directly: without bias, because the next norm has one, or with it."""
        padding = kernel_size // 2
        return nn.Conv2d(num_inputs, num_filters, kernel_size, stride, padding, bias=self.norm == "none")

    def norm_layer(self, num_channels: int) -> nn.Module:
        """A new norm."""
        return norm_layer(self.norm, num_channels)

    def activation_layer(self) -> nn.Module:
        """A new activation."""
        return activation_layer(self.activation)

    def after_conv(self, num_filters: int, suffix: object = "") -> dict[str, nn.Module]:
        """The norm, if any, and the activation of a convolution, by name and in order."""
        layers: dict[str, nn.Module] = {f"activation{suffix}": self.activation_layer()}
        if self.norm == "none":
            return layers
        norm: dict[str, nn.Module] = {f"norm{suffix}": self.norm_layer(num_filters)}
        return norm | layers if self.norm_place == "before" else layers | norm

    def residual_plan(self, drop_prob: float = 0.0) -> dict[str, str]:
        """Tensor plan of a branch conv1, norm1, dropout1, conv2 whose input and output are whole.

        The channels between the convolutions are split, unless a norm needs them at once.
        """
        if self.norm in ("layer", "group"):
            return {"conv1": "gather", "conv2": "gather"}
        between = {} if self.norm == "none" else {"norm1": "split"}
        random = {"dropout1": "split"} if drop_prob else {}
        return {"conv1": "column", **between, **random, "conv2": "row"}


class StochasticDepth(nn.Module):
    """Drops a residual branch of a sample with probability p in training: y = b x / (1 - p), b ~ Bernoulli(1 - p).

    There is one b for each sample; the mean is the value in evaluation, y = x.

    Huang et al. 2016 scale in evaluation instead, by 1 - p: the same function up to the scale of the branch. Equal to
    `torchvision.ops.StochasticDepth` with mode="row", random numbers included.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return branch
        keep = branch.new_empty((len(branch), *[1] * (branch.dim() - 1))).bernoulli_(1 - self.p)
        return branch * keep.div_(1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


def depth_drop_probs(last: float, num_blocks: int) -> list[float]:
    """Drop probabilities of residual blocks l = 1..L by the linear rule, l/L (1 - p_L), with `last` = 1 - p_L.

    p_l is the survival probability of Huang et al. 2016, who choose p_L = 0.5.
    """
    return [last * block / num_blocks for block in range(1, num_blocks + 1)]


def dense_layers(
    num_inputs: int,
    hidden: Sequence[int],
    num_outputs: int,
    *,
    activation: str,
    norm: str,
    drop_prob: float,
    first: int = 1,
) -> dict[str, nn.Module]:
    """Fully connected layers by name: linear1, norm1, activation1, dropout1 for the first width, ... output.

    Numbering starts at `first`. A linear layer before batch norm has no bias, which batch norm would cancel.
    """
    layers: dict[str, nn.Module] = {}
    for i, width in enumerate(hidden, first):
        layers[f"linear{i}"] = nn.Linear(num_inputs, width, bias=norm != "batch")
        if norm != "none":
            layers[f"norm{i}"] = _NORMS[norm](width)
        layers[f"activation{i}"] = activation_layer(activation)
        if drop_prob > 0:
            layers[f"dropout{i}"] = nn.Dropout(drop_prob)
        num_inputs = width
    layers["output"] = nn.Linear(num_inputs, num_outputs)
    return layers


def with_plans(
    layers: Mapping[str, nn.Module], tensor_plan: Mapping[str, str], stages: Iterable[str] | None = None
) -> nn.Sequential:
    """Chain the layers in a Sequential, with two attributes that say how it may be split over devices.

    `pipeline_plan`: names of the children at which a pipeline stage may begin (None: all but the first).
    `tensor_plan`: how a tensor-parallel group splits each module, by name; modules that are not named are replicated.
    column: input whole, weight split by outputs, output split; row: input split, weight split by inputs, output whole;
    gather: as column, then the outputs are gathered; cross: input gathered first, then as column; group: a grouped
    convolution of split channels; split: parameters or random draws per channel, of split channels.
    """
    model: Any = nn.Sequential(OrderedDict(layers))
    model.pipeline_plan = list(layers)[1:] if stages is None else list(stages)
    model.tensor_plan = dict(tensor_plan)
    return model  # type: ignore[no-any-return]


def paired(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """A tensor plan that pairs the layers with weights, column then row, with whole inputs and outputs.

    A last layer without a partner is replicated, or gathered if it is a convolution or the only layer. If there is a
    norm that needs all features at once (layer, group), all are gathered.
    """
    plan: dict[str, str] = {}
    weighted = [name for name, layer in layers.items() if isinstance(layer, nn.Linear | nn.Conv2d)]
    before_layer_norm = any(isinstance(layer, _WHOLE_SAMPLE) for layer in layers.values())
    is_split = False
    for name, layer in layers.items():
        if name in weighted:
            is_last = name == weighted[-1]
            if is_split:
                plan[name], is_split = "row", False
            elif is_last:
                if isinstance(layer, nn.Conv2d) or len(weighted) == 1:
                    plan[name] = "gather"
            elif before_layer_norm:
                plan[name] = "gather"
            else:
                plan[name], is_split = "column", True
        elif is_split and isinstance(layer, (*_PER_CHANNEL, nn.Dropout)):
            plan[name] = "split"
    return plan


def check_widths(key: str, widths: Sequence[int], minimum: int = 0) -> None:
    """Raises ValueError unless `widths` holds at least `minimum` integers, each >= 1."""
    check_wholes(key, widths, 1, least=minimum)


def check_dropout(drop_prob: float) -> None:
    """Raises ValueError unless the drop probability is in [0, 1).

    It is p of `torch.nn.Dropout`; p of UIUC ECE 598, "Drop-out", and of Srivastava et al. 2014 is the keep probability.
    """
    check_number("drop_prob", drop_prob, 0, 1, below=True, must="a drop probability in [0, 1)")


def check_stochastic_depth(last: float, has_shortcuts: bool = True) -> None:
    """Raises ValueError unless the last block's drop probability is in [0, 1), and 0 without shortcuts."""
    check_number("stochastic_depth", last, 0, 1, below=True, must="the last block's drop probability, in [0, 1)")
    check_that(has_shortcuts or not last, "stochastic_depth", last, "0 without shortcuts, which a dropped block needs")


def check_depth(depth: int, outside: int) -> None:
    """Raises ValueError if the depth is not 6n + `outside`, of n blocks in each of three stages."""
    below = depth - (depth - outside) % 6
    nearest = f"{6 + outside}" if depth < 6 + outside else f"{below} and {below + 6}"
    is_one = depth >= 6 + outside and depth % 6 == outside
    check_that(is_one, "depth", depth, f"6n+{outside} with n >= 1; the nearest allowed: {nearest}")


def check_image_size(model: str, input_shape: tuple[int, int, int], smallest: int, with_key: str = "") -> None:
    """Raises ValueError if images are smaller than `smallest` pixels on a side, which `with_key` may explain."""
    _, height, width = input_shape
    if min(height, width) < smallest:
        why = f" with {with_key}" if with_key else ""
        raise ValueError(
            f"model {model} needs images of at least {smallest}x{smallest}{why}; data gives {height}x{width}"
        )
