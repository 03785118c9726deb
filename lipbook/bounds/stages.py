"""A model as a chain of linear maps and of activations that act entry by entry.

What sorts or reflects groups of entries is rewritten with absolute values: max(x, y) and min(x, y) are
``(x + y)/2 +- |x - y|/2``, a larger group is sorted by comparing neighbours in as many rounds as it has
entries, and a reflection is ``z + u (|u'z| - u'z)``. A block skip x + f(x) becomes (x, x), then the stages of
f on the second half, then the sum, with skip applied to the first half. All vectors are flat, and all weights
float64.

Chapter: bounds/local-bounds.
"""

from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lipbook.bound import UnsupportedLayerError
from lipbook.contracts import stock
from lipbook.contracts.definitions import REGISTRIES, affine, expand, numel, owner_of, residual, slopes
from lipbook.contracts.guard import guard, name_of
from lipbook.contracts.rounding import enclose
from lipbook.contracts.spatial import require_writable
from lipbook.contracts.structures import Reflection, Sorting
from lipbook.network import Step, read

_ABSOLUTE = nn.LeakyReLU(-1.0)  # |x|, exactly


class Linear(NamedTuple):
    """x -> weight x + bias. The entries of weight (out, in) are within 2^-49 of the true ones, relatively, or
    within 2^-1060, and those of bias within `doubt`, both (out,)."""

    weight: Tensor
    bias: Tensor
    doubt: Tensor


class Bend(NamedTuple):
    """An activation that acts entry by entry, on samples of this shape, or (`where`) on the entries of a flat
    sample that a mask names: taken together they have this shape, and the others pass."""

    activation: nn.Module
    shape: tuple[int, ...]
    where: Tensor | None = None


class Comparison(NamedTuple):
    """The entries `upper` and `lower`, tensors of positions, become their maxima and their minima.

    `parts`: the same as a linear map to (x + y, x - y), the absolute value of x - y, and a linear map back.
    """

    upper: Tensor
    lower: Tensor
    parts: tuple[Linear, Bend, Linear]


def flat(stages) -> list[Linear | Bend]:
    """The stages with each comparison replaced by its parts."""
    return [part for stage in stages for part in (stage.parts if isinstance(stage, Comparison) else (stage,))]


class Chain(NamedTuple):
    """A model as stages, and for each activation layer how many stages come before it, and its input shape.

    What enters the layer are the last entries of what comes out of those stages; the ones before them are
    what the residual blocks around it keep.
    """

    stages: list[Linear | Bend | Comparison]
    activations: list[tuple[int, tuple[int, ...]]]


def chain_of(steps: tuple[Step, ...]) -> Chain:
    """The layers of a model, whose shapes are known, as stages.

    Raises:
        UnsupportedLayerError: one is neither linear, nor elementwise, nor a sorting or a reflection, nor a
            block of such layers: skip x + f(x), or one that `expand` takes apart.
    """
    stages, activations = [], []
    for step in steps:
        part = _chain(step.layer, step.input_shape)
        activations += [(len(stages) + before, shape) for before, shape in part.activations]
        stages += part.stages
    return Chain(stages, activations)


def _chain(layer, shape):
    owner = owner_of(layer, *(REGISTRIES[name] for name in ("affine", "slopes", "residual", "expand")))
    if owner is None:
        raise UnsupportedLayerError(
            f"{name_of(layer)} has no affine, slopes or residual contract, and this bound needs one of them: "
            "write the model as a chain of linear layers and activations, or use product_bound."
        )
    guard(layer, owner)
    if owner in (*stock.RESHAPINGS, *stock.DROPOUTS):
        return Chain([], [])
    if owner in REGISTRIES["residual"].registry:
        return _block(layer, shape)
    if owner in REGISTRIES["affine"].registry:
        return Chain([_linear(layer, shape)], [])
    if owner in REGISTRIES["slopes"].registry:
        return Chain(_activation(layer, shape), [(0, shape)])
    return chain_of(read(nn.Sequential(*expand(layer)), shape))


