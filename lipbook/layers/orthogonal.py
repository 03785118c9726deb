"""`OrthogonalLinear`: a linear layer whose weight is orthogonal whatever its parameters are.

Chapter: layers/orthogonal-layers.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipbook.contracts.definitions import output_shape
from lipbook.contracts.guard import refusal
from lipbook.contracts.spatial import not_taken
from lipbook.contracts.structures import checked_count
from lipbook.layers import maps
from lipbook.layers.parametrised import Parametrised, register_plain, wide

MAPS = {"cayley": maps.cayley, "bjorck": maps.bjorck, "qr": maps.qr, "cholesky": maps.cholesky}
METHODS = (*MAPS, "bro")


class OrthogonalLinear(Parametrised):
    """x W' + b, where W has orthonormal columns, or orthonormal rows if it is wide.

    Args:
        in_features, out_features: the sizes of W, (out_features, in_features).
        bias: whether to add b.
        method: "cayley", "bjorck", "qr", "cholesky" (W within its ridge of orthogonal) or "bro" (a block
            reflector of the larger size, cut to its first rows or columns).

    The state of a layer is its parameters alone: load it into one with the same method.

    Attributes:
        free: the free parameter, (out_features, in_features); for "bro" (larger size, half of it).
        bias: (out_features,) or None.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, another method.

    Source: `lipbook.layers.maps`. Chapter: layers/orthogonal-layers.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, method: str = "cayley"):
        super().__init__()
        self.in_features = checked_count(in_features, "in_features", least=1)
        self.out_features = checked_count(out_features, "out_features", least=1)
        self.method = checked_choice(method, "method", METHODS)
        self.free = nn.Parameter(torch.empty(self._free_shape()))
        self.bias = nn.Parameter(torch.empty(out_features)) if checked_flag(bias, "bias") else None
        self.reset_parameters()

    def reset_parameters(self):
        """A weight that is a random orthogonal matrix; a bias as in `nn.Linear`."""
        if self.method in ("bjorck", "qr", "cholesky"):
            nn.init.orthogonal_(self.free)
        else:
            nn.init.xavier_normal_(self.free)
        if self.bias is not None:
            reset_bias(self.bias, self.in_features)

    def _free_shape(self):
        larger = max(self.in_features, self.out_features)
        if self.method == "bro":
            return larger, max(1, larger // 2)
        return self.out_features, self.in_features

    @property
    def weight(self) -> Tensor:
        """The materialised weight W, (out_features, in_features), anew each time. Set `free` to change it."""
        return self.materialise()[0]

    def compute(self) -> tuple[Tensor]:
        """W from the free parameter."""
        free = wide(self.free)
        if self.method == "bro":
            return (maps.block_reflector(free)[: self.out_features, : self.in_features],)
        return (MAPS[self.method](free),)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, ..., in_features) to (batch, ..., out_features)."""
        return F.linear(inputs, self.weights()[0], self.bias)

    def plain(self, input_shape: tuple[int, ...] | None = None) -> nn.Linear:
        """The same layer as an `nn.Linear`."""
        return plain_linear(self.materialise()[0], self.bias)

    def extra_repr(self):
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, method={self.method!r}"
        )


def checked_choice(value: str, name: str, choices: tuple[str, ...]) -> str:
    """`value` if it is one of the choices; otherwise a ValueError."""
    if value not in choices:
        told = ", ".join(f'"{choice}"' for choice in choices[:-1])
        raise ValueError(f'{name} must be {told} or "{choices[-1]}", got {value!r}.')
    return value


def checked_flag(value: bool, name: str) -> bool:
    """`value` if it is True or False; otherwise a TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}.")
    return value


def checked_odd(number: int, name: str) -> int:
    """`number` if it is an odd positive int; otherwise a TypeError or a ValueError."""
    if checked_count(number, name, least=1) % 2 == 0:
        raise ValueError(f"{name} must be odd, got {number}: the image keeps its size.")
    return number


def reset_bias(bias: Tensor, inputs: int) -> None:
    """Torch's own initial bias of a layer whose outputs read so many numbers each."""
    nn.init.uniform_(bias, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))


def plain_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """An `nn.Linear` that holds copies of a weight and a bias."""
    return _filled(nn.Linear, weight.shape[::-1], weight, bias)


def plain_convolution(kernel: Tensor, bias: Tensor | None, **options) -> nn.Conv2d:
    """An `nn.Conv2d` with these options that holds copies of a kernel and a bias."""
    outputs, inputs, *sizes = kernel.shape
    return _filled(nn.Conv2d, (inputs, outputs, tuple(sizes)), kernel, bias, **options)


def _filled(kind, sizes, weight, bias, **options):
    layer = nn.utils.skip_init(
        kind, *sizes, bias=bias is not None, dtype=weight.dtype, device=weight.device, **options
    )
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def refuse_shapes(layer: nn.Module, **expected: tuple[int, ...]) -> str | None:
    """Why a layer is refused whose parameters have not the shapes that its attributes tell, or None."""
    for name, shape in expected.items():
        found = tuple(getattr(layer, name).shape)
        if found != shape:
            return f"has {name} of shape {found}, and its attributes ask for {shape}: build it anew."
    return None


def require_features(layer: nn.Module, shape: tuple[int, ...], features: int) -> None:
    """Raise a ValueError unless a sample of this shape has so many numbers in the last dimension."""
    if shape[-1] != features:
        raise not_taken(layer, shape, f"{features} numbers in the last dimension")


@refusal.register(OrthogonalLinear)
def _refuse(layer):
    if layer.method not in METHODS:
        return f"has method={layer.method!r}, which it could not be built with."
    return refuse_shapes(layer, free=layer._free_shape())


@output_shape.register(OrthogonalLinear)
def _output_shape(layer, input_shape):
    require_features(layer, input_shape, layer.in_features)
    return (*input_shape[:-1], layer.out_features)


register_plain(OrthogonalLinear)
