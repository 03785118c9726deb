"""`SLLLinear` and `SLLConv2d`: x - 2 U'T relu(U x + b), where the diagonal T makes UU' <= T^-1.

With D the slopes of relu, (I - 2U'TDU)'(I - 2U'TDU) <= I - 4 U'T (D - D^2) U <= I by UU' <= T^-1. The rows of
|UU'|, weighed by any positive q, give such a T: T_i = 1 / sum_j |UU'|_ij q_j / q_i.

Source: Araujo, Havens, Delattre, Allauzen and Hu, "A unified algebraic perspective on Lipschitz neural
networks", ICLR 2023, Theorem 3 and section 4.2.

Chapter: layers/direct-parameterizations.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipbook.bound import as_float64
from lipbook.contracts.definitions import output_shape, residual
from lipbook.contracts.guard import refusal
from lipbook.contracts.rounding import enclose
from lipbook.contracts.spatial import not_taken
from lipbook.contracts.structures import checked_count
from lipbook.layers.block import plain_block, register_block
from lipbook.layers.filters import convolve
from lipbook.layers.maps import gram_matrix
from lipbook.layers.orthogonal import (
    checked_choice,
    checked_odd,
    plain_convolution,
    plain_linear,
    refuse_shapes,
    require_features,
    reset_bias,
)
from lipbook.layers.parametrised import Parametrised, wide
from lipbook.layers.residual import enclose_residual
from lipbook.norms.spectral import gamma

_SMALLEST = 1e-12  # what the sums are raised by, on the safe side: T is at most 1e12
_DOWN = 2.0**-32  # of T, relatively: what rounds it and its proof in float64 is less
_WIDEST = 40.0  # of log q: smaller entries are read as e^-40 times the largest
PADDINGS = ("circular", "zeros")


class _SLL(Parametrised):
    """What the dense layer and the convolution share: the parameters `weight`, `log_q` and `bias`.

    The forward pass uses V = T^(1/2) U and c = T^(1/2) b, because T may be beyond the floats: relu passes
    positive factors on, so that 2 U'T relu(U x + b) is 2 V' relu(V x + c).
    """

    def gram(self, weight: Tensor) -> Tensor:
        """(hidden, hidden), at least the absolute values of UU'."""
        raise NotImplementedError

    def diagonal(self) -> Tensor:
        """T, (hidden,), in at least float32: infinite or 0 where it is beyond the floats."""
        with torch.autocast(self.weight.device.type, enabled=False):
            unit, _, roots = self._rooted(wide(self.weight), wide(self.log_q))
        return (roots / unit) ** 2

    def _rooted(self, weight, log_q):
        """(s, q, s T^(1/2)), where s is the largest weight or 1, so that the sums are finite.

        Neither s nor a common factor of q changes T, and so they pass no gradient.
        """
        unit = weight.detach().abs().amax().clamp(min=1)
        q = (log_q - log_q.detach().amax()).clamp(min=-_WIDEST).exp()
        sums = self.gram(weight / unit) @ q / q + _SMALLEST
        down = 1 - max(32 * torch.finfo(weight.dtype).eps, _DOWN)
        return unit, q, (down / sums).sqrt()

    def compute(self) -> tuple[Tensor, Tensor]:
        """(V, c) from the parameters."""
        weight = wide(self.weight)
        unit, _, roots = self._rooted(weight, wide(self.log_q))
        V = (weight / unit) * roots.reshape(-1, *[1] * (weight.ndim - 1))
        largest = torch.finfo(self.bias.dtype).max  # beyond it, c times a row of zeros would be NaN
        return V, (wide(self.bias) / unit * roots).clamp(-largest, largest)


