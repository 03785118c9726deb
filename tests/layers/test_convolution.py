"""`OrthogonalConv2d` against matrices that are written out, SVDs in float64 and `check`."""

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
from lipbook.contracts.rounding import enclose
from lipbook.layers import MaxMin, OrthogonalConv2d
from lipbook.layers.convolution import METHODS

LAYERS = {  # channels in and out, kernel, stride, padding, method; images
    "bcop": ((2, 2, 3, 1, "circular", "bcop"), [(4, 5), (2, 3), (1, 1)]),
    "bcop, more out": ((1, 3, 3, 1, "circular", "bcop"), [(4, 4), (3, 2)]),
    "bcop, more in": ((3, 1, 3, 1, "circular", "bcop"), [(4, 4), (3, 2)]),
    "bcop, kernel 5": ((2, 2, 5, 1, "circular", "bcop"), [(5, 6), (2, 2)]),
    "bcop, kernel 1": ((2, 3, 1, 1, "circular", "bcop"), [(3, 3)]),
    "bcop, stride": ((1, 4, 4, 2, "circular", "bcop"), [(4, 6), (2, 2)]),
    "bcop, stride, more out": ((1, 7, 4, 2, "circular", "bcop"), [(4, 6)]),
    "bcop, stride, more in": ((2, 3, 4, 2, "circular", "bcop"), [(4, 6)]),
    "bcop, stride, odd": ((2, 5, 3, 2, "circular", "bcop"), [(4, 6)]),
    "bcop, stride of its kernel": ((1, 5, 2, 2, "circular", "bcop"), [(4, 6)]),
    "bcop, stride 3": ((1, 9, 5, 3, "circular", "bcop"), [(6, 3)]),
    "patch": ((1, 4, 2, 2, "circular", "patch"), [(4, 6)]),
    "patch, more out": ((1, 6, 2, 2, "circular", "patch"), [(4, 2)]),
    "patch, more in": ((3, 2, 3, 3, "circular", "patch"), [(3, 6)]),
    "patch, kernel 1": ((3, 3, 1, 1, "circular", "patch"), [(2, 3)]),
    "soc": ((2, 2, 3, 1, "circular", "soc"), [(4, 5), (2, 1), (1, 1)]),
    "soc, kernel 5": ((3, 3, 5, 1, "circular", "soc"), [(3, 4)]),
    "cayley": ((2, 2, 3, 1, "circular", "cayley"), [(4, 5), (3, 3), (1, 1)]),
    "cayley, more out": ((2, 3, 3, 1, "circular", "cayley"), [(4, 5)]),
    "cayley, more in": ((3, 2, 3, 1, "circular", "cayley"), [(5, 4)]),
    "bro": ((2, 2, 3, 1, "circular", "bro"), [(4, 5), (3, 3), (1, 1)]),
    "bro, more out": ((2, 3, 3, 1, "circular", "bro"), [(4, 5)]),
    "bro, more in": ((3, 2, 3, 1, "circular", "bro"), [(5, 4)]),
}
CONTRACTIONS = {
    "bcop, zeros": ((2, 2, 3, 1, "zeros", "bcop"), [(4, 5), (2, 3), (1, 1)]),
    "bcop, zeros, more out": ((1, 3, 3, 1, "zeros", "bcop"), [(4, 5)]),
    "bcop, zeros, stride": ((2, 5, 4, 2, "zeros", "bcop"), [(4, 6), (5, 7), (2, 3)]),
    "bcop, zeros, stride, odd": ((1, 4, 3, 2, "zeros", "bcop"), [(4, 6), (5, 7), (1, 1)]),
    "patch, zeros": ((1, 4, 2, 2, "zeros", "patch"), [(5, 7), (4, 6)]),
    "soc, zeros": ((2, 2, 3, 1, "zeros", "soc"), [(4, 5), (1, 1), (1, 6)]),
}
BOTH = {**LAYERS, **CONTRACTIONS}
FREQUENCY = [name for name in BOTH if name.startswith(("soc", "cayley", "bro")) and "zeros" not in name]
KERNELS = [name for name in BOTH if name.startswith(("bcop", "patch"))]


