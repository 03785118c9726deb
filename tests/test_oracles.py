"""The oracle of the tests against hand-solved networks, sampling, automatic differentiation and mpmath.

The layers here are plain ones, so that no layer of the library stands on both sides of a comparison; one test
then reads those of the library.
"""

import copy
import functools
import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

from lipbook import layers
from tests.conftest import THOROUGH
from tests.oracles import (
    exact_constant,
    exact_forward,
    exact_slope_squared,
    largest_norm,
    random_networks,
    regions,
)

POINTS = 1_000_000 if THOROUGH else 50_000


class GroupSort(nn.Module):
    def __init__(self, group_size):
        super().__init__()
        self.group_size = group_size

    def forward(self, x):
        groups = x.unflatten(1, (-1, self.group_size))
        return groups.sort(dim=2, descending=True).values.flatten(1)


class MaxMin(nn.Module):
    def forward(self, x):
        first, second = x[:, ::2], x[:, 1::2]
        return torch.stack([torch.maximum(first, second), torch.minimum(first, second)], dim=2).flatten(1)


class Abs(nn.Module):
    def forward(self, x):
        return x.abs()


class Householder(nn.Module):
    """z on one side of a line, its mirror image [[cos, sin], [sin, -cos]] z on the other."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, x):
        first, second = x[:, ::2], x[:, 1::2]
        cos, sin = torch.cos(self.theta), torch.sin(self.theta)
        kept = first * torch.sin(self.theta / 2) > second * torch.cos(self.theta / 2)
        first, second = (
            torch.where(kept, first, cos * first + sin * second),
            torch.where(kept, second, sin * first - cos * second),
        )
        return torch.stack([first, second], dim=2).flatten(1)


class Residual(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return x + self.module(x)


class Normalize(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x):
        return (x - self.mean) / self.std


def linear(weight, bias=None):
    weight = torch.tensor(weight, dtype=torch.float64)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    return layer


def gaussian(seed, *parts):
    """The integers among `parts` become linear layers of that many outputs; the first is the input."""
    generator = torch.Generator().manual_seed(seed)
    size, layers = parts[0], []
    for part in parts[1:]:
        if isinstance(part, int):
            weight = torch.randn(part, size, generator=generator, dtype=torch.float64)
            bias = torch.randn(part, generator=generator, dtype=torch.float64) / 2
            part, size = linear((weight / size**0.5).tolist(), bias.tolist()), part
        layers.append(part)
    return nn.Sequential(*layers)


def jacobians(model, points):
    """By automatic differentiation, in float64."""
    run = torch.func.vmap(torch.func.jacrev(lambda x: model(x[None])[0]))
    return torch.cat([run(part) for part in points.split(10_000)]).detach().numpy()


@functools.cache
def everywhere(name):
    return regions(NETWORKS[name])


def signs(model, points):
    """The pattern of every sample: signs before a ReLU, comparisons before a MaxMin."""
    found = []
    for layer in model:
        if isinstance(layer, (nn.ReLU, nn.LeakyReLU, Abs)):
            found.append(points > 0)
        if isinstance(layer, MaxMin):
            found.append(points[:, ::2] > points[:, 1::2])
        points = layer(points)
    return torch.where(torch.cat(found, dim=1), 1, -1)


def inputs_of(name):
    return len(everywhere(name)[0].point)


def norms(matrices, norm):
    if norm == 2:
        return np.sqrt(np.linalg.eigvalsh(matrices @ matrices.swapaxes(1, 2))[:, -1].clip(0))
    return np.abs(matrices).sum(axis=2).max(axis=1)


NETWORKS = {
    "relu": gaussian(0, 2, 6, nn.ReLU(), 5, nn.ReLU(), 2),
    "leaky, 3 inputs": gaussian(1, 3, 5, nn.LeakyReLU(0.2), 4, nn.LeakyReLU(-0.5), 3),
    "maxmin": gaussian(2, 2, 6, MaxMin(), 6, MaxMin(), 2),
    "groupsort": gaussian(3, 3, 8, GroupSort(4), 6, GroupSort(3), 2),
    "householder": gaussian(9, 2, 4, Householder([0.3, 2.5]), 6, Householder([1.0, -2.0, 4.0]), 2),
    "abs": gaussian(4, 2, 5, Abs(), 4, Abs(), 1),
    "residual, normalised": nn.Sequential(
        Normalize(torch.tensor([0.1, -0.2]).double(), torch.tensor([0.5, 2.0]).double()),
        gaussian(5, 2, 4, nn.Identity(), MaxMin()),
        Residual(gaussian(6, 4, 5, nn.ReLU(), Residual(gaussian(7, 5, 5, Abs())), 4)),
        nn.Flatten(),
        gaussian(8, 4, 2),
    ),
}
EACH_NETWORK = pytest.mark.parametrize("name", NETWORKS)
NORMS = pytest.mark.parametrize("norm", [2, math.inf])


# Hand-solved cases.


def on_a_line(inner, kinks, outer):
    return nn.Sequential(linear([[w] for w in inner], kinks), nn.ReLU(), linear([outer]))


@NORMS
@pytest.mark.parametrize(
    "model, constant",
    [
        (linear(np.eye(3).tolist()), 1),
        (on_a_line([1, -1], [0, 0], [1, 1]), 1),  # |x|
        (on_a_line([1, -1, 1, -1], [0, 0, 0, 0], [3, -3, -3, 3]), 0),  # 3x - 3 relu(x) + 3 relu(-x)
        (nn.Sequential(Residual(on_a_line([1, -1], [0, 0], [-1, 1])), linear([[3]])), 0),  # the same
        (on_a_line([1, 1, 1], [0, -1, -2], [3, -1, -1]), 3),
        (on_a_line([1, 1], [0, -1e-6], [1, 1]), 2),
        (on_a_line([1, 1], [-5000, 5000], [1, 1]), 2),
        (nn.Sequential(Residual(Abs()), linear([[1.0]])), 2),
        (nn.Sequential(Normalize(torch.ones(2), torch.tensor([0.25, 0.5])), Abs(), linear([[1, 0]])), 4),
    ],
    ids=[
        "identity",
        "abs",
        "zero",
        "residual zero",
        "three",
        "close kinks",
        "far kinks",
        "x + |x|",
        "normalised",
    ],
)
def test_the_constant_of_a_hand_solved_network(model, constant, norm):
    assert exact_constant(model, norm) == constant


def test_norms_and_outputs_of_a_linear_map_are_those_of_its_rows():
    model = linear([[3, 4], [0, -12]])
    assert exact_constant(model, 2, 0) == exact_constant(model, math.inf, 0) - 2 == 5
    assert exact_constant(model, 2, 1) == exact_constant(model, math.inf) == 12
    assert exact_constant(model, math.inf, (0, 1)) == 3 + 16
    assert exact_constant(model, 2, (1, 0)) == pytest.approx(math.hypot(3, 16), rel=1e-15)
    assert exact_constant(model, 2) == pytest.approx(np.linalg.svd([[3, 4], [0, -12]])[1][0], rel=1e-15)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_sorting_the_inputs_has_one_region_an_order_and_constant_1(size):
    model = nn.Sequential(GroupSort(size))
    assert len(regions(model, center=[0] * size)) == math.factorial(size)
    assert exact_constant(model, 2, center=[0] * size) == pytest.approx(1, rel=1e-15)


@pytest.mark.parametrize("inputs, neurons", [(1, 7), (2, 5), (2, 12), (3, 7)])
def test_the_regions_of_one_layer_are_counted_by_zaslavsky(inputs, neurons):
    model = gaussian(neurons, inputs, neurons, nn.ReLU(), 1)
    assert len(regions(model)) == sum(math.comb(neurons, k) for k in range(inputs + 1))


def test_planes_through_one_point_are_counted_too():
    model = gaussian(0, 3, 6, nn.ReLU(), 1)
    torch.nn.init.zeros_(model[0].bias)
    assert len(regions(model)) == 2 * sum(math.comb(5, k) for k in range(3))


def test_a_slope_that_is_rounding_is_no_plane_and_a_small_one_is():
    model = nn.Sequential(linear([[0.1], [0.2], [0.3]]), linear([[1, 1, -1]]), Abs())
    assert len(regions(model)) == 1
    torch.nn.init.constant_(model[0].weight, 0.3)
    torch.nn.init.constant_(model[1].weight[:, :1], 1e-9)
    assert len(regions(model)) == 2


def test_the_point_of_an_unbounded_region_is_not_far_out():
    points = [region.point.item() for region in regions(on_a_line([1, -1], [0, 0], [1, 1]))]
    assert len(points) == 2 and max(map(abs, points)) <= 10


# The same function, written twice.


@NORMS
def test_maxmin_written_with_relu_or_abs_has_the_same_constant(norm):
    first, last = gaussian(0, 3, 4)[0], gaussian(1, 4, 2)[0]
    far = 1000.0  # in the box, what is not to be folded stays positive
    down, up = linear([[-1, 1, 0, 0], [0, 0, -1, 1]]), linear([[1, 0], [-1, 0], [0, 1], [0, -1]])
    half = linear([[0.5, 0.5, 0, 0], [0.5, -0.5, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0.5, -0.5]], [far, 0] * 2)
    joined = linear([[1, 1, 0, 0], [1, -1, 0, 0], [0, 0, 1, 1], [0, 0, 1, -1]], [-far] * 4)
    versions = [
        nn.Sequential(first, MaxMin(), last),
        nn.Sequential(first, GroupSort(2), last),
        nn.Sequential(first, Residual(nn.Sequential(down, nn.ReLU(), up)), last),
        nn.Sequential(first, half, Abs(), joined, last),
    ]
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for version in versions[1:]:
        assert torch.allclose(version(x), versions[0](x), rtol=0, atol=1e-11)
        assert len(regions(version, radius=5)) == len(regions(versions[0], radius=5)) > 2
    constants = [exact_constant(version, norm, radius=5) for version in versions]
    assert constants == pytest.approx([constants[0]] * 4, rel=1e-12)


@NORMS
def test_relu_neurons_may_be_permuted_and_rescaled(norm):
    model = NETWORKS["relu"]
    first, _, last = model[0], model[1], model[2]
    order, factors = torch.tensor([3, 1, 5, 0, 2, 4]), torch.tensor([1, 2, 0.5, 4, 1, 8]).double()
    weight, bias = first.weight * factors[:, None], first.bias * factors
    changed = nn.Sequential(
        linear(weight[order].tolist(), bias[order].tolist()),
        nn.ReLU(),
        linear((last.weight / factors)[:, order].tolist(), last.bias.tolist()),
        *model[3:],
    )
    assert exact_constant(changed, norm) == pytest.approx(exact_constant(model, norm), rel=1e-12)


@NORMS
@pytest.mark.parametrize("factor", [0.0, -3.0, 1e-8, 1e8])
def test_scaling_the_last_layer_scales_the_constant(norm, factor):
    model = NETWORKS["maxmin"]
    last = linear((factor * model[-1].weight).tolist(), (factor * model[-1].bias).tolist())
    scaled = nn.Sequential(*model[:-1], last)
    assert exact_constant(scaled, norm) == pytest.approx(abs(factor) * exact_constant(model, norm), rel=1e-12)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_a_box_and_a_network_may_be_scaled_together(factor):
    model, center = NETWORKS["relu"], torch.tensor([0.3, -0.7]).double()
    wide = nn.Sequential(linear((np.eye(2) / factor).tolist()), *model)
    near = exact_constant(model, center=center, radius=0.5)
    assert exact_constant(wide, center=factor * center, radius=0.5 * factor) * factor == pytest.approx(near)


# Against sampling and automatic differentiation.


@EACH_NETWORK
@pytest.mark.parametrize("radius", [0.5, 3, math.inf])
def test_a_region_has_the_jacobian_and_the_value_that_it_claims_at_its_point(name, radius):
    model = NETWORKS[name]
    found = everywhere(name) if radius == math.inf else regions(model, [0.25] * inputs_of(name), radius)
    points = torch.tensor(np.stack([region.point for region in found]))
    assert (points - 0.25).abs().max() < radius
    np.testing.assert_allclose(jacobians(model, points), [region.jacobian for region in found], atol=1e-12)
    values = [region.jacobian @ region.point + region.offset for region in found]
    with torch.no_grad():
        scale = 1 + points.abs().max().item()
        np.testing.assert_allclose(model(points).numpy(), values, atol=1e-12 * scale)
    assert len({region.pattern for region in found}) == len(found) > 4


@EACH_NETWORK
@pytest.mark.parametrize("radius", [0.3, 4])
def test_no_sampled_jacobian_exceeds_the_constant(name, radius):
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(POINTS, inputs_of(name), generator=generator, dtype=torch.float64)
    sampled = jacobians(NETWORKS[name], radius * (2 * points - 1))
    found = regions(NETWORKS[name], radius=radius)
    for norm in (2, math.inf):
        assert norms(sampled, norm).max() <= largest_norm(found, norm) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("activation", [nn.ReLU(), MaxMin(), Abs()], ids=lambda layer: type(layer).__name__)
def test_the_regions_are_those_that_a_dense_sample_meets(activation, seed):
    model = gaussian(seed, 2, 4, activation, 4, activation, 2)
    found = regions(model, radius=4)
    generator = torch.Generator().manual_seed(seed)
    points = 8 * torch.rand(POINTS, 2, generator=generator, dtype=torch.float64) - 4
    inside = torch.tensor(np.stack([region.point for region in found]))
    with torch.no_grad():
        met = {tuple(row) for row in signs(model, points).unique(dim=0).tolist()}
        claimed = {tuple(row) for row in signs(model, inside).tolist()}
    assert met <= claimed == {region.pattern for region in found}
    assert len(met) > 0.8 * len(found)  # a sample misses the smallest
    largest = max(largest_norm([region]) for region in found if region.pattern in met)
    assert norms(jacobians(model, points), 2).max() == pytest.approx(largest, rel=1e-9)


@EACH_NETWORK
@NORMS
def test_a_smaller_box_never_has_a_larger_constant(name, norm):
    center = [0.1] * inputs_of(name)
    constants = [
        exact_constant(NETWORKS[name], norm, None, center, radius) for radius in (1e-3, 0.1, 0.5, 2, 20)
    ]
    constants.append(largest_norm(everywhere(name), norm))
    assert all(one <= other * (1 + 1e-12) for one, other in zip(constants, constants[1:]))
    assert constants[0] < 0.99 * constants[-1]


@EACH_NETWORK
@NORMS
def test_the_vector_lies_between_its_logits_and_their_sum(name, norm):
    found = everywhere(name)
    single = [largest_norm(found, norm, i) for i in range(len(found[0].jacobian))]
    whole = largest_norm(found, norm)
    assert max(single) <= whole * (1 + 1e-12)
    assert whole <= np.linalg.norm(single, norm) * (1 + 1e-12)
    for i, j in itertools.combinations(range(len(single)), 2):
        pair = largest_norm(found, norm, (i, j))
        assert pair == largest_norm(found, norm, (j, i))
        assert abs(single[i] - single[j]) * (1 - 1e-12) <= pair <= (single[i] + single[j]) * (1 + 1e-12)


def test_the_layers_of_the_library_are_read_as_what_they_compute():
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.3, 0.5, 2.0])
    model = gaussian(
        0, 12, 6, layers.MaxMin(), 8, layers.GroupSort(4), 6, layers.Householder(6), 6, layers.Abs()
    )
    model.append(layers.Residual(gaussian(1, 6, 4, layers.MaxMin(), 6)))
    model.append(gaussian(2, 6, 2))
    model = nn.Sequential(layers.Normalize(mean, std), nn.Flatten(), model).double()
    torch.nn.init.uniform_(model[2][5].theta, -3, 3, generator=torch.Generator().manual_seed(0))
    images = torch.randn(20, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = regions(model, center=images[0], radius=0.1)
    best = torch.tensor(np.stack([region.point for region in found])).reshape(-1, 3, 2, 2)
    slopes = jacobians(model, best).reshape(len(found), 2, 12)
    np.testing.assert_allclose(slopes, [region.jacobian for region in found], atol=1e-12)
    assert len(found) > 4
    with torch.no_grad():
        for image, values in zip(images, model(images).tolist(), strict=True):
            exact = exact_forward(model, image)
            assert [float(v) for v in exact] == pytest.approx(values, rel=1e-13, abs=1e-13)


# In rational arithmetic.


def test_exact_forward_agrees_with_mpmath():
    slope, size = 0.01, 6
    mean, std = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), torch.tensor([0.3])
    model = nn.Sequential(Normalize(mean, std), nn.Linear(size, size), nn.LeakyReLU(slope), MaxMin())
    model.append(nn.Linear(size, 2))
    torch.manual_seed(0)
    model[1].reset_parameters(), model[4].reset_parameters()
    x = torch.randn(size)
    with mpmath.workdps(400):
        values = [(mpmath.mpf(a) - m) / std.item() for a, m in zip(x.tolist(), mean.tolist())]
        for layer in (model[1], model[4]):
            rows, bias = layer.weight.tolist(), layer.bias.tolist()
            values = [mpmath.fdot(row, values) + b for row, b in zip(rows, bias)]
            if layer is model[1]:
                values = [v if v > 0 else v * mpmath.mpf(slope) for v in values]
                values = [pick(values[i : i + 2]) for i in range(0, size, 2) for pick in (max, min)]
        for ours, theirs in zip(exact_forward(model, x), values, strict=True):
            assert abs(mpmath.mpf(ours.numerator) / ours.denominator - theirs) < mpmath.mpf(10) ** -300


@EACH_NETWORK
def test_float64_is_within_rounding_of_the_exact_value(name):
    model = NETWORKS[name]
    x = torch.randn(20, inputs_of(name), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        rounded = model(x).tolist()
    for sample, values in zip(x, rounded):
        exact = exact_forward(model, sample)
        assert [float(v) for v in exact] == pytest.approx(values, rel=1e-13, abs=1e-13)
        assert exact_forward(model, [Fraction(v) for v in sample.tolist()]) == exact


def test_exact_forward_sees_what_float64_rounds_away():
    model = nn.Sequential(linear([[1, 1], [1, -1]]), linear([[1, -1]]))
    assert exact_forward(model, torch.tensor([1e30, 1.0])) == [Fraction(2)]
    assert exact_forward(model, [Fraction(1, 3), Fraction(1, 7)]) == [Fraction(2, 7)]


def test_a_residual_adds_what_was_there_before_its_module():
    assert exact_forward(Residual(MaxMin()), torch.tensor([1.0, 3.0])) == [4, 4]
    assert exact_forward(Residual(Residual(Abs())), torch.tensor([-1.0, 3.0])) == [-1, 9]


def test_the_slope_between_two_points_by_hand():
    model = linear([[3, 4], [0, -12]])
    x, y = torch.tensor([0.1, 0.2]), torch.tensor([3.1, 4.2])
    apart = [Fraction(a) - Fraction(b) for a, b in zip(x.tolist(), y.tolist())]
    first, second = 3 * apart[0] + 4 * apart[1], -12 * apart[1]
    assert exact_slope_squared(model, x, y) == (first**2 + second**2) / sum(a * a for a in apart)
    assert exact_slope_squared(model, x, y, math.inf) == (max(abs(first), abs(second)) / apart[1]) ** 2
    assert exact_slope_squared(model, x, y, math.inf, 0) == (first / apart[1]) ** 2
    assert exact_slope_squared(model, x, y, 2, (0, 1)) == (first - second) ** 2 / sum(a * a for a in apart)


# The random small networks.

SMALL = random_networks(MaxMin)


@pytest.mark.parametrize("seed", range(20))
def test_the_constant_of_a_random_network_is_reached_by_two_points_and_exceeded_by_no_sample(seed):
    model = SMALL[seed]
    found = regions(model)
    points = torch.randn(POINTS // 10, model[0].in_features, generator=torch.Generator().manual_seed(seed))
    sampled = jacobians(copy.deepcopy(model).double(), torch.cat([points / 10, points, points * 10]).double())
    for norm in (2, math.inf):
        constant = largest_norm(found, norm)
        assert norms(sampled, norm).max() <= constant * (1 + 1e-9)
        best = max(found, key=lambda region: largest_norm([region], norm))
        steepest = best.jacobian[np.abs(best.jacobian).sum(axis=1).argmax()]
        direction = np.linalg.svd(best.jacobian)[2][0] if norm == 2 else np.sign(steepest)
        step = 1e-8 * (1 + np.abs(best.point).max()) * direction
        x, y = torch.tensor(best.point - step), torch.tensor(best.point + step)
        assert math.sqrt(exact_slope_squared(model, x, y, norm)) == pytest.approx(constant, rel=1e-6)


def test_the_random_networks_do_not_depend_on_the_state_of_torch():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = random_networks(MaxMin, range(5, 9))
    for one, other in zip(again, SMALL[5:9], strict=True):
        assert str(one) == str(other)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
    assert torch.equal(torch.get_rng_state(), state)


# Refusals.


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "model, says",
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Tanh()), "Tanh"),
        (nn.Sequential(Doubled(2, 2)), "number of inputs"),
        (nn.Sequential(nn.Linear(2, 2), Doubled(2, 2)), "Doubled"),
        (nn.Sequential(nn.Linear(2, 3), MaxMin()), "groups of 2"),
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3)), "3 entries"),
        (nn.Sequential(Residual(nn.Linear(2, 3))), "residual of 2"),
        (nn.Sequential(Normalize(torch.zeros(3), torch.ones(3)), nn.Linear(2, 1)), "cannot be read"),
        (nn.Sequential(Normalize(torch.zeros(2), torch.zeros(2)), nn.Linear(2, 1)), "std"),
        (nn.Sequential(nn.ReLU()), "number of inputs"),
        (nn.Linear(1, 1).requires_grad_(False).apply(lambda m: m.weight.fill_(math.nan)), "NaN"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_model_that_is_not_read_is_refused(model, says):
    with pytest.raises(ValueError, match=says):
        exact_constant(model)


@pytest.mark.parametrize(
    "arguments",
    [
        {"norm": 1},
        {"output": 2},
        {"output": (0, 5)},
        {"output": -1},
        {"output": True},
        {"radius": 0},
        {"radius": math.nan},
        {"center": [0.0]},
        {"center": [math.nan, 0.0]},
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused(arguments):
    with pytest.raises(ValueError):
        exact_constant(NETWORKS["relu"], **arguments)


def test_wrong_points_are_refused():
    model = NETWORKS["relu"]
    with pytest.raises(ValueError, match="takes 2"):
        exact_forward(model, torch.zeros(3))
    with pytest.raises(ValueError, match="same point"):
        exact_slope_squared(model, torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="norm"):
        exact_slope_squared(model, torch.zeros(2), torch.ones(2), norm=1)
