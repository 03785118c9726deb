"""Poisson sampling: every record enters a batch by a coin of its own, at every step anew.

The number of records in a batch is random, and private. A batch may be empty, and then the noise is released
all the same.

Chapter: privacy/dp-sgd.
"""

import math

import torch


def poisson_batch(count: int, rate: float, generator: torch.Generator) -> torch.Tensor:
    """The indices, in order, of the records that enter one batch: each of `count` with probability `rate`.

    A uniform number of 53 bits is drawn for each record, so that the probability is within 2^-53 of `rate`.

    Returns:
        int64, of a random length from 0 to `count`, on the CPU.
    """
    drawn = torch.rand(count, dtype=torch.float64, generator=generator, device="cpu")
    return torch.nonzero(drawn < rate).squeeze(1)


def chunks(indices: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """The indices in as few parts of at most `size` as it takes, as equal as can be; none of no indices."""
    return indices.tensor_split(math.ceil(len(indices) / size)) if len(indices) else ()
