"""Certified radii, accuracies and constants of pairs, against true distances to another class."""

import dataclasses
import math
from fractions import Fraction

import cvxpy
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import nn

from lipbook import Ball, Bound, CertificateError, UnsupportedLayerError
from lipbook.bounds import gradient_lower_bound, local_bound, product_bound
from lipbook.contracts.variants import changed_between, snapshot
from lipbook.layers import (
    Abs,
    AOLConv2d,
    AOLLinear,
    GroupSort,
    Householder,
    LipschitzResidual,
    MaxMin,
    Normalize,
    OrthogonalConv2d,
    OrthogonalLinear,
    Residual,
    SandwichLinear,
    SLLConv2d,
    SLLLinear,
)
from lipbook.sdp import lipsdp
from lipbook.training import certified_accuracy, certified_radius, certify, pair_constants
from tests.oracles import exact_forward, regions

IDENTITY = nn.Sequential(nn.Linear(2, 2, bias=False))
nn.init.eye_(IDENTITY[0].weight)


def drawn(seed):
    return torch.Generator().manual_seed(seed)


def fill(model, seed, scale=1.0):
    """Normal weights of variance scale^2 / inputs and biases of variance scale^2 / 4."""
    generator = drawn(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale / fan_in**0.5)
    return model.eval()


def linear_classifier(features, classes, seed, scale=1.0, dtype=torch.float32):
    return fill(nn.Sequential(nn.Linear(features, classes)), seed, scale).to(dtype)


@st.composite
def networks(draw):
    """Small networks of ReLU or MaxMin with 2 or 3 inputs and 2 to 4 classes."""
    features, width = draw(st.integers(2, 3)), draw(st.sampled_from([2, 4, 6]))
    depth, classes = draw(st.integers(1, 2)), draw(st.integers(2, 4))
    kind = draw(st.sampled_from([nn.ReLU, MaxMin]))
    sizes = [features] + [width] * depth
    layers = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), kind())]
    return fill(nn.Sequential(*layers, nn.Linear(width, classes)), draw(st.integers(0, 2**31)), 1.5)


def points(features, seed, count=5):
    return torch.randn(count, features, generator=drawn(seed), dtype=torch.float64)


# The true distance to another class: the nearest point of each activation region where another logit is at
# least as large, by the least distance programming of Lawson and Hanson.


def polytopes(model):
    """(normals, offsets, jacobian, offset) of each activation region {u: normals u + offsets >= 0}."""
    for region in regions(model):
        signs = iter(region.pattern)
        weight, bias = np.eye(len(region.point)), np.zeros(len(region.point))
        planes = []
        for layer in model:
            if isinstance(layer, nn.Linear):
                own = layer.weight.detach().double().numpy()
                weight, bias = own @ weight, own @ bias + layer.bias.detach().double().numpy()
            elif isinstance(layer, nn.ReLU):
                for k in range(len(bias)):
                    sign = next(signs)
                    planes.append((sign * weight[k], sign * bias[k]))
                    if sign < 0:
                        weight[k], bias[k] = 0, 0
            else:
                for k in range(0, len(bias), 2):
                    sign = next(signs)
                    planes.append((sign * (weight[k] - weight[k + 1]), sign * (bias[k] - bias[k + 1])))
                    if sign < 0:
                        weight[[k, k + 1]], bias[[k, k + 1]] = weight[[k + 1, k]], bias[[k + 1, k]]
        yield np.stack([p for p, _ in planes]), np.array([b for _, b in planes]), weight, bias


def distance_to_polytope(point, normals, offsets):
    """min |u - point| over normals u + offsets >= 0, infinite where there is no such u."""
    lengths = np.linalg.norm(normals, axis=1)
    if (offsets[lengths == 0] < 0).any():
        return math.inf
    normals, offsets = (
        part[lengths > 0] / lengths[lengths > 0, None] for part in (normals, offsets[:, None])
    )
    needed = -(normals @ point + offsets[:, 0])
    if (needed <= 0).all():
        return 0.0
    system = np.vstack([normals.T, needed])
    target = np.append(np.zeros(len(point)), 1.0)
    solution, rest = nnls(system, target)
    if rest < 1e-9:
        return math.inf
    gap = system @ solution - target
    return float(np.linalg.norm(gap[:-1] / gap[-1]))


def true_distance(pieces, point, y):
    nearest = math.inf
    for normals, offsets, weight, bias in pieces:
        for j in set(range(len(bias))) - {y}:
            rows = np.vstack([normals, weight[j] - weight[y]])
            nearest = min(nearest, distance_to_polytope(point, rows, np.append(offsets, bias[j] - bias[y])))
    return nearest


def true_class(model, point):
    logits = exact_forward(model, point)
    return logits.index(max(logits))


@given(networks(), st.integers(0, 2**31))
def test_a_radius_is_at_most_the_distance_to_another_class(model, seed):
    inputs = points(model[0].in_features, seed, count=3)
    pieces = list(polytopes(model))
    radii = {rule: certified_radius(model, inputs, rule=rule) for rule in ("pairs", "vector")}
    for k, point in enumerate(inputs):
        truth = true_distance(pieces, point.numpy(), true_class(model, point))
        assert radii["vector"][k] <= truth + 1e-9
        assert radii["pairs"][k] <= truth + 1e-9
        assert radii["pairs"][k] >= radii["vector"][k] * (1 - 1e-12)


