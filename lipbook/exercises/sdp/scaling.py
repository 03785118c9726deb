"""Checks of the exercises of sdp/scaling."""

import math

import torch
from torch import Tensor

from lipbook.exercises.registry import exercise


def _close(value, target, tolerance=1e-6):
    return abs(float(value) - target) <= tolerance * abs(target)


@exercise("sdp/scaling/1")
def the_bands(pair):
    rows, entries = (float(number) for number in pair)
    if rows != 340:
        return "z holds the increment of the input and of every hidden layer, and not of the output."
    if entries != 56208:
        return "add the squares of the block sizes, and twice each product of two neighbouring ones."
    return None


@exercise("sdp/scaling/2")
def two_neurons(pair):
    same, opposite = (float(number) for number in pair)
    if not _close(same, 2, tolerance=1e-4):
        return "for (1, 1): what is the smaller eigenvalue of X_1, and which vector belongs to it?"
    if not _close(opposite, math.sqrt(2), tolerance=1e-4):
        return "for (1, -1): W_2' is an eigenvector of X_1; take the root of rho at the end."
    return None


@exercise("sdp/scaling/3")
def any_slopes(half):
    generator = torch.Generator().manual_seed(0)
    for a, b in ((0.0, 1.0), (-1.0, 1.0), (0.5, 0.75), (-0.1, 1.1)):
        F, V = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (5, 3))
        T = F.T @ F + torch.eye(5, dtype=torch.float64)
        eigenvalues = torch.linalg.eigvals(torch.linalg.solve(T, V.T @ V)).real
        value, target = float(half(T, V, a, b)), 1 / (float(eigenvalues.max()) * (b - a) ** 2)
        if not _close(value, target):
            return f"{value:.6g} instead of {target:.6g} for slopes in [{a}, {b}]."
    return None


@exercise("sdp/scaling/4")
def shared_multipliers(shared_schur):
    generator = torch.Generator().manual_seed(0)
    for groups in ([0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 2, 3]):
        groups = torch.tensor(groups)
        P, Q = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
        S, Z = (A @ A.T for A in torch.randn(2, 6, 6, generator=generator, dtype=torch.float64))
        target = _by_definition(P, Q, S, Z, groups)
        answer = shared_schur(P.clone(), Q.clone(), S.clone(), Z.clone(), groups.clone())
        if not isinstance(answer, Tensor) or answer.shape != target.shape:
            return f"it must return a tensor with one row and one column a group, {tuple(target.shape)}."
        if not torch.allclose(answer, target, rtol=1e-8, atol=1e-8 * target.abs().max().item()):
            return f"some entries are wrong for the groups {groups.tolist()}."
    return None


def _by_definition(P, Q, S, Z, groups):
    count = int(groups.max()) + 1
    matrices = torch.zeros(count, P.shape[1], P.shape[1], dtype=P.dtype)
    for p, q, group in zip(P, Q, groups.tolist()):
        matrices[group] += torch.outer(p, q) + torch.outer(q, p)
    return torch.stack([torch.stack([(B * (S @ K @ Z)).sum() for K in matrices]) for B in matrices])


@exercise("sdp/scaling/5")
def one_knob(tuned):
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-2, 1.0, 1e2):
        W1, W2 = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((5, 4), (2, 5)))
        ratios = scale * (0.5 + torch.rand(5, generator=generator, dtype=torch.float64)) / 20
        value = float(tuned(lambda trial: _one_layer(W1, W2, trial), ratios.clone()))
        target = _least(W1, W2, ratios)
        if value < target * (1 - 1e-5):
            return f"{value:.6g} is below every value of `proved` along this line, {target:.6g}."
        if value > target * (1 + 1e-3):
            return f"{value:.6g} instead of {target:.6g}: let t vary over several powers of ten."
    return None


def _one_layer(W1, W2, multipliers):
    X = 2 * torch.diag(multipliers) - multipliers[:, None] * (W1 @ W1.T) * multipliers
    torch.linalg.cholesky(X)
    return torch.linalg.eigvalsh(W2 @ torch.linalg.solve(X, W2.T))[-1]


def _least(W1, W2, ratios):
    """The least value over a fine grid of t, below the t at which X is singular."""
    root = ratios.sqrt()
    end = 2 / float(torch.linalg.eigvalsh(root[:, None] * (W1 @ W1.T) * root)[-1])
    grid = end * (torch.arange(1, 4000) / 4000)
    return min(float(_one_layer(W1, W2, t * ratios)) for t in grid.tolist())
