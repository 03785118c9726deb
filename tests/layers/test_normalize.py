"""Normalize against rational arithmetic and `check`."""

import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, jacrev, vmap

from lipbook import CertificateError, UnsupportedLayerError
from lipbook.contracts import affine, check, lipschitz, output_shape
from lipbook.layers import Normalize, Residual

LAYERS = {
    "one number": (lambda: Normalize(0.1307, 0.3081), (4,)),
    "one number on images": (lambda: Normalize(0.1307, 0.3081), (1, 2, 3)),
    "features": (lambda: Normalize([0.1, -2.0, 3.0, 0.0], [0.5, 2.0, 0.01, 1.0]), (4,)),
    "channels of rows": (lambda: Normalize(torch.linspace(-1, 1, 6), torch.linspace(0.2, 3, 6)), (6, 3)),
    "channels of images": (lambda: Normalize((0.48, 0.46, 0.41), (0.23, 0.22, 0.23)), (3, 2, 2)),
    "one mean, many std": (lambda: Normalize(0.5, [0.5, 0.3]), (2, 3)),
    "many means, one std": (lambda: Normalize([0.5, 0.3], 2), (2, 3)),
    "in float64": (lambda: Normalize([0.1, 0.2], [0.3, 0.7]).double(), (2, 2)),
    "in float16": (lambda: Normalize([0.1, 0.2], [0.3, 0.7]).half(), (2, 2)),
}


def points(shape, count=10, dtype=torch.float64):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(
        dtype
    )


def numbers(buffer, channels):
    return [Fraction(number) for number in buffer.double().expand(channels).tolist()]


ATTACKED = {"channels of rows", "channels of images", "one mean, many std", "in float16"}


@pytest.mark.parametrize(
    "name",
    [name if name in ATTACKED else pytest.param(name, marks=pytest.mark.thorough) for name in LAYERS],
)
def test_every_layer_survives_the_attacks_and_its_bound_is_reached(name):
    build, shape = LAYERS[name]
    slack = check(build(), shape)
    assert 0 <= slack["lipschitz_2"] < 0.01 and 0 <= slack["lipschitz_inf"] < 0.01
    assert {"affine", "enclose", "output_shape"} <= set(slack)


@pytest.mark.parametrize("name", LAYERS)
def test_the_bound_is_one_over_the_smallest_std_rounded_up(name):
    build, shape = LAYERS[name]
    layer = build()
    truth = 1 / min(numbers(layer.std, shape[0]))
    for norm in (2, math.inf):
        bound = lipschitz(layer, norm, shape)
        assert truth <= Fraction(bound.value) <= truth * (1 + Fraction(1, 2**52))
        assert bound.verify(layer) is bound and lipschitz(layer, norm).value == bound.value
        with pytest.raises(CertificateError):
            dataclasses.replace(bound, value=bound.value * (1 - 1e-6)).verify(layer)


@given(st.floats(1e-30, 1e30), st.floats(-1e30, 1e30), st.booleans())
def test_the_affine_operator_is_correctly_rounded(std, mean, double):
    layer = Normalize(mean, std)
    layer = layer.double() if double else layer
    weight, bias = affine(layer, (3,))
    mean, std = Fraction(layer.mean.item()), Fraction(layer.std.item())
    assert torch.equal(weight, torch.diag(weight.diagonal())) and weight[0, 0] == weight[2, 2]
    assert weight[0, 0].item() == float(1 / std) and bias.tolist() == [float(-mean / std)] * 3


@pytest.mark.parametrize("name", [name for name in LAYERS if "float" not in name])
def test_a_float32_forward_pass_is_within_two_roundings_of_the_stored_function(name):
    build, shape = LAYERS[name]
    layer, x = build(), points(shape, dtype=torch.float32)
    mean, std = numbers(layer.mean, shape[0]), numbers(layer.std, shape[0])
    found = layer(x).flatten(2) if len(shape) > 1 else layer(x)[..., None]
    given_points = x.flatten(2) if len(shape) > 1 else x[..., None]
    for sample, images in zip(given_points.tolist(), found.tolist()):
        for channel, (entries, outputs) in enumerate(zip(sample, images)):
            for entry, output in zip(entries, outputs):
                truth = (Fraction(entry) - mean[channel]) / std[channel]
                assert abs(Fraction(output) - truth) <= abs(truth) * Fraction(2.0**-23 * (1 + 1e-6))


