"""Costs of the strategies, computed by hand: bytes, shards and speed-ups; and the bytes that data parallelism really
sends."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from benchmarks import parallel
from tests.parallelism.harness import advance, make, spawn
from trainer import app, compose
from trainer.configuration.resolve import resolve
from trainer.parallelism import cost
from trainer.parallelism.cost import Sent, Step, all_gather, all_reduce
from trainer.parallelism.strategy import Strategy
from trainer.planning import estimate

# 1x8x8 images; a convolution with 4 filters (36 + 4 parameters), pooled to 4x4x4, then 64 -> 6 -> 2
CHAIN = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                      nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 2))  # fmt: skip
PLAN = {"0": "gather", "5": "column", "7": "row"}
BATCH = 10
CONV, NORM, FIRST, LAST = 40, 8, 64 * 6 + 6, 12 + 2
ALL = CONV + NORM + FIRST + LAST


def step(micro_batch: int | None = None) -> Step:
    return Step(cost.layers_of(CHAIN, (1, 8, 8), PLAN), BATCH, micro_batch)


def sent(costs: cost.Cost) -> dict[str, float]:
    return {name: value.bytes for name, value in costs.sent.items()}


# --- the pieces -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_a_ring_counted_message_by_message(ranks: int) -> None:
    """Each rank sends a chunk of B/n in each of n - 1 turns to reduce, and again to gather."""
    size = 24.0
    turns = [size / ranks for _ in range(ranks - 1)]
    assert all_gather(size, ranks) == pytest.approx((sum(turns), len(turns)))
    assert all_reduce(size, ranks) == pytest.approx((2 * sum(turns), 2 * len(turns)))


def test_layers_as_counted_by_hand() -> None:
    found = {layer.name: layer for layer in cost.layers_of(CHAIN, (1, 8, 8), PLAN)}
    assert [layer.parameters for layer in found.values()] == [CONV, NORM, 0, 0, 0, FIRST, 0, LAST]
    assert [(layer.inputs, layer.outputs) for layer in found.values()] == [
        (64, 256), (256, 256), (256, 256), (256, 64), (64, 64), (64, 6), (6, 6), (6, 2),
    ]  # fmt: skip
    # a multiply-add for each of 3x3 positions and one channel of 4x8x8 outputs
    assert [layer.work for layer in found.values()] == [256 * 9, 0, 0, 0, 0, 6 * 64, 0, 2 * 6]
    assert (found["1"].channels, found["0"].needs_gradient, found["5"].needs_gradient) == (4, False, True)
    assert (found["5"].weights, found["5"].others) == (384, 6)


def test_shared_parameters_count_once_and_the_model_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    layers = cost.layers_of(model, (4,))
    assert sum(layer.parameters for layer in layers) == 16 + 4 + 4
    assert model.training and not model[0].weight.is_meta and not model[0]._forward_hooks


# --- strategies -------------------------------------------------------------------------------------------


def test_data_parallelism() -> None:
    costs = cost.data_parallel(step(), 4)
    # of 10 samples on 4 ranks, the largest shard has 3; batch norm: 2C + 1 numbers of each rank, then a sum of 2C
    assert sent(costs) == {"gradients": 1.5 * 4 * ALL, "batch norm": pytest.approx(4 * (3 * 9 + 1.5 * 8))}
    assert (costs.weights, costs.gradients, costs.optimizer, costs.activations) == (1, 1, 1, 0.3)
    assert costs.speed_up == pytest.approx(10 / 3)
    # in micro-batches of 4: batch norm communicates three times, gradients once
    parts = sent(cost.data_parallel(step(4), 4))
    assert parts == {"gradients": 1.5 * 4 * ALL, "batch norm": pytest.approx(3 * 4 * (3 * 9 + 1.5 * 8))}
    assert sent(cost.data_parallel(step(), 4, synchronized=False)) == {"gradients": 1.5 * 4 * ALL}


def test_sharding_sends_half_as_much_again_and_keeps_a_share() -> None:
    costs = cost.fully_sharded(step(), 2, synchronized=False)
    assert costs.total.bytes == 1.5 * cost.data_parallel(step(), 2, synchronized=False).total.bytes
    assert sent(costs) == {"weights": 2 * 0.5 * 4 * ALL, "gradients": 0.5 * 4 * ALL}
    # half of all is stored; the largest module is gathered for its computation, and lies in a message, too
    assert costs.weights == costs.gradients == pytest.approx((ALL / 2 + 2 * FIRST) / ALL)
    copies = cost.fully_sharded(step(), 4, 2, synchronized=False)
    assert copies.optimizer == 1 / 2
    assert copies.sent["weights"] == costs.sent["weights"]
    more = copies.sent["gradients"].bytes - costs.sent["gradients"].bytes
    assert more == pytest.approx(4 * step().parameters / 2)  # half of the gradient, summed over two copies
    assert cost.fully_sharded(step(4), 2).gradients == pytest.approx(1 + 2 * FIRST / ALL)
    assert costs.optimizer == 0.5


def test_tensor_parallelism_sends_activations() -> None:
    costs = cost.tensor_parallel(step(), 2)
    # the convolution's maps are gathered (images need no gradient); the gradient of the column's input is summed;
    # the row's output is summed
    assert sent(costs) == {"activations": 4 * BATCH * (0.5 * 256 + 1.0 * 64 + 1.0 * 2)}
    # the row's bias and the norm are replicated
    assert costs.weights == pytest.approx((CONV / 2 + NORM + FIRST / 2 + 12 / 2 + 2) / ALL)
    # the inputs of the second ReLU and of the row are sharded: 6 + 6 of 972
    assert costs.activations == pytest.approx(1 - 6 / (64 + 256 + 256 + 256 + 64 + 64 + 6 + 6))
    assert costs.speed_up == 2


def test_hybrid_is_tensor_within_and_data_across() -> None:
    costs = cost.hybrid(step(), data=2, model=2)
    held = CONV / 2 + NORM + FIRST / 2 + 12 / 2 + 2
    assert sent(costs) == {
        "activations": pytest.approx(4 * BATCH / 2 * (0.5 * 256 + 64 + 2)),
        "gradients": pytest.approx(4 * held),
        "batch norm": pytest.approx(4 * (9 + 8)),
    }
    assert costs.speed_up == 4
    assert sent(cost.hybrid(step(), 4, 1)) == sent(cost.data_parallel(step(), 4))
    assert sent(cost.hybrid(step(), 1, 4)) == sent(cost.tensor_parallel(step(), 4))


def test_columns_that_stay_apart_send_nothing_until_they_cross() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 1, groups=2), nn.Conv2d(8, 4, 1), nn.Flatten(),
                          nn.Linear(16, 2))  # fmt: skip
    plan = {"0": "column", "1": "group", "2": "cross", "4": "row"}
    costs = cost.tensor_parallel(Step(cost.layers_of(model, (1, 2, 2), plan), 1), 2)
    # 8 maps of 2x2 are gathered and their gradient is summed; two outputs are summed
    assert sent(costs) == {"activations": 4 * (0.5 * 32 + 32 + 2)}


def test_one_weird_trick() -> None:
    costs = cost.weird_trick(step(), 2)
    assert sent(costs) == {
        "gradients": 4.0 * (CONV + NORM),
        "border": 4 * BATCH * 0.5 * (64 + 2),
        "activations": 4.0 * BATCH * (64 + 2),
        "batch norm": 4.0 * (9 + 8),
    }
    assert costs.weights == pytest.approx((CONV + NORM + FIRST / 2 + 12 / 2 + 2) / ALL)
    assert costs.speed_up == 2


@pytest.mark.parametrize(("stages", "micro_batches", "busy"), [(2, 1, 1 / 2), (2, 4, 4 / 5), (4, 4, 4 / 7), (1, 3, 1)])
def test_a_pipeline_waits_for_its_bubble(stages: int, micro_batches: int, busy: float) -> None:
    """With equal stages: the share of turns in which a rank computes, by simulation."""
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    names = [[str(i) for i in range(4)][i::stages] for i in range(stages)]
    names = [sorted(part) for part in torch.arange(4).chunk(stages)] if stages == 4 else names
    groups = [[str(int(i)) for i in part] for part in torch.arange(4).chunk(stages)]
    costs = cost.pipeline(Step(cost.layers_of(model, (8,)), 12), groups, micro_batches)
    done = [0] * stages
    turns = 0
    while done[-1] < micro_batches:
        ready = [s for s in range(stages) if done[s] < (micro_batches if s == 0 else done[s - 1])]
        for s in ready:
            done[s] += 1
        turns += 1
    assert busy == pytest.approx(micro_batches / turns)
    # the first layer needs no gradient of its inputs: 11 of 12 parts of work, at most 12 / stages of them in a stage
    even = 11 / 12 * stages if stages > 1 else 1
    assert costs.speed_up == pytest.approx(even * busy)


def test_a_pipeline_sends_what_passes_its_cuts() -> None:
    groups = [["0", "1", "2", "3"], ["4", "5", "6"], ["7"]]
    costs = cost.pipeline(step(), groups, 5)
    # the middle rank sends 6 numbers forward and 64 back; the outputs go to two other ranks
    assert sent(costs) == {"activations": 4.0 * BATCH * (6 + 64), "outputs": 4.0 * BATCH * 2 * 2}
    assert costs.weights == FIRST / ALL
    work = [2 * 256 * 9, 3 * 6 * 64, 3 * 12]  # no gradient of the images
    assert costs.speed_up == pytest.approx(sum(work) / max(work) * 5 / 7)
    half = cost.pipeline(step(), groups, 6, in_flight=3)
    assert half.activations == cost.pipeline(step(), groups, 6).activations / 2


def test_what_is_sent_now_and_then() -> None:
    # weights and the running mean and variance of 4 channels
    assert (cost.local_sgd(step(), 4, 8).collected, cost.data_parallel(step(), 4).collected) == (5, 1)
    assert sent(cost.local_sgd(step(), 4, 8)) == {"weights": 1.5 * 4 * (ALL + 2 * 4) / 8}
    costs = cost.downpour(step(), 3, 2)
    assert sent(costs) == {"gradients": 4 * ALL / 2, "fetched weights": 4 * ALL / 2}
    assert costs.optimizer == 0


@pytest.mark.parametrize("kind", ["data_parallel", "fully_sharded", "tensor_parallel", "weird_trick"])
def test_one_rank_sends_nothing_and_gains_nothing(kind: str) -> None:
    costs = getattr(cost, kind)(step(), 1)
    assert costs.total == Sent() and costs.sent == {}
    assert (costs.weights, costs.activations, costs.speed_up) == (1, 1, 1)


# --- measured ---------------------------------------------------------------------------------------------

OVERRIDES = ["device=cpu", "threads=1", "model=lenet", "model.channels=[4,8]", "model.hidden=[16]", "batch_size=51"]


def bytes_handed_over(overrides: list[str], steps: int) -> list[int]:
    """Bytes passed to each collective operation of this rank, in order, in `steps` steps after the first."""
    sizes: list[int] = []
    all_reduce, all_gather = dist.all_reduce, dist.all_gather

    def counting(tensor: torch.Tensor, *args: object, **kwargs: object) -> object:
        sizes.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *args, **kwargs)

    def gathering(found: list[torch.Tensor], own: torch.Tensor, **kwargs: object) -> object:
        sizes.append(own.numel() * own.element_size())
        return all_gather(found, own, **kwargs)

    dist.all_reduce, dist.all_gather = counting, gathering
    run = make([*overrides, f"steps={steps + 1}"])
    advance(run, 1)
    run.meter.read = lambda *_: {"loss": 0.0}  # reading metrics is not part of a step
    sizes.clear()
    advance(run, steps)
    return sizes


@pytest.mark.parametrize("more", [[], ["accumulate=3"]])
def test_data_parallelism_hands_over_what_is_promised(more: list[str]) -> None:
    overrides = [*OVERRIDES, *more, "parallelism=ddp", "parallelism.devices=2"]
    found = spawn(2, bytes_handed_over, overrides, 2)
    blueprint = resolve(compose(overrides))
    with torch.device("meta"):
        model = blueprint.build_model()
    costs = estimate.cost_of(blueprint, model)
    assert costs is not None
    # in a collective over two ranks each sends as many bytes as it holds; the loss is one more number
    assert [sum(sizes) for sizes in found] == [2 * (costs.total.bytes + 4)] * 2
    parameters = sum(p.numel() for p in model.parameters())
    assert costs.sent["gradients"].bytes == 4 * parameters
    parts = 3 if more else 1
    # a step exchanges one bucket of gradients, the loss, and for each of three batch norms two messages a micro-batch
    assert [len(sizes) for sizes in found] == [2 * (2 + 3 * 2 * parts)] * 2
    assert costs.sent["batch norm"].bytes == 4 * parts * sum(4 * c + 1 for c in (4, 8, 16))


# --- what a user is shown ---------------------------------------------------------------------------------


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[object]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimate, "estimate", partial(estimate.estimate, seconds=0.01))

    def lines(*overrides: str) -> dict[str, str]:
        assert app.run(["plan", *overrides]) == 0
        section = capsys.readouterr().out.partition("\nparallelism\n")[2]
        return {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in section.strip().splitlines()}

    yield lines
    torch.set_deterministic_debug_mode("default")


def test_a_plan_of_data_parallelism(shown: object) -> None:
    overrides = ["model=mlp", "model.hidden=[8]", "optimizer=momentum", "batch_size=100", "parallelism=ddp"]
    # 610 parameters; weights, gradients, momentum, half of the activations, and all data
    found = shown(*overrides, "parallelism.devices=4")  # type: ignore[operator]
    # a sum over four ranks is six messages: of the gradients, and of the loss
    assert re.fullmatch(
        r"about [\d.]+ m?s per step on this machine: [\d.]+ m?s computation and [\d.]+ m?s for 12 messages of at least "
        r"[\d.]+ m?s, measured just now",
        found.pop("time"),
    )
    assert re.fullmatch(r"process is faster: [\d.]+ m?s per step; .*", found.pop("one"))
    more = r" to [\d.]+ MB"  # measured
    assert re.fullmatch(f"about 150 kB{more} per rank, without Python and torch", found.pop("memory"))
    copied = "of which 4.9 kB are a copy of weights and optimizer state"  # all 610 weights and their momentum
    assert re.fullmatch(f"rank  about 150 kB{more} at a checkpoint, {copied}", found.pop("main"))
    assert found == {
        "ranks": "4",
        "sent": "3.7 kB per step and rank: gradients 3.7 kB",
        "weights": "2.4 kB, gradients 2.4 kB, optimizer 2.4 kB, activations 8.4 kB, data 130 kB",
        "speed-up": "at best 4 over one such device: computation only, no communication or waiting",
    }
    assert shown(*overrides, "parallelism.devices=1") == {}  # type: ignore[operator]
    assert shown(*overrides, "precision=bf16")["not"].startswith("equal  bf16: each rank rounds")  # type: ignore[operator]


@pytest.mark.parametrize(
    "overrides",
    [
        ["parallelism=fsdp"],
        ["parallelism=tensor"],
        ["parallelism=hybrid"],
        ["parallelism=weird_trick"],
        ["parallelism=pipeline", "model.norm=none"],
        ["parallelism=local_sgd"],
        ["parallelism=downpour"],
        ["parallelism=two_column", "model=alexnet_two_column", "model.channels=[4,4,4,4,4]", "model.hidden=[8]"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_strategy_has_its_numbers(overrides: list[str]) -> None:
    blueprint = resolve(compose([*overrides, "model.drop_prob=0"]))
    with torch.device("meta"):
        model = blueprint.build_model()
    costs = estimate.cost_of(blueprint, model)
    assert costs is not None and costs.total.bytes > 0 and costs.speed_up > 0.5
    # fsdp gathers the largest module twice, which may be nearly all of the model
    assert 0 < costs.activations <= 1 and 0 < costs.weights <= (2.5 if "parallelism=fsdp" in overrides else 1)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("parallelism=ddp precision=bf16", ["bf16"]),
        ("parallelism=fsdp precision=fp16", ["fp16"]),
        ("parallelism=weird_trick precision=bf16 model=lenet model.norm=batch parallelism.batch_norm=plain",
         ["batch norm is plain", "bf16"]),
        ("parallelism=local_sgd precision=bf16", ["weights are averaged", "bf16"]),
        ("parallelism=downpour precision=bf16", ["asynchronous", "bf16"]),
        ("parallelism=ddp", []),
        ("parallelism=ddp parallelism.devices=1 precision=bf16", []),
        ("parallelism=single precision=bf16", []),
    ],
)  # fmt: skip
def test_what_is_not_equal_to_one_device_is_told(words: str, told: list[str]) -> None:
    blueprint = resolve(compose(["device=cpu", *words.split()]))
    with torch.device("meta"):
        model = blueprint.build_model()
    found = blueprint.strategy.differences(model, blueprint.dtype)
    assert len(found) == len(told), found
    assert all(word in line for word, line in zip(told, found, strict=True)), found


def test_of_a_strategy_of_the_users_nothing_is_claimed() -> None:
    blueprint = resolve(compose(["parallelism=ddp"]))
    strategy = type("Theirs", (type(blueprint.strategy),), {"cost": Strategy.cost})()
    strategy.plan(None, 1)
    blueprint = replace(blueprint, strategy=strategy)
    assert estimate.cost_of(blueprint, CHAIN) is None


# --- the lectures' claims ---------------------------------------------------------------------------------


def test_alexnet_on_four_devices() -> None:
    """CUHK ELEG 5491, "Hybrid data and model parallelism": two columns on two pairs send less than four copies;
    Optimization (Part 2), "Distributed Training" (one weird trick): most bytes come from the fully connected layers,
    which have fewer activations than weights.
    """
    alexnet = parallel.alexnet_step()
    assert alexnet.parameters == 60_965_224
    data, hybrid, weird = (scheme(alexnet, 4).total.bytes for scheme in parallel.SCHEMES.values())
    assert data == 1.5 * 4 * 60_965_224
    assert weird < hybrid < data / 2
    dense = [layer for layer in alexnet.layers if layer.is_linear]
    weights = sum(layer.parameters for layer in dense)
    assert weights > 0.95 * alexnet.parameters
    # batch 256: 2 * 3/4 of 58.6 million weights against the columns' inputs and the outputs
    assert sum(256 * layer.inputs for layer in dense) < weights / 10


def test_columns_send_less_than_maps_that_are_exchanged_at_every_layer() -> None:
    """CUHK ELEG 5491, "Model parallelism": two columns that cross at one layer and at the top; otherwise "communicate
    at every layer"."""
    alexnet = parallel.alexnet_step()
    layers = tuple(replace(layer, plan="gather" if layer.plan else "") for layer in alexnet.layers)
    columns = cost.tensor_parallel(alexnet, 2).total.bytes
    everywhere = cost.tensor_parallel(Step(layers, alexnet.batch_size), 2).total.bytes
    assert columns < everywhere / 2


def test_the_speed_up_has_an_end() -> None:
    """CUHK ELEG 5491, "Distributed computation with CPU cores". For t(n) = w/n + 2 (n-1)/n B/s + 2 (n-1) l the optimal
    n is sqrt((w - 2 B/s) / 2l).
    """
    link = parallel.Link(1e9, 1e-4)
    layers = (cost.Layer("a", 10**6, 0, 1, 1, 1),)
    problem, work = Step(layers, 2**20), 1.0
    seconds = {n: parallel.step_seconds(cost.data_parallel(problem, n), work, n, link) for n in range(1, 200)}
    best = math.sqrt((work - 2 * 4e6 / 1e9) / (2 * 1e-4))
    assert min(seconds, key=lambda n: seconds[n]) == pytest.approx(best, abs=1)
    assert seconds[1] == work
    assert seconds[2] == pytest.approx(0.5 + 4e-3 + 2e-4)


def test_the_slowest_of_normal_times_in_closed_form() -> None:
    assert parallel.order_statistic(1, 1) == pytest.approx(0, abs=1e-9)
    assert parallel.order_statistic(2, 2) == pytest.approx(1 / math.sqrt(math.pi))
    assert parallel.order_statistic(3, 3) == pytest.approx(3 / (2 * math.sqrt(math.pi)))
    assert parallel.order_statistic(2, 3) == pytest.approx(0, abs=1e-9)
    assert parallel.order_statistic(1, 5) == pytest.approx(-parallel.order_statistic(5, 5))
    drawn = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0)).sort(1).values.mean(0)
    assert [parallel.order_statistic(k, 16) for k in (1, 9, 16)] == pytest.approx(drawn[[0, 8, 15]].tolist(), abs=0.02)


def test_waiting_grows_with_the_root_of_the_logarithm_and_backups_help() -> None:
    """CUHK ELEG 5491, "Distributed computation with CPU cores": "many machines waiting for the single slowest
    machine"."""
    ratios = [parallel.order_statistic(n, n) / math.sqrt(2 * math.log(n)) for n in (10, 100, 1000, 10_000)]
    assert all(a < b < 1 for a, b in pairwise(ratios))
    assert ratios[-1] > 0.88
    waited = [parallel.slowest(100, 1.0, 0.1, backups) for backups in (0, 1, 5, 10)]
    assert all(a > b for a, b in pairwise(waited))
    assert waited[0] == pytest.approx(1.251, abs=1e-3)
    # 5 % more workers reduce the waiting time by more than a quarter
    assert waited[2] - 1 < 0.75 * (waited[0] - 1)


def test_who_waits_for_nobody_is_as_fast_as_the_average() -> None:
    """Optimization (Part 2), "Distributed Training" (DistBelief): replicas do not wait for one another."""
    costs = cost.Cost(speed_up=8.0)
    waits = parallel.step_seconds(costs, 8.0, 8, parallel.LINKS["NVLink 4 (450 GB/s)"], spread=0.1)
    assert waits == pytest.approx(1 + 0.1 * parallel.order_statistic(8, 8))
    assert waits == pytest.approx(1.142, abs=1e-3)
