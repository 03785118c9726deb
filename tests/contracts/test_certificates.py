"""The product of factors, rounded up, and what the certificates of layers refuse."""

import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lipbook import Ball, Bound, CertificateError
from lipbook.contracts import lipschitz, output_shape
from lipbook.contracts.certificates import product_up
from lipbook.contracts.stock import recomputed
from lipbook.layers import Residual


@given(st.lists(st.floats(0, 1e200), max_size=6))
def test_the_product_is_never_below_the_exact_one(factors):
    product, exact = product_up(factors), math.prod(map(Fraction, factors))
    if not math.isinf(product):
        assert Fraction(product) >= exact
        assert Fraction(product) <= exact * (1 + Fraction(1, 10**14)) + Fraction(5e-324)


def test_products_that_a_float_holds_are_exact():
    assert product_up([]) == product_up([1.0] * 50) == 1.0
    assert product_up([0.5, 3.0, 2.0]) == 3.0
    assert product_up([math.inf, 0.0]) == 0.0 and product_up([math.inf, 2.0]) == math.inf
    assert product_up([1e-200, 1e-200]) > 0


NET = [nn.Linear(4, 4), nn.GELU(), nn.BatchNorm1d(4).eval(), nn.Linear(4, 2)]


@pytest.mark.parametrize("layer", [*NET[:3], nn.Sequential(*NET)], ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("norm", [2, math.inf])
def test_a_bound_of_another_form_is_refused(layer, norm):
    bound = lipschitz(layer, norm)
    other = math.inf if norm == 2 else 2
    for change in ({"norm": other}, {"kind": "lower"}, {"output": 0}, {"output": (0, 1)}):
        with pytest.raises(CertificateError):
            dataclasses.replace(bound, **change).verify(layer)
    dataclasses.replace(bound, region=Ball(torch.zeros(4), 1.0)).verify(layer)


def test_the_stored_values_of_the_factors_are_not_trusted():
    layer = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    bound = lipschitz(layer)
    small = dataclasses.replace(bound.certificate.factors[0], value=bound.value / 2)
    forged = dataclasses.replace(bound.certificate, factors=(small, bound.certificate.factors[1]))
    with pytest.raises(CertificateError):
        dataclasses.replace(bound, value=bound.value / 2, certificate=forged).verify(layer)


class OnlyInside:
    """Proves any bound that is about a region."""

    def verify(self, bound, subject):
        if bound.region is None:
            raise CertificateError("everywhere is too much.")


def test_a_bound_on_a_region_is_no_factor_of_a_bound_everywhere():
    local = Bound(1e-3, "upper", region=Ball(torch.zeros(4), 1.0), certificate=OnlyInside())
    local.verify(nn.ReLU())
    chain, shortcut = nn.Sequential(nn.ReLU()), Residual(nn.ReLU())
    product, sum_ = lipschitz(chain), lipschitz(shortcut)
    for layer, bound, certificate in (
        (chain, product, dataclasses.replace(product.certificate, factors=(local,))),
        (shortcut, sum_, dataclasses.replace(sum_.certificate, inner=local)),
    ):
        with pytest.raises(CertificateError, match="is about a region"):
            dataclasses.replace(bound, certificate=certificate).verify(layer)


def test_a_weight_one_percent_larger_is_noticed():
    layer = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    for norm in (2, math.inf):
        bound = lipschitz(layer, norm)
        with torch.no_grad():
            layer[2].weight.mul_(1.01)
        with pytest.raises(CertificateError):
            bound.verify(layer)


def test_an_attribute_that_changed_is_noticed():
    layer = nn.LeakyReLU(0.1)
    bound = lipschitz(layer)
    layer.negative_slope = -2.0
    with pytest.raises(CertificateError, match="needs 2.0"):
        bound.verify(layer)


class TimesHundred(nn.Linear):
    def forward(self, x):
        return 100 * super().forward(x)


class Shortcut(nn.Sequential):
    def forward(self, x):
        return x + 100 * super().forward(x)


@lipschitz.register(TimesHundred)
def _times_hundred(layer, norm, input_shape):
    return Bound(1e6, "upper", norm=norm)


@lipschitz.register(Shortcut)
def _shortcut(layer, norm, input_shape):
    return Bound(1e6, "upper", norm=norm)


@pytest.mark.parametrize("norm", [2, math.inf])
def test_a_subclass_with_a_contract_of_its_own_is_another_layer(norm):
    linear = nn.Linear(3, 3)
    other = TimesHundred(3, 3)
    other.load_state_dict(linear.state_dict())
    for stock, subclass in (
        (linear, other),
        (nn.Sequential(linear, nn.ReLU()), nn.Sequential(other, nn.ReLU())),
        (nn.Sequential(linear, nn.ReLU()), Shortcut(linear, nn.ReLU())),
    ):
        with pytest.raises(CertificateError):
            lipschitz(stock, norm).verify(subclass)


def test_a_factor_that_is_not_proved_is_named():
    model = nn.Sequential(nn.Linear(3, 3), TimesHundred(3, 3))
    with pytest.raises(CertificateError, match="layer 1, TimesHundred"):
        lipschitz(model).verify(model)


def test_a_layer_whose_weight_is_no_matrix_any_more_is_refused_as_a_certificate():
    bound, layer = lipschitz(nn.Linear(3, 3)), nn.Linear(3, 3)
    layer.weight = nn.Parameter(torch.ones(3))
    with pytest.raises(CertificateError):
        bound.verify(layer)


@pytest.mark.parametrize("norm", [2, math.inf])
def test_an_inflated_certificate_asks_for_that_much_more(norm):
    """A weight that is known within a half proves 3/2 of its norm, and nothing below."""
    layer = nn.Linear(4, 4)
    bound = lipschitz(layer, norm)
    inflated = dataclasses.replace(bound.certificate, inflation=0.5)
    enough = dataclasses.replace(bound, value=1.5 * bound.value * (1 + 1e-12), certificate=inflated)
    assert enough.verify(layer) is enough
    for factor in (1.0, 1.499999):
        with pytest.raises(CertificateError):
            dataclasses.replace(enough, value=factor * bound.value).verify(layer)


class Wider(nn.Module):
    """A layer whose constant grows with the size of its input."""

    def forward(self, x):
        return x * x.shape[1] ** 0.5


def test_a_product_is_proved_only_for_the_shapes_that_it_was_computed_for():
    lipschitz.register(Wider, lambda layer, norm, shape: recomputed(shape[0] ** 0.5, norm, shape, "size"))
    output_shape.register(Wider, lambda layer, shape: shape)
    narrow, wide = (nn.Sequential(nn.Linear(n, n, bias=False), Wider()) for n in (4, 100))
    for model in (narrow, wide):
        model[0].weight.data = torch.eye(len(model[0].weight))
    bound = lipschitz(narrow, 2, (4,))
    assert bound.verify(narrow).value < 2.001
    with pytest.raises(CertificateError):
        bound.verify(wide)