@settings(max_examples=5)
@given(networks(), st.integers(0, 2**31))
def test_a_radius_from_lipsdp_is_at_most_the_distance_to_another_class(model, seed):
    inputs = points(model[0].in_features, seed, count=3)
    pieces = list(polytopes(model))
    radii = certified_radius(model, inputs, lipsdp(model, logits="pairs"))
    assert (radii >= certified_radius(model, inputs) * (1 - 1e-3)).all()
    for radius, point in zip(radii.tolist(), inputs):
        assert radius <= true_distance(pieces, point.numpy(), true_class(model, point)) + 1e-9


@settings(max_examples=5)
@given(networks(), st.integers(0, 2**31))
def test_a_radius_from_a_local_bound_is_at_most_the_distance_to_another_class(model, seed):
    inputs = points(model[0].in_features, seed, count=2)
    pieces = list(polytopes(model))
    bounds = local_bound(model, inputs[0], 0.5, norm=2, logits="pairs")
    for radius, point in zip(certified_radius(model, inputs, bounds).tolist(), inputs):
        assert radius <= 0.5
        assert radius <= true_distance(pieces, point.numpy(), true_class(model, point)) + 1e-9


# Linear classifiers: the distance has a formula, and a radius is rounded down from it.


@given(
    st.integers(1, 6),
    st.integers(2, 5),
    st.integers(0, 2**31),
    st.sampled_from([1e-30, 1e-6, 1.0, 1e6, 1e30]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_the_radius_of_a_linear_classifier_is_the_distance_rounded_down(
    features, classes, seed, scale, dtype
):
    if dtype == torch.float16:
        scale = min(max(scale, 1e-2), 1e2)
    model = linear_classifier(features, classes, seed, scale, dtype)
    inputs = points(features, seed + 1).to(dtype)
    radii = certified_radius(model, inputs)
    rows = [[Fraction(w) for w in row] for row in model[0].weight.double().tolist()]
    for radius, point in zip(radii.tolist(), inputs):
        logits = exact_forward(model, point)
        y = logits.index(max(logits))
        squares = [
            (logits[y] - logits[j]) ** 2 / apart
            for j in range(classes)
            if j != y and (apart := sum((a - b) ** 2 for a, b in zip(rows[y], rows[j])))
        ]
        if not squares:
            continue  # all rows are equal
        assert Fraction(radius) ** 2 <= min(squares)
        clear = min(logits[y] - logits[j] for j in range(classes) if j != y) > 1e-5 * scale
        assert not clear or Fraction(radius) ** 2 >= min(squares) * Fraction(1 - 1e-9) ** 2


@pytest.mark.parametrize("seed", range(4))
def test_the_radius_of_a_linear_classifier_is_what_a_quadratic_program_finds(seed):
    model = linear_classifier(4, 3, seed)
    weight, bias = (p.detach().double().numpy() for p in model.parameters())
    for point, radius in zip(points(4, seed), certified_radius(model, points(4, seed)).tolist()):
        y, distances = true_class(model, point), []
        for j in {0, 1, 2} - {y}:
            moved = cvxpy.Variable(4)
            apart = (weight[j] - weight[y]) @ moved + bias[j] - bias[y] >= 0
            problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.norm(moved - point.numpy())), [apart])
            distances.append(problem.solve(solver=cvxpy.CLARABEL))
        assert radius == pytest.approx(min(distances), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_the_radius_of_a_linear_classifier_in_norm_inf_has_the_one_norm_below(seed):
    model = linear_classifier(4, 3, seed)
    bounds = product_bound(model, norm=math.inf, logits="pairs")
    weight = model[0].weight.detach().double()
    for point, radius in zip(points(4, seed), certified_radius(model, points(4, seed), bounds).tolist()):
        logits = [float(z) for z in exact_forward(model, point)]
        y = true_class(model, point)
        others = {0, 1, 2} - {y}
        truth = min((logits[y] - logits[j]) / (weight[y] - weight[j]).abs().sum().item() for j in others)
        assert truth * (1 - 1e-9) <= radius <= truth * (1 + 1e-14)


@given(networks(), st.integers(0, 2**31))
def test_the_margins_of_a_network_are_rounded_down(model, seed):
    inputs = points(model[0].in_features, seed)
    constants = product_bound(model, logits="pairs")
    for radius, point in zip(certified_radius(model, inputs).tolist(), inputs):
        logits = exact_forward(model, point)
        y = logits.index(max(logits))
        others = [j for j in range(len(logits)) if j != y]
        exact = min((logits[y] - logits[j]) / Fraction(constants[min(y, j), max(y, j)].value) for j in others)
        assert Fraction(radius) <= exact
        assert float(exact) < 1e-6 or radius >= float(exact) * (1 - 1e-9)


# Where nothing is certain.


@pytest.mark.parametrize("rule", ["pairs", "vector"])
def test_a_class_that_rounding_gets_wrong_is_not_certified(rule):
    model = nn.Sequential(nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1e16, 1.0, -1e16], [0.0, 0.0, 0.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 0.5]))
    inputs = torch.ones(1, 3, dtype=torch.float64)
    assert exact_forward(model, inputs[0]) == [1, Fraction(1, 2)]
    assert certified_radius(model, inputs, rule=rule).tolist() == [0.0]
    for label in (0, 1):
        assert certified_accuracy(model, inputs, torch.tensor([label]), 0.0, rule=rule).count == 0


