import hashlib

import torch

from trainer.base.randomness import StepRandomness, generator_for, seed_for


def test_a_seed_is_the_blake2b_hash_of_what_it_is_for() -> None:
    digest = hashlib.blake2b(b"7/order/3", digest_size=8).digest()
    assert seed_for(7, "order", 3) == int.from_bytes(digest, "little") // 2


def test_purposes_epochs_and_seeds_do_not_share_numbers() -> None:
    seeds = {seed_for(s, p, i) for s in range(20) for p in ("order", "augmentation", "weights") for i in range(50)}
    assert len(seeds) == 20 * 3 * 50


def test_a_table_is_the_same_whatever_was_drawn_before() -> None:
    first = torch.rand(100, generator=generator_for(1, "order", 5))
    torch.rand(1000)
    assert torch.equal(first, torch.rand(100, generator=generator_for(1, "order", 5)))


def test_a_step_draws_the_same_again_and_other_steps_something_else() -> None:
    randomness = StepRandomness(3, torch.device("cpu"))

    def draw(step: int) -> torch.Tensor:
        randomness.start(step)
        return torch.rand(64)

    draws = [draw(step) for step in range(200)]
    assert torch.equal(draw(17), draws[17])
    assert len({tuple(d.tolist()) for d in draws}) == 200
    # neighbouring steps are uncorrelated: |r| of 199 pairs of 64 numbers, 5 standard errors
    table = torch.stack(draws)
    r = torch.corrcoef(torch.stack([table[:-1].flatten(), table[1:].flatten()]))[0, 1]
    assert abs(r) < 5 / (199 * 64) ** 0.5
