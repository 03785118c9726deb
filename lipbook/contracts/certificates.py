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
from lipbook.contracts.definitions import output_shape


@dataclass(frozen=True)
class MatrixCertificate:
    """Proves that the norm of a layer's materialised weight is at most the value, by a matrix certificate.

    Where `read` rounds, the norm of the true weight is at most 1 + `inflation` times that of what it gives.
    """

    read: Callable[[nn.Module], Tensor]
    certificate: Any
    norm: float
    inflation: float = 0.0

    def verify(self, bound: Bound, subject: nn.Module) -> None:
        """Raise `CertificateError` unless the value is proved for the layer `subject`."""
        _check_form(bound, self.norm)
        weight = reading(lambda: self.read(subject))
        deflated = dataclasses.replace(bound, region=None, value=self._deflated(bound.value))
        reading(lambda: self.certificate.verify(deflated, weight))

    def _deflated(self, value):
        """A float at most value / (1 + inflation)."""
        if self.inflation == 0 or math.isinf(value):
            return value
        return math.nextafter(value / math.nextafter(1 + self.inflation, math.inf), 0.0)


@dataclass(frozen=True)
class RecomputedCertificate:
    """Proves a value by computing again, rounded outward, the least value that the layer allows."""

    least: Callable[[nn.Module], float]
    norm: float

    def verify(self, bound: Bound, subject: nn.Module) -> None:
        """Raise `CertificateError` unless the value is at least what the layer needs."""
        _check_form(bound, self.norm)
        least = reading(lambda: self.least(subject))
        if not bound.value >= least:
            raise CertificateError(f"{bound.value!r} is not proved: recomputed, this layer needs {least!r}.")


@dataclass(frozen=True)
class ProductCertificate:
    """Proves a product of factors: each factor on its own layer, and their product rounded up.

    Each factor speaks of inputs of the shape in `shapes`; None where no shape was given.
    """

    factors: tuple[Bound, ...]
    children: Callable[[nn.Module], tuple[nn.Module, ...]]
    norm: float
    shapes: tuple[tuple[int, ...] | None, ...]

    def verify(self, bound: Bound, subject: nn.Module) -> None:
        """Raise `CertificateError` unless every factor is proved and their product is at most the value."""
        _check_form(bound, self.norm)
        children = reading(lambda: self.children(subject))
        if len(children) != len(self.factors):
            raise CertificateError(
                f"the certificate has {len(self.factors)} factors, and the model {len(children)} layers: it "
                "belongs to another model."
            )
        if reading(lambda: shapes_through(children, self.shapes[0] if children else None)) != self.shapes:
            raise CertificateError("the layers pass on other shapes than the factors were computed for.")
        for position, (factor, child) in enumerate(zip(self.factors, children)):
            try:
                _check_form(factor, self.norm, everywhere=True)
                factor.verify(child)
            except CertificateError as error:
                raise CertificateError(f"layer {position}, {type(child).__name__}: {error}") from error
        product = product_up([factor.value for factor in self.factors])
        if not bound.value >= product:
            raise CertificateError(f"{bound.value!r} is not proved: the factors multiply to {product!r}.")


@dataclass(frozen=True)
class ShortcutCertificate:
    """Proves a constant of x + module(x): the module's on the module, and 1 + that, rounded up."""

    inner: Bound
    module: Callable[[nn.Module], nn.Module]
    norm: float

    def verify(self, bound: Bound, subject: nn.Module) -> None:
        """Raise `CertificateError` unless the inner bound is proved, and the value is at least 1 more."""
        _check_form(bound, self.norm)
        module = reading(lambda: self.module(subject))
        try:
            _check_form(self.inner, self.norm, everywhere=True)
            self.inner.verify(module)
        except CertificateError as error:
            raise CertificateError(f"inside the residual, {type(module).__name__}: {error}") from error
        least = one_plus_up(self.inner.value)
        if not bound.value >= least:
            raise CertificateError(f"{bound.value!r} is not proved: 1 + the inner bound is {least!r}.")


def shapes_through(
    layers: tuple[nn.Module, ...], shape: tuple[int, ...] | None
) -> tuple[tuple[int, ...] | None, ...]:
    """The shape of one sample as it enters each layer of a chain; None where the first is not known."""
    shapes = []
    for layer in layers:
        shapes.append(shape)
        shape = None if shape is None else output_shape(layer, shape)
    return tuple(shapes)


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


def one_plus_up(value: float) -> float:
    """1 + a non-negative float, exact where a float holds it, else rounded up."""
    total = 1 + value
    if math.isinf(total) or Fraction(total) >= 1 + Fraction(value):
        return total
    return math.nextafter(total, math.inf)


def _check_form(bound, norm, everywhere=False):
    if (bound.kind, bound.norm, bound.output) != ("upper", norm, None):
        raise CertificateError(f"this certificate proves upper bounds in norm {norm}, not {bound!r}.")
    if everywhere and bound.region is not None:
        raise CertificateError(f"a layer's inputs may lie anywhere, and {bound!r} is about a region.")


def reading(read: Callable[[], Any]) -> Any:
    """What `read()` returns; a layer that it cannot read is a `CertificateError`."""
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
