"""The points that are feasible by construction, against the matrices that they must make definite."""

import math

import pytest
import torch
from torch import nn

from lipbook import Ball
from lipbook.layers import Abs, MaxMin, Residual
from lipbook.sdp import lipsdp
from lipbook.sdp.constraints import constraints_of, matrix
from lipbook.sdp.start import feasible_dual, feasible_multipliers, inner_point, lifted
from tests.increments import PIECEWISE, SMOOTH, between, drawn, linear

ALL = {**PIECEWISE, **{name: lambda width, make=make: make() for name, make in SMOOTH.items()}}


def programs(activation, seed):
    """The program of a random network everywhere, and in a ball, for the vector and one logit."""
    model, center = drawn(ALL[activation], seed)
    region = Ball(center, 0.5)
    yield constraints_of(model, multipliers=["neuron", "layer"][seed % 2])
    yield constraints_of(model, 1, region)
    if activation in ("ReLU", "MaxMin"):
        inner, _ = drawn(ALL[activation], seed + 1, (4, 4, 4))
        model, _ = drawn(ALL[activation], seed, (3, 4, 4, 2))
        yield constraints_of(nn.Sequential(*model[:2], Residual(inner), *model[2:]).eval())


def least_eigenvalue(M):
    """Of M scaled to unit diagonal."""
    scales = M.diagonal().rsqrt()
    return torch.linalg.eigvalsh(scales[:, None] * M * scales)[0].item()


@pytest.mark.parametrize("activation", ALL)
@pytest.mark.parametrize(
    "seed", [0, 1, 2, *(pytest.param(s, marks=pytest.mark.thorough) for s in range(3, 40))]
)
def test_the_multipliers_are_feasible_and_twice_them_strictly(activation, seed):
    for constraints in programs(activation, seed):
        square, multipliers = feasible_multipliers(constraints)
        assert multipliers.shape == (constraints.multipliers,) and (multipliers > 0).all()
        M = matrix(constraints, square, multipliers)
        assert torch.linalg.eigvalsh(M)[0] >= -1e-12 * M.abs().max()
        assert least_eigenvalue(matrix(constraints, 2 * square, 2 * multipliers)) > 1e-9


@pytest.mark.parametrize("activation", ALL)
@pytest.mark.parametrize(
    "seed", [0, 1, 2, *(pytest.param(s, marks=pytest.mark.thorough) for s in range(3, 40))]
)
def test_the_dual_matrix_is_strictly_feasible(activation, seed):
    for constraints in programs(activation, seed):
        Z = feasible_dual(constraints)
        assert torch.allclose(Z, Z.T, rtol=1e-12, atol=1e-14)
        assert Z.diagonal()[: constraints.inputs].sum().item() == pytest.approx(1, rel=1e-14)
        assert least_eigenvalue(Z) > 1e-9
        P, Q = constraints.P, constraints.Q
        assert (((P @ Z) * Q).sum(dim=1) > 0).all()


@pytest.mark.parametrize("activation", PIECEWISE)
def test_the_dual_matrix_is_the_covariance_of_the_increments_that_it_describes(activation):
    """Drawn from its definition: Dx normal, then the middle slope times v plus independent noise."""
    constraints = constraints_of(drawn(PIECEWISE[activation], 1, (3, 4, 4, 2))[0])
    generator = torch.Generator().manual_seed(0)
    count, inputs = 200_000, constraints.inputs
    z = torch.zeros(count, constraints.size).double()
    z[:, :inputs] = torch.randn(count, inputs, generator=generator).double() / math.sqrt(inputs)
    for number, (p, q) in enumerate(zip(constraints.P, constraints.Q)):
        at = inputs + number
        low, high = -(z[:, :at] @ p[:at]), z[:, :at] @ q[:at]  # a v and b v
        noise = torch.randn(count, generator=generator).double()
        z[:, at] = (low + high) / 2 + ((high - low) / 2).std() / math.sqrt(2) * noise
    sampled = z.T @ z / count
    Z = feasible_dual(constraints)
    size = Z.diagonal().sqrt()
    assert ((sampled - Z).abs() <= 0.02 * size[:, None] * size).all()


