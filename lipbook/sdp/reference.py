"""The semidefinite program as the paper writes it, for a general solver: slow, readable, a check on our own.

The matrix inequality is one expression of cvxpy. Clarabel (an interior-point method) and SCS (a first-order
one) know nothing of its structure; what they return is a proposal, which the certificate still has to prove.
LipSDP: Fazlyab, Robey, Hassani, Morari and Pappas, NeurIPS 2019, Theorem 2.

Chapter: sdp/lipsdp.
"""

import importlib
import math
import warnings

import torch

from lipbook.sdp.conditioning import conditioned
from lipbook.sdp.constraints import Constraints, Proposal
from lipbook.sdp.start import feasible_multipliers

LIMITS = {"clarabel": "max_iter", "scs": "max_iters"}  # what each calls the most iterations that it may take
_USABLE = ("optimal", "optimal_inaccurate", "user_limit")  # what may come with numbers worth proving
_ADVICE = 'use solver="structured", the library\'s own, or eclipse_fast, which needs no solver at all'


def propose(constraints: Constraints, solver: str, iterations: int | None = None) -> Proposal:
    """What a general solver finds for: minimise rho such that M(rho, lambda) >= 0 and lambda >= 0.

    M(rho, lambda) = rho E_0'E_0 - C'C - sum_j lambda_j (p_j q_j' + q_j p_j'), as in `constraints.matrix`.

    Args:
        solver: "clarabel" or "scs", with the tolerances that cvxpy gives it, on the `conditioned` program,
            since they are absolute where numbers are below 1.
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
    square = feasible_multipliers(constraints)[0] / 16  # mostly below the optimum, which is then above 1
    problem, scales = conditioned(constraints, square)
    P, Q, C, groups = (part.numpy() for part in (problem.P, problem.Q, problem.C, problem.groups))
    G0 = torch.diag((torch.arange(problem.size) < problem.inputs).double()).numpy()

    rho = cvxpy.Variable()
    weights = cvxpy.Variable(problem.multipliers) if len(groups) else cvxpy.Constant([])
    half = P.T @ cvxpy.diag(weights[groups]) @ Q if len(groups) else 0 * G0
    inequality = rho * G0 - C.T @ C - half - half.T >> 0
    program = cvxpy.Problem(cvxpy.Minimize(rho), [inequality, weights >= 0])

    limit = {} if iterations is None else {LIMITS[solver]: iterations}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "may be inaccurate": the certificate judges that
        try:
            program.solve(solver=solver.upper(), **limit)
        except cvxpy.error.SolverError as error:
            raise ArithmeticError(f"{solver} gave up ({error}): {_ADVICE}.") from error
    if program.status not in _USABLE or rho.value is None:
        raise ArithmeticError(f"{solver} ended with the status {program.status!r}: {_ADVICE}.")
    multipliers = torch.as_tensor(weights.value, dtype=torch.float64).clamp(min=0)
    Z = torch.as_tensor(inequality.dual_value, dtype=torch.float64)
    square, multipliers, Z = scales.outward(max(rho.value.item(), 0.0), multipliers, Z)
    if not (math.isfinite(square) and torch.isfinite(multipliers).all() and torch.isfinite(Z).all()):
        raise ArithmeticError(f"{solver} ended with numbers that are not finite: {_ADVICE}.")
    return Proposal(square, multipliers, (Z + Z.T) / 2, int(program.solver_stats.num_iters))


def _imported(solver):
    try:
        importlib.import_module(solver)
        return importlib.import_module("cvxpy")
    except ImportError as error:
        raise ImportError(
            f'solver="{solver}" needs the packages cvxpy and {solver} ({error}): '
            f'pip install cvxpy {solver}, or use solver="structured", which needs neither.'
        ) from error
