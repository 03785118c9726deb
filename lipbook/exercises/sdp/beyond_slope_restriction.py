"""Checks of the exercises of sdp/beyond-slope-restriction."""

import itertools
import math

import torch

from lipbook.exercises.registry import exercise


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@exercise("sdp/beyond-slope-restriction/1")
def two_opposite_inputs(triple):
    product, by_sdp, truth = (float(number) for number in triple)
    if not math.isclose(truth, 1, rel_tol=1e-6):
        return "max(t, -t) is |t|, and min(t, -t) is -|t|."
    if not math.isclose(product, math.sqrt(10), rel_tol=1e-4):
        return "the product bound is the norm of (1, -1) times that of (2, 1)."
    if not math.isclose(by_sdp, 1, rel_tol=1e-6):
        return "the sum passes linearly, and it is zero: what is left is one absolute value."
    return None


@exercise("sdp/beyond-slope-restriction/2")
def without_s_or_p(without):
    for α, μ in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.7, -1.3)]:
        triples = [[float(number) for number in triple] for triple in without(α, μ)]
        if [len(triple) for triple in triples] != [3, 3]:
            return "two triples (γ, ν, τ) are asked for."
        if triples[0][2] != 0 or triples[1][1] != 0:
            return "S = 0 means τ = 0, in the first triple, and P = 0 means ν = 0, in the second."
        for (γ, ν, τ), name in zip(triples, "SP"):
            for into, out in itertools.product((-1.0, 0.5, 2.0), repeat=2):
                published = (γ - 2 * τ) * into**2 + 2 * (ν + τ) * into * out - (γ + 2 * ν) * out**2
                if abs(published - α * (into**2 - out**2) + μ * (into - out) ** 2) > 1e-9:
                    return f"with {name} = 0 the form is not that of the tilt {α} and the stiffness {μ}."
    return None


@exercise("sdp/beyond-slope-restriction/4")
def every_pattern(largest):
    for seed, (inputs, pairs, outputs) in enumerate([(3, 1, 2), (4, 3, 1), (2, 4, 3), (6, 5, 2)]):
        W1, W2 = _normal(2 * pairs, inputs, seed=seed), _normal(outputs, 2 * pairs, seed=100 + seed)
        kept = W1.clone()
        value, target = float(largest(W1, W2)), _largest_pattern(W1, W2)
        if not torch.equal(W1, kept):
            return "your function changed the weight that it was given."
        if not math.isclose(value, target, rel_tol=1e-9):
            return (
                f"{value:.6g} instead of {target:.6g} for {inputs} inputs, {pairs} pairs, {outputs} outputs."
            )
    return None


def _largest_pattern(W1, W2):
    sums, differences = W1[0::2] + W1[1::2], W1[0::2] - W1[1::2]
    best = 0.0
    for signs in itertools.product((-1.0, 1.0), repeat=len(sums)):
        folded = torch.tensor(signs, dtype=torch.float64)[:, None] * differences
        jacobian = W2[:, 0::2] @ (sums + folded) / 2 + W2[:, 1::2] @ (sums - folded) / 2
        best = max(best, torch.linalg.matrix_norm(jacobian, 2).item())
    return best


@exercise("sdp/beyond-slope-restriction/5")
def max_pooling(pooled):
    pairs, inputs = 3, 4
    whole = torch.eye(inputs + pairs, dtype=torch.float64)
    weight = _normal(2 * pairs, inputs)
    P, Q, output = pooled(weight @ whole[:inputs], whole[inputs:])
    for name, rows in (("P", P), ("Q", Q), ("the output", output)):
        if tuple(rows.shape) != (pairs, inputs + pairs):
            return f"{name} must have the shape {(pairs, inputs + pairs)}, got {tuple(rows.shape)}."
    x, y = 2 * _normal(2, 2000, inputs, seed=1)
    before, after = ((point @ weight.T).unflatten(1, (pairs, 2)) for point in (x, y))
    increment = after.amax(dim=2) - before.amax(dim=2)
    # the output tells what the fresh coordinates stand for
    own = output[:, inputs:]
    if torch.linalg.matrix_rank(own) < pairs:
        return "each output must depend on its fresh coordinate."
    rest = increment - (y - x) @ output[:, :inputs].T
    z = torch.cat([y - x, torch.linalg.solve(own, rest.T).T], dim=1)
    products = (z @ P.T) * (z @ Q.T)
    if products.min() < -1e-9:
        return "some increment of max pooling violates your constraints."
    if products.amin(dim=0).max() > 1e-6 or not _is_tight(P, Q, output, inputs, weight):
        return "your constraints hold, and allow more than the fold does."
    return None


def _is_tight(P, Q, output, inputs, weight):
    """Whether the constraints of each pair allow the increments from 0 to the larger input, and no others."""
    steps = _normal(200, inputs, seed=2)
    entering = (steps @ weight.T).unflatten(1, (-1, 2))
    low, high = entering.amin(dim=2), entering.amax(dim=2)
    for share, allowed in ((0.0, True), (1.0, True), (0.5, True), (-0.1, False), (1.1, False)):
        leaving = low + share * (high - low)
        fresh = torch.linalg.solve(output[:, inputs:], (leaving - steps @ output[:, :inputs].T).T).T
        z = torch.cat([steps, fresh], dim=1)
        products = (z @ P.T) * (z @ Q.T)
        if allowed and products.min() < -1e-9 or not allowed and products.max() >= 0:
            return False
    return True


@exercise("sdp/beyond-slope-restriction/6")
def a_vector_of_any_length(constant):
    for length in (0.0, 0.3, 0.7, 1.0, 1.1, 2.0):
        u = torch.tensor([0.6, -0.8], dtype=torch.float64) * length
        mirrored = torch.eye(2, dtype=torch.float64) - 2 * u.outer(u)
        target = max(1.0, torch.linalg.matrix_norm(mirrored, 2).item())
        value = float(constant(length))
        if not math.isclose(value, target, rel_tol=1e-9):
            return f"{value:.6g} instead of {target:.6g} for a vector of length {length}."
    return None


@exercise("sdp/beyond-slope-restriction/7")
def another_order(ratios):
    ratios = [float(ratio) for ratio in ratios]
    if len(ratios) != 4:
        return f"four networks are sorted in threes, and you give {len(ratios)} ratios."
    if not all(0.5 < ratio < 2 for ratio in ratios):
        return (
            "give, for each network, the bound from the other order over that of the chapter: both are near."
        )
    if all(abs(ratio - 1) < 1e-6 for ratio in ratios):
        return "the bounds differ on some network: did both runs use the same order?"
    return None
