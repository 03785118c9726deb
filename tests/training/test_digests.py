"""A digest tells values apart that make training runs differ, and is the same in another process."""

import functools
import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

from lipbook.training.digests import digest


def weighted(temperature, power=2):
    return lambda z, y: (z.gather(1, y[:, None]) * temperature).pow(power).mean()


class Loss:
    def __init__(self, offset):
        self.offset = offset

    def value(self, z, y):
        return (z - self.offset).sum()


def defaults(z, y, scale=1.0):
    return z.sum() * scale


def other_defaults(z, y, scale=2.0):
    return z.sum() * scale


other_defaults.__qualname__ = defaults.__qualname__

DIFFERENT = [
    1,
    True,
    1.0,
    "1",
    b"1",
    None,
    (),
    [],
    (1, 2),
    ((1,), 2),
    {1: 2},
    {1, 2},
    torch.zeros(2),
    torch.zeros(2, requires_grad=True),
    torch.zeros(2, dtype=torch.int32),
    torch.zeros(2, 1),
    torch.tensor([0.0, 1e-45]),
    torch.tensor(0.0),
    torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(2, 2),
    torch.tensor([1.0, 3.0, 2.0, 4.0]).reshape(2, 2),
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(label_smoothing=0.1),
    nn.CrossEntropyLoss(weight=torch.ones(2)),
    nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])),
    nn.MultiMarginLoss(),
    nn.CrossEntropyLoss,
    nn.functional.cross_entropy,
    nn.functional.nll_loss,
    weighted(0.5),
    weighted(0.25),
    weighted(0.5, power=3),
    defaults,
    other_defaults,
    lambda z, y: z.sum(),
    lambda z, y: z.mean(),
    functools.partial(defaults, scale=1.0),
    functools.partial(defaults, scale=2.0),
    Loss(1.0),
    Loss(2.0),
    Loss(1.0).value,
    Loss(2.0).value,
    torch,
    nn,
    torch.sum,
    torch.float32,
    torch.device("cpu"),
]


def test_what_differs_has_another_digest():
    assert len({digest(value) for value in DIFFERENT}) == len(DIFFERENT)


@pytest.mark.parametrize(
    "make",
    [
        lambda: weighted(0.5),
        lambda: Loss(1.0),
        lambda: nn.CrossEntropyLoss(weight=torch.ones(3)),
        lambda: functools.partial(defaults, scale=3),
        lambda: {"b": {3, 4}, "a": [torch.arange(4.0).reshape(2, 2).T]},
    ],
)
def test_what_is_made_anew_has_the_same_digest(make):
    assert digest(make()) == digest(make())


def test_the_layout_of_a_tensor_in_memory_does_not_count():
    tensor = torch.arange(6.0).reshape(2, 3)
    assert digest(tensor) == digest(tensor.T.contiguous().T) == digest(torch.arange(12.0)[:6].reshape(2, 3))
    assert digest(tensor.to_sparse()) == digest(tensor)


def test_an_object_that_holds_itself_has_a_digest():
    loss = Loss(1.0)
    loss.itself = [loss]
    assert digest(loss) == digest(loss) != digest(Loss(1.0))


def test_a_function_whose_cell_is_empty_has_a_digest():
    def outer():
        def loss(z, y):
            return later

        found = digest(loss)
        later = 3
        return found, digest(loss)

    first, second = outer()
    assert first != second


def test_another_process_finds_the_same_digest():
    """Hashes of text, which order sets, differ from process to process."""
    value = (
        "[{'a', 'b', 'c'}, nn.CrossEntropyLoss(), lambda z, y: z.sum() in {'a', 'b', 'c'}, torch.arange(3)]"
    )
    lines = "import torch", "from torch import nn", "from lipbook.training.digests import digest"
    source = "\n".join((*lines, f"print(digest({value}))"))
    other = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(eval(value))


@pytest.mark.parametrize(
    ("one", "other"), list(itertools.permutations([("ab", "c"), ("a", "bc"), ("abc",)], 2))
)
def test_values_do_not_run_into_each_other(one, other):
    assert digest(*one) != digest(*other)
