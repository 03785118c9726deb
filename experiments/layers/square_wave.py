"""How near a network bounded by gamma comes to gamma when it fits steps: the square wave of the LBDN paper.

As in the repository of Wang and Manchester, "Direct parameterization of Lipschitz-bounded deep networks",
ICML 2023: 300 points drawn uniformly from [-2, 2], target 1 on [-2, -1] and on (0, 1] and 0 elsewhere, Adam,
200 epochs of batches of 50, their schedule, a factor sqrt(gamma) at both ends. Smaller here: about 7,000
parameters instead of 130,000, and "maxmin" (orthogonal layers with MaxMin) and the complete block beside
theirs. The learning rate is the better one of RATES on 200 more points.

slope is the steepest between neighbours of 4,001 points, in float64: a lower bound on the constant. best is
the mean squared error, on the test grid, of the best function of that constant. Chapter:
layers/direct-parameterizations.
"""

import copy
import math

import numpy as np
import torch
from torch import nn

from lipbook.layers import (
    AOLLinear,
    LipschitzResidual,
    MaxMin,
    OrthogonalLinear,
    SandwichLinear,
    SLLLinear,
)

KINDS = ("aol", "orthogonal", "maxmin", "sll", "sandwich", "complete")
GAMMAS = (1, 5, 10)
SETTINGS = [{"kind": kind, "gamma": gamma} for gamma in GAMMAS for kind in KINDS]
SMOKE = [{"kind": "sll", "gamma": 10, "epochs": 2}]
SEEDS = list(range(5))
RATES = (0.003, 0.01)


def square_wave(x):
    return ((x <= -1) | ((x > 0) & (x <= 1))).float()


def network(kind):
    """A 1-Lipschitz network with one input and one output, and between 6,500 and 7,500 parameters."""
    if kind in ("aol", "orthogonal", "maxmin"):
        linear = AOLLinear if kind == "aol" else OrthogonalLinear
        activation = MaxMin if kind == "maxmin" else nn.ReLU
        inner = [layer for _ in range(3) for layer in (linear(48, 48), activation())]
        return nn.Sequential(linear(1, 48), activation(), *inner, linear(48, 1))
    if kind == "sandwich":
        inner = [SandwichLinear(31, 31) for _ in range(3)]
        return nn.Sequential(SandwichLinear(1, 31), *inner, OrthogonalLinear(31, 1))
    block, width = (SLLLinear, 48) if kind == "sll" else (LipschitzResidual, 24)
    sizes = (width, width) if kind == "sll" else (width, width, width)
    return nn.Sequential(
        OrthogonalLinear(1, width), *[block(*sizes) for _ in range(3)], OrthogonalLinear(width, 1)
    )


def scaled(network, gamma, x):
    return math.sqrt(gamma) * network(math.sqrt(gamma) * x)


def train(network, gamma, x, y, rate, epochs, generator):
    steps_each = math.ceil(len(x) / 50)
    optimizer = torch.optim.Adam(network.parameters())
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for k, batch in enumerate(order.split(50)):
            corners = [0, 2 * epochs / 5, 4 * epochs / 5, epochs]
            lr = np.interp(epoch + (k + 1) / steps_each, corners, [0, rate, rate / 20, 0])
            optimizer.param_groups[0]["lr"] = float(lr)
            optimizer.zero_grad()
            nn.functional.mse_loss(scaled(network, gamma, x[batch]), y[batch]).backward()
            optimizer.step()


def fitted(kind, gamma, seed, rate, epochs=200):
    """A trained network in float64, with its error on the 200 points kept for choosing the rate."""
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(500, 1, generator=generator) - 2
    torch.manual_seed(seed)
    model = network(kind)
    train(model, gamma, x[:300], square_wave(x[:300]), rate, epochs, generator)
    model = copy.deepcopy(model).double().eval().requires_grad_(False)
    rest = x[300:].double()
    return model, (scaled(model, gamma, rest) - square_wave(rest)).square().mean().item()


def grid():
    return torch.linspace(-2, 2, 4001, dtype=torch.float64)[:, None]


def steepest(x, fx):
    return (fx.diff(dim=0) / x.diff(dim=0)).abs().max().item()


def best_error(gamma):
    """The mean squared error of ramps of slope gamma across the three steps, 1/(12 gamma) a step of height 1.

    A ramp from 0 to 1 around a step, of width 1/gamma, has the squared error 2 int_0^{1/(2 gamma)} (1/2 -
    gamma t)^2 dt = 1/(12 gamma). Nothing does better at a step, and for gamma >= 1 the ramps do not overlap.
    """
    return 3 / (12 * gamma) / 4


def run(setting, seed):
    kind, gamma, epochs = setting["kind"], setting["gamma"], setting.get("epochs", 200)
    tried = {rate: fitted(kind, gamma, seed, rate, epochs) for rate in RATES}
    rate = min(tried, key=lambda rate: tried[rate][1])
    model, x = tried[rate][0], grid()
    fx = scaled(model, gamma, x)
    return {
        "rate": rate,
        "parameters": sum(p.numel() for p in model.parameters()),
        "slope": steepest(x, fx),
        "error": (fx - square_wave(x)).square().mean().item(),
        "best": best_error(gamma),
    }
