"""The certificates of the layer contracts. Each reads the layer again, and trusts no stored value.

A certificate is about a layer in a state that the guard accepts: in any other state nothing is proved.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from lipbook.bound import Bound, CertificateError, UnsupportedLayerError


@dataclass(frozen=True)
class MatrixCertificate:
    """Proves that the norm of a layer's materialised weight is at most the value, by a matrix certificate."""

    read: Callable[[nn.Module], Tensor]
    certificate: Any
    norm: float

    def verify(self, bound: Bound, subject: nn.Module) -> None:
        """Raise `CertificateError` unless the value is proved for the layer `subject`."""
        _check_form(bound, self.norm)
        weight = _reading(lambda: self.read(subject))
        _reading(lambda: self.certificate.verify(dataclasses.replace(bound, region=None), weight))


@dataclass(frozen=True)
class RecomputedCertificate:
    """Proves a value by computing again, rounded outward, the least value that the layer allows."""

    least: Callable[[nn.Module], float]
    norm: float

    def verify(self, bound: Bound, subject: nn.Module) -> None:
        """Raise `CertificateError` unless the value is at least what the layer needs."""
        _check_form(bound, self.norm)
        least = _reading(lambda: self.least(subject))
        if not bound.value >= least:
            raise CertificateError(f"{bound.value!r} is not proved: recomputed, this layer needs {least!r}.")


@dataclass(frozen=True)
class ProductCertificate:
    """Proves a product of factors: each factor on its own layer, and their product rounded up."""

    factors: tuple[Bound, ...]
    children: Callable[[nn.Module], tuple[nn.Module, ...]]
    norm: float

    def verify(self, bound: Bound, subject: nn.Module) -> None:
        """Raise `CertificateError` unless every factor is proved and their product is at most the value."""
        _check_form(bound, self.norm)
        children = _reading(lambda: self.children(subject))
        if len(children) != len(self.factors):
            raise CertificateError(f"{len(self.factors)} factors prove nothing about {len(children)} layers.")
        for position, (factor, child) in enumerate(zip(self.factors, children)):
            try:
                _check_form(factor, self.norm)
                factor.verify(child)
            except CertificateError as error:
                raise CertificateError(f"layer {position}, {type(child).__name__}: {error}") from error
        product = product_up([factor.value for factor in self.factors])
        if not bound.value >= product:
            raise CertificateError(f"{bound.value!r} is not proved: the factors multiply to {product!r}.")


def product_up(factors: list[float]) -> float:
    """The product of non-negative floats, exact where a float holds it, else rounded up; 0 beats infinity."""
    if 0 in factors:
        return 0.0
    if math.inf in factors:
        return math.inf
    exact = math.prod(map(Fraction, factors))
    try:
        product = float(exact)
    except OverflowError:
        return math.inf
    return product if product >= exact else math.nextafter(product, math.inf)


def _check_form(bound, norm):
    if (bound.kind, bound.norm, bound.output) != ("upper", norm, None):
        raise CertificateError(f"this certificate proves upper bounds in norm {norm}, not {bound!r}.")


def _reading(read):
    try:
        return read()
    except (
        UnsupportedLayerError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        RuntimeError,
    ) as error:
        raise CertificateError(f"the layer is not one that this certificate speaks of: {error}") from error
