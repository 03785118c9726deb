import math
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lipbook.layers import MaxMin
from lipbook.sdp.constraints import constraints_of, matrix
from lipbook.sdp.reference import propose

TOLERANCE = {"clarabel": 1e-6, "scs": 1e-4}  # relative, ten times what cvxpy asks of each solver
SOLVERS = sorted(TOLERANCE)
both = pytest.mark.parametrize("solver", SOLVERS)


def linear(weight):
    weight = torch.as_tensor(weight, dtype=torch.float64)
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    layer.weight.data = weight
    return layer


def gaussian_net(sizes, seed, activation=nn.ReLU):
    generator, model = torch.Generator().manual_seed(seed), nn.Sequential()
    for n, m in zip(sizes, sizes[1:]):
        weight = torch.randn(m, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
        model.extend([linear(weight), activation()])
    return model[:-1]


def scaled(model, *factors):
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    for layer, factor in zip(layers, factors, strict=True):
        layer.weight.data *= factor
    return model


@both
def test_one_layer_of_relu_between_identities_has_the_constant_1(solver):
    model = nn.Sequential(linear(torch.eye(3)), nn.ReLU(), linear(torch.eye(3)))
    assert propose(constraints_of(model), solver).square == pytest.approx(1, rel=TOLERANCE[solver])


@both
def test_a_network_without_activations_has_the_norm_of_its_matrix(solver):
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = propose(constraints_of(nn.Sequential(linear(weight))), solver)
    assert found.multipliers.shape == (0,)
    norm = torch.linalg.svdvals(weight)[0].item()
    assert math.sqrt(found.square) == pytest.approx(norm, rel=TOLERANCE[solver])


@both
def test_one_neuron_has_the_product_of_the_lengths(solver):
    """2 relu(3 x_1 + 4 x_2) has slopes up to 2 * 5. By hand: M >= 0 says rho >= (5 l)^2 / (2 l - 4), which is
    least at l = 4, where it is 100."""
    found = propose(constraints_of(nn.Sequential(linear([[3.0, 4.0]]), nn.ReLU(), linear([[2.0]]))), solver)
    assert found.square == pytest.approx(100, rel=TOLERANCE[solver])
    assert found.multipliers.item() == pytest.approx(4, rel=10 * math.sqrt(TOLERANCE[solver]))


@both
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, MaxMin])
def test_the_proposal_satisfies_the_inequality_and_its_dual_closes_the_gap(solver, activation):
    program, within = constraints_of(gaussian_net((4, 6, 6, 2), 1, activation)), TOLERANCE[solver]
    found = propose(program, solver)
    assert (found.multipliers >= 0).all() and found.dual.equal(found.dual.T)
    M, size = matrix(program, found.square, found.multipliers), found.square + found.multipliers.max()
    assert torch.linalg.eigvalsh(M)[0] > -within * size
    assert torch.linalg.eigvalsh(found.dual)[0] > -within * found.dual.trace()
    assert found.dual.diagonal()[: program.inputs].sum().item() == pytest.approx(1, rel=within)
    products = ((program.P @ found.dual) * program.Q).sum(dim=1)
    assert (products > -within * found.dual.trace()).all()
    dual_value = (program.C @ found.dual @ program.C.T).trace().item()
    assert dual_value == pytest.approx(found.square, rel=within)


@pytest.mark.parametrize("multipliers", ["neuron", "layer"])
def test_the_two_solvers_agree(multipliers):
    program = constraints_of(gaussian_net((5, 7, 7, 3), 2), multipliers=multipliers)
    one, other = (propose(program, solver) for solver in SOLVERS)
    assert one.square == pytest.approx(other.square, rel=TOLERANCE["scs"])
    assert one.multipliers.shape == other.multipliers.shape == ({"neuron": 14, "layer": 2}[multipliers],)


@both
@pytest.mark.parametrize("factors", [(1e-6, 1, 1), (1e6, 1, 1), (1, 1, 1e6), (1e5, 1e-5, 1), (1e-5, 1, 1e5)])
def test_scaling_the_layers_scales_the_constant(solver, factors):
    sizes, seed = (4, 6, 6, 2), 3
    plain = propose(constraints_of(gaussian_net(sizes, seed)), solver).square
    found = propose(constraints_of(scaled(gaussian_net(sizes, seed), *factors)), solver).square
    assert found / math.prod(factors) ** 2 == pytest.approx(plain, rel=TOLERANCE[solver])


@both
def test_a_constant_network_has_the_constant_0(solver):
    found = propose(constraints_of(nn.Sequential(linear([[1.0]]), nn.ReLU(), linear([[0.0]]))), solver)
    assert 0 <= found.square < TOLERANCE[solver]


@both
def test_the_same_problem_gives_the_same_proposal_and_leaves_no_trace(solver, capfd):
    program, state = constraints_of(gaussian_net((4, 6, 6, 2), 4)), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = propose(program, solver), propose(program, solver)
    assert first.square == second.square and first.multipliers.equal(second.multipliers)
    assert first.dual.equal(second.dual) and first.iterations == second.iterations > 1
    assert torch.get_rng_state().equal(state) and capfd.readouterr() == ("", "")


@both
def test_one_iteration_proposes_something_quietly(solver, capfd):
    program = constraints_of(gaussian_net((10, 16, 16, 1), 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, whole = propose(program, solver, iterations=1), propose(program, solver)
    assert found.iterations == 1 < whole.iterations and capfd.readouterr() == ("", "")
    assert found.square >= 0 and (found.multipliers >= 0).all() and found.multipliers.isfinite().all()
    assert abs(found.square - whole.square) > 0.01 * whole.square


@both
@pytest.mark.parametrize("missing", ["cvxpy", None])
def test_a_missing_package_is_named_with_what_works_without_it(solver, missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing or solver, None)
    with pytest.raises(ImportError, match=f'{missing or solver}.*pip install cvxpy.*solver="structured"'):
        propose(constraints_of(gaussian_net((2, 2, 1), 0)), solver)


@both
@pytest.mark.parametrize("failure", ["raises", "reports", "nan"])
def test_a_solver_that_gives_up_says_so_with_what_to_use_instead(solver, failure, monkeypatch):
    import cvxpy

    def solve(problem, **options):
        if failure == "raises":
            raise cvxpy.error.SolverError("too hard")
        problem._status = "infeasible_inaccurate" if failure == "reports" else "optimal"
        for variable in problem.variables():
            variable.save_value(np.full(variable.shape, math.nan))
        for constraint in problem.constraints:
            constraint.save_dual_value(np.full(constraint.shape, math.nan))

    program = constraints_of(gaussian_net((2, 2, 1), 0))
    monkeypatch.setattr(cvxpy.Problem, "solve", solve)
    with pytest.raises(ArithmeticError, match=f'{solver} (gave up|ended with).*"structured".*eclipse_fast'):
        propose(program, solver)


def test_an_unknown_solver_is_refused_with_the_ones_there_are():
    with pytest.raises(ValueError, match='"clarabel" or "scs", got \'mosek\''):
        propose(constraints_of(gaussian_net((2, 2, 1), 0)), "mosek")
