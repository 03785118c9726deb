"""What the library knows of one layer, and how it is attacked.

`lipschitz`, `affine`, `output_shape`, `expand`, `slopes`, `residual` and `enclose` read a layer; so do
`output_norm` and `parameter_gradient_norm`, and `loss_gradient_norm` a loss. `check` attacks what they say.
"""

from lipbook.contracts import activations as _activations  # noqa: F401  (registers)
from lipbook.contracts import averaging as _averaging  # noqa: F401  (registers)
from lipbook.contracts import convolution as _convolution  # noqa: F401  (registers)
from lipbook.contracts import convolution_norms as _convolution_norms  # noqa: F401  (registers)
from lipbook.contracts import pooling as _pooling  # noqa: F401  (registers)
from lipbook.contracts import stock as _stock  # noqa: F401  (registers)
from lipbook.contracts.attacks import check
from lipbook.contracts.definitions import affine, expand, lipschitz, output_shape, residual, slopes
from lipbook.contracts.gradients import output_norm, parameter_gradient_norm
from lipbook.contracts.losses import loss_gradient_norm
from lipbook.contracts.rounding import enclose
from lipbook.contracts.structures import Reflection, Sorting

__all__ = [
    "Reflection",
    "Sorting",
    "affine",
    "check",
    "enclose",
    "expand",
    "lipschitz",
    "loss_gradient_norm",
    "output_norm",
    "output_shape",
    "parameter_gradient_norm",
    "residual",
    "slopes",
]
