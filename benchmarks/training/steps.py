"""What the steps of the book's two certified networks cost, with one thread and with two.

Each value is the wall time in seconds of 100 steps of their training, and of 100 steps of the same network
with free weights (nn.Linear), taken in turns. A run of `fit` with one step is subtracted: it checks the data
and moves nothing.
"""

import time

import torch
from torch import nn

from lipbook.data import fashion_mnist
from lipbook.data.checkpoints import CERTIFIED, untrained
from lipbook.layers import OrthogonalLinear
from lipbook.training import OffsetCrossEntropy, fit

SEEDS = [0, 1, 2]
STEPS = 100
SETTINGS = [{"network": name, "threads": threads, "steps": STEPS} for name in CERTIFIED for threads in (1, 2)]
SMOKE = [{"network": "fashion-certified", "threads": 1, "steps": 2}]


def seconds(model, train, steps, seed):
    def wall(count):
        start = time.perf_counter()
        fit(model, train, None, OffsetCrossEntropy(1.75, 0.25), count, seed, schedule="cosine", device="cpu")
        return time.perf_counter() - start

    return wall(steps) - wall(1)


def free(model):
    """The same network with `nn.Linear` in place of its orthogonal layers."""
    swapped = [
        nn.Linear(layer.in_features, layer.out_features) if isinstance(layer, OrthogonalLinear) else layer
        for layer in model
    ]
    return nn.Sequential(*swapped)


def run(setting, seed):
    data = fashion_mnist()
    train = data.train_inputs, data.train_labels
    before = torch.get_num_threads()
    torch.set_num_threads(setting["threads"])
    try:
        model = untrained(setting["network"])
        return {
            "orthogonal": seconds(model, train, setting["steps"], seed),
            "free": seconds(free(model), train, setting["steps"], seed),
        }
    finally:
        torch.set_num_threads(before)
