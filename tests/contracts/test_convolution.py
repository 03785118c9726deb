"""Convolutions as matrices and as enclosures, against the forward pass, exact fractions and `check`."""

import itertools
import math
from fractions import Fraction

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from lipbook import UnsupportedLayerError
from lipbook.contracts import affine, check, enclose, expand, lipschitz, output_shape
from tests.windowed import assert_shapes_agree, box_of_many_scales, convolutions, forward_shape, operator

QUICK = {
    "every attribute": (lambda: nn.Conv2d(4, 2, (3, 2), (2, 1), (1, 0), (1, 2), groups=2), (4, 5, 6)),
    "circular, repeated rows": (
        lambda: nn.Conv2d(1, 2, 3, padding=(1, 3), padding_mode="circular", stride=2),
        (1, 5, 4),
    ),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3, 2, 1, output_padding=1), (2, 3, 2)),
    "float16": (lambda: nn.Conv2d(2, 2, 2).half(), (2, 3, 3)),
}
THOROUGH = {
    "sequence": (lambda: nn.Conv1d(2, 3, 3, 2, 1), (2, 7)),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Conv2d(2, 2, 2)), (2, 3, 3)),
    "zeros": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 4, 5)),
    "same, one zero more behind": (lambda: nn.Conv2d(1, 2, (4, 2), padding="same"), (1, 4, 3)),
    "circular": (lambda: nn.Conv2d(2, 2, (3, 4), padding="same", padding_mode="circular"), (2, 5, 4)),
    "reflect": (lambda: nn.Conv2d(1, 2, 3, padding=2, padding_mode="reflect"), (1, 4, 3)),
    "replicate": (lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="replicate", stride=2), (1, 4, 5)),
    "transposed, more output padding than stride": (
        lambda: nn.ConvTranspose2d(1, 2, 3, 1, 1, output_padding=(2, 1), dilation=(3, 2)),
        (1, 3, 2),
    ),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Conv1d(2, 3, 2)), (2, 4)),
    "valid": (lambda: nn.Conv2d(1, 2, 3, padding="valid", bias=False), (1, 4, 5)),
    "a kernel larger than the circle": (
        lambda: nn.Conv2d(1, 2, 5, padding=2, padding_mode="circular"),
        (1, 3, 2),
    ),
    "same, reflected": (
        lambda: nn.Conv2d(1, 2, 3, padding="same", padding_mode="reflect", dilation=2),
        (1, 4, 5),
    ),
    "sequence, circular, depthwise": (
        lambda: nn.Conv1d(4, 4, 4, padding="same", groups=4, padding_mode="circular"),
        (4, 6),
    ),
    "sequence, reflected": (lambda: nn.Conv1d(1, 3, 3, 2, 2, padding_mode="reflect"), (1, 6)),
    "sequence, replicated": (lambda: nn.Conv1d(2, 1, 3, padding=2, padding_mode="replicate"), (2, 4)),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(4, 2, 2, (1, 2), groups=2), (4, 3, 2)),
    "transposed, gaps": (lambda: nn.ConvTranspose2d(1, 1, (2, 3), 3), (1, 2, 2)),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Conv2d(2, 3, 2)).eval(), (2, 3, 3)),
    "float64": (lambda: nn.Conv2d(2, 3, 2).double(), (2, 3, 3)),
    "bfloat16, one pixel": (lambda: nn.Conv2d(3, 2, 1).bfloat16(), (3, 2, 2)),
    "channels last": (lambda: nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last), (2, 3, 3)),
}


def seeded(build):
    torch.manual_seed(0)
    return build()


@pytest.mark.parametrize("name", QUICK)
def test_every_convolution_survives_the_attacks(name):
    build, shape = QUICK[name]
    survives(build, shape)


@pytest.mark.thorough
@pytest.mark.parametrize("name", THOROUGH)
def test_more_convolutions_survive_the_attacks(name):
    build, shape = THOROUGH[name]
    survives(build, shape)


def survives(build, shape):
    layer = seeded(build)
    slack = check(layer, shape)
    assert set(slack) - {"parameter_gradient_norm"} == {
        "affine",
        "enclose",
        "expand",
        "lipschitz_2",
        "lipschitz_inf",
        "output_shape",
        "output_norm",
    }
    assert lipschitz(layer, 2, shape).method.startswith("exact") == (slack["lipschitz_2"] < 0.01)


@given(convolutions())
def test_the_output_shape_is_that_of_the_forward_pass_or_both_refuse(drawn):
    assert_shapes_agree(*drawn)


