"""The maps onto orthogonal matrices against SVDs in float64, scipy's polar factor and closed forms."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jacrev, vmap

from lipbook.layers import maps

ORTHOGONAL = {"cayley": maps.cayley, "bjorck": maps.bjorck, "qr": maps.qr, "cholesky": maps.cholesky}
COMPLEX = {"cayley": maps.cayley, "cholesky": maps.cholesky}
SQUARE = {"projection": maps.projection, "block_reflector": maps.block_reflector}
SHAPES = [(5, 5), (7, 3), (3, 7), (1, 6), (6, 1), (1, 1), (2, 5, 4), (2, 3, 3, 6), (0, 4, 3)]
DTYPES = [torch.float32, torch.float64]
WIDE_DTYPE = {
    torch.float32: torch.float64,
    torch.float64: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex128: torch.complex128,
}


def drawn(*shape, seed=0, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(shape, generator=generator, dtype=WIDE_DTYPE[dtype])
    return (scale * matrix).to(dtype)


def norms(matrix):
    """The singular values in float64, largest first, (..., min(m, n))."""
    return torch.linalg.svdvals(matrix.detach().to(WIDE_DTYPE[matrix.dtype]))


def defect(matrix):
    """The largest distance of a singular value from 1."""
    return (norms(matrix) - 1).abs().amax().item() if matrix.numel() else 0.0


def excess(matrix):
    """How far the largest singular value is above 1, at least 0."""
    return (norms(matrix) - 1).amax().clamp(min=0).item() if matrix.numel() else 0.0


def rounding(matrix, name=None, free=None):
    """What a few products of these matrices may lose; "cayley" loses more beside large entries."""
    eps = torch.finfo(matrix.dtype).eps
    large = name == "cayley" and free.abs().amax() > 1
    return max(matrix.shape[-2:]) * (eps**0.5 if large else 16 * eps)


def with_singular_values(values, rows, columns, seed=0, dtype=torch.float64):
    left = torch.linalg.qr(drawn(rows, len(values), seed=seed)).Q
    right = torch.linalg.qr(drawn(columns, len(values), seed=seed + 1)).Q
    return ((left * torch.tensor(values, dtype=torch.float64)) @ right.T).to(dtype)


# What comes out is orthogonal.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ORTHOGONAL)
def test_the_columns_are_orthonormal_or_the_rows(name, shape, dtype):
    free = drawn(*shape, dtype=dtype)
    image = ORTHOGONAL[name](free)
    assert image.shape == free.shape and image.dtype == dtype
    slack = {"bjorck": 1e-5 if dtype == torch.float32 else 1e-12}.get(name, rounding(free))
    if name == "cholesky":  # the ridge, divided by the square of the smallest singular value
        ridge = 2 * (min(shape[-2:]) + 8) * torch.finfo(dtype).eps
        ratio = (norms(free).amin() / norms(free).amax()).item() if free.numel() else 1.0
        slack += ridge * min(shape[-2:]) / ratio**2
    assert defect(image) <= slack


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", COMPLEX)
def test_complex_matrices_become_unitary(name, shape, dtype):
    free = drawn(*shape, dtype=dtype)
    image = COMPLEX[name](free)
    assert image.shape == free.shape and image.dtype == dtype
    ratio = (norms(free).amin() / norms(free).amax()).item() if free.numel() else 1.0
    assert defect(image) <= rounding(free) * (1 if name == "cayley" else 4 / ratio**2)


@pytest.mark.parametrize("name", ORTHOGONAL)
def test_each_matrix_of_a_batch_is_mapped_alone(name):
    batch = drawn(3, 2, 5, 4)
    together = ORTHOGONAL[name](batch)
    for i in range(3):
        for j in range(2):
            alone = ORTHOGONAL[name](batch[i, j])
            torch.testing.assert_close(together[i, j], alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ORTHOGONAL)
def test_a_wide_matrix_is_mapped_as_its_transpose(name):
    free = drawn(3, 6)
    torch.testing.assert_close(ORTHOGONAL[name](free), ORTHOGONAL[name](free.T).T, rtol=0, atol=0)
    if name in COMPLEX:
        free = drawn(3, 6, dtype=torch.complex128)
        torch.testing.assert_close(ORTHOGONAL[name](free), ORTHOGONAL[name](free.mH).mH, rtol=0, atol=0)


HARD = {
    "zero": torch.zeros(5, 4),
    "one entry": torch.eye(5)[:, :4] * torch.tensor([1.0, 0, 0, 0]),
    "rank one": drawn(5, 1) @ drawn(1, 4, seed=1),
    "two equal columns": drawn(5, 4)[:, [0, 0, 1, 2]],
    "a column of zeros": drawn(5, 4) * torch.tensor([1.0, 0, 1, 1]),
    "ill-conditioned": drawn(5, 4) * torch.tensor([1.0, 1e-4, 1e-8, 1e-12]),
    "columns far apart": drawn(5, 4) * torch.tensor([1e-15, 1.0, 1e7, 1e15]),
    "rows far apart": drawn(5, 4) * torch.tensor([[1e-15], [1.0], [1e7], [1e15], [1.0]]),
    "square": drawn(4, 4),
    "square of rank two": drawn(4, 2) @ drawn(2, 4, seed=1),
    "wide": drawn(3, 5),
    "signs": torch.ones(4, 4),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("name", [*ORTHOGONAL, *SQUARE])
def test_no_matrix_leads_to_a_norm_above_one(name, case, dtype):
    for scale in (1e-30, 1e-10, 1.0, 1e10, 1e30):
        free = (HARD[case].double() * scale).clamp(-1e37, 1e37).to(dtype)
        if name in SQUARE and len(free) < free.shape[1]:
            free = free.T
        image = {**ORTHOGONAL, **SQUARE}[name](free)
        assert torch.isfinite(image).all()
        assert excess(image) <= rounding(image, name, free)


@given(
    st.sampled_from([*ORTHOGONAL, *SQUARE]),
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(0, 10**6),
    st.floats(-30, 30),
    st.booleans(),
    st.booleans(),
)
def test_a_random_matrix_leads_to_no_norm_above_one(name, rows, columns, seed, exponent, double, deficient):
    if name in SQUARE:
        rows, columns = max(rows, columns), min(rows, columns)
    free = drawn(rows, columns, seed=seed) * 10**exponent
    if deficient:
        free = free * (drawn(columns, seed=seed + 1).abs() ** 6)
    free = free if double else free.float()
    image = {**ORTHOGONAL, **SQUARE}[name](free)
    assert torch.isfinite(image).all() and excess(image) <= rounding(image, name, free)


@pytest.mark.parametrize("name", ["bjorck", "qr", "cholesky", *SQUARE])
def test_the_scale_of_the_matrix_does_not_matter(name):
    function = {**ORTHOGONAL, **SQUARE}[name]
    free = drawn(6, 4)
    for power in (-90, -3, 3, 90):
        torch.testing.assert_close(function(free * 2.0**power), function(free), rtol=0, atol=1e-10)


# Gradients are exact.

INSIDE = {  # matrices where each map is smooth, away from its rescaling
    "cayley": [(3, 3), (4, 2), (2, 4), (2, 3, 3)],
    "bjorck": [(3, 3), (4, 2), (2, 4), (2, 3, 3)],
    "qr": [(3, 3), (4, 2), (2, 4), (2, 3, 3)],
    "cholesky": [(3, 3), (4, 2), (2, 4), (2, 3, 3)],
    "projection": [(3, 3), (4, 2), (3, 1), (2, 4, 2)],
    "block_reflector": [(4, 2), (3, 1), (2, 4, 2)],
    "aol_scale": [(3, 3), (4, 2), (2, 4), (2, 3, 3)],
}
ALL = {**ORTHOGONAL, **SQUARE, "aol_scale": maps.aol_scale}


@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name in INSIDE for shape in INSIDE[name]])
def test_gradients_agree_with_finite_differences(name, shape):
    free = drawn(*shape, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(ALL[name], (free,), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("name", COMPLEX)
def test_gradients_of_complex_matrices_agree_with_finite_differences(name):
    for shape in [(3, 3), (4, 2), (2, 4)]:
        free = drawn(*shape, seed=4, dtype=torch.complex128).requires_grad_()
        assert torch.autograd.gradcheck(COMPLEX[name], (free,), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-20, 1e4, 1e12])
@pytest.mark.parametrize("name", ["bjorck", "cholesky", "projection"])
def test_the_gradient_of_a_map_that_ignores_the_scale_shrinks_with_it(name, scale):
    """f(cx) = f(x), so that the gradient at cx is that at x divided by c: nothing is lost in a rescaling."""
    weights, free = drawn(*ALL[name](drawn(5, 3)).shape, seed=9), drawn(5, 3, seed=2)

    def loss(matrix):
        return (ALL[name](matrix) * weights).sum()

    torch.testing.assert_close(grad(loss)(scale * free) * scale, grad(loss)(free), rtol=1e-6, atol=1e-9)


def test_beyond_its_largest_entry_cayley_has_the_gradient_of_the_scaled_matrix():
    weights, free = drawn(4, 4, seed=9), 1e6 * drawn(4, 4, seed=2)
    found = grad(lambda matrix: (maps.cayley(matrix) * weights).sum())(free)
    largest = divmod(free.abs().argmax().item(), 4)
    for index in [(0, 0), (1, 2), (3, 1), largest]:
        step = torch.zeros_like(free)
        step[index] = 1e3
        ends = [(maps.cayley(free + sign * step) * weights).sum() for sign in (1, -1)]
        slope = (ends[0] - ends[1]).item() / 2e3
        assert found[index].item() == pytest.approx(slope, rel=1e-4, abs=1e-6 * found.abs().max().item())
    assert found[largest] != 0


@pytest.mark.parametrize("name", ALL)
def test_torch_func_differentiates_and_batches_each_map(name):
    batch = drawn(3, 4, 3, seed=5)
    together = vmap(ALL[name])(batch)
    torch.testing.assert_close(together, ALL[name](batch), rtol=0, atol=1e-10)
    jacobian = vmap(jacrev(ALL[name]))(batch)
    direction = drawn(3, 4, 3, seed=6)
    ends = [ALL[name](batch + sign * 1e-6 * direction) for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / 2e-6
    moved = (jacobian * direction.reshape(3, *[1] * (jacobian.ndim - 3), 4, 3)).sum((-2, -1))
    torch.testing.assert_close(moved, slope, rtol=1e-5, atol=1e-6)


# Cayley.


@given(st.integers(1, 7), st.integers(0, 10**6), st.floats(-3, 1.5))
def test_cayley_of_a_square_matrix_turns_back_into_its_skew_part(size, seed, exponent):
    free = drawn(size, size, seed=seed) * 10**exponent
    image = maps.cayley(free).numpy()
    identity = np.eye(size)
    skew = np.linalg.solve(identity + image, identity - image)
    limit = 1e-12 * (1 + np.linalg.norm(skew, 2)) ** 2
    np.testing.assert_allclose(skew, (free - free.T).numpy(), rtol=0, atol=limit)


@given(st.integers(1, 6), st.integers(0, 10**6), st.floats(-3, 1))
def test_cayley_has_determinant_one_and_no_eigenvalue_minus_one(size, seed, exponent):
    image = maps.cayley(drawn(size, size, seed=seed) * 10**exponent)
    assert torch.linalg.det(image).item() == pytest.approx(1, abs=1e-9)
    assert (torch.linalg.eigvals(image) + 1).abs().min() > 1e-6


def test_cayley_of_a_plane_is_the_rotation_by_twice_the_arctangent():
    for a in (-3.0, -0.5, 0.0, 0.25, 1.0):
        free = torch.tensor([[0.0, a], [0.0, 0.0]], dtype=torch.float64)
        angle = 2 * math.atan(a)
        cos, sin = math.cos(angle), math.sin(angle)
        rotation = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
        torch.testing.assert_close(maps.cayley(free), rotation, rtol=0, atol=1e-14)


def test_the_symmetric_part_of_a_square_matrix_does_not_change_its_cayley_transform():
    free, other = drawn(4, 4), drawn(4, 4, seed=1)
    torch.testing.assert_close(maps.cayley(free + other + other.T), maps.cayley(free), rtol=0, atol=1e-12)


def test_cayley_of_the_zero_matrix_is_the_identity():
    assert torch.equal(maps.cayley(torch.zeros(4, 4)), torch.eye(4))
    assert torch.equal(maps.cayley(torch.zeros(5, 3)), torch.eye(5, 3))


# Bjorck.


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6), st.floats(-20, 20))
def test_bjorck_is_the_polar_factor(rows, columns, seed, exponent):
    values = torch.linspace(1, 0.2, min(rows, columns)).tolist()
    free = with_singular_values(values, rows, columns, seed) * 10**exponent
    side = "right" if rows >= columns else "left"
    factor = scipy.linalg.polar(free.numpy(), side=side)[0]
    np.testing.assert_allclose(maps.bjorck(free).numpy(), factor, rtol=0, atol=1e-12)


def test_bjorck_stopped_early_has_no_norm_above_one():
    for smallest in (1e-1, 1e-3, 1e-6, 1e-9, 1e-12, 0.0):
        image = maps.bjorck(with_singular_values([1.0, 0.3, smallest], 5, 3))
        assert excess(image) <= rounding(image)
        reached = norms(image)[-1].item()
        growth = 1.5 * 2**0.5 * 1.5**maps.BJORCK_STEPS
        assert reached <= min(1.0, (smallest + 1e-15) * growth) * (1 + 1e-9)
        if smallest >= 1e-3:
            assert reached > 1 - 1e-9


def test_a_matrix_that_is_orthogonal_is_left_as_it_is():
    for rows, columns in [(5, 5), (6, 2), (2, 6)]:
        free = with_singular_values([1.0] * min(rows, columns), rows, columns)
        torch.testing.assert_close(maps.bjorck(free), free, rtol=0, atol=1e-14)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 10**6), st.booleans())
def test_the_bound_by_trace_and_frobenius_norm_is_above_the_largest_eigenvalue(columns, rows, seed, low):
    """Of X'X, of size n: m + s sqrt(n - 1), with m the mean of the eigenvalues and s their deviation."""
    matrix = drawn(rows, columns, seed=seed).numpy()
    if low:
        matrix = np.outer(matrix[:, 0], matrix[0])
    gram = matrix.T @ matrix
    mean = np.trace(gram) / columns
    bound = mean + math.sqrt(1 - 1 / columns) * np.linalg.norm(gram - mean * np.eye(columns))
    largest = np.linalg.eigvalsh(gram)[-1]
    assert largest <= bound * (1 + 1e-12)
    assert bound <= columns * largest * (1 + 1e-12)
    # The library begins there: after one step that begins at most at 2, no singular value is above 1.
    image = maps.bjorck(torch.from_numpy(matrix))
    assert excess(image) <= rounding(image)


