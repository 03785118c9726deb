"""`attack`: inside the ball and the box exactly, never below the truth, and close to it where it is known."""

import math
from fractions import Fraction

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lipbook import UnsupportedLayerError
from lipbook.contracts.variants import changed_between, snapshot
from lipbook.layers import MaxMin, Normalize, OrthogonalLinear
from lipbook.training import attack
from lipbook.training.pgd import exactly_inside
from tests.oracles import exact_forward, random_networks, regions


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def uniform(*shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def linear(weight, bias):
    layer = nn.Linear(weight.shape[1], weight.shape[0]).to(weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return nn.Sequential(layer)


def network(*sizes, seed=0, dtype=torch.float64):
    layers = []
    for k, (before, after) in enumerate(zip(sizes, sizes[1:])):
        weight = normal(after, before, seed=100 * seed + k, dtype=dtype) * math.sqrt(2 / before)
        layers += [linear(weight, normal(after, seed=100 * seed + 50 + k, dtype=dtype) / 2)[0], nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def predicted(model, inputs):
    with torch.no_grad():
        return model(inputs).argmax(dim=1)


def margins(model, inputs, labels):
    logits = model.double()(inputs.double()).detach()
    others = logits.scatter(1, labels[:, None], -math.inf).amax(dim=1)
    return logits.gather(1, labels[:, None])[:, 0] - others


def squared_distances(points, inputs):
    pairs = zip(points.flatten(1).tolist(), inputs.flatten(1).tolist())
    return [sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(*pair)) for pair in pairs]


def holds(points, inputs, radius, clamp):
    """In exact arithmetic."""
    near = all(square <= Fraction(radius) ** 2 for square in squared_distances(points, inputs))
    return near and (clamp is None or all(clamp[0] <= p <= clamp[1] for p in points.flatten().tolist()))


def least_distance(normals, offsets, center, clamp=None):
    """The distance from `center` to the polytope normals @ x <= offsets in the box, by a solver."""
    x = cvxpy.Variable(len(center))
    constraints = [normals @ x <= offsets]
    if clamp is not None:
        constraints += [x >= clamp[0], x <= clamp[1]]
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.norm(x - center)), constraints)
    problem.solve(solver=cvxpy.CLARABEL)
    return problem.value if problem.status == "optimal" else math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_a_linear_classifier_is_broken_just_above_the_distance_to_its_boundary_and_not_below(seed, dtype):
    weight, bias = normal(5, 12, seed=seed, dtype=dtype), normal(5, seed=seed + 10, dtype=dtype)
    model, inputs = linear(weight, bias), normal(8, 12, seed=seed + 20, dtype=dtype)
    labels = predicted(model, inputs)
    for x, y in zip(inputs, labels):
        logits = (weight.double() @ x.double() + bias.double()).tolist()
        gaps = [
            (logits[y] - logits[j]) / (weight[y].double() - weight[j].double()).norm().item()
            for j in range(5)
            if j != y
        ]
        radius = min(gaps)
        for factor, broken in ((1.002, True), (0.999, False)):
            point = attack(model, x[None], y[None], factor * radius, clamp=None)
            assert (predicted(model.double(), point.double()) != y).item() is broken
            model.to(dtype)


@pytest.mark.parametrize("seed", range(4))
def test_with_the_box_active_a_linear_classifier_is_broken_where_a_solver_says_so(seed):
    weight, bias = normal(3, 10, seed=seed), normal(3, seed=seed + 10)
    inputs = (2 * uniform(4, 10, seed=seed + 20) - 0.5).clamp(0, 1)  # about half of them on a face
    model = linear(weight, bias)
    labels = predicted(model, inputs)
    for x, y in zip(inputs, labels):
        distances = [
            least_distance(
                (weight[y] - weight[j]).numpy()[None], (bias[j] - bias[y]).numpy()[None], x.numpy(), (0, 1)
            )
            for j in range(3)
            if j != y
        ]
        radius = min(distances)
        if math.isinf(radius):
            assert predicted(model, attack(model, x[None], y[None], 10.0)) == y
            continue
        assert predicted(model, attack(model, x[None], y[None], 1.01 * radius)) != y
        assert predicted(model, attack(model, x[None], y[None], 0.999 * radius)) == y


