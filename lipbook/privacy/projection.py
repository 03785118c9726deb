"""Weights brought back to norm 1 after a noisy step: one step towards orthogonality, with its own proof.

For a matrix W with m <= n and singular values s, the matrix W + (I - WW')W / 2 has the same singular vectors,
and the singular values f(s) = (3s - s^3) / 2. At s = 1 this is flat: f(1 + e) is 1 - 3/2 e^2 - 1/2 e^3, so a
matrix that is nearly semi-orthogonal comes much nearer. And 0 < f <= 1 on (0, sqrt 3), since f' vanishes only
at 1 and f(1) = 1: a matrix of norm below sqrt 3 has norm at most 1 after one step, whatever it was. Only the
rounding of the step is left to bound, which is much cheaper than a spectral norm.

Source: Björck and Bowie, "An iterative algorithm for computing the best estimate of an orthogonal matrix",
SIAM Journal on Numerical Analysis 8, 1971. Chapter: privacy/without-clipping.
"""

import math

import torch

from lipbook.norms.spectral import spectral_norm

_BLOCK = 64  # columns: an entry of WW' collects 64 + n / 64 roundings, not n
_LARGEST = 1.5  # norm up to which a step is taken at once: f(1.5) = 0.56


def nearest_semiorthogonal(weight: torch.Tensor) -> torch.Tensor:
    """UV' of a matrix W = USV', rounded: the nearest with orthonormal rows (columns, if it is tall).

    Nearest in the Frobenius norm, from a singular value decomposition in float64.

    Args:
        weight: (m, n), finite, of a real floating dtype.

    Returns:
        (m, n), of the same dtype and on the same device. Its norm is 1 up to rounding; `contracted` makes it
        at most 1.

    Source: Fan and Hoffman, "Some metric inequalities in the space of matrices", 1955.
    """
    u, _, vh = torch.linalg.svd(weight.detach().cpu().double(), full_matrices=False)
    return (u @ vh).to(weight)


def contracted(weight: torch.Tensor) -> torch.Tensor:
    """A matrix of spectral norm at most 1, nearer to a semi-orthogonal one: proved, rounding included.

    One step W + (I - WW')W / 2, divided by 1 + a bound on its rounding, which is about 1e-3 in float32. If W
    is not shown to have a norm below 1.5, it is first divided by `lipbook.bounds.spectral_norm`, which is
    slower and happens only after a very large step.

    The bound, with u the unit roundoff, gamma_k = ku / (1 - ku), F at least the Frobenius norm of W, s its
    spectral norm, D the computed (I - WW') / 2 and d at least the Frobenius norm of D:
    (1) D is within gamma_k F^2 / 2 + ud of (I - WW') / 2, k the roundings of a sum in blocks;
    (2) DW is computed within gamma_m d F;
    (3) adding W rounds by at most u (1 + d (1 + gamma_m)) F.
    So the norm is at most 1 + (1) s + (2) + (3), to which is added what underflow and the rounding of the
    quotient may do. This holds for sums in any order, fused or not, but not for products of reduced
    precision: where torch may use those, and for half-precision weights, the step is made in float64.

    Args:
        weight: (m, n), of a real floating dtype.

    Returns:
        (m, n), of the same dtype and on the same device.

    Raises:
        FloatingPointError: an entry is NaN or infinite.
    """
    flat = weight.detach().cpu()
    wide = flat if flat.shape[0] <= flat.shape[1] else flat.T
    if wide.dtype != torch.float32 or torch.get_float32_matmul_precision() != "highest":
        wide = wide.double()
    found = _step(wide)
    if found is None:
        found = _step(_divided(wide), size=1.01)
    stepped, bound = found
    roundoffs = (torch.finfo(wide.dtype).eps + torch.finfo(weight.dtype).eps) / 2
    # |fl(A / b) - A / b| is at most u |A|_F / b, and |A|_F at most sqrt(m) |A|.
    stepped.mul_(1 / (bound * (1 + (4 + 2 * math.sqrt(len(stepped))) * roundoffs)))
    return (stepped if wide.shape == flat.shape else stepped.T).to(weight)


def _step(wide, size=None):
    """One step and a bound on its norm; None unless the norm before it is proved to be at most 1.5.

    `size` is a bound on the norm of W that is known already.
    """
    m, n = wide.shape
    u, tiny = torch.finfo(wide.dtype).eps / 2, m * n * 2.0**-120  # more than underflow can lose
    gram = sum(block @ block.T for block in wide.split(_BLOCK, dim=1))
    relative = _gamma(min(n, _BLOCK) + math.ceil(n / _BLOCK), u)
    square = (gram.diagonal().sum(dtype=torch.float64).item() * (1 + 1e-9) + tiny) / (1 - relative)
    defect = gram.mul_(-0.5)
    defect.diagonal().add_(0.5)
    spread = _frobenius(defect)
    error = relative * square / 2 + u * spread + tiny
    if size is None:
        size = _size(spread, error)
        if not size <= _LARGEST:
            product = _frobenius(defect @ defect.T) + _gamma(m, u) * spread**2 + tiny
            size = _size(math.sqrt(product), error)
        if not size <= _LARGEST:  # or it is NaN
            return None
    frobenius = math.sqrt(square)
    error = error * size + _gamma(m, u) * spread * frobenius
    error += u * (1 + spread * (1 + _gamma(m, u))) * frobenius + tiny
    return torch.mm(defect, wide).add_(wide), 1 + 1.001 * error


def _size(defect, error):
    """|W|^2 <= 1 + 2 |(I - WW') / 2|."""
    return math.sqrt(1 + 2 * (defect + error)) * (1 + 1e-9)


def _divided(wide):
    """W over an upper bound on its norm: of norm at most 1, and what rounding adds."""
    if not torch.isfinite(wide).all():
        raise FloatingPointError("a weight is NaN or infinite after the step: take a smaller lr.")
    size = spectral_norm(wide).value
    return wide if size == 0 else (wide.double() / size).to(wide.dtype)


def _frobenius(matrix):
    return torch.linalg.vector_norm(matrix, dtype=torch.float64).item() * (1 + 1e-9)


def _gamma(k, u):
    """The standard bound on the relative error of k roundings."""
    return k * u / (1 - k * u)