@pytest.mark.parametrize("free", [0.1, 0.7, 1.0, 2.0, 5.0, -0.3])
def test_bjorck_of_a_number_is_its_sign(free):
    image = maps.bjorck(torch.tensor([[free]], dtype=torch.float64))
    assert image.item() == pytest.approx(math.copysign(1, free), abs=1e-14)


# QR.


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_qr_leaves_an_upper_triangle_with_a_positive_diagonal(rows, columns, seed):
    rows, columns = max(rows, columns), min(rows, columns)
    free = drawn(rows, columns, seed=seed)
    q = maps.qr(free)
    triangle = q.T @ free
    torch.testing.assert_close(triangle.tril(-1), torch.zeros_like(triangle), rtol=0, atol=1e-12)
    assert (triangle.diagonal() > 0).all()
    torch.testing.assert_close(q @ triangle, free, rtol=0, atol=1e-12)


def test_qr_keeps_a_number_of_reflections():
    """The determinant has the sign of that of the matrix: both components can be reached."""
    for seed in range(6):
        free = drawn(4, 4, seed=seed)
        assert torch.linalg.det(maps.qr(free)).sign() == torch.linalg.det(free).sign()


# Cholesky.


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_cholesky_leaves_an_upper_triangle_with_a_positive_diagonal(rows, columns, seed):
    rows, columns = max(rows, columns), min(rows, columns)
    free = with_singular_values(torch.linspace(1, 0.3, columns).tolist(), rows, columns, seed)
    torch.testing.assert_close(maps.cholesky(free), maps.qr(free), rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64, torch.complex128], ids=str)
