"""Copies of a layer with other weights, and what a layer's state is.

Every change keeps a layer in a state that training could have left it in: parameters take any value, buffers
only those that the layer's own forward pass in train mode gives them.
"""

import copy
import functools
import io

import torch
from torch import nn
from torch.nn.utils import parametrize

from lipbook.bound import UnsupportedLayerError
from lipbook.contracts.definitions import contracts_of, expand, lipschitz
from lipbook.contracts.guard import name_of
from lipbook.contracts.pairs import lengths, start_points


def double_copy(layer: nn.Module) -> nn.Module:
    """A float64 copy on the CPU, with its parametrisations, free of gradients."""
    duplicate = _mathematical(_deepcopy(layer).double().cpu())
    for module in duplicate.modules():
        for name, value in _plain_tensors(module):
            setattr(module, name, value.detach().double().cpu())  # .double() passes these by
    for parameter in duplicate.parameters():
        parameter.grad = None
    return duplicate.requires_grad_(False)


def faithful_copy(layer: nn.Module) -> tuple[nn.Module, float]:
    """A float64 copy that computes with the very numbers of the layer, and how far it may be from them.

    Torch's parametrisations are replaced by their value, in the layer's own dtype, and the library's own
    layers keep theirs. A layer of another make may form its weight in its forward pass; in float64 that is
    another weight, by some roundings.
    """
    duplicate = _deepcopy(layer)
    stock = True
    for module in duplicate.modules():
        if parametrize.is_parametrized(module):
            _materialise(module)
        stock &= fix_weights(module) or type(module).__module__.startswith("torch.nn.")
    precisions = [torch.finfo(tensor.dtype).eps for tensor in _floating(duplicate)]
    tolerance = 1e-9 if stock else max([1e-9, *(32 * eps for eps in precisions if eps > 1e-12)])
    return double_copy(duplicate), tolerance


@functools.singledispatch
def fix_weights(module: nn.Module) -> bool:
    """Whether this copy of a layer, which computes its weights, was made to keep their present values."""
    return False


def draw_anew(layer, shape, generator):
    """Normal weights, as large as the old ones."""
    return _each_parameter(layer, lambda old: _size(old) * _normal(old, generator))


def _make_rank_one(layer, shape, generator):
    def change(old):
        columns = old.flatten(1) if old.ndim > 1 else old[None]
        outer = _normal(columns[:, :1], generator) * _normal(columns[:1], generator)
        return (_size(old) * outer).reshape(old.shape)

    return _each_parameter(layer, change)


def _shrink(layer, shape, generator):
    return _each_parameter(layer, lambda old: 1e-30 * _size(old) * _normal(old, generator))


def _blow_up(layer, shape, generator):
    return _each_parameter(layer, lambda old: 1e30 * _size(old) * _normal(old, generator))


def _train_to_grow(layer, shape, generator, steps=20):
    """Gradient ascent of the weights on the growth of the output."""
    parameters = _trainable(layer)
    if not parameters:
        return False
    points = start_points(shape, generator)
    x, y = points, points + torch.randn(points.shape, generator=generator, dtype=torch.float64)
    for parameter in parameters:
        parameter.requires_grad_(True)
    groups = [{"params": [parameter], "lr": 0.05 * _size(parameter.detach())} for parameter in parameters]
    optimiser = torch.optim.Adam(groups)
    for _ in range(steps):
        growth = torch.log(lengths(layer(x.clone()) - layer(y.clone()), 2) + 1e-30).mean()
        if not growth.requires_grad:
            break
        gradients = torch.autograd.grad(-growth, parameters, materialize_grads=True)
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        optimiser.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None
    return all(torch.isfinite(parameter).all() for parameter in parameters)


def _drive(layer, shape, generator):
    """New weights, and a few batches in train mode, which is what gives the buffers their values."""
    if not any(tensor.is_floating_point() for tensor in layer.buffers()):
        return False
    draw_anew(layer, shape, generator)
    modes = [(module, module.training) for module in layer.modules()]
    layer.train()
    with torch.no_grad():
        for _ in range(5):
            layer(3 * torch.randn(8, *shape, generator=generator, dtype=torch.float64) + 1)
    for module, training in modes:
        module.training = training
    return True


VARIANTS = {
    "drawn anew": draw_anew,
    "of rank one": _make_rank_one,
    "shrunk": _shrink,
    "blown up": _blow_up,
    "trained to grow": _train_to_grow,
    "after batches in train mode": _drive,
}


def loaded_copy(layer: nn.Module, shape: tuple[int, ...], generator: torch.Generator) -> nn.Module:
    """A copy that lived with other weights, and then loaded the saved state of the layer."""
    saved = io.BytesIO()
    torch.save(layer.state_dict(), saved)
    saved.seek(0)
    other = double_copy(layer)
    for module in other.modules():
        for name, value in _plain_tensors(module):
            setattr(module, name, 2 * _normal(value, generator))
    draw_anew(other, shape, generator)
    other(start_points(shape, generator))
    if "lipschitz" in contracts_of(other):
        try:
            lipschitz(other, 2, shape)
        except UnsupportedLayerError:
            pass
    other.load_state_dict(torch.load(saved, weights_only=False))
    return other


def snapshot(layer: nn.Module) -> dict:
    """Everything that reading a contract must leave as it is."""
    state = {"the random state": torch.get_rng_state()}
    for path, module in layer.named_modules():
        state[f"the mode of {path or 'the layer'}"] = module.training
    for path, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        state[path] = tensor.detach().clone()
        state[f"the dtype of {path}"] = tensor.dtype
        state[f"the device of {path}"] = tensor.device
        state[f"requires_grad of {path}"] = tensor.requires_grad
        state[f"the gradient of {path}"] = None if tensor.grad is None else tensor.grad.clone()
    return state


def changed_between(before: dict, after: dict) -> str | None:
    """The name of the first thing that differs between two snapshots, or None."""
    for name in {**before, **after}:
        if not _same(before.get(name), after.get(name)):
            return name
    return None


def _same(old, new):
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        return old.dtype == new.dtype and torch.equal(old, new)
    return type(old) is type(new) and old == new


def _deepcopy(layer):
    try:
        return copy.deepcopy(layer)
    except RuntimeError as error:
        expand(layer)  # the guard may say more of why
        name = name_of(layer)
        raise UnsupportedLayerError(f"{name} cannot be copied, so it cannot be attacked: {error}") from error


def _plain_tensors(module):
    tensors = [(name, value) for name, value in vars(module).items() if isinstance(value, torch.Tensor)]
    return [(name, value) for name, value in tensors if value.is_floating_point()]


def _mathematical(layer):
    for module in layer.modules():
        if isinstance(module, nn.Softplus):
            module.threshold = 700  # exp(700) is finite, and the jump there is nothing in float64
    return layer


def _materialise(module):
    # torch's remove_parametrizations edits the class, which a deep copy shares with the original.
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def _floating(layer):
    return [tensor for tensor in [*layer.parameters(), *layer.buffers()] if tensor.is_floating_point()]


def _trainable(layer):
    return [parameter for parameter in layer.parameters() if parameter.is_floating_point()]


def _each_parameter(layer, change):
    parameters = _trainable(layer)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(change(parameter.detach()))
    return bool(parameters)


def _normal(like, generator):
    return torch.randn(like.shape, generator=generator, dtype=torch.float64)


def _size(tensor):
    return tensor.double().square().mean().sqrt().item() or 1.0
