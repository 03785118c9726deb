"""Exact answers for small piecewise-linear networks, found without the library.

`exact_constant` enumerates the activation regions of a network and takes the largest norm of a Jacobian: the
true Lipschitz constant. `exact_forward` runs the network in rational arithmetic. Both read `nn.Linear`,
`nn.ReLU`, `nn.LeakyReLU`, `nn.Flatten`, `nn.Identity` and nested `nn.Sequential`, and by the name of the
class, so that nothing of the library is imported, `MaxMin`, `GroupSort`, `Householder`, `Abs`, `Residual` and
`Normalize`. A sample is read as a vector; only `Normalize` may stand before a `Flatten`. A model that they
cannot read is a ValueError. `random_networks` makes the twenty networks that a lower bound is judged by.

The enumeration goes through the neurons in the order of the layers and keeps, of every region found so far,
the affine map that the network is there, the half-spaces that cut the region out, and a point inside. A plane
splits a region if each side holds a ball; the largest ball on a side is a linear program, solved for many
regions at a time. Regions that hold no ball of radius `NARROWEST` with its center within `FARTHEST` are not
seen (in units of the box, or of the input where the box is the whole space).
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import csr_array
from torch import nn

NARROWEST = 1e-9
FARTHEST = 1e6  # further out, the rounding errors of two equal planes leave a wedge between them
FLAT = 1e-13  # a slope this small beside its terms is their rounding error
NEAR = 10.0  # the point of an unbounded region is no further out, where a ball of radius 0.01 fits in
BATCH = 100  # linear programs solved in one call: more than ten times faster than one at a time


class Region(NamedTuple):
    """Where the network is the affine map x -> jacobian @ x + offset, and a point well inside.

    `pattern` holds +1 or -1 for each neuron in the order of the layers: its sign, or for a comparison whether
    the earlier of the two entries is the larger.
    """

    jacobian: np.ndarray
    offset: np.ndarray
    point: np.ndarray
    pattern: tuple[int, ...]


def exact_constant(model, norm=2, output=None, center=None, radius=math.inf) -> float:
    """The Lipschitz constant of `model` over the box |x - center|_inf <= radius, to rounding.

    Args:
        norm: the norm on both sides, 2 or `math.inf`.
        output: None (the output vector), `i` (one logit) or `(i, j)` (logit i minus logit j).
        center: one sample, the origin when None.
        radius: half the side of the box; `math.inf` is the whole space.

    Raises:
        ValueError: a model that is not read, or another argument that is not of this form.
    """
    return largest_norm(regions(model, center, radius), norm, output)


def largest_norm(found: list[Region], norm=2, output=None) -> float:
    """`exact_constant` from the regions that `regions` has found, for several norms or outputs."""
    jacobians = np.stack([_selected(region.jacobian, output) for region in found])
    if norm == 2:
        return float(np.linalg.norm(jacobians, 2, axis=(1, 2)).max())
    if norm == math.inf:
        return float(np.abs(jacobians).sum(axis=2).max())
    raise ValueError(f"norm must be 2 or math.inf, got {norm!r}.")


def regions(model, center=None, radius=math.inf) -> list[Region]:
    """Every full-dimensional activation region of `model` that meets the box |x - center|_inf <= radius."""
    if not radius > 0:
        raise ValueError(f"radius must be positive, got {radius}.")
    size = _input_size(model) or (center is not None and len(_floats(center)))
    if not size:
        raise ValueError("the model does not tell its number of inputs: pass center.")
    center = np.zeros(size) if center is None else np.array(_floats(center))
    if center.size != size:
        raise ValueError(f"center has {center.size} entries and the model takes {size}.")
    box = _Box(center, 1.0 if radius == math.inf else float(radius))
    steps, _ = _read(model, size)
    pieces = [_Piece.whole(size, bounded=radius < math.inf)]
    for step in steps:
        match step:
            case _Kinks():
                for entry in range(len(pieces[0].affine)):
                    pieces = _split(pieces, box, _Kink(entry, step.below, step.above))
            case _Sort(pairs):
                for pair in pairs:
                    pieces = _split(pieces, box, _Swap(*pair))
            case _:
                pieces = [piece.through(step) for piece in pieces]
    return [
        Region(p.affine[:, :-1], p.affine[:, -1], center + box.unit * p.point, tuple(p.pattern))
        for p in pieces
    ]


def exact_forward(model, x) -> list[Fraction]:
    """The outputs of `model` at the sample `x` (a tensor or numbers, flattened), without rounding.

    Weights are read as the numbers that they are in their dtype, and a slope as the Python float that it is.
    """
    values = [Fraction(v) for v in (_floats(x) if isinstance(x, torch.Tensor) else x)]
    size = _input_size(model)
    if size and len(values) != size:
        raise ValueError(f"x has {len(values)} entries and the model takes {size}.")
    saved = []
    for step in _read(model, len(values))[0]:
        match step:
            case _Linear(weight, bias):
                values = _rational_product(weight, bias, values)
            case _Kinks(below, above):
                below, above = Fraction(below), Fraction(above)
                values = [v * (above if v > 0 else below) for v in values]
            case _Sort(pairs):
                for i, j in pairs:
                    values[i], values[j] = max(values[i], values[j]), min(values[i], values[j])
            case _Standardise(mean, std):
                values = [(v - Fraction(m)) / Fraction(s) for v, m, s in zip(values, mean, std)]
            case _Save():
                saved.append(list(values))
            case _AddSaved():
                values = [v + s for v, s in zip(values, saved.pop(), strict=True)]
    return values


def exact_slope_squared(model, x, y, norm=2, output=None) -> Fraction:
    """|f(x) - f(y)|^2 / |x - y|^2 without rounding, for different samples x and y."""
    if norm not in (2, math.inf):
        raise ValueError(f"norm must be 2 or math.inf, got {norm!r}.")
    square = (lambda v: sum(a * a for a in v)) if norm == 2 else (lambda v: max(map(abs, v)) ** 2)
    apart = [Fraction(a) - Fraction(b) for a, b in zip(_floats(x), _floats(y), strict=True)]
    if not any(apart):
        raise ValueError("x and y are the same point: a slope needs two.")
    moved = [a - b for a, b in zip(exact_forward(model, x), exact_forward(model, y))]
    return square(_selected(np.array(moved, dtype=object)[:, None], output)[:, 0]) / square(apart)


def random_networks(max_min: type[nn.Module], seeds=range(20)) -> list[nn.Sequential]:
    """The random small networks that a lower bound is judged by: one a seed, the same on every machine.

    Even seeds have ReLU, odd ones `max_min()`. A generator seeded with the seed draws, in this order, 2 to 4
    inputs, 2 or 3 hidden layers, their width (4, 6 or 8), 1 to 3 outputs, and then layer by layer normal
    weights of variance 2 / inputs and normal biases of variance 1/4. float32, in eval mode.
    """
    networks = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        low, high = torch.tensor([2, 2, 2, 1]), torch.tensor([5, 4, 5, 4])
        drawn = low + (torch.rand(4, generator=generator) * (high - low)).long()
        inputs, hidden, half_width, outputs = drawn.tolist()
        sizes = [inputs] + [2 * half_width] * hidden + [outputs]
        layers = []
        for fan_in, fan_out in zip(sizes, sizes[1:]):
            linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out)
            with torch.no_grad():
                linear.weight.copy_(torch.randn(fan_out, fan_in, generator=generator) * (2 / fan_in) ** 0.5)
                linear.bias.copy_(torch.randn(fan_out, generator=generator) / 2)
            layers += [linear, max_min() if seed % 2 else nn.ReLU()]
        networks.append(nn.Sequential(*layers[:-1]).eval())
    return networks


# Reading a model: the steps it is made of.


class _Linear(NamedTuple):
    weight: np.ndarray
    bias: np.ndarray


class _Standardise(NamedTuple):
    mean: np.ndarray
    std: np.ndarray


class _Kinks(NamedTuple):
    """Every entry v becomes below * v where v < 0 and above * v where v > 0."""

    below: float
    above: float


class _Sort(NamedTuple):
    """One comparison after another: of entries (i, j), the larger goes to i."""

    pairs: list[tuple[int, int]]


class _Save(NamedTuple):
    """The entries are kept until the `_AddSaved` that belongs to this step."""


class _AddSaved(NamedTuple):
    """The entries kept last are added, and no longer kept."""


def _read(layer, size):
    """The steps of `layer` for `size` inputs, and its number of outputs."""
    name = type(layer).__name__
    if type(layer) is nn.Sequential:
        steps = []
        for child in layer:
            more, size = _read(child, size)
            steps += more
        return steps, size
    if type(layer) in (nn.Flatten, nn.Identity):
        return [], size
    if type(layer) is nn.Linear:
        if layer.in_features != size:
            raise ValueError(f"{layer} stands where there are {size} entries.")
        bias = np.zeros(layer.out_features) if layer.bias is None else _array(layer.bias)
        return [_Linear(_array(layer.weight), bias)], layer.out_features
    if type(layer) is nn.ReLU:
        return [_Kinks(0.0, 1.0)], size
    if type(layer) is nn.LeakyReLU:
        return [_Kinks(float(layer.negative_slope), 1.0)], size
    if name == "Abs":
        return [_Kinks(-1.0, 1.0)], size
    if name in ("MaxMin", "GroupSort"):
        group = 2 if name == "MaxMin" else layer.group_size
        if size % group or getattr(layer, "dim", 1) not in (1, -1):
            raise ValueError(f"{layer} cannot be read: {size} entries, groups of {group} along dimension 1.")
        starts = range(0, size, group)
        return [_Sort([(s + i, s + i + 1) for i in _transpositions(group) for s in starts])], size
    if name == "Residual":
        steps, after = _read(layer.module, size)
        if after != size:
            raise ValueError(f"a residual of {size} inputs and {after} outputs cannot be added.")
        return [_Save(), *steps, _AddSaved()], size
    if name == "Normalize":
        mean, std = (_array(torch.as_tensor(v)).ravel() for v in (layer.mean, layer.std))
        if size % mean.size or size % std.size or not (std != 0).all():
            raise ValueError(f"{layer} cannot be read: mean {mean}, std {std}, {size} entries.")
        return [_Standardise(mean.repeat(size // mean.size), std.repeat(size // std.size))], size
    if name == "Householder":
        if size != 2 * len(layer.theta):
            raise ValueError(f"{layer} stands where there are {size} entries.")
        half = layer.theta.detach() / 2
        along = _array(torch.block_diag(*torch.stack([torch.sin(half), -torch.cos(half)], 1).unsqueeze(1)))
        inner = [_Linear(along, np.zeros(size // 2)), _Kinks(-2.0, 0.0), _Linear(along.T, np.zeros(size))]
        return [_Save(), *inner, _AddSaved()], size  # z + u (|u'z| - u'z)
    raise ValueError(f"the oracle cannot read {name}: it knows the layers that its module names.")


def _transpositions(group):
    """Neighbours to compare, in order, so that `group` entries end up sorted (odd-even transposition)."""
    return [i for step in range(group) for i in range(step % 2, group - 1, 2)] if group > 2 else [0]


def _input_size(layer):
    """The number of inputs as the first linear layer says, or None."""
    if type(layer) is nn.Linear:
        return layer.in_features
    children = layer if type(layer) is nn.Sequential else []
    if type(layer).__name__ == "Residual":
        children = [layer.module]
    return next((size for child in children if (size := _input_size(child))), None)


def _floats(x):
    x = x.detach().cpu().flatten().double().tolist() if isinstance(x, torch.Tensor) else [float(v) for v in x]
    if not all(map(math.isfinite, x)):
        raise ValueError("an entry is NaN or infinite.")
    return x


def _array(parameter):
    return np.array(_floats(parameter)).reshape(parameter.shape)


def _selected(rows, output):
    if output is None:
        return rows
    wanted = output if isinstance(output, tuple) else (output,)
    if len(wanted) > 2 or not all(type(i) is int and 0 <= i < len(rows) for i in wanted):
        raise ValueError(f"output must be None, i or (i, j) below {len(rows)}, got {output!r}.")
    return rows[[wanted[0]]] if len(wanted) == 1 else rows[[wanted[0]]] - rows[[wanted[1]]]


def _rational_product(weight, bias, values):
    """weight @ values + bias; the sums are of integers, over one denominator."""
    shared = math.lcm(*(v.denominator for v in values))
    values = [v.numerator * (shared // v.denominator) for v in values]
    ratios = [[w.as_integer_ratio() for w in row] for row in np.column_stack([weight, bias]).tolist()]
    common = max(q for row in ratios for _, q in row)
    rows = [[p * (common // q) for p, q in row] for row in ratios]
    return [Fraction(sum(map(int.__mul__, row, [*values, shared])), common * shared) for row in rows]


# Enumerating the regions. Points and half-spaces are in units of the box: x = center + unit * u.


class _Box(NamedTuple):
    center: np.ndarray
    unit: float


class _Kink(NamedTuple):
    entry: int
    below: float
    above: float

    def plane(self, affine):
        return affine[self.entry]

    def terms(self, size):
        return size[self.entry]

    def apply(self, affine, sign):
        affine = affine.copy()
        affine[self.entry] *= self.above if sign > 0 else self.below
        return affine


class _Swap(NamedTuple):
    first: int
    second: int

    def plane(self, affine):
        return affine[self.first] - affine[self.second]

    def terms(self, size):
        return size[self.first] + size[self.second]

    def apply(self, affine, sign):
        affine = affine.copy()
        if sign < 0:
            affine[[self.first, self.second]] = affine[[self.second, self.first]]
        return affine


class _Piece(NamedTuple):
    """A region of the network read so far.

    affine: rows [slope | offset] of the entries, as functions of the input.
    size: the same with absolute values throughout, the scale of their rounding errors.
    saved: what the residuals that are still open will add.
    planes: rows [unit normal | bound] of the half-spaces normal @ u <= bound.
    point: inside all of them by more than `NARROWEST`.
    """

    affine: np.ndarray
    size: np.ndarray
    saved: tuple
    planes: np.ndarray
    point: np.ndarray
    pattern: list[int]

    @classmethod
    def whole(cls, inputs, bounded):
        identity = np.eye(inputs, inputs + 1)
        sides = np.vstack([np.eye(inputs), -np.eye(inputs)]) if bounded else np.zeros((0, inputs))
        planes = np.column_stack([sides, np.ones(len(sides))])
        return cls(identity, identity, (), planes, np.zeros(inputs), [])

    def through(self, step):
        match step:
            case _Linear(weight, bias):
                affine, size = weight @ self.affine, np.abs(weight) @ self.size
                affine[:, -1] += bias
                size[:, -1] += np.abs(bias)
                return self._replace(affine=affine, size=size)
            case _Standardise(mean, std):
                affine, size = self.affine.copy(), self.size.copy()
                affine[:, -1] -= mean
                size[:, -1] += np.abs(mean)
                return self._replace(affine=affine / std[:, None], size=size / np.abs(std)[:, None])
            case _Save():
                return self._replace(saved=(*self.saved, (self.affine, self.size)))
            case _AddSaved():
                *saved, (affine, size) = self.saved
                return self._replace(affine=self.affine + affine, size=self.size + size, saved=tuple(saved))

    def beyond(self, kink, sign):
        size = np.abs(kink.apply(self.size, sign))
        return self._replace(affine=kink.apply(self.affine, sign), size=size, pattern=[*self.pattern, sign])


class _Side(NamedTuple):
    """One side of a plane in a piece: its half-spaces, a point, and how far that is inside the last of them
    (the point of the piece) or all (the center of the largest ball)."""

    planes: np.ndarray
    point: np.ndarray
    reach: float


def _split(pieces, box, kink):
    """The pieces on either side of the plane of `kink`; one that it does not cut keeps its half-spaces."""
    flat, sides, wanted = {}, {}, []
    for k, piece in enumerate(pieces):
        row, terms = kink.plane(piece.affine), kink.terms(piece.size)
        slope, offset = row[:-1] * box.unit, row[:-1] @ box.center + row[-1]
        length = np.linalg.norm(slope)
        if length <= FLAT * np.linalg.norm(terms[:-1]) * box.unit:
            flat[k] = 1 if offset >= 0 else -1
            continue
        normal, distance = slope / length, offset / length
        for sign in (1, -1):
            planes = np.vstack([piece.planes, np.append(-sign * normal, sign * distance)])
            sides[k, sign] = _Side(planes, piece.point, sign * (normal @ piece.point + distance))
            if sides[k, sign].reach <= NARROWEST:
                wanted.append((k, sign))
    for limit, least in ((FARTHEST, -math.inf), (NEAR, 0.01)):
        for where, point in zip(wanted, _largest_balls([sides[where].planes for where in wanted], limit)):
            planes = sides[where].planes
            reach = (planes[:, -1] - planes[:, :-1] @ point).min()
            if reach >= least:
                sides[where] = _Side(planes, point, reach)
        wanted = [w for w in wanted if sides[w].reach > NARROWEST and np.abs(sides[w].point).max() > NEAR]
    found = []
    for k, piece in enumerate(pieces):
        if k in flat:
            found.append(piece.beyond(kink, flat[k]))
            continue
        wider, narrower = sorted((1, -1), key=lambda sign: -sides[k, sign].reach)
        if sides[k, narrower].reach <= NARROWEST:
            found.append(piece.beyond(kink, wider))
            continue
        for sign in (1, -1):
            cut = piece._replace(planes=sides[k, sign].planes, point=sides[k, sign].point)
            found.append(cut.beyond(kink, sign))
    return found


def _largest_balls(systems, limit):
    """For each system of half-spaces, the center of the largest ball (of radius at most 1) inside it,
    with entries of at most `limit`.

    The linear programs of a batch are the diagonal blocks of a single one: maximise the sum of the radii.
    """
    centers = []
    for start in range(0, len(systems), BATCH):
        batch = systems[start : start + BATCH]
        rows = np.vstack(batch)
        variables = rows.shape[1]  # the center and, in place of the bound, the radius
        owner = np.repeat(np.arange(len(batch)), [len(system) for system in batch])
        entries = np.column_stack([rows[:, :-1], np.ones(len(rows))])
        columns = owner[:, None] * variables + np.arange(variables)
        starts = np.arange(len(rows) + 1) * variables
        matrix = csr_array(
            (entries.ravel(), columns.ravel(), starts), shape=(len(rows), len(batch) * variables)
        )
        cost = np.tile(np.append(np.zeros(variables - 1), -1.0), len(batch))
        limits = np.tile([-limit, limit], (len(batch) * variables, 1))
        limits[variables - 1 :: variables] = [-np.inf, 1.0]
        tolerances = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
        solved = linprog(
            cost, A_ub=matrix, b_ub=rows[:, -1], bounds=limits, method="highs", options=tolerances
        )
        if solved.status != 0:
            raise ArithmeticError(f"the linear programs were not solved: {solved.message}")
        centers += list(solved.x.reshape(len(batch), variables)[:, :-1])
    return centers
