"""x + module(x): the exact norm of I + W over a linear map, 1 + the module's constant over anything else.

Over a linear map this is the block of LiResNet, whose bound knows what the shortcut cancels: Hu, Zou, Wang,
Leino and Fredrikson, "Unlocking deterministic robustness certification on ImageNet", NeurIPS 2023.

Chapter: bounds/whole-networks.
"""

import functools
import math

import torch
from torch import Tensor, nn

from lipbook.bound import Bound, UnsupportedLayerError
from lipbook.contracts.certificates import (
    MatrixCertificate,
    RecomputedCertificate,
    ShortcutCertificate,
    one_plus_up,
)
from lipbook.contracts.definitions import (
    REGISTRIES,
    affine,
    contracts_of,
    expand,
    guarded,
    lipschitz,
    numel,
    output_shape,
    owner_of,
    residual,
)
from lipbook.contracts.gradients import output_norm, parameter_gradient_norm, sum_up
from lipbook.contracts.guard import name_of, require_layer
from lipbook.contracts.rounding import enclose, enclose_product
from lipbook.contracts.trained import free_norm, trained_norm
from lipbook.norms.rows import row_sum_norm
from lipbook.norms.spectral import UNIT_ROUNDOFF, spectral_norm

_LARGEST = 4096  # inputs of an operator that is written out to find its norm


class Residual(nn.Module):
    """x + module(x).

    Args:
        module: a layer, or an `nn.Sequential` of layers, whose output has the shape of its input.

    Raises:
        UnsupportedLayerError: not a layer (a TypeError).
        ValueError, TypeError: in the forward pass, an output of another shape, which torch would broadcast,
            or one that is no tensor.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        require_layer(module)
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, ...) to the same shape."""
        images = self.module(inputs.clone())  # a copy: the module may act in place
        if not isinstance(images, Tensor):
            gives = f"{name_of(self.module)} gives a {type(images).__name__}"
            raise TypeError(f"Residual takes a module that gives a tensor: {gives}.")
        if images.shape != inputs.shape:
            raise _reshapes(self, tuple(inputs.shape[1:]), tuple(images.shape[1:]))
        return inputs + images


def _reshapes(layer, before, after):
    return ValueError(
        f"Residual takes a module that keeps the shape: {name_of(layer.module)} turns the sample shape "
        f"{before} into {after}."
    )


@output_shape.register(Residual)
def _residual_output_shape(layer, input_shape):
    shape = output_shape(layer.module, input_shape)
    if shape != input_shape:
        raise _reshapes(layer, input_shape, shape)
    return input_shape


@residual.register(Residual)
def _residual_module(layer):
    return nn.Identity(), layer.module


@lipschitz.register(Residual)
def _residual_lipschitz(layer, norm, input_shape):
    if input_shape is not None:
        output_shape(layer, input_shape)
    if _stored_linear(layer):
        return _over_stored_linear(layer, norm)
    if _is_written_out(layer, input_shape):
        least = functools.partial(_written_out_norm, norm=norm, input_shape=input_shape)
        # Another machine sums in another order: the bound keeps a margin for what it recomputes.
        value = math.nextafter(least(layer) * (1 + 2.0**-40), math.inf)
        certificate = RecomputedCertificate(least, norm)
        return Bound(value, "upper", norm=norm, method="norm of I + W", certificate=certificate)
    inner = lipschitz(layer.module, norm, input_shape)
    certificate = ShortcutCertificate(inner, _module, norm)
    value = one_plus_up(inner.value)
    return Bound(value, "upper", norm=norm, method="1 + module", certificate=certificate)


def _module(layer):
    if guarded(layer, "lipschitz") is not _residual_lipschitz:  # a subclass may have a contract of its own
        raise TypeError(f"{name_of(layer)} is not read as a Residual.")
    return layer.module


def _primitive(layer):
    """The only primitive of the module, or None."""
    primitives = expand(_module(layer))
    return primitives[0] if len(primitives) == 1 else None


# Over an nn.Linear the entries of W are stored numbers. Only 1 + w_ii is rounded, by at most 2^-53 of what
# comes out, and that is at most the norm: the true norm is at most 1 + 2^-52 times that of what is computed.


def _stored_linear(layer):
    primitive = _primitive(layer)
    return primitive is not None and owner_of(primitive, *REGISTRIES.values()) is nn.Linear


