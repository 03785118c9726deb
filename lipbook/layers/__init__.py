"""Layers with a Lipschitz constant that is known, each beside its contracts."""

from lipbook.layers.activations import Abs, GroupSort, Householder, MaxMin
from lipbook.layers.aol import AOLConv2d, AOLLinear
from lipbook.layers.ball import ToBall, ToSphere
from lipbook.layers.block import LipschitzResidual
from lipbook.layers.convolution import OrthogonalConv2d
from lipbook.layers.exported import export
from lipbook.layers.normalize import Normalize
from lipbook.layers.orthogonal import OrthogonalLinear
from lipbook.layers.residual import Residual
from lipbook.layers.sandwich import SandwichLinear
from lipbook.layers.sll import SLLConv2d, SLLLinear

__all__ = [
    "AOLConv2d",
    "AOLLinear",
    "Abs",
    "GroupSort",
    "Householder",
    "LipschitzResidual",
    "MaxMin",
    "Normalize",
    "OrthogonalConv2d",
    "OrthogonalLinear",
    "Residual",
    "SLLConv2d",
    "SLLLinear",
    "SandwichLinear",
    "ToBall",
    "ToSphere",
    "export",
]
