"""Is the sensitivity ever exceeded while a network is trained, and how closely is it reached?

The network of the chapter (MaxMin, orthogonal weights, no biases, inputs on the unit sphere) is trained
privately, and five of its iterates, and the average that `fit` returns, are audited: the gradient of each of
the training samples, and of inputs and labels that a search of SEARCH_STEPS steps finds on the ball, over the
certified bound. "mean" is the average over 10,000 samples of the length of their gradient over the
bound. Step 0 is the network before the first release. Widths without steps are audited at step 0 alone.
Chapter: privacy/auditing.
"""

import copy
import itertools

import torch
from torch import nn
from torch.nn import functional as F

from lipbook.data import fashion_mnist
from lipbook.layers import MaxMin
from lipbook.privacy import ClippedGradient, audit_gradients, fit, gradient_norms, release, sensitivity
from lipbook.training import OffsetCrossEntropy

SEEDS = [0]
SETTINGS = [{"widths": [256, 256], "clip": 0.7, "steps": 146, "records": 60000, "init": 0}] + [
    {"widths": widths, "clip": clip, "steps": 0, "records": 1000, "init": init}
    for clip in (0.7, None)
    for widths, init in (([256, 256], 0), ([256, 256], 1), ([256, 256], 2), ([784, 784], 0))
]
SMOKE = [{"widths": [16], "clip": 0.7, "steps": 2, "records": 500, "init": 0}]
STAGES = (0, 10, 40, 90, 146)
BATCH, EPSILON, DELTA, SEARCH_STEPS = 4096, 3.0, 1e-5, 60


def network(widths, init):
    """784-widths-10 with orthogonal weights and MaxMin."""
    sizes = [784, *widths, 10]
    layers = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init)
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after, bias=False), MaxMin()]
            nn.init.orthogonal_(layers[-2].weight)
    return nn.Sequential(*layers[:-1])


def trained(model, x, y, loss, steps, seed):
    """The iterates after the steps of STAGES, the average that is returned, and what each release assumed."""
    iterates, average_of = {0: copy.deepcopy(model)}, release._average

    def keep(average, weights, decay, step):
        average_of(average, weights, decay, step)
        if step in STAGES or step == steps:
            iterates[step] = copy.deepcopy(model)
            iterates[step].load_state_dict(weights)

    release._average = keep  # the only place where `fit` lets one look at its iterates
    try:
        rate = BATCH / 60000
        returned, record = fit(model, (x, y), loss, EPSILON, DELTA, steps, rate, 1.0, seed=seed)
    finally:
        release._average = average_of
    assumed = [each.sensitivities[0] for each in record.releases]
    return iterates, nn.Sequential(*returned[1:]), assumed


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
        stages, returned, assumed = trained(model, x, y, loss, setting["steps"], seed)
        stages["average"] = returned
    found = []
    for stage, iterate in stages.items():
        with torch.no_grad():
            accuracy = (iterate(test).argmax(dim=1) == data.test_labels).float().mean().item()
        found.append({"stage": stage, "accuracy": accuracy, **audited(iterate, loss, x, y, seed)})
    return {"stages": found, "sensitivity_released": [min(assumed), max(assumed)]}
