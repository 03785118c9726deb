"""Attacks on the norms of outputs and of gradients: no sample may exceed what a contract allows.

Inputs and cotangents are tried that are random, constant, single bright entries, and what gradient ascent
makes of them.
"""

import copy
import math

import torch
from torch import nn

from lipbook.bound import CertificateError, UnsupportedLayerError
from lipbook.contracts.gradients import output_norm, parameter_gradient_norm
from lipbook.contracts.guard import name_of
from lipbook.contracts.losses import loss_gradient_norm
from lipbook.contracts.pairs import lengths, shown, start_points

_REACH = (1.0, 0.1, 10.0)
_LONGEST = 5  # pairs with the longest gradients, which are tried at every size


def attack_output_norm(target) -> float:
    """The least slack of the norms that `output_norm` allows: allowed / largest norm found - 1."""
    slack = math.inf
    points = start_points(target.shape, target.generator)[:48]
    points = torch.cat([points, _candidates(target.shape, target.generator)])
    for reach in _REACH:
        allowed = output_norm(target.layer, reach, target.shape)
        x = _ascended_outputs(target.forward, _of_size(points, reach), reach)
        with torch.no_grad():
            found = lengths(target.forward(x), 2).nan_to_num(0.0, 0.0, 0.0)
        worst = found.argmax()
        if found[worst] > allowed * (1 + target.tolerance) + 1e-300:
            target.fail(
                "output_norm",
                f"the output of x = {shown(x[worst])}, of norm {reach:g}, has norm {found[worst]:.9g}, above "
                f"{allowed:.9g}.",
            )
        slack = min(slack, _slack(allowed, found[worst].item()))
    return slack


def _ascended_outputs(forward, x, reach, steps=10):
    """Each input moved along the gradient of the norm of its output, and brought back to its size."""
    best = x
    with torch.enable_grad():
        for _ in range(steps):
            x = x.detach().requires_grad_()
            size = lengths(forward(x), 2).sum()
            if not size.requires_grad:
                break
            (gradient,) = torch.autograd.grad(size, x)
            x = _of_size(gradient.nan_to_num(0.0, 0.0, 0.0), reach)
    return torch.cat([best, x.detach()])


def attack_gradients(target) -> dict[str, float]:
    """The least slack of the bounds on the gradients of the parameters; nothing where there is no bound."""
    layer, twin = (copy.deepcopy(module).requires_grad_(True) for module in (target.layer, target.twin))
    told = parameter_gradient_norm(layer, 1.0, 1.0, target.shape)
    if not told:
        return {}
    parameters = dict(twin.named_parameters())
    if not told.keys() <= parameters.keys():  # the twin of a parametrised layer has other names
        return {}
    weights = [parameters[name] for name in told]
    with torch.no_grad():
        images = twin(torch.zeros(1, *target.shape, dtype=torch.float64))
    x, g = _pairs(target.shape, tuple(images.shape[1:]), target.generator)
    x, g = _ascended_pairs(twin, weights, x, g)
    found = {name: 0.0 for name in told}
    for scale in _REACH:
        allowed = parameter_gradient_norm(layer, scale, 1 / scale, target.shape)
        unshaped = _without_shape(layer, scale, allowed)
        count = len(x) if scale == 1.0 else _LONGEST
        for one, other in zip(x[:count], g[:count]):
            gradients = _gradients(twin, weights, scale * one, other / scale)
            for name, gradient in zip(told, gradients):
                size = torch.linalg.vector_norm(gradient).item()
                if size > min(allowed[name], unshaped[name]) * (1 + target.tolerance) + 1e-300:
                    target.fail(
                        "parameter_gradient_norm",
                        f"at x = {shown(scale * one)} of norm {scale:g} with a cotangent of norm "
                        f"{1 / scale:g}, the gradient of {name} has norm {size:.9g}, above "
                        f"{min(allowed[name], unshaped[name]):.9g}.",
                    )
                found[name] = max(found[name], size / allowed[name] if allowed[name] > 0 else 1.0)
    return {"parameter_gradient_norm": min(_slack(1.0, ratio) for ratio in found.values())}


def _without_shape(layer, scale, allowed):
    """The bounds at every size of a sample, where there are any."""
    try:
        return parameter_gradient_norm(layer, scale, 1 / scale)
    except (ValueError, UnsupportedLayerError):
        return allowed


def _gradients(layer, weights, x, g, graph=False):
    with torch.enable_grad():
        image = layer(x[None].clone())
        return torch.autograd.grad((image * g).sum(), weights, create_graph=graph, materialize_grads=True)


def _pairs(shape, outputs, generator):
    """Inputs and cotangents of norm 1, each kind of one with each kind of the other."""
    x, g = _of_size(_candidates(shape, generator), 1.0), _of_size(_candidates(outputs, generator), 1.0)
    return x.repeat_interleave(len(g), 0), g.repeat(len(x), *[1] * (g.ndim - 1))


