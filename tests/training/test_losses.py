"""The losses: against their definitions in plain floats, their gradients, and what they are in the limit.

The definitions below loop over Python floats: no tensor, and nothing of the library.
"""

import copy
import functools
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from lipbook.training.losses import (
    EMMALoss,
    GloRoLoss,
    LogitAnnealingLoss,
    OffsetCrossEntropy,
    RadiusRamp,
)

WITH_RADIUS = [EMMALoss, GloRoLoss, functools.partial(LogitAnnealingLoss, power=1.5)]
NAMES = ["emma", "gloro", "annealing"]
every_radius_loss = pytest.mark.parametrize("build", WITH_RADIUS, ids=NAMES)


# The definitions, of one sample, in floats.


def cross_entropy(z, y, tau=1.0):
    top = max(z)
    return top - z[y] + tau * math.log(sum(math.exp((entry - top) / tau) for entry in z))


def offset_cross_entropy(z, y, offset, tau):
    return cross_entropy([entry - offset * (j == y) for j, entry in enumerate(z)], y, tau)


def with_bottom(z, constants, radius):
    predicted = z.index(max(z))
    return [*z, max(z[j] + radius * constants[predicted][j] for j in range(len(z)) if j != predicted)]


def gloro(z, y, constants, radius, tau):
    return cross_entropy(with_bottom(z, constants, radius), y, tau)


def emma_logits(z, y, constants, radius):
    shifted = list(z)
    for j, entry in enumerate(z):
        if j != y and constants[y][j] > 0:
            distance = (z[y] - entry) / constants[y][j]
            shifted[j] = entry + min(max(distance, 0.01 * radius), radius) * constants[y][j]
    return shifted


def emma(z, y, constants, radius, tau):
    return cross_entropy(emma_logits(z, y, constants, radius), y, tau)


def annealing(z, y, constants, radius, tau, offset, power):
    shifted = emma_logits(z, y, constants, radius)
    shifted[y] -= offset
    scaled = [entry / tau for entry in shifted]
    top = max(scaled)
    masses = [math.exp(entry - top) for entry in scaled]
    p = masses[y] / sum(masses)
    others = sum(mass for j, mass in enumerate(masses) if j != y) / sum(masses)  # 1 - p, without cancellation
    return tau * others**power * -math.log(p)


def mean(definition, z, y, *arguments):
    return sum(definition(row, label, *arguments) for row, label in zip(z, y, strict=True)) / len(z)


# What the tests draw: plain lists.

reals = functools.partial(st.floats, allow_nan=False, allow_infinity=False)
temperatures = reals(0.1, 3.0)
radii = reals(0.0, 2.0)


@st.composite
def batches(draw):
    """Logits, labels and constants as lists: ties, equal rows of the head and whole numbers among them."""
    count, classes = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    entries = st.one_of(st.integers(-3, 3).map(float), reals(-4.0, 4.0))
    sizes = st.one_of(st.just(0.0), reals(0.01, 3.0))
    z = draw(st.lists(st.lists(entries, min_size=classes, max_size=classes), min_size=count, max_size=count))
    y = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    constants = [[0.0] * classes for _ in range(classes)]
    for i in range(classes):
        for j in range(i):
            constants[i][j] = constants[j][i] = draw(sizes)
    return z, y, constants


def tensors(batch, dtype=torch.float64):
    z, y, constants = batch
    return torch.tensor(z, dtype=dtype), torch.tensor(y), torch.tensor(constants, dtype=dtype)