@given(st.integers(0, 2**31), st.sampled_from([1.0, 1e8, 1e15]))
def test_where_a_radius_is_positive_the_label_that_counts_is_the_exact_class(seed, offset):
    model = linear_classifier(4, 3, seed, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight[:, 0] += offset  # a term that all logits share, and that rounds
    inputs = points(4, seed + 1, count=8)
    exact = torch.tensor([true_class(model, point) for point in inputs])
    certain = certified_radius(model, inputs) > 0
    assert certified_accuracy(model, inputs, exact, 0.0).count == certain.sum()
    assert certified_accuracy(model, inputs, (exact + 1) % 3, 0.0).count == 0


@pytest.mark.parametrize("rule", ["pairs", "vector"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_tie_and_a_point_on_the_boundary_are_never_certified(rule, dtype):
    inputs = torch.tensor([[1.0, 1.0], [0.0, -0.0], [-3.5, -3.5]], dtype=dtype)
    assert certified_radius(IDENTITY, inputs, rule=rule).tolist() == [0.0, 0.0, 0.0]
    for label in (0, 1):
        labels = torch.full((3,), label)
        assert certified_accuracy(IDENTITY, inputs, labels, 0.0, rule=rule).count == 0


def test_one_unit_in_the_last_place_of_a_large_logit_is_not_certified_against_its_rounding():
    model = nn.Sequential(nn.Linear(2, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.zero_()
    ahead = 1.0 + 2.0**-52
    radius = certified_radius(model, torch.tensor([[ahead, 1.0]], dtype=torch.float64)).item()
    assert 0 <= radius <= 2.0**-52 / math.sqrt(2)


def test_where_logits_differ_by_a_constant_no_input_has_another_class():
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.copy_(torch.tensor([1.0, 0.0]))
    assert certified_radius(model, torch.zeros(1, 2)).item() > 1e12  # the rows may be rounded
    nn.init.zeros_(model[0].weight)
    assert certified_radius(model, torch.zeros(1, 2)).tolist() == [math.inf]
    assert certified_radius(model, torch.zeros(1, 2), rule="vector").tolist() == [math.inf]
    nn.init.zeros_(model[0].bias)
    assert certified_radius(model, torch.zeros(1, 2)).tolist() == [0.0]


def test_what_overflows_certifies_nothing():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(torch.tensor([[1e200, 1e199], [0.0, 1e200]], dtype=torch.float64))
            layer.bias.zero_()
    inputs = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert certified_radius(model, inputs).tolist() == [0.0]
    assert certified_radius(model, inputs, rule="vector").tolist() == [0.0]


def test_subnormal_weights_certify_nothing_that_is_not_so():
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(5e-324 * torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    radius = certified_radius(model, torch.tensor([[3.0, 0.0]], dtype=torch.float64)).item()
    assert 0 <= radius <= 3 / math.sqrt(2)


# The rules.


def test_the_factors_of_the_vector_rule_are_the_smallest_that_hold():
    inputs = torch.tensor([[3.0, 1.0]], dtype=torch.float64)  # the nearest tie is (2, 2)
    radius = certified_radius(IDENTITY, inputs, rule="vector").item()
    assert math.sqrt(2) * (1 - 1e-9) <= radius <= math.sqrt(2)
    bound = product_bound(IDENTITY, norm=math.inf)
    radius = certified_radius(IDENTITY, inputs, bound, rule="vector").item()
    assert 1 - 1e-9 <= radius <= 1.0


@pytest.mark.parametrize("angle", [0.5, 2.8])
def test_unit_rows_at_any_angle_have_the_distance_by_pairs_and_no_more_by_the_vector(angle):
    rows = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(rows)
    inputs = points(2, seed=0, count=20)
    margins = (inputs @ (rows[0] - rows[1])).abs()
    truth = margins / (rows[0] - rows[1]).norm()
    pairs, vector = (certified_radius(model, inputs, rule=rule) for rule in ("pairs", "vector"))
    torch.testing.assert_close(pairs, truth, rtol=1e-9, atol=0)
    assert (vector <= truth).all()
    # The margin by sqrt(2), as if unit rows were an orthogonal head, is too much beyond a right angle.
    assert (margins / math.sqrt(2) > truth).all() == (angle > math.pi / 2)


@pytest.mark.parametrize("std", [0.25, 0.3081, 3.0])
def test_a_scaling_of_the_inputs_scales_the_radius(std):
    body = linear_classifier(4, 3, seed=0, dtype=torch.float64)
    scaling = Normalize(0.125, std)
    inputs = points(4, seed=1)
    scaled = (inputs - 0.125) / scaling.std.double()
    radii = certified_radius(nn.Sequential(scaling, *body), inputs)
    torch.testing.assert_close(
        radii, scaling.std.double() * certified_radius(body, scaled), rtol=1e-9, atol=1e-12
    )


def test_the_constant_of_the_pair_with_the_predicted_class_divides():
    model = nn.Sequential(nn.Linear(3, 3, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([1.0, 10.0, 100.0])))
    inputs = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    expected = [1 / math.hypot(1, 100), 10 / math.hypot(10, 100), 100 / math.hypot(10, 100)]
    torch.testing.assert_close(certified_radius(model, inputs).tolist(), expected, rtol=1e-9, atol=0)


# Bounds that are handed in.


def in_ball(bounds, region):
    return {pair: dataclasses.replace(bound, region=region) for pair, bound in bounds.items()}


@pytest.mark.parametrize("ball_norm", [2, math.inf])
@pytest.mark.parametrize("norm", [2, math.inf])
@given(seed=st.integers(0, 2**31))
def test_a_radius_from_a_bound_over_a_ball_stays_inside_it(ball_norm, norm, seed):
    model = linear_classifier(3, 2, seed=0, scale=1e-6)
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([1.0, 0.0]))  # so that the ball alone ends the radius
    center = points(3, seed, count=1)[0]
    inputs = center + 0.3 * points(3, seed + 1, count=4)
    bounds = in_ball(product_bound(model, norm=norm, logits="pairs"), Ball(center, 0.5, ball_norm))
    for radius, point in zip(certified_radius(model, inputs, bounds).tolist(), inputs):
        gaps = [abs(Fraction(a) - Fraction(b)) for a, b in zip(point.tolist(), center.tolist())]
        if ball_norm == math.inf:
            room = Fraction(1, 2) - max(gaps)
            assert radius == 0 or Fraction(radius) <= room
            assert radius >= room - Fraction(1, 10**9)
        elif norm == 2:
            assert radius == 0 or sum(gap**2 for gap in gaps) <= (Fraction(1, 2) - Fraction(radius)) ** 2
            assert radius >= 0.5 - math.sqrt(sum(gap**2 for gap in gaps)) - 1e-9
        else:  # the corner of the small ball that is furthest out is in the large one
            assert radius == 0 or sum((gap + Fraction(radius)) ** 2 for gap in gaps) <= Fraction(1, 4)


def test_an_input_at_the_border_of_the_ball_or_outside_is_not_certified():
    model = linear_classifier(2, 2, seed=0)
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([100.0, 0.0]))
    inputs = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -1.5], [1e200, 0.0]], dtype=torch.float64)
    for norm in (2, math.inf):
        bounds = in_ball(product_bound(model, logits="pairs"), Ball(torch.zeros(2), 1.0, norm))
        radii = certified_radius(model, inputs, bounds).tolist()
        assert radii[0] == pytest.approx(1.0) and radii[0] <= 1.0
        assert radii[1:] == [0.0, 0.0, 0.0]


def test_a_function_that_is_flat_in_the_ball_and_steep_beyond_is_certified_to_the_border_only():
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), ([[1.0]], [-1.0], [[0.0], [100.0]], [1.0, 0.0])):
            parameter.copy_(torch.tensor(value))
    inputs = torch.zeros(1, 1, dtype=torch.float64)  # another class from 1.01 on
    for norm in (2, math.inf):
        bounds = local_bound(model, inputs[0], 0.5, norm=norm, logits="pairs")
        assert certified_radius(model, inputs, bounds).item() == pytest.approx(0.5)
        bounds = local_bound(model, inputs[0], 2.0, norm=norm, logits="pairs")
        assert certified_radius(model, inputs, bounds).item() <= 1.01
        bound = local_bound(model, inputs[0], 0.5, norm=norm)
        assert certified_radius(model, inputs, bound, rule="vector").item() <= 0.5


