"""Bounds on what enters each activation, over a box of inputs: by intervals, and by linear relaxation.

Interval arithmetic carries a box from stage to stage (Moore, "Interval analysis", 1966). Linear relaxation
bounds each activation by two lines and carries a linear functional back to the inputs (Zhang et al.,
"Efficient neural network robustness certification with general activation functions", NeurIPS 2018).

Chapter: bounds/local-bounds.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lipbook.bound import as_float64
from lipbook.bounds.relaxation import Lines, extremes, image, known, lines, underflow
from lipbook.bounds.stages import Bend, Chain, Comparison, Linear, chain_of, flat
from lipbook.contracts.rounding import enclose_product
from lipbook.network import read


class Unbounded(ArithmeticError):
    """An interval overflowed: nothing is known of what enters an activation."""


class Trace(NamedTuple):
    """What is known on a batch of domains: intervals (batch, n) about what enters each flat stage, the flat
    stages with lines in place of activations (None: not relaxed), and which domains hold no point
    (batch,)."""

    entering: list[tuple[Tensor, Tensor]]
    relaxed: list[Linear | Lines] | None
    empty: Tensor


def preactivation_bounds(
    model: nn.Sequential, center: Tensor, radius: float, method: str = "linear"
) -> list[tuple[Tensor, Tensor]]:
    """Bounds on what enters each activation of a model while its input stays in an l_inf ball.

    Args:
        model: an `nn.Sequential` of linear layers, activations and residual blocks of these, nesting allowed.
        center: one sample, without a batch dimension.
        radius: of the l_inf ball around it, finite, at least 0.
        method: "interval" (interval arithmetic) or "linear" (linear relaxation, carried back to the inputs,
            and never wider than "interval").

    Returns:
        For each activation layer, in order and those inside residual blocks too, float64 tensors (lower,
        upper) of the shape of what enters it, rounded outward.

    Raises:
        UnsupportedLayerError: a layer that is neither linear, nor an activation with `slopes`, nor a
            `residual` block of such layers.
        ValueError, TypeError: a center of another shape or not finite, a negative or infinite radius, another
            method.
        ArithmeticError: an interval overflowed.

    Source: Zhang et al., NeurIPS 2018, section 3. Chapter: bounds/local-bounds.
    """
    if method not in ("interval", "linear"):
        raise ValueError(f'method must be "interval" or "linear", got {method!r}.')
    center, radius = checked_ball(center, radius)
    chain = chain_of(read(model, tuple(center.shape)))
    lower, upper = box(center, radius)
    trace = traced(chain, lower, upper, linear=method == "linear")
    answers = []
    for before, shape in chain.activations:
        position = len(flat(chain.stages[:before]))
        ends = trace.entering[position]
        if trace.relaxed and position and not isinstance(chain.stages[before], Bend):
            ends = _relaxed(trace.relaxed[:position], trace.entering[:position], lower, upper, ends)
        answers.append(tuple(end[0, -math.prod(shape) :].reshape(shape).clone() for end in ends))
    return answers


def checked_ball(center: Tensor, radius: float) -> tuple[Tensor, float]:
    """The center in float64 and the radius, or a ValueError or TypeError that says what is wrong."""
    center = as_float64(center, "center")
    if center.ndim == 0:
        raise ValueError("center must be one sample, of the shape that the model takes, got a single number.")
    if isinstance(radius, bool) or not isinstance(radius, (int, float)):
        raise TypeError(f"radius must be a number, got {type(radius).__name__}.")
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius must be finite and at least 0, got {radius}.")
    if radius > torch.finfo(torch.float64).max or float(radius) != radius:
        raise ValueError(f"radius is {radius!r}, which no float holds: round it up first.")
    return center, float(radius)


def box(center: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """The ends (1, n) of the box of that radius around the center, rounded outward."""
    flat_center = center.reshape(1, -1)
    if radius == 0:
        return flat_center, flat_center
    far = torch.full_like(flat_center, math.inf)
    return torch.nextafter(flat_center - radius, -far), torch.nextafter(flat_center + radius, far)


def traced(
    chain: Chain,
    lower: Tensor,
    upper: Tensor,
    linear: bool,
    pure: bool = False,
    clips: dict[int, tuple[Tensor, Tensor]] | None = None,
) -> Trace:
    """Bounds on everything inside a chain, on a batch of domains.

    Args:
        lower, upper: (batch, n), the boxes of inputs.
        linear: relax the activations, and bound what enters each of them by back-substitution.
        pure: leave what enters an activation as back-substitution gives it, even where intervals are
            narrower.
        clips: for the flat stages of this number, an activation each, what is assumed of its input on the
            domains: two tensors (batch, n) that it lies between.

    Raises:
        Unbounded: an interval overflowed.
    """
    state = _Walk(lower, upper, linear, pure, clips or {})
    for stage in chain.stages:
        if not isinstance(stage, Comparison):
            state.pass_through(stage)
            continue
        first, second = (state.ends[0][:, at] for at in (stage.upper, stage.lower))
        first_above, second_above = (state.ends[1][:, at] for at in (stage.upper, stage.lower))
        for part in stage.parts:
            state.pass_through(part)
        ends = tuple(end.clone() for end in state.ends)
        ends[0][:, stage.upper] = torch.maximum(first, second)
        ends[0][:, stage.lower] = torch.minimum(first, second)
        ends[1][:, stage.upper] = torch.maximum(first_above, second_above)
        ends[1][:, stage.lower] = torch.minimum(first_above, second_above)
        state.narrow(ends)
    return Trace(state.entering, state.relaxed if linear else None, state.empty)


class _Walk:
    """The intervals so far, stage by stage."""

    def __init__(self, lower, upper, linear, pure, clips):
        self.box, self.ends = (lower, upper), (lower, upper)
        self.linear, self.pure, self.clips = linear, pure, clips
        self.entering, self.relaxed = [], []
        self.empty = torch.zeros(len(lower), dtype=torch.bool, device="cpu")
        self._require_finite()

    def narrow(self, ends):
        lower, upper = torch.maximum(self.ends[0], ends[0]), torch.minimum(self.ends[1], ends[1])
        self.empty |= (lower > upper).any(dim=1)
        self.ends = torch.minimum(lower, upper), upper  # of an empty domain anything is true
        self._require_finite()

    def pass_through(self, stage):
        if isinstance(stage, Bend):
            self._bound_tighter()
            self.entering.append(self.ends)
            if self.linear:
                self.relaxed.append(lines(stage, *self.ends))
            self.ends = image(stage, *self.ends)
        else:
            self.entering.append(self.ends)
            self.relaxed.append(stage)
            self.ends = _linear_image(stage, *self.ends)
        self._require_finite()

    def _require_finite(self):
        if not all(torch.isfinite(end).all() for end in self.ends):
            raise Unbounded("an interval overflowed: nothing is known of what enters the next activation.")

    def _bound_tighter(self):
        if self.linear and self.relaxed:
            found = _relaxed(self.relaxed, self.entering, *self.box, None)
            if self.pure:
                self.ends = found
            self.narrow(found)
        clip = self.clips.get(len(self.entering))
        if clip is not None:
            self.narrow(clip)


def sizes_of(entering: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Bounds on the absolute values inside intervals."""
    return [torch.maximum(lower.abs(), upper.abs()) for lower, upper in entering]


def _relaxed(stages, entering, lower, upper, ends):
    """Back-substituted bounds on what comes out of the stages, within `ends` unless that is None."""
    below, above = extremes(stages, sizes_of(entering), lower, upper)
    below, above = known(below, -math.inf), known(above, math.inf)
    if ends is None:
        return below, above
    return torch.maximum(below, ends[0]), torch.minimum(above, ends[1])


def _linear_image(stage, lower, upper):
    far = torch.full_like(lower, math.inf)
    middle = lower + (upper - lower) / 2
    radius = torch.nextafter(torch.maximum(upper - middle, middle - lower), far)
    values, errors = enclose_product(middle, radius, stage.weight, stage.bias)
    size = middle.abs() + radius
    errors = errors + 2 * stage.doubt + 2.0**-48 * (size @ stage.weight.abs().T + underflow(size))
    far = torch.full_like(values, math.inf)
    return torch.nextafter(values - errors, -far), torch.nextafter(values + errors, far)
