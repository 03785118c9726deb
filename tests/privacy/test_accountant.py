"""The accountant against closed forms, numerical integration of one step, and itself."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from lipbook.privacy.accountant import epsilon, epsilon_of, noise_multiplier

REFERENCE = (1.4412, 4096 / 60000, 146, 1e-5)  # noise multiplier, sampling rate, steps, delta


def gaussian_delta(multiplier, at):
    """The exact delta of one Gaussian release (Balle and Wang 2018, theorem 8)."""
    half = 1 / (2 * multiplier)
    return norm.cdf(half - at * multiplier) - math.exp(at) * norm.cdf(-half - at * multiplier)


def gaussian_epsilon(multiplier, delta):
    return brentq(lambda at: gaussian_delta(multiplier, at) - delta, 0, 500)


def one_step_deltas(multiplier, rate, at):
    """Both hockey-stick divergences of one subsampled Gaussian at epsilon = `at`, by the trapezoidal rule."""
    x = np.linspace(-14 * multiplier - 1, 14 * multiplier + 2, 400_001)
    without = norm.pdf(x, 0, multiplier)
    mixture = (1 - rate) * without + rate * norm.pdf(x, 1, multiplier)
    pairs = ((mixture, without), (without, mixture))
    return [np.trapezoid(np.maximum(p - math.exp(at) * q, 0), x) for p, q in pairs]


@pytest.mark.parametrize("multiplier", [0.3, 0.8, 2.0, 20.0])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9])
def test_one_gaussian_is_the_closed_form_from_above(multiplier, delta):
    exact = gaussian_epsilon(multiplier, delta) if gaussian_delta(multiplier, 0) > delta else 0
    assert exact - 1e-6 <= epsilon(multiplier, 1, 1, delta) <= exact * 1.001 + 1e-4


@pytest.mark.parametrize("multiplier, rate", [(0.6, 0.01), (0.8, 0.5), (1.0, 0.07), (2.0, 0.3)])
def test_one_subsampled_step_is_the_integral_in_the_worse_direction(multiplier, rate):
    delta = 1e-4
    found = epsilon(multiplier, rate, 1, delta)
    assert max(one_step_deltas(multiplier, rate, found)) <= delta * (1 + 1e-6)
    assert max(one_step_deltas(multiplier, rate, 0.998 * found)) > delta


@pytest.mark.parametrize("method", ["pld", "rdp"])
def test_composition_without_subsampling_is_less_noise(method):
    assert epsilon(3.0, 1, 9, 1e-5, method) == pytest.approx(epsilon(1.0, 1, 1, 1e-5, method), rel=1e-3)


def test_different_noise_adds_in_inverse_squares():
    exact = gaussian_epsilon((5 / 4 + 2 / 9 + 1 / 100) ** -0.5, 1e-5)
    found = epsilon_of([(2.0, 5), (3.0, 2), (10.0, 1)], 1, 1e-5)
    assert exact - 1e-6 <= found <= exact * 1.001


def test_groups_released_together_are_one_gaussian_subsampled_once():
    _, *rest = REFERENCE
    together = epsilon([2.5] * 3, *rest)
    assert together == pytest.approx(epsilon(2.5 / math.sqrt(3), *rest), rel=1e-4)
    joint = (1 / 2.0**2 + 1 / 3.0**2) ** -0.5
    assert epsilon([2.0, 3.0], *rest) == pytest.approx(epsilon(joint, *rest), rel=1e-6)
    apart = epsilon(2.5, rest[0], 3 * rest[1], rest[2])
    assert apart < 0.9 * together, "subsampling each group separately claims less"


def test_order_and_grouping_do_not_matter():
    rate, delta = 0.1, 1e-5
    once = epsilon_of([(1.0, 10), (2.0, 20)], rate, delta)
    again = epsilon_of([(2.0, 12), (1.0, 7), (2.0, 8), (1.0, 3), (9.0, 0)], rate, delta)
    assert once == again


def test_multipliers_that_differ_by_rounding_cost_the_same():
    sigma, *rest = REFERENCE
    for sensitivity in (0.7, 1 / 3, 1.2124355652982141):
        assert epsilon(sigma * sensitivity / sensitivity, *rest) == epsilon(sigma, *rest)


@pytest.mark.parametrize("multiplier, rate, steps", [(1.4412, 0.068, 146), (0.7, 0.01, 500), (5.0, 1, 20)])
def test_renyi_costs_more(multiplier, rate, steps):
    tight = epsilon(multiplier, rate, steps, 1e-5)
    loose = epsilon(multiplier, rate, steps, 1e-5, "rdp")
    assert tight < loose < 1.3 * tight


@pytest.mark.parametrize("method", ["pld", "rdp"])
def test_monotone_in_every_argument(method):
    sigma, rate, steps, delta = REFERENCE
    base = epsilon(sigma, rate, steps, delta, method)
    assert epsilon(0.99 * sigma, rate, steps, delta, method) > base
    assert epsilon(sigma, 1.01 * rate, steps, delta, method) > base
    assert epsilon(sigma, rate, steps + 2, delta, method) > base
    assert epsilon(sigma, rate, steps, 0.9 * delta, method) > base


def test_monotone_where_one_accountant_hands_over_to_the_other():
    costs = [epsilon(sigma, 0.1, 50, 1e-5) for sigma in (0.5, 0.4, 0.35, 0.3, 0.25, 0.2, 0.1, 0.01, 1e-4)]
    assert costs == sorted(costs)
    assert costs[-1] == math.inf


@pytest.mark.parametrize("method", ["pld", "rdp"])
@pytest.mark.parametrize("target, rate, steps", [(3, 0.0683, 146), (120, 0.1, 5), (1, 1, 1)])
def test_the_noise_found_meets_the_target_and_hardly_more(method, target, rate, steps):
    sigma = noise_multiplier(target, rate, steps, 1e-5, method)
    assert float(f"{sigma:.5g}") == sigma
    assert epsilon(sigma, rate, steps, 1e-5, method) <= target
    assert epsilon(0.9997 * sigma, rate, steps, 1e-5, method) > target


def test_the_noise_of_one_gaussian_is_the_closed_form():
    exact = brentq(lambda sigma: gaussian_epsilon(sigma, 1e-6) - 2, 0.5, 20)
    assert exact <= noise_multiplier(2, 1, 1, 1e-6) <= 1.001 * exact


def test_nothing_released_costs_nothing():
    assert epsilon(1.0, 0.5, 0, 1e-5) == 0
    assert epsilon_of([], 0.5, 1e-5) == 0
    assert epsilon(0.0, 0.5, 0, 1e-5) == 0


def test_no_noise_costs_everything():
    assert epsilon(0.0, 0.5, 1, 1e-5) == math.inf
    assert epsilon([1.0, 0.0], 0.5, 1, 1e-5) == math.inf
