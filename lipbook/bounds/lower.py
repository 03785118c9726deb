"""Lower bounds: two points, and how far apart the network sends them.

Whatever the network does elsewhere, |f(x) - f(y)| <= Lip(f) |x - y| for this pair. So one pair proves a lower
bound; its slope is computed exactly from values whose rounding errors are bounded (`contracts.enclose`).
Gradients only say where to look: at a kink, what they return need not be a slope at all.

Chapter: bounds/whole-networks.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from lipbook.bound import Ball, Bound, CertificateError, as_float64, checked_norm
from lipbook.bounds.search import steepest_pairs
from lipbook.contracts.certificates import reading
from lipbook.contracts.definitions import contracts_of, expand, slopes
from lipbook.contracts.rounding import enclose
from lipbook.contracts.structures import Reflection, Sorting
from lipbook.contracts.variants import faithful_copy
from lipbook.network import checked_logits, pairs_of, read


def gradient_lower_bound(
    model: nn.Sequential,
    inputs: Tensor,
    norm: float = 2,
    logits: int | tuple[int, int] | str | None = None,
    region: Ball | None = None,
    seed: int = 0,
) -> Bound | dict[tuple[int, int], Bound]:
    """A lower bound on the Lipschitz constant of a model: the steepest pair of points that a search finds.

    The search starts at `inputs` and at random points, follows the Jacobian to pairs, and keeps the pair
    whose slope ``|f(x) - f(y)| / |x - y|``, less its rounding error, is largest. It proves nothing about how
    far below the truth it ends: never use it where an upper bound is needed, as in a certified radius.

    Args:
        model: an `nn.Sequential` of layers with the contract `enclose`.
        inputs: (batch, ...), where to start: data, or any points.
        norm: 2 or `math.inf`, of the inputs and of the output vector.
        logits: None (the output vector), `i` (one logit), `(i, j)` (logit i minus logit j), or "pairs".
        region: None (everywhere) or a `Ball` that both points lie in, checked exactly.
        seed: of the random points.

    Returns:
        A `Bound` whose certificate holds the pair; for "pairs" one for each (i, j) with i < j.

    Raises:
        UnsupportedLayerError: a layer without a contract, or in a state of which it does not speak.
        ValueError, TypeError: an empty batch, NaN, inputs that the model does not take, logits that it does
            not have, a region of another shape.

    Chapter: bounds/whole-networks.
    """
    norm = checked_norm(norm)
    read(model)
    inputs = as_float64(inputs, "inputs")
    if inputs.ndim < 2:
        raise ValueError(f"inputs must be a batch, of shape (batch, ...), got {tuple(inputs.shape)}.")
    read(model, tuple(inputs.shape[1:]))
    if region is not None and not isinstance(region, Ball):
        raise TypeError(f"region must be None or a Ball, got {type(region).__name__}.")
    if region is not None and region.center.shape != inputs.shape[1:]:
        shapes = f"{tuple(region.center.shape)}, and the inputs {tuple(inputs.shape[1:])}"
        raise ValueError(f"the center of the region has shape {shapes}: they must agree.")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed must be an int, got {seed!r}.")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be from 0 to 2^63 - 1, got {seed}.")
    twin, _ = faithful_copy(model)
    twin.eval()
    count = twin(inputs[:1].clone()).numel()
    logits = checked_logits(logits, count)
    outputs = [None, *pairs_of(count)] if logits == "pairs" else [logits]
    functions = [_selected(twin, output) for output in outputs]
    found = steepest_pairs(functions, _kinks(twin), inputs, norm, region, seed)
    bounds = {
        output: _best(model, candidates, norm, output, region) for output, candidates in zip(outputs, found)
    }
    if logits != "pairs":
        return bounds[logits]
    del bounds[None]
    return bounds


@dataclass(frozen=True, eq=False)
class PairCertificate:
    """Proves `bound.value` <= the constant by two points x and y, float64, of the shape of a sample."""

    x: Tensor
    y: Tensor

    def verify(self, bound: Bound, subject: nn.Sequential) -> None:
        """Raise `CertificateError` unless the pair proves the value for the model `subject`."""
        if bound.kind != "lower":
            raise CertificateError(f"a pair of points proves lower bounds, not {bound!r}.")
        if not all(_is_point(point) for point in (self.x, self.y)) or self.x.shape != self.y.shape:
            raise CertificateError("this certificate proves nothing: it needs two finite float64 points.")
        if bound.region is not None and not (_inside(self.x, bound.region) and _inside(self.y, bound.region)):
            raise CertificateError(f"a point of the pair is not in {bound.region!r}.")
        proved = reading(lambda: proved_slope(subject, self.x, self.y, bound.norm, bound.output))
        if not bound.value <= proved:
            raise CertificateError(f"{bound.value!r} is not proved: the pair has a slope of {proved!r}.")


def proved_slope(model: nn.Module, x: Tensor, y: Tensor, norm: float, output=None, margin=1) -> float:
    """A number that the slope of the model between x and y is not below, rounding errors included.

    They are subtracted `margin` times; 1 is what the proof needs.
    """
    pair = torch.stack([x, y])
    values, errors = enclose(model, pair, torch.zeros_like(pair))
    if not torch.isfinite(errors).all() or torch.equal(x, y):
        return 0.0
    rises = _least_rises(values.flatten(1), margin * errors.flatten(1), output)
    runs = [Fraction(a) - Fraction(b) for a, b in zip(x.flatten().tolist(), y.flatten().tolist())]
    if norm == 2:
        return _root_below(sum(rise**2 for rise in rises) / sum(run**2 for run in runs))
    return _below(max(rises) / max(abs(run) for run in runs))


def _selected(twin, output):
    """A function from a batch to what the bound is about: (batch, all logits, or 1)."""

    def function(batch):
        logits = twin(batch.clone()).flatten(1)
        if output is None:
            return logits
        i, j = output if isinstance(output, tuple) else (output, None)
        return logits[:, i : i + 1] - (0 if j is None else logits[:, j : j + 1])

    return function


def _best(model, candidates, norm, output, region):
    anywhere = candidates[0][0] if region is None else region.center
    best, pair = 0.0, (anywhere, anywhere)
    for x, y in zip(*candidates):
        if region is not None and not (_inside(x, region) and _inside(y, region)):
            continue
        # More than its proof needs, so that another machine's order of summation proves the value too.
        slope = proved_slope(model, x, y, norm, output, margin=4)
        if slope > best:
            best, pair = slope, (x, y)
    certificate = PairCertificate(pair[0].clone(), pair[1].clone())
    return Bound(best, "lower", norm, region, output, method="gradients", certificate=certificate)


def _kinks(twin):
    """A function from a batch to the numbers whose signs decide what the activations do."""
    chain = [(layer, slopes(layer) if "slopes" in contracts_of(layer) else None) for layer in expand(twin)]

    def kinks(batch):
        found, values = [batch.flatten(1)[:, :0]], batch
        for layer, structure in chain:
            if structure is not None:
                found.append(_decisions(structure, values).flatten(1))
            values = layer(values.clone())
        return torch.cat(found, dim=1)

    return kinks


def _decisions(structure, values):
    """A sorting compares each two entries of a group, a reflection looks at u'z, others at each entry."""
    if isinstance(structure, Sorting):
        groups = values.unflatten(structure.dim, (-1, structure.group_size)).movedim(structure.dim + 1, -1)
        first, second = torch.triu_indices(structure.group_size, structure.group_size, offset=1)
        return groups[..., first] - groups[..., second]
    if isinstance(structure, Reflection):
        pairs = values.unflatten(structure.dim, (-1, 2)).movedim((structure.dim, structure.dim + 1), (-2, -1))
        return (pairs * structure.vectors).sum(dim=-1)
    return values


