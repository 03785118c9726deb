"""The product bound: the Lipschitz constants of the layers multiply.

|f_2(f_1(x)) - f_2(f_1(y))| <= Lip(f_2) Lip(f_1) |x - y|. For one logit, or a difference of two, the last
linear map is replaced by its row, or the difference of two rows.
Source: Szegedy et al., "Intriguing properties of neural networks", ICLR 2014, section 4.3.

Chapter: bounds/whole-networks.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import nn

from lipbook.bound import Bound, CertificateError, checked_norm
from lipbook.contracts.certificates import product_up, reading
from lipbook.contracts.definitions import lipschitz
from lipbook.network import Step, checked_logits, count_logits, pairs_of, read, split_head
from lipbook.norms.rows import row_sum_norm
from lipbook.norms.spectral import spectral_norm

_ROUNDED_ROW = 2.0**-49  # four units in each entry of the head, and one for the difference of two rows


def product_bound(
    model: nn.Sequential,
    norm: float = 2,
    logits: int | tuple[int, int] | str | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> Bound | dict[tuple[int, int], Bound]:
    """An upper bound on the Lipschitz constant of a model: the product of those of its layers.

    Args:
        model: an `nn.Sequential` of layers with contracts, nesting allowed.
        norm: 2 or `math.inf`, of the inputs and of the output vector.
        logits: None (the output vector), `i` (one logit), `(i, j)` (logit i minus logit j), or "pairs".
        input_shape: the shape of one sample, where a layer's size matters.

    Returns:
        A `Bound` whose `verify(model)` proves every factor again; for "pairs" one for each (i, j) with i < j.

    Raises:
        UnsupportedLayerError: a layer without a contract, or in a state of which it does not speak.
        ValueError, TypeError: another norm, logits that the model does not have, a shape that is missing or
            does not fit, NaN or infinite weights.

    Source: Szegedy et al., ICLR 2014, section 4.3. Chapter: bounds/whole-networks.
    """
    norm = checked_norm(norm)
    steps = read(model, input_shape)
    if logits is None:
        return lipschitz(model, norm, input_shape)
    body, head = split_head(steps)
    count = count_logits(steps, head)
    logits = checked_logits(logits, count)
    factors = tuple(lipschitz(step.layer, norm, step.input_shape) for step in body)
    shapes = _shapes(body, input_shape)
    bounds = {
        output: _bound(factors, shapes, *_row(head, output, count), norm, output)
        for output in (pairs_of(count) if logits == "pairs" else [logits])
    }
    return bounds if logits == "pairs" else bounds[logits]


@dataclass(frozen=True)
class LogitsCertificate:
    """Proves a bound on one logit or a difference of two: each layer's factor, and the norm of the row.

    `shapes` are those of one sample before each factor, and before the row.
    """

    factors: tuple[Bound, ...]
    row: Bound
    shapes: tuple[tuple[int, ...] | None, ...]

    def verify(self, bound: Bound, subject: nn.Sequential) -> None:
        """Raise `CertificateError` unless the value is proved for the model `subject`."""
        if bound.kind != "upper" or bound.output is None or bound.norm != self.row.norm:
            raise CertificateError(f"this certificate proves upper bounds on logits, not {bound!r}.")
        body, row, doubt = reading(lambda: self._read(bound.output, subject))
        if len(body) != len(self.factors):
            raise CertificateError(
                f"the certificate has {len(self.factors)} factors, and the model {len(body)} layers: it "
                "belongs to another model."
            )
        for position, (factor, step) in enumerate(zip(self.factors, body)):
            _verify_factor(factor, step, position, bound.norm)
        if not self.row.value >= doubt:
            raise CertificateError(f"{self.row!r} is not proved: its row is rounded by up to {doubt!r}.")
        proved_row = dataclasses.replace(self.row, value=_difference_down(self.row.value, doubt))
        reading(lambda: proved_row.verify(row))
        product = product_up([*(factor.value for factor in self.factors), self.row.value])
        if not bound.value >= product:
            raise CertificateError(f"{bound.value!r} is not proved: the factors multiply to {product!r}.")

    def _read(self, output, subject):
        steps = read(subject, self.shapes[0])
        body, head = split_head(steps)
        if _shapes(body, self.shapes[0]) != self.shapes:
            raise ValueError("the sizes of its layers are those of another model.")
        count = count_logits(steps, head)
        return body, *_row(head, checked_logits(output, count), count)


def _verify_factor(factor: Bound, step: Step, position: int, norm: float):
    if (factor.kind, factor.norm, factor.region, factor.output) != ("upper", norm, None, None):
        raise CertificateError(f"{factor!r} is not a bound on a layer.")
    try:
        factor.verify(step.layer)
    except CertificateError as error:
        raise CertificateError(f"layer {position}, {type(step.layer).__name__}: {error}") from error


def _shapes(body, input_shape):
    return input_shape, *(step.output_shape for step in body)


def _bound(factors, shapes, row, doubt, norm, output):
    proved = spectral_norm(row) if norm == 2 else row_sum_norm(row)
    if doubt > 0:
        # More than its proof needs, so that another machine's order of summation proves it too.
        proved = dataclasses.replace(proved, value=math.nextafter(proved.value + 4 * doubt, math.inf))
    value = product_up([*(factor.value for factor in factors), proved.value])
    certificate = LogitsCertificate(factors, proved, shapes)
    return Bound(value, "upper", norm=norm, output=output, method="product", certificate=certificate)


def _row(head, output, count):
    """The linear map (1, features) from what enters the last linear layer to one logit, or to a difference.

    And how far its norm may be from that of the true map: `affine` may round the entries of a head, and where
    two rows nearly cancel, their difference is small beside that. Without a last linear layer the map acts on
    the output itself, and picks entries.
    """
    weight = torch.eye(count, dtype=torch.float64, device="cpu") if head is None else head
    rows = weight[[output] if isinstance(output, int) else list(output)]
    row = rows[:1] if len(rows) == 1 else rows[:1] - rows[1:]
    size = rows.abs().sum().item()
    return row, math.nextafter(_ROUNDED_ROW * size, math.inf) if size > 0 else 0.0


def _difference_down(value, less):
    return math.nextafter(value - less, 0.0) if math.isfinite(value) else value
