"""`lipsdp` as it is called: its arguments, what it leaves alone, and what it does not depend on."""

import copy
import math
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from lipbook import Ball, UnsupportedLayerError
from lipbook.bounds import product_bound
from lipbook.data import digits, network
from lipbook.layers import Residual
from lipbook.sdp import eclipse_fast, lipsdp
from tests.increments import PIECEWISE, drawn, linear

NEAR = 1e-5


def small(activation="ReLU", sizes=(3, 8, 4, 3)):
    return drawn(PIECEWISE[activation], 1, sizes)[0]


# What comes back.


def test_the_bound_says_what_it_bounds():
    model, ball = small(), Ball(torch.zeros(3), 0.5)
    bound = lipsdp(model, (2, 0), ball, "layer")
    assert (bound.kind, bound.norm, bound.output, bound.region) == ("upper", 2, (2, 0), ball)
    assert bound.method == "lipsdp"
    certificate = bound.certificate
    assert certificate.multipliers.shape == (2,) and certificate.multipliers.dtype == torch.float64
    assert certificate.sharing == "layer" and not certificate.multipliers.requires_grad
    assert certificate.gap == (bound.value - certificate.dual_value) / bound.value
    assert isinstance(certificate.iterations, int) and 0 < certificate.iterations < 30


def test_there_is_one_multiplier_for_each_activation_in_order():
    """The second layer's inputs are scaled: its multipliers, and no others, change by the square."""
    model = small()
    one = lipsdp(model).certificate.multipliers
    other = copy.deepcopy(model)
    other[0].weight.data *= 4
    other[2].weight.data /= 4
    two = lipsdp(other).certificate.multipliers
    assert one.shape == (12,)
    # a multiplier weighs e^2 of its own neuron: neurons four times as large, a sixteenth
    assert torch.allclose(two[:8], one[:8] / 16, rtol=0.05, atol=0.01 * one.max().item() / 16)
    assert torch.allclose(two[8:], one[8:], rtol=0.05, atol=0.01 * one.max().item())


@pytest.mark.parametrize("activation", ["ReLU", "GroupSort"])
@pytest.mark.parametrize(("radius", "multipliers"), [(None, "neuron"), (None, "layer"), (0.5, "neuron")])
def test_pairs_agree_with_single_calls(activation, multipliers, radius):
    model, center = drawn(PIECEWISE[activation], 1, (3, 8, 4, 3))
    region = None if radius is None else Ball(center, radius)
    bounds = lipsdp(model, "pairs", region, multipliers)
    assert list(bounds) == [(0, 1), (0, 2), (1, 2)]
    for pair, bound in bounds.items():
        assert bound.verify(model) and bound.output == pair and bound.region == region
        single = lipsdp(model, pair, region, multipliers)
        assert bound.value == pytest.approx(single.value, rel=2e-6)
        assert bound.value >= single.certificate.dual_value
        assert single.value >= bound.certificate.dual_value


def test_a_pair_is_at_most_sqrt_2_times_the_vector_and_a_logit_at_most_the_vector():
    model = small()
    whole = lipsdp(model).value
    assert all(b.value <= math.sqrt(2) * whole * (1 + NEAR) for b in lipsdp(model, "pairs").values())
    assert all(lipsdp(model, k).value <= whole * (1 + NEAR) for k in range(3))


@pytest.mark.parametrize("activation", ["ReLU", "MaxMin", "Householder"])
@pytest.mark.parametrize("multipliers", ["neuron", "layer"])
def test_a_solver_that_is_stopped_leaves_a_valid_bound_with_a_larger_gap(activation, multipliers):
    model = small(activation)
    whole = lipsdp(model, multipliers=multipliers)
    for count in (0, 1, 3):
        bound = lipsdp(model, multipliers=multipliers, iterations=count).verify(model)
        assert bound.certificate.iterations == count < whole.certificate.iterations
        assert bound.value >= whole.certificate.dual_value
        assert bound.certificate.dual_value <= whole.value
        assert bound.certificate.gap > 1e-3 > whole.certificate.gap
    pairs = lipsdp(model, "pairs", multipliers=multipliers, iterations=1)
    assert all(bound.verify(model).certificate.iterations == 1 for bound in pairs.values())


@pytest.mark.parametrize("solver", ["clarabel", "scs"])
@pytest.mark.parametrize("activation", ["ReLU", "MaxMin"])
def test_every_solver_leads_to_the_same_proved_value(solver, activation):
    model, center = drawn(PIECEWISE[activation], 1, (3, 6, 4, 2))
    for arguments in ({}, {"logits": 1, "multipliers": "layer"}, {"region": Ball(center, 0.3)}):
        bound = lipsdp(model, solver=solver, **arguments).verify(model)
        assert bound.value == pytest.approx(lipsdp(model, **arguments).value, rel=1e-3)
        assert bound.certificate.dual_value <= lipsdp(model, **arguments).value


