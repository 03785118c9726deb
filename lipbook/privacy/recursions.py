"""The sensitivity of a gradient: how much of a sum of gradients one record can be.

Two norms are carried through the network by the contracts of its layers: that of the input forward, and that
of the cotangent, the gradient of the loss with respect to a layer's output, backward. Where they meet, at
each layer, they bound the gradient of its parameters, for every input and every label at once.

Source: Béthune et al., "DP-SGD without clipping: the Lipschitz neural network way", ICLR 2024. Chapter:
privacy/without-clipping.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipbook.contracts import loss_gradient_norm
from lipbook.contracts.gradients import (
    checked_size,
    gradients_of,
    product_up,
    recursion,
    refuse_backward_hooks,
    sum_up,
)
from lipbook.contracts.guard import finite_attribute, guard, refusal


@dataclass(frozen=True)
class Sensitivity:
    """Upper bounds on the l_2 norm of one sample's gradient, at the weights that the model has.

    `per_parameter` holds one for each parameter that requires gradients, by its name; `total` bounds the
    norm of all of them together, and `loss` the gradient with respect to the logits. `recursion` holds (layer
    name, X, G) for each layer in order: at least the norm of what enters it, and of the cotangent at its
    output (infinite below the first layer that is trained).
    """

    per_parameter: dict[str, float]
    total: float
    loss: float
    recursion: tuple[tuple[str, float, float], ...]

    def __float__(self):
        return self.total


def sensitivity(
    model: nn.Sequential,
    loss: nn.Module,
    input_norm: float,
    input_shape: tuple[int, ...] | None = None,
    norms: dict[str, float] | None = None,
) -> Sensitivity:
    """How much one record can add to the sum of the gradients, in l_2, whatever the record is.

    The bound is about the model as it is now: its present weights, in real arithmetic. Under add/remove
    adjacency it is the sensitivity of the sum; replacing one record would change it by up to twice as much.

    Args:
        model: an `nn.Sequential` of layers with contracts, nested ones included. Layers that compute their
            weights from parameters are refused.
        loss: with a `loss_gradient_norm` contract.
        input_norm: positive: every input has at most this l_2 norm. Infinite if the model begins with
            `ToBall` or `ToSphere`.
        input_shape: the shape of one sample. None: a vector, as the first `nn.Linear` takes it.
        norms: upper bounds on the l_2 norms of some `nn.Linear` layers, by the layers' names, used instead of
            their `lipschitz` contract. The caller answers for them.

    Raises:
        UnsupportedLayerError: a layer or the loss has no contract, or a hook that may change gradients.
        ValueError, TypeError: no such norm or shape, no layer that is trained, a model that is no Sequential.

    Chapter: privacy/without-clipping.
    """
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"model must be an nn.Sequential, got {type(model).__name__}: put its layers in one.")
    if checked_size(input_norm, "input_norm") == 0:
        raise ValueError("input_norm must be positive, got 0: what norm do the inputs have at most?")
    refuse_backward_hooks(model)
    chain = _leaves(model)
    input_shape = _vectors(chain) if input_shape is None else input_shape
    cotangent = loss_gradient_norm(loss)
    steps = recursion(chain, input_norm, cotangent, input_shape, _checked_norms(norms, chain))
    bounds = gradients_of(steps, model)
    if not bounds:
        raise ValueError("no parameter of the model requires gradients: nothing is trained.")
    for name, bound in bounds.items():
        if math.isinf(bound):
            raise ValueError(
                f"the gradient of {name} is unbounded: pass the norm that inputs have at most as input_norm, "
                "or begin the model with lipbook.layers.ToBall."
            )
    reached = tuple((step.name, step.input_norm, step.cotangent_norm) for step in steps)
    return Sensitivity(bounds, root_of_squares_up(bounds.values()), cotangent, reached)


def root_of_squares_up(sizes) -> float:
    """The l_2 norm of non-negative floats, rounded up."""
    sizes = [float(size) for size in sizes]
    largest = max(sizes)
    if largest == 0 or math.isinf(largest):
        return largest
    squares = sum_up(*(product_up([size / largest, size / largest]) for size in sizes))
    return product_up([math.sqrt(squares), largest, 1 + 2.0**-50])


def _leaves(model, prefix=""):
    """(name, layer) of every layer in nested Sequentials, in the order in which they act."""
    guard(model, nn.Sequential)
    leaves = []
    for name, child in model._modules.items():
        if type(child) is nn.Sequential:
            leaves += _leaves(child, f"{prefix}{name}.")
        else:
            leaves.append((f"{prefix}{name}", child))
    return leaves


def _vectors(chain):
    for _, layer in chain:
        if isinstance(layer, nn.Linear):
            return (layer.in_features,)
        if any(True for _ in layer.parameters()):
            break
    raise ValueError("the shape of a sample is not known: pass input_shape, such as (1, 28, 28).")


def _checked_norms(norms, chain):
    linear = {name for name, layer in chain if isinstance(layer, nn.Linear)}
    for name, value in (norms or {}).items():
        if name not in linear:
            raise ValueError(f"norms names {name!r}, which is no nn.Linear of the model: {sorted(linear)}.")
        checked_size(value, f"the norm of {name}")
    return norms


class ClippedGradient(nn.Module):
    """A loss whose gradient with respect to the logits is clipped: shortened to `bound` where it is longer.

    The value is the loss's own, and so is the direction of each sample's gradient. It is clipping, with its
    bias, of one vector of the size of the logits a sample, before any parameter's gradient exists.

    Args:
        loss: called with (logits, labels), the mean over the batch.
        bound: positive and finite: the largest norm of one sample's gradient that is let through.

    Raises:
        ValueError, TypeError, UnsupportedLayerError: not such a loss or number.

    Chapter: privacy/without-clipping.
    """

    def __init__(self, loss: nn.Module, bound: float):
        super().__init__()
        loss_gradient_norm(loss)
        self.loss = loss
        self.bound = bound
        if not 0 < checked_size(bound, "bound") < math.inf:
            raise ValueError(f"bound must be positive and finite, got {bound}.")

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch of logits (batch, classes) and labels (batch,), 0-d."""
        return self.loss(_ClipRows.apply(logits, self.bound / max(1, len(logits))), labels)

    def extra_repr(self):
        return f"bound={self.bound}"


class _ClipRows(torch.autograd.Function):
    """The identity, which shortens the rows of the gradient that comes back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows, bound):
        return rows.view_as(rows)

    @staticmethod
    def setup_context(context, inputs, output):
        context.bound = inputs[1]

    @staticmethod
    def backward(context, gradient):
        lengths = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        return gradient * (context.bound / lengths.clamp(min=context.bound)), None


@loss_gradient_norm.register(ClippedGradient)
def _clipped_gradient(loss):
    return min(loss_gradient_norm(loss.loss), float(loss.bound))


@refusal.register(ClippedGradient)
def _refuse_clipped(loss):
    if not 0 < finite_attribute(loss, "bound"):
        return f"has bound={loss.bound}: set it to a positive number."
    return None
