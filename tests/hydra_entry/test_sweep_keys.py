"""Keys of a group that is an axis of a sweep: which trials get them."""

from pathlib import Path

import pytest
from hydra.types import RunMode

from trainer.base.errors import ConfigurationError
from trainer.configuration import compose
from trainer.hydra_entry.preflight import fitting_trials

OWN = {
    "experiment/one.yaml": "# @package _global_\ndefaults:\n  - override /parallelism: ddp\n",
    "experiment/two.yaml": "# @package _global_\ndefaults:\n  - override /parallelism: fsdp\n",
    "experiment/axes.yaml": "# @package _global_\nhydra:\n  sweeper:\n    params:\n      parallelism: ddp,fsdp\n",
    "optimizer/mine.yaml": "_target_: torch.optim.SGD\nlr: 0.1\nmomentum: 0.5\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("options")
    for name, text in OWN.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


def trials(words: str, folder: Path) -> tuple[list[str], list[str]]:
    """The trials of a sweep, each of which can be composed, and what is said about them."""
    with compose.loader_of(folder) as (loader, search):
        config = compose.load(loader, compose.NAME, [*words.split(), *search], RunMode.MULTIRUN)
        found, notes = fitting_trials(config)
        for trial in found:
            compose.finalize(alone := compose.load(loader, compose.NAME, [*trial, *search]), alone.hydra, loader)
    return [" ".join(trial) for trial in found], notes


@pytest.mark.parametrize(
    ("words", "expected", "note"),
    [
        ("parallelism=ddp,fsdp parallelism.devices=2",
         ["parallelism=ddp parallelism.devices=2", "parallelism=fsdp parallelism.devices=2"], ""),
        ("parallelism.devices=2,3 parallelism=single,ddp",
         ["parallelism.devices=2 parallelism=ddp", "parallelism.devices=3 parallelism=ddp", "parallelism=single"],
         "parallelism.devices: left out for parallelism=single, which has no such key"),
        ("optimizer=sgd,adam,momentum optimizer.momentum=0.8 optimizer.lr=0.1",
         ["optimizer=sgd optimizer.lr=0.1", "optimizer=adam optimizer.lr=0.1",
          "optimizer=momentum optimizer.momentum=0.8 optimizer.lr=0.1"],
         "optimizer.momentum: left out for optimizer=sgd, optimizer=adam, which has no such key"),
        ("optimizer=sgd,mine optimizer.momentum=0.8", ["optimizer=sgd", "optimizer=mine optimizer.momentum=0.8"],
         "optimizer.momentum: left out for optimizer=sgd, which has no such key"),
        ("experiment=one,two parallelism.devices=2",
         ["experiment=one parallelism.devices=2", "experiment=two parallelism.devices=2"], ""),
        ("experiment=axes parallelism.devices=2",
         ["parallelism=ddp experiment=axes parallelism.devices=2",
          "parallelism=fsdp experiment=axes parallelism.devices=2"], ""),
        ("augmentation=cifar,mixup augmentation.mixup.alpha=0.3",
         ["augmentation=cifar", "augmentation=mixup augmentation.mixup.alpha=0.3"],
         "augmentation.mixup.alpha: left out for augmentation=cifar, which has no such key"),
        ("seed=1,2 optimizer.lr=0.1", ["seed=1 optimizer.lr=0.1", "seed=2 optimizer.lr=0.1"], ""),
    ],
)  # fmt: skip
def test_a_key_is_set_where_the_option_has_it(words: str, expected: list[str], note: str, folder: Path) -> None:
    found, notes = trials(words, folder)
    assert sorted(found) == sorted(expected)
    assert notes == [note] * bool(note)


@pytest.mark.parametrize("words", ["optimizer=sgd,momentum optimizer.momentumm=0.8", "seed=1,2 optimizer.momentum=0.8"])
def test_a_key_that_no_option_has_is_refused(words: str, folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"key 'optimizer.momentumm?' does not exist"):
        trials(words, folder)
