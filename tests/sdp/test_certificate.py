"""What the certificate of a semidefinite bound proves, what it refuses, and which rounding it allows for."""

import copy
import dataclasses
import math
from fractions import Fraction

import mpmath
import pytest
import torch
from torch import nn

from lipbook import Ball, Bound, CertificateError
from lipbook.layers import Abs, Residual
from lipbook.sdp import certificate, eclipse_fast, interior_point, lipsdp, reference, solve
from lipbook.sdp.certificate import (
    Errors,
    LipSDPCertificate,
    _forming,
    _scales,
    dual_value,
    errors_of,
    proved,
    proves,
)
from lipbook.sdp.constraints import constraints_of, matrix
from lipbook.sdp.start import feasible_dual, feasible_multipliers
from tests.increments import PIECEWISE, SMOOTH, between, drawn, linear

ACTIVATIONS = ["ReLU", "LeakyReLU that turns back", "MaxMin", "GroupSort", "Householder"]


def solved(activation="ReLU", seed=1, sizes=(3, 8, 4, 2), **arguments):
    model, center = drawn(PIECEWISE[activation], seed, sizes)
    if "radius" in arguments:
        arguments["region"] = Ball(center, arguments.pop("radius"))
    return model, lipsdp(model, **arguments)


def with_certificate(bound, **changes):
    return dataclasses.replace(bound, certificate=dataclasses.replace(bound.certificate, **changes))


def assert_refused(bound, model, match="not proved"):
    with pytest.raises(CertificateError, match=match):
        bound.verify(model)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "arguments", [{}, {"logits": 1}, {"logits": (0, 1), "multipliers": "layer"}, {"radius": 0.4}]
)
def test_a_bound_verifies_and_a_value_lowered_by_a_percent_does_not(activation, arguments):
    model, bound = solved(activation, **arguments)
    assert bound.verify(model) is bound and bound.certificate.gap < 1e-5
    assert_refused(dataclasses.replace(bound, value=0.99 * bound.value), model)
    assert dataclasses.replace(bound, value=1.01 * bound.value).verify(model)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_value_below_the_dual_value_is_never_proved(activation):
    """Whatever the multipliers: these are the best, those of a start, and those of other outputs."""
    model, bound = solved(activation)
    low = dataclasses.replace(bound, value=bound.certificate.dual_value * (1 - 1e-12))
    constraints = constraints_of(model)
    square, start = feasible_multipliers(constraints)
    for multipliers in (bound.certificate.multipliers, start, start * bound.value**2 / square):
        for factor in (0.5, 1.0, 1.001, 2.0, 30.0):
            assert_refused(with_certificate(low, multipliers=factor * multipliers), model)


@pytest.mark.parametrize("number", [0, 2, 4])
@pytest.mark.parametrize("factor", [1.01, -1.01])
def test_a_model_with_a_larger_layer_is_refused(number, factor):
    model, bound = solved()
    other = copy.deepcopy(model)
    other[number].weight.data *= factor
    assert_refused(bound, other)


def test_a_model_with_one_larger_weight_is_refused_where_its_bound_is_larger():
    model, bound = solved(sizes=(3, 4, 2))
    larger = 0
    for entry in range(12):
        other = copy.deepcopy(model)
        other[0].weight.data.view(-1)[entry] *= 1.01
        if lipsdp(other).certificate.dual_value > bound.value:
            assert_refused(bound, other)
            larger += 1
    assert larger >= 3


def test_a_smaller_model_is_accepted():
    model, bound = solved()
    assert bound.verify(between(model, (1, 1, 0.99)))


def test_the_certificate_of_another_model_region_or_output_is_refused():
    model, bound = solved("ReLU", 1, (3, 8, 4, 2), radius=0.1)
    wider = dataclasses.replace(bound.region, radius=30.0)
    assert_refused(dataclasses.replace(bound, region=wider), model, "multipliers prove nothing|not proved")
    assert_refused(dataclasses.replace(bound, region=None), model, "multipliers prove nothing|not proved")
    other, _ = drawn(PIECEWISE["ReLU"], 2, (3, 8, 4, 2))
    assert_refused(lipsdp(model), other)
    assert_refused(lipsdp(model), drawn(PIECEWISE["ReLU"], 1, (3, 6, 2))[0], "multipliers prove nothing")
    one = lipsdp(model, 0)
    larger = 0
    for output in (None, 1, (0, 1)):
        if lipsdp(model, output).certificate.dual_value > one.value:
            assert_refused(dataclasses.replace(one, output=output), model)
            larger += 1
    assert larger


