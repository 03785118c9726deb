"""Fixed features of an image that no data has touched, each a 1-Lipschitz layer: what costs no privacy.

Both maps are a linear filter bank, a rectification (positive and negative parts, or moduli), averages over
cells, and a contrast that is normalised within each cell. Each step moves no two points apart in l_2: the
filters and the averages by their norms, which are certified; t -> (relu(t), relu(-t)) and the modulus of a
complex number plainly; v -> c v / (c + |v|) because its Jacobian has the eigenvalues c / (c + |v|) and, along
v, c^2 / (c + |v|)^2; and taking the mean off is a projection.

Sources: Dalal and Triggs, "Histograms of oriented gradients for human detection", CVPR 2005. Mallat, "Group
invariant scattering", Comm. Pure Appl. Math. 65, 2012. Bruna and Mallat, "Invariant scattering convolution
networks", IEEE PAMI 35, 2013. For private learning: Tramer and Boneh, "Differentially private learning needs
better features (or much more data)", ICLR 2021.

Chapter: privacy/without-clipping.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipbook.bound import UnsupportedLayerError, as_float64
from lipbook.contracts.certificates import product_up
from lipbook.contracts.definitions import lipschitz, output_shape
from lipbook.contracts.guard import finite_attribute, name_of, refusal
from lipbook.contracts.rounding import enclose, enclose_product
from lipbook.contracts.spatial import not_taken
from lipbook.contracts.stock import recomputed
from lipbook.contracts.structures import checked_count
from lipbook.layers.orthogonal import plain_convolution, refuse_shapes
from lipbook.norms.convolution import conv_norm
from lipbook.norms.spectral import UNIT_ROUNDOFF, gamma, spectral_norm

_DOWN = 1 - 2.0**-20  # of what is stored: its rounding to float32 must not lift a norm above 1
_FFT = 2.0**-40  # of a transform's norm: what a float64 FFT of at most 2^20 numbers may be off
_UNDERFLOW = 2.0**-1000


class _Pooled(nn.Module):
    """What both maps share: averages over cells, the contrast in each cell, and the mean of a sample.

    A subclass gives `channels`, (batch, 1, size, size) to (batch, channels, size, size).
    """

    def __init__(self, size, cells, contrast):
        super().__init__()
        self.size = checked_count(size, "size", least=1)
        self.contrast = _checked_contrast(contrast)
        windows = _unit(_windows(size, checked_count(cells, "cells", least=1)))
        self.register_buffer("windows", windows.to(torch.get_default_dtype()))

    def channels(self, inputs: Tensor) -> Tensor:
        """What is averaged over the cells."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, 1, size, size) to (batch, channels * cells^2), the cells of one channel side by side."""
        _require_image(self, tuple(inputs.shape[1:]))
        averages = self.channels(inputs).flatten(2) @ self.windows.mT
        sizes = torch.linalg.vector_norm(averages, dim=1, keepdim=True)
        contrasts = (averages * (self.contrast / (self.contrast + sizes))).flatten(1)
        return contrasts - contrasts.mean(1, keepdim=True)