def test_the_multipliers_of_relu_layers_are_those_of_the_paper():
    """l_i = 1 / |W_i X^-1 W_i'|, X the form that the layers before leave."""
    model, _ = drawn(PIECEWISE["ReLU"], 1, (3, 6, 5, 2))
    weights = [model[k].weight.detach() for k in (0, 2, 4)]
    form, expected = torch.eye(3).double(), []
    for weight in weights[:-1]:
        K = weight @ torch.linalg.inv(form) @ weight.T
        step = 1 / torch.linalg.matrix_norm(K, 2)
        expected.append(step.expand(len(weight)))
        form = 2 * step * torch.eye(len(weight)).double() - step**2 * K
    value = torch.linalg.matrix_norm(weights[-1] @ torch.linalg.inv(form) @ weights[-1].T, 2)
    square, multipliers = feasible_multipliers(constraints_of(model))
    assert square == pytest.approx(value.item(), rel=1e-10)
    assert torch.allclose(multipliers, value * torch.cat(expected), rtol=1e-10)


def test_the_start_scales_with_the_weights():
    model, _ = drawn(PIECEWISE["MaxMin"], 1, (3, 4, 4, 2))
    square, _ = feasible_multipliers(constraints_of(model))
    assert feasible_multipliers(constraints_of(between(model, (4, 0.5, 2))))[0] == pytest.approx(
        16 * square, rel=1e-9
    )


def test_a_constant_network_has_a_start():
    constraints = constraints_of(
        nn.Sequential(linear(torch.ones(3, 2)), nn.ReLU(), linear(torch.zeros(1, 3)))
    )
    square, multipliers = feasible_multipliers(constraints)
    assert 0 < square < 1e-50
    assert least_eigenvalue(matrix(constraints, 2 * square, 2 * multipliers)) > 1e-9


@pytest.mark.parametrize("activation", PIECEWISE)
def test_a_lifted_point_of_the_vector_is_feasible_for_every_pair(activation):
    model, _ = drawn(PIECEWISE[activation], 1, (3, 4, 4, 3))
    whole = constraints_of(model)
    point = tuple(2 * part for part in feasible_multipliers(whole))
    for pair in ((0, 1), (0, 2), (1, 2)):
        constraints = constraints_of(model, pair)
        square, multipliers = lifted(constraints, *point)
        M = matrix(constraints, square, multipliers)
        assert torch.linalg.eigvalsh(M)[0] >= -1e-12 * M.abs().max()
        assert least_eigenvalue(matrix(constraints, 2 * square, 2 * multipliers)) > 1e-9
        assert torch.linalg.eigvalsh(matrix(constraints, 0.99 * square, 0.99 * multipliers))[0] < 0


@pytest.mark.parametrize("factors", [(1e200, 1e200, 1), (1e300, 1, 1)])
def test_an_overflow_is_an_arithmetic_error(factors):
    model = between(drawn(PIECEWISE["ReLU"], 1, (3, 4, 4, 2))[0], factors)
    with pytest.raises(ArithmeticError, match="too far apart in size"):
        feasible_multipliers(constraints_of(model))


@pytest.mark.parametrize("activation", [Abs, MaxMin])
def test_a_deep_orthogonal_chain_starts_and_ends_near_its_constant(activation):
    torch.manual_seed(0)
    chain = []
    for _ in range(20):
        layer = nn.Linear(8, 8, dtype=torch.float64)
        nn.init.orthogonal_(layer.weight)
        chain += [layer, activation()]
    model = nn.Sequential(*chain)
    square, multipliers = inner_point(constraints_of(model))
    assert torch.linalg.eigvalsh(matrix(constraints_of(model), square, multipliers))[0] > 0
    assert square < 100**2
    assert 1 - 1e-12 <= lipsdp(model).value < 1 + 1e-5
