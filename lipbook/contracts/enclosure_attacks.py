"""Attacks on `enclose`: inputs within their errors must have images within theirs."""

import math

import torch

from lipbook.contracts.pairs import shown, start_points
from lipbook.contracts.rounding import enclose


def attack_enclosures(target) -> float:
    """The slack of the errors that `enclose` allows: allowed / largest distance found - 1.

    Fails the target if the image of an input within its errors, corners of the box among them, lies farther
    away than that.
    """
    centers, slack = start_points(target.shape, target.generator)[:24], math.inf
    for reach in (0.0, 1e-6, 0.1, 3.0):
        errors = reach * centers.abs() * _drawn(target, (0.0, 1.0, 1.0), centers.shape)
        values, allowed = enclose(target.layer, centers, errors)
        for signs in ((-1.0, 1.0), (-1.0, -0.5, 0.0, 0.5, 1.0)):
            x = centers + _drawn(target, signs, centers.shape) * errors
            with torch.no_grad():
                found = target.forward(x)
            if found.shape != values.shape:
                shapes = tuple(values.shape[1:]), tuple(found.shape[1:])
                target.fail("enclose", f"it gives values of shape {shapes[0]}, not {shapes[1]}.")
            # x lies in the box, so what it may be rounded by is allowed to the box as well.
            rounding = torch.minimum(enclose(target.layer, x, torch.zeros_like(x))[1], allowed)
            rounding = rounding + target.tolerance * _largest(values.abs() + found.abs()) + 1e-300
            distance = ((found - values).abs() - rounding).clamp(min=0).flatten()
            distance = torch.where(torch.isinf(allowed.flatten()), 0.0, distance)  # nothing is claimed there
            worst = (distance - allowed.flatten()).argmax()
            if not (distance <= allowed.flatten()).all():
                center, entry = divmod(worst.item(), values[0].numel())
                told = f"{values.flatten()[worst]:.9g} +- {allowed.flatten()[worst]:.3g}"
                target.fail(
                    "enclose",
                    f"around x = {shown(centers[center])}, errors {shown(errors[center])}, it tells {told} "
                    f"for output {entry}, and x = {shown(x[center])} has {found.flatten()[worst]:.9g}.",
                )
            slack = min([slack, *(allowed.flatten()[distance > 0] / distance[distance > 0]).tolist()])
    return slack - 1


def _largest(sizes):
    """The largest entry of each sample: a weight formed in another dtype moves small entries as far as it."""
    return sizes.flatten(1).amax(1).reshape(-1, *[1] * (sizes.ndim - 1))


def _drawn(target, choices, shape):
    picks = torch.randint(len(choices), shape, generator=target.generator)
    return torch.tensor(choices, dtype=torch.float64)[picks]