def test_steeper_activations_are_refused_with_the_same_multipliers():
    model, bound = solved("ReLU", 1, (3, 6, 2))
    for activation in (nn.LeakyReLU(-0.5), nn.GELU(), Abs()):
        assert_refused(bound, nn.Sequential(model[0], activation, model[2]).eval())


BROKEN = {
    "NaN": lambda m: torch.where(torch.arange(len(m)) == 1, math.nan, m),
    "infinite": lambda m: torch.where(torch.arange(len(m)) == 1, math.inf, m),
    "negative": lambda m: torch.where(torch.arange(len(m)) == 1, -m, m),
    "all zero": torch.zeros_like,
    "in another order": lambda m: m.flip(0),
    "one too many": lambda m: torch.cat([m, m[:1]]),
    "one too few": lambda m: m[:-1],
    "none": lambda m: m[:0],
    "two dimensions": lambda m: m[None],
    "float32": lambda m: m.float(),
    "complex": lambda m: m.to(torch.complex128),
    "a list": lambda m: m.tolist(),
    "nothing": lambda m: None,
}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_multipliers_prove_nothing(broken):
    model, bound = solved()
    multipliers = BROKEN[broken](bound.certificate.multipliers)
    assert_refused(with_certificate(bound, multipliers=multipliers), model, "prove")


@pytest.mark.parametrize("value", [0.0, 1e-300, -1.0, math.nan])
def test_values_that_are_no_bound_are_refused(value):
    model, bound = solved()
    with pytest.raises((CertificateError, ValueError)):
        dataclasses.replace(bound, value=value).verify(model)


def test_infinity_needs_no_multipliers():
    model, bound = solved()
    assert dataclasses.replace(bound, value=math.inf).verify(model)


@pytest.mark.parametrize(
    "changes", [{"kind": "lower"}, {"norm": math.inf}, {"region": Ball(torch.zeros(3), 1.0, 2)}]
)
def test_lower_bounds_other_norms_and_other_regions_are_refused(changes):
    model, bound = solved()
    with pytest.raises(CertificateError):
        dataclasses.replace(bound, **changes).verify(model)


@pytest.mark.parametrize("wrong", ["another", None, 3])
def test_an_unknown_sharing_is_a_certificate_error(wrong):
    model, bound = solved()
    assert_refused(with_certificate(bound, sharing=wrong), model, None)


def test_multipliers_of_layers_are_not_those_of_neurons():
    model, bound = solved("ReLU", 1, (3, 2, 2), multipliers="layer")
    assert_refused(with_certificate(bound, sharing="neuron"), model, "multipliers prove nothing")
    each = bound.certificate.multipliers.expand(2).clone()
    assert with_certificate(bound, sharing="neuron", multipliers=each).verify(model)


@pytest.mark.parametrize(
    "subject", [None, torch.eye(3), nn.Linear(3, 2), nn.Sequential(nn.Linear(4, 2)), nn.Sequential()]
)
def test_what_is_not_the_model_is_a_certificate_error(subject):
    model, bound = solved()
    assert_refused(bound, subject, None)


def test_verifying_needs_no_solver(monkeypatch):
    model, bound = solved("MaxMin")
    for module, name in ((interior_point, "propose"), (reference, "propose"), (solve, "lipsdp")):
        monkeypatch.setattr(module, name, None)
    assert bound.verify(model)


def test_verifying_reads_nothing_but_the_multipliers():
    model, bound = solved()
    assert with_certificate(bound, dual_value=None, gap=None, iterations=None).verify(model)
    bare = LipSDPCertificate(bound.certificate.multipliers)
    assert Bound(bound.value, "upper", method="typed", certificate=bare).verify(model)


# Rounding.


def rational(tensor):
    """A float64 tensor as nested lists of fractions."""
    return [Fraction(x) for x in tensor.tolist()] if tensor.ndim == 1 else [rational(row) for row in tensor]


