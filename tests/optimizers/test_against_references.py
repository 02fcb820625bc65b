"""Update rules: torch's and other authors' to the last bits on a random problem, and tables computed by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from tests.optimizers.problem import RECORDED, SHAPES, SHOWN, Make, trained, weights
from trainer.base.torch_optimizers import plain_step
from trainer.optimizers.foreach import factor_of
from trainer.optimizers.gradient_descent import GradientDescent
from trainer.optimizers.lion import Lion
from trainer.optimizers.momentum import SGDW, Lookahead, Momentum, momentum, nesterov
from trainer.optimizers.muon import Muon, is_matrix
from trainer.optimizers.rprop import Rprop, rprop
from trainer.optimizers.sam import SAM
from trainer.optimizers.schedule_free import ScheduleFreeAdamW

TORCHS: dict[str, tuple[Make, Make]] = {
    "momentum": (
        lambda p: Momentum(p, lr=0.03, momentum=0.8, weight_decay=0.1),
        lambda p: SGD(p, lr=0.03, momentum=0.8, weight_decay=0.1),
    ),
    "the option momentum": (lambda p: momentum(p), lambda p: SGD(p, lr=0.02, momentum=0.9, fused=True)),
    "momentum, nesterov": (
        lambda p: momentum(p, nesterov=True), lambda p: SGD(p, lr=0.02, momentum=0.9, nesterov=True, fused=True),
    ),
    "without momentum": (lambda p: momentum(p, momentum=0.0), lambda p: SGD(p, lr=0.02)),
    "nesterov": (lambda p: nesterov(p), lambda p: SGD(p, lr=0.02, momentum=0.9, nesterov=True, fused=True)),
    "gradient descent": (
        lambda p: GradientDescent(p, lr=0.1, weight_decay=0.2), lambda p: SGD(p, lr=0.1, weight_decay=0.2),
    ),
    "rprop, skip": (
        lambda p: rprop(p, lr=0.05, etas=(0.4, 1.3), on_sign_change="skip"),
        lambda p: torch.optim.Rprop(p, lr=0.05, etas=(0.4, 1.3)),
    ),
}  # fmt: skip


@pytest.mark.proves(
    "optimizer=momentum",
    reference="torch.optim.SGD with momentum",
    tolerance="1e-13 relative over 20 steps, form=heavy_ball",
)
@pytest.mark.proves(
    "optimizer=nesterov",
    reference="torch.optim.SGD with nesterov",
    tolerance="1e-13 relative over 20 steps, without lookahead",
)
@pytest.mark.proves("optimizer=gd", reference="torch.optim.SGD", tolerance="1e-13 relative over 20 steps")
@pytest.mark.proves(
    "optimizer=rprop", reference="torch.optim.Rprop", tolerance="1e-13 relative over 20 steps, on_sign_change=skip"
)
@pytest.mark.parametrize("name", TORCHS)
def test_torchs_rules_to_the_last_bits(name: str) -> None:
    ours, reference = TORCHS[name]
    torch.testing.assert_close(trained(ours), trained(reference), rtol=1e-13, atol=1e-13)


@pytest.mark.proves(
    "optimizer=sgdw", reference="timm 1.0.31's SGDW", tolerance="1e-12 relative over 20 steps, form=heavy_ball"
)
@pytest.mark.proves(
    "optimizer=lion",
    reference="Lion of timm 1.0.31 and of pytorch_optimizer 4.1.0",
    tolerance="1e-12 relative over 20 steps",
)
@pytest.mark.proves(
    "optimizer=sam",
    reference="pytorch_optimizer 4.1.0's SAM, whose norm is in single precision",
    tolerance="1e-6 relative over 20 steps, adaptive",
)
@pytest.mark.parametrize(
    ("reference", "make"),
    [
        (
            "timm 1.0.31, SGDW(momentum=0.9)",
            lambda p: SGDW(p, lr=0.05, momentum=0.9, form="heavy_ball", weight_decay=0.1),
        ),
        (
            "timm 1.0.31 and pytorch_optimizer 4.1.0, Lion(betas=(0.9, 0.99))",
            lambda p: Lion(p, lr=0.05, betas=(0.9, 0.99), weight_decay=0.1),
        ),
        (
            "pytorch_optimizer 4.1.0, SAM(SGD, rho=0.3, adaptive=True, momentum=0.9)",
            lambda p: SAM(p, lr=0.05, rho=0.3, adaptive=True, momentum=0.9, weight_decay=0.1),
        ),
    ],
)
def test_rules_of_other_packages(reference: str, make: Make) -> None:
    tolerance = 1e-6 if "SAM" in reference else 1e-12  # which has a norm in single precision
    assert trained(make)[SHOWN].tolist() == pytest.approx(RECORDED[reference], rel=tolerance)


@pytest.mark.proves(
    "optimizer=schedule_free_adamw",
    reference="the authors' schedulefree 1.4.1",
    tolerance="1e-12 relative over 20 steps, in training and in evaluation",
)
def test_schedule_free_trains_and_evaluates_the_weights_of_the_authors() -> None:
    params, made = weights(), list[ScheduleFreeAdamW]()

    def make(params: list[nn.Parameter]) -> Optimizer:
        made.append(ScheduleFreeAdamW(params, lr=0.05, betas=(0.9, 0.99), weight_decay=0.1, warmup_steps=5, r=1.0))
        return made[0]

    training, evaluation = [table for name, table in RECORDED.items() if "schedulefree" in name or "the same" in name]
    assert trained(make, params=params, rates=False)[SHOWN].tolist() == pytest.approx(training, rel=1e-12)
    averages = torch.cat([value.flatten() for _, value in made[0].evaluation_weights()])
    assert averages[SHOWN].tolist() == pytest.approx(evaluation, rel=1e-12)


@pytest.mark.proves("optimizer=sam", reference="a step computed by hand", tolerance="1e-6 relative")
def test_sam_takes_the_gradient_uphill() -> None:
    """J = w1^2 / 2 + 2 w2^2 at (3, 1): g = (3, 4), |g| = 5; uphill by rho = 0.5 is (3.3, 1.4), where g = (3.3, 5.6)."""
    w = nn.Parameter(torch.tensor([3.0, 1.0], dtype=torch.float64))
    gradients = []

    def closure() -> Tensor:
        w.grad = w.detach() * torch.tensor([1.0, 4.0])
        gradients.append(w.grad.tolist())
        return (w.detach().square() * torch.tensor([0.5, 2.0])).sum()

    assert float(SAM([w], lr=0.1, rho=0.5, momentum=0.0).step(closure)) == 6.5
    assert gradients == [[3.0, 4.0], pytest.approx([3.3, 5.6])]
    assert w.tolist() == pytest.approx([3 - 0.33, 1 - 0.56])


def muon_and_adamw(params: list[nn.Parameter], convolutions: bool) -> list[Optimizer]:
    """torch's optimizers for the two kinds of parameters."""
    matrices = [p for p in params if p.dim() == 2 or (convolutions and p.dim() > 2)]
    others = [p for p in params if all(p is not m for m in matrices)]
    return [
        torch.optim.Muon(matrices, lr=0.03, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.03, betas=(0.8, 0.95), weight_decay=0.1),
    ]


