"""Checks of the exercises of bounds/spectral-norms."""

from fractions import Fraction

import torch

from lipbook.bounds import spectral_norm
from lipbook.exercises.registry import exercise

SHAPES = [(5, 5), (9, 4), (3, 8), (1, 6)]


def _matrices():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in SHAPES]


def _close(value, target, tolerance=1e-9):
    return abs(float(value) - target) <= tolerance * abs(target)


@exercise("bounds/spectral-norms/1")
def steps_for_one_percent(steps):
    if steps == 9:
        return None
    if steps == 10:
        return "10 steps are enough, but one fewer is too: the order after k steps is 2^(k+1)."
    return "solve 256^(1/p) <= 1.01 for the order p, then take the first k with 2^(k+1) >= p."


@exercise("bounds/spectral-norms/2")
def stacked_copies(factor):
    return None if _close(factor, 3) else "|Bx|^2 is a sum of nine equal terms: what is |Bx| / |Ax|?"


@exercise("bounds/spectral-norms/3")
def bracket_from_gram(bracket):
    for matrix in _matrices():
        truth, where = spectral_norm(matrix).value, f"a {tuple(matrix.shape)} matrix"
        for k in (0, 1, 3, 6):
            lower, upper = (float(end) for end in bracket(matrix, k))
            if not lower <= truth * (1 + 1e-12) or not upper >= truth * (1 - 1e-12):
                return f"at k = {k} [{lower:.6g}, {upper:.6g}] misses the norm {truth:.6g} of {where}."
            if not _close(lower * min(matrix.shape) ** 2.0 ** -(k + 1), upper):
                return f"wrong width at k = {k} on {where}: the ratio is min(m, n)^(1/p), p = 2^(k+1)."
    return None


@exercise("bounds/spectral-norms/4")
def gram_at_any_scale(gram):
    if float(gram(torch.zeros(3, 3, dtype=torch.float64), 3)) != 0:
        return "the norm of the zero matrix is 0, not a division by zero."
    for matrix in _matrices():
        for scale in (1.0, 1e-200, 1e200):
            for k in (0, 2, 5):
                p = 2.0 ** (k + 1)
                sigma = torch.linalg.svdvals(matrix)
                value = float(gram(matrix * scale, k)) / scale
                if not _close(value, sigma.pow(p).sum().item() ** (1 / p)):
                    return f"off for entries near {scale:g} at k = {k}: divide by the largest entry first."
    return None


@exercise("bounds/spectral-norms/5")
def a_lower_bound_with_its_rounding(below):
    generator = torch.Generator().manual_seed(0)
    for trial in range(40):
        # The norm of x y' is |x| |y|, the root of an integer: fractions compare with it exactly.
        x, y = torch.randint(1, 100, (2, 6), generator=generator)
        matrix, vector = torch.outer(x, y).double(), y.double() / y.double().norm()
        value, square = Fraction(float(below(matrix, vector))), int(x @ x) * int(y @ y)
        if value**2 > square:
            return f"the value lies above the norm of matrix {trial}, of rank one: subtract the rounding."
        if value**2 < square * (1 - Fraction(1, 10**12)):
            return "far below |Av| / |v|: a margin of a few n u is enough."
    return None


@exercise("bounds/spectral-norms/6")
def gradient_of_gram(gradient):
    for matrix in _matrices():
        for k in (0, 1, 4):
            leaf = matrix.clone().requires_grad_()
            p = 2.0 ** (k + 1)
            torch.linalg.svdvals(leaf).pow(p).sum().pow(1 / p).backward()
            answer, shape = gradient(matrix, k), tuple(matrix.shape)
            if tuple(answer.shape) != shape:
                return f"the gradient has shape {shape}, not {tuple(answer.shape)}: use full_matrices=False."
            if not torch.allclose(answer, leaf.grad, rtol=1e-7, atol=1e-9):
                return f"off at k = {k}: at k = 0 it is A / |A|_F; which power of sigma_i / b gives that?"
    return None
