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


def block_convolution(first: Tensor, second: Tensor) -> Tensor:
    """The kernel of the convolution with `first`, followed by that with `second`.

    (b, a, k_h, k_w) and (c, b, l_h, l_w) to (c, a, k_h + l_h - 1, k_w + l_w - 1): the taps of the product of
    two matrix polynomials.
    """
    border = [size - 1 for size in second.shape[2:]]
    return F.conv2d(first.transpose(0, 1), second.flip(2, 3), padding=border).transpose(0, 1)


def paraunitary(matrix: Tensor, free: Tensor) -> Tensor:
    """An orthogonal kernel from a matrix with orthonormal rows or columns and from free projections.

    Each pair of projections P makes two factors [P, I - P], one along each axis. At the frequency w a factor
    is P + (I - P) e^{iw}, of norm at most 1 for eigenvalues of P in [0, 1], and unitary for those 0 and 1.

    Args:
        matrix: (c_out, c, s, s), the last factor, which strides by s.
        free: (2 count, c, rank), the free matrices of the projections.

    Returns:
        (c_out, c, s + count, s + count).
    """
    channels = matrix.shape[1]
    kernel = torch.eye(channels, dtype=matrix.dtype, device=matrix.device)[:, :, None, None]
    images = projection(free)
    for k, image in enumerate(images):
        kept = torch.einsum("ij,jkhw->ikhw", image, kernel)
        ahead, behind = ((0, 1), (1, 0)) if k % 2 else ((0, 0, 0, 1), (0, 0, 1, 0))
        kernel = F.pad(kept, ahead) + F.pad(kernel - kept, behind)
    return block_convolution(kernel, matrix)


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
    spectrum = torch.fft.rfft2(inputs).flatten(2).permute(2, 1, 0)
    images = (blocks @ spectrum).permute(2, 1, 0)
    return torch.fft.irfft2(images.unflatten(2, (size[0], size[1] // 2 + 1)), s=size)


def skew(free: Tensor) -> Tensor:
    """A kernel A = K - K~ whose convolution is skew, scaled down to a norm of at most pi.

    K~_ij(t) = K_ji(-t) is the kernel of the transpose, whether the image wraps around or ends in zeros. A
    convolution reads each pixel k^2 times, so that its norm is at most k times that of the kernel as a
    matrix, and that at most tr((M M')^4)^(1/8).
    """
    kernel = free - free.transpose(0, 1).flip(2, 3)
    matrix = kernel.flatten(1)
    largest = matrix.detach().abs().amax()
    matrix = matrix / torch.where(largest > 0, largest, 1.0)
    gram = matrix @ matrix.T
    bound = kernel.shape[-1] * (gram @ gram).square().sum().clamp(min=0.5) ** 0.125 * largest
    return kernel * (REACH / bound.clamp(min=REACH))


def exponential(inputs: Tensor, kernel: Tensor, padding_mode: str) -> Tensor:
    """The Taylor polynomial of degree 12 of exp(A) on a batch, A the convolution with a skew kernel."""
    total = term = inputs
    for k in range(1, DEGREE + 1):
        term = convolve(term, kernel / k, padding_mode)
        total = total + term
    return total


def convolve(inputs: Tensor, kernel: Tensor, padding_mode: str, bias: Tensor | None = None) -> Tensor:
    """The 'same' convolution of a batch with a kernel of odd size."""
    border = [size // 2 for size in kernel.shape[2:]]
    if padding_mode == "zeros":
        return F.conv2d(inputs, kernel, bias, padding=border)
    return F.conv2d(F.pad(inputs, [border[1]] * 2 + [border[0]] * 2, mode="circular"), kernel, bias)
