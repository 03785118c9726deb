"""How many steps of gradient descent a deep linear network needs, against its depth, from two kinds of start.

The network is W_L ... W_1, all layers WIDTH wide but the last, which has ten rows. It is trained by plain
gradient descent on 1/2 |W_L ... W_1 - T|^2 (Frobenius norm), where T is the least-squares map from the
whitened digits, their first WIDTH principal components, to the ten classes. That is the loss over the
training set up to a constant, because the inputs are white.

Start "orthogonal": each W_i is the orthogonal factor of a Gaussian matrix. Start "gaussian": each W_i has
independent entries of variance 1 / WIDTH, so that a layer keeps the length of a vector on average. The last
layer is the first ten rows of such a matrix.

`steps` holds, for each learning rate RATES / depth, the number of steps until the relative error
|W_L ... W_1 - T| / |T| is below TOLERANCE, or None where LIMIT steps are not enough or the run diverges. The
chapter takes the best rate of each start and depth, as the source does.

Source: Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear
neural networks", ICLR 2014, arXiv 1312.6120, section 3. Theirs is MNIST with 1000 units a layer. Chapter:
layers/orthogonal-layers.
"""

import torch

from lipbook.data import digits

WIDTH, TOLERANCE, LIMIT = 32, 0.1, 1000
RATES = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
SEEDS = list(range(5))
SETTINGS = [
    {"start": start, "depth": depth}
    for depth in (2, 4, 8, 16, 32, 64)
    for start in ("orthogonal", "gaussian")
]
SMOKE = [{"start": "orthogonal", "depth": 2}]
LIVE = {"start": "orthogonal", "depth": 16}


def target():
    """The map T, (10, WIDTH), float64."""
    data = digits()
    inputs = data.train_inputs.flatten(1).double()
    components = torch.linalg.svd(inputs - inputs.mean(0), full_matrices=False).U[:, :WIDTH]
    classes = torch.nn.functional.one_hot(data.train_labels, 10).double()
    return (classes - classes.mean(0)).T @ components / len(inputs) ** 0.5


def drawn(start, depth, seed):
    """The weights W_1 ... W_L, float64."""
    dice = torch.Generator().manual_seed(seed)
    weights = [torch.randn(WIDTH, WIDTH, generator=dice, dtype=torch.float64) for _ in range(depth)]
    if start == "orthogonal":
        weights = [torch.linalg.qr(weight).Q for weight in weights]
    else:
        weights = [weight / WIDTH**0.5 for weight in weights]
    return [*weights[:-1], weights[-1][:10]]


def steps_needed(weights, goal, rate):
    for step in range(LIMIT):
        before = [torch.eye(WIDTH, dtype=torch.float64)]
        for weight in weights:
            before.append(weight @ before[-1])
        cotangent = before.pop() - goal
        error = (cotangent.norm() / goal.norm()).item()
        if error < TOLERANCE:
            return step
        if not error < 1e6:
            return None
        for i in reversed(range(len(weights))):
            gradient = cotangent @ before[i].T
            cotangent = weights[i].T @ cotangent
            weights[i] = weights[i] - rate * gradient
    return None


def run(setting, seed):
    goal, depth = target(), setting["depth"]
    steps = [steps_needed(drawn(setting["start"], depth, seed), goal, rate / depth) for rate in RATES]
    return {"steps": steps}
