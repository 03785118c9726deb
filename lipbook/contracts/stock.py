"""The contracts of torch's own layers: Linear, BatchNorm, Dropout, the reshapings and Sequential.

The activations are in `activations`. In eval mode BatchNorm scales each channel and Dropout does nothing;
in train mode the guard has refused them.
"""

import functools
import math

import torch
from torch import Tensor, nn

from lipbook.bound import Bound, as_float64
from lipbook.contracts.certificates import (
    MatrixCertificate,
    ProductCertificate,
    RecomputedCertificate,
    product_up,
    shapes_through,
)
from lipbook.contracts.definitions import affine, expand, guarded, lipschitz, numel, output_shape
from lipbook.contracts.guard import finite_attribute, name_of
from lipbook.norms.rows import row_sum_norm
from lipbook.norms.spectral import spectral_norm

DROPOUTS = (nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Dropout1d)
RESHAPINGS = (nn.Identity, nn.Flatten, nn.Unflatten)
BATCH_NORMS = {nn.BatchNorm1d: (1, 2), nn.BatchNorm2d: (3,), nn.BatchNorm3d: (4,)}


def recomputed(value: float, norm: float, input_shape: tuple[int, ...] | None, method: str) -> Bound:
    """A bound whose certificate asks the layer's contract again."""
    least = functools.partial(_value, norm=norm, input_shape=input_shape)
    return Bound(value, "upper", norm=norm, method=method, certificate=RecomputedCertificate(least, norm))


def _value(layer, norm, input_shape):
    return lipschitz(layer, norm, input_shape).value


def _mismatch(layer, input_shape, takes):
    return ValueError(f"{name_of(layer)} takes {takes}, got the sample shape {input_shape}.")


# Linear acts on the last dimension, once for each of the others.


@lipschitz.register(nn.Linear)
def _linear_lipschitz(layer, norm, input_shape):
    if input_shape is not None:
        _linear_output_shape(layer, input_shape)
    weight = _linear_weight(layer)
    bound = spectral_norm(weight) if norm == 2 else row_sum_norm(weight)
    certificate = MatrixCertificate(_linear_weight, bound.certificate, norm)
    return Bound(bound.value, "upper", norm=norm, method=bound.method, certificate=certificate)


@affine.register(nn.Linear)
def _linear_affine(layer, input_shape):
    _linear_output_shape(layer, input_shape)
    copies = numel(input_shape[:-1])
    with torch.no_grad():
        weight = as_float64(layer.weight, "weight")
        bias = weight.new_zeros(len(weight)) if layer.bias is None else as_float64(layer.bias, "bias")
    identity = torch.eye(copies, dtype=torch.float64, device="cpu")
    return torch.kron(identity, weight), bias.expand(len(weight)).repeat(copies)


@output_shape.register(nn.Linear)
def _linear_output_shape(layer, input_shape):
    outputs, inputs = layer.weight.shape
    if input_shape[-1] != inputs:
        mismatch = _mismatch(layer, input_shape, f"{inputs} numbers in the last dimension")
        fits_flat = math.prod(input_shape) == inputs
        raise ValueError(f"{mismatch} Put nn.Flatten() before it.") if fits_flat else mismatch
    return (*input_shape[:-1], outputs)


def _linear_weight(layer):
    """The materialised weight (out, in) in float64."""
    if guarded(layer, "lipschitz") is not _linear_lipschitz:  # a subclass may have a contract of its own
        raise TypeError(f"{name_of(layer)} is not read as an nn.Linear.")
    with torch.no_grad():
        return as_float64(layer.weight, "weight")


# BatchNorm in eval mode: gamma (x - mean) / sqrt(var + eps) + beta, channel by channel.


def channel_scale(variance: Tensor, eps: float, gamma: Tensor | None) -> Tensor:
    """gamma / sqrt(var + eps), within 4 units in the last place."""
    return (1 if gamma is None else gamma) / torch.sqrt(variance + eps)


def batch_norm_scale(layer: nn.Module) -> Tensor:
    """The factor of each channel, within 4 units in the last place."""
    with torch.no_grad():
        gamma = None if layer.weight is None else as_float64(layer.weight, "weight")
        variance = as_float64(layer.running_var, "running_var")
        return channel_scale(variance, finite_attribute(layer, "eps"), gamma)


def _batch_norm_lipschitz(layer, norm, input_shape):
    if input_shape is not None:
        output_shape(layer, input_shape)
    largest = batch_norm_scale(layer).abs().max().item()
    vanishes = layer.weight is not None and not layer.weight.any()
    value = 0.0 if vanishes else math.nextafter(largest * (1 + 2.0**-49), math.inf)
    return recomputed(value, norm, input_shape, "largest channel scale")


