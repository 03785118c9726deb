"""What a network says of its increments, as products of two linear forms that are never negative.

z = (Dx, e_1, e_2, ...) holds the increment of the input and one coordinate for each activation whose slope is
not fixed. What enters the activation j is a linear form v_j of the coordinates before it. A slope in [a, b]
means ``(e_j - a v_j)(b v_j - e_j) >= 0``: two forms p_j and q_j with ``(p_j . z)(q_j . z) >= 0``. Activations
of a fixed slope, and everything else that is linear, need no coordinate and no constraint.

MaxMin, GroupSort and Householder arrive here as absolute values (`lipbook.bounds.stages`), whose slopes are
in [-1, 1]; what they preserve passes linearly.

Source: Fazlyab, Robey, Hassani, Morari and Pappas, NeurIPS 2019, written with p and q.
Chapters: sdp/lipsdp, sdp/beyond-slope-restriction.
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lipbook.bound import Ball, UnsupportedLayerError
from lipbook.bounds.preactivations import box, chain_of, traced
from lipbook.bounds.relaxation import slope_range
from lipbook.bounds.stages import Bend, Linear, flat
from lipbook.contracts.definitions import contracts_of, expand, numel, residual, slopes
from lipbook.contracts.guard import name_of
from lipbook.contracts.spatial import LARGEST_MATRIX
from lipbook.network import Step, checked_logits, count_logits, pairs_of, read
from lipbook.norms.spectral import spectral_norm

_NARROW = 2.0**-3  # a range this small beside its slopes: the lower slope passes linearly
_NARROWEST = 2.0**-30  # ranges are widened to this, beside the steepest slope of the layer
_FLATTEST = 2.0**-70  # ... or this, where all its slopes are smaller: their squares would vanish


class Form(NamedTuple):
    """Linear forms of z, one a row: (n, coordinates so far). Where they are coordinates, which, (n,)."""

    rows: Tensor
    coordinates: Tensor | None


class Product(NamedTuple):
    """A record of a matrix product, for the bound on what it rounded. norm: of the weight, rounded up; only
    needed where `entering` is computed itself."""

    weight: Tensor
    entering: Form
    norm: float


class Layer(NamedTuple):
    """The constraints of one activation layer, and a record of what enters and leaves it.

    p, q: (constraints, stop - start), on the coordinates from start to stop. The last `constraints` of them
    are new, one for each constraint.
    factors: (3, n), what each row of `entering` was multiplied by in -p, in q and in what leaves, up to sign.
    """

    start: int
    stop: int
    p: Tensor
    q: Tensor
    entering: Form
    free: Tensor
    factors: Tensor

    @property
    def slopes_from_zero(self) -> bool:
        """Whether every slope range begins at 0, so that p_j is e_j."""
        return not self.factors[0].any()


class Constraints(NamedTuple):
    """A semidefinite program: the least rho with `matrix(self, rho, multipliers)` >= 0 and multipliers >= 0.

    inputs: the first so many coordinates of z are the increment of the input.
    C: (outputs, coordinates), the increment of the output is C z.
    groups: (constraints,), the number of the multiplier that a constraint shares.
    layers: the forms p and q; history: every `Product` and `Layer` in order.
    funnel: (n, inputs) with n < inputs if the output depends on the input through these forms alone.
    """

    inputs: int
    C: Tensor
    groups: Tensor
    layers: tuple[Layer, ...]
    history: tuple[Product | Layer, ...]
    funnel: Tensor | None

    @property
    def size(self) -> int:
        return self.C.shape[1]

    @property
    def multipliers(self) -> int:
        """How many multipliers there are."""
        return int(self.groups.max()) + 1 if len(self.groups) else 0

    @property
    def P(self) -> Tensor:
        return self._written_out([layer.p for layer in self.layers])

    @property
    def Q(self) -> Tensor:
        return self._written_out([layer.q for layer in self.layers])

    def _written_out(self, blocks):
        whole = self.C.new_zeros(len(self.groups), self.size)
        row = 0
        for layer, block in zip(self.layers, blocks):
            whole[row : row + len(block), layer.start : layer.stop] = block
            row += len(block)
        return whole

    def by_layer(self, multipliers: Tensor) -> list[Tensor]:
        """For each layer the multiplier of each of its constraints."""
        return list(multipliers[self.groups].split([len(layer.p) for layer in self.layers]))


class Proposal(NamedTuple):
    """What a solver proposes, and a certificate has to prove: the squared constant, one multiplier a group,
    a dual matrix Z (None: it has none), and the iterations taken (None: there are none)."""

    square: float
    multipliers: Tensor
    dual: Tensor | None
    iterations: int | None


def product(weight: Tensor, entering: Form) -> Product:
    exact = entering.coordinates is not None
    return Product(weight, entering, 1.0 if exact else spectral_norm(weight).value)


def matrix(constraints: Constraints, square: float, multipliers: Tensor) -> Tensor:
    """M = square E_0'E_0 - C'C - sum_j multiplier_j (p_j q_j' + q_j p_j'), (coordinates, coordinates)."""
    whole = -(constraints.C.T @ constraints.C)
    whole.diagonal()[: constraints.inputs] += square
    for layer, weights in zip(constraints.layers, constraints.by_layer(multipliers)):
        half = layer.p.T @ (weights[:, None] * layer.q)
        whole[layer.start : layer.stop, layer.start : layer.stop] -= half + half.T
    return whole


def constraints_of(
    model: nn.Sequential,
    logits: int | tuple[int, int] | None = None,
    region: Ball | None = None,
    multipliers: str = "neuron",
    input_shape: tuple[int, ...] | None = None,
) -> Constraints:
    """The semidefinite program of a model (arguments as for `lipbook.sdp.lipsdp`)."""
    return programs(model, logits, region, multipliers, input_shape)[logits]


def programs(model, logits, region, multipliers, input_shape) -> dict:
    """The same for each output that `logits` names: one, or every pair."""
    if multipliers not in ("neuron", "layer"):
        raise ValueError(
            f'multipliers must be "neuron" or "layer", got {multipliers!r}. Multipliers that couple neurons '
            '(the "network" mode of LipSDP) give values below the truth: the chapter sdp/lipsdp shows it.'
        )
    steps = _steps(model, region, input_shape)
    shape = input_shape if region is None else tuple(region.center.shape)
    inputs = numel(steps[0].input_shape if steps else shape)
    count = count_logits(steps, None) if steps else inputs
    checked_logits(logits, count)
    chain = chain_of(steps)
    stages = flat(chain.stages)
    ends = [None] * len(stages)
    if region is not None:
        ends = traced(chain, *box(region.center, region.radius), linear=True).entering
    walk = _Walk(inputs)
    for stage, interval in zip(stages, ends):
        if isinstance(stage, Linear):
            walk.pass_linear(stage.weight)
        else:
            walk.bend(*_range(stage, interval))
    whole = walk.written(shared=multipliers == "layer")
    if logits is None:
        return {None: whole}
    return {
        output: _of_logits(whole, output) for output in (pairs_of(count) if logits == "pairs" else [logits])
    }


def _of_logits(constraints, logits):
    C = constraints.C
    i, j = logits if isinstance(logits, tuple) else (logits, None)
    row = torch.zeros(1, len(C), dtype=torch.float64, device="cpu")
    row[0, i] = 1.0
    if j is not None:
        row[0, j] = -1.0
    last = product(row, Form(C, None))
    return constraints._replace(C=row @ C, history=(*constraints.history, last))


def _steps(model, region, input_shape) -> tuple[Step, ...]:
    """The primitives of a model with their shapes, which a region, `input_shape` or a first layer that knows
    its `in_features` tells."""
    if region is not None:
        if not isinstance(region, Ball):
            raise TypeError(f"region must be None or a lipbook.Ball, got {type(region).__name__}.")
        if region.norm != math.inf:
            raise ValueError(f"region must be an l_inf Ball, got {region!r}: use the l_inf ball around it.")
        if region.center.ndim == 0:
            raise ValueError("the center of the region is a single number: it must be one sample.")
        shape = tuple(region.center.shape)
        if input_shape is not None and input_shape != shape:
            raise ValueError(f"input_shape is {input_shape!r}, and the center of the region {shape}.")
        input_shape = shape
    if input_shape is None:
        parts = list(_without_blocks([step.layer for step in read(model)]))
        first = next((layer for layer in parts if getattr(layer, "in_features", None) is not None), None)
        if first is None:
            raise ValueError("the sizes of this model are not known: pass input_shape.")
        for layer in itertools.takewhile(lambda layer: getattr(layer, "in_features", None) is None, parts):
            if "slopes" in contracts_of(layer) and not isinstance(slopes(layer), tuple):
                raise ValueError(
                    f"{name_of(layer)} takes groups of entries, which depend on the shape of the sample, and "
                    "no layer before it tells that shape: pass input_shape."
                )
        input_shape = (first.in_features,)
        try:
            return read(model, input_shape)
        except UnsupportedLayerError:
            raise
        except (ValueError, TypeError) as error:
            raise ValueError(f"the shape of the input is not known: pass input_shape. ({error})") from error
    return read(model, input_shape)


def _without_blocks(layers):
    """The layers, those inside blocks too, in the order in which they act."""
    for layer in layers:
        if "residual" in contracts_of(layer):
            yield from _without_blocks((residual(layer)[1],))
        elif expand(layer) == (layer,):
            yield layer
        else:
            yield from _without_blocks(expand(layer))


def _range(bend: Bend, ends) -> tuple[Tensor, Tensor]:
    """The slopes [a, b] of each entry, (n,); entries on which the activation does not act have slope 1."""
    if ends is not None:
        a, b = (side[0] for side in slope_range(bend, *ends))
    else:
        everywhere = torch.ones(numel(bend.shape), dtype=torch.bool, device="cpu")
        at = everywhere if bend.where is None else bend.where
        least, most = slopes(bend.activation)
        a, b = torch.where(at, least, 1.0), torch.where(at, most, 1.0)
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ValueError(
            f"{type(bend.activation).__name__} has infinite slopes: nothing bounds this network."
        )
    steepest = torch.maximum(a.abs(), b.abs()).max().clamp(min=_FLATTEST)
    return a, torch.where(a < b, torch.maximum(b, a + _NARROWEST * steepest), b)


class _Walk:
    """The forms of the coordinates so far, layer by layer."""

    def __init__(self, inputs: int):
        self.inputs = self.coordinates = _writable(inputs)
        self.form = Form(
            torch.eye(inputs, dtype=torch.float64, device="cpu"), torch.arange(inputs, device="cpu")
        )
        self.layers, self.history, self.funnel = [], [], None

    def pass_linear(self, weight: Tensor):
        form = Form(self._times(weight), None)
        self.history.append(product(weight, self.form))
        self.form = form
        if not self.layers and len(weight) < (self.inputs if self.funnel is None else len(self.funnel)):
            self.funnel = form.rows[:, : self.inputs]

    def _times(self, weight):
        if self.form.coordinates is None:
            return weight @ self.form.rows
        rows = weight.new_zeros(len(weight), self.coordinates)
        rows[:, self.form.coordinates] = weight
        return rows

    def bend(self, a: Tensor, b: Tensor):
        entering, steepest = self.form, torch.maximum(a.abs(), b.abs())
        alive = entering.rows.any(dim=1)
        free = (a < b) & alive
        a, b = torch.where(alive, a, 0.0), torch.where(alive, b, 0.0)
        base = torch.where(free & (b - a > _NARROW * steepest), 0.0, a)
        low, high = (a - base)[free, None], _up(b - base, base)[free, None]
        _writable(self.coordinates + len(low))
        new = torch.eye(len(low), dtype=torch.float64, device="cpu")
        v = entering.rows[free]
        p, q = torch.cat([-low * v, new], dim=1), torch.cat([high * v, -new], dim=1)
        rows = torch.cat([base[:, None] * entering.rows, new.new_zeros(len(a), len(new))], dim=1)
        added = torch.arange(self.coordinates, self.coordinates + len(new), device="cpu")
        rows[free, added] = 1.0
        self.coordinates += len(new)
        names = added if free.all() and not base.any() else None
        factors = torch.zeros(3, len(a), dtype=torch.float64, device="cpu")
        factors[0, free], factors[1, free] = low[:, 0], high[:, 0]
        factors[2] = torch.where(alive, base.abs(), steepest)
        start = int(v.any(dim=0).nonzero()[0]) if len(v) else self.coordinates
        layer = Layer(start, self.coordinates, p[:, start:], q[:, start:], entering, free, factors)
        self.history.append(layer)
        if len(v):
            self.layers.append(layer)
        self.form = Form(rows, names)

    def written(self, shared: bool) -> Constraints:
        sizes = [len(layer.p) for layer in self.layers]
        groups = torch.arange(sum(sizes), device="cpu")
        if shared:
            groups = torch.cat(
                [torch.full_like(groups[:size], k) for k, size in enumerate(sizes)] or [groups]
            )
        C = self.form.rows
        C = torch.cat([C, C.new_zeros(len(C), self.coordinates - C.shape[1])], dim=1)
        return Constraints(self.inputs, C, groups, tuple(self.layers), tuple(self.history), self.funnel)


def _writable(coordinates):
    """The number of coordinates, where their matrix is small enough to be written out."""
    if coordinates**2 > LARGEST_MATRIX:
        raise ValueError(
            f"this program has {coordinates} coordinates or more, one for each input and for each activation "
            "whose slope is not fixed, and matrices of at most 2^27 numbers are written out: use "
            "product_bound, a smaller model, or a smaller input_shape."
        )
    return coordinates


def _up(width, base):
    """The difference b - base, rounded up where it was computed."""
    return torch.where(base == 0, width, torch.nextafter(width, torch.full_like(width, math.inf)))
