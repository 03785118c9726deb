"""Checks of the exercises of layers/orthogonal-layers."""

import math

import torch

from lipbook.exercises.registry import exercise


def _skew(seed, n, norm, frobenius=False):
    """A random skew matrix of this norm."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(n, n, generator=generator, dtype=torch.float64)
    A = A - A.T
    return norm * A / torch.linalg.matrix_norm(A, "fro" if frobenius else 2)


@exercise("layers/orthogonal-layers/1")
def free_numbers(triple):
    square, tall, reflector = (float(number) for number in triple)
    if square != 2016:
        return "the square matrix: W'W = I is symmetric, so how many equations is it?"
    if tall != 585:
        return "64 x 10: the columns are orthonormal, 10 equations of length 1 and 45 right angles."
    if reflector != 1024:
        return "the reflector: r (n - r)."
    return None


@exercise("layers/orthogonal-layers/3")
def quintic(largest):
    largest = float(largest)
    if not abs(largest - 1) <= 1e-5:
        return f"at {largest:.6f}: where does p turn back? Look at the sign of p' = 15/8 (1 - s^2)^2."
    return None


@exercise("layers/orthogonal-layers/4")
def cayley_backwards(skew_of):
    for seed, n, norm in ((0, 2, 0.5), (1, 5, 3.0), (2, 8, 10.0)):
        A, one = _skew(seed, n, norm), torch.eye(n, dtype=torch.float64)
        found = skew_of(torch.linalg.solve(one + A, one - A))
        if found.shape != A.shape:
            return f"A has the shape {tuple(A.shape)}, not {tuple(found.shape)}."
        if not torch.allclose(found, A, atol=1e-8):
            return "the Cayley transform of your A is another matrix: solve Q (I + A) = I - A for A."
    return None


@exercise("layers/orthogonal-layers/6")
def divided_out(safe_exponential):
    cases = [(seed, n, norm) for seed, n in ((0, 2), (1, 3), (2, 10)) for norm in (0.0, 0.3, 1.0, 2.5, 6.0)]
    for seed, n, norm in cases:
        A = _skew(seed, n, norm, frobenius=True)
        result = safe_exponential(A)
        largest = torch.linalg.matrix_norm(result, 2).item()
        where = f"for a {n} x {n} matrix of Frobenius norm {norm:g}"
        if not largest <= 1 + 1e-14:
            return f"{where} the norm is 1 + {largest - 1:.1e}: divide by more, and by what is certain."
        if norm <= 1 and largest < 0.999:
            return f"{where} the norm is {largest:.4f}: that is more than 0.1 % below 1."
        if norm <= 1 and not torch.allclose(result, torch.linalg.matrix_exp(A), atol=1e-3):
            return f"{where} the result is not near the exponential."
        if not math.isfinite(largest) or result.shape != A.shape:
            return f"{where} the result is no matrix of that shape, or not finite."
    return None


@exercise("layers/orthogonal-layers/7")
def reflections(triple):
    rotation, negative, shift = (float(number) for number in triple)
    if rotation != 2:
        return "the rotation: two mirrors at 60 degrees, whatever the dimension."
    if negative != 4:
        return "-I: which vectors does it leave where they are?"
    if shift != 4:
        return "the shift: which vectors does it leave where they are?"
    return None
