"""What `enclose` allows the layers, against their forward passes in rational arithmetic."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lipbook.contracts import enclose
from lipbook.layers import Abs, GroupSort, Householder, MaxMin, Normalize, Residual


def exact(layer, x):
    """The image of one sample, a list of fractions, written out from the definition of each layer."""
    if isinstance(layer, nn.Sequential):
        for child in layer:
            x = exact(child, x)
        return x
    if isinstance(layer, nn.Linear):
        rows, shifts = fractions(layer.weight), fractions(layer.bias)
        return [sum(w * entry for w, entry in zip(row, x)) + b for row, b in zip(rows, shifts)]
    if isinstance(layer, Residual):
        return [entry + image for entry, image in zip(x, exact(layer.module, x))]
    if isinstance(layer, Normalize):
        means, stds = (fractions(buffer.expand(len(x))) for buffer in (layer.mean, layer.std))
        return [(entry - mean) / std for entry, mean, std in zip(x, means, stds)]
    if isinstance(layer, Abs):
        return [abs(entry) for entry in x]
    if isinstance(layer, Householder):
        images = []
        for u, z in zip(fractions(layer.vectors()), zip(x[::2], x[1::2])):
            along = u[0] * z[0] + u[1] * z[1]
            images += z if along > 0 else [z[k] - 2 * u[k] * along for k in range(2)]
        return images
    size = layer.group_size if isinstance(layer, GroupSort) else 2
    return [entry for k in range(0, len(x), size) for entry in sorted(x[k : k + size], reverse=True)]


def fractions(tensor):
    def converted(entries):
        return [converted(e) for e in entries] if isinstance(entries, list) else Fraction(entries)

    return converted(tensor.detach().double().tolist())


def turned(dtype):
    layer = Householder(6).to(dtype)
    with torch.no_grad():
        layer.theta.copy_(torch.tensor([0.3, -2.0, 4.5]))
    return layer


def seeded(build):
    torch.manual_seed(0)
    return build()


LAYERS = {
    "MaxMin": MaxMin(),
    "GroupSort": GroupSort(3),
    "Householder": turned(torch.float32),
    "Householder in float64": turned(torch.float64),
    "Householder in float16": turned(torch.float16),
    "Householder at its start": Householder(6),
    "Abs": Abs(),
    "Normalize": Normalize([0.1, -3.0, 1e4, 0.0, 7.0, 1e-8], [0.1, 0.3, 7.0, 1e-6, 1e6, 1.0]),
    "Normalize by one number": Normalize(0.1307, 0.3081),
    "Residual over a Linear": seeded(lambda: Residual(nn.Linear(6, 6))),
    "Residual over MaxMin": Residual(MaxMin()),
    "Residual over a stack": seeded(
        lambda: Residual(nn.Sequential(nn.Linear(6, 4), MaxMin(), nn.Linear(4, 6).double(), Abs()))
    ),
    "all in a row": seeded(
        lambda: nn.Sequential(Normalize(0.1, 0.3), Residual(nn.Linear(6, 6)), turned(torch.float32), MaxMin())
    ),
}
SCALES = [1e-150, 1e-3, 1.0, 1e5, 1e150]


@pytest.mark.parametrize("name", LAYERS)
@given(
    seed=st.integers(0, 10**6), scale=st.sampled_from(SCALES), reach=st.sampled_from([0.0, 1e-14, 1e-3, 2.0])
)
def test_every_true_image_is_within_the_errors(name, seed, scale, reach):
    layer, generator = LAYERS[name], torch.Generator().manual_seed(seed)
    values = scale * torch.randn(2, 6, generator=generator, dtype=torch.float64)
    errors = reach * scale * torch.rand(2, 6, generator=generator, dtype=torch.float64)
    images, allowed = enclose(layer, values, errors)
    for sample in range(2):
        told = list(zip(fractions(images[sample]), fractions(allowed[sample])))
        for sign in (-1, 1, 0):
            signs = torch.randint(-1, 2, (6,), generator=generator).tolist() if sign == 0 else [sign] * 6
            box = zip(fractions(values[sample]), signs, fractions(errors[sample]))
            truth = exact(layer, [value + s * error for value, s, error in box])
            assert all(abs(image - true) <= error for true, (image, error) in zip(truth, told))


@pytest.mark.parametrize("name", LAYERS)
def test_without_errors_at_the_input_only_the_rounding_is_left(name):
    layer = LAYERS[name]
    values = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images, errors = enclose(layer, values, torch.zeros_like(values))
    assert (errors <= 1e-13 * images.abs().amax(1, keepdim=True)).all()
    if name in ("MaxMin", "GroupSort", "Abs"):
        assert not errors.any()


@pytest.mark.parametrize("name", ["MaxMin", "GroupSort", "Abs", "Householder", "Householder at its start"])
def test_no_activation_widens_a_box_by_more_than_its_constant_in_l_inf(name):
    values = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = torch.rand(20, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    allowed = enclose(LAYERS[name], values, errors)[1]
    growth = math.sqrt(2) if name == "Householder" else 1
    assert (allowed.amax(1) <= growth * errors.amax(1) * (1 + 1e-6)).all()


def test_a_residual_over_a_linear_map_knows_what_cancels():
    linear = nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.copy_(-torch.eye(2))
    values = torch.ones(1, 2, dtype=torch.float64)
    assert enclose(Residual(linear), values, 100 * values)[1].max() < 1e-12


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_not_known_stays_unknown(name):
    values = torch.ones(1, 6, dtype=torch.float64)
    errors = torch.full_like(values, math.inf)
    allowed = enclose(LAYERS[name], values, errors)[1]
    assert torch.isinf(allowed).all()


def test_an_overflow_is_an_infinite_error():
    values = torch.full((1, 6), 1.7e308, dtype=torch.float64)
    for layer in (Normalize(0.0, 0.1), Residual(MaxMin()), turned(torch.float64)):
        images, errors = enclose(layer, values, torch.zeros_like(values))
        unbounded = torch.isinf(errors)
        assert torch.isfinite(images).all()
        for sample in torch.where(unbounded, 0, 1).nonzero().tolist():
            truth = exact(layer, fractions(values[0]))[sample[1]]
            gap = abs(truth - Fraction(images[0, sample[1]].item()))
            assert gap <= Fraction(errors[0, sample[1]].item())
        assert unbounded.any() or isinstance(layer, Householder)


@pytest.mark.parametrize("layer", [MaxMin(), GroupSort(3), Householder(4), Normalize([0.0], [1.0])], ids=str)
def test_a_batch_that_does_not_fit_is_refused(layer):
    values = torch.ones(2, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="got the sample shape"):
        enclose(layer, values, values)
