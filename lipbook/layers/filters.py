"""Orthogonal convolutions as functions of free kernels: block convolution, per-frequency maps, exponential.

Sources: `paraunitary` (BCOP): Li et al., NeurIPS 2019, after Kautsky and Turcajova, 1994; with a stride
Boissin et al., ICML 2025. `symbols`: Trockman and Kolter, ICLR 2021. `exponential` (SOC): Singla and Feizi,
ICML 2021.

Chapter: layers/orthogonal-convolutions.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lipbook.layers.maps import projection

DEGREE = 12
REACH = math.pi  # the Taylor polynomial of degree 12 is a contraction up to |A| = 3.37


def paraunitary(matrix: Tensor, free: Tensor) -> Tensor:
    """An orthogonal kernel from a matrix with orthonormal rows or columns and from free projections.

    Each pair of projections P makes two factors [P, I - P], one along each axis. At the frequency w a factor
    is P + (I - P) e^{iw}, of norm at most 1 for eigenvalues of P in [0, 1], and unitary for those 0 and 1.
    The kernel is the block convolution of all of them, followed by the matrix.

    Args:
        matrix: (c_out, c, s, s), the last factor, which strides by s.
        free: (2 count, c, rank), the free matrices of the projections.

    Returns:
        (c_out, c, s + count, s + count).
    """
    kernel = matrix.permute(2, 3, 0, 1)
    for k, image in enumerate(projection(free)):
        kept, axis = kernel @ image, k % 2
        nothing = torch.zeros_like(kept.narrow(axis, 0, 1))
        kernel = torch.cat([kept, nothing], axis) + torch.cat([nothing, kernel - kept], axis)
    return kernel.permute(2, 3, 0, 1)


def symbols(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """The matrix of a circular convolution at each frequency of a real image of this size.

    (c_out, c_in, k_h, k_w), k odd, centred, to (h (w // 2 + 1), c_out, c_in), complex: sum_t K_t e^{i<w, t>},
    in the order of `torch.fft.rfft2`.
    """
    waves = [_waves(n, k, kernel) for n, k in zip(size, kernel.shape[2:])]
    waves[1] = waves[1][: size[1] // 2 + 1]
    table = torch.einsum("ax,by->abxy", *waves).flatten(2).flatten(0, 1)
    taps = kernel.flatten(2).permute(2, 0, 1)
    return (table @ taps.flatten(1).to(table.dtype)).unflatten(1, taps.shape[1:])


def _waves(size, taps, like):
    """e^{i w t} for the frequencies of an axis and its centred taps, (size, taps)."""
    turns = torch.outer(torch.arange(size), torch.arange(taps) - taps // 2) % size
    angles = turns.double() * (2 * math.pi / size)
    complex_dtype = torch.complex128 if like.dtype == torch.float64 else torch.complex64
    return torch.polar(torch.ones_like(angles), angles).to(device=like.device, dtype=complex_dtype)


def apply_symbols(inputs: Tensor, blocks: Tensor) -> Tensor:
    """The circular convolution of a batch (batch, c_in, h, w) by its matrix at each frequency."""
    size = inputs.shape[-2:]
    if len(inputs) == 0:  # which the Fourier transforms refuse
        return inputs.new_zeros(0, blocks.shape[-2], *size)
    spectrum = torch.fft.rfft2(inputs).permute(2, 3, 0, 1)
    images = spectrum @ blocks.unflatten(0, spectrum.shape[:2]).mT
    return torch.fft.irfft2(images.permute(2, 3, 0, 1), s=size)


def skew(free: Tensor) -> Tensor:
    """A kernel A = K - K~ whose convolution is skew, scaled down to a norm of at most pi.

    K~_ij(t) = K_ji(-t) is the kernel of the transpose, whether the image wraps around or ends in zeros. Its
    norm is at most the sum of those of its taps, since a shift is an isometry or a part of one, and at most k
    times that of the kernel as a matrix, since each pixel is read k^2 times; the smaller bound is taken.
    """
    kernel = free - free.transpose(0, 1).flip(2, 3)
    largest = kernel.detach().abs().amax()
    scaled = kernel / torch.where(largest > 0, largest, 1.0)
    taps = _norm_above(scaled.flatten(2).permute(2, 0, 1)).sum()
    bound = torch.minimum(taps, kernel.shape[-1] * _norm_above(scaled.flatten(1))) * largest
    return kernel * (REACH / bound.clamp(min=REACH))


def _norm_above(matrices):
    """tr((MM')^4)^(1/8), at least |M|, or 2e-4 where that is less, as a root has no derivative at 0."""
    gram = matrices @ matrices.mT
    return (gram @ gram).square().sum((-2, -1)).clamp(min=1e-30) ** 0.125


def exponential(matrices: Tensor) -> Tensor:
    """The Taylor polynomial of degree 12 of the exponential, (..., c, c) to the same, in five products."""
    powers = [torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device), matrices]
    for _ in range(3):
        powers.append(powers[-1] @ matrices)
    total = powers[4] / math.factorial(12)
    for start in (8, 4, 0):
        total = total + sum(powers[k] / math.factorial(start + k) for k in range(4))
        total = total @ powers[4] if start else total
    return total


def convolve_exponential(inputs: Tensor, kernel: Tensor) -> Tensor:
    """The same polynomial of the convolution with a kernel, zeros around the image, on a batch."""
    total = term = inputs
    for k in range(1, DEGREE + 1):
        term = convolve(term, kernel / k, "zeros")
        total = total + term
    return total


def convolve(inputs: Tensor, kernel: Tensor, padding_mode: str, bias: Tensor | None = None) -> Tensor:
    """The 'same' convolution of a batch with a kernel of odd size."""
    border = kernel.shape[-1] // 2
    if padding_mode == "zeros":
        return F.conv2d(inputs, kernel, bias, padding=border)
    return F.conv2d(wrap(inputs, border), kernel, bias)


def wrap(inputs: Tensor, border: int) -> Tensor:
    """A batch of images with so many pixels more on each side, from the opposite one."""
    if border == 0:
        return inputs
    inputs = torch.cat([inputs[..., -border:, :], inputs, inputs[..., :border, :]], -2)
    return torch.cat([inputs[..., -border:], inputs, inputs[..., :border]], -1)
