"""Layers whose weights are computed from free parameters, and the contracts of those that torch could hold.

A layer of this kind is bounded by construction: its parameters may take any value. What the forward pass uses
is the *materialised* weight, rounded to the parameters' dtype, and that is what the contracts bound: a weight
in half precision has the norm that it has, not 1.

Chapter: layers/orthogonal-layers.
"""

import copy
import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lipbook.bound import Bound
from lipbook.contracts.certificates import reading
from lipbook.contracts.definitions import REGISTRIES, affine, guarded, lipschitz, owner_of
from lipbook.contracts.guard import name_of
from lipbook.contracts.rounding import enclose
from lipbook.contracts.trained import trained_norm
from lipbook.contracts.variants import fix_weights


class Parametrised(nn.Module):
    """The base of a layer whose weights are computed from its parameters.

    A subclass defines `compute`, and its forward pass calls `weights`. In train mode, and wherever gradients
    of the parameters are wanted, the weights are computed once a forward pass; in eval mode they are kept for
    as long as the parameters have the same values and no attribute is set. A layer that also holds other
    tensors or modules, such as parametrisations, keeps nothing. Contracts call `materialise`, and never read
    what is kept.
    """

    _kept = None  # (values of the parameters, size, weights)
    _fixed = None  # (the layer whose weights a copy computes with, whatever its own parameters,)

    def compute(self, *size: int) -> tuple[Tensor, ...]:
        """The weights from the parameters, which `wide` brings to at least float32.

        `size` is of the image, where the weights depend on it.
        """
        raise NotImplementedError

    def materialise(self, *size: int) -> tuple[Tensor, ...]:
        """The weights of the forward pass, computed anew, in the dtype of the parameters."""
        if self._fixed is not None:
            return tuple(map(_double, self._fixed[0].materialise(*size)))
        first = next(itertools.chain(_tensors(self), self.parameters()))
        with torch.autocast(first.device.type, enabled=False):
            return tuple(_rounded(weight, first.dtype) for weight in self.compute(*size))

    def weights(self, *size: int) -> tuple[Tensor, ...]:
        """What `materialise` gives, kept in eval mode where no gradient of a parameter is wanted."""
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if self.training or is_traced or self._modules:
            return self.materialise(*size)
        parameters = tuple(_tensors(self))
        if not all(map(_is_constant, parameters)):
            return self.materialise(*size)
        kept = self._kept
        if kept is None or kept[1] != size or not all(map(_same, parameters, kept[0])):
            with torch.inference_mode(False), torch.no_grad():
                values = tuple(parameter.detach().clone() for parameter in parameters)
                kept = values, size, self.materialise(*size)
            if all(type(tensor) is Tensor for tensor in (*values, *kept[2])):  # and none has only a shape
                self._kept = kept
        return kept[2]

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name != "_kept":  # the mode, or an attribute on which the weights may depend
            self.__dict__.pop("_kept", None)

    def _apply(self, *arguments, **keywords):
        self._kept = None
        return super()._apply(*arguments, **keywords)

    def _load_from_state_dict(self, *arguments, **keywords):
        self._kept = None
        return super()._load_from_state_dict(*arguments, **keywords)

    def __getstate__(self):
        return {name: value for name, value in super().__getstate__().items() if name != "_kept"}


@trained_norm.register(Parametrised)
def _trained_norm(layer, input_shape):
    return 1.0  # whatever the parameters


@fix_weights.register(Parametrised)
def _fix(layer):
    layer._fixed = (copy.deepcopy(layer),)
    return True


def _tensors(layer):
    """The parameters of a layer, and what may stand in their place: attributes and buffers."""
    held = (*layer._parameters.values(), *vars(layer).values(), *layer._buffers.values())
    return (tensor for tensor in held if isinstance(tensor, Tensor))


def wide(parameter: Tensor) -> Tensor:
    """The parameter in its own dtype, half precision in float32."""
    return parameter if parameter.dtype in (torch.float32, torch.float64) else parameter.float()


def _rounded(weight, dtype):
    return weight if weight.is_complex() else weight.to(dtype)


def _double(weight):
    return weight.to(torch.complex128 if weight.is_complex() else torch.float64)


def _is_constant(parameter):
    """Whether a weight made of it may be kept: no gradient is wanted, and it is no tracer of torch.func."""
    wants_gradient = torch.is_grad_enabled() and parameter.requires_grad
    return type(parameter) is nn.Parameter and not wants_gradient


def _same(parameter, value):
    return (
        parameter.dtype == value.dtype
        and parameter.device == value.device
        and parameter.shape == value.shape
        and torch.equal(parameter, value)
    )


# Layers that compute what a layer of torch computes: their contracts are those of that layer.


@dataclass(frozen=True)
class PlainCertificate:
    """Proves a bound on a layer by the certificate of the bound on the plain layer that it amounts to."""

    kind: type
    certificate: Any

    def verify(self, bound: Bound, subject: nn.Module) -> None:
        """Raise `CertificateError` unless the value is proved for the layer `subject`."""
        plain = reading(lambda: self._plain(subject))
        dataclasses.replace(bound, certificate=self.certificate).verify(plain)

    def _plain(self, layer):
        guarded(layer, "lipschitz")
        if owner_of(layer, REGISTRIES["lipschitz"]) is not self.kind:  # a subclass may have one of its own
            raise TypeError(f"{name_of(layer)} is not read as {name_of(self.kind)}.")
        return layer.plain()


def plain_lipschitz(layer: Parametrised, norm: float, input_shape: tuple[int, ...] | None) -> Bound:
    """The Lipschitz bound of a layer whose method `plain` gives the torch layer that it is."""
    inner = lipschitz(layer.plain(), norm, input_shape)
    kind = owner_of(layer, REGISTRIES["lipschitz"])
    return dataclasses.replace(inner, certificate=PlainCertificate(kind, inner.certificate))


def register_plain(kind: type) -> None:
    """Register the contracts of a class whose method `plain` gives the torch layer that it is."""
    lipschitz.register(kind, plain_lipschitz)
    affine.register(kind, lambda layer, input_shape: affine(layer.plain(), input_shape))
    enclose.register(kind, lambda layer, values, errors: enclose(layer.plain(), values, errors))
