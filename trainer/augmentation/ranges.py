"""Argument checks for operations, re-exported from `trainer.base.checks`."""

from trainer.base.checks import check_number as check_number
from trainer.base.checks import check_range as check_range
from trainer.base.checks import check_whole as check_whole