@given(convolutions())
def test_the_matrix_holds_the_stored_numbers(drawn):
    layer, shape = drawn
    if forward_shape(layer, shape) is None:
        return
    weight, bias = affine(layer, shape)
    truth = operator(layer, shape)
    torch.testing.assert_close(weight, truth, rtol=0, atol=1e-15)  # the forward pass sums where taps fold
    stored = {0.0, *layer.weight.flatten().tolist()}
    if layer.padding_mode == "zeros":
        assert torch.equal(weight, truth) and set(weight.unique().tolist()) <= stored
    x = torch.zeros(1, *shape, dtype=torch.float64)
    assert torch.equal(bias, layer.double()(x).detach().flatten())


def test_taps_that_fold_on_one_pixel_are_summed_with_one_rounding():
    layer = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False).double()
    layer.weight.data = torch.tensor([[[1.0, 1e-20, -1.0]]], dtype=torch.float64)
    assert affine(layer, (1, 1))[0].item() == 1e-20


def test_a_huge_matrix_is_refused_before_it_is_written():
    layer = nn.Conv2d(1, 64, 3, padding=1)
    with pytest.raises(ValueError, match="1048576 x 16384 numbers"):
        affine(layer, (1, 128, 128))
    assert output_shape(layer, (1, 128, 128)) == (64, 128, 128)


def exact_images(layer, sample):
    """The images of a sample of fractions (channels, ...), by the definition of the layer."""
    weight = rational(layer.weight)
    images = (
        slid_back(layer, weight, sample)
        if isinstance(layer, nn.ConvTranspose2d)
        else slid(layer, weight, sample)
    )
    if layer.bias is not None:
        images = images + rational(layer.bias).reshape(-1, *[1] * (images.ndim - 1))
    return images


def rational(tensor):
    numbers = [Fraction(number) for number in tensor.detach().double().flatten().tolist()]
    return numpy.array(numbers, dtype=object).reshape(tuple(tensor.shape))


def slid(layer, weight, sample):
    """Every window of the padded sample, times the kernel."""
    border = layer._reversed_padding_repeated_twice
    pads = [(0, 0), *[(border[k], border[k + 1]) for k in range(len(border) - 2, -1, -2)]]
    names = {"zeros": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}
    padded = numpy.pad(sample, pads, mode=names[layer.padding_mode]) + Fraction(0)
    kernel, inputs = weight.shape[2:], weight.shape[1]
    outputs = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(padded.shape[1:], kernel, layer.stride, layer.dilation)
    ]
    images = numpy.full((len(weight), *outputs), Fraction(0), dtype=object)
    per_group = len(weight) // layer.groups
    for place in itertools.product(range(len(weight)), *map(range, outputs)):
        group = place[0] // per_group
        for tap in itertools.product(range(inputs), *map(range, kernel)):
            at = [o * s + t * d for o, s, t, d in zip(place[1:], layer.stride, tap[1:], layer.dilation)]
            images[place] += weight[(place[0], *tap)] * padded[(group * inputs + tap[0], *at)]
    return images


def slid_back(layer, weight, sample):
    """Every input pixel, added into the outputs that its copy of the kernel covers."""
    inputs, per_group = weight.shape[:2]
    kernel = weight.shape[2:]
    outputs = [
        (size - 1) * s - 2 * p + d * (k - 1) + extra + 1
        for size, k, s, p, d, extra in zip(
            sample.shape[1:], kernel, layer.stride, layer.padding, layer.dilation, layer.output_padding
        )
    ]
    images = numpy.full((per_group * layer.groups, *outputs), Fraction(0), dtype=object)
    for place in numpy.ndindex(sample.shape):
        group = place[0] // (inputs // layer.groups)
        for tap in itertools.product(range(per_group), *map(range, kernel)):
            at = [
                i * s + t * d - p
                for i, s, t, d, p in zip(place[1:], layer.stride, tap[1:], layer.dilation, layer.padding)
            ]
            if all(0 <= a < size for a, size in zip(at, outputs)):
                images[(group * per_group + tap[0], *at)] += weight[(place[0], *tap)] * sample[place]
    return images


def within(layer, sample, values, errors):
    """Whether the exact images of a sample of fractions are within `errors` of `values`."""
    images = exact_images(layer, sample).flatten().tolist()
    told = zip(values.flatten().tolist(), errors.flatten().tolist(), images, strict=True)
    return all(abs(Fraction(value) - image) <= Fraction(error) for value, error, image in told)


@given(convolutions(), st.integers(0, 99), st.sampled_from([0.0, 1e-12, 0.3]))
def test_the_exact_images_of_a_box_are_within_the_errors_told(drawn, seed, reach):
    layer, shape = drawn
    if forward_shape(layer, shape) is None:
        return
    center, reaches, _ = box_of_many_scales(shape, seed, reach)
    values, errors = enclose(layer, center[None], reaches[None])
    for signs in (0, 1, -1, torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed))):
        corner = rational(center) + rational(reaches) * (
            rational(signs) if isinstance(signs, torch.Tensor) else signs
        )
        assert within(layer, corner, values, errors)


