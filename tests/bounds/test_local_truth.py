"""`local_bound` and `preactivation_bounds` against enumerated regions and exact arithmetic."""

import copy
import dataclasses
import itertools
import math
import random
from fractions import Fraction

import mpmath
import pytest
import torch
from torch import nn
from torch.func import jacrev, vmap

from lipbook import Ball, CertificateError
from lipbook.bounds import gradient_lower_bound, local_bound, preactivation_bounds
from lipbook.bounds.branch import Domain
from lipbook.bounds.domains import Half
from lipbook.data import digits, network
from lipbook.layers import Abs, GroupSort, Householder, MaxMin, Normalize, Residual
from tests import increments
from tests.oracles import exact_constant, exact_forward, largest_norm, regions

ORACLE = 1 - 1e-9  # what the enumeration itself may round
NORMS = (2, math.inf)
METHODS = ("interval", "linear", "branch")
OUTPUTS = [None, 1, (2, 0)]
PIECEWISE = {
    "ReLU": lambda width: nn.ReLU(),
    "LeakyReLU": lambda width: nn.LeakyReLU(0.2),
    "LeakyReLU that turns back": lambda width: nn.LeakyReLU(-0.5),
    "Abs": lambda width: Abs(),
    "MaxMin": lambda width: MaxMin(),
    "GroupSort": lambda width: GroupSort(4),
    "Householder": Householder,
}
SMOOTH = {
    "GELU": nn.GELU(),
    "GELU by tanh": nn.GELU("tanh"),
    "SiLU": nn.SiLU(),
    "Tanh": nn.Tanh(),
    "Softplus": nn.Softplus(),
    "Mish": nn.Mish(),
    "Hardswish": nn.Hardswish(),
    "ELU": nn.ELU(1.3),
    "Sigmoid": nn.Sigmoid(),
}


def drawn(activation, seed, sizes=(2, 4, 4, 3), spread=1.0):
    """A random network, and a center for it."""
    return increments.drawn(activation, seed, sizes, spread)


def budget(method, nodes=5):
    return {"nodes": nodes} if method == "branch" else {}


def ways(full):
    """(norm, output, method, raw): every combination, or fewer with "branch", which takes longest."""
    for norm, output, method, raw in itertools.product(NORMS, OUTPUTS, METHODS, (True, False)):
        if full or method != "branch" or (output is None and not raw):
            yield norm, output, method, raw


def assert_above_the_truth(model, center, radius, full=True):
    found = regions(model, center, radius)
    for norm, output, method, raw in ways(full):
        bound = local_bound(model, center, radius, norm, output, method, raw=raw, **budget(method))
        truth = largest_norm(found, norm, output)
        assert bound.value >= truth * ORACLE, (norm, output, method, raw)
        assert (bound.kind, bound.norm, bound.output) == ("upper", norm, output)
        assert bound.region == Ball(center, radius, math.inf)


@pytest.mark.parametrize("activation", PIECEWISE)
def test_never_below_the_enumerated_truth(activation):
    assert_above_the_truth(*drawn(PIECEWISE[activation], 0), 0.7, full=False)


@pytest.mark.thorough
@pytest.mark.parametrize("activation", PIECEWISE)
@pytest.mark.parametrize("seed", range(8))
def test_never_below_the_enumerated_truth_on_more_networks_and_radii(activation, seed):
    sizes = [(2, 4, 4, 3), (3, 8, 3), (1, 4, 4, 4, 3), (4, 4, 3)][seed % 4]
    model, center = drawn(PIECEWISE[activation], seed, sizes)
    for radius in (0.02, 0.3, 3.0):
        assert_above_the_truth(model, center, radius)


def with_blocks(activation, seed):
    """Two residual blocks, the second with one inside it, and a center."""
    model, center = drawn(activation, seed, (2, 4, 4, 4, 3))
    more, _ = drawn(activation, seed + 100, (4, 2, 4, 2, 4))
    head, *_, last = model.to(more[0].weight.dtype)
    inside = nn.Sequential(*model[1:4], Residual(more[:3]))
    return nn.Sequential(head, Residual(more[3:]), Residual(inside), last).eval(), center


