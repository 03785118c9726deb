"""Dense layers against convolutions, and images that are moved, for the same loss and the same steps.

"dense" is the network 784-256-256-256-10 that ships as "fashion-certified", untrained. "convolutional" keeps
every layer orthogonal too: 2 x 2 patches to 16 channels of 14 x 14, a 3 x 3 convolution (BCOP), patches to 64
channels of 7 x 7, another 3 x 3, then 3136-128-10, zeros around the images, MaxMin in between. `shift` moves
each training image by up to so many pixels. Every sixth training image of Fashion-MNIST is held out and
counted, as in choose.py; the test images are not read. `seconds` is the processor time of the training.

Chapter: training/losses.
"""

import importlib.util
import time
from pathlib import Path

import torch
from torch import nn

from lipbook.data import fashion_mnist
from lipbook.data.checkpoints import untrained
from lipbook.layers import MaxMin, OrthogonalConv2d, OrthogonalLinear
from lipbook.training import OffsetCrossEntropy, fit

_spec = importlib.util.spec_from_file_location("choose", Path(__file__).with_name("choose.py"))
choose = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(choose)

SEEDS = [0, 1, 2]
STEPS, LR, OFFSET = 800, 0.01, 1.75
SETTINGS = [
    {"network": "dense", "shift": 0, "steps": STEPS},
    {"network": "dense", "shift": 1, "steps": STEPS},
    {"network": "convolutional", "shift": 0, "steps": STEPS},
]
SMOKE = [{"network": "dense", "shift": 1, "steps": 2, "images": 100}]


def convolutional():
    def convolution(channels_in, channels_out, size, **options):
        return OrthogonalConv2d(channels_in, channels_out, size, padding_mode="zeros", **options)

    return nn.Sequential(
        convolution(1, 16, 2, stride=2, method="patch"),
        MaxMin(),
        convolution(16, 16, 3),
        MaxMin(),
        convolution(16, 64, 2, stride=2, method="patch"),
        MaxMin(),
        convolution(64, 64, 3),
        MaxMin(),
        nn.Flatten(),
        OrthogonalLinear(3136, 128),
        MaxMin(),
        OrthogonalLinear(128, 10),
    )


def run(setting, seed):
    data = fashion_mnist()
    held_out = torch.arange(len(data.train_labels)) % 6 == 5
    train = data.train_inputs[~held_out], data.train_labels[~held_out]
    torch.manual_seed(seed)
    model = untrained("fashion-certified") if setting["network"] == "dense" else convolutional()
    loss = OffsetCrossEntropy(OFFSET, choose.TEMPERATURE)
    options = {"lr": LR, "schedule": "cosine", "shift": setting["shift"], "device": "cpu"}
    start = time.process_time()
    model, _ = fit(model, train, None, loss, setting["steps"], seed, batch_size=256, **options)
    seconds = time.process_time() - start
    judged = slice(setting.get("images"))
    inputs, labels = data.train_inputs[held_out][judged], data.train_labels[held_out][judged]
    return choose.counts(model, inputs, labels) | {"seconds": seconds}
