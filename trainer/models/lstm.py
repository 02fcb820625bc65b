"""A recurrent network that reads an image row by row."""

from torch import Tensor, nn

from trainer.base.checks import check_whole
from trainer.models.parts import check_dropout, with_plans


class Rows(nn.Module):
    """(N, C, H, W) -> (N, H, C*W): row t, with the pixels of all channels, is time step t."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW.transpose(1, 2).flatten(2)


class LSTMLayer(nn.LSTM):
    """One layer of `torch.nn.LSTM` that returns its outputs only: (N, T, inputs) -> (N, T, size)."""

    def __init__(self, num_inputs: int, size: int) -> None:
        super().__init__(num_inputs, size, batch_first=True)

    def forward(self, steps_NTD: Tensor) -> Tensor:  # type: ignore[override]
        outputs_NTH: Tensor = super().forward(steps_NTD)[0]
        return outputs_NTH


class LastStep(nn.Module):
    """(N, T, D) -> (N, D): the last time step."""

    def forward(self, steps_NTD: Tensor) -> Tensor:
        return steps_NTD[:, -1]


def lstm(
    *,
    input_shape: tuple[int, int, int],
    num_outputs: int,
    hidden: int = 64,
    num_layers: int = 1,
    drop_prob: float = 0.0,
) -> nn.Sequential:
    """Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000 for the forget gate) over image rows.

    An image (C, H, W) is a sequence of H vectors of C*W pixels. Each layer computes, with h = c = 0 before step 1,

        i, f, o = sigmoid(W_i x_t + U_i h + b_i), ...;  g = tanh(W_g x_t + U_g h + b_g)
        c <- f c + i g;  h <- o tanh(c)

    and passes its h of every step to the next layer; the last h of the last layer goes to a linear output. The cell c
    changes by a sum, so gradients do not vanish through it as through a product of derivatives of sigmoid or tanh (CUHK
    ELEG 5491, "Vanishing and Exploding Gradients"). A layer has the 4 hidden (inputs + hidden + 2) parameters of
    `torch.nn.LSTM`, which has two biases.

    `hidden`: width of h and c, >= 1; `num_layers`: >= 1; `drop_prob`: of the elements of every layer's output, not of
    its recurrent connections (Zaremba et al. 2014), in [0, 1). Raises ValueError for other values.
    """
    check_whole("hidden", hidden, 1)
    check_whole("num_layers", num_layers, 1)
    check_dropout(drop_prob)
    num_channels, _, width = input_shape
    layers: dict[str, nn.Module] = {"rows": Rows()}
    num_inputs = num_channels * width
    for number in range(1, num_layers + 1):
        layers[f"lstm{number}"] = LSTMLayer(num_inputs, hidden)
        if number == num_layers:
            layers["last"] = LastStep()
        if drop_prob > 0:
            layers[f"dropout{number}"] = nn.Dropout(drop_prob)
        num_inputs = hidden
    layers["output"] = nn.Linear(hidden, num_outputs)
    return with_plans(layers, {}, [name for name in layers if name.startswith("lstm")] + ["output"])
