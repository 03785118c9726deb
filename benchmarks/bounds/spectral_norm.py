"""Seconds for the largest singular value of one n x n Gaussian matrix, five ways, on this processor.

SVD is `torch.linalg.matrix_norm(ord=2)`, the peer; the Gram and power rows run the bare iterations, without a
proof; the last two are the library's, with the value proved. A value is the median of five runs after one
for warming up. `error` is the signed relative distance to the norm. Chapter: bounds/spectral-norms.
"""

import statistics
import time

import torch

from lipbook.bounds import spectral_norm
from lipbook.norms.spectral import gram_iteration

SEEDS = [0, 1, 2]
SETTINGS = [{"n": n} for n in (64, 128, 256, 512, 1024)]
SMOKE = [{"n": 16}]


def power_iteration(A, steps):
    v = torch.ones(len(A), dtype=A.dtype)
    for _ in range(steps):
        v = A.T @ (A @ v)
        v = v / v.norm()
    return (A @ v).norm().item()


METHODS = {
    "SVD": lambda A: torch.linalg.matrix_norm(A, ord=2).item(),
    "Gram, 5 steps": lambda A: gram_iteration(A, 5),
    "Gram, 10 steps": lambda A: gram_iteration(A, 10),
    "power, 100 steps": lambda A: power_iteration(A, 100),
    "proved, svd": lambda A: spectral_norm(A, "svd").value,
    "proved, gram": lambda A: spectral_norm(A, "gram").value,
}


def median_seconds(function, repeats=5):
    function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def run(setting, seed):
    n = setting["n"]
    A = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    truth = torch.linalg.svdvals(A)[0].item()
    return {
        "seconds": {name: median_seconds(lambda: method(A)) for name, method in METHODS.items()},
        "error": {name: method(A) / truth - 1 for name, method in METHODS.items()},
    }
