"""What a data set is in this book: a fixed split of images and labels."""

from typing import NamedTuple

import torch


class Dataset(NamedTuple):
    """Inputs are float32 in [0, 1], of shape (n, 1, height, width); labels are int64, of shape (n,)."""

    train_inputs: torch.Tensor
    train_labels: torch.Tensor
    test_inputs: torch.Tensor
    test_labels: torch.Tensor
