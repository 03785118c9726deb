"""The semidefinite program as the paper writes it, for a general solver: slow, readable, a check on our own.

The matrix inequality is one expression of cvxpy. Clarabel (an interior-point method) and SCS (a first-order
one) know nothing of its structure; what they return is a proposal, which the certificate still has to prove.
LipSDP: Fazlyab, Robey, Hassani, Morari and Pappas, NeurIPS 2019.

Chapter: sdp/lipsdp.
"""

import importlib
import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from lipbook.sdp.constraints import Constraints, Proposal

LIMITS = {"clarabel": "max_iter", "scs": "max_iters"}  # what each calls the most iterations that it may take
_USABLE = ("optimal", "optimal_inaccurate", "user_limit")  # what may come with numbers worth proving
_ADVICE = 'use solver="structured", the library\'s own, or eclipse_fast, which needs no solver at all'


def propose(constraints: Constraints, solver: str, iterations: int | None = None) -> Proposal:
    """What a general solver finds for: minimise rho such that M(rho, lambda) >= 0 and lambda >= 0.

    M(rho, lambda) = rho E_0'E_0 - C'C - sum_j lambda_j (p_j q_j' + q_j p_j'), as in `constraints.matrix`.

    Args:
        solver: "clarabel" or "scs", with the tolerances that cvxpy gives it.
        iterations: at most so many of the solver, at least 1; by default its own limit.

    Returns:
        The squared constant rho, the multipliers (groups,), negative ones set to 0, and the symmetric dual
        matrix Z (coordinates, coordinates), for which <Z, E_0'E_0> = 1 up to the tolerance. A solver that was
        cut off gives what it had.

    Raises:
        ImportError: cvxpy or the solver is not installed.
        ArithmeticError: the solver gave up, or its numbers are not finite.
        ValueError: another solver.
    """
    if solver not in LIMITS:
        raise ValueError(f'solver must be "clarabel" or "scs", got {solver!r}.')
    cvxpy = _imported(solver)
    units, *scaled = _scaled(constraints)
    P, Q, C = (rows.numpy() for rows in scaled)
    groups = constraints.groups.numpy()
    G0 = torch.diag((torch.arange(constraints.size) < constraints.inputs).double()).numpy()

    rho = cvxpy.Variable()
    weights = cvxpy.Variable(constraints.multipliers) if len(groups) else cvxpy.Constant([])
    half = P.T @ cvxpy.diag(weights[groups]) @ Q if len(groups) else 0 * G0
    inequality = rho * G0 - C.T @ C - half - half.T >> 0
    problem = cvxpy.Problem(cvxpy.Minimize(rho), [inequality, weights >= 0])

    limit = {} if iterations is None else {LIMITS[solver]: iterations}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "may be inaccurate": the certificate judges that
        try:
            problem.solve(solver=solver.upper(), **limit)
        except cvxpy.error.SolverError as error:
            raise ArithmeticError(f"{solver} gave up ({error}): {_ADVICE}.") from error
    if problem.status not in _USABLE or rho.value is None:
        raise ArithmeticError(f"{solver} ended with the status {problem.status!r}: {_ADVICE}.")
    square = max(rho.value.item(), 0.0) * units.output**2
    multipliers = torch.as_tensor(weights.value, dtype=torch.float64).clamp(min=0)
    multipliers = multipliers * (units.output / units.groups) ** 2
    Z = torch.as_tensor(inequality.dual_value, dtype=torch.float64)
    Z = units.coordinates[:, None] * (Z + Z.T) / 2 * units.coordinates
    if not (math.isfinite(square) and torch.isfinite(multipliers).all() and torch.isfinite(Z).all()):
        raise ArithmeticError(f"{solver} ended with numbers that are not finite: {_ADVICE}.")
    return Proposal(square, multipliers, Z, int(problem.solver_stats.num_iters))


def _imported(solver):
    try:
        importlib.import_module(solver)
        return importlib.import_module("cvxpy")
    except ImportError as error:
        raise ImportError(
            f'solver="{solver}" needs the packages cvxpy and {solver} ({error}): '
            f'pip install cvxpy {solver}, or use solver="structured", which needs neither.'
        ) from error


class _Units(NamedTuple):
    """Powers of two: the sizes of the coordinates of z, of the forms that share a multiplier, of C."""

    coordinates: Tensor
    groups: Tensor
    output: float


def _scaled(constraints):
    """The units, and P, Q and C in them: a solver's tolerances are absolute, so all sizes should be near 1.

    p_j + q_j = (b_j - a_j) v_j, which is about as long as the coordinate e_j that v_j becomes.
    """
    P, Q, C = constraints.P, constraints.Q, constraints.C
    coordinates = C.new_ones(constraints.size)
    groups = C.new_zeros(constraints.multipliers)
    for j, (form, group) in enumerate(zip(P + Q, constraints.groups), start=constraints.inputs):
        coordinates[j] = _power_of_two((form * coordinates).norm().item())
        groups[group] = torch.maximum(groups[group], coordinates[j])
    output = _power_of_two((C * coordinates).norm().item())
    rows = coordinates / groups[constraints.groups, None]
    return _Units(coordinates, groups, output), P * rows, Q * rows, C * coordinates / output


def _power_of_two(size):
    """The power of two nearest to `size`, so that dividing by it rounds nothing; 1 for 0."""
    return 2.0 ** round(math.log2(size)) if size > 0 else 1.0
