"""The contracts of torch's layers, against the forward pass, an SVD and `check`."""

import dataclasses
import math

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from lipbook import CertificateError
from lipbook.contracts import affine, check, expand, lipschitz, output_shape, slopes


def seeded(build):
    torch.manual_seed(0)
    return build()


def used(norm):
    """A BatchNorm with statistics and weights of its own, in eval mode."""
    generator = torch.Generator().manual_seed(1)
    for tensor in (norm.running_mean, *norm.parameters()):
        tensor.data.normal_(generator=generator)
    norm.running_var.uniform_(0.1, 3, generator=generator)
    return norm.eval()


LAYERS = {
    "Linear": (lambda: nn.Linear(6, 4), (6,)),
    "Linear without bias": (lambda: nn.Linear(3, 5, bias=False), (3,)),
    "Linear on rows": (lambda: nn.Linear(3, 4), (2, 3)),
    "Linear in float16": (lambda: nn.Linear(6, 4).half(), (6,)),
    "Linear in float64": (lambda: nn.Linear(6, 4).double(), (6,)),
    "Linear, frozen": (lambda: nn.Linear(6, 4).requires_grad_(False), (6,)),
    "Linear, orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), (4,)),
    "Linear, weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 3)), (4,)),
    "Linear, spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 3)).eval(), (4,)),
    "BatchNorm1d": (lambda: used(nn.BatchNorm1d(4)), (4,)),
    "BatchNorm1d on sequences": (lambda: used(nn.BatchNorm1d(2)), (2, 3)),
    "BatchNorm2d": (lambda: used(nn.BatchNorm2d(2, eps=0.5)), (2, 2, 3)),
    "BatchNorm3d": (lambda: used(nn.BatchNorm3d(2, affine=False)), (2, 1, 2, 2)),
    "Dropout": (lambda: nn.Dropout().eval(), (2, 3)),
    "Dropout, p=0": (lambda: nn.Dropout(p=0.0), (3,)),
    "Dropout1d": (lambda: nn.Dropout1d().eval(), (2, 3)),
    "Dropout2d": (lambda: nn.Dropout2d().eval(), (2, 2, 2)),
    "Dropout3d": (lambda: nn.Dropout3d().eval(), (1, 2, 2, 2)),
    "AlphaDropout": (lambda: nn.AlphaDropout().eval(), (5,)),
    "AlphaDropout, p=0": (lambda: nn.AlphaDropout(p=0.0), (5,)),
    "Flatten": (nn.Flatten, (2, 3)),
    "Flatten in part": (lambda: nn.Flatten(2, -2), (2, 3, 2, 2)),
    "Unflatten": (lambda: nn.Unflatten(1, (2, 3)), (6,)),
    "Unflatten from behind": (lambda: nn.Unflatten(-1, (-1, 2)), (3, 4)),
    "Identity": (nn.Identity, (3,)),
    "Sequential": (lambda: nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Sequential(nn.Linear(3, 2))), (4,)),
    "Sequential, empty": (nn.Sequential, (3,)),
    "ReLU in place": (lambda: nn.ReLU(inplace=True), (4,)),
}
ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU6(),
    nn.LeakyReLU(),
    nn.LeakyReLU(-2.0),
    nn.ELU(),
    nn.ELU(2.5),
    nn.ELU(-0.5),
    nn.CELU(0.3),
    nn.CELU(4.0),
    nn.SELU(),
    nn.Softplus(),
    nn.Softplus(beta=-3.0),
    nn.Softplus(beta=20.0, threshold=30.0),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.SiLU(),
    nn.Mish(),
    nn.Hardswish(),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Hardtanh(),
    nn.Hardtanh(-0.2, 5.0),
    nn.Hardtanh(0.0, math.inf),
    nn.Softsign(),
]
LINEAR = [name for name in LAYERS if "Sequential" not in name and "ReLU" not in name]
ATTACKED = {  # always; the others in the full count
    "Linear",
    "Linear on rows",
    "Linear in float16",
    "Linear, orthogonal",
    "Linear, weight_norm",
    "Linear, spectral_norm",
    "BatchNorm1d on sequences",
    "BatchNorm2d",
    "Dropout",
    "Flatten in part",
    "Unflatten from behind",
    "Sequential",
    "ReLU in place",
}
EASIER = {  # in the full count, beside another of the same kind
    "LeakyReLU(negative_slope=0.01)",
    "ELU(alpha=1.0)",
    "ELU(alpha=2.5)",
    "CELU(alpha=4.0)",
    "Softplus(beta=1.0, threshold=20.0)",
    "Softplus(beta=20.0, threshold=30.0)",
    "Hardtanh(min_val=-1.0, max_val=1.0)",
    "Hardtanh(min_val=0.0, max_val=inf)",
}


