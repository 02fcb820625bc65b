"""The LSTM against torch's stacked one and against its formula in NumPy."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainer.initializers import Orthogonal, XavierUniform
from trainer.initializers.weights import left_alone
from trainer.models.lstm import lstm
from trainer.optimizers.parameter_groups import excluded_names
from trainer.parallelism.sizes import layers_of
from trainer.reporting.initial_outputs import FirstOutputs
from trainer.reporting.model_table import summarize


def build(**arguments: object) -> nn.Sequential:
    torch.manual_seed(0)
    return lstm(input_shape=(3, 5, 4), num_outputs=7, **({"hidden": 6, "num_layers": 2} | arguments))


def images() -> Tensor:
    return torch.randn(8, 3, 5, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.proves("model=lstm", reference="torch.nn.LSTM", tolerance="bitwise, two layers")
def test_it_is_torchs_lstm_over_rows_with_a_linear_output() -> None:
    model, theirs = build(), nn.LSTM(12, 6, num_layers=2, batch_first=True)
    own = {f"{key[:-1]}{number - 1}": value for number in (1, 2)
           for key, value in model.get_submodule(f"lstm{number}").state_dict().items()}  # fmt: skip
    theirs.load_state_dict(own)
    rows_NTD = torch.stack([images()[:, :, row].flatten(1) for row in range(5)], 1)
    _, (states, _) = theirs(rows_NTD)
    assert torch.equal(model(images()), model.get_submodule("output")(states[-1]))


@pytest.mark.proves("model=lstm", reference="the formula in numpy", tolerance="1e-12 relative")
def test_a_layer_is_its_formula() -> None:
    model = build(num_layers=1).double()
    w, u, b_w, b_u = (p.detach().numpy() for p in model.get_submodule("lstm1").parameters())
    h, c = np.zeros((8, 6)), np.zeros((8, 6))
    for row in range(5):
        x = images()[:, :, row].flatten(1).double().numpy()
        i, f, g, o = np.split(x @ w.T + h @ u.T + b_w + b_u, 4, 1)
        i, f, o = (1 / (1 + np.exp(-z)) for z in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
    weight, bias = (p.detach().numpy() for p in model.get_submodule("output").parameters())
    np.testing.assert_allclose(model(images().double()).detach().numpy(), h @ weight.T + bias, rtol=1e-12)


def test_parameters_and_operations_by_hand() -> None:
    model = build()
    assert sum(p.numel() for p in model.parameters()) == 4 * 6 * (12 + 6 + 2) + 4 * 6 * (6 + 6 + 2) + 7 * 6 + 7
    multiply_adds = [5 * 4 * 6 * (12 + 6), 5 * 4 * 6 * (6 + 6), 7 * 6]  # five time steps
    assert [layer.work for layer in layers_of(model, (3, 5, 4)) if layer.work] == multiply_adds
    assert summarize(model, (3, 5, 4)).flops == 2 * sum(multiply_adds)


def test_initializers_reach_each_gate_and_decay_leaves_biases_out() -> None:
    model = build()
    assert left_alone(model) == []
    Orthogonal()(model)
    for gate in model.get_parameter("lstm1.weight_hh_l0").detach().chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(6))
    XavierUniform()(model)
    assert model.get_parameter("lstm2.weight_ih_l0").abs().max() <= (6 / 12) ** 0.5
    assert excluded_names(model, ["bias"]) == {name for name, p in model.named_parameters() if p.dim() == 1}
    first = FirstOutputs(model)
    model(images())
    assert [row.layer for row in first.read()] == ["lstm1", "lstm2", "output"]


def test_dropout_follows_every_layer() -> None:
    names = [name for name, _ in build(drop_prob=0.5).named_children()]
    assert names == ["rows", "lstm1", "dropout1", "lstm2", "last", "dropout2", "output"]
    assert build().pipeline_plan == ["lstm1", "lstm2", "output"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": 0}, "^hidden=0: must be at least 1"),
        ({"num_layers": 0}, "^num_layers=0: must be at least 1"),
        ({"drop_prob": 1.0}, r"^drop_prob=1.0: must be a drop probability in \[0, 1\)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**arguments)
