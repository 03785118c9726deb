import dataclasses
import math
import os
import random
from fractions import Fraction

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipbook import Ball, Bound, CertificateError
from lipbook.bounds import spectral_norm
from lipbook.norms.spectral import VectorCertificate

MATRICES = 10_000 if os.environ.get("LIPBOOK_THOROUGH") == "1" else 200
KINDS = ["gaussian", "low rank", "repeated", "clustered", "diagonal", "one entry", "integers"]


def exact_norm(matrix):
    """The largest singular value to 60 digits, as an mpmath number."""
    with mpmath.workdps(60):
        exact = mpmath.matrix([[mpmath.mpf(x) for x in row] for row in matrix.double().tolist()])
        return max(mpmath.svd_r(exact, compute_uv=False))


def random_matrix(seed):
    """A matrix of random shape, kind, scale and dtype: every kind is met in any seven seeds in a row."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    m, n, kind = draw.randint(1, 7), draw.randint(1, 7), KINDS[seed % len(KINDS)]
    r = min(m, n)

    def gaussian(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    matrix = gaussian(m, n)
    if kind in ("repeated", "clustered"):
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        matrix = (u * (1 + (kind == "clustered") * 1e-9 * gaussian(r))) @ v
    if kind == "low rank":
        matrix = gaussian(m, 1) @ gaussian(1, n)
    if kind == "diagonal":
        matrix = torch.diag(10.0 ** (3 * gaussian(r)))
    if kind == "one entry":
        matrix = torch.zeros(m, n, dtype=torch.float64)
        matrix[draw.randrange(m), draw.randrange(n)] = -1.0
    if kind == "integers":
        matrix = (3 * matrix).round()
    if seed % 3 == 0:
        return (matrix * 10.0 ** draw.randint(-25, 20)).float()
    return matrix * 10.0 ** draw.randint(-150, 150)


@pytest.mark.parametrize("batch", range(10))
def test_every_value_is_on_its_side_of_the_truth_and_the_upper_ones_are_close(batch):
    for seed in range(batch * MATRICES // 10, (batch + 1) * MATRICES // 10):
        matrix = random_matrix(seed)
        truth = exact_norm(matrix)
        for method in ("svd", "gram"):
            bound = spectral_norm(matrix, method).verify(matrix)
            assert truth <= bound.value <= truth * (1 + mpmath.mpf("1e-9")), (seed, method)
        assert spectral_norm(matrix, "power").verify(matrix).value <= truth, seed


@pytest.mark.parametrize("seed", range(21))
def test_gram_is_an_upper_bound_at_every_step_and_power_a_lower_bound_at_every_step(seed):
    matrix = random_matrix(seed)
    truth = exact_norm(matrix)
    for steps in (0, 1, 2, 3, 5, 8, 13, 21, 40):
        assert spectral_norm(matrix, "gram", steps=steps).verify(matrix).value >= truth
        assert spectral_norm(matrix, "power", steps=steps).verify(matrix).value <= truth


@pytest.mark.parametrize("seed", range(14))
def test_gram_decreases_from_the_frobenius_norm(seed):
    matrix = random_matrix(seed).double()
    values = [spectral_norm(matrix, "gram", steps=k).value for k in range(12)]
    scale = matrix.abs().max()
    assert values[0] == pytest.approx((scale * (matrix / scale).norm()).item() if scale else 0.0, rel=1e-12)
    assert all(later <= earlier * (1 + 1e-13) for earlier, later in zip(values, values[1:]))


@pytest.mark.parametrize("shape", [(60, 40), (150, 150), (3000, 30)])
def test_larger_matrices_against_their_singular_values(shape):
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    truth = torch.linalg.svdvals(matrix)[0].item()
    for method in ("svd", "gram"):
        assert 1 - 1e-13 < spectral_norm(matrix, method).value / truth < 1 + 1e-9
    assert 0.9 < spectral_norm(matrix, "power").value / truth < 1 + 1e-13


def test_verify_uses_neither_singular_values_nor_eigenvalues(monkeypatch):
    matrix = random_matrix(1)
    bounds = [spectral_norm(matrix, method) for method in ("svd", "gram", "power")]

    def forbidden(*args, **kwargs):
        raise AssertionError("the verifier called the solver")

    for name in ("svd", "svdvals", "eigh", "eigvalsh", "matrix_norm", "norm"):
        monkeypatch.setattr(torch.linalg, name, forbidden)
    for bound in bounds:
        assert bound.verify(matrix) is bound


@given(seed=st.integers(0, 10**6), factor=st.floats(0.0, 0.99))
def test_verify_rejects_an_upper_value_that_is_too_low(seed, factor):
    matrix = random_matrix(seed)
    if matrix.any():
        bound = spectral_norm(matrix, "svd")
        with pytest.raises(CertificateError):
            dataclasses.replace(bound, value=bound.value * factor).verify(matrix)


@given(seed=st.integers(0, 10**6))
def test_verify_rejects_a_lower_value_that_is_too_high_and_the_wrong_claims(seed):
    matrix = random_matrix(seed)
    lower, upper = spectral_norm(matrix, "power"), spectral_norm(matrix, "gram")
    for forged in (
        dataclasses.replace(lower, value=1.01 * lower.value + 1e-200),
        dataclasses.replace(lower, kind="upper"),
        dataclasses.replace(upper, kind="lower"),
        dataclasses.replace(upper, norm=math.inf),
        dataclasses.replace(upper, output=(0, 1)),
    ):
        with pytest.raises(CertificateError):
            forged.verify(matrix)


def test_verify_refuses_the_floating_point_number_just_below_the_truth():
    """The norm of a column is the root of a sum of squares, which fractions hold exactly. Without the margin
    the factorisation accepts some of these numbers."""
    for seed in range(60):
        column = torch.rand(1000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        square = sum(Fraction(entry) ** 2 for entry in column.flatten().tolist())
        value = math.sqrt(square) * (1 + 1e-15)
        while Fraction(value) ** 2 >= square:
            value = math.nextafter(value, 0)
        with pytest.raises(CertificateError):
            dataclasses.replace(spectral_norm(column), value=value).verify(column)


def test_verify_notices_one_weight_changed_by_one_percent():
    matrix = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    bound = spectral_norm(matrix, "svd")
    u, s, v = torch.linalg.svd(matrix)
    pull = matrix * torch.outer(u[:, 0], v[0])
    changed = matrix.clone()
    changed.view(-1)[pull.argmax()] *= 1.01
    with pytest.raises(CertificateError):
        bound.verify(changed)


def test_verify_accepts_a_larger_upper_value_of_any_size_and_refuses_none():
    matrix = random_matrix(4)
    bound = spectral_norm(matrix, "svd")
    for value in (2 * bound.value, 1e308, math.inf):
        dataclasses.replace(bound, value=value).verify(matrix)
    for value in (0.0, 5e-324):
        with pytest.raises(CertificateError):
            dataclasses.replace(bound, value=value).verify(matrix)


def lower_claim(value, vector):
    return Bound(value, "lower", certificate=VectorCertificate(vector))


@pytest.mark.parametrize("scale", [1.0, 2.0**-537, 2.0**-1070, 2.0**1000])
def test_a_vector_proves_the_same_at_every_scale(scale):
    """At 2^-537 the squares of the entries underflow, and sums of them may be off by any factor."""
    matrix = torch.zeros(1000, 1000)
    matrix[0] = 1.0
    vector = torch.full((1000,), 0.7, dtype=torch.float64) * scale
    vector[0] = scale
    for value in (1.001 * math.sqrt(1000), 700.0):
        with pytest.raises(CertificateError):
            lower_claim(value, vector).verify(matrix)
    lower_claim(0.99 * math.sqrt(1000), vector).verify(matrix)


@pytest.mark.parametrize(
    "vector",
    [
        torch.zeros(3, dtype=torch.float64),
        torch.ones(3),
        torch.ones(3, 1, dtype=torch.float64),
        torch.ones(4, dtype=torch.float64),
        torch.tensor([1.0, math.nan, 0.0], dtype=torch.float64),
        [1.0, 0.0, 0.0],
    ],
    ids=["zero", "float32", "matrix", "length 4", "NaN", "list"],
)
def test_what_is_no_witness_is_refused(vector):
    with pytest.raises(CertificateError):
        lower_claim(0.5, vector).verify(torch.eye(3))


@pytest.mark.parametrize("method", ["svd", "gram", "power"])
def test_a_bound_in_a_ball_is_not_what_these_certificates_prove(method):
    bound = spectral_norm(torch.eye(3), method)
    with pytest.raises(CertificateError):
        dataclasses.replace(bound, region=Ball(torch.zeros(3), 0.0)).verify(torch.eye(3))


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (784, 10), (100, 100)])
def test_entries_just_below_a_power_of_two_are_proved(shape):
    matrix = torch.full(shape, 1 - 2.0**-53, dtype=torch.float64)
    for method in ("svd", "gram", "power"):
        spectral_norm(matrix, method).verify(matrix)


@pytest.mark.parametrize("method", ["svd", "gram"])
@pytest.mark.parametrize("size", [600, pytest.param(4000, marks=pytest.mark.thorough)])
def test_the_identity_whose_margin_is_the_largest_stays_within_a_billionth(size, method):
    assert 1 <= spectral_norm(torch.eye(size), method).value <= 1 + 1e-9


def test_subnormal_numbers_flushed_to_zero_are_refused():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormal numbers")
    try:
        with pytest.raises(RuntimeError, match="set_flush_denormal"):
            spectral_norm(torch.full((1, 1), 1e-40))
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("method", ["svd", "gram", "power"])
def test_zero_and_the_ends_of_the_number_range(method):
    zero = torch.zeros(3, 2)
    assert spectral_norm(zero, method).verify(zero).value == 0
    for scale in (5e-324, 1e-310, 1e308):
        matrix = torch.full((2, 2), scale, dtype=torch.float64)
        value = spectral_norm(matrix, method).verify(matrix).value
        with mpmath.workdps(60):
            truth = 2 * mpmath.mpf(scale)
            assert value <= truth if method == "power" else value >= truth


def test_nothing_outside_changes():
    matrix, state = torch.randn(4, 3, requires_grad=True), torch.get_rng_state()
    before = matrix.detach().clone()
    for method in ("svd", "gram", "power"):
        spectral_norm(matrix, method)
    assert torch.equal(state, torch.get_rng_state()) and matrix.grad is None and torch.equal(matrix, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_read_exactly(dtype):
    matrix = torch.randn(4, 6, generator=torch.Generator().manual_seed(3)).to(dtype)
    assert spectral_norm(matrix).value == spectral_norm(matrix.double()).value
