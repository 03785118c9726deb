"""At which norm to clip: a private softmax head on fixed features, and its constants per sample.

A softmax head W on features phi(x), without a bias, has a loss whose gradient at W is
(softmax(z) - onehot) phi(x)', so that sample i has the Lipschitz constant G_i = sqrt(2) |phi(x_i)|. The rule
of Das et al. 2023 is to tune the clip norm C up to min G_i only. Here C = `factor` * min G_i; the features
are oriented gradients, as they are, or each scaled to norm 1, where every G_i is sqrt(2). The learning rate
is chosen on 10,000 held-out images for each setting and seed, then the head is trained on all 60,000, and
the test images are read once. The min G_i of features as they are is computed from the training images, and
so is itself private; neither that nor the choice of C and of the learning rate is in epsilon. Setting
"constants": the distribution of G_i. Chapter: privacy/auditing.
"""

import functools
import math

import torch
from torch import nn
from torch.nn import functional as F

from lipbook.data import fashion_mnist
from lipbook.privacy import OrientedGradients, fit

SEEDS = [0, 1, 2]
FACTORS = {"as they are": (1 / 16, 1, 2, 4, 8), "on a sphere": (1 / 16, 1, 4)}
SETTINGS = [{"features": "constants"}]
SETTINGS += [{"features": kind, "factor": factor} for kind in FACTORS for factor in FACTORS[kind]]
SMOKE = [{"features": "as they are", "factor": 1, "records": 1000, "steps": 2}]
EPSILON, DELTA, RATE, STEPS = 1.0, 1e-5, 4096 / 60000, 87
PATHS = (128, 512, 2048)  # the learning rate times C
CONTRAST = 10.0  # the averages of the gradients nearly as they are
EDGES = [0.1 * k for k in range(51)]


@functools.cache
def features(records=None):
    data, layer = fashion_mnist(), OrientedGradients(contrast=CONTRAST)
    parts = (data.train_inputs[:records], data.test_inputs[:records])
    with torch.no_grad():
        train, test = (torch.cat([layer(some) for some in part.split(5000)]) for part in parts)
    return train, data.train_labels[:records], test, data.test_labels[:records]


def private_head(train, classes, clip, radius, path, seed, steps):
    head = nn.Linear(train.shape[1], 10, bias=False)
    nn.init.zeros_(head.weight)
    options = dict(clip=clip, scale="ball", lr=path / clip, project_every=None, seed=seed)
    given = (
        nn.Sequential(head),
        (train, classes),
        nn.CrossEntropyLoss(),
        EPSILON,
        DELTA,
        steps,
        RATE,
        radius,
    )
    model, _ = fit(*given, **options)
    return model


def accuracy(model, inputs, labels):
    with torch.no_grad():
        return (model(inputs).argmax(dim=1) == labels).float().mean().item()


def run(setting, seed):
    train, labels, test, test_labels = features(setting.get("records"))
    if setting["features"] == "on a sphere":
        train, test = F.normalize(train), F.normalize(test)
    constants = math.sqrt(2) * train.norm(dim=1)
    if setting["features"] == "constants":
        counts = torch.histogram(constants, torch.tensor(EDGES)).hist
        shares = [k / 100 for k in range(101)]
        return {
            "edges": EDGES,
            "counts": [int(count) for count in counts],
            "quantiles": constants.quantile(torch.tensor(shares)).tolist(),
        }
    least = constants.min().item()
    clip, steps = setting["factor"] * least, setting.get("steps", STEPS)
    radius = max(train.norm(dim=1).max().item(), test.norm(dim=1).max().item()) * (1 + 1e-6)
    held = torch.arange(len(train)) % 6 == 5
    scores = {}
    for path in PATHS:
        model = private_head(train[~held], labels[~held], clip, radius, path, seed, steps)
        scores[path] = accuracy(model, train[held], labels[held])
    chosen = max(scores, key=scores.get)
    model = private_head(train, labels, clip, radius, chosen, seed, steps)
    return {
        "clip": clip,
        "smallest_constant": least,
        "clipped": (constants > clip * (1 + 1e-6)).float().mean().item(),
        "validation": {str(path): score for path, score in scores.items()},
        "chosen": chosen,
        "test_accuracy": accuracy(model, test, test_labels),
    }