@pytest.mark.parametrize("seed", range(3))
def test_in_the_plane_the_smallest_margin_of_a_grid_is_found(seed):
    model = network(2, 16, 16, 3, seed=seed)
    inputs, radius = uniform(20, 2, seed=seed), 0.2
    labels = predicted(model, inputs)
    angles, lengths = torch.meshgrid(
        torch.linspace(0, 2 * math.pi, 181), torch.linspace(0, radius, 41), indexing="ij"
    )
    offsets = torch.stack([lengths * angles.cos(), lengths * angles.sin()], dim=-1).view(-1, 2).double()
    found = margins(model, attack(model, inputs, labels, radius, restarts=3), labels)
    for x, y, margin in zip(inputs, labels, found):
        disc = (x + offsets).clamp(0, 1)
        truth = margins(model, disc, y.expand(len(disc))).min()
        assert margin <= truth + 0.02 * (margins(model, x[None], y[None]) - truth).abs() + 1e-9


def test_a_boundary_on_the_line_is_met_where_it_is():
    # z_0 - z_1 = |x - 1/2| - 1/8 changes its sign at 3/8 and 5/8
    first = linear(torch.tensor([[1.0], [-1.0]]), torch.tensor([-0.5, 0.5]))
    second = linear(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([-0.125, 0.0]))
    model = nn.Sequential(first, nn.ReLU(), second)
    inputs = torch.tensor([[0.0], [0.25], [0.75], [1.0]])
    labels = torch.zeros(4, dtype=torch.long)
    for row, distance in enumerate((0.375, 0.125, 0.125, 0.375)):
        x, y = inputs[row : row + 1], labels[:1]
        assert predicted(model, attack(model, x, y, distance + 0.001)) == 1
        assert predicted(model, attack(model, x, y, distance - 0.001)) == 0


def exact_distance(model, center, label):
    """The distance to the closest point of another class, over all activation regions, by a solver."""
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    distances = []
    for region in regions(model):
        weight, bias = np.eye(len(center)), np.zeros(len(center))
        normals, offsets, signs = [], [], iter(region.pattern)
        for layer in layers[:-1]:
            matrix = layer.weight.detach().double().numpy()
            weight, bias = matrix @ weight, matrix @ bias + layer.bias.detach().double().numpy()
            active = np.array([next(signs) for _ in bias])
            normals.append(-active[:, None] * weight)
            offsets.append(active * bias)
            weight, bias = weight * (active > 0)[:, None], bias * (active > 0)
        jacobian, shift = region.jacobian, region.offset
        for other in set(range(len(jacobian))) - {label}:
            wall, height = jacobian[label] - jacobian[other], shift[other] - shift[label]
            rows, ends = np.vstack([*normals, wall]), np.concatenate([*offsets, [height]])
            distances.append(least_distance(rows, ends, center))
    return min(distances)


def relu_networks(count):
    networks = random_networks(MaxMin, range(0, 80, 2))
    chosen = [m for m in networks if m[-1].out_features > 1 and m[0].out_features == 4]
    assert len(chosen) >= count
    return chosen[:count]


def judge_against_the_exact_distance(models):
    """Below the distance no point is another class; above it a search may miss one in four."""
    missed = 0
    for seed, model in enumerate(models):
        x = normal(1, model[0].in_features, seed=seed, dtype=torch.float32)
        y = predicted(model, x)
        distance = exact_distance(model, x[0].double().numpy(), y.item())
        if distance > 1e3:
            continue
        below = attack(model, x, y, 0.999 * distance, clamp=None)
        logits = exact_forward(model, below[0])
        assert max(range(len(logits)), key=logits.__getitem__) == y
        above = attack(model, x, y, 1.01 * distance, clamp=None, restarts=8)
        logits = exact_forward(model, above[0])
        missed += max(range(len(logits)), key=logits.__getitem__) == y.item()
    assert missed <= len(models) / 4


def test_random_relu_networks_are_broken_above_the_exact_distance_and_not_below():
    judge_against_the_exact_distance(relu_networks(2))


@pytest.mark.thorough
def test_most_relu_networks_are_broken_above_the_exact_distance_and_none_below():
    judge_against_the_exact_distance(relu_networks(5))


@given(
    st.integers(1, 5),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.floats(1e-12, 1e3),
    st.sampled_from([None, (0, 1), (-0.1, 1.3)]),
    st.integers(0, 1000),
)
def test_the_ball_and_the_box_hold_exactly(batch, shape, dtype, radius, clamp, seed):
    inputs = uniform(batch, *shape, seed=seed, dtype=dtype)
    model = nn.Sequential(nn.Flatten(), *network(math.prod(shape), 6, 3, seed=seed, dtype=torch.float32))
    labels = predicted(model, inputs.float())
    points = attack(model, inputs, labels, radius, clamp, steps=5)
    assert points.shape == inputs.shape and points.dtype == dtype
    assert holds(points, inputs, radius, clamp)