def _least_rises(values, errors, output):
    """The least that each of |f_k(x) - f_k(y)| can be, as exact fractions."""
    at_x, at_y = ([Fraction(number) for number in row] for row in values.tolist())
    doubts = [sum(map(Fraction, pair)) for pair in zip(*errors.tolist())]
    rises = [a - b for a, b in zip(at_x, at_y)]
    checked_logits(output, len(rises))
    if isinstance(output, tuple):
        i, j = output
        rises, doubts = [rises[i] - rises[j]], [doubts[i] + doubts[j]]
    elif output is not None:
        rises, doubts = [rises[output]], [doubts[output]]
    return [max(abs(rise) - doubt, Fraction(0)) for rise, doubt in zip(rises, doubts)]


def _inside(point: Tensor, region: Ball) -> bool:
    """Whether a point is in a ball, in exact arithmetic."""
    if point.shape != region.center.shape:
        return False
    gaps = [
        Fraction(a) - Fraction(b) for a, b in zip(point.flatten().tolist(), region.center.flatten().tolist())
    ]
    if region.norm == 2:
        return sum(gap**2 for gap in gaps) <= Fraction(region.radius) ** 2
    return max(abs(gap) for gap in gaps) <= Fraction(region.radius)


def _is_point(point):
    return isinstance(point, Tensor) and point.dtype == torch.float64 and bool(torch.isfinite(point).all())


def _below(fraction: Fraction) -> float:
    """The largest float that is at most a non-negative fraction."""
    try:
        value = float(fraction)
    except OverflowError:
        return math.nextafter(math.inf, 0)
    return math.nextafter(value, 0) if Fraction(value) > fraction else value


def _root_below(fraction: Fraction) -> float:
    """A float at most the square root of a non-negative fraction, within a few units of it."""
    # isqrt is exact: 2^k fraction is an integer part of at least 2^128, unless the fraction is 0.
    shift = max(0, 128 - fraction.numerator.bit_length() + fraction.denominator.bit_length())
    shift += shift % 2
    root = math.isqrt((fraction.numerator << shift) // fraction.denominator)
    return _below(Fraction(root, 2 ** (shift // 2)))
