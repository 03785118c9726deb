"""The settings of the book's two certified networks, compared on a validation split.

Every sixth training image of Fashion-MNIST (10,000 of 60,000) is held out; the test images are not read.
`right` counts held-out images whose class is right after the last step, `certified` those that are also
certified at each radius of RADII, by the rule of pairs. certified.py takes, for each network, the setting
with the largest sum of the counts at 0.5, 1.0 and 1.58 among those with at least 87 % right.
"""

import torch

from lipbook.data import fashion_mnist
from lipbook.data.checkpoints import untrained
from lipbook.training import OffsetCrossEntropy, certified_radius, fit

SEEDS = [0]
RADII = (36 / 255, 0.5, 1.0, 1.58)
LENGTHS = {"fashion-certified": 3000, "fashion-certified-large": 5000}  # steps


def _setting(network, offset, lr, shift):
    return {"network": network, "offset": offset, "lr": lr, "shift": shift, "steps": LENGTHS[network]}


SETTINGS = [
    *(_setting("fashion-certified", offset, lr, 0) for offset in (1.5, 1.75, 2.0) for lr in (0.003, 0.01)),
    _setting("fashion-certified", 1.75, 0.003, 1),
    *(_setting("fashion-certified-large", offset, 0.003, 0) for offset in (1.75, 2.0, 2.25)),
]
SMOKE = [_setting("fashion-certified", 2.0, 0.003, 0) | {"steps": 2}]
TEMPERATURE = 0.25


def trained(train, network, offset, lr, shift, steps, seed):
    """The network of a setting, trained on a pair (inputs, labels)."""
    torch.manual_seed(seed)
    loss = OffsetCrossEntropy(offset, TEMPERATURE)
    options = {"batch_size": 256, "lr": lr, "schedule": "cosine", "shift": shift, "device": "cpu"}
    return fit(untrained(network), train, None, loss, steps, seed, **options)[0]


def counts(model, inputs, labels):
    """How many are right, and how many are certified at each radius."""
    with torch.no_grad():
        right = torch.cat([model(part).argmax(dim=1) for part in inputs.split(1000)]) == labels
    certified = right & (certified_radius(model, inputs) > torch.tensor(RADII)[:, None])
    return {"right": right.sum().item(), "certified": certified.sum(dim=1).tolist(), "of": len(labels)}


def run(setting, seed):
    data = fashion_mnist()
    held_out = torch.arange(len(data.train_labels)) % 6 == 5
    train = data.train_inputs[~held_out], data.train_labels[~held_out]
    model = trained(train, **setting, seed=seed)
    return counts(model, data.train_inputs[held_out], data.train_labels[held_out])