def one_channel(padding_mode="zeros", stride=1):
    convolution = nn.Conv2d(1, 2, 3, padding=1, padding_mode=padding_mode, stride=stride)
    features = 2 * 64 // stride**2
    return fill(nn.Sequential(convolution, nn.Flatten(), nn.Linear(features, 3)), seed=0)


def test_a_bound_of_another_image_size_is_refused():
    model = one_channel()
    with torch.no_grad():
        model[0].weight.fill_(1.0)  # at 1 x 64 only its middle row acts
    inputs = torch.rand(2, 1, 8, 8, generator=drawn(0))
    pairs = product_bound(model, logits="pairs", input_shape=(1, 1, 64))
    assert pairs[0, 1].value < product_bound(model, logits=(0, 1), input_shape=(1, 8, 8)).value / 1.5
    with pytest.raises(ValueError, match=r"\(1, 1, 64\)"):
        certified_radius(model, inputs, pairs)
    vector = product_bound(model, input_shape=(1, 1, 64))
    with pytest.raises(ValueError, match=r"\(1, 1, 64\)"):
        certified_radius(model, inputs, vector, rule="vector")
    fits = product_bound(model, logits="pairs", input_shape=(1, 8, 8))
    assert torch.equal(certified_radius(model, inputs, fits), certified_radius(model, inputs))


CLASSES3 = linear_classifier(3, 3, seed=0)
GIVEN = product_bound(CLASSES3, logits="pairs")
SCALED = {pair: dataclasses.replace(bound, value=0.5 * bound.value) for pair, bound in GIVEN.items()}
BARE = {pair: dataclasses.replace(bound, certificate=None) for pair, bound in GIVEN.items()}
SWAPPED = {(0, 1): GIVEN[0, 2], (0, 2): GIVEN[0, 1], (1, 2): GIVEN[1, 2]}
MIXED = GIVEN | {(0, 1): dataclasses.replace(GIVEN[0, 1], region=Ball(torch.zeros(3), 1.0))}
NORMS = GIVEN | {(0, 1): product_bound(CLASSES3, norm=math.inf, logits=(0, 1))}
LOWER = gradient_lower_bound(CLASSES3, torch.zeros(1, 3), logits="pairs")
VECTOR = product_bound(CLASSES3)


