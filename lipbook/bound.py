"""What a number in this book is: a `Bound`, over a `Ball` or everywhere, with a certificate.

A bound is a value with a direction, a norm, a region, the output it speaks of, the method that found it and
the certificate that proves it. `Bound.verify` checks the certificate again, without the method.

Chapter: how-to-read-a-certificate.
"""

import math
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any, Protocol

import torch


class CertificateError(ArithmeticError):
    """A certificate does not prove the bound it is attached to."""


class UnsupportedLayerError(TypeError):
    """A layer has no contract, or one that does not hold in its present state."""


class Certificate(Protocol):
    def verify(self, bound: "Bound", subject: Any) -> None:
        """Return if `bound` is proved for `subject`; otherwise raise `CertificateError`."""


@dataclass(frozen=True, eq=False)
class Ball:
    """All inputs within `radius` of `center`.

    Args:
        center: one sample, without a batch dimension; kept as a detached float64 copy.
        radius: at least 0, in the unit of the inputs.
        norm: 2 or `math.inf`.

    Raises:
        ValueError, TypeError: an empty, complex or non-finite center; a negative radius; another norm.

    Balls with equal entries are equal and hash alike.
    """

    center: torch.Tensor
    radius: float
    norm: float = math.inf

    def __post_init__(self):
        center = as_float64(self.center, "center").clone()
        radius = _real(self.radius, "radius")
        if not (0 <= radius < math.inf):
            raise ValueError(f"radius must be finite and at least 0, got {radius}.")
        object.__setattr__(self, "center", center)
        object.__setattr__(self, "radius", radius)
        object.__setattr__(self, "norm", checked_norm(self.norm))

    def _key(self):
        entries = tuple(self.center.flatten().tolist())
        return tuple(self.center.shape), entries, self.radius, self.norm

    def __eq__(self, other):
        return self._key() == other._key() if isinstance(other, Ball) else NotImplemented

    def __hash__(self):
        return hash(self._key())

    def __repr__(self):
        shape = "x".join(str(n) for n in self.center.shape) or "scalar"
        return f"Ball(center: {shape}, radius={self.radius:g}, norm={_norm_name(self.norm)})"


@dataclass(frozen=True)
class Bound:
    """A number that says what it bounds, from which side, and why.

    Args:
        value: at least 0. An upper bound may be infinite; a lower bound is finite.
        kind: "upper" (never below the truth) or "lower" (never above it).
        norm: the norm on both sides, 2 or `math.inf`.
        region: None (everywhere) or a `Ball` that contains both points of every pair.
        output: None (the output vector), `i` (one logit) or `(i, j)` (logit i minus logit j).
        method: the name of the method that found the value.
        certificate: an object whose `verify(bound, subject)` proves the value again, or None.

    Raises:
        ValueError, TypeError: when a field is not of this form.
    """

    value: float
    kind: str
    norm: float = 2
    region: Ball | None = None
    output: int | tuple[int, int] | None = None
    method: str = ""
    certificate: Certificate | None = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        if self.kind not in ("upper", "lower"):
            raise ValueError(f'kind must be "upper" or "lower", got {self.kind!r}.')
        value = _real(self.value, "value")
        if value < 0 or (value == math.inf and self.kind == "lower"):
            needs = "a lower bound is finite and" if self.kind == "lower" else "an upper bound is"
            raise ValueError(f"{needs} at least 0, got {value}.")
        if self.region is not None and not isinstance(self.region, Ball):
            raise TypeError(f"region must be None or a Ball, got {type(self.region).__name__}.")
        if not isinstance(self.method, str):
            raise TypeError(f"method must be the name of a method, got {type(self.method).__name__}.")
        if self.certificate is not None and not callable(getattr(self.certificate, "verify", None)):
            kind = type(self.certificate).__name__
            raise TypeError(f"certificate must have a method verify(bound, subject), got {kind}.")
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "norm", checked_norm(self.norm))
        object.__setattr__(self, "output", _checked_output(self.output))

    def __float__(self):
        return self.value

    def verify(self, subject) -> "Bound":
        """Prove the value again from its certificate alone, and return the bound.

        Args:
            subject: what the bound was computed for (the matrix, the layer or the model).

        Raises:
            CertificateError: the certificate is missing, or does not prove this value for this subject.
        """
        if self.certificate is None:
            raise CertificateError("this bound carries no certificate: nothing proves its value.")
        self.certificate.verify(self, subject)
        return self

    def __repr__(self):
        sign = "<=" if self.kind == "upper" else ">="
        what = {type(None): "", int: f" of logit {self.output}"}.get(type(self.output))
        if what is None:
            what = " of logits {} - {}".format(*self.output)
        where = "everywhere" if self.region is None else f"in {self.region!r}"
        shown = outward(self.value, self.kind)
        norm = _norm_name(self.norm)
        return f"Bound(Lipschitz constant{what} {sign} {shown}, norm {norm}, {where}, by {self.method!r})"


