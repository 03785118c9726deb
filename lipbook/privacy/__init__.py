"""Differential privacy without clipping: sensitivities from contracts, noise, accounting, audits.

Everywhere in this part two data sets are neighbours if one has one record more: add/remove adjacency.
"""

from lipbook.privacy.accountant import epsilon, epsilon_of, noise_multiplier
from lipbook.privacy.audits import audit_gradients, audit_run
from lipbook.privacy.clipping import gradient_norms
from lipbook.privacy.features import OrientedGradients, Scattering
from lipbook.privacy.records import Record, Release
from lipbook.privacy.recursions import ClippedGradient, sensitivity
from lipbook.privacy.release import fit

__all__ = [
    "ClippedGradient",
    "OrientedGradients",
    "Record",
    "Release",
    "Scattering",
    "audit_gradients",
    "audit_run",
    "epsilon",
    "epsilon_of",
    "fit",
    "gradient_norms",
    "noise_multiplier",
    "sensitivity",
]