@pytest.mark.parametrize(
    ("bound", "rule", "error", "word"),
    [
        (SCALED, "pairs", CertificateError, "not proved"),
        (BARE, "pairs", CertificateError, "no certificate"),
        (SWAPPED, "pairs", ValueError, "logits 0 - 1"),
        (LOWER, "pairs", ValueError, "upper"),
        (MIXED, "pairs", ValueError, "regions"),
        (NORMS, "pairs", ValueError, "norms"),
        ({(0, 1): GIVEN[0, 1]}, "pairs", ValueError, "all 3 pairs"),
        (GIVEN | {(0, 3): GIVEN[0, 1]}, "pairs", ValueError, "4 entries"),
        (VECTOR, "pairs", ValueError, 'rule="vector"'),
        (GIVEN, "vector", TypeError, "dict"),
        (GIVEN[0, 1], "vector", ValueError, "output vector"),
        (dataclasses.replace(VECTOR, value=0.5 * VECTOR.value), "vector", CertificateError, "not proved"),
        (gradient_lower_bound(CLASSES3, torch.zeros(1, 3)), "vector", ValueError, "upper"),
    ],
)
def test_a_bound_that_does_not_prove_what_the_rule_needs_is_refused(bound, rule, error, word):
    with pytest.raises(error, match=word):
        certified_radius(CLASSES3, torch.zeros(1, 3), bound, rule)


@pytest.mark.parametrize("rule", ["pairs", "vector"])
def test_a_bound_of_another_model_is_refused(rule):
    other = linear_classifier(3, 3, seed=0, scale=1e-3)
    bound = product_bound(other, logits="pairs") if rule == "pairs" else product_bound(other)
    with pytest.raises(CertificateError):
        certified_radius(CLASSES3, torch.zeros(1, 3), bound, rule)


def test_the_product_bounds_of_the_model_give_the_radius_that_it_has_without_them():
    inputs = points(3, seed=1)
    assert torch.equal(certified_radius(CLASSES3, inputs, GIVEN), certified_radius(CLASSES3, inputs))
    given = certified_radius(CLASSES3, inputs, VECTOR, rule="vector")
    assert torch.equal(given, certified_radius(CLASSES3, inputs, rule="vector"))


# Models of every layer: no step of the size of the radius, and no way to an input of another class, leads
# out of the class sooner.


def deep(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*(layer() for layer in layers)).eval()


IMAGES = {
    "orthogonal convolution": (
        lambda: OrthogonalConv2d(1, 4, 3),
        MaxMin,
        nn.Flatten,
        lambda: nn.Linear(256, 3),
    ),
    "AOL convolution": (lambda: AOLConv2d(1, 4, 3), MaxMin, nn.Flatten, lambda: AOLLinear(256, 3)),
    "SLL convolution": (lambda: SLLConv2d(1, 3), nn.Flatten, lambda: OrthogonalLinear(64, 3)),
    "scaling, nested": (
        lambda: Normalize(0.5, 0.25),
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU())),
        nn.Flatten,
        lambda: nn.Linear(72, 3),
    ),
    "batch norm": (
        lambda: nn.Conv2d(1, 2, 3, stride=2),
        lambda: nn.BatchNorm2d(2),
        nn.ReLU,
        lambda: nn.AvgPool2d(3),
        nn.Flatten,
        nn.Dropout,
        lambda: nn.Linear(2, 3),
    ),
}
VECTORS = {
    "residual": (lambda: Residual(nn.Linear(8, 8)), MaxMin, lambda: nn.Linear(8, 3)),
    "residual of two": (
        lambda: Residual(nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 8))),
        lambda: nn.Linear(8, 3),
    ),
    "sandwich": (lambda: SandwichLinear(8, 8), lambda: SandwichLinear(8, 4), lambda: nn.Linear(4, 3)),
    "SLL": (lambda: SLLLinear(8, 8), lambda: AOLLinear(8, 6), Abs, lambda: nn.Linear(6, 3)),
    "Lipschitz residual": (lambda: LipschitzResidual(8, 6, 4, lipschitz=2.0), lambda: OrthogonalLinear(4, 3)),
    "activations": (
        lambda: nn.Linear(8, 8),
        lambda: Householder(8),
        lambda: GroupSort(4),
        nn.GELU,
        nn.Tanh,
        lambda: nn.Linear(8, 3),
    ),
}


