"""Checks of the exercises of sdp/lipsdp."""

import math

import torch

from lipbook.exercises.registry import exercise

SIZES = ((2, 5, 1), (3, 6, 2), (4, 3, 3))
RANGES = ((0.0, 1.0), (-0.5, 1.5), (0.25, 1.0), (-1.0, 1.0), (-2.0, 0.5), (0.5, 3.0))


def _normal(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _weights(seed, *sizes):
    return _normal(seed, *zip(sizes[1:], sizes))


def _matrix(square, multipliers, weights, a=0.0, b=1.0):
    """M from its quadratic form, entry by entry: no block is written down."""
    sizes = [W.shape[1] for W in weights]
    z = torch.eye(sum(sizes), dtype=torch.float64).split(sizes)
    M = square * z[0].T @ z[0] - (weights[-1] @ z[-1]).T @ (weights[-1] @ z[-1])
    for W, e, before, λ in zip(weights[:-1], z[1:], z, multipliers.split(sizes[1:])):
        p, q = e - a * (W @ before), b * (W @ before) - e
        M = M - p.T @ (λ[:, None] * q) - q.T @ (λ[:, None] * p)
    return M


def _least_eigenvalue(M):
    return torch.linalg.eigvalsh((M + M.T) / 2)[0].item()


@exercise("sdp/lipsdp/1")
def the_identity(triple):
    product, lipsdp, truth = (float(number) for number in triple)
    if truth != 1:
        return "relu(x) - relu(-x) is x: what is its constant?"
    if not abs(product - 2) <= 1e-6:
        return "the product is that of the norms of a column and of a row of two entries."
    if not abs(lipsdp - 2) <= 1e-6:
        return "the slopes of the two units are free, each for itself: which pattern is the steepest?"
    return None


@exercise("sdp/lipsdp/2")
def the_best_multiplier(best):
    for w in (0.5, -2.0):
        for a, b in RANGES:
            λ = float(best(w, a, b))
            if not math.isfinite(λ):
                return f"a multiplier is a finite number, and yours is {λ} for w = {w}, slopes in [{a}, {b}]."
            square = (w * max(abs(a), abs(b))) ** 2
            M = _matrix(square, torch.tensor([λ], dtype=torch.float64), _scalar(w), a, b)
            if λ < 0 or _least_eigenvalue(M) < -1e-9 * max(1.0, square, λ):
                return f"{λ:.6g} does not prove {math.sqrt(square):g} for w = {w} and slopes in [{a}, {b}]."
    return None


def _scalar(w):
    return [torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), w, dtype=torch.float64)]


@exercise("sdp/lipsdp/3")
def slopes_between_any_two_numbers(matrix):
    for seed, sizes in enumerate(SIZES):
        W1, W2 = _weights(seed, *sizes)
        λ = torch.arange(1, len(W1) + 1, dtype=torch.float64) / 3
        for a, b in RANGES:
            M, target = matrix(7.0, λ, W1, W2, a, b), _matrix(7.0, λ, [W1, W2], a, b)
            if tuple(M.shape) != tuple(target.shape):
                return f"its shape is {tuple(M.shape)} instead of {tuple(target.shape)}."
            if not torch.allclose(M, target, rtol=1e-9, atol=1e-9):
                row, column = ((M - target).abs() == (M - target).abs().max()).nonzero()[0].tolist()
                return f"for slopes in [{a}, {b}] the entry ({row}, {column}) is wrong: multiply out p and q."
    return None


@exercise("sdp/lipsdp/5")
def the_least_bound(least):
    for seed, sizes in enumerate((*SIZES, (3, 4, 4, 2))):
        weights = _weights(seed, *sizes)
        (noise,) = _normal(seed + 10, (sum(sizes[1:-1]),))
        feasible = torch.cat(_product_multipliers(weights)) * (1 + 0.01 * noise.abs())
        for λ in (1.05 * feasible, 3 * feasible):
            if math.isinf(float(least(λ, weights))):
                return "it refuses multipliers that prove a bound: which block has to be positive definite?"
            square = float(least(λ, weights)) ** 2
            eigenvalue = _least_eigenvalue(_matrix(square * (1 + 1e-7), λ, weights))
            if eigenvalue < -1e-9 * square:
                return f"{math.sqrt(square):.6g} is too small: M has the eigenvalue {eigenvalue:.3g}."
            if _least_eigenvalue(_matrix(square * (1 - 1e-4), λ, weights)) > 0:
                return (
                    f"{math.sqrt(square):.6g} is not the least: a smaller value leaves M positive definite."
                )
        if not math.isinf(float(least(0.01 * feasible, weights))):
            return "some multipliers prove nothing, however large the bound: return infinity for them."
    return None


def _product_multipliers(weights):
    """One tensor a layer: those that prove the product of the norms."""
    c, found = 1.0, []
    for W in reversed(weights[1:]):
        c = c * torch.linalg.matrix_norm(W, 2).item() ** 2
        found.insert(0, torch.full((W.shape[1],), c, dtype=torch.float64))
    return found


@exercise("sdp/lipsdp/6")
def rescaled_units(rescaled):
    for seed, sizes in enumerate(SIZES):
        W1, W2 = _weights(seed, *sizes)
        λ = torch.cat(_product_multipliers([W1, W2]))
        square = math.prod(torch.linalg.matrix_norm(W, 2).item() ** 2 for W in (W1, W2))
        if (advice := _not_rescaled(rescaled, λ, square, W1, W2)) is not None:
            return advice
    outer = torch.arange(1, 5, dtype=torch.float64)  # four networks of one unit: no other multipliers prove 4
    return _not_rescaled(rescaled, outer**2, 16.0, (4 / outer).diag(), outer.diag())


def _not_rescaled(rescaled, λ, square, W1, W2):
    δ = torch.linspace(0.25, 4, len(W1), dtype=torch.float64)
    moved = rescaled(λ.clone(), δ.clone())
    M = _matrix(square * (1 + 1e-6), moved, [δ[:, None] * W1, W2 / δ])
    scale = M.diagonal().abs().clamp(min=1e-12).rsqrt()
    if not _least_eigenvalue(scale[:, None] * M * scale) >= -1e-7:
        return f"with δ from {δ[0]:g} to {δ[-1]:g} they do not prove what λ proved: substitute e = e' / δ."
    return None
