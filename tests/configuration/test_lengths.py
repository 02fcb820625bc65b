"""What is told about lengths that do not suit the length of the run."""

import pytest

from trainer import compose
from trainer.configuration.lengths import length_notices, robbins_monro_verdict
from trainer.configuration.resolve import resolve
from trainer.planning.sections import step_rows

RUN = ["model=mlp", "batch_size=64", "threads=1"]  # 23 steps an epoch


def told(*overrides: str) -> dict[str, str]:
    return dict(length_notices(resolve(compose([*RUN, *overrides]))))


def test_nothing_is_told_of_what_fits() -> None:
    assert told("epochs=4") == {} == told("epochs=5", "averaging=swa") == told("epochs=3", "averaging=polyak")


def test_a_schedule_shorter_or_longer_than_the_run() -> None:
    shorter = told("epochs=4", "schedule=cosine", "schedule_length=2ep")
    assert shorter == {"schedule": "over 46 of 92 steps; afterwards its last rate is held"}
    longer = told("epochs=4", "schedule=linear", "schedule_length=8ep")
    assert longer["schedule"].startswith("over 184 steps, of which the run has 92; it ends at 0.505 times optimizer.lr")


@pytest.mark.parametrize("more", [["epochs=3"], ["epochs=1"], ["epochs=5", "averaging.every=20ep"]])
def test_an_average_that_is_never_taken(more: list[str]) -> None:
    text = told("averaging=swa", *more)["averaging"]
    assert text.startswith("takes no average")
    advice = text.partition("set ")[2].partition(",")[0]
    assert told("averaging=swa", *[word for word in more if "every" not in word], advice) == {}


def test_robbins_monro_is_asked_of_the_rates_of_the_run() -> None:
    whole, cut = (
        resolve(compose([*RUN, "epochs=4", "schedule=inverse_time", *more])) for more in ([], ["schedule_length=2ep"])
    )
    assert robbins_monro_verdict(whole) == "rate -> 0: yes, sum of rates = inf: yes, sum of squares < inf: yes"
    assert robbins_monro_verdict(cut) == "rate -> 0: no, sum of rates = inf: yes, sum of squares < inf: no"
    assert "Robbins-Monro" in dict(step_rows(whole))
    own = resolve(compose(["model=linear", "optimizer=rprop", "threads=1"]))
    assert "Robbins-Monro" not in dict(step_rows(own))