def built(name, seed=0, dtype=torch.float64, scale=1.0):
    inputs, outputs, size, stride, padding, method = BOTH[name][0]
    torch.manual_seed(seed)
    layer = OrthogonalConv2d(inputs, outputs, size, stride, padding, method=method).to(dtype)
    with torch.no_grad():
        for key, parameter in layer.named_parameters():
            parameter.normal_().mul_(1 if key == "bias" else scale)
    return layer


def shapes(name):
    return [(BOTH[name][0][0], *size) for size in BOTH[name][1]]


def matrix_of(layer, shape):
    """The linear part of the forward pass in float64, from a batch of unit vectors."""
    layer = layer.double().eval()
    with torch.no_grad():
        probes = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
        return (layer(probes) - layer(0 * probes)).flatten(1).T.numpy()


def singular_values(layer, shape):
    return np.linalg.svd(matrix_of(layer, shape), compute_uv=False)


# The operator.


@pytest.mark.parametrize("name", BOTH)
def test_the_whole_matrix_is_an_isometry_or_its_adjoint_or_a_contraction(name):
    for seed in range(3):
        for scale in (0.05, 1.0, 30.0):
            layer = built(name, seed, scale=scale)
            for shape in shapes(name):
                values = singular_values(layer, shape)
                assert values.max() <= 1 + 1e-10
                if name in LAYERS:
                    remainder = 3e-4 if name.startswith("soc") else 1e-8
                    assert values.min() >= 1 - remainder


@pytest.mark.parametrize("name", BOTH)
def test_it_begins_with_random_parameters_and_a_bound_of_one(name):
    inputs, outputs, size, stride, padding, method = BOTH[name][0]
    torch.manual_seed(0)
    layer = OrthogonalConv2d(inputs, outputs, size, stride, padding, method=method)
    for shape in shapes(name):
        bound = lipschitz(layer, 2, shape).verify(layer)
        assert bound.value <= 1 + 1e-5
        assert singular_values(layer, shape).max() <= bound.value * (1 + 1e-5)
        layer = layer.float()


@pytest.mark.parametrize("name", BOTH)
def test_outputs_are_real_shaped_as_the_contract_says_and_shifted_by_the_bias(name):
    layer = built(name)
    for shape in shapes(name):
        x = torch.randn(3, *shape, dtype=torch.float64)
        outputs = layer(x)
        assert outputs.dtype == torch.float64 and outputs.shape == (3, *output_shape(layer, shape))
        linear = x.flatten(1).numpy() @ matrix_of(layer, shape).T
        expected = torch.from_numpy(linear).reshape(outputs.shape) + layer.bias[:, None, None]
        torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-11)
        if name not in FREQUENCY:  # torch has no Fourier transform of nothing
            assert layer(x[:0]).shape == (0, *outputs.shape[1:])


def test_zeros_around_the_image_take_orthogonality_from_bcop_and_leave_soc_nearly_orthogonal():
    values = singular_values(built("bcop, zeros"), (2, 4, 5))
    assert values.max() <= 1 + 1e-12 and values.min() < 0.9
    assert singular_values(built("soc, zeros"), (2, 4, 5)).min() >= 1 - 3e-4


def dense_of(kernel, shape, stride, border, padding):
    """The matrix of a convolution by torch, on a batch of unit vectors."""
    probes = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    if padding == "zeros":
        return nn.functional.conv2d(probes, kernel, None, stride, border).flatten(1).T.detach().numpy()
    h, w = shape[1:]
    rows, columns = (torch.arange(-border, n + border) % n for n in (h, w))
    wrapped = probes[:, :, rows][:, :, :, columns]
    return nn.functional.conv2d(wrapped, kernel, None, stride).flatten(1).T.detach().numpy()