@pytest.mark.parametrize("activation", ["ReLU", "MaxMin"])
def test_never_below_the_enumerated_truth_with_residual_blocks(activation):
    assert_above_the_truth(*with_blocks(PIECEWISE[activation], 0), 0.7, full=False)


@pytest.mark.thorough
@pytest.mark.parametrize("activation", [name for name in PIECEWISE if name != "GroupSort"])
@pytest.mark.parametrize("seed", range(1, 4))
def test_never_below_the_truth_with_residual_blocks_on_more_networks_and_radii(activation, seed):
    model, center = with_blocks(PIECEWISE[activation], seed)
    for radius in (0.02, 0.3, 3.0):
        assert_above_the_truth(model, center, radius)


@pytest.mark.parametrize("norm", [math.inf, pytest.param(2, marks=pytest.mark.thorough)])
def test_branch_ends_at_the_enumerated_truth_with_residual_blocks(norm):
    model, center = with_blocks(PIECEWISE["ReLU"], 3)
    truth = exact_constant(model, norm, None, center, 0.4)
    bound = local_bound(model, center, 0.4, norm, method="branch", nodes=3000)
    assert truth * ORACLE <= bound.value <= truth * (1 + 1e-6)
    assert bound.verify(model) is bound


def test_a_residual_block_is_the_network_that_carries_its_input_through_relu():
    """x = relu(x) where x > 0: the block is a chain with more neurons, and its bounds are the same."""
    generator = torch.Generator().manual_seed(0)
    inner, outer, last = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 2)
    for layer in (inner, outer, last):
        for parameter in layer.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
    wide, narrow = nn.Linear(3, 7), nn.Linear(7, 3)
    wide.weight.data = torch.cat([torch.eye(3), inner.weight.data])
    wide.bias.data = torch.cat([torch.zeros(3), inner.bias.data])
    narrow.weight.data, narrow.bias.data = (
        torch.cat([torch.eye(3), outer.weight.data], dim=1),
        outer.bias.data,
    )
    block = nn.Sequential(Residual(nn.Sequential(inner, nn.ReLU(), outer)), nn.ReLU(), last)
    chain = nn.Sequential(wide, nn.ReLU(), narrow, nn.ReLU(), last)
    center = torch.tensor([1.0, 2.0, 3.0])
    for norm, output, method in itertools.product(NORMS, OUTPUTS[:2], METHODS):
        of = {"logits": output, "method": method, "raw": True, **budget(method)}
        one, other = (local_bound(model, center, 0.9, norm, **of).value for model in (block, chain))
        assert one == pytest.approx(other, rel=1e-9)
    for one, other in zip(*(preactivation_bounds(model, center, 0.9) for model in (block, chain))):
        for found, wanted in zip(one, other):
            assert torch.allclose(found, wanted[-len(found) :], rtol=1e-9, atol=1e-9)


def on_the_grid(activation, seed, sizes=(2, 4, 4, 3)):
    """Weights of -1, 0 and 1, few biases, and a center of integers: many neurons are at their kinks there."""
    model, center = drawn(activation, seed, sizes)
    generator = torch.Generator().manual_seed(seed)
    for layer in model:
        if isinstance(layer, nn.Linear):
            for parameter in layer.parameters():
                parameter.data = torch.randint(-1, 2, parameter.shape, generator=generator).to(
                    parameter.dtype
                )
            layer.bias.data *= torch.rand(len(layer.bias), generator=generator) < 0.3
    return model, center.round()


@pytest.mark.parametrize("activation", ["ReLU", "Abs", "MaxMin"])
@pytest.mark.parametrize("seed", range(2))
def test_never_below_the_truth_where_kinks_meet_and_neurons_are_dead_or_alike(activation, seed):
    assert_above_the_truth(*on_the_grid(PIECEWISE[activation], seed), 1.0, full=False)


@pytest.mark.thorough
@pytest.mark.parametrize("activation", PIECEWISE)
@pytest.mark.parametrize("seed", range(10))
def test_never_below_the_truth_where_kinks_meet_on_more_networks(activation, seed):
    assert_above_the_truth(*on_the_grid(PIECEWISE[activation], seed), 1.0)


SHORT = [name for name in PIECEWISE if name != "GroupSort"]


