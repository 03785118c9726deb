"""The constraints of a network, at increments that the network really makes."""

import math

import pytest
import torch
from torch import nn

from lipbook import Ball
from lipbook.layers import Abs, Householder, MaxMin, Normalize, Residual
from lipbook.sdp.constraints import Layer, constraints_of, matrix
from tests.increments import PIECEWISE, SMOOTH, drawn, increments, linear, points

EPS = 2.0**-50


def z_of(constraints, model, center, radius, count=200):
    """z at pairs of points of the box (float64), the increments of the output, and what rounding did to z.

    Which activations have a coordinate, and which part of their slope it leaves out, is read from the
    constraints: all numbers come from the network.
    """
    x, y = points(center, radius, count)
    moved, output = increments(model, x, y)
    bends = [record for record in constraints.history if isinstance(record, Layer)]
    assert len(bends) == len(moved)
    blocks, doubts = [(x - y).flatten(1)], [EPS * (x.abs() + y.abs()).flatten(1)]
    for record, (before, after, sizes, positions) in zip(bends, moved):
        bending = torch.zeros(len(record.free), dtype=torch.bool)
        bending[positions] = True
        assert not (record.free & ~bending).any()
        free = record.free[positions]
        base = record.factors[2][positions] * (after * before).sum(dim=0).sign()
        blocks.append((after - base * before)[:, free])
        doubts.append(EPS * sizes[:, free] * (1 + base[free].abs()))
    return torch.cat(blocks, dim=1), output, torch.cat(doubts, dim=1)


def assert_true_increments_satisfy(constraints, model, center, radius=math.inf):
    z, output, doubt = z_of(constraints, model, center, radius)
    assert z.shape[1] == constraints.size == constraints.inputs + len(constraints.groups)
    size = 1e3 * EPS * (1 + (z.abs() @ constraints.C.abs().T))
    assert ((z @ constraints.C.T - output).abs() <= size).all()
    p, q = z @ constraints.P.T, z @ constraints.Q.T
    slack = 20 * ((doubt + EPS * z.abs()) @ (constraints.P.abs() + constraints.Q.abs()).T)
    assert (p * q >= -slack * (p.abs() + q.abs() + slack)).all()
    if radius == math.inf:
        assert (p * q > slack * (p.abs() + q.abs() + slack)).any(), "every constraint is tight"


@pytest.mark.parametrize("activation", PIECEWISE)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("radius", [math.inf, 0.5])
def test_true_increments_satisfy_the_constraints(activation, seed, radius):
    model, center = drawn(PIECEWISE[activation], seed)
    model.double()
    region = None if radius == math.inf else Ball(center, radius)
    assert_true_increments_satisfy(constraints_of(model, region=region), model, center, radius)


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("radius", [math.inf, 0.3, 1e-3])
def test_true_increments_satisfy_the_constraints_of_smooth_activations(activation, radius):
    model, center = drawn(lambda width: SMOOTH[activation](), 1, (2, 4, 4, 3), spread=1.5)
    region = None if radius == math.inf else Ball(center, radius)
    assert_true_increments_satisfy(constraints_of(model, region=region), model, center, radius)


@pytest.mark.parametrize("shift", [0.0, 1.0, 5.0, 15.0, 18.0])
def test_a_saturated_tanh_keeps_the_whole_of_its_narrow_range(shift):
    """Its coordinate is what the activation does beyond its least slope."""
    model = nn.Sequential(linear([[1.0, 0.5], [0.2, 1.0]], [shift, 0.0]), nn.Tanh(), linear([[1.0, 1.0]]))
    center, radius = torch.zeros(2).double(), 1e-3
    constraints = constraints_of(model, region=Ball(center, radius))
    x = center + radius * torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.3, -1.0]]).double()
    slope = 1 / torch.cosh(model[0](x)) ** 2
    least, widest = constraints.layers[0].factors[2], constraints.layers[0].factors[1]
    assert constraints.size == 4
    assert (least <= slope.detach().amin(dim=0)).all()
    assert (least + widest >= slope.detach().amax(dim=0)).all()
    assert (widest > 0).all() and (widest < 0.01).all()
    assert_true_increments_satisfy(constraints, model, center, radius)