def test_the_ridge_falls_on_the_safe_side(dtype):
    """Of nearly parallel columns X'X is singular to rounding: without a ridge the factorisation fails."""
    eps = torch.finfo(dtype).eps
    for seed in range(20):
        column = drawn(9, 1, seed=seed, dtype=dtype)
        free = column + eps * drawn(9, 6, seed=seed + 100, dtype=dtype)
        image = maps.cholesky(free)
        assert torch.isfinite(image).all()
        assert excess(image) <= rounding(image)
        alone = free.double() if not dtype.is_complex else free.to(torch.complex128)
        assert (torch.linalg.vector_norm(image, dim=-2) <= 1 + rounding(image)).all()
        assert torch.linalg.matrix_rank(alone) >= 1


def test_within_its_ridge_cholesky_is_below_one_and_not_above():
    """W'W = I - L^-1 E L^-T in exact arithmetic: a column alone has the square 1 / (1 + ridge)."""
    for dtype in DTYPES:
        free = drawn(4, 1, dtype=dtype)
        ridge = 2 * (1 + 8) * torch.finfo(dtype).eps
        expected = 1 / math.sqrt(1 + ridge)
        assert norms(maps.cholesky(free)).item() == pytest.approx(expected, abs=3 * torch.finfo(dtype).eps)
        assert norms(maps.cholesky(free)).item() < 1


