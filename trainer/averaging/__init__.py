"""Averages of the weights over training steps, which are evaluated, early-stopped on and kept as best.

Training itself is unchanged: the average exists beside the weights. Until it begins, the weights themselves are
evaluated. Buffers are not averaged: those of the trained model are used, or the statistics of batch norm are estimated
anew for the averaged weights (`batch_norm_samples`). `Snapshots` averages predictions instead of weights.
"""

from trainer.averaging.means import EMA, Mean
from trainer.averaging.snapshots import Snapshots

__all__ = ["EMA", "Mean", "Snapshots"]
