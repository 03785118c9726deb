"""The search for a pair of points whose slope is as large as a function allows.

Jacobians at points of many scales give the steepest directions; gradient ascent on the slope itself moves the
pairs. What counts in the end is always a pair: a derivative taken at a kink need not be a slope.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_ROUNDING = 2.0**-45
_LARGEST_JACOBIANS = 2**20
_STEPS = (1.0, 1e-2, 1e-4)


class Pair(NamedTuple):
    """Two points, each of the shape of a sample, and the slope between them, less its rounding error."""

    slope: float
    x: Tensor
    y: Tensor


def steepest_pair(forward: Callable, shape: tuple[int, ...], norm: float, growth: float, generator) -> Pair:
    """The steepest pair found for `forward`, which maps a float64 batch to a batch.

    Args:
        forward: acts on each sample of a batch by itself.
        shape: the shape of one sample.
        norm: 2 or `math.inf`, on both sides.
        growth: the Lipschitz constant claimed for `forward`; it sets how much rounding is subtracted.
        generator: the source of the random points.
    """
    points = start_points(shape, generator)
    best = _steepest(forward, *_jacobian_pairs(forward, points, norm), norm, growth, keep=16)
    ends = torch.stack([pair.x for pair in best]), torch.stack([pair.y for pair in best])
    x, y = _ascended(forward, *ends, norm)
    best += _steepest(forward, x, y, norm, growth, keep=8)
    best += _steepest(forward, *_jacobian_pairs(forward, (x + y)[:8] / 2, norm), norm, growth, keep=1)
    return max(best, key=lambda pair: pair.slope)


def start_points(shape: tuple[int, ...], generator) -> Tensor:
    """A batch of points: random at several scales, at and beside zero, and a scan of [-10, 10]."""
    size = torch.Size(shape).numel()
    scales = torch.tensor([1e-3, 0.1, 1, 10, 100], dtype=torch.float64).repeat(4)
    random = scales[:, None] * torch.randn(len(scales), size, generator=generator, dtype=torch.float64)
    zeros = torch.zeros(1, size, dtype=torch.float64)
    beside_zero = 1e-6 * torch.randn(2, size, generator=generator, dtype=torch.float64)
    rows = max(4, math.ceil(512 / size))
    order = torch.randperm(rows * size, generator=generator)
    scan = torch.linspace(-10, 10, rows * size, dtype=torch.float64)[order].reshape(rows, size)
    return torch.cat([random, zeros, beside_zero, scan]).reshape(-1, *shape)


def lengths(tensors: Tensor, norm: float) -> Tensor:
    """The norm of each sample of a batch."""
    return torch.linalg.vector_norm(tensors.flatten(1), ord=norm, dim=1)


def slopes_of_pairs(forward: Callable, x: Tensor, y: Tensor, norm: float, growth: float) -> Tensor:
    """|f(x) - f(y)| / |x - y| of each pair, less a generous estimate of its rounding error."""
    with torch.no_grad():
        images, others = forward(x), forward(y)
    distance = lengths(x - y, norm)
    rise = lengths(images - others, norm)
    sizes = lengths(images, norm) + lengths(others, norm) + growth * (lengths(x, norm) + lengths(y, norm))
    slopes = (rise - _ROUNDING * sizes) / distance
    return torch.where(torch.isfinite(slopes) & (distance > 0), slopes, torch.zeros_like(slopes)).clamp(min=0)


def shown(tensor: Tensor) -> str:
    """The first entries of a tensor, for a message."""
    entries = tensor.flatten()
    more = ", ..." if len(entries) > 4 else ""
    return "[" + ", ".join(f"{entry:.6g}" for entry in entries[:4].tolist()) + more + "]"


def _steepest(forward, x, y, norm, growth, keep):
    slopes = slopes_of_pairs(forward, x, y, norm, growth)
    order = slopes.argsort(descending=True)[:keep]
    return [Pair(slopes[k].item(), x[k], y[k]) for k in order.tolist()]


def _jacobian_pairs(forward, points, norm):
    """Pairs around each point, along the direction in which its Jacobian stretches most."""
    with torch.no_grad():
        outputs = forward(points[:1]).numel()
    inputs = points[0].numel()
    affordable = max(1, _LARGEST_JACOBIANS // (inputs * outputs))
    if inputs * outputs > 4 * _LARGEST_JACOBIANS:
        directions = torch.sign(points + 1e-12).flatten(1)
    else:
        points = points[torch.linspace(0, len(points) - 1, min(affordable, len(points))).long()]
        directions = steepest_directions(jacobians(forward, points), norm)
    directions = directions.reshape(points.shape)
    reach = (1 + lengths(points, math.inf)).reshape(-1, *[1] * (points.ndim - 1))
    steps = [step * reach * directions / 2 for step in _STEPS]
    return torch.cat([points - step for step in steps]), torch.cat([points + step for step in steps])


def jacobians(forward: Callable, points: Tensor) -> Tensor:
    """One Jacobian (outputs, inputs) a point: samples do not meet, so the batch may be summed over."""
    total = torch.func.jacrev(lambda batch: forward(batch).flatten(1).sum(0))(points)
    return total.detach().flatten(2).transpose(0, 1).nan_to_num(0.0, 0.0, 0.0)


def steepest_directions(jacobians: Tensor, norm: float) -> Tensor:
    """The direction (inputs,) that each Jacobian of a batch stretches most."""
    if norm == 2:
        return torch.linalg.svd(jacobians, full_matrices=False).Vh[:, 0]
    rows = jacobians.abs().sum(dim=2).argmax(dim=1)
    signs = torch.sign(jacobians[torch.arange(len(jacobians)), rows])
    return torch.where(signs == 0, torch.ones_like(signs), signs)


def _ascended(forward, x, y, norm, steps=40):
    """Pairs moved by Adam so that their slopes grow; each step is in units of its pair's own size."""
    scale = (1e-3 + lengths(x, math.inf)).reshape(-1, *[1] * (x.ndim - 1))
    middle = ((x + y) / 2 / scale).requires_grad_()
    half = ((y - x) / 2 / scale).requires_grad_()
    optimiser = torch.optim.Adam([middle, half], lr=0.02)
    with torch.enable_grad():
        for _ in range(steps):
            ends = (middle - half) * scale, (middle + half) * scale
            rise = lengths(forward(ends[0]) - forward(ends[1]), norm)
            growth = torch.log(rise + 1e-300) - torch.log(lengths(ends[0] - ends[1], norm) + 1e-300)
            if not growth.requires_grad or not torch.isfinite(growth).all():
                break
            gradients = torch.autograd.grad(-growth.sum(), (middle, half), materialize_grads=True)
            middle.grad, half.grad = gradients
            optimiser.step()
    if not (torch.isfinite(middle).all() and torch.isfinite(half).all()):
        return x, y
    return ((middle - half) * scale).detach(), ((middle + half) * scale).detach()
