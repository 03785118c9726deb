"""Poisson batches: independent coins, whose sizes are binomial."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chisquare

from lipbook.privacy.sampling import chunks, poisson_batch


def drawn(count, rate, times, seed=0):
    """(times, count), True where a record is in the batch."""
    generator = torch.Generator().manual_seed(seed)
    present = torch.zeros(times, count, dtype=torch.bool)
    for row in present:
        row[poisson_batch(count, rate, generator)] = True
    return present


def test_the_sizes_of_batches_are_binomial():
    sizes = drawn(20, 0.15, 4000).sum(1)
    seen = torch.bincount(sizes, minlength=21).double()
    expected = torch.tensor(binom.pmf(range(21), 20, 0.15)) * 4000
    few = expected < 10
    seen, expected = (torch.cat([c[~few], c[few].sum()[None]]) for c in (seen, expected))
    assert chisquare(seen.numpy(), expected.numpy()).pvalue > 1e-5


def test_records_enter_independently_and_alike():
    present = drawn(8, 0.3, 6000).double()
    spread = 5 * math.sqrt(0.3 * 0.7 / 6000)
    assert ((present.mean(0) - 0.3).abs() < spread).all()
    together = torch.cov(present.T) - 0.3 * 0.7 * torch.eye(8)
    assert (together.fill_diagonal_(0).abs() < 5 * 0.3 * 0.7 / math.sqrt(6000)).all()
    later = torch.cov(torch.cat([present[1:], present[:-1]], 1).T)[:8, 8:]
    assert (later.abs() < 5 * 0.3 * 0.7 / math.sqrt(6000)).all(), "a batch depends on the one before"


def test_rate_one_takes_every_record_and_a_tiny_rate_none():
    generator = torch.Generator().manual_seed(0)
    assert poisson_batch(100, 1.0, generator).tolist() == list(range(100))
    empty = poisson_batch(100, 1e-12, generator)
    assert empty.shape == (0,) and empty.dtype == torch.int64


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 200), st.integers(1, 50))
def test_chunks_hold_every_index_once_and_none_is_too_large(count, size):
    parts = chunks(torch.arange(count), size)
    assert sum((part.tolist() for part in parts), []) == list(range(count))
    assert all(1 <= len(part) <= size for part in parts)
    assert len(parts) == math.ceil(count / size)
