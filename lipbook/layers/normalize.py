"""The standardisation of the inputs as a layer, so that the Lipschitz constant of a model counts it.

A radius in pixels is a radius in pixels only if the division by the standard deviation is inside the model.

Chapter: bounds/whole-networks.
"""

import math
from fractions import Fraction

import torch
from torch import Tensor, nn

from lipbook.bound import UnsupportedLayerError, as_float64
from lipbook.contracts.definitions import affine, lipschitz, numel, output_shape
from lipbook.contracts.guard import name_of, refusal
from lipbook.contracts.rounding import enclose
from lipbook.contracts.stock import recomputed
from lipbook.norms.spectral import UNIT_ROUNDOFF


class Normalize(nn.Module):
    """(x - mean) / std, channel by channel.

    The layer is the real-arithmetic function of the buffers as they are stored, in torch's default dtype when
    the layer is built: float32(0.1) is another number than 0.1. A forward pass in their dtype rounds twice,
    so each output is within a relative 2 u of the true one (u = 2^-24 in float32), short of underflow.

    Args:
        mean, std: one number for all channels, or a list or a 1-d tensor with one a channel; std > 0.

    Attributes:
        mean, std: the stored numbers, (channels,), or 0-d when both were one number.

    Raises:
        ValueError, TypeError: not such numbers, NaN, infinite, or a std that is not positive; in the forward
            pass, another number of channels.
    """

    def __init__(self, mean, std):
        super().__init__()
        mean, std = _numbers(mean, "mean"), _numbers(std, "std")
        if mean.ndim and std.ndim and mean.shape != std.shape:
            counts = f"{len(mean)} and {len(std)}"
            raise ValueError(f"mean and std must have one entry a channel each, got {counts} entries.")
        if not (std > 0).all():
            raise ValueError(f"std must be positive, got {std.min().item()}: leave out a constant channel.")
        mean, std = torch.broadcast_tensors(mean, std)
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, channels, ...) to the same shape."""
        _require_channels(self, tuple(inputs.shape[1:]))
        return (inputs - _beside(self.mean, inputs)) / _beside(self.std, inputs)

    def extra_repr(self):
        return "all channels alike" if self.mean.ndim == 0 else f"{len(self.mean)} channels"


def _numbers(given, name):
    """One number (0-d) or one a channel (1-d), in the default dtype."""
    if not isinstance(given, Tensor):
        try:
            given = torch.tensor(given, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            kind = type(given).__name__
            raise TypeError(
                f"{name} must be a number, a list or a 1-d tensor, got {kind}: {error}"
            ) from error
    given = as_float64(given, name)
    if given.ndim > 1:
        raise ValueError(f"{name} must have at most 1 dimension, got shape {tuple(given.shape)}.")
    stored = given.to(torch.get_default_dtype())
    as_float64(stored, f"{name}, stored as {stored.dtype},")
    return stored


def _beside(buffer, inputs):
    """A buffer shaped so that it meets the channels of a batch."""
    return buffer if buffer.ndim == 0 else buffer.reshape(-1, *[1] * (inputs.ndim - 2))


def _require_channels(layer, shape):
    count = len(layer.mean) if layer.mean.ndim else None
    if not shape or count not in (None, shape[0]):
        takes = "samples with a dimension of channels" if count is None else f"{count} channels first"
        raise ValueError(f"{name_of(layer)} takes {takes}, got the sample shape {shape}.")


@refusal.register(Normalize)
def _refuse_normalize(layer):
    mean, std = layer.mean, layer.std
    if mean.ndim > 1 or mean.shape != std.shape:
        shapes = f"{tuple(mean.shape)} and {tuple(std.shape)}"
        return f"has a mean and a std of the shapes {shapes}: give both one entry a channel."
    if not (std > 0).all():
        return "has an entry of std that is not positive: its output is not defined."
    return None


@lipschitz.register(Normalize)
def _normalize_lipschitz(layer, norm, input_shape):
    if input_shape is not None:
        _require_channels(layer, input_shape)
    smallest = as_float64(layer.std, "std").min().item()
    return recomputed(_reciprocal_up(smallest), norm, input_shape, "smallest std")


def _reciprocal_up(number):
    """1 / number, exact where a float holds it, else rounded up; infinite beyond the floats."""
    try:
        value = float(1 / Fraction(number))
    except OverflowError:
        return math.inf
    return value if Fraction(value) * Fraction(number) >= 1 else math.nextafter(value, math.inf)


@affine.register(Normalize)
def _normalize_affine(layer, input_shape):
    """The diagonal 1 / std and -mean / std, each within half a unit in the last place of the true number."""
    _require_channels(layer, input_shape)
    mean, std = as_float64(layer.mean, "mean"), as_float64(layer.std, "std")
    pixels = numel(input_shape) if mean.ndim == 0 else numel((1, *input_shape[1:]))
    scale, shift = (1 / std).reshape(-1), (-mean / std).reshape(-1)
    if not (torch.isfinite(scale).all() and torch.isfinite(shift).all()):
        raise UnsupportedLayerError(
            f"{name_of(layer)} has an std so small that 1 / std or mean / std overflows: no float64 operator "
            "holds it. Use a larger std, or the other contracts of the layer."
        )
    return torch.diag(scale.repeat_interleave(pixels)), shift.repeat_interleave(pixels)


@output_shape.register(Normalize)
def _normalize_output_shape(layer, input_shape):
    _require_channels(layer, input_shape)
    return input_shape


@enclose.register(Normalize)
def _enclose_normalize(layer, values, errors):
    """errors / std, and two roundings, each at most a relative u short of underflow."""
    _require_channels(layer, tuple(values.shape[1:]))
    mean, std = (_beside(as_float64(buffer, "a buffer"), values) for buffer in (layer.mean, layer.std))
    images = (values - mean) / std
    error = (errors / std + 4 * UNIT_ROUNDOFF * images.abs()) * (1 + 8 * UNIT_ROUNDOFF)
    return images, error + 2.0**-1000