class OrientedGradients(_Pooled):
    """Oriented derivatives, their positive and negative parts, averaged over cells: 1-Lipschitz.

    The derivative in the direction a_k = (cos(pi k / K), sin(pi k / K)) is a central difference, with zeros
    around the image; its two parts speak of a_k and of -a_k. One cell of the 2K averages is a vector v, from
    which c v / (c + ``|v|``) and then the mean of the whole sample is taken. The kernels and the averages are
    divided by their norms, so that the constant 1 is that of every step.

    Args:
        size: of the square image.
        orientations: K, the directions in a half turn.
        cells: along one side of the image; a pixel on a border is shared out by area.
        contrast: c, in the unit of the averages. A small one keeps hardly more than the directions of the
            cells, and a large one leaves the averages as they are.

    Attributes:
        kernels: (orientations, 1, 3, 3).
        windows: (cells^2, size^2), the averages as a matrix.

    Raises:
        ValueError, TypeError: counts that are not positive ints, a contrast that is not positive and finite;
            in the forward pass, images of another shape.

    Source: the module's. Chapter: privacy/without-clipping.
    """

    def __init__(self, size: int = 28, orientations: int = 4, cells: int = 7, contrast: float = 0.1):
        super().__init__(size, cells, contrast)
        self.orientations = checked_count(orientations, "orientations", least=1)
        kernels = _derivatives(orientations)
        kernels = kernels * (_DOWN / conv_norm(kernels, None, padding="zeros").value)
        self.register_buffer("kernels", kernels.to(torch.get_default_dtype()))

    def channels(self, inputs: Tensor) -> Tensor:
        """(batch, 2 orientations, size, size), all at least 0."""
        derivatives = F.conv2d(inputs, self.kernels, padding=1)
        return torch.cat((derivatives.relu(), (-derivatives).relu()), dim=1)

    def extra_repr(self):
        cells = math.isqrt(len(self.windows))
        counts = f"size={self.size}, orientations={self.orientations}"
        return f"{counts}, {cells}x{cells} cells, contrast={self.contrast}"


class Scattering(_Pooled):
    """Moduli of wavelet coefficients, averaged over cells: a scattering transform of order 1, 1-Lipschitz.

    A Morlet wavelet psi of scale j and direction pi l / L is a Gaussian, of width 0.8 2^j along the wave and
    L / 4 times that across, times a wave of the frequency 3 pi / 4 2^-j less what makes its mean 0. They act
    by multiplication in frequency on the image with a border of two zeros, which wraps around; the border is
    cut off again. With the filters divided so that

        sum over psi of (``|psi^(w)|^2 + |psi^(-w)|^2``) / 2 <= 1 at every frequency w,

    x -> (x * psi) over all psi keeps or shortens every real x (Mallat, 2012, equation 2.6, without the low
    pass), and so does the rest, as in `OrientedGradients`.

    Args:
        size: of the square image.
        scales: j = 0, ..., scales - 1.
        orientations: L, the directions in a half turn.
        cells, contrast: as in `OrientedGradients`.

    Attributes:
        filters: (scales * orientations, size + 4, size + 4), real, the wavelets in frequency.
        windows: (cells^2, size^2), the averages as a matrix.

    Raises:
        ValueError, TypeError: as `OrientedGradients`.

    Source: the module's. Chapter: privacy/without-clipping.
    """

    def __init__(
        self,
        size: int = 28,
        scales: int = 2,
        orientations: int = 8,
        cells: int = 7,
        contrast: float = 0.1,
    ):
        super().__init__(size, cells, contrast)
        self.scales = checked_count(scales, "scales", least=1)
        self.orientations = checked_count(orientations, "orientations", least=1)
        filters = _wavelets(size + 2 * _BORDER, scales, orientations)
        filters = filters * (_DOWN / _littlewood_paley(filters))
        self.register_buffer("filters", filters.to(torch.get_default_dtype()))

    def channels(self, inputs: Tensor) -> Tensor:
        """(batch, scales * orientations, size, size), all at least 0."""
        spectrum = torch.fft.fft2(F.pad(inputs, (_BORDER,) * 4))
        moduli = torch.fft.ifft2(spectrum * self.filters).abs()
        return moduli[..., _BORDER:-_BORDER, _BORDER:-_BORDER]

    def extra_repr(self):
        cells = math.isqrt(len(self.windows))
        counts = f"size={self.size}, scales={self.scales}, orientations={self.orientations}"
        return f"{counts}, {cells}x{cells} cells, contrast={self.contrast}"


_BORDER = 2


def _checked_contrast(contrast):
    if isinstance(contrast, bool) or not isinstance(contrast, (int, float)):
        raise TypeError(f"contrast must be a number, got {type(contrast).__name__}.")
    if not 0 < contrast < math.inf:
        raise ValueError(f"contrast must be positive and finite, got {contrast}.")
    return float(contrast)


