"""State is collected on the main rank, and distributed from there, a tensor at a time."""

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.parallelism.harness import advance, make, spawn
from tests.storage.test_checkpoint import assert_same
from trainer.base.snapshot import Copied, snapshot
from trainer.parallelism.collect import collect
from trainer.training.state import capture, restore

LARGE = ["device=cpu", "threads=1", "data=digits", "batch_size=64", "model=mlp", "model.hidden=[800,800,800,800]",
         "optimizer=momentum"]  # fmt: skip
MEGABYTES = 4 * 3 * 800 * 800 / 2**20  # of the weights, nearly
TENSOR = MEGABYTES / 3
M_MMAP_THRESHOLD = -3


class Peak:
    """The largest growth of this process's memory in a `with` block, in MB."""

    def __enter__(self) -> "Peak":
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        self.megabytes = _status("VmHWM") - self._before


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def there_and_back(overrides: list[str]) -> dict[str, Any]:
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)  # give tensors back at once, as large ones are
    run = make(overrides)
    advance(run, 2)
    with Peak() as collecting:
        state = snapshot(capture(run)) if run.strategy.is_main else capture(run)
    model, optimizer = state["model"], state["optimizer"]
    own = [value.clone() for value in (*run.model.parameters(), *run.model.buffers())]
    with Peak() as distributing:
        found = run.strategy.distribute(state if run.strategy.is_main else None, run.model)
    restore(run, found)
    again = capture(run)
    same = [torch.equal(*pair) for pair in zip((*run.model.parameters(), *run.model.buffers()), own, strict=True)]
    assert_same(snapshot(again["model"]), snapshot(model))
    assert_same(snapshot(again["optimizer"]), snapshot(optimizer))
    numbers = sum(value.numel() for value in model.values())
    return {
        "collecting": collecting.megabytes,
        "distributing": distributing.megabytes,
        "same": same,
        "numbers": numbers,
    }


ELSEWHERE = ["tensor", "hybrid", "weird_trick"]


@pytest.mark.parametrize(
    "strategy", ["fsdp", "pipeline", *(pytest.param(name, marks=pytest.mark.slow) for name in ELSEWHERE)]
)
def test_only_the_main_rank_holds_the_whole_state_and_others_a_tensor_of_it(strategy: str) -> None:
    main, *others = spawn(2, there_and_back, [*LARGE, f"parallelism={strategy}", "parallelism.devices=2"])
    assert all(main["same"]) and main["numbers"] > MEGABYTES * 2**20 / 4
    assert main["collecting"] < 2 * MEGABYTES + TENSOR + 2
    for other in others:
        assert other["numbers"] == 0 and all(other["same"])
        assert other["collecting"] < TENSOR + 2
        # its half of the weights and of the momentum
        assert other["distributing"] < MEGABYTES + TENSOR + 2


def layouts() -> list[Any]:
    rank = dist.get_rank()
    image = torch.arange(24.0).view(1, 2, 3, 4) + rank
    values = {"last": image.to(memory_format=torch.channels_last), "every other": image[..., ::2], "empty": image[:0],
              "in a list": [torch.tensor(rank), ("text", None, image.bfloat16())], "flags": image > 3}  # fmt: skip
    found = collect(values, dist.new_group(backend="gloo"))
    for other, value in enumerate(found):
        assert isinstance(value, Copied) and list(value) == list(values)
        expected = snapshot({key: item for key, item in values.items() if key != "in a list"})
        for key, item in expected.items():
            assert value[key].stride() == item.stride() or key in ("every other", "empty")
            if key != "flags":
                assert_same(value[key], item + other)
        assert value["in a list"][0].item() == other and value["in a list"][1][:2] == ("text", None)
        assert value["in a list"][1][2].dtype == torch.bfloat16
    return found


def connected() -> int:
    run = make(["device=cpu", "threads=1", "data=digits", "model=linear", "parallelism=ddp", "parallelism.devices=2"])
    return len(layouts()) + 0 * run.step


def test_every_layout_and_container_arrives_as_it_was() -> None:
    assert spawn(2, connected) == [2, 0]
