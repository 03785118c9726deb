"""Average pooling, against the forward pass on a basis, an SVD, exact fractions and `check`."""

import dataclasses
import math
from fractions import Fraction

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lipbook import CertificateError, UnsupportedLayerError
from lipbook.contracts import affine, averaging, check, enclose, lipschitz
from tests.windowed import box_of_many_scales, forward_shape, operator, poolings

AVERAGES = ("average", "adaptive")
ROUNDING = 1e-13
LAYERS = {
    "windows side by side": (lambda: nn.AvgPool2d(2), (2, 4, 4)),
    "smaller divisors at the border": (
        lambda: nn.AvgPool2d((3, 2), 2, 1, ceil_mode=True, count_include_pad=False),
        (1, 6, 5),
    ),
    "a window cut off by ceil_mode": (lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), (1, 6, 4)),
    "a negative divisor": (lambda: nn.AvgPool2d(2, 1, divisor_override=-3), (1, 3, 4)),
    "sequence": (lambda: nn.AvgPool1d(3, 2, 1), (2, 7)),
    "adaptive": (lambda: nn.AdaptiveAvgPool2d((2, None)), (2, 5, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_an_average_survives_the_attacks_and_its_constants_are_reached(name):
    build, shape = LAYERS[name]
    slack = check(build(), shape)
    assert set(slack) == {
        "affine",
        "enclose",
        "expand",
        "lipschitz_2",
        "lipschitz_inf",
        "output_shape",
        "output_norm",
    }
    assert slack["lipschitz_2"] < 1e-6 and slack["lipschitz_inf"] < 1e-6


@given(poolings(AVERAGES))
def test_the_matrix_and_its_norms_are_those_of_the_forward_pass(drawn):
    layer, shape = drawn
    if forward_shape(layer, shape) is None:
        return
    weight, bias = affine(layer, shape)
    truth = operator(layer, shape)
    torch.testing.assert_close(weight, truth, rtol=2.0**-51, atol=0)
    assert not bias.any()
    for norm, kind in ((2, 2), (math.inf, numpy.inf)):
        largest = numpy.linalg.norm(truth.numpy(), kind)
        bound = lipschitz(layer, norm, shape).verify(layer)
        assert largest * (1 - ROUNDING) <= bound.value <= largest * (1 + 1e-9)


@given(poolings(AVERAGES))
def test_entries_are_quotients_rounded_once(drawn):
    layer, shape = drawn
    if forward_shape(layer, shape) is None:
        return
    for entry in affine(layer, shape)[0].unique().tolist():
        truth = Fraction(entry).limit_denominator(10**4)
        assert abs(Fraction(entry) - truth) <= Fraction(2) ** -53 * abs(truth)


@given(poolings(AVERAGES))
def test_bounds_of_long_axes_and_of_every_size_are_above_the_norm(drawn):
    layer, shape = drawn
    if forward_shape(layer, shape) is None:
        return
    matrix = operator(layer, shape).numpy()
    largest = numpy.linalg.norm(matrix, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(averaging, "_LARGEST_AXIS", 0)
        bound = lipschitz(layer, 2, shape).verify(layer)
    assert bound.value >= largest * (1 - ROUNDING) and bound.method == "row and column sums"
    rows = numpy.linalg.norm(matrix, numpy.inf)
    assert lipschitz(layer, math.inf).verify(layer).value >= rows * (1 - ROUNDING)
    if isinstance(layer, (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)):
        with pytest.raises(ValueError, match="depend on the size of its input: pass input_shape"):
            lipschitz(layer)
    else:
        assert lipschitz(layer).verify(layer).value >= largest * (1 - ROUNDING)


@pytest.mark.parametrize("kernel, stride", [(2, 2), (3, 2), (3, 1), (2, 3), (5, 3)])
def test_the_bound_at_every_size_is_reached_in_the_limit(kernel, stride):
    layer = nn.AvgPool1d(kernel, stride)
    everywhere, long = lipschitz(layer).value, lipschitz(layer, 2, (1, 400)).value
    assert long * (1 - 1e-9) <= everywhere <= long * 1.01


def exact_average(layer, shape, sample):
    """The averages of a sample of fractions, with the divisors of the forward pass as fractions."""
    rows = operator(layer, shape).tolist()
    quotients = [[Fraction(entry).limit_denominator(10**4) for entry in row] for row in rows]
    return [sum(q * number for q, number in zip(row, sample)) for row in quotients]


@given(poolings(AVERAGES), st.integers(0, 99), st.sampled_from([0.0, 1e-12, 0.3]))
def test_the_exact_images_of_a_box_are_within_the_errors_told(drawn, seed, reach):
    layer, shape = drawn
    if forward_shape(layer, shape) is None:
        return
    center, reaches, scales = box_of_many_scales(shape, seed, reach)
    values, errors = enclose(layer, center[None], reaches[None])
    if reach == 0:
        assert (errors <= 1e-13 * scales.max()).all()
    middle, far = ([Fraction(number) for number in tensor.flatten().tolist()] for tensor in (center, reaches))
    for sign in (0, 1, -1):
        images = exact_average(layer, shape, [x + sign * r for x, r in zip(middle, far)])
        told = zip(values.flatten().tolist(), errors.flatten().tolist(), images, strict=True)
        assert all(abs(Fraction(value) - image) <= Fraction(error) for value, error, image in told)


@pytest.mark.parametrize("norm", [2, math.inf])
@pytest.mark.parametrize("shape", [(1, 9, 8), None])
def test_a_certificate_proves_nothing_lower_and_reads_the_layer_again(norm, shape):
    layer = nn.AvgPool2d(3, 2, divisor_override=5)
    bound = lipschitz(layer, norm, shape)
    assert bound.verify(layer) is bound
    with pytest.raises(CertificateError, match="not proved"):
        dataclasses.replace(bound, value=0.99 * bound.value).verify(layer)
    layer.divisor_override = 4
    with pytest.raises(CertificateError, match="not proved"):
        bound.verify(layer)


@pytest.mark.parametrize(
    "layer, sentence",
    [
        (nn.AvgPool2d(2, divisor_override=0), "divisor_override=0: use None, or a whole number other than 0"),
        (nn.AvgPool2d(2, divisor_override=1.5), "divisor_override=1.5"),
        (nn.AdaptiveAvgPool2d((2, 0)), r"output_size=\(2, 0\)"),
        (nn.AdaptiveAvgPool1d("2"), "output_size='2'"),
        (nn.AdaptiveAvgPool2d((1, 2, 3)), r"output_size=\(1, 2, 3\)"),
    ],
    ids=str,
)
def test_attributes_with_which_torch_does_not_run_are_refused(layer, sentence):
    with pytest.raises(UnsupportedLayerError, match=sentence):
        lipschitz(layer, math.inf)


def test_a_huge_matrix_is_refused_and_its_norm_is_not():
    layer = nn.AvgPool2d(2)
    with pytest.raises(ValueError, match="12544 x 50176 numbers"):
        affine(layer, (1, 224, 224))
    assert lipschitz(layer, 2, (64, 224, 224)).verify(layer).value == pytest.approx(0.5, rel=1e-9)