@pytest.mark.parametrize("activation", [*SHORT, pytest.param("GroupSort", marks=pytest.mark.thorough)])
def test_branch_ends_at_the_enumerated_truth(activation):
    model, center = drawn(PIECEWISE[activation], 3)
    found = regions(model, center, 0.4)
    for norm, output in ((2, None), (math.inf, (2, 0))):
        bound = local_bound(model, center, 0.4, norm, output, method="branch", nodes=3000)
        truth = largest_norm(found, norm, output)
        assert truth * ORACLE <= bound.value <= truth * (1 + 1e-6)
        assert bound.verify(model) is bound


@pytest.mark.thorough
@pytest.mark.parametrize("activation", SHORT)
@pytest.mark.parametrize("seed", range(4, 8))
def test_branch_ends_at_the_truth_on_more_networks(activation, seed):
    model, center = drawn(PIECEWISE[activation], seed, [(2, 4, 4, 3), (3, 8, 3)][seed % 2])
    for radius, norm, output in itertools.product((0.1, 1.0), NORMS, (None, 1)):
        truth = exact_constant(model, norm, output, center, radius)
        bound = local_bound(model, center, radius, norm, output, method="branch", nodes=20000)
        assert truth * ORACLE <= bound.value <= truth * (1 + 1e-6)


def test_without_raw_each_method_is_at_most_the_one_before():
    for name, norm in itertools.product(
        ("ReLU", "LeakyReLU that turns back", "MaxMin", "Householder"), NORMS
    ):
        model, center = drawn(PIECEWISE[name], 5)
        interval, linear, branch = (
            local_bound(model, center, 0.5, norm, method=method, **budget(method)).value for method in METHODS
        )
        assert interval >= linear >= branch


@pytest.mark.parametrize("norm", NORMS)
def test_more_nodes_never_raise_the_bound(norm):
    model, center = drawn(PIECEWISE["ReLU"], 7, (3, 6, 6, 3))
    values = [
        local_bound(model, center, 1.0, norm, method="branch", nodes=nodes, raw=True).value
        for nodes in (0, 1, 3, 10, 40)
    ]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


def test_pairs_are_all_the_pairs():
    model, center = drawn(PIECEWISE["ReLU"], 2)
    found = regions(model, center, 0.3)
    for method in METHODS:
        bounds = local_bound(model, center, 0.3, logits="pairs", method=method, **budget(method))
        assert list(bounds) == [(0, 1), (0, 2), (1, 2)]
        for pair, bound in bounds.items():
            assert bound.output == pair and bound.value >= largest_norm(found, math.inf, pair) * ORACLE


def test_opposite_differences_are_alike_and_the_vector_is_its_worst_row():
    model, center = drawn(PIECEWISE["ReLU"], 9)
    for method in ("interval", "linear"):
        one, other = (
            local_bound(model, center, 0.3, logits=k, method=method).value for k in ((0, 1), (1, 0))
        )
        assert one == pytest.approx(other, rel=1e-9)
        rows = [local_bound(model, center, 0.3, logits=k, method=method).value for k in range(3)]
        vector = local_bound(model, center, 0.3, method=method).value
        assert vector == pytest.approx(max(rows), rel=1e-9)


def the_norm(jacobian, norm, output):
    if output is not None:
        i, j = output if isinstance(output, tuple) else (output, None)
        jacobian = jacobian[..., i : i + 1, :] - (0 if j is None else jacobian[..., j : j + 1, :])
    return torch.linalg.matrix_norm(jacobian, norm)


ACTIVATIONS = {**PIECEWISE, **{name: lambda width, a=a: a for name, a in SMOOTH.items()}}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_at_a_tiny_radius_it_is_the_norm_of_the_jacobian(activation):
    model, center = drawn(ACTIVATIONS[activation], 1, (2, 8, 3))
    center = center.double()
    jacobian = jacrev(lambda x: model(x[None])[0])(center)
    for norm, output, method in itertools.product(NORMS, OUTPUTS, ("interval", "linear")):
        expected = the_norm(jacobian, norm, output).item()
        for radius in (1e-9, *[0.0] * (output is None)):
            value = local_bound(model, center, radius, norm, output, method, raw=True).value
            assert expected * (1 - 1e-12) <= value <= expected * (1 + 1e-6)