# Projections and reflections.


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 10**6), st.floats(-20, 20))
def test_a_projection_is_symmetric_idempotent_and_keeps_its_columns(size, rank, seed, exponent):
    rank = min(size, rank)
    free = with_singular_values(torch.linspace(1, 0.1, rank).tolist(), size, rank, seed) * 10**exponent
    image = maps.projection(free)
    torch.testing.assert_close(image, image.T, rtol=0, atol=1e-14)
    torch.testing.assert_close(image @ image, image, rtol=0, atol=1e-12)
    torch.testing.assert_close(image @ free, free, rtol=1e-11, atol=1e-11 * free.abs().max().item())
    assert image.trace().item() == pytest.approx(rank, abs=1e-11)
    closed = free @ torch.linalg.pinv(free)
    torch.testing.assert_close(image, closed, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("case", [case for case in HARD if case != "wide"])
def test_the_eigenvalues_of_a_projection_are_between_0_and_1_whatever_its_columns(case, dtype):
    for scale in (1e-30, 1.0, 1e30):
        image = maps.projection((scale * HARD[case].double()).clamp(-1e37, 1e37).to(dtype))
        values = torch.linalg.eigvalsh(image.to(WIDE_DTYPE[dtype]))
        assert values.min() >= -rounding(image) and values.max() <= 1 + rounding(image)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_projection_keeps_less_of_the_ridge_than_its_factor(dtype):
    free = with_singular_values([1.0, 0.9], 6, 2, dtype=dtype)
    ridge = 2 * (2 + 8) * torch.finfo(dtype).eps
    assert 1 - norms(maps.cholesky(free))[-1].item() > 0.4 * ridge
    assert (norms(maps.projection(free))[:2] - 1).abs().max().item() < 0.4 * ridge


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_a_reflector_mirrors_its_columns_and_keeps_what_is_orthogonal_to_them(dtype):
    free = drawn(6, 2, dtype=dtype)
    image = maps.block_reflector(free)
    complement = torch.linalg.svd(free).U[:, 2:]
    torch.testing.assert_close(image @ free, -free, rtol=0, atol=1e-12)
    torch.testing.assert_close(image @ complement, complement, rtol=0, atol=1e-12)
    torch.testing.assert_close(image @ image, torch.eye(6, dtype=dtype), rtol=0, atol=1e-12)
    torch.testing.assert_close(image, image.mH, rtol=0, atol=1e-14)
    assert image.diagonal().sum().real.item() == pytest.approx(6 - 2 * 2, abs=1e-12)


def test_a_reflector_with_one_column_is_the_householder_reflection():
    vector = drawn(5, 1)
    expected = torch.eye(5) - 2 * vector @ vector.T / vector.square().sum()
    torch.testing.assert_close(maps.block_reflector(vector), expected.double(), rtol=0, atol=1e-12)


# AOL.


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 10**6), st.floats(-8, 8), st.booleans())
def test_the_scaled_weight_has_norm_at_most_one(rows, columns, seed, exponent, nearly_parallel):
    weight = drawn(rows, columns, seed=seed) * 10**exponent
    if nearly_parallel:
        weight = weight[:, :1] + 1e-3 * weight
    scaled = weight * maps.aol_scale(weight)
    assert excess(scaled) <= rounding(scaled)
    sums = (weight.T @ weight).abs().sum(1)
    proof = torch.diag(sums) - weight.T @ weight
    assert torch.linalg.eigvalsh(proof).min() >= -1e-13 * sums.max()


