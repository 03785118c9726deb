"""Layers with a Lipschitz constant that is known, each beside its contracts."""

from lipbook.layers.activations import Abs, GroupSort, Householder, MaxMin
from lipbook.layers.normalize import Normalize
from lipbook.layers.residual import Residual

__all__ = ["Abs", "GroupSort", "Householder", "MaxMin", "Normalize", "Residual"]
