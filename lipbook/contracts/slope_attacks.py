"""Attacks on slope ranges: long and short secants on many intervals, and everywhere; and on structures.

Short secants stand for derivatives: autodiff's may be wrong at a kink, and torch's derivative of CELU reads
alpha in float32 even where the forward pass reads it in float64.
"""

import math

import torch

from lipbook.contracts.definitions import slopes
from lipbook.contracts.pairs import shown, start_points
from lipbook.contracts.structures import Reflection, Sorting

_PARTS = 16
_STEPS = (1e-3, 1e-5)
_ROUNDING = 2.0**-46


def attack_slopes(target) -> float:
    """The slack of the global range: max(|a|, |b|) / steepest slope found - 1.

    Fails the target if a slope leaves a range, if a local range leaves the global one, or if the activation
    does not act entry by entry. For a structure, the largest relative difference to the forward pass.
    """
    everywhere = slopes(target.layer)
    if isinstance(everywhere, (Sorting, Reflection)):
        return _attack_structure(target, everywhere)
    _attack_entrywise(target)
    steepest = 0.0
    for lower, upper in _intervals(target):
        local = slopes(target.layer, lower, upper)
        _attack_nesting(target, local, everywhere, lower, upper)
        x = _points_between(lower, upper, target.generator)
        chords = [(x[:-1], x[1:])]
        for step in _STEPS:
            reach = step * (1 + x.abs())
            chords.append((torch.maximum(x - reach, lower), torch.minimum(x + reach, upper)))
        for left, right in chords:
            secants, rounding = _secants(target, left, right)
            _compare(target, secants, rounding, local, left, right)
            steepest = max(steepest, (secants.abs() - rounding).max().item())
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
    values = [value for value in vars(layer).values() if isinstance(value, (int, float))]
    signed = [sign * value for value in values if abs(value) < 1e6 for sign in (1.0, -1.0)]
    return torch.tensor([half / 2 for half in range(-12, 13)] + signed, dtype=torch.float64)


def _points_between(lower, upper, generator):
    """(parts, *shape of lower): both ends, and points between them in order."""
    fractions = torch.rand(_PARTS, *lower.shape, generator=generator, dtype=torch.float64).sort(dim=0).values
    inner = torch.lerp(lower, upper, fractions).clamp(lower, upper)
    return torch.cat([lower[None], inner, upper[None]])


def _secants(target, left, right):
    """The slope of each chord and how much of it may be rounding."""
    with torch.no_grad():
        values, others = (target.forward(ends.flatten(0, 1)).reshape(ends.shape) for ends in (left, right))
    run = right - left
    sizes = values.abs() + others.abs() + right.abs()
    empty = run <= 0
    run = torch.where(empty, 1.0, run)
    return (others - values) / run, torch.where(empty, math.inf, _ROUNDING * sizes / run + 1e-12)


def _compare(target, found, rounding, local, left, right):
    low, high = local
    outside = torch.maximum(low - found, found - high) - rounding
    worst = outside.argmax()
    if not outside.flatten()[worst] <= 0:
        x, y, slope = (tensor.flatten()[worst].item() for tensor in (left, right, found))
        a, b = (end.expand_as(found).flatten()[worst].item() for end in local)
        told = f"outside [{a:.9g}, {b:.9g}]"
        target.fail("slopes", f"between x = {x:.9g} and y = {y:.9g} the slope is {slope:.9g}, {told}.")


def _attack_nesting(target, local, everywhere, lower, upper):
    outside = (local[0] < everywhere[0]) | (local[1] > everywhere[1])
    if outside.any():
        k = outside.flatten().nonzero()[0, 0]
        low, high, a, b = (tensor.flatten()[k].item() for tensor in (lower, upper, *local))
        wide = "[{:.9g}, {:.9g}]".format(*everywhere)
        target.fail(
            "slopes",
            f"from x = {low:.9g} to y = {high:.9g} it gives [{a:.9g}, {b:.9g}], outside its own {wide}.",
        )


def _attack_entrywise(target):
    """Half of the entries change, and the images of the others must not."""
    shape, generator = (16, *target.shape), target.generator
    x = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    kept = torch.rand(shape, generator=generator) < 0.5
    y = torch.where(kept, x, 2 * torch.randn(shape, generator=generator, dtype=torch.float64))
    with torch.no_grad():
        images, others = target.forward(x), target.forward(y)
    if images.shape != x.shape or not torch.allclose(images[kept], others[kept], rtol=1e-9, atol=1e-12):
        target.fail("slopes", f"at x = [{x.flatten()[0]:.6g}, ...] the layer mixes its entries.")


def _attack_structure(target, structure):
    """Random points, points with many ties and zero: the layer must do what the structure says."""
    generator, shape = target.generator, target.shape
    ends = -torch.ones(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.float64)
    local = slopes(target.layer, *ends)
    if local != structure:
        target.fail("slopes", f"on an interval it gives {local!r}, and everywhere {structure!r}.")
    ties = torch.randint(-1, 2, (64, *shape), generator=generator).double()
    x = torch.cat([start_points(shape, generator), ties])
    told = _image(target, structure, x)
    with torch.no_grad():
        found = target.forward(x)
    if found.shape != x.shape:
        target.fail("slopes", f"{structure!r} keeps the shape {shape}, the layer gives {found.shape[1:]}.")
    sizes = torch.maximum(x.abs(), found.abs()).flatten(1).max(dim=1).values
    gaps = (told - found).abs().flatten(1).max(dim=1).values
    worst = (gaps - target.tolerance * sizes).argmax()
    if not gaps[worst] <= target.tolerance * sizes[worst]:
        target.fail(
            "slopes",
            f"at x = {shown(x[worst])} {structure!r} gives {shown(told[worst])}, and the layer gives "
            f"{shown(found[worst])}.",
        )
    return (gaps / sizes.clamp(min=1e-300)).max().item()


def _image(target, structure, x):
    """What the structure does to a batch, one group after the other."""
    sorts = isinstance(structure, Sorting)
    size = structure.group_size if sorts else 2
    count = x.shape[structure.dim] if structure.dim < x.ndim else 0
    if count == 0 or count % size or not (sorts or count == 2 * len(structure.vectors)):
        target.fail("slopes", f"{structure!r} does not fit the shape {target.shape}, which the layer takes.")
    groups = x.movedim(structure.dim, -1).split(size, dim=-1)
    if sorts:
        images = [group.sort(dim=-1, descending=True).values for group in groups]
    else:
        images = []
        for z, u in zip(groups, structure.vectors):
            along = (z @ u)[..., None]
            images.append(z + u * (along.abs() - along))
    return torch.cat(images, dim=-1).movedim(-1, structure.dim)
