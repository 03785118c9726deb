"""The digits: all of scikit-learn's, split the same way every time, each class in proportion."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from lipbook.data import Dataset, digits


def rows(inputs, labels):
    """Each image with its label as one row of integers, in a fixed order."""
    table = np.column_stack([np.asarray(inputs).reshape(len(labels), -1), labels]).astype(int)
    return table[np.lexsort(table.T)]


def test_sizes_types_and_range():
    data = digits()
    assert isinstance(data, Dataset)
    for inputs, labels, count in ((data[0], data[1], 1442), (data[2], data[3], 355)):
        assert inputs.shape == (count, 1, 8, 8) and inputs.dtype == torch.float32
        assert inputs.min() == 0 and inputs.max() == 1
        assert labels.shape == (count,) and labels.dtype == torch.int64


def test_the_split_loses_and_repeats_nothing():
    data, (pixels, labels) = digits(), load_digits(return_X_y=True)
    inputs = torch.cat([data.train_inputs, data.test_inputs]) * 16
    given = torch.cat([data.train_labels, data.test_labels])
    assert np.array_equal(rows(inputs, given), rows(pixels, labels))


def test_every_class_is_held_out_in_proportion():
    data = digits()
    share = data.test_labels.bincount() / (data.train_labels.bincount() + data.test_labels.bincount())
    assert ((share > 0.19) & (share <= 0.2)).all()


def test_each_call_gives_the_same_split_in_new_tensors():
    first, second = digits(), digits()
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    first.train_inputs.zero_()
    assert second.train_inputs.any() and digits().train_inputs.any()
