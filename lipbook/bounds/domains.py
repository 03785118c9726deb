"""What is asked of a model over a box, and its answer on a batch of domains.

A domain is the part of the box where some of the activations are assumed to receive inputs below or above a
number. Everything about it is computed from these assumptions alone, so that a stored domain can be verified.

Chapter: bounds/local-bounds.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lipbook.bounds.jacobians import row_bounds
from lipbook.bounds.preactivations import Trace, Unbounded, sizes_of, traced
from lipbook.bounds.relaxation import Lines, known, least, pulled_back, slope_range, underflow
from lipbook.bounds.stages import Bend, Chain, flat
from lipbook.norms.spectral import spectral_norm

SMALLEST = 5e-324
_KINK = 1e-6
_ENTRIES = 2**25  # numbers in the largest tensor of linear functionals


class Half(NamedTuple):
    """What a domain assumes: the input of entry `index` of the flat stage `position` is at most, or (`above`)
    at least, `point`."""

    position: int
    index: int
    point: float
    above: bool

    @property
    def end(self) -> float:
        """The float that bounds the interval. Beside a kink at 0 it is the next float: the slopes on the
        other side of the kink do not belong to the domain, and between 0 and the next float they do not
        change, nor do values by more than what intervals and lines are widened by. Where the input is 0 on a
        set with an interior its gradient is 0 there, and the slope does not matter."""
        return (SMALLEST if self.above else -SMALLEST) if self.point == 0 else self.point


@dataclass(frozen=True)
class Problem:
    """Bound the norm of the rows `functionals` (rows, outputs) times the Jacobian of a chain over a box."""

    chain: Chain
    lower: Tensor
    upper: Tensor
    functionals: Tensor
    norm: float
    linear: bool
    pure: bool

    def values(self, domains: list[tuple[Half, ...]] = ((),)) -> list[float]:
        """An upper bound for each domain, 0 where it holds no point, infinite where intervals overflow."""
        return self.explored(domains)[0]

    def explored(self, domains):
        """The values, and for each domain the `Half` that would cut it where that seems to matter most (None:
        there is nothing to cut)."""
        values, cuts = [], []
        together = max(1, _ENTRIES // (2 * len(self.functionals) * self.lower.shape[1] * self._widest()))
        for start in range(0, len(domains), together):
            found = self._explored(domains[start : start + together])
            values, cuts = values + found[0], cuts + found[1]
        return values, cuts

    def widths(self) -> dict[int, int]:
        """How many entries each activation has, by the number of its flat stage."""
        stages = flat(self.chain.stages)
        bends = [position for position, stage in enumerate(stages) if isinstance(stage, Bend)]
        return {position: _width(stages, position, self.lower) for position in bends}

    def _widest(self):
        linear = [stage for stage in flat(self.chain.stages) if not isinstance(stage, Bend)]
        return max((max(stage.weight.shape) for stage in linear), default=1)

    def _explored(self, domains):
        try:
            trace = self.trace(domains)
        except Unbounded:
            return [math.inf] * len(domains), [None] * len(domains)
        rows = row_bounds(self.chain.stages, trace, self.functionals, self.norm, self.linear, self.pure)
        values = torch.where(trace.empty, 0.0, known(_total(rows, self.norm), math.inf))
        return values.tolist(), self._cuts(trace, rows)

    def trace(self, domains) -> Trace:
        """What is known inside the chain on each domain."""
        stages = flat(self.chain.stages)
        clips = {}
        for number, domain in enumerate(domains):
            for half in domain:
                if half.position not in clips:
                    size = (len(domains), _width(stages, half.position, self.lower))
                    clips[half.position] = (
                        torch.full(size, -math.inf, dtype=torch.float64, device="cpu"),
                        torch.full(size, math.inf, dtype=torch.float64, device="cpu"),
                    )
                low, high = clips[half.position]
                if half.above:
                    low[number, half.index] = max(low[number, half.index].item(), half.end)
                else:
                    high[number, half.index] = min(high[number, half.index].item(), half.end)
        ends = (end.expand(len(domains), -1) for end in (self.lower, self.upper))
        return traced(self.chain, *ends, self.linear, self.pure, clips)

    def halfspaces(self, trace: Trace, number: int, domain: tuple[Half, ...]) -> tuple[Tensor, Tensor]:
        """Half-spaces rows x <= limits of the input that hold the domain of this number, one for each
        half."""
        rows = torch.zeros(len(domain), self.lower.shape[1], dtype=torch.float64, device="cpu")
        limits = rows.new_zeros(len(domain))
        entering = [tuple(end[number : number + 1] for end in ends) for ends in trace.entering]
        relaxed = [_one(stage, number) for stage in trace.relaxed]
        for position in {half.position for half in domain}:
            places = [place for place, half in enumerate(domain) if half.position == position]
            signs = rows.new_tensor([-1.0 if domain[place].above else 1.0 for place in places])
            picked = rows.new_zeros(1, len(places), entering[position][0].shape[1])
            picked[0, range(len(places)), [domain[place].index for place in places]] = signs
            before = slice(0, position)
            offset = rows.new_zeros(1, len(places))
            pulled, offset = pulled_back(picked, offset, relaxed[before], sizes_of(entering[before]))
            points = rows.new_tensor([domain[place].point for place in places])
            rows[places], limits[places] = pulled[0], signs * points - offset[0]
        return rows, limits

    def is_empty(self, rows: Tensor, limits: Tensor, weights: Tensor, margin: float = 2.0**-40) -> bool:
        """Whether weights >= 0 prove that no x in the box has rows x <= limits, by a relative margin."""
        if not (torch.isfinite(weights).all() and (weights >= 0).all()):
            return False
        combined = (weights @ rows)[None, None]
        size = torch.maximum(self.lower.abs(), self.upper.abs())
        terms = (weights @ (rows.abs() @ size[0] + limits.abs())).item()
        lowest = least(combined, combined.new_zeros(1, 1), self.lower, self.upper).item()
        return lowest - (weights @ limits).item() > margin * terms + underflow(size).item()

    def _cuts(self, trace, rows):
        """The entry with the largest product of: what its slope leaves open, what meets it from the outputs,
        and how much of the inputs reaches it."""
        reach = torch.ones_like(self.lower).expand(len(trace.empty), -1)
        best = [(0.0, None)] * len(trace.empty)
        stages = flat(self.chain.stages)
        for position, stage in enumerate(stages):
            if not isinstance(stage, Bend):
                reach = reach @ stage.weight.abs().T
                continue
            a, b = slope_range(stage, *trace.entering[position])
            probe = torch.full_like(self.lower[:, :1], SMALLEST).expand(1, a.shape[1])
            below, above = slope_range(stage, -probe, probe)
            kinked = (above - below)[0] > _KINK
            scores = (b - a) * rows.gradients[position].amax(dim=1) * reach
            top = scores.max(dim=1)
            for number, (score, index) in enumerate(zip(top.values.tolist(), top.indices.tolist())):
                if score > best[number][0]:
                    ends = [end[number, index].item() for end in trace.entering[position]]
                    half = _cut(position, index, kinked[index].item(), *ends)
                    best[number] = (score, half) if half is not None else best[number]
            reach = reach * torch.maximum(a.abs(), b.abs())
        return [half for _, half in best]


def _total(rows, norm):
    """The norm of the whole output, from those of its rows."""
    if norm == math.inf or rows.norms.shape[1] == 1:
        return rows.norms.amax(dim=1)
    return torch.tensor(
        [_matrix_norm(*parts) for parts in zip(rows.lower, rows.upper, rows.norms)],
        dtype=torch.float64,
        device="cpu",
    )


def _matrix_norm(lower, upper, norms):
    """The smallest of three bounds on the spectral norm of every matrix between two."""
    middle = lower + (upper - lower) / 2
    radius = torch.maximum(upper - middle, middle - lower) * (1 + 2.0**-50)
    if not all(torch.isfinite(part).all() for part in (middle, radius, norms)):
        return math.inf
    spread = spectral_norm(middle).value + spectral_norm(radius).value
    largest = spectral_norm(torch.maximum(lower.abs(), upper.abs())).value
    longest = norms.max()  # not 0: the norms are rounded up, and their squares may underflow
    together = (longest * (norms / longest).norm()).item() * (1 + 2.0**-40)
    return math.nextafter(min(spread, largest, together), math.inf)


def _cut(position, index, kinked, lower, upper):
    """The upper half of an entry's interval: from 0 on if its activation is kinked there."""
    point = 0.0 if lower < 0 < upper and kinked else lower / 2 + upper / 2
    return Half(position, index, point, True) if lower < point < upper else None


def _one(stage, number):
    """The stage on one domain."""
    if isinstance(stage, Lines):
        return Lines(*(part[number : number + 1] for part in stage))
    return stage


def _width(stages, position, lower):
    before = [stage for stage in stages[:position] if not isinstance(stage, Bend)]
    return len(before[-1].weight) if before else lower.shape[1]
