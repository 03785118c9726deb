"""Checks of the exercises of layers/direct-parameterizations."""

import math

import torch

from lipbook.exercises.registry import exercise

SLOPES = ((-1.0, 1.0), (0.1, 1.0), (-0.5, 2.0), (0.5, 0.75))
SHAPES = ((2, 3, 4), (4, 3, 2), (3, 5, 3))  # inputs, hidden units, outputs


def _normal(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _norm(A):
    return torch.linalg.matrix_norm(A, 2).item()


def _least_eigenvalue(A):
    return torch.linalg.eigvalsh((A + A.T) / 2)[0].item()


def _agree(A, B):
    return tuple(A.shape) == tuple(B.shape) and torch.allclose(A.double(), B, rtol=1e-9, atol=1e-9)


@exercise("layers/direct-parameterizations/1")
def one_unit(triple):
    t, determinant, constant = (float(number) for number in triple)
    if not abs(t - 1 / 25) <= 1e-6:
        return "the sum over j has one term: the square of the length of U."
    if not abs(determinant + 1) <= 1e-9:
        return "the Jacobian is I - 2 u u' with a unit vector u: which eigenvalues has it?"
    if not abs(constant - 1) <= 1e-9:
        return "with the unit off the block is the identity, and with it on a reflection."
    return None


@exercise("layers/direct-parameterizations/2")
def scale_without_division_by_zero(scale):
    for seed, shape in enumerate(((3, 4), (6, 2), (5, 5))):
        (V,) = _normal(seed, shape)
        for size in (1.0, 1e-3, 1e-6):
            for ε in (1e-3, 1e-9):
                d = scale(size * V, ε)
                if tuple(d.shape) != (shape[1],) or not d.isfinite().all() or (d <= 0).any():
                    return f"it should give {shape[1]} positive numbers for a matrix of shape {shape}."
                if _norm(size * V * d) > 1 + 1e-9:
                    return (
                        f"with entries of size {size:g} and ε = {ε:g} the norm is {_norm(size * V * d):.4g}."
                    )
        exact = (V.T @ V).abs().sum(dim=0).rsqrt()
        if not torch.allclose(scale(V, 1e-14), exact, rtol=1e-4):
            return "for a tiny ε it should give AOL's numbers."
        V[:, 0] = 0
        if not scale(V, 1e-6).isfinite().all():
            return "a column of zeros gives a number that is not finite."
    return None


@exercise("layers/direct-parameterizations/3")
def slopes_between_any_two_numbers(absorb):
    for seed, (n, m, o) in enumerate(SHAPES):
        H, G, W, b, x = _normal(seed, (o, n), (o, m), (m, n), (m,), (n, 7))
        for α, β in SLOPES:
            skip, branch, inner = absorb(H.clone(), G.clone(), W.clone(), α, β)
            v, w = W @ x + b[:, None], inner @ x + b[:, None]
            target = H @ x + G @ (α * v + (β - α) * v.relu())
            found = skip @ x + branch @ w.relu()
            if tuple(found.shape) != tuple(target.shape):
                return "the three matrices do not have the shapes of H, G and W."
            apart = (found - target) - (found - target)[:, :1]
            if not apart.abs().max() < 1e-9:
                return f"with slopes in [{α}, {β}] it is another function, by more than a constant vector."
    return None


@exercise("layers/direct-parameterizations/4")
def maxmin_as_a_block(answer):
    H, G, W, λ = (torch.as_tensor(part).double() for part in answer)
    shapes = [tuple(part.shape) for part in (H, G, W, λ)]
    if shapes != [(2, 2), (2, 1), (1, 2), (1,)]:
        return f"the shapes are {shapes}: H is (2, 2), G (2, 1), W (1, 2) and λ (1,)."
    (x,) = _normal(0, (50, 2))
    y = x @ H.T + (x @ W.T).relu() @ G.T
    if not torch.allclose(y, torch.stack([x.amax(dim=1), x.amin(dim=1)], dim=1)):
        return "the block is not MaxMin: the larger number comes first."
    K = H.T @ G + W.T * λ
    one = torch.eye(2, dtype=torch.float64)
    M = torch.cat([torch.cat([one - H.T @ H, -K], dim=1), torch.cat([-K.T, 2 * λ.diag() - G.T @ G], dim=1)])
    if _least_eigenvalue(M) < -1e-5:  # room for the rounding of float32
        return f"this multiplier does not prove it: M has the eigenvalue {_least_eigenvalue(M):.4f}."
    return None


@exercise("layers/direct-parameterizations/5")
def the_longest_step(longest):
    for seed, shape in enumerate(((4, 6), (6, 4), (5, 5))):
        (U,) = _normal(seed, shape)
        t, T = longest(U)
        if not abs(float(t) * _norm(U) ** 2 - 1) <= 1e-6:
            return "t is the largest number with t UU' at most I."
        dominance = 1 / (U @ U.T).abs().sum(dim=1)
        if tuple(T.shape) != (shape[0],) or (dominance * (1 - 1e-9) > T).any():
            return "T should be a vector, nowhere shorter than SLL's with q = 1."
        factors = T / dominance
        if not torch.allclose(factors, factors[0].expand(len(factors)), rtol=1e-6):
            return "multiply SLL's T by one factor."
        reach = _norm(T.sqrt()[:, None] * U)
        if not abs(reach - 1) <= 1e-6:
            return f"the norm of T^(1/2) U is {reach:.4f}, and it may be 1 and no more."
    return None


@exercise("layers/direct-parameterizations/7")
def one_pivot_then_the_other(pivots):
    for seed, (n, m, o) in enumerate(SHAPES):
        H, G, W, λ = _normal(seed, (o, n), (o, m), (m, n), (m,))
        λ = λ.abs() + _norm(G) ** 2
        for L in (1.0, 2.5):
            D1, D2 = pivots(H, G, W, λ, L)
            if tuple(D1.shape) != (n, n) or tuple(D2.shape) != (m, m):
                return f"with {n} inputs and {m} units the pivots are {n} x {n} and {m} x {m}, in this order."
            if not _agree(D2, 2 * λ.diag() - G.T @ G):
                return "the second pivot is the lower block of M as it stands."
            for x, e in zip(*_normal(seed + 10, (5, n), (5, m)), strict=True):
                # The form at (x, e* + e), with the best e*, is x'D1 x + e'D2 e.
                best = torch.linalg.solve(D2, (H.T @ G + W.T * λ).T @ x)
                form = _form(H, G, W, λ, L, x, best + e)
                if not math.isclose(form, (x @ D1 @ x + e @ D2 @ e).item(), rel_tol=1e-7, abs_tol=1e-7):
                    return "the two pivots do not add up to the form of M."
    return None


def _form(H, G, W, λ, L, x, e):
    """The quadratic form of M, from increments and not from blocks."""
    output = H @ x + G @ e
    return (L**2 * x @ x - output @ output - 2 * (λ * e) @ (W @ x - e)).item()
