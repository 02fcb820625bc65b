from collections.abc import Iterator

import pytest

from tests import quick_hydra
from trainer import compose


@pytest.fixture
def slow_hydra() -> Iterator[None]:
    quick_hydra.uninstall()
    yield
    quick_hydra.install()


@pytest.mark.parametrize(
    "overrides",
    [[], ["model=lenet", "optimizer=sgd", "seed=3"], ["augmentation=crop", "optimizer.lr=0.1"], ["debug=overfit"]],
)
def test_the_same_is_composed(overrides: list[str], request: pytest.FixtureRequest) -> None:
    quick = compose(overrides)
    request.getfixturevalue("slow_hydra")
    assert compose(overrides) == quick
