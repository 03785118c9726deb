"""Semidefinite bounds against enumerated regions, sampled slopes, closed forms and symmetries."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.func import jacrev, vmap

from lipbook import Ball
from lipbook.bounds import product_bound
from lipbook.layers import Abs, MaxMin, Residual
from lipbook.sdp import eclipse_fast, lipsdp
from tests.increments import PIECEWISE, SMOOTH, between, drawn, linear
from tests.oracles import largest_norm, regions

ORACLE = 1 - 1e-9  # what the enumeration itself may round
NEAR = 1e-5  # what the interior-point method may leave of its tolerance
ONE_SIDED = ["ReLU", "LeakyReLU", "Abs", "MaxMin", "Householder"]  # slopes in [0, 1], or lengths are kept
OUTPUTS = [None, 1, (1, 0)]


def assert_in_order(model, center, truths, outputs):
    """Everywhere and in a box: exact <= neuron <= layer <= closed form <= product, as far as each holds."""
    for (radius, found), output in ((pair, output) for pair in truths.items() for output in outputs):
        region = None if radius == math.inf else Ball(center, radius)
        neuron = lipsdp(model, output, region).verify(model)
        layer = lipsdp(model, output, region, multipliers="layer").verify(model)
        truth = largest_norm(found, 2, output)
        assert neuron.value >= truth * ORACLE, (radius, output)
        assert layer.value >= truth * ORACLE, (radius, output)
        assert layer.value >= neuron.certificate.dual_value
        assert layer.certificate.dual_value <= layer.value
        assert neuron.certificate.dual_value <= neuron.value
        if truth:
            assert neuron.certificate.gap < NEAR and layer.certificate.gap < NEAR
            assert neuron.value <= layer.value * (1 + NEAR)
        if region is None:
            closed = eclipse_fast(model, output).verify(model)
            assert closed.value >= max(truth * ORACLE, layer.certificate.dual_value)


@pytest.mark.parametrize("activation", PIECEWISE)
@pytest.mark.parametrize("seed", range(3))
def test_never_below_the_enumerated_truth(activation, seed):
    model, center = drawn(PIECEWISE[activation], seed)
    truths = {radius: regions(model, center, radius) for radius in (0.4, math.inf)}
    assert_in_order(model, center, truths, [OUTPUTS[seed]])


@pytest.mark.thorough
@pytest.mark.parametrize("activation", PIECEWISE)
@pytest.mark.parametrize("seed", range(3, 25))
def test_never_below_the_enumerated_truth_on_more_networks(activation, seed):
    model, center = drawn(PIECEWISE[activation], seed, spread=[1.0, 3.0, 0.2][seed % 3])
    truths = {radius: regions(model, center, radius) for radius in (0.02, 0.4, 3.0, math.inf)}
    assert_in_order(model, center, truths, OUTPUTS)


@pytest.mark.parametrize("activation", PIECEWISE)
@pytest.mark.parametrize(
    "seeds", [range(100, 106), pytest.param(range(106, 300), marks=pytest.mark.thorough)]
)
def test_no_multipliers_prove_less_than_the_truth(activation, seeds):
    """The closed form, and a solver stopped where its multipliers are far from those of the optimum."""
    for seed in seeds:
        model, center = drawn(PIECEWISE[activation], seed, [(2, 4, 3), (3, 4, 2), (2, 4, 4, 2)][seed % 3])
        found = regions(model, center)
        for output in (None, (0, 1)):
            truth = largest_norm(found, 2, output)
            assert eclipse_fast(model, output).value >= truth * ORACLE
        stopped = lipsdp(model, multipliers=["neuron", "layer"][seed % 2], iterations=seed % 7)
        assert stopped.value >= largest_norm(found) * ORACLE and stopped.certificate.iterations <= seed % 7


@pytest.mark.parametrize("activation", ["ReLU", "MaxMin", "Householder"])
def test_never_below_the_enumerated_truth_with_residual_blocks(activation):
    inner, _ = drawn(PIECEWISE[activation], 3, (4, 4, 4))
    model, center = drawn(PIECEWISE[activation], 1, (2, 4, 4, 2))
    model = nn.Sequential(*model[:2], Residual(inner), *model[2:]).eval()
    truths = {radius: regions(model, center, radius) for radius in (0.4, math.inf)}
    assert_in_order(model, center, truths, [None, (0, 1)])
    assert lipsdp(model).value <= product_bound(model).value * (1 + NEAR)


@pytest.mark.parametrize("activation", [*ONE_SIDED, "GroupSort"])
@pytest.mark.parametrize("seed", range(2))
def test_at_most_the_product_of_the_norms(activation, seed):
    """For slopes in [0, 1] or [-1, 1]: multipliers |W_L ... W_i|^2 up to a factor prove the product."""
    model, _ = drawn(PIECEWISE[activation], seed)
    for output in (None, (0, 1)):
        assert lipsdp(model, output).value <= product_bound(model, logits=output).value * (1 + NEAR)


def slopes_around(model, center, radius, output, count):
    """Norms of Jacobians at random points; each is a lower bound, up to rounding, on the constant."""
    model = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(1)
    draws = 2 * torch.rand(count, len(center), generator=generator, dtype=torch.float64) - 1
    draws *= torch.rand(count, 1, generator=generator, dtype=torch.float64)
    jacobians = vmap(jacrev(lambda x: model(x[None])[0]))(center.double() + radius * draws).detach()
    if output is not None:
        jacobians = jacobians[:, :1] - jacobians[:, 1:2]
    return torch.linalg.matrix_norm(jacobians, 2).max().item()


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(s, marks=pytest.mark.thorough) for s in range(2, 20))])
def test_never_below_slopes_of_smooth_networks(activation, seed):
    model, center = drawn(lambda width: SMOOTH[activation](), seed, [(1, 6, 6, 2), (2, 5, 2)][seed % 2], 1.5)
    for radius, output in ((20.0, None), (0.5, (0, 1)), (0.01, None)):
        region = None if radius == 20 else Ball(center, radius)
        steepest = slopes_around(model, center, radius, output, 1500)
        bound = lipsdp(model, output, region).verify(model)
        assert bound.value >= steepest * (1 - 1e-12)
        if radius == 0.01:
            assert bound.value <= 1.2 * steepest, "the slopes hardly vary in this ball"


# Closed forms.


def assert_value(model, value, **arguments):
    bound = lipsdp(model, **arguments).verify(model)
    assert bound.value >= value * (1 - 1e-12)
    assert bound.value == pytest.approx(value, rel=NEAR)


@pytest.mark.parametrize("multipliers", ["neuron", "layer"])
@pytest.mark.parametrize("layer", [nn.ReLU(), MaxMin(), Abs(), nn.Tanh(), nn.LeakyReLU(-1.0)])
def test_one_layer_between_identities_has_the_constant_1(layer, multipliers):
    model = nn.Sequential(linear(torch.eye(4)), layer, linear(torch.eye(4)))
    assert_value(model, 1.0, multipliers=multipliers)


def test_a_network_of_fixed_slopes_has_the_norm_of_its_matrix():
    model, _ = drawn(lambda width: nn.LeakyReLU(1.0), 1, (4, 6, 5, 3))
    matrix = model[4].weight @ model[2].weight @ model[0].weight
    assert_value(model, torch.linalg.matrix_norm(matrix, 2).item())
    assert_value(model, (matrix[1] - matrix[2]).norm().item(), logits=(1, 2))
    bound = lipsdp(model)
    assert bound.certificate.multipliers.shape == (0,)
    assert eclipse_fast(model).value == pytest.approx(bound.value, rel=NEAR)


def test_in_a_ball_within_one_region_the_bound_is_the_norm_of_its_jacobian():
    for activation in PIECEWISE:
        model, center = drawn(PIECEWISE[activation], 1, (2, 4, 4, 3))
        assert len(regions(model, center, 1e-6)) == 1
        jacobian = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], center.double())
        norm = torch.linalg.matrix_norm(jacobian, 2).item()
        assert_value(model, norm, region=Ball(center, 1e-6))


@pytest.mark.parametrize("layers", [[nn.ReLU()], [MaxMin(), Abs()], [nn.Flatten()]])
def test_a_network_without_weights_has_the_constant_of_its_activations(layers):
    assert_value(nn.Sequential(*layers), 1.0, input_shape=(4,))


def test_the_network_that_refutes_coupled_multipliers_gets_at_least_3():
    """3 relu(x) - relu(x - 1) - relu(x - 2) has slopes 0, 3, 2 and 1."""
    model = nn.Sequential(linear(torch.ones(3, 1), [0.0, -1.0, -2.0]), nn.ReLU(), linear([[3.0, -1.0, -1.0]]))
    assert_value(model, 3.0)
    for center, truth in ((1.5, 2.0), (0.5, 3.0), (3.0, 1.0), (-1.0, 0.0)):
        bound = lipsdp(model, region=Ball(torch.tensor([center]), 0.4)).verify(model)
        assert truth <= bound.value <= truth * (1 + NEAR) + 1e-30


def test_one_neuron_has_the_product_of_the_lengths():
    assert_value(nn.Sequential(linear([[3.0, 4.0]]), nn.ReLU(), linear([[2.0]])), 10.0)
    assert_value(nn.Sequential(linear([[3.0, 4.0]]), nn.Sigmoid(), linear([[2.0]])), 2.5)


# Symmetries.


@pytest.mark.parametrize("activation", ["ReLU", "LeakyReLU", "MaxMin", "GroupSort", "Householder"])
@pytest.mark.parametrize("bound_of", [lipsdp, eclipse_fast])
def test_scaling_a_layer_scales_the_bound(activation, bound_of):
    model, _ = drawn(PIECEWISE[activation], 1, (3, 4, 4, 2))
    value = bound_of(model).value
    for factors in ((1, 1, 3), (0.2, 1, 1), (1, 7, 1), (5, 0.2, 1)):
        scaled = between(model, factors)
        assert bound_of(scaled).value == pytest.approx(math.prod(factors) * value, rel=NEAR)


def test_permuting_and_scaling_the_neurons_of_relu_leave_the_bound_but_not_the_product():
    model, _ = drawn(PIECEWISE["ReLU"], 1, (3, 6, 5, 2))
    value = lipsdp(model).value
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for first, second in ((0, 2), (2, 4)):
        order = torch.randperm(len(other[first].weight), generator=generator)
        scale = torch.exp(torch.randn(len(order), generator=generator)).double()
        other[first].weight.data = scale[:, None] * other[first].weight.data[order]
        other[first].bias.data = scale * other[first].bias.data[order]
        other[second].weight.data = other[second].weight.data[:, order] / scale
    x = torch.randn(5, 3, generator=generator).double()
    assert torch.allclose(model(x), other(x), rtol=1e-12, atol=1e-12)
    assert lipsdp(other).value == pytest.approx(value, rel=NEAR)
    assert product_bound(other).value > 1.1 * product_bound(model).value


def test_orthogonal_maps_before_and_after_leave_the_bound():
    model, _ = drawn(PIECEWISE["GroupSort"], 1, (3, 4, 4, 2))
    generator = torch.Generator().manual_seed(0)
    first, last = (torch.linalg.qr(torch.randn(n, n, generator=generator).double())[0] for n in (3, 2))
    turned = nn.Sequential(linear(first), *model, linear(last))
    assert lipsdp(turned).value == pytest.approx(lipsdp(model).value, rel=NEAR)


@pytest.mark.parametrize("bound_of", [lipsdp, eclipse_fast])
def test_biases_do_not_enter_everywhere(bound_of):
    model, _ = drawn(PIECEWISE["ReLU"], 1, (3, 6, 5, 2))
    other = copy.deepcopy(model)
    for k in (0, 2, 4):
        other[k].bias.data.add_(100.0)
    assert bound_of(model).value == bound_of(other).value


def test_a_smaller_ball_has_a_smaller_bound():
    model, center = drawn(PIECEWISE["ReLU"], 1, (3, 8, 8, 2))
    values = [lipsdp(model, region=Ball(center, r)).value for r in (0.01, 0.1, 0.5, 2.0)]
    values.append(lipsdp(model).value)
    assert all(a <= b * (1 + NEAR) for a, b in zip(values, values[1:])) and values[0] < 0.9 * values[-1]


def test_adding_zero_neurons_and_outputs_changes_nothing():
    model, _ = drawn(PIECEWISE["ReLU"], 1, (3, 6, 2))
    wide = nn.Sequential(
        linear(torch.cat([model[0].weight, torch.zeros(2, 3)])), nn.ReLU(),
        linear(torch.cat([torch.cat([model[2].weight, torch.ones(2, 2)], dim=1), torch.zeros(1, 8)])),
    )  # fmt: skip
    assert lipsdp(wide).value == pytest.approx(lipsdp(model).value, rel=NEAR)
    assert eclipse_fast(wide).value == pytest.approx(eclipse_fast(model).value, rel=1e-9)
