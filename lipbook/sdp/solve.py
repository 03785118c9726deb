"""LipSDP: the best l_2 Lipschitz bound that the slopes of the activations prove, as a semidefinite program.

A solver proposes multipliers, `lipbook.sdp.certificate` proves a value from them, and a dual matrix tells how
far any other multipliers could get.

Chapter: sdp/lipsdp.
"""

from torch import nn

from lipbook.bound import Ball, Bound
from lipbook.sdp import interior_point, reference
from lipbook.sdp.certificate import LipSDPCertificate, dual_value, proved
from lipbook.sdp.constraints import programs
from lipbook.sdp.start import inner_point, lifted

_SOLVERS = ("structured", "clarabel", "scs")
_GAIN = 1e-6  # of the squared constant: for less an interior point is not given up
_ROUGHLY = 3.0  # the gap to which the vector's program is solved, as a start for the pairs


def lipsdp(
    model: nn.Sequential,
    logits: int | tuple[int, int] | str | None = None,
    region: Ball | None = None,
    multipliers: str = "neuron",
    solver: str = "structured",
    iterations: int | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> Bound | dict[tuple[int, int], Bound]:
    """An upper bound on the l_2 Lipschitz constant of a model, by semidefinite programming.

    The least sqrt(rho) for which ``rho E_0'E_0 - C'C - sum_j lambda_j (p_j q_j' + q_j p_j') >= 0`` with some
    lambda >= 0, within a relative 1e-6 or so for "structured" (the certificate's gap tells). Time grows with
    the cube and memory with the square of the number of inputs and multipliers: some hundreds take seconds,
    two thousand minutes. For the radius of a margin ask for the pair of logits.

    Args:
        model: an `nn.Sequential` of layers with an affine contract (convolutions and BatchNorm in eval mode
            among them), activations with `slopes` and residual blocks of these, nesting allowed.
        logits: None (the output vector), `i` (one logit), `(i, j)` (logit i minus logit j), or "pairs".
        region: None (everywhere), or an l_inf `Ball`: the bound holds for pairs of points in it, and slopes
            are those that occur in it. Distances are measured in l_2 in both cases: the value is no l_inf
            constant.
        multipliers: "neuron" (one for each activation) or "layer" (one for each layer: looser).
        solver: "structured" (the library's interior-point method), "clarabel" or "scs" (through cvxpy).
        iterations: stop the solver after so many at the latest; the bound is valid, with a larger gap (SCS
            may have nothing to show yet, and fails). None: until it has converged.
        input_shape: the shape of one sample, for which alone the bound holds; None where the first layer that
            knows its `in_features`, or the region, tells.

    Returns:
        An upper `Bound` whose `verify(model)` proves the matrix inequality again from the multipliers alone;
        for "pairs" one for each (i, j) with i < j. `.certificate` has `.multipliers`, `.iterations`,
        `.dual_value` (a lower bound on the optimum of this program, with its output, region and kind of
        multipliers, not on the constant of the model; slopes within 1e-9 of each other are taken apart to
        1e-9) and `.gap`, (value - dual_value) / value.

    Raises:
        UnsupportedLayerError: a layer that is neither affine nor an activation with `slopes` nor a residual
            block.
        ValueError, TypeError: logits that the model does not have, another region, solver or sharing of
            multipliers, iterations that are no count, a shape that is missing or does not fit.
        ImportError: cvxpy is not installed, and the solver needs it.
        ArithmeticError: the solver failed, or the weights are too far apart in size for float64.

    Source: Fazlyab, Robey, Hassani, Morari and Pappas, NeurIPS 2019. Chapter: sdp/lipsdp.
    """
    if solver not in _SOLVERS:
        raise ValueError(f'solver must be "structured", "clarabel" or "scs", got {solver!r}.')
    _check_iterations(iterations, least=0 if solver == "structured" else 1)
    found = programs(model, logits, region, multipliers, input_shape)
    rough = None
    if logits == "pairs" and solver == "structured" and iterations is None:
        whole = programs(model, None, region, multipliers, input_shape)[None]
        rough = interior_point.propose(whole, tolerance=_ROUGHLY)
    bounds = {}
    for output, constraints in found.items():
        inner = inner_point(constraints)
        if solver == "structured":
            start = inner
            if rough is not None:
                near = lifted(constraints, rough.square, rough.multipliers)
                start = tuple((ours + theirs) / 2 for ours, theirs in zip(near, inner))  # well inside
            proposal = interior_point.propose(constraints, iterations, start)
        else:
            proposal = reference.propose(constraints, solver, iterations)
        value, proof = proved(constraints, _rescaled(constraints, proposal), inner)
        least = min(dual_value(constraints, proposal.dual), value)
        certificate = LipSDPCertificate(
            proof, multipliers, input_shape, least, (value - least) / value, proposal.iterations
        )
        bounds[output] = Bound(
            value, "upper", region=region, output=output, method="lipsdp", certificate=certificate
        )
    return bounds if logits == "pairs" else bounds[logits]


def _rescaled(constraints, proposal):
    """The proposal, or where that gains something, the point of its ray that lies on the boundary: inside it
    if the solver was stopped early, outside if it missed the inequality."""
    try:
        square, multipliers = lifted(constraints, proposal.square, proposal.multipliers.clamp(min=0))
    except ArithmeticError:
        return proposal
    if (1 - _GAIN) * proposal.square <= square <= proposal.square:
        return proposal
    return proposal._replace(square=square, multipliers=multipliers)


def _check_iterations(iterations, least):
    if iterations is None:
        return
    if isinstance(iterations, bool) or not isinstance(iterations, int):
        raise TypeError(f"iterations must be an int or None, got {iterations!r}.")
    if iterations < least:
        raise ValueError(f"iterations must be at least {least} with this solver, got {iterations}.")
