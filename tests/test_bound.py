import dataclasses
import math
from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipbook import Ball, Bound, CertificateError, UnsupportedLayerError
from lipbook.bound import outward

positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
kinds = st.sampled_from(["upper", "lower"])


class Remembers:
    """A certificate that proves everything except the subject "refuse"."""

    def verify(self, bound, subject):
        self.seen = (bound, subject)
        if subject == "refuse":
            raise CertificateError("refused")


@given(positive, kinds)
def test_outward_never_rounds_towards_the_truth(value, kind):
    shown = Decimal(outward(value, kind))
    assert shown >= Decimal(value) if kind == "upper" else shown <= Decimal(value)


@given(st.floats(min_value=1e-300, allow_infinity=False), kinds, st.integers(1, 12))
def test_outward_is_off_by_less_than_one_unit_of_its_last_digit(value, kind, digits):
    exact = Decimal(value)
    unit = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    assert abs(Decimal(outward(value, kind, digits)) - exact) < unit


@given(positive, kinds)
def test_outward_shows_four_digits(value, kind):
    mantissa = outward(value, kind).split("e")[0].split("E")[0]
    assert len(mantissa.replace(".", "").strip("0")) <= 4


@pytest.mark.parametrize(
    ("value", "upper", "lower"),
    [(3.14159, "3.142", "3.141"), (0.5, "0.5000", "0.5000"), (99995.5, "100000", "99990"), (0.0, "0", "0")],
)
def test_outward_examples(value, upper, lower):
    assert (outward(value, "upper"), outward(value, "lower")) == (upper, lower)


@given(positive, kinds)
def test_the_repr_of_a_bound_is_true(value, kind):
    text = repr(Bound(value, kind))
    sign, shown = text.split("constant ")[1].split(",")[0].split()
    assert sign == {"upper": "<=", "lower": ">="}[kind]
    assert Decimal(shown) >= Decimal(value) if sign == "<=" else Decimal(shown) <= Decimal(value)


def test_an_upper_bound_may_be_infinite_and_a_lower_one_may_not():
    assert "<= inf" in repr(Bound(math.inf, "upper"))
    with pytest.raises(ValueError, match="lower bound.*inf"):
        Bound(math.inf, "lower")


@pytest.mark.parametrize(
    ("output", "words"),
    [(None, "constant <="), (3, "of logit 3"), ((3, 5), "of logits 3 - 5"), (0, "of logit 0")],
)
def test_a_bound_says_which_output_it_speaks_of(output, words):
    assert words in repr(Bound(1.0, "upper", output=output))


def test_a_bound_is_a_frozen_value():
    bound = Bound(2, "upper", norm=math.inf, output=(0, 1), method="svd", certificate=Remembers())
    assert isinstance(bound.value, float) and float(bound) == 2.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        bound.value = 1.0
    lowered = dataclasses.replace(bound, value=1.5)
    assert lowered.value == 1.5
    assert dataclasses.replace(lowered, value=2) == bound
    assert lowered != bound


def test_replace_checks_the_new_fields():
    with pytest.raises(ValueError, match="-1"):
        dataclasses.replace(Bound(2, "upper"), value=-1)


def test_equal_bounds_hash_alike_and_the_certificate_does_not_count():
    ball = Ball(torch.ones(3), 0.5)
    bounds = {Bound(2, "upper", region=ball, certificate=certificate) for certificate in (None, Remembers())}
    assert len(bounds) == 1
    assert bounds == {Bound(2, "upper", region=Ball(torch.ones(3, dtype=torch.float64), 0.5))}


def test_verify_hands_the_bound_and_the_subject_to_the_certificate_and_returns_the_bound():
    certificate = Remembers()
    bound = Bound(2, "upper", certificate=certificate)
    assert bound.verify("matrix") is bound
    assert certificate.seen == (bound, "matrix")
    with pytest.raises(CertificateError, match="refused"):
        bound.verify("refuse")


def test_a_bound_without_a_certificate_proves_nothing():
    with pytest.raises(CertificateError, match="no certificate"):
        Bound(2, "upper").verify(torch.eye(2))


def test_the_errors_are_of_the_kinds_that_python_has_for_them():
    assert issubclass(CertificateError, ArithmeticError)
    assert issubclass(UnsupportedLayerError, TypeError)


@given(
    entries=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5),
    radius=st.floats(0, 1e3),
    norm=st.sampled_from([2, math.inf]),
)
def test_equal_balls_are_equal_and_hash_alike_whatever_the_dtype(entries, radius, norm):
    single = Ball(torch.tensor(entries, dtype=torch.float32), radius, norm)
    double = Ball(torch.tensor(entries, dtype=torch.float64), radius, norm)
    assert single == double and hash(single) == hash(double)
    assert single != Ball(single.center, radius + 1, norm)
    assert single != Ball(single.center, radius, 2 if norm == math.inf else math.inf)
    assert single != Ball(single.center + 1, radius, norm)
    assert single != Ball(single.center[None], radius, norm)
    assert single != "a ball"


def test_a_ball_keeps_a_detached_copy_of_its_center():
    center = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    ball = Ball(center, 1)
    with torch.no_grad():
        center += 1
    assert ball.center.tolist() == [0.0, 0.0]
    assert not ball.center.requires_grad and ball.center.dtype == torch.float64


def test_a_ball_is_frozen_and_describes_itself_in_one_line():
    ball = Ball(torch.zeros(1, 8, 8), 0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ball.radius = 1.0
    assert repr(ball) == "Ball(center: 1x8x8, radius=0.1, norm=inf)"
    assert repr(dataclasses.replace(ball, norm=2)).endswith("norm=2)")
