"""How large the gradient of one sample's loss with respect to its logits can be.

A loss here is a module called with (logits, labels) that returns the mean over the batch of a loss of each
sample by itself. One that weighs a sample by what else is in the batch, or that depends on the weights in
another way than through the logits, has no contract.

Chapter: privacy/without-clipping.
"""

import functools
import math

from torch import nn

from lipbook.bound import UnsupportedLayerError
from lipbook.contracts.definitions import owner_of
from lipbook.contracts.gradients import checked_size, refuse_backward_hooks
from lipbook.contracts.guard import attribute, guard, name_of, refusal, require_layer

_ROOT_OF_TWO = math.nextafter(math.sqrt(2), math.inf)


@functools.singledispatch
def _loss_gradient_norm(loss):
    raise NotImplementedError  # the guarded function never lets a loss through to here


def loss_gradient_norm(loss: nn.Module) -> float:
    """An upper bound on the l_2 norm of the gradient of one sample's loss with respect to its logits.

    Args:
        loss: called with (logits, labels), the mean of the samples' losses. `nn.CrossEntropyLoss` and
            `lipbook.training.OffsetCrossEntropy` have sqrt(2), whatever the temperature: their gradient is
            the difference of two probability vectors. `nn.MultiMarginLoss` has 1.

    Raises:
        UnsupportedLayerError: the loss has no contract, or is not the mean of losses of single samples.

    Register: `@loss_gradient_norm.register(MyLoss)` over a function `(loss) -> float`.
    Chapter: privacy/without-clipping.
    """
    require_layer(loss)
    owner = owner_of(loss, _loss_gradient_norm)
    if owner is None:
        raise UnsupportedLayerError(
            f"{name_of(loss)} has no loss_gradient_norm contract: use nn.CrossEntropyLoss or "
            "lipbook.training.OffsetCrossEntropy, or register a bound with "
            f"lipbook.contracts.loss_gradient_norm.register({name_of(loss)}) and attack it with "
            "lipbook.contracts.check(loss, (classes,))."
        )
    guard(loss, owner)
    refuse_backward_hooks(loss)
    return checked_size(_loss_gradient_norm.dispatch(owner)(loss), f"the gradient norm of {name_of(loss)}")


loss_gradient_norm.register = _loss_gradient_norm.register


def has_loss_contract(loss: nn.Module) -> bool:
    """Whether a module is a loss with a contract."""
    return isinstance(loss, nn.Module) and owner_of(loss, _loss_gradient_norm) is not None


@loss_gradient_norm.register(nn.CrossEntropyLoss)
def _cross_entropy(loss):
    """softmax(z) less the (smoothed) label: two probability vectors, which are at most sqrt(2) apart."""
    return _ROOT_OF_TWO


@loss_gradient_norm.register(nn.MultiMarginLoss)
def _multi_margin(loss):
    """k active classes of c have 1 / c each, and the label -k / c: sqrt(k^2 + k) / c, and k <= c - 1."""
    return 1.0


@refusal.register(nn.CrossEntropyLoss)
def _refuse_cross_entropy(loss):
    if not 0 <= attribute(loss, "label_smoothing") <= 1:
        return f"has label_smoothing={loss.label_smoothing}: use a number from 0 to 1."
    if loss.ignore_index >= 0:
        return (
            f"has ignore_index={loss.ignore_index}: it divides by how many of the batch it does not ignore."
        )
    return _refuse_batch_statistics(loss)


@refusal.register(nn.MultiMarginLoss)
def _refuse_multi_margin(loss):
    if loss.p != 1:
        return f"has p={loss.p}, so that its gradient grows with the logits: use p=1."
    return _refuse_batch_statistics(loss)


def _refuse_batch_statistics(loss):
    if loss.reduction != "mean":
        return f'has reduction="{loss.reduction}": a loss of this book is the mean over the batch, "mean".'
    if loss.weight is not None:
        return "has a weight for each class, and divides by the sum of those in the batch: leave weight out."
    return None