# What it does not need, and does not touch.

WITHOUT = """
import sys
for name in ("cvxpy", "clarabel", "scs"):
    sys.modules[name] = None
import torch
from torch import nn
from lipbook.sdp import eclipse_fast, lipsdp
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
assert lipsdp(model).verify(model).value <= eclipse_fast(model).verify(model).value
try:
    lipsdp(model, solver="clarabel")
except ImportError as error:
    print(error)
"""


def test_it_works_without_cvxpy_and_names_it_where_it_is_asked_for():
    ran = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert "cvxpy" in ran.stdout and "structured" in ran.stdout and ran.stderr == ""


@pytest.mark.parametrize("bound_of", [lipsdp, eclipse_fast])
def test_the_model_the_random_state_and_the_threads_are_left_alone(bound_of):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))
    model.eval()[0].weight.grad = torch.ones_like(model[0].weight)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random, threads, precision = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bound = bound_of(model, "pairs", input_shape=(1, 5, 5))[0, 1]
        bound.verify(model)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(p.requires_grad for p in model.parameters()) and model[0].weight.grad.eq(1).all()
    assert model[4].weight.grad is None
    assert torch.get_rng_state().equal(random) and torch.get_num_threads() == threads
    assert torch.get_default_dtype() == precision


def test_the_same_call_gives_the_same_bound():
    model = small("MaxMin")
    one, two = lipsdp(model), lipsdp(model)
    assert one.value == two.value and one.certificate.multipliers.equal(two.certificate.multipliers)
    assert one.certificate.dual_value == two.certificate.dual_value
    pairs = [{k: b.value for k, b in lipsdp(model, "pairs").items()} for _ in range(2)]
    assert pairs[0] == pairs[1]


@pytest.mark.parametrize(("device", "dtype"), [("meta", torch.float16), (None, torch.float64)])
@pytest.mark.parametrize("activation", ["ReLU", "GroupSort", "Householder"])
def test_the_default_device_and_dtype_of_torch_do_not_matter(device, dtype, activation):
    model, center = drawn(PIECEWISE[activation], 1, (5, 4, 8, 2))
    region = Ball(center, 0.4)
    arguments = [
        {},
        {"region": region, "multipliers": "layer"},
        {"logits": "pairs"},
        {"logits": 1, "iterations": 2},
    ]
    wanted = [lipsdp(model, **each) for each in arguments] + [eclipse_fast(model)]
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        torch.set_default_device(device)
        found = [lipsdp(model, **each) for each in arguments] + [eclipse_fast(model)]
        for bounds in found:
            for bound in bounds.values() if isinstance(bounds, dict) else [bounds]:
                bound.verify(model)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(default)
    for ours, theirs in zip(found, wanted):
        if isinstance(theirs, dict):
            ours, theirs = ours[0, 1], theirs[0, 1]
        assert ours.value == theirs.value and ours.certificate.gap == theirs.certificate.gap


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_read_as_the_numbers_that_they_are(dtype):
    model = small().to(dtype)
    read = copy.deepcopy(model).double()
    assert lipsdp(model).value == pytest.approx(lipsdp(read).value, rel=1e-12)
    assert lipsdp(model).verify(read) and lipsdp(read).verify(model)


def test_gradients_inference_mode_and_frozen_weights_do_not_matter():
    model = small()
    value = lipsdp(model).value
    with torch.no_grad():
        assert lipsdp(model).value == value
    with torch.inference_mode():
        assert lipsdp(model).value == value
    assert lipsdp(model.requires_grad_(False)).value == value


# Models.


def test_nesting_flattening_and_dropout_do_not_matter():
    model = small()
    nested = nn.Sequential(
        nn.Flatten(), nn.Sequential(*model[:2], nn.Dropout(0.5)), nn.Identity(), nn.Sequential(model[2:])
    ).eval()
    assert lipsdp(nested, input_shape=(3,)).value == lipsdp(model).value


def test_linear_layers_in_a_row_are_their_product():
    model = small()
    first = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()
    rows = nn.Sequential(linear(first), *model)
    product = nn.Sequential(linear(model[0].weight @ first), *model[1:])
    assert lipsdp(rows).value == pytest.approx(lipsdp(product).value, rel=NEAR)