def test_an_orthogonal_weight_is_its_own_scaling_and_parallel_columns_share_theirs():
    weight = with_singular_values([1.0] * 3, 5, 3)
    torch.testing.assert_close(maps.aol_scale(weight), torch.ones(3).double(), rtol=0, atol=1e-14)
    for sign in (1.0, -1.0):  # w'w = [[1, +-1], [+-1, 1]]: sums of 2
        both = torch.cat([weight[:, :1], sign * weight[:, :1]], 1)
        expected = torch.full((2,), 0.5**0.5, dtype=torch.float64)
        torch.testing.assert_close(maps.aol_scale(both), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_column_of_zeros_is_scaled_by_a_finite_number_and_has_a_gradient(dtype):
    weight = drawn(4, 3, dtype=dtype)
    weight[:, 1] = 0
    weight.requires_grad_()
    scaled = weight * maps.aol_scale(weight)
    scaled.sum().backward()
    assert torch.isfinite(scaled).all() and torch.isfinite(weight.grad).all()
    assert not scaled[:, 1].any() and excess(scaled) <= rounding(scaled)


def test_a_map_leaves_its_argument_and_the_random_state_as_they_are():
    for name, function in ALL.items():
        free = drawn(5, 3)
        kept, state = free.clone(), torch.get_rng_state()
        function(free)
        assert torch.equal(free, kept) and torch.equal(torch.get_rng_state(), state), name
