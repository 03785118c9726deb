"""What of the promised 1 networks of 1-Lipschitz layers use: LipSDP from above and two points from below.

A lift from the 16 features of the digits averaged to 4 x 4 pixels, three hidden layers or blocks, a head to
ten logits: every network has a product bound of 1. Each is bounded as it is initialised ("random") and after
STEPS steps of Adam on the cross-entropy ("trained"), whose temperature is the best of TEMPERATURES by
the accuracy certified at 0.1 on 360 digits kept for that. "gershgorin" is the construction of the chapter:
a block H x + G relu(W x + b) whose whole matrix is diagonally dominant, with H = I / 2.

"data" is the median over test digits of the norm of the Jacobian. Chapter: layers/direct-parameterizations.
"""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from lipbook import Bound
from lipbook.bounds import gradient_lower_bound, product_bound
from lipbook.contracts import enclose, lipschitz, output_shape, residual
from lipbook.data import digits
from lipbook.layers import AOLLinear, LipschitzResidual, OrthogonalLinear, SandwichLinear, SLLLinear
from lipbook.sdp import lipsdp

KINDS = ("aol", "orthogonal", "gershgorin", "sll", "sandwich", "complete")
SETTINGS = [{"kind": kind} for kind in KINDS]
SMOKE = [{"kind": "sandwich", "steps": 2}]
SEEDS = list(range(3))
STEPS = 200
TEMPERATURES = (0.05, 0.2)
RATE = 0.01
WIDTH = 16


class Gershgorin(nn.Module):
    """H x + G relu(W x + b) with H = I / 2, of a free G and of K = H'G + W'Lambda with short rows.

    The rows of K have an l1 norm of 3/4, and Lambda is the least for which M is diagonally dominant.
    """

    def __init__(self, features: int):
        super().__init__()
        self.G = nn.Parameter(nn.init.orthogonal_(torch.empty(features, features)))
        self.K = nn.Parameter(torch.randn(features, features))
        self.bias = nn.Parameter(torch.zeros(features))

    def weights(self):
        K = 0.75 * self.K / self.K.abs().sum(dim=1, keepdim=True)
        multipliers = ((self.G.T @ self.G).abs().sum(dim=0) + K.abs().sum(dim=0)) / 2
        return self.G, (K - self.G / 2).T / multipliers[:, None]

    def forward(self, inputs):
        G, W = self.weights()
        return inputs / 2 + F.linear(torch.relu(F.linear(inputs, W, self.bias)), G)


@output_shape.register(Gershgorin)
def _gershgorin_output_shape(layer, input_shape):
    return input_shape


@lipschitz.register(Gershgorin)
def _gershgorin_lipschitz(layer, norm, input_shape):
    return Bound(1.0 + 1e-12, "upper", method="diagonal dominance")


@residual.register(Gershgorin)
def _gershgorin_residual(layer):
    G, W = layer.weights()
    skip, first, last = (plain(weight) for weight in (torch.eye(len(W)) / 2, W, G))
    first.bias = nn.Parameter(layer.bias.detach().double())
    return skip, nn.Sequential(first, nn.ReLU(), last)


@enclose.register(Gershgorin)
def _enclose_gershgorin(layer, values, errors):
    skip, branch = residual(layer)
    (left, off_left), (right, off_right) = (enclose(part, values, errors) for part in (skip, branch))
    total = left + right
    return total, 1.000001 * (off_left + off_right + 2.0**-53 * total.abs())


def plain(weight):
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=False, dtype=torch.float64)
    linear.weight.data.copy_(weight.detach())
    return linear


def network(kind):
    """16 features to 10 logits, 1-Lipschitz."""
    if kind in ("aol", "orthogonal"):
        linear = AOLLinear if kind == "aol" else OrthogonalLinear
        hidden = [layer for _ in range(3) for layer in (linear(WIDTH, WIDTH), nn.ReLU())]
    else:
        block = {
            "gershgorin": lambda: Gershgorin(WIDTH),
            "sll": lambda: SLLLinear(WIDTH),
            "sandwich": lambda: SandwichLinear(WIDTH, WIDTH),
            "complete": lambda: LipschitzResidual(WIDTH, WIDTH, WIDTH),
        }[kind]
        hidden = [block() for _ in range(3)]
    return nn.Sequential(OrthogonalLinear(16, WIDTH), *hidden, OrthogonalLinear(WIDTH, 10))


def small_digits():
    """Training and test pairs, 4 x 4 pixels, of mean zero and of variance 1 over all pixels."""
    data = digits()
    pairs = [(data.train_inputs, data.train_labels), (data.test_inputs, data.test_labels)]
    pooled = [(F.avg_pool2d(x, 2).flatten(1), y) for x, y in pairs]
    mean, std = pooled[0][0].mean(dim=0), pooled[0][0].std()
    return [((x - mean) / std, y) for x, y in pooled]


def train(model, inputs, labels, temperature, steps, generator):
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for _ in range(steps):
        batch = torch.randperm(len(inputs), generator=generator)[:128]
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[batch]) / temperature, labels[batch]).backward()
        optimizer.step()
        schedule.step()
    return model


def certified(model, inputs, labels, radius=0.1):
    with torch.no_grad():
        top = model(inputs).topk(2, dim=1)
    right = top.indices[:, 0] == labels
    return (right & (top.values[:, 0] - top.values[:, 1] > math.sqrt(2) * radius)).double().mean().item()


def chosen(kind, seed, steps):
    """The model with the best temperature, refitted on all training digits."""
    (inputs, labels), _ = small_digits()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    kept, rest = order[:360], order[360:]

    def fitted(rows, temperature):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        return train(network(kind), inputs[rows], labels[rows], temperature, steps, generator)

    scores = [certified(fitted(rest, t), inputs[kept], labels[kept]) for t in TEMPERATURES]
    return fitted(order, TEMPERATURES[scores.index(max(scores))])


def local_norms(model, inputs):
    """The spectral norm of the Jacobian at each input."""
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: model(x[None])[0]))(inputs)
    return torch.linalg.matrix_norm(jacobians, 2)


def both_ends(model):
    """What is measured of a model in eval mode and float64."""
    model = copy.deepcopy(model).double().eval().requires_grad_(False)
    inputs, labels = small_digits()[1]
    inputs = inputs.double()
    return {
        "low": gradient_lower_bound(model, inputs[:200]).value,
        "data": local_norms(model, inputs[:200]).median().item(),
        "sdp": lipsdp(model).value,
        "product": product_bound(model).value,
        "right": certified(model, inputs, labels, 0.0),
        "certified": certified(model, inputs, labels),
    }


def run(setting, seed):
    torch.manual_seed(seed)
    random = network(setting["kind"])
    trained = chosen(setting["kind"], seed, setting.get("steps", STEPS))
    return {"random": both_ends(random), "trained": both_ends(trained)}
