"""What `slopes` says of an activation that does not act entry by entry: the name of its structure.

A slope range is what is known of a function of one number. MaxMin, GroupSort and Householder act on groups of
numbers, and a proof needs to know how: they are named by a `Sorting` or a `Reflection`.

Chapter: bounds/whole-networks.
"""

from dataclasses import dataclass

from torch import Tensor

from lipbook.bound import as_float64


@dataclass(frozen=True)
class Sorting:
    """Each contiguous group of `group_size` entries along `dim` is sorted, the largest first.

    Args:
        group_size: at least 2. The groups of a dimension of n entries are 0 to group_size - 1, and so on.
        dim: of the batch, so at least 1: dimension 0 holds the samples.

    Raises:
        ValueError, TypeError: not such whole numbers.
    """

    group_size: int
    dim: int = 1

    def __post_init__(self):
        checked_count(self.group_size, "group_size", least=2)
        checked_dim(self.dim)


@dataclass(frozen=True, eq=False)
class Reflection:
    """Each pair z = (entry 2i, entry 2i + 1) along `dim` becomes ``z + u (|u'z| - u'z)``, u = vectors[i].

    That is z where u'z > 0, and elsewhere (I - 2uu') z, its mirror image if u is a unit vector. Neither is
    assumed: the formula holds for the very numbers in `vectors`, which rounding leaves beside the circle.

    Args:
        vectors: (pairs, 2), finite; kept as a detached float64 copy.
        dim: of the batch, so at least 1: dimension 0 holds the samples.

    Raises:
        ValueError, TypeError: vectors of another shape, NaN or infinite; not such a dimension.
    """

    vectors: Tensor
    dim: int = 1

    def __post_init__(self):
        vectors = as_float64(self.vectors, "vectors").clone()
        if vectors.ndim != 2 or vectors.shape[1] != 2:
            raise ValueError(f"vectors must have shape (pairs, 2), got {tuple(vectors.shape)}.")
        object.__setattr__(self, "vectors", vectors)
        checked_dim(self.dim)

    def _key(self):
        return self.dim, tuple(self.vectors.flatten().tolist())

    def __eq__(self, other):
        return self._key() == other._key() if isinstance(other, Reflection) else NotImplemented

    def __hash__(self):
        return hash(self._key())

    def __repr__(self):
        return f"Reflection(vectors: {len(self.vectors)}x2, dim={self.dim})"


def checked_count(number: int, name: str, least: int) -> int:
    """`number` if it is an int of at least `least`; otherwise a TypeError or a ValueError."""
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{name} must be an int, got {number!r}.")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}.")
    return number


def checked_dim(dim: int) -> int:
    """`dim` if it is a dimension of a batch that does not hold the samples; otherwise an error."""
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise TypeError(f"dim must be an int, got {dim!r}: the dimension of the batch that is to be grouped.")
    if dim < 1:
        raise ValueError(
            f"dim must be at least 1, got {dim}: dimension 0 of a batch holds the samples, and dimensions "
            "are counted from the front."
        )
    return dim
