"""The fixed feature maps against sums written out by hand, symmetries of the square and `check`."""

import cmath
import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from lipbook import CertificateError, UnsupportedLayerError
from lipbook.contracts import check, enclose, lipschitz, output_shape
from lipbook.layers import OrthogonalLinear
from lipbook.privacy import OrientedGradients, Scattering
from lipbook.training import attack, certified_radius

KINDS = [OrientedGradients, Scattering]
SMALL = {
    "gradients": lambda: OrientedGradients(size=6, orientations=2, cells=2),
    "gradients, flat contrast": lambda: OrientedGradients(size=6, orientations=3, cells=2, contrast=100.0),
    "gradients, cells that share pixels": lambda: OrientedGradients(size=5, cells=2, contrast=1e-3),
    "wavelets": lambda: Scattering(size=6, scales=1, orientations=2, cells=2),
    "wavelets, flat contrast": lambda: Scattering(size=5, scales=2, orientations=1, cells=2, contrast=100.0),
}


def images(count, size=28, dtype=torch.float64, seed=0):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("name", SMALL)
def test_every_map_survives_the_attacks_which_reach_a_third_of_its_bound(name):
    layer = SMALL[name]()
    slack = check(layer, (1, layer.size, layer.size))
    assert {"lipschitz_2", "enclose", "output_shape"} <= set(slack) and slack["lipschitz_2"] < 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [7, 28, 32])
def test_the_bound_is_1_but_for_the_rounding_of_what_is_stored(kind, size):
    layer = kind(size=size)
    bound = lipschitz(layer, 2, (1, size, size))
    assert 1 - 1e-5 < bound.value <= 1 and bound.verify(layer) is bound
    assert lipschitz(copy.deepcopy(layer).double()).value == bound.value
    with pytest.raises(CertificateError):
        dataclasses.replace(bound, value=0.999 * bound.value).verify(layer)
    with pytest.raises(CertificateError):
        changed = copy.deepcopy(layer)
        changed.windows *= 1.01
        bound.verify(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_trained_drawn_or_changed(kind):
    state = torch.get_rng_state()
    first, second = kind(), kind()
    assert torch.equal(state, torch.get_rng_state()) and not list(first.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers()))
    x = images(3, dtype=torch.float32)
    features = first(x)
    assert features.shape == (3, *output_shape(first, (1, 28, 28))) and features.dtype == torch.float32
    assert torch.equal(first.train()(x), first.eval()(x))
    torch.testing.assert_close(first(x[1:2]), features[1:2], rtol=1e-4, atol=1e-6)  # no sample sees another


@pytest.mark.parametrize("kind", KINDS)
def test_features_have_mean_zero_and_vanish_where_nothing_changes(kind):
    layer = kind().double()
    assert layer(images(4)).mean(1).abs().max() < 1e-15
    assert not layer(torch.zeros(1, 1, 28, 28, dtype=torch.float64)).any()


