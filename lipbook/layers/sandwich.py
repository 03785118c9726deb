"""`SandwichLinear`: sqrt(2) A' Psi relu(sqrt(2) Psi^-1 B x + b), an activation between two halves of one
orthogonal stack.

Source: Wang and Manchester, "Direct parameterization of Lipschitz-bounded deep networks", ICML 2023,
equation 8.

Chapter: layers/direct-parameterizations.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipbook.bound import as_float64
from lipbook.contracts.definitions import expand, output_shape
from lipbook.contracts.guard import refusal
from lipbook.contracts.rounding import enclose
from lipbook.contracts.structures import checked_count
from lipbook.layers.block import balanced_, exp_of, norm_up, register_block, scale_of
from lipbook.layers.maps import cayley
from lipbook.layers.orthogonal import (
    checked_choice,
    checked_flag,
    plain_linear,
    refuse_shapes,
    require_features,
    reset_bias,
)
from lipbook.layers.parametrised import Parametrised, wide

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}  # slopes in [0, 1]
_ROOT_OF_TWO = math.sqrt(2.0)


class SandwichLinear(Parametrised):
    """G act(W x + b), 1-Lipschitz whatever its parameters are: G = sqrt(2) A' Psi and W = sqrt(2) Psi^-1 B.

    One Cayley map makes the stack [A'; B'], which has orthonormal columns; Psi is diagonal and positive.
    There are as many hidden units as outputs. At the start A = I / sqrt(2) and B is a random orthogonal
    matrix over sqrt(2), so that the layer is act(O x + b) where it does not widen.

    Args:
        in_features, out_features: the sizes of x and of the output.
        activation: "relu", "tanh" or "sigmoid".
        bias: whether to add b.

    Attributes:
        free: (out_features + in_features, out_features), of which the Cayley map makes [A'; B'].
        psi: (out_features,), the logarithms of Psi, read within [-10, 10].
        bias: (out_features,) or None.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, another activation.

    Source: Wang and Manchester, ICML 2023, equation 8. Chapter: layers/direct-parameterizations.
    """

    def __init__(self, in_features: int, out_features: int, activation: str = "relu", bias: bool = True):
        super().__init__()
        self.in_features = checked_count(in_features, "in_features", least=1)
        self.out_features = checked_count(out_features, "out_features", least=1)
        self.activation = checked_choice(activation, "activation", tuple(ACTIVATIONS))
        self.free = nn.Parameter(torch.empty(out_features + in_features, out_features))
        self.psi = nn.Parameter(torch.empty(out_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if checked_flag(bias, "bias") else None
        self.reset_parameters()

    def reset_parameters(self):
        """A balanced stack with random directions, Psi = I, a bias as in `nn.Linear`."""
        balanced_(self.free)
        nn.init.zeros_(self.psi)
        if self.bias is not None:
            reset_bias(self.bias, self.in_features)

    def compute(self) -> tuple[Tensor, Tensor]:
        """(G, W) from the parameters."""
        left, right = cayley(wide(self.free)).split([self.out_features, self.in_features])
        scale = exp_of(wide(self.psi))
        return _ROOT_OF_TWO * left * scale, _ROOT_OF_TWO * right.mT / scale[:, None]

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, ..., in_features) to (batch, ..., out_features)."""
        G, W = self.weights()
        return F.linear(getattr(torch, self.activation)(F.linear(inputs, W, self.bias)), G)

    def plain(self, input_shape: tuple[int, ...] | None = None) -> nn.Sequential:
        """The same function as Linear, activation, Linear."""
        G, W = self.materialise()
        return nn.Sequential(
            plain_linear(W, self.bias), ACTIVATIONS[self.activation](), plain_linear(G, None)
        )

    def extra_repr(self):
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, activation={self.activation!r}, bias={self.bias is not None}"


def _constant(layer, margin):
    """With S = [G Psi^-1; (Psi W)'], at least |u'G D W v| for all unit u and v: half the square of its norm.

    p = (G Psi^-1)'u and q = Psi W v give u'G D W v = p'D q <= sum_i max(0, p_i q_i) <= |p + q|^2 / 4, and
    |p + q| = |S'(u, v)| <= sqrt(2) |S|.
    """
    with torch.no_grad():
        G, W = (as_float64(weight, "a weight") for weight in layer.materialise())
    scale = scale_of(layer)
    stack = norm_up(torch.cat([G / scale, (scale[:, None] * W).T]), 1, margin)
    return math.nextafter(stack**2 / 2, math.inf)


register_block(SandwichLinear, _constant)


@refusal.register(SandwichLinear)
def _refuse(layer):
    if layer.activation not in ACTIVATIONS:
        return f"has activation={layer.activation!r}: set it to one of {', '.join(map(repr, ACTIVATIONS))}."
    shapes = {"bias": (layer.out_features,)} if layer.bias is not None else {}
    size = layer.out_features + layer.in_features
    return refuse_shapes(layer, free=(size, layer.out_features), psi=(layer.out_features,), **shapes)


@output_shape.register(SandwichLinear)
def _output_shape(layer, input_shape):
    require_features(layer, input_shape, layer.in_features)
    return (*input_shape[:-1], layer.out_features)


@expand.register(SandwichLinear)
def _expand(layer):
    return tuple(layer.plain())


@enclose.register(SandwichLinear)
def _enclose(layer, values, errors):
    output_shape(layer, tuple(values.shape[1:]))
    return enclose(layer.plain(), values, errors)