def in_full(case, always):
    """This case, in the full count alone unless it is always run."""
    return case if always else pytest.param(case, marks=pytest.mark.thorough)


@pytest.mark.parametrize("name", [in_full(name, name in ATTACKED) for name in LAYERS])
def test_every_stock_layer_survives_the_attacks(name):
    build, shape = LAYERS[name]
    slack = check(seeded(build), shape)
    assert {"lipschitz_2", "lipschitz_inf", "output_shape", "expand"} <= set(slack)


@pytest.mark.parametrize(
    "layer", [in_full(layer, repr(layer) not in EASIER) for layer in ACTIVATIONS], ids=repr
)
def test_every_activation_survives_the_attacks_and_its_range_is_reached(layer):
    slack = check(layer, (8,))
    assert 0 <= slack["slopes"] < 0.01 and 0 <= slack["lipschitz_2"] < 0.01


@pytest.mark.parametrize("name", LINEAR)
def test_linear_layers_are_their_affine_operator(name):
    build, shape = LAYERS[name]
    layer = seeded(build)
    weight, bias = affine(layer, shape)
    dtype = next((tensor.dtype for tensor in layer.state_dict().values()), torch.float64)
    x = torch.randn(20, *shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    expected = x.double().flatten(1) @ weight.T + bias
    tolerance = 64 * torch.finfo(dtype).eps
    found = layer(x).detach().double().flatten(1)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert layer(x).shape[1:] == output_shape(layer, shape)


@pytest.mark.parametrize("name", LINEAR)
def test_the_bound_of_a_linear_layer_is_the_norm_of_its_operator(name):
    build, shape = LAYERS[name]
    layer = seeded(build)
    weight = affine(layer, shape)[0].numpy()
    for norm, truth in ((2, numpy.linalg.norm(weight, 2)), (math.inf, numpy.linalg.norm(weight, numpy.inf))):
        assert truth * (1 - 1e-14) <= lipschitz(layer, norm).value <= truth * (1 + 1e-9)
        assert lipschitz(layer, norm, shape).value == lipschitz(layer, norm).value


@given(st.integers(1, 12), st.integers(1, 12), st.floats(1e-18, 1e18), st.integers(0, 9))
def test_linear_bounds_against_an_independent_svd(inputs, outputs, scale, seed):
    layer = nn.Linear(inputs, outputs)
    layer.weight.data = scale * torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    truth = numpy.linalg.svd(layer.weight.detach().numpy().astype(numpy.float64), compute_uv=False)[0]
    bound = lipschitz(layer)
    assert truth * (1 - 1e-14) <= bound.verify(layer).value <= truth * (1 + 1e-9)


@pytest.mark.parametrize("name", [*LAYERS])
@pytest.mark.parametrize("norm", [2, math.inf])
def test_certificates_prove_their_bound_and_nothing_one_percent_lower(name, norm):
    build, shape = LAYERS[name]
    layer = seeded(build)
    bound = lipschitz(layer, norm)
    assert bound.verify(layer) is bound
    with pytest.raises(CertificateError):
        dataclasses.replace(bound, value=bound.value * 0.99).verify(layer)


@pytest.mark.parametrize("name", [*LAYERS, "GELU"])
def test_reading_a_layer_changes_nothing(name):
    build, shape = LAYERS.get(name, (nn.GELU, (3,)))
    layer = seeded(build)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    modes = [module.training for module in layer.modules()]
    random_state, names = torch.get_rng_state(), sorted(vars(layer))
    for norm in (2, math.inf):
        lipschitz(layer, norm, shape).verify(layer)
    output_shape(layer, shape), expand(layer)
    assert torch.equal(torch.get_rng_state(), random_state) and sorted(vars(layer)) == names
    assert [module.training for module in layer.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert all(parameter.grad is None for parameter in layer.parameters())


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_flatten_and_unflatten_give_the_shapes_of_the_forward_pass(sizes, data):
    shape = tuple(sizes)
    start = data.draw(st.integers(1, len(shape)))
    end = data.draw(st.integers(start, len(shape)))
    end = data.draw(st.sampled_from([end, end - len(shape) - 1]))  # the same dimension, from behind
    flatten = nn.Flatten(start, end)
    flat = output_shape(flatten, shape)
    x = torch.zeros(2, *shape)
    assert flatten(x).shape[1:] == flat
    unflatten = nn.Unflatten(start, shape[start - 1 : start - 1 + len(shape) - len(flat) + 1])
    assert output_shape(unflatten, flat) == shape == unflatten(flatten(x)).shape[1:]


def test_a_sequential_is_the_product_of_its_layers_rounded_up():
    layer = seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.SiLU(), nn.Linear(3, 2)))
    for norm in (2, math.inf):
        factors = [lipschitz(child, norm).value for child in layer]
        assert math.prod(factors) <= lipschitz(layer, norm, (4,)).value <= math.prod(factors) * (1 + 1e-15)


