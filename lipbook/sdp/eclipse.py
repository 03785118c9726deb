"""A bound from closed-form multipliers, without a solver.

Source: Xu and Sivaranjani, "ECLipsE: Efficient compositional Lipschitz constant estimation for deep neural
networks", NeurIPS 2024: ECLipsE-Fast, here for slopes in any [a, b], and with a proof of the inequality.
Chapter: sdp/scaling.
"""

from torch import nn

from lipbook.bound import Bound
from lipbook.sdp.certificate import LipSDPCertificate, proved
from lipbook.sdp.constraints import Proposal, programs
from lipbook.sdp.start import feasible_multipliers


def eclipse_fast(
    model: nn.Sequential,
    logits: int | tuple[int, int] | str | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> Bound | dict[tuple[int, int], Bound]:
    """An upper bound on the l_2 Lipschitz constant of a model, from one multiplier a layer in closed form.

    It costs a few matrix decompositions a layer. For slopes in [0, 1] it is at most the product bound, up to
    rounding; for others (MaxMin, GroupSort, Abs) it may be several times the product: keep the smaller.
    `lipbook.sdp.lipsdp` looks for the best multipliers.

    Args:
        model: an `nn.Sequential` of linear layers and activations with contracts, nesting allowed.
        logits: None (the output vector), `i` (one logit), `(i, j)` (logit i minus logit j), or "pairs".
        input_shape: the shape of one sample; None where the first layer that knows its `in_features` tells.

    Returns:
        An upper `Bound` whose `verify(model)` proves the matrix inequality again; for "pairs" one for each
        (i, j) with i < j.

    Raises:
        UnsupportedLayerError: a layer that is neither linear nor an activation with `slopes`.
        ValueError, TypeError: logits that the model does not have, a shape that is missing or does not fit.
        ArithmeticError: the weights are too far apart in size for float64.

    Source: Xu and Sivaranjani, NeurIPS 2024 (ECLipsE-Fast, for slopes in [0, 1]). Chapter: sdp/scaling.
    """
    bounds = {}
    for output, constraints in programs(model, logits, None, "neuron", input_shape).items():
        square, multipliers = feasible_multipliers(constraints)
        proposal = Proposal(square, multipliers, None, None)
        value, multipliers = proved(constraints, proposal, (2 * square, 2 * multipliers))
        certificate = LipSDPCertificate(multipliers, "neuron", input_shape)
        bounds[output] = Bound(value, "upper", output=output, method="eclipse-fast", certificate=certificate)
    return bounds if logits == "pairs" else bounds[logits]