def exact_jacobian(model, x):
    """The Jacobian of Linear, ReLU, Linear, ... at x, rows of fractions; no neuron may be at its kink."""
    values = [Fraction(number) for number in x.tolist()]
    rows = [[Fraction(int(i == k)) for k in range(len(values))] for i in range(len(values))]
    for linear in model[::2]:
        if linear is not model[0]:
            assert all(values)
            rows = [[entry * (value > 0) for entry in row] for row, value in zip(rows, values)]
            values = [max(value, Fraction(0)) for value in values]
        weight = [list(map(Fraction, row)) for row in linear.weight.tolist()]
        columns = list(zip(*rows))
        rows = [[sum(a * b for a, b in zip(row, column) if a and b) for column in columns] for row in weight]
        shifts = map(Fraction, linear.bias.tolist())
        values = [sum(a * b for a, b in zip(row, values)) + shift for row, shift in zip(weight, shifts)]
    return rows


def assert_not_below_by_a_rounding(seed, scale):
    model, center = drawn(PIECEWISE["ReLU"], 2 * seed + 1, (3, 6, 6, 2))
    model[0].weight.data *= scale
    model[0].bias.data *= scale
    model[2].bias.data *= scale
    with torch.no_grad():
        model[4].weight[1] += (1 - 1e-9) * (model[4].weight[0] - model[4].weight[1])
    one, other = exact_jacobian(model, center.double())
    for output, row in ((0, one), ((0, 1), [a - b for a, b in zip(one, other)])):
        for norm, method in itertools.product(NORMS, METHODS):
            value = local_bound(model, center, 0.0, norm, output, method, raw=True, **budget(method)).value
            exact = sum(map(abs, row)) if norm == math.inf else sum(entry**2 for entry in row)
            assert Fraction(value) ** (1 if norm == math.inf else 2) >= exact


@pytest.mark.parametrize("scale", [1.0, 2.0**-100, 2.0**60])
def test_not_below_the_exact_jacobian_by_a_single_rounding_even_where_rows_cancel(scale):
    for seed in range(2):
        assert_not_below_by_a_rounding(seed, scale)


@pytest.mark.thorough
@pytest.mark.parametrize("scale", [1.0, 2.0**-100, 2.0**60])
def test_not_below_the_exact_jacobian_by_a_single_rounding_on_more_networks(scale):
    for seed in range(2, 40):
        assert_not_below_by_a_rounding(seed, scale)


def grid(center, radius, steps):
    axis = torch.linspace(-radius, radius, steps, dtype=torch.float64)
    return center.double() + torch.cartesian_prod(*[axis] * len(center))


def assert_above_the_jacobians(activation, radius, seed, full):
    model, center = drawn(lambda width: SMOOTH[activation], seed, spread=2.0)
    model = model.double()
    jacobians = vmap(jacrev(lambda x: model(x[None])[0]))(grid(center, radius, 41))
    for norm, output, method, raw in ways(full):
        largest = the_norm(jacobians, norm, output).max().item()
        bound = local_bound(model, center, radius, norm, output, method, raw=raw, **budget(method))
        assert bound.value >= largest * (1 - 1e-12), (norm, output, method, raw)


@pytest.mark.parametrize("activation", SMOOTH)
def test_never_below_the_norms_of_jacobians_in_the_ball(activation):
    assert_above_the_jacobians(activation, 1.0, 1, full=False)


@pytest.mark.thorough
@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("radius", [0.01, 0.1, 10.0])
@pytest.mark.parametrize("seed", range(4))
def test_never_below_the_norms_of_jacobians_in_more_balls(activation, radius, seed):
    assert_above_the_jacobians(activation, radius, seed, full=True)


LONG = [name for name in SMOOTH if name not in ("Tanh", "Softplus")]


