"""Weight initializers. An initializer is called once with the newly built model and changes it in place.

Weights are drawn in the order of `named_modules` from torch's default CPU generator, whatever the model's device:
those of linear and convolutional layers, and each matrix of recurrent layers (one per gate) and of attention. Biases
become 0, scales of norms 1. All other parameters (embeddings, scales of layers, tensors of a module's own) are left
alone; `left_alone` names them. Sources: CUHK ELEG 5491, UVic PHYS 555, CS7150 and the papers named.
"""

from trainer.initializers.data_dependent import DataDependent
from trainer.initializers.fixed import Constant, IdentityResidual, Orthogonal
from trainer.initializers.random import (
    KaimingNormal,
    KaimingUniform,
    Normal,
    TruncatedNormal,
    Uniform,
    XavierNormal,
    XavierTruncated,
    XavierUniform,
)

__all__ = [
    "Constant",
    "DataDependent",
    "IdentityResidual",
    "KaimingNormal",
    "KaimingUniform",
    "Normal",
    "Orthogonal",
    "TruncatedNormal",
    "Uniform",
    "XavierNormal",
    "XavierTruncated",
    "XavierUniform",
]
