"""Samples brought to a known norm: onto a sphere, or into a ball.

What a sensitivity starts from is a bound on the norm of every input. Both layers act on each sample by
itself, and use no data.

Chapter: privacy/without-clipping.
"""

import math

import torch
from torch import Tensor, nn

from lipbook.bound import UnsupportedLayerError
from lipbook.contracts.definitions import lipschitz, output_shape
from lipbook.contracts.gradients import output_norm
from lipbook.contracts.guard import finite_attribute, name_of, refusal
from lipbook.contracts.rounding import enclose
from lipbook.contracts.stock import recomputed, same_shape
from lipbook.norms.spectral import UNIT_ROUNDOFF, gamma


class ToBall(nn.Module):
    """x min(1, radius / ``|x|``): the nearest point of a ball around 0, of norm `radius` at most.

    A projection onto a convex set, so its Lipschitz constant is 1 in l_2 (it has none in l_inf that does not
    grow with the size of a sample). In floating point a norm may exceed the radius by some units in the last
    place.

    Args:
        radius: positive and finite.

    Raises:
        ValueError, TypeError: not such a number.

    Chapter: privacy/without-clipping.
    """

    def __init__(self, radius: float):
        super().__init__()
        self.radius = _checked_radius(radius)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, ...) to the same shape."""
        sizes = _sizes(inputs)
        return inputs * (self.radius / sizes.clamp(min=self.radius))

    def extra_repr(self):
        return f"radius={self.radius}"


class ToSphere(nn.Module):
    """radius x / ``|x|``: the point of a sphere around 0 in the direction of x; 0 stays 0.

    It is no Lipschitz function, because directions near 0 turn fast: a model that begins with it has a
    sensitivity, and no certificate. `ToBall` has both.

    Args:
        radius: positive and finite.

    Raises:
        ValueError, TypeError: not such a number.

    Chapter: privacy/without-clipping.
    """

    def __init__(self, radius: float):
        super().__init__()
        self.radius = _checked_radius(radius)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, ...) to the same shape."""
        scale = _largest(inputs)
        # Of norm 1 at least, so that no quotient of the smallest floats overflows.
        directions = inputs / scale
        sizes = torch.linalg.vector_norm(directions.flatten(1), dim=1).reshape(scale.shape)
        return directions * (self.radius / torch.where(sizes == 0, self.radius, sizes))

    def extra_repr(self):
        return f"radius={self.radius}"


def _checked_radius(radius):
    if isinstance(radius, bool) or not isinstance(radius, (int, float)):
        raise TypeError(f"radius must be a number, got {type(radius).__name__}.")
    if not 0 < radius < math.inf:
        raise ValueError(f"radius must be positive and finite, got {radius}.")
    return float(radius)


def _sizes(inputs):
    """The norm of each sample, shaped to stand beside it; of squares that neither overflow nor vanish."""
    scale = _largest(inputs)
    return scale * torch.linalg.vector_norm((inputs / scale).flatten(1), dim=1).reshape(scale.shape)


def _largest(inputs):
    """The largest size of an entry of each sample, 1 where all are 0, shaped to stand beside it."""
    largest = inputs.detach().flatten(1).abs().amax(1)
    return torch.where(largest > 0, largest, 1.0).reshape(-1, *[1] * (inputs.ndim - 1))


def _refuse_radius(layer):
    if not 0 < finite_attribute(layer, "radius"):
        return f"has radius={layer.radius}: set it to a positive number."
    return None


for _kind in (ToBall, ToSphere):
    refusal.register(_kind, _refuse_radius)
    output_shape.register(_kind, same_shape)


@output_norm.register(ToBall)
def _ball_output_norm(layer, input_norm, input_shape):
    return min(input_norm, layer.radius)


@output_norm.register(ToSphere)
def _sphere_output_norm(layer, input_norm, input_shape):
    return layer.radius if input_norm > 0 else 0.0


@lipschitz.register(ToBall)
def _ball_lipschitz(layer, norm, input_shape):
    if norm != 2:
        raise UnsupportedLayerError(
            f"{name_of(layer)} has a constant in norm 2 only: in norm {norm} it grows with the size of a "
            "sample. Use norm=2."
        )
    return recomputed(1.0, norm, input_shape, "projection")


@lipschitz.register(ToSphere)
def _sphere_lipschitz(layer, norm, input_shape):
    raise UnsupportedLayerError(
        f"{name_of(layer)} is not Lipschitz: near 0 the direction turns as fast as one likes. Use "
        f"lipbook.layers.ToBall({layer.radius:g}), which is a projection, or leave it out."
    )


@enclose.register(ToBall)
def _enclose_ball(layer, values, errors):
    """A projection moves nothing farther than it was: no entry by more than the length of the errors.

    The factor radius / ``|x|`` is within gamma_{n + 8} of the true one, relatively.
    """
    images = layer(values)
    numbers = values[0].numel()
    rounding = gamma(numbers + 16)
    finite = torch.where(torch.isinf(errors), 0.0, errors)
    moved = _sizes(finite) * (1 + rounding)
    error = torch.where((errors > 0).flatten(1).any(1).reshape(moved.shape), moved, 0.0).expand_as(values)
    lost = torch.isinf(errors).flatten(1).any(1).reshape(moved.shape)
    inside = _sizes(values) * (1 + rounding) < layer.radius
    rounded = torch.where(inside, 0.0, 2 * rounding * images.abs())
    total = (error + rounded) * (1 + 8 * UNIT_ROUNDOFF) + 2.0**-1000
    return images, torch.where(lost, math.inf, total)
