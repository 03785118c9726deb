"""Certified accuracy, and accuracy under attack, of the shipped networks on the test images of Fashion-MNIST.

An image counts as certified at a radius if its class is right and its certified radius, pair by pair from the
product bound, is larger. It stands under attack at a radius if no attack at this radius or at a smaller one
on the list has changed its class: l_2 gradient descent on the margin, pixels in [0, 1], STEPS steps,
RESTARTS starts. Between the two counts lies the truth. `broken` counts the images that are certified and were
broken: it must be 0.

Nothing is chosen here, and the test images serve no other purpose.

Chapter: training/margins.
"""

import torch

from lipbook.data import fashion_mnist, network
from lipbook.layers import export
from lipbook.training import attack, certified_radius

RADII = (0.05, 0.1, 36 / 255, 0.25, 0.5, 0.75, 1.0, 1.25, 1.58, 2.0)
STEPS, RESTARTS, BATCH = 40, 2, 1000
SETTINGS = [
    {"network": "fashion"},
    {"network": "fashion-certified"},
    {"network": "fashion-certified-large", "radii": [36 / 255, 0.5, 1.0, 1.58]},
]
SMOKE = [{"network": "fashion", "images": 20, "radii": [0.5]}]
SEEDS = [0]


def attacked(model, inputs, labels, radius, seed):
    """Which images keep their class; `model` has plain weights."""
    keep = []
    for images, classes in zip(inputs.split(BATCH), labels.split(BATCH)):
        moved = attack(model, images, classes, radius, steps=STEPS, restarts=RESTARTS, seed=seed)
        with torch.no_grad():
            keep.append(model(moved).argmax(dim=1) == classes)
    return torch.cat(keep)


def run(setting, seed):
    torch.set_num_threads(1)
    _, _, inputs, labels = fashion_mnist()
    inputs, labels = (part[: setting.get("images")] for part in (inputs, labels))
    model = network(setting["network"])
    certificates = certified_radius(model, inputs)
    plain = export(model).eval()
    with torch.no_grad():
        standing = plain(inputs).argmax(dim=1) == labels
    clean = standing.clone()
    rows = []
    for radius in setting.get("radii", RADII):
        left = standing.nonzero().flatten()
        if len(left):
            standing[left] = attacked(plain, inputs[left], labels[left], radius, seed)
        certified = clean & (certificates > radius)
        rows.append(
            {
                "radius": radius,
                "certified": int(certified.sum()),
                "attacked": int(standing.sum()),
                "broken": int((certified & ~standing).sum()),
            }
        )
    return {"images": len(labels), "clean": int(clean.sum()), "radii": rows}
