"""The complete residual block against SLL (and Sandwich) on small tables, at the same number of parameters.

The four tables for classification that come with scikit-learn, and diabetes cut at its median; 60/20/20 per
cent for training, validation and test, drawn anew for each seed and the same for all kinds; features
standardised by the training part, so that radii are in standard deviations. A lift to 32 features, two
blocks, an orthogonal head; the certified radius is the margin over sqrt(2) times the product bound, which is
1 up to rounding. The temperature of the cross-entropy is that with the best certified accuracy at 36/255 on
the validation part; the test part is read once. Chapter:
layers/direct-parameterizations.
"""

import math

import torch
from sklearn import datasets
from torch import nn

from lipbook.bounds import product_bound
from lipbook.layers import LipschitzResidual, OrthogonalLinear, SandwichLinear, SLLLinear

TABLES = ("iris", "wine", "breast_cancer", "diabetes", "digits")
KINDS = ("sll", "sandwich", "complete")
SETTINGS = [{"table": table, "kind": kind} for table in TABLES for kind in KINDS]
SMOKE = [{"table": "iris", "kind": "sll", "steps": 3}]
SEEDS = list(range(8))
TEMPERATURES = (0.1, 0.5)
RATE = 0.01
RADII = (36 / 255, 72 / 255, 108 / 255)
WIDTH = 32


def table(name, seed):
    """Three pairs (inputs, labels): training, validation, test."""
    data = getattr(datasets, f"load_{name}")()
    x, y = torch.tensor(data.data).float(), torch.tensor(data.target)
    y = (y > y.median()).long() if name == "diabetes" else y.long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    parts = order.split(
        [int(0.6 * len(x)), int(0.2 * len(x)), len(x) - int(0.6 * len(x)) - int(0.2 * len(x))]
    )
    mean, std = x[parts[0]].mean(dim=0), x[parts[0]].std(dim=0)
    x = (x - mean) / torch.where(std > 0, std, 1.0)
    return [(x[part], y[part]) for part in parts]


def network(kind, features, classes):
    """1-Lipschitz, each of the two blocks with between 2,200 and 2,420 parameters."""
    if kind == "sll":
        blocks = [SLLLinear(WIDTH, hidden=68) for _ in range(2)]
    elif kind == "complete":
        blocks = [LipschitzResidual(WIDTH, 16, WIDTH) for _ in range(2)]
    else:
        blocks = [SandwichLinear(WIDTH, 35), SandwichLinear(35, WIDTH)]
    return nn.Sequential(OrthogonalLinear(features, WIDTH), *blocks, OrthogonalLinear(WIDTH, classes))


def train(model, inputs, labels, temperature, steps, generator):
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randperm(len(inputs), generator=generator)[:128]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]) / temperature, labels[batch]).backward()
        optimizer.step()
        schedule.step()
    return model.double().eval().requires_grad_(False)


def certified(model, inputs, labels):
    """The share of right answers, and of those certified at each of RADII."""
    top = model(inputs.double()).topk(2, dim=1)
    right = top.indices[:, 0] == labels
    radius = (top.values[:, 0] - top.values[:, 1]) / (math.sqrt(2) * product_bound(model).value)
    return [
        (right & (radius > r)).double().mean().item() if r else right.double().mean().item()
        for r in (0, *RADII)
    ]


def run(setting, seed):
    training, validation, test = table(setting["table"], seed)
    classes = int(training[1].max()) + 1
    tried = []
    for temperature in TEMPERATURES:
        torch.manual_seed(seed)
        model = network(setting["kind"], training[0].shape[1], classes)
        generator = torch.Generator().manual_seed(seed)
        train(model, *training, temperature, setting.get("steps", 200), generator)
        tried.append((certified(model, *validation)[1], model, temperature))
    best = max(tried, key=lambda entry: entry[0])
    shares = certified(best[1], *test)
    return {
        "temperature": best[2],
        "parameters": sum(p.numel() for p in best[1].parameters()),
        "right": shares[0],
        **{f"at {round(255 * r)}/255": share for r, share in zip(RADII, shares[1:], strict=True)},
    }
