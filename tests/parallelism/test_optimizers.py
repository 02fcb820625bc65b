"""Optimizers that join several weights or use second derivatives are exact under ddp."""

from typing import Any

import pytest

from tests.parallelism.harness import curve, difference, in_new_run, spawn
from trainer import compose
from trainer.base.errors import ConfigurationError
from trainer.configuration.resolve import resolve

STEPS = 2
NO_STATE: dict[str, Any] = {"optimizer": {"state": {}}}
TOLERANCES = {"muon": 1e-4}  # its products are in bfloat16, where another order of summation may change a rounding
MLP = ["model=mlp", "model.hidden=[2]", "device=cpu", "threads=1", "model.drop_prob=0.2"]
RUNS = {
    name: [*MLP, f"optimizer={name}", "batch_size=25"]
    for name in ("bfgs", "broyden", "lbfgs", "sam", "muon", "gd", "adafactor", "stochastic_newton")
} | {
    "newton": [*MLP, "optimizer=newton", "optimizer.damping=0.1"],
    "stochastic_newton, micro-batches": [*MLP, "optimizer=stochastic_newton", "batch_size=25", "accumulate=2"],
}


def curves(runs: list[list[str]]) -> list[dict[str, Any]]:
    rows = ([*overrides, "parallelism=ddp"] for overrides in runs)
    return [in_new_run(number, curve, row, STEPS, True) for number, row in enumerate(rows)]


@pytest.mark.slow
def test_ddp_is_one_device() -> None:
    single = {name: curve(overrides, STEPS, double=True) for name, overrides in RUNS.items()}
    for found in spawn(2, curves, list(RUNS.values())):
        for (name, one), other in zip(single.items(), found, strict=True):
            found_in = difference(one | NO_STATE, other | NO_STATE)  # L-BFGS's is a list
            assert max(found_in.values()) < TOLERANCES.get(name, 1e-10), (name, found_in)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["optimizer=newton", "parallelism=local_sgd"], "optimizer=newton: needs second derivatives, which"),
        (["optimizer=bfgs", "parallelism=tensor"], "optimizer._target_=trainer.optimizers.broyden.BFGS: under"),
        (["optimizer=sam", "parallelism=pipeline"], "optimizer=sam: must step all weights at once"),
        (["optimizer=gd", "parallelism=downpour"], "optimizer=gd: must step all weights at once"),
        (["optimizer=newton", "model=resnet20"], "optimizer=newton: matrices of 269,434 x 269,434 numbers need 871.1"),
        (["optimizer=newton", "parallelism=ddp", "model=lenet", "model.channels=[2,2]", "model.hidden=[4]"],
         "optimizer=newton: needs second derivatives, which batch norm over several ranks does not have"),
        (["optimizer=newton", "+parameter_groups.head={match: 'output*', lr_factor: 10}"],
         "parameter_groups.head.lr_factor=10: optimizer=newton has one rate for all weights"),
        (["optimizer=bfgs", "clip_norm=1"], "clip_norm=1: optimizer=bfgs searches along a direction"),
    ],
)  # fmt: skip
def test_what_is_not_possible_is_said_before_the_run(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(compose(["model=mlp" if all("model" not in word for word in overrides) else "seed=0", *overrides]))
    assert caught.value.problems[0].startswith(line)