@pytest.mark.parametrize(
    "activation", ["Tanh", "Softplus", *(pytest.param(name, marks=pytest.mark.thorough) for name in LONG)]
)
def test_branch_tends_to_the_largest_jacobian_of_one_smooth_layer(activation):
    model, center = drawn(lambda width: SMOOTH[activation], 1, (1, 3, 1))
    largest = vmap(jacrev(lambda x: model(x[None])[0]))(grid(center, 2.0, 10001)).abs().max().item()
    loose = local_bound(model, center, 2.0, raw=True).value
    bound = local_bound(model, center, 2.0, method="branch", nodes=100, raw=True).value
    assert largest * (1 - 1e-12) <= bound <= largest * 1.05 and bound < loose


@pytest.mark.thorough
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("norm", NORMS)
def test_never_below_a_search_in_the_ball(activation, seed, norm):
    model, center = drawn(ACTIVATIONS[activation], seed, (3, 8, 8, 3))
    for radius in (0.05, 1.0):
        lower = gradient_lower_bound(model, center[None], norm, region=Ball(center, radius)).value
        for method, raw in itertools.product(METHODS, (True, False)):
            bound = local_bound(model, center, radius, norm, method=method, raw=raw, **budget(method))
            assert bound.value >= lower


def convolutional():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 3, 3, stride=2), nn.GELU()]
    return nn.Sequential(Normalize(0.5, 0.25), *layers, nn.Flatten(), nn.Linear(12, 3)).eval(), (1, 6, 6)


@pytest.mark.parametrize("norm", NORMS)
def test_never_below_a_search_on_a_convolutional_network(norm):
    model, shape = convolutional()
    center = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    lower = gradient_lower_bound(model, center[None], norm, region=Ball(center, 0.05)).value
    for method in METHODS:
        bound = local_bound(model, center, 0.05, norm, method=method, **budget(method))
        assert bound.verify(model).value >= lower


@pytest.mark.parametrize("image", [0, *(pytest.param(k, marks=pytest.mark.thorough) for k in range(1, 10))])
def test_on_the_digits_network_branch_is_at_the_enumerated_truth_and_linear_is_near_it(image):
    model, center, radius = network("digits"), digits().test_inputs[image], 0.02
    found = regions(model, center, radius)
    for norm, output in ((math.inf, None), (math.inf, (4, 9)), (2, 4)):
        truth = largest_norm(found, norm, output)
        interval, linear, branch = (
            local_bound(model, center, radius, norm, output, method, **budget(method, nodes=500))
            for method in METHODS
        )
        assert truth * ORACLE <= branch.value <= linear.value <= interval.value
        assert branch.value <= truth * (1 + 1e-6) and linear.value <= 1.15 * truth
        assert branch.verify(model) is branch


@pytest.mark.thorough
@pytest.mark.parametrize("image", range(3))
@pytest.mark.parametrize("norm", NORMS)
def test_on_the_digits_network_it_is_not_below_a_search(image, norm):
    model, center = network("digits"), digits().test_inputs[image]
    for radius, output in itertools.product((0.02, 0.1, 0.5), (None, 4, (4, 9))):
        lower = gradient_lower_bound(model, center[None], norm, output, Ball(center, radius)).value
        for method in METHODS:
            assert local_bound(model, center, radius, norm, output, method, **budget(method)).value >= lower


# What enters the activations.


def corners_and_others(center, radius, count=20):
    """Points of the ball as exact fractions: corners, and points that are not."""
    generator = torch.Generator().manual_seed(0)
    draws = 2 * torch.rand(count, len(center), generator=generator, dtype=torch.float64) - 1
    corners = itertools.product((-1.0, 1.0), repeat=len(center))
    moves = [*itertools.islice(corners, count), *draws.tolist()]
    start = [Fraction(number) for number in center.tolist()]
    return [[s + Fraction(radius) * Fraction(m) for s, m in zip(start, move)] for move in moves]


def before_each_activation(model):
    return [model[:k] for k, layer in enumerate(model) if k % 2]