@pytest.mark.parametrize("name", [*IMAGES, *VECTORS])
def test_no_step_and_no_way_to_another_class_is_shorter_than_the_radius(name):
    model = deep(*(IMAGES | VECTORS)[name]).double()
    shape = (1, 8, 8) if name in IMAGES else (8,)
    inputs = torch.rand(12, *shape, generator=drawn(0), dtype=torch.float64) * 4 - 2
    radii = certified_radius(model, inputs)
    assert (radii > 0).all()
    logits = model(inputs.requires_grad_())
    classes, top = logits.argmax(dim=1), logits.topk(2).values
    (gradients,) = torch.autograd.grad((top[:, 0] - top[:, 1]).sum(), inputs)
    inputs = inputs.detach()
    steps = gradients.flatten(1) / gradients.flatten(1).norm(dim=1, keepdim=True)
    moved = inputs - (radii[:, None] * (1 - 1e-9) * steps).reshape(inputs.shape)
    assert torch.equal(model(moved).argmax(dim=1), classes)
    here, there = (classes[:, None] != classes).nonzero(as_tuple=True)
    far = torch.ones(len(here), dtype=torch.float64)
    near = torch.zeros_like(far)
    for _ in range(20 if len(far) else 0):
        middle = (near + far) / 2
        ways = inputs[here] + middle.reshape(-1, *[1] * len(shape)) * (inputs[there] - inputs[here])
        same = model(ways).argmax(dim=1) == classes[here]
        near, far = torch.where(same, middle, near), torch.where(same, far, middle)
    assert (far * (inputs[here] - inputs[there]).flatten(1).norm(dim=1) >= radii[here]).all()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_a_linear_convolutional_classifier_has_no_radius_above_its_distance(mode, stride):
    model = one_channel(mode, stride)
    inputs = torch.rand(5, 1, 8, 8, generator=drawn(1))
    double = one_channel(mode, stride).double()
    units = torch.eye(64, dtype=torch.float64).reshape(64, 1, 8, 8)
    with torch.no_grad():
        rows = (double(units) - double(0 * units[:1])).T
        logits = double(inputs.double())
    top = logits.max(dim=1)
    gaps = (top.values[:, None] - logits) / (rows[top.indices][:, None] - rows).norm(dim=-1)
    truth = gaps.scatter(1, top.indices[:, None], math.inf).amin(dim=1)
    radii = certified_radius(model, inputs)
    assert (radii > 0).all() and (radii <= truth * (1 + 1e-12)).all()


# How it is called.


def test_the_form_of_the_inputs_does_not_matter():
    model = deep(lambda: nn.Linear(4, 6), MaxMin, lambda: nn.Linear(6, 3))
    inputs = torch.rand(1200, 4, generator=drawn(0)).half()  # more than one chunk
    radii = certified_radius(model, inputs)
    assert radii.dtype == torch.float64 and radii.shape == (1200,) and not radii.requires_grad
    assert torch.equal(radii, certified_radius(model, inputs.double().requires_grad_()))
    assert torch.equal(radii, certified_radius(model, inputs.T.contiguous().T))
    with torch.inference_mode():
        assert torch.equal(radii, certified_radius(model, inputs))
    with torch.autocast("cpu"):
        assert torch.equal(radii, certified_radius(model, inputs))
    for k in (0, 999, 1000, 1199):
        torch.testing.assert_close(radii[k : k + 1], certified_radius(model, inputs[k : k + 1]))


@pytest.mark.parametrize("training", [True, False])
def test_nothing_changes_the_model_or_the_random_state(training):
    model = deep(
        lambda: OrthogonalLinear(4, 6), MaxMin, lambda: Residual(nn.Linear(6, 6)), lambda: nn.Linear(6, 3)
    )
    model.train(training)
    model(torch.ones(2, 4)).sum().backward()
    model[0].free.requires_grad_(False)
    inputs = torch.rand(5, 4)
    before = snapshot(model)
    certified_radius(model, inputs)
    certified_radius(model, inputs, rule="vector")
    certified_accuracy(model, inputs, torch.zeros(5).long(), 0.1)
    pair_constants(model)
    pair_constants(model, differentiable=True)
    assert changed_between(before, snapshot(model)) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda model: model.insert(1, nn.Dropout()).train(),
        lambda model: model.insert(1, nn.BatchNorm1d(3)).train(),
        lambda model: model[0].register_forward_hook(lambda *_: None),
        lambda model: setattr(model[0], "forward", lambda x: x),
        lambda model: model.append(nn.LSTM(3, 3)),
    ],
)
def test_a_model_in_a_state_of_which_nothing_is_known_is_refused(spoil):
    model = linear_classifier(3, 3, seed=0)
    spoil(model)
    for call in (
        lambda: certified_radius(model, torch.zeros(1, 3)),
        lambda: certified_radius(model, torch.zeros(1, 3), rule="vector"),
        lambda: pair_constants(model),
        lambda: pair_constants(model, differentiable=True),
    ):
        with pytest.raises(UnsupportedLayerError):
            call()


def test_subnormal_numbers_read_as_zero_are_refused():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormal numbers")
    try:
        with pytest.raises(RuntimeError, match="subnormal"):
            certified_radius(IDENTITY, torch.zeros(1, 2))
    finally:
        torch.set_flush_denormal(False)


# Accuracies.


def counted(count, total, **options):
    """`certified_accuracy` of `total` inputs of which `count` have the right label."""
    inputs = torch.tensor([[1.0, 0.0]]).repeat(total, 1)
    labels = (torch.arange(total) >= count).long()
    return certified_accuracy(IDENTITY, inputs, labels, 0.5, **options)


def test_a_radius_counts_only_if_it_is_above():
    inputs, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    radius = certified_radius(IDENTITY, inputs).item()
    assert certified_accuracy(IDENTITY, inputs, labels, radius).count == 0
    assert certified_accuracy(IDENTITY, inputs, labels, math.nextafter(radius, 0)).count == 1
    assert certified_accuracy(IDENTITY, inputs, labels + 1, 0.0).count == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64, torch.uint16])
