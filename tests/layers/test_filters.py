"""Orthogonal filters against matrices that are written out, FFTs and scipy's exponential."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from lipbook.layers import filters, maps

SIZES = [(4, 5), (5, 4), (3, 3), (6, 6), (2, 7), (1, 4), (5, 1), (1, 1)]


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def circular_matrix(kernel, size, stride=1, origin=None):
    """The matrix of a strided circular convolution, entry by entry; `origin` is the tap at offset 0."""
    outputs, inputs, kh, kw = kernel.shape
    h, w = size
    top, left = ((kh - 1) // 2, (kw - 1) // 2) if origin is None else origin
    matrix = np.zeros((outputs, h // stride, w // stride, inputs, h, w))
    numbers = kernel.numpy()
    for i, j, a, b in itertools.product(range(h // stride), range(w // stride), range(kh), range(kw)):
        matrix[:, i, j, :, (stride * i + a - top) % h, (stride * j + b - left) % w] += numbers[:, :, a, b]
    return matrix.reshape(outputs * (h // stride) * (w // stride), inputs * h * w)


def zeros_matrix(kernel, size):
    """The matrix of a 'same' convolution with zeros around the image, entry by entry."""
    outputs, inputs, kh, kw = kernel.shape
    h, w = size
    matrix = np.zeros((outputs, h, w, inputs, h, w))
    for i, j, a, b in itertools.product(range(h), range(w), range(kh), range(kw)):
        y, x = i + a - kh // 2, j + b - kw // 2
        if 0 <= y < h and 0 <= x < w:
            matrix[:, i, j, :, y, x] += kernel.numpy()[:, :, a, b]
    return matrix.reshape(outputs * h * w, inputs * h * w)


def require_orthogonal(matrix, tolerance=1e-11):
    values = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(values, 1, rtol=0, atol=tolerance)


# Paraunitary kernels.


def factors(free):
    """Each [P, I - P] as a kernel, along the axis that it acts on."""
    for k, vectors in enumerate(free.numpy()):
        image = vectors @ np.linalg.pinv(vectors)
        shape = (*image.shape, 2, 1) if k % 2 == 0 else (*image.shape, 1, 2)
        yield torch.from_numpy(np.stack([image, np.eye(len(image)) - image], -1).reshape(shape))


@pytest.mark.parametrize("channels, outputs, stride", [(2, 2, 1), (3, 2, 1), (2, 3, 1), (2, 8, 2), (1, 3, 2)])
@pytest.mark.parametrize("count", [1, 2])
def test_a_paraunitary_kernel_is_the_product_of_the_matrices_of_its_factors(channels, outputs, stride, count):
    matrix = maps.qr(drawn(outputs, channels * stride**2)).reshape(outputs, channels, stride, stride)
    free = drawn(2 * count, channels, max(1, channels // 2), seed=1)
    kernel = filters.paraunitary(matrix, free)
    assert kernel.shape == (outputs, channels, stride + count, stride + count)
    size = (4 * stride, 6)
    product = circular_matrix(matrix, size, stride, (0, 0))
    for factor in factors(free):
        product = product @ circular_matrix(factor, size, 1, (0, 0))
    np.testing.assert_allclose(circular_matrix(kernel, size, stride, (0, 0)), product, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_paraunitary_kernel_is_an_isometry_or_its_adjoint_on_circular_images(stride):
    for channels, outputs in [(1, 1), (2, 2), (3, 1), (1, 10), (2, 20)]:
        matrix = maps.cayley(drawn(outputs, channels * stride**2)).reshape(outputs, channels, stride, stride)
        for count in (1, 2):
            kernel = filters.paraunitary(matrix, drawn(2 * count, channels, max(1, channels // 2), seed=1))
            for size in [(2 * stride, 3 * stride), (stride, stride)]:
                require_orthogonal(circular_matrix(kernel, size, stride))


@given(st.integers(1, 3), st.integers(1, 2), st.integers(0, 10**6), st.floats(-20, 20), st.booleans())
def test_whatever_the_free_projections_the_kernel_is_orthogonal_or_a_contraction(
    channels, count, seed, exponent, deficient
):
    free = drawn(2 * count, channels, max(1, channels // 2), seed=seed) * 10**exponent
    if deficient:
        free = free * 0
    matrix = maps.qr(drawn(channels, channels, seed=seed + 1))[..., None, None]
    values = np.linalg.svd(circular_matrix(filters.paraunitary(matrix, free), (4, 3)), compute_uv=False)
    assert values.max() <= 1 + 1e-12 and values.min() >= 1 - 1e-10


def test_eigenvalues_between_0_and_1_keep_a_factor_a_contraction_at_every_frequency():
    """|p + (1 - p) e^{iw}| <= 1 for p in [0, 1], with equality for p = 0 and p = 1 only, unless w = 0."""
    p, w = np.linspace(0, 1, 101)[:, None], np.linspace(0, 2 * np.pi, 257)
    sizes = np.abs(p + (1 - p) * np.exp(1j * w))
    assert sizes.max() <= 1 + 1e-15
    assert sizes[1:-1, 1:-1].max() < 1 and np.abs(np.exp(1j * w) * 1.1 - 0.1).max() > 1.1


# Frequencies.


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("taps", [(1, 1), (3, 3), (5, 5), (3, 1)], ids=str)
def test_the_matrix_of_each_frequency_is_that_of_an_fft(taps, size):
    kernel = drawn(2, 3, *taps)
    placed = torch.zeros(2, 3, *size, dtype=torch.float64)
    for a, b in itertools.product(range(taps[0]), range(taps[1])):
        placed[:, :, (a - taps[0] // 2) % size[0], (b - taps[1] // 2) % size[1]] += kernel[:, :, a, b]
    expected = torch.fft.rfft2(placed).conj().permute(2, 3, 0, 1).flatten(0, 1)  # a cross-correlation
    blocks = filters.symbols(kernel, size)
    assert blocks.shape == (size[0] * (size[1] // 2 + 1), 2, 3) and blocks.dtype == torch.complex128
    torch.testing.assert_close(blocks, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_applying_the_matrices_of_the_frequencies_is_the_convolution(size):
    kernel, inputs = drawn(2, 3, 3, 3), drawn(4, 3, *size, seed=1)
    found = filters.apply_symbols(inputs, filters.symbols(kernel, size))
    expected = inputs.flatten(1).numpy() @ circular_matrix(kernel, size).T
    assert found.dtype == torch.float64 and found.shape == (4, 2, *size)
    np.testing.assert_allclose(found.flatten(1).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_singular_values_of_the_frequencies_are_those_of_the_whole_matrix(size):
    kernel = drawn(2, 2, 3, 3)
    blocks = torch.linalg.svdvals(filters.symbols(kernel, size)).unflatten(0, (size[0], size[1] // 2 + 1))
    twice = [column for column in range(size[1] // 2 + 1) if column not in (0, size[1] / 2)]
    values = torch.cat([blocks, blocks[:, twice]], 1).flatten().sort().values
    dense = np.sort(np.linalg.svd(circular_matrix(kernel, size), compute_uv=False))
    np.testing.assert_allclose(values.numpy(), dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mapping", [maps.cayley, maps.block_reflector, filters.exponential])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_maps_of_the_frequencies_of_a_real_kernel_are_those_of_a_real_operator(mapping, size):
    """Opposite frequencies stay conjugate, so that the inverse transform loses nothing."""
    kernel = drawn(3, 3, 3, 3)
    kernel = filters.skew(kernel) if mapping is filters.exponential else kernel[:, :2]
    if mapping is maps.cayley:
        kernel = drawn(3, 2, 3, 3)
    everywhere = torch.fft.fft2(place(kernel, size)).conj().permute(2, 3, 0, 1)
    image = torch.fft.ifft2(mapping(everywhere).conj().permute(2, 3, 0, 1))
    assert image.imag.abs().max() <= 1e-12
    inputs = drawn(2, image.shape[1], *size, seed=2)
    found = filters.apply_symbols(inputs, mapping(filters.symbols(kernel, size)))
    expected = inputs.flatten(1).numpy() @ circular_matrix(image.real, size, 1, (0, 0)).T
    np.testing.assert_allclose(found.flatten(1).numpy(), expected, rtol=0, atol=1e-11)


def place(kernel, size):
    placed = torch.zeros(*kernel.shape[:2], *size, dtype=torch.float64)
    kh, kw = kernel.shape[2:]
    for a, b in itertools.product(range(kh), range(kw)):
        placed[:, :, (a - kh // 2) % size[0], (b - kw // 2) % size[1]] += kernel[:, :, a, b]
    return placed


# Skew kernels and their exponential.


@given(
    st.integers(1, 4),
    st.sampled_from([1, 3, 5]),
    st.integers(0, 10**6),
    st.floats(-3, 12),
    st.sampled_from([circular_matrix, zeros_matrix]),
)
def test_a_skew_kernel_has_a_skew_matrix_of_norm_at_most_pi(channels, taps, seed, exponent, matrix):
    free = drawn(channels, channels, taps, taps, seed=seed) * 10**exponent
    if seed % 3 == 0:
        free = free.abs().tril() + free.abs().triu().flip(0)
    kernel = filters.skew(free)
    for size in [(4, 5), (2, 3)]:
        dense = matrix(kernel, size)
        np.testing.assert_allclose(dense, -dense.T, rtol=0, atol=1e-12)
        assert np.linalg.norm(dense, 2) <= math.pi * (1 + 1e-12)
    assert taps > 1 or channels > 1 or not kernel.any()


def test_a_small_skew_kernel_is_not_scaled():
    free = 0.05 * drawn(2, 2, 3, 3)
    expected = free - free.transpose(0, 1).flip(2, 3)
    assert torch.equal(filters.skew(free), expected)


def test_the_scaling_is_by_the_stated_bound_and_not_by_more():
    for channels, taps in [(1, 3), (2, 3), (3, 5), (4, 1)]:
        free = 10 * drawn(channels, channels, taps, taps)
        kernel = free - free.transpose(0, 1).flip(2, 3)
        whole = taps * (torch.linalg.svdvals(kernel.flatten(1)) ** 8).sum() ** 0.125
        values = torch.linalg.svdvals(kernel.permute(2, 3, 0, 1))
        bound = torch.minimum(whole, ((values**8).sum(-1) ** 0.125).sum())
        torch.testing.assert_close(filters.skew(free), kernel * math.pi / bound, rtol=2e-3, atol=0)
        truth = np.linalg.norm(circular_matrix(kernel, (2 * taps, 2 * taps)), 2)
        assert truth <= bound.item() * (1 + 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kernels_of_every_size_become_small_ones(dtype):
    for scale in (0.0, 1e-30, 1e-10, 1e10, 1e30):
        kernel = filters.skew((scale * drawn(2, 2, 3, 3)).to(dtype))
        assert torch.isfinite(kernel).all()
        assert np.linalg.norm(circular_matrix(kernel.double(), (4, 4)), 2) <= math.pi * (1 + 1e-5)


def test_the_gradient_of_skew_agrees_with_finite_differences_on_both_sides_of_its_scaling():
    for scale in (0.05, 1.0, 20.0):
        free = (scale * drawn(2, 2, 3, 3)).requires_grad_()
        assert torch.autograd.gradcheck(filters.skew, (free,), eps=1e-7, atol=1e-6)
        symbol = torch.view_as_complex(drawn(2, 2, 2, 2, 2)).requires_grad_()
        assert torch.autograd.gradcheck(filters.exponential, (symbol,))


@given(st.integers(1, 5), st.integers(0, 10**6), st.floats(0.01, 3.14))
def test_the_polynomial_of_a_matrix_is_within_its_remainder_of_scipys_exponential(size, seed, norm):
    matrix = drawn(size, size, seed=seed)
    matrix = matrix - matrix.T
    length = torch.linalg.matrix_norm(matrix, 2).item()
    matrix = matrix * (norm / length if length else 1)
    found = filters.exponential(matrix)
    remainder = norm ** (filters.DEGREE + 1) / math.factorial(filters.DEGREE + 1)
    assert np.linalg.norm(found.numpy() - scipy.linalg.expm(matrix.numpy()), 2) <= remainder + 1e-12
    assert torch.linalg.matrix_norm(found, 2) <= 1 + 1e-14
    direct = sum(torch.linalg.matrix_power(matrix, k) / math.factorial(k) for k in range(filters.DEGREE + 1))
    torch.testing.assert_close(found, direct, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(4, 5), (2, 2), (1, 3), (6, 4)], ids=str)
def test_the_convolution_with_the_polynomial_is_that_of_the_whole_matrix(size):
    kernel, inputs = filters.skew(drawn(2, 2, 3, 3)), drawn(3, 2, *size, seed=1)
    for found, dense in [
        (filters.convolve_exponential(inputs, kernel), zeros_matrix(kernel, size)),
        (
            filters.apply_symbols(inputs, filters.exponential(filters.symbols(kernel, size))),
            circular_matrix(kernel, size),
        ),
    ]:
        remainder = np.linalg.norm(dense, 2) ** (filters.DEGREE + 1) / math.factorial(filters.DEGREE + 1)
        expected = inputs.flatten(1).numpy() @ scipy.linalg.expm(dense).T
        lengths = np.linalg.norm(inputs.flatten(1).numpy(), axis=1)
        assert (
            np.linalg.norm(found.flatten(1).numpy() - expected, axis=1) <= (remainder + 1e-12) * lengths
        ).all()
        polynomial = sum(
            np.linalg.matrix_power(dense, k) / math.factorial(k) for k in range(filters.DEGREE + 1)
        )
        np.testing.assert_allclose(
            found.flatten(1).numpy(), inputs.flatten(1).numpy() @ polynomial.T, atol=1e-12
        )
        assert np.linalg.norm(polynomial, 2) <= 1 + 1e-13


def taylor(degree, angle):
    """The Taylor polynomial of e^{i angle}."""
    return sum((1j * angle) ** k / math.factorial(k) for k in range(degree + 1))


def test_degree_12_contracts_on_the_imaginary_axis_up_to_3_3_and_not_beyond_3_4():
    angles = np.linspace(0, 3.3, 200_001)
    assert filters.DEGREE == 12 and filters.REACH < 3.3
    assert np.abs(taylor(12, angles)).max() <= 1 + 1e-15
    assert abs(taylor(12, 3.4)) > 1
    assert np.abs(taylor(10, np.linspace(0.1, 3, 1001))).max() > 1  # of degree 2 modulo 4: beyond 1 at once


def test_the_square_of_the_polynomial_falls_with_the_derivative_of_the_proof():
    """d/dt |T_12(it)|^2 = -2 t^12 / 12! sin_11(t), where sin_11 is the Taylor polynomial, positive to 3.3."""
    angles = np.linspace(0.05, 3.3, 5001)
    sine = sum((-1) ** k * angles ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(6))
    assert (sine[angles <= 3.1] > 0).all()
    slope = -2 * angles**12 / math.factorial(12) * sine
    step = 1e-4
    ends = [np.abs(taylor(12, angles + sign * step)) ** 2 for sign in (1, -1)]
    np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), slope, rtol=1e-5, atol=1e-10)
    # The integral of the slope: 0 at 0, and still below it at 3.3, past the root of sin_11 near pi.
    square = np.abs(taylor(12, np.linspace(3.0, 3.3, 1001))) ** 2 - 1
    assert square.max() < -1e-6


# Wrapping.


@pytest.mark.parametrize("size", [(3, 4), (2, 2), (5, 3)], ids=str)
@pytest.mark.parametrize("border", [0, 1, 2])
def test_wrapping_is_circular_padding(size, border):
    inputs = drawn(2, 3, *size)
    if border:
        expected = F.pad(inputs, (border,) * 4, mode="circular")
        assert torch.equal(filters.wrap(inputs, border), expected)
    else:
        assert filters.wrap(inputs, 0) is inputs


@pytest.mark.parametrize("padding", ["circular", "zeros"])
def test_a_same_convolution_is_that_of_the_whole_matrix(padding):
    kernel, inputs, bias = drawn(2, 3, 3, 3), drawn(4, 3, 4, 5, seed=1), drawn(2, seed=2)
    matrix = {"circular": circular_matrix, "zeros": zeros_matrix}[padding](kernel, (4, 5))
    found = filters.convolve(inputs, kernel, padding, bias) - bias[:, None, None]
    np.testing.assert_allclose(found.flatten(1).numpy(), inputs.flatten(1).numpy() @ matrix.T, atol=1e-12)
