"""`AOLLinear` and `AOLConv2d`: almost orthogonal layers, a free weight divided by what bounds its norm.

Source: Prach and Lampert, "Almost-orthogonal layers for efficient general-purpose Lipschitz networks", ECCV
2022, Theorem 1 (dense) and its convolutional form. There each input is scaled; here the smaller side is.

Chapter: layers/direct-parameterizations.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipbook.contracts.definitions import output_shape
from lipbook.contracts.guard import refusal
from lipbook.contracts.spatial import not_taken
from lipbook.contracts.structures import checked_count
from lipbook.layers.filters import convolve
from lipbook.layers.maps import aol_scale, inverse_root, unit_of
from lipbook.layers.orthogonal import (
    checked_choice,
    checked_flag,
    checked_odd,
    plain_convolution,
    plain_linear,
    refuse_shapes,
    require_features,
    reset_bias,
)
from lipbook.layers.parametrised import Parametrised, register_plain, wide


class AOLLinear(Parametrised):
    """x W' + b, W = V diag(d) of norm at most 1, with ``d_j = (sum_i |V'V|_ij)^(-1/2)``.

    A wide V is scaled row by row instead, by the same formula on its transpose.

    Args:
        in_features, out_features: the sizes of V, (out_features, in_features).
        bias: whether to add b.

    Attributes:
        free: V; bias: (out_features,) or None.

    Raises:
        ValueError, TypeError: sizes that are not positive ints.

    Source: Prach and Lampert, ECCV 2022. Chapter: layers/direct-parameterizations.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.in_features = checked_count(in_features, "in_features", least=1)
        self.out_features = checked_count(out_features, "out_features", least=1)
        self.free = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if checked_flag(bias, "bias") else None
        self.reset_parameters()

    def reset_parameters(self):
        """An orthogonal weight, which is its own scaling; a bias as in `nn.Linear`."""
        nn.init.orthogonal_(self.free)
        if self.bias is not None:
            reset_bias(self.bias, self.in_features)

    @property
    def weight(self) -> Tensor:
        """The materialised weight W, (out_features, in_features)."""
        return self.materialise()[0]

    def compute(self) -> tuple[Tensor]:
        """W from the free parameter."""
        free = wide(self.free)
        if self.out_features < self.in_features:
            return (free * aol_scale(free.mT)[:, None],)
        return (free * aol_scale(free),)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, ..., in_features) to (batch, ..., out_features)."""
        return F.linear(inputs, self.weights()[0], self.bias)

    def plain(self, input_shape: tuple[int, ...] | None = None) -> nn.Linear:
        """The same layer as an `nn.Linear`."""
        return plain_linear(self.materialise()[0], self.bias)

    def extra_repr(self):
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}"


class AOLConv2d(Parametrised):
    """A 'same' convolution of norm at most 1 with the kernel K_oi(t) = V_oi(t) d_i, and a bias.

    ``d_i = (sum_j sum_t |(V'V)_ij(t)|)^(-1/2)``, where V'V is the kernel of the convolution with V followed
    by its adjoint. Its matrix on an image has rows with these entries, some of them added up where it wraps
    around, or left out where it ends in zeros: the sums of absolute values are no larger. With more channels
    in than out, K_oi(t) = d_o V_oi(t) by the same formula on the adjoint.

    Args:
        in_channels, out_channels: any.
        kernel_size: odd.
        padding_mode: "circular" or "zeros".
        bias: whether to add one number a channel.

    Attributes:
        free: V, (out_channels, in_channels, k, k); bias: (out_channels,) or None.

    Raises:
        ValueError, TypeError: options that are not these; in the forward pass, an image that the layer does
            not take.

    Source: Prach and Lampert, ECCV 2022. Chapter: layers/direct-parameterizations.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        padding_mode: str = "circular",
        bias: bool = True,
    ):
        super().__init__()
        self.in_channels = checked_count(in_channels, "in_channels", least=1)
        self.out_channels = checked_count(out_channels, "out_channels", least=1)
        self.kernel_size = checked_odd(kernel_size, "kernel_size")
        self.padding_mode = checked_choice(padding_mode, "padding_mode", ("circular", "zeros"))
        self.free = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if checked_flag(bias, "bias") else None
        self.reset_parameters()

    def reset_parameters(self):
        """An orthogonal matrix at the central tap, and normal entries that are small together, which keep the
        Gram matrix from zeros, where an absolute value has no derivative; a bias as in `nn.Conv2d`."""
        nn.init.normal_(self.free, std=0.1 / self.free[0].numel())
        centre = self.free[:, :, self.kernel_size // 2, self.kernel_size // 2]
        with torch.no_grad():
            centre.add_(nn.init.orthogonal_(torch.empty_like(centre)))
        if self.bias is not None:
            reset_bias(self.bias, self.in_channels * self.kernel_size**2)

    @property
    def weight(self) -> Tensor:
        """The materialised kernel K, (out_channels, in_channels, k, k)."""
        return self.materialise()[0]

    def compute(self) -> tuple[Tensor]:
        """K from the free parameter."""
        free = wide(self.free)
        unit = unit_of(free, (0, 1, 2, 3))
        scaled = free / unit
        if self.out_channels < self.in_channels:
            return (scaled * inverse_root(gram_sums(scaled))[:, None, None, None],)
        return (scaled * inverse_root(gram_sums(scaled.transpose(0, 1)))[:, None, None],)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, in_channels, h, w) to (batch, out_channels, h, w)."""
        _convolution_output_shape(self, tuple(inputs.shape[1:]))
        return convolve(inputs, self.weights()[0], self.padding_mode, self.bias)

    def plain(self, input_shape: tuple[int, ...] | None = None) -> nn.Conv2d:
        """The same layer as an `nn.Conv2d`."""
        options = {"padding": self.kernel_size // 2, "padding_mode": self.padding_mode}
        return plain_convolution(self.materialise()[0], self.bias, **options)

    def extra_repr(self):
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"padding_mode={self.padding_mode!r}, bias={self.bias is not None}"
        )


def gram_sums(kernel: Tensor) -> Tensor:
    """sum_j sum_t |(K K*)_ij(t)| of the kernel of a convolution after its adjoint; (c, b, k, k) to (c,)."""
    return F.conv2d(kernel, kernel, padding=kernel.shape[-1] - 1).abs().sum((1, 2, 3))


@refusal.register(AOLLinear)
def _refuse_linear(layer):
    return refuse_shapes(layer, free=(layer.out_features, layer.in_features))


@refusal.register(AOLConv2d)
def _refuse_convolution(layer):
    if layer.padding_mode not in ("circular", "zeros"):
        return f"has padding_mode={layer.padding_mode!r}, which it could not be built with."
    size = layer.kernel_size
    return refuse_shapes(layer, free=(layer.out_channels, layer.in_channels, size, size))


@output_shape.register(AOLLinear)
def _linear_output_shape(layer, input_shape):
    require_features(layer, input_shape, layer.in_features)
    return (*input_shape[:-1], layer.out_features)


@output_shape.register(AOLConv2d)
def _convolution_output_shape(layer, input_shape):
    if len(input_shape) != 3 or input_shape[0] != layer.in_channels:
        raise not_taken(layer, input_shape, f"{layer.in_channels} channels of an image")
    if layer.padding_mode == "circular" and min(input_shape[1:]) < layer.kernel_size // 2:
        raise not_taken(layer, input_shape, f"images of at least {layer.kernel_size // 2} pixels a side")
    return (layer.out_channels, *input_shape[1:])


register_plain(AOLLinear)
register_plain(AOLConv2d)