def test_labels_of_every_integer_dtype_count_alike(dtype):
    inputs = points(3, seed=0, count=20)
    labels = CLASSES3.double()(inputs).argmax(dim=1)
    CLASSES3.float()
    accuracy = certified_accuracy(CLASSES3, inputs, labels.to(dtype), 0.1)
    assert accuracy.count == (certified_radius(CLASSES3, inputs) > 0.1).sum()


@settings(max_examples=10)
@given(networks(), st.integers(0, 2**31), st.floats(0, 1))
def test_an_accuracy_counts_right_labels_with_larger_radii(model, seed, radius):
    inputs = points(model[0].in_features, seed, count=10)
    classes = model[-1].out_features
    labels = torch.randint(classes, (10,), generator=drawn(seed))
    exact = torch.tensor([true_class(model, point) for point in inputs])
    accuracy = certified_accuracy(model, inputs, labels, radius)
    assert accuracy.count == ((exact == labels) & (certified_radius(model, inputs) > radius)).sum()
    assert (accuracy.total, accuracy.radius, accuracy.confidence) == (10, radius, 0.95)
    assert float(accuracy) == accuracy.value == accuracy.count / 10
    assert accuracy.low <= accuracy.value <= accuracy.high


def at_least(count, total, p):
    """The probability of `count` or more successes in `total`, exactly."""
    p = Fraction(p)
    return sum(math.comb(total, k) * p**k * (1 - p) ** (total - k) for k in range(count, total + 1))


@pytest.mark.parametrize("confidence", [0.01, 0.5, 0.95, 0.999, 1 - 1e-9])
@pytest.mark.parametrize("total", [1, 2, 7, 20])
def test_the_interval_is_that_of_the_binomial_tails(total, confidence):
    tail = (1 - Fraction(confidence)) / 2
    wider = Fraction(3, 10**9)
    for count in {0, 1, total // 2, total - 1, total}:
        accuracy = counted(count, total, confidence=confidence)
        if count == 0:
            assert accuracy.low == 0
        else:
            assert at_least(count, total, accuracy.low) <= tail
            assert at_least(count, total, Fraction(accuracy.low) * (1 + wider)) >= tail
        if count == total:
            assert accuracy.high == 1
        else:
            assert 1 - at_least(count + 1, total, accuracy.high) <= tail
            assert (
                accuracy.high == 1
                or 1 - at_least(count + 1, total, Fraction(accuracy.high) * (1 - wider)) >= tail
            )


@pytest.mark.parametrize("count", [1, 37, 4000, 7500, 9999])
def test_the_interval_of_ten_thousand_images_is_that_of_the_binomial_tails(count):
    with mpmath.workdps(40):
        accuracy = counted(count, 10_000)

        def tails(p):
            p = mpmath.mpf(p)
            term, below = (1 - p) ** 10_000, mpmath.mpf(0)
            for k in range(count):
                below += term
                term *= p * (10_000 - k) / ((k + 1) * (1 - p))
            return 1 - below, below + term

        for end, side, wider in ((accuracy.low, 0, 1 + 3e-9), (accuracy.high, 1, 1 - 3e-9)):
            assert tails(end)[side] <= mpmath.mpf("0.025") * (1 + mpmath.mpf(10) ** -15)
            assert tails(mpmath.mpf(end) * wider)[side] >= mpmath.mpf("0.025") * (1 - mpmath.mpf(10) ** -15)


@pytest.mark.parametrize("confidence", [0.5, 0.95])
@pytest.mark.parametrize("total", [1, 3, 8])
def test_the_interval_holds_the_truth_as_often_as_it_says(total, confidence):
    ends = [counted(count, total, confidence=confidence) for count in range(total + 1)]
    for p in (Fraction(k, 60) for k in range(61)):
        holds = [count for count, end in enumerate(ends) if end.low <= p <= end.high]
        covered = sum(math.comb(total, k) * p**k * (1 - p) ** (total - k) for k in holds)
        assert covered >= Fraction(confidence)


@pytest.mark.parametrize("rule", ["pairs", "vector"])
@pytest.mark.parametrize(("norm", "name"), [(2, "2"), (math.inf, "inf")])
def test_an_accuracy_tells_the_norm_of_its_bound(norm, name, rule):
    bound = product_bound(CLASSES3, norm=norm, logits="pairs" if rule == "pairs" else None)
    inputs = points(3, seed=0)
    accuracy = certified_accuracy(CLASSES3, inputs, torch.zeros(len(inputs)).long(), 0.5, bound, rule)
    assert accuracy.norm == norm
    assert f" at radius 0.5 in norm {name}: " in repr(accuracy)


def test_an_accuracy_without_a_bound_is_in_norm_2():
    assert counted(1, 2).norm == 2 and "in norm 2:" in repr(counted(1, 2))


@pytest.mark.parametrize("rule", ["pairs", "vector"])
def test_a_radius_for_pixels_up_to_255_is_255_times_that_for_pixels_up_to_1(rule):
    inputs = torch.rand(6, 3, generator=drawn(1))
    scaled = deep(lambda: Normalize(0.0, 255.0), lambda: nn.Linear(3, 3))
    scaled[1].load_state_dict(CLASSES3[0].state_dict())
    small = certified_radius(CLASSES3, inputs, rule=rule)
    large = certified_radius(scaled, 255 * inputs, rule=rule)
    torch.testing.assert_close(large, 255 * small, rtol=1e-5, atol=1e-5)


# Constants of pairs.


def ten_classes():
    return deep(
        lambda: Normalize(0.2, 0.5),
        lambda: nn.Conv2d(1, 4, 3, stride=2, padding=1),
        MaxMin,
        nn.Flatten,
        lambda: Residual(nn.Linear(64, 64)),
        lambda: nn.Linear(64, 10),
    )


def test_constants_of_pairs_are_product_bounds_one_by_one_and_above_what_a_search_finds():
    model, shape = ten_classes(), (1, 8, 8)
    constants = pair_constants(model, input_shape=shape)
    assert constants.shape == (10, 10) and constants.dtype == torch.float64
    assert torch.equal(constants, constants.T) and (constants.diagonal() == 0).all()
    for pair in [(0, 1), (3, 7), (8, 9)]:
        assert constants[pair] == product_bound(model, logits=pair, input_shape=shape).value
    small = deep(lambda: nn.Linear(3, 4), MaxMin, lambda: nn.Linear(4, 3))
    upper = pair_constants(small)
    for pair, bound in gradient_lower_bound(small, torch.zeros(1, 3), logits="pairs").items():
        assert 0 < bound.value <= upper[pair]


def test_the_estimate_is_close_to_the_constants():
    model, shape = ten_classes(), (1, 8, 8)
    estimate = pair_constants(model, differentiable=True, input_shape=shape)
    exact = pair_constants(model, input_shape=shape).float()
    assert estimate.dtype == torch.float32
    torch.testing.assert_close(estimate.detach(), exact, rtol=0.05, atol=0)
    estimate.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.ndim > 1)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.ndim > 1)


