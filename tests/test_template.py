"""A user's own components: the template learns, and the documentation page is correct."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.forks import shared, train
from trainer import app, assemble, compose, fit
from trainer.base.errors import ConfigurationError
from trainer.commands.help import print_help
from trainer.examples.template import StripeNet, Stripes

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/your-own-parts.md").read_text()
# a line that begins with the name of a file, followed by its content
FILES = re.findall(r"^`([\w./-]+)`[^\n]*\n\n```(?:python|yaml)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0].splitlines()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files that the page describes, in the current folder."""
    for name, content in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "mypackage/__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GEARSHIFT_TRUST", raising=False)
    yield tmp_path
    torch.set_deterministic_debug_mode("default")


# --- experiment=template ----------------------------------------------------------------------------------


def test_the_template_is_learnt_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = fit(assemble(compose(["experiment=template", "seed=1"])))
    torch.set_deterministic_debug_mode("default")
    assert result.status == "completed"
    assert result.test is not None and result.test["test/accuracy"] > 0.95


def test_the_strongest_wave_of_a_class_has_its_angle() -> None:
    train = Stripes(num_images=400, noise=0.0).load().train
    spectrum = torch.fft.fft2(train.images_NCHW[:, 0].double() - 127.5, s=(128, 128)).abs()[:, :, :64].flatten(1)
    peak = spectrum.argmax(1)
    along_y, along_x = peak // 64, peak % 64
    along_y = torch.where(along_y < 64, along_y, along_y - 128)
    angle = torch.rad2deg(torch.atan2(along_y.double(), along_x.double())) % 180
    error = (angle - 45 * train.targets_N + 90) % 180 - 90
    assert error.abs().max() < 10


def test_facts_and_data_agree_and_come_again() -> None:
    data = Stripes(num_images=203, split_seed=3)
    facts, splits = data.facts(), data.load()
    for split, count in ((splits.train, facts.num_train), (splits.val, facts.num_val), (splits.test, facts.num_test)):
        assert split.images_NCHW.shape == (count, *facts.input_shape)
        assert (split.images_NCHW.dtype, split.targets_N.dtype) == (torch.uint8, torch.int64)
        assert split.targets_N.unique().tolist() == list(range(facts.num_outputs))
    assert facts.num_train + facts.num_val + facts.num_test == 203
    assert splits.checksum() == Stripes(num_images=203, split_seed=3).load().checksum()
    assert splits.checksum() != Stripes(num_images=203, split_seed=4).load().checksum()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"num_images=19: must be at least 20"):
        Stripes(num_images=19)
    with pytest.raises(ValueError, match=r"noise=-1: must be at least 0"):
        Stripes(noise=-1)
    with pytest.raises(ValueError, match=r"width=0: must be at least 1"):
        StripeNet((1, 16, 16), 4, width=0)


# --- docs/your-own-parts.md -------------------------------------------------------------------------------


def test_the_page_runs_as_it_stands(project: Path) -> None:
    """Both commands and the script as separate processes; the second command is started, not forked."""
    plan, command = (line.split()[1:] for line in COMMANDS)
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "GEARSHIFT_TRUST")}
    # cli.py, like a console script, does not add the current folder to the path
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *command],
        env=env | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    planned = train(project, *plan)
    assert (planned.returncode, planned.stderr) == (0, "")
    code = "import runpy, sys; sys.path.insert(0, ''); runpy.run_path('script.py', run_name='__main__')"
    script = shared().start([], project, code=code, apart=True)
    printed, errors = script.communicate()
    assert (script.returncode, errors) == (0, "")
    assert "2,212 parameters" in planned.stdout  # 64 inputs, 32 hidden, 4 outputs, with biases
    folders = sorted(project.glob("outputs/*/*"))
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    assert [result["status"] for result in results] == ["completed", "completed"]
    assert set(results[0]["test"]) == {"test/loss", "test/accuracy", "test/confidence"}
    assert results[0]["test"] == results[1]["test"]
    assert results[0]["test"]["test/accuracy"] > 0.9
    assert 0.5 < results[0]["test"]["test/confidence"] < 1
    assert printed.splitlines()[-1] == "torch.Size([64, 64])"
    assert str(results[0]["test"]) in printed


def test_the_dataset_of_the_page_is_read_and_learnt(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(project)
    monkeypatch.setenv("GEARSHIFT_TRUST", "mypackage")
    for name in ("mypackage", "mypackage.halves"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    run = assemble(compose(["data=halves", "model=linear", "epochs=20"], config_dir="my_options"))
    facts = run.blueprint.facts
    assert (facts.num_train, facts.num_val, facts.num_test) == (360, 40, 100)
    assert (facts.input_shape, facts.class_names) == ((1, 8, 8), ("left", "right"))
    result = fit(run)
    assert result.test is not None and result.test["test/accuracy"] > 0.95


def test_options_of_ones_own_are_in_the_help(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_help(["--config-dir", "my_options", "--help"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for group, name, meaning in (
        ("data", "mine", "Noisy images with one bright corner out of four"),
        ("model", "mine", "One hidden layer"),
        ("loss", "mine", "Focal loss: samples that are right already count less"),
    ):
        assert f"{name} {meaning}" in lines[lines.index(group) :]


def test_without_trust_nothing_is_imported(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "mypackage/model.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(project)
    with pytest.raises(ConfigurationError) as caught:
        compose(["model=mine"], config_dir="my_options")
    assert [problem.rpartition("; ")[2] for problem in caught.value.problems] == [
        "if you trust its code: --trust mypackage"
    ]


def test_the_current_folder_is_seen_for_trusted_packages_only(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for name in ("triton_of_others.py", "statistics.py", "hydra_plugins/evil.py"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("raise SystemExit('imported')")

    def found(*flags: str) -> set[str]:
        monkeypatch.setattr(sys, "argv", ["train", "evaluate", *flags])
        with pytest.raises(SystemExit):
            app.main()
        names = ("mypackage", "triton_of_others", "hydra_plugins", "statistics")
        specs = {name: importlib.util.find_spec(name) for name in names}
        return {name for name, spec in specs.items() if spec and str(project) in str(spec.submodule_search_locations)}

    sys.modules.pop("mypackage", None)
    assert found("--trust", "elsewhere") == set()
    assert found("--trust=mypackage.model") == {"mypackage"}
    assert str(project) not in sys.path


def test_the_focal_loss_of_the_page_is_cross_entropy_where_gamma_is_0(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(project)
    for name in ("mypackage", "mypackage.loss"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from mypackage.loss import Focal, confidence  # type: ignore[import-not-found]

    outputs, targets = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 4
    expected = F.cross_entropy(outputs, targets, reduction="sum")
    torch.testing.assert_close(Focal(gamma=0.0)(outputs, targets), expected)
    assert Focal(gamma=2.0)(outputs, targets) < expected
    assert Focal(gamma=2.0).initial_value(4) == pytest.approx(float(Focal(2.0)(torch.zeros(1, 4), targets[:1])))
    assert confidence(torch.zeros(8, 4), targets[:8]) == pytest.approx(8 / 4)
