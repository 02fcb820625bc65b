"""What owns several runs: studies with their ledger, and ensembles."""

from trainer.studies.k_fold import KFold

__all__ = ["KFold"]
