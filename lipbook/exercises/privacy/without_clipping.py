"""Checks of the exercises of privacy/without-clipping."""

import math

import torch

from lipbook.exercises.registry import exercise


@exercise("privacy/without-clipping/1")
def three_layers(numbers):
    first, second, third, total = (float(number) for number in numbers)
    expected = [math.sqrt(2) * product for product in (0.5, 1.0, 2.0)]
    for name, found, bound in zip(("first", "second", "third"), (first, second, third), expected):
        if not abs(found - bound) <= 5e-3:
            return f"the {name} layer's bound is √2 times the norms of the two other layers."
    if not abs(total - math.hypot(*expected)) <= 5e-3:
        return "all together: the root of the sum of the squares."
    return None


@exercise("privacy/without-clipping/2")
def ghosts_of_a_sequence(ghost):
    for seed, (n, T, d, c) in enumerate(((4, 1, 7, 3), (5, 6, 4, 9), (3, 20, 30, 2))):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, T, d, generator=generator, dtype=torch.float64)
        g = torch.randn(n, T, c, generator=generator, dtype=torch.float64)
        expected = torch.stack([(g_i.T @ x_i).norm() for g_i, x_i in zip(g, x)])
        found = torch.as_tensor(ghost(x.clone(), g.clone()))
        if tuple(found.shape) != (n,):
            return f"it should give one norm for each of the {n} samples, it gave {tuple(found.shape)}."
        if not torch.allclose(found.double(), expected, rtol=1e-9):
            return f"with {T} positions that is not the norm of the sum of the outer products."
    return None


@exercise("privacy/without-clipping/3")
def reads_of_a_pixel(reads):
    for k in range(1, 8):
        for s in range(1, 7):
            for d in range(1, 5):
                span = (k - 1) * d + 1
                counts = torch.zeros(40 * s + span, dtype=torch.int64)
                for window in range(40):
                    counts[torch.arange(k) * d + window * s] += 1
                if reads(k, s, d) != counts.max().item():
                    return f"for k = {k}, s = {s}, d = {d} some pixel is read {counts.max().item()} times."
    return None


@exercise("privacy/without-clipping/4")
def one_matrix_twice(pair):
    apart, shared = (float(number) for number in pair)
    if not abs(apart - 2) <= 5e-3:
        return "two matrices: each has the bound √2, and together the root of the sum of squares."
    if not abs(shared - 2 * math.sqrt(2)) <= 5e-3:
        return "one matrix used twice: its gradient is a sum of two, which may point the same way."
    return None


@exercise("privacy/without-clipping/5")
def noise_for_each_layer(multipliers):
    for sensitivities, sizes, σ in (
        ([1.0, 1.0, 1.0], [10, 10, 10], 2.0),
        ([1.4, 39.6], [144, 16], 1.44),
        ([0.5, 3.0, 0.1, 7.0], [200_704, 65_536, 2_560, 10], 0.8),
    ):
        found = torch.as_tensor(multipliers(list(sensitivities), list(sizes), σ)).double().flatten()
        Δ, d = (torch.tensor(numbers, dtype=torch.float64) for numbers in (sensitivities, sizes))
        if found.shape != Δ.shape or not bool((found > 0).all()):
            return f"it should give {len(Δ)} positive multipliers."
        if not math.isclose(found.pow(-2).sum().item(), σ**-2, rel_tol=1e-6):
            return "the multipliers σ_l must satisfy Σ 1/σ_l² = 1/σ²: all the privacy, and no more."
        shares = d.sqrt() * Δ
        least = (σ * shares.sum()).item() ** 2
        if (d * (found * Δ).square()).sum().item() > least * (1 + 1e-6):
            return (
                f"the privacy is right; for Δ = {sensitivities}, d = {sizes} there is less noise to be had."
            )
    return None


@exercise("privacy/without-clipping/6")
def a_first_layer_that_forgets_brightness(pair):
    largest, at = (float(number) for number in pair)
    if not abs(at - 0.5) <= 5e-3:
        return "the norm is ‖g‖ t / (t² + λ) with t = ‖x‖: where is its derivative by t zero?"
    if not abs(largest - math.sqrt(2)) <= 5e-3:
        return "put that ‖x‖ into ‖g‖ ‖x‖ / (‖x‖² + λ), with ‖g‖ = √2."
    return None
