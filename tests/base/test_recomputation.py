"""Activation checkpointing changes no bit of training: random numbers, running statistics, second derivatives."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

from tests.parallelism.harness import DOUBLE, advance, curve, difference, make, reference, spawn, state_of
from trainer import compose
from trainer.base.errors import ConfigurationError
from trainer.base.recomputation import blocks_of, recompute_blocks
from trainer.configuration.resolve import resolve
from trainer.planning.estimate import _saved_bytes


class Block(nn.Module):
    """A layer of each kind whose second pass could differ from the first."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 8), middle, nn.Linear(8, 8)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        y: Tensor = self.last(torch.tanh(self.middle(self.first(x))))
        return x + scale * y


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.4, self.training)


class Counted(nn.Module):
    """A layer whose output depends on a buffer that each pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count: Tensor = self.count + 1
        return x / self.count


MIDDLES: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm1d(8),
    "batch norm, cumulative": lambda: nn.BatchNorm1d(8, momentum=None),
    "batch norm without statistics": lambda: nn.BatchNorm1d(8, track_running_stats=False),
    "dropout": lambda: nn.Dropout(0.3),
    "alpha dropout": lambda: nn.AlphaDropout(0.3),
    "functional dropout": Functional,
    "spectral norm": lambda: spectral_norm(nn.Linear(8, 8)),
    "a buffer that counts": Counted,
}


def passes(middle: Callable[[], nn.Module], recomputed: bool) -> list[Tensor]:
    """Two micro-batches one after the other, two at once, and one whose graph is used twice."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(8, 8), Block(middle()), nn.Sequential(Block(middle()), Block(middle())))
    if recomputed:
        assert len(list(blocks_of(model))) == 3
        recompute_blocks(model)
    images = torch.randn(5, 6, 8)
    for x in images[:2]:
        model(x).square().sum().backward()
    (model(images[2]).square().sum() + model(images[3]).square().sum()).backward()
    loss = model(images[4]).pow(4).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    state = [value.clone() for value in model.state_dict().values()]
    model.eval()
    outputs = model(images[0])
    return [*state, outputs.detach(), torch.rand(3), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("kind", MIDDLES)
def test_no_bit_changes(kind: str) -> None:
    one, other = (passes(MIDDLES[kind], recomputed) for recomputed in (False, True))
    assert len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("given", [False, True], ids=["own weights", "weights for one call, as under ddp"])
def test_second_derivatives(given: bool) -> None:
    found = []
    for recomputed in (False, True):
        torch.manual_seed(5)
        model = nn.Sequential(Block(nn.BatchNorm1d(8)), Block(nn.Dropout(0.3)))
        if recomputed:
            recompute_blocks(model)
        names, parameters = zip(*model.named_parameters(), strict=True)
        state = {name: p.clone() if given else p for name, p in zip(names, parameters, strict=True)}
        outputs = functional_call(model, state, (torch.randn(6, 8),))
        first = torch.autograd.grad(outputs.pow(4).sum(), parameters, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), parameters))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class Encoder(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.norm = nn.Sequential(*layers), nn.LayerNorm(8)


def test_a_module_with_most_of_the_layers_is_divided() -> None:
    layers = [Block(nn.Dropout(0.1)) for _ in range(4)]
    mlp = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    assert list(blocks_of(nn.Sequential(nn.Linear(8, 8), Encoder(*layers), mlp))) == [*layers, mlp]
    assert list(blocks_of(nn.Sequential(nn.Flatten(), mlp))) == []  # it is the whole model


# --- in a run ---------------------------------------------------------------------------------------------

RESNET = ["device=cpu", "threads=1", "model=resnet20", "model.depth=8", "batch_size=30", "steps=4"]
ON = "checkpoint_activations=true"


def trained(overrides: list[str]) -> tuple[list[float], dict[str, Tensor]]:
    run = make(overrides)
    return advance(run, 4), state_of(run)["model"]


def test_blocks_keep_their_inputs_only() -> None:
    plain, recomputed = (_saved_bytes(make([*RESNET, *more]), 4) for more in ([], [ON]))
    assert recomputed < plain / 2  # the rest is of the layers before and after the three blocks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "world_size"),
    [
        (["optimizer=adamw", "precision=bf16", "accumulate=2"], 1),
        (["optimizer=lbfgs"], 1),
        (["parallelism=ddp", "accumulate=2"], 2),
        (["parallelism=ddp", "parallelism.unused_parameters=true", "precision=bf16"], 2),
        (["parallelism=fsdp", "accumulate=2"], 2),
        (["parallelism=tensor"], 2),
    ],
)
def test_a_run_has_the_same_bits(overrides: list[str], world_size: int) -> None:
    for one, other in zip(
        *(spawn(world_size, trained, [*RESNET, *overrides, *more]) for more in ([], [ON])), strict=True
    ):
        assert one[0] == other[0]
        assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_several_ranks_equal_one_device(strategy: str) -> None:
    overrides = [*RESNET[:-1], "optimizer=adamw", "accumulate=2", "clip_norm=0.1"]
    wanted = reference(tuple(overrides), True, 4)
    for found in spawn(2, curve, [*overrides, f"parallelism={strategy}", ON], 4, True):
        assert max(difference(wanted, found).values()) < DOUBLE


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model=lenet"], "checkpoint_activations=true: Sequential has no blocks"),
        (
            [*RESNET, "model.norm=none", "optimizer=newton", "parallelism=ddp", "accumulate=2"],
            "checkpoint_activations=true: optimizer=newton .* leave accumulate=1",
        ),
        (["model=resnet20", "compile=true"], "checkpoint_activations=true: .* leave compile=false"),
        (
            ["model=resnet20", "model.norm=none", "parallelism=pipeline"],
            "checkpoint_activations=true: must be false with",
        ),
    ],
)
def test_what_cannot_be_computed_again_is_refused(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        resolve(compose([*overrides, ON]))
