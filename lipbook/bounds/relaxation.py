"""Linear bounds that are carried backwards through a chain of stages, rounding included.

If ``y >= lower_slope x + lower_offset`` and ``y <= upper_slope x + upper_offset`` on an interval, then a row
r of a linear functional of y is at least ``r+ (lower line) + r- (upper line)``, with r+ and r- its positive
and negative parts: a linear functional of x (back-substitution; CROWN: Zhang, Weng, Chen, Hsieh and Daniel,
"Efficient neural network robustness certification with general activation functions", NeurIPS 2018).

Rounding: a computed row r' of the exact row r differs from it by at most a few units in the last place of the
sums of its terms' sizes. The difference times |x| is taken off the offset, where |x| is bounded by `sizes`.

Chapter: bounds/local-bounds.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lipbook.bounds.stages import Bend, Linear
from lipbook.contracts.activations import monotone_on
from lipbook.contracts.definitions import slopes
from lipbook.contracts.rounding import enclose
from lipbook.norms.spectral import gamma

RELATIVE = 2.0**-48  # more than 2^-49 of a weight and a handful of roundings
TINY = 2.0**-900  # also a slope times the smallest float, where that slope is not too steep
_UNDERFLOW = 2.0**-1000


class Lines(NamedTuple):
    """Two lines about each entry, (batch, n): y >= lower_slope x + lower_offset, and y <= the upper one."""

    lower_slope: Tensor
    lower_offset: Tensor
    upper_slope: Tensor
    upper_offset: Tensor


def pulled_back(rows: Tensor, offset: Tensor, stages: list, sizes: list) -> tuple[Tensor, Tensor]:
    """(rows', offset') with rows y + offset >= rows' x + offset', where y comes out of the stages and x goes
    in.

    Args:
        rows: (batch or 1, count, n).
        offset: (batch or 1, count).
        stages: `Linear` or `Lines`, in the order in which they act.
        sizes: for each of them a bound (batch, n) on the absolute value of what enters it.
    """
    for stage, size in zip(reversed(stages), reversed(sizes)):
        tiny = underflow(size)
        if isinstance(stage, Linear):
            loss = size @ stage.weight.abs().T + stage.bias.abs() + stage.doubt + tiny
            change = rows @ stage.bias - rows.abs() @ stage.doubt
            terms = (rows.abs() @ loss.unsqueeze(-1)).squeeze(-1)
            rows_before, count = rows @ stage.weight, sum(stage.weight.shape)
        else:
            positive, negative = rows.clamp(min=0), rows.clamp(max=0)
            lower, upper = stage.lower_offset.unsqueeze(-1), stage.upper_offset.unsqueeze(-1)
            change = (positive @ lower + negative @ upper).squeeze(-1)
            steepest = torch.maximum(stage.lower_slope.abs(), stage.upper_slope.abs())
            highest = torch.maximum(stage.lower_offset.abs(), stage.upper_offset.abs())
            terms = (rows.abs() @ (steepest * size + highest).unsqueeze(-1)).squeeze(-1)
            rows_before = positive * stage.lower_slope.unsqueeze(-2)
            rows_before = rows_before + negative * stage.upper_slope.unsqueeze(-2)
            count = rows.shape[-1]
        offset = offset + change - (RELATIVE + gamma(count + 16)) * (terms + offset.abs()) - (TINY + tiny)
        rows = rows_before
    return rows, offset


def underflow(sizes: Tensor) -> Tensor:
    """What products with numbers of these sizes lose where their other factors underflow, (batch, 1)."""
    return (_UNDERFLOW * sizes).sum(dim=-1, keepdim=True)


def least(rows: Tensor, offset: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """A number below rows x + offset for every x with lower <= x <= upper, (batch, count)."""
    ends = rows.clamp(min=0) @ lower.unsqueeze(-1) + rows.clamp(max=0) @ upper.unsqueeze(-1)
    size = torch.maximum(lower.abs(), upper.abs()).unsqueeze(-1)
    terms = (rows.abs() @ size).squeeze(-1) + offset.abs()
    return ends.squeeze(-1) + offset - (RELATIVE + gamma(rows.shape[-1] + 16)) * terms - TINY


def extremes(stages: list, sizes: list, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds (batch, n) on each entry of what comes out of the stages."""
    last, size = stages[-1], sizes[-1]
    if isinstance(last, Linear):  # its rows are those of the functionals: nothing need be multiplied
        weight, stages, sizes = last.weight, stages[:-1], sizes[:-1]
        loss = size @ weight.abs().T + last.bias.abs() + last.doubt + underflow(size)
        doubt = last.doubt + RELATIVE * loss
        offset = torch.cat([last.bias - doubt, -last.bias - doubt], dim=1)
    else:
        weight = torch.eye(size.shape[1], dtype=torch.float64, device="cpu")
        offset = weight.new_zeros(1, 2 * len(weight))
    rows = torch.cat([weight, -weight])[None]
    below, above = least(*pulled_back(rows, offset, stages, sizes), lower, upper).chunk(2, dim=1)
    return below, -above


