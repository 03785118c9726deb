"""Activations that keep the norm of a gradient: MaxMin, GroupSort, Householder and the absolute value.

Their Jacobians are orthogonal wherever they exist: permutations (MaxMin, GroupSort), reflections of pairs
(Householder), signs (Abs). Beside each class stand its contracts.

Sources: MaxMin and GroupSort: Anil, Lucas and Grosse, "Sorting out Lipschitz function approximation", ICML
2019. Householder: Singla, Singla and Feizi, "Improved deterministic l2 robustness on CIFAR-10 and CIFAR-100",
ICLR 2022; its code pairs entry i with entry i + features / 2, and keeps z on the other side (u'z <= 0).

Chapter: bounds/whole-networks.
"""

import math

import torch
from torch import Tensor, nn

from lipbook.bound import as_float64
from lipbook.contracts.activations import register_curve
from lipbook.contracts.definitions import lipschitz, output_shape, slopes
from lipbook.contracts.derivatives import leaky_relu
from lipbook.contracts.guard import name_of, refusal
from lipbook.contracts.rounding import enclose
from lipbook.contracts.stock import recomputed
from lipbook.contracts.structures import Reflection, Sorting, checked_count, checked_dim
from lipbook.norms.spectral import UNIT_ROUNDOFF


class MaxMin(nn.Module):
    """The entries 2i and 2i + 1 along a dimension become their maximum and their minimum, in this order.

    Args:
        dim: of the batch, so at least 1: 1 holds the features or the channels.

    Raises:
        ValueError, TypeError: not such a dimension; in the forward pass, a dimension of odd size.
    """

    def __init__(self, dim: int = 1):
        super().__init__()
        self.dim = checked_dim(dim)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, ...) to the same shape."""
        _require_groups(self, tuple(inputs.shape[1:]))
        first, second = inputs.unflatten(self.dim, (-1, 2)).unbind(self.dim + 1)
        pairs = torch.stack((torch.maximum(first, second), torch.minimum(first, second)), self.dim + 1)
        return pairs.flatten(self.dim, self.dim + 1)

    def extra_repr(self):
        return f"dim={self.dim}"


class GroupSort(nn.Module):
    """Each contiguous group along a dimension is sorted, the largest entry first.

    Args:
        group_size: entries in a group, at least 2; GroupSort(2) is MaxMin.
        dim: of the batch, so at least 1: 1 holds the features or the channels.

    Raises:
        ValueError, TypeError: not such numbers; in the forward pass, a size that the group does not divide.
    """

    def __init__(self, group_size: int, dim: int = 1):
        super().__init__()
        self.group_size = checked_count(group_size, "group_size", least=2)
        self.dim = checked_dim(dim)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, ...) to the same shape."""
        _require_groups(self, tuple(inputs.shape[1:]))
        groups = inputs.unflatten(self.dim, (-1, self.group_size))
        return groups.sort(self.dim + 1, descending=True).values.flatten(self.dim, self.dim + 1)

    def extra_repr(self):
        return f"group_size={self.group_size}, dim={self.dim}"


