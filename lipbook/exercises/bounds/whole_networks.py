"""Checks of the exercises of bounds/whole-networks."""

import copy
import math
from fractions import Fraction

import torch
from torch import nn

from lipbook.bounds import gradient_lower_bound, product_bound
from lipbook.exercises.registry import exercise

NORMS = (2, math.inf)


def _models():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return [
            nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)),
            nn.Sequential(
                nn.Linear(3, 7), nn.LeakyReLU(-2.5), nn.Linear(7, 7), nn.Sigmoid(), nn.Linear(7, 2)
            ),
            nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(0.2)),
        ]


def _close(value, target, tolerance=1e-6):
    return abs(float(value) - target) <= tolerance * abs(target)


@exercise("bounds/whole-networks/1")
def a_chain_by_hand(pair):
    product, truth = (float(number) for number in pair)
    if product != 6:
        return "the product is that of the two spectral norms: the largest entry of each diagonal."
    if truth != 3:
        return "on each region the Jacobian is diagonal: which are its largest entries?"
    return None


@exercise("bounds/whole-networks/2")
def product_in_any_norm(product):
    for k, model in enumerate(_models()):
        for norm in NORMS:
            value, target = float(product(copy.deepcopy(model), norm)), product_bound(model, norm).value
            if not _close(value, target):
                return f"{value:.6g} instead of {target:.6g} in norm {norm}, on {_layers(model)}."
    return None


@exercise("bounds/whole-networks/3")
def the_bound_of_a_margin(margin):
    model = _models()[0]
    for norm in NORMS:
        for i, j in ((0, 1), (3, 1)):
            value, target = float(margin(model, i, j, norm)), product_bound(model, norm, (i, j)).value
            if not _close(value, target):
                return f"{value:.6g} instead of {target:.6g} in norm {norm}: which norm has the row?"
    return None


@exercise("bounds/whole-networks/4")
def invisible_at_the_points(model):
    if not isinstance(model, nn.Sequential) or not all(isinstance(k, nn.Linear | nn.ReLU) for k in model):
        return "it must be an nn.Sequential of nn.Linear and nn.ReLU layers."
    model = copy.deepcopy(model).double().requires_grad_(False)
    points = torch.arange(11, dtype=torch.float64).reshape(-1, 1)
    for step in (0.0, -1e-6, 1e-6):  # a kink at a point shows on one side of it
        values = model(points + step).flatten()
        if values.abs().max() > 1e-9:
            worst = int(values.abs().argmax())
            where = f"{worst} {step:+g} has the value {values[worst].item():.3g}"
            return f"{where}: keep every slope away from the points, and build it with .double()."
    search = torch.linspace(-1, 11, 24_001, dtype=torch.float64).reshape(-1, 1)
    proved = gradient_lower_bound(model, search).value
    if proved <= 1000:
        return f"no pair of points steeper than {proved:.6g} was found: put one spike between two points."
    return None


@exercise("bounds/whole-networks/5")
def a_slope_with_its_rounding(slope):
    generator = torch.Generator().manual_seed(0)
    for trial in range(30):
        W1, W2 = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((8, 5), (3, 8)))
        b1 = torch.randn(8, generator=generator, dtype=torch.float64)
        x, step = torch.randn(2, 5, generator=generator, dtype=torch.float64)
        distance = (1e-3, 1e-6, 1e-9)[trial % 3]
        x, b1 = 10 ** (trial % 2) * x, 10 ** (trial % 4) * b1
        y = x + distance * step / step.norm()
        value, square = float(slope(W1, b1, W2, x, y)), _exact_square(W1, b1, W2, x, y)
        if Fraction(value) ** 2 > square:
            return f"the value lies above the slope between two points {distance:g} apart (trial {trial})."
        if distance == 1e-3 and Fraction(value) ** 2 < square * (1 - Fraction(2, 10**6)):
            return f"{value:.9g} is far below the slope {math.sqrt(square):.9g}: subtract only the rounding."
    return None


def _exact_square(W1, b1, W2, x, y):
    def exact(x):
        x = [Fraction(number) for number in x.tolist()]
        hidden = [
            max(sum(Fraction(w) * a for w, a in zip(row, x)) + Fraction(bias), Fraction(0))
            for row, bias in zip(W1.tolist(), b1.tolist())
        ]
        return [sum(Fraction(w) * h for w, h in zip(row, hidden)) for row in W2.tolist()]

    rise = sum((a - b) ** 2 for a, b in zip(exact(x), exact(y)))
    return rise / sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(x.tolist(), y.tolist()))


@exercise("bounds/whole-networks/6")
def neighbours_merged(merged):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(4, 6), nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        ).double()
        inputs = torch.randn(20, 4, dtype=torch.float64)
    given = copy.deepcopy(model)
    answer = merged(given)
    if any(not torch.equal(one, other) for one, other in zip(given.parameters(), model.parameters())):
        return "it changes the layers that it is given: build new ones."
    if not isinstance(answer, nn.Sequential) or [type(k) for k in answer] != [nn.Linear, nn.ReLU, nn.Linear]:
        return "of these six layers an nn.Sequential of Linear, ReLU, Linear should be left."
    with torch.no_grad():
        if not torch.allclose(answer(inputs), model(inputs), rtol=1e-9, atol=1e-9):
            return "it computes another function: look at the order of the matrices, and at the biases."
    return None


def _layers(model):
    return ", ".join(type(layer).__name__ for layer in model)
