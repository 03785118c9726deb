"""`OrthogonalLinear` against SVDs in float64, the maps' closed forms and `check`."""

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
from lipbook.layers import OrthogonalLinear
from lipbook.layers.orthogonal import METHODS

SIZES = [(4, 4), (3, 5), (5, 3), (1, 4), (4, 1), (1, 1), (7, 7)]
ENDS = [2.0**-96, 1e-6, 1.0, 1e6, 2.0**96]


def built(inputs, outputs, method, dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    return OrthogonalLinear(inputs, outputs, method=method, **options).to(dtype)


def weight_of(layer):
    """The matrix that the forward pass applies, from a batch of unit vectors in float64."""
    layer = layer.double().eval()
    with torch.no_grad():
        zero = layer(torch.zeros(1, layer.in_features, dtype=torch.float64))
        return (layer(torch.eye(layer.in_features, dtype=torch.float64)) - zero).T.numpy()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_the_weight_is_orthogonal_after_initialisation_and_with_other_parameters(method, size):
    """ "bro" cuts a square reflector, and what is left of an orthogonal matrix is a contraction."""
    for seed in range(3):
        layer = built(*size, method, seed=seed)
        for draw in (False, True):
            if draw:
                nn.init.normal_(layer.free)
            values = np.linalg.svd(weight_of(layer), compute_uv=False)
            assert values.max() <= 1 + 1e-12
            assert values.min() >= (1 - 1e-5 if method in ("bjorck", "cholesky") and draw else 1 - 1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_the_forward_pass_adds_the_bias_to_the_weight_it_names_on_any_batch(method):
    layer = built(5, 3, method)
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    expected = x @ layer.weight.T + layer.bias
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-14)
    assert layer(x[0, 0]).shape == (3,) and layer(x[:0]).shape == (0, 4, 3)
    bare = built(5, 3, method, bias=False)
    assert bare.bias is None and [name for name, _ in bare.named_parameters()] == ["free"]
    torch.testing.assert_close(bare(x), x @ bare.weight.T, rtol=0, atol=1e-14)


def test_the_parameters_have_the_shapes_that_the_docstring_tells():
    for method in METHODS:
        for inputs, outputs in SIZES:
            larger = max(inputs, outputs)
            shape = (larger, max(1, larger // 2)) if method == "bro" else (outputs, inputs)
            layer = built(inputs, outputs, method)
            assert layer.free.shape == shape and layer.weight.shape == (outputs, inputs)
            assert layer.bias.shape == (outputs,) and layer.free.dtype == torch.float64


@pytest.mark.parametrize("method", METHODS)
def test_parameters_of_every_size_keep_the_norm_at_one(method):
    for size in SIZES:
        for k, scale in enumerate(ENDS):
            layer = built(*size, method, torch.float32, seed=k)
            with torch.no_grad():
                layer.free.normal_().mul_(scale)
            bound = lipschitz(layer).verify(layer).value
            assert bound <= 1 + 2e-5
            truth = torch.linalg.matrix_norm(layer.weight.double(), 2).item()
            assert truth <= bound <= truth * (1 + 1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_zeros_and_parallel_columns_are_bounded_too(method):
    for fill in (0.0, 1.0):
        layer = built(4, 6, method)
        nn.init.constant_(layer.free, fill)
        bound = lipschitz(layer).verify(layer)
        assert bound.value <= 1 + 1e-9 and torch.isfinite(layer.weight).all()


def require_bounds_reached(layer):
    slack = check(layer, (layer.in_features,))
    assert 0 <= slack["lipschitz_2"] < 0.01 and 0 <= slack["lipschitz_inf"] < 0.01
    assert {"affine", "enclose", "output_shape"} <= set(slack)


def test_every_attack_on_a_small_layer_fails_and_the_bound_is_reached():
    require_bounds_reached(built(2, 3, "cayley", torch.float32))


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(4, 4), (3, 5), (5, 3)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_every_attack_fails_and_the_bound_is_reached(method, size, dtype):
    require_bounds_reached(built(*size, method, dtype))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", [2, math.inf])
def test_a_certificate_proves_its_value_and_no_smaller_one(method, norm):
    layer = built(4, 6, method)
    bound = lipschitz(layer, norm)
    assert bound.verify(layer) is bound
    with pytest.raises(CertificateError):
        dataclasses.replace(bound, value=0.99 * bound.value).verify(layer)
    other = built(4, 6, method)
    other.load_state_dict(layer.state_dict())
    assert bound.verify(other) is bound
    dense = affine(layer, (4,))[0]
    truth = torch.linalg.matrix_norm(dense, 2) if norm == 2 else dense.abs().sum(1).max()
    assert truth.item() <= bound.value <= truth.item() * (1 + 1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_bound_in_l_inf_is_void_after_one_parameter_is_changed_by_one_percent(method):
    layer = built(4, 4, method)
    nn.init.normal_(layer.free)
    noticed = 0
    for index in range(layer.free.numel()):
        bound = lipschitz(layer, math.inf)
        with torch.no_grad():
            kept = layer.free.clone()
            layer.free.view(-1)[index] *= 1.01
        truth = layer.weight.abs().sum(1).max().item()
        if truth > bound.value:
            noticed += 1
            with pytest.raises(CertificateError):
                bound.verify(layer)
        with torch.no_grad():
            layer.free.copy_(kept)
    assert noticed > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_gain_cannot_be_trained_above_one(method):
    """Steps that ascend the norm of the output, as large as the parameters themselves."""
    layer = built(5, 4, method)
    nn.init.normal_(layer.free)
    x = torch.randn(16, 5, dtype=torch.float64)
    optimiser = torch.optim.Adam([layer.free], lr=0.3)
    for _ in range(20):
        optimiser.zero_grad()
        (-(x @ layer.weight.T).square().sum()).backward()
        optimiser.step()
    assert lipschitz(layer).value <= 1 + 1e-9


@given(st.sampled_from(METHODS), st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_the_gradient_of_the_input_keeps_its_norm_through_orthonormal_rows(method, inputs, outputs, seed):
    layer = built(inputs, outputs, method, seed=seed)
    x = torch.randn(1, inputs, dtype=torch.float64, requires_grad=True)
    g = torch.randn(1, outputs, dtype=torch.float64)
    (back,) = torch.autograd.grad(layer(x), x, g)
    assert back.norm() <= g.norm() * (1 + 1e-12)
    if outputs <= inputs:
        assert back.norm().item() == pytest.approx(g.norm().item(), rel=1e-9)


def test_bro_is_the_corner_of_a_symmetric_reflection():
    layer = built(4, 7, "bro")
    free = layer.free.detach()
    full = torch.eye(7) - 2 * free @ torch.linalg.solve(free.T @ free, free.T)
    torch.testing.assert_close(layer.weight, full[:, :4], rtol=0, atol=1e-12)
    wide = built(7, 4, "bro")
    free = wide.free.detach()
    full = torch.eye(7) - 2 * free @ torch.linalg.solve(free.T @ free, free.T)
    torch.testing.assert_close(wide.weight, full[:4], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_shape_that_it_does_not_take_is_refused(method):
    layer = built(4, 6, method)
    assert output_shape(layer, (4,)) == (6,) and output_shape(layer, (2, 4)) == (2, 6)
    for shape in [(5,), (4, 5)]:
        with pytest.raises(ValueError, match="4 numbers in the last dimension"):
            output_shape(layer, shape)
        with pytest.raises(ValueError):
            lipschitz(layer, 2, shape)


def test_attributes_that_no_layer_is_built_with_are_refused():
    layer = built(4, 6, "qr")
    layer.method = "exp"
    with pytest.raises(UnsupportedLayerError, match="method='exp'"):
        lipschitz(layer)
    layer = built(4, 6, "qr")
    layer.in_features = 5
    with pytest.raises(UnsupportedLayerError, match="build it anew"):
        lipschitz(layer)
    layer = built(4, 6, "qr")
    layer.method = "bro"
    with pytest.raises(UnsupportedLayerError, match="build it anew"):
        lipschitz(layer)


def test_a_hook_or_a_parametrisation_is_refused():
    layer = built(4, 4, "qr")
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(UnsupportedLayerError, match="hook"):
        lipschitz(layer)


@pytest.mark.parametrize("method", METHODS)
def test_fifty_layers_in_single_precision_stay_within_their_product(method):
    layers = [built(16, 16, method, torch.float32, seed=k) for k in range(50)]
    product = np.eye(16)
    for layer in layers:
        product = layer.weight.detach().double().numpy() @ product
    model = nn.Sequential(*layers)
    bound = lipschitz(model, 2, (16,)).verify(model)
    assert np.linalg.norm(product, 2) <= bound.value <= 1 + 1e-3
