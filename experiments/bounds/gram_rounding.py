"""How far Gram iteration, run as written and without a margin, falls below the norm that it bounds.

Each value is the smallest of b_k / sigma_1 - 1 over the steps k = 0 ... 12, for one Gaussian n x n matrix.
The truth is computed in a precision that the iteration does not have: float64 for a float32 iteration, 40
digits for a float64 one. Chapter: bounds/spectral-norms.
"""

import mpmath
import torch

SEEDS = list(range(100))
SETTINGS = [{"dtype": "float32", "n": n} for n in (8, 32, 128)] + [{"dtype": "float64", "n": 8}]
SMOKE = [{"dtype": "float32", "n": 8}, {"dtype": "float64", "n": 8}]
STEPS = 12


def gram_values(A, steps):
    """b_0 ... b_steps of the textbook iteration in the dtype of A: divide, square, undo by logarithms."""
    ell, G, values = torch.zeros((), dtype=A.dtype), A, []
    for k in range(steps + 1):
        r = torch.linalg.norm(G)
        values.append(torch.exp((torch.log(r) + ell) / 2**k).item())
        G, ell = (G / r).T @ (G / r), 2 * (ell + torch.log(r))
    return values


def run(setting, seed):
    n, dtype = setting["n"], getattr(torch, setting["dtype"])
    A = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if dtype == torch.float32:
        truth = torch.linalg.svdvals(A.double())[0].item()
        dips = [b / truth - 1 for b in gram_values(A, STEPS)]
    else:
        with mpmath.workdps(40):
            truth = max(mpmath.svd_r(mpmath.matrix(A.tolist()), compute_uv=False))
            dips = [float(mpmath.mpf(b) / truth - 1) for b in gram_values(A, STEPS)]
    return {"smallest": min(dips)}