@given(
    st.integers(1, 30),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.floats(1e-8, 1e8),
    st.floats(1e-3, 1e3),
    st.integers(0, 1000),
)
def test_projected_points_are_inside_exactly_and_almost_as_far_as_they_may_be(n, dtype, scale, ratio, seed):
    centers = normal(3, n, seed=seed, dtype=dtype)
    points = centers.double() + ratio * scale * normal(3, n, seed=seed + 1)
    inside = exactly_inside(points, centers, scale, -math.inf, math.inf)
    assert holds(inside, centers, scale, None)
    eps = torch.finfo(dtype).eps
    for point, center, wanted in zip(inside.double(), centers.double(), points):
        length = min(scale, (wanted - center).norm().item())
        largest = max(center.abs().max().item(), length)
        if math.isfinite(torch.tensor(largest).to(dtype).item()):
            assert (point - center).norm() >= length * (1 - 1e-12) - 4 * eps * math.sqrt(n) * largest


@given(st.integers(1, 6), st.integers(1, 5), st.floats(0, 3), st.integers(0, 1000))
def test_no_margin_is_worse_than_that_of_the_input(batch, size, radius, seed):
    model, inputs = network(size, 5, 3, seed=seed), uniform(batch, size, seed=seed)
    labels = torch.randint(3, (batch,), generator=torch.Generator().manual_seed(seed))
    points = attack(model, inputs, labels, radius, steps=3)
    assert (margins(model, points, labels) <= margins(model, inputs, labels)).all()
    wrong = predicted(model, inputs) != labels
    assert torch.equal(points[wrong], inputs[wrong])


def test_further_restarts_never_raise_a_margin():
    model, inputs = network(6, 20, 20, 4), uniform(50, 6)
    labels = predicted(model, inputs)
    found = [
        margins(model, attack(model, inputs, labels, 0.3, steps=8, restarts=k), labels) for k in (1, 2, 5)
    ]
    assert (found[1] <= found[0]).all() and (found[2] <= found[1]).all()
    assert (found[2] < found[0]).any()


def test_targets_are_reached_where_they_can_be():
    weight = 3 * torch.eye(4, dtype=torch.float64)
    model, inputs = linear(weight, torch.zeros(4, dtype=torch.float64)), uniform(30, 4)
    labels = predicted(model, inputs)
    targets = (labels + 1 + torch.arange(30) % 3) % 4
    points = attack(model, inputs, labels, 2.0, targets=targets)
    assert torch.equal(predicted(model, points), targets)
    assert holds(points, inputs, 2.0, (0, 1))
    # Entry t passes entry y where both meet in the middle: sqrt(2) times half their gap away.
    gaps = inputs.gather(1, labels[:, None]) - inputs.gather(1, targets[:, None])
    near = attack(model, inputs, labels, 0.999 * (gaps / math.sqrt(2)).min().item(), targets=targets)
    assert not (predicted(model, near) == targets).any()


def test_an_input_of_the_target_class_comes_back_unchanged():
    model, inputs = network(3, 8, 3), uniform(20, 3)
    targets = predicted(model, inputs)
    assert torch.equal(attack(model, inputs, (targets + 1) % 3, 0.5, targets=targets), inputs)


@pytest.mark.parametrize("targets", [None, torch.tensor([1])])
def test_a_flat_start_is_left(targets):
    # No gradient at the input: class 1 begins where the entry passes 1/2, on either side.
    first = linear(torch.tensor([[1.0], [-1.0]]), torch.tensor([-0.5, -0.5]))
    second = linear(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([0.1, 0.0]))
    model = nn.Sequential(first, nn.ReLU(), second)
    x, y = torch.zeros(1, 1), torch.tensor([0])
    assert predicted(model, attack(model, x, y, 0.61, clamp=None, targets=targets)) == 1
    assert predicted(model, attack(model, x, y, 0.59, clamp=None, targets=targets)) == 0


def test_gradients_so_small_that_their_squares_vanish_still_lead():
    model = linear(torch.tensor([[0.0, 0.0], [1e-30, -1e-30]]), torch.tensor([1e-30, 0.0]))
    x, y = torch.zeros(1, 2), torch.tensor([0])
    assert predicted(model, attack(model, x, y, 0.72, clamp=None, restarts=1)) == 1
    assert predicted(model, attack(model, x, y, 0.70, clamp=None, restarts=1)) == 0