def test_the_gradient_of_the_estimate_is_that_of_the_exact_product():
    generator = drawn(0)
    layers = [nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            u, v = (torch.linalg.qr(torch.randn(5, 5, generator=generator).double())[0] for _ in range(2))
            layer.weight.copy_(u @ torch.diag(torch.tensor([2.0, 1.0, 0.5, 0.3, 0.1]).double()) @ v)

    def exact(moves, step):
        first, second, head = (
            layer.weight.detach() + step * move for layer, move in zip((model[0], model[2], model[4]), moves)
        )
        norms = np.linalg.norm(first.numpy(), 2) * np.linalg.norm(second.numpy(), 2)
        return norms * np.linalg.norm((head[0] - head[2]).numpy())

    weights = [model[0].weight, model[2].weight, model[4].weight]
    gradients = torch.autograd.grad(pair_constants(model, differentiable=True)[0, 2], weights)
    for _ in range(3):
        moves = [torch.randn(weight.shape, generator=generator).double() for weight in weights]
        slope = (exact(moves, 1e-5) - exact(moves, -1e-5)) / 2e-5
        along = sum((gradient * move).sum() for gradient, move in zip(gradients, moves)).item()
        assert along == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_equal_rows_have_a_finite_gradient():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 4))
    with torch.no_grad():
        model[2].weight[1] = model[2].weight[0]
    pair_constants(model, differentiable=True).sum().backward()
    assert torch.isfinite(model[2].weight.grad).all() and torch.isfinite(model[0].weight.grad).all()


@pytest.mark.parametrize("head", [OrthogonalLinear, AOLLinear, nn.Linear])
def test_the_estimate_reaches_the_head_in_train_mode(head):
    model = nn.Sequential(OrthogonalLinear(4, 6), MaxMin(), head(6, 3)).train()
    estimate = pair_constants(model, differentiable=True)
    torch.testing.assert_close(estimate.detach(), pair_constants(model).float(), rtol=1e-5, atol=1e-6)
    estimate.sum().backward()
    gradient = next(model[2].parameters()).grad
    assert torch.isfinite(gradient).all()
    assert head is OrthogonalLinear or gradient.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_estimate_has_the_dtype_of_the_model(dtype):
    model = fill(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), seed=0).to(dtype)
    estimate = pair_constants(model, differentiable=True)
    assert estimate.dtype == dtype
    torch.testing.assert_close(estimate.detach().double(), pair_constants(model), rtol=0.05, atol=0)


def test_a_head_over_several_vectors_has_one_row_for_each_logit():
    model = nn.Sequential(nn.Linear(3, 2))
    estimate = pair_constants(model, differentiable=True, input_shape=(4, 3))
    torch.testing.assert_close(estimate.detach().double(), pair_constants(model, input_shape=(4, 3)))


def test_no_certificate_uses_the_estimate(monkeypatch):
    inputs = points(3, seed=0)
    model = deep(lambda: nn.Linear(3, 4), MaxMin, lambda: nn.Linear(4, 3))
    radii, constants = certified_radius(model, inputs), pair_constants(model)
    monkeypatch.setattr(certify, "trained_norm", lambda layer, input_shape: 1e-9)
    assert pair_constants(model, differentiable=True).max() < 1e-6
    assert torch.equal(radii, certified_radius(model, inputs))
    assert torch.equal(constants, pair_constants(model))
    with pytest.raises(CertificateError):
        Bound(1e-9, "upper", output=(0, 1)).verify(model)
