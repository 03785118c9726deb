"""Multipliers and a dual matrix that are strictly feasible by construction, in one walk over the layers.

Multipliers: let T > 0 be a quadratic form of the coordinates so far. A layer with the forms v_j, slopes of
half-width r_j and multipliers l_j leaves, once its new coordinates are minimised out,
``T - 2 sum_j l_j (r_j v_j)(r_j v_j)'``. With ``l_j = 1/(4 r_j^2 |V T^-1 V'|)``, V of rows v_j, at least half
of T is left (where a layer shares one multiplier: r_j v_j for v_j, and 1 for r_j). For slopes in [0, 1] these
are the multipliers of ECLipsE-Fast (Xu and Sivaranjani, NeurIPS 2024).

Dual matrix: the covariance of a random increment. Dx has covariance I / inputs, and each activation adds to
the middle slope of its range times v_j an independent noise of variance r_j^2 Var(v_j) / 2.

Chapter: sdp/scaling.
"""

import torch
from torch import Tensor

from lipbook.sdp.constraints import Constraints, Layer, Product

_FAR = 100.0  # in squares
_LEAST = 2.0**-200  # a squared constant for a network that is constant


def feasible_multipliers(constraints: Constraints) -> tuple[float, Tensor]:
    """(square, multipliers) with M >= 0 up to rounding; twice both are strictly feasible.

    The multipliers of one layer are equal where all its slopes have ranges of one width.

    Raises:
        ArithmeticError: numbers overflow.
    """
    form, first = torch.eye(constraints.inputs, dtype=torch.float64, device="cpu"), 0
    weights = torch.zeros(constraints.multipliers, dtype=torch.float64, device="cpu")
    groups = constraints.groups.split([len(layer.p) for layer in constraints.layers])
    shared = constraints.multipliers < len(constraints.groups)
    for number, (layer, group) in enumerate(zip(constraints.layers, groups)):
        form, first = _minimised(form, first, _oldest(constraints, number))
        half = _padded((layer.p + layer.q)[:, : -len(layer.p)] / 2, layer.start - first)
        low, high = layer.factors[:2, layer.free]
        width = torch.ones_like(low) if shared else (high - low) / 2
        largest = _largest_square(half / width[:, None], form)
        if largest == 0:
            raise overflow()
        weights[group] = 1 / (4 * largest * width**2)
        form = _extended(form, layer, first, weights[group])
    form, first = _minimised(form, first, _oldest(constraints, len(constraints.layers)))
    square = max(_largest_square(constraints.C[:, first:], form), _LEAST)
    return square, square * weights


def inner_point(constraints: Constraints) -> tuple[float, Tensor]:
    """(square, multipliers) at which M is positive definite: twice a feasible point.

    Where much passes each layer unchanged, as in deep chains of MaxMin, `feasible_multipliers` lose up to a
    half of T a layer. Multipliers found from the output backwards need not: if c |y|^2 bounds what the output
    needs of the forms y that leave a layer, c g |v|^2 bounds what it needs of those that enter, and what they
    prove is about the product of norms. They are taken where they are far ahead: otherwise the first are
    closer to the middle of what is feasible.

    Raises:
        ArithmeticError: numbers overflow.
    """
    square, multipliers = feasible_multipliers(constraints)
    try:
        other = lifted(constraints, *_from_the_output(constraints))
    except ArithmeticError:
        other = square, multipliers
    if _FAR * other[0] < square:
        square, multipliers = other
    return 2 * square, 2 * multipliers


def _from_the_output(constraints):
    """With slopes of middle m and half-width r, and u = |m| / r or a little more, a neuron of multiplier
    (1 + u) c / 2 turns c e^2 into c g v^2, g = m^2 (u + 2 + 1/u) - (m^2 - r^2)(u + 1)."""
    spare = 1 + 1 / max(1, len(constraints.layers))
    shared = constraints.multipliers < len(constraints.groups)
    needed, weights = 1.0, []
    for record in reversed(constraints.history):
        if isinstance(record, Product):
            needed *= spare * torch.linalg.matrix_norm(record.weight, 2).item() ** 2
            continue
        low, high, base = record.factors
        middle, half = base + (low + high) / 2, (high - low) / 2
        gains = base.square()
        if record.free.any():
            middle, half = middle[record.free], half[record.free]
            lean = (middle.abs() / half).clamp(min=0.05)
            lean = lean.max().expand_as(lean) if shared else lean
            weights.append((1 + lean) / 2 * needed)
            gains[record.free] = middle**2 * (lean + 2 + 1 / lean) - (middle**2 - half**2) * (lean + 1)
        needed *= spare * gains.max().item()
    multipliers = torch.zeros(constraints.multipliers, dtype=torch.float64, device="cpu")
    if weights:
        multipliers[constraints.groups] = torch.cat(weights[::-1])
    return max(1.5 * needed, _LEAST), multipliers