class Householder(nn.Module):
    """Each pair z = (entry 2i, entry 2i + 1) along dimension 1 is kept on one side of a learned line through
    0, and mirrored in it on the other: z if u'z > 0, else (I - 2uu') z.

    The angle theta of pair i gives u = (sin(theta / 2), -cos(theta / 2)), so that the mirror image is
    [[cos theta, sin theta], [sin theta, -cos theta]] z. Theta starts at pi / 2: MaxMin, up to rounding. Both
    cases are ``z + u (|u'z| - u'z)``, which is how they are computed.

    Args:
        features: the size of dimension 1, even.

    Attributes:
        theta: the angles, (features // 2,), in radians.

    Raises:
        ValueError, TypeError: not an even positive int; in the forward pass, another number of features.
    """

    def __init__(self, features: int):
        super().__init__()
        if checked_count(features, "features", least=2) % 2:
            raise ValueError(f"features must be even, got {features}: they are taken in pairs.")
        self.features = features
        self.theta = nn.Parameter(torch.full((features // 2,), math.pi / 2))

    def vectors(self) -> Tensor:
        """The vectors u, (pairs, 2), as the forward pass uses them: unit vectors up to rounding."""
        return torch.stack((torch.sin(self.theta / 2), -torch.cos(self.theta / 2)), 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, features, ...) to the same shape."""
        _require_groups(self, tuple(inputs.shape[1:]))
        pairs = inputs.unflatten(1, (-1, 2))
        u = self.vectors().reshape(1, -1, 2, *[1] * (inputs.ndim - 2))
        along = (u * pairs).sum(2, keepdim=True)
        return (pairs + u * (along.abs() - along)).flatten(1, 2)

    def extra_repr(self):
        return f"{self.features}"


class Abs(nn.Module):
    """The absolute value of each entry."""

    def __init__(self):
        super().__init__()

    def forward(self, inputs: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return inputs.abs()


def _require_groups(layer, shape):
    """Raise a ValueError unless the layer takes samples of this shape."""
    if isinstance(layer, Householder):
        fits, takes = shape[:1] == (layer.features,), f"{layer.features} features in its first dimension"
    else:
        size = layer.group_size if isinstance(layer, GroupSort) else 2
        fits = layer.dim <= len(shape) and shape[layer.dim - 1] % size == 0
        takes = f"shapes with a multiple of {size} entries in dimension {layer.dim} of the batch"
    if not fits:
        raise ValueError(f"{name_of(layer)} takes {takes}, got the sample shape {shape}.")


def _grouped_output_shape(layer, input_shape):
    _require_groups(layer, input_shape)
    return input_shape


def _sorting_lipschitz(layer, norm, input_shape):
    if input_shape is not None:
        _require_groups(layer, input_shape)
    return recomputed(1.0, norm, input_shape, "sorting")


def _sorting_slopes(layer, lower, upper):
    return Sorting(layer.group_size if isinstance(layer, GroupSort) else 2, layer.dim)


def _refuse_sorting(layer):
    try:
        _sorting_slopes(layer, None, None)
    except (ValueError, TypeError) as error:
        return f"has an attribute that it could not be built with: {error}"
    return None


def _enclose_sorting(layer, values, errors):
    """A sort rounds nothing, and moves no output farther than the largest move in its group."""
    _require_groups(layer, tuple(values.shape[1:]))
    size = _sorting_slopes(layer, None, None).group_size
    groups = errors.unflatten(layer.dim, (-1, size))
    largest = groups.amax(layer.dim + 1, keepdim=True).expand_as(groups)
    return layer(values), largest.flatten(layer.dim, layer.dim + 1)


for _kind in (MaxMin, GroupSort):
    lipschitz.register(_kind, _sorting_lipschitz)
    slopes.register(_kind, _sorting_slopes)
    enclose.register(_kind, _enclose_sorting)
    refusal.register(_kind, _refuse_sorting)
for _kind in (MaxMin, GroupSort, Householder):
    output_shape.register(_kind, _grouped_output_shape)


@refusal.register(Householder)
def _refuse_householder(layer):
    if not isinstance(layer.features, int) or layer.features % 2:
        return f"has features={layer.features!r}: it takes pairs, so their number must be an even int."
    if layer.theta.shape != (layer.features // 2,):
        shape = tuple(layer.theta.shape)
        return f"has theta of shape {shape} for {layer.features} features: it needs one angle a pair."
    return None


@lipschitz.register(Householder)
def _householder_lipschitz(layer, norm, input_shape):
    if input_shape is not None:
        _require_groups(layer, input_shape)
    return recomputed(_largest_stretch(_vectors(layer), norm), norm, input_shape, "reflection")


@slopes.register(Householder)
def _householder_slopes(layer, lower, upper):
    return Reflection(_vectors(layer))


def _vectors(layer):
    with torch.no_grad():
        return as_float64(layer.vectors(), "the vectors of Householder")


def _largest_stretch(vectors, norm):
    """The largest norm of I and of every I - 2uu', rounded up.

    In norm 2 the eigenvalues are 1 and 1 - 2|u|^2. Each number below is within 2^-51 of the true one,
    relative to the sum of the sizes of its terms, underflow included since one term is 1.
    """
    squares, cross = vectors.square(), 2 * vectors.prod(dim=1, keepdim=True).abs()
    if norm == 2:
        total = 2 * squares.sum(dim=1)
        stretch, size = (1 - total).abs(), 1 + total
    else:
        stretch, size = (1 - 2 * squares).abs() + cross, 1 + 2 * squares + cross
    above = (stretch + 2.0**-50 * size).max().item()
    return max(1.0, math.nextafter(above, math.inf))


@enclose.register(Householder)
def _enclose_householder(layer, values, errors):
    """On the way from a point to another the layer is I or I - 2uu' in turns, so that no output moves by more
    than the larger of its two rows times the errors. The roundings are five, and are counted as eight."""
    _require_groups(layer, tuple(values.shape[1:]))
    pairs, moves = values.unflatten(1, (-1, 2)), errors.unflatten(1, (-1, 2))
    u = _vectors(layer).reshape(1, -1, 2, *[1] * (values.ndim - 2))
    along = (u * pairs).sum(2, keepdim=True)
    images = pairs + u * (along.abs() - along)
    mirrored = (1 - 2 * u * u).abs() * moves + 2 * (u * u.flip(2)).abs() * moves.flip(2)
    sizes = pairs.abs() + 2 * u.abs() * (u * pairs).abs().sum(2, keepdim=True) + moves.sum(2, keepdim=True)
    error = torch.maximum(moves, mirrored) + 8 * UNIT_ROUNDOFF * sizes
    return images.flatten(1, 2), (error * (1 + 8 * UNIT_ROUNDOFF) + 2.0**-1000).flatten(1, 2)


@enclose.register(Abs)
def _enclose_abs(layer, values, errors):
    return values.abs(), errors


# |x| is the leaky ReLU of slope -1.
register_curve(Abs, lambda layer: leaky_relu(-1.0))