def test_a_layer_that_appears_twice_counts_twice():
    shared = seeded(lambda: nn.Linear(3, 3))
    shared.weight.data *= 5
    layer = nn.Sequential(shared, nn.ReLU(), shared)
    once = lipschitz(shared).value
    assert lipschitz(layer).value == pytest.approx(once**2, rel=1e-12)
    assert [primitive is shared for primitive in expand(layer)] == [True, False, True]
    assert check(layer, (3,))["lipschitz_2"] >= 0


def test_two_layers_that_share_one_parameter_count_twice():
    one, two = seeded(lambda: nn.Linear(3, 3)), nn.Linear(3, 3)
    two.weight = one.weight
    assert lipschitz(nn.Sequential(one, two)).value == pytest.approx(lipschitz(one).value ** 2, rel=1e-12)


def test_expand_flattens_nested_sequentials_and_keeps_primitives():
    relu, linear, tanh = nn.ReLU(), nn.Linear(2, 2), nn.Tanh()
    assert expand(nn.Sequential(relu, nn.Sequential(nn.Sequential(linear), tanh))) == (relu, linear, tanh)
    assert expand(relu) == (relu,) and expand(nn.Sequential()) == ()


def test_a_constant_layer_has_the_bound_zero():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    norm = nn.BatchNorm1d(3).eval()
    nn.init.zeros_(norm.weight)
    for constant in (layer, norm, nn.Sequential(nn.Linear(3, 3), norm)):
        for order in (2, math.inf):
            bound = lipschitz(constant, order)
            assert bound.value == 0 and bound.verify(constant) is bound


def test_harmless_subclasses_keep_the_contracts():
    class Named(nn.Linear):
        """Another name, the same layer."""

        def __init__(self, width):
            super().__init__(width, width)

        def extra_repr(self):
            return "named"

    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(Named(3), nn.ReLU())

    assert lipschitz(Net()).value > 0 and len(expand(Net())) == 2
    assert affine(Named(3), (3,))[0].shape == (3, 3)


def test_slopes_of_half_precision_ends_are_float64():
    a, b = slopes(nn.Tanh(), torch.zeros(2, 3, dtype=torch.float16), torch.ones(2, 3, dtype=torch.bfloat16))
    assert a.dtype == b.dtype == torch.float64 and a.shape == b.shape == (2, 3)


MISMATCHES = [
    (nn.Linear(3, 2), (4,)),
    (nn.BatchNorm1d(3).eval(), (4,)),
    (nn.BatchNorm1d(3).eval(), (3, 2, 2)),
    (nn.BatchNorm2d(3).eval(), (3,)),
    (nn.BatchNorm3d(3).eval(), (3, 2, 2)),
    (nn.Dropout1d().eval(), (2, 2, 2)),
    (nn.Flatten(3), (2, 2)),
    (nn.Flatten(1, 3), (2, 2)),
    (nn.Unflatten(1, (2, 2)), (5,)),
    (nn.Unflatten(1, (2, -1)), (5,)),
    (nn.Unflatten(3, (2, 2)), (4,)),
    (nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2)), (3,)),
]


@pytest.mark.parametrize("layer, shape", MISMATCHES, ids=str)
def test_a_shape_that_the_layer_does_not_take_is_refused(layer, shape):
    with pytest.raises(ValueError, match="takes .* got the sample shape"):
        output_shape(layer, shape)
    with pytest.raises(ValueError, match="takes .* got the sample shape"):
        lipschitz(layer, 2, shape)
    if not isinstance(layer, nn.Sequential):
        with pytest.raises(ValueError, match="takes .* got the sample shape"):
            affine(layer, shape)


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 3), (6, 1)])
def test_images_that_would_fit_if_flattened_are_sent_through_flatten(shape):
    linear = nn.Linear(6, 4)
    with pytest.raises(ValueError, match=r"Put nn\.Flatten\(\) before it\.$"):
        output_shape(linear, shape)
    assert output_shape(nn.Sequential(nn.Flatten(), linear), shape) == (4,)
    with pytest.raises(ValueError) as caught:
        output_shape(linear, (*shape[:-1], 5))
    assert "Flatten" not in str(caught.value)