def outward(value: float, kind: str, digits: int = 4) -> str:
    """`value` to `digits` significant digits, rounded up for an upper bound and down for a lower one."""
    if value == 0 or math.isinf(value):
        return f"{value:g}"
    exact = Decimal(value)
    step = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    rounded = exact.quantize(step, rounding=ROUND_CEILING if kind == "upper" else ROUND_FLOOR)
    return f"{rounded:f}" if -5 < rounded.adjusted() < 7 else f"{rounded:e}"


def as_float64(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """A detached float64 reading of a real floating tensor, exact and on the CPU.

    Certificates are made on the CPU: the triangular solvers of a GPU may multiply by inverted blocks, and
    the error bounds that the proofs rest on do not cover that.

    Raises:
        TypeError: not a tensor, or not of a real floating dtype.
        ValueError: empty, on the meta device, or with an entry that is NaN or infinite.
        RuntimeError: torch flushes subnormal numbers to 0, so that a tensor cannot be read exactly.
    """
    if not isinstance(tensor, torch.Tensor):
        advice = "pass its weight" if isinstance(tensor, torch.nn.Module) else "use torch.as_tensor"
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}: {advice}.")
    if not tensor.is_floating_point():
        integer = not tensor.is_complex() and tensor.dtype != torch.bool
        pixels = ", and divide by 255 where the model reads pixels from 0 to 1" if integer else ""
        raise TypeError(
            f"{name} must have a real floating dtype, got {tensor.dtype}: use .to(torch.float64){pixels}."
        )
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {tensor.layout}: use .to_dense().")
    if tensor.numel() == 0:
        raise ValueError(f"{name} is empty, of shape {tuple(tensor.shape)}: it needs at least one entry.")
    require_values(tensor, name)
    if torch.full((1,), 5e-324, dtype=torch.float64, device="cpu").mul(1).item() == 0:
        raise RuntimeError("subnormal numbers are read as 0: call torch.set_flush_denormal(False) first.")
    tensor = tensor.detach().cpu().to(torch.float64)
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} has an entry that is NaN or infinite: a bound needs finite numbers.")
    return tensor


def require_values(tensor: torch.Tensor, name: str) -> None:
    """Raise a ValueError if the tensor is on the meta device."""
    if tensor.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values: use real ones.")


def checked_norm(norm: float) -> float:
    """`norm` if it is one that the library knows (2 or `math.inf`); otherwise a ValueError."""
    if isinstance(norm, (int, float)) and not isinstance(norm, bool) and norm in (2, math.inf):
        return norm
    raise ValueError(f"norm must be 2 or math.inf, got {norm!r}.")


def _real(number, name):
    if isinstance(number, bool) or not hasattr(number, "__float__"):
        raise TypeError(f"{name} must be a number, got {type(number).__name__}.")
    value = float(number)
    if math.isnan(value):
        raise ValueError(f"{name} is NaN: look for the step that produced it, no bound can rest on it.")
    if value != number:
        raise ValueError(f"{name} is {number!r}, which no float holds: round it outward first.")
    return value


def _checked_output(output):
    if output is None or (isinstance(output, int) and not isinstance(output, bool) and output >= 0):
        return output
    if isinstance(output, tuple) and len(output) == 2 and all(type(k) is int and k >= 0 for k in output):
        if output[0] != output[1]:
            return output
    raise ValueError(
        f"output must be None, one logit i or a pair (i, j) of different logits, got {output!r}."
    )


def _norm_name(norm):
    return "inf" if norm == math.inf else "2"