@pytest.mark.parametrize("name", KERNELS)
def test_the_forward_pass_is_the_strided_convolution_with_the_kernel_it_names(name):
    layer = built(name)
    inputs, outputs, size, stride, padding, _ = BOTH[name][0]
    assert layer.weight.shape == (outputs, inputs, size, size)
    border = (size - stride + 1) // 2
    for shape in shapes(name):
        if padding == "circular" and min(shape[1:]) < border:
            continue
        expected = dense_of(layer.weight, shape, stride, border, padding)
        np.testing.assert_allclose(matrix_of(layer, shape), expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(affine(layer, shape)[0].numpy(), expected, rtol=0, atol=1e-14)


def test_the_gradient_of_the_input_keeps_its_norm_where_rows_are_orthonormal():
    for name in (
        "bcop",
        "bcop, more in",
        "patch, more in",
        "cayley",
        "cayley, more in",
        "bro",
        "bcop, stride",
    ):
        layer, shape = built(name), shapes(name)[0]
        x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
        outputs = layer(x)
        g = torch.randn_like(outputs)
        (back,) = torch.autograd.grad(outputs, x, g)
        torch.testing.assert_close(back.flatten(1).norm(dim=1), g.flatten(1).norm(dim=1), rtol=1e-9, atol=0)


@given(
    st.sampled_from(METHODS),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from(["circular", "zeros"]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 10**6),
)
def test_every_choice_of_options_is_refused_or_has_norm_at_most_one(
    method, inputs, outputs, size, stride, padding, height, width, seed
):
    torch.manual_seed(seed)
    try:
        layer = OrthogonalConv2d(inputs, outputs, size, stride, padding, method=method).double()
    except ValueError as error:
        assert len(str(error).split()) >= 5
        return
    shape = (inputs, height * stride, width * stride)
    try:
        output_shape(layer, shape)
    except ValueError:
        with pytest.raises(ValueError):
            layer(torch.zeros(1, *shape, dtype=torch.float64))
        return
    assert singular_values(layer, shape).max() <= 1 + 1e-10
    bound = lipschitz(layer, 2, shape).verify(layer)
    assert singular_values(layer, shape).max() <= bound.value * (1 + 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", BOTH)
def test_parameters_of_every_size_keep_the_norm_at_one(name, dtype):
    shape = shapes(name)[0]
    for scale in (0.0, 1e-30, 1e10, 1e30):
        layer = built(name, dtype=dtype, scale=scale)
        outputs = layer(torch.randn(2, *shape, dtype=dtype))
        assert torch.isfinite(outputs).all()
        bound = lipschitz(layer, 2, shape).verify(layer)
        eps = torch.finfo(dtype).eps  # beside large parameters the Cayley transform, bcop's too, loses half
        assert bound.value <= 1 + (64 * eps + 2**-39 if name.startswith(("soc", "bro")) else 8 * eps**0.5)


# Contracts.


@pytest.mark.parametrize("name", BOTH)
def test_the_bound_is_at_least_the_norm_and_close_to_it(name):
    layer = built(name)
    for shape in shapes(name):
        bound = lipschitz(layer, 2, shape)
        truth = singular_values(layer, shape).max()
        assert truth <= bound.value * (1 + 1e-13)
        if name in LAYERS:
            assert bound.value <= truth * (1 + 1e-3 if name.startswith("soc") else 1 + 1e-8)
        assert bound.value <= 1 + 1e-9


@pytest.mark.parametrize("name", BOTH)
def test_the_bound_in_l_inf_is_at_least_the_row_sums_of_the_matrix(name):
    layer = built(name)
    for shape in shapes(name):
        bound = lipschitz(layer, math.inf, shape)
        truth = np.abs(matrix_of(layer, shape)).sum(1).max()
        assert bound.verify(layer) is bound and truth <= bound.value * (1 + 1e-13)
        if name in LAYERS and min(shape[1:]) >= BOTH[name][0][2]:
            assert bound.value <= truth * (1 + 1e-6)


@pytest.mark.parametrize("order", [2, math.inf])
@pytest.mark.parametrize("name", BOTH)
def test_a_certificate_proves_its_value_and_no_smaller_one(name, order):
    layer, shape = built(name), shapes(name)[0]
    bound = lipschitz(layer, order, shape)
    assert bound.verify(layer) is bound
    with pytest.raises(CertificateError):
        dataclasses.replace(bound, value=0.99 * bound.value).verify(layer)
    other = built(name, seed=1)
    other.load_state_dict(layer.state_dict())
    assert bound.verify(other) is bound
    for wrong in (nn.Conv2d(2, 2, 3), MaxMin(), nn.Sequential(layer)):
        with pytest.raises(CertificateError):
            dataclasses.replace(bound, value=100.0).verify(wrong)


@pytest.mark.parametrize("name", ["bcop", "patch", "soc", "cayley", "bro"])
def test_a_bound_in_l_inf_is_void_after_the_parameters_have_changed(name):
    """The norm in l_2 stays 1, and the row sums move: one percent more on one parameter after another."""
    layer, shape = built(name), shapes(name)[0]
    noticed = 0
    for index in range(layer.free.numel()):
        bound = lipschitz(layer, math.inf, shape)
        with torch.no_grad():
            layer.free.view(-1)[index] *= 1.01
        if np.abs(matrix_of(layer, shape)).sum(1).max() > bound.value * (1 + 1e-9):
            noticed += 1
            with pytest.raises(CertificateError):
                bound.verify(layer)
    assert noticed > 0


@pytest.mark.parametrize("name", FREQUENCY)
def test_without_a_size_the_layers_that_depend_on_it_ask_for_one(name):
    for order in (2, math.inf):
        with pytest.raises(ValueError, match="pass input_shape"):
            lipschitz(built(name), order)


@pytest.mark.parametrize("name", ["bcop", "bcop, zeros", "bcop, zeros, stride", "patch", "soc, zeros"])
def test_without_a_size_the_other_bounds_hold_for_every_image(name):
    layer = built(name)
    bound = lipschitz(layer).verify(layer)
    for shape in shapes(name):
        assert singular_values(layer, shape).max() <= bound.value * (1 + 1e-12)


def test_the_methods_without_a_kernel_have_no_affine_contract_and_no_weight():
    for name in ("soc", "cayley", "bro", "soc, zeros"):
        layer = built(name)
        with pytest.raises(UnsupportedLayerError, match="export"):
            affine(layer, shapes(name)[0])
        with pytest.raises(AttributeError):
            layer.weight


@pytest.mark.parametrize("name", BOTH)
def test_what_is_enclosed_is_what_a_point_moved_by_the_errors_is_mapped_to(name):
    layer, shape = built(name), shapes(name)[0]
    values = torch.randn(2, *shape, dtype=torch.float64)
    errors = 0.1 * torch.rand(2, *shape, dtype=torch.float64)
    images, moved = enclose(layer, values, errors)
    matrix = torch.from_numpy(matrix_of(layer, shape))
    bias = layer.bias.detach()[:, None, None]
    exact = (values.flatten(1) @ matrix.T).reshape(images.shape) + bias
    torch.testing.assert_close(images, exact, rtol=0, atol=1e-10)
    for _ in range(20):
        point = values + errors * (2 * torch.rand_like(errors) - 1).sign()
        exact = (point.flatten(1) @ matrix.T).reshape(images.shape) + bias
        assert ((exact - images).abs() <= moved + 1e-13).all()


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", BOTH)
def test_every_attack_fails_and_the_bound_is_reached(name, dtype):
    slack = check(built(name, dtype=dtype), shapes(name)[0])
    assert slack["lipschitz_2"] >= 0 and slack["lipschitz_inf"] >= 0
    if name in LAYERS:
        assert slack["lipschitz_2"] < 0.01 and slack["lipschitz_inf"] < 0.01


# Options and images that are refused.


REFUSED = [
    ((2, 2, 3, 2, "circular", "patch"), "strides by its kernel"),
    ((2, 2, 2, 3, "circular", "bcop"), "stride of at most kernel_size=2"),
    ((2, 2, 3, 2, "circular", "soc"), "has no stride"),
    ((2, 2, 3, 2, "circular", "cayley"), "has no stride"),
    ((2, 2, 4, 1, "circular", "bcop"), "kernel_size must be odd"),
    ((2, 2, 4, 1, "zeros", "soc"), "kernel_size must be odd"),
    ((2, 2, 3, 1, "zeros", "cayley"), "circular"),
    ((2, 2, 3, 1, "zeros", "bro"), "circular"),
    ((2, 3, 3, 1, "circular", "soc"), "keeps the number of channels"),
    ((2, 2, 3, 1, "reflect", "bcop"), "reflect"),
    ((2, 2, 3, 1, "circular", "rko"), "rko"),
    ((0, 2, 3, 1, "circular", "bcop"), "in_channels"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_options_that_do_not_go_together_are_refused(options, words):
    *first, method = options
    with pytest.raises(ValueError, match=words):
        OrthogonalConv2d(*first, method=method)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("bcop, stride", (1, 5, 4), "stride 2 divides"),
        ("bcop, stride 3", (1, 6, 4), "stride 3 divides"),
        ("patch", (1, 4, 3), "stride 2 divides"),
        ("bcop", (3, 4, 4), "2 channels"),
        ("cayley", (3, 4, 4), "2 channels"),
        ("soc, zeros", (1, 4, 4), "2 channels"),
        ("bcop, kernel 5", (2, 1, 4), "at least 2 pixels"),
        ("patch, zeros", (1, 1, 4), "at least 2 pixels"),
    ],
)
def test_an_image_that_the_layer_does_not_take_is_refused_everywhere(name, shape, words):
    layer = built(name)
    for read in (
        lambda: layer(torch.zeros(1, *shape, dtype=torch.float64)),
        lambda: output_shape(layer, shape),
        lambda: lipschitz(layer, 2, shape),
        lambda: lipschitz(layer, math.inf, shape),
    ):
        with pytest.raises(ValueError, match=words):
            read()


def test_attributes_that_no_layer_is_built_with_are_refused():
    for name, attribute, value in [
        ("bcop", "method", "exp"),
        ("bcop", "padding_mode", "reflect"),
        ("bcop", "stride", 2),
        ("bcop, zeros", "method", "cayley"),
        ("bcop", "kernel_size", 5),
        ("cayley", "in_channels", 4),
        ("soc", "method", "cayley"),
    ]:
        layer = built(name)
        setattr(layer, attribute, value)
        if (name, attribute) == ("soc", "method"):  # a layer that could be built: its bound is its own
            assert singular_values(layer, (2, 4, 5)).max() <= lipschitz(layer, 2, (2, 4, 5)).value
            continue
        with pytest.raises(UnsupportedLayerError):
            lipschitz(layer, 2, shapes(name)[0])


def test_a_skew_kernel_that_is_not_scaled_down_is_refused(monkeypatch):
    layer = built("soc, zeros", scale=30.0)
    kernel = layer.materialise()[0]
    monkeypatch.setattr(type(layer), "materialise", lambda self, *size: (1.2 * kernel,))
    inflated = torch.linalg.norm(kernel).item()
    try:
        value = lipschitz(layer, 2, (2, 4, 5)).value
    except UnsupportedLayerError as error:
        assert "skew kernel of norm" in str(error)
    else:
        assert value >= 1 and inflated > 0
    monkeypatch.setattr(type(layer), "materialise", lambda self, *size: (12 * kernel,))
    with pytest.raises(UnsupportedLayerError, match="skew kernel of norm"):
        lipschitz(layer, 2, (2, 4, 5))


class Doubled(OrthogonalConv2d):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


def test_a_subclass_that_computes_something_else_is_refused():
    with pytest.raises(UnsupportedLayerError):
        lipschitz(Doubled(2, 2, 3), 2, (2, 4, 4))
    bound = lipschitz(OrthogonalConv2d(2, 2, 3, method="cayley"), 2, (2, 4, 4))
    with pytest.raises(CertificateError):
        dataclasses.replace(bound, value=3.0).verify(Doubled(2, 2, 3, method="cayley"))


@pytest.mark.parametrize("method", ["bcop", "soc", "cayley", "bro"])
def test_an_empty_batch_gives_an_empty_batch(method):
    layer = OrthogonalConv2d(2, 2, 3, method=method)
    assert layer(torch.zeros(0, 2, 4, 5)).shape == (0, 2, 4, 5)


@pytest.mark.parametrize("method, channels, size, stride", [("bcop", (2, 3), 3, 2), ("patch", (1, 5), 3, 3)])
def test_without_a_shape_a_strided_kernel_is_bounded_by_one_and_a_little_at_every_size(
    method, channels, size, stride
):
    layer = OrthogonalConv2d(*channels, size, stride, method=method)
    bound = lipschitz(layer)
    assert bound.verify(layer).value <= 1.005 * (1 + 1e-5)
    for sides in [(6, 6), (12, 6), (18, 30)]:
        assert lipschitz(layer, 2, (channels[0], *sides)).value <= bound.value
    with pytest.raises(CertificateError):
        dataclasses.replace(bound, value=0.99).verify(layer)
