"""A layer's Lipschitz constant as training sees it: differentiable, and no bound.

What is known by construction is a number. The norm of a free linear map is approached from below by power
iteration through the layer's own forward and backward pass: its gradient is what a training step needs, and
its value proves nothing (Miyato et al., "Spectral normalization for generative adversarial networks", ICLR
2018, train in the same way).

Chapter: training/losses.
"""

import functools

import torch
from torch import Tensor, nn

from lipbook.contracts.definitions import contracts_of, expand, lipschitz, output_shape
from lipbook.contracts.guard import name_of

_STEPS = 20


@functools.singledispatch
def trained_norm(layer: nn.Module, input_shape: tuple[int, ...] | None) -> float | Tensor:
    """The l_2 constant of a layer: a number, or a tensor with gradients. Never use it in a certificate.

    Args:
        layer: with contracts, in train or eval mode.
        input_shape: the shape of one sample; needed by linear layers that do not tell it.

    Raises:
        UnsupportedLayerError: the layer has no Lipschitz contract.
        ValueError: the shape of a sample is needed, and missing.
    """
    if "affine" in contracts_of(layer):
        return free_norm(layer, input_shape)
    return lipschitz(layer, 2, input_shape).value


@trained_norm.register(nn.Sequential)
def _product(layer, input_shape):
    product = 1.0
    for part in expand(layer, blocks=False):
        product = product * trained_norm(part, input_shape)
        input_shape = None if input_shape is None else output_shape(part, input_shape)
    return product


def free_norm(layer: nn.Module, input_shape: tuple[int, ...] | None) -> float | Tensor:
    """The constant of an affine layer: by `stretch` if a parameter of it is trained, else its contract's."""
    if any(weight.requires_grad for weight in layer.parameters()):
        return stretch(layer, input_shape)
    return lipschitz(layer, 2, input_shape).value


def stretch(layer: nn.Module, input_shape: tuple[int, ...] | None) -> Tensor:
    """By how much an affine layer stretches the direction that power iteration finds, with its gradient."""
    if input_shape is None:
        features = getattr(layer, "in_features", None)
        if features is None:
            raise ValueError(f"the shape of what {name_of(layer)} takes is not known: pass input_shape.")
        input_shape = (features,)
    first = next(layer.parameters())
    with torch.inference_mode(False), torch.enable_grad():
        origin = first.new_zeros(1, *input_shape)

        def linear(direction):
            return layer(direction) - layer(origin)

        generator = torch.Generator("cpu").manual_seed(_seed(layer))
        start = torch.randn(1, *input_shape, generator=generator, device="cpu").to(origin)
        direction = _unit(start).requires_grad_()
        for _ in range(_STEPS):
            # The gradient of u'Wv, with u along Wv, is along W'Wv: one step of power iteration.
            image = linear(direction)
            (moved,) = torch.autograd.grad((_unit(image) * image).sum(), direction)
            direction = _unit(moved).requires_grad_()
        image = linear(direction.detach())
        scale = _size(image)
        return scale * torch.linalg.vector_norm(image / scale)


def _seed(layer):
    """Another one for other weights: from one start, always the same, training learns to hide the norm."""
    return hash(sum(weight.detach().sum().item() for weight in layer.parameters()))


def _unit(vector):
    vector = (vector / _size(vector)).detach()
    return vector / torch.linalg.vector_norm(vector).clamp(min=1)


def _size(vector):
    """The largest entry, by which a vector is divided so that no square leaves the range of its dtype."""
    return vector.detach().abs().max().clamp(min=torch.finfo(vector.dtype).tiny)
