"""`ToBall` and `ToSphere`: attacked, compared with exact fractions, and with what a norm is."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lipbook import UnsupportedLayerError
from lipbook.contracts import check, enclose, lipschitz, output_norm
from lipbook.layers import MaxMin, ToBall, ToSphere
from lipbook.training import certified_radius

SAMPLES = st.lists(st.floats(-1e150, 1e150), min_size=3, max_size=3)


@pytest.mark.parametrize("kind, slack", [(ToBall, 1e-6), (ToSphere, None)])
def test_the_contracts_survive_the_attacks(kind, slack):
    found = check(kind(1.5), (6,))
    assert found["output_norm"] < 1e-9
    if slack is not None:
        assert found["lipschitz_2"] < slack


@given(x=SAMPLES, radius=st.floats(1e-100, 1e100))
def test_the_point_of_the_ball_lies_where_exact_arithmetic_puts_it(x, radius):
    values, errors = enclose(
        ToBall(radius), torch.tensor([x], dtype=torch.float64), torch.zeros(1, 3).double()
    )
    square = sum(Fraction(entry) ** 2 for entry in x)
    for value, error, entry in zip(values[0].tolist(), errors[0].tolist(), x):
        if square <= Fraction(radius) ** 2:
            assert abs(Fraction(value) - Fraction(entry)) <= Fraction(error)
        else:  # entry * radius / |x|, compared by squares
            low, high = (Fraction(value) + sign * Fraction(error) for sign in (-1, 1))
            true = Fraction(entry) ** 2 * Fraction(radius) ** 2 / square * (1 if entry > 0 else -1)
            assert low * abs(low) <= true <= high * abs(high)


@pytest.mark.parametrize("size", [0.0, 1e-30, 0.5, 2.0, 1e30])
def test_the_norms_are_those_promised_and_directions_stay(size):
    x = torch.randn(4, 1, 5, 5)
    x = size * x / x.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    ball, sphere = ToBall(2.0)(x), ToSphere(2.0)(x)
    assert torch.allclose(ball.flatten(1).norm(dim=1), torch.tensor(min(size, 2.0)), rtol=1e-5)
    assert torch.allclose(sphere.flatten(1).norm(dim=1), torch.tensor(2.0 if size else 0.0), rtol=1e-5)
    if size:
        assert torch.allclose(sphere.double() * size / 2, x.double(), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_samples_of_the_smallest_and_the_largest_floats_have_the_promised_norm(dtype):
    info = torch.finfo(dtype)
    x = torch.tensor(
        [[info.tiny * info.eps, 0.0, 0.0], [-info.tiny, info.tiny, 0.0], [info.max, 0.0, info.max]],
        dtype=torch.float64,
    )
    for layer in (ToBall(2.0), ToSphere(2.0)):
        assert (layer(x.to(dtype)).double().norm(dim=1) <= 2 * (1 + 4 * info.eps)).all()
    assert torch.allclose(
        ToSphere(2.0)(x.to(dtype)).double().norm(dim=1), x.new_tensor(2.0), rtol=4 * info.eps
    )


def test_a_nan_pixel_stays_visible():
    x = torch.tensor([[math.nan, 1.0]])
    assert ToBall(1.0)(x).isnan().any() and ToSphere(1.0)(x).isnan().any()


def test_output_norms_are_the_radius_or_what_came_in():
    assert output_norm(ToBall(2.0), 1.0) == 1.0
    assert output_norm(ToBall(2.0), math.inf) == output_norm(ToSphere(2.0), math.inf) == 2.0


def test_a_sphere_has_no_lipschitz_constant_and_a_ball_has_a_certificate():
    with pytest.raises(UnsupportedLayerError, match="ToBall"):
        lipschitz(ToSphere(1.0), 2)
    with pytest.raises(UnsupportedLayerError, match="norm 2 only"):
        lipschitz(ToBall(1.0), math.inf)
    assert lipschitz(ToBall(1.0), 2).verify(ToBall(1.0)).value == 1.0


def test_a_model_that_begins_with_a_ball_is_certified_and_an_attack_respects_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), ToBall(1.0), nn.Linear(6, 4), MaxMin(), nn.Linear(4, 3))
    x = torch.randn(20, 6)
    radii = certified_radius(model, x)
    assert (radii > 0).any()
    for direction in torch.randn(30, 20, 6):
        moved = x + (0.999 * radii[:, None] * direction / direction.norm(dim=1, keepdim=True)).float()
        assert (model(moved).argmax(1) == model(x).argmax(1))[radii > 1e-3].all()


@pytest.mark.parametrize("radius", [0, -1.0, math.nan, math.inf, "1", True])
@pytest.mark.parametrize("kind", [ToBall, ToSphere])
def test_a_radius_that_is_none_is_refused(kind, radius):
    with pytest.raises((ValueError, TypeError), match="radius must be"):
        kind(radius)