def _over_stored_linear(layer, norm):
    matrix = _plus_identity(layer)
    bound = _norm(matrix, norm)
    value = math.nextafter(bound.value * (1 + 2.0**-50), math.inf) if bound.value > 0 else 0.0
    certificate = MatrixCertificate(_plus_identity, bound.certificate, norm, inflation=2.0**-52)
    return Bound(value, "upper", norm=norm, method="norm of I + W", certificate=certificate)


def _plus_identity(layer):
    """I + W of an nn.Linear, (features, features)."""
    if not _stored_linear(layer):
        raise TypeError(f"{name_of(layer)} is not a Residual over an nn.Linear.")
    linear = _primitive(layer)
    outputs, inputs = linear.weight.shape
    if outputs != inputs:
        raise _reshapes(layer, (inputs,), (outputs,))
    return _with_ones(affine(linear, (inputs,))[0])


def _with_ones(weight):
    return weight + torch.eye(len(weight), dtype=torch.float64, device="cpu")


def _norm(matrix, norm):
    return spectral_norm(matrix) if norm == 2 else row_sum_norm(matrix)


# Any other linear map is written out. Its entries may be rounded, and where they nearly cancel the ones the
# error is not small beside what is left: it is added, not multiplied.


def _is_written_out(layer, input_shape):
    primitive = _primitive(layer)
    if primitive is None or input_shape is None or numel(input_shape) > _LARGEST:
        return False
    try:
        affine(primitive, input_shape)
    except UnsupportedLayerError:
        return False
    return True


def _written_out_norm(layer, norm, input_shape):
    """The norm of I + W, rounded up; each entry of W is within a relative 2^-51 of the true one."""
    output_shape(layer, input_shape)
    weight, _ = affine(_primitive(layer), input_shape)
    matrix = _with_ones(weight)
    rows = matrix.abs() + 4 * weight.abs()  # 2^-53 of the sums and 2^-51 of W, in units of 2^-53
    size = rows.norm().item() if norm == 2 else rows.sum(dim=1).max().item()
    return math.nextafter((_norm(matrix, norm).value + 2 * UNIT_ROUNDOFF * size) * (1 + 2.0**-50), math.inf)


@affine.register(Residual)
def _residual_affine(layer, input_shape):
    """(I + W, b) over an nn.Linear, the diagonal within half a unit in the last place."""
    output_shape(layer, input_shape)
    if not _stored_linear(layer):
        inside = ", ".join(name_of(primitive) for primitive in expand(layer.module)) or "nothing"
        raise UnsupportedLayerError(
            f"Residual has an affine contract over an nn.Linear only, and this one holds {inside}: read its "
            "lipschitz contract, or the contracts of what it holds."
        )
    weight, bias = affine(_primitive(layer), input_shape)
    return _with_ones(weight), bias


@output_norm.register(Residual)
def _residual_output_norm(layer, input_norm, input_shape):
    """What the constant gives is smaller where x and the module nearly cancel; without it the sum holds."""
    if input_shape is not None:
        output_shape(layer, input_shape)
    return sum_up(input_norm, output_norm(layer.module, input_norm, input_shape))


@parameter_gradient_norm.register(Residual)
def _residual_gradients(layer, input_norm, cotangent_norm, input_shape):
    inner = parameter_gradient_norm(layer.module, input_norm, cotangent_norm, input_shape)
    return {f"module.{name}": bound for name, bound in inner.items()}


@enclose.register(Residual)
def _enclose_residual(layer, values, errors):
    output_shape(layer, tuple(values.shape[1:]))
    if _stored_linear(layer):
        bias = affine(_primitive(layer), (values.shape[-1],))[1]
        return enclose_product(values, errors, _plus_identity(layer), bias)
    return enclose_residual(layer, values, errors)


@trained_norm.register(Residual)
def _trained_norm(layer, input_shape):
    primitive = _primitive(layer)
    if primitive is None or "affine" not in contracts_of(primitive):
        return 1 + trained_norm(layer.module, input_shape)
    if _stored_linear(layer):
        return free_norm(layer, input_shape or (primitive.in_features,))
    if input_shape is None or numel(input_shape) > _LARGEST:  # as in the contract
        return 1 + trained_norm(layer.module, input_shape)
    return free_norm(layer, input_shape)


def enclose_residual(layer: nn.Module, values: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """`enclose` of a block skip(x) + f(x), as the sum of what its parts give."""
    output_shape(layer, tuple(values.shape[1:]))
    (kept, outer), (images, inner) = (enclose(part, values, errors) for part in residual(layer))
    total = kept + images
    return total, (outer + inner + UNIT_ROUNDOFF * total.abs()) * (1 + 8 * UNIT_ROUNDOFF)
