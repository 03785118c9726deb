"""The projection: norms at most 1, proved; nearer to orthogonal; whatever the weights were."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipbook.bounds import spectral_norm
from lipbook.privacy.projection import contracted, nearest_semiorthogonal


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def semiorthogonal(m, n, seed=0, dtype=torch.float32):
    return nearest_semiorthogonal(drawn(m, n, seed=seed)).to(dtype)


def singular_values(matrix):
    return torch.linalg.svdvals(matrix.double())


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 90),
    st.sampled_from(["normal", "orthogonal", "rank one", "spiked"]),
    st.floats(-30, 30),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 2**31),
)
def test_the_norm_is_at_most_one_whatever_the_weights_were(m, n, kind, exponent, dtype, seed):
    matrix = {
        "normal": lambda: drawn(m, n, seed=seed, dtype=dtype),
        "orthogonal": lambda: semiorthogonal(m, n, seed, dtype),
        "rank one": lambda: drawn(m, 1, seed=seed, dtype=dtype) @ drawn(1, n, seed=seed + 1, dtype=dtype),
        "spiked": lambda: semiorthogonal(m, n, seed, dtype) + torch.eye(m, n, dtype=dtype),
    }[kind]()
    for weight in (matrix, matrix * 10.0**exponent):
        result = contracted(weight)
        assert result.shape == weight.shape and result.dtype == dtype
        assert singular_values(result)[0] <= 1 + 1e-14
        assert spectral_norm(result, method="power").value <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.9, 0.999, 1.0, 1.001, 1.1, 1.49, 1.51, math.sqrt(3), 2.0, 3.0])
def test_the_norm_is_at_most_one_at_every_singular_value(scale, dtype):
    for shape in [(1, 784), (10, 256), (40, 40), (256, 3)]:
        result = contracted(scale * semiorthogonal(*shape, dtype=dtype))
        assert 0.5 < singular_values(result)[-1] <= singular_values(result)[0] <= 1 + 1e-14


def test_sums_that_are_all_rounded_one_way_do_not_break_the_norm():
    """Equal entries: every partial sum is rounded alike, and the error of the Gram matrix adds up."""
    for n in (1000, 50_000):
        for size in torch.linspace(1 - 3e-4, 1 + 3e-4, 21, dtype=torch.float64):
            row = torch.full((1, n), size.item() / math.sqrt(n))
            assert contracted(row).double().norm() <= 1


def test_a_step_squares_the_distance_from_orthogonal_and_loses_little():
    near = semiorthogonal(60, 100) + 0.05 / 10 * drawn(60, 100, seed=1)
    before = (singular_values(near) - 1).abs().max()
    after = singular_values(contracted(near))
    assert before > 0.05
    assert (after - 1).abs().max() < 1.6 * before**2 + 1e-3
    assert after[0] > 0.999


def test_repeated_steps_reach_the_nearest_semiorthogonal_matrix():
    start = semiorthogonal(20, 30) + 0.3 / math.sqrt(30) * drawn(20, 30, seed=1)
    weight = start.double()
    for _ in range(12):
        weight = contracted(weight)
    assert torch.allclose(weight, nearest_semiorthogonal(start.double()), atol=1e-9)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_the_nearest_has_orthonormal_rows_or_columns_and_none_is_nearer(shape):
    weight = drawn(*shape, dtype=torch.float64)
    nearest = nearest_semiorthogonal(weight)
    gram = nearest @ nearest.T if shape[0] <= shape[1] else nearest.T @ nearest
    assert torch.allclose(gram, torch.eye(min(shape), dtype=torch.float64), atol=1e-12)
    for seed in range(1, 51):
        other = nearest_semiorthogonal(nearest + 0.3 * drawn(*shape, seed=seed, dtype=torch.float64))
        assert (weight - nearest).norm() <= (weight - other).norm()


def test_products_of_reduced_precision_do_not_break_the_norm():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert singular_values(contracted(semiorthogonal(64, 100)))[0] <= 1
    finally:
        torch.set_float32_matmul_precision(before)


def test_half_precision_zeros_and_the_largest_floats_are_taken():
    assert singular_values(contracted(semiorthogonal(20, 30).to(torch.bfloat16)))[0] <= 1
    assert not contracted(torch.zeros(3, 4)).any()
    assert singular_values(contracted(torch.full((20, 30), 3e38)))[0] <= 1
    assert singular_values(contracted(torch.full((20, 30), 1e-45)))[0] <= 1


@pytest.mark.parametrize("entry", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_refused(entry):
    weight = semiorthogonal(3, 4)
    weight[1, 2] = entry
    with pytest.raises(FloatingPointError, match="smaller lr"):
        contracted(weight)


def test_the_weight_that_is_given_stays_as_it_is():
    weight = 2 * semiorthogonal(4, 6)
    before = weight.clone()
    contracted(weight), nearest_semiorthogonal(weight)
    assert torch.equal(weight, before)
