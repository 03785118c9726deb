"""Checks of the exercises of privacy/auditing."""

import math

import torch

from lipbook.exercises.registry import exercise


@exercise("privacy/auditing/1")
def two_numbers_of_a_recursion(pair):
    entering, gradient = (float(number) for number in pair)
    if not abs(entering - 8) <= 5e-3:
        return "the broadcast bias is a vector with b repeated 196 times: what is its norm?"
    if not abs(gradient - 14 * math.sqrt(2)) <= 5e-2:
        return "the gradient of the bias is the sum of the cotangents over 196 positions."
    return None


@exercise("privacy/auditing/2")
def attain_the_bound(attain):
    for seed, (c, P, X, G) in enumerate(((3, 16, 2.0, 0.5), (1, 9, 1.0, 3.0), (8, 784, 0.3, 1.4))):
        b = torch.randn(c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        u, g = attain(b.clone(), P, X, G)
        if tuple(u.shape) != (c, P) or tuple(g.shape) != (c, P):
            return f"for a bias of {c} numbers on {P} positions both have the shape ({c}, {P})."
        if not (abs(u.norm() - X) <= 1e-4 * X and abs(g.norm() - G) <= 1e-4 * G):
            return f"u has norm {u.norm():.4g} and g {g.norm():.4g}: it should be {X} and {G}."
        if not (u + b[:, None]).norm() >= (X + b.norm() * math.sqrt(P)) * (1 - 1e-4):
            return "the norm of u + b can be larger: where does u have to point?"
        if not g.sum(dim=1).norm() >= math.sqrt(P) * G * (1 - 1e-4):
            return "the gradient of the bias, the sum of g over the positions, can be larger."
    return None


@exercise("privacy/auditing/3")
def the_ceiling_of_an_audit(ceiling):
    for r, m, δ in (
        (200, 1000, 1e-5),
        (1, 10, 0.0),
        (3, 3, 0.0),
        (5000, 5000, 1e-9),
        (4, 4, 0.0),
        (9, 9, 0.02),
    ):
        left = 0.05 - m * δ
        best = 0.0
        if left > 0 and left ** (1 / r) > 0.5:
            best = math.log(left ** (1 / r) / (1 - left ** (1 / r)))
        found = float(ceiling(r, m, δ))
        if not abs(found - best) <= 1e-6 * max(1, best):
            return f"for r = {r}, m = {m}, δ = {δ} it gives {found:.4g}, not the end of the refuted interval."
    return None


@exercise("privacy/auditing/4")
def the_noise_that_is_left(pair):
    second, same = (float(number) for number in pair)
    if not abs(second - (1.441**-2 - 0.25) ** -0.5) <= 5e-3:
        return "what adds up is 1 / σ², as if each layer spent a part of it."
    if not abs(same - 1.441 * math.sqrt(2)) <= 5e-3:
        return "that σ is right; for two equal ones 2 / σ² = 1 / 1.441²."
    return None


@exercise("privacy/auditing/5")
def clip_a_mean(clipped):
    for seed, B in enumerate((1, 7, 64)):
        own = 3 * torch.randn(B, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        own[0] = 0
        own[-1] *= 0.01
        for C in (0.5, 4.0, 100.0):
            lengths = own.norm(dim=1, keepdim=True)
            expected = torch.where(lengths > C, own * C / lengths.clamp(min=1e-12), own) / B
            found = clipped(own.clone() / B, C)
            if not torch.isfinite(found).all():
                return "a row of zeros has become something that is not finite."
            if not torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-9):
                return f"with {B} samples and C = {C} it is another gradient: how long is one sample's row?"
    return None


@exercise("privacy/auditing/6")
def a_rule_with_a_bias(pair):
    unequal, equal = (float(number) for number in pair)
    if not abs(unequal - math.sqrt(2.5)) <= 5e-3:
        return "the bias is a weight on a feature that is always 1: the smallest constant decides."
    if not abs(equal - 2) <= 5e-3:
        return "that is right; scaled to norm 1, all three have the same constant."
    return None
