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
def a_report_about_a_network(numbers):
    listed = {int(number) for number in numbers}
    if not listed <= set(range(1, 11)):
        return "give numbers of lines, from 1 to 10."
    sound = {
        3: "line 3: does what happens to a row depend on any other row?",
        5: "line 5: what is that sensitivity computed from, and what does the proposition about it allow?",
        7: "line 7: which numbers of the table are in the weights of a step that are not in its release?",
        10: "line 10: it says what verify recomputes; does it say more than that?",
    }
    faults = {
        1: "line 1 is not in order: which fields of a record does the claim need?",
        2: "line 2 is not in order: for which batches does the accountant's number hold?",
        4: "line 4 is not in order: how many rows change when one patient is left out?",
        6: "line 6 is not in order: which of the eight runs does that record cover?",
        8: "line 8 is not in order: what does a record leave out, and why?",
        9: "line 9 is not in order: is that number computed from the releases, or from the table?",
    }
    for number, hint in sound.items():
        if number in listed:
            return hint
    for number, hint in faults.items():
        if number not in listed:
            return hint
    return None


@exercise("privacy/without-clipping/6")
def a_first_layer_that_forgets_brightness(pair):
    largest, at = (float(number) for number in pair)
    if not abs(at - 0.5) <= 5e-3:
        return "the norm is ‖g‖ t / (t² + λ) with t = ‖x‖: where is its derivative by t zero?"
    if not abs(largest - math.sqrt(2)) <= 5e-3:
        return "put that ‖x‖ into ‖g‖ ‖x‖ / (‖x‖² + λ), with ‖g‖ = √2."
    return None
