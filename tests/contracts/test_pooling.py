"""MaxPool: constants that unit vectors reach, errors against exact maxima; windows as torch counts them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lipbook import UnsupportedLayerError
from lipbook.contracts import affine, check, enclose, expand, lipschitz, output_shape, slopes
from tests.windowed import assert_shapes_agree, forward_shape, poolings

ROUNDING = 1e-13
LAYERS = {
    "windows side by side": (lambda: nn.MaxPool2d(2), (2, 4, 4)),
    "overlapping, ceil_mode": (lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), (1, 6, 5)),
    "dilated sequence": (lambda: nn.MaxPool1d(3, 2, 1, dilation=2), (2, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_maximum_survives_the_attacks_and_its_constants_are_reached(name):
    build, shape = LAYERS[name]
    slack = check(build(), shape)
    assert set(slack) == {"enclose", "expand", "lipschitz_2", "lipschitz_inf", "output_shape", "output_norm"}
    assert slack["lipschitz_2"] < 1e-6 and slack["lipschitz_inf"] < 1e-6


@given(poolings())
def test_the_output_shape_is_that_of_the_forward_pass_or_both_refuse(drawn):
    assert_shapes_agree(*drawn)


@given(poolings(kinds=("maximum",)))
def test_norm_2_is_the_root_of_how_many_windows_see_one_unit_vector(drawn):
    layer, shape = drawn
    if forward_shape(layer, shape) is None:
        return
    size = math.prod(shape)
    seen = (layer(torch.eye(size).reshape(size, *shape)) > 0).flatten(1).sum(dim=1).max().item()
    bound = lipschitz(layer, 2, shape).verify(layer)
    assert seen <= bound.value**2 * (1 + ROUNDING) and bound.value**2 <= seen * (1 + ROUNDING)
    assert bound.method.startswith("exact")
    assert lipschitz(layer, 2).verify(layer).value >= bound.value
    assert lipschitz(layer, math.inf, shape).verify(layer).value == 1


@pytest.mark.parametrize("kernel, stride, dilation", [(3, 1, 1), (3, 2, 1), (3, 2, 2), (4, 3, 2), (2, 3, 1)])
def test_the_bound_at_every_size_is_that_of_a_large_sample(kernel, stride, dilation):
    layer = nn.MaxPool2d(kernel, stride, 0, dilation)
    assert lipschitz(layer).value == lipschitz(layer, 2, (1, 30, 30)).value


@given(poolings(kinds=("maximum",)), st.integers(0, 99))
def test_maxima_within_a_box_stay_within_its_largest_errors(drawn, seed):
    layer, shape = drawn
    if forward_shape(layer, shape) is None:
        return
    generator = torch.Generator().manual_seed(seed)
    center = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
    errors = torch.rand(1, *shape, generator=generator, dtype=torch.float64)
    values, allowed = enclose(layer, center, errors)
    assert torch.equal(values, layer(center))
    for corner in (center + errors, center - errors):
        assert ((layer(corner) - values).abs() <= allowed + ROUNDING).all()
    exact = enclose(layer, center, torch.zeros_like(center))
    assert torch.equal(exact[0], layer(center)) and not exact[1].any()


def test_a_maximum_is_a_primitive_without_slopes_or_a_matrix():
    layer = nn.MaxPool2d(2)
    assert expand(layer) == (layer,)
    with pytest.raises(UnsupportedLayerError, match="no slopes contract"):
        slopes(layer)
    with pytest.raises(UnsupportedLayerError, match="no affine contract"):
        affine(layer, (1, 4, 4))


def test_indices_are_refused():
    with pytest.raises(UnsupportedLayerError, match="return_indices=True.*set it to False"):
        lipschitz(nn.MaxPool2d(2, return_indices=True))


@pytest.mark.parametrize(
    "layer, shape, sentence",
    [
        (nn.MaxPool2d(3), (1, 4), "channels first, then a height and a width"),
        (nn.AvgPool1d(3), (1, 4, 4), "channels first, then a length"),
        (nn.MaxPool2d(3), (1, 4, 2), "3 pixels or more"),
        (nn.MaxPool1d(4, 2, ceil_mode=True), (1, 2), "3 pixels or more"),
        (nn.AvgPool2d((5, 3), padding=(2, 1), stride=1), (1, 1), r"\(1, 1\)"),
        (nn.MaxPool1d(2, 1, 1, dilation=3), (1, 2), "no window lies in the padding alone"),
    ],
    ids=str,
)
def test_a_sample_that_the_layer_does_not_take_is_refused(layer, shape, sentence):
    for contract in (output_shape, lambda layer, shape: lipschitz(layer, 2, shape)):
        with pytest.raises(ValueError, match=f"takes .*{sentence}"):
            contract(layer, shape)


@pytest.mark.parametrize(
    "layer, sentence",
    [
        (nn.MaxPool2d(3, padding=2), r"padding=2: use at most half of kernel_size=3"),
        (nn.AvgPool1d(2, padding=2), r"padding=\(2,\): use at most half"),
        (nn.MaxPool2d((2, 0)), r"kernel_size=\(2, 0\): set it to 2 whole numbers of at least 1"),
        (nn.MaxPool1d(2, stride=0), "stride=0: set it to a whole number, 1 or more"),
        (nn.MaxPool2d(2, dilation=1.0), "dilation=1.0"),
    ],
    ids=str,
)
def test_windows_with_which_torch_does_not_run_are_refused(layer, sentence):
    for contract in (output_shape, expand, lipschitz):
        with pytest.raises(UnsupportedLayerError, match=sentence):
            contract(layer, (1, 8, 8)) if contract is output_shape else contract(layer)
