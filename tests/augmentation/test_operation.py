"""`RangedOperation`: the order of the draws, and which images are changed."""

import pytest
import torch

from tests.augmentation.helpers import generator, images
from trainer.augmentation.operation import RangedOperation


class Shift(RangedOperation):
    """Adds two numbers; records the rows it receives."""

    draws_seeds = True

    def change(self, images_KCHW, rows):
        self.given = rows
        return images_KCHW.add_((rows["low"] + rows["high"]).float().view(-1, 1, 1, 1))


def test_draws_are_whether_then_each_number_then_the_seed():
    """Resumed runs and repetitions with another version depend on this order."""
    rows = Shift(0.6, low=(1.0, 2.0), high=(-4.0, 4.0)).draw(50, (3, 8, 8), generator(7))
    by_hand = generator(7)
    whether, low, high = (torch.rand(50, generator=by_hand, dtype=torch.float64) for _ in range(3))
    expected = {"applied": whether < 0.6, "low": 1 + low, "high": 8 * high - 4}
    expected["seed"] = torch.randint(2**31, (50,), generator=by_hand)
    assert list(rows) == list(expected)
    assert all(torch.equal(rows[name], expected[name]) for name in expected)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_the_chosen_images_are_changed_by_their_own_rows(probability):
    operation, pixels = Shift(probability, low=(1.0, 2.0), high=(3.0, 9.0)), images(20, (3, 4, 5)).float()
    rows = operation.draw(20, (3, 4, 5), generator())
    added_N = torch.where(rows["applied"], rows["low"] + rows["high"], 0).float()
    assert torch.equal(operation(pixels.clone(), rows), pixels + added_N.view(-1, 1, 1, 1))
    if probability:
        assert operation.given["applied"].all()
        assert torch.equal(operation.given["seed"], rows["seed"][rows["applied"]])


def test_a_probability_is_one():
    with pytest.raises(ValueError, match=r"^probability=1\.5: must be between 0 and 1$"):
        Shift(1.5)
