"""Training orthogonal networks on the digits with two forward passes and no backward one, against its depth.

All networks have `depth` linear layers without bias, 64 wide but the last, ReLU between them, and start from
orthogonal matrices (the last layer from ten orthonormal rows). Three rules make the step from the logits'
error e = softmax - one-hot:

"backprop": the gradient of the mean cross-entropy.
"foton": a second pass with the input x - F e, F the transposed product of all weights; layer i moves along
(h_i - h_i') h_{i-1}', where h_i' is the second pass, and the last layer along e h'.
"pepita": the same with a fixed random F, of standard deviation 0.05, and the second pass on both sides.

After a step with "backprop" or "foton" every weight takes BJORCK steps of Bjorck's iteration; "pepita" has
no such step, as in its source.

Every fifth training image is held out. For each learning rate of RATES, `held_out` and `test` count the
images that are classified rightly after STEPS steps. The chapter takes the rate with the highest median of
`held_out` and reports `test` there.

Sources: Caillon, Colagrande, Fagnou, Delattre and Allauzen, "Forward Only Learning for Orthogonal Neural
Networks of any Depth", arXiv 2512.20668, and its code (which runs Bjorck's iteration to convergence, with
dropout 0.1). PEPITA: Dellaferrera and Kreiman, "Error-driven input modulation", ICML 2022. Chapter:
layers/orthogonal-layers.
"""

import torch
from torch.nn.functional import one_hot

from lipbook.data import digits

WIDTH, BATCH, STEPS, BJORCK = 64, 128, 600, 5
RATES = (0.03, 0.1, 0.3, 1.0)
SEEDS = list(range(5))
SETTINGS = [
    {"rule": rule, "depth": depth} for depth in (2, 4, 8, 16) for rule in ("backprop", "foton", "pepita")
]
SMOKE = [{"rule": "foton", "depth": 2}]


def drawn(depth, dice):
    weights = [torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=dice)).Q for _ in range(depth)]
    return [*weights[:-1], weights[-1][:10]]


def forward(weights, inputs):
    """The inputs, what leaves each hidden layer, and the logits."""
    passed = [inputs]
    for weight in weights[:-1]:
        passed.append(torch.relu(passed[-1] @ weight.T))
    return [*passed, passed[-1] @ weights[-1].T]


def backprop(weights, passed, error):
    updates, cotangent = [], error
    for i in reversed(range(len(weights))):
        updates.insert(0, cotangent.T @ passed[i])
        cotangent = cotangent @ weights[i] * (passed[i] > 0)
    return updates


def forward_only(weights, passed, error, feedback, modulated_both):
    again = forward(weights, passed[0] - error @ feedback)
    before = again if modulated_both else passed
    updates = [(h - g).T @ b for h, g, b in zip(passed[1:-1], again[1:-1], before)]
    return [*updates, error.T @ before[-2]]


def trained(rule, depth, rate, seed, inputs, labels):
    dice = torch.Generator().manual_seed(seed)
    weights = drawn(depth, dice)
    fixed = 0.05 * torch.randn(10, WIDTH, generator=dice)
    for _ in range(STEPS):
        batch = torch.randint(len(inputs), (BATCH,), generator=dice)
        passed = forward(weights, inputs[batch])
        error = torch.softmax(passed[-1], 1) - one_hot(labels[batch], 10)
        if rule == "backprop":
            updates = backprop(weights, passed, error)
        elif rule == "foton":
            product = torch.linalg.multi_dot(weights[::-1])
            updates = forward_only(weights, passed, error, product, modulated_both=False)
        else:
            updates = forward_only(weights, passed, error, fixed, modulated_both=True)
        weights = [weight - rate / BATCH * update for weight, update in zip(weights, updates)]
        if rule != "pepita":
            weights = [bjorck(weight) for weight in weights]
    return weights


def bjorck(weight):
    for _ in range(BJORCK):
        weight = 1.5 * weight - 0.5 * weight @ weight.T @ weight
    return weight


def right(weights, inputs, labels):
    return (forward(weights, inputs)[-1].argmax(dim=1) == labels).sum().item()


def run(setting, seed):
    data = digits()
    images, labels = data.train_inputs.flatten(1), data.train_labels
    held_out = torch.arange(len(labels)) % 5 == 4
    row = {"held_out": [], "test": [], "held_out_of": int(held_out.sum()), "test_of": len(data.test_labels)}
    for rate in RATES:
        weights = trained(setting["rule"], setting["depth"], rate, seed, images[~held_out], labels[~held_out])
        row["held_out"].append(right(weights, images[held_out], labels[held_out]))
        row["test"].append(right(weights, data.test_inputs.flatten(1), data.test_labels))
    return row