@pytest.mark.proves(
    "optimizer=muon",
    reference="torch.optim.Muon for matrices, torch.optim.AdamW for the rest",
    tolerance="1e-12 relative over 20 steps",
)
@pytest.mark.parametrize("shape", [(4, 3), (3, 7)])
def test_muon_is_torchs_for_matrices_and_adamw_for_the_rest(shape: tuple[int, int]) -> None:
    shapes = (shape, *SHAPES[1:])

    class Both(Optimizer):
        def __init__(self, params: Any) -> None:
            self.inner = muon_and_adamw(list(params), convolutions=False)
            super().__init__(params, {"lr": 0.03})

        def step(self, closure: None = None) -> None:  # type: ignore[override]
            for one in self.inner:
                one.param_groups[0]["lr"] = self.param_groups[0]["lr"]
                plain_step(one, None)

    ours = trained(lambda p: Muon(p, lr=0.03, betas=(0.8, 0.95), weight_decay=0.1), params=weights(shapes))
    torch.testing.assert_close(ours, trained(Both, params=weights(shapes)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (5, 5), (1, 4)])
def test_muons_adjustments_are_torchs(shape: tuple[int, int], adjust: Any) -> None:
    """Also of gradients whose norm is almost 0."""
    for scale in (1.0, 1e-9):
        ours, theirs = weights([shape]), weights([shape])
        generator = torch.Generator().manual_seed(1)
        ours[0].grad = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        theirs[0].grad = ours[0].grad.clone()
        Muon(ours, lr=0.1, adjust_lr=adjust, weight_decay=0.0).step()
        torch.optim.Muon(theirs, lr=0.1, adjust_lr_fn=adjust, weight_decay=0.0).step()
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-12, atol=1e-12)


