"""Newton's method and Broyden's family, on functions whose minimum is known, and against scipy."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from trainer.base.without_compiler import keep_compiler_out
from trainer.optimizers.broyden import BFGS, Broyden, corrected
from trainer.optimizers.newton import Newton, StochasticNewton, conjugate_gradients, solve
from trainer.optimizers.second_order import Derivatives, backtrack

keep_compiler_out()  # its import takes longer than all these tests
Function = Callable[[Tensor], Tensor]
GENERATOR = torch.Generator().manual_seed(3)
SIZE = 6
_ROOT = torch.randn(SIZE, SIZE, generator=GENERATOR, dtype=torch.float64)
HESSIAN = _ROOT @ _ROOT.T + 0.1 * torch.eye(SIZE, dtype=torch.float64)
MINIMUM = torch.randn(SIZE, generator=GENERATOR, dtype=torch.float64)
FEATURES = torch.randn(40, SIZE, generator=GENERATOR, dtype=torch.float64)
CLASSES = (FEATURES @ MINIMUM + torch.randn(40, generator=GENERATOR, dtype=torch.float64) > 0).double()


def quadratic(w: Tensor) -> Tensor:
    return (w - MINIMUM) @ HESSIAN @ (w - MINIMUM) / 2


def rosenbrock(w: Tensor) -> Tensor:
    """Three of them: the chain of six has a second minimum."""
    return ((1 - w[::2]) ** 2 + 100 * (w[1::2] - w[::2] ** 2) ** 2).sum()


def logistic(w: Tensor) -> Tensor:
    """Logistic regression with a penalty."""
    return nn.functional.binary_cross_entropy_with_logits(FEATURES @ w, CLASSES) + 0.005 * w @ w


class Objective:
    """The closure that the trainer passes, over two parameters; counts evaluations."""

    def __init__(self, function: Function, start: Tensor) -> None:
        self.function, half = function, len(start) // 2
        self.params = [nn.Parameter(start[:half].clone()), nn.Parameter(start[half:].clone())]

    @property
    def weights(self) -> Tensor:
        return torch.cat([p.detach() for p in self.params])

    def __call__(self) -> Tensor:
        for p in self.params:
            p.grad = None
        value = self.loss(create_graph=True)
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    def objective(self) -> Tensor:
        return self.loss()

    def loss(self, create_graph: bool = False) -> Tensor:
        with torch.set_grad_enabled(create_graph):
            return self.function(torch.cat(list(self.params)))

    @property
    def gradient(self) -> Tensor:
        self()
        return torch.cat([p.grad for p in self.params if p.grad is not None])


def start() -> Tensor:
    return torch.tensor([-1.2, 1.0, 0.5, -0.3, 0.8, 1.1], dtype=torch.float64)


@pytest.mark.proves("optimizer=newton", reference="the minimum of a quadratic, in one step", tolerance="1e-10")
def test_newton_solves_a_quadratic_in_one_step_and_a_damped_one_halves_the_way() -> None:
    problem = Objective(quadratic, start())
    Newton(problem.params, damping=0.0, line_search="none").step(problem)
    torch.testing.assert_close(problem.weights, MINIMUM, rtol=1e-10, atol=1e-10)
    problem = Objective(quadratic, start())
    Newton(problem.params, step_size=0.5, damping=0.0, line_search="none").step(problem)
    torch.testing.assert_close(problem.weights, (start() + MINIMUM) / 2, rtol=1e-10, atol=1e-10)


def test_derivatives_are_autograds() -> None:
    problem = Objective(rosenbrock, start())
    found = Derivatives(problem, problem.params)
    hessian = torch.autograd.functional.hessian(rosenbrock, start())
    torch.testing.assert_close(found.hessian(rows_at_once=4), hessian)
    torch.testing.assert_close(found.product(MINIMUM), hessian @ MINIMUM)


def test_damping_is_raised_until_the_step_leads_downhill() -> None:
    hessian = torch.diag(torch.tensor([-3.0, 2.0, 0.0, 1.0]))
    gradient = torch.ones(4)
    # 0.1, 1, 10: the first above 3
    torch.testing.assert_close(solve(hessian, gradient, 0.1), 1 / (hessian.diagonal() + 10))
    torch.testing.assert_close(solve(torch.eye(4), gradient, 0.25), gradient / 1.25)
    assert torch.isfinite(solve(torch.zeros(4, 4), gradient, 0.0)).all()
    assert torch.equal(solve(torch.full((4, 4), torch.nan), gradient, 0.1), gradient)


MINIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "newton": lambda p: Newton(p, damping=1e-6),
    "bfgs": lambda p: BFGS(p),
    "bfgs from the identity": lambda p: BFGS(p, initial_scale=1.0),
    "broyden": lambda p: Broyden(p, xi=0.5),
    "dfp": lambda p: Broyden(p, xi=0.0),
    "lbfgs": lambda p: LBFGS(p, line_search_fn="strong_wolfe", tolerance_grad=1e-10, tolerance_change=0.0),
}


@pytest.mark.proves(
    "optimizer=newton",
    "optimizer=bfgs",
    "optimizer=broyden",
    "optimizer=lbfgs",
    reference="scipy.optimize.minimize, on Rosenbrock and logistic regression",
    tolerance="1e-6",
)
@pytest.mark.parametrize(
    ("name", "function"),
    [(name, rosenbrock) for name in MINIMIZERS if name != "dfp"]  # which takes thousands of steps
    + [(name, logistic) for name in MINIMIZERS],
)
def test_the_minimum_is_scipys_and_backtracking_meets_armijo(name: str, function: Function) -> None:
    reference = scipy.optimize.minimize(
        lambda w: float(function(torch.from_numpy(w))),
        start().numpy(),
        jac=lambda w: torch.autograd.functional.jacobian(function, torch.from_numpy(w)).numpy(),
        tol=1e-10,
    )
    problem = Objective(function, start())
    optimizer = MINIMIZERS[name](problem.params)
    for _ in range(300):
        before, gradient, value = problem.weights, problem.gradient, float(problem.loss())
        if gradient.norm() < 1e-8:
            break
        optimizer.step(problem)  # type: ignore[call-overload]
        promised = float(gradient @ (problem.weights - before))
        if name != "lbfgs":
            assert promised <= 0
            assert float(problem.loss()) <= value + 1e-4 * promised
    np.testing.assert_allclose(problem.weights.numpy(), reference.x, rtol=1e-6, atol=1e-6)


def pairs() -> list[tuple[Tensor, Tensor]]:
    """Steps and differences of gradients, of a Hessian that changes."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(20):
        root = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
        p = torch.randn(SIZE, generator=generator, dtype=torch.float64)
        found.append((p, (HESSIAN + 0.1 * root @ root.T) @ p))
    return found


