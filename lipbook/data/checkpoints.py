"""The book's networks as checkpoints that ship with the package: two plain ones, and two 1-Lipschitz ones.

experiments/networks and experiments/training hold the scripts that made them and their records: how the
settings were chosen, and what accuracies came out. Chapters: bounds/whole-networks, training/margins.
"""

import hashlib
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from lipbook.data.fashion import DataFileError
from lipbook.layers import MaxMin, OrthogonalLinear

FOLDER = Path(__file__).parent / "checkpoint_files"
# Inputs, hidden layers, logits.
SIZES = {"digits": (64, 32, 32, 10), "fashion": (784, 128, 128, 10)}
CERTIFIED = {
    "fashion-certified": (784, 256, 256, 256, 10),
    "fashion-certified-large": (784, 512, 256, 256, 256, 256, 10),
}
SHA256 = {
    "digits": "bbd99ce904b400eda832b0845f4dea506e2f0271c28febe26dc107aad3be2c6d",
    "fashion": "7d7440fd49c77c19681968857ca37da6dbe7a110a7d08488e58eed4eb69d8f81",
    "fashion-certified": "952f000eb8e220277a39f1143ccfca8219399ef24d8c983c21996a390395e754",
    "fashion-certified-large": "069e1d61fe4472b440915a73f02984334c92530456f99344837ad86eb0f0c199",
}


def network(name: str) -> nn.Sequential:
    """A trained classifier in eval mode, in float32, whose output holds 10 logits.

    Args:
        name: "digits" (inputs (batch, 1, 8, 8), layers 64-32-32-10) or "fashion" (inputs (batch, 1, 28, 28),
            layers 784-128-128-10): Flatten, then nn.Linear with ReLU between them. Or two networks of
            orthogonal layers with MaxMin, 1-Lipschitz by construction, trained for their certificates, with
            the same inputs, pixels in [0, 1]: "fashion-certified" (784-256-256-256-10) and
            "fashion-certified-large" (784-512-256-256-256-256-10). Each was trained on the training images of
            `digits()` or of `fashion_mnist()`.

    Returns:
        A new model at each call.

    Raises:
        ValueError: there is no network of that name.
        DataFileError: its file is missing or damaged.
    """
    with torch.device("meta"):  # draws no random numbers: the file has every weight
        model = untrained(name)
    model.load_state_dict(_weights(name), assign=True)
    return model.eval()


def untrained(name: str) -> nn.Sequential:
    """The same network as its layers initialise it, from torch's global random state."""
    names = [*SIZES, *CERTIFIED]
    if name not in names:
        raise ValueError(f"there is no network named {name!r}: choose one of {', '.join(map(repr, names))}.")
    return _plain(SIZES[name]) if name in SIZES else _orthogonal(CERTIFIED[name])


def _plain(sizes):
    model = nn.Sequential(nn.Flatten())
    for size_in, size_out in pairwise(sizes):
        model.extend([nn.Linear(size_in, size_out), nn.ReLU()])
    return model[:-1]


def _orthogonal(sizes):
    model = nn.Sequential(nn.Flatten())
    for size_in, size_out in pairwise(sizes):
        model.extend([OrthogonalLinear(size_in, size_out), MaxMin()])
    return model[:-1]


def _weights(name):
    from safetensors.torch import load  # here, so that importing the library does not load it

    path = FOLDER / f"{name}.safetensors"
    mend = "Restore it (`git checkout -- lipbook/data` in the book's folder, or install lipbook again)."
    try:
        content = path.read_bytes()
    except OSError as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise DataFileError(f"{path} {what}. {mend}") from error
    if (found := hashlib.sha256(content).hexdigest()) != SHA256[name]:
        raise DataFileError(f"{path} is damaged (SHA-256 {found}). {mend}")
    return {key: weight.clone() for key, weight in load(content).items()}
