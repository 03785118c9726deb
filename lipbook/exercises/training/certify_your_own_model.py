"""Checks of the exercises of training/certify-your-own-model."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from lipbook.bounds import product_bound
from lipbook.exercises.registry import exercise


def _close(value, target):
    return math.isclose(float(value), target, rel_tol=1e-6, abs_tol=1e-9)


@exercise("training/certify-your-own-model/1")
def a_module_converted(convert):
    for seed, (hidden, classes) in enumerate(((6, 3), (5, 4))):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            body, head = nn.Linear(12, hidden).double(), nn.Linear(hidden, classes).double()
            x = torch.rand(50, 3, 2, 2, dtype=torch.float64)
        chain = convert(body, head)
        if not isinstance(chain, nn.Sequential):
            return f"it should give an nn.Sequential, and gives a {type(chain).__name__}."
        if chain.training:
            return "the chain is in train mode."
        with torch.no_grad():
            logits = head(F.leaky_relu(body(((x - 0.5) / 0.25).flatten(1)), 0.1))
            found = chain.double()(x)
        if found.shape == logits.shape and torch.allclose(found, logits.softmax(dim=1)):
            return "these are probabilities: the library reads the logits before them."
        if found.shape != logits.shape or not torch.allclose(found, logits, rtol=1e-6, atol=1e-6):
            return "on random images its outputs are not the logits of the module."
        product_bound(chain, input_shape=(3, 2, 2))  # a layer that the library does not read is refused
    return None


@exercise("training/certify-your-own-model/2")
def units(triple):
    largest, bytes_, standardised = triple
    if not _close(largest, 0.56 / math.sqrt(784)):
        return "the cube that fits into the ball: a corner of it has sqrt(784) times the length of a side."
    if not _close(bytes_, 0.56 * 255):
        return "the same change, written in a unit that is 255 times smaller."
    if not _close(standardised, 0.56 / 0.25):
        return "behind the standardisation distances are longer by 1 / 0.25."
    return None


@exercise("training/certify-your-own-model/3")
def two_branches_joined(joined):
    for a, b in ((3.0, 4.0), (1.0, 1.0), (0.0, 2.0), (5.0, 0.5)):
        for norm in (2, math.inf):
            in_cat = max(a, b) if norm == math.inf else math.sqrt(a**2 + b**2)
            for how, target in (("cat", in_cat), ("sum", a + b), ("max", in_cat)):
                value = float(joined(a, b, how, norm))
                if not _close(value, target):
                    side = "too small" if value < target else "larger than needed"
                    return f'with constants {a:g} and {b:g}, "{how}" in norm {norm}, {value:.4g} is {side}.'
    return None


@exercise("training/certify-your-own-model/4")
def slopes_of_the_soft_threshold(shrink_slopes):
    for t in (0.5, 1.0, 2.0):
        ends = torch.tensor([-3.0, -t, -0.75 * t, 0.0, 0.25 * t, t, 3.0], dtype=torch.float64)
        intervals = [(low, high) for low in ends for high in ends if low < high]
        lower, upper = (torch.stack(end) for end in zip(*intervals))
        a, b = shrink_slopes(lower, upper, t)
        if tuple(a.shape) != tuple(lower.shape) or tuple(b.shape) != tuple(lower.shape):
            return f"it should give two tensors of shape {tuple(lower.shape)} for ends of this shape."
        if a.dtype != torch.float64 or b.dtype != torch.float64:
            return "the library asks for float64."
        points = lower + (upper - lower) * torch.linspace(0, 1, 401, dtype=torch.float64)[:, None]
        slopes = F.softshrink(points, t).diff(dim=0) / points.diff(dim=0)
        least, most = slopes.amin(dim=0), slopes.amax(dim=0)
        for found, seen, sign, name in ((a, least, 1, "least"), (b, most, -1, "largest")):
            gap = sign * (found - seen)
            for wrong, what in ((gap > 1e-6, "is not a bound"), (gap < -1e-6, "is not the tightest")):
                if wrong.any():
                    k = wrong.nonzero()[0].item()
                    where = f"between {lower[k].item():g} and {upper[k].item():g} with t = {t:g}"
                    return f"{where} the {name} slope {found[k].item():g} {what}."
    return None


@exercise("training/certify-your-own-model/5")
def rounded_weights(rounded):
    for σ, m, n, step in ((1.0, 4, 9, 0.01), (2.5, 64, 64, 0.002), (0.3, 10, 1, 0.1)):
        value, target = float(rounded(σ, m, n, step)), σ + step * math.sqrt(m * n) / 2
        if value < target * (1 - 1e-9):
            return f"{value:.4g} is too small: every one of {m} x {n} entries may move by half a step."
        if not _close(value, target):
            return f"{value:.4g} is larger than the Frobenius norm of the change asks for."
    return None


@exercise("training/certify-your-own-model/6")
def which_have_a_constant(answers):
    advice = (
        "it acts on one entry at a time, with a bounded slope.",
        "two functions of the input are multiplied: what if an entry of x is large?",
        "how far apart are the images of 0.49 and 0.51?",
        "its Jacobian is bounded.",
        "a maximum moves by no more than the larger of the two.",
    )
    answers = list(answers)
    if len(answers) != 5:
        return f"it should be a list of five truth values, and has {len(answers)}."
    for number, (answer, truth, why) in enumerate(zip(answers, (True, False, False, True, True), advice)):
        if bool(answer) != truth:
            return f"layer {number + 1}: {why}"
    return None