def _windows(size, cells):
    """The share of each pixel in each cell, (cells^2, size^2); a cell is size / cells wide, and high."""
    if cells > size:
        raise ValueError(f"cells must be at most the size of the image, {size}, got {cells}.")
    pixels = torch.arange(size, dtype=torch.float64, device="cpu")
    edges = torch.arange(cells + 1, dtype=torch.float64, device="cpu")[:, None] * size / cells
    overlaps = (torch.minimum(edges[1:], pixels + 1) - torch.maximum(edges[:-1], pixels)).clamp(min=0)
    return torch.kron(overlaps, overlaps)


def _unit(matrix):
    return matrix * (_DOWN / spectral_norm(matrix).value)


def _derivatives(orientations):
    """Central differences along the directions, (orientations, 1, 3, 3)."""
    angles = torch.arange(orientations, dtype=torch.float64, device="cpu") * math.pi / orientations
    kernels = torch.zeros(orientations, 1, 3, 3, dtype=torch.float64, device="cpu")
    kernels[:, 0, 1, 2], kernels[:, 0, 2, 1] = angles.cos(), angles.sin()
    return kernels - kernels.flip(2, 3)


def _wavelets(period, scales, orientations):
    """Morlet wavelets in frequency, real, (scales * orientations, period, period)."""
    across = torch.arange(-2 * period, 2 * period, dtype=torch.float64, device="cpu")
    y, x = torch.meshgrid(across, across, indexing="ij")
    found = []
    for j in range(scales):
        for direction in range(orientations):
            angle = math.pi * direction / orientations
            along, beside = (
                x * math.cos(angle) + y * math.sin(angle),
                y * math.cos(angle) - x * math.sin(angle),
            )
            squares = along**2 + (4 / orientations * beside) ** 2
            gaussian = torch.exp(-squares / (2 * (0.8 * 2**j) ** 2))
            phase = 3 * math.pi / 4 / 2**j * along
            envelope, real, imaginary = (
                image.reshape(4, period, 4, period).sum((0, 2))  # wraps around
                for image in (gaussian, gaussian * phase.cos(), gaussian * phase.sin())
            )
            real = real - real.sum() / envelope.sum() * envelope
            found.append(torch.fft.fft2(torch.complex(real, imaginary)).real)
    wavelets = torch.stack(found)
    return wavelets / wavelets.abs().amax((1, 2), keepdim=True)


def _littlewood_paley(filters):
    """The root of the largest sum over filters of (f(w)^2 + f(-w)^2) / 2, rounded up."""
    squares = filters.square().sum(0)
    mirrored = squares.flip(0, 1).roll((1, 1), (0, 1))
    largest = ((squares + mirrored) / 2).max().item()
    rounding = 1 + 2 * gamma(len(filters) + 4)
    return math.nextafter(math.sqrt(largest * rounding + _UNDERFLOW), math.inf) if largest > 0 else 0.0


def _require_image(layer, shape):
    if shape != (1, layer.size, layer.size):
        raise not_taken(layer, shape, f"images of one channel and {layer.size} x {layer.size} pixels")


def _channels_of(layer):
    return 2 * len(layer.kernels) if isinstance(layer, OrientedGradients) else len(layer.filters)


@output_shape.register(OrientedGradients)
@output_shape.register(Scattering)
def _output_shape(layer, input_shape):
    _require_image(layer, input_shape)
    return (_channels_of(layer) * len(layer.windows),)


def _refuse_contrast(layer, **shapes):
    if not 0 < finite_attribute(layer, "contrast"):
        return f"has contrast={layer.contrast}: set it to a positive number."
    return refuse_shapes(layer, windows=(len(layer.windows), layer.size**2), **shapes)


@refusal.register(OrientedGradients)
def _refuse_gradients(layer):
    return _refuse_contrast(layer, kernels=(layer.orientations, 1, 3, 3))