def lifted(constraints: Constraints, square: float, multipliers: Tensor) -> tuple[float, Tensor]:
    """A feasible point of these constraints from one of the same network with other outputs.

    At twice the point the matrix is positive definite.
    """
    form = _matrix_without_outputs(constraints, square, multipliers)
    scale = max(_largest_square(constraints.C, form), _LEAST)
    return scale * square, scale * multipliers


def feasible_dual(constraints: Constraints) -> Tensor:
    """Z > 0 with <Z, E_0'E_0> = 1 and p_j'Z q_j > 0 for every constraint, up to rounding."""
    size = constraints.size
    covariance = torch.zeros(size, size, dtype=torch.float64, device="cpu")
    covariance.diagonal()[: constraints.inputs] = 1 / constraints.inputs
    for layer in constraints.layers:
        old = slice(layer.start, layer.stop - len(layer.p))
        new = slice(layer.stop - len(layer.p), layer.stop)
        forms = layer.q[:, : -len(layer.p)], layer.p[:, : -len(layer.p)]
        middle, half = (forms[0] - forms[1]) / 2, (forms[0] + forms[1]) / 2
        across = middle @ covariance[old, : new.start]
        covariance[new, : new.start] = across
        covariance[: new.start, new] = across.T
        noise = ((half @ covariance[old, old]) * half).sum(dim=1) / 2
        covariance[new, new] = across[:, old] @ middle.T + torch.diag(noise)
    return covariance


def _oldest(constraints, number):
    """The first coordinate that the layers from `number` on, or the outputs, depend on."""
    used = constraints.C.any(dim=0).nonzero()
    starts = [layer.start for layer in constraints.layers[number:]]
    return min([*starts, int(used[0]) if len(used) else constraints.size - 1])


def _minimised(form, first, start):
    """The form after its coordinates before `start` are minimised out, and its first coordinate."""
    count = start - first
    if count <= 0:
        return form, first
    factor = _factor(form[:count, :count])
    across = torch.linalg.solve_triangular(factor, form[:count, count:], upper=False)
    return form[count:, count:] - across.T @ across, start


def _extended(form, layer: Layer, first, weights):
    old, new = len(form), len(layer.p)
    whole = form.new_zeros(old + new, old + new)
    whole[:old, :old] = form
    at = layer.start - first
    half = layer.p.T @ (weights[:, None] * layer.q)
    whole[at:, at:] -= half + half.T
    return whole


def _matrix_without_outputs(constraints, square, multipliers):
    form = torch.zeros(constraints.size, constraints.size, dtype=torch.float64, device="cpu")
    form.diagonal()[: constraints.inputs] = square
    for layer, weights in zip(constraints.layers, constraints.by_layer(multipliers)):
        half = layer.p.T @ (weights[:, None] * layer.q)
        form[layer.start : layer.stop, layer.start : layer.stop] -= half + half.T
    return form


def _padded(rows, before):
    return torch.cat([rows.new_zeros(len(rows), before), rows], dim=1)


def _largest_square(rows, form):
    """The largest eigenvalue of rows form^-1 rows', form > 0."""
    across = torch.linalg.solve_triangular(_factor(form), rows.T, upper=False)
    gram = across.T @ across if across.shape[1] <= across.shape[0] else across @ across.T
    if not torch.isfinite(gram).all():
        raise overflow()
    return torch.linalg.eigvalsh(gram)[-1].item()


def _factor(form):
    factor, info = torch.linalg.cholesky_ex(form)
    if info.item() != 0 or not torch.isfinite(factor).all():
        raise overflow()
    return factor


def overflow() -> ArithmeticError:
    return ArithmeticError(
        "the semidefinite program overflows or loses all digits: its weights are too far apart in size. "
        "Rescale the layers (for ReLU networks W_i -> t W_i, W_{i+1} -> W_{i+1} / t changes nothing)."
    )
