"""Lipschitz Networks: the library of the book."""

from lipbook.bound import Ball, Bound, CertificateError, UnsupportedLayerError

__all__ = ["Ball", "Bound", "CertificateError", "UnsupportedLayerError"]
__version__ = "0.1.0"