@refusal.register(Scattering)
def _refuse_scattering(layer):
    period = layer.size + 2 * _BORDER
    return _refuse_contrast(layer, filters=(layer.scales * layer.orientations, period, period))


def _bound(layer, bank, norm, input_shape):
    """The product of the norms of the filters and of the averages: every other step has the constant 1."""
    if norm != 2:
        raise UnsupportedLayerError(
            f"{name_of(layer)} has a constant in norm 2 only: what is known of its contrast in norm {norm} "
            "grows with the number of channels. Use norm=2."
        )
    if input_shape is not None:
        _require_image(layer, input_shape)
    value = product_up([bank, spectral_norm(as_float64(layer.windows, "windows")).value])
    return recomputed(value, norm, input_shape, "product of the filters' and the averages' norms")


@lipschitz.register(OrientedGradients)
def _gradients_lipschitz(layer, norm, input_shape):
    kernels = as_float64(layer.kernels, "kernels")
    return _bound(layer, conv_norm(kernels, None, padding="zeros").value, norm, input_shape)


@lipschitz.register(Scattering)
def _scattering_lipschitz(layer, norm, input_shape):
    return _bound(layer, _littlewood_paley(as_float64(layer.filters, "filters")), norm, input_shape)


@enclose.register(OrientedGradients)
def _enclose_gradients(layer, values, errors):
    _require_image(layer, tuple(values.shape[1:]))
    convolution = plain_convolution(layer.kernels, None, padding=1)
    derivatives, errors = enclose(convolution, values, errors)
    channels = torch.cat((derivatives.relu(), (-derivatives).relu()), dim=1)
    return _enclose_rest(layer, channels, torch.cat((errors, errors), dim=1))


@enclose.register(Scattering)
def _enclose_scattering(layer, values, errors):
    """No entry of x * psi moves by more than the norms of psi and of what x moves by.

    Not proved here: a float64 FFT is within 2^-40 of the true transform, relatively and in norm (Higham,
    section 24.1, has some multiple of u log2 n, which is far less).
    """
    _require_image(layer, tuple(values.shape[1:]))
    filters = as_float64(layer.filters, "filters")
    spectrum = torch.fft.fft2(F.pad(values, (_BORDER,) * 4))
    moduli = torch.fft.ifft2(spectrum * filters).abs()[..., _BORDER:-_BORDER, _BORDER:-_BORDER]
    lengths = torch.linalg.vector_norm(filters, dim=(1, 2)) / filters.shape[-1]
    moved = _length(errors) * lengths + 4 * _FFT * _length(values) * filters.abs().amax((1, 2))
    error = (moved * (1 + _FFT))[:, :, None, None].expand_as(moduli) + _UNDERFLOW
    return _enclose_rest(layer, moduli, error)


def _length(images):
    return torch.linalg.vector_norm(images.flatten(1), dim=1, keepdim=True)


def _enclose_rest(layer, channels, errors):
    """The averages, the contrast, which moves no cell by more than the length of its errors, and the mean."""
    windows = as_float64(layer.windows, "windows")
    averages, errors = enclose_product(
        channels.flatten(2), errors.flatten(2), windows, windows.new_zeros(len(windows))
    )
    rounding = 2 * gamma(averages.shape[1] + 8)
    sizes = torch.linalg.vector_norm(averages, dim=1, keepdim=True)
    contrasts = averages * (layer.contrast / (layer.contrast + sizes))
    moved = torch.linalg.vector_norm(errors, dim=1, keepdim=True)
    errors = (moved + rounding * contrasts.abs()) * (1 + rounding) + _UNDERFLOW
    contrasts, errors = contrasts.flatten(1), errors.flatten(1)
    numbers = contrasts.shape[1]
    carried = errors + (errors + 2 * gamma(numbers + 4) * contrasts.abs()).mean(1, keepdim=True)
    images = contrasts - contrasts.mean(1, keepdim=True)
    return images, (carried + UNIT_ROUNDOFF * images.abs()) * (1 + 2 * gamma(numbers + 16))