@pytest.mark.parametrize("method", ["interval", "linear"])
@pytest.mark.parametrize("activation", ["ReLU", "LeakyReLU that turns back", "Abs", "MaxMin", "GroupSort"])
@pytest.mark.parametrize("radius", [0.0, 1e-12, 0.1, 3.0])
def test_exact_preactivations_are_within_their_bounds(activation, method, radius):
    model, center = drawn(PIECEWISE[activation], 11, (3, 4, 4, 2))
    bounds = preactivation_bounds(model, center, radius, method)
    prefixes = before_each_activation(model)
    assert len(bounds) == len(prefixes) == 2
    for prefix, (lower, upper) in zip(prefixes, bounds):
        assert lower.dtype == upper.dtype == torch.float64 and lower.shape == upper.shape == (4,)
        for point in corners_and_others(center, radius):
            values = exact_forward(prefix, point)
            assert all(
                Fraction(a) <= v <= Fraction(b) for a, v, b in zip(lower.tolist(), values, upper.tolist())
            )


def test_what_enters_the_first_activation_is_bounded_exactly():
    model, center = drawn(PIECEWISE["ReLU"], 11, (3, 4, 4, 2))
    weight = model[0].weight.double()
    middle, reach = weight @ center.double() + model[0].bias.double(), 0.3 * weight.abs().sum(dim=1)
    for method in ("interval", "linear"):
        lower, upper = preactivation_bounds(model, center, 0.3, method)[0]
        assert torch.allclose(lower, middle - reach, rtol=1e-12, atol=1e-12)
        assert torch.allclose(upper, middle + reach, rtol=1e-12, atol=1e-12)


BY_HAND = {
    "GELU": lambda x: x * mpmath.ncdf(x),
    "GELU by tanh": lambda x: x * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + Cubic * x**3))) / 2,
    "SiLU": lambda x: x / (1 + mpmath.exp(-x)),
    "Tanh": mpmath.tanh,
    "Softplus": lambda x: x if x > 20 else mpmath.log1p(mpmath.exp(x)),
    "Mish": lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))),
    "Hardswish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "ELU": lambda x: x if x > 0 else mpmath.mpf(1.3) * mpmath.expm1(x),
    "Sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
}
Cubic = mpmath.mpf(0.044715)


def through(layer, values):
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    return [mpmath.fdot(zip(row, values)) + shift for row, shift in zip(weight, bias)]


@pytest.mark.parametrize("method", ["interval", "linear"])
@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("radius", [1e-12, 0.1, 3.0])
def test_preactivations_in_40_digits_are_within_their_bounds(activation, method, radius):
    model, center = drawn(lambda width: SMOOTH[activation], 11, (2, 4, 4, 4, 2), spread=1.5)
    bounds = preactivation_bounds(model, center, radius, method)
    assert len(bounds) == 3
    with mpmath.workdps(40):
        for point in corners_and_others(center, radius, count=8):
            values = [mpmath.mpf(number.numerator) / number.denominator for number in point]
            for linear, (lower, upper) in zip(model[::2], bounds):
                values = through(linear, values)
                assert all(a <= v <= b for a, v, b in zip(lower.tolist(), values, upper.tolist()))
                values = [BY_HAND[activation](value) for value in values]


def test_linear_preactivation_bounds_are_within_those_of_intervals():
    for name in ("ReLU", "MaxMin", "Householder"):
        model, center = drawn(PIECEWISE[name], 13, (3, 6, 6, 6, 2))
        narrower = 0
        for a, b in zip(
            *(preactivation_bounds(model, center, 0.5, method) for method in ("interval", "linear"))
        ):
            assert (a[0] <= b[0]).all() and (b[1] <= a[1]).all()
            narrower += (b[1] - b[0] < 0.999 * (a[1] - a[0])).sum().item()
        assert narrower > 0


def test_what_enters_an_activation_has_the_shape_of_the_image():
    model, shape = convolutional()
    shapes = [tuple(lower.shape) for lower, _ in preactivation_bounds(model, torch.rand(shape), 0.1)]
    assert shapes == [(2, 6, 6), (3, 2, 2)]


# Certificates.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("raw", [True, False])
def test_a_value_lowered_by_a_percent_is_not_proved(method, norm, raw):
    model, center = drawn(PIECEWISE["ReLU"], 15)
    bound = local_bound(model, center, 0.3, norm, method=method, raw=raw, **budget(method))
    assert bound.verify(model) is bound
    with pytest.raises(CertificateError):
        dataclasses.replace(bound, value=0.99 * bound.value).verify(model)
    with pytest.raises(CertificateError):
        dataclasses.replace(bound, region=Ball(center, 30.0), value=0.99 * bound.value).verify(model)
    with pytest.raises(CertificateError):
        bound.verify(scaled(model, 4, 1.01))