def times(A, B):
    columns = list(zip(*B))
    return [[sum(map(Fraction.__mul__, row, column)) for column in columns] for row in A]


def exact_matrix(constraints, square, multipliers):
    """M of the stored p, q and C, without rounding."""
    P, Q, C = (rational(part) for part in (constraints.P, constraints.Q, constraints.C))
    weights = [Fraction(multipliers[g].item()) for g in constraints.groups.tolist()]
    size, square = constraints.size, Fraction(square)
    M = [[square * (i == j < constraints.inputs) for j in range(size)] for i in range(size)]
    for i in range(size):
        for j in range(size):
            M[i][j] -= sum(row[i] * row[j] for row in C)
            M[i][j] -= sum(w * (p[i] * q[j] + q[i] * p[j]) for w, p, q in zip(weights, P, Q))
    return M


def frobenius_of_scaled_difference(exact, stored, scales):
    """The Frobenius norm of scales (exact - stored) scales."""
    scales = [Fraction(s) for s in scales.tolist()]
    total = sum(
        (scales[i] * scales[j] * (Fraction(stored[i, j].item()) - x)) ** 2
        for i, row in enumerate(exact)
        for j, x in enumerate(row)
    )
    return math.sqrt(total)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_forming_the_matrix_rounds_is_below_the_margin(activation):
    model, bound = solved(activation, sizes=(2, 4, 4, 2))
    constraints, multipliers = constraints_of(model), bound.certificate.multipliers
    square = math.nextafter(bound.value * bound.value, 0.0)
    M = matrix(constraints, square, multipliers)
    scales = _scales(M)
    exact = exact_matrix(constraints, square, multipliers)
    error = frobenius_of_scaled_difference(exact, M, scales)
    assert 0 < error < _forming(constraints, square, multipliers, scales)


def exact_forms(model):
    """P, Q and C of the weights of a model of linear layers and MaxMin, without rounding, in rationals.

    The coordinates of the library: |x - y| of each pair, and max, min = (x + y +- |x - y|) / 2.
    """
    sizes = [layer.in_features for layer in model if isinstance(layer, nn.Linear)]
    size = sizes[0] + sum(sizes[1:]) // 2
    X = [[Fraction(i == j) for j in range(size)] for i in range(sizes[0])]
    P, Q, new = [], [], sizes[0]
    for layer in model:
        if isinstance(layer, nn.Linear):
            X = times(rational(layer.weight.detach().double()), X)
            continue
        following = []
        for x, y in zip(X[::2], X[1::2]):
            e = [Fraction(j == new) for j in range(size)]
            d = [a - b for a, b in zip(x, y)]
            P.append([a + b for a, b in zip(e, d)])
            Q.append([b - a for a, b in zip(e, d)])
            for sign in (1, -1):
                following.append([(a + b + sign * c) / 2 for a, b, c in zip(x, y, e)])
            new += 1
        X = following
    return P, Q, X


@pytest.mark.parametrize("seed", range(3))
def test_the_errors_of_computed_forms_are_below_their_bounds(seed):
    """p, q and C are sums of products through the layers; the exact ones are rational."""
    model, _ = drawn(PIECEWISE["MaxMin"], seed, (2, 4, 6, 4, 2))
    constraints, bound = constraints_of(model), lipsdp(model)
    scales = _scales(matrix(constraints, bound.value**2, bound.certificate.multipliers))
    P, Q, C = exact_forms(model)
    bounds = errors_of(constraints, scales)
    seen, row = 0.0, 0
    for layer, p_error, q_error in zip(constraints.layers, bounds.p, bounds.q):
        rows = slice(row, row + len(layer.p))
        for exact, stored, allowed in ((P, constraints.P, p_error), (Q, constraints.Q, q_error)):
            error = column_scaled(exact[rows], stored[rows], scales)
            assert error <= allowed
            seen = max(seen, error)
        row = rows.stop
    assert 0 < column_scaled(C, constraints.C, scales) <= bounds.C and seen > 0


