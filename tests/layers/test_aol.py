"""AOL layers against matrices that are written out, Gershgorin's sums by loops and `check`."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lipbook import CertificateError, UnsupportedLayerError
from lipbook.contracts import affine, check, lipschitz, output_shape
from lipbook.layers import AOLConv2d, AOLLinear
from lipbook.layers.aol import gram_sums

DENSE = [(4, 4), (3, 5), (5, 3), (1, 4), (4, 1), (1, 1)]
IMAGES = {  # channels in and out, kernel, padding, image
    "square": (2, 2, 3, "circular", (4, 5)),
    "more out": (1, 3, 3, "circular", (4, 4)),
    "more in": (3, 2, 3, "circular", (3, 4)),
    "kernel 1": (2, 3, 1, "circular", (3, 3)),
    "kernel 5": (1, 2, 5, "circular", (5, 6)),
    "kernel larger than the image": (2, 2, 5, "circular", (3, 2)),
    "zeros": (2, 2, 3, "zeros", (4, 5)),
    "zeros, more in": (3, 1, 3, "zeros", (4, 3)),
    "zeros, kernel 5": (1, 2, 5, "zeros", (4, 5)),
    "zeros, one pixel": (2, 2, 3, "zeros", (1, 1)),
}


def dense(inputs, outputs, seed=0, dtype=torch.float64, scale=1.0):
    torch.manual_seed(seed)
    layer = AOLLinear(inputs, outputs).to(dtype)
    with torch.no_grad():
        layer.free.normal_().mul_(scale)
    return layer


def convolution(name, seed=0, dtype=torch.float64, scale=1.0):
    *options, _ = IMAGES[name]
    torch.manual_seed(seed)
    layer = AOLConv2d(*options[:3], padding_mode=options[3]).to(dtype)
    with torch.no_grad():
        layer.free.normal_().mul_(scale)
    return layer


def image_shape(name):
    return (IMAGES[name][0], *IMAGES[name][4])


def matrix_of(layer, shape):
    """The linear part of the forward pass in float64, from a batch of unit vectors."""
    layer = layer.double()
    with torch.no_grad():
        probes = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
        return (layer(probes) - layer(0 * probes)).flatten(1).T.numpy()


def norm(layer, shape):
    return np.linalg.norm(matrix_of(layer, shape), 2)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 10**6), st.floats(-12, 12))
def test_the_dense_weight_is_the_free_one_with_columns_or_rows_divided_by_gershgorins_sums(
    inputs, outputs, seed, exponent
):
    layer = dense(inputs, outputs, seed, scale=10**exponent)
    free = layer.free.detach().numpy()
    short = free.T if outputs < inputs else free
    sums = [
        sum(abs(float(short[:, i] @ short[:, j])) for i in range(short.shape[1]))
        for j in range(short.shape[1])
    ]
    scaled = short / np.sqrt(sums)
    expected = scaled.T if outputs < inputs else scaled
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected, rtol=1e-12, atol=1e-14)
    assert np.linalg.norm(expected, 2) <= 1 + 1e-13


@pytest.mark.parametrize("size", DENSE, ids=str)
def test_an_untrained_dense_layer_is_orthogonal(size):
    torch.manual_seed(0)
    values = np.linalg.svd(AOLLinear(*size).double().weight.detach().numpy(), compute_uv=False)
    np.testing.assert_allclose(values, 1, rtol=0, atol=1e-5)


def test_an_untrained_convolution_is_nearly_orthogonal_on_its_smaller_side():
    for name in IMAGES:
        torch.manual_seed(0)
        *options, _ = IMAGES[name]
        layer = AOLConv2d(*options[:3], padding_mode=options[3]).double()
        values = np.linalg.svd(matrix_of(layer, image_shape(name)), compute_uv=False)
        assert values.max() <= 1 + 1e-12 and values.min() > 0.5


@pytest.mark.parametrize("name", IMAGES)
def test_the_matrix_of_a_convolution_has_norm_at_most_one_on_every_image(name):
    shape = image_shape(name)
    for seed in range(10):
        layer = convolution(name, seed)
        with torch.no_grad():
            if seed % 3 == 1:
                layer.free.abs_()  # the same sign everywhere: the rows of V'V have no cancellation
            if seed % 3 == 2:
                layer.free.mul_(torch.randn_like(layer.free) ** 4)
        for size in [shape[1:], (6, 6), (5, 7), (2 * shape[1], shape[2])]:
            assert norm(layer, (shape[0], *size)) <= 1 + 1e-12


@pytest.mark.parametrize("padding", ["circular", "zeros"])
def test_the_bound_is_reached_by_a_kernel_of_one_sign_on_a_torus_and_approached_with_zeros(padding):
    """Every product is positive, so that sums are their absolute values: constants are the top vector."""
    layer = AOLConv2d(1, 1, 3, padding, bias=False).double()
    nn.init.ones_(layer.free)
    reached = norm(layer, (1, 12, 12))
    assert 0.8 < reached <= 1 + 1e-12
    if padding == "circular":
        assert reached == pytest.approx(1, abs=1e-12)


@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3]), st.integers(0, 10**6))
def test_the_sums_are_those_of_the_rows_of_the_whole_gram_matrix(inputs, outputs, size, seed):
    """On an image so large that nothing meets around it, in the middle row of each channel."""
    torch.manual_seed(seed)
    kernel = torch.randn(outputs, inputs, size, size, dtype=torch.float64)
    side = 2 * (2 * size - 1) + 1
    plain = nn.Conv2d(inputs, outputs, size, padding=size // 2, padding_mode="circular", bias=False).double()
    with torch.no_grad():
        plain.weight.copy_(kernel)
    matrix = matrix_of(plain, (inputs, side, side))
    sums = np.abs(matrix @ matrix.T).sum(1).reshape(outputs, -1)
    np.testing.assert_allclose(sums[:, 0], gram_sums(kernel).numpy(), rtol=1e-11)
    np.testing.assert_allclose(sums, np.repeat(sums[:, :1], sums.shape[1], 1), rtol=1e-11)


@pytest.mark.parametrize("name", IMAGES)
def test_the_forward_pass_is_the_convolution_with_the_weight_it_names(name):
    layer, shape = convolution(name), image_shape(name)
    x = torch.randn(2, *shape, dtype=torch.float64)
    border = layer.kernel_size // 2
    mode = {"circular": "circular", "zeros": "constant"}[layer.padding_mode]
    if border > min(shape[1:]):
        return
    padded = nn.functional.pad(x, (border,) * 4, mode=mode)
    expected = nn.functional.conv2d(padded, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)
    assert output_shape(layer, shape) == tuple(expected.shape[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e12, 1e30])
def test_parameters_of_every_size_keep_the_norm_below_one(scale, dtype):
    for size in DENSE:
        layer = dense(*size, dtype=dtype, scale=scale)
        assert torch.isfinite(layer.weight).all()
        assert lipschitz(layer).verify(layer).value <= 1 + 64 * torch.finfo(dtype).eps
    for name in ("square", "more in", "zeros"):
        layer = convolution(name, dtype=dtype, scale=scale)
        assert torch.isfinite(layer.weight).all()
        assert lipschitz(layer, 2, image_shape(name)).value <= 1 + 64 * torch.finfo(dtype).eps


def test_a_channel_of_zeros_stays_zero_and_keeps_its_gradient_finite():
    for layer, side in [
        (dense(4, 6), 1),
        (dense(6, 4), 0),
        (convolution("more out"), 1),
        (convolution("more in"), 0),
    ]:
        with torch.no_grad():
            layer.free.select(side, 0).zero_()
        layer.weight.square().sum().backward()
        assert torch.isfinite(layer.weight).all() and torch.isfinite(layer.free.grad).all()
        assert not layer.weight.select(side, 0).any()


LAYERS = {
    "dense": (lambda dtype: dense(4, 4, dtype=dtype), (4,)),
    "dense, wide": (lambda dtype: dense(5, 3, dtype=dtype), (5,)),
    "dense, tall": (lambda dtype: dense(3, 5, dtype=dtype), (3,)),
} | {name: (lambda dtype, name=name: convolution(name, dtype=dtype), image_shape(name)) for name in IMAGES}


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_every_attack_fails_and_the_bound_is_reached(name, dtype):
    build, shape = LAYERS[name]
    layer = build(dtype)
    slack = check(layer, shape)
    assert 0 <= slack["lipschitz_2"] < 0.01
    # The row sums of a kernel are those of the operator where a whole window fits into the image.
    whole = len(shape) == 1 or min(shape[1:]) >= layer.kernel_size
    assert 0 <= slack["lipschitz_inf"] < (0.01 if whole else math.inf)
    assert {"affine", "enclose", "output_shape"} <= set(slack)


@pytest.mark.parametrize("order", [2, math.inf])
@pytest.mark.parametrize("name", LAYERS)
def test_a_certificate_proves_the_norm_of_the_matrix_and_no_smaller_value(name, order):
    build, shape = LAYERS[name]
    layer = build(torch.float64)
    bound = lipschitz(layer, order, shape)
    assert bound.verify(layer) is bound
    matrix = affine(layer, shape)[0]
    truth = torch.linalg.matrix_norm(matrix, 2) if order == 2 else matrix.abs().sum(1).max()
    assert truth.item() <= bound.value
    if order == 2 or len(shape) == 1 or min(shape[1:]) >= layer.kernel_size:
        assert bound.value <= truth.item() * (1 + 1e-8)
    np.testing.assert_allclose(matrix.numpy(), matrix_of(layer, shape), rtol=0, atol=1e-13)
    with pytest.raises(CertificateError):
        dataclasses.replace(bound, value=0.99 * bound.value).verify(layer)


def test_an_image_that_the_layer_does_not_take_is_refused():
    layer = convolution("kernel 5")
    for shape in [(2, 5, 5), (1, 5), (5,), (1, 1, 5)]:
        for read in (output_shape, lambda layer, shape: lipschitz(layer, 2, shape)):
            with pytest.raises(ValueError):
                read(layer, shape)
    with pytest.raises(ValueError, match="4 numbers in the last dimension"):
        output_shape(dense(4, 2), (3,))


def test_attributes_that_no_layer_is_built_with_are_refused():
    layer = convolution("square")
    layer.padding_mode = "reflect"
    with pytest.raises(UnsupportedLayerError, match="reflect"):
        lipschitz(layer)
    layer = convolution("square")
    layer.kernel_size = 5
    with pytest.raises(UnsupportedLayerError, match="build it anew"):
        lipschitz(layer)