def distances(classes, seed=0):
    """Constants as a network has them: the distances of the rows of a head."""
    rows = torch.randn(classes, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


def sample(count=6, classes=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (count,), generator=generator), distances(classes)


def close(value, expected):
    return value.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


# The values.


@given(batches(), reals(-2.0, 4.0), temperatures)
def test_offset_cross_entropy_is_its_definition(batch, offset, tau):
    logits, labels, _ = tensors(batch)
    expected = mean(offset_cross_entropy, batch[0], batch[1], offset, tau)
    assert close(OffsetCrossEntropy(offset, tau)(logits, labels), expected)


@given(batches(), radii, temperatures)
def test_gloro_is_its_definition(batch, radius, tau):
    expected = mean(gloro, batch[0], batch[1], batch[2], radius, tau)
    assert close(GloRoLoss(radius, tau)(*tensors(batch)), expected)


@given(batches(), radii, temperatures)
def test_emma_is_its_definition(batch, radius, tau):
    expected = mean(emma, batch[0], batch[1], batch[2], radius, tau)
    assert close(EMMALoss(radius, tau)(*tensors(batch)), expected)


@given(batches(), radii, temperatures, reals(-2.0, 4.0), st.one_of(st.just(0.0), reals(0.2, 6.0)))
def test_logit_annealing_is_its_definition(batch, radius, tau, offset, power):
    expected = mean(annealing, batch[0], batch[1], batch[2], radius, tau, offset, power)
    assert close(LogitAnnealingLoss(radius, tau, offset, power)(*tensors(batch)), expected)


def test_the_defaults_of_logit_annealing_are_the_authors():
    z, y, constants = sample()
    lists = z.tolist(), y.tolist(), constants.tolist()
    assert close(LogitAnnealingLoss(0.5)(z, y, constants), mean(annealing, *lists, 0.5, 0.75, 2.0, 5.0))


def test_the_default_temperature_is_one():
    z, y, constants = sample()
    assert OffsetCrossEntropy(1.5)(z, y) == OffsetCrossEntropy(1.5, 1.0)(z, y)
    for build in (EMMALoss, GloRoLoss):
        assert build(0.5)(z, y, constants) == build(0.5, 1.0)(z, y, constants)


PAIR = torch.tensor([[0.0, 2.0], [2.0, 0.0]], dtype=torch.float64)
FIRST = torch.tensor([0])


def gap(loss, tau=1.0):
    """z'_other - z'_label of two classes, from tau * log(1 + exp(gap / tau))."""
    return tau * math.log(math.expm1(loss.item() / tau))


@pytest.mark.parametrize(
    ("margin", "gap_after"),
    [
        (3.0, -3.0 + 1.0),  # certified at 0.5: the rival gains all of 0.5 * 2
        (1.0, 0.0),  # on the boundary of the ball: both say the same
        (0.6, 0.0),  # right and not certified: level
        (0.01, 0.0),  # where the lower limit begins
        (0.004, -0.004 + 0.01),  # nearly level: a hundredth of 0.5 * 2
        (-0.7, 0.7 + 0.01),  # wrong: a hundredth
    ],
)
def test_emma_gives_each_rival_what_its_distance_to_the_boundary_says(margin, gap_after):
    logits = torch.tensor([[margin, 0.0]], dtype=torch.float64)
    for tau in (1.0, 0.4):
        assert gap(EMMALoss(0.5, tau)(logits, FIRST, PAIR), tau) == pytest.approx(gap_after, abs=1e-12)


def test_gloro_by_hand():
    """z = (2, 0.5, -1), D_01 = 1, D_02 = 4, radius 0.5: the third class may reach 1, the second only 1."""
    constants = torch.tensor([[0.0, 1, 4], [1, 0, 3], [4, 3, 0]], dtype=torch.float64)
    logits = torch.tensor([[2.0, 0.5, -1.25]], dtype=torch.float64)
    e = math.exp
    total = e(2.0) + e(0.5) + e(-1.25) + e(1.0)
    for label, z in enumerate((2.0, 0.5, -1.25)):
        value = GloRoLoss(0.5)(logits, torch.tensor([label]), constants)
        assert value.item() == pytest.approx(-math.log(e(z) / total), abs=1e-12)


def test_gloro_compares_with_the_predicted_class_and_not_with_the_label():
    constants = torch.tensor([[0.0, 1, 9], [1, 0, 2], [9, 2, 0]], dtype=torch.float64)
    logits = torch.tensor([[0.0, 1.0, -4.0]], dtype=torch.float64)  # predicted: class 1
    bottom = max(0.0 + 0.5 * 1, -4.0 + 0.5 * 2)
    expected = -math.log(math.exp(0.0) / sum(map(math.exp, (0.0, 1.0, -4.0, bottom))))
    assert GloRoLoss(0.5)(logits, FIRST, constants).item() == pytest.approx(expected, abs=1e-12)


def test_gloro_never_certifies_a_tie():
    """Of two tied logits one is left out, and the other gives the class `not robust` at least its value."""
    logits = torch.tensor([[1.0, 1.0, -9.0]], dtype=torch.float64)
    expected = -math.log(math.e / (2 * math.e + math.exp(-9) + math.exp(1 + 0.5 * 2)))
    constants = torch.full((3, 3), 2.0, dtype=torch.float64).fill_diagonal_(0)
    for label in (0, 1):
        value = GloRoLoss(0.5)(logits, torch.tensor([label]), constants)
        assert value.item() == pytest.approx(expected, abs=1e-12)


# Limits.


@given(batches(), temperatures)
def test_emma_with_radius_0_is_cross_entropy(batch, tau):
    expected = mean(cross_entropy, batch[0], batch[1], tau)
    assert close(EMMALoss(0.0, tau)(*tensors(batch)), expected)
    if tau == 1:
        assert close(nn.CrossEntropyLoss()(*tensors(batch)[:2]), expected)


@given(batches())
def test_gloro_with_radius_0_counts_the_runner_up_twice(batch):
    logits, labels, constants = tensors(batch)
    runner_up = logits.softmax(dim=1).topk(2).values[:, 1]
    expected = nn.CrossEntropyLoss()(logits, labels) + torch.log1p(runner_up).mean()
    assert close(GloRoLoss(0)(logits, labels, constants), expected.item())


@given(batches(), radii, reals(-1.0, 3.0), temperatures)
def test_annealing_with_power_0_is_offset_cross_entropy_of_shifted_logits(batch, radius, offset, tau):
    z, y, constants = batch
    shifted = [emma_logits(row, label, constants, radius) for row, label in zip(z, y, strict=True)]
    expected = OffsetCrossEntropy(offset, tau)(*tensors((shifted, y, constants))[:2])
    value = LogitAnnealingLoss(radius, tau, offset, power=0)(*tensors(batch))
    assert close(value, expected.item())


def test_a_small_temperature_leaves_the_largest_difference():
    logits, labels, _ = sample()
    shifted = [[z - 0.5 * (j == y) for j, z in enumerate(row)] for row, y in zip(*as_lists(logits, labels))]
    expected = sum(max(row) - row[y] for row, y in zip(shifted, labels.tolist(), strict=True)) / len(shifted)
    assert OffsetCrossEntropy(0.5, 1e-3)(logits, labels).item() == pytest.approx(expected, abs=2e-3)


def as_lists(*given):
    return [tensor.tolist() for tensor in given]


# What must not matter.


@every_radius_loss
@given(batches(), radii, reals(-50.0, 50.0))
@example((([[0.0, 0.0]]), [0], [[0.0, 1.0], [1.0, 0.0]]), 0.5, 7.0)
def test_adding_a_number_to_all_logits_changes_nothing(build, batch, radius, shift):
    logits, labels, constants = tensors(batch)
    logits = (64 * logits).round() / 64  # so that the sums below are exact, and no tie or order is lost
    shift = round(64 * shift) / 64
    before = build(radius)(logits, labels, constants)
    assert close(build(radius)(logits + shift, labels, constants), before.item())


@every_radius_loss
@pytest.mark.parametrize("seed", range(5))
def test_the_names_of_the_classes_do_not_matter(build, seed):
    logits, labels, constants = sample(seed=seed)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    inverse = order.argsort()
    renamed = logits[:, order], inverse[labels], constants[order][:, order]
    assert close(build(0.7)(*renamed), build(0.7)(logits, labels, constants).item())


def test_the_batch_is_averaged():
    logits, labels, constants = sample()
    for loss in (EMMALoss(0.5), GloRoLoss(0.5), LogitAnnealingLoss(0.5)):
        singles = [loss(logits[i : i + 1], labels[i : i + 1], constants).item() for i in range(len(logits))]
        assert close(loss(logits, labels, constants), sum(singles) / len(singles))


# Gradients.


def by_differences(function, at, step=1e-6):
    """The central differences of a function of a float64 tensor, entry by entry."""
    slopes = torch.zeros_like(at)
    for index in range(at.numel()):
        change = torch.zeros_like(at)
        change.view(-1)[index] = step
        slopes.view(-1)[index] = (function(at + change) - function(at - change)) / (2 * step)
    return slopes


def gradients(loss, logits, labels, constants):
    logits, constants = logits.clone().requires_grad_(), constants.clone().requires_grad_()
    return torch.autograd.grad(loss(logits, labels, constants), (logits, constants))


@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_of_gloro_is_that_of_its_value(seed):
    logits, labels, constants = sample(seed=seed)
    loss = GloRoLoss(0.6, 0.7)
    to_logits, to_constants = gradients(loss, logits, labels, constants)
    off_diagonal = 1 - torch.eye(5, dtype=torch.float64)
    expected = by_differences(lambda d: loss(logits, labels, (d * off_diagonal).abs()), constants)
    torch.testing.assert_close(to_logits, by_differences(lambda z: loss(z, labels, constants), logits))
    torch.testing.assert_close(to_constants * off_diagonal, expected)
    assert to_constants.abs().sum() > 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["emma", "annealing"])
