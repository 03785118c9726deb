"""The book's two networks: small plain classifiers, as checkpoints that ship with the package.

experiments/networks holds the scripts that made them, choose.py and plain.py, and their records: how the
settings were chosen, and what accuracies came out. Chapter: bounds/whole-networks.
"""

import hashlib
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from lipbook.data.fashion import DataFileError

FOLDER = Path(__file__).parent / "checkpoint_files"
SIZES = {"digits": (64, 32, 32, 10), "fashion": (784, 128, 128, 10)}  # inputs, hidden layers, logits
SHA256 = {
    "digits": "bbd99ce904b400eda832b0845f4dea506e2f0271c28febe26dc107aad3be2c6d",
    "fashion": "7d7440fd49c77c19681968857ca37da6dbe7a110a7d08488e58eed4eb69d8f81",
}


def network(name: str) -> nn.Sequential:
    """A trained classifier in eval mode: Flatten, then Linear layers with ReLU between them, in float32.

    Args:
        name: "digits" (inputs (batch, 1, 8, 8), layers 64-32-32-10) or "fashion" (inputs (batch, 1, 28, 28),
            layers 784-128-128-10), trained on the training images of `digits()` and of `fashion_mnist()`.

    Returns:
        A new model at each call; its output holds 10 logits.

    Raises:
        ValueError: there is no network of that name.
        DataFileError: its file is missing or damaged.
    """
    with torch.device("meta"):  # draws no random numbers: the file has every weight
        model = untrained(name)
    model.load_state_dict(_weights(name), assign=True)
    return model.eval()


def untrained(name: str) -> nn.Sequential:
    """The same network as torch initialises it, from torch's global random state."""
    if name not in list(SIZES):
        raise ValueError(f"there is no network named {name!r}: choose one of {', '.join(map(repr, SIZES))}.")
    model = nn.Sequential(nn.Flatten())
    for size_in, size_out in pairwise(SIZES[name]):
        model.extend([nn.Linear(size_in, size_out), nn.ReLU()])
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
