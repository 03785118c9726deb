"""The norm of a matrix from l_inf to l_inf: its largest row sum of absolute values, rounded up.

|sum_j a_ij x_j| <= sum_j |a_ij| max_j |x_j|, with equality where x holds the signs of row i. A computed sum
of n non-negative numbers is within the factor 1 +- gamma_(n-1) of the true one in whatever order it is taken
(analysed by Higham, "The accuracy of floating point summation", SIAM J. Sci. Comput. 14, 1993).

Chapter: bounds/spectral-norms.
"""

import math
from dataclasses import dataclass

import torch

from lipbook.bound import Bound, CertificateError, as_float64
from lipbook.norms.spectral import UNIT_ROUNDOFF


def row_sum_norm(matrix: torch.Tensor) -> Bound:
    """An upper bound, within 1e-9, on the l_inf operator norm of a matrix, with a certificate.

    Args:
        matrix: (m, n), of a real floating dtype, finite; read in float64.

    Returns:
        A `Bound` in norm `math.inf`, whose `verify(matrix)` proves the value again.

    Raises:
        TypeError: not a tensor, or of an integer or complex dtype.
        ValueError: not a matrix, empty, NaN or infinite entries.
    """
    # The reported value keeps four times the margin that its proof needs, so that another machine's order of
    # summation proves it too.
    value = _largest_row_sum(matrix, margin=4)
    return Bound(value, "upper", norm=math.inf, method="row sums", certificate=RowSumCertificate())


@dataclass(frozen=True)
class RowSumCertificate:
    """Proves `bound.value` >= the largest row sum by summing again."""

    def verify(self, bound: Bound, subject: torch.Tensor) -> None:
        """Raise `CertificateError` unless the value is proved for the matrix `subject`."""
        if (bound.kind, bound.norm, bound.output, bound.region) != ("upper", math.inf, None, None):
            raise CertificateError(f"row sums prove upper bounds in norm inf, everywhere, not {bound!r}.")
        least = _largest_row_sum(subject, margin=1)
        if not bound.value >= least:
            raise CertificateError(f"{bound.value!r} is not proved: this matrix has a row sum of {least!r}.")


def _largest_row_sum(matrix, margin):
    """The largest row sum, times 1 + margin gamma_(n + 4) or a little more, rounded up."""
    matrix = as_float64(matrix, "matrix")
    if matrix.ndim != 2:
        raise ValueError(f"matrix must have 2 dimensions, got shape {tuple(matrix.shape)}: reshape it first.")
    largest = matrix.abs().sum(dim=1).max().item()
    error = (matrix.shape[1] + 4) * UNIT_ROUNDOFF
    factor = 1 + margin * error / (1 - 2 * error)
    return math.nextafter(largest * factor, math.inf) if largest > 0 else 0.0