def test_muons_matrices_have_two_dimensions_or_are_filters() -> None:
    shapes = [(), (3,), (3, 3), (3, 3, 3), (3, 3, 3, 3)]
    assert [is_matrix(torch.zeros(shape), False) for shape in shapes] == [False, False, True, False, False]
    assert [is_matrix(torch.zeros(shape), True) for shape in shapes] == [False, False, True, True, True]


def test_muon_takes_filters_as_matrices_if_asked_to() -> None:
    filters = weights([(4, 3, 2, 2)])
    matrix = [nn.Parameter(filters[0].detach().clone().view(4, 12))]
    for p in (*filters, *matrix):
        p.grad = torch.arange(48.0, dtype=p.dtype).sin().view(p.shape)
    Muon(filters, convolutions=True, adjust_lr="original", nesterov=False).step()
    Muon(matrix, adjust_lr="original", nesterov=False).step()
    assert torch.equal(filters[0].view(4, 12), matrix[0])


class Other(Tensor):
    """Of a type of its own, as the weights of a sharded model."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_factors_in_their_fastest_form_give_the_same_bits(dtype: torch.dtype) -> None:
    for value in (0.9, 1 - 1e-3 * 0.0123, 1 / 3, 1e-8):
        for function in (torch._foreach_mul, torch._foreach_div):
            tensors = [
                torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype) for shape in (999, 1, ())
            ]
            factor = factor_of(tensors, value)
            assert isinstance(factor, Tensor) == (dtype is not torch.bfloat16)
            for found, expected in zip(function(tensors, factor), function(tensors, value), strict=True):
                assert torch.equal(found, expected) and found.dtype is dtype
    for others in ([tensors[0].float(), tensors[0].double()], [tensors[0].to("meta")], [tensors[0].as_subclass(Other)]):
        assert type(factor_of(others, 0.5)) is float


# --- tables computed by hand ------------------------------------------------------------------------------


def path(optimizer: Optimizer, parameter: nn.Parameter, gradients: list[float], rates: list[float]) -> list[float]:
    """The weight after each step with these gradients and rates."""
    found = []
    for gradient, lr in zip(gradients, rates, strict=True):
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.param_groups[0]["lr"] = lr
        plain_step(optimizer, None)
        found.append(parameter.item())
    return found


def scalar(value: float = 0.0) -> nn.Parameter:
    return nn.Parameter(torch.tensor([value], dtype=torch.float64))


@pytest.mark.proves(
    "optimizer=momentum",
    reference="the closed form 1 - 0.9^t of the buffer for a constant gradient",
    tolerance="1e-9 relative at steps 1, 5 and 10",
)
def test_ema_momentum_starts_at_zero() -> None:
    w = scalar()
    optimizer = momentum([w], lr=1.0, momentum=0.9, form="ema")
    moved = path(optimizer, w, [1.0] * 10, [1.0] * 10)
    steps = [-b for b in (moved[0], moved[4] - moved[3], moved[9] - moved[8])]
    assert steps == pytest.approx([0.10, 0.40951, 0.6513215599], rel=1e-9)  # 1 - 0.9^t


@pytest.mark.proves(
    "optimizer=momentum",
    reference="a table computed by hand, with a rate that changes",
    tolerance="1e-12 relative, all forms",
)
def test_the_forms_differ_if_the_rate_changes() -> None:
    """mu = 0.5, g = 1, rates 1, 1, 0.1: the velocity keeps the rate at which it was gained."""
    tables = {
        "heavy_ball": [-1.0, -2.5, -2.675],  # b = 1, 1.5, 1.75
        "velocity": [-1.0, -2.5, -3.35],  # b = 1, 1.5, 0.85
        "ema": [-0.5, -1.25, -1.3375],  # b = 0.5, 0.75, 0.875
    }
    for form, table in tables.items():
        w = scalar()
        optimizer = Momentum([w], lr=1.0, momentum=0.5, form=form)  # type: ignore[arg-type]
        assert path(optimizer, w, [1.0] * 3, [1.0, 1.0, 0.1]) == pytest.approx(table, rel=1e-12), form


@pytest.mark.proves(
    "optimizer=sgdw",
    reference="a table computed by hand, with a rate that changes",
    tolerance="1e-6 relative, form=ema",
)
def test_sgdw_decays_by_the_rate_times_lambda_and_not_through_the_buffer() -> None:
    """w = 2, g = 1, lr = 0.1 then 0.05, lambda = 0.5, ema with mu = 0.5: b = 0.5, 0.75.

    2 - 0.1 * 0.5 - 0.1 * 0.5 * 2 = 1.85; 1.85 - 0.05 * 0.75 - 0.05 * 0.5 * 1.85 = 1.76625.
    """
    w = scalar(2.0)
    assert path(SGDW([w], momentum=0.5, weight_decay=0.5), w, [1.0, 1.0], [0.1, 0.05]) == pytest.approx([1.85, 1.76625])
    coupled = scalar(2.0)
    optimizer = momentum([coupled], momentum=0.5, form="ema", weight_decay=0.5)
    assert path(optimizer, coupled, [1.0], [0.1]) == pytest.approx([2 - 0.1 * 0.5 * (1 + 0.5 * 2)])


@pytest.mark.proves("optimizer=nesterov", reference="a table computed by hand", tolerance="1e-6 relative, lookahead")
def test_lookahead_takes_the_gradient_of_the_point_ahead() -> None:
    """J = w^2 / 2, mu = 0.5, lr = 0.1, from w = 1: v = 0.1, w = 0.9; then g(0.9 - 0.05) = 0.85, v = 0.135, w = 0.765.

    torch's Nesterov evaluates at the points ahead themselves: 0.85 is its first weight.
    """
    w, theirs = scalar(1.0), scalar(1.0)
    optimizer, reference = Lookahead([w], lr=0.1, momentum=0.5), nesterov([theirs], lr=0.1, momentum=0.5)

    def closure() -> Tensor:
        w.grad = w.detach().clone()
        return w.square().sum() / 2

    found, ahead = [], []
    for _ in range(2):
        optimizer.step(closure)
        found.append(w.item())
        theirs.grad = theirs.detach().clone()
        plain_step(reference, None)
        ahead.append(theirs.item())
    assert found == pytest.approx([0.9, 0.765])
    assert ahead[0] == pytest.approx(0.9 - 0.5 * 0.1)


@pytest.mark.proves(
    "optimizer=rprop", reference="a table computed by hand, with changes of sign", tolerance="1e-6 relative, both forms"
)
def test_rprop_after_a_sign_change() -> None:
    """lr = 0.1, g = 1, 1, -1, -1, 0, -1: sizes 0.1, 0.12, 0.06, 0.072, 0.072, 0.072; torch's skips the third."""
    gradients = [1.0, 1.0, -1.0, -1.0, 0.0, -1.0]
    w, skipping = scalar(), scalar()
    found = path(rprop([w], lr=0.1), w, gradients, [0.1] * 6)
    assert found == pytest.approx([-0.1, -0.22, -0.16, -0.088, -0.088, -0.016])
    found = path(rprop([skipping], lr=0.1, on_sign_change="skip"), skipping, gradients, [0.1] * 6)
    # after the skipped step torch counts the gradient before as 0, so that the size stays 0.06
    assert found == pytest.approx([-0.1, -0.22, -0.22, -0.16, -0.16, -0.1])