def column_scaled(exact, stored, scales):
    scales = [Fraction(s) for s in scales.tolist()]
    pairs = (
        (Fraction(stored[i, j].item()) - x, scales[j])
        for i, row in enumerate(exact)
        for j, x in enumerate(row)
    )
    return math.sqrt(sum((d * s) ** 2 for d, s in pairs))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_proved_inequality_holds_in_40_digits(activation):
    """The least eigenvalue of M from the stored forms, at a value that only just passes."""
    model, bound = solved(activation, sizes=(2, 4, 4, 2))
    constraints = constraints_of(model)
    square = math.nextafter(bound.value * bound.value, 0.0)
    exact = exact_matrix(constraints, square, bound.certificate.multipliers)
    with mpmath.workdps(40):
        M = mpmath.matrix([[mpmath.mpf(x.numerator) / x.denominator for x in row] for row in exact])
        mpmath.cholesky(M)  # raises where a pivot is not positive


@pytest.mark.parametrize("source", ["_forming", "errors_of"])
def test_each_source_of_rounding_is_part_of_the_margin(source, monkeypatch):
    """A loose value is proved with room to spare, and not any more if one of them is as large as M."""
    model, bound = solved("MaxMin")
    loose = with_certificate(
        dataclasses.replace(bound, value=1.5 * bound.value), multipliers=1.5 * bound.certificate.multipliers
    )
    assert loose.verify(model)
    whole = {"_forming": 1.0, "errors_of": Errors([1.0, 1.0], [1.0, 1.0], 1.0)}[source]
    monkeypatch.setattr(certificate, source, lambda *arguments: whole)
    assert_refused(loose, model)


def test_more_caution_proves_less():
    model, bound = solved("MaxMin")
    constraints, multipliers = constraints_of(model), bound.certificate.multipliers
    assert proves(constraints, bound.value, multipliers, caution=2.0)
    assert not proves(constraints, bound.value, multipliers, caution=1e7)


@pytest.mark.parametrize("scale", [1e-20, 1e-8, 1e8, 1e20])
@pytest.mark.parametrize("activation", ["ReLU", "MaxMin"])
def test_extreme_weights_scale_the_bound(activation, scale):
    model, bound = solved(activation)
    for factors in ((scale, 1, 1), (1, 1, scale), (scale, 1 / scale, scale)):
        other = between(model, factors)
        found = lipsdp(other).verify(other)
        assert found.value == pytest.approx(math.prod(factors) * bound.value, rel=1e-5)
        assert found.certificate.gap < 1e-5
        closed = eclipse_fast(other).verify(other)
        assert closed.value == pytest.approx(math.prod(factors) * eclipse_fast(model).value, rel=1e-5)


@pytest.mark.parametrize(
    "factors",
    [(1e100, 1, 1), (1, 1e100, 1), (1e-100, 1, 1), (1e-170, 1, 1), (1e200, 1e-200, 1), (1e300, 1e300, 1)],
)
@pytest.mark.parametrize("bound_of", [lipsdp, eclipse_fast])
def test_weights_beyond_float64_squared_are_an_arithmetic_error_or_proved(factors, bound_of):
    model, bound = solved()
    other = between(model, factors)
    try:
        found = bound_of(other)
    except ArithmeticError as error:
        assert "too far apart in size" in str(error)
    else:
        assert found.verify(other).value >= math.prod(factors) * bound.certificate.dual_value * (1 - 1e-12)


@pytest.mark.parametrize("least", [-3, -12])
def test_wide_ranges_of_weights_within_a_layer_are_proved(least):
    model, _ = drawn(PIECEWISE["ReLU"], 1, (3, 6, 6, 2))
    for number in (0, 2):
        model[number].weight.data *= torch.logspace(least, 0, 6).double()[:, None]
    bound = lipsdp(model).verify(model)
    optimum = math.sqrt(reference.propose(constraints_of(model), "clarabel").square)
    assert bound.value == pytest.approx(optimum, rel=1e-5)
    assert bound.certificate.gap < (1e-4 if least == -3 else 1)  # the dual side gives up first


# The dual value.


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("multipliers", ["neuron", "layer"])
def test_the_dual_value_is_below_what_a_general_solver_reaches(activation, multipliers):
    """Clarabel's value is within 1e-6 of the optimum, relatively, in the square."""
    model, _ = drawn(PIECEWISE[activation], 1, (3, 4, 4, 2))
    least = lipsdp(model, multipliers=multipliers).certificate.dual_value
    constraints = constraints_of(model, multipliers=multipliers)
    square = reference.propose(constraints, "clarabel").square
    assert least <= math.sqrt(square) * (1 + 1e-6)
    assert least == pytest.approx(math.sqrt(square), rel=1e-5)