def test_emma_holds_its_radii_still_and_lets_the_constants_have_a_gradient(name, seed):
    """The gradient is that of the loss with each rival's radius frozen at its value, in plain floats."""
    logits, labels, constants = sample(seed=seed)
    z, y, d = as_lists(logits, labels, constants)
    frozen = [
        [
            0.0 if j == label else min(max((row[label] - row[j]) / d[label][j], 0.01 * 0.6), 0.6)
            for j in range(5)
        ]
        for row, label in zip(z, y, strict=True)
    ]

    def value(z, d):
        shifted = [
            [row[j] + radii[j] * d[label][j] for j in range(5)]
            for row, label, radii in zip(z.tolist(), y, frozen, strict=True)
        ]
        if name == "emma":
            return mean(cross_entropy, shifted, y, 0.7)
        return mean(annealing, shifted, y, [[0.0] * 5] * 5, 0.0, 0.7, 1.0, 1.5)

    loss = EMMALoss(0.6, 0.7) if name == "emma" else LogitAnnealingLoss(0.6, 0.7, 1.0, 1.5)
    to_logits, to_constants = gradients(loss, logits, labels, constants)
    torch.testing.assert_close(to_logits, by_differences(lambda z: value(z, constants.tolist()), logits))
    torch.testing.assert_close(to_constants, by_differences(lambda d: value(logits, d.tolist()), constants))
    assert to_constants.abs().sum() > 0