def test_gradients_are_those_of_a_loop_over_pixels_and_cells():
    layer = OrientedGradients(size=6, orientations=3, cells=3, contrast=0.2).double()
    x = images(1, size=6)[0, 0].numpy()
    scale = layer.kernels[0, 0, 1, 2].item()  # cos 0 times one over the norm
    padded = np.pad(x, 1)
    averages = np.zeros((6, 3, 3))
    for row in range(6):
        for column in range(6):
            across = padded[row + 1, column + 2] - padded[row + 1, column]
            down = padded[row + 2, column + 1] - padded[row, column + 1]
            for k in range(6):  # the directions of the whole turn
                slope = across * math.cos(math.pi * k / 3) + down * math.sin(math.pi * k / 3)
                averages[k, row // 2, column // 2] += max(slope, 0) * scale / 2  # four pixels: 1 / sqrt(4)
    contrasts = 0.2 * averages / (0.2 + np.sqrt((averages**2).sum(0)))
    expected = (contrasts - contrasts.mean()).reshape(1, -1)
    np.testing.assert_allclose(layer(images(1, size=6)).numpy(), expected, atol=3e-7)  # windows in float32


def test_wavelets_keep_the_energy_of_the_worst_frequency_and_add_to_none():
    layer = Scattering().double()
    filters = layer.filters
    x = images(5, size=32, seed=1) - 0.5
    image = torch.fft.ifft2(torch.fft.fft2(x) * filters)  # every wavelet on a circle
    assert (image.abs().square().sum((1, 2, 3)) <= x.square().sum((1, 2, 3))).all()
    rows, columns = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    energies = {}
    for p in range(32):
        for q in range(17):
            wave = torch.from_numpy(np.cos(2 * np.pi * (p * rows + q * columns) / 32))
            moduli = torch.fft.ifft2(torch.fft.fft2(wave) * filters).abs()
            energies[p, q] = (moduli.square().sum() / wave.square().sum()).item()
    assert 1 - 1e-5 < max(energies.values()) <= 1 and energies[0, 0] < 1e-12


@pytest.mark.parametrize(
    ("layer", "directions"),
    [(OrientedGradients(), 8), (Scattering(scales=1), 8), (Scattering(scales=1, orientations=6), 6)],
    ids=["gradients", "wavelets", "six wavelets"],
)
def test_a_quarter_turn_of_the_image_turns_the_cells_and_the_directions(layer, directions):
    layer, x = layer.double(), images(2)
    turned = layer(x.rot90(-1, (2, 3))).reshape(2, directions, 7, 7)  # x to y, y to -x
    quarter = directions // (4 if isinstance(layer, OrientedGradients) else 2)  # of a whole and a half turn
    expected = layer(x).reshape(2, directions, 7, 7).rot90(-1, (2, 3)).roll(quarter, 1)
    torch.testing.assert_close(turned, expected, rtol=0, atol=2e-7)


def test_the_cells_share_out_every_pixel():
    for size, cells in [(28, 7), (28, 4), (10, 3), (5, 5), (7, 2), (9, 1)]:
        windows = OrientedGradients(size=size, cells=cells).windows.double()
        torch.testing.assert_close(windows.sum(0), windows.sum(0)[:1].expand(size**2))
        torch.testing.assert_close(windows.sum(1), windows.sum(1)[:1].expand(cells**2))
        if size % cells == 0:
            torch.testing.assert_close(windows @ windows.T, torch.eye(cells**2).double(), atol=1e-5, rtol=0)


def test_the_enclosure_holds_the_wavelet_features_summed_by_hand():
    layer = Scattering(size=4, scales=1, orientations=2, cells=2, contrast=0.3)
    x, period = images(1, size=4), 8
    middle, radius = enclose(layer, x, torch.zeros_like(x))
    filters, windows = layer.filters.double().numpy(), layer.windows.double().numpy()
    averages = np.zeros((2, 4))
    for k, wavelet in enumerate(filters):
        for u in range(4):
            for v in range(4):
                terms = [
                    x[0, 0, a, b].item()
                    * wavelet[p, q]
                    * cmath.exp(2j * math.pi * (p * (u - a) + q * (v - b)) / period)
                    for a in range(4)
                    for b in range(4)
                    for p in range(period)
                    for q in range(period)
                ]
                real, imaginary = math.fsum(t.real for t in terms), math.fsum(t.imag for t in terms)
                averages[k] += windows[:, 4 * u + v] * math.hypot(real, imaginary) / period**2
    contrasts = 0.3 * averages / (0.3 + np.sqrt((averages**2).sum(0)))
    expected = torch.from_numpy((contrasts - contrasts.mean()).reshape(1, -1))
    assert ((middle - expected).abs() <= radius).all() and radius.max() < 1e-9


def test_the_enclosure_knows_that_one_direction_of_a_cell_moves_the_others():
    layer = OrientedGradients(size=6, orientations=2, cells=6, contrast=0.5).double()
    x, errors = (torch.zeros(1, 1, 6, 6, dtype=torch.float64) for _ in range(2))
    x[0, 0, 3, 3] = x[0, 0, 4, 2] = 1  # the cell between them has both derivatives, of length 0.5
    errors[0, 0, 2, 2] = 0.1  # its derivative across does not read this pixel
    middle, radius = enclose(layer, x, errors)
    for sign in (-1, 1):
        assert ((layer(x + sign * errors) - middle).abs() <= radius).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_radius_certified_through_the_features_survives_an_attack(kind):
    torch.manual_seed(0)
    features = kind(contrast=1.0)
    width = output_shape(features, (1, 28, 28))[0]
    model = nn.Sequential(features, OrthogonalLinear(width, 4)).double()
    inputs = images(3)
    labels = model(inputs).argmax(1)
    radii = certified_radius(model, inputs)
    assert (radii > 0).any()
    for index in radii.nonzero().flatten().tolist():
        moved = attack(
            model, inputs[index : index + 1], labels[index : index + 1], 0.99 * radii[index].item(), steps=5
        )
        assert model(moved).argmax(1) == labels[index]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_edited_out_of_shape_is_refused(kind):
    edits = {
        "windows": lambda layer: setattr(layer, "windows", layer.windows[:, :-1]),
        "contrast": lambda layer: setattr(layer, "contrast", -0.1),
        "of shape": lambda layer: setattr(layer, "orientations", 5),
    }
    for word, edit in edits.items():
        layer = kind()
        edit(layer)
        with pytest.raises(UnsupportedLayerError, match=word):
            lipschitz(layer)
    with pytest.raises(UnsupportedLayerError, match="norm 2 only"):
        lipschitz(kind(), math.inf)
    for call in (lambda shape: output_shape(kind(), shape), lambda shape: lipschitz(kind(), 2, shape)):
        with pytest.raises(ValueError, match=r"\(3, 28, 28\)"):
            call((3, 28, 28))
