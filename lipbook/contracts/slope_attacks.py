"""Attacks on slope ranges: derivatives and secants on many intervals, and everywhere."""

import math

import torch

from lipbook.contracts.definitions import slopes

_PARTS = 16
_ROUNDING = 2.0**-46


def attack_slopes(target) -> float:
    """The slack of the global range: max(|a|, |b|) / steepest slope found - 1.

    Fails the target if a derivative or a secant leaves a range, if a local range leaves the global one, or if
    the activation does not act entry by entry.
    """
    _attack_entrywise(target)
    everywhere = slopes(target.layer)
    steepest = 0.0
    for lower, upper in _intervals(target):
        local = slopes(target.layer, lower, upper)
        _attack_nesting(target, local, everywhere, lower, upper)
        x = _points_between(lower, upper, target.generator)
        values, derivatives = _values_and_derivatives(target, x)
        secants, rounding = _secants(x, values)
        inner = x[1:-1]  # an end may lie on a kink, where autodiff's derivative need not be a slope
        _compare(target, "derivative", derivatives[1:-1], 1e-10, local, inner)
        _compare(target, "slope to the next point", secants, rounding, local, x[:-1])
        steepest = max(steepest, derivatives[1:-1].abs().max().item(), (secants.abs() - rounding).max().item())
    largest = max(abs(end.item()) for end in everywhere)
    return largest / steepest - 1 if steepest > 0 else (math.inf if largest > 0 else 0.0)


def _intervals(target):
    """Batches of intervals: wide, tiny, of no width, far out, and with an end at a likely kink."""
    shape, generator = (32, *target.shape), target.generator

    def normal(scale):
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    kinks = _likely_kinks(target.layer)
    kink = kinks[torch.randint(len(kinks), shape, generator=generator)]
    width = torch.exp(normal(1.5) - 1)
    centres = ((normal(2), width), (normal(2), 1e-6 * width), (normal(3), 0 * width), (normal(200), width))
    yield from ((centre - reach, centre + reach) for centre, reach in centres)
    yield kink, kink + width
    yield kink - width, kink
    yield kink - 1e-12, kink + 1e-12


def _likely_kinks(layer):
    numbers = [value for value in vars(layer).values() if isinstance(value, (int, float)) and abs(value) < 1e6]
    signed = [sign * number for number in numbers for sign in (1.0, -1.0)]
    return torch.tensor([half / 2 for half in range(-12, 13)] + signed, dtype=torch.float64)


def _points_between(lower, upper, generator):
    """(parts, *shape of lower): both ends, and points between them in order."""
    fractions = torch.rand(_PARTS, *lower.shape, generator=generator, dtype=torch.float64).sort(dim=0).values
    inner = torch.lerp(lower, upper, fractions).clamp(lower, upper)
    return torch.cat([lower[None], inner, upper[None]])


def _values_and_derivatives(target, x):
    batch = x.flatten(0, 1).requires_grad_()
    values = target.forward(batch)
    if not values.requires_grad:
        return values.reshape(x.shape), torch.zeros_like(x)
    derivatives = torch.autograd.grad(values.sum(), batch)[0]
    return values.detach().reshape(x.shape), derivatives.reshape(x.shape)


def _secants(x, values):
    run = x[1:] - x[:-1]
    sizes = values.abs()[1:] + values.abs()[:-1] + x.abs()[1:]
    flat = run == 0
    run = torch.where(flat, 1.0, run)
    secants = (values[1:] - values[:-1]) / run
    return secants, torch.where(flat, math.inf, _ROUNDING * sizes / run + 1e-12)


def _compare(target, what, found, rounding, local, x):
    low, high = local
    outside = torch.maximum(low - found, found - high) - rounding
    worst = outside.argmax()
    if not outside.flatten()[worst] <= 0:
        point, slope = x.flatten()[worst].item(), found.flatten()[worst].item()
        a, b = (end.expand_as(found).flatten()[worst].item() for end in local)
        target.fail("slopes", f"at x = {point:.9g} the {what} is {slope:.9g}, outside [{a:.9g}, {b:.9g}].")


def _attack_nesting(target, local, everywhere, lower, upper):
    outside = (local[0] < everywhere[0]) | (local[1] > everywhere[1])
    if outside.any():
        k = outside.flatten().nonzero()[0, 0]
        ends, a, b = (f"[{one.flatten()[k]:.9g}, {other.flatten()[k]:.9g}]" for one, other in ((lower, upper), local, everywhere))
        target.fail("slopes", f"on {ends} it gives {a}, outside its own global range {b}.")


def _attack_entrywise(target):
    """Half of the entries change, and the images of the others must not."""
    shape, generator = (16, *target.shape), target.generator
    x = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    kept = torch.rand(shape, generator=generator) < 0.5
    y = torch.where(kept, x, 2 * torch.randn(shape, generator=generator, dtype=torch.float64))
    with torch.no_grad():
        images, others = target.forward(x), target.forward(y)
    if images.shape != x.shape or not torch.allclose(images[kept], others[kept], rtol=1e-9, atol=1e-12):
        target.fail("slopes", f"the layer does not act entry by entry at x = {x.flatten()[0]:.6g}: it has no slopes.")
