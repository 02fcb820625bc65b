"""Garbage collection is paused while the program starts, and always enabled again."""

import gc
from collections.abc import Iterator

import pytest

from trainer.base.collector import pausing_collection, resume_collection


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    assert gc.isenabled()
    yield
    gc.unfreeze()
    gc.enable()


def test_it_is_paused_until_it_is_resumed() -> None:
    with pausing_collection():
        assert not gc.isenabled()
        resume_collection()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    assert gc.isenabled()


def test_it_comes_back_after_an_error_before_that() -> None:
    with pytest.raises(SystemExit), pausing_collection():
        raise SystemExit(2)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_what_a_user_switched_off_stays_off() -> None:
    gc.disable()
    with pausing_collection():
        resume_collection()
        assert not gc.isenabled()
    assert not gc.isenabled()


def test_a_process_that_did_not_pause_it_is_left_alone() -> None:
    resume_collection()
    assert gc.get_freeze_count() == 0
