"""The Python interface inside other programs: one that uses Hydra, threads, a running event loop, a refused run."""

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hydra import compose as host_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.version import VersionBase
from omegaconf import OmegaConf
from packaging.version import Version

from trainer import assemble, compose, fit
from trainer.base.errors import GearshiftError
from trainer.training.finish import Result

SHORT = ["model=linear", "steps=6", "schedule=constant", "threads=1", "every.log=1step", "every.checkpoint=2step"]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """A program with a Hydra application and a resolver of its own, in its folder."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host/app.yaml").write_text("a: 1\nb: ${slug:x}\n")
    OmegaConf.register_new_resolver("slug", lambda text: f"host's {text}", replace=True)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(tmp_path / "host"), job_name="host", version_base="1.3"):
        VersionBase.instance().setbase(Version("1.1"))
        yield tmp_path
    OmegaConf.clear_resolver("slug")


def losses(result: Result) -> list[float]:
    return [record["train/loss"] for record in result.history if "train/loss" in record]


def test_another_hydra_application_is_left_as_it_is(host: Path) -> None:
    async def in_a_loop() -> int:
        steps: int = compose(["steps=7"])["steps"]
        return steps

    with ThreadPoolExecutor(4) as pool:
        seeds = list(pool.map(lambda seed: compose([f"seed={seed}"])["seed"], range(4)))
    assert (seeds, asyncio.run(in_a_loop())) == ([0, 1, 2, 3], 7)
    assert host_compose("app", ["a=2"]) == {"a": 2, "b": "host's x"}
    assert str(VersionBase.instance().getbase()) == "1.1"


def test_runs_in_threads_are_those_of_one_thread(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from within a running event loop; afterwards torch's settings are those of the program."""
    monkeypatch.chdir(host)
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode()

    def train(name: str) -> list[float]:
        return losses(fit(assemble(compose([*SHORT, "model=mlp", f"seed={name[0]}"][1:]), name)))

    async def alone() -> list[float]:
        return train("1alone")

    expected = asyncio.run(alone())
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(train, ["1a", "2b", "1c"]))
    assert found[0] == found[2] == expected != found[1]
    assert (torch.get_num_threads(), torch.get_deterministic_debug_mode()) == before
    for name in ("1a", "2b", "1c"):
        assert Path(name, "train.log").read_text().count("run: ") == 1


REFUSED: dict[str, Callable[[Path], object]] = {
    "metrics": lambda run: (run / "metrics.jsonl").write_text("x"),
    "log": lambda run: ((run / "train.log").unlink(), (run / "train.log").mkdir()),
    "environment": lambda run: ((run / "environment.json").unlink(), (run / "environment.json").mkdir()),
    "best": lambda run: (run / "checkpoints/best.pt").write_bytes(b"x"),
}


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_thread_or_file_outlives_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(assemble(compose(SHORT), "whole"))
    before = threading.active_count(), open_files()
    longer = compose([word.replace("steps=6", "steps=8") for word in SHORT])
    for name, damage in REFUSED.items():
        shutil.copytree("whole", name)
        damage(Path(name))
        with pytest.raises(GearshiftError):
            assemble(longer, name, resume=True)
        assert (threading.active_count(), open_files()) == before, name