@pytest.mark.parametrize("larger", [1.1, 2.0, 4.0])
def test_rprops_sizes_grow_by_the_larger_factor(larger: float) -> None:
    w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = Rprop([w], lr=0.01, etas=(0.5, larger))
    for _ in range(3):
        w.grad = -torch.ones_like(w)
        optimizer.step()
    assert w.item() == pytest.approx(0.01 * (1 + larger + larger**2), rel=1e-12)


def test_rprops_sizes_stay_in_their_range() -> None:
    w = scalar()
    optimizer = Rprop([w], lr=0.1, step_sizes=(0.09, 0.13))
    found = path(optimizer, w, [1.0, 1.0, 1.0, -1.0, 1.0], [0.1] * 5)
    steps = [b - a for a, b in zip([0.0, *found], found, strict=False)]
    assert steps == pytest.approx([-0.1, -0.12, -0.13, 0.09, -0.09])


@pytest.mark.proves("optimizer=adadelta", reference="a table computed by hand", tolerance="1e-9 relative over 2 steps")
def test_adadeltas_numerator_is_of_the_step_before() -> None:
    """rho = 0.9, eps = 1e-6, g = 1: E[g^2] = 0.1, 0.19; E[d^2] is 0 in the first step, 0.1 d^2 in the second."""
    w = scalar()
    first = (1e-6 / 0.100001) ** 0.5
    second = ((0.1 * first**2 + 1e-6) / 0.190001) ** 0.5
    found = path(torch.optim.Adadelta([w]), w, [1.0, 1.0], [1.0, 1.0])
    assert found == pytest.approx([-first, -first - second], rel=1e-9)


