"""`OrthogonalConv2d`: a convolution that is orthogonal, or a contraction, whatever its parameters are.

"bcop" and "patch" compute a kernel, and are convolutions of torch. "cayley", "bro" and "soc" compute a matrix
for each frequency of the image, or for "soc" with zeros around it a Taylor polynomial of a convolution: their
contracts stand here.

One assumption is not proved: in float64, torch's Fourier transforms and the Taylor polynomial lose at most
2^-36 of the Euclidean norm of what they are given. The tests compare with matrices that are written out.

Chapter: layers/orthogonal-convolutions.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipbook.bound import Bound, UnsupportedLayerError, as_float64
from lipbook.contracts.certificates import RecomputedCertificate
from lipbook.contracts.definitions import affine, guarded, lipschitz, numel, output_shape
from lipbook.contracts.guard import name_of, refusal
from lipbook.contracts.rounding import enclose
from lipbook.contracts.spatial import not_taken, require_writable
from lipbook.contracts.structures import checked_count
from lipbook.layers import filters, maps
from lipbook.layers.orthogonal import (
    checked_choice,
    checked_flag,
    plain_convolution,
    plain_linear,
    refuse_shapes,
    reset_bias,
)
from lipbook.layers.parametrised import Parametrised, plain_lipschitz, wide
from lipbook.norms.convolution import conv_norm
from lipbook.norms.rows import row_sum_norm
from lipbook.norms.spectral import spectral_norm

METHODS = ("bcop", "patch", "soc", "cayley", "bro")
KERNELS = ("bcop", "patch")
FREQUENCIES = ("soc", "cayley", "bro")  # where the image wraps around
_LOST = 2.0**-36
_CONTRACTS_UP_TO = 3.3  # below theta_12 = 3.37, where the polynomial of degree 12 is a contraction
_LARGEST = 4096  # inputs of an operator that is written out


class OrthogonalConv2d(Parametrised):
    """A 'same' convolution, strided for "bcop" and "patch", with a bias.

    Args:
        in_channels, out_channels: any for "bcop", "patch", "cayley" and "bro"; equal for "soc".
        kernel_size: of the free kernel, odd unless it is strided. What "soc", "cayley" and "bro" apply
            reaches farther, "cayley" and "bro" around the whole image.
        stride: at most the kernel size for "bcop", equal to it for "patch", 1 otherwise. It must divide the
            image where that wraps around.
        padding_mode: "circular", or "zeros" ("bcop", "soc", "patch", which pads nothing). With zeros "bcop"
            is a contraction, and no longer orthogonal.
        bias: whether to add one number a channel.
        method: "bcop", "patch", "soc", "cayley" or "bro".

    The state of a layer is its parameters alone: load it into one with the same method and padding.

    Attributes:
        free: the free parameter: the kernel ("soc", "cayley"), the kernel of the directions that are
            reflected ("bro"), the last factor as a matrix ("bcop", "patch").
        free_projections: "bcop" only, the other factors.
        bias: (out_channels,) or None.

    Raises:
        ValueError, TypeError: options that do not go together; in the forward pass, an image that the layer
            does not take.

    Source: see `lipbook.layers.filters`; BRO: Lai et al., ICLR 2025. Chapter: layers/orthogonal-convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding_mode: str = "circular",
        bias: bool = True,
        method: str = "bcop",
    ):
        super().__init__()
        self.in_channels = checked_count(in_channels, "in_channels", least=1)
        self.out_channels = checked_count(out_channels, "out_channels", least=1)
        self.kernel_size = checked_count(kernel_size, "kernel_size", least=1)
        self.stride = checked_count(stride, "stride", least=1)
        self.padding_mode = checked_choice(padding_mode, "padding_mode", ("circular", "zeros"))
        self.method = checked_choice(method, "method", METHODS)
        problem = self._conflict()
        if problem:
            raise ValueError(problem)
        for name, shape in self._free_shapes().items():
            setattr(self, name, nn.Parameter(torch.empty(shape)))
        self.bias = nn.Parameter(torch.empty(out_channels)) if checked_flag(bias, "bias") else None
        self.reset_parameters()

    def reset_parameters(self):
        """Free parameters with normal entries; a bias as in `nn.Conv2d`."""
        for name in self._free_shapes():
            free = getattr(self, name)
            if free.ndim == 4:
                nn.init.normal_(free, std=1 / math.sqrt(free[0].numel()))
            else:
                nn.init.normal_(free, std=1 / math.sqrt(free.shape[-1]))
        if self.bias is not None:
            reset_bias(self.bias, self.in_channels * self.kernel_size**2)

    def _conflict(self):
        """Why these options do not go together, or None."""
        k, s, method = self.kernel_size, self.stride, self.method
        if method == "patch" and k != s:
            return f'method "patch" strides by its kernel: got kernel_size={k} and stride={s}.'
        if method == "bcop" and s > k:
            return f'method "bcop" needs a stride of at most kernel_size={k}, got {s}.'
        if method not in KERNELS and s != 1:
            return f'method "{method}" has no stride, got {s}: use "bcop" or "patch".'
        if s == 1 and k % 2 == 0:
            return f"kernel_size must be odd at stride 1, got {k}: the image keeps its size."
        if method in ("cayley", "bro") and self.padding_mode != "circular":
            return f'method "{method}" knows images that wrap around only: use padding_mode="circular".'
        if method == "soc" and self.in_channels != self.out_channels:
            counts = f"{self.in_channels} and {self.out_channels}"
            return f'method "soc" keeps the number of channels, got {counts}: use "bcop".'
        return None

    def _free_shapes(self):
        k, s, larger = self.kernel_size, self.stride, max(self.in_channels, self.out_channels)
        if self.method == "bro":
            return {"free": (larger, max(1, larger // 2), k, k)}
        if self.method not in KERNELS:
            return {"free": (self.out_channels, self.in_channels, k, k)}
        channels = self._inner_channels()
        shapes = {"free": (self.out_channels, channels * s * s)}
        if k > s:
            shapes["free_projections"] = (2 * (k - s), channels, max(1, channels // 2))
        return shapes

    def _inner_channels(self):
        """On which the factors of "bcop" act.

        With at least c_in channels they follow an isometry. If c_out >= channels s^2, the last factor is one
        too; otherwise channels = c_in, and they follow nothing.
        """
        return max(self.in_channels, self.out_channels // self.stride**2)

    @property
    def weight(self) -> Tensor:
        """The materialised kernel, (out_channels, in_channels, k, k), of "bcop" and "patch", anew."""
        if self.method not in KERNELS:
            raise AttributeError(
                f'method "{self.method}" has no kernel of its own: export(model) writes one.'
            )
        return self.materialise()[0]

    def compute(self, *size: int) -> tuple[Tensor]:
        """The kernel, for "soc" with zeros that of A; otherwise a complex matrix for each frequency."""
        free = wide(self.free)
        if self.method in KERNELS:
            channels, s = self._inner_channels(), self.stride
            matrix = maps.cayley(free).reshape(self.out_channels, channels, s, s)
            if self.kernel_size == s:
                return (matrix[:, : self.in_channels],)
            kernel = filters.paraunitary(matrix, wide(self.free_projections))
            return (kernel[:, : self.in_channels],)
        largest = torch.finfo(free.dtype).max ** 0.75
        free = free.clamp(-largest, largest)  # sums over taps stay within the floats
        if self.method == "soc":
            free = filters.skew(free)
        if not self._has_symbols():
            return (free,)
        blocks = filters.symbols(free, size)
        if self.method == "soc":
            return (filters.exponential(blocks),)
        if self.method == "cayley":
            return (maps.cayley(blocks),)
        return (maps.block_reflector(blocks)[:, : self.out_channels, : self.in_channels],)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, in_channels, h, w) to (batch, out_channels, h / stride, w / stride)."""
        _output_shape(self, tuple(inputs.shape[1:]))
        return self._apply_weights(inputs, *self.weights(*self._size(inputs.shape[-2:])), self.bias)

    def _size(self, size):
        """What the weights depend on."""
        return tuple(size) if self._has_symbols() else ()

    def _has_symbols(self):
        return self.method in FREQUENCIES and self.padding_mode == "circular"

    def _padding(self):
        return (self.kernel_size - self.stride + 1) // 2

    def _apply_weights(self, inputs, weight, bias):
        if self.method in KERNELS:
            border = self._padding()
            if self.padding_mode == "circular":
                return F.conv2d(filters.wrap(inputs, border), weight, bias, self.stride)
            return F.conv2d(inputs, weight, bias, self.stride, border)
        if not self._has_symbols():
            images = filters.convolve_exponential(inputs, weight)
        else:
            if inputs.dtype not in (torch.float32, torch.float64):
                raise TypeError(
                    f"method {self.method!r} computes Fourier transforms, in float32 or float64, got "
                    f'{inputs.dtype}: use method "bcop".'
                )
            images = filters.apply_symbols(inputs, weight)
        return images if bias is None else images + bias[:, None, None]

    def plain(self, input_shape: tuple[int, ...] | None = None) -> nn.Module:
        """The same layer in layers of torch: a convolution, or for "soc" with zeros one large matrix.

        Raises:
            ValueError: the layer depends on the size of the image, and input_shape is None.
        """
        if self.method in KERNELS:
            options = {"stride": self.stride, "padding": self._padding(), "padding_mode": self.padding_mode}
            return plain_convolution(self.materialise()[0], self.bias, **options)
        if input_shape is None:
            raise _needs_size(self)
        shape = _output_shape(self, input_shape)
        if self.padding_mode == "zeros":
            matrix = _matrix(self, input_shape).to(self.free)
            bias = None if self.bias is None else self.bias.repeat_interleave(numel(shape[1:]))
            return nn.Sequential(nn.Flatten(), plain_linear(matrix, bias), nn.Unflatten(1, shape))
        response = _response(self, input_shape[1:])
        centre = [(size - 1) // 2 for size in input_shape[1:]]
        kernel = response.flip(2, 3).roll([centre[0] + 1, centre[1] + 1], (2, 3)).to(self.free)
        return plain_convolution(kernel, self.bias, padding="same", padding_mode="circular")

    def extra_repr(self):
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding_mode={self.padding_mode!r}, bias={self.bias is not None}, method={self.method!r}"
        )


def _needs_size(layer):
    return ValueError(
        f'{name_of(layer)} with method="{layer.method}" depends on the size of the image: pass input_shape.'
    )


@refusal.register(OrthogonalConv2d)
def _refuse(layer):
    if layer.method not in METHODS or layer.padding_mode not in ("circular", "zeros"):
        told = f"method={layer.method!r} and padding_mode={layer.padding_mode!r}"
        return f"has {told}, which it could not be built with."
    problem = layer._conflict()
    if problem:
        return f"has attributes that it could not be built with: {problem}"
    if layer._has_symbols() and layer.free.dtype not in (torch.float32, torch.float64):
        return f'has a free parameter of {layer.free.dtype}, and computes in float32 at least: use "bcop".'
    return refuse_shapes(layer, **layer._free_shapes())


@output_shape.register(OrthogonalConv2d)
def _output_shape(layer, input_shape):
    if len(input_shape) != 3 or input_shape[0] != layer.in_channels:
        raise not_taken(layer, input_shape, f"{layer.in_channels} channels of an image")
    k, s, border = layer.kernel_size, layer.stride, layer._padding()
    wraps = layer.padding_mode == "circular"
    if wraps and any(size % s for size in input_shape[1:]):
        raise not_taken(layer, input_shape, f"images whose sides the stride {s} divides")
    least = max(border, 1) if wraps and not layer._has_symbols() else 1
    if min(input_shape[1:]) < max(least, k - 2 * border):
        raise not_taken(layer, input_shape, f"images of at least {max(least, k - 2 * border)} pixels a side")
    return (layer.out_channels, *((size + 2 * border - k) // s + 1 for size in input_shape[1:]))


@lipschitz.register(OrthogonalConv2d)
def _lipschitz(layer, norm, input_shape):
    if input_shape is not None:
        _output_shape(layer, input_shape)
    if layer.method in KERNELS and (norm == math.inf or input_shape or layer.padding_mode == "zeros"):
        return plain_lipschitz(layer, norm, input_shape)
    if layer.method in KERNELS:
        least, method = _norm_on_the_plane, "torus"
    elif norm == math.inf:
        least, method = functools.partial(_row_sums, input_shape=input_shape), "row sums"
    elif not layer._has_symbols():
        least, method = _polynomial_norm, "contraction by its degree"
    else:
        least, method = functools.partial(_blocks_norm, input_shape=input_shape), "largest frequency"
    value = least(layer)
    if value != 1:  # another machine sums in another order
        value = math.nextafter(value * (1 + 2.0**-40), math.inf)
    return Bound(value, "upper", norm=norm, method=method, certificate=RecomputedCertificate(least, norm))


def _require_read_here(layer, input_shape=None, sized=True):
    if guarded(layer, "lipschitz") is not _lipschitz:  # a subclass may have a contract of its own
        raise TypeError(f"{name_of(layer)} is not read as an OrthogonalConv2d.")
    if sized and input_shape is None:
        raise _needs_size(layer)


def _norm_on_the_plane(layer):
    """A bound for every image: a ring that the stride divides has a part of the frequencies of the plane.

    So have the images without padding, of every size together all of them.
    """
    _require_read_here(layer, sized=False)
    with torch.no_grad():
        return conv_norm(layer.materialise()[0], None, layer.stride, padding=0).value


def _polynomial_norm(layer):
    """1, if the skew convolution A is small enough, at every size: the proof of `filters.DEGREE`."""
    _require_read_here(layer, sized=False)
    with torch.no_grad():
        norm = conv_norm(layer.materialise()[0], None).value
    if norm > _CONTRACTS_UP_TO:
        raise UnsupportedLayerError(
            f"{name_of(layer)} has a skew kernel of norm {norm:.6g}: its Taylor polynomial is a contraction "
            f"up to {_CONTRACTS_UP_TO}."
        )
    return 1.0


def _blocks_norm(layer, input_shape):
    """The largest norm of the matrix of a frequency, rounded up.

    A complex matrix X + iY has the norm of the real [X, -Y; Y, X]. Where a frequency is its own negative, the
    inverse transform keeps X alone, whose norm is no larger.
    """
    _require_read_here(layer, input_shape)
    with torch.no_grad():
        blocks = layer.materialise(*input_shape[1:])[0].cpu()
    blocks = torch.cat(
        [torch.cat([blocks.real, -blocks.imag], dim=2), torch.cat([blocks.imag, blocks.real], dim=2)], dim=1
    )
    return max(spectral_norm(block).value for block in blocks)


def _row_sums(layer, input_shape):
    """The largest row sum of the operator, rounded up; each entry is within `_LOST` of the true one."""
    _require_read_here(layer, input_shape)
    value = row_sum_norm(_matrix(layer, input_shape)).value + 2 * _LOST * numel(input_shape)
    return math.nextafter(value, math.inf)


def _matrix(layer, input_shape):
    """The operator written out, (numbers out, numbers in), in float64."""
    if numel(input_shape) > _LARGEST:
        raise UnsupportedLayerError(
            f"{name_of(layer)} would be written out for {numel(input_shape)} inputs, more than {_LARGEST}: "
            "use a smaller image, norm 2, or another method."
        )
    require_writable(layer, numel(_output_shape(layer, input_shape)), numel(input_shape))
    identity = torch.eye(numel(input_shape), dtype=torch.float64, device="cpu")
    return _in_double(layer, identity.unflatten(1, input_shape)).flatten(1).T


def _response(layer, size):
    """What an impulse at the first pixel gives, (c_out, c_in, h, w), in float64."""
    impulses = torch.zeros(layer.in_channels, layer.in_channels, *size, dtype=torch.float64, device="cpu")
    impulses[:, :, 0, 0] = torch.eye(layer.in_channels, dtype=torch.float64, device="cpu")
    return _in_double(layer, impulses).transpose(0, 1)


def _in_double(layer, batch):
    """The linear part of the layer on a batch in float64, with its weights as they are materialised."""
    with torch.no_grad():
        weight = layer.materialise(*layer._size(batch.shape[-2:]))[0].cpu()
        dtype = torch.complex128 if weight.is_complex() else torch.float64
        return layer._apply_weights(batch, weight.to(dtype), None)


@affine.register(OrthogonalConv2d)
def _affine(layer, input_shape):
    if layer.method in KERNELS:
        return affine(layer.plain(), input_shape)
    raise UnsupportedLayerError(
        f'{name_of(layer)} with method="{layer.method}" has no affine contract, as its matrix is known up to '
        "rounding only: read lipbook.layers.export(model, input_shape), which holds that matrix rounded."
    )


@enclose.register(OrthogonalConv2d)
def _enclose(layer, values, errors):
    """Without a kernel: linear of a norm that is proved, no output moves farther than the errors together."""
    if layer.method in KERNELS:
        return enclose(layer.plain(), values, errors)
    shape = tuple(values.shape[1:])
    norm = lipschitz(layer, 2, shape).value
    images = _in_double(layer, values)
    bias = torch.zeros(layer.out_channels, dtype=torch.float64, device="cpu")
    if layer.bias is not None:
        bias = as_float64(layer.bias, "bias")
    bias = bias[:, None, None]
    moves = norm * _lengths(errors) + _LOST * _lengths(values)
    error = (moves[:, None, None, None] + _LOST * bias.abs()) * (1 + _LOST) + 2.0**-1000
    return images + bias, error.expand_as(images)


def _lengths(batch):
    """The Euclidean norm of each sample, of entries whose squares may be beyond the floats."""
    flat = batch.flatten(1)
    largest = flat.abs().amax(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
    finite = torch.where(torch.isinf(largest), 1.0, largest)
    return largest * (flat / finite[:, None]).norm(dim=1)
