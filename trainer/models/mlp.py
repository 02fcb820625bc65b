"""Fully connected networks: linear or softmax regression, and the multi-layer perceptron."""

from collections.abc import Sequence
from math import prod

from torch import nn

from trainer.models.parts import check_choice, check_dropout, check_widths, dense_layers, paired, with_plans


def linear(*, input_shape: tuple[int, int, int], num_outputs: int) -> nn.Sequential:
    """One linear layer on all inputs: softmax regression, or linear regression."""
    output = nn.Linear(prod(input_shape), num_outputs)
    return with_plans({"flatten": nn.Flatten(), "output": output}, {"output": "gather"})


def mlp(
    *,
    input_shape: tuple[int, int, int],
    num_outputs: int,
    hidden: Sequence[int] = (64, 64),
    activation: str = "relu",
    norm: str = "none",
    drop_prob: float = 0.0,
) -> nn.Sequential:
    """Multi-layer perceptron: linear, norm, activation, dropout for each hidden width, then a linear output.

    `hidden`: widths, each >= 1 (an empty list gives `linear`); `norm`: none, batch or layer; `drop_prob`: the drop
    probability in [0, 1), the complement of the keep probability p of Srivastava et al. 2014. Raises ValueError
    otherwise.
    """
    check_widths("hidden", hidden)
    check_choice("norm", norm, ("none", "batch", "layer"))
    check_dropout(drop_prob)
    layers = dense_layers(prod(input_shape), hidden, num_outputs, activation=activation, norm=norm, drop_prob=drop_prob)
    return with_plans({"flatten": nn.Flatten(), **layers}, paired(layers))
