"""Random networks, and the increments of the coordinates of their semidefinite programs, found without one.

`increments` runs a network layer by layer at two points, and writes down by how much each activation moves:
the numbers that a vector z of increments is made of.
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lipbook.layers import Abs, GroupSort, Householder, MaxMin, Normalize, Residual

PIECEWISE = {
    "ReLU": lambda width: nn.ReLU(),
    "LeakyReLU": lambda width: nn.LeakyReLU(0.2),
    "LeakyReLU that turns back": lambda width: nn.LeakyReLU(-0.5),
    "Abs": lambda width: Abs(),
    "MaxMin": lambda width: MaxMin(),
    "GroupSort": lambda width: GroupSort(4),
    "Householder": Householder,
}
SMOOTH = {
    "GELU": nn.GELU,
    "GELU by tanh": lambda: nn.GELU("tanh"),
    "SiLU": nn.SiLU,
    "Tanh": nn.Tanh,
    "Softplus": nn.Softplus,
    "Mish": nn.Mish,
    "Hardswish": nn.Hardswish,
    "ELU": lambda: nn.ELU(1.3),
    "Sigmoid": nn.Sigmoid,
}
SIZES = [(2, 4, 4, 3), (3, 8, 3), (1, 4, 4, 4, 3), (2, 4, 3), (3, 4, 4, 2)]


def drawn(activation, seed, sizes=None, spread=1.0):
    """A random network, float64 for odd seeds, and a center for it. `activation` takes the width."""
    sizes = SIZES[seed % len(SIZES)] if sizes is None else sizes
    generator, layers = torch.Generator().manual_seed(seed), []
    for fan_in, fan_out in itertools.pairwise(sizes):
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out)
        linear.weight.data = torch.randn(fan_out, fan_in, generator=generator) * (2 / fan_in) ** 0.5 * spread
        linear.bias.data = torch.randn(fan_out, generator=generator) / 2
        layers.append(linear)
        if len(layers) < 2 * len(sizes) - 3:
            layers.append(activation(fan_out))
        if isinstance(layers[-1], Householder):
            layers[-1].theta.data = 2 * torch.randn(fan_out // 2, generator=generator)
    model = nn.Sequential(*layers).eval()
    return (model.double() if seed % 2 else model), torch.randn(sizes[0], generator=generator)


def linear(weight, bias=None):
    """A layer with this weight (out, in), float64, and a zero bias where none is given."""
    weight = torch.as_tensor(weight, dtype=torch.float64)
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
    layer.weight.data = weight.detach().clone()
    layer.bias.data = weight.new_zeros(len(weight)) if bias is None else torch.as_tensor(bias).double()
    return layer


def between(model, factors):
    """The model with the weight of each linear layer multiplied (its bias left alone), in float64."""
    layers = [linear(m.weight, m.bias.detach()) if isinstance(m, nn.Linear) else m for m in model]
    for layer, factor in zip((m for m in layers if isinstance(m, nn.Linear)), factors, strict=True):
        layer.weight.data *= factor
    return nn.Sequential(*layers).eval()


class Moved(NamedTuple):
    """Of the entries of an activation layer that bend the increments of what enters and leaves, (n, entries),
    how large the numbers were that they are differences of, and where in the layer they stand."""

    before: Tensor
    after: Tensor
    sizes: Tensor
    positions: Tensor


def increments(model, x, y):
    """For samples x, y (n, ...) of a float64 model: `Moved` for each activation layer, and the output's
    increment (n, outputs).

    MaxMin, GroupSort and Householder count as the absolute values that they can be written with: of the
    differences of an odd-even transposition sort, each round a layer, or of u'z.
    """
    found = []
    with torch.no_grad():
        ends = _walk(model, (x, y), 0, found)
    return found, (ends[0] - ends[1]).flatten(1)


def _walk(model, ends, kept, found):
    for layer in model:
        before, ends = ends, tuple(layer(v) for v in ends)
        size = before[0].flatten(1).shape[1]
        match layer:
            case MaxMin() | GroupSort():
                groups = [v.unflatten(1, (-1, getattr(layer, "group_size", 2))) for v in before]
                _compared(groups, kept, found)
            case Householder():
                half = layer.theta.detach() / 2
                u = torch.stack([torch.sin(half), -torch.cos(half)], dim=1)
                along = [(v.unflatten(1, (-1, 2)) * u).sum(dim=2) for v in before]
                positions = kept + size + size // 2 + torch.arange(size // 2)
                found.append(_moved(along, [v.abs() for v in along], positions))
            case Residual():
                _walk(
                    [layer.module] if not isinstance(layer.module, nn.Sequential) else layer.module,
                    before,
                    kept + size,
                    found,
                )
            case nn.Linear() | nn.Conv2d() | nn.AvgPool2d() | nn.Flatten() | nn.BatchNorm2d() | Normalize():
                pass
            case _:
                flat = [[v.flatten(1) for v in pair] for pair in (before, ends)]
                found.append(_moved(*flat, kept + torch.arange(size)))
    return ends


def _compared(groups, kept, found):
    """An odd-even transposition sort: the difference of two neighbours, round by round."""
    number, size = groups[0].shape[1:]
    for turn in range(size if size > 2 else 1):
        first = torch.arange(turn % 2, size - 1, 2)
        pairs = [(v[..., first], v[..., first + 1]) for v in groups]
        differences = [(a - b).flatten(1) for a, b in pairs]
        positions = kept + (size * torch.arange(number)[:, None] + first + 1).flatten()
        found.append(_moved(differences, [v.abs() for v in differences], positions))
        groups = [v.clone() for v in groups]
        for v, (a, b) in zip(groups, pairs):
            v[..., first], v[..., first + 1] = torch.maximum(a, b), torch.minimum(a, b)
    assert all(v.equal(v.sort(dim=2, descending=True).values) for v in groups)


def _moved(before, after, positions):
    sizes = sum(v.abs() for v in (*before, *after))
    return Moved(before[0] - before[1], after[0] - after[1], sizes, positions)


def points(center, radius, count, seed=0):
    """Pairs of points of a box: far apart, close together, and moved in one entry alone."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *center.shape)
    draw = lambda: 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1  # noqa: E731
    x, y = draw(), draw()
    y[::3] = (x + 1e-3 * y)[::3].clamp(-1, 1)
    one = torch.rand(shape, generator=generator).flatten(1).argmax(dim=1)
    moved = x.flatten(1).clone()
    moved[torch.arange(count), one] *= -0.5
    y[1::3] = moved.reshape(shape)[1::3]
    return tuple(center.double() + (5.0 if radius == math.inf else radius) * v for v in (x, y))
