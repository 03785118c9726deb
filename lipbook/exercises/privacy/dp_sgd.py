"""Checks of the exercises of privacy/dp-sgd."""

import math

import torch

from lipbook.exercises.registry import exercise
from lipbook.privacy import epsilon


@exercise("privacy/dp-sgd/1")
def the_noise_that_is_seen(pair):
    first, second = (float(number) for number in pair)
    if not math.isclose(first, 0.0012, rel_tol=1e-3):
        return "the noise on the sum is σ C; the sum is divided by q N."
    if not math.isclose(second, 0.0006, rel_tol=1e-3):
        return "with q = 0.02 the divisor q N is another one, and the noise on the sum is the same."
    return None


@exercise("privacy/dp-sgd/2")
def a_robust_mean(still):
    for seed, n in enumerate((1, 3, 11, 51)):
        x = 4 * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 2
        for C in (1e-3, 0.5, 3.0, 100.0):
            θ = float(still(x.clone(), C))
            below, above = ((θ + shift - x).clamp(-C, C).mean().item() for shift in (-1e-5, 1e-5))
            if not below <= 0 <= above:
                return f"with {n} records and C = {C} the mean clipped gradient does not vanish at {θ:.6g}."
    return None


@exercise("privacy/dp-sgd/3")
def coins(pair):
    ε, δ = (float(number) for number in pair)
    if not math.isclose(ε, math.log(1 + 0.01 * (math.e - 1)), rel_tol=5e-3):
        return "e^ε = 1 + q (e^ε0 - 1), with ε0 = 1."
    if not math.isclose(δ, 1e-7, rel_tol=1e-6):
        return "δ is multiplied by q."
    return None


@exercise("privacy/dp-sgd/4")
def the_best_order(renyi_epsilon):
    for σ, T, δ in ((1.0, 1, 1e-5), (5.0, 100, 1e-6), (0.7, 3, 1e-2), (40.0, 200, 1e-9)):
        orders = torch.logspace(-6, 6, 400_001, dtype=torch.float64)
        expected = (T * (orders + 1) / (2 * σ**2) + math.log(1 / δ) / orders).min().item()
        found = float(renyi_epsilon(σ, T, δ))
        if found < expected * (1 - 1e-6):
            return f"at σ = {σ}, T = {T}, δ = {δ} no order gives such a small ε: {found:.5g}."
        if found > expected * (1 + 1e-6):
            return f"at σ = {σ}, T = {T}, δ = {δ} another order gives a smaller ε than {found:.5g}."
    return None


@exercise("privacy/dp-sgd/5")
def clipping_by_ghosts(factors):
    for seed, (n, sizes) in enumerate(((7, (5, 4, 3)), (1, (2, 2)), (30, (10, 3, 6, 2)))):
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        inputs = [draw(n, size) for size in sizes[:-1]]
        own = [draw(n, size) for size in sizes[1:]]
        gradients = [
            torch.cat([torch.einsum("no,ni->noi", g, x).flatten(1), g], 1) for x, g in zip(inputs, own)
        ]
        norms = torch.cat(gradients, 1).norm(dim=1)
        for C in (0.1, norms.median().item(), 1e3):
            found = torch.as_tensor(factors([x.clone() for x in inputs], [g / n for g in own], C))
            if tuple(found.shape) != (n,):
                return f"it should give one factor for each of the {n} samples."
            if (found > 1 + 1e-12).any():
                return "a gradient that is short enough is left as it is."
            if not torch.allclose(found.double(), (C / norms).clamp(max=1), rtol=1e-6):
                return f"with {n} samples and C = {C:.3g} the clipped gradients do not have the right norms."
    return None


@exercise("privacy/dp-sgd/6")
def how_far_does_it_go(pair):
    for steps, method in zip(pair, ("pld", "rdp"), strict=True):
        if int(steps) != steps or steps < 1:
            return f"a number of steps is a whole number, at least 1, not {steps}."
        if epsilon(1.0, 0.01, int(steps), 1e-5, method) > 2:
            return f"{steps} steps cost more than 2 by {method!r}."
        if epsilon(1.0, 0.01, int(steps) + 1, 1e-5, method) <= 2:
            return f"one more than {steps} steps still costs at most 2 by {method!r}."
    return None


@exercise("privacy/dp-sgd/7")
def noise_where_it_hurts_least(spread):
    cases = (([1.0, 1.0], [10, 1000], 2.0), ([0.3, 2.0, 1.0], [500, 20, 7], 1.4), ([0.7], [9], 3.0))
    for sizes, counts, σ in cases:
        Δ, d = torch.tensor(sizes).double(), torch.tensor(counts).double()
        s = torch.as_tensor(spread(Δ.clone(), d.clone(), σ)).double()
        if s.shape != Δ.shape or not (s > 0).all():
            return f"for {len(Δ)} groups it should give {len(Δ)} positive numbers."
        joint = (Δ / s).square().sum().rsqrt().item()
        if not math.isclose(joint, σ, rel_tol=1e-6):
            return f"all groups together then have the multiplier {joint:.5g}, and not {σ}."
        best = σ**2 * (Δ * d.sqrt()).sum().square().item()
        if (d * s.square()).sum().item() > best * (1 + 1e-6):
            return "another spread of the noise is shorter, with the same joint multiplier."
    return None
