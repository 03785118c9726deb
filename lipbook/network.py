"""Reading a model: an `nn.Sequential`, nested or not, as a chain of layers with their shapes.

No function here asks for the type of a layer: contracts tell everything.

Chapter: bounds/whole-networks.
"""

from typing import NamedTuple

from torch import Tensor, nn

from lipbook.bound import UnsupportedLayerError
from lipbook.contracts.definitions import (
    affine,
    checked_shape,
    contracts_of,
    expand,
    numel,
    output_shape,
)
from lipbook.contracts.guard import name_of, require_layer


class Step(NamedTuple):
    """One layer of a model, and the shapes of one sample before and after it (None: not known)."""

    layer: nn.Module
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None


def read(model: nn.Sequential, input_shape: tuple[int, ...] | None = None) -> tuple[Step, ...]:
    """The layers of a model in the order in which they act.

    Each nested `nn.Sequential` is flattened; a block that has a Lipschitz contract of its own stays whole.

    Args:
        model: an `nn.Sequential` of layers with contracts, nesting allowed.
        input_shape: the shape of one sample; None leaves every shape unknown.

    Raises:
        UnsupportedLayerError: not an `nn.Sequential`, or a layer that has no contract or is in a state of
            which its contracts do not speak (train mode, hooks, an overridden forward).
        ValueError, TypeError: not a shape, or one that a layer does not take.
    """
    require_layer(model)
    if not isinstance(model, nn.Sequential):
        raise UnsupportedLayerError(
            f"a model is an nn.Sequential of layers, got {name_of(model)}: wrap one layer as "
            "nn.Sequential(layer), or write the module's forward pass as a chain."
        )
    layers = expand(model, blocks=False)
    shape = None if input_shape is None else checked_shape(input_shape)
    steps = []
    for layer in layers:
        after = None if shape is None else output_shape(layer, shape)
        steps.append(Step(layer, shape, after))
        shape = after
    return tuple(steps)


def split_head(steps: tuple[Step, ...]) -> tuple[tuple[Step, ...], Tensor | None]:
    """The model without its last linear layer, and the weight (logits, features) of that layer.

    A linear layer is here one that tells its own size, in torch's words `in_features`: not BatchNorm, Flatten
    or a residual block. Where the model does not end in one: all of it, and None.
    """
    if not steps or "affine" not in contracts_of(steps[-1].layer):
        return steps, None
    layer, shape, _ = steps[-1]
    features = getattr(layer, "in_features", None)
    if features is None:
        return steps, None
    return steps[:-1], affine(layer, (features,) if shape is None else shape)[0]


def count_logits(steps: tuple[Step, ...], head: Tensor | None) -> int:
    """How many numbers the model puts out for one sample.

    Raises:
        ValueError: the shapes are not known.
    """
    if head is not None:
        return len(head)
    if not steps or steps[-1].output_shape is None:
        raise ValueError("the number of logits of this model is not known: pass input_shape.")
    return numel(steps[-1].output_shape)


def checked_logits(logits, count: int | None):
    """`logits` if it is None, "pairs", a logit or a pair of different logits of a model with `count` of them.

    Raises:
        ValueError, TypeError: it is not, with what it may be.
    """
    if logits == "pairs" and count == 1:
        raise ValueError("this model has one logit, and so no pairs: use logits=0.")
    if logits is None or logits == "pairs":
        return logits
    names = logits if isinstance(logits, tuple) else (logits,)
    are_counts = all(isinstance(name, int) and not isinstance(name, bool) for name in names)
    if not are_counts or len(names) != (2 if isinstance(logits, tuple) else 1):
        raise TypeError(f'logits must be None, one logit i, a pair (i, j) or "pairs", got {logits!r}.')
    if not all(0 <= name < count for name in names) or len(set(names)) != len(names):
        raise ValueError(f"logits must be different and from 0 to {count - 1}, got {logits!r}.")
    return logits


def pairs_of(count: int) -> list[tuple[int, int]]:
    """Every pair of logits (i, j) with i < j."""
    return [(i, j) for i in range(count) for j in range(i + 1, count)]
