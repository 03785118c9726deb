"""What each loss buys: accuracy against certified accuracy, one network, one number of steps, four losses.

The network is 784-128-128-128-10 of orthogonal layers (Cayley) with MaxMin, so that its constant is 1
whatever the loss. Every sixth training image of Fashion-MNIST (10,000 of 60,000) is held out, and counts are
of held-out images; the test images are not read, as this compares losses and says nothing of one network. A
setting's `value` is the offset of the loss "offset" and the radius of the other three, which grows from a
tenth of it in the first half of the training (RadiusRamp).

SETTINGS holds short runs, which the chapter repeats; the comparison at LR; other temperatures of plain
cross-entropy, of EMMA and of GloRo; and the rates of RATES for one setting of each loss. LR is the rate for
which the medians over the seeds of the count at radius 0.5, summed over the four losses, are highest.

`right` counts images whose class is right, `certified` those that are also certified at each radius of RADII,
by the rule of pairs.

Chapter: training/losses.
"""

import torch
from torch import nn

from lipbook.data import fashion_mnist
from lipbook.layers import MaxMin, OrthogonalLinear
from lipbook.training import (
    EMMALoss,
    GloRoLoss,
    LogitAnnealingLoss,
    OffsetCrossEntropy,
    RadiusRamp,
    certified_radius,
    fit,
)

SEEDS = [0, 1, 2]
RADII = (36 / 255, 0.5, 1.0, 1.58)
WIDTH, STEPS, SHORT, LR = 128, 400, 120, 0.01
RATES = (0.003, 0.01, 0.03)
TEMPERATURE = {"offset": 0.25, "emma": 0.25, "gloro": 0.25, "annealing": 0.75}
GRID = {
    "offset": (0.0, 0.5, 1.0, 2.0, 3.0),
    "emma": (0.25, 0.5, 1.0, 1.58),
    "gloro": (0.25, 0.5, 1.0, 1.58),
    "annealing": (0.25, 0.5, 1.0, 1.58),
}
MIDDLE = {"offset": 1.0, "emma": 0.5, "gloro": 0.5, "annealing": 0.5}


def _setting(loss, value, temperature=None, lr=LR, steps=STEPS):
    temperature = TEMPERATURE[loss] if temperature is None else temperature
    return {"loss": loss, "value": value, "temperature": temperature, "lr": lr, "steps": steps}


SETTINGS = [
    *(_setting(loss, value, steps=SHORT) for loss, value in MIDDLE.items()),
    *(_setting(loss, value) for loss, values in GRID.items() for value in values),
    *(_setting("offset", 0.0, temperature) for temperature in (0.0625, 1.0)),
    *(_setting(loss, 0.5, 1.0) for loss in ("emma", "gloro")),
    *(_setting(loss, value, lr=lr) for loss, value in MIDDLE.items() for lr in RATES if lr != LR),
]
SMOKE = [_setting(loss, value, steps=2) for loss, value in MIDDLE.items()]


def untrained(width=WIDTH):
    """784-width-width-width-10, orthogonal, from torch's global random state."""
    return nn.Sequential(
        nn.Flatten(),
        OrthogonalLinear(784, width),
        MaxMin(),
        OrthogonalLinear(width, width),
        MaxMin(),
        OrthogonalLinear(width, width),
        MaxMin(),
        OrthogonalLinear(width, 10),
    )


def loss_of(setting):
    value, temperature = setting["value"], setting["temperature"]
    if setting["loss"] == "offset":
        return OffsetCrossEntropy(value, temperature)
    kinds = {"emma": EMMALoss, "gloro": GloRoLoss, "annealing": LogitAnnealingLoss}
    return RadiusRamp(kinds[setting["loss"]](value, temperature))


def run(setting, seed):
    data = fashion_mnist()
    held_out = torch.arange(len(data.train_labels)) % 6 == 5
    train = data.train_inputs[~held_out], data.train_labels[~held_out]
    inputs, labels = data.train_inputs[held_out], data.train_labels[held_out]
    torch.manual_seed(seed)
    model, _ = fit(
        untrained(), train, None, loss_of(setting), setting["steps"], seed, batch_size=256, lr=setting["lr"]
    )
    radii = torch.cat([certified_radius(model, part) for part in inputs.split(1000)])
    with torch.no_grad():
        right = torch.cat([model(part).argmax(dim=1) for part in inputs.split(1000)]) == labels
    return {
        "right": right.sum().item(),
        "certified": [(right & (radii > radius)).sum().item() for radius in RADII],
        "of": len(labels),
    }