@pytest.mark.proves("optimizer=bfgs", "optimizer=broyden", reference="the secant condition B q = p", tolerance="1e-9")
@pytest.mark.parametrize("xi", [0.0, 0.3, 1.0])
def test_the_secant_condition(xi: float) -> None:
    inverse = torch.eye(SIZE, dtype=torch.float64)
    for p, q in pairs():
        inverse = corrected(inverse, p, q, xi)
        torch.testing.assert_close(inverse @ q, p, rtol=1e-9, atol=1e-9)
        assert torch.linalg.eigvalsh(inverse).min() > 0


@pytest.mark.proves("optimizer=bfgs", reference="scipy.optimize.BFGS, inv_hess", tolerance="1e-10 over 20 updates")
@pytest.mark.proves(
    "optimizer=broyden",
    reference="scipy.optimize.BFGS, hess with p and q exchanged",
    tolerance="1e-10 over 20 updates, xi=0 (and xi=1)",
)
@pytest.mark.parametrize(("xi", "mode"), [(1.0, "inv_hess"), (0.0, "hess")])
def test_the_updates_are_scipys(xi: float, mode: str) -> None:
    """DFP is BFGS with p and q exchanged, for the Hessian in place of its inverse."""
    reference = scipy.optimize.BFGS(init_scale=1.0)
    reference.initialize(SIZE, mode)
    inverse = torch.eye(SIZE, dtype=torch.float64)
    for p, q in pairs():
        inverse = corrected(inverse, p, q, xi)
        reference.update(*((p.numpy(), q.numpy()) if mode == "inv_hess" else (q.numpy(), p.numpy())))
        np.testing.assert_allclose(inverse.numpy(), reference.get_matrix(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("xi", [0.0, 0.5, 1.0])
def test_exact_steps_on_a_quadratic_end_after_as_many_as_there_are_weights(xi: float) -> None:
    w, inverse = start(), torch.eye(SIZE, dtype=torch.float64)
    for _ in range(SIZE):
        gradient = HESSIAN @ (w - MINIMUM)
        direction = -inverse @ gradient
        p = -(gradient @ direction) / (direction @ HESSIAN @ direction) * direction
        w = w + p
        inverse = corrected(inverse, p, HESSIAN @ p, xi)
    torch.testing.assert_close(w, MINIMUM, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(inverse @ HESSIAN, torch.eye(SIZE, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_the_first_length_is_1_and_equal_gradients_are_no_curvature() -> None:
    problem = Objective(lambda w: w @ w / 2, start())
    BFGS(problem.params, initial_scale=1.0).step(problem)
    assert not problem.weights.any()  # the whole step leads to the minimum
    linear = Objective(lambda w: w @ MINIMUM, start())
    optimizer = BFGS(linear.params)
    optimizer.step(linear)
    assert optimizer.num_skipped == 1
    assert optimizer.state[linear.params[0]]["inverse_hessian"].isfinite().all()


def test_a_step_along_negative_curvature_is_not_used_for_the_inverse_hessian() -> None:
    problem = Objective(lambda w: -(w @ w) / 2, start())
    optimizer = BFGS(problem.params)
    optimizer.step(problem)
    assert optimizer.num_skipped == 1
    assert torch.equal(optimizer.state[problem.params[0]]["inverse_hessian"], torch.eye(SIZE, dtype=torch.float64))


@pytest.mark.proves("optimizer=stochastic_newton", reference="optimizer=newton on a quadratic", tolerance="1e-8")
def test_stochastic_newton_is_newton_on_a_quadratic_and_stops_at_negative_curvature() -> None:
    problem, other = Objective(quadratic, start()), Objective(quadratic, start())
    StochasticNewton(problem.params, lr=1.0, damping=0.2, iterations=SIZE, tolerance=0.0).step(problem)
    Newton(other.params, damping=0.2, line_search="none").step(other)
    torch.testing.assert_close(problem.weights, other.weights, rtol=1e-8, atol=1e-8)
    concave = Objective(lambda w: -(w @ w) / 2, start())
    StochasticNewton(concave.params, lr=0.1, damping=0.2).step(concave)
    torch.testing.assert_close(concave.weights, start() + 0.1 * start())  # along g


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda p: Newton(p, step_size=1.5), "step_size=1.5: must be above 0 and at most 1"),
        (lambda p: Newton(p, damping=-1.0), "damping=-1.0: must be at least 0"),
        (lambda p: Newton(p, line_search="wolfe"), "line_search=wolfe: must be one of none, backtracking"),
        (lambda p: StochasticNewton(p, iterations=0), "iterations=0: must be from 1 to 10000"),
        (lambda p: Broyden(p, xi=1.5), "xi=1.5: must be from 0 to 1"),
        (lambda p: BFGS(p, initial_scale="large"), "initial_scale=large: must be auto or a number above 0"),
        (lambda p: BFGS(p, initial_scale=0.0), "initial_scale=0.0: must be above 0"),
    ],
)
def test_wrong_arguments(make: Callable[[list[nn.Parameter]], Optimizer], line: str) -> None:
    with pytest.raises(ValueError) as caught:
        make([nn.Parameter(torch.zeros(1))])
    assert str(caught.value).startswith(line)


def test_the_memory_of_the_inverse_hessian_is_stated() -> None:
    """It, its correction, and an outer product."""
    assert Broyden([nn.Parameter(torch.zeros(1))]).extra_bytes(10, 8) == 3 * 10 * 10 * 8


def test_the_first_inverse_hessian_has_the_scale_of_the_first_differences() -> None:
    """With `auto`, as in scipy (Nocedal & Wright, equation 6.20); a number is kept; both only once."""
    for scale, reference_scale in (("auto", "auto"), (0.3, 0.3)):
        problem = Objective(quadratic, start())
        optimizer = BFGS(problem.params, initial_scale=scale)
        reference = scipy.optimize.BFGS(init_scale=reference_scale)
        reference.initialize(SIZE, "inv_hess")
        for _ in range(3):
            before, gradient = problem.weights, HESSIAN @ (problem.weights - MINIMUM)
            optimizer.step(problem)
            p = problem.weights - before
            reference.update(p.numpy(), (HESSIAN @ (problem.weights - MINIMUM) - gradient).numpy())
        inverse = optimizer.state[problem.params[0]]["inverse_hessian"]
        assert optimizer.num_skipped == 0
        assert optimizer.param_groups[0]["updates"] == 3
        np.testing.assert_allclose(inverse.numpy(), reference.get_matrix(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("function", [quadratic, lambda w: w @ w])  # of the second, a whole step has no decrease
@pytest.mark.parametrize("lost", [-1.0, 0.0])
def test_an_inverse_hessian_that_gives_no_descent_becomes_the_identity(lost: float, function: Function) -> None:
    problem = Objective(function, start())
    optimizer = BFGS(problem.params, initial_scale=1.0)
    optimizer.step(problem)
    state = optimizer.state[problem.params[0]]
    state["inverse_hessian"] = lost * torch.eye(SIZE, dtype=torch.float64)
    with torch.no_grad():
        problem.params[0].add_(1.0)
    fresh = Objective(function, problem.weights)
    optimizer.step(problem)
    other = BFGS(fresh.params, initial_scale=1.0)
    other.step(fresh)
    torch.testing.assert_close(problem.weights, fresh.weights)
    torch.testing.assert_close(state["inverse_hessian"], other.state[fresh.params[0]]["inverse_hessian"])


@pytest.mark.parametrize(("curvature", "skipped"), [(2e-10, 0), (0.5e-10, 1)])
def test_curvature_is_compared_with_the_lengths_of_step_and_difference(curvature: float, skipped: int) -> None:
    """p q > 1e-10 |p| |q|, here with lengths far from 1, and q almost orthogonal to p."""
    w = nn.Parameter(torch.tensor([1e3, 0.0], dtype=torch.float64))

    class Slanted:
        """A gradient along the first axis, which changes along the second, with a little curvature."""

        calls = 0

        def __call__(self) -> Tensor:
            self.calls += 1
            first = torch.tensor([1e-2, 0.0], dtype=torch.float64)
            w.grad = first if self.calls == 1 else first + torch.tensor([-curvature, 1.0], dtype=torch.float64) * 100
            return self.objective()

        def objective(self) -> Tensor:
            return w.detach()[0] * 1e-2

    optimizer = BFGS([w], initial_scale=1.0)
    optimizer.step(Slanted())
    assert optimizer.num_skipped == skipped


def test_the_memory_of_a_newton_step_is_stated() -> None:
    """The Hessian, its damped copy and its factor."""
    assert Newton([nn.Parameter(torch.zeros(1))]).extra_bytes(10, 8) == 3 * 10 * 10 * 8


@pytest.mark.parametrize(("least", "damping", "used"), [(-5e-6, 0.0, 4e-5), (-1e-6, 0.0, 4e-6), (-0.5, 0.02, 2.0)])
def test_damping_is_multiplied_by_ten_until_the_matrix_is_positive_definite(
    least: float, damping: float, used: float
) -> None:
    curvatures = torch.tensor([4.0, 2.0, least], dtype=torch.float64)
    found = solve(torch.diag(curvatures), torch.ones(3, dtype=torch.float64), damping)
    torch.testing.assert_close(found, 1 / (curvatures + used))


@pytest.mark.parametrize(
    ("values", "length"),
    [([-1.0], 1.0), ([-0.99, -0.5], 0.5), ([-0.9, -0.4, -0.25], 0.25), ([torch.nan, torch.inf, -0.25], 0.25)],
)
def test_backtracking_takes_the_first_length_that_meets_armijos_condition(values: list[float], length: float) -> None:
    """J(w) = 0 and a slope of -10,000: J(w + t d) must be at most -t."""
    w, left = nn.Parameter(torch.zeros(2)), iter(values)
    arguments = {"value": torch.tensor(0.0), "slope": torch.tensor(-10_000.0)}
    found = backtrack([w], torch.tensor([1.0, 2.0]), objective=lambda: torch.tensor(next(left)), **arguments)
    assert found == length
    assert w.tolist() == [length, 2 * length]


def test_backtracking_gives_up_after_40_trials_and_leaves_the_weights() -> None:
    w, trials = nn.Parameter(torch.tensor([3.0])), []

    def objective() -> Tensor:
        trials.append(w.item())
        return torch.tensor(1.0)

    arguments = {"value": torch.tensor(0.0), "slope": torch.tensor(-1.0)}
    assert backtrack([w], torch.tensor([8.0]), objective=objective, **arguments) == 0
    assert len(trials) == 40
    assert trials[:3] == [11.0, 7.0, 5.0]
    assert w.item() == 3


@pytest.mark.parametrize("tolerance", [0.9, 0.5, 0.1, 0.01, 0.0])
def test_conjugate_gradients_end_when_the_residual_is_small(tolerance: float) -> None:
    """As many products, and the solution, of a textbook's algorithm in numpy."""
    matrix, w = HESSIAN.numpy() + 0.3 * np.eye(SIZE), start().numpy()
    right = HESSIAN.numpy() @ (w - MINIMUM.numpy())
    x, r = np.zeros(SIZE), right.copy()
    p, products = r.copy(), 0
    while products < SIZE and not (products and np.linalg.norm(r) <= tolerance * np.linalg.norm(right)):
        step = r @ r / (p @ matrix @ p)
        x, following = x + step * p, r - step * matrix @ p
        p, r, products = following + following @ following / (r @ r) * p, following, products + 1
    found, counted = Derivatives((problem := Objective(quadratic, start())), problem.params), []
    product = found.product
    found.product = lambda vector: counted.append(1) or product(vector)  # type: ignore[method-assign, func-returns-value]
    solution = conjugate_gradients(found, 0.3, SIZE, tolerance)
    assert len(counted) == products
    np.testing.assert_allclose(solution.numpy(), x, rtol=1e-6)


def test_conjugate_gradients_end_at_a_residual_of_zero() -> None:
    found, counted = Derivatives((problem := Objective(lambda w: w @ w / 2, start())), problem.params), []
    product = found.product
    found.product = lambda vector: counted.append(1) or product(vector)  # type: ignore[method-assign, func-returns-value]
    assert torch.equal(conjugate_gradients(found, 0.0, SIZE, 0.0), start())
    assert len(counted) == 1


@pytest.mark.parametrize(("curvature", "damping", "share"), [(-5.0, 3.0, 1 / 3), (-5.0, 0.5, 1.0), (0.0, 0.0, 1.0)])
def test_without_positive_curvature_the_step_is_along_the_gradient(
    curvature: float, damping: float, share: float
) -> None:
    gradient = torch.arange(1.0, SIZE + 1, dtype=torch.float64)
    problem = Objective(lambda w: curvature * (w @ w) / 2 + w @ gradient, torch.zeros(SIZE, dtype=torch.float64))
    StochasticNewton(problem.params, lr=0.1, damping=damping).step(problem)
    torch.testing.assert_close(problem.weights, -0.1 * share * gradient)


@pytest.mark.parametrize("rows_at_once", [1, 4, 64])
def test_rows_of_the_hessian_are_computed_together(rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Objective(quadratic, start())
    found = Derivatives(problem, problem.params)
    monkeypatch.setattr(Derivatives, "product", None)  # the way of operations that cannot do this
    torch.testing.assert_close(found.hessian(rows_at_once), HESSIAN)
