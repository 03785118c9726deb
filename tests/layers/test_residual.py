"""Residual against dense operators, rational arithmetic and `check`."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, jacrev, vmap

from lipbook import Bound, CertificateError, UnsupportedLayerError
from lipbook.contracts import affine, check, expand, lipschitz, output_shape, residual
from lipbook.contracts.certificates import one_plus_up
from lipbook.layers import Abs, MaxMin, Normalize, Residual


def seeded(build):
    torch.manual_seed(0)
    return build()


def batch_norm(channels):
    layer = nn.BatchNorm1d(channels)
    layer.running_var.uniform_(0.1, 3)
    nn.init.normal_(layer.weight)
    return layer.eval()


def perceptron(width):
    return nn.Sequential(nn.Linear(width, 5), nn.ReLU(), nn.Linear(5, width))


EXACT = {
    "Linear": (lambda: Residual(nn.Linear(4, 4)), (4,)),
    "Linear on rows": (lambda: Residual(nn.Linear(3, 3)), (6, 3)),
    "Linear on images": (lambda: Residual(nn.Linear(3, 3, bias=False)), (4, 2, 3)),
    "Linear in float16": (lambda: Residual(nn.Linear(4, 4)).half(), (4,)),
    "Linear in float64": (lambda: Residual(nn.Linear(4, 4)).double(), (4,)),
    "Linear in a Sequential": (lambda: Residual(nn.Sequential(nn.Sequential(nn.Linear(4, 4)))), (4,)),
    "Linear, orthogonal": (
        lambda: Residual(nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))),
        (4,),
    ),
    "BatchNorm": (lambda: Residual(batch_norm(4)).eval(), (4,)),
    "BatchNorm on sequences": (lambda: Residual(batch_norm(6)).eval(), (6, 3)),
    "Normalize": (lambda: Residual(Normalize([1.0, 2.0], [0.3, 0.2])), (2, 3)),
    "Residual": (lambda: Residual(Residual(nn.Linear(4, 4))), (4,)),
    "Identity": (lambda: Residual(nn.Identity()), (4,)),
    "nothing": (lambda: Residual(nn.Sequential()), (4,)),
    "LeakyReLU in place": (lambda: Residual(nn.LeakyReLU(3.0, inplace=True)), (4,)),
    "ReLU in place": (lambda: Residual(nn.ReLU(inplace=True)), (6, 3)),
}
LOOSE = {
    "perceptron": (lambda: Residual(perceptron(4)), (4,)),
    "perceptron on rows": (lambda: Residual(perceptron(3)), (6, 3)),
    "nested": (lambda: Residual(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Residual(nn.Linear(4, 4)))), (4,)),
    "MaxMin on channels": (lambda: Residual(nn.Sequential(MaxMin(), Abs())), (4, 2, 3)),
    "inside a Sequential": (
        lambda: nn.Sequential(Residual(nn.Linear(4, 4)), MaxMin(), Residual(perceptron(4)), nn.Linear(4, 2)),
        (4,),
    ),
    "three deep": (lambda: Residual(Residual(Residual(nn.Linear(4, 4)))), (4,)),
}
ATTACKED = {  # always; the others in the full count
    "Linear",
    "Linear on rows",
    "Linear in float16",
    "Linear, orthogonal",
    "BatchNorm",
    "Normalize",
    "LeakyReLU in place",
    "perceptron",
    "nested",
    "MaxMin on channels",
}


def attacked(names):
    return [name if name in ATTACKED else pytest.param(name, marks=pytest.mark.thorough) for name in names]


def points(shape, count=10, dtype=torch.float64):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(
        dtype
    )


@pytest.mark.parametrize("name", attacked(EXACT))
def test_the_exact_bounds_survive_the_attacks_and_are_reached(name):
    build, shape = EXACT[name]
    slack = check(seeded(build), shape)
    assert 0 <= slack["lipschitz_2"] < 0.01 and 0 <= slack["lipschitz_inf"] < 0.01
    assert {"expand", "enclose", "output_shape", "residual"} <= set(slack)


@pytest.mark.parametrize("name", attacked(LOOSE))
def test_the_other_bounds_survive_the_attacks(name):
    build, shape = LOOSE[name]
    slack = check(seeded(build), shape)
    assert slack["lipschitz_2"] >= 0 and slack["lipschitz_inf"] >= 0


def operator(layer, shape):
    """The Jacobian of a linear layer at 0, in float64."""
    layer = layer.double()
    jacobian = jacrev(lambda sample: layer(sample[None])[0])(torch.zeros(shape, dtype=torch.float64))
    size = math.prod(shape)
    return jacobian.detach().reshape(size, size).numpy()


@pytest.mark.parametrize("name", [name for name in EXACT if "ReLU" not in name])
def test_over_a_linear_map_the_bound_is_the_norm_of_the_whole_operator(name):
    build, shape = EXACT[name]
    layer = seeded(build)
    bounds = {norm: lipschitz(layer, norm, shape).value for norm in (2, math.inf)}
    dense = operator(layer, shape)
    assert 1 - 1e-12 <= bounds[2] / np.linalg.norm(dense, 2) <= 1 + 1e-9
    assert 1 - 1e-12 <= bounds[math.inf] / np.abs(dense).sum(1).max() <= 1 + 1e-9


@pytest.mark.parametrize("name", [name for name in EXACT if name.startswith("Linear")])
def test_a_linear_layer_tells_its_own_size(name):
    build, shape = EXACT[name]
    layer = seeded(build)
    for norm in (2, math.inf):
        assert lipschitz(layer, norm).value == lipschitz(layer, norm, shape).value


def test_without_a_shape_another_linear_map_gets_the_bound_that_holds_for_every_size():
    layer = Residual(nn.Identity())
    assert lipschitz(layer).value == 2 and lipschitz(layer).method == "1 + module"


def test_an_operator_too_large_to_write_out_gets_the_bound_of_the_triangle_inequality():
    layer = Residual(nn.Dropout()).eval()
    assert lipschitz(layer, 2, (256,)).method == "norm of I + W"
    assert lipschitz(layer, 2, (4097,)).value == 2


@pytest.mark.thorough
def test_the_largest_operator_that_is_written_out_has_4096_inputs():
    assert lipschitz(Residual(nn.Dropout()).eval(), 2, (4096,)).method == "norm of I + W"


@given(st.integers(1, 5), st.integers(0, 10**6), st.sampled_from([1e-20, 1e-8, 1.0, 1e8]), st.booleans())
def test_the_bound_in_l_inf_is_never_below_the_exact_row_sums(size, seed, scale, cancels):
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(size, size).double()
    with torch.no_grad():
        linear.weight.copy_(scale * torch.randn(size, size, generator=generator, dtype=torch.float64))
        if cancels:
            linear.weight -= torch.eye(size)
    weight = [[Fraction(entry) for entry in row] for row in linear.weight.tolist()]
    truth = max(sum(abs(w + int(i == j)) for j, w in enumerate(row)) for i, row in enumerate(weight))
    bound = lipschitz(Residual(linear), math.inf)
    assert truth <= Fraction(bound.value) <= truth * (1 + Fraction(1, 10**12))
    assert bound.verify(Residual(linear)) is bound
    # The largest entry is below both norms, and the Frobenius norm is above the one in l_2.
    entries = [w + int(i == j) for i, row in enumerate(weight) for j, w in enumerate(row)]
    square = Fraction(lipschitz(Residual(linear)).value) ** 2
    assert max(entry**2 for entry in entries) <= square
    assert square <= sum(entry**2 for entry in entries) * (1 + Fraction(1, 10**8))


@pytest.mark.parametrize("exponent", [-60, -54, -53, -52, -30])
def test_a_rounded_diagonal_is_covered(exponent):
    """1 + w is rounded for these w, and the norm of the 1 x 1 operator is exactly |1 + w|."""
    for w in (2.0**exponent, -(2.0**exponent), 3 * 2.0**exponent, 1 + 2.0**-52):
        linear = nn.Linear(1, 1).double()
        nn.init.constant_(linear.weight, w)
        for norm in (2, math.inf):
            bound = lipschitz(Residual(linear), norm)
            assert bound.value >= abs(1 + Fraction(w))
            assert bound.verify(Residual(linear)) is bound


def test_a_batch_norm_that_nearly_cancels_the_shortcut_keeps_its_absolute_error():
    """The scale is within a relative 2^-51 of the true one, and what is left beside 1 is about as small."""
    for seed in range(50):
        norm = nn.BatchNorm1d(1, eps=1e-3).double().eval()
        norm.running_var.uniform_(0.1, 3, generator=torch.Generator().manual_seed(seed))
        scale = 1 / torch.sqrt(norm.running_var + norm.eps)
        with torch.no_grad():
            norm.weight.copy_(-1 / scale)
        layer = Residual(norm)
        # 1 - |gamma| / sqrt(v) lies between these two: |gamma| is compared with sqrt(v) by squares.
        gamma, v = Fraction(norm.weight.item()), Fraction(norm.running_var.item()) + Fraction(norm.eps)
        difference = abs(1 - gamma**2 / v) / (1 + 2)  # |1 - t| = |1 - t^2| / (1 + t), and t < 2
        for order in (2, math.inf):
            bound = lipschitz(layer, order, (1,))
            assert difference <= Fraction(bound.value) < 1e-14


def test_the_negative_identity_leaves_nothing():
    linear = nn.Linear(3, 3)
    with torch.no_grad():
        linear.weight.copy_(-torch.eye(3))
    for norm in (2, math.inf):
        bound = lipschitz(Residual(linear), norm)
        assert bound.value == 0 and bound.verify(Residual(linear)) is bound
    assert check(Residual(linear), (3,))["lipschitz_2"] == 0


@pytest.mark.parametrize("name", [*EXACT, *LOOSE])
@pytest.mark.parametrize("norm", [2, math.inf])
def test_a_certificate_proves_its_bound_and_nothing_below(name, norm):
    build, shape = {**EXACT, **LOOSE}[name]
    layer = seeded(build)
    for given_shape in (None, shape):
        bound = lipschitz(layer, norm, given_shape)
        assert bound.verify(layer) is bound
        with pytest.raises(CertificateError):
            dataclasses.replace(bound, value=bound.value * (1 - 1e-6)).verify(layer)


@pytest.mark.parametrize("build", [lambda: Residual(nn.Linear(4, 4)), lambda: Residual(perceptron(4))])
@pytest.mark.parametrize("norm", [2, math.inf])
def test_a_weight_one_percent_larger_is_noticed(build, norm):
    layer = seeded(build)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.abs_()  # so that every norm grows with the weights
    bound = lipschitz(layer, norm, (4,))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1.01)
    with pytest.raises(CertificateError):
        bound.verify(layer)


def test_a_certificate_speaks_of_no_other_layer():
    linear = seeded(lambda: nn.Linear(3, 3))
    bound, inner = lipschitz(Residual(linear)), lipschitz(Residual(nn.Sequential(linear, nn.ReLU())))
    larger = dataclasses.replace(bound, value=100.0)
    for other in (linear, nn.Sequential(linear), Doubled(linear), Residual(perceptron(3))):
        with pytest.raises(CertificateError):
            larger.verify(other)
    with pytest.raises(CertificateError, match="inside the residual"):
        inner.verify(Residual(nn.Sequential(nn.Linear(3, 3), nn.Tanh())))
    with pytest.raises(CertificateError):
        dataclasses.replace(inner, kind="lower").verify(Residual(linear))


def test_the_stored_value_of_the_inner_bound_is_not_trusted():
    layer = seeded(lambda: Residual(perceptron(3)))
    bound = lipschitz(layer)
    small = dataclasses.replace(bound.certificate.inner, value=0.1)
    forged = dataclasses.replace(bound.certificate, inner=small)
    with pytest.raises(CertificateError):
        dataclasses.replace(bound, value=1.2, certificate=forged).verify(layer)


@given(st.floats(0, 1e300))
def test_one_plus_is_rounded_up_and_by_little(value):
    total = one_plus_up(value)
    assert 1 + Fraction(value) <= Fraction(total) <= (1 + Fraction(value)) * (1 + Fraction(1, 2**52))
    assert one_plus_up(math.inf) == math.inf and one_plus_up(1.0) == 2


def test_an_affine_residual_is_its_operator():
    for name in ("Linear", "Linear on rows", "Linear on images", "Linear in a Sequential"):
        build, shape = EXACT[name]
        layer = seeded(build)
        weight, bias = affine(layer, shape)
        x = points(shape, dtype=torch.float32)
        told = (x.double().flatten(1) @ weight.T + bias).reshape(x.shape)
        torch.testing.assert_close(layer(x).double(), told, rtol=1e-5, atol=1e-5)
        assert output_shape(layer, shape) == shape and expand(layer) == (layer,)


@pytest.mark.parametrize("module", [nn.Linear(3, 3), perceptron(3), Residual(nn.ReLU())], ids=str)
def test_what_it_adds_to_its_input_is_its_module(module):
    skip, inside = residual(Residual(module))
    assert type(skip) is nn.Identity and inside is module


@pytest.mark.parametrize("module", [nn.Tanh(), nn.Identity(), perceptron(4), nn.Sequential()], ids=str)
def test_no_other_residual_claims_to_be_affine(module):
    with pytest.raises(UnsupportedLayerError, match="over an nn.Linear only"):
        affine(Residual(module), (4,))


def test_a_module_that_acts_in_place_sees_a_copy():
    x = points((4,))
    kept = x.clone()
    found = Residual(nn.LeakyReLU(3.0, inplace=True))(x)
    assert torch.equal(x, kept) and torch.equal(found, x + torch.where(x > 0, x, 3 * x))


@pytest.mark.parametrize("name", ["Linear", "Linear on rows", "perceptron", "nested", "MaxMin on channels"])
def test_gradients_vmap_jacrev_and_functional_call(name):
    build, shape = {**EXACT, **LOOSE}[name]
    layer, x = seeded(build).double(), points(shape, 3)
    assert torch.autograd.gradcheck(layer, (x.clone().requires_grad_(),))
    torch.testing.assert_close(vmap(lambda sample: layer(sample[None])[0])(x), layer(x))
    state = {key: 2 * value for key, value in layer.state_dict().items()}
    found = functional_call(layer, state, x)
    other = build().double()
    other.load_state_dict(state)
    torch.testing.assert_close(found, other(x))
    torch.testing.assert_close(layer(x), x + layer.module(x))
    jacobian = jacrev(lambda sample: layer(sample[None])[0])(x[0])
    assert jacobian.shape == (*shape, *shape)


SIZES = [
    (Residual(nn.Linear(4, 3)), (4,)),
    (Residual(nn.Linear(4, 1)), (4,)),
    (Residual(nn.Sequential(nn.Linear(4, 3), nn.ReLU())), (4,)),
    (Residual(nn.Flatten()), (2, 3)),
]


@pytest.mark.parametrize("layer, shape", SIZES, ids=str)
def test_a_module_that_changes_the_shape_is_refused(layer, shape):
    for read in (
        lambda: layer(torch.zeros(2, *shape)),
        lambda: output_shape(layer, shape),
        lambda: lipschitz(layer, 2, shape),
        lambda: affine(layer, shape),
    ):
        with pytest.raises(ValueError, match="keeps the shape"):
            read()


def test_a_module_that_gives_no_tensor_is_refused():
    with pytest.raises(TypeError, match="nn.LSTM gives a tuple"):
        Residual(nn.LSTM(4, 4))(torch.zeros(2, 4))


def test_a_linear_map_that_changes_the_shape_is_refused_without_one_too():
    for norm in (2, math.inf):
        with pytest.raises(ValueError, match="keeps the shape"):
            lipschitz(Residual(nn.Linear(4, 3)), norm)


class Doubled(Residual):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


@lipschitz.register(Doubled)
def _doubled(layer, norm, input_shape):
    return Bound(1e6, "upper", norm=norm)


class Own(nn.Linear):
    """A Linear that computes something else, and says so."""

    def forward(self, inputs):
        return 3 * super().forward(inputs)


@lipschitz.register(Own)
def _own(layer, norm, input_shape):
    return Bound(3 * lipschitz(nn.Linear(2, 2), norm).value + 1e6, "upper", norm=norm)


@output_shape.register(Own)
def _own_output_shape(layer, input_shape):
    return input_shape


def test_a_subclass_of_linear_is_not_read_as_one():
    assert lipschitz(Residual(Own(2, 2))).value > 1e6
    assert lipschitz(Residual(Own(2, 2)), 2, (2,)).value > 1e6


class Overridden(Residual):
    def forward(self, inputs):
        return inputs - self.module(inputs)


def hooked(module):
    module.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    return module


@pytest.mark.parametrize(
    "layer",
    [
        Overridden(nn.Linear(3, 3)),
        hooked(Residual(nn.Linear(3, 3))),
        Residual(hooked(nn.Linear(3, 3))),
        Residual(hooked(nn.Sequential(nn.Linear(3, 3)))),
        Residual(nn.Dropout()).train(),
        Residual(nn.BatchNorm1d(3)).train(),
        Residual(nn.LSTM(3, 3)),
    ],
    ids=str,
)
def test_what_the_module_does_unseen_is_refused(layer):
    readers = lipschitz, residual, lambda layer: lipschitz(layer, 2, (3,)), lambda layer: affine(layer, (3,))
    for read in readers:
        with pytest.raises(UnsupportedLayerError):
            read(layer)
