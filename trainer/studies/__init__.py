"""What owns several runs: studies with their ledger, and ensembles."""

from trainer.studies.k_fold import KFold
from trainer.studies.lottery_ticket import LotteryTicket

__all__ = ["KFold", "LotteryTicket"]
