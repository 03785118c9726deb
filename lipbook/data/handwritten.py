"""The 8 x 8 handwritten digits that come with scikit-learn.

Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository;
scikit-learn holds its test set of 1,797 images.
"""

import numpy as np
import torch

from lipbook.data.dataset import Dataset

HELD_OUT = 5  # of each class, every fifth image is for testing


def digits() -> Dataset:
    """The digits: 1,797 images of 8 x 8 pixels in 10 classes, 1,442 for training and 355 for testing.

    The split is fixed and stratified: of each class, in scikit-learn's order, every fifth image is held out.

    Returns:
        A `Dataset` of new tensors: inputs (n, 1, 8, 8), each pixel / 16; labels (n,) from 0 to 9.

    Source: `sklearn.datasets.load_digits`.
    """
    from sklearn.datasets import load_digits  # takes longer to import than the rest of the library

    pixels, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy((pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8))
    labels = torch.from_numpy(labels.astype(np.int64))
    test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        test[torch.nonzero(labels == digit).flatten()[HELD_OUT - 1 :: HELD_OUT]] = True
    return Dataset(inputs[~test], labels[~test], inputs[test], labels[test])
