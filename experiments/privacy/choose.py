"""The settings of the book's private networks, compared on a validation split.

Every sixth training image of Fashion-MNIST (10,000 of 60,000) is held out; the test images are not read, and
the cost in privacy of choosing on the images that are held out is not counted (chapter privacy/dp-sgd). A
network of a setting is trained with delta = 1e-5 on the other 50,000, with the same sampling rate as train.py
uses on all 60,000. `right` counts held-out images whose class is right, `certified` those that are also
certified at each radius of RADII (for "private and certified" only). Where parameter gradients are not
clipped, the gradient of the loss with respect to the logits is all the same (`ClippedGradient`), except for
"nor at the logits". train.py takes for each goal (epsilon, features, method) the setting with the most right,
or the largest sum of the certified counts and those right.
"""

import functools

import torch
from torch import nn

from lipbook.data import fashion_mnist
from lipbook.layers import MaxMin, Normalize
from lipbook.privacy import ClippedGradient, OrientedGradients, Scattering, fit
from lipbook.training import OffsetCrossEntropy, certified_radius

SEEDS = [0]
DELTA = 1e-5
RADII = (0.1, 0.25, 0.5)
HIDDEN = (256, 256)
LINEAR = {"hidden": [], "temperature": 1 / 16, "averaging": 0.0}  # a softmax head alone, from zeros
WITHOUT, CLIPPING, BOTH = "without clipping", "clipping", "private and certified"
NOWHERE = "without clipping, nor at the logits"
RATE = 4096 / 60000
TEMPERATURE = 1 / 64  # on the unit sphere; times the norm of the inputs elsewhere


def _goal(epsilon, features, method, **setting):
    return {"epsilon": epsilon, "features": features, "method": method, **setting}


def _settings():
    for steps, lr in ((300, 4.0), (300, 6.0), (450, 4.0)):
        yield _goal(3, "raw", WITHOUT, steps=steps, lr=lr, cotangent=0.7)
    for lr in (3.0, 5.0):
        yield _goal(3, "raw", NOWHERE, steps=300, lr=lr)
    for steps, lr in ((146, 4.0), (220, 3.0)):
        yield _goal(1, "raw", WITHOUT, steps=steps, lr=lr, cotangent=0.7)
    for lr, clip in ((8.0, 0.5), (8.0, 1.0), (12.0, 1.0)):
        yield _goal(3, "raw", CLIPPING, steps=300, lr=lr, clip=clip)
    for steps, lr, clip in ((146, 8.0, 0.5), (146, 8.0, 1.0), (220, 6.0, 1.0)):
        yield _goal(1, "raw", CLIPPING, steps=steps, lr=lr, clip=clip)
    for norm, offset in ((5.0, 0.0), (5.0, 1.0), (8.0, 1.0), (8.0, 2.0)):
        yield _goal(3, "raw", BOTH, steps=300, lr=4 / norm, cotangent=0.7, norm=norm, offset=offset)
    for features in ("gradients", "scattering"):
        for lr in (4.0, 6.0):
            yield _goal(3, features, WITHOUT, steps=300, lr=lr, cotangent=0.7)
        for steps, lr in ((146, 4.0), (220, 3.0)):
            yield _goal(1, features, WITHOUT, steps=steps, lr=lr, cotangent=0.7)
        for epsilon, steps in ((3, 146), (3, 300), (1, 87), (1, 146)):
            for lr in (15.0, 30.0):
                yield _goal(epsilon, features, WITHOUT, steps=steps, lr=lr, cotangent=0.7, **LINEAR)
    for epsilon, steps in ((3, 300), (1, 146)):
        for clip in (0.5, 1.0):
            yield _goal(epsilon, "scattering", CLIPPING, steps=steps, lr=8.0, clip=clip)


SETTINGS = list(_settings())
SMOKE = [_goal(3, "raw", WITHOUT, steps=1, lr=4.0, cotangent=0.7)]


def untrained(inputs, hidden, seed):
    """Dense layers without biases, which `fit` makes orthogonal; a single one, which it need not, is 0."""
    torch.manual_seed(seed)
    sizes, layers = (inputs, *hidden, 10), [nn.Flatten()]
    for before, after in zip(sizes, sizes[1:]):
        layers += [nn.Linear(before, after, bias=False), MaxMin()]
    if not hidden:
        nn.init.zeros_(layers[1].weight)
    return nn.Sequential(*layers[:-1])


def front(features):
    """What is done to an image before it is scaled, whatever the data are."""
    maps = {"gradients": OrientedGradients, "scattering": Scattering}
    return Normalize(0.3, 1.0) if features == "raw" else maps[features]()


@functools.cache
def prepared(features, part):
    """The inputs of a part of the data ("train", "held out", "all" or "test"), and its labels."""
    data = fashion_mnist()
    if part == "test":
        images, labels = data.test_inputs, data.test_labels
    else:
        images, labels = data.train_inputs, data.train_labels
    if part in ("train", "held out"):
        held_out = torch.arange(len(labels)) % 6 == 5
        rows = held_out if part == "held out" else ~held_out
        images, labels = images[rows], labels[rows]
    return applied(front(features), images), labels


def applied(layer, images):
    with torch.no_grad():
        return torch.cat([layer(part) for part in images.split(1000)])


def trained(part, *, epsilon, features, method, steps, lr, seed, **setting):
    """The private network of a part of the data, from what `front` gives to logits, and its record."""
    inputs, labels = prepared(features, part)
    norm = setting.get("norm", 1.0)
    loss = OffsetCrossEntropy(setting.get("offset", 0.0), setting.get("temperature", TEMPERATURE) * norm)
    if setting.get("cotangent"):
        loss = ClippedGradient(loss, setting["cotangent"])
    options = {"clip": setting.get("clip"), "scale": "ball" if method == BOTH else "sphere"}
    hidden = setting.get("hidden", HIDDEN)
    options |= {"averaging": setting.get("averaging", 0.95), "project_every": 1 if hidden else None}
    model = untrained(inputs[0].numel(), hidden, seed)
    return fit(model, (inputs, labels), loss, epsilon, DELTA, steps, RATE, norm, lr=lr, seed=seed, **options)


def counts(model, part, features, method):
    """How many of a part are right, and how many are certified at each radius."""
    inputs, labels = prepared(features, part)
    right = applied(model, inputs).argmax(dim=1) == labels
    row = {"right": right.sum().item(), "of": len(labels)}
    if method == BOTH:  # what is in front takes a constant off every pixel: the radii are those in pixels
        radii = torch.cat(
            [certified_radius(model, inputs[k : k + 1000]) for k in range(0, len(inputs), 1000)]
        )
        row["certified"] = (right & (radii > torch.tensor(RADII)[:, None])).sum(dim=1).tolist()
    return row


def run(setting, seed):
    model, _ = trained("train", **setting, seed=seed)
    return counts(model, "held out", setting["features"], setting["method"])
