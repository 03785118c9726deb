"""Lipschitz Networks: the library of the book."""

import importlib

from lipbook.bound import Ball, Bound, CertificateError, UnsupportedLayerError

__all__ = ["Ball", "Bound", "CertificateError", "UnsupportedLayerError"]
__version__ = "0.1.0"

_PARTS = frozenset("bounds claims contracts data exercises layers norms plot privacy sdp training".split())


def __getattr__(name):
    """A part of the library, imported when it is first asked for: ``import lipbook`` alone stays cheap."""
    if name in _PARTS:
        return importlib.import_module(f"lipbook.{name}")
    raise AttributeError(f"module 'lipbook' has no attribute {name!r}.")
