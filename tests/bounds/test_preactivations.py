"""Pre-activation bounds hold on the real ball, rounding included, and linear relaxation is never wider."""

import copy
import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from lipbook import contracts
from lipbook.bound import UnsupportedLayerError
from lipbook.bounds import preactivation_bounds
from lipbook.bounds.domains import Half, Problem
from lipbook.bounds.preactivations import box, chain_of
from lipbook.layers import Abs, GroupSort, Householder, MaxMin, Normalize, Residual
from lipbook.network import read
from tests.oracles import exact_forward

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in range(1, 6))]


def dense(sizes, activation, seed, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for fan_in, fan_out in zip(sizes, sizes[1:]):
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out, dtype=dtype)
        with torch.no_grad():
            linear.weight.copy_(scale * torch.randn(fan_out, fan_in, generator=generator) / fan_in**0.5)
            linear.bias.copy_(scale * torch.randn(fan_out, generator=generator) / 4)
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1]).eval()


def points_of(center, radius, count, seed=0):
    """Fractions of points of the exact ball: corners, and points inside."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.rand(count, center.numel(), generator=generator, dtype=torch.float64) * 2 - 1
    steps[: count // 2] = steps[: count // 2].sign()
    flat = [Fraction(number) for number in center.double().flatten().tolist()]
    return [[c + Fraction(radius) * Fraction(s) for c, s in zip(flat, row)] for row in steps.tolist()]


def prefixes(model):
    """What comes before each activation, those inside residual blocks too."""
    found, before = [], []
    for layer in model:
        if isinstance(layer, Residual):
            found += [nn.Sequential(*before, *inner) for inner in prefixes(layer.module)]
        elif not isinstance(layer, (nn.Linear, nn.Flatten)):
            found.append(nn.Sequential(*before))
        before.append(layer)
    return found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("method", ["interval", "linear"])
@pytest.mark.parametrize("radius", [0.0, 1e-300, 1e-12, 0.1, 3.0, 1e6])
@pytest.mark.parametrize(
    "activation", [nn.ReLU, Abs, MaxMin, lambda: GroupSort(3), lambda: nn.LeakyReLU(-1.5)]
)
def test_bounds_hold_at_exact_points_of_the_ball(activation, radius, method, seed):
    model = dense((3, 6, 6, 6, 2), activation, seed)
    center = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = preactivation_bounds(model, center, radius, method)
    assert len(found) == 3
    for x in points_of(center, radius, 4):
        for prefix, (lower, upper) in zip(prefixes(model), found):
            for value, low, high in zip(exact_forward(prefix, x), lower.tolist(), upper.tolist()):
                assert low <= value <= high


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_bounds_are_about_the_stored_numbers_of_every_dtype(dtype, scale):
    model = dense((4, 8, 8, 2), nn.ReLU, 0, scale, dtype)
    center = torch.linspace(-1, 1, 4).to(dtype)
    for x in points_of(center, 0.01, 8):
        for prefix, (lower, upper) in zip(prefixes(model), preactivation_bounds(model, center, 0.01)):
            assert lower.dtype == torch.float64
            for value, low, high in zip(exact_forward(prefix, x), lower.tolist(), upper.tolist()):
                assert low <= value <= high


SMOOTH = {
    "Tanh": nn.Tanh,
    "Sigmoid": nn.Sigmoid,
    "GELU": nn.GELU,
    "GELU, tanh": lambda: nn.GELU("tanh"),
    "SiLU": nn.SiLU,
    "Mish": nn.Mish,
    "Softplus": nn.Softplus,
    "ELU": lambda: nn.ELU(2.0),
    "CELU": lambda: nn.CELU(1e-4),
    "SELU": nn.SELU,
    "Hardswish": nn.Hardswish,
    "Hardtanh": nn.Hardtanh,
    "Softsign": nn.Softsign,
    "Householder": lambda: Householder(6),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SMOOTH)
def test_bounds_hold_for_every_activation(name, seed):
    model = dense((3, 6, 6, 6, 2), SMOOTH[name], seed)
    center = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for radius in (0.01, 1.0):
        generator = torch.Generator().manual_seed(1)
        steps = 2 * torch.rand(200, 3, generator=generator, dtype=torch.float64) - 1
        steps[:100] = steps[:100].sign()
        values, errors = center + radius * 0.999 * steps, torch.zeros(200, 3, dtype=torch.float64)
        by_method = [preactivation_bounds(model, center, radius, m) for m in ("interval", "linear")]
        number = 0
        for layer in model:
            if not isinstance(layer, nn.Linear):
                for found in by_method:
                    assert (values + errors >= found[number][0]).all()
                    assert (values - errors <= found[number][1]).all()
                number += 1
            values, errors = contracts.enclose(layer, values, errors)


@pytest.mark.parametrize("name", ["ReLU", "Tanh", "GELU", "MaxMin"])
def test_linear_is_never_wider_than_interval_and_often_narrower(name):
    activation = {"ReLU": nn.ReLU, "MaxMin": MaxMin, **SMOOTH}[name]
    model = dense((4, 8, 8, 8, 2), activation, 0)
    wide = preactivation_bounds(model, torch.zeros(4), 0.3, "interval")
    narrow = preactivation_bounds(model, torch.zeros(4), 0.3, "linear")
    for (low, high), (lower, upper) in zip(wide, narrow):
        assert (lower >= low).all() and (upper <= high).all()
    assert (narrow[-1][1] - narrow[-1][0]).sum() < 0.9 * (wide[-1][1] - wide[-1][0]).sum()


def with_blocks(activation, seed):
    """Activations before a block, inside it, inside a block in it, and behind both."""
    inner = Residual(dense((4, 3, 4), activation, seed + 1))
    layers = *dense((6, 4, 4), activation, seed + 2), activation(), inner, *dense((4, 6), activation, seed)
    outer, last = Residual(nn.Sequential(*layers)), Residual(nn.Sequential(activation()))
    return nn.Sequential(*dense((3, 6), activation, seed), activation(), outer, activation(), last).eval()


BLOCKS = {"ReLU": nn.ReLU, "Abs": Abs, "LeakyReLU": lambda: nn.LeakyReLU(-1.5)}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("method", ["interval", "linear"])
@pytest.mark.parametrize("radius", [0.0, 1e-12, 0.1, 3.0, 1e6])
@pytest.mark.parametrize("name", BLOCKS)
def test_bounds_hold_inside_residual_blocks(name, radius, method, seed):
    model = with_blocks(BLOCKS[name], seed)
    center = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = preactivation_bounds(model, center, radius, method)
    assert [len(lower) for lower, _ in found] == [6, 4, 4, 3, 6, 6]
    for x in points_of(center, radius, 4):
        for prefix, (lower, upper) in zip(prefixes(model), found, strict=True):
            for value, low, high in zip(
                exact_forward(prefix, x), lower.tolist(), upper.tolist(), strict=True
            ):
                assert low <= value <= high


def test_in_a_ball_of_one_point_what_enters_inside_residual_blocks_is_known():
    model, center = with_blocks(nn.ReLU, 0), torch.linspace(-1, 1, 3, dtype=torch.float64)
    for method in ("interval", "linear"):
        for prefix, (lower, upper) in zip(prefixes(model), preactivation_bounds(model, center, 0.0, method)):
            value = torch.tensor(list(map(float, exact_forward(prefix, center))), dtype=torch.float64)
            assert torch.allclose(lower, value, rtol=1e-9, atol=1e-9)
            assert torch.allclose(upper, value, rtol=1e-9, atol=1e-9)


def test_what_enters_inside_a_residual_block_has_the_shape_of_the_image():
    block = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), MaxMin(), nn.Tanh(), nn.Conv2d(4, 1, 1), nn.ReLU())
    found = preactivation_bounds(
        nn.Sequential(Residual(block), nn.Flatten(), nn.ReLU()), torch.zeros(1, 3, 3), 1.0
    )
    assert [tuple(low.shape) for low, _ in found] == [(4, 3, 3), (4, 3, 3), (1, 3, 3), (9,)]


def test_two_neurons_by_hand():
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1), nn.ReLU()).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[0].bias.zero_()
        model[2].weight.fill_(1.0)
        model[2].bias.zero_()
    (_, (low, high)) = preactivation_bounds(model, torch.zeros(1), 1.0, "interval")
    assert (low.item(), high.item()) == pytest.approx((0, 2), abs=1e-9)
    # relu(x) + relu(-x) <= (x + 1)/2 + (1 - x)/2 = 1, the true maximum.
    (_, (low, high)) = preactivation_bounds(model, torch.zeros(1), 1.0, "linear")
    assert (low.item(), high.item()) == pytest.approx((0, 1), abs=1e-9)


def test_one_pair_for_each_activation_shaped_as_what_enters_it():
    model = nn.Sequential(
        Normalize(0.5, 0.25),
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"),
        MaxMin(),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 4),
        Householder(4),
    ).eval()
    found = preactivation_bounds(model, torch.rand(1, 4, 4), 0.1)
    assert [tuple(low.shape) for low, _ in found] == [(4, 4, 4), (4, 4, 4), (4,)]
    assert all(low.dtype == high.dtype == torch.float64 and (low <= high).all() for low, high in found)


@pytest.mark.parametrize("first", [nn.ReLU(), MaxMin(), Householder(4)], ids=str)
def test_what_enters_the_first_layer_is_the_ball_rounded_outward(first):
    center = torch.tensor([0.1, -1e300, 5e-324, 2.0**53], dtype=torch.float64)
    ((low, high),) = preactivation_bounds(nn.Sequential(first), center, 0.3)
    for number, below, above in zip(map(Fraction, center.tolist()), low.tolist(), high.tolist()):
        assert below <= number - Fraction(0.3) and number + Fraction(0.3) <= above
    assert (high - low)[0] <= 0.6 + 1e-15


def test_a_model_without_activations_has_no_bounds():
    assert preactivation_bounds(nn.Sequential(nn.Linear(3, 2)), torch.zeros(3), 1.0) == []
    assert preactivation_bounds(nn.Sequential(), torch.zeros(3), 1.0) == []


@pytest.mark.parametrize("method", ["interval", "linear"])
def test_an_overflow_is_an_arithmetic_error(method):
    center = torch.full((3,), 1e308, dtype=torch.float64)
    with pytest.raises(ArithmeticError, match="overflow"):
        preactivation_bounds(dense((3, 4, 4, 2), nn.ReLU, 0).double(), center, 1e308, method)
    huge = copy.deepcopy(dense((3, 4, 4, 2), nn.ReLU, 0))
    with torch.no_grad():
        huge[0].weight.mul_(1e200)
        huge[2].weight.mul_(1e200)
    with pytest.raises(ArithmeticError, match="overflow"):
        preactivation_bounds(huge, torch.zeros(3), 1.0, method)


def test_a_pooling_maximum_is_refused():
    with pytest.raises(UnsupportedLayerError, match="nn.MaxPool2d"):
        preactivation_bounds(nn.Sequential(nn.MaxPool2d(2)), torch.zeros(1, 4, 4), 1.0)


def test_the_model_the_center_and_the_random_state_stay_as_they_are():
    model = dense((3, 6, 6, 2), nn.GELU, 0, dtype=torch.float32).train(False)
    center = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = preactivation_bounds(model, center, 0.1)
    found[0][0].fill_(math.nan)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(center, torch.zeros(3)) and torch.equal(torch.get_rng_state(), state)
    assert not found[0][1].requires_grad


def contradiction():
    """relu(x) >= 0 and relu(-x - 1/2) >= 0 together: no x has both inputs above 0."""
    first, second, third = nn.Linear(1, 2), nn.Linear(2, 2), nn.Linear(2, 1)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third).double().eval()
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        first.bias.copy_(torch.tensor([0.0, -0.5]))
        second.weight.fill_(1.0)
        second.bias.zero_()
    lower, upper = box(torch.zeros(1).double(), 1.0)
    steps = read(model, (1,))
    return Problem(chain_of(steps), lower, upper, torch.eye(1).double(), math.inf, True, False)


def test_a_domain_with_contradictory_bounds_is_empty_and_no_error():
    problem = contradiction()
    both = (Half(1, 0, 0.0, True), Half(1, 1, 0.0, True))
    first_only = (Half(1, 0, 0.0, True), Half(1, 1, 0.0, False))
    assert problem.trace([both, first_only]).empty.tolist() == [True, False]
    values = problem.values([both, first_only])
    assert values[0] == 0 and values[1] > 0