def test_the_gradient_of_offset_cross_entropy_is_that_of_its_value():
    logits, labels, _ = sample()
    loss = OffsetCrossEntropy(1.5, 0.3)
    start = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(start, labels), start)
    torch.testing.assert_close(gradient, by_differences(lambda z: loss(z, labels), logits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_radius_loss
@given(batches(), radii)
def test_ties_equal_rows_and_the_diagonal_leave_every_gradient_finite(build, dtype, batch, radius):
    for gradient in gradients(build(radius), *tensors(batch, dtype)):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("power", [0, 1e-3, 0.1, 0.5, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_without_any_doubt_costs_nothing_and_has_a_finite_gradient(power, dtype):
    logits = torch.tensor([[900.0, 0.0, -5.0]], dtype=dtype)
    loss = LogitAnnealingLoss(0.5, power=power)
    arguments = logits, FIRST, distances(3).to(dtype)
    assert loss(*arguments).item() == 0
    assert all(torch.isfinite(gradient).all() for gradient in gradients(loss, *arguments))


@given(batches(), radii)
def test_a_constant_counts_for_nothing_where_two_rows_of_the_head_are_equal(batch, radius):
    logits, labels, _ = tensors(batch)
    zeros = torch.zeros(logits.shape[1], logits.shape[1], dtype=torch.float64)
    assert close(EMMALoss(radius)(logits, labels, zeros), nn.CrossEntropyLoss()(logits, labels).item())


@pytest.mark.parametrize("seed", range(3))
def test_a_larger_radius_or_constant_never_lowers_a_loss(seed):
    logits, labels, constants = sample(count=20, seed=seed)
    for build in (GloRoLoss, EMMALoss):
        values = [build(radius)(logits, labels, constants).item() for radius in (0, 0.1, 0.5, 1, 2)]
        assert values == sorted(values)
        assert values[0] < values[-1]
        assert build(0.5)(logits, labels, 2 * constants) == build(1.0)(logits, labels, constants)


# How they behave.


def test_the_loss_has_the_dtype_of_the_logits_and_works_in_float32():
    logits, labels, constants = sample()
    for loss in (EMMALoss(0.5, 0.5), GloRoLoss(0.5, 0.5), LogitAnnealingLoss(0.5)):
        exact = loss(logits, labels, constants)
        single = loss(logits.float(), labels, constants)  # the constants stay in float64
        assert (exact.dtype, single.dtype, single.ndim) == (torch.float64, torch.float32, 0)
        assert single.item() == pytest.approx(exact.item(), rel=1e-5)


def test_a_nan_logit_gives_nan_as_in_torch():
    logits, labels, constants = sample()
    logits[2, 3] = math.nan
    assert torch.isnan(nn.CrossEntropyLoss()(logits, labels))
    assert torch.isnan(OffsetCrossEntropy(1.0)(logits, labels))
    for loss in (EMMALoss(0.5), GloRoLoss(0.5), LogitAnnealingLoss(0.5)):
        assert torch.isnan(loss(logits, labels, constants))


def test_no_argument_is_changed():
    given_ = sample()
    before = copy.deepcopy(given_)
    OffsetCrossEntropy(2.0, 0.25)(*given_[:2])
    for loss in (EMMALoss(0.5, 0.5), GloRoLoss(0.5, 0.5), LogitAnnealingLoss(0.5)):
        loss(*given_)
    assert all(torch.equal(now, then) for now, then in zip(given_, before, strict=True))


def test_what_needs_constants_says_so():
    for loss in (EMMALoss(0.5), GloRoLoss(0.5), LogitAnnealingLoss(0.5)):
        assert type(loss).needs_constants is True
        assert RadiusRamp(loss).needs_constants is True
    assert not getattr(OffsetCrossEntropy(1.0), "needs_constants", False)


class Plain(nn.Module):
    """A loss of one's own, with a radius and without constants."""

    radius = 2

    def forward(self, logits, labels):
        return self.radius * logits.mean()


def test_a_ramp_passes_on_that_a_loss_needs_no_constants():
    ramp = RadiusRamp(Plain())
    assert ramp.needs_constants is False
    assert ramp.at(0).radius == pytest.approx(0.2)


@every_radius_loss
def test_a_ramp_grows_linearly_and_then_stays(build):
    loss = build(0.8)
    ramp = RadiusRamp(loss, start=0.25, until=0.4)
    grown = {0: 0.25, 0.1: 0.25 + 0.75 / 4, 0.2: 0.625, 0.3: 1 - 0.75 / 4, 0.4: 1, 0.7: 1, 0.999: 1, 1: 1}
    for progress, share in grown.items():
        assert ramp.at(progress).radius == pytest.approx(0.8 * share, rel=1e-12)
    assert [ramp.at(progress).radius for progress in (0.4, 0.7, 1)] == [0.8] * 3
    assert loss.radius == 0.8


@every_radius_loss
def test_the_loss_of_a_ramp_is_the_loss_of_that_radius(build):
    arguments = sample()
    ramp = RadiusRamp(build(0.8))
    for progress, radius in ((0, 0.08), (0.25, 0.44), (0.5, 0.8)):
        assert close(ramp.at(progress)(*arguments), build(radius)(*arguments).item())


def test_a_ramp_from_0_begins_with_cross_entropy():
    logits, labels, constants = sample()
    first = RadiusRamp(EMMALoss(1.0), start=0).at(0)
    assert close(first(logits, labels, constants), nn.CrossEntropyLoss()(logits, labels).item())


def test_a_ramp_is_not_a_loss_and_says_what_to_do():
    with pytest.raises(TypeError, match=r"ramp\.at\(progress\)"):
        RadiusRamp(EMMALoss(0.5))(*sample())


# Bad input that only a call meets; what a constructor refuses stands in tests/test_bad_input.py.


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"logits": None}, "NoneType"),
        ({"logits": torch.zeros(6, 5, dtype=torch.int64)}, "torch.int64"),
        ({"logits": torch.zeros(6, 5, dtype=torch.complex64)}, "torch.complex64"),
        ({"logits": torch.zeros(6, 5).to_sparse()}, "sparse"),
        ({"logits": torch.zeros(6, 5, device="meta")}, "meta"),
        ({"logits": torch.zeros(5)}, "(5,)"),
        ({"logits": torch.zeros(0, 5), "labels": torch.zeros(0).long()}, "(0, 5)"),
        ({"logits": torch.zeros(6, 1), "labels": torch.zeros(6).long()}, "(6, 1)"),
        ({"labels": [0] * 6}, "list"),
        ({"labels": torch.zeros(6)}, "torch.float32"),
        ({"labels": torch.zeros(6, dtype=torch.int32)}, "torch.int32"),
        ({"labels": torch.zeros(5).long()}, "(5,)"),
        ({"labels": torch.zeros(6, 1).long()}, "(6, 1)"),
        ({"labels": torch.zeros(6, device="meta").long()}, "meta"),
        ({"labels": torch.tensor([0, 1, 2, 3, 4, 5])}, "from 0 to 5"),
        ({"labels": torch.tensor([0, 1, 2, 3, 4, -100])}, "from -100 to 4"),
        ({"constants": None}, "pair_constants"),
        ({"constants": {(0, 1): 1.0}}, "dict"),
        ({"constants": torch.zeros(5, 5).long()}, "torch.int64"),
        ({"constants": torch.zeros(4, 4)}, "(4, 4)"),
        ({"constants": torch.zeros(5)}, "(5,)"),
        ({"constants": torch.zeros(5, 5, device="meta")}, "meta"),
        ({"constants": torch.full((5, 5), math.nan)}, "nan"),
        ({"constants": torch.full((5, 5), math.inf)}, "inf"),
        ({"constants": torch.full((5, 5), 1e300, dtype=torch.float64)}, "torch.float32"),
        ({"constants": torch.eye(5) - 1}, "-1"),
        ({"constants": torch.eye(5)}, "diagonal"),
    ],
)
def test_a_bad_call_is_named(change, word):
    good = {"logits": torch.zeros(6, 5), "labels": torch.arange(6) % 5, "constants": torch.ones(5, 5)}
    good["constants"].fill_diagonal_(0)
    assert math.isfinite(EMMALoss(0.5)(**good))
    losses = [EMMALoss(0.5), GloRoLoss(0.5), LogitAnnealingLoss(0.5)]
    for loss in losses:
        with pytest.raises((ValueError, TypeError)) as caught:
            loss(**(good | change))
        assert word in str(caught.value)
    if "constants" not in change:
        good.pop("constants")
        with pytest.raises((ValueError, TypeError)) as caught:
            OffsetCrossEntropy(1.0)(**(good | change))
        assert word in str(caught.value)


@pytest.mark.parametrize("radius", [10**400, -(10**400), math.nan, -math.inf])
def test_a_radius_that_no_float_holds_is_refused(radius):
    with pytest.raises(ValueError, match="radius must be finite"):
        EMMALoss(radius)


@pytest.mark.parametrize("progress", [-0.1, 1.1, math.nan, math.inf, "0.5", None, True])
def test_a_ramp_refuses_what_is_no_progress(progress):
    with pytest.raises((ValueError, TypeError), match="progress") as caught:
        RadiusRamp(EMMALoss(0.5)).at(progress)
    assert str(progress) in str(caught.value)


def test_the_values_stand_in_the_text_of_a_module():
    assert str(LogitAnnealingLoss(0.5)) == (
        "LogitAnnealingLoss(radius=0.5, temperature=0.75, offset=2.0, power=5.0)"
    )
    assert str(OffsetCrossEntropy(2, 0.25)) == "OffsetCrossEntropy(offset=2.0, temperature=0.25)"
    ramp = str(RadiusRamp(EMMALoss(0.5)))
    assert "start=0.1, until=0.5" in ramp
    assert "EMMALoss(radius=0.5, temperature=1.0)" in ramp
