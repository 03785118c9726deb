"""Upper bounds on the Lipschitz constant of a model over a box of inputs.

The box is convex, so the constant is the largest norm of a Jacobian in it; where the model has a kink, of an
element of the Clarke Jacobian. "interval" and "linear" bound every Jacobian in the box at once, "branch" cuts
the box into domains. Each value is recomputed from the model when it is verified.

Chapter: bounds/local-bounds.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipbook.bound import Ball, Bound, CertificateError, UnsupportedLayerError, checked_norm
from lipbook.bounds.branch import Domain, searched, tree_value
from lipbook.bounds.domains import Problem
from lipbook.bounds.preactivations import box, checked_ball
from lipbook.bounds.product import product_bound
from lipbook.bounds.stages import chain_of
from lipbook.contracts.certificates import reading
from lipbook.network import checked_logits, count_logits, pairs_of, read

_METHODS = ("interval", "linear", "branch")
_NODES = 256
_MARGIN = 2.0**-40  # so that another machine's order of summation proves the value too


def local_bound(
    model: nn.Sequential,
    center: Tensor,
    radius: float,
    norm: float = math.inf,
    logits: int | tuple[int, int] | str | None = None,
    method: str = "linear",
    seconds: float | None = None,
    nodes: int | None = None,
    raw: bool = False,
) -> Bound | dict[tuple[int, int], Bound]:
    """An upper bound on the Lipschitz constant of a model over the l_inf ball of a radius around a sample.

    It holds for pairs of points that are both in the ball.

    Args:
        model: an `nn.Sequential` of linear layers, activations and residual blocks of these, nesting allowed.
        center: one sample, without a batch dimension.
        radius: of the l_inf ball around it, finite, at least 0.
        norm: 2 or `math.inf`, of the inputs and of the output vector. The ball is one of l_inf in both cases.
        logits: None (the output vector), `i` (one logit), `(i, j)` (logit i minus logit j), or "pairs".
        method: "interval" (interval arithmetic), "linear" (linear relaxation of the activations and of the
            Jacobian) or "branch" ("linear" on more and more domains, of which the largest value counts).
        seconds, nodes: "branch" stops after so many seconds or domains cut in two, whichever comes first;
            when both are None after 256. "pairs" gives each pair as much. What `seconds` allows differs from
            run to run, what `nodes` allows does not.
        raw: give what the method alone finds. Otherwise cheaper methods and the product bound are computed
            too, the linear relaxation uses intervals where they are narrower, and the smallest bound is
            returned; `.method` names the one that it came from.

    Returns:
        An upper `Bound` with the ball as its region; for "pairs" one for each (i, j) with i < j. Infinite
        where intervals overflow.

    Raises:
        UnsupportedLayerError: a layer that is neither linear, nor an activation with `slopes`, nor a
            `residual` block of such layers.
        ValueError, TypeError: a center of another shape or not finite, a negative or infinite radius, another
            norm or method, logits that the model does not have, a budget for a method that has none.

    Sources: Zhang, Zhang and Hsieh, "RecurJac", AAAI 2019 (the recursion); Shi et al., NeurIPS 2022 (its
    linear relaxation, and branching). Chapter: bounds/local-bounds.
    """
    norm = checked_norm(norm)
    if method not in _METHODS:
        raise ValueError(f'method must be "interval", "linear" or "branch", got {method!r}.')
    _check_budget(method, seconds, nodes)
    if not isinstance(raw, bool):
        raise TypeError(f"raw must be True or False, got {raw!r}.")
    center, radius = checked_ball(center, radius)
    steps = read(model, tuple(center.shape))
    count = _count(steps, center)
    logits = checked_logits(logits, count)
    region = Ball(center, radius, math.inf)
    outputs = pairs_of(count) if logits == "pairs" else [logits]
    bounds = {output: [] for output in outputs}
    for name in [method] if raw else _METHODS[: _METHODS.index(method) + 1]:
        for output in outputs:
            problem = _problem(model, region, norm, output, name, raw)
            if name == "branch":
                nodes = _NODES if nodes is None and seconds is None else nodes
                value, tree = searched(problem, seconds, nodes)
            else:
                value, tree = problem.values()[0], None
            value = math.nextafter(value * (1 + _MARGIN), math.inf) if value > 0 else 0.0
            certificate = LocalCertificate(name, raw, tree)
            bounds[output].append(Bound(value, "upper", norm, region, output, name, certificate))
    if not raw:
        for output, product in _products(model, norm, logits, outputs, tuple(center.shape)).items():
            bounds[output].append(dataclasses.replace(product, region=region))
    best = {output: min(found, key=lambda bound: bound.value) for output, found in bounds.items()}
    return best if logits == "pairs" else best[logits]


@dataclass(frozen=True, eq=False)
class LocalCertificate:
    """Proves a local bound by computing it again: on the whole box, or on the domains of a tree."""

    method: str
    raw: bool
    tree: Domain | None = None

    def verify(self, bound: Bound, subject: nn.Sequential) -> None:
        """Raise `CertificateError` unless the value is proved for the model `subject`."""
        if bound.kind != "upper" or bound.region is None or bound.region.norm != math.inf:
            raise CertificateError(f"this certificate proves upper bounds in an l_inf ball, not {bound!r}.")
        least = reading(lambda: self._recomputed(bound, subject))
        if not bound.value >= least:
            raise CertificateError(f"{bound.value!r} is not proved: recomputed, it would be {least!r}.")

    def _recomputed(self, bound, subject):
        problem = _problem(subject, bound.region, bound.norm, bound.output, self.method, self.raw)
        return problem.values()[0] if self.tree is None else tree_value(problem, self.tree)


def _problem(model, region, norm, output, method, raw):
    steps = read(model, tuple(region.center.shape))
    count = _count(steps, region.center)
    checked_logits(output, count)
    rows = torch.eye(count, dtype=torch.float64, device="cpu")
    if output is not None:
        i, j = output if isinstance(output, tuple) else (output, None)
        rows = rows[i : i + 1] - (0 if j is None else rows[j : j + 1])
    lower, upper = box(region.center, region.radius)
    return Problem(chain_of(steps), lower, upper, rows, norm, method != "interval", raw)


def _count(steps, center):
    return count_logits(steps, None) if steps else center.numel()


def _products(model, norm, logits, outputs, shape):
    try:
        found = product_bound(model, norm, logits, shape)
    except UnsupportedLayerError:
        return {}
    return found if logits == "pairs" else {outputs[0]: found}


def _check_budget(method, seconds, nodes):
    if method != "branch" and (seconds is not None or nodes is not None):
        given = f"seconds={seconds!r}, nodes={nodes!r}"
        raise ValueError(f'seconds and nodes are a budget of method "branch", got {given} for {method!r}.')
    if nodes is not None:
        if isinstance(nodes, bool) or not isinstance(nodes, int):
            raise TypeError(f"nodes must be an int, got {nodes!r}.")
        if nodes < 0:
            raise ValueError(f"nodes must be at least 0, got {nodes}.")
    if seconds is not None:
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise TypeError(f"seconds must be a number, got {seconds!r}.")
        if not seconds >= 0:
            raise ValueError(f"seconds must be at least 0, got {seconds}.")
