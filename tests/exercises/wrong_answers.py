"""Three wrong answers to each exercise, of the kind that a reader may give: `check` must refuse them all."""

import torch


def _schatten(A, k):
    p = 2 ** (k + 1)
    return torch.linalg.svdvals(A).pow(p).sum().pow(1 / p)


def _unscaled(A, k):
    G = A
    for _ in range(k):
        G = G.T @ G
    return G.norm() ** (1 / 2**k)


def _gradient(A, k, power):
    U, σ, Vt = torch.linalg.svd(A, full_matrices=False)
    return U @ torch.diag((σ / _schatten(A, k)) ** power) @ Vt


WRONG = {
    "bounds/spectral-norms/1": [10, 8, 558],
    "bounds/spectral-norms/2": [9, 1, 9**0.25],
    "bounds/spectral-norms/3": [
        lambda A, k: (0.0, _schatten(A, k).item()),
        lambda A, k: (_schatten(A, k).item() * max(A.shape) ** -(2.0 ** -(k + 1)), _schatten(A, k).item()),
        lambda A, k: (_schatten(A, k).item() * min(A.shape) ** -(2.0**-k), _schatten(A, k).item()),
    ],
    "bounds/spectral-norms/4": [
        _unscaled,
        _schatten,
        lambda A, k: A.abs().max() * _unscaled(A / A.abs().max(), k),
    ],
    "bounds/spectral-norms/5": [
        lambda A, v: ((A @ v).norm() / v.norm()).item(),
        lambda A, v: 0.99 * ((A @ v).norm() / v.norm()).item(),
        lambda A, v: torch.linalg.svdvals(A)[0].item() * (1 + 1e-15),
    ],
    "bounds/spectral-norms/6": [
        lambda A, k: _gradient(A, k, 2 ** (k + 1)),
        lambda A, k: _gradient(A, k, 2 ** (k + 1) - 1).T,
        lambda A, k: _gradient(A, k, 2**k - 1),
    ],
}