def test_numbers_are_stored_in_the_default_dtype_and_travel_with_the_state():
    layer = Normalize([0.1, 0.2], torch.tensor([0.3, 0.7], dtype=torch.float64))
    assert layer.mean.dtype == layer.std.dtype == torch.float32 and not list(layer.parameters())
    other = Normalize([0.0, 0.0], [1.0, 1.0])
    other.load_state_dict(layer.state_dict())
    x = points((2,), dtype=torch.float32)
    assert torch.equal(other(x), layer(x)) and lipschitz(other).value == lipschitz(layer).value
    assert Normalize(0.5, 1).mean.ndim == 0


def test_the_numbers_given_are_copied():
    mean, std = torch.zeros(2), torch.ones(2)
    layer = Normalize(mean, std)
    mean += 1
    std += 1
    assert layer.mean.tolist() == [0, 0] and layer.std.tolist() == [1, 1]


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_vmap_and_functional_call(name):
    build, shape = LAYERS[name]
    layer, x = build().double(), points(shape, 3)
    assert torch.autograd.gradcheck(layer, (x.clone().requires_grad_(),))
    torch.testing.assert_close(vmap(lambda sample: layer(sample[None])[0])(x), layer(x))
    state = {"mean": layer.mean + 1, "std": 2 * layer.std}
    torch.testing.assert_close(functional_call(layer, state, x), ((layer(x) * 1.0) - shift(layer, x)) / 2)
    weight, _ = affine(layer, shape)
    jacobian = jacrev(lambda sample: layer(sample[None])[0])(x[0])
    torch.testing.assert_close(jacobian.reshape(weight.shape), weight)


def shift(layer, x):
    """What a mean larger by 1 takes away: 1 / std, channel by channel."""
    return (1 / layer.std).reshape(-1, *[1] * (x.ndim - 2)) if layer.std.ndim else 1 / layer.std


@pytest.mark.parametrize("shape", [(3,), (3, 2), (1, 2)])
def test_another_number_of_channels_is_refused(shape):
    layer = Normalize([0.0, 0.0], 1.0)
    for read in (
        lambda: layer(torch.zeros(4, *shape)),
        lambda: output_shape(layer, shape),
        lambda: lipschitz(layer, 2, shape),
        lambda: affine(layer, shape),
    ):
        with pytest.raises(ValueError, match="takes 2 channels first, got the sample shape"):
            read()


class Scaled(Normalize):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


def broken(**buffers):
    layer = Normalize([0.0, 0.0], [1.0, 1.0])
    for name, value in buffers.items():
        setattr(layer, name, value)
    return layer


REFUSED = [
    (Scaled(0.0, 1.0), UnsupportedLayerError),
    (broken(std=torch.tensor([1.0, 0.0])), UnsupportedLayerError),
    (broken(std=torch.tensor([1.0, -1.0])), UnsupportedLayerError),
    (broken(std=torch.ones(3)), UnsupportedLayerError),
    (broken(mean=torch.ones(1, 2)), UnsupportedLayerError),
    (broken(mean=torch.tensor([1.0, math.nan])), ValueError),
]


@pytest.mark.parametrize("layer, error", REFUSED)
def test_a_layer_in_a_state_that_no_contract_speaks_of_is_refused(layer, error):
    for read in (lipschitz, lambda layer: affine(layer, (2,)), lambda layer: output_shape(layer, (2,))):
        with pytest.raises(error):
            read(layer)


def test_a_hook_is_refused():
    layer = Normalize(0.0, 1.0)
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(UnsupportedLayerError, match="forward hook"):
        lipschitz(nn.Sequential(layer))


@pytest.mark.parametrize("mean, std", [(0.0, 5e-324), (1e308, 1e-10)])
def test_an_operator_beyond_the_floats_is_refused_and_the_bounds_still_hold(mean, std):
    layer = Normalize(0.0, 1.0).double()
    layer.mean.fill_(mean)
    layer.std.fill_(std)
    with pytest.raises(UnsupportedLayerError, match="mean / std overflows"):
        affine(layer, (2,))
    residual = Residual(layer)
    bound = lipschitz(residual, 2, (2,)).verify(residual)
    assert math.isinf(bound.value) or Fraction(bound.value) >= 1 + 1 / Fraction(std)
