"""Bounds on the Lipschitz constant of a matrix, a convolution, a network (Part I)."""

from lipbook.norms.spectral import spectral_norm

__all__ = ["spectral_norm"]
