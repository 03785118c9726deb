"""The structured interior-point method against definitions, a general solver and known optima."""

import math

import pytest
import torch
from torch import nn

from lipbook import Ball
from lipbook.sdp import interior_point
from lipbook.sdp.conditioning import conditioned
from lipbook.sdp.constraints import constraints_of, matrix
from lipbook.sdp.interior_point import propose
from lipbook.sdp.reference import propose as reference
from lipbook.sdp.start import feasible_multipliers
from tests.increments import PIECEWISE, drawn, linear

ACTIVATIONS = ["ReLU", "LeakyReLU that turns back", "MaxMin", "GroupSort", "Householder"]


def program(activation="ReLU", sizes=(3, 8, 4, 2), multipliers="neuron", **arguments):
    return constraints_of(drawn(PIECEWISE[activation], 1, sizes)[0], multipliers=multipliers, **arguments)


def system_after(constraints, steps):
    """The conditioned program, a point some steps from the start, and its Newton system."""
    start = tuple(2 * part for part in feasible_multipliers(constraints))
    problem, scales = conditioned(constraints, start[0])
    point = interior_point._first(problem, *scales.inward(*start))
    for _ in range(steps):
        point = interior_point._step(problem, point)
    return problem, point, interior_point._System(problem, point)


def summed_constraints(problem):
    """G_0, and B_j = sum p q' + q p' over the constraints that share multiplier j."""
    G0 = torch.diag((torch.arange(problem.size) < problem.inputs).double())
    B = torch.zeros(problem.multipliers, problem.size, problem.size).double()
    for p, q, group in zip(problem.P, problem.Q, problem.groups.tolist()):
        B[group] += torch.outer(p, q) + torch.outer(q, p)
    return G0, B


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("multipliers", ["neuron", "layer"])
@pytest.mark.parametrize("steps", [0, 3])
def test_the_schur_complement_is_its_definition(activation, multipliers, steps):
    """<A_j, S A_k Z> for A_0 = -G_0 and A_j = B_j, and s_j / l_j on the diagonal, each by whole matrices."""
    problem, point, system = system_after(program(activation, multipliers=multipliers), steps)
    G0, B = summed_constraints(problem)
    S, Z = torch.linalg.inv(matrix(problem, point.square, point.multipliers)), point.dual
    all_of = torch.cat([-G0[None], B])
    expected = torch.einsum("jab,kba->jk", all_of, S @ all_of @ Z)
    expected.diagonal()[1:] += point.slacks / point.multipliers
    scaled = system.scale[:, None] * expected * system.scale
    assert torch.allclose(system.factor @ system.factor.T, scaled, rtol=0, atol=1e-9)
    assert torch.allclose(scaled.diagonal(), torch.ones(len(scaled)).double(), rtol=1e-9)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("multipliers", ["neuron", "layer"])
@pytest.mark.parametrize("sizes", [(3, 8, 4, 2), (2, 4, 4, 4, 4, 4, 4, 2)])
def test_the_direction_solves_the_linearised_conditions(activation, multipliers, sizes):
    problem, point, system = system_after(program(activation, sizes, multipliers), 2)
    G0, B = summed_constraints(problem)
    target = 0.3 * point.complementarity()
    step = system.direction(target)
    change = step.square * G0 - (step.multipliers[:, None, None] * B).sum(dim=0)
    assert torch.allclose(step.matrix, change, rtol=1e-12, atol=1e-12 * change.abs().max())
    S = torch.linalg.inv(point.matrix)
    product = S @ change @ point.dual
    dual = target * S - point.dual - (product + product.T) / 2
    size = dual.abs().max()
    assert torch.allclose(step.dual, dual, rtol=1e-9, atol=1e-9 * size)
    moved = point.dual + step.dual
    assert moved.diagonal()[: problem.inputs].sum().item() == pytest.approx(1, rel=1e-7)
    forms = (B * moved).sum(dim=(1, 2))
    assert torch.allclose(point.slacks + step.slacks, forms, rtol=1e-7, atol=1e-7 * forms.abs().max())
    both = (
        point.multipliers * point.slacks + step.multipliers * point.slacks + point.multipliers * step.slacks
    )
    assert torch.allclose(both, torch.full_like(both, target), rtol=1e-9)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("multipliers", ["neuron", "layer"])