def test_a_convolution_is_its_matrix():
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 2, 2, stride=2).double()
    basis = torch.eye(16).double().reshape(16, 1, 4, 4)
    matrix = (conv(basis) - conv(0 * basis)).flatten(1).T
    last = linear(torch.randn(3, 8).double())
    image = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), last)
    flat = nn.Sequential(linear(matrix), nn.ReLU(), last)
    assert lipsdp(image, input_shape=(1, 4, 4)).value == pytest.approx(lipsdp(flat).value, rel=NEAR)


def test_a_shape_comes_from_the_region_or_from_input_shape():
    torch.manual_seed(0)
    image = nn.Sequential(nn.Conv2d(1, 2, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="pass input_shape"):
        lipsdp(image)
    ball = Ball(torch.zeros(1, 4, 4), 1e3)
    local, everywhere = lipsdp(image, region=ball).verify(image), lipsdp(image, input_shape=(1, 4, 4))
    assert local.value == pytest.approx(everywhere.value, rel=NEAR)
    assert everywhere.certificate.input_shape == (1, 4, 4) and everywhere.verify(image)


def test_the_product_over_two_residual_blocks_is_far_above():
    """x + B relu(A x), twice: the product is (1 + |A| |B|)^2."""
    inner, more = (drawn(PIECEWISE["ReLU"], seed, (4, 6, 4))[0] for seed in (1, 3))
    model = nn.Sequential(Residual(inner), Residual(more), linear(torch.eye(4)))
    bound = lipsdp(model).verify(model)
    assert bound.certificate.gap < NEAR and bound.value < 0.8 * product_bound(model).value


def test_a_constant_network_has_a_bound_near_0():
    model = nn.Sequential(linear(torch.ones(3, 2)), nn.ReLU(), linear(torch.zeros(2, 3)))
    for bound in (lipsdp(model), lipsdp(model, 0), eclipse_fast(model)):
        assert 0 <= bound.value < 1e-25 and bound.verify(model)
    dead = nn.Sequential(linear(torch.zeros(3, 2)), nn.ReLU(), linear(torch.ones(2, 3)))
    assert 0 <= lipsdp(dead).verify(dead).value < 1e-25


@pytest.mark.parametrize("shift", [-20.0, -37.0, -1e3])
@pytest.mark.parametrize("activation", [nn.GELU, nn.Tanh])
def test_a_layer_whose_slopes_almost_vanish_has_a_bound_near_0(activation, shift):
    model = nn.Sequential(linear(torch.eye(3), [shift] * 3), activation(), linear(torch.ones(2, 3)))
    center, slopes = torch.zeros(3), torch.tensor([shift - 0.01, shift + 0.01]).double().requires_grad_()
    activation()(slopes).sum().backward()
    bound = lipsdp(model, region=Ball(center, 0.01)).verify(model)
    steepest = math.sqrt(6) * slopes.grad.abs().max().item()
    assert steepest * (1 - 1e-6) <= bound.value <= steepest * (1 + NEAR) + 1e-16  # 1 - tanh^2 cancels


def test_max_pooling_is_refused_with_what_can_be_done():
    model = nn.Sequential(nn.MaxPool1d(2), nn.Flatten(), nn.Linear(2, 2))
    with pytest.raises(UnsupportedLayerError, match="MaxPool1d"):
        lipsdp(model, input_shape=(1, 4))


def test_one_input_one_neuron_and_one_output_are_enough():
    model = nn.Sequential(linear([[2.0]]), nn.ReLU(), linear([[-3.0]]))
    assert lipsdp(model).value == pytest.approx(6.0, rel=NEAR)
    wide = nn.Sequential(linear(torch.ones(1, 50)), nn.Tanh(), linear(torch.ones(20, 1)))
    assert lipsdp(wide).value == pytest.approx(math.sqrt(50 * 20), rel=NEAR)


# Networks of the book.


@pytest.mark.parametrize("radius", [None, 0.02])
def test_a_trained_network_lies_between_its_gradients_and_its_product(radius):
    model, image = network("digits"), digits().test_inputs[0].double()
    region = None if radius is None else Ball(image, radius)
    bound = lipsdp(model, (0, 1), region).verify(model)
    x = (image if radius else torch.zeros_like(image)).clone().requires_grad_()
    logits = copy.deepcopy(model).double()(x[None])[0]
    slope = torch.autograd.grad(logits[0] - logits[1], x)[0].norm().item()
    assert slope * (1 - 1e-9) <= bound.value < 0.7 * product_bound(model, logits=(0, 1)).value
    assert bound.certificate.gap < NEAR
