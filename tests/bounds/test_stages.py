"""A model as stages: they compute what the layers compute, and a layer is read by its own contracts."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from lipbook import contracts
from lipbook.bound import UnsupportedLayerError
from lipbook.bounds.stages import Bend, Comparison, Linear, chain_of, flat
from lipbook.contracts import spatial
from lipbook.layers import (
    Abs,
    GroupSort,
    Householder,
    LipschitzResidual,
    MaxMin,
    Normalize,
    Residual,
    SandwichLinear,
    SLLConv2d,
    SLLLinear,
)
from lipbook.layers.residual import enclose_residual
from lipbook.network import Step, read


def stages(layer, shape):
    return chain_of(read(nn.Sequential(layer), shape)).stages


def through(found, values):
    """The stages on flat float64 values (batch, n), each activation by its own forward pass."""
    for stage in flat(found):
        if isinstance(stage, Linear):
            values = values @ stage.weight.T + stage.bias
        elif stage.where is None:
            values = stage.activation(values.reshape(-1, *stage.shape)).flatten(1)
        else:
            values = values.clone()
            acted = stage.activation(values[:, stage.where].reshape(-1, *stage.shape))
            values[:, stage.where] = acted.flatten(1)
    return values


class Thrice(nn.Module):
    """The first channel three times, the others as they are: an activation that knows channels."""

    def forward(self, inputs):
        return inputs * self.slopes(inputs)

    def slopes(self, like):
        channel = torch.arange(like.shape[1]).reshape(1, -1, *[1] * (like.ndim - 2))
        return torch.where(channel == 0, 3.0, 1.0).double().expand_as(like)


def thrice_slopes(layer, lower, upper):
    if lower is None:
        return torch.tensor(1.0).double(), torch.tensor(3.0).double()
    return (layer.slopes(lower),) * 2


contracts.slopes.register(Thrice, thrice_slopes)
contracts.output_shape.register(Thrice, lambda layer, shape: shape)


def normalised():
    layer = nn.BatchNorm2d(2).double()
    layer(torch.randn(8, 2, 3, 3, dtype=torch.float64))
    return layer.eval()


def convolutions():
    for mode in ("zeros", "circular", "reflect", "replicate"):
        yield f"Conv2d {mode}", nn.Conv2d(2, 4, 3, padding=2, padding_mode=mode, dilation=1), (2, 4, 5)
        yield f"Conv1d {mode}", nn.Conv1d(2, 2, 3, stride=2, padding=1, padding_mode=mode), (2, 6)
    yield "a circle of one pixel", nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), (1, 1, 1)
    yield "ConvTranspose2d", nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1), (2, 3, 3)
    yield "AvgPool2d", nn.AvgPool2d(2, ceil_mode=True), (2, 5, 5)


def blocks():
    narrow = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4))
    wide = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(-0.5), nn.Linear(6, 4))
    yield "Residual of Linear", Residual(nn.Linear(4, 4)), (4,)
    yield "Residual of two Linear", Residual(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))), (4,)
    yield "Residual of a bottleneck", Residual(narrow), (4,)
    yield "Residual of Residual", Residual(Residual(narrow)), (4,)
    yield "Residual around Residual", Residual(nn.Sequential(nn.ReLU(), Residual(wide), *narrow)), (4,)
    yield "Residual of an activation in place", Residual(nn.ReLU(inplace=True)), (2, 3)
    yield "Residual of MaxMin", Residual(MaxMin()), (6,)
    yield "Residual of GroupSort", Residual(nn.Sequential(GroupSort(3), nn.Linear(3, 3))), (6, 3)
    yield "Residual of Householder", Residual(nn.Sequential(nn.Linear(4, 4), turned(4))), (4,)
    yield "Residual of Conv2d", Residual(nn.Conv2d(2, 2, 3, padding=1)), (2, 3, 3)
    layers = nn.Conv2d(2, 4, 3, padding=1), MaxMin(), Thrice(), nn.Conv2d(4, 2, 1)
    yield "Residual of convolutions", Residual(nn.Sequential(*layers)), (2, 3, 3)
    reshaped = nn.Flatten(), nn.Linear(4, 4), nn.Dropout(), nn.ReLU(), nn.Unflatten(1, (2, 2))
    yield "Residual of reshapings", Residual(nn.Sequential(*reshaped)).eval(), (2, 2)
    yield "Residual of nothing", Residual(nn.Sequential()), (4,)


class Skipped(nn.Module):
    """skip(x) + module(x)."""

    def __init__(self, skip, module):
        super().__init__()
        self.skip, self.module = skip, module

    def forward(self, inputs):
        return self.skip(inputs) + self.module(inputs)


contracts.residual.register(Skipped, lambda layer: (layer.skip, layer.module))
contracts.enclose.register(Skipped, enclose_residual)
contracts.output_shape.register(Skipped, lambda layer, shape: contracts.output_shape(layer.module, shape))


def skips():
    yield "a skip to more numbers", Skipped(nn.Linear(2, 3), nn.Sequential(nn.Linear(2, 3), nn.ReLU())), (2,)
    yield (
        "a skip to fewer, around MaxMin",
        Skipped(nn.Conv2d(2, 2, 2), nn.Sequential(MaxMin(), nn.Conv2d(2, 2, 2))),
        (2, 3, 3),
    )
    yield (
        "a skip that is rounded",
        Skipped(normalised(), nn.Sequential(nn.Conv2d(2, 2, 1), nn.Tanh())),
        (2, 3, 3),
    )
    yield (
        "a block in a block",
        Residual(nn.Sequential(SandwichLinear(4, 3), LipschitzResidual(3, 2, 4))),
        (4,),
    )
    yield "SLLLinear", SLLLinear(3, 5), (3,)
    yield "SLLLinear on rows", SLLLinear(3), (2, 3)
    for mode in ("circular", "zeros"):
        yield f"SLLConv2d {mode}", SLLConv2d(2, 3, 1, mode), (2, 3, 2)
    yield "SandwichLinear", SandwichLinear(3, 5), (3,)
    yield "SandwichLinear, tanh", SandwichLinear(5, 2, "tanh", bias=False), (5,)
    yield "LipschitzResidual", LipschitzResidual(3, 4, 5, lipschitz=3.0), (3,)


def turned(features):
    layer = Householder(features)
    layer.theta.data = torch.linspace(-3.0, 7.0, len(layer.theta))
    return layer


LAYERS = [
    ("MaxMin", MaxMin(), (6,)),
    ("MaxMin over channels", MaxMin(), (4, 3, 2)),
    ("MaxMin over columns", MaxMin(dim=3), (3, 2, 4)),
    *((f"GroupSort of {size}", GroupSort(size), (12, 2)) for size in (2, 3, 4, 6)),
    ("GroupSort along rows", GroupSort(3, dim=2), (2, 6, 2)),
    ("Householder", turned(6), (6,)),
    ("Householder over channels", turned(4), (4, 3)),
    ("Abs", Abs(), (2, 3)),
    ("ReLU", nn.ReLU(), (5,)),
    ("Normalize", Normalize([0.3, -0.5], [0.2, 3.0]), (2, 2, 2)),
    ("BatchNorm2d", normalised(), (2, 3, 3)),
    ("Flatten", nn.Flatten(), (2, 3)),
    ("Unflatten", nn.Unflatten(1, (2, 3)), (6,)),
    ("Dropout", nn.Dropout().eval(), (4,)),
    *blocks(),
    *skips(),
    ("Linear on rows", nn.Linear(3, 2), (4, 3)),
    *convolutions(),
]


@pytest.mark.parametrize(("name", "layer", "shape"), LAYERS, ids=[name for name, *_ in LAYERS])
def test_the_stages_compute_what_the_layer_computes(name, layer, shape):
    values = torch.randn(50, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values[25:] = values[25:].round()  # ties
    wanted = contracts.enclose(layer, values, torch.zeros_like(values))[0].flatten(1)
    found = through(stages(layer, shape), values.flatten(1))
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-13 * (1 + wanted.abs().max())


def test_the_doubt_about_a_skip_is_that_about_the_sum():
    skip = normalised()
    last = stages(Skipped(skip, nn.ReLU()), (2, 3, 3))[-1]
    assert torch.equal(last.doubt, stages(skip, (2, 3, 3))[0].doubt) and (last.doubt > 0).all()


def test_a_block_that_is_linear_as_a_whole_is_one_stage():
    assert [type(stage) for stage in stages(Residual(nn.Linear(3, 3)), (3,))] == [Linear]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_a_group_is_sorted_whatever_its_order(size):
    orders = torch.tensor(list(itertools.permutations(range(size))), dtype=torch.float64)
    found = through(stages(GroupSort(size), (size,)), orders)
    assert torch.equal(found, torch.arange(size - 1, -1, -1, dtype=torch.float64).expand_as(found))


def test_every_comparison_comes_with_parts_that_compute_it():
    values = torch.randn(20, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for stage in stages(GroupSort(4), (12,)):
        assert isinstance(stage, Comparison)
        sorted_values = values.clone()
        first, second = values[:, stage.upper], values[:, stage.lower]
        sorted_values[:, stage.upper] = torch.maximum(first, second)
        sorted_values[:, stage.lower] = torch.minimum(first, second)
        assert torch.allclose(through([stage], values), sorted_values, rtol=0, atol=1e-14)


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_taps_that_cancel_are_summed_to_half_a_unit(mode):
    layer = nn.Conv1d(1, 1, 7, padding=2, padding_mode=mode, bias=False).double()
    taps = [1.0, 1e-9, -1.0, 3e-17, 1.0, 2.0**-40, -1.0 - 2.0**-52]
    layer.weight = nn.Parameter(torch.tensor([[taps]], dtype=torch.float64))
    weight = stages(layer, (1, 3))[0].weight
    exact = [[Fraction(0)] * 3 for _ in range(len(weight))]
    for row in range(len(weight)):
        for tap, number in enumerate(taps):
            pixel = row + tap - 2
            if mode == "zeros" and not 0 <= pixel < 3:
                continue
            if mode == "circular":
                pixel %= 3
            if mode == "reflect":
                pixel = 2 - abs(2 - abs(pixel))
            pixel = min(max(pixel, 0), 2)
            exact[row][pixel] += Fraction(number)
    for found, wanted in zip(weight.flatten().tolist(), [number for row in exact for number in row]):
        assert abs(Fraction(found) - wanted) <= abs(wanted) / 2**52


def test_the_bias_is_within_its_doubt():
    layer = nn.Linear(3, 2).double()
    (stage,) = stages(layer, (3,))
    assert torch.equal(stage.weight, layer.weight)
    assert ((stage.bias - layer.bias).abs() <= stage.doubt).all()


class Threefold(nn.Identity):
    def forward(self, inputs):
        return 3 * inputs


class Reversal(nn.Flatten):
    def forward(self, inputs):
        return inputs.flatten(1).flip(1)


def three(activation, lower, upper):
    shape = () if lower is None else lower.shape
    return (torch.full(shape, 3.0, dtype=torch.float64),) * 2


contracts.slopes.register(Threefold, three)
contracts.output_shape.register(Threefold, lambda layer, shape: shape)
contracts.output_shape.register(Reversal, lambda layer, shape: (math.prod(shape),))


def test_a_subclass_with_slopes_of_its_own_is_not_read_as_its_parent():
    (stage,) = stages(Threefold(), (4,))
    assert stage.activation.__class__ is Threefold


def test_a_subclass_that_moves_numbers_otherwise_is_refused():
    with pytest.raises(UnsupportedLayerError, match="Reversal"):
        stages(Reversal(), (4,))


class Tilted(Residual):
    def forward(self, inputs):
        return 2 * inputs + self.module(inputs)


def hooked(layer):
    layer.register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    return layer


@pytest.mark.parametrize(
    ("layer", "shape", "word"),
    [
        (nn.MaxPool2d(2), (1, 4, 4), "nn.MaxPool2d has no affine, slopes or residual contract"),
        (Residual(nn.Sequential(nn.Linear(3, 3), nn.MaxPool1d(1))), (1, 3), "nn.MaxPool1d has no affine"),
        (Residual(nn.BatchNorm1d(3)), (3,), "nn.BatchNorm1d is in train mode"),
        (Residual(nn.Sequential(nn.Linear(3, 3), nn.Dropout())), (3,), "nn.Dropout is in train mode"),
        (Residual(hooked(nn.Linear(3, 3))), (3,), "nn.Linear has a forward hook"),
        (hooked(Residual(nn.ReLU())), (3,), "Residual has a forward hook"),
        (Tilted(nn.ReLU()), (3,), "Tilted is a subclass of Residual that defines forward"),
    ],
)
def test_what_has_no_stages_is_refused_in_a_sentence(layer, shape, word):
    with pytest.raises(UnsupportedLayerError, match=word):
        chain_of((Step(layer, shape, shape),))  # as if the model had been read before


@pytest.mark.parametrize(
    ("module", "size", "word"),
    [
        (nn.ReLU(), 8, "16 x 8 numbers"),
        (nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 4)), 4, "24 x 8 numbers"),
    ],
)
def test_a_block_is_refused_where_its_matrices_would_be_too_large(module, size, word, monkeypatch):
    monkeypatch.setattr(spatial, "LARGEST_MATRIX", 100)
    with pytest.raises(ValueError, match="Residual is here a matrix of " + word):
        stages(Residual(module), (size,))


def test_the_second_half_of_a_block_has_the_entries_biases_and_doubts_of_what_is_in_it():
    inside, shape = nn.Sequential(normalised(), nn.Tanh(), nn.Conv2d(2, 2, 1)), (2, 3, 3)
    _, *within, _ = stages(Residual(inside), shape)
    alone = stages(inside, shape)
    assert [type(stage) for stage in within] == [type(stage) for stage in alone] == [Linear, Bend, Linear]
    assert (alone[0].doubt > 0).all()
    for lifted, stage in zip(within, alone):
        if isinstance(stage, Linear):
            assert torch.equal(lifted.weight, torch.block_diag(torch.eye(18).double(), stage.weight))
            for found, wanted in ((lifted.bias, stage.bias), (lifted.doubt, stage.doubt)):
                assert torch.equal(found, torch.cat([torch.zeros(18).double(), wanted]))
