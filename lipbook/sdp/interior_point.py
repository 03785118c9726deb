"""A primal-dual interior-point method for these semidefinite programs, of O(coordinates^3) an iteration.

Minimise rho subject to ``M = rho G_0 - C'C - sum_j l_j B_j >= 0, l >= 0``, and maximise <Z, C'C> subject to
``<Z, G_0> = 1, <Z, B_j> >= 0, Z >= 0``. The direction is that of Helmberg, Rendl, Vanderbei and Wolkowicz
(SIAM Journal on Optimization 6, 1996), with Mehrotra's predictor and corrector. A general solver forms its
Schur complement <B_j, S B_k Z>, S = M^-1, from one matrix for each constraint. Here
``B_j = p_j q_j' + q_j p_j'``, and it is, exactly, a sum of four entrywise products of small matrices:
``(P S P') * (Q Z Q') + ...``.

What comes out is a proposal: `lipbook.sdp.certificate` proves it.

Chapter: sdp/scaling.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lipbook.sdp.conditioning import conditioned
from lipbook.sdp.constraints import Constraints, Proposal, matrix
from lipbook.sdp.start import inner_point

ITERATIONS = 60
TOLERANCE = 1e-6  # of the squared constant
_INFEASIBLE = 1e-7  # of the dual constraints
_INSIDE = 0.95  # of the step to the boundary
_SHORTEST = 1e-6  # a step after which nothing more is to be expected
_DENSE = 200  # up to this size all eigenvalues are computed, beyond it Lanczos steps
_LANCZOS_STEPS = 24


def propose(
    constraints: Constraints,
    iterations: int | None = None,
    start: tuple[float, Tensor] | None = None,
    tolerance: float = TOLERANCE,
) -> Proposal:
    """The optimum, to a relative gap of 1e-6 in the square, or as far as so many iterations come.

    Args:
        start: (square, multipliers), strictly feasible and well inside. None: `inner_point`.
    """
    if start is None:
        start = inner_point(constraints)
    if not constraints.C.any():
        return Proposal(*start, None, 0)
    problem, scales = conditioned(constraints, start[0])
    point = _first(problem, *scales.inward(*start))
    taken, limit = 0, ITERATIONS if iterations is None else iterations
    while taken < limit and not point.converged(problem, tolerance):
        after = _step(problem, point)
        if after is None:
            break
        point, taken = after, taken + 1
    return Proposal(*scales.outward(point.square, point.multipliers, point.dual), taken)


class _Point(NamedTuple):
    """An iterate: rho, the multipliers, M, its Cholesky factor, Z, its factor, and the dual slacks s."""

    square: float
    multipliers: Tensor
    matrix: Tensor
    factor: Tensor
    dual: Tensor
    dual_factor: Tensor
    slacks: Tensor

    def complementarity(self) -> float:
        """mu, the mean of the products that vanish at the optimum."""
        products = (self.dual * self.matrix).sum() + self.slacks @ self.multipliers
        return products.item() / (len(self.matrix) + len(self.slacks))

    def converged(self, problem, tolerance) -> bool:
        gap = (len(self.matrix) + len(self.slacks)) * self.complementarity() / self.square
        trace = self.dual.diagonal()[: problem.inputs].sum().item()
        forms = self.slacks + _sizes(problem, self.dual)
        missed = (self.slacks - _against_constraints(problem, self.dual)).abs() / forms
        feasible = max([abs(1 - trace), *missed.tolist()]) < _INFEASIBLE
        return gap < tolerance and (feasible or gap < tolerance / 1000)


class _Direction(NamedTuple):
    square: float
    multipliers: Tensor
    matrix: Tensor
    dual: Tensor
    slacks: Tensor


def _first(problem, square, multipliers):
    """The given point, with Z in the direction of M^-1 and slacks to match."""
    M = matrix(problem, square, multipliers)
    factor = torch.linalg.cholesky(M)
    inverse = torch.cholesky_inverse(factor)
    mu = 1 / inverse.diagonal()[: problem.inputs].sum().item()
    dual = mu * inverse
    return _Point(square, multipliers, M, factor, dual, torch.linalg.cholesky(dual), mu / multipliers)


def _step(problem: Constraints, point: _Point) -> _Point | None:
    """One predictor and corrector; None where rounding lets nothing be gained any more."""
    system = _System(problem, point)
    if system.factor is None:
        return None
    mu = point.complementarity()
    affine = system.direction(0.0)
    if not torch.isfinite(affine.dual).all():
        return None
    moved = _moved(point, affine, *(min(1.0, length) for length in _lengths(point, affine)))
    ahead = (moved.dual * moved.matrix).sum() + moved.slacks @ moved.multipliers
    ahead = ahead.item() / (len(moved.matrix) + len(moved.slacks))
    centering = min(max(ahead / mu, 1e-6), 1.0) ** 3 if ahead > 0 else 1e-3
    direction = system.direction(max(centering, 1e-4) * mu, affine)
    if not torch.isfinite(direction.dual).all():
        return None
    primal, dual = (min(1.0, _INSIDE * length) for length in _lengths(point, direction))
    while True:
        after = _moved(point, direction, primal, dual)
        M = matrix(problem, after.square, after.multipliers)
        factor, refused = torch.linalg.cholesky_ex(M)
        dual_factor, dual_refused = torch.linalg.cholesky_ex(after.dual)
        positive = (after.multipliers > 0).all() and (after.slacks > 0).all()
        if positive and not refused and not dual_refused and torch.isfinite(M).all():
            return after._replace(matrix=M, factor=factor, dual_factor=dual_factor)
        primal, dual = (0.8 * primal, 0.8 * dual)
        if max(primal, dual) < _SHORTEST:
            return None


def _moved(point, direction, primal, dual):
    return point._replace(
        square=point.square + primal * direction.square,
        multipliers=point.multipliers + primal * direction.multipliers,
        matrix=point.matrix + primal * direction.matrix,
        dual=point.dual + dual * direction.dual,
        slacks=point.slacks + dual * direction.slacks,
    )


class _System:
    """The Newton equations at a point, factorised once for the predictor and the corrector."""

    def __init__(self, problem: Constraints, point: _Point):
        self.problem, self.point = problem, point
        self.inverse = S = torch.cholesky_inverse(point.factor)
        Z = point.dual
        PS, QS = (_rows_times(problem, name, S) for name in "pq")
        self.PZ, self.QZ = (_rows_times(problem, name, Z) for name in "pq")
        PSQ, PZQ = _times_rows(problem, PS, "q"), _times_rows(problem, self.PZ, "q")
        schur = _times_rows(problem, PS, "p") * _times_rows(problem, self.QZ, "q")
        schur += _times_rows(problem, QS, "q") * _times_rows(problem, self.PZ, "p")
        schur += PSQ * PZQ.T
        schur += PSQ.T * PZQ
        inputs = slice(0, problem.inputs)
        mixed = (PS[:, inputs] * self.QZ[:, inputs] + QS[:, inputs] * self.PZ[:, inputs]).sum(dim=1)
        self.forms = self._gathered(2 * PSQ.diagonal())  # <B_j, S>
        self.trace = S.diagonal()[inputs].sum().item()  # <G_0, S>
        whole = schur.new_empty(1 + problem.multipliers, 1 + problem.multipliers)
        whole[0, 0] = (S[inputs, inputs] * Z[inputs, inputs]).sum()
        whole[0, 1:] = whole[1:, 0] = -self._gathered(mixed)
        whole[1:, 1:] = self._gathered(self._gathered(schur).T)
        whole.diagonal()[1:] += point.slacks / point.multipliers
        self.scale = whole.diagonal().rsqrt()
        whole *= self.scale[:, None] * self.scale
        whole.diagonal().add_(1e-15)
        factor, refused = torch.linalg.cholesky_ex(whole)
        self.factor = None if refused or not torch.isfinite(factor).all() else factor

    def direction(self, target: float, affine: _Direction | None = None) -> _Direction:
        """Towards MZ = target I, with the second-order terms of the predictor."""
        point, problem = self.point, self.problem
        right = torch.cat(
            [
                point.multipliers.new_tensor([target * self.trace - 1]),
                target / point.multipliers - target * self.forms,
            ]
        )
        curved = bent = 0.0
        if affine is not None:
            curved = self._product(affine.dual, affine.square, affine.multipliers)
            bent = affine.multipliers * affine.slacks / point.multipliers
            right[0] -= curved.diagonal()[: problem.inputs].sum()
            right[1:] += _against_constraints(problem, curved) - bent
        solved = torch.cholesky_solve((self.scale * right)[:, None], self.factor)[:, 0] * self.scale
        square, multipliers = solved[0].item(), solved[1:]
        dual = target * self.inverse - point.dual - self._product(None, square, multipliers) - curved
        ratio = point.slacks / point.multipliers
        slacks = target / point.multipliers - point.slacks - ratio * multipliers - bent
        change = matrix(problem._replace(C=torch.zeros_like(problem.C[:1])), square, multipliers)
        return _Direction(square, multipliers, change, dual, slacks)

    def _product(self, dual, square, multipliers):
        """The symmetric part of S dM X, with X = Z (None) or another symmetric matrix."""
        problem = self.problem
        X, PX, QX = self.point.dual, self.PZ, self.QZ
        if dual is not None:
            X, PX, QX = dual, *(_rows_times(problem, name, dual) for name in "pq")
        moved = torch.zeros_like(X)
        moved[: problem.inputs] = square * X[: problem.inputs]
        row = 0
        for layer, weights in zip(problem.layers, problem.by_layer(multipliers)):
            rows = slice(row, row + len(weights))
            for name, image in (("p", QX), ("q", PX)):
                old, new, first = _parts(layer, name)
                pulled = weights[:, None] * image[rows]
                moved[first : layer.stop] -= new[:, None] * pulled
                if old is not None:
                    moved[layer.start : first] -= old.T @ pulled
            row = rows.stop
        product = self.inverse @ moved
        return (product + product.T) / 2

    def _gathered(self, numbers):
        """Sums over the constraints that share a multiplier, along dimension 0."""
        count = self.problem.multipliers
        if count == len(self.problem.groups):
            return numbers
        return numbers.new_zeros(count, *numbers.shape[1:]).index_add(0, self.problem.groups, numbers)


def _rows_times(problem, name, X):
    """P X or Q X."""
    blocks = []
    for layer in problem.layers:
        old, new, first = _parts(layer, name)
        block = new[:, None] * X[first : layer.stop]
        blocks.append(block if old is None else torch.addmm(block, old, X[layer.start : first]))
    return torch.cat(blocks) if blocks else X[:0]


def _times_rows(problem, A, name):
    """A P' or A Q'."""
    blocks = []
    for layer in problem.layers:
        old, new, first = _parts(layer, name)
        block = A[:, first : layer.stop] * new
        blocks.append(block if old is None else torch.addmm(block, A[:, layer.start : first], old.T))
    return torch.cat(blocks, dim=1) if blocks else A[:, :0]


def _parts(layer, name):
    """p or q on the old coordinates (None: it is 0), its diagonal on the new ones, and the first of these."""
    rows = getattr(layer, name)
    first = layer.stop - len(rows)
    old = None if name == "p" and layer.slopes_from_zero else rows[:, : -len(rows)]
    return old, rows[:, -len(rows) :].diagonal(), first


def _against_constraints(problem, X):
    """<B_j, X>, summed over the constraints that share a multiplier."""
    return _summed(problem, lambda p, q, part: 2 * ((p @ part) * q).sum(dim=1), X)


def _sizes(problem, X):
    """p_j'X p_j + q_j'X q_j, summed likewise: what rounding in <B_j, X> is small beside."""
    return _summed(problem, lambda p, q, part: ((p @ part) * p + (q @ part) * q).sum(dim=1), X)


def _summed(problem, of_layer, X):
    blocks = [slice(layer.start, layer.stop) for layer in problem.layers]
    found = [of_layer(layer.p, layer.q, X[at, at]) for layer, at in zip(problem.layers, blocks)]
    return X.new_zeros(problem.multipliers).index_add(0, problem.groups, torch.cat(found or [X[0, :0]]))


def _lengths(point, direction):
    """How far the point can move, at most 1 / _INSIDE, on the primal and on the dual side."""
    primal = min(
        _until_singular(point.factor, direction.matrix),
        _until_zero(point.multipliers, direction.multipliers),
    )
    dual = min(
        _until_singular(point.dual_factor, direction.dual), _until_zero(point.slacks, direction.slacks)
    )
    return min(primal, 1 / _INSIDE), min(dual, 1 / _INSIDE)


def _until_zero(numbers, change):
    falling = change < 0
    return (numbers[falling] / -change[falling]).min().item() if falling.any() else math.inf


def _until_singular(factor, change):
    """The largest a with L L' + a change >= 0, to about a percent."""
    if len(factor) <= _DENSE:
        half = torch.linalg.solve_triangular(factor, change, upper=False)
        least = torch.linalg.eigvalsh(torch.linalg.solve_triangular(factor, half.T, upper=False))[0].item()
    else:
        least = _least_eigenvalue(factor, change)
    return -1 / least if least < 0 else math.inf


