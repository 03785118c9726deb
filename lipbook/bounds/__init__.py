"""Bounds on a matrix and on a whole network (Part I). For one layer see `lipbook.contracts.lipschitz`."""

from lipbook.bounds.lower import gradient_lower_bound
from lipbook.bounds.product import product_bound
from lipbook.norms.spectral import spectral_norm

__all__ = ["gradient_lower_bound", "product_bound", "spectral_norm"]
