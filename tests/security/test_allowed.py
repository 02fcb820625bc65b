"""What stays possible: plain settings of Hydra in a file, words that are typed, and what the user trusts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.types import RunMode
from omegaconf import DictConfig

from trainer.base.errors import ConfigurationError, NotTrusted
from trainer.configuration import compose
from trainer.configuration.build import build

CALLBACK = "from hydra.experimental.callback import Callback\nclass Mine(Callback): ...\nfrom os import system\n"


@pytest.fixture
def options(folder: Path) -> Path:
    (folder / "options/experiment").mkdir(parents=True)
    return folder / "options"


def composed(options: Path, *words: str, node: str = "{}", mode: RunMode = RunMode.RUN) -> DictConfig:
    text = f"# @package _global_\n# Mine\nhydra: {node}\n"
    (options / "experiment/mine.yaml").write_text(text)
    with compose.loader_of(options) as (loader, search):
        return compose.load(loader, "train", [*words, "experiment=mine", *search], mode).hydra


def test_a_file_sets_folders_names_and_axes(options: Path) -> None:
    node = composed(
        options,
        node="{sweep: {dir: here}, run: {dir: '${name}'}, sweeper: {params: {seed: '1,2'}, max_batch_size: 2},"
        " job: {name: mine}, verbose: true, help: {app_name: mine}}",
    )
    assert (node.sweep.dir, node.sweeper.params.seed, node.job.name) == ("here", "1,2", "mine")


@pytest.mark.parametrize("word", [
    "hydra/job_logging=default", "hydra/job_logging=stdout", "hydra/hydra_logging=default",
    "+hydra.job.env_set.COLOUR=blue", "hydra.job.name=mine", "hydra.sweeper.max_batch_size=2", "hydra.verbose=[a,b]",
])  # fmt: skip
def test_words_of_hydras_own_are_typed(word: str, options: Path) -> None:
    assert composed(options, word) is not None


def test_a_formatter_with_colours_and_a_handler_for_the_screen(options: Path) -> None:
    node = (
        "{job_logging: {version: 1, formatters: {f: {(): colorlog.ColoredFormatter, format: '${seed}',"
        " log_colors: {DEBUG: purple}}}, handlers: {h: {class: logging.StreamHandler, formatter: f,"
        " stream: ext://sys.stderr, level: INFO}}, root: {level: INFO, handlers: [h]}}}"
    )
    assert composed(options, node=node).job_logging.formatters.f.format == 0, "resolved, once and for all"


@pytest.fixture
def mine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (folder / "mine_of_security.py").write_text(CALLBACK)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("GEARSHIFT_TRUST", "mine_of_security")
    yield


@pytest.mark.usefixtures("mine")
def test_what_the_user_trusts_is_called_and_what_it_imports_is_not(options: Path) -> None:
    assert composed(options, node="{callbacks: {x: {_target_: mine_of_security.Mine}}}").callbacks.x is not None
    for name, reason in (("system", "not a class"), ("Callback", "comes from hydra")):
        with pytest.raises(NotTrusted, match=reason):
            composed(options, node=f"{{callbacks: {{x: {{_target_: mine_of_security.{name}}}}}}}")
    with pytest.raises(ConfigurationError, match="not a class"):
        build({"_target_": "mine_of_security.system", "command": "x"}, "model")


def test_a_plug_in_is_typed_or_trusted(options: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own settings, and those that are typed, may be commands; a file must not add any."""
    plugin = {"_target_": "hydra_plugins.fake.FakeLauncher", "python": "python", "folder": "${hydra.sweep.dir}"}
    ConfigStore.instance().store(group="hydra/launcher", name="fake", node=plugin, provider="fake")
    typed = ["hydra/launcher=fake", "hydra.launcher.python=python3"]
    assert composed(options, *typed, mode=RunMode.MULTIRUN).launcher.python == "python3"
    with pytest.raises(
        NotTrusted, match=r"type hydra/launcher=\.\.\. and its settings on the command line; if you trust"
    ):
        composed(options, *typed, node="{launcher: {folder: x}}", mode=RunMode.MULTIRUN)
    monkeypatch.setenv("GEARSHIFT_TRUST", "hydra_plugins")
    assert composed(options, *typed, node="{launcher: {folder: x}}", mode=RunMode.MULTIRUN).launcher.folder == "x"


PARTS = """
from os import system
from subprocess import run
from torch import nn

def number(**_): return 3
def nothing(): return None
def kind(): return nn.Linear
def linear(): return nn.Linear(2, 2)
def around(inner: nn.Module): return nn.Sequential(inner)
def optional(inner: nn.Module | None): return nn.Linear(2, 2)
def deeper(inner: nn.Sequential): return inner
def any_kind(inner): return nn.Linear(2, 2)
def many(inner: "list[int] | nn.Module"): return nn.Linear(2, 2)
"""


@pytest.fixture
def parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "parts_of_security.py").write_text(PARTS)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("GEARSHIFT_TRUST", "parts_of_security")


def call(name: str, **arguments: object) -> dict[str, object]:
    return {"_target_": f"parts_of_security.{name}", **arguments}


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("group", "node", "reason"),
    [
        ("model", call("around", inner=call("number")), "model.inner._target_=.*: returns int; must be Module"),
        ("model", call("around", inner=call("nothing")), "returns null; must be Module"),
        ("model", call("around", inner=call("kind")), "returns type; must be Module"),
        ("model", call("optional", inner=call("number")), "returns int; must be Module or NoneType"),
        ("model", call("many", inner=call("number")), "returns int; must be list or Module"),
        ("model", call("deeper", inner=call("around", inner=call("number"))), r"model.inner.inner._target_=.*int"),
        ("model", call("deeper", inner=call("linear")), "returns Linear; must be Sequential"),
        ("model", call("any_kind", inner={"_target_": "os.system", "command": "x"}), "not in a trusted package"),
        ("model", call("any_kind", inner=call("system", command="x")), "not a class"),
        ("model", call("any_kind", inner=call("run", command="x")), "comes from subprocess"),
        ("model", call("any_kind", inner=call("any_kind", inner={"_target_": "os.system"})), "not in a trusted"),
        ("model", call("any_kind", inner={"_target_": "torch.nn.init.zeros_"}), "is a function that is no factory"),
        ("augmentation", {"_target_": "trainer.augmentation.Pipeline", "x": call("number")}, "int, which has no draw"),
        ("augmentation", {"_target_": "trainer.augmentation.Pipeline", "x": call("kind")}, "type, which has no draw"),
        ("data", {"_target_": "trainer.data.FromDataset", "train": call("number")}, "no __len__, __getitem__"),
        ("data", {"_target_": "trainer.data.FromDataset", "train": call("nothing")}, "null, which has no __len__"),
    ],
)  # fmt: skip
def test_what_a_trusted_package_returns_inside_a_node_is_checked(
    group: str, node: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        build(node, group)


@pytest.mark.usefixtures("parts")
def test_what_fits_inside_a_node_is_taken() -> None:
    for name in ("around", "optional", "any_kind", "many"):
        assert build(call(name, inner=call("linear")), "model") is not None
    assert build(call("any_kind", inner=call("number")), "model") is not None, "nothing tells what it takes"
    assert build(call("optional", inner=call("nothing")), "model") is not None
