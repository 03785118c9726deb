"""Fashion-MNIST, whose four original files ship with the package, and the 8x8 digits of scikit-learn.

Xiao, Rasul and Vollgraf, arXiv:1708.07747 (MIT licence, beside the files); Alpaydin and Kaynak, UCI, 1998.
Nothing is downloaded. Chapter: bounds/spectral-norms.
"""

import gzip
import hashlib
from importlib import resources
from typing import NamedTuple

import numpy
import torch

# SHA-256 of the files whose MD5 sums Zalando Research published with them.
_SHA256 = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
_DIGITS_TEST = 360


class Split(NamedTuple):
    """Images as float32 in [0, 1] of shape (n, 1, height, width), labels as int64 of shape (n,)."""

    train_inputs: torch.Tensor
    train_labels: torch.Tensor
    test_inputs: torch.Tensor
    test_labels: torch.Tensor


def fashion_mnist() -> Split:
    """Fashion-MNIST: 60,000 and 10,000 images of 28 x 28 pixels in ten classes, in the published order.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or is not the published one.
    """
    train, test = (
        (_images(_verified(f"{part}-images-idx3-ubyte.gz")), _labels(_verified(f"{part}-labels-idx1-ubyte.gz")))
        for part in ("train", "t10k")
    )
    return Split(*train, *test)


def digits() -> Split:
    """The 8 x 8 digits: 1,437 images for training and 360 for testing, stratified by class, fixed split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    targets = torch.tensor(labels, dtype=torch.int64)
    train, test = train_test_split(numpy.arange(len(labels)), test_size=_DIGITS_TEST, stratify=labels, random_state=0)
    return Split(inputs[train], targets[train], inputs[test], targets[test])


def _verified(name):
    """The content of a file of the package, or an error that says how to mend it."""
    file = resources.files("lipbook.data") / "fashion_mnist_files" / name
    mend = "reinstall lipbook, or restore the file with git checkout -- lipbook/data"
    try:
        packed = file.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the Fashion-MNIST file {name} is missing: {mend}.") from error
    if hashlib.sha256(packed).hexdigest() != _SHA256[name]:
        raise ValueError(f"the Fashion-MNIST file {name} is damaged (its SHA-256 is not the published file's): {mend}.")
    return gzip.decompress(packed)


def _images(content):
    pixels = numpy.frombuffer(content, dtype=numpy.uint8, offset=16).reshape(-1, 1, 28, 28)
    return torch.tensor(pixels).float().div_(255)


def _labels(content):
    return torch.tensor(numpy.frombuffer(content, dtype=numpy.uint8, offset=8)).long()