def image(bend: Bend, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """An interval about the activations of every x in [lower, upper], (batch, n)."""

    def on_interval(activation, lower, upper):
        a, b = slopes(activation, lower, upper)
        at_lower, at_upper = _values(activation, lower, upper)
        below = _lowest(at_lower, at_upper, a, b, upper - lower)
        return below, -_lowest(_negated(at_lower), _negated(at_upper), -b, -a, upper - lower)

    return _where(bend, on_interval, lower, upper, lambda: (lower, upper))


def slope_range(bend: Bend, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Tensors (a, b) between which every slope on [lower, upper] lies, (batch, n)."""
    return _where(bend, slopes, lower, upper, lambda: (torch.ones_like(lower), torch.ones_like(lower)))


def lines(bend: Bend, lower: Tensor, upper: Tensor) -> Lines:
    """Two lines about each activation on [lower, upper]: of those tried, the closest in the middle."""

    def on_interval(activation, lower, upper):
        middle = torch.minimum(torch.maximum(lower / 2 + upper / 2, lower), upper)
        ends = _values(activation, lower, middle, upper)
        mirrored = [_negated(end) for end in ends]
        a, b = slopes(activation, lower, upper)
        tangent = slopes(activation, middle, middle)
        rising, falling = monotone_on(activation, lower, upper)
        below = _line_below(ends, a, b, tangent, rising, falling, lower, middle, upper)
        tangent = (-tangent[1], -tangent[0])
        above = _line_below(mirrored, -b, -a, tangent, falling, rising, lower, middle, upper)
        return (*below, *(-part for part in above))

    ones, zeros = torch.ones_like(lower), torch.zeros_like(lower)
    return Lines(*_where(bend, on_interval, lower, upper, lambda: (ones, zeros, ones, zeros)))


def _where(bend, function, lower, upper, otherwise):
    """`function` of the entries on which the activation acts, and `otherwise` on the others."""
    if bend.where is None:
        found = function(bend.activation, *(end.reshape(-1, *bend.shape) for end in (lower, upper)))
        return tuple(part.flatten(1) for part in found)
    ends = (end[:, bend.where].reshape(-1, *bend.shape) for end in (lower, upper))
    found = function(bend.activation, *ends)
    parts = tuple(part.clone() for part in otherwise())
    for part, values in zip(parts, found):
        part[:, bend.where] = values.flatten(1)
    return parts


def known(numbers: Tensor, otherwise: float) -> Tensor:
    """The numbers, and `otherwise` in place of NaN."""
    return torch.where(numbers.isnan(), otherwise, numbers)


def _values(activation, *points):
    """For each of the points f(x), and how far it may be from the true value."""
    together = torch.cat(points)
    values, errors = enclose(activation, together, torch.zeros_like(together))
    return list(zip(values.chunk(len(points)), errors.chunk(len(points))))


def _negated(value):
    return -value[0], value[1]


def _lowest(at_lower, at_upper, a, b, width):
    """A number below f on an interval, from its values at the ends and its slopes, all within [a, b].

    f(x) is above a line of slope a through the left end, and above one of slope b through the right end. The
    two meet where both are lowest, if a <= 0 <= b.
    """
    p, q = a.clamp(max=0), b.clamp(min=0)
    left, right = at_lower[0] - at_lower[1], at_upper[0] - at_upper[1]
    spread = torch.where(q > p, q - p, 1.0)
    meeting = q / spread * left - p / spread * right + p * width * (q / spread)
    lowest = torch.where(q > p, meeting, torch.minimum(left, right))
    return lowest - RELATIVE * (left.abs() + right.abs() + (q - p) * width) - TINY * (1 + q - p)


def _line_below(values, a, b, tangent, rising, falling, lower, middle, upper):
    """A line (slope, offset) below f on [lower, upper], where its slopes are within [a, b].

    `rising` and `falling` bound by how much f' fails to be increasing, or decreasing: 0 for a convex or
    concave function, infinite where nothing is known.
    """
    at_lower, at_middle, at_upper = values
    width, tiny = upper - lower, TINY * (1 + a.abs() + b.abs())
    chord = torch.where(width > 0, (at_upper[0] - at_lower[0]) / torch.where(width > 0, width, 1.0), a)
    chord = torch.minimum(torch.maximum(chord, a), b)

    def through(value, slope, x):
        size = value[0].abs() + (slope * x).abs()
        return value[0] - value[1] - slope * x - RELATIVE * size - tiny

    def slack(failure):
        return torch.where(width > 0, 2 * failure * width, 0.0)

    left, right = through(at_lower, chord, lower), through(at_upper, chord, upper)
    ends = torch.minimum(left, right)
    zero = torch.zeros_like(left)
    flat_part = _lowest((left, zero), (right, zero), a - chord, b - chord, width)
    touching = (tangent[0] + tangent[1]) / 2
    strain = (tangent[1] - tangent[0]) + rising
    candidates = [
        (a, through(at_lower, a, lower)),
        (b, through(at_upper, b, upper)),
        (chord, torch.maximum(flat_part, ends - slack(falling))),
        (touching, through(at_middle, touching, middle) - slack(strain)),
    ]
    slopes_tried = torch.stack([slope for slope, _ in candidates])
    offsets = known(torch.stack([offset for _, offset in candidates]), -math.inf)
    best = known(slopes_tried * middle + offsets, -math.inf).argmax(dim=0, keepdim=True)
    return slopes_tried.gather(0, best)[0], offsets.gather(0, best)[0]
