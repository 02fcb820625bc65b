"""The strategy that CONTRIBUTING shows, as it stands there."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from tests.parallelism.harness import advance, curve, difference, make_from, spawn, state_of
from trainer import compose

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
IMPORTS = """
from collections.abc import Iterator
from contextlib import contextmanager
import torch.distributed as dist
from torch import Tensor, nn
from trainer.parallelism.ranks import Ranks
from trainer.parallelism.strategy import Forward, Loss, Part
"""
RUN = [
    "threads=1",
    "model=lenet",
    "model.dropout=0.2",
    "batch_size=50",
    "device=cpu",
    "accumulate=3",
    "optimizer=momentum",
]


def shown(folder: str) -> dict[str, Any]:
    sys.path.insert(0, folder)
    os.environ["GEARSHIFT_TRUST"] = "shown_strategy"
    config = compose([*RUN, "steps=10", "parallelism=ddp"])
    config["parallelism"] = {"_target_": "shown_strategy.SumAfterwards"}
    run = make_from(config, double=True)
    return {"losses": advance(run, 10), **state_of(run)}


def test_the_strategy_shown_is_one_device(tmp_path: Path) -> None:
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "SumAfterwards" in block]
    (tmp_path / "shown_strategy.py").write_text(IMPORTS + code)
    single = curve(RUN, 10, double=True)
    for other in spawn(2, shown, str(tmp_path)):
        assert max(difference(single, other).values()) < 1e-12
