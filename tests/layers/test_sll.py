"""SLL layers against the formula of their source, dense matrices at several sizes, and a published bug."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lipbook import Bound, CertificateError, UnsupportedLayerError
from lipbook.bounds import conv_norm, spectral_norm
from lipbook.contracts import check, lipschitz, output_shape
from lipbook.contracts.stock import same_shape
from lipbook.layers.sll import SLLConv2d, SLLLinear

DOUBLE = torch.float64


def diagonal(U, q):
    """T_i = 1 / sum_j |UU'|_ij q_j / q_i, entry by entry, with U of any number of dimensions flattened."""
    gram = U.flatten(1) @ U.flatten(1).T
    return torch.stack(
        [1 / sum(gram[i, j].abs() * q[j] / q[i] for j in range(len(q))) for i in range(len(q))]
    )


@pytest.mark.parametrize(("features", "hidden"), [(5, None), (3, 7), (6, 2), (1, 1)])
def test_the_dense_layer_is_the_formula_of_its_source(features, hidden):
    torch.manual_seed(0)
    layer = SLLLinear(features, hidden).double()
    with torch.no_grad():
        layer.log_q.normal_()
        x, U, q = torch.randn(9, features, dtype=DOUBLE), layer.weight, layer.log_q.exp()
        T = diagonal(U, q)
        expected = x - 2 * (torch.relu(x @ U.T + layer.bias) * T) @ U
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-8)
        torch.testing.assert_close(layer.diagonal(), T, rtol=1e-8, atol=0)
        assert (layer.diagonal() < T).all()


def dense(kernel, size, padding_mode):
    """The matrix of a convolution that keeps the size, by its images of the unit vectors."""
    shape, half = (kernel.shape[1], *size), kernel.shape[-1] // 2
    probes = torch.eye(math.prod(shape), dtype=DOUBLE).reshape(-1, *shape)
    mode = {"circular": "circular", "zeros": "constant"}[padding_mode]
    return F.conv2d(F.pad(probes, (half,) * 4, mode=mode), kernel).flatten(1).T


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 5)])
@pytest.mark.parametrize("padding_mode", ["circular", "zeros"])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_the_convolution_is_the_formula_with_its_dense_matrix(size, padding_mode, kernel_size):
    torch.manual_seed(1)
    layer = SLLConv2d(2, kernel_size, 3, padding_mode).double()
    with torch.no_grad():
        layer.log_q.normal_()
        x = torch.randn(5, 2, *size, dtype=DOUBLE)
        U, pixels = dense(layer.weight, size, padding_mode), math.prod(size)
        T, bias = (v.repeat_interleave(pixels) for v in (layer.diagonal(), layer.bias))
        expected = x.flatten(1) - 2 * (torch.relu(x.flatten(1) @ U.T + bias) * T) @ U
        torch.testing.assert_close(layer(x).flatten(1), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("padding_mode", ["circular", "zeros"])
def test_the_diagonal_of_a_convolution_is_large_enough_at_every_size(padding_mode, kernel_size):
    least = max(1, kernel_size // 2)
    for seed in range(4):
        torch.manual_seed(seed)
        layer = SLLConv2d(2, kernel_size, 3, padding_mode).double()
        with torch.no_grad():
            layer.log_q.normal_()
            V = layer.materialise()[0]
        for size in ((least, least), (least, least + 2), (5, 4), (7, 6)):
            assert torch.linalg.matrix_norm(dense(V, size, padding_mode), ord=2) <= 1 + 1e-12
        assert conv_norm(V, None, padding=padding_mode).value <= 1 + 1e-9


def test_one_hidden_unit_is_the_gradient_step_of_the_longest_length():
    """CPL with the exact norm: T = 1 / |u|^2, and the layer mirrors in a hyperplane."""
    layer = SLLLinear(4, 1).double()
    with torch.no_grad():
        x, u = torch.randn(9, 4, dtype=DOUBLE), layer.weight[0]
        step = torch.relu(x @ u + layer.bias) / (u @ u)
        torch.testing.assert_close(layer(x), x - 2 * step[:, None] * u, rtol=0, atol=1e-8)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.floats(-60, 60), st.integers(0, 2**31))
def test_every_q_gives_a_diagonal_that_is_small_enough(features, hidden, spread, seed):
    torch.manual_seed(seed)
    layer = SLLLinear(features, hidden).double()
    with torch.no_grad():
        layer.log_q.copy_(spread * torch.randn(hidden))
        assert spectral_norm(layer.materialise()[0]).value <= 1 + 1e-9
    assert lipschitz(layer).verify(layer).value == 1.0


def test_a_common_factor_of_q_changes_nothing():
    layer = SLLLinear(5)
    with torch.no_grad():
        layer.log_q.normal_()
        before = layer.diagonal()
        layer.log_q -= 20.0
        torch.testing.assert_close(layer.diagonal(), before, rtol=1e-5, atol=0)


def test_the_constant_of_float32_and_float64_layers_is_1_and_nothing_more():
    torch.manual_seed(0)
    for dtype in (torch.float32, DOUBLE):
        for layer in (SLLLinear(64).to(dtype), SLLLinear(16, 100).to(dtype), SLLConv2d(8, 3).to(dtype)):
            assert lipschitz(layer).verify(layer).value == 1.0


# A published layer divides by q + epsilon, and calls itself 1-Lipschitz.


class Published(nn.Module):
    """SLL with T_i = 1 / sum_j |UU'|_ij q_j / (q_i + epsilon)."""

    def __init__(self, epsilon):
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.empty(5, 5)), epsilon
        self.q = nn.Parameter(torch.full((5,), 1e-8))
        nn.init.xavier_normal_(self.weight)

    def diagonal(self):
        q = self.q.abs()
        gram = (self.weight @ self.weight.T).abs()
        return 1 / (gram * q / (q[:, None] + self.epsilon)).sum(1)

    def forward(self, inputs):
        return inputs - 2 * (torch.relu(inputs @ self.weight.T) * self.diagonal()) @ self.weight


lipschitz.register(Published, lambda layer, norm, shape: Bound(1.0, "upper", norm=norm))
output_shape.register(Published, same_shape)


def test_an_epsilon_added_to_q_is_caught_with_a_constant_above_a_hundred():
    torch.manual_seed(0)
    layer = Published(1e-6)
    with torch.no_grad():
        U, T = layer.weight, layer.diagonal()
        jacobian = torch.eye(5) - 2 * (U.T * T) @ U
        assert torch.linalg.matrix_norm(jacobian, ord=2) > 100
    with pytest.raises(CertificateError, match="above the bound 1"):
        check(layer, (5,))


def test_the_library_keeps_its_constant_where_the_published_layer_loses_it():
    torch.manual_seed(0)
    layer = SLLLinear(5)
    with torch.no_grad():
        layer.log_q.fill_(math.log(1e-8))
    assert lipschitz(layer).value == 1.0 and check(layer, (5,))["lipschitz_2"] < 1e-6


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("padding_mode", "reflect", "padding_mode='reflect'"), ("kernel_size", 4, "kernel_size=4")],
)
def test_attributes_that_it_could_not_be_built_with_are_refused(name, value, told):
    layer = SLLConv2d(2, 3)
    setattr(layer, name, value)
    with pytest.raises(UnsupportedLayerError, match=told):
        lipschitz(layer)


def test_circular_images_smaller_than_half_the_kernel_are_refused():
    layer = SLLConv2d(1, 5)
    assert output_shape(layer, (1, 2, 2)) == (1, 2, 2)
    with pytest.raises(ValueError, match="at least 2 by 2 pixels"):
        output_shape(layer, (1, 1, 4))
