"""The proof of a semidefinite bound, rounding included, from its multipliers alone.

A Cholesky factorisation that runs to its end with a margin for every rounding error shows ``M > 0`` (Rump,
"Verification of positive definiteness", BIT 46, 2006), and ``z'Mz >= 0`` for a true increment z is
``|Dy|^2 <= rho |Dx|^2``. The margin covers the factorisation, the forming of M from p, q and C, and the
errors of p, q and C themselves, which `errors_of` carries through the network in norm.

The same for a dual matrix Z: where Z > 0 and ``p_j'Z q_j >= 0`` for all j are proved, <Z, C'C> / <Z, G_0> is
a lower bound on what any multipliers can prove. It is no lower bound on the network.

Chapter: sdp/lipsdp.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipbook.bound import Bound, CertificateError
from lipbook.bounds.preactivations import Unbounded
from lipbook.contracts.certificates import reading
from lipbook.norms.spectral import UNIT_ROUNDOFF, gamma
from lipbook.sdp.constraints import Constraints, Product, Proposal, constraints_of, matrix
from lipbook.sdp.start import feasible_dual, overflow

_READ = 2.0**-49  # a weight may differ so much from the stored number, relatively
_UNDERFLOW = 2.0**-500  # more than all that underflows, squares included, in units of a scaled increment
_SCALES = 2.0**200  # coordinates are scaled by at most this
_INFLATED = 1 + 1e-6  # norms of errors are computed with errors of their own


@dataclass(frozen=True, eq=False)
class LipSDPCertificate:
    """Proves a bound by its multipliers. `dual_value` and `gap` were proved when it was made: `verify` proves
    the value alone.

    Args:
        multipliers: one for each activation whose slope is not fixed, in the order of the network ("neuron"),
            or one for each activation layer ("layer").
        sharing: "neuron" or "layer".
        input_shape: of one sample.
        dual_value: a lower bound on the optimum of the semidefinite program, in the unit of the constant;
            None: not computed.
        gap: (value - dual_value) / value; None: not computed.
        iterations: what the solver took; None: it has none.
    """

    multipliers: Tensor
    sharing: str = "neuron"
    input_shape: tuple[int, ...] | None = None
    dual_value: float | None = None
    gap: float | None = None
    iterations: int | None = None

    def verify(self, bound: Bound, subject: nn.Sequential) -> None:
        """Raise `CertificateError` unless the value is proved for the model `subject`."""
        if bound.kind != "upper" or bound.norm != 2:
            raise CertificateError(f"multipliers prove upper bounds in norm 2, not {bound!r}.")
        constraints = self._read(bound, subject)
        multipliers = self.multipliers
        if not _is_read(multipliers):
            raise CertificateError(
                "this certificate proves nothing: its multipliers must be a float64 tensor on the CPU."
            )
        if multipliers.shape != (constraints.multipliers,):
            raise CertificateError(
                f"{tuple(multipliers.shape)} multipliers prove nothing about this model, which has "
                f"{constraints.multipliers} activations whose slope is not fixed."
            )
        if bound.value < math.inf and not proves(constraints, bound.value, multipliers):
            raise CertificateError(
                f"{bound.value!r} is not proved: with these multipliers the matrix of the inequality is not "
                "shown to be positive semidefinite. Compute the bound of this very model."
            )

    def _read(self, bound, subject):
        try:
            return reading(
                lambda: constraints_of(subject, bound.output, bound.region, self.sharing, self.input_shape)
            )
        except Unbounded as error:
            raise CertificateError(f"nothing is proved about this model in the region: {error}") from error


def _is_read(multipliers):
    if not isinstance(multipliers, Tensor) or multipliers.dtype != torch.float64:
        return False
    return multipliers.device.type == "cpu" and multipliers.layout == torch.strided


def proved(constraints: Constraints, proposal: Proposal, inner: tuple[float, Tensor]) -> tuple[float, Tensor]:
    """(value, multipliers) that `proves` accepts, as close to the proposal as rounding allows.

    A solver ends on the boundary, where nothing can be proved: its point moves towards one inside. Where the
    outputs are no larger than their rounding errors, only multiples of the inner point are proved.

    Raises:
        ArithmeticError: not even those are proved.
    """
    outer = proposal.square, proposal.multipliers.clamp(min=0)
    if not (0 <= outer[0] <= inner[0] and torch.isfinite(outer[1]).all()):
        outer = inner
    blends = (0.0, *(10.0 ** (k / 2) for k in range(-28, 0)), 1.0)
    points = ([(1 - blend) * ours + blend * theirs for ours, theirs in zip(outer, inner)] for blend in blends)
    multiples = ([16.0**k * part for part in inner] for k in range(1, 61))
    for mixed in itertools.chain(points, multiples):
        value = math.nextafter(math.sqrt(mixed[0]) * (1 + 4 * UNIT_ROUNDOFF), math.inf)
        if proves(constraints, value, mixed[1], caution=2.0):  # another machine sums in another order
            return value, mixed[1]
    raise overflow()


def proves(constraints: Constraints, value: float, multipliers: Tensor, caution: float = 1.0) -> bool:
    """True only if the multipliers show that the Lipschitz constant is at most `value`.

    caution: the margin for rounding, times this.
    """
    if not (torch.isfinite(multipliers).all() and (multipliers >= 0).all() and value > 0):
        return False
    square = math.nextafter(value * value, 0.0)
    M = matrix(constraints, square, multipliers)
    scales = _scales(M)
    if scales is None:
        return False
    scaled = M * (scales[:, None] * scales)
    size, trace = len(M), scaled.diagonal().sum().item()
    factorisation = trace * gamma(size + 3) / (1 - gamma(size + 3)) + 2 * UNIT_ROUNDOFF
    margin = caution * (1.001 * factorisation + _forming(constraints, square, multipliers, scales))
    if not margin < 1:
        return False
    scaled.diagonal().sub_(margin)
    return torch.linalg.cholesky_ex(scaled).info.item() == 0


def _scales(M):
    """Powers of two that bring the diagonal of M to [1/2, 2], or None."""
    diagonal = M.diagonal()
    if not (torch.isfinite(M).all() and (diagonal > 0).all()):
        return None
    scales = torch.exp2(-torch.round(torch.log2(diagonal) / 2))
    return scales if (scales < _SCALES).all() and (scales > 1 / _SCALES).all() else None


def _forming(constraints, square, multipliers, scales):
    """A bound on the norm of what rounding adds to the scaled M."""
    errors = errors_of(constraints, scales)
    spread = constraints.by_layer(multipliers)
    absolute = scales.new_zeros(len(scales))  # M with every term positive, times the scales
    absolute[: constraints.inputs] = square * scales[: constraints.inputs]
    absolute += constraints.C.abs().T @ (constraints.C.abs() @ scales)
    total = _norm(constraints.C * scales) * 2 * errors.C + errors.C**2
    for layer, weights, p_error, q_error in zip(constraints.layers, spread, errors.p, errors.q):
        at = slice(layer.start, layer.stop)
        p, q = layer.p.abs(), layer.q.abs()
        absolute[at] += p.T @ (weights * (q @ scales[at])) + q.T @ (weights * (p @ scales[at]))
        root, steepest = weights.sqrt()[:, None], math.sqrt(weights.max().item())
        p_norm, q_norm = (_norm(root * form * scales[at]) for form in (p, q))
        total += 2 * (p_norm * steepest * q_error + q_norm * steepest * p_error)
        total += 2 * steepest**2 * p_error * q_error
    terms = max((len(layer.p) for layer in constraints.layers), default=0) + len(constraints.C)
    rounded = gamma(terms + 2 * len(constraints.layers) + 8) * (scales * absolute).max().item()
    return _INFLATED * (rounded + total)


@dataclass(frozen=True)
class Errors:
    """Bounds on the Frobenius norms of true minus stored p, q (one a layer) and C, columns scaled."""

    p: list[float]
    q: list[float]
    C: float


def errors_of(constraints: Constraints, scales: Tensor) -> Errors:
    """How far p, q and C may be from those of the true weights.

    With A the stored forms that enter a linear layer, and d the norm of their error, the computed W A is
    within ``|W| d + (gamma_n + 2^-49) ||W| |A||_F``. Where A only names coordinates, nothing is summed.
    """
    error, p_errors, q_errors = 0.0, [], []
    for record in constraints.history:
        if isinstance(record, Product):
            error = _after_product(record, scales, error)
            continue
        low, high, base = record.factors.abs()
        entering = record.entering.rows
        sizes = (entering * scales[: entering.shape[1]]).norm(dim=1)
        p, q, error = (
            _INFLATED * (factor.max().item() * (error + _UNDERFLOW) + UNIT_ROUNDOFF * _rounded(factor, sizes))
            + _UNDERFLOW
            for factor in (low, high, base)
        )
        if len(record.p):
            p_errors.append(p)
            q_errors.append(q)
    return Errors(p_errors, q_errors, error)


def _after_product(record, scales, error):
    weight, entering = record.weight.abs(), record.entering
    columns = scales[: entering.rows.shape[1]]
    if entering.coordinates is not None:
        return _INFLATED * _READ * _norm(weight * columns[entering.coordinates]) + _UNDERFLOW
    sizes = entering.rows.abs() * columns
    local = (gamma(weight.shape[1] + 2) + _READ) * _norm(weight @ sizes) + _UNDERFLOW * (_norm(sizes) + error)
    return _INFLATED * (record.norm * error + local) + _UNDERFLOW


def _rounded(factor, sizes):
    """The norm of factor * sizes over the entries where a product rounds: those that are no power of two."""
    mantissas, _ = torch.frexp(factor)
    return (factor * sizes)[(mantissas != 0.5) & (factor != 0)].norm().item()


def _norm(matrix):
    return matrix.norm().item()


def dual_value(constraints: Constraints, dual: Tensor | None) -> float:
    """A lower bound on the optimum of the program, in the unit of the constant, from a nearly feasible Z."""
    if dual is None:
        return 0.0
    inner = None
    for blend in (0.0, 1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        if blend and inner is None:
            inner = feasible_dual(constraints)
        Z = dual if not blend else (1 - blend) * dual + blend * inner
        value = _proved_dual(constraints, Z)
        if value is not None:
            return value
    return 0.0


def _proved_dual(constraints, Z):
    """The value of Z, or None where Z is not shown to be feasible."""
    Z = (Z + Z.T) / 2
    scales = _scales(Z)
    if scales is None:
        return None
    scaled, stretch = Z * (scales[:, None] * scales), 1 / scales
    size, trace = len(Z), scaled.diagonal().sum().item()
    margin = 1.001 * trace * gamma(size + 3) / (1 - gamma(size + 3)) + 3 * UNIT_ROUNDOFF
    if torch.linalg.cholesky_ex(scaled - margin * torch.eye(size, dtype=Z.dtype, device="cpu")).info.item():
        return None
    errors = errors_of(constraints, stretch)
    norm = math.sqrt(scaled.abs().sum(dim=1).max().item())  # of the square root of the scaled Z
    rounding = gamma(3 * size + len(constraints.C) + 8)
    held = scaled.new_zeros(constraints.multipliers)
    row = 0
    for layer, p_error, q_error in zip(constraints.layers, errors.p, errors.q):
        at = slice(layer.start, layer.stop)
        p, q = layer.p * stretch[at], layer.q * stretch[at]
        part = scaled[at, at]
        value = ((p @ part) * q).sum(dim=1) - rounding * ((p.abs() @ part.abs()) * q.abs()).sum(dim=1)
        images = [(scaled[:, at] @ form.T).norm(dim=0) for form in (p, q)]
        doubt = p_error * images[1] + q_error * images[0]
        value -= _INFLATED * (doubt + p_error * q_error * norm**2)
        held.index_add_(0, constraints.groups[row : row + len(p)], value)
        row += len(p)
    if not (held >= 0).all():
        return None
    C = constraints.C * stretch
    value = ((C @ scaled) * C).sum(dim=1).sum().item()
    lost = rounding * ((C.abs() @ scaled.abs()) * C.abs()).sum(dim=1).sum().item()
    lost += _INFLATED * (2 * errors.C * (C @ scaled).norm().item() + errors.C**2 * norm**2)
    whole = Z.diagonal()[: constraints.inputs].sum().item() * (1 + gamma(size + 8))
    return math.sqrt(max(0.0, (value - lost) / whole)) * (1 - 8 * UNIT_ROUNDOFF)
