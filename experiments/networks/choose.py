"""The learning rate and the number of steps of the book's two networks, compared on a validation split.

Every fifth training image of the digits and every sixth of Fashion-MNIST (10,000 of 60,000) is held out; the
test images are not read. Each value counts the held-out images that are classified rightly after the last
step. plain.py takes the setting with the highest median over the seeds.
"""

import torch
from torch import nn

from lipbook.data import digits, fashion_mnist
from lipbook.data.checkpoints import untrained
from lipbook.training import fit

SEEDS = [0, 1, 2]
GRID = {"digits": (500, 1000, 2000), "fashion": (1000, 2000, 4000)}  # steps
SETTINGS = [
    {"network": name, "lr": lr, "steps": steps}
    for name, lengths in GRID.items()
    for lr in (0.0003, 0.001, 0.003, 0.01)
    for steps in lengths
]
SMOKE = [{"network": "digits", "lr": 0.001, "steps": 20}]
HELD_OUT = {"digits": 5, "fashion": 6}


def run(setting, seed):
    name = setting["network"]
    data = digits() if name == "digits" else fashion_mnist()
    held_out = torch.arange(len(data.train_labels)) % HELD_OUT[name] == HELD_OUT[name] - 1
    train = data.train_inputs[~held_out], data.train_labels[~held_out]
    validation = data.train_inputs[held_out], data.train_labels[held_out]
    torch.manual_seed(seed)
    _, record = fit(
        untrained(name),
        train,
        validation,
        nn.CrossEntropyLoss(),
        setting["steps"],
        seed,
        batch_size=256,
        lr=setting["lr"],
    )
    step, accuracy = record.validation[-1]
    return {"step": step, "right": round(accuracy * len(validation[1])), "of": len(validation[1])}