def test_the_dual_value_of_one_neuron_is_its_constant():
    model = nn.Sequential(linear([[3.0, 4.0]]), nn.ReLU(), linear([[2.0]]))
    found = lipsdp(model)
    assert found.certificate.dual_value <= 10 <= found.value
    assert found.certificate.gap == (found.value - found.certificate.dual_value) / found.value


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_matrix_gives_a_dual_value_above_the_optimum(activation):
    model, bound = solved(activation, sizes=(3, 4, 4, 2))
    constraints = constraints_of(model)
    inner, generator = feasible_dual(constraints), torch.Generator().manual_seed(0)
    best = interior_point.propose(constraints).dual
    size = constraints.size
    noise = torch.randn(size, size, generator=generator).double()
    spike = torch.zeros(size, size).double()
    spike[-1, -1] = 1.0
    seen = []
    for Z in (
        *(-torch.eye(size).double(), torch.zeros(size, size).double(), torch.eye(size).double()),
        *(torch.full((size, size), x).double() for x in (math.nan, math.inf)),
        *(best + 1e-6 * noise, best + 1e-3 * noise, best + noise @ noise.T),
        *(best + scale * spike for scale in (1e-6, 1e-4, 1e-2, 1.0, 100.0)),
        *(-best, 1e20 * best, 1e-20 * best, inner, inner + noise, constraints.C.T @ constraints.C),
    ):
        value = dual_value(constraints, Z)
        assert 0 <= value <= bound.value
        seen.append(value)
    assert max(seen) > 0.99 * bound.value and min(seen) < 0.9 * bound.value


@pytest.mark.parametrize("shared", ["neuron", "layer"])
def test_a_matrix_that_breaks_one_constraint_is_not_taken_as_it_is(shared):
    """More variance of one coordinate raises <Z, C'C> and breaks its constraint alone."""
    model, _ = drawn(PIECEWISE["ReLU"], 1, (3, 4, 4, 2))
    constraints = constraints_of(model, multipliers=shared)
    bound = lipsdp(model, multipliers=shared)
    Z = interior_point.propose(constraints).dual.clone()
    for last in range(3, constraints.size):
        raised = Z.clone()
        raised[last, last] += Z[last, last]
        assert dual_value(constraints, raised) <= bound.value


# The inner point.


def test_a_proposal_outside_moves_towards_the_inner_point_until_it_is_proved():
    model, bound = solved()
    constraints = constraints_of(model)
    inner = tuple(2 * part for part in feasible_multipliers(constraints))
    for proposal in (
        interior_point.propose(constraints)._replace(square=0.0),
        interior_point.propose(constraints)._replace(multipliers=-bound.certificate.multipliers),
        interior_point.propose(constraints)._replace(multipliers=0 * bound.certificate.multipliers),
    ):
        value, multipliers = proved(constraints, proposal, inner)
        assert proves(constraints, value, multipliers) and value >= bound.certificate.dual_value


@pytest.mark.parametrize("activation", SMOOTH)
def test_smooth_activations_in_small_balls_are_proved_with_a_small_gap(activation):
    model, center = drawn(lambda width: SMOOTH[activation](), 1, (2, 5, 4, 2))
    for radius in (1e-6, 1e-2, 1.0):
        bound = lipsdp(model, region=Ball(center, radius)).verify(model)
        assert bound.certificate.gap < 1e-5


def test_residual_blocks_are_proved_and_a_lowered_value_refused():
    inner, _ = drawn(PIECEWISE["MaxMin"], 3, (4, 4, 4))
    model, _ = drawn(PIECEWISE["ReLU"], 1, (3, 4, 4, 2))
    model = nn.Sequential(*model[:2], Residual(inner), Residual(inner), *model[2:]).eval()
    bound = lipsdp(model).verify(model)
    assert bound.certificate.gap < 1e-5
    assert_refused(dataclasses.replace(bound, value=0.99 * bound.value), model)
