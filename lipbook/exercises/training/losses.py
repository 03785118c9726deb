"""Checks of the exercises of training/losses."""

import math

import torch

from lipbook.exercises.registry import exercise


def _batch(seed, classes=5, samples=40):
    """Logits, labels and constants, with a few ties at the top."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    logits[:5, 1] = logits[:5, 0] = logits[:5].amax(dim=1) + 1
    labels = torch.randint(classes, (samples,), generator=generator)
    rows = torch.randn(classes, 7, generator=generator, dtype=torch.float64)
    return logits, labels, torch.cdist(rows, rows)


@exercise("training/losses/1")
def an_offset_for_a_radius(pair):
    offset, radius = (float(number) for number in pair)
    if not abs(offset - 1.58 * math.sqrt(2)) <= 5e-3:
        return "the pay is a half at the margin u: which margin certifies 1.58 when D is the root of 2?"
    if not abs(radius - (1.58 + 0.25 * math.log(99) / math.sqrt(2))) <= 5e-3:
        return "the pay is 1 % at the margin u + τ log 99; divide by D for a radius."
    return None


@exercise("training/losses/2")
def the_second_form(trades):
    for seed in range(3):
        logits, labels, D = _batch(seed)
        for ε, λ in ((0.0, 1.0), (0.3, 2.0), (2.0, 0.5)):
            expected = []
            for z, y in zip(logits, labels.tolist(), strict=True):
                p = int(z.argmax())
                bottom = max(z[j] + ε * D[p, j] for j in range(len(z)) if j != p)
                π = torch.softmax(z, dim=0)
                q = torch.softmax(torch.cat([z, bottom[None]]), dim=0)[:-1]
                expected.append(-π[y].log() + λ * (π * (π / q).log()).sum())
            found = trades(logits.clone(), labels, D, ε, λ)
            if not torch.allclose(torch.as_tensor(found).double(), sum(expected) / len(expected), rtol=1e-8):
                return f"at ε = {ε} and λ = {λ} it is another number; some of the logits are tied."
        far = trades(300 * logits, labels, D, 200.0, 1.0)
        if not torch.isfinite(torch.as_tensor(far)).all():
            return "with large logits it is not finite: work with logarithms of sums of exponentials."
    return None


@exercise("training/losses/3")
def on_the_plateau(numbers):
    value, pay, single, half = (float(number) for number in numbers)
    if not (abs(value - math.log(10)) <= 1e-3 and abs(single - math.log(2)) <= 1e-3):
        return "with k rivals on the plateau, k + 1 shifted logits are equal."
    if not (abs(pay - 0.1) <= 1e-3 and abs(half - 0.5) <= 1e-3):
        return "the pay for one margin is the softmax of that rival, among the shifted logits."
    return None


@exercise("training/losses/4")
def the_worst_cross_entropy(worst):
    for seed in range(3):
        logits, labels, D = _batch(seed)
        for ε in (0.0, 0.4, 3.0):
            gained = logits.clone()
            for i, y in enumerate(labels.tolist()):
                gained[i] += ε * D[y]
            expected = gained.logsumexp(dim=1) - gained.gather(1, labels[:, None])[:, 0]
            found = torch.as_tensor(worst(logits.clone(), labels, D, ε))
            if tuple(found.shape) != (len(labels),):
                return "it should give one number for each sample."
            if (found < expected - 1e-9).any():
                return f"at ε = {ε} a rival can gain more than that."
            if (found > expected + 1e-9).any():
                return f"at ε = {ε} no point of the ball has such a large cross-entropy, by D alone."
    return None


@exercise("training/losses/5")
def the_dearest_sample(pair):
    p, weight = (float(number) for number in pair)
    best = max((_weight(k / 10_000), k / 10_000) for k in range(1, 10_000))
    if not abs(p - best[1]) <= 0.006:
        return "compute the weight on a fine grid of p between 0 and 1."
    if not abs(weight - best[0]) <= 0.006:
        return "that p is right; the weight there is another number."
    return None


def _weight(p, γ=5):
    return (1 - p) ** (γ - 1) * ((1 - p) - γ * p * math.log(p))


@exercise("training/losses/6")
def hide_a_norm(hide):
    for seed, n in enumerate((2, 5, 30)):
        v = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        W = hide(v.clone())
        if tuple(W.shape) != (n, n) or W.dtype != torch.float64:
            return f"for a vector of {n} numbers W is {n} x {n}, in float64."
        if not torch.linalg.matrix_norm(W, 2) >= 10 * (1 - 1e-9):
            return f"its norm is {torch.linalg.matrix_norm(W, 2):.4g}, and should be at least 10."
        for _ in range(5):
            v = W.T @ (W @ v)
            v = v / v.norm()
        if not (W @ v).norm() <= 1.01:
            return f"five steps of power iteration give {(W @ v).norm():.4g}."
    return None
