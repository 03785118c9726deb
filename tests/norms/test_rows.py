"""The l_inf norm of a matrix against exact sums of fractions."""

import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipbook import CertificateError
from lipbook.norms.rows import row_sum_norm

ENTRIES = st.floats(-1e150, 1e150, allow_subnormal=True)


def exact(matrix):
    return max(sum(abs(Fraction(entry)) for entry in row) for row in matrix.double().tolist())


@st.composite
def matrices(draw):
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    entries = draw(st.lists(ENTRIES, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(entries, dtype=torch.float64).reshape(rows, columns)


@given(matrices())
def test_never_below_the_exact_row_sum_and_within_1e_9(matrix):
    bound, truth = row_sum_norm(matrix), exact(matrix)
    assert Fraction(bound.value) >= truth
    assert Fraction(bound.value) <= truth * (1 + Fraction(1, 10**9)) + Fraction(math.ulp(0.0)) * 2
    assert (bound.kind, bound.norm) == ("upper", math.inf)


@given(matrices(), st.permutations(range(40)))
def test_another_order_of_summation_proves_the_value_too(matrix, order):
    bound = row_sum_norm(matrix)
    columns = [k for k in order if k < matrix.shape[1]]
    bound.verify(matrix)
    bound.verify(matrix[:, columns])
    bound.verify(matrix.flip(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_stored_numbers_are_read_in_float64(dtype):
    matrix = torch.randn(7, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert exact(matrix) <= Fraction(row_sum_norm(matrix).value) <= exact(matrix) * (1 + Fraction(1, 10**9))


def test_it_is_the_largest_growth_of_a_sign_vector():
    matrix = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6)
    growth = (signs @ matrix.T).abs().max().item()
    assert growth <= row_sum_norm(matrix).value <= growth * (1 + 1e-9)


def test_one_percent_less_is_refused_and_so_is_a_weight_one_percent_larger():
    matrix = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    bound = row_sum_norm(matrix)
    with pytest.raises(CertificateError, match="not proved"):
        dataclasses.replace(bound, value=bound.value * 0.99).verify(matrix)
    larger = matrix.clone()
    row = matrix.abs().sum(1).argmax()
    larger[row, matrix[row].abs().argmax()] *= 1.01
    with pytest.raises(CertificateError, match="not proved"):
        bound.verify(larger)


@pytest.mark.parametrize("change", [{"kind": "lower"}, {"norm": 2}, {"output": 0}])
def test_a_bound_of_another_form_is_refused(change):
    matrix = torch.ones(2, 2)
    with pytest.raises(CertificateError, match="row sums prove"):
        dataclasses.replace(row_sum_norm(matrix), **change).verify(matrix)


def test_zero_is_exact_and_overflow_is_infinite():
    assert row_sum_norm(torch.zeros(3, 2)).value == 0
    assert row_sum_norm(torch.full((1, 2), 1.7e308, dtype=torch.float64)).value == math.inf


@pytest.mark.parametrize(
    "matrix, error",
    [
        ([[1.0]], TypeError),
        (torch.ones(2, 2, dtype=torch.int64), TypeError),
        (torch.ones(3), ValueError),
        (torch.ones(0, 3), ValueError),
        (torch.full((1, 1), math.nan), ValueError),
        (torch.full((1, 1), math.inf), ValueError),
    ],
)
def test_bad_input_is_refused(matrix, error):
    with pytest.raises(error, match="matrix"):
        row_sum_norm(matrix)
