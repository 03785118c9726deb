"""Is the sensitivity ever exceeded while a network is trained, and how closely is it reached?

The network of the chapter (MaxMin, orthogonal weights, no biases, inputs on the unit sphere) is trained
privately, and five of its iterates are audited: the gradient of each of the training samples, and of inputs
and labels that a search of SEARCH_STEPS steps finds on the ball, over the certified bound. "mean" is the
average over 10,000 samples of the length of their gradient over the bound. Step 0 is the network before the
first release. Widths without steps are audited at step 0 alone.
Chapter: privacy/auditing.
"""

import copy
import itertools

import torch
from torch import nn
from torch.nn import functional as F

from lipbook.data import fashion_mnist
from lipbook.layers import MaxMin
from lipbook.privacy import (
    ClippedGradient,
    audit_gradients,
    gradient_norms,
    noise_multiplier,
    release,
    sensitivity,
)
from lipbook.privacy.projection import contracted, nearest_semiorthogonal
from lipbook.training import OffsetCrossEntropy

SEEDS = [0]
SETTINGS = [{"widths": [256, 256], "clip": 0.7, "steps": 146, "records": 60000, "init": 0}] + [
    {"widths": widths, "clip": clip, "steps": 0, "records": 1000, "init": init}
    for clip in (0.7, None)
    for widths, init in (([256, 256], 0), ([256, 256], 1), ([256, 256], 2), ([784, 784], 0))
]
SMOKE = [{"widths": [16], "clip": 0.7, "steps": 2, "records": 500, "init": 0}]
STAGES = (0, 10, 40, 90, 146)
BATCH, EPSILON, DELTA, LR, SEARCH_STEPS = 4096, 3.0, 1e-5, 4.0, 60


def network(widths, init):
    """784-widths-10 with orthogonal weights and MaxMin."""
    sizes = [784, *widths, 10]
    layers = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init)
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after, bias=False), MaxMin()]
            weight = nn.init.orthogonal_(layers[-2].weight)
            weight.data = contracted(nearest_semiorthogonal(weight.data))
    return nn.Sequential(*layers[:-1])


def trained(model, x, y, loss, steps, seed):
    """The network after the steps of STAGES, trained as `fit` trains it, and what each release assumed."""
    rate = BATCH / 60000
    sigma = noise_multiplier(EPSILON, rate, steps, DELTA)
    plan = release.Plan(loss, sigma, sampling_rate=rate, input_norm=1.0, seed=seed)
    rates = [LR * (1 - step / steps) for step in range(steps)]
    model, iterates, assumed = copy.deepcopy(model), {0: copy.deepcopy(model)}, []
    for step, each in enumerate(release.train_privately(model, x, y, plan, rates, momentum=0.0), 1):
        assumed += each.sensitivities
        if step in STAGES or step == steps:
            iterates[step] = copy.deepcopy(model)
    return iterates, assumed


def audited(model, loss, x, y, seed):
    bound = sensitivity(model, loss, 1.0)
    data = audit_gradients(model, loss, x, y, 1.0, bound)
    search = audit_gradients(model, loss, x[:500], y[:500], 1.0, bound, SEARCH_STEPS, seed)
    lengths = [
        torch.stack([*gradient_norms(model, loss, *part).values()]).norm(dim=0)
        for part in zip(x[:10000].split(1000), y[:10000].split(1000))
    ]
    return {
        "bound": bound.total,
        "data": data.ratio,
        "data_per_parameter": list(data.per_parameter.values()),
        "search": search.ratio,
        "search_per_parameter": list(search.per_parameter.values()),
        "mean": torch.cat(lengths).double().mean().item() / bound.total,
        "violations": [*data.violations, *search.violations],
    }


def run(setting, seed):
    data = fashion_mnist()
    x = F.normalize(data.train_inputs[: setting["records"]].flatten(1))
    y = data.train_labels[: setting["records"]]
    test = F.normalize(data.test_inputs.flatten(1))
    loss = OffsetCrossEntropy(0.0, 1 / 64)
    loss = loss if setting["clip"] is None else ClippedGradient(loss, setting["clip"])
    model = network(setting["widths"], setting["init"])
    stages, assumed = {0: model}, [sensitivity(model, loss, 1.0).total]
    if setting["steps"]:
        stages, assumed = trained(model, x, y, loss, setting["steps"], seed)
    found = []
    for stage, iterate in stages.items():
        with torch.no_grad():
            accuracy = (iterate(test).argmax(dim=1) == data.test_labels).float().mean().item()
        found.append({"stage": stage, "accuracy": accuracy, **audited(iterate, loss, x, y, seed)})
    return {"stages": found, "sensitivity_released": [min(assumed), max(assumed)]}