def forged(tree, choose):
    """A copy of a tree with some of its nodes changed: cuts moved, domains called empty, new domains."""
    tree = copy.deepcopy(tree)
    nodes = [(tree, 0)]
    for node, depth in nodes:
        nodes += [(half, depth + 1) for half in node.halves or ()]
    numbers = [0.0, 1.0, -1.0, 1e-3, 1e5, math.inf, math.nan]
    for _ in range(choose.randint(1, 4)):
        node, depth = choose.choice(nodes)
        match choose.randrange(4):
            case 0:
                node.weights = tuple(choose.choice(numbers) for _ in range(depth))
            case 1 if node.cut:
                moved = choose.choice([{"point": choose.choice(numbers)}, {"index": choose.randrange(-1, 7)}])
                node.cut = node.cut._replace(**moved)
            case 2 if node.cut:
                moved = choose.choice([{"position": choose.randrange(-1, 6)}, {"above": not node.cut.above}])
                node.cut = node.cut._replace(**moved)
            case 3 if not node.halves:
                node.cut = Half(choose.choice([1, 3]), choose.randrange(6), choose.gauss(0, 1), True)
                node.halves = Domain(), Domain(weights=(1.0,) * (depth + 1))
    return tree


@pytest.mark.parametrize("count", [5, pytest.param(200, marks=pytest.mark.thorough)])
def test_no_forged_tree_proves_less_than_the_truth(count):
    model, center = drawn(PIECEWISE["ReLU"], 15, (2, 6, 6, 3))
    truth, choose = exact_constant(model, math.inf, None, center, 1.0), random.Random(0)
    bound = local_bound(model, center, 1.0, method="branch", nodes=3000, raw=True)
    assert bound.verify(model).value <= truth * (1 + 1e-6) and bound.certificate.tree.halves
    for _ in range(count):
        certificate = dataclasses.replace(bound.certificate, tree=forged(bound.certificate.tree, choose))
        with pytest.raises(CertificateError):
            dataclasses.replace(bound, value=0.9999 * truth, certificate=certificate).verify(model)


# Symmetries.


def scaled(model, number, factor):
    """The model with the weight and bias of one of its layers multiplied."""
    other = copy.deepcopy(model)
    for parameter in other[number].parameters():
        parameter.data *= factor
    return other


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", NORMS)
def test_scaling_a_layer_scales_the_bound(method, norm):
    model, center = drawn(PIECEWISE["ReLU"], 17)
    of = {"norm": norm, "method": method, "raw": True, **budget(method)}
    value = local_bound(model, center, 0.3, **of).value
    assert local_bound(scaled(model, 4, 4.0), center, 0.3, **of).value == pytest.approx(4 * value, rel=1e-9)
    moved = scaled(scaled(model, 4, 0.125), 0, 2.0)  # the biases of the second layer would have to follow
    moved[2].bias.data *= 2
    assert local_bound(moved, center, 0.3, **of).value == pytest.approx(value / 4, rel=1e-9)
    smaller = copy.deepcopy(model)
    smaller[0].weight.data *= 2
    assert local_bound(smaller, center / 2, 0.15, **of).value == pytest.approx(2 * value, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_moving_the_center_and_the_bias_together_changes_nothing(method):
    model, center = drawn(PIECEWISE["MaxMin"], 19)
    moved, shift = copy.deepcopy(model), torch.tensor([0.5, -2.0]).double()
    moved[0].bias.data -= moved[0].weight @ shift
    one, other = (
        local_bound(m, c, 0.3, method=method, raw=True, **budget(method)).value
        for m, c in ((model, center.double()), (moved, center.double() + shift))
    )
    assert one == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_a_larger_ball_never_has_a_smaller_interval_bound(norm):
    model, center = drawn(PIECEWISE["LeakyReLU"], 21, (3, 6, 6, 3))
    radii = (0.01, 0.1, 0.3, 1.0, 10.0)
    values = [local_bound(model, center, r, norm, method="interval", raw=True).value for r in radii]
    assert values == sorted(values) and values[0] < values[-1]
