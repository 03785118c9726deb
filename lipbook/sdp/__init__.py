"""Semidefinite programs that bound the Lipschitz constant of a network (Part II)."""

from lipbook.sdp.eclipse import eclipse_fast
from lipbook.sdp.solve import lipsdp

__all__ = ["eclipse_fast", "lipsdp"]