def test_the_errors_of_an_enclosure_are_a_few_roundings():
    layer = seeded(lambda: nn.Conv2d(3, 4, 3, padding=1))
    x = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    errors = enclose(layer, x, torch.zeros_like(x))[1]
    assert 0 < errors.max().item() < 1e-13


def test_what_is_not_known_of_a_pixel_is_not_known_of_what_reads_it():
    layer = seeded(lambda: nn.Conv2d(1, 1, 3, padding=1))
    errors = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    errors[0, 0, 0, 0] = math.inf
    unknown = enclose(layer, torch.zeros_like(errors), errors)[1][0, 0] == math.inf
    assert unknown[:2, :2].all() and unknown.sum() == 4


def test_an_overflow_is_an_infinite_error():
    layer = nn.Conv1d(1, 1, 2, bias=False).double()
    layer.weight.data = torch.full_like(layer.weight, 1e300)
    values, errors = enclose(
        layer, torch.full((1, 1, 2), 1e300, dtype=torch.float64), torch.zeros(1, 1, 2).double()
    )
    assert values.item() == 0 and errors.item() == math.inf


REFUSED = [
    (nn.Conv2d(2, 3, 3), (3, 5, 5), r"2 channels first, then a height and a width, got .* \(3, 5, 5\)"),
    (nn.Conv2d(2, 3, 3), (2, 5), r"\(2, 5\)"),
    (nn.Conv1d(2, 3, 3), (2, 5, 5), "2 channels first, then a length"),
    (nn.Conv2d(2, 3, 3, dilation=(1, 2)), (2, 3, 4), "at least 3 x 5 pixels"),
    (nn.Conv2d(1, 1, 3, padding=3, padding_mode="reflect"), (1, 4, 3), "at least 4 x 4 pixels"),
    (nn.Conv1d(1, 1, 3, padding=3, padding_mode="circular"), (1, 2), "at least 3 pixels"),
    (nn.ConvTranspose2d(2, 3, 3), (3, 5, 5), "2 channels first"),
    (nn.ConvTranspose2d(1, 1, 1, padding=1), (1, 2, 3), "larger samples"),
]


@pytest.mark.parametrize("layer, shape, sentence", REFUSED, ids=str)
def test_a_sample_that_the_layer_does_not_take_is_refused(layer, shape, sentence):
    batch = torch.zeros(1, *shape, dtype=torch.float64)
    for contract in (
        lambda: output_shape(layer, shape),
        lambda: affine(layer, shape),
        lambda: lipschitz(layer, 2, shape),
        lambda: lipschitz(layer, math.inf, shape),
        lambda: enclose(layer, batch, batch),
    ):
        with pytest.raises(ValueError, match=f"takes .*{sentence}"):
            contract()


BROKEN = {
    "padding_mode": ("wrap", 'padding_mode=.wrap.: use "zeros" or "circular" or'),
    "groups": (4, "groups=4: use a whole number that divides 6 channels"),
    "stride": ((1, 0), "2 whole numbers of at least 1"),
    "dilation": (1.5, "dilation=1.5"),
    "padding": ((1, 2, 3), r"padding=\(1, 2, 3\)"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_attributes_with_which_torch_does_not_run_are_refused(name):
    layer = nn.Conv2d(6, 6, 3, groups=2)
    value, sentence = BROKEN[name]
    setattr(layer, name, value)
    for contract in (output_shape, affine, lambda layer, shape: lipschitz(layer, 2, shape)):
        with pytest.raises(UnsupportedLayerError, match=sentence):
            contract(layer, (6, 5, 5))


def test_a_transposed_convolution_pads_with_zeros_only():
    layer = nn.ConvTranspose2d(1, 1, 3)
    layer.padding_mode = "reflect"
    with pytest.raises(UnsupportedLayerError, match='padding_mode=.reflect.: use "zeros"'):
        lipschitz(layer)


def test_same_padding_takes_no_stride():
    layer = nn.Conv2d(1, 1, 3, padding="same")
    layer.stride = (2, 2)
    with pytest.raises(UnsupportedLayerError, match='padding="same" and stride=.*use a stride of 1'):
        output_shape(layer, (1, 4, 4))


def test_a_convolution_is_a_primitive_and_a_subclass_with_its_own_forward_is_refused():
    class Doubled(nn.Conv2d):
        def _conv_forward(self, inputs, weight, bias):
            return 2 * super()._conv_forward(inputs, weight, bias)

    layer = nn.Conv2d(1, 1, 1)
    assert expand(layer) == (layer,)
    with pytest.raises(UnsupportedLayerError, match="defines _conv_forward"):
        lipschitz(Doubled(1, 1, 1))