def _block(layer, shape):
    with suppress(UnsupportedLayerError):  # one linear map, where it is read as one
        return Chain([_linear(layer, shape)], [])
    size = numel(shape)
    require_writable(layer, 2 * size, size)
    kept, inside = residual(layer)
    skip = _linear(kept, shape)
    inside = chain_of(read(nn.Sequential(inside), shape))
    for stage in flat(inside.stages):
        if isinstance(stage, Linear):
            require_writable(layer, *(size + number for number in stage.weight.shape))
    identity = torch.eye(size, dtype=torch.float64, device="cpu")
    twice = _exact(torch.cat([identity, identity]))
    added = torch.eye(len(skip.weight), dtype=torch.float64, device="cpu")
    total = skip._replace(weight=torch.cat([skip.weight, added], dim=1))
    stages = [twice, *(_behind(size, stage) for stage in inside.stages), total]
    return Chain(stages, [(1 + before, entering) for before, entering in inside.activations])


def _behind(size, stage):
    """The stage on what comes behind `size` entries, which pass."""
    if isinstance(stage, Comparison):
        parts = tuple(_behind(size, part) for part in stage.parts)
        return Comparison(size + stage.upper, size + stage.lower, parts)
    if isinstance(stage, Bend):
        everywhere = torch.ones(numel(stage.shape), dtype=torch.bool, device="cpu")
        where = everywhere if stage.where is None else stage.where
        return stage._replace(where=torch.cat([where.new_zeros(size), where]))
    zeros = stage.bias.new_zeros(size)
    weight = torch.block_diag(torch.eye(size, dtype=torch.float64, device="cpu"), stage.weight)
    return Linear(weight, torch.cat([zeros, stage.bias]), torch.cat([zeros, stage.doubt]))


def _activation(layer, shape):
    structure = slopes(layer)
    if isinstance(structure, (Sorting, Reflection)):
        require_writable(layer, numel(shape), numel(shape))
    positions = torch.arange(numel(shape), device="cpu").reshape(shape)
    if isinstance(structure, Sorting):
        groups = _groups(positions, structure.dim, structure.group_size)
        rounds = [_comparison(groups, k % 2) for k in range(structure.group_size)]
        return [comparison for comparison in rounds if len(comparison.upper)]
    if isinstance(structure, Reflection):
        return _reflections(_groups(positions, structure.dim, 2), structure.vectors)
    return [Bend(layer, shape)]


def _linear(layer, shape):
    weight, _ = affine(layer, shape)
    bias, doubt = enclose(layer, *[torch.zeros(1, *shape, dtype=torch.float64, device="cpu")] * 2)
    return Linear(weight, bias.flatten(), doubt.flatten())


def _exact(weight):
    zeros = weight.new_zeros(len(weight))
    return Linear(weight, zeros, zeros)


def _absolute(where):
    return Bend(_ABSOLUTE, (int(where.sum()),), where)


def _groups(positions, dim, size):
    """The positions (groups along dim, size, others) of what is taken together."""
    grouped = positions.unflatten(dim - 1, (-1, size)).movedim((dim - 1, dim), (0, 1))
    return grouped.reshape(len(grouped), size, -1)


def _comparison(groups, first):
    """Each two neighbours of a group, from its entry `first` on."""
    count = (groups.shape[1] - first) // 2
    pairs = groups[:, first : first + 2 * count].unflatten(1, (count, 2))
    upper, lower = pairs[:, :, 0].flatten(), pairs[:, :, 1].flatten()
    weight = torch.eye(groups.numel(), dtype=torch.float64, device="cpu")
    weight[upper, lower] = weight[lower, upper] = 1.0
    weight[lower, lower] = -1.0
    back = weight.clone()
    back[torch.cat([upper, lower])] /= 2
    where = torch.zeros(groups.numel(), dtype=torch.bool, device="cpu")
    where[lower] = True
    return Comparison(upper, lower, (_exact(weight), _absolute(where), _exact(back)))


def _reflections(groups, vectors):
    """(z, d, d) with d = u'z, then (z, d, |d|), then z + u |d| - u d."""
    size, pairs = groups.numel(), groups.shape[0] * groups.shape[2]
    u = vectors[:, :, None].expand(-1, -1, groups.shape[2])
    identity = torch.eye(size, dtype=torch.float64, device="cpu")
    along = identity.new_zeros(pairs, size)
    rows = torch.arange(pairs, device="cpu").reshape(groups.shape[0], 1, groups.shape[2]).expand_as(groups)
    along[rows.flatten(), groups.flatten()] = u.flatten()
    where = torch.zeros(size + 2 * pairs, dtype=torch.bool, device="cpu")
    where[size + pairs :] = True
    back = torch.cat([identity, -along.T, along.T], dim=1)
    return [_exact(torch.cat([identity, along, along])), _absolute(where), _exact(back)]
