"""Checks of the exercises of layers/orthogonal-convolutions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lipbook.exercises.registry import exercise


def _is(answer, target, tolerance=1e-6):
    return abs(float(answer) - target) <= tolerance * max(1.0, abs(target))


@exercise("layers/orthogonal-convolutions/1")
def isometry_or_not(words):
    words = [str(word).strip().lower() for word in words]
    if len(words) != 4:
        return f"four words, one for each layer, got {len(words)}."
    for number, (word, pair) in enumerate(zip(words, ((3, 16, 2), (16, 16, 1), (16, 32, 2), (4, 16, 2))), 1):
        c_in, c_out, stride = pair
        read = c_in * stride**2
        target = "both" if c_out == read else "isometry" if c_out > read else "co-isometry"
        if word != target:
            return (
                f"layer {number}: compare the {c_out} outputs of a window with the {read} numbers behind it."
            )
    return None


@exercise("layers/orthogonal-convolutions/2")
def count_the_reads(padding_factor):
    for k, n, mode in ((3, 6, "reflect"), (3, 5, "constant"), (5, 8, "replicate"), (5, 9, "circular")):
        target = max(_reads(k, n, mode)) / k
        value = float(padding_factor(k, n, mode))
        if not _is(value, target):
            return f"{value:.6g} instead of {target:.6g} for k = {k}, n = {n}, mode {mode!r}."
    return None


def _reads(k, n, mode):
    """How many windows read each pixel of a row: the number of reads in the image is a product of two."""
    places = torch.arange(n, dtype=torch.float64)[None, None] + 1
    padded = F.pad(places, 2 * [(k - 1) // 2], mode=mode)[0, 0]
    read = torch.cat([padded[start : start + k] for start in range(n)])
    return [int((read == place).sum()) for place in range(1, n + 1)]


@exercise("layers/orthogonal-convolutions/3")
def the_first_angles(pair):
    third, fourth = (float(angle) for angle in pair)
    if not _is(third, math.sqrt(3), 1e-3):
        return "degree 3: the square of the modulus is 1 - θ^4/12 + θ^6/36."
    if not _is(fourth, 2 * math.sqrt(2), 1e-3):
        return "degree 4: write the square of the modulus as a polynomial in θ^2; most terms cancel."
    return None


@exercise("layers/orthogonal-convolutions/4")
def two_strides(composed):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    for stride, k, size in ((2, 3, 3), (3, 3, 2), (1, 2, 3)):
        first, second, x = draw(4, 3, k, k), draw(5, 4, size, size), draw(2, 3, 14, 14)
        kernel = composed(first.clone(), second.clone(), stride)
        taps = k + stride * (size - 1)
        if not isinstance(kernel, Tensor) or kernel.shape != (5, 3, taps, taps):
            return f"stride {stride}: the kernel has the shape (5, 3, {taps}, {taps})."
        if not torch.allclose(
            F.conv2d(x, kernel, stride=stride), F.conv2d(F.conv2d(x, first, stride=stride), second)
        ):
            return f"stride {stride}: the layer with your kernel is not the one after the other."
    return None


@exercise("layers/orthogonal-convolutions/5")
def a_winding_number_to_order(wound):
    for c, turns in ((3, 0), (4, 4), (4, -3), (2, 1)):
        kernel = wound(c, turns)
        if not isinstance(kernel, Tensor) or kernel.shape != (c, c, 3, 3):
            return f"a kernel of shape ({c}, {c}, 3, 3)."
        kernel = kernel.double()
        blocks = _symbol(kernel, 5)
        if not torch.allclose(blocks @ blocks.mH, torch.eye(c, dtype=blocks.dtype), atol=1e-6):
            return f"c = {c}, w = {turns}: the kernel is not orthogonal on every ring."
        found = _turns(kernel)
        if found != turns:
            return f"c = {c}: it winds {found} times instead of {turns}."
    return None


def _symbol(kernel, n):
    """sum_t K_t e^{i<w, t>} on the ring, centred, (n, n, c_out, c_in)."""
    angles = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    offsets = [torch.arange(k, dtype=torch.float64) - (k - 1) // 2 for k in kernel.shape[2:]]
    waves = [torch.polar(torch.ones(()).double(), torch.outer(angles, offset)) for offset in offsets]
    return torch.einsum("ar,oirc,bc->aboi", waves[0], kernel + 0j, waves[1])


def _turns(kernel, points=360):
    blocks = _symbol(kernel, points)[:, 0]
    blocks = torch.cat([blocks, blocks[:1]])
    steps = torch.linalg.det(blocks).angle().diff()
    return round((torch.remainder(steps + math.pi, 2 * math.pi) - math.pi).sum().item() / (2 * math.pi))


@exercise("layers/orthogonal-convolutions/6")
def the_nearest_one(nearest):
    generator = torch.Generator().manual_seed(0)
    for n in (5, 6):
        free = torch.randn(3, 3, 3, 3, generator=generator, dtype=torch.float64)
        kernel = nearest(free.clone(), n)
        if not isinstance(kernel, Tensor) or kernel.is_complex() or kernel.shape != (3, 3, n, n):
            return f"a real kernel of shape (3, 3, {n}, {n})."
        blocks, target = _symbol(kernel.double(), n), _symbol(free, n)
        if not torch.allclose(blocks @ blocks.mH, torch.eye(3, dtype=blocks.dtype), atol=1e-6):
            return f"n = {n}: it is not orthogonal on its ring."
        positive = blocks.mH @ target  # of the polar factor: Hermitian, with eigenvalues of at least 0
        if not torch.allclose(positive, positive.mH, atol=1e-6):
            return f"n = {n}: it is orthogonal, but not the nearest one, or not centred."
        if torch.linalg.eigvalsh(positive).min() < -1e-6:
            return f"n = {n}: some directions are turned round."
    return None


@exercise("layers/orthogonal-convolutions/7")
def two_taps(split):
    generator = torch.Generator().manual_seed(0)
    for c, rank in ((3, 1), (4, 2), (4, 0)):
        Q = torch.linalg.qr(torch.randn(c, c, generator=generator, dtype=torch.float64))[0]
        V = torch.linalg.qr(torch.randn(c, c, generator=generator, dtype=torch.float64))[0][:, :rank]
        P = V @ V.T
        answer = split(P @ Q, Q - P @ Q)
        for name, found, target in zip(("P", "Q"), answer, (P, Q)):
            if not isinstance(found, Tensor) or found.shape != (c, c):
                return f"{name} is a {c} x {c} matrix."
            if not torch.allclose(found, target, atol=1e-8):
                return f"c = {c}, rank {rank}: {name} is not the one with K0 = PQ and K1 = (I - P)Q."
    return None
