"""Regularizers: penalties R(w) on the weights, added to the mean data loss, J = loss + R.

The gradient of R is added to that of the data loss, or, with `decoupled`, a step shrinks the weights directly, whatever
the optimizer makes of the gradient. Patterns over parameter names choose the coefficient of a weight; parameters in
`no_weight_decay` have none unless a pattern names them.
"""

from trainer.regularizers.norms import L1, L2, ElasticNet
from trainer.regularizers.soft_sharing import SoftSharing

__all__ = ["L1", "L2", "ElasticNet", "SoftSharing"]
