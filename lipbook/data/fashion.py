"""Fashion-MNIST, read from the four files that ship with the package.

Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", arXiv 1708.07747 (copyright Zalando SE, MIT licence). The files are the published ones, byte for
byte: a test compares them with the MD5 sums that came with them.
"""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np
import torch

from lipbook.data.dataset import Dataset

FOLDER = Path(__file__).parent / "fashion_mnist_files"

# SHA-256 of the decompressed content, so that a copy packed again serves as well.
SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
IMAGES_HEADER, LABELS_HEADER = 16, 8  # bytes before the pixels and before the labels, in the IDX format


class DataFileError(RuntimeError):
    """A file of a data set is missing or is not the file that was published."""


def fashion_mnist() -> Dataset:
    """Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28 pixels in 10 classes, as published.

    Returns:
        A `Dataset` of new tensors: inputs (n, 1, 28, 28), each pixel / 255; labels (n,) from 0 to 9.

    Raises:
        DataFileError: a file is missing or damaged.

    Source: arXiv 1708.07747.
    """
    return Dataset(
        _images("train-images-idx3-ubyte.gz"),
        _labels("train-labels-idx1-ubyte.gz"),
        _images("t10k-images-idx3-ubyte.gz"),
        _labels("t10k-labels-idx1-ubyte.gz"),
    )


def _images(name):
    pixels = np.frombuffer(_content(name), dtype=np.uint8, offset=IMAGES_HEADER).reshape(-1, 1, 28, 28)
    return torch.from_numpy(np.divide(pixels, 255, dtype=np.float32))


def _labels(name):
    return torch.from_numpy(
        np.frombuffer(_content(name), dtype=np.uint8, offset=LABELS_HEADER).astype(np.int64)
    )


def _content(name):
    path = FOLDER / name
    mend = (
        "Restore it (`git checkout -- lipbook/data` in the book's folder, or install lipbook again), "
        "or copy the file of that name from https://github.com/zalandoresearch/fashion-mnist, data/fashion."
    )
    try:
        content = gzip.decompress(path.read_bytes())
    except OSError as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise DataFileError(f"{path} {what}. {mend}") from error
    except (EOFError, zlib.error) as error:
        raise DataFileError(f"{path} is damaged ({error}). {mend}") from error
    if (found := hashlib.sha256(content).hexdigest()) != SHA256[name]:
        raise DataFileError(f"{path} holds other data than was published (SHA-256 {found}). {mend}")
    return content
