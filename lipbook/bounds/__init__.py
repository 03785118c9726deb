"""Bounds on the norm of a matrix (Part I). For a layer or a network see `lipbook.contracts.lipschitz`."""

from lipbook.norms.spectral import spectral_norm

__all__ = ["spectral_norm"]
