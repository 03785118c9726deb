"""The conditioned program is the same program in other coordinates."""

import pytest
import torch
from torch import nn

from lipbook.layers import Residual
from lipbook.sdp.conditioning import conditioned
from lipbook.sdp.constraints import constraints_of, matrix
from lipbook.sdp.start import feasible_dual, feasible_multipliers
from tests.increments import PIECEWISE, between, drawn, linear

ACTIVATIONS = ["ReLU", "LeakyReLU that turns back", "MaxMin", "GroupSort", "Householder"]
SIZES = [(3, 8, 4, 2), (9, 4, 4, 2), (5, 2, 8, 2)]  # the last two: only part of the input is seen


def program(activation, sizes, multipliers="neuron"):
    if activation == "GroupSort" and sizes[1] == 2:
        sizes = (6, 4, 4, 2)
    return constraints_of(drawn(PIECEWISE[activation], 1, sizes)[0], multipliers=multipliers)


def powers_of_two(numbers):
    return bool((torch.frexp(numbers.abs()).mantissa == 0.5).all())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("multipliers", ["neuron", "layer"])
def test_a_point_is_feasible_in_one_exactly_if_it_is_in_the_other(activation, sizes, multipliers):
    constraints = program(activation, sizes, multipliers)
    square, weights = feasible_multipliers(constraints)
    problem, scales = conditioned(constraints, square)
    for factor in (2.0, 1.1, 0.5, 0.01):
        M = matrix(constraints, factor * square, weights)
        inside = matrix(problem, *scales.inward(factor * square, weights))
        one, other = torch.linalg.eigvalsh(M)[0], torch.linalg.eigvalsh(inside)[0]
        if min(abs(one), abs(other)) > 1e-10:
            # where only part of the input is seen, M is factor * square on the rest
            assert (one > 0) == (other > 0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES)
def test_inward_and_outward_undo_each_other(activation, sizes):
    constraints = program(activation, sizes)
    square, weights = feasible_multipliers(constraints)
    problem, scales = conditioned(constraints, square)
    inside = scales.inward(square, weights)
    dual = torch.eye(problem.size).double()
    back = scales.outward(*inside, dual)
    assert back[0] == pytest.approx(square, rel=1e-15)
    assert torch.allclose(back[1], weights, rtol=1e-15) and back[2].shape == 2 * (constraints.size,)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("multipliers", ["neuron", "layer"])
def test_a_dual_matrix_keeps_its_value_and_its_constraints(activation, sizes, multipliers):
    constraints = program(activation, sizes, multipliers)
    problem, scales = conditioned(constraints, feasible_multipliers(constraints)[0])
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(problem.size, problem.size, generator=generator).double()
    inside = half @ half.T
    _, weights, Z = scales.outward(1.0, torch.ones(problem.multipliers).double(), inside)
    value = lambda c, X: ((c.C @ X) * c.C).sum().item()  # noqa: E731
    trace = lambda c, X: X.diagonal()[: c.inputs].sum().item()  # noqa: E731
    forms = lambda c, X: ((c.P @ X) * c.Q).sum(dim=1)  # noqa: E731
    assert trace(constraints, Z) == pytest.approx(trace(problem, inside), rel=1e-12)
    assert value(constraints, Z) == pytest.approx(scales.square * value(problem, inside), rel=1e-12)
    # lambda_j <B_j, Z> is one number in both
    ours = weights[constraints.groups] * forms(constraints, Z)
    theirs = scales.square * forms(problem, inside)
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9 * theirs.abs().max())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("factors", [(1, 1, 1), (1e-12, 1e6, 1), (1e9, 1, 1e-30)])
def test_conditioned_numbers_are_near_1_and_scaled_by_powers_of_two(activation, factors):
    model, _ = drawn(PIECEWISE[activation], 1, (3, 8, 4, 2))
    constraints = constraints_of(between(model, factors))
    problem, scales = conditioned(constraints, feasible_multipliers(constraints)[0])
    for numbers in (scales.coordinates, scales.multipliers, torch.tensor(scales.square)):
        assert powers_of_two(numbers)
    covariance = problem.inputs * feasible_dual(problem)
    for rows in (torch.eye(problem.size).double(), problem.P, problem.Q):
        sizes = ((rows @ covariance) * rows).sum(dim=1).sqrt()
        assert (sizes < 3).all() and sizes.median() > 0.3


@pytest.mark.parametrize("sizes", SIZES)
def test_the_input_shrinks_to_the_part_that_is_seen(sizes):
    constraints = program("ReLU", sizes)
    problem, scales = conditioned(constraints, 1.0)
    assert problem.inputs == min(sizes[0], sizes[1])
    if sizes[0] > sizes[1]:
        basis = scales.basis
        assert torch.allclose(basis.T @ basis, torch.eye(sizes[1]).double(), atol=1e-14)
        assert torch.allclose(basis @ (basis.T @ constraints.funnel.T), constraints.funnel.T, atol=1e-13)
    else:
        assert scales.basis is None


def test_the_input_stays_whole_where_a_residual_block_sees_it_all():
    inner = nn.Sequential(linear(torch.ones(2, 5)), nn.ReLU(), linear(torch.ones(5, 2)))
    model = nn.Sequential(
        Residual(inner), linear(torch.randn(2, 5, generator=torch.Generator().manual_seed(0)))
    )
    constraints = constraints_of(model)
    problem, scales = conditioned(constraints, 1.0)
    assert problem.inputs == constraints.inputs == 5 and scales.basis is None


def test_a_first_layer_of_low_rank_is_conditioned():
    model, _ = drawn(PIECEWISE["ReLU"], 1, (6, 4, 2))
    model[0].weight.data[1] = 2 * model[0].weight.data[0]
    constraints = constraints_of(model)
    problem, scales = conditioned(constraints, feasible_multipliers(constraints)[0])
    assert torch.isfinite(problem.P).all() and torch.isfinite(scales.coordinates).all()
