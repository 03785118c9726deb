"""Training: networks whose certificate is worth having, and what they are worth (Part IV)."""

from lipbook.training.certify import CertifiedAccuracy, certified_accuracy, certified_radius, pair_constants
from lipbook.training.loop import fit

__all__ = [
    "CertifiedAccuracy",
    "certified_accuracy",
    "certified_radius",
    "fit",
    "pair_constants",
]