def test_the_same_seed_gives_the_same_points_and_the_random_state_stays():
    model, inputs = network(6, 20, 20, 4), uniform(20, 6)
    labels = predicted(model, inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = attack(model, inputs, labels, 0.5, steps=2, restarts=3)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert torch.equal(attack(model, inputs, labels, 0.5, steps=2, restarts=3), first)
    assert not torch.equal(attack(model, inputs, labels, 0.5, steps=2, restarts=3, seed=1), first)


def test_a_result_depends_neither_on_the_other_inputs_nor_on_its_place():
    model, inputs = network(6, 20, 20, 4), uniform(600, 6)
    labels = predicted(model, inputs)
    whole = attack(model, inputs, labels, 0.1, steps=5)
    some = torch.tensor([599, 3, 255, 256])
    torch.testing.assert_close(attack(model, inputs[some], labels[some], 0.1, steps=5), whole[some])


@pytest.mark.parametrize("training", [False, True])
def test_the_model_and_the_inputs_stay_as_they_are(training):
    model = nn.Sequential(OrthogonalLinear(5, 6), MaxMin(), nn.ReLU(inplace=True), OrthogonalLinear(6, 3))
    model.train(training)
    inputs = uniform(4, 5, dtype=torch.float32).requires_grad_()
    labels, kept = torch.tensor([0, 1, 2, 0]), inputs.detach().clone()
    before = snapshot(model)
    points = attack(model, inputs, labels, 0.5)
    assert changed_between(before, snapshot(model)) is None
    assert torch.equal(inputs, kept) and inputs.grad is None and not points.requires_grad


def test_it_attacks_under_no_grad_and_in_inference_mode_alike():
    model, inputs = network(6, 20, 20, 4), uniform(20, 6)
    labels = predicted(model, inputs)
    usual = attack(model, inputs, labels, 0.1, steps=5)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(attack(model, inputs.clone(), labels, 0.1, steps=5), usual)


def test_a_layer_that_acts_in_place_on_the_inputs_is_attacked():
    inputs = uniform(5, 3) - 0.5
    model = nn.Sequential(nn.ReLU(inplace=True), network(3, 6, 3))
    labels = predicted(model, inputs.clone())
    points = attack(model, inputs, labels, 0.3, clamp=(-1, 1))
    assert holds(points, inputs, 0.3, (-1, 1))
    assert (margins(model, points.clone(), labels) < margins(model, inputs.clone(), labels)).any()


def test_radius_zero_gives_a_copy():
    model, inputs = network(3, 4, 2), uniform(5, 3)
    points = attack(model, inputs, predicted(model, inputs), 0)
    assert torch.equal(points, inputs) and points.data_ptr() != inputs.data_ptr()


def test_a_module_that_is_no_sequential_is_attacked():
    class Difference(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.scale * torch.stack([x.sum(dim=1), 1 - x.sum(dim=1)], dim=1)

    x, y = torch.full((1, 4), 0.25), torch.tensor([0])
    # The sum has to fall from 1 to 1/2: by 1/4 = |1| r / sqrt(4) ... that is r = 0.25.
    assert predicted(Difference(), attack(Difference(), x, y, 0.2501)) == 1
    assert predicted(Difference(), attack(Difference(), x, y, 0.2499)) == 0


@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.5), nn.BatchNorm1d(4), nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))]
)
def test_a_layer_in_train_mode_is_refused_where_that_differs_and_attacked_in_eval_mode(layer):
    model, inputs = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2)), uniform(3, 4, dtype=torch.float32)
    with pytest.raises(UnsupportedLayerError, match="eval"):
        attack(model, inputs, torch.zeros(3, dtype=torch.long), 0.1)
    before = snapshot(model.eval())
    labels = predicted(model, inputs)
    points = attack(model, inputs, labels, 0.1)
    assert changed_between(before, snapshot(model)) is None
    assert (margins(model, points, labels) < margins(model, inputs, labels)).all()


def test_a_normalisation_layer_leaves_the_radius_in_the_unit_of_the_inputs():
    model = nn.Sequential(Normalize([0.5], [0.1]), nn.Flatten(), linear(*plane()))
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
    # z_0 - z_1 = 1 + (x_1 - 1/2) / 0.1, which vanishes 0.1 away
    assert predicted(model, attack(model, x, y, 0.101)) == 1
    assert predicted(model, attack(model, x, y, 0.099)) == 0


def plane():
    return torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0])


def test_logits_that_are_not_finite_are_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=1))
    model[0].weight.data.fill_(math.inf)
    with pytest.raises(ValueError, match="nan"):
        attack(model, torch.ones(1, 2), torch.tensor([0]), 0.1)


@pytest.mark.thorough
def test_ten_thousand_images_fit_into_little_memory():
    import resource

    model, inputs = network(784, 256, 10, dtype=torch.float32), uniform(10_000, 784, dtype=torch.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    attack(model, inputs, predicted(model, inputs), 0.3, steps=3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB
