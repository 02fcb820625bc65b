"""Every model has the same curve under every strategy that takes it: losses, weights and optimizer state of a few steps
with clipping, accumulation and dropout are those of one device in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from tests.parallelism.harness import DOUBLE, curves, difference, reference, spawn
from trainer.parallelism.global_dropout import global_dropout

STEPS = 5
# 1437 samples: the fourth batch has 207, which is odd
PROBLEM = ("device=cpu", "threads=1", "schedule=constant", "optimizer=adamw", "batch_size=410", "accumulate=3")
MODELS = {
    "vit": ["model.dim=8", "model.depth=2", "model.num_heads=2", "model.hidden=12", "model.drop_prob=0.3",
            "model.stochastic_depth=0.2"],
    "mobilenet_like": ["model.channels=[4,6,8]", "model.halve_at=[2]", "model.drop_prob=0.3"],
    "locally_connected": ["model.channels=[2,4]", "model.hidden=[6]", "model.drop_prob=0.3"],
    "block_diagonal": ["model.hidden=[12,8]", "model.drop_prob=0.3"],
    "lstm": ["model.hidden=8", "model.num_layers=2", "model.drop_prob=0.3"],
}  # fmt: skip
# strategy -> world size -> models that it takes
STRATEGIES: dict[tuple[str, int], list[str]] = {
    ("ddp", 2): list(MODELS),
    ("fsdp", 2): list(MODELS),
    ("pipeline", 2): ["lstm", "vit", "locally_connected", "block_diagonal"],  # refuses batch norm
    ("tensor", 2): ["vit", "mobilenet_like", "locally_connected", "block_diagonal"],
    ("hybrid", 4): ["vit", "mobilenet_like"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "world_size"), STRATEGIES)
def test_curves_coincide(strategy: str, world_size: int) -> None:
    names = STRATEGIES[strategy, world_size]
    rows = [((*PROBLEM, "clip_norm=0.5", f"model={name}", *MODELS[name]), True) for name in names]
    more = [f"parallelism={strategy}", f"parallelism.devices={world_size}"]
    answers = spawn(world_size, curves, rows, more, STEPS)
    for i, (name, (overrides, _)) in enumerate(zip(names, rows, strict=True)):
        found = [difference(reference(overrides, True, STEPS), answer[i]) for answer in answers]
        assert max(max(one.values()) for one in found) < DOUBLE, (name, found)


CONVOLUTIONAL = ["device=cpu", "threads=1", "batch_size=32", "limit_batches=8", "schedule=constant", "seed=3",
                 "optimizer=momentum", "optimizer.lr=0.02", "model.activation=elu"]  # fmt: skip
RESNET = ["model=resnet20", "model.depth=8", "model.width=4"]
RANDOM = ["model.drop_prob=0.2", "model.stochastic_depth=0.5"]
NETWORKS = {
    "alexnet": ["model=alexnet", "model.channels=[8,8,12,12,8]", "model.hidden=[16,8]"],
    "vgg": ["model=vgg", "model.depth=11", "model.width=2", "model.hidden=[16,8]"],
    "wide_resnet": ["model=wide_resnet", "model.depth=10", "model.width=1", *RANDOM],
    "resnet": [*RESNET, *RANDOM],
    "plain": [*RESNET, "model.shortcut=none"],
    "inception": ["model=inception", "model.width=16"],
    "inception with heads": ["model=inception", "model.width=16", "model.auxiliary_weight=0.3"],
}
# strategy and world size -> norms: of a batch, a channel, some channels
NORMS = {
    ("ddp", 2): ["batch"],
    ("fsdp", 2): ["batch"],
    ("tensor", 2): ["batch", "instance", "group"],
    ("hybrid", 4): ["batch"],
    ("pipeline", 2): ["none", "layer"],
    ("weird_trick", 2): ["batch"],
}
DENSE = ("alexnet", "vgg", "inception")
# 8x8 images become 2x2 pixels in inception's last modules, whose 3x3 pooling then leaves constant maps. Norms within a
# sample divide by the root of such small variances: the largest eigenvalue of the loss's Hessian is 5e4 (instance) and
# 1e6 (group), but 100 for 16x16 images. At this rate a change of the weights by 1e-16 on one device then grows 50-fold
# in each step.
LARGER = ["data=synthetic", "data.size=16", "data.channels=1", "data.num_train=256", "data.num_val=32",
          "data.num_test=32"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "world_size"), NORMS)
def test_curves_of_convolutional_networks_coincide(strategy: str, world_size: int) -> None:
    names = DENSE if strategy == "weird_trick" else [n for n in NETWORKS if strategy != "pipeline" or "heads" not in n]
    rows = [
        ((*CONVOLUTIONAL, *NETWORKS[name], f"model.norm={norm}", *data), True)
        for name in names
        for norm in NORMS[strategy, world_size]
        for data in [LARGER if name.startswith("inception") and norm in ("instance", "group") else []]
    ]
    more = [f"parallelism={strategy}", f"parallelism.devices={world_size}"]
    answers = spawn(world_size, curves, rows, more, STEPS, timeout=600)
    for i, (overrides, _) in enumerate(rows):
        exact = reference(overrides, True, STEPS)
        assert max(exact["losses"]) - min(exact["losses"]) > 0.01
        found = [difference(exact, answer[i]) for answer in answers]
        assert max(max(one.values()) for one in found) < DOUBLE, (overrides, found)


TOKENS, IMAGES = torch.ones(5, 3, 8), torch.ones(5, 4, 3, 2)
LAYOUTS: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = {
    "tokens": (TOKENS, lambda x: x),
    "tokens, time first": (TOKENS, lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)),
    "tokens, channels first": (TOKENS, lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)),
    "images": (IMAGES, lambda x: x),
    "images, channels last": (IMAGES, lambda x: x.contiguous(memory_format=torch.channels_last)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [nn.Dropout(0.5), StochasticDepth(0.5, "row")], ids=["dropout", "stochastic depth"])
def test_masks_of_shards_are_those_of_one_device_in_any_memory_order(layout: str, kind: nn.Module) -> None:
    x, laid_out = LAYOUTS[layout]

    def drawn(module: nn.Module, part: slice) -> Tensor:
        torch.manual_seed(7)
        return module(laid_out(x[part]))

    whole, parts = drawn(kind, slice(0, 5)), []
    for own in (slice(0, 3), slice(3, 5)):
        module = type(kind)(*([0.5] if isinstance(kind, nn.Dropout) else [0.5, "row"]))
        global_dropout(module, lambda total, own=own: own, lambda size: 5)
        parts.append(drawn(module, own))
    assert torch.equal(torch.cat(parts), whole)
    assert 0 < whole.count_nonzero() < whole.numel()
