"""Batches of samples and the moves of images: what is drawn, how often, and what it does to an image."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipbook.training.batches import batches, moved


def moves_of(steps, seed=0, shift=2):
    """The moves of full batches of 60."""
    return torch.cat([moves for _, moves in itertools.islice(batches(60, 60, seed, shift), steps)])


def by_hand(image, dy, dx):
    """Pixel (y, x) comes from (y - dy, x - dx), and is 0 where that is outside."""
    result = torch.zeros_like(image)
    _, height, width = image.shape
    for y, x in itertools.product(range(height), range(width)):
        if 0 <= y - dy < height and 0 <= x - dx < width:
            result[:, y, x] = image[:, y - dy, x - dx]
    return result


@given(
    count=st.integers(1, 5),
    channels=st.integers(1, 3),
    size=st.tuples(st.integers(3, 7), st.integers(3, 7)),
    shift=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_each_image_is_moved_by_its_own_move_and_zeros_move_in(count, channels, size, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, channels, *size, generator=generator) + 0.1
    moves = torch.randint(-shift, shift + 1, (count, 2), generator=generator)
    found = moved(images, moves, shift)
    assert torch.equal(
        found, torch.stack([by_hand(x, *m.tolist()) for x, m in zip(images, moves, strict=True)])
    )
    assert found.dtype == images.dtype


def test_images_on_which_nothing_may_be_written_can_be_moved():
    """The result has memory of its own: a layer that acts in place leaves the data as they were."""
    images = torch.ones(2, 1, 3, 3)
    moved(images, torch.zeros(2, 2).long(), 1).zero_()
    assert images.eq(1).all()


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_moves_are_uniform_over_the_square(shift):
    """A chi-squared statistic below its mean plus six standard deviations."""
    moves = moves_of(200, shift=shift)
    found, cells = Counter(map(tuple, moves.tolist())), (2 * shift + 1) ** 2
    assert set(found) == set(itertools.product(range(-shift, shift + 1), repeat=2))
    expected = len(moves) / cells
    statistic = sum((count - expected) ** 2 / expected for count in found.values())
    assert statistic <= (cells - 1) + 6 * (2 * (cells - 1)) ** 0.5


def test_moves_are_independent_from_image_to_image_and_from_step_to_step():
    """Uniform over pairs of moves: of neighbours in a batch, and of the same place in the next batch."""
    moves = moves_of(300, shift=1).reshape(300, 60, 2)
    numbers = (3 * (moves[..., 0] + 1) + moves[..., 1] + 1).tolist()
    neighbours = Counter(pair for row in numbers for pair in itertools.pairwise(row))
    successors = Counter(pair for column in zip(*numbers, strict=True) for pair in itertools.pairwise(column))
    for found in (neighbours, successors):
        expected = found.total() / 81
        statistic = sum((count - expected) ** 2 / expected for count in found.values())
        assert len(found) == 81 and statistic <= 80 + 6 * 160**0.5


def test_the_order_does_not_depend_on_the_shift_and_the_moves_do_not_repeat_its_draws():
    plain, shifted = (list(itertools.islice(batches(100, 30, 5, shift), 12)) for shift in (0, 3))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(plain, shifted, strict=True))
    assert all(not moves.any() for _, moves in plain)
    same_stream = torch.randint(-3, 4, (25, 2), generator=torch.Generator().manual_seed(5))
    assert not torch.equal(shifted[0][1], same_stream)


def test_the_seed_decides_the_moves():
    assert torch.equal(moves_of(3, seed=1), moves_of(3, seed=1))
    assert not torch.equal(moves_of(3, seed=1), moves_of(3, seed=2))