def _least_eigenvalue(factor, change):
    """The least eigenvalue of L^-1 change L^-T by Lanczos steps, less 2 % of its size: they end above it."""
    generator = torch.Generator("cpu").manual_seed(0)
    vector = torch.randn(len(factor), 1, dtype=torch.float64, generator=generator, device="cpu")
    basis, diagonal, off = [vector / vector.norm()], [], []
    for _ in range(_LANCZOS_STEPS):
        image = torch.linalg.solve_triangular(factor.T, basis[-1], upper=True)
        image = torch.linalg.solve_triangular(factor, change @ image, upper=False)
        diagonal.append((basis[-1].T @ image).item())
        known = torch.cat(basis, dim=1)
        image = image - known @ (known.T @ image)
        image = image - known @ (known.T @ image)
        off.append(image.norm().item())
        if not off[-1] > 1e-12 * abs(diagonal[0]):
            break
        basis.append(image / off[-1])
    small = torch.diag(torch.tensor(diagonal, dtype=torch.float64, device="cpu"))
    rest = torch.tensor(off[: len(diagonal) - 1], dtype=torch.float64, device="cpu")
    least = torch.linalg.eigvalsh(small + torch.diag(rest, 1) + torch.diag(rest, -1))[0].item()
    return least - 0.02 * abs(least)