def _batch_norm_affine(layer, input_shape):
    output_shape(layer, input_shape)
    scale = batch_norm_scale(layer)
    with torch.no_grad():
        bias = -scale * as_float64(layer.running_mean, "running_mean")
        bias = bias if layer.bias is None else bias + as_float64(layer.bias, "bias")
    pixels = numel((1, *input_shape[1:]))
    return torch.diag(scale.repeat_interleave(pixels)), bias.repeat_interleave(pixels)


def _batch_norm_output_shape(layer, input_shape):
    dimensions = next(allowed for kind, allowed in BATCH_NORMS.items() if isinstance(layer, kind))
    if len(input_shape) not in dimensions or input_shape[0] != len(layer.running_mean):
        counts = " or ".join(str(count) for count in dimensions)
        takes = f"{len(layer.running_mean)} channels first, in {counts} dimensions"
        raise _mismatch(layer, input_shape, takes)
    return input_shape


# Dropout in eval mode and the reshapings move numbers, and change none.


def _isometry_lipschitz(layer, norm, input_shape):
    if input_shape is not None:
        output_shape(layer, input_shape)
    return recomputed(1.0, norm, input_shape, "isometry")


def _isometry_affine(layer, input_shape):
    output_shape(layer, input_shape)
    size = numel(input_shape)
    options = {"dtype": torch.float64, "device": "cpu"}
    return torch.eye(size, **options), torch.zeros(size, **options)


def same_shape(layer: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The output shape of a layer that takes every shape and keeps it."""
    return input_shape


@output_shape.register(nn.Dropout1d)
def _dropout1d_output_shape(layer, input_shape):
    if len(input_shape) > 2:
        raise _mismatch(layer, input_shape, "1 or 2 dimensions")
    return input_shape


@output_shape.register(nn.Flatten)
def _flatten_output_shape(layer, input_shape):
    dimensions = len(input_shape) + 1
    end = layer.end_dim + dimensions if layer.end_dim < 0 else layer.end_dim
    if not layer.start_dim <= end < dimensions:
        takes = f"shapes that have the dimensions {layer.start_dim} to {layer.end_dim}"
        raise _mismatch(layer, input_shape, takes)
    start, end = layer.start_dim - 1, end - 1
    return (*input_shape[:start], numel(input_shape[start : end + 1]), *input_shape[end + 1 :])


@output_shape.register(nn.Unflatten)
def _unflatten_output_shape(layer, input_shape):
    at = layer.dim - 1 if layer.dim > 0 else layer.dim + len(input_shape)
    if not 0 <= at < len(input_shape):
        raise _mismatch(layer, input_shape, f"shapes that have the dimension {layer.dim}")
    sizes = tuple(int(size) for size in layer.unflattened_size)
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and known > 0:
        sizes = tuple(input_shape[at] // known if size == -1 else size for size in sizes)
    if math.prod(sizes) != input_shape[at]:
        raise _mismatch(layer, input_shape, f"{known} or a multiple of it in the dimension {layer.dim}")
    return (*input_shape[:at], *sizes, *input_shape[at + 1 :])


# Sequential: the same layer may appear twice, and counts twice.


def _children(layer):
    if guarded(layer, "lipschitz") is not _sequential_lipschitz:
        raise TypeError(f"{name_of(layer)} is not read as an nn.Sequential.")
    return tuple(layer._modules.values())


@lipschitz.register(nn.Sequential)
def _sequential_lipschitz(layer, norm, input_shape):
    children = tuple(layer._modules.values())
    shapes = shapes_through(children, input_shape)
    factors = tuple(lipschitz(child, norm, shape) for child, shape in zip(children, shapes))
    certificate = ProductCertificate(factors, _children, norm, shapes)
    value = product_up([factor.value for factor in factors])
    return Bound(value, "upper", norm=norm, method="product", certificate=certificate)


@output_shape.register(nn.Sequential)
def _sequential_output_shape(layer, input_shape):
    for child in layer._modules.values():
        input_shape = output_shape(child, input_shape)
    return input_shape


@expand.register(nn.Sequential)
def _sequential_expand(layer):
    return tuple(layer._modules.values())


for _kind in BATCH_NORMS:
    lipschitz.register(_kind, _batch_norm_lipschitz)
    affine.register(_kind, _batch_norm_affine)
    output_shape.register(_kind, _batch_norm_output_shape)
for _kind in (*DROPOUTS, *RESHAPINGS):
    lipschitz.register(_kind, _isometry_lipschitz)
    affine.register(_kind, _isometry_affine)
for _kind in (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout):
    output_shape.register(_kind, same_shape)