def _candidates(shape, generator):
    """Normal, uniform and positive samples, a constant one, one constant in space, and single entries."""
    options = {"generator": generator, "dtype": torch.float64}
    normal = torch.randn(2, *shape, **options)
    spatial = torch.randn(1, shape[0], *[1] * (len(shape) - 1), **options).expand(1, *shape)
    single = torch.zeros(2, *shape, dtype=torch.float64)
    size = single[0].numel()
    single[0].view(-1)[size // 2] = 1.0
    single[1].view(-1)[0] = 1.0
    return torch.cat([normal, normal[:1].abs(), torch.ones_like(normal[:1]), spatial, single])


def _ascended_pairs(layer, weights, x, g, steps=4):
    """The best of the given pairs, moved uphill, and then the pairs themselves, the best first."""
    sizes = torch.stack([_total(_gradients(layer, weights, *pair)) for pair in zip(x, g)]).detach()
    order = sizes.nan_to_num(0.0, 0.0, 0.0).argsort(descending=True)
    x, g = x[order], g[order]
    one, other = x[0], g[0]
    for _ in range(steps):
        one, other = one.detach().requires_grad_(), other.detach().requires_grad_()
        with torch.enable_grad():
            total = _total(_gradients(layer, weights, one, other, graph=True))
            if not total.requires_grad:
                break
            moves = torch.autograd.grad(total, (one, other), materialize_grads=True)
        if not all(torch.isfinite(move).all() for move in moves):
            break
        one = _of_size((one + _unit(moves[0]))[None], 1.0)[0]
        other = _of_size((other + _unit(moves[1]))[None], 1.0)[0]
    return torch.cat([one.detach()[None], x]), torch.cat([other.detach()[None], g])


def _unit(gradient):
    """A gradient as long as 1, or 0."""
    return gradient / torch.linalg.vector_norm(gradient).clamp(min=1e-300)


def _total(gradients):
    return sum(gradient.square().sum() for gradient in gradients).sqrt()


def _of_size(batch, size):
    found = lengths(batch, 2).reshape(-1, *[1] * (batch.ndim - 1))
    return torch.where(found > 0, size * batch / torch.where(found > 0, found, 1.0), batch).detach()


def _slack(allowed, found):
    if found > 0:
        return max(0.0, allowed / found - 1)  # what rounding lifts above the bound is within the tolerance
    return math.inf if allowed > 0 else 0.0


def attack_loss(loss: nn.Module, shape: tuple[int, ...], seed: int) -> float:
    """The slack of `loss_gradient_norm`, over logits of many sizes, every label and batches of two.

    Raises `CertificateError` where a gradient is longer, or where the loss of a batch is not the mean of the
    losses of its samples.
    """
    allowed, largest = loss_gradient_norm(loss), 0.0
    generator = torch.Generator().manual_seed(seed)
    classes = shape[0]
    logits = torch.cat([start_points(shape, generator), 100 * torch.eye(classes, dtype=torch.float64)])
    for label in range(classes):
        labels = torch.full((len(logits),), label)
        x = logits.clone().requires_grad_()
        for _ in range(20):
            (gradients,) = torch.autograd.grad(loss(x, labels), x)
            sizes = lengths(gradients * len(x), 2)
            worst = sizes.argmax()
            if sizes[worst] > allowed * (1 + 1e-9):
                raise CertificateError(
                    f"the loss_gradient_norm contract of {name_of(loss)} is wrong: at the logits "
                    f"{shown(x[worst])} with label {label} the gradient has norm {sizes[worst]:.9g}, above "
                    f"{allowed:.9g}."
                )
            largest = max(largest, sizes[worst].item())
            x = (x + _of_size(gradients, 1.0)).detach().requires_grad_()
    _attack_mean(loss, logits, generator)
    return _slack(allowed, largest)


def _attack_mean(loss, logits, generator):
    """The gradient of one sample's loss, alone and beside others, and the mean of the losses."""
    labels = torch.randint(logits.shape[1], (len(logits),), generator=generator)
    x = logits.clone().requires_grad_()
    total = loss(x, labels)
    (together,) = torch.autograd.grad(total, x)
    alone, values = [], []
    for row, label in zip(logits, labels):
        row = row[None].clone().requires_grad_()
        values.append(loss(row, label[None]))
        alone += torch.autograd.grad(values[-1], row)
    mean = torch.stack(values).mean()
    apart = (together * len(x) - torch.cat(alone)).abs().max()
    if apart > 1e-9 or (total - mean).abs() > 1e-9 * (1 + mean.abs()):
        raise CertificateError(
            f"{name_of(loss)} is not the mean of the losses of its samples: one sample's gradient changes by "
            f"{apart:.6g} beside others, and the loss of the batch by {(total - mean).abs():.6g}."
        )
