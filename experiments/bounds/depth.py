"""Both ends of the Lipschitz constant of a network against its depth, before and after training.

A plain network of L linear layers is Linear(64, 32), ReLU, then L - 2 times Linear(32, 32), ReLU, then
Linear(32, 10); with L = 1 it is Linear(64, 10). A residual one is Linear(64, 32), then x + W2 relu(W1 x + b1)
+ b2 as often as `blocks` says, with 32 hidden units, then Linear(32, 10). All start as torch draws them and
are trained with cross-entropy on the digits, in the same number of steps and with the same learning rate.

`upper` is the product of the layers' norms, 1 + |W2| |W1| for a block. `lower` is the slope that the
library's search proves, begun at the training inputs; `data` is the largest norm of the Jacobian at a
training input, by automatic differentiation in float64, as the source takes it. All three in the norms 2 and
inf. Training accuracy is there to say which networks were trained at all.

LEARNING_RATE had the smallest mean training loss among 0.001, 0.003 and 0.01 over the plain networks of 1, 2,
4, 6 and 8 layers, with the seed 100, which is not among SEEDS.

Source: Khromov and Singh, "Some Fundamental Aspects about Lipschitz Continuity of Neural Networks", ICLR
2024, arXiv 2302.10886: their two bounds and their effect of depth. Theirs are other data, another width and
another optimiser (MNIST1D, 64, SGD). Chapter: bounds/whole-networks.
"""

import copy
import math

import torch
from torch import nn

from lipbook.bounds import gradient_lower_bound, product_bound
from lipbook.data import digits
from lipbook.layers import Residual
from lipbook.training import fit

WIDTH, STEPS, LEARNING_RATE = 32, 2000, 0.01
SEEDS = list(range(5))
SETTINGS = [{"network": "plain", "layers": n} for n in range(1, 9)]
SETTINGS += [{"network": "residual", "blocks": n} for n in range(1, 5)]
SMOKE = [{"network": "plain", "layers": 2}, {"network": "residual", "blocks": 1}]
LIVE = {"network": "plain", "layers": 4}  # with the seed 0: a few seconds on one core


def network(setting):
    if setting["network"] == "residual":
        middle = [Residual(nn.Sequential(hidden(), nn.ReLU(), hidden())) for _ in range(setting["blocks"])]
    elif setting["layers"] == 1:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    else:
        pairs = [(hidden(), nn.ReLU()) for _ in range(setting["layers"] - 2)]
        middle = [nn.ReLU(), *(layer for pair in pairs for layer in pair)]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), *middle, nn.Linear(WIDTH, 10))


def hidden():
    return nn.Linear(WIDTH, WIDTH)


def both_ends(model, inputs, when):
    double = copy.deepcopy(model).double()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: double(x[None])[0]), chunk_size=256)
    jacobians = jacobian(inputs.double()).flatten(2)
    values = {}
    for norm, name in ((2, "2"), (math.inf, "inf")):
        values[f"upper_{name}_{when}"] = product_bound(model, norm).value
        values[f"lower_{name}_{when}"] = gradient_lower_bound(model, inputs, norm).value
        values[f"data_{name}_{when}"] = torch.linalg.matrix_norm(jacobians, norm).max().item()
    return values


def accuracy(model, inputs, labels):
    with torch.no_grad():
        return (model(inputs).argmax(dim=1) == labels).double().mean().item()


def run(setting, seed):
    data = digits()
    train = (data.train_inputs, data.train_labels)
    torch.manual_seed(seed)
    start = network(setting)
    model, _ = fit(start, train, None, nn.CrossEntropyLoss(), STEPS, seed=seed, lr=LEARNING_RATE)
    return {
        "train_accuracy": accuracy(model, *train),
        "test_accuracy": accuracy(model, data.test_inputs, data.test_labels),
        **both_ends(start, data.train_inputs, "initial"),
        **both_ends(model, data.train_inputs, "trained"),
    }