@pytest.mark.parametrize("radius", [1e-15, 1e-12, 1e-10])
def test_a_range_that_is_almost_one_slope_is_widened_a_little(radius):
    """Neither merged to one slope, which would be wrong, nor kept so narrow that its form is rounding."""
    model = nn.Sequential(linear(torch.eye(2), [0.5, 1.0]), nn.Tanh(), linear([[1.0, 1.0]]))
    constraints = constraints_of(model, region=Ball(torch.zeros(2), radius))
    slope = (1 / torch.cosh(torch.tensor([0.5, 1.0]).double()) ** 2).max()
    low, width, least = constraints.layers[0].factors
    assert constraints.size == 4 and (low == 0).all()
    assert (width >= 0.9e-9 * slope).all() and (width <= 2e-9 * slope).all()
    assert torch.allclose(least, 1 / torch.cosh(torch.tensor([0.5, 1.0]).double()) ** 2, rtol=1e-8)


def test_a_neuron_that_nothing_enters_has_no_coordinate():
    model, center = drawn(PIECEWISE["ReLU"], 1, (2, 6, 3))
    model[0].weight.data[2] = 0
    constraints = constraints_of(model)
    assert constraints.size == 2 + 5 and constraints.multipliers == 5
    assert_true_increments_satisfy(constraints, model, center)


def test_what_only_a_dead_neuron_enters_has_no_coordinate():
    model, center = drawn(PIECEWISE["ReLU"], 1, (2, 4, 4, 3))
    model[0].weight.data[1:] = 0
    model[2].weight.data[2, 0] = 0
    constraints = constraints_of(model)
    assert constraints.size == 2 + 1 + 3
    assert_true_increments_satisfy(constraints, model, center)


def test_neurons_whose_slope_is_fixed_in_the_ball_have_no_coordinate():
    model = nn.Sequential(
        linear([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [5.0, -5.0, 0.0]), nn.ReLU(), linear([[1.0, 2.0, 3.0]])
    )
    center = torch.zeros(2)
    constraints = constraints_of(model, region=Ball(center, 1.0))
    assert constraints.size == 3 and constraints.multipliers == 1
    assert constraints.C.tolist() == [[1.0, 0.0, 3.0]]
    assert_true_increments_satisfy(constraints, model, center, 1.0)


def test_a_leaky_relu_of_slope_1_has_no_coordinates():
    model, _ = drawn(lambda width: nn.LeakyReLU(1.0), 1, (3, 5, 4, 2))
    constraints = constraints_of(model)
    assert constraints.size == 3 and constraints.multipliers == 0
    assert constraints.P.shape == constraints.Q.shape == (0, 3)
    assert torch.allclose(constraints.C, model[4].weight @ model[2].weight @ model[0].weight, rtol=1e-13)


@pytest.mark.parametrize("radius", [math.inf, 0.2])
@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.AvgPool2d(3, 2, padding=1)])
def test_true_increments_satisfy_the_constraints_of_convolutions_and_pooling(radius, pool):
    torch.manual_seed(0)
    model = nn.Sequential(
        Normalize([0.5, -0.25], [0.5, 2.0]), nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), pool,
        nn.Conv2d(4, 2, 2, stride=2, padding_mode="circular"), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(),
        nn.Linear(2, 3),
    ).double().eval()  # fmt: skip
    center = torch.rand(2, 4, 4).double()
    region = None if radius == math.inf else Ball(center, radius)
    constraints = constraints_of(model, region=region, input_shape=(2, 4, 4))
    assert constraints.size == 32 + 64 + 2 if region is None else constraints.size < 98
    assert_true_increments_satisfy(constraints, model, center, radius)


@pytest.mark.parametrize("radius", [math.inf, 0.3])
@pytest.mark.parametrize("activation", ["ReLU", "MaxMin", "Householder", "GroupSort"])
def test_true_increments_satisfy_the_constraints_of_residual_blocks(activation, radius):
    inner, _ = drawn(PIECEWISE[activation], 3, (4, 4, 4))
    more, _ = drawn(PIECEWISE[activation], 5, (4, 4, 4, 4))
    model, center = drawn(PIECEWISE[activation], 1, (3, 4, 4, 2))
    block = Residual(nn.Sequential(*more[:3], Residual(inner), more[3]))
    model = nn.Sequential(*model[:2], block, Residual(inner), *model[2:]).eval()
    region = None if radius == math.inf else Ball(center, radius)
    assert_true_increments_satisfy(constraints_of(model, region=region), model, center, radius)


