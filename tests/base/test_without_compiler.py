"""The code that bypasses torch's public interface, compared with that interface."""

import functools
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from trainer.base import without_compiler
from trainer.base.torch_optimizers import plain_step
from trainer.base.without_compiler import backward, set_deterministic, step_arithmetic, zeros_for
from trainer.reporting.model_table import summarize

KINDS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "SGD": (SGD, {"momentum": 0.9}),
    "SGD, fused": (SGD, {"fused": True}),
    "Adam, foreach": (Adam, {"foreach": True}),
    "AdamW": (AdamW, {"amsgrad": True}),
    "Adagrad": (Adagrad, {}),
    "NAdam": (NAdam, {}),
    "RMSprop": (RMSprop, {"centered": True}),
}


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 3), (3,))]


def weights_after_steps(kind: str, step: Callable[[Optimizer], object]) -> Tensor:
    """Three steps, with a save and a load of the state in between."""
    make, arguments = KINDS[kind]
    params = parameters()
    optimizer = make(params, lr=0.1, **arguments)  # type: ignore[call-arg]
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        step(optimizer)
        optimizer.load_state_dict(optimizer.state_dict())
    return torch.cat([p.detach().flatten() for p in params])


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_nobody_observes_has_the_bits_of_the_public_one(kind: str) -> None:
    ours = weights_after_steps(kind, lambda optimizer: plain_step(optimizer, None))
    assert torch.equal(ours, weights_after_steps(kind, lambda optimizer: optimizer.step()))
    # if torch's source has changed, the comparison is void and the bypass must be written anew
    assert step_arithmetic(KINDS[kind][0]) is not None


def test_a_differentiable_optimizer_records_its_step() -> None:
    params = [nn.Parameter(torch.ones(2))]
    moved = [p.clone() for p in params]
    optimizer = SGD(moved, lr=0.1, differentiable=True)
    moved[0].grad = torch.ones(2)
    plain_step(optimizer, None)
    assert moved[0].requires_grad and moved[0].grad_fn is not None
    assert torch.is_grad_enabled()


def test_what_is_wrapped_by_others_is_stepped_in_public(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    SGD(parameters())  # torch decorates the class on first construction
    original = SGD.step

    @functools.wraps(original)
    def counted(self: SGD, closure: None = None) -> None:
        calls.append(self)
        original(self, closure)

    monkeypatch.setattr(SGD, "step", counted)
    assert step_arithmetic(SGD) is None
    optimizer = SGD(parameters(), lr=0.1)
    plain_step(optimizer, None)
    assert calls == [optimizer]


def test_a_step_of_another_form_is_none_of_ours() -> None:
    class Plain(SGD):
        def step(self, closure: Any = None) -> Any:
            return None

    assert step_arithmetic(torch.optim.LBFGS) is None
    assert step_arithmetic(Plain) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_backward_has_the_bits_of_torchs(dtype: torch.dtype) -> None:
    found = []
    for call in (backward, lambda loss, weight: loss.backward(weight)):
        leaf = torch.linspace(0, 1, 7, dtype=dtype).requires_grad_()
        weight = torch.full((), 1 / 3, dtype=torch.promote_types(dtype, torch.float32))
        for _ in range(2):  # gradients accumulate
            call(leaf.square().sum(), weight)
        found.append(leaf.grad)
    assert torch.equal(*found)


def test_backward_refuses_what_torch_refuses() -> None:
    leaf = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError):
        backward(leaf * 2, torch.ones(()))
    with pytest.raises(RuntimeError, match="does not require grad"):
        backward(torch.ones(()), torch.ones(()))


def test_backward_without_the_engine_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(without_compiler, "_engine", lambda: None)
    leaf = torch.ones(3, requires_grad=True)
    backward(leaf.sum(), torch.tensor(0.5))
    assert leaf.grad is not None and leaf.grad.tolist() == [0.5] * 3


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("warn_only", [True, False])
def test_determinism_is_set_as_torch_sets_it(mode: bool, warn_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def state() -> tuple[bool, bool]:
        deterministic = torch.are_deterministic_algorithms_enabled()
        return deterministic, deterministic and torch.is_deterministic_algorithms_warn_only_enabled()

    before, public = torch.get_deterministic_debug_mode(), torch.use_deterministic_algorithms
    try:
        found = []
        for compiles in (True, False):
            torch.set_deterministic_debug_mode("default" if mode else "warn")
            set_deterministic(mode, warn_only=warn_only, compiles=compiles)
            found.append(state())
            # another test may have loaded the compiler
            monkeypatch.setattr(without_compiler, "sys", SimpleNamespace(modules={}))
            monkeypatch.delattr(torch, "use_deterministic_algorithms", raising=False)
        assert found[0] == found[1] == (mode, mode and warn_only)
    finally:
        public(before > 0, warn_only=before == 1)


BUILDS = """
import sys
import torch
from trainer.base.without_compiler import keep_compiler_out
{first}
def use():
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad()
use()
print("torch._dynamo" in sys.modules)
import torch._dynamo
use()
slots = [vars(vars(torch.optim.Optimizer)[name].__wrapped__)["__dynamo_disable"]
         for name in ("add_param_group", "state_dict", "load_state_dict", "zero_grad")]
print([slot.__module__ for slot in slots])
"""


def test_optimizers_leave_the_compiler_alone_until_it_is_loaded() -> None:
    """After that, torch's own behaviour is restored. The control shows that torch would import the compiler."""
    lines = []
    for first in ("keep_compiler_out()", ""):
        program = BUILDS.format(first=first)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        lines.append(done.stdout.splitlines())
    assert [found[0] for found in lines] == ["False", "True"]
    assert lines[0][1] == lines[1][1]
    assert "trainer" not in lines[0][1]


def test_a_function_that_is_decorated_otherwise_is_left_as_it_is() -> None:
    def plain() -> None: ...

    @functools.wraps(plain)
    def decorated() -> None: ...

    for function in (plain, decorated, None, print):
        without_compiler._fill_slot(function)
    assert vars(plain) == {}


def test_zeros_stand_for_a_small_model_only() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    zeros = zeros_for(model, (3,))
    assert zeros is not None
    assert {name: (value.shape, value.dtype) for name, value in zeros.items()} == {
        name: (value.shape, value.dtype) for name, value in model.state_dict().items()
    }
    assert zeros_for(nn.Linear(8000, 4001, device="meta"), (8000,)) is None
    assert zeros_for(nn.Linear(6000, 5000, device="meta"), (6000,)) is None
    assert zeros_for(model, (3, 224, 224)) is None
    assert zeros_for(nn.LazyLinear(2), (3,)) is None


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3)),
        nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(64, 4)),
    ],
)
def test_a_model_has_the_same_flops_on_the_cpu_as_on_meta(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.get_rng_state()
    small = summarize(model, (1, 8, 8))
    assert torch.equal(torch.get_rng_state(), random)
    monkeypatch.setattr(without_compiler, "_SMALL_MODEL", 0)
    assert summarize(model, (1, 8, 8)) == small
    assert small.flops
