"""`micro_batch=auto`: a split made for lack of memory is part of the run, also after a kill."""

import re
from pathlib import Path

from harness import PARTS, but, differences, metric_lines, train

from tests.forks import Zygote

# out of memory with more than 20 samples at a time while TIGHT is set; dropout is drawn per micro-batch
TIGHT = """
import os, torch
from torch import nn

class Tight(nn.Flatten):
    def forward(self, images):
        if self.training and images.device.type == "cpu" and len(images) > 20 and os.environ.get("TIGHT"):
            raise torch.OutOfMemoryError("no memory left")
        return super().forward(images)

def tight(input_shape, num_outputs):
    num_inputs = input_shape[0] * input_shape[1] * input_shape[2]
    return nn.Sequential(Tight(), nn.Dropout(0.3), nn.Linear(num_inputs, num_outputs))
"""


def test_the_split_is_remembered(zygote: Zygote, tmp_path: Path) -> None:
    """Memory that has become available in the meantime does not change the bits of a resumed run."""
    (tmp_path / "tight_model.py").write_text(TIGHT)
    (tmp_path / "options/model").mkdir(parents=True)
    (tmp_path / "options/model/tight.yaml").write_text("# tight\n_target_: tight_model.tight\n")
    own = ["--config-dir", str(tmp_path / "options"), "model=tight", "micro_batch=auto"]
    arguments = [*own, *but(PARTS, "accumulate=1", "steps=30")]
    environment = {"GEARSHIFT_TRUST": "tight_model", "PYTHONPATH": str(tmp_path), "TIGHT": "1"}
    run = tmp_path / "run"

    code, output = train(zygote, tmp_path, *arguments, "hydra.run.dir=reference", environment=environment)
    assert code == 0, output
    said = re.findall(r"out of memory: computing (\d+) samples at a time from step (\d+) on", output)
    assert said == [("31", "0"), ("15", "0")]

    fault = {"signal": 15, "during": "trainer.training.loop.train_step", "call": 12}
    code, _ = train(zygote, tmp_path, *arguments, f"hydra.run.dir={run}", environment=environment, fault=fault)
    assert code == 143
    roomy = environment | {"TIGHT": ""}
    code, output = train(zygote, tmp_path, "resume", str(run), sitting=1, environment=roomy)
    assert code == 0, output
    assert differences(tmp_path / "reference", run) == []
    assert train(zygote, tmp_path, *arguments, "hydra.run.dir=roomy", environment=roomy)[0] == 0
    assert metric_lines(tmp_path / "roomy") != metric_lines(run), "the control: the split matters to the bits"