@pytest.mark.proves(
    "optimizer=adam_l2",
    "optimizer=adamw",
    reference="the step of a weight without gradient, by hand",
    tolerance="1e-5 relative",
)
def test_adam_and_adamw_under_decay() -> None:
    """w = 1, g = 0, lambda = 0.1: Adam's first step is lr whatever lambda is, AdamW's is lr * lambda."""
    for decay in (0.1, 0.01):
        w = scalar(1.0)
        assert path(torch.optim.Adam([w], weight_decay=decay), w, [0.0], [0.01]) == pytest.approx([0.99], rel=1e-5)
        w = scalar(1.0)
        assert path(torch.optim.AdamW([w], weight_decay=decay), w, [0.0], [0.01]) == pytest.approx([1 - 0.01 * decay])


@pytest.mark.proves(
    "optimizer=gd",
    reference="the closed form on a quadratic, (1 - lr a)^t",
    tolerance="1e-12 relative over 200 steps; the last step exactly",
)
def test_gradient_descent_on_a_quadratic_and_its_end() -> None:
    """J = a w^2 / 2: w_t = (1 - lr a)^t w_0. The step is lr a |w|, below the tolerance from some step on."""
    w = scalar(1.0)
    optimizer = GradientDescent([w], lr=0.1, tolerance=1e-3, patience=10)
    ends = None
    for step in range(1, 200):
        w.grad = 2.0 * w.detach()
        optimizer.step()
        assert w.item() == pytest.approx(0.8**step, rel=1e-12)
        if optimizer.converged and ends is None:
            ends = step
    # 0.2 * 0.8^(t - 1) < 1e-3 from t = 25 on
    assert ends == 34


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda p: momentum(p, form="ema", dampening=0.5), "dampening=0.5: must be 0 with form=ema"),
        (lambda p: momentum(p, form="velocity", nesterov=True), "nesterov=true: must be false with form=velocity"),
        (lambda p: momentum(p, momentum=0.0, nesterov=True), "nesterov=true: must be false with momentum=0"),
        (lambda p: momentum(p, dampening=0.5, nesterov=True), "nesterov=true: must be false with dampening=0.5"),
        (lambda p: momentum(p, form="heavyball"), "form=heavyball: must be one of heavy_ball"),
        (lambda p: Momentum(p, momentum=1.0), "momentum=1.0: must be in"),
        (lambda p: SGDW(p, weight_decay=-1.0), "weight_decay=-1.0: must be at least 0"),
        (lambda p: Lookahead(p, lr=-0.1), "lr=-0.1: must be above 0"),
        (lambda p: GradientDescent(p, tolerance=-1.0), "tolerance=-1.0: must be at least 0"),
        (lambda p: GradientDescent(p, patience=0), "patience=0: must be at least 1"),
        (lambda p: rprop(p, on_sign_change="stop"), "on_sign_change=stop: must be one of step, skip"),
        (lambda p: rprop(p, etas=(1.2, 0.5)), "etas="),
        (lambda p: rprop(p, step_sizes=(1.0, 0.1)), "step_sizes="),
        (lambda p: Lion(p, betas=(0.9, 1.0)), "betas=1.0: must be in"),
        (lambda p: SAM(p, rho=-0.1), "rho=-0.1: must be at least 0"),
        (lambda p: ScheduleFreeAdamW(p, betas=(0.0, 0.9)), "betas=0.0: must be in"),
        (lambda p: ScheduleFreeAdamW(p, warmup_steps=-1), "warmup_steps=-1: must be at least 0"),
        (lambda p: Muon(p, ns_steps=0), "ns_steps=0: must be from 1 to 100"),
        (lambda p: Muon(p, momentum=1.0), "momentum=1.0: must be in"),
    ],
)
def test_wrong_arguments(make: Make, line: str) -> None:
    with pytest.raises(ValueError) as caught:
        make([scalar()])
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("rates", "settings", "shares"),
    [
        (
            [0.1, 0.2, 0.1],
            {"warmup_steps": 0},
            [1.0, 4 / 5, 4 / 9],
        ),  # weights 0.01, 0.04, 0.04: the largest rate so far
        ([0.1, 0.1, 0.1], {"warmup_steps": 2}, [1.0, 4 / 5, 4 / 9]),  # of rates 0.05, 0.1, 0.1
        ([0.1, 0.1, 0.1], {"warmup_steps": 1}, [1.0, 1 / 2, 1 / 3]),
        ([0.1, 0.2, 0.1], {"warmup_steps": 0, "weight_lr_power": 0.0}, [1.0, 1 / 2, 1 / 3]),
        ([0.1, 0.2, 0.1], {"warmup_steps": 0, "weight_lr_power": 1.0, "r": 2.0}, [1.0, 8 / 9, 18 / 27]),
        ([0.0, 0.1, 0.1], {"warmup_steps": 0}, [0.0, 1.0, 1 / 2]),
    ],
)
def test_the_average_of_schedule_free_has_these_shares(
    rates: list[float], settings: dict[str, Any], shares: list[float]
) -> None:
    """c of x <- (1 - c) x + c z, by hand: t^r s_max^p over its sum."""
    w = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = ScheduleFreeAdamW([w], betas=(0.9, 0.0), eps=0.0, **settings)
    x = z = 1.0
    for step, (rate, share) in enumerate(zip(rates, shares, strict=True), 1):
        optimizer.param_groups[0]["lr"] = rate
        w.grad = torch.ones_like(w)
        optimizer.step()
        z -= rate * min(1.0, step / max(1, settings["warmup_steps"]))
        x = (1 - share) * x + share * z
        (average,) = [average for _, average in optimizer.evaluation_weights()]
        assert average.item() == pytest.approx(x), step


@pytest.mark.parametrize(("tolerance", "is_short"), [(5.0, False), (5.1, True), (3.9, False)])
def test_a_step_is_short_if_it_is_below_the_tolerance_in_all_parameters_together(
    tolerance: float, is_short: bool
) -> None:
    first, second = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = GradientDescent([first, second], lr=0.5, tolerance=tolerance, patience=2)
    first.grad, second.grad = torch.tensor([6.0]), torch.tensor([8.0])
    for steps in (1, 2):
        optimizer.step()
        assert optimizer.converged == (is_short and steps == 2)


@pytest.mark.parametrize(("tolerance", "is_short"), [(0.0, False), (1e-6, True)])
def test_a_step_without_gradients_has_the_length_zero(tolerance: float, is_short: bool) -> None:
    optimizer = GradientDescent([nn.Parameter(torch.zeros(1))], tolerance=tolerance, patience=1)
    optimizer.step()
    assert optimizer.converged == is_short


def test_a_tolerance_of_zero_never_ends_gradient_descent() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = GradientDescent([w], tolerance=0.0, patience=1)
    for _ in range(3):
        w.grad = torch.zeros(2)
        optimizer.step()
        assert not optimizer.converged
