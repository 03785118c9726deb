"""What each step of a training run sees: which samples, and how far each image is moved.

Both are drawn on the CPU, from generators of their own, so that they are the same on every device, and the
order of the samples is the same whether or not images are moved.
"""

import math
from collections.abc import Iterator

import torch
from torch.nn import functional as F


def batches(
    count: int, batch_size: int, seed: int, shift: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The samples of one batch after another, of shape (n,), and their moves (n, 2), without end.

    Each epoch is a new order of all samples, cut as evenly as it can be. A move (dy, dx) is uniform over
    [-shift, shift]^2, independent of every other.
    """
    orders = torch.Generator("cpu").manual_seed(seed)
    moves = torch.Generator("cpu").manual_seed(~seed)  # it reads 32 bits: those of ~seed are other ones
    while True:
        order = torch.randperm(count, generator=orders, device="cpu")
        for batch in order.tensor_split(math.ceil(count / batch_size)):
            size = len(batch), 2
            yield batch, torch.randint(-shift, shift + 1, size, generator=moves, device="cpu")


def moved(images: torch.Tensor, moves: torch.Tensor, shift: int) -> torch.Tensor:
    """Images (n, c, h, w), each moved down by dy and right by dx pixels; zeros move in.

    `moves` holds (dy, dx) of each image, shape (n, 2), integers of at most `shift` in absolute value.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (shift,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (n, c, 2 shift + 1, 2 shift + 1, h, w)
    top, left = (shift - moves).to(images.device).unbind(1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]