class SLLLinear(_SLL):
    """x - 2 U'T relu(U x + b), 1-Lipschitz whatever its parameters are.

    Args:
        features: the size of x.
        hidden: the size of b; by default `features`.

    Attributes:
        weight: U, (hidden, features).
        log_q: (hidden,), the logarithms of q.
        bias: b, (hidden,).

    Raises:
        ValueError, TypeError: sizes that are not positive ints.

    Source: Araujo et al., ICLR 2023, Theorem 3. Chapter: layers/direct-parameterizations.
    """

    def __init__(self, features: int, hidden: int | None = None):
        super().__init__()
        self.features = checked_count(features, "features", least=1)
        self.hidden = features if hidden is None else checked_count(hidden, "hidden", least=1)
        self.weight = nn.Parameter(torch.empty(self.hidden, features))
        self.log_q = nn.Parameter(torch.empty(self.hidden))
        self.bias = nn.Parameter(torch.empty(self.hidden))
        self.reset_parameters()

    def reset_parameters(self):
        """U as Glorot and Bengio draw it, q = 1, a bias as in `nn.Linear`."""
        nn.init.xavier_normal_(self.weight)
        nn.init.zeros_(self.log_q)
        reset_bias(self.bias, self.features)

    def gram(self, weight: Tensor) -> Tensor:
        """The absolute values of UU'."""
        return gram_matrix(weight.mT).abs()

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, ..., features) to the same shape."""
        V, c = self.weights()
        return inputs - 2 * F.linear(torch.relu(F.linear(inputs, V, c)), V.mT)

    def plain(self, input_shape: tuple[int, ...] | None = None) -> nn.Sequential:
        """The same function as Linear, ReLU, Linear, by x = relu(x) - relu(-x)."""
        V, c = self.materialise()
        return plain_block(torch.eye(self.features).to(V), -2 * V.T, V, c)

    def extra_repr(self):
        return f"features={self.features}, hidden={self.hidden}"


class SLLConv2d(_SLL):
    """x - 2 U'T relu(U x + b) for a convolution U of stride 1, 1-Lipschitz whatever its parameters are.

    UU' is the convolution with the kernel of U correlated with itself; the absolute values of its taps are
    summed, which bounds every frequency, and so circular images of every size. An image with zeros around it
    is a part of a larger circular image, and T is the same at every pixel.

    Args:
        channels: of the images.
        kernel_size: odd.
        hidden: channels of b; by default `channels`.
        padding_mode: "circular" or "zeros"; the image keeps its size.

    Attributes:
        weight: the kernel of U, (hidden, channels, kernel_size, kernel_size).
        log_q: (hidden,), the logarithms of q.
        bias: b, (hidden,).

    Raises:
        ValueError, TypeError: sizes that are not positive ints, an even kernel, another padding; in the
            forward pass, an image that the layer does not take.

    Source: Araujo et al., ICLR 2023, section 4.2. Chapter: layers/direct-parameterizations.
    """

    def __init__(
        self, channels: int, kernel_size: int, hidden: int | None = None, padding_mode: str = "circular"
    ):
        super().__init__()
        self.channels = checked_count(channels, "channels", least=1)
        self.kernel_size = checked_odd(kernel_size, "kernel_size")
        self.hidden = channels if hidden is None else checked_count(hidden, "hidden", least=1)
        self.padding_mode = checked_choice(padding_mode, "padding_mode", PADDINGS)
        self.weight = nn.Parameter(torch.empty(self._kernel_shape()))
        self.log_q = nn.Parameter(torch.empty(self.hidden))
        self.bias = nn.Parameter(torch.empty(self.hidden))
        self.reset_parameters()

    def reset_parameters(self):
        """U as Glorot and Bengio draw it, q = 1, a bias as in `nn.Conv2d`."""
        nn.init.xavier_normal_(self.weight)
        nn.init.zeros_(self.log_q)
        reset_bias(self.bias, self.channels * self.kernel_size**2)

    def _kernel_shape(self):
        return self.hidden, self.channels, self.kernel_size, self.kernel_size

    def gram(self, weight: Tensor) -> Tensor:
        """The taps of UU', in absolute values and summed."""
        return F.conv2d(weight, weight, padding=self.kernel_size - 1).abs().sum((-2, -1))

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same shape."""
        _convolution_output_shape(self, tuple(inputs.shape[1:]))
        V, c = self.weights()
        hidden = torch.relu(convolve(inputs, V, self.padding_mode, c))
        return inputs - 2 * convolve(hidden, _transposed(V), self.padding_mode)

    def plain(self, input_shape: tuple[int, ...] | None = None) -> nn.Sequential:
        """The same function as Conv2d, ReLU, Conv2d, by x = relu(x) - relu(-x)."""
        V, c = self.materialise()
        identity = torch.zeros(self.channels, *self._kernel_shape()[1:]).to(V)
        middle, channels = self.kernel_size // 2, range(self.channels)
        identity[channels, channels, middle, middle] = 1
        entering = torch.cat([V, identity, -identity])
        leaving = torch.cat([-2 * _transposed(V), identity, -identity], dim=1)
        biases = torch.cat([c, c.new_zeros(2 * self.channels)])
        return nn.Sequential(self._plain(entering, biases), nn.ReLU(), self._plain(leaving, None))

    def _plain(self, kernel, bias):
        options = {"padding": self.kernel_size // 2, "padding_mode": self.padding_mode}
        return plain_convolution(kernel, bias, **options)

    def extra_repr(self):
        return (
            f"channels={self.channels}, kernel_size={self.kernel_size}, hidden={self.hidden}, "
            f"padding_mode={self.padding_mode!r}"
        )


def _transposed(kernel):
    """The kernel of the transpose of a convolution that keeps the size."""
    return kernel.flip(2, 3).transpose(0, 1)


def _constant(layer, margin):
    """max(1, 2 t - 1) with a bound t on |V|^2: the eigenvalues of I - 2 V'DV are in [1 - 2 t, 1].

    t is the largest row sum of |VV'|, weighed by q T^(-1/2), or by any other positive numbers.
    """
    with torch.no_grad():
        V = as_float64(layer.materialise()[0], "a weight")
        weight, log_q = as_float64(layer.weight, "weight"), as_float64(layer.log_q, "log_q")
        _, q, roots = layer._rooted(weight, log_q)
        products = layer.gram(V) + margin * gamma(V[0].numel() + 4 * V[0, 0].numel() + 4) * layer.gram(
            V.abs()
        )
        largest = (products @ (q / roots) / (q / roots)).max().item()
    squared = math.nextafter(largest * (1 + margin * gamma(len(V) + 8)), math.inf)
    return 1.0 if squared <= 1 else math.nextafter(2 * squared - 1, math.inf)


@refusal.register(_SLL)
def _refuse(layer):
    shape = (layer.hidden, layer.features) if isinstance(layer, SLLLinear) else layer._kernel_shape()
    if isinstance(layer, SLLConv2d):
        if layer.padding_mode not in PADDINGS:
            return (
                f"has padding_mode={layer.padding_mode!r}: set it to one of {', '.join(map(repr, PADDINGS))}."
            )
        if layer.kernel_size % 2 == 0:
            return f"has kernel_size={layer.kernel_size}, which is even: build it with an odd one."
    return refuse_shapes(layer, weight=shape, log_q=(layer.hidden,), bias=(layer.hidden,))


@output_shape.register(SLLLinear)
def _linear_output_shape(layer, input_shape):
    require_features(layer, input_shape, layer.features)
    return input_shape


@output_shape.register(SLLConv2d)
def _convolution_output_shape(layer, input_shape):
    least = max(1, layer.kernel_size // 2) if layer.padding_mode == "circular" else 1
    if len(input_shape) != 3 or input_shape[0] != layer.channels or min(input_shape[1:]) < least:
        takes = f"{layer.channels} channels of images of at least {least} by {least} pixels"
        raise not_taken(layer, input_shape, takes)
    return input_shape


@residual.register(SLLLinear)
def _linear_residual(layer):
    V, c = layer.materialise()
    return nn.Identity(), nn.Sequential(plain_linear(V, c), nn.ReLU(), plain_linear(-2 * V.T, None))


@residual.register(SLLConv2d)
def _convolution_residual(layer):
    V, c = layer.materialise()
    leaving = layer._plain(-2 * _transposed(V), None)
    return nn.Identity(), nn.Sequential(layer._plain(V, c), nn.ReLU(), leaving)


for _kind in (SLLLinear, SLLConv2d):
    register_block(_kind, _constant)
    enclose.register(_kind, enclose_residual)
