"""Libraries that a run does not use are not imported."""

import subprocess
import sys
from pathlib import Path

import pytest

# they take a second and more to import and are not needed by a run that compiles nothing and reads the digits
UNUSED = ("torch._dynamo", "sympy", "sklearn", "scipy.stats")
PROGRAM = """
import sys
from trainer.app import main
sys.argv = ["train", *{arguments!r}]
try:
    main()
except SystemExit as leaving:
    assert not leaving.code, leaving.code
print("imported:", *[name for name in {unused!r} if name in sys.modules])
"""


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["epochs=1"], marks=pytest.mark.slow),
        ["epochs=1", "model=resnet20", "optimizer=momentum", "optimizer.fused=false", "limit_batches=2"],
        pytest.param(
            ["epochs=1", "model=mlp", "model.drop_prob=0.5", "optimizer=adagrad", "accumulate=2", "precision=bf16"],
            marks=pytest.mark.slow,
        ),
        ["plan"],
    ],
    ids=" ".join,
)
def test_a_run_imports_no_compiler(arguments: list[str], tmp_path: Path) -> None:
    program = PROGRAM.format(arguments=arguments, unused=UNUSED)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "imported:", done.stdout