@pytest.mark.parametrize("sizes", [(3, 8, 4, 2), (9, 4, 4, 1)])
def test_the_proposal_is_that_of_a_general_solver(activation, multipliers, sizes):
    constraints = program(activation, sizes, multipliers)
    ours, theirs = propose(constraints), reference(constraints, "clarabel")
    assert ours.square == pytest.approx(theirs.square, rel=3e-6)
    assert (ours.multipliers > 0).all() and ours.iterations < 30
    assert ((constraints.C @ ours.dual) * constraints.C).sum().item() == pytest.approx(ours.square, rel=3e-6)
    assert ours.dual.diagonal()[: constraints.inputs].sum().item() == pytest.approx(1, rel=1e-6)


def test_the_multiplier_of_one_neuron_is_known():
    """2 relu(3 x_1 + 4 x_2): rho >= (5 l)^2 / (2 l - 4) is least at l = 4, where it is 100."""
    found = propose(constraints_of(nn.Sequential(linear([[3.0, 4.0]]), nn.ReLU(), linear([[2.0]]))))
    assert found.square == pytest.approx(100, rel=1e-6)
    assert found.multipliers.item() == pytest.approx(4, rel=1e-2)


def test_without_constraints_the_norm_is_found():
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
    found = propose(constraints_of(nn.Sequential(linear(weight))))
    assert found.multipliers.shape == (0,)
    assert math.sqrt(found.square) == pytest.approx(torch.linalg.matrix_norm(weight, 2).item(), rel=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_iterate_is_feasible_and_more_of_them_come_closer(activation):
    constraints = program(activation)
    squares = []
    for count in (0, 1, 3, 6, 12, 60):
        found = propose(constraints, iterations=count)
        assert found.iterations <= count
        M = matrix(constraints, found.square, found.multipliers)
        scales = M.diagonal().rsqrt()
        assert torch.linalg.eigvalsh(scales[:, None] * M * scales)[0] > -1e-12
        squares.append(found.square)
    assert squares[0] > 1.5 * squares[-1]
    assert all(later <= 1.05 * earlier for earlier, later in zip(squares, squares[1:]))


def test_a_start_of_ones_own_reaches_the_same_optimum():
    constraints = program("MaxMin")
    square, multipliers = feasible_multipliers(constraints)
    for factor in (1.1, 4.0, 1000.0):
        found = propose(constraints, start=(factor * square, factor * multipliers))
        assert found.square == pytest.approx(propose(constraints).square, rel=3e-6)


def test_a_rough_tolerance_takes_fewer_steps():
    constraints = program()
    rough = propose(constraints, tolerance=0.3)
    assert rough.iterations < propose(constraints).iterations
    assert rough.square == pytest.approx(propose(constraints).square, rel=0.4)


@pytest.mark.parametrize("sizes", [(4, 90, 90, 3), (4, 24, 24, 3)])
@pytest.mark.parametrize("activation", ["ReLU", "MaxMin"])
def test_lanczos_steps_find_the_boundary_to_a_few_percent(activation, sizes):
    problem, point, system = system_after(program(activation, sizes), 2)
    change = system.direction(0.0).matrix
    half = torch.linalg.inv(torch.linalg.cholesky(point.matrix))
    exact = torch.linalg.eigvalsh(half @ change @ half.T)[0].item()
    found = interior_point._least_eigenvalue(point.factor, change)
    assert exact < 0 and abs(found - exact) < 0.05 * abs(exact)


def test_the_step_to_the_boundary_stops_there():
    problem, point, system = system_after(program("GroupSort"), 2)
    change = system.direction(0.0).matrix
    length = interior_point._until_singular(point.factor, change)
    assert torch.linalg.eigvalsh(point.matrix + 0.999 * length * change)[0] > 0
    assert torch.linalg.eigvalsh(point.matrix + 1.001 * length * change)[0] < 0
    assert interior_point._until_singular(point.factor, point.matrix) == math.inf
    numbers = torch.tensor([1.0, 2.0, 3.0])
    assert interior_point._until_zero(numbers, torch.tensor([-0.5, -4.0, 1.0])) == 0.5
    assert interior_point._until_zero(numbers, numbers) == math.inf


@pytest.mark.parametrize("radius", [1e-6, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.ReLU])
def test_programs_of_small_balls_converge(activation, radius):
    model, center = drawn(lambda width: activation(), 1, (3, 6, 6, 2))
    constraints = constraints_of(model, region=Ball(center, radius))
    assert propose(constraints).square == pytest.approx(reference(constraints, "clarabel").square, rel=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("sizes", [(20, *[64] * 5, 10), (784, 64, 64, 10)])
@pytest.mark.parametrize("activation", ["ReLU", "MaxMin"])
def test_wide_networks_converge(activation, sizes):
    constraints = program(activation, sizes)
    found = propose(constraints)
    least = ((constraints.C @ found.dual) * constraints.C).sum().item()
    assert found.iterations < 40 and found.square == pytest.approx(least, rel=1e-5)
