"""States that training never reaches: attributes set, parameters replaced, hooks, numbers at the ends."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, parametrize

from lipbook import UnsupportedLayerError
from lipbook.contracts import lipschitz
from lipbook.contracts.rounding import enclose
from lipbook.layers import (
    LipschitzResidual,
    OrthogonalConv2d,
    OrthogonalLinear,
    SLLConv2d,
    SLLLinear,
    export,
    maps,
)
from lipbook.layers.parametrised import Parametrised


def samples(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def gain(layer, x):
    return max(torch.linalg.matrix_norm(torch.func.jacrev(layer)(point), 2).item() for point in x)


# What is kept in eval mode follows everything that the weights depend on.


def test_a_constant_that_is_lowered_in_eval_mode_lowers_what_the_layer_does():
    torch.manual_seed(0)
    layer, x = LipschitzResidual(3, 4, 3).double().eval(), samples(50, 3)
    with torch.no_grad():
        layer(x)
    assert gain(layer, x) > 0.5
    layer.lipschitz = 0.25
    layer.requires_grad_(False)
    assert gain(layer, x) <= lipschitz(layer).value < 0.26


def test_a_method_that_is_set_in_eval_mode_is_the_one_that_computes():
    torch.manual_seed(0)
    layer, x = OrthogonalLinear(3, 3).double().eval(), samples(4, 3)
    with torch.no_grad():
        layer(x)
        layer.method = "qr"
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


class Negated(nn.Module):
    def forward(self, free):
        return -2 * free


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("method", ["cayley", "qr"])
def test_a_parametrisation_of_the_free_parameter_is_never_stale(method, bias):
    torch.manual_seed(0)
    layer, x = OrthogonalLinear(3, 3, bias=bias, method=method).double().eval(), samples(4, 3)
    expected = lambda: nn.functional.linear(x, layer.weight, layer.bias)  # noqa: E731
    with torch.no_grad():
        layer(x)
        parametrize.register_parametrization(layer, "free", Negated(), unsafe=True)
        assert torch.equal(layer(x), expected())
        layer.parametrizations.free.original.add_(torch.eye(3))
        assert torch.equal(layer(x), expected())


def test_the_bound_of_a_layer_whose_free_parameter_is_parametrised_is_about_its_forward_pass():
    torch.manual_seed(0)
    layer, x = OrthogonalLinear(3, 3, bias=False, method="bjorck").half().eval(), samples(4, 3)
    parametrizations.weight_norm(layer, "free")
    with torch.no_grad():
        layer(x.half())
        layer.parametrizations.free.original1.mul_(torch.rand(3, 3).half())
    norm = torch.linalg.matrix_norm(layer(torch.eye(3).half()).T.double(), 2).item()
    assert norm <= lipschitz(layer).verify(layer).value <= 1.01


def test_a_plain_tensor_in_the_place_of_a_parameter_is_never_stale():
    torch.manual_seed(0)
    layer, x = OrthogonalLinear(3, 3, bias=False).double().eval(), samples(4, 3)
    free = layer.free.detach().clone()
    del layer.free
    layer.free = free
    with torch.no_grad():
        before = layer(x)
        layer.free.mul_(torch.randn(3, 3))
        after = layer(x)
        assert not torch.equal(before, after)
        assert torch.equal(after, x @ layer.weight.T)


# Export gives the function of the model, or an error.


class Doubled(OrthogonalLinear):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


class Chain(nn.Sequential):
    pass


class Scaled(Parametrised):
    def __init__(self):
        super().__init__()
        self.free = nn.Parameter(torch.eye(3))

    def compute(self):
        return (self.free / 3,)

    def forward(self, inputs):
        return inputs @ self.weights()[0].T


def hooked(module):
    module.register_forward_hook(lambda module, inputs, output: 2 * output)
    return module


@pytest.mark.parametrize(
    "model, told",
    [
        (lambda: nn.Sequential(Doubled(3, 3)), "defines forward"),
        (lambda: nn.Sequential(hooked(OrthogonalLinear(3, 3))), "forward hook"),
        (lambda: hooked(nn.Sequential(OrthogonalLinear(3, 3))), "forward hook"),
        (lambda: nn.Sequential(Chain(OrthogonalLinear(3, 3))), "Chain holds a layer .* OrthogonalLinear"),
        (lambda: nn.Sequential(Scaled()), "no method plain"),
    ],
    ids=["subclass", "hook", "hook of the model", "inside another module", "no plain form"],
)
def test_export_refuses_what_it_would_write_as_another_function(model, told):
    with pytest.raises(UnsupportedLayerError, match=told):
        export(model())


# Parameters at the end of the floats.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7), (5, 1)])
def test_qr_of_the_largest_floats_is_orthogonal_with_finite_gradients(shape, dtype):
    largest = torch.finfo(dtype).max
    random = samples(*shape)
    one_huge = random.clone()
    one_huge[0, 0] = largest
    for free in (largest * random.sign(), largest / 4 * random.clamp(-1, 1), one_huge):
        free = free.to(dtype).requires_grad_()
        weight = maps.qr(free)
        tall = weight.detach().double() if shape[0] >= shape[1] else weight.detach().double().T
        tolerance = 1e3 * torch.finfo(dtype).eps
        assert (tall.T @ tall - torch.eye(min(shape))).abs().max() < tolerance
    (gradient,) = torch.autograd.grad((maps.qr(free) * random.to(dtype)).sum(), free)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("shape", [(200, 100), (100, 200)])
def test_cayley_of_a_large_tall_matrix_of_rank_one_is_a_contraction_but_for_rounding(shape):
    for size in (1.0, 54.0, 1e38):
        weight = maps.cayley(torch.full(shape, size)).double()
        assert torch.linalg.matrix_norm(weight, 2) < 1.005


@pytest.mark.parametrize("kind", [lambda: SLLLinear(3), lambda: SLLConv2d(3, 3)], ids=["dense", "images"])
def test_a_row_of_zeros_of_a_half_precision_sll_layer_changes_nothing(kind):
    layer = kind().half()
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(1.0)
    shape = (2, 3, 4, 4) if layer.weight.ndim == 4 else (2, 3)
    inputs = samples(*shape).half()
    assert torch.equal(layer(inputs), inputs)
    assert lipschitz(layer).verify(layer).value == 1


@pytest.mark.parametrize("exponent", [-250, -200, -20, 200, 250])
def test_the_bound_of_a_block_is_close_to_its_constant_at_any_size(exponent):
    torch.manual_seed(0)
    layer = LipschitzResidual(3, 4, 2, lipschitz=10.0**exponent).double()
    assert 1 <= lipschitz(layer).verify(layer).value / 10.0**exponent < 1 + 1e-9


@pytest.mark.parametrize("method", ["soc", "cayley", "bro"])
def test_the_enclosure_of_a_convolution_by_frequencies_holds_at_the_ends_of_the_floats(method):
    torch.manual_seed(0)
    layer = OrthogonalConv2d(2, 2, 3, bias=False, method=method).double()
    x = samples(1, 2, 4, 5)
    images, errors = enclose(layer, x, torch.full_like(x, 1e-3))
    for scale in (2.0**-700, 2.0**700):  # the layer is linear: everything scales
        scaled, allowed = enclose(layer, scale * x, torch.full_like(x, scale * 1e-3))
        assert ((scaled / scale - images).abs() <= 1e-12).all()
        torch.testing.assert_close(allowed / scale, errors, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "method, padding", [("soc", "circular"), ("soc", "zeros"), ("cayley", "circular"), ("bro", "circular")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kernels_of_the_largest_floats_give_contractions(method, padding, dtype):
    layer = OrthogonalConv2d(2, 2, 3, padding_mode=padding, bias=False, method=method).to(dtype)
    x = samples(3, 2, 4, 5).to(dtype)
    for signs in (samples(*layer.free.shape).sign(), torch.ones(layer.free.shape).double()):
        with torch.no_grad():
            layer.free.copy_(signs * torch.finfo(dtype).max)
        assert torch.isfinite(layer(x)).all()
        assert lipschitz(layer, 2, (2, 4, 5)).verify(layer).value < 1.001


@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (1, 1)])
def test_bjorck_of_one_column_can_be_differentiated_twice(shape):
    free = samples(*shape).requires_grad_()
    assert torch.autograd.gradgradcheck(maps.bjorck, (free,))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace", "ignore:Converting a tensor:torch.jit.TracerWarning")
@pytest.mark.parametrize("how", ["tensors that have only a shape", "a trace", "a graph"])
def test_a_layer_that_was_traced_in_eval_mode_computes_as_before(how):
    layer, x = OrthogonalLinear(3, 3).double().eval(), samples(4, 3)
    with torch.no_grad():
        expected = nn.functional.linear(x, layer.weight, layer.bias)
        if how == "a trace":
            assert torch.equal(torch.jit.trace(layer, x)(x), expected)
        elif how == "a graph":
            layer(x)
            assert torch.allclose(torch.export.export(layer, (x,)).module()(x), expected)
        else:
            with FakeTensorMode(allow_non_fake_inputs=True):
                layer(x)
        assert torch.equal(layer(x), expected)
        layer.free.add_(torch.ones(3, 3))
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("kind", [lambda: SLLLinear(16), lambda: SLLConv2d(4, 3)], ids=["dense", "images"])
def test_the_diagonal_of_an_sll_layer_is_the_same_under_autocast(kind):
    torch.manual_seed(0)
    layer = kind()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer.diagonal()
    assert found.dtype == torch.float32 and torch.equal(found, layer.diagonal())
