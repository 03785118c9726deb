"""`export`: a model whose layers hold their weights, instead of computing them.

Chapter: layers/orthogonal-layers.
"""

import copy

from torch import nn

from lipbook.bound import UnsupportedLayerError
from lipbook.contracts.definitions import checked_shape, output_shape
from lipbook.contracts.guard import guard, name_of, require_layer
from lipbook.layers.parametrised import Parametrised
from lipbook.layers.residual import Residual


def export(model: nn.Sequential, input_shape: tuple[int, ...] | None = None) -> nn.Sequential:
    """A copy of a model in which each layer that computes its weights is replaced by layers of torch.

    Its outputs are those of the model up to rounding, and its weights are stored: bounds on them hold on
    every machine. A block H x + G relu(W x + b) becomes Linear, ReLU, Linear by x = relu(x) - relu(-x): the
    function is the same, and the product of the norms is not. Keep the bound of the model: exporting moves
    the outputs by rounding alone. Convolutions that depend on the size of the image ("soc", "cayley", "bro")
    are exported for `input_shape`, and on images of another size compute something else, of another norm.

    Args:
        model: an `nn.Sequential`, nesting and `Residual` allowed.
        input_shape: the shape of one sample, for convolutions that depend on the size of the image.

    Raises:
        UnsupportedLayerError: not an `nn.Sequential`; a layer under a hook, or one that computes its weights
            in a subclass of its own or inside another module (a TypeError).
        ValueError, TypeError: not a shape, one that a layer does not take, or None where one is needed.

    Chapter: layers/orthogonal-layers.
    """
    require_layer(model)
    if type(model) is not nn.Sequential:
        raise UnsupportedLayerError(
            f"export takes an nn.Sequential, got {name_of(model)}: wrap one layer as nn.Sequential(layer)."
        )
    shape = None if input_shape is None else checked_shape(input_shape)
    return _exported(model, shape)


def _exported(layer, shape):
    if isinstance(layer, Parametrised):
        return _plain(layer, shape).train(layer.training)
    if type(layer) is nn.Sequential:
        guard(layer, nn.Sequential)
        exported = nn.Sequential()
        for name, child in layer._modules.items():
            exported.add_module(name, _exported(child, shape))
            shape = None if shape is None else output_shape(child, shape)
        exported.training = layer.training
        return exported
    if type(layer) is Residual:
        guard(layer, Residual)
        return Residual(_exported(layer.module, shape)).train(layer.training)
    inside = next((part for part in layer.modules() if isinstance(part, Parametrised)), None)
    if inside is not None:
        raise UnsupportedLayerError(
            f"{name_of(layer)} holds a layer that computes its weights, {name_of(inside)}, and export looks "
            "into nn.Sequential and Residual only: write the model with these."
        )
    return copy.deepcopy(layer)


def _plain(layer, shape):
    owner = next((kind for kind in type(layer).__mro__ if "plain" in vars(kind)), None)
    if owner is None:
        raise UnsupportedLayerError(
            f"{name_of(layer)} has no method plain(input_shape) that gives it as layers of torch: write one."
        )
    guard(layer, owner)  # a hook, or a subclass with another forward pass, is not what `plain` gives
    return layer.plain(shape)
