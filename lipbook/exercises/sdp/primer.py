"""Checks of the exercises of sdp/primer."""

from itertools import combinations

import numpy as np

from lipbook.exercises.registry import exercise


@exercise("sdp/primer/1")
def largest_opposition(t):
    if abs(float(t) - 1 / 9) < 1e-9:
        return None
    return "the smallest eigenvalue of (1 + t) I - t 11' must be at least 0: try the vector of ones."


def _semidefinite_and_not():
    """Integer matrices: one for each minor that alone is negative, R'R, and R'R - ww'.

    (k - 1) I - 11' of size k, on the rows and columns `subset`, has one negative principal minor.
    R'R - ww' is not positive semidefinite where Rv = 0 and w.v is not 0.
    """
    rng = np.random.default_rng(0)
    yield np.zeros((3, 3), dtype=int), True
    for n in (2, 3, 4):
        for subset in (s for k in range(1, n + 1) for s in combinations(range(n), k)):
            matrix = np.zeros((n, n), dtype=int)
            matrix[np.ix_(subset, subset)] = (len(subset) - 1) * np.eye(len(subset), dtype=int) - 1
            yield matrix, False
        for _ in range(20):
            R = rng.integers(-2, 3, size=(n, n))
            R[:, 0] = R[:, 1:] @ rng.integers(-1, 2, size=n - 1)  # so that R is singular
            yield R.T @ R, True
            v = np.linalg.svd(R)[2][-1]
            w = rng.integers(-2, 3, size=n)
            if abs(w @ v) > 1e-6:
                yield R.T @ R - np.outer(w, w), False


@exercise("sdp/primer/2")
def by_minors(function):
    for matrix, semidefinite in _semidefinite_and_not():
        if bool(function(matrix)) != semidefinite:
            verdict = "is" if semidefinite else "is not"
            return (
                f"{matrix.tolist()} {verdict} positive semidefinite: are all principal minors read, rounded?"
            )
    return None


@exercise("sdp/primer/3")
def both_sides(both):
    for a, c in ((2.0, 1.0), (3.0, 2.0), (-1.5, 0.5), (0.7, -4.0)):
        rho, multiplier, dual = both(a, c)
        rho, multiplier, dual = float(rho), float(multiplier), np.asarray(dual, dtype=float)
        if not np.isfinite([rho, multiplier]).all():
            return f"rho and lambda are finite numbers, not {rho} and {multiplier}."
        if dual.shape != (2, 2) or not np.allclose(dual, dual.T):
            return f"the dual matrix is symmetric, 2 x 2, not of shape {dual.shape}."
        primal = np.array([[rho, -a * multiplier], [-a * multiplier, 2 * multiplier - c**2]])
        where = f"at a = {a:g}, c = {c:g}"
        if multiplier < 0 or np.linalg.eigvalsh(primal)[0] < -1e-9 * (1 + rho):
            return f"{where} M(rho, lambda) is not positive semidefinite, or lambda is negative."
        if np.linalg.eigvalsh(dual)[0] < -1e-9 * (1 + dual.trace()) or abs(dual[0, 0] - 1) > 1e-9:
            return f"{where} Z is not positive semidefinite with a 1 at the top left."
        if a * dual[0, 1] - dual[1, 1] < -1e-9 * (1 + dual.trace()):
            return f"{where} <Z, B> is negative."
        if rho > c**2 * dual[1, 1] + 1e-9 * (1 + rho):
            return (
                f"{where} rho is {rho:g} and <Z, C'C> {c**2 * dual[1, 1]:g}: both are valid, and they differ."
            )
    return None


@exercise("sdp/primer/4")
def smallest_norm(function):
    rng = np.random.default_rng(1)
    for shape in ((3, 3), (4, 2), (2, 5)):
        A, B = rng.standard_normal((2, *shape))
        low, high = -1e2, 1e2
        for _ in range(200):  # ternary search: the norm is convex in x
            left, right = low + (high - low) / 3, high - (high - low) / 3
            if np.linalg.norm(A + left * B, 2) < np.linalg.norm(A + right * B, 2):
                high = right
            else:
                low = left
        truth, value = np.linalg.norm(A + low * B, 2), float(function(A, B))
        if not abs(value - truth) <= 1e-4 * truth:
            return f"{value:.4f} for matrices of shape {shape}: a search finds {truth:.4f}."
    return None


@exercise("sdp/primer/5")
def gap(pair):
    primal, dual = (float(value) for value in pair)
    if not abs(primal) <= 1e-9:
        return "the primal: what does a zero on the diagonal do to its row?"
    if not abs(dual + 1) <= 1e-9:
        return "the dual: Z_22 = 0 forces Z_12 = 0, so what is left of 2 Z_12 + Z_33 = 1?"
    return None
