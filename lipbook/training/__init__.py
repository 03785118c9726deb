"""Training: networks whose certificate is worth having, and what they are worth (Part IV)."""

from lipbook.training.certify import certified_accuracy, certified_radius, pair_constants
from lipbook.training.loop import fit
from lipbook.training.losses import (
    EMMALoss,
    GloRoLoss,
    LogitAnnealingLoss,
    OffsetCrossEntropy,
    RadiusRamp,
)
from lipbook.training.pgd import attack

__all__ = [
    "EMMALoss",
    "GloRoLoss",
    "LogitAnnealingLoss",
    "OffsetCrossEntropy",
    "RadiusRamp",
    "attack",
    "certified_accuracy",
    "certified_radius",
    "fit",
    "pair_constants",
]