def test_the_logits_are_rows_of_the_output():
    model, _ = drawn(PIECEWISE["MaxMin"], 1, (3, 4, 4, 3))
    whole = constraints_of(model)
    assert constraints_of(model, 2).C.equal(whole.C[2:])
    assert constraints_of(model, (2, 0)).C.equal(whole.C[2:] - whole.C[:1])


def test_each_multiplier_of_layers_is_shared_by_one_layer():
    model, _ = drawn(PIECEWISE["GroupSort"], 1, (3, 8, 4, 2))
    sizes = [4, 2, 4, 2, 2, 1, 2, 1]  # comparisons of four entries, in four rounds
    shared = constraints_of(model, multipliers="layer")
    assert shared.groups.tolist() == [k for k, size in enumerate(sizes) for _ in range(size)]
    assert constraints_of(model).groups.tolist() == list(range(sum(sizes)))
    assert shared.multipliers == 8 and shared.P.equal(constraints_of(model).P)


@pytest.mark.parametrize("activation", ["ReLU", "LeakyReLU that turns back", "MaxMin", "GroupSort"])
def test_the_matrix_is_what_its_formula_says(activation):
    constraints = constraints_of(drawn(PIECEWISE[activation], 1, (3, 4, 4, 2))[0], multipliers="layer")
    weights = torch.rand(constraints.multipliers, generator=torch.Generator().manual_seed(0)).double()
    P, Q, C = constraints.P, constraints.Q, constraints.C
    expected = 7.0 * torch.diag((torch.arange(constraints.size) < 3).double()) - C.T @ C
    for number, group in enumerate(constraints.groups.tolist()):
        expected -= weights[group] * (torch.outer(P[number], Q[number]) + torch.outer(Q[number], P[number]))
    assert torch.allclose(matrix(constraints, 7.0, weights), expected, rtol=0, atol=1e-13)


def test_relu_layers_give_the_block_tridiagonal_matrix_of_the_paper():
    model, _ = drawn(PIECEWISE["ReLU"], 1, (3, 5, 4, 2))
    first, second, last = (model[k].weight.detach() for k in (0, 2, 4))
    weights = torch.rand(9, generator=torch.Generator().manual_seed(0)).double()
    M = matrix(constraints_of(model), 7.0, weights)
    one, two = torch.diag(weights[:5]), torch.diag(weights[5:])
    blocks = [
        [7 * torch.eye(3), -first.T @ one, torch.zeros(3, 4)],
        [-one @ first, 2 * one, -second.T @ two],
        [torch.zeros(4, 3), -two @ second, 2 * two - last.T @ last],
    ]
    expected = torch.cat([torch.cat([b.double() for b in row], dim=1) for row in blocks])
    assert torch.allclose(M, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("layer", "least", "most"), [(nn.ReLU(), 0, 1), (Abs(), -1, 1), (nn.Sigmoid(), 0, 0.25)]
)
def test_the_forms_of_one_neuron_are_those_of_its_slopes(layer, least, most):
    """p = e - least v and q = most v - e with v = 3 x."""
    constraints = constraints_of(nn.Sequential(linear([[3.0]]), layer))
    assert constraints.P.tolist() == [[-3.0 * least, 1.0]]
    assert constraints.Q.tolist() == [[pytest.approx(3.0 * most, rel=1e-12), -1.0]]
    assert constraints.C.tolist() == [[0.0, 1.0]] and constraints.inputs == 1


@pytest.mark.parametrize(("layer", "width"), [(nn.ReLU(), 2), (MaxMin(), 1), (Householder(2), 1)])
def test_what_an_activation_preserves_needs_no_coordinate(layer, width):
    model = nn.Sequential(linear(torch.eye(2)), layer).double()
    assert constraints_of(model).size == 2 + width


def test_the_funnel_is_what_the_output_sees_of_the_input():
    model, _ = drawn(PIECEWISE["ReLU"], 1, (6, 3, 4, 2))
    assert constraints_of(model).funnel.equal(model[0].weight)
    assert constraints_of(drawn(PIECEWISE["ReLU"], 1, (3, 6, 2))[0]).funnel is None
    around = nn.Sequential(
        Residual(nn.Sequential(*model[:1], nn.ReLU(), linear(torch.ones(6, 3)))), linear(torch.ones(1, 6))
    )
    assert constraints_of(around).funnel is None
